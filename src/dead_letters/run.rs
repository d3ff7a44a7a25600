//! A replay under way: who goes first, how fast the others follow.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::inspect::as_replayed;
use super::plan::Plan;
use super::replay::{LOOK, Limits, Stopped};
use crate::amqp::Message;
use crate::clock;
use crate::domain::history::History;

/// Sizes of the canary, one after the other.
const CANARY: [usize; 2] = [1, 10];
/// The first rate is such a part of the wanted one, and doubles.
const FIRST_PART: u32 = 16;
const DOUBLES_EVERY: Duration = Duration::from_secs(1);

/// A replay under way.
pub(super) struct Run<'a> {
    pub(super) plan: &'a Plan,
    pub(super) limits: Limits,
    pub(super) remaining: HashSet<Uuid>,
    pub(super) put_back: u64,
    /// Put back, and still in the index.
    pub(super) gone: Vec<Uuid>,
    /// The replays that must end well before the next ones follow.
    pub(super) canary: Vec<Uuid>,
    canaries: std::slice::Iter<'static, usize>,
    size: Option<usize>,
    began: Instant,
    next: tokio::time::Instant,
    looked: Instant,
    pub(super) stopped: Option<Stopped>,
    /// Of the plan, ended and dead again before this run.
    before: (u64, u64),
}

impl Run<'_> {
    pub(super) fn new(plan: &Plan, limits: Limits, before: (u64, u64)) -> Run<'_> {
        let sizes: &'static [usize] = if limits.has_canary { &CANARY } else { &[] };
        let mut canaries = sizes.iter();
        let size = canaries.next().copied();
        let now = clock::instant();
        Run {
            plan,
            limits,
            remaining: plan.set(),
            put_back: 0,
            gone: Vec::new(),
            canary: Vec::new(),
            canaries,
            size,
            began: now,
            next: now.into(),
            looked: now,
            stopped: None,
            before,
        }
    }

    /// Of all that has ended of the plan, what ended in this run; how many failed, likewise.
    pub(super) fn own_ends(&self, (ended, failed): (u64, u64)) -> (u64, u64) {
        (ended.saturating_sub(self.before.0), failed.saturating_sub(self.before.1))
    }

    pub(super) fn history(&self, message: &Message, letter: Uuid) -> History {
        let now = clock::now();
        let history = message.history(now).unwrap_or_else(|_| History::new(now));
        let replay_id = Some(self.plan.replay_id(letter));
        History { replay_id, ..as_replayed(&history, self.plan.forces, now) }
    }

    pub(super) fn note_sent(&mut self, letter: Uuid) {
        self.remaining.remove(&letter);
        self.put_back += 1;
        self.gone.push(letter);
        if self.size.is_some() {
            self.canary.push(self.plan.replay_id(letter));
        }
    }

    /// Whether as many are under way as are to go first, or all there are.
    pub(super) fn canary_is_out(&mut self) -> bool {
        let is_out = self.size.is_some_and(|size| self.canary.len() >= size);
        if is_out {
            self.size = self.canaries.next().copied();
        }
        is_out
    }

    /// Waits until it is the next one's turn.
    pub(super) async fn keep_pace(&mut self) {
        let now = clock::instant();
        if self.size.is_some() {
            // The ramp begins behind the canary.
            (self.began, self.next) = (now, now.into());
            return;
        }
        tokio::time::sleep_until(self.next).await;
        let doublings = self.began.elapsed().as_secs() / DOUBLES_EVERY.as_secs();
        let first = (self.limits.rate / FIRST_PART).max(1);
        let factor = 1_u32 << doublings.min(20);
        let rate = first.saturating_mul(factor).min(self.limits.rate).max(1);
        // What was late is caught up with, as far as one look's worth.
        let earliest = tokio::time::Instant::from(clock::instant()) - LOOK;
        self.next = self.next.max(earliest) + Duration::from_secs(1) / rate;
    }

    pub(super) fn is_time_to_look(&mut self) -> bool {
        let is_time = self.put_back == 0 || self.looked.elapsed() > LOOK;
        if is_time {
            self.looked = clock::instant();
        }
        is_time
    }
}
