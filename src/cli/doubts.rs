//! `ledger doubts`: which events may overwrite what was applied in the time that a restored ledger does
//! not know, and when that is over.

use std::collections::{BTreeMap, BTreeSet};
use std::io::BufRead as _;

use anyhow::{Context as _, bail};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::doubts_queue::{Place, Waiting, look_through};
use super::ledger::{NONE, entry};
use super::{Exit, Usage, block_on, output};
use crate::clock;
use crate::config::Config;
use crate::domain::doubt::{Gap, Lost, OnDoubt};
use crate::ledger::{About, CustomerKey, Doubted, Store};

#[expect(clippy::struct_excessive_bools, reason = "one flag each")]
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Also read what waits in the work queue, the retry tiers and the dead-letter queue. Raises the
    /// delivery count of each message once, and takes them from the relay for the moment.
    #[arg(long)]
    queue: bool,
    /// Read entity ids, one a line (- is standard input), and tell which of them have events in doubt.
    #[arg(long, value_name = "FILE")]
    customers: Option<String>,
    /// No event is in doubt any more.
    #[arg(long, conflicts_with_all = ["customers", "queue"])]
    close: bool,
    /// What was applied since this time is not known: PostgreSQL has failed over to a replica that
    /// lagged behind.
    #[arg(long, value_name = "TIME", conflicts_with_all = ["customers", "queue", "close"])]
    open: Option<String>,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn doubts(args: &Args, config: &Config, who: &str) -> anyhow::Result<Exit> {
    if args.close {
        return close(args, config, who);
    }
    if let Some(since) = &args.open {
        let since = since.parse();
        let since = since.map_err(|_| Usage("--open: expected an RFC 3339 time".into()))?;
        return open(args, config, who, since);
    }
    let survey = block_on(config, survey(config, args.queue))?;
    if let Some(file) = &args.customers {
        return tell_customers(&survey, &read_ids(file)?, args.json);
    }
    if args.json {
        output::print_json(&survey.to_json(config))?;
    } else {
        output::print(&survey.to_text(config))?;
    }
    Ok(Exit::Done)
}

/// What is known of the events in doubt.
pub(super) struct Survey {
    about: About,
    lost: Option<Lost>,
    /// What came to the relay so far.
    so_far: Vec<Doubted>,
    /// What the ledger says that waits from before the end of the gap.
    pending: usize,
    dead: usize,
    /// What waits in the queues, if they were looked through.
    waiting: Option<Vec<Waiting>>,
}

pub(super) async fn survey(config: &Config, reads_queues: bool) -> anyhow::Result<Survey> {
    let (store, about) = Store::visit(&config.ledger.target).await?.context(NONE)?;
    let gap = store.load_number().await?.gap;
    let lost = gap.map(|gap| gap.lost(config.rules.future_tolerance));
    let so_far = store.load_doubts().await?;
    let part = store.load_part(None).await?;
    let is_before = |time: Timestamp| lost.is_some_and(|lost| time <= lost.dated_until);
    let pending = part.pending().filter(|(_, note)| is_before(note.since)).count();
    let dead = store.load_dead_letters().await?;
    let dead = dead.iter().filter(|(_, letter)| letter.died.is_some_and(is_before)).count();
    let waiting = match lost.filter(|_| reads_queues) {
        Some(lost) => Some(look_through(config, &store, &about, lost).await?),
        None => None,
    };
    Ok(Survey { about, lost, so_far, pending, dead, waiting })
}

impl Survey {
    pub(super) fn to_json(&self, config: &Config) -> Value {
        let event = |id: &str, place: &str| json!({"event": id, "place": place});
        let waiting = self.waiting.as_ref().map(|waiting| {
            waiting.iter().map(|one| event(&one.event.id, one.place.name())).collect::<Vec<_>>()
        });
        let so_far = self.so_far.iter().map(|(_, note)| {
            json!({"event": note.event.id, "at": note.at.to_string(), "ended": note.ended})
        });
        json!({
            "gap": self.lost.map(|lost| gap_to_json(lost.gap)),
            "dated_until": self.lost.map(|lost| lost.dated_until.to_string()),
            "in_doubt": config.ledger.on_doubt.name(),
            "so_far": so_far.collect::<Vec<_>>(),
            "pending_at_most": self.pending,
            "dead_letters_at_most": self.dead,
            "waiting": waiting,
        })
    }

    pub(super) fn to_text(&self, config: &Config) -> String {
        let Some(Lost { gap, dated_until }) = self.lost else {
            let so_far = self.so_far.len();
            return format!("no event is in doubt; {so_far} were, in earlier gaps");
        };
        let mut lines = vec![
            format!("not known      what was applied {}", describe(gap)),
            format!(
                "in doubt       events dated up to {dated_until} (event.future_tolerance beyond that)"
            ),
            format!("setting        {}", advice(config)),
        ];
        let mut ends: BTreeMap<&str, usize> = BTreeMap::new();
        for (_, note) in &self.so_far {
            *ends.entry(&note.ended).or_default() += 1;
        }
        let ends: Vec<String> = ends.iter().map(|(end, count)| format!("{count} {end}")).collect();
        let ends = if ends.is_empty() { "none".to_owned() } else { ends.join(", ") };
        lines.push(format!("so far         {ends}"));
        match &self.waiting {
            None => lines.push(format!(
                "waiting        at most {} of the pending retries and {} of the dead letters that the \
                 ledger knows; --queue looks at the messages",
                self.pending, self.dead
            )),
            Some(waiting) => {
                let count = |place| waiting.iter().filter(|one| one.place == place).count();
                lines.push(format!(
                    "waiting        {} in doubt: {} in the work queue, {} in retry tiers, {} dead \
                     letters",
                    waiting.len(),
                    count(Place::Work),
                    count(Place::Retry),
                    count(Place::Dead)
                ));
                for Waiting { event, place, .. } in waiting {
                    lines.push(format!("  {}  {}", output::part(&event.id), place.name()));
                }
            }
        }
        for (_, note) in &self.so_far {
            let (id, at) = (output::part(&note.event.id), note.at);
            lines.push(format!("  {id}  {} at {at}", note.ended));
        }
        lines.join("\n")
    }

    /// Event ids of each customer.
    fn by_customer(&self) -> BTreeMap<CustomerKey, BTreeSet<&str>> {
        let mut known: BTreeMap<CustomerKey, BTreeSet<&str>> = BTreeMap::new();
        for (key, note) in &self.so_far {
            known.entry(*key).or_default().insert(&note.event.id);
        }
        for one in self.waiting.iter().flatten() {
            known.entry(one.customer).or_default().insert(&one.event.id);
        }
        known
    }
}

pub(super) fn gap_to_json(gap: Gap) -> Value {
    json!({"from": gap.from.to_string(), "until": gap.until.to_string()})
}

pub(super) fn describe(gap: Gap) -> String {
    if gap.from == Timestamp::UNIX_EPOCH {
        return format!("before {}", gap.until);
    }
    format!("between {} and {}", gap.from, gap.until)
}

/// What happens to events in doubt, by the setting.
pub(super) fn advice(config: &Config) -> &'static str {
    match config.ledger.on_doubt {
        OnDoubt::Hold => {
            "Events in doubt are held as dead letters, in-doubt (ledger.in_doubt = \"hold\"; \"send\" \
             sends and counts them)."
        }
        OnDoubt::Send => {
            "Events in doubt are sent and counted (ledger.in_doubt = \"send\"; \"hold\" makes them dead \
             letters)."
        }
    }
}

fn read_ids(file: &str) -> anyhow::Result<Vec<String>> {
    let lines: Vec<String> = if file == "-" {
        std::io::stdin().lock().lines().collect::<Result<_, _>>()?
    } else {
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {file}"))?;
        text.lines().map(str::to_owned).collect()
    };
    let ids = lines.iter().map(|line| line.trim()).filter(|id| !id.is_empty());
    Ok(ids.map(str::to_owned).collect())
}

fn tell_customers(survey: &Survey, ids: &[String], as_json: bool) -> anyhow::Result<Exit> {
    let known = survey.by_customer();
    let found = ids.iter().filter_map(|id| Some((id, known.get(&survey.about.key(id))?)));
    for (id, events) in found {
        if as_json {
            output::print_json_line(&json!({"entity_id": id, "events": events}))?;
        } else {
            let events: Vec<_> = events.iter().map(|event| output::part(event)).collect();
            output::print(&format!("{}  {}", output::part(id), events.join(" ")))?;
        }
    }
    Ok(Exit::Done)
}

fn close(args: &Args, config: &Config, who: &str) -> anyhow::Result<Exit> {
    block_on(config, async {
        let (store, _) = Store::visit(&config.ledger.target).await?.context(NONE)?;
        let Some(gap) = store.load_number().await?.gap else {
            return told(args, "nothing to do: no event is in doubt", Exit::Done);
        };
        let question = format!(
            "What was applied {} is not known. Send events from then without further doubt, retries \
             and replayed dead letters too?",
            describe(gap)
        );
        if !output::is_wanted(&question, args.yes)? {
            return told(args, "nothing was changed", Exit::Failed);
        }
        store.append_audit(entry("doubts-close", who, describe(gap))).await?;
        store.close_gap().await?;
        told(
            args,
            "closed: no event is in doubt; relays at work know it within a minute",
            Exit::Done,
        )
    })
}

fn open(args: &Args, config: &Config, who: &str, since: Timestamp) -> anyhow::Result<Exit> {
    let now = clock::now();
    if since > now {
        bail!(Usage("--open: the time has not come yet".into()));
    }
    block_on(config, async {
        let (store, _) = Store::visit(&config.ledger.target).await?.context(NONE)?;
        let gap = Gap { from: since, until: now };
        store.append_audit(entry("doubts-open", who, describe(gap))).await?;
        store.open_gap(gap, 0, now).await?;
        let text = format!(
            "what was applied {} counts as unknown; relays at work know it within a minute. {}",
            describe(gap),
            advice(config)
        );
        told(args, &text, Exit::Done)
    })
}

fn told(args: &Args, text: &str, exit: Exit) -> anyhow::Result<Exit> {
    if args.json {
        output::print_json(&json!({"said": text}))?;
    } else {
        output::print(text)?;
    }
    Ok(exit)
}
