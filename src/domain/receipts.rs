//! First receipts that no message tells yet: of events in hand.
//!
//! A session that is lost is the broker's only once it has noticed. Until then it gives the next session
//! what was published later; what was in hand comes after that, and keeps the place of its first receipt.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::group::Event;
use super::verdict::Verdict;

/// What has not come again for so long does not, or to somebody else.
const REMEMBERED_FOR: Duration = Duration::from_mins(10);
/// What was acked within so long may come again all the same: a connection can be dead for a while before
/// that is noticed, and takes the acks with it.
const ACKED_FOR: Duration = Duration::from_secs(30);
/// Entries that have run out are looked for when there are so many.
const FEW: usize = 1024;

/// Which event a receipt is of: a hash, enough to tell a few thousand apart, another one in each process.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ReceiptKey(u64);

impl fmt::Debug for ReceiptKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReceiptKey")
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    first: Timestamp,
    state: State,
}

#[derive(Clone, Copy, Debug)]
enum State {
    InHand,
    /// It comes again if the connection is found dead by then.
    Acked(Instant),
    /// It may come again until then.
    Expected(Instant),
}

impl Entry {
    fn is_over(&self, now: Instant) -> bool {
        match self.state {
            State::InHand => false,
            State::Acked(until) | State::Expected(until) => until <= now,
        }
    }
}

/// The first receipts of what is in hand, and for a while of what may come again.
#[derive(Debug)]
pub struct Receipts {
    entries: HashMap<ReceiptKey, Entry>,
    hasher: RandomState,
    prune_at: usize,
}

impl Default for Receipts {
    fn default() -> Self {
        Receipts { entries: HashMap::new(), hasher: RandomState::new(), prune_at: FEW }
    }
}

impl Receipts {
    /// An event is received whose message does not tell when it first was. It is told, and remembered.
    /// `None` for one that nothing but its receipt tells from another of the same content.
    pub fn receive(&mut self, event: &mut Event, now: Instant) -> Option<ReceiptKey> {
        let Event { customer, place, history, .. } = event;
        if place.is_unordered() && place.is_unnamed() {
            return None;
        }
        let key = ReceiptKey(self.hasher.hash_one((&**customer, &place.event)));
        let known = self.entries.get(&key).filter(|known| !known.is_over(now));
        history.first_seen = known.map_or(history.first_seen, |known| known.first);
        self.entries.insert(key, Entry { first: history.first_seen, state: State::InHand });
        Some(key)
    }

    /// A delivery was acked, though the broker may not have heard it. What went to a tier may come from there
    /// and once more.
    pub fn acked(&mut self, key: ReceiptKey, verdict: &Verdict, now: Instant) {
        let state = match verdict.tier() {
            Some(_) => State::Expected(now + REMEMBERED_FOR),
            None => State::Acked(now + ACKED_FOR),
        };
        self.entries.entry(key).and_modify(|entry| entry.state = state);
        if self.entries.len() >= self.prune_at {
            self.entries.retain(|_, entry| !entry.is_over(now));
            self.prune_at = FEW.max(2 * self.entries.len());
        }
    }

    /// What is in hand comes again, to us or to others, and so may what was acked a moment ago.
    pub fn lose_session(&mut self, now: Instant) {
        self.entries.retain(|_, entry| !entry.is_over(now));
        for entry in self.entries.values_mut() {
            if let State::InHand | State::Acked(_) = entry.state {
                entry.state = State::Expected(now + REMEMBERED_FOR);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::domain::history::History;
    use crate::domain::retry::tests::default_policy;
    use crate::domain::update::tests::{default_policies, raw};
    use crate::domain::version::Place;
    use crate::domain::version::tests::place;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn event(customer: &str, place: Place) -> Event {
        let fields = serde_json::json!({"entity_id": customer, "city": "Kochi"});
        let update = Arc::new(default_policies().validate(&raw(&fields)).expect("valid"));
        let history = History::new(at(0));
        Event { customer: customer.into(), place, update, history, goes_alone: false }
    }

    fn first(receipts: &mut Receipts, event: &Event, second: i64, now: Instant) -> Timestamp {
        let mut again = self::event(&event.customer, event.place.clone());
        again.history.first_seen = at(second);
        receipts.receive(&mut again, now);
        again.history.first_seen
    }

    #[test]
    fn what_comes_again_keeps_its_first_receipt_for_a_while() {
        let (mut receipts, now) = (Receipts::default(), crate::clock::instant());
        let minutes = |count| now + Duration::from_mins(count);
        let [one, two] = ["1", "2"].map(|id| event("C1", place(Some(1), None, id)));
        assert_eq!(first(&mut receipts, &one, 1, now), at(1));
        let key = receipts.receive(&mut event("C1", two.place.clone()), now).expect("named");
        receipts.acked(key, &Verdict::Applied, now);
        receipts.lose_session(now);
        assert_eq!(first(&mut receipts, &one, 3, now), at(1));
        assert_eq!(first(&mut receipts, &two, 4, now), at(0), "its ack may be lost");
        receipts.acked(key, &Verdict::Applied, now);
        let later = now + ACKED_FOR;
        assert_eq!(first(&mut receipts, &two, 4, later), at(4), "it had come to its end");
        let other = event("C2", one.place.clone());
        assert_eq!(first(&mut receipts, &other, 5, now), at(5), "ids may be a customer's own");
        receipts.lose_session(minutes(1));
        receipts.lose_session(minutes(10));
        assert_eq!(first(&mut receipts, &one, 6, minutes(10)), at(1));
        receipts.lose_session(minutes(11));
        assert_eq!(first(&mut receipts, &one, 7, minutes(21)), at(7), "others have it");
    }

    #[test]
    fn what_went_to_a_tier_is_remembered_in_case_it_comes_again_and_is_forgotten() {
        let (mut receipts, now) = (Receipts::default(), crate::clock::instant());
        let waits = Verdict::hand_back(&default_policy().tiers, History::new(at(0)));
        for number in 0..10_000 {
            let mut event = event("C1", place(Some(1), None, &number.to_string()));
            event.history.first_seen = at(number);
            let now = now + Duration::from_secs(u64::try_from(number).expect("small"));
            let key = receipts.receive(&mut event, now).expect("named");
            receipts.acked(key, &waits, now);
            event.history.first_seen = at(number + 100);
            receipts.receive(&mut event, now + Duration::from_secs(100));
            assert_eq!(event.history.first_seen, at(number));
            receipts.acked(key, &waits, now);
        }
        assert!(receipts.entries.len() < 2 * FEW, "{}", receipts.entries.len());
    }

    #[test]
    fn what_nothing_tells_from_another_is_not_remembered() {
        let mut receipts = Receipts::default();
        let mut unnamed = event("C1", place(None, None, "~hash"));
        assert_eq!(receipts.receive(&mut unnamed, crate::clock::instant()), None);
        let mut timed = event("C1", place(Some(1), None, "~hash"));
        assert!(receipts.receive(&mut timed, crate::clock::instant()).is_some());
    }
}
