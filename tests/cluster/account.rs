//! What became of the events, by the simulator's read-back, and the table of it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::load::{self, Published};
use crate::nodes::Fault;
use crate::support::simulator::Simulator;

/// The updates the portal applied during one fault.
pub(crate) struct Applied {
    /// How often each address.
    times: BTreeMap<String, usize>,
    /// When, in milliseconds since the Unix epoch.
    at: Vec<i64>,
}

impl Applied {
    /// Those of events whose addresses begin with `word`.
    pub(crate) async fn read(simulator: &Simulator, word: &str) -> Result<Applied> {
        let (mut times, mut at) = (BTreeMap::new(), Vec::new());
        for id in load::customers(word) {
            let customer = simulator.customer(&id).await?;
            let Some(history) = customer["history"].as_array() else { continue };
            ensure!(history.len() < 32, "{id}: the simulator may have forgotten updates");
            for update in history {
                let address = update["fields"]["address"].as_str().context("no address")?;
                *times.entry(address.to_owned()).or_default() += 1;
                at.push(update["unix_ms"].as_i64().context("no time")?);
            }
        }
        at.sort_unstable();
        Ok(Applied { times, at })
    }

    /// The events that were not applied.
    pub(crate) fn missing(&self, word: &str, events: usize) -> Vec<usize> {
        let is_missing = |event: &usize| !self.times.contains_key(&load::address(word, *event));
        (0..events).filter(is_missing).collect()
    }

    /// Calls that were made again, of these events.
    fn doubles(&self, word: &str, events: impl Iterator<Item = usize>) -> usize {
        let times = |event| self.times.get(&load::address(word, event)).copied().unwrap_or(0);
        events.map(|event| times(event).saturating_sub(1)).sum()
    }

    /// The longest time without an applied call that ends after `since`.
    fn longest_gap(&self, since: i64) -> Duration {
        let gaps = self.at.windows(2).filter(|pair| pair[1] >= since);
        let longest = gaps.map(|pair| pair[1] - pair[0]).max().unwrap_or(0);
        Duration::from_millis(longest.unsigned_abs())
    }
}

/// A line of the table.
pub(crate) struct Row {
    pub(crate) fault: Fault,
    pub(crate) fail_over: Duration,
    pub(crate) bound: Duration,
    published: Published,
    pub(crate) lost: Vec<usize>,
    /// Of events that the CRM sent once, and of those it sent again.
    doubles: [usize; 2],
}

impl Row {
    pub(crate) fn new(
        fault: Fault,
        bound: Duration,
        struck_at: i64,
        published: Published,
        applied: &Applied,
    ) -> Row {
        let word = fault.name();
        let lost = applied.missing(word, published.events);
        let fail_over = applied.longest_gap(struck_at);
        let again = &published.again;
        let once = (0..published.events).filter(|event| !again.contains(event));
        let doubles = [applied.doubles(word, once), applied.doubles(word, again.iter().copied())];
        Row { fault, fail_over, bound, published, lost, doubles }
    }
}

pub(crate) const HEAD: &str = "\
                         publisher's          sent        doubles  of those
fault  fail-over  bound         wait  events  again  lost          sent again
";

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<5} {:>8.1} s {:>4} s {:>10.1} s {:>7} {:>6} {:>5} {:>8} {:>11}",
            self.fault.name(),
            self.fail_over.as_secs_f64(),
            self.bound.as_secs(),
            self.published.longest_wait.as_secs_f64(),
            self.published.events,
            self.published.again.len(),
            self.lost.len(),
            self.doubles[0],
            self.doubles[1]
        )
    }
}
