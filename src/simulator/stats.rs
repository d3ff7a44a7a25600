//! Totals over all calls since the start or the last reset.

use std::collections::BTreeMap;
use std::sync::Mutex;

use serde::Serialize;

use crate::page::Rule;
use crate::state::lock;

/// The running totals behind a lock.
#[derive(Debug, Default)]
pub(crate) struct Stats(Mutex<Totals>);

/// What was counted.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Totals {
    /// Connections accepted, those of the control API too.
    connections: u64,
    calls: u64,
    /// Refusals that were answered, by rule.
    refused: BTreeMap<&'static str, u64>,
    /// Faults that struck, by kind.
    faults: BTreeMap<String, u64>,
    /// Calls whose client went away before an answer.
    abandoned: u64,
    in_flight: u32,
    max_in_flight: u32,
    #[serde(skip)]
    arrived: u64,
}

impl Stats {
    /// Counts an accepted connection.
    pub(crate) fn connected(&self) {
        lock(&self.0).connections += 1;
    }

    /// Counts a call that has arrived and numbers it; numbers never restart.
    pub(crate) fn begin(&self) -> u64 {
        let mut totals = lock(&self.0);
        totals.arrived += 1;
        totals.calls += 1;
        totals.in_flight += 1;
        totals.max_in_flight = totals.max_in_flight.max(totals.in_flight);
        totals.arrived
    }

    /// Counts that a fault of `kind` struck.
    pub(crate) fn fault(&self, kind: &str) {
        let mut totals = lock(&self.0);
        if let Some(count) = totals.faults.get_mut(kind) {
            *count += 1;
        } else {
            totals.faults.insert(kind.to_owned(), 1);
        }
    }

    /// Ends a call that `begin` counted.
    pub(crate) fn end(&self, refused: Option<Rule>, abandoned: bool) {
        let mut totals = lock(&self.0);
        totals.in_flight -= 1;
        totals.abandoned += u64::from(abandoned);
        if let Some(rule) = refused {
            *totals.refused.entry(rule.name()).or_default() += 1;
        }
    }

    /// A copy of the totals.
    pub(crate) fn totals(&self) -> Totals {
        lock(&self.0).clone()
    }

    /// Starts anew; calls in flight stay in flight.
    pub(crate) fn reset(&self) {
        let mut totals = lock(&self.0);
        let (arrived, in_flight) = (totals.arrived, totals.in_flight);
        *totals = Totals { arrived, in_flight, max_in_flight: in_flight, ..Totals::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_keeps_the_calls_in_flight_and_the_numbering() {
        let stats = Stats::default();
        assert_eq!((stats.begin(), stats.begin()), (1, 2));
        stats.end(Some(Rule::Token), false);
        stats.fault("reset");
        stats.reset();
        stats.end(None, true);
        let totals = stats.totals();
        assert_eq!((totals.calls, totals.in_flight, totals.max_in_flight), (0, 0, 1));
        assert_eq!(totals.abandoned, 1);
        assert!(totals.refused.is_empty() && totals.faults.is_empty());
        assert_eq!(stats.begin(), 3);
    }
}
