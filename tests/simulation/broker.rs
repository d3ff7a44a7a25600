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
    /// What a relay has written to it; `None` before the first one had it.
    pub(super) history: Option<History>,
    /// How often this copy came back from a relay.
    pub(super) returns: u32,
    /// It came back after the relay may have got what was published later.
    pub(super) is_late: bool,
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
    /// Of sessions that are lost, as far as the broker has not noticed: when it will, and whose.
    unnoticed: Vec<(Duration, usize, Vec<Message>)>,
    /// By relay.
    in_hand: BTreeMap<usize, usize>,
}

impl Broker {
    pub(super) fn publish(&mut self, message: Message) {
        self.work.push_back(message);
    }

    /// To a tier, from which it comes back at `due`.
    pub(super) fn postpone(&mut self, message: Message, due: Duration) {
        let tag = self.next_tag();
        self.tiers.insert((due, tag), Message { returns: 0, is_late: false, ..message });
    }

    /// What is due goes back to the work queue.
    pub(super) fn pass_time(&mut self, now: Duration) {
        self.return_lost(|at, _| at <= now);
        while let Some(entry) = self.tiers.first_entry() {
            if entry.key().0 > now {
                return;
            }
            self.work.push_back(entry.remove());
        }
    }

    pub(super) fn next_due(&self) -> Option<Duration> {
        let noticed = self.unnoticed.iter().map(|(at, ..)| *at);
        self.tiers.keys().map(|(due, _)| *due).next().into_iter().chain(noticed).min()
    }

    pub(super) fn has_ready(&self) -> bool {
        !self.work.is_empty()
    }

    pub(super) fn deliver(&mut self, relay: usize) -> Option<(u64, Message)> {
        let message = self.work.pop_front()?;
        let tag = self.next_tag();
        self.unacked.insert(tag, (relay, message.clone()));
        *self.in_hand.entry(relay).or_default() += 1;
        Some((tag, message))
    }

    /// Above all that are there, and no higher: what is alike looks alike.
    fn next_tag(&self) -> u64 {
        let unacked = self.unacked.keys().next_back().copied();
        unacked.into_iter().chain(self.tiers.keys().map(|(_, tag)| *tag)).max().unwrap_or(0) + 1
    }

    /// Which relay has it in hand no more.
    pub(super) fn ack(&mut self, tag: u64) -> Option<usize> {
        let (relay, _) = self.unacked.remove(&tag)?;
        match self.in_hand.get_mut(&relay) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(self.in_hand.remove(&relay)),
        }
        Some(relay)
    }

    /// A relay's session is lost: what was not acked comes again, first, once the broker has noticed. The
    /// events of whose receipt no message tells.
    pub(super) fn lose_session(
        &mut self,
        relay: usize,
        (now, noticed): (Duration, Duration),
    ) -> Vec<usize> {
        self.in_hand.remove(&relay);
        let unacked = std::mem::take(&mut self.unacked);
        let (lost, kept) = unacked.into_iter().partition(|(_, (of, _))| *of == relay);
        self.unacked = kept;
        let lost: Vec<Message> = lost
            .into_values()
            .map(|(_, message)| {
                let (returns, is_late) = (message.returns + 1, message.is_late || noticed > now);
                Message { returns, is_late, ..message }
            })
            .collect();
        let untold = lost.iter().filter(|message| message.history.is_none());
        let untold = untold.map(|message| message.event).collect();
        self.unnoticed.push((noticed, relay, lost));
        self.return_lost(|at, _| at <= now);
        untold
    }

    /// Another process takes this relay's place, with the lock that the broker frees once it has noticed.
    /// The events of whose receipt now nobody tells.
    pub(super) fn notice(&mut self, relay: usize) -> Vec<usize> {
        let untold = self.queued().filter(|message| message.history.is_none() && message.is_late);
        let untold = untold.map(|message| message.event).collect();
        self.return_lost(|_, of| of == relay);
        untold
    }

    fn return_lost(&mut self, is_noticed: impl Fn(Duration, usize) -> bool) {
        let (noticed, unnoticed) = std::mem::take(&mut self.unnoticed)
            .into_iter()
            .partition(|(at, of, _)| is_noticed(*at, *of));
        self.unnoticed = unnoticed;
        for (_, _, messages) in noticed.into_iter().rev() {
            for message in messages.into_iter().rev() {
                self.work.push_front(message);
            }
        }
    }

    pub(super) fn unacked(&self, relay: usize) -> usize {
        self.in_hand.get(&relay).copied().unwrap_or(0)
    }

    /// All that its future hangs on.
    pub(super) fn state(&self) -> String {
        let Broker { work, unacked, unnoticed, dead, .. } = self;
        let tiers: Vec<_> = self.tiers.iter().map(|((due, _), message)| (due, message)).collect();
        let unacked: Vec<_> = unacked.values().collect();
        format!("{work:?} {tiers:?} {unacked:?} {unnoticed:?} {dead:?}")
    }

    /// Whether no relay has anything in hand, or had when its session was lost.
    pub(super) fn is_out_of_hand(&self) -> bool {
        self.unacked.is_empty() && self.unnoticed.is_empty()
    }

    /// Every copy of every event that is not at an end.
    pub(super) fn queued(&self) -> impl Iterator<Item = &Message> {
        let unacked = self.unacked.values().map(|(_, message)| message);
        let unnoticed = self.unnoticed.iter().flat_map(|(.., messages)| messages);
        self.work.iter().chain(self.tiers.values()).chain(unacked).chain(unnoticed)
    }
}
