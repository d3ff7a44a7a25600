//! First receipts that no message tells yet: of events in hand.
//!
//! A session that is lost is the broker's only once it has noticed. Until then it gives the next session
//! what was published later; what was in hand comes after that, and keeps the place of its first receipt.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::version::EventRef;

/// What was in hand of a lost session and has not come again for so long is somebody else's.
const REMEMBERED_FOR: Duration = Duration::from_mins(10);

#[derive(Clone, Copy, Debug)]
struct Entry {
    first: Timestamp,
    lost_at: Option<Instant>,
}

/// The first receipts of what is in hand, and of what was when a session was lost. As many as one session
/// may have in hand, for each session that was lost lately.
#[derive(Debug, Default)]
pub struct Receipts {
    /// By a hash of the event: small, and enough to tell a few thousand apart.
    entries: HashMap<u64, Entry>,
    hasher: RandomState,
}

impl Receipts {
    /// An event is received whose message does not tell when it first was; that time.
    pub fn receive(&mut self, event: &EventRef, now: Timestamp) -> Timestamp {
        let entry = self.entries.entry(self.hasher.hash_one(event));
        let entry = entry.or_insert(Entry { first: now, lost_at: None });
        entry.lost_at = None;
        entry.first
    }

    /// It has come to its end, or to where its message tells.
    pub fn end(&mut self, event: &EventRef) {
        self.entries.remove(&self.hasher.hash_one(event));
    }

    /// What is in hand comes again, to us or to others.
    pub fn lose_session(&mut self, now: Instant) {
        self.entries.retain(|_, entry| {
            let lost_at = *entry.lost_at.get_or_insert(now);
            now.duration_since(lost_at) < REMEMBERED_FOR
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_again_after_a_lost_session_keeps_its_first_receipt() {
        let (mut receipts, now) = (Receipts::default(), crate::clock::instant());
        let [one, two] = ["1", "2"].map(|id| EventRef { id: id.into(), source: 0, revision: 0 });
        let at = |second| Timestamp::from_second(second).expect("a time");
        assert_eq!(receipts.receive(&one, at(1)), at(1));
        assert_eq!(receipts.receive(&two, at(2)), at(2));
        receipts.end(&two);
        receipts.lose_session(now);
        assert_eq!(receipts.receive(&one, at(3)), at(1));
        assert_eq!(receipts.receive(&two, at(4)), at(4), "it had come to its end");
        let minute = Duration::from_mins(1);
        receipts.lose_session(now + minute);
        receipts.lose_session(now + 10 * minute);
        assert_eq!(receipts.receive(&one, at(5)), at(1));
        receipts.lose_session(now + 11 * minute);
        receipts.lose_session(now + 21 * minute);
        assert_eq!(receipts.receive(&one, at(6)), at(6), "others have it");
        assert_eq!(receipts.entries.len(), 1);
    }
}
