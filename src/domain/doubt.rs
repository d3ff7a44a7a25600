//! Events in doubt: after an older copy of the ledger was put in place, it is not known whether the
//! portal has something newer. Pure: which events these are, told from the ledger's gap.

use std::time::Duration;

use jiff::Timestamp;

use super::field::FieldSet;
use super::retry::after;
use super::row::{Passage, Row};
use super::version::{OrderBy, Place, Version};

/// What is done with an event in doubt (`ledger.in_doubt`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDoubt {
    /// It is sent, counted and recorded.
    Send,
    /// It is a dead letter.
    Hold,
}

impl OnDoubt {
    /// The setting's value.
    pub fn name(self) -> &'static str {
        match self {
            OnDoubt::Send => "send",
            OnDoubt::Hold => "hold",
        }
    }
}

/// The time in which updates were applied that the ledger does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Up to here it is known what was applied.
    pub from: Timestamp,
    /// From here on it is known again.
    pub until: Timestamp,
}

impl Gap {
    /// Both gaps as one, if there was one before that is still open.
    #[must_use]
    pub fn join(self, other: Option<Gap>) -> Gap {
        let Some(other) = other else { return self };
        Gap { from: self.from.min(other.from), until: self.until.max(other.until) }
    }

    /// The gap as events are held against it. A relay accepts events whose time lies ahead of its own
    /// clock by no more than `tolerance`: by so much, what was applied in the gap may be dated later than
    /// its end.
    #[must_use]
    pub fn lost(self, tolerance: Duration) -> Lost {
        Lost { gap: self, dated_until: after(self.until, tolerance) }
    }
}

/// What was applied in a gap, as far as it can be told from what was not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    /// When it was applied.
    pub gap: Gap,
    /// No event's time is later.
    pub dated_until: Timestamp,
}

impl Lost {
    /// Whether an event may be older than something that was applied in the gap, whatever the ledger
    /// has of its customer. There is no lower bound: an event of last week that waited until now may
    /// be older than what was applied in the gap, too.
    pub fn covers(&self, version: &Version, is_redelivery: bool) -> bool {
        self.covers_place(&version.place, Some(version.receipt), is_redelivery)
    }

    /// The same of an event whose receipt is only known as far as its message tells it.
    pub fn covers_place(
        &self,
        place: &Place,
        receipt: Option<Timestamp>,
        is_redelivery: bool,
    ) -> bool {
        // The record of its receipt may be lost with the rest.
        let may_have_come_before =
            is_redelivery || receipt.is_some_and(|receipt| receipt <= self.gap.until);
        match place.time {
            // What comes only now, dated ahead, follows what the same clock dated ahead before.
            Some(time) => {
                time <= self.gap.until || (time <= self.dated_until && may_have_come_before)
            }
            None if place.is_unordered() => may_have_come_before,
            None => true,
        }
    }

    /// Whether sending these fields of an event may overwrite what was applied in the gap. For a
    /// field of which something later than the gap was applied, the ledger's fence is whole again.
    pub fn doubts(
        &self,
        version: &Version,
        is_redelivery: bool,
        (share, passage): (FieldSet, Passage),
        row: &Row,
    ) -> bool {
        let is_fenced = |field| row.newest(field).is_some_and(|known| self.is_followed_by(known));
        !matches!(passage, Passage::Forced(_))
            && self.covers(version, is_redelivery)
            && share.iter().any(|field| !is_fenced(field))
    }

    /// The same of an event that is only looked at: which of its fields would be sent, is judged too.
    pub fn would_doubt(
        &self,
        version: &Version,
        (fields, passage): (FieldSet, Passage),
        row: &Row,
        by: OrderBy,
    ) -> bool {
        let share = row.fence(version, fields, passage, by);
        // What is looked at is marked as redelivered by that alone.
        self.doubts(version, false, (share, passage), row)
    }

    /// Whether an event is later than all of it, as far as its place in the order says: nothing tells
    /// that of one with a sequence alone.
    fn is_followed_by(&self, version: &Version) -> bool {
        version.time().is_some_and(|time| time > self.dated_until)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::field::Field;
    use crate::domain::version::tests::{place, received};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn gap(from: i64, until: i64) -> Gap {
        Gap { from: at(from), until: at(until) }
    }

    fn version(second: i64) -> Version {
        received(place(Some(second), None, &format!("e{second}")), second + 1000)
    }

    fn fields() -> FieldSet {
        [Field::City, Field::Email].into_iter().collect()
    }

    /// An event of one second that came in another.
    fn came(second: i64, receipt: i64) -> Version {
        received(place(Some(second), None, &format!("e{second}")), receipt)
    }

    /// A relay of these tests accepts what lies 20 s ahead.
    fn lost(from: i64, until: i64) -> Lost {
        gap(from, until).lost(Duration::from_secs(20))
    }

    fn is_in_doubt(lost: Lost, version: &Version, row: &Row) -> bool {
        let by = OrderBy::Time;
        lost.would_doubt(version, (fields(), Passage::Newer), row, by)
    }

    #[test]
    fn what_happened_before_the_end_of_the_gap_is_in_doubt_and_nothing_later() {
        let (lost, row) = (lost(100, 200), Row::default());
        assert!(is_in_doubt(lost, &version(50), &row), "older than the gap is no proof");
        assert!(!is_in_doubt(lost, &version(201), &row), "it came after the gap");
        assert!(is_in_doubt(lost, &came(220, 200), &row), "what was applied may have been ahead");
        assert!(!is_in_doubt(lost, &came(221, 200), &row));
        assert!(!lost.doubts(
            &version(50),
            false,
            (fields(), Passage::Forced(Timestamp::MAX)),
            &row
        ));
    }

    #[test]
    fn a_field_with_something_later_than_the_gap_is_fenced_again() {
        let (lost, mut row) = (lost(100, 200), Row::default());
        row.record(&version(150), fields(), OrderBy::Time);
        assert!(is_in_doubt(lost, &version(160), &row), "the row's own event is in doubt");
        assert!(!is_in_doubt(lost, &version(140), &row), "superseded");
        row.record(&version(300), FieldSet::NONE.with(Field::City), OrderBy::Time);
        assert!(is_in_doubt(lost, &version(160), &row), "its email is sent");
        row.record(&version(300), fields(), OrderBy::Time);
        assert!(!is_in_doubt(lost, &version(160), &row));
    }

    #[test]
    fn a_sequence_alone_says_nothing_of_time() {
        let (lost, mut row, by) = (lost(100, 200), Row::default(), OrderBy::Sequence);
        let untimed = |number: &str| received(place(None, Some(number), number), 999);
        let doubts = |version: &Version, row: &Row| {
            lost.would_doubt(version, (fields(), Passage::Newer), row, by)
        };
        assert!(doubts(&untimed("7"), &row));
        row.record(&untimed("7"), fields(), by);
        assert!(doubts(&untimed("8"), &row), "the one before it proves nothing");
        row.record(&received(place(Some(300), Some("9"), "timed"), 999), fields(), by);
        assert!(!doubts(&untimed("10"), &row));
    }

    #[test]
    fn the_receipt_counts_where_it_is_the_order_unless_it_may_have_been_lost() {
        let (lost, row) = (lost(100, 200), Row::default());
        let doubts = |second, is_redelivery| {
            let version = received(place(None, None, "e"), second);
            lost.doubts(&version, is_redelivery, (fields(), Passage::Newer), &row)
        };
        assert!(doubts(200, false) && !doubts(201, false) && doubts(300, true));
    }

    #[test]
    fn a_second_gap_takes_the_first_one_in() {
        assert_eq!(gap(300, 400).join(Some(gap(100, 200))), gap(100, 400));
        assert_eq!(gap(300, 400).join(None), gap(300, 400));
    }

    proptest! {
        /// Whatever was applied in the gap and is unknown: an event that is sent and not in doubt
        /// never overwrites anything newer.
        #[test]
        fn all_that_could_be_wrong_is_in_doubt(
            known in proptest::collection::vec(0_i64..100, 0..4),
            applied in proptest::collection::vec(0_i64..=220, 0..4),
            since in proptest::collection::vec(190_i64..300, 0..3),
            event in 0_i64..300,
            receipt in 0_i64..300,
        ) {
            let (lost, by) = (lost(100, 200), OrderBy::Time);
            let (mut restored, mut real) = (Row::default(), Row::default());
            for second in known.iter().chain(&since) {
                restored.record(&version(*second), fields(), by);
            }
            for second in known.iter().chain(&applied).chain(&since) {
                real.record(&version(*second), fields(), by);
            }
            // What comes only after the gap, dated ahead, follows what was dated ahead before.
            prop_assume!(!(201..=220).contains(&event) || receipt <= 200);
            let event = came(event, receipt);
            let sent = restored.fence(&event, fields(), Passage::Newer, by);
            let right = real.fence(&event, fields(), Passage::Newer, by);
            prop_assert!(sent == right || is_in_doubt(lost, &event, &restored));
        }
    }
}
