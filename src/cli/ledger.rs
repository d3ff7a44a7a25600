//! `ledger`: which one it is, accepted anew, mended, or carried over into another. Backups and what
//! follows from them are next door.

use std::io::stdin;

use anyhow::{Context as _, bail, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::check_ledger::fail_over;
use super::{Exit, Usage, block_on, doubts, ledger_backup, mend, output};
use crate::amqp::{Link, ledger_id, topology};
use crate::clock;
use crate::config::Config;
use crate::domain::doubt::Gap;
use crate::domain::ledger_mark::{Comparison, LedgerMark};
use crate::ledger::{About, AuditEntry, Counts, LedgerError, Migration, Numbered, Store, Target};

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
    /// Copy the ledger into a file, while the relay runs; of PostgreSQL, print the command for that.
    Backup(ledger_backup::BackupArgs),
    /// Put a backup in the ledger's place. Stop the relay first.
    Restore(ledger_backup::RestoreArgs),
    /// Show the events that may overwrite what was applied before an older copy of the ledger was put
    /// in place.
    Doubts(doubts::Args),
    /// Give customers whose rows cannot be read another row, so that their events go on. Works while
    /// the relay runs.
    Mend(mend::Args),
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

pub(super) fn ledger(args: &Args, config: &Config, who: &str) -> anyhow::Result<Exit> {
    match args {
        Args::Show { json } => show(config, *json),
        Args::Adopt { yes, json } => adopt(config, who, *yes, *json),
        Args::Backup(args) => ledger_backup::backup(args, config),
        Args::Restore(args) => ledger_backup::restore(args, config, who),
        Args::Doubts(args) => doubts::doubts(args, config, who),
        Args::Mend(args) => mend::mend(args, config, who),
        Args::Migrate { to, yes, json } => migrate(config, &target(to)?, *yes, *json),
    }
}

pub(super) const NONE: &str = "ledger.url is \"none\": there is no ledger; set it to one";

/// Which ledger the work queue is fenced by, as far as the broker says.
pub(super) async fn mark_at_broker(
    link: &Link,
    config: &Config,
) -> anyhow::Result<Option<LedgerMark>> {
    let topology = &config.broker.topology;
    match topology::depth(link, &topology.ledger_id_queue()).await? {
        Some(_) => Ok(ledger_id::look(link, topology).await?),
        None => Ok(None),
    }
}

fn show(config: &Config, as_json: bool) -> anyhow::Result<Exit> {
    let (about, counts, numbered, known) = block_on(config, async {
        let (store, about) = Store::visit(&config.ledger.target).await?.context(NONE)?;
        let (counts, numbered) = (store.count().await?, store.load_number().await?);
        let link = config.broker.broker.connect("ledger").await?;
        let known = mark_at_broker(&link, config).await;
        link.close().await;
        Ok((about, counts, numbered, known?))
    })?;
    let compared = known.as_ref().map(|known| numbered.mark(&about).compare(known));
    let matches = compared.as_ref().map(|compared| compared.fault().is_none());
    let Counts { customers, pending, dead } = counts;
    let id_at_broker = known.as_ref().map(|known| known.id.as_str());
    if as_json {
        output::print_json(&json!({"target": config.ledger.target.to_string(),
            "id": about.id.to_string(), "created": about.created.to_string(),
            "customers": customers, "pending": pending, "dead_letters": dead,
            "number": numbered.number, "numbered_at": numbered.at.map(|at| at.to_string()),
            "timeline": numbered.timeline,
            "number_at_broker": known.as_ref().and_then(|known| known.number),
            "gap": numbered.gap.map(doubts::gap_to_json),
            "id_at_broker": id_at_broker, "matches": matches}))?;
    } else {
        let fault = compared.as_ref().and_then(Comparison::fault);
        let verdict = match &compared {
            None => "none yet: the first relay writes it",
            Some(Comparison::Same | Comparison::FailedOver { .. }) => "the same",
            Some(Comparison::Older(_)) => "ahead of this OLDER COPY",
            Some(Comparison::Foreign(_)) => "ANOTHER ONE",
        };
        let mut lines = vec![
            format!("ledger         {}", config.ledger.target),
            format!("id             {}", about.id),
            format!("at the broker  {} ({verdict})", id_at_broker.unwrap_or("-")),
            format!("created        {}", about.created),
            format!("number         {}", number_line(&numbered, known.as_ref())),
            format!(
                "holds          {customers} customers, {pending} pending retries, {dead} dead letters"
            ),
        ];
        lines.extend(numbered.gap.map(|gap| format!("gap            {}", doubts::describe(gap))));
        if let Some(Comparison::FailedOver { since }) = compared {
            lines.push(format!("warning        {}", fail_over(since)));
        }
        lines.extend(fault.map(|fault| format!("fault          {fault}")));
        output::print(&lines.join("\n"))?;
    }
    Ok(Exit::Done)
}

fn number_line(own: &Numbered, known: Option<&LedgerMark>) -> String {
    let at = own.at.map_or_else(|| "-".to_owned(), |at| at.to_string());
    let known = known.and_then(|known| known.number);
    let known = known.map_or_else(|| "-".to_owned(), |number| number.to_string());
    format!("{} of {at}; {known} at the broker", own.number)
}

fn adopt(config: &Config, who: &str, is_sure: bool, as_json: bool) -> anyhow::Result<Exit> {
    block_on(config, async {
        let ledger = Store::visit(&config.ledger.target).await?.context(NONE)?;
        let link = config.broker.broker.connect("ledger").await?;
        let adopted = adopt_at(&link, config, &ledger, who, is_sure).await;
        link.close().await;
        let Adoption { known, is_done: is_adopted, gap } = adopted?;
        let own = ledger.1.id.to_string();
        let told = json!({"id": own, "id_before": known.as_ref().map(|known| &known.id),
                          "adopted": is_adopted, "gap": gap.map(doubts::gap_to_json)});
        let mut text = match (&known, is_adopted) {
            (_, true) => format!("adopted: the work queue is fenced by the ledger {own}"),
            (Some(known), false) if known.id == own && gap.is_none() => {
                format!("nothing to do: it is {own} already")
            }
            (_, false) => "nothing was changed".to_owned(),
        };
        if let Some(gap) = gap.filter(|_| is_adopted) {
            text = format!(
                "{text}\nWhat was applied {} is not known: {}",
                doubts::describe(gap),
                doubts::advice(config)
            );
        }
        if as_json { output::print_json(&told) } else { output::print(&text) }?;
        let is_done = is_adopted || gap.is_none() && known.is_some_and(|known| known.id == own);
        Ok(if is_done { Exit::Done } else { Exit::Failed })
    })
}

struct Adoption {
    /// What was at the broker before.
    known: Option<LedgerMark>,
    is_done: bool,
    /// What was applied then is not known, or would not be.
    gap: Option<Gap>,
}

async fn adopt_at(
    link: &Link,
    config: &Config,
    (store, about): &(Store, About),
    who: &str,
    is_sure: bool,
) -> anyhow::Result<Adoption> {
    ensure_queue(link, config).await?;
    let known = mark_at_broker(link, config).await?;
    let (numbered, now) = (store.load_number().await?, clock::now());
    let own = about.id.to_string();
    let compared = known.as_ref().map(|known| numbered.mark(about).compare(known));
    let (gap, at_least) = match &compared {
        Some(Comparison::Same | Comparison::FailedOver { .. }) => {
            return Ok(Adoption { known, is_done: false, gap: None });
        }
        // It knows what was applied until it was copied.
        Some(Comparison::Older(mismatch)) => {
            let from = numbered.at.unwrap_or(about.created);
            (Some(Gap { from, until: now }), mismatch.known.number.unwrap_or(0))
        }
        // It knows nothing of what was applied under the other one.
        Some(Comparison::Foreign(_)) => (Some(Gap { from: Timestamp::UNIX_EPOCH, until: now }), 0),
        None => (None, 0),
    };
    let question = format!(
        "The work queue is fenced by the ledger {} (number {}); ledger.url names {own} (number {}, \
         {}, of {}).\nAccept that one? What was applied {} is not known to it: a late or replayed \
         update from before then can overwrite a newer one. {}",
        known.as_ref().map_or("-", |known| &known.id),
        known.as_ref().and_then(|known| known.number).unwrap_or(0),
        numbered.number,
        config.ledger.target,
        about.created,
        gap.map_or_else(|| "before".to_owned(), doubts::describe),
        doubts::advice(config)
    );
    if !output::is_wanted(&question, is_sure)? {
        return Ok(Adoption { known, is_done: false, gap });
    }
    let raised = match gap {
        // First: should we be killed now, the gap is known all the same.
        Some(gap) => store.open_gap(gap, at_least, now).await?,
        None => numbered,
    };
    store.append_audit(entry("adopt", who, format!("the ledger {own}"))).await?;
    ledger_id::write(link, &config.broker.topology, &raised.mark(about)).await?;
    Ok(Adoption { known, is_done: true, gap })
}

/// An operator's act on the ledger as a whole.
pub(super) fn entry(act: &str, who: &str, what: String) -> AuditEntry {
    let (who, act) = (who.to_owned(), act.to_owned());
    AuditEntry { at: clock::now(), who, act, what, why: None, count: 0 }
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
        told["id"].as_str().expect("the id is told as a text")
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
    let known = mark_at_broker(link, config).await?;
    let mark = migration.mark().await?;
    if let Some(fault) = known.and_then(|known| mark.compare(&known).fault()) {
        bail!(fault);
    }
    let bar =
        output::bar(migration.customers().await?, "{bar:40} {human_pos}/{human_len} customers");
    let copied = migration.copy(|more| bar.inc(more)).await;
    bar.finish_and_clear();
    let copied = copied.context("copy incomplete; source unchanged; run again")?;
    let id = migration.to().id;
    let mark = LedgerMark { id: id.to_string(), number: Some(0), ..LedgerMark::default() };
    ledger_id::write(link, &config.broker.topology, &mark).await.with_context(|| {
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
