//! `config`: what is in force, and the reference.

use super::{Exit, output};
use crate::config::{Config, DEFAULTS, Layers, Needs};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print the commented defaults file instead: the reference of all settings.
    #[arg(long)]
    defaults: bool,
    /// Print JSON, each setting with its value and where it comes from.
    #[arg(long, conflicts_with = "defaults")]
    json: bool,
}

pub(super) fn config(args: &Args, layers: &Layers) -> anyhow::Result<Exit> {
    if args.defaults {
        output::print_as_is(DEFAULTS)?;
        return Ok(Exit::Done);
    }
    if args.json {
        output::print_json(&layers.to_json())?;
    } else {
        output::print(&layers.to_toml())?;
    }
    // Shown first, judged after: a person mends what is in sight.
    Config::load(layers, Needs::Broker)?;
    Ok(Exit::Done)
}
