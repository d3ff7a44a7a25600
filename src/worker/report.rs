//! Counts of how deliveries ended, for the last line.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::domain::verdict::Verdict;
use crate::telemetry::Metrics;

/// How the deliveries of one run ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Applied at the portal.
    pub applied: u64,
    /// Nothing was newer than what the portal has: no call.
    pub superseded: u64,
    /// Fields that were kept from overwriting newer values, in all events.
    pub withheld_fields: u64,
    /// Dropped by rule.
    pub ignored: u64,
    /// To a retry tier, an attempt counted.
    pub retried: u64,
    /// To a retry tier, no attempt counted; handed back at the end among them.
    pub waiting: u64,
    /// To the dead-letter queue.
    pub dead: u64,
    /// Came to a durable end whose ack was lost: the broker delivers them again.
    pub doubled: u64,
    /// Lost with their session before they had an end: the broker delivers them again.
    pub forgotten: u64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { applied, superseded, withheld_fields, ignored, retried, .. } = self;
        let Report { waiting, dead, doubled, forgotten, .. } = self;
        write!(
            f,
            "{applied} applied, {ignored} ignored, {retried} to a retry, {waiting} to wait or \
             handed back, {dead} dead letters; {doubled} settled but not acked, {forgotten} left \
             to redelivery; {superseded} superseded, {withheld_fields} fields withheld"
        )
    }
}

/// What was counted, for the last line; the metrics count along.
#[derive(Debug)]
pub(super) struct Tally {
    metrics: Arc<Metrics>,
    received: AtomicU64,
    applied: AtomicU64,
    superseded: AtomicU64,
    withheld_fields: AtomicU64,
    ignored: AtomicU64,
    retried: AtomicU64,
    waiting: AtomicU64,
    dead: AtomicU64,
    doubled: AtomicU64,
    forgotten: AtomicU64,
}

impl Tally {
    pub(super) fn new(metrics: Arc<Metrics>) -> Tally {
        Tally {
            metrics,
            received: AtomicU64::default(),
            applied: AtomicU64::default(),
            superseded: AtomicU64::default(),
            withheld_fields: AtomicU64::default(),
            ignored: AtomicU64::default(),
            retried: AtomicU64::default(),
            waiting: AtomicU64::default(),
            dead: AtomicU64::default(),
            doubled: AtomicU64::default(),
            forgotten: AtomicU64::default(),
        }
    }

    /// `took`: from delivery to ack.
    pub(super) fn settled(&self, verdict: &Verdict, took: Duration) {
        self.metrics.settled(verdict, took);
        let count = match verdict {
            Verdict::Applied => &self.applied,
            Verdict::Superseded => &self.superseded,
            Verdict::Ignored { .. } => &self.ignored,
            Verdict::Retry { .. } => &self.retried,
            Verdict::Wait { .. } => &self.waiting,
            Verdict::DeadLetter(_) => &self.dead,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn receive(&self) {
        self.metrics.consumed();
        self.received.fetch_add(1, Ordering::Relaxed);
    }

    /// Deliveries so far.
    pub(super) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Deliveries without an end yet.
    pub(super) fn in_hand(&self) -> u64 {
        let Report { applied, superseded, ignored, retried, waiting, .. } = self.report();
        let Report { dead, doubled, forgotten, .. } = self.report();
        let ended = applied + superseded + ignored + retried + waiting + dead + doubled + forgotten;
        // They are counted one after the other.
        self.received().saturating_sub(ended)
    }

    pub(super) fn withheld(&self, fields: usize) {
        self.metrics.withheld(fields);
        self.withheld_fields.fetch_add(fields as u64, Ordering::Relaxed);
    }

    pub(super) fn doubled(&self) {
        self.metrics.doubled();
        self.doubled.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn forgotten(&self) {
        self.metrics.forgotten();
        self.forgotten.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn report(&self) -> Report {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Report {
            applied: read(&self.applied),
            superseded: read(&self.superseded),
            withheld_fields: read(&self.withheld_fields),
            ignored: read(&self.ignored),
            retried: read(&self.retried),
            waiting: read(&self.waiting),
            dead: read(&self.dead),
            doubled: read(&self.doubled),
            forgotten: read(&self.forgotten),
        }
    }
}
