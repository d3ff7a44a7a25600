//! `ledger backup` and `ledger restore`: a file of SQLite's by ourselves, a PostgreSQL's by its own tools.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde_json::json;

use super::ledger::{NONE, entry, mark_at_broker};
use super::{Exit, block_on, doubts, output};
use crate::clock;
use crate::config::Config;
use crate::domain::ledger_mark::LedgerMark;
use crate::ledger::{About, Copied, LedgerError, Restore, Target, backup as copy_ledger};

#[derive(Debug, clap::Args)]
pub(super) struct BackupArgs {
    /// Where to: a file that is not there yet.
    file: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct RestoreArgs {
    /// The backup.
    file: PathBuf,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn backup(args: &BackupArgs, config: &Config) -> anyhow::Result<Exit> {
    let target = &config.ledger.target;
    let ledger = match target {
        Target::None => bail!(NONE),
        Target::Sqlite(path) => path,
        Target::Postgres(_) => {
            let commands = target.dump_commands(&args.file).expect("it is a server's");
            let told = json!({"dump": commands.dump, "restore": commands.restore});
            let text = format!(
                "# {target}: back it up with\n{}\n# and restore it, with every relay stopped, with\n{}",
                commands.dump, commands.restore
            );
            if args.json { output::print_json(&told) } else { output::print(&text) }?;
            return Ok(Exit::Done);
        }
    };
    let copied = block_on(config, async { Ok(copy_ledger(ledger, &args.file).await?) })?;
    let file = args.file.display();
    let Copied { about, numbered, counts, .. } = &copied;
    let told = json!({"file": file.to_string(), "id": about.id.to_string(),
        "number": numbered.number, "customers": counts.customers, "pending": counts.pending,
        "dead_letters": counts.dead});
    let text = format!(
        "{file}: a backup of the ledger {} (number {}), {} customers, checked.\nIt holds salted \
         hashes, event ids and times, and the salt: keep it as you keep the ledger.",
        about.id, numbered.number, counts.customers
    );
    if args.json { output::print_json(&told) } else { output::print(&text) }?;
    Ok(Exit::Done)
}

pub(super) fn restore(args: &RestoreArgs, config: &Config, who: &str) -> anyhow::Result<Exit> {
    let target = &config.ledger.target;
    match target {
        Target::None => bail!(NONE),
        Target::Sqlite(ledger) => {
            block_on(config, async { restore_file(args, config, who, ledger).await })
        }
        Target::Postgres(_) => bail!(
            "{target} is restored by PostgreSQL's own tools: stop every relay; then\n  {}\n(or put it \
             back to a point in time); then `customer-relay ledger adopt`, which records the lost time, \
             so that events in doubt are known; then start the relays",
            target.dump_commands(&args.file).expect("it is a server's").restore
        ),
    }
}

async fn restore_file(
    args: &RestoreArgs,
    config: &Config,
    who: &str,
    ledger: &Path,
) -> anyhow::Result<Exit> {
    let restore = Restore::prepare(ledger, &args.file).await.map_err(|error| {
        let is_in_use = matches!(error, LedgerError::InUse(_));
        let error = anyhow::Error::from(error);
        if is_in_use { error.context("stop the relay first") } else { error }
    })?;
    let link = config.broker.broker.connect("ledger").await?;
    let known = mark_at_broker(&link, config).await;
    link.close().await;
    let known = known?;
    let copied = restore.copied().clone();
    ensure_right_one(&args.file, &copied.about, known.as_ref())?;
    let question = question(&args.file, &copied, known.as_ref(), config);
    if !output::is_wanted(&question, args.yes)? {
        output::print("nothing was changed")?;
        return Ok(Exit::Failed);
    }
    let at_least = known.and_then(|known| known.number).unwrap_or(0);
    let audit = entry("restore", who, format!("a backup of {}", copied.known_until()));
    let kept = restore.complete(at_least, clock::now(), audit).await?;
    let kept = kept.map(|kept| kept.display().to_string());
    if !args.json {
        let kept = kept.as_deref().unwrap_or("none was there");
        output::print(&format!(
            "restored: {} holds {} customers as of {}. The replaced file: {kept}",
            config.ledger.target,
            copied.counts.customers,
            copied.known_until()
        ))?;
    }
    let survey = doubts::survey(config, true).await.context(
        "the ledger is restored; only the events in doubt could not be counted: `customer-relay \
         ledger doubts --queue`",
    )?;
    if args.json {
        let told = json!({"restored": copied.about.id.to_string(), "replaced": kept,
            "customers": copied.counts.customers, "doubts": survey.to_json(config)});
        output::print_json(&told)?;
    } else {
        output::print(&survey.to_text(config))?;
    }
    Ok(Exit::Done)
}

/// What the work queue is fenced by is put back, and nothing else.
fn ensure_right_one(file: &Path, about: &About, known: Option<&LedgerMark>) -> anyhow::Result<()> {
    let own = about.id.to_string();
    let Some(known) = known.filter(|known| known.id != own) else { return Ok(()) };
    bail!(
        "{} is a backup of the ledger {own}, but the work queue is fenced by the ledger {}: name a \
         backup of that one; or, if that one is to be given up, put this file where ledger.url says \
         and accept it with `customer-relay ledger adopt`",
        file.display(),
        known.id
    )
}

fn question(file: &Path, copied: &Copied, known: Option<&LedgerMark>, config: &Config) -> String {
    let known = known.and_then(|known| known.number);
    format!(
        "{} holds {} customers as of {} (number {}; relays have worked up to {}).\nPut it in the place \
         of {}? What was applied since then is not known. {}",
        file.display(),
        copied.counts.customers,
        copied.known_until(),
        copied.numbered.number,
        known.map_or_else(|| "an unknown one".to_owned(), |number| number.to_string()),
        config.ledger.target,
        doubts::advice(config)
    )
}
