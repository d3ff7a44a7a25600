//! What a broker's queues still hold, ready or not: the end of a test's traffic is known by it.
//!
//! A passive declare counts ready messages alone. It sees neither what a relay has in hand nor what
//! an at-least-once retry tier has taken out for its dead-letter worker. `rabbitmqctl list_queues`
//! knows both, but up to 5 s late. So the queues' own state machines are asked.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::bed::Bed;
use super::broker::{Broker, Kind};

const POLL: Duration = Duration::from_millis(100);
/// A broker that is not ours shows ready messages alone: for this long there must be none.
const GIVEN_CALM: Duration = Duration::from_secs(10);

/// What one queue holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    pub ready: u64,
    /// Delivered, and not acked yet.
    pub unacked: u64,
    /// Taken out to be dead-lettered, and not confirmed by the next queue yet.
    pub leaving: u64,
}

/// What queues hold at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub queues: BTreeMap<String, Held>,
    /// No message can have moved between two of the queues while they were asked in turn.
    pub is_consistent: bool,
}

impl Snapshot {
    /// Whether there was no message anywhere.
    pub fn is_empty(&self) -> bool {
        self.is_consistent && self.queues.values().all(|held| *held == Held::default())
    }
}

/// Asks each queue's leader. `hub` is the one that every way between two of the others leads
/// through: it is asked first and last, and as long as its log has not grown meanwhile, nothing
/// has passed through it.
pub async fn snapshot(broker: &Broker, hub: &str, others: &[String]) -> Result<Snapshot> {
    let names: Vec<&str> =
        std::iter::once(hub).chain(others.iter().map(String::as_str)).chain([hub]).collect();
    let told = broker.ctl(&["eval", &query(&names)]).await?;
    let counts = read(&told)?;
    ensure!(counts.len() == names.len(), "{} of {} queues answered", counts.len(), names.len());
    let queues = names.iter().zip(&counts).skip(1).map(|(name, [_, total, ready, unacked])| {
        let leaving = total.saturating_sub(ready + unacked);
        ((*name).to_owned(), Held { ready: *ready, unacked: *unacked, leaving })
    });
    let is_consistent = counts.first() == counts.last();
    Ok(Snapshot { queues: queues.collect(), is_consistent })
}

/// An Erlang expression: index of the log, messages in all, ready, and unacked, of each queue.
fn query(names: &[&str]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("<<\"{name}\">>")).collect();
    format!(
        "Count = fun(State) -> {{rabbit_fifo:query_messages_total(State), \
         rabbit_fifo:query_messages_ready(State), \
         rabbit_fifo:query_messages_checked_out(State)}} end, \
         [begin {{ok, Queue}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<\"/\">>, queue, Name)), \
         {{ok, {{{{Index, _}}, {{Total, Ready, Unacked}}}}, _}} = \
         ra:local_query(amqqueue:get_pid(Queue), Count), \
         {{Index, Total, Ready, Unacked}} end || Name <- [{}]].",
        names.join(", ")
    )
}

/// A list of tuples of four numbers.
fn read(told: &str) -> Result<Vec<[u64; 4]>> {
    let json = told.replace('{', "[").replace('}', "]");
    serde_json::from_str(&json).with_context(|| format!("no counts: {told}"))
}

/// Waits until every message that was published has come to its end: no queue of the relay's ways
/// holds one, and the portal has no call under way. The dead letters and the archive are ends.
pub async fn until_all_ended(bed: &Bed, broker: &Broker, limit: Duration) -> Result<()> {
    let (work, tiers) = bed.ways().await?;
    let end = Instant::now() + limit;
    let mut calm_since = None;
    loop {
        // Cheap, and nearly always enough to see that there is more to come.
        let has_ready = ready(bed, &work, &tiers).await? > 0;
        let has_calls = bed.simulator.stats().await?["in_flight"] != 0;
        let mut seen = None;
        if has_ready || has_calls {
            calm_since = None;
        } else if broker.kind() == Kind::Given {
            if calm_since.get_or_insert_with(Instant::now).elapsed() > GIVEN_CALM {
                return Ok(());
            }
        } else {
            let snapshot = snapshot(broker, &work, &tiers).await?;
            if snapshot.is_empty() {
                return Ok(());
            }
            seen = Some(snapshot);
        }
        if Instant::now() > end {
            bail!("not all at an end within {limit:?}; the queues hold {seen:?}");
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Messages that wait in these queues, ready to be delivered.
pub async fn ready(bed: &Bed, work: &str, tiers: &[String]) -> Result<u32> {
    let mut ready = bed.queues.depth(work).await?;
    for tier in tiers {
        ready += bed.queues.depth(tier).await?;
    }
    Ok(ready)
}
