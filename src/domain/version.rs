//! Which of two events of a customer is the newer: by the CRM's own order, and where that says
//! nothing, by the order in which they were first received.

use std::cmp::Ordering;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::event::CustomerUpdated;

/// The longest sequence that is read, in bytes.
pub const MAX_SEQUENCE_BYTES: usize = 64;
/// Longer event ids stand in the ledger as a hash, in bytes.
pub const MAX_EVENT_BYTES: usize = 64;

/// The source of an event that a relay of version 0.1 named by its id alone.
pub(super) const UNKNOWN_SOURCE: u32 = u32::MAX;

/// What stands before a hash that stands in for an event's id.
pub(super) const UNNAMED: char = '~';

/// What an order goes by (`order.by`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OrderBy {
    /// The event's time, then its sequence.
    Time,
    /// The event's sequence, then its time: for CRMs whose nodes have clocks of their own.
    Sequence,
}

/// What an event must say of its order (`order.require`). What is not required may be absent, and counts
/// as the lowest there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Required {
    /// A time: its own, or its message's timestamp.
    Time,
    /// A sequence.
    Sequence,
    /// Both.
    Both,
    /// Either: one without a time cannot be compared with one without a sequence.
    Any,
}

impl Required {
    /// What an event lacks, in words.
    pub fn lacked_by(self, place: &Place) -> Option<&'static str> {
        let (no_time, no_sequence) = (place.time.is_none(), place.sequence.is_none());
        match self {
            Required::Time | Required::Both if no_time => Some("a time"),
            Required::Sequence | Required::Both if no_sequence => Some("a sequence"),
            Required::Any if no_time && no_sequence => Some("a time or a sequence"),
            Required::Time | Required::Sequence | Required::Both | Required::Any => None,
        }
    }
}

/// What a sequence is read as (`order.sequence`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sequences {
    /// Digits, a number.
    Digits,
    /// Text.
    Text,
}

/// A CRM's own number for an event. Numbers of any length compare as numbers; texts compare byte
/// by byte, and are higher than any number.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Sequence {
    /// Nothing but ASCII digits.
    Number(Digits),
    /// Anything else.
    Text(String),
}

/// ASCII digits without leading zeros.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Digits(String);

impl Ord for Digits {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.len().cmp(&other.0.len()).then_with(|| self.0.cmp(&other.0))
    }
}

impl PartialOrd for Digits {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Sequence {
    /// Reads what an event has for a sequence.
    pub fn parse(text: &str) -> Sequence {
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            Sequence::Number(Digits(text.trim_start_matches('0').to_owned()))
        } else {
            Sequence::Text(text.to_owned())
        }
    }
}

impl std::fmt::Display for Sequence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Sequence::Number(Digits(digits)) if digits.is_empty() => f.write_str("0"),
            Sequence::Number(Digits(text)) | Sequence::Text(text) => f.write_str(text),
        }
    }
}

/// One edit of one event of one source: what is the same of a message, however often it comes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EventRef {
    /// The event's id within its source, or what stands in for it; never longer than
    /// [`MAX_EVENT_BYTES`].
    pub id: String,
    /// Whose event, as a hash: ids are unique within one source.
    pub source: u32,
    /// How often an operator has edited it.
    pub revision: u32,
}

impl EventRef {
    /// Whether both name one event and edit, as far as they say.
    pub(super) fn is_same(&self, other: &EventRef) -> bool {
        let is_unknown = [self.source, other.source].contains(&UNKNOWN_SOURCE);
        self == other || is_unknown && self.id == other.id
    }
}

/// What an event says of its place among its customer's events.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Place {
    /// When the change happened.
    #[serde(with = "optional_nanoseconds")]
    pub time: Option<Timestamp>,
    /// The CRM's own number.
    pub sequence: Option<Sequence>,
    /// Which event.
    pub event: EventRef,
}

impl Place {
    /// An event's place. `id` tells it from all others of its source.
    pub fn new(
        updated: &CustomerUpdated,
        id: String,
        revision: u32,
        sequences: Sequences,
    ) -> Place {
        let read = |text: &str| match sequences {
            Sequences::Digits => Sequence::parse(text),
            Sequences::Text => Sequence::Text(text.to_owned()),
        };
        let sequence = updated.sequence.as_deref().map(read);
        let source = updated.source.as_deref().map_or(0, source_hash);
        Place { time: updated.time, sequence, event: EventRef { id, source, revision } }
    }

    /// Whether the event has no id: a hash of its content stands in.
    pub fn is_unnamed(&self) -> bool {
        self.event.id.starts_with(UNNAMED)
    }

    /// Whether the CRM says nothing of the order: neither time nor sequence.
    pub fn is_unordered(&self) -> bool {
        self.time.is_none() && self.sequence.is_none()
    }

    /// The same for events that the CRM does not order; seldom for others.
    pub(super) fn moment(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.time, &self.sequence).hash(&mut hasher);
        hasher.finish()
    }

    /// By the CRM's own order alone. What is absent is lowest.
    pub fn rank(&self, other: &Place, by: OrderBy) -> Ordering {
        rank((self.time, self), (other.time, other), by)
    }
}

fn rank(
    (my_time, mine): (Option<Timestamp>, &Place),
    (their_time, theirs): (Option<Timestamp>, &Place),
    by: OrderBy,
) -> Ordering {
    let (time, sequence) = (my_time.cmp(&their_time), mine.sequence.cmp(&theirs.sequence));
    match by {
        OrderBy::Time => time.then(sequence),
        OrderBy::Sequence => sequence.then(time),
    }
}

/// Nanoseconds since 1970 in 128 bits. jiff's own module writes them so, but reads 64 bits alone: a
/// time before 1677-09-21 could not be read back.
mod optional_nanoseconds {
    use jiff::Timestamp;
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    #[expect(clippy::ref_option, reason = "serde calls it so")]
    pub(super) fn serialize<S: Serializer>(
        time: &Option<Timestamp>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        time.map(Timestamp::as_nanosecond).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Timestamp>, D::Error> {
        let nanoseconds = Option::<i128>::deserialize(deserializer)?;
        nanoseconds
            .map(|time| Timestamp::from_nanosecond(time).map_err(D::Error::custom))
            .transpose()
    }
}

fn source_hash(source: &str) -> u32 {
    let hash = Sha256::digest(source);
    u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]])
}

/// A place with the moment of the event's first receipt, which orders what the CRM does not.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Version {
    /// The event's own place.
    pub place: Place,
    /// When the event was first received.
    #[serde(with = "jiff::fmt::serde::timestamp::nanosecond::required")]
    pub receipt: Timestamp,
}

impl Version {
    /// The event's time. One that the CRM does not order has its place among the others' times by its
    /// first receipt.
    pub(super) fn time(&self) -> Option<Timestamp> {
        self.place.time.or_else(|| self.place.is_unordered().then_some(self.receipt))
    }

    /// Total: equal only for one revision of one event, and one receipt.
    pub fn order(&self, other: &Version, by: OrderBy) -> Ordering {
        let (mine, theirs) = (&self.place, &other.place);
        rank((self.time(), mine), (other.time(), theirs), by)
            .then_with(|| self.receipt.cmp(&other.receipt))
            .then_with(|| mine.event.id.cmp(&theirs.event.id))
            .then_with(|| mine.event.source.cmp(&theirs.event.source))
            .then_with(|| mine.event.revision.cmp(&theirs.event.revision))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(in crate::domain) fn place(
        time: Option<i64>,
        sequence: Option<&str>,
        event: &str,
    ) -> Place {
        let time = time.map(|second| Timestamp::from_second(second).expect("a time"));
        Place { time, sequence: sequence.map(Sequence::parse), event: event_ref(event) }
    }

    pub(in crate::domain) fn event_ref(id: &str) -> EventRef {
        EventRef { id: id.into(), source: 0, revision: 0 }
    }

    pub(in crate::domain) fn received(place: Place, second: i64) -> Version {
        Version { place, receipt: Timestamp::from_second(second).expect("a time") }
    }

    #[test]
    fn sequences_of_digits_compare_as_numbers_of_any_length() {
        let ascending = ["0", "7", "0042", "43", "18446744073709551616", "a", "b10", "b9"];
        for pair in ascending.windows(2) {
            assert!(Sequence::parse(pair[0]) < Sequence::parse(pair[1]), "{pair:?}");
        }
        assert_eq!(Sequence::parse("000"), Sequence::parse("0"));
        assert_eq!(Sequence::parse("0").to_string(), "0");
    }

    #[test]
    fn time_or_sequence_counts_first_and_what_is_absent_is_lowest() {
        let (early, late) = (place(Some(1), Some("9"), "a"), place(Some(2), Some("1"), "b"));
        assert_eq!(early.rank(&late, OrderBy::Time), Ordering::Less);
        assert_eq!(early.rank(&late, OrderBy::Sequence), Ordering::Greater);
        let bare = place(None, None, "c");
        for by in [OrderBy::Time, OrderBy::Sequence] {
            assert_eq!(bare.rank(&early, by), Ordering::Less);
        }
        let timed = place(Some(1), None, "d");
        assert_eq!(timed.rank(&early, OrderBy::Time), Ordering::Less);
    }

    #[test]
    fn what_the_crm_does_not_order_is_among_the_others_by_its_first_receipt() {
        let timed = |second| received(place(Some(second), Some("1"), "timed"), 100);
        let unordered = received(place(None, None, "unordered"), 5);
        assert_eq!(unordered.order(&timed(4), OrderBy::Time), Ordering::Greater);
        assert_eq!(unordered.order(&timed(6), OrderBy::Time), Ordering::Less);
        let sequenced = received(place(None, Some("7"), "sequenced"), 5);
        assert_eq!(sequenced.order(&timed(4), OrderBy::Time), Ordering::Less, "it has an order");
    }

    #[test]
    fn what_is_required_is_named_where_it_lacks() {
        let [neither, timed, sequenced, both] =
            [(None, None), (Some(1), None), (None, Some("1")), (Some(1), Some("1"))]
                .map(|(time, sequence)| place(time, sequence, "e"));
        let lacked = |required: Required| {
            [&neither, &timed, &sequenced, &both].map(|place| required.lacked_by(place))
        };
        let (time, sequence) = (Some("a time"), Some("a sequence"));
        assert_eq!(lacked(Required::Time), [time, None, time, None]);
        assert_eq!(lacked(Required::Sequence), [sequence, sequence, None, None]);
        assert_eq!(lacked(Required::Both), [time, sequence, time, None]);
        assert_eq!(lacked(Required::Any), [Some("a time or a sequence"), None, None, None]);
    }

    #[test]
    fn equal_ranks_go_by_receipt_then_event_then_revision() {
        let by = OrderBy::Time;
        let first = received(place(Some(1), None, "b"), 10);
        let second = received(place(Some(1), None, "a"), 11);
        assert_eq!(first.order(&second, by), Ordering::Less);
        let mut edited = first.clone();
        edited.place.event.revision = 1;
        assert_eq!(edited.order(&second, by), Ordering::Less, "older than any later event");
        assert_eq!(edited.order(&received(place(Some(1), None, "b"), 10), by), Ordering::Greater);
    }

    /// Any time that there is, by preference one whose nanoseconds take more than 64 bits.
    pub(in crate::domain) fn any_time() -> impl Strategy<Value = Timestamp> {
        let (first, last) = (Timestamp::MIN.as_nanosecond(), Timestamp::MAX.as_nanosecond());
        let edge = prop_oneof![Just(i128::from(i64::MIN)), Just(i128::from(i64::MAX)), Just(0)];
        let near_an_edge = (edge, -2_i128..3).prop_map(|(edge, step)| edge + step);
        prop_oneof![first..=last, near_an_edge, Just(first), Just(last)]
            .prop_map(|time| Timestamp::from_nanosecond(time).expect("a time"))
    }

    prop_compose! {
        pub(in crate::domain) fn any_event_ref()(
            id in "(?s).{0,64}", source in any::<u32>(), revision in any::<u32>(),
        ) -> EventRef {
            EventRef { id, source, revision }
        }
    }

    prop_compose! {
        pub(in crate::domain) fn any_version()(
            time in proptest::option::of(any_time()),
            sequence in proptest::option::of("[0-9]{1,64}|(?s).{0,64}"),
            event in any_event_ref(),
            receipt in any_time(),
        ) -> Version {
            let sequence = sequence.as_deref().map(Sequence::parse);
            Version { place: Place { time, sequence, event }, receipt }
        }
    }

    proptest! {
        #[test]
        fn digits_agree_with_numbers(a in any::<u64>(), b in any::<u64>(), zeros in 0_usize..5) {
            let parse = |n: u64| Sequence::parse(&format!("{}{n}", "0".repeat(zeros)));
            prop_assert_eq!(parse(a).cmp(&Sequence::parse(&b.to_string())), a.cmp(&b));
        }
    }
}
