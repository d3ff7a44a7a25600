//! `completions` and `man`: what a package puts beside the program, made from its own definition.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::CommandFactory as _;
use clap_complete::Shell;

use super::{Cli, Exit, output};

const NAME: &str = "customer-relay";

#[derive(Debug, clap::Args)]
pub(super) struct CompletionsArgs {
    /// The shell they are for.
    shell: Shell,
}

#[derive(Debug, clap::Args)]
pub(super) struct ManArgs {
    /// The folder for the pages, one for each command; it is made if it is missing.
    folder: PathBuf,
}

pub(super) fn completions(args: &CompletionsArgs) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), NAME, &mut script);
    output::print_as_is(&String::from_utf8(script)?)?;
    Ok(Exit::Done)
}

pub(super) fn man(args: &ManArgs) -> anyhow::Result<Exit> {
    let written = std::fs::create_dir_all(&args.folder)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), &args.folder));
    written.with_context(|| format!("cannot write manual pages to {}", args.folder.display()))?;
    Ok(Exit::Done)
}
