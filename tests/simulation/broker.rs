//! A broker as far as the promises need one: a work queue, tiers by due time, dead letters,
//! deliveries that return when their session is lost.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use customer_relay::domain::history::History;

/// A message, wherever it is.
#[derive(Clone, Debug)]
pub(super) struct Message {
    pub(super) event: usize,
    pub(super) customer: Arc<str>,
    /// What a relay has written to it; `None` before the first one had it.
    pub(super) history: Option<History>,
    /// How often this copy came back from a relay.
    pub(super) returns: u32,
}

/// A dead letter.
#[derive(Clone, Debug)]
pub(super) struct Letter {
    pub(super) event: usize,
    pub(super) reason: &'static str,
}

#[derive(Debug, Default)]
pub(super) struct Broker {
    work: VecDeque<Message>,
    /// By due time and order of arrival.
    tiers: BTreeMap<(Duration, u64), Message>,
    pub(super) dead: Vec<Letter>,
    /// Handed over and not acked, by delivery tag: to which relay, and what.
    unacked: BTreeMap<u64, (usize, Message)>,
    /// By relay.
    in_hand: HashMap<usize, usize>,
    tags: u64,
}

impl Broker {
    pub(super) fn publish(&mut self, message: Message) {
        self.work.push_back(message);
    }

    /// To a tier, from which it comes back at `due`.
    pub(super) fn postpone(&mut self, message: Message, due: Duration) {
        self.tags += 1;
        self.tiers.insert((due, self.tags), Message { returns: 0, ..message });
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

    pub(super) fn deliver(&mut self, relay: usize) -> Option<(u64, Message)> {
        let message = self.work.pop_front()?;
        self.tags += 1;
        self.unacked.insert(self.tags, (relay, message.clone()));
        *self.in_hand.entry(relay).or_default() += 1;
        Some((self.tags, message))
    }

    /// False if the delivery is not known any more.
    pub(super) fn ack(&mut self, tag: u64) -> bool {
        let acked = self.unacked.remove(&tag);
        if let Some((relay, _)) = &acked {
            *self.in_hand.entry(*relay).or_default() -= 1;
        }
        acked.is_some()
    }

    /// A relay's session is lost: what was not acked comes again, first. The events of whose receipt
    /// no message tells.
    pub(super) fn lose_session(&mut self, relay: usize) -> Vec<usize> {
        let mut untold = Vec::new();
        self.in_hand.remove(&relay);
        let lost: Vec<u64> =
            self.unacked.iter().filter(|(_, (of, _))| *of == relay).map(|(tag, _)| *tag).collect();
        for tag in lost.into_iter().rev() {
            if let Some((_, message)) = self.unacked.remove(&tag) {
                untold.extend(message.history.is_none().then_some(message.event));
                self.work.push_front(Message { returns: message.returns + 1, ..message });
            }
        }
        untold
    }

    pub(super) fn unacked(&self, relay: usize) -> usize {
        self.in_hand.get(&relay).copied().unwrap_or(0)
    }

    /// Every copy of every event that is not at an end.
    pub(super) fn queued(&self) -> impl Iterator<Item = &Message> {
        let unacked = self.unacked.values().map(|(_, message)| message);
        self.work.iter().chain(self.tiers.values()).chain(unacked)
    }
}
