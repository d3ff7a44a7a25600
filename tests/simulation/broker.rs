//! A broker as far as the promises need one: a work queue, tiers by due time, dead letters,
//! deliveries that return when their session is lost.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use customer_relay::domain::history::History;

/// A message, wherever it is.
#[derive(Clone, Debug)]
pub(super) struct Message {
    pub(super) event: usize,
    pub(super) customer: Arc<str>,
    pub(super) history: History,
}

#[derive(Debug, Default)]
pub(super) struct Broker {
    work: VecDeque<Message>,
    /// By due time and order of arrival.
    tiers: BTreeMap<(Duration, u64), Message>,
    pub(super) dead: Vec<(Message, bool)>,
    /// Handed over and not acked, by delivery tag.
    unacked: BTreeMap<u64, Message>,
    tags: u64,
}

impl Broker {
    pub(super) fn publish(&mut self, message: Message) {
        self.work.push_back(message);
    }

    /// To a tier, from which it comes back at `due`.
    pub(super) fn postpone(&mut self, message: Message, due: Duration) {
        self.tags += 1;
        self.tiers.insert((due, self.tags), message);
    }

    /// What is due goes back to the work queue.
    pub(super) fn pass_time(&mut self, now: Duration) {
        while let Some(entry) = self.tiers.first_entry() {
            if entry.key().0 > now {
                return;
            }
            self.work.push_back(entry.remove());
        }
    }

    pub(super) fn next_due(&self) -> Option<Duration> {
        self.tiers.keys().next().map(|(due, _)| *due)
    }

    pub(super) fn has_ready(&self) -> bool {
        !self.work.is_empty()
    }

    pub(super) fn deliver(&mut self) -> Option<(u64, Message)> {
        let message = self.work.pop_front()?;
        self.tags += 1;
        self.unacked.insert(self.tags, message.clone());
        Some((self.tags, message))
    }

    /// False if the delivery is not known any more.
    pub(super) fn ack(&mut self, tag: u64) -> bool {
        self.unacked.remove(&tag).is_some()
    }

    /// The session is lost: what was not acked comes again, first.
    pub(super) fn lose_session(&mut self) {
        while let Some((_, message)) = self.unacked.pop_last() {
            self.work.push_front(message);
        }
    }

    pub(super) fn unacked(&self) -> usize {
        self.unacked.len()
    }

    /// Every copy of every event that is not at an end.
    pub(super) fn queued(&self) -> impl Iterator<Item = &Message> {
        self.work.iter().chain(self.tiers.values()).chain(self.unacked.values())
    }
}
