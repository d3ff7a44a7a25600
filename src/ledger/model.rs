//! What a ledger holds and answers, whichever backend keeps it.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::change::{AuditEntry, DoubtNote, PendingNote, ReplayEnd};
use crate::domain::doubt::Gap;
use crate::domain::ledger_mark::LedgerMark;
use crate::domain::letter::Letter;
use crate::domain::packed::Unreadable;
use crate::domain::row::Row;

/// What tells a ledger from all others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// Also kept at the broker, so that a lost or foreign ledger is noticed.
    pub id: Uuid,
    /// Hashed with each entity id.
    pub salt: [u8; 16],
    /// Dead letters older than this are not fenced by it.
    pub created: Timestamp,
}

/// How far a ledger has come, and what it does not know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numbered {
    /// Grows each minute that a relay works on it. Not with each commit: the broker's copy is a
    /// minute old at most in any case, and a commit should cost nothing more.
    pub number: u64,
    /// When it last grew; `None` if it never did.
    pub at: Option<Timestamp>,
    /// What was applied then is not known, since an older copy was put in place.
    pub gap: Option<Gap>,
    /// The PostgreSQL server's timeline, where it is told.
    pub timeline: Option<String>,
}

impl Numbered {
    /// What the broker keeps of it.
    pub fn mark(&self, about: &About) -> LedgerMark {
        LedgerMark {
            id: about.id.to_string(),
            number: Some(self.number),
            at: self.at,
            timeline: self.timeline.clone(),
        }
    }
}

/// A customer, in the ledger: a salted hash of the entity id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CustomerKey(pub(super) [u8; 16]);

impl About {
    pub(super) fn new(now: Timestamp) -> About {
        // As it will be read.
        let created = time_of(now.as_microsecond()).expect("a time of today");
        About { id: Uuid::now_v7(), salt: *Uuid::new_v4().as_bytes(), created }
    }

    /// The key of a customer.
    pub fn key(&self, entity_id: &str) -> CustomerKey {
        let hash = Sha256::new().chain_update(self.salt).chain_update(entity_id).finalize();
        let mut key = CustomerKey::default();
        key.0.copy_from_slice(&hash[..16]);
        key
    }
}

impl CustomerKey {
    /// Nobody's.
    pub(super) fn random() -> CustomerKey {
        CustomerKey(*Uuid::new_v4().as_bytes())
    }
}

/// As operators see it where the entity id is not known: hexadecimal.
impl std::fmt::Display for CustomerKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The right to a customer, where several relays share a ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Grows with each owner: a commit under an older one is refused.
    pub(super) fence: i64,
    pub(super) until: Instant,
}

impl Lease {
    /// Whether it lasts for so long from now.
    pub fn lasts(&self, now: Instant, span: Duration) -> bool {
        now + span <= self.until
    }
}

/// A customer that is ours to call for.
#[derive(Clone, Debug, Default)]
pub struct LoadedCustomer {
    /// What is recorded.
    pub row: Row,
    /// Ends with the commit, or by itself.
    pub lease: Option<Lease>,
    /// Its last owner never gave it back: a call of that one may still be under way.
    pub was_taken_over: bool,
}

/// What came of asking for a customer.
#[derive(Clone, Debug)]
pub enum Loaded {
    /// It is ours, until the lease ends.
    Ours(Box<LoadedCustomer>),
    /// Another relay has it just now.
    Held,
    /// Its row cannot be read. That is this customer's fault alone.
    Unreadable(String),
    /// The ledger gives others' leases, but not this one.
    Refused,
}

/// A customer's row, if it can be read, and when it was last written.
pub type SeenRow = (Result<Row, Unreadable>, Timestamp);

/// All that is known of a customer.
#[derive(Clone, Debug, Default)]
pub struct Account {
    /// The field versions, and when they were last written; `None` if there are none.
    pub row: Option<SeenRow>,
    /// What waits in retry tiers, by when it is due; of very many, those that came last.
    pub pending: Vec<PendingNote>,
    /// How many there are.
    pub pending_in_all: u64,
    /// Dead letters, oldest first; of very many, the newest.
    pub dead: Vec<Letter>,
    /// How many there are.
    pub dead_in_all: u64,
}

impl Account {
    /// Whether nothing is known of the customer. A row without anything in it only holds a lease.
    pub fn is_empty(&self) -> bool {
        let is_blank = |(row, _): &SeenRow| *row == Ok(Row::default());
        self.row.as_ref().is_none_or(is_blank) && self.pending.is_empty() && self.dead.is_empty()
    }
}

/// How much a ledger holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Customers recorded.
    pub customers: u64,
    /// Events that wait in retry tiers.
    pub pending: u64,
    /// Dead letters indexed.
    pub dead: u64,
}

/// How a ledger is, looked over as a whole.
#[derive(Clone, Debug, Default)]
pub struct Condition {
    /// How much it holds.
    pub counts: Counts,
    /// What is wrong with it.
    pub faults: Vec<String>,
    /// Customers whose rows cannot be read.
    pub unreadable: Vec<CustomerKey>,
}

/// A time from microseconds since 1970, over the type's whole range: its own way lacks the last second.
pub(super) fn time_of(microseconds: i64) -> Option<Timestamp> {
    let nanosecond = i32::try_from(microseconds.rem_euclid(1_000_000) * 1000);
    let nanosecond = nanosecond.expect("less than a second");
    Timestamp::new(microseconds.div_euclid(1_000_000), nanosecond).ok()
}

/// When a row was last written. What no time can be is the end nearest to it: nothing hangs on it but
/// how long the row is kept.
pub(super) fn nearest_time(microseconds: i64) -> Timestamp {
    let end = if microseconds < 0 { Timestamp::MIN } else { Timestamp::MAX };
    time_of(microseconds).unwrap_or(end)
}

/// A customer's row as it stands in the ledger.
#[derive(Clone, Debug)]
pub struct StoredRow {
    pub(super) key: CustomerKey,
    pub(super) row: Vec<u8>,
    /// When it was last written, in microseconds since 1970.
    pub(super) seen: i64,
}

/// Everything of a ledger but what tells it from others, one part of it.
#[derive(Clone, Debug, Default)]
pub struct Part {
    /// By key; the last one is where the next part begins.
    pub(super) customers: Vec<StoredRow>,
    pub(super) pending: Vec<(CustomerKey, PendingNote)>,
    pub(super) dead: Vec<Indexed>,
    pub(super) replays: Vec<ReplayEnd>,
    pub(super) audit: Vec<AuditEntry>,
    pub(super) doubts: Vec<Doubted>,
}

impl Part {
    /// Events that wait, and whose they are.
    pub fn pending(&self) -> impl Iterator<Item = &(CustomerKey, PendingNote)> {
        self.pending.iter()
    }
}

/// An event that was in doubt, and whose it is.
pub type Doubted = (CustomerKey, DoubtNote);

/// A dead letter in the index, and whose it is.
pub type Indexed = (Option<CustomerKey>, Letter);

/// How many replays ended like this: verdict, reason, number.
pub type ReplayCount = (String, Option<String>, u64);
