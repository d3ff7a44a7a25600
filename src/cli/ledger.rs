//! `ledger`: which one it is, accepted anew, or carried over into another.

use std::io::stdin;

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};

use super::{Exit, Usage, block_on, output};
use crate::amqp::{Link, ledger_id, topology};
use crate::config::Config;
use crate::ledger::{About, Condition, LedgerError, Migration, Store, Target};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Args {
    /// Show which ledger it is, what it holds, and whether the work queue is fenced by it.
    Show {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Accept the configured ledger for this work queue, in place of one that is lost.
    Adopt {
        /// Do not ask.
        #[arg(long)]
        yes: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Copy the configured ledger into another, empty one, and accept that one. Stop the relay first.
    Migrate {
        /// Where to, written as `ledger.url` is; - reads it from standard input, where no other user
        /// can see a password.
        #[arg(long, value_name = "URL")]
        to: String,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn ledger(args: &Args, config: &Config) -> anyhow::Result<Exit> {
    match args {
        Args::Show { json } => show(config, *json),
        Args::Adopt { yes, json } => adopt(config, *yes, *json),
        Args::Migrate { to, yes, json } => migrate(config, &target(to)?, *yes, *json),
    }
}

const NONE: &str = "ledger.url is \"none\": there is no ledger; set it to one";

/// Which ledger the work queue is fenced by, as far as the broker says.
pub(super) async fn id_at_broker(link: &Link, config: &Config) -> anyhow::Result<Option<String>> {
    let topology = &config.broker.topology;
    match topology::depth(link, &topology.ledger_id_queue()).await? {
        Some(_) => Ok(ledger_id::look(link, topology).await?),
        None => Ok(None),
    }
}

fn show(config: &Config, as_json: bool) -> anyhow::Result<Exit> {
    let (about, counts, known) = block_on(config, async {
        let (store, about) = Store::visit(&config.ledger.target).await?.context(NONE)?;
        let counts = store.counts().await?;
        let link = config.broker.broker.connect("ledger").await?;
        let known = id_at_broker(&link, config).await;
        link.close().await;
        Ok((about, counts, known?))
    })?;
    let matches = known.as_ref().map(|known| *known == about.id.to_string());
    let Condition { customers, pending, dead, .. } = counts;
    if as_json {
        output::print_json(&json!({"target": config.ledger.target.to_string(),
            "id": about.id.to_string(), "created": about.created.to_string(),
            "customers": customers, "pending": pending, "dead_letters": dead,
            "id_at_broker": known, "matches": matches}))?;
    } else {
        let verdict = match matches {
            Some(true) => "the same",
            Some(false) => {
                "ANOTHER ONE: name that ledger in ledger.url, or if it is lost `ledger adopt`"
            }
            None => "none yet: the first relay writes it",
        };
        output::print(&format!(
            "ledger         {}\nid             {}\nat the broker  {} ({verdict})\ncreated        {}\n\
             holds          {customers} customers, {pending} pending retries, {dead} dead letters",
            config.ledger.target,
            about.id,
            known.as_deref().unwrap_or("-"),
            about.created,
        ))?;
    }
    Ok(Exit::Done)
}

fn adopt(config: &Config, is_sure: bool, as_json: bool) -> anyhow::Result<Exit> {
    block_on(config, async {
        let (_, about) = Store::visit(&config.ledger.target).await?.context(NONE)?;
        let link = config.broker.broker.connect("ledger").await?;
        let adopted = adopt_at(&link, config, &about, is_sure).await;
        link.close().await;
        let (known, is_adopted) = adopted?;
        let own = about.id.to_string();
        let told = json!({"id": own, "id_before": known, "adopted": is_adopted});
        let text = match (&known, is_adopted) {
            (_, true) => format!("adopted: the work queue is fenced by the ledger {own}"),
            (Some(known), false) if *known == own => format!("nothing to do: it is {own} already"),
            (_, false) => "nothing was changed".to_owned(),
        };
        if as_json { output::print_json(&told) } else { output::print(&text) }?;
        let is_done = is_adopted || known.as_ref() == Some(&own);
        Ok(if is_done { Exit::Done } else { Exit::Failed })
    })
}

/// The id before, and whether it was replaced.
async fn adopt_at(
    link: &Link,
    config: &Config,
    about: &About,
    is_sure: bool,
) -> anyhow::Result<(Option<String>, bool)> {
    ensure_queue(link, config).await?;
    let known = id_at_broker(link, config).await?;
    let own = about.id.to_string();
    if known.as_ref() == Some(&own) {
        return Ok((known, false));
    }
    let question = format!(
        "The work queue is fenced by the ledger {}; ledger.url names {own} ({}, of {}).\nAccept that \
         one? What was applied before is not known to it: a late or replayed update from before then \
         can overwrite a newer one.",
        known.as_deref().unwrap_or("-"),
        config.ledger.target,
        about.created
    );
    if !output::is_wanted(&question, is_sure)? {
        return Ok((known, false));
    }
    ledger_id::write(link, &config.broker.topology, about.id).await?;
    Ok((known, true))
}

async fn ensure_queue(link: &Link, config: &Config) -> anyhow::Result<()> {
    let queue = config.broker.topology.ledger_id_queue();
    let is_there = topology::depth(link, &queue).await?.is_some();
    ensure!(is_there, "queue {queue} is missing; run `customer-relay topology apply`");
    Ok(())
}

fn target(url: &str) -> anyhow::Result<Target> {
    let mut line = url.to_owned();
    if url == "-" {
        line.clear();
        stdin().read_line(&mut line).context("cannot read standard input")?;
    }
    match Target::parse(line.trim()) {
        Ok(Target::None) => bail!(Usage("--to none: a ledger is copied into another one".into())),
        Ok(target) => Ok(target),
        Err(error) => bail!(Usage(format!("--to: {error}"))),
    }
}

fn migrate(config: &Config, to: &Target, is_sure: bool, as_json: bool) -> anyhow::Result<Exit> {
    let from = &config.ledger.target;
    if *from == Target::None {
        bail!(NONE);
    }
    let question = format!(
        "Copy the ledger {from} into {to}, and let the work queue be fenced by the copy? The old one \
         is refused afterwards."
    );
    if !output::is_wanted(&question, is_sure)? {
        return output::print("nothing was changed").map(|()| Exit::Failed).map_err(Into::into);
    }
    let told = block_on(config, async {
        let link = config.broker.broker.connect("ledger").await?;
        let migrated = migrate_at(&link, config, to).await;
        link.close().await;
        migrated
    })?;
    let text = format!(
        "{} customers copied; the work queue is fenced by the ledger {}.\nNow set ledger.url to {to} for \
         every relay, and start them. Keep {from} until then; it is refused from now on.",
        told["customers"],
        told["id"].as_str().unwrap_or_default()
    );
    if as_json { output::print_json(&told) } else { output::print(&text) }?;
    Ok(Exit::Done)
}

async fn migrate_at(link: &Link, config: &Config, to: &Target) -> anyhow::Result<Value> {
    let from = &config.ledger.target;
    refuse_consumers(link, config).await?;
    ensure_queue(link, config).await?;
    let migration = Migration::prepare(from, to).await.map_err(with_a_way_out)?;
    let own = migration.from().id.to_string();
    let known = id_at_broker(link, config).await?;
    if let Some(known) = known.filter(|known| *known != own) {
        bail!(
            "this work queue is fenced by the ledger {known}, but ledger.url names the ledger {own}: \
             name the right one, or `customer-relay ledger adopt` first"
        );
    }
    let bar =
        output::bar(migration.customers().await?, "{bar:40} {human_pos}/{human_len} customers");
    let copied = migration.copy(|more| bar.inc(more)).await;
    bar.finish_and_clear();
    let copied =
        copied.context("the copy is no ledger yet; nothing else has changed, try again")?;
    let id = migration.to().id;
    ledger_id::write(link, &config.broker.topology, id).await.with_context(|| {
        format!("the copy is whole, but not accepted: set ledger.url to {to}, `ledger adopt`")
    })?;
    Ok(json!({"from": from.to_string(), "to": to.to_string(), "customers": copied,
              "id_before": own, "id": id.to_string()}))
}

/// A relay on another host holds no lock that is seen from here.
async fn refuse_consumers(link: &Link, config: &Config) -> anyhow::Result<()> {
    let queue = config.broker.topology.work_queue();
    let consumers = topology::consumers(link, &queue).await?.unwrap_or(0);
    ensure!(
        consumers == 0,
        "{queue} has {consumers} consumers: stop the relays first; what they apply while the ledger is \
         copied would be lost to it"
    );
    Ok(())
}

fn with_a_way_out(error: LedgerError) -> anyhow::Error {
    let is_in_use = matches!(error, LedgerError::InUse(_));
    let error = anyhow::Error::from(error);
    if is_in_use {
        error.context("stop the relays first: nothing may be written meanwhile")
    } else {
        error
    }
}
