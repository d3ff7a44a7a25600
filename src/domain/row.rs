//! What the ledger keeps of one customer: for each field the version that the portal last
//! confirmed. A join of versions: whatever order records come in, the outcome is the same.

use std::cmp::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::field::{Field, FieldSet};
use super::retry::after;
use super::version::{EventRef, OrderBy, Place, Version};

/// Events of equal rank that are remembered beside those that own a field.
const MAX_REMEMBERED: usize = 16;
/// Events whose calls are remembered one by one; with more under way they count as anybody's.
const MAX_MARKS: usize = 8;

/// A customer's field versions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Each field is owned by one entry at most; an entry without any only keeps its receipt.
    entries: Vec<Entry>,
    /// No two of one event.
    marks: Vec<Mark>,
    superseded: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    version: Version,
    fields: FieldSet,
}

/// A call that may still be under way at the portal, whatever became of it here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    #[serde(with = "jiff::fmt::serde::timestamp::nanosecond::required")]
    until: Timestamp,
    /// Whose call; `None` for several, or if it is not known.
    event: Option<EventRef>,
}

/// How an event passes the fence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Passage {
    /// Only fields for which it is newer.
    #[default]
    Newer,
    /// It was applied, and is sent again: fields for which nothing is newer.
    Resent,
    /// An operator's word, given then: all fields but those of which something came since.
    Forced(Timestamp),
}

/// What a delivery says of its event's first receipt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Receipt {
    /// The moment, if the message has been through a retry tier or the dead-letter queue.
    pub told: Option<Timestamp>,
    /// The broker has given the message out before.
    pub is_redelivery: bool,
}

/// When an event was first seen, as far as its delivery says, and what time it is: by the wall clocks of
/// whichever relays saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// When it was first seen.
    pub first: Timestamp,
    /// Now.
    pub now: Timestamp,
}

impl Row {
    /// The version that the portal last confirmed for a field.
    pub fn newest(&self, field: Field) -> Option<&Version> {
        self.entries.iter().find(|entry| entry.fields.contains(field)).map(|entry| &entry.version)
    }

    /// Events that found nothing left to send.
    pub fn superseded(&self) -> u64 {
        self.superseded
    }

    /// Counts one of them.
    pub fn count_superseded(&mut self) {
        self.superseded += 1;
    }

    /// The version of an event: its place, and when it was first received as far as anybody knows.
    pub fn version(&self, place: &Place, receipt: Receipt, seen: Seen, by: OrderBy) -> Version {
        let first_seen = self.first_seen(place, seen, by);
        if place.is_unordered() && place.is_unnamed() {
            return self.version_of_unnamed(place, receipt, first_seen);
        }
        let recorded = self.entries.iter().filter(|entry| entry.version.place == *place);
        let recorded = recorded.map(|entry| entry.version.receipt).min();
        let known = [receipt.told, recorded].into_iter().flatten().min();
        Version { place: place.clone(), receipt: known.unwrap_or(first_seen) }
    }

    /// When an event was first seen, by the clock that the receipts of its rank were written by. One that
    /// lies ahead of us was written before our clock, or another relay's, was set back: what is seen now
    /// came after it. What nothing but its receipt orders came also after the times of what was received
    /// before it, by the CRM's clock.
    fn first_seen(&self, place: &Place, seen: Seen, by: OrderBy) -> Timestamp {
        let newest = if place.is_unordered() {
            let came_before =
                |version: &&Version| version.receipt <= seen.first || version.receipt > seen.now;
            let others = self.entries.iter().map(|entry| &entry.version).filter(came_before);
            others.filter_map(Version::time).max()
        } else {
            let ties = |entry: &&Entry| entry.version.place.rank(place, by) == Ordering::Equal;
            self.entries.iter().filter(ties).map(|entry| entry.version.receipt).max()
        };
        match newest {
            Some(newest) if newest > seen.now && seen.first <= seen.now => {
                after(newest, Duration::from_nanos(1))
            }
            Some(_) | None => seen.first,
        }
    }

    /// Nothing but its receipt tells such an event from one of the same content: unless the message
    /// says when that was, or may have been here before, it is a new one.
    fn version_of_unnamed(
        &self,
        place: &Place,
        receipt: Receipt,
        first_seen: Timestamp,
    ) -> Version {
        let named = |receipt: Timestamp| {
            let id = format!("{}@{}", place.event.id, receipt.as_nanosecond());
            let event = EventRef { id, ..place.event };
            Version { place: Place { event, ..place.clone() }, receipt }
        };
        let is_same = |version: &&Version| version.place == named(version.receipt).place;
        let recorded = self.entries.iter().map(|entry| &entry.version).filter(is_same);
        match (receipt.told, recorded.max_by_key(|version| version.receipt)) {
            (Some(told), _) => named(told),
            (None, Some(recorded)) if receipt.is_redelivery => recorded.clone(),
            (None, _) => named(first_seen),
        }
    }

    /// Whether an event's place hangs on its receipt, and nothing would remember that after a
    /// crash: then it is [announced](Self::announce) before its first call.
    pub fn must_announce(&self, version: &Version, receipt: Receipt, by: OrderBy) -> bool {
        let place = &version.place;
        let ties = |entry: &Entry| entry.version.place.rank(place, by) == Ordering::Equal;
        let is_known = receipt.told.is_some()
            || self.entries.iter().any(|entry| entry.version.place == *place);
        !is_known && (place.is_unordered() || self.entries.iter().any(ties))
    }

    /// Remembers when an event was first received.
    pub fn announce(&mut self, version: &Version, by: OrderBy) {
        self.entry(version);
        self.prune(by);
    }

    /// The fields of an event that may be sent.
    pub fn fence(
        &self,
        version: &Version,
        fields: FieldSet,
        passage: Passage,
        by: OrderBy,
    ) -> FieldSet {
        let passes = |field: &Field| {
            let Some(newest) = self.newest(*field) else { return true };
            let order = version.order(newest, by);
            match passage {
                Passage::Newer => order == Ordering::Greater,
                Passage::Resent => order != Ordering::Less,
                Passage::Forced(since) => order != Ordering::Less || newest.receipt <= since,
            }
        };
        fields.iter().filter(passes).collect()
    }

    /// The portal has confirmed these fields of an event. A version is never lowered.
    pub fn record(&mut self, version: &Version, fields: FieldSet, by: OrderBy) {
        let newer = self.fence(version, fields, Passage::Newer, by);
        for entry in &mut self.entries {
            entry.fields = entry.fields.without(newer);
        }
        let entry = self.entry(version);
        entry.fields = entry.fields.iter().chain(newer.iter()).collect();
        self.prune(by);
    }

    /// Whether this very version of an event is what the portal last confirmed for any field.
    pub fn owns(&self, version: &Version) -> bool {
        self.entries.iter().any(|entry| entry.version == *version && !entry.fields.is_empty())
    }

    /// The version of the event that keeps these fields from being sent: the newest of them.
    pub fn superseding(&self, fields: FieldSet, by: OrderBy) -> Option<&Version> {
        fields.iter().filter_map(|field| self.newest(field)).max_by(|a, b| a.order(b, by))
    }

    /// A call of this event may be under way until then, whatever became of it here.
    pub fn mark(&mut self, event: Option<&EventRef>, until: Timestamp, now: Timestamp) {
        self.lift_marks(now);
        match self.marks.iter_mut().find(|mark| mark.event.as_ref() == event) {
            Some(mark) => mark.until = mark.until.max(until),
            None => self.marks.push(Mark { until, event: event.cloned() }),
        }
        if self.marks.len() > MAX_MARKS {
            let until = self.marks.iter().map(|mark| mark.until).max();
            self.marks = until.map(|until| Mark { until, event: None }).into_iter().collect();
        }
    }

    /// No call is under way for longer than `settle_after` from now: a mark that says so was written by a
    /// clock that was ahead. Whether there was one.
    pub fn shorten_marks(&mut self, settle_after: Duration, now: Timestamp) -> bool {
        let latest = after(now, settle_after);
        let mut is_changed = false;
        for mark in self.marks.iter_mut().filter(|mark| mark.until > latest) {
            (mark.until, is_changed) = (latest, true);
        }
        is_changed
    }

    /// Keeps the marks of this row as it was read before; whether there were any.
    pub fn inherit_marks(&mut self, before: &Row, now: Timestamp) -> bool {
        let lasting = || before.marks.iter().filter(|mark| mark.until > now);
        lasting().for_each(|mark| self.mark(mark.event.as_ref(), mark.until, now));
        lasting().next().is_some()
    }

    /// How long a call of another event than this one may still be under way, and undo it.
    pub fn endangered(&self, event: &EventRef, now: Timestamp) -> Option<Duration> {
        let is_own = |mark: &Mark| mark.event.as_ref().is_some_and(|own| own.is_same(event));
        let others = self.marks.iter().filter(|mark| !is_own(mark));
        let until = others.map(|mark| mark.until).max()?;
        Duration::try_from(until.duration_since(now)).ok().filter(|left| !left.is_zero())
    }

    /// The call that may be under way for longest: until when, and whose, if that is known.
    pub fn under_way(&self, now: Timestamp) -> Option<(Timestamp, Option<&EventRef>)> {
        let mark = self.marks.iter().max_by_key(|mark| mark.until)?;
        (mark.until > now).then_some((mark.until, mark.event.as_ref()))
    }

    /// Forgets marks that have run out.
    pub fn lift_marks(&mut self, now: Timestamp) {
        self.marks.retain(|mark| mark.until > now);
    }

    /// What an older form of a row says.
    pub(super) fn from_parts(
        entries: impl IntoIterator<Item = (Version, FieldSet)>,
        mark: Option<(Option<EventRef>, Timestamp)>,
        superseded: u64,
    ) -> Row {
        let entry = |(version, fields)| Entry { version, fields };
        let mark = mark.map(|(event, until)| Mark { until, event });
        Row {
            entries: entries.into_iter().map(entry).collect(),
            marks: mark.into_iter().collect(),
            superseded,
        }
    }

    /// An event has one, with the first of its receipts.
    fn entry(&mut self, version: &Version) -> &mut Entry {
        let known = self.entries.iter().position(|entry| entry.version.place == version.place);
        let index = known.unwrap_or_else(|| {
            self.entries.push(Entry { version: version.clone(), fields: FieldSet::NONE });
            self.entries.len() - 1
        });
        let entry = &mut self.entries[index];
        entry.version.receipt = entry.version.receipt.min(version.receipt);
        entry
    }

    /// An entry that owns nothing is of use only where its event could still tie with another.
    fn prune(&mut self, by: OrderBy) {
        if self.entries.iter().all(|entry| !entry.fields.is_empty()) {
            return;
        }
        let owners: Vec<Place> = self
            .entries
            .iter()
            .filter(|entry| !entry.fields.is_empty())
            .map(|entry| entry.version.place.clone())
            .collect();
        let ties = |place: &Place| {
            place.is_unordered()
                || owners.iter().any(|owner| owner.rank(place, by) == Ordering::Equal)
        };
        self.entries.retain(|entry| !entry.fields.is_empty() || ties(&entry.version.place));
        let mut idle: Vec<Timestamp> = self
            .entries
            .iter()
            .filter(|entry| entry.fields.is_empty())
            .map(|entry| entry.version.receipt)
            .collect();
        if idle.len() > MAX_REMEMBERED {
            idle.sort_unstable();
            let oldest_kept = idle[idle.len() - MAX_REMEMBERED];
            self.entries
                .retain(|entry| !entry.fields.is_empty() || entry.version.receipt >= oldest_kept);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::field::PerField;
    use crate::domain::version::tests::{
        any_event_ref, any_time, any_version, event_ref, place, received,
    };

    const BY: OrderBy = OrderBy::Time;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn set(fields: &[Field]) -> FieldSet {
        fields.iter().copied().collect()
    }

    fn seen(second: i64) -> Seen {
        Seen { first: at(second), now: at(second) }
    }

    fn told(second: i64) -> Receipt {
        Receipt { told: Some(at(second)), is_redelivery: false }
    }

    #[test]
    fn copies_of_one_event_have_its_first_receipt() {
        let (first, copy) =
            (received(place(Some(5), None, "e"), 1), received(place(Some(5), None, "e"), 2));
        let city = set(&[Field::City]);
        for records_the_copy in [true, false] {
            let (owner, other) = if records_the_copy { (&copy, &first) } else { (&first, &copy) };
            let mut row = Row::default();
            row.record(owner, city, BY);
            row.announce(other, BY);
            for told in [first.receipt, copy.receipt] {
                let receipt = Receipt { told: Some(told), ..Receipt::default() };
                let again = row.version(&first.place, receipt, seen(9), BY);
                assert_eq!(row.fence(&again, city, Passage::Resent, BY), city);
                assert!(row.fence(&again, city, Passage::Newer, BY).is_empty());
            }
        }
    }

    #[test]
    fn only_newer_fields_pass_and_an_equal_version_is_a_duplicate() {
        let (old, new) =
            (received(place(Some(1), None, "a"), 1), received(place(Some(2), None, "b"), 2));
        let mut row = Row::default();
        row.record(&new, set(&[Field::City]), BY);
        let fields = set(&[Field::City, Field::Email]);
        assert_eq!(row.fence(&old, fields, Passage::Newer, BY), set(&[Field::Email]));
        assert_eq!(row.fence(&old, fields, Passage::Forced(at(2)), BY), fields);
        let before_it_came = Passage::Forced(at(1));
        assert_eq!(row.fence(&old, fields, before_it_came, BY), set(&[Field::Email]));
        assert!(row.fence(&new, set(&[Field::City]), Passage::Newer, BY).is_empty());
        assert_eq!(row.fence(&new, set(&[Field::City]), Passage::Resent, BY), set(&[Field::City]));
        assert_eq!(row.fence(&old, fields, Passage::Resent, BY), set(&[Field::Email]));
        assert!(row.owns(&new) && !row.owns(&old));
        row.record(&old, fields, BY);
        assert_eq!(row.newest(Field::City), Some(&new), "a forced value lowers no version");
        assert_eq!(row.superseding(fields, BY), Some(&new));
    }

    #[test]
    fn events_of_one_moment_keep_the_order_of_their_first_receipt_over_redeliveries() {
        let (first, second) = (place(Some(1), None, "b"), place(Some(1), None, "a"));
        let mut row = Row::default();
        let city = set(&[Field::City]);
        let first_version = row.version(&first, Receipt::default(), seen(10), BY);
        assert!(!row.must_announce(&first_version, Receipt::default(), BY), "nothing to tie with");
        row.record(&first_version, city, BY);
        let second_version = row.version(&second, Receipt::default(), seen(11), BY);
        assert!(row.must_announce(&second_version, Receipt::default(), BY));
        row.announce(&second_version, BY);
        assert_eq!(row.fence(&second_version, city, Passage::Newer, BY), city);
        row.record(&second_version, city, BY);
        let again = row.version(&first, Receipt { told: None, is_redelivery: true }, seen(12), BY);
        assert_eq!(again.receipt, at(10));
        assert!(row.fence(&again, city, Passage::Newer, BY).is_empty());
        let third = received(place(Some(2), None, "c"), 13);
        row.record(&third, city, BY);
        assert_eq!(row.entries.len(), 1, "what cannot tie any more is forgotten");
    }

    #[test]
    fn an_unnamed_event_is_a_new_one_unless_it_may_have_been_here() {
        let bare = place(None, None, "~hash");
        let mut row = Row::default();
        let first = row.version(&bare, Receipt::default(), seen(10), BY);
        assert!(row.must_announce(&first, Receipt::default(), BY));
        row.announce(&first, BY);
        let redelivered = Receipt { told: None, is_redelivery: true };
        assert_eq!(row.version(&bare, redelivered, seen(11), BY), first);
        assert_eq!(row.version(&bare, told(10), seen(11), BY), first);
        let second = row.version(&bare, Receipt::default(), seen(11), BY);
        assert_eq!(first.order(&second, BY), Ordering::Less);
    }

    #[test]
    fn a_receipt_that_is_ahead_of_us_is_older_than_what_comes_now() {
        let city = set(&[Field::City]);
        for bare in
            [place(None, None, "~hash"), place(None, None, "e2"), place(Some(1), None, "e2")]
        {
            let mut row = Row::default();
            let before = received(Place { event: event_ref("e1"), ..bare.clone() }, 7200);
            row.record(&before, city, BY);
            let now = row.version(&bare, Receipt::default(), seen(10), BY);
            assert_eq!(now.receipt, after(at(7200), Duration::from_nanos(1)));
            assert_eq!(row.fence(&now, city, Passage::Newer, BY), city);
            row.announce(&now, BY);
            let redelivered = Receipt { told: None, is_redelivery: true };
            assert_eq!(row.version(&bare, redelivered, seen(11), BY), now);
            let told = Receipt { told: Some(now.receipt), is_redelivery: false };
            assert_eq!(row.version(&bare, told, seen(12), BY), now);
            let under_that_clock = Seen { first: at(7100), now: at(20) };
            let late =
                row.version(&place(None, None, "e3"), Receipt::default(), under_that_clock, BY);
            assert_eq!(late.receipt, at(7100), "seen before it");
        }
    }

    #[test]
    fn a_receipt_that_is_ahead_counts_for_events_of_its_rank_alone() {
        let mut row = Row::default();
        row.record(&received(place(Some(1), None, "e1"), 7200), set(&[Field::City]), BY);
        let other = row.version(&place(Some(2), None, "e2"), Receipt::default(), seen(10), BY);
        assert_eq!(other.receipt, at(10));
    }

    #[test]
    fn a_mark_of_a_clock_that_was_ahead_is_cut() {
        let (a, b) = (event_ref("a"), event_ref("b"));
        let mut row = Row::default();
        row.mark(Some(&a), at(90_000), at(89_940));
        assert!(row.shorten_marks(Duration::from_mins(1), at(0)));
        assert_eq!(row.endangered(&b, at(10)), Some(Duration::from_secs(50)));
        assert!(!row.shorten_marks(Duration::from_mins(1), at(10)), "once");
    }

    #[test]
    fn a_mark_endangers_every_event_but_its_own_until_it_runs_out() {
        let (a, b) = (event_ref("a"), event_ref("b"));
        let mut row = Row::default();
        row.mark(Some(&a), at(60), at(0));
        assert_eq!(row.endangered(&a, at(10)), None);
        assert_eq!(row.endangered(&b, at(10)), Some(Duration::from_secs(50)));
        assert_eq!(row.endangered(&b, at(60)), None);
        row.mark(Some(&b), at(30), at(10));
        assert_eq!(row.endangered(&a, at(10)), Some(Duration::from_secs(20)), "by b's alone");
        for other in [EventRef { source: 1, ..a.clone() }, EventRef { revision: 1, ..a.clone() }] {
            let left = row.endangered(&other, at(10));
            assert_eq!(left, Some(Duration::from_secs(50)), "{other:?} is not a");
        }
        row.mark(Some(&a), at(50), at(10));
        assert_eq!(row.under_way(at(10)), Some((at(60), Some(&a))), "never shortened");
        row.lift_marks(at(30));
        assert_eq!(row.marks.len(), 1);
        row.lift_marks(at(60));
        assert_eq!(row.marks, []);
    }

    #[test]
    fn marks_beyond_their_number_count_as_anybodys_calls() {
        let mut row = Row::default();
        for number in 0..=MAX_MARKS {
            let until = at(100 - i64::try_from(number).expect("small"));
            row.mark(Some(&event_ref(&format!("e{number}"))), until, at(0));
        }
        assert_eq!(row.under_way(at(0)), Some((at(100), None)));
        assert_eq!(row.endangered(&event_ref("e0"), at(0)), Some(Duration::from_secs(100)));
    }

    #[test]
    fn an_event_without_a_time_comes_after_what_was_received_before_it_and_nothing_else() {
        let unordered = place(None, None, "u");
        let mut row = Row::default();
        // Dated ahead of our clock.
        row.record(&received(place(Some(130), None, "b"), 101), set(&[Field::City]), BY);
        let receipt = |first, now| {
            let seen = Seen { first: at(first), now: at(now) };
            row.version(&unordered, Receipt::default(), seen, BY).receipt
        };
        assert_eq!(receipt(100, 102), at(100), "it came before");
        assert_eq!(receipt(102, 103), after(at(130), Duration::from_nanos(1)));
        assert_eq!(receipt(140, 141), at(140));
    }

    #[test]
    fn what_is_remembered_beside_the_owners_is_bounded() {
        let mut row = Row::default();
        for second in 0..100 {
            row.announce(&received(place(None, None, &format!("e{second}")), second), BY);
        }
        assert_eq!(row.entries.len(), MAX_REMEMBERED);
    }

    #[derive(Clone, Debug)]
    struct Event {
        version: Version,
        fields: FieldSet,
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let field = proptest::sample::select(Field::ALL[1..].to_vec());
        let fields = proptest::collection::vec(field, 1..8);
        let time = proptest::option::weighted(0.8, 0_i64..6);
        let sequence = proptest::option::weighted(0.5, "[0-9]{1,3}|[a-c]");
        let event = (time, sequence, fields, 0_u32..2);
        proptest::collection::vec(event, 1..12).prop_map(|events| {
            let numbered = events.into_iter().enumerate();
            let made = numbered.map(|(number, (time, sequence, fields, revision))| {
                let mut place = place(time, sequence.as_deref(), &format!("e{number}"));
                place.event.revision = revision;
                let version = received(place, i64::try_from(number).expect("small"));
                Event { version, fields: fields.into_iter().collect() }
            });
            made.collect()
        })
    }

    prop_compose! {
        /// Any row that can be built.
        pub(in crate::domain) fn any_row()(
            entries in proptest::collection::vec((any_version(), any_fields()), 0..20),
            marks in proptest::collection::vec((proptest::option::of(any_event_ref()), any_time()), 0..9),
            superseded in any::<u64>(),
        ) -> Row {
            let entry = |(version, fields)| Entry { version, fields };
            let mark = |(event, until)| Mark { until, event };
            Row {
                entries: entries.into_iter().map(entry).collect(),
                marks: marks.into_iter().map(mark).collect(),
                superseded,
            }
        }
    }

    fn any_fields() -> impl Strategy<Value = FieldSet> {
        proptest::sample::subsequence(Field::ALL.to_vec(), 0..=Field::COUNT)
            .prop_map(|fields| fields.into_iter().collect())
    }

    /// The portal after these events, by the fence: for each field the number of the last one sent.
    fn through_the_fence(
        order: &[usize],
        events: &[Event],
        by: OrderBy,
    ) -> PerField<Option<usize>> {
        let (mut row, mut portal) = (Row::default(), PerField::default());
        for number in order {
            let Event { version, fields } = &events[*number];
            let sent = row.fence(version, *fields, Passage::Newer, by);
            for field in sent.iter() {
                portal[field] = Some(*number);
            }
            row.record(version, sent, by);
            row = Row::unpack(&row.pack()).expect("a row");
        }
        portal
    }

    proptest! {
        #[test]
        fn any_order_of_arrival_with_any_doubles_ends_as_the_order_of_versions_does(
            events in events(),
            shuffle in any::<u64>(),
            doubles in proptest::collection::vec(0_usize..12, 0..8),
            by in proptest::sample::select(vec![OrderBy::Time, OrderBy::Sequence]),
        ) {
            let mut in_order: Vec<usize> = (0..events.len()).collect();
            in_order.sort_by(|a, b| events[*a].version.order(&events[*b].version, by));
            let mut any_order: Vec<usize> =
                (0..events.len()).chain(doubles.into_iter().filter(|n| *n < events.len())).collect();
            let mut seed = shuffle;
            for index in (1..any_order.len()).rev() {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                any_order.swap(index, usize::try_from(seed >> 33).expect("small") % (index + 1));
            }
            let mut plain = PerField::default();
            for number in &in_order {
                for field in events[*number].fields.iter() {
                    plain[field] = Some(*number);
                }
            }
            prop_assert_eq!(through_the_fence(&in_order, &events, by), plain.clone());
            prop_assert_eq!(through_the_fence(&any_order, &events, by), plain);
        }

        #[test]
        fn the_order_of_versions_is_total_and_transitive(
            events in events(),
            by in proptest::sample::select(vec![OrderBy::Time, OrderBy::Sequence]),
        ) {
            for a in &events {
                for b in &events {
                    let ab = a.version.order(&b.version, by);
                    prop_assert_eq!(ab, b.version.order(&a.version, by).reverse());
                    prop_assert_eq!(ab == Ordering::Equal, a.version == b.version);
                    for c in &events {
                        if ab == Ordering::Less && b.version.order(&c.version, by) == Ordering::Less {
                            prop_assert_eq!(a.version.order(&c.version, by), Ordering::Less);
                        }
                    }
                }
            }
        }
    }
}
