//! One fault at the node that leads the work queue, with the relay and the CRM connected to it.

use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::time::sleep;

use crate::account::{Applied, Row};
use crate::load::{Load, PER_SECOND, Published};
use crate::nodes::{Cluster, Fault, SIZE};
use crate::support::eventually;
use crate::support::relay::{self, Settings};
use crate::support::simulator::Simulator;

const BEFORE: Duration = Duration::from_secs(3);
const AFTER: Duration = Duration::from_secs(2);
/// For the last event, after the queues look empty.
const LATEST: Duration = Duration::from_mins(4);
/// A lost connection shows at once. Silence shows after two heartbeats.
const SHORTEST: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(12)];
/// What a relay writes of each event; its other lines tell of the broker.
const OF_EVENTS: [&str; 2] = ["\"message\":\"applied\"", "\"message\":\"not applied\""];

/// What all trials share.
pub(crate) struct Stage {
    pub(crate) cluster: Cluster,
    pub(crate) simulator: Simulator,
    pub(crate) settings: Settings,
    pub(crate) prefix: String,
}

impl Stage {
    /// Strikes, watches the relay go on by itself, heals, and counts.
    pub(crate) async fn try_fault(&self, fault: Fault, bound: Duration) -> Result<Row> {
        let word = fault.name();
        let [queue, retry] = ["work", "retry."].map(|name| format!("{}.{name}", self.prefix));
        let leader = self.cluster.leader(&queue, 0).await?;
        let witness = (leader + 1) % SIZE;
        let urls = self.cluster.urls(leader);
        let mut settings = self.settings.clone();
        settings.set("broker.url", &urls.join(","));
        let relay = settings.start_relay().await?;
        let load = Load::start(urls, format!("{}.events", self.prefix), word);
        sleep(BEFORE).await;

        let struck_at = jiff::Timestamp::now().as_millisecond();
        let began = Instant::now();
        self.cluster.strike(fault, leader).await?;
        let goes_on = self.goes_on(fault, bound).await;
        println!(
            "{word:<5} node {}: {:.1} s, {goes_on}",
            leader + 1,
            began.elapsed().as_secs_f64()
        );
        self.cluster.heal(fault, leader).await?;
        self.cluster.whole(witness).await?;
        println!("{word:<5} whole again after {:.1} s", began.elapsed().as_secs_f64());
        sleep(AFTER).await;
        let published = load.stop().await?;
        // What is lost shows in the row.
        let drained = self.cluster.drained(&queue, &retry).await;
        let applied = self.all_applied(word, &published).await?;
        let row = Row::new(fault, bound, struck_at, published, &applied);
        if drained.is_err() || row.fail_over > bound || !row.lost.is_empty() {
            println!("{}", self.cluster.account(witness).await?);
            show(&relay.output(), word, &row.lost);
        }
        relay::stop(relay).await?;
        Ok(row)
    }

    /// Whether calls are applied at the old pace again, during the fault.
    async fn goes_on(&self, fault: Fault, bound: Duration) -> &'static str {
        sleep(SHORTEST[usize::from(fault != Fault::Kill)]).await;
        let steady = eventually("calls at the old pace", bound, || async {
            let before = self.applied().await?;
            sleep(Duration::from_secs(1)).await;
            Ok((self.applied().await? >= before + PER_SECOND as u64 / 2).then_some(()))
        });
        if steady.await.is_ok() { "the relay goes on" } else { "THE RELAY STANDS STILL" }
    }

    /// What was applied, once that is all. What a node says of its queues is up to five seconds old:
    /// empty ones can still hold the last events. A tier whose dead-letter worker lost its confirm to
    /// the fault sends again after three minutes.
    async fn all_applied(&self, word: &str, published: &Published) -> Result<Applied> {
        let began = Instant::now();
        loop {
            let applied = Applied::read(&self.simulator, word).await?;
            let missing = applied.missing(word, published.events).len();
            if missing == 0 || began.elapsed() > LATEST {
                return Ok(applied);
            }
            println!(
                "{word:<5} {missing} to come, {:.0} s after empty queues",
                began.elapsed().as_secs_f64()
            );
            sleep(Duration::from_secs(2)).await;
        }
    }

    async fn applied(&self) -> Result<u64> {
        Ok(self.simulator.stats().await?["applied"].as_u64().unwrap_or(0))
    }
}

/// Prints the relay's log, without what it says of events that are not lost.
fn show(output: &str, word: &str, lost: &[usize]) {
    let lost: Vec<String> = lost.iter().map(|event| format!("\"{word}-{event}\"")).collect();
    let is_of_another = |line: &&str| {
        OF_EVENTS.iter().any(|text| line.contains(text))
            && !lost.iter().any(|id| line.contains(id.as_str()))
    };
    println!("the relay wrote, beside what it says of other events:");
    for line in output.lines().filter(|line| !is_of_another(line)) {
        println!("  {line}");
    }
}
