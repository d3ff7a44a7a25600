//! Counts of how deliveries ended, for the last line.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::domain::verdict::Verdict;

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

#[derive(Debug, Default)]
pub(super) struct Tally {
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
    pub(super) fn settled(&self, verdict: &Verdict) {
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
        self.received.fetch_add(1, Ordering::Relaxed);
    }

    /// Deliveries so far.
    pub(super) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    pub(super) fn withheld(&self, fields: usize) {
        self.withheld_fields.fetch_add(fields as u64, Ordering::Relaxed);
    }

    pub(super) fn doubled(&self) {
        self.doubled.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn forgotten(&self) {
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
