//! The ledger: for each customer the version that the portal last confirmed of each field, and what
//! operators ask for. SQLite for one active relay, PostgreSQL for several, or none.
//!
//! Many events are read and committed together: one round, one fsync. Whatever fails is tried again
//! until it works, and meanwhile [`Ledger::health`] says so: nothing is settled that is not recorded.

mod batch;
mod change;
mod migrate;
mod place;
mod postgres;
mod schema;
mod sqlite;
mod store;
mod target;

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use uuid::Uuid;

use crate::clock;
use crate::domain::row::Row;
use batch::{Desk, Kind};
pub use change::{Act, Change, Committed, Note, PendingNote, ReplayEnd};
pub use migrate::Migration;
pub use place::Place;
pub use store::{Account, Condition, Indexed, ReplayCount, Store};
pub use target::{InvalidTarget, Target};

/// Why the ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// It is not there, or not reached.
    #[error("the ledger cannot be reached: {0}")]
    Unreachable(String),
    /// There is none yet; the text says how it comes to be.
    #[error("there is no ledger: {0}")]
    Missing(String),
    /// It does not work as it should; the text says what to do.
    #[error("the ledger does not work: {0}")]
    Broken(String),
    /// Another relay uses it.
    #[error("the ledger is in use by another relay ({0})")]
    InUse(String),
}

impl LedgerError {
    /// Whether it is only not to be had now.
    pub fn is_out_of_reach(&self) -> bool {
        match self {
            LedgerError::Unreachable(_) | LedgerError::Missing(_) | LedgerError::InUse(_) => true,
            LedgerError::Broken(_) => false,
        }
    }
}

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

/// A customer, in the ledger: a salted hash of the entity id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CustomerKey(pub(super) [u8; 16]);

impl About {
    fn new(now: Timestamp) -> About {
        About { id: Uuid::now_v7(), salt: *Uuid::new_v4().as_bytes(), created: now }
    }

    /// The key of a customer.
    pub fn key(&self, entity_id: &str) -> CustomerKey {
        let hash = Sha256::new().chain_update(self.salt).chain_update(entity_id).finalize();
        let mut key = CustomerKey::default();
        key.0.copy_from_slice(&hash[..16]);
        key
    }
}

/// The right to a customer, where several relays share a ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Grows with each owner: a commit under an older one is refused.
    pub(super) fence: i64,
    until: Instant,
}

impl Lease {
    /// Whether it lasts for so long from now.
    pub fn lasts(&self, now: Instant, span: Duration) -> bool {
        now + span <= self.until
    }
}

/// A customer, read.
#[derive(Clone, Debug, Default)]
pub struct Opened {
    /// What is recorded.
    pub row: Row,
    /// Ends with the commit, or by itself.
    pub lease: Option<Lease>,
    /// Its last owner never gave it back: a call of that one may still be under way.
    pub was_taken_over: bool,
}

/// What came of asking for a customer.
#[derive(Clone, Debug)]
pub enum Opening {
    /// It is ours, until the lease ends.
    Ours(Box<Opened>),
    /// Another relay has it just now.
    Held,
}

/// What is the matter with the ledger, while something is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    pub(super) reading: Option<String>,
    pub(super) writing: Option<String>,
}

impl Health {
    /// Whether it can be read and written.
    pub fn is_good(&self) -> bool {
        self.reading.is_none() && self.writing.is_none()
    }
}

/// The ledger as the worker uses it.
#[derive(Debug)]
pub struct Ledger {
    kept: Option<Kept>,
    health: watch::Receiver<Health>,
}

#[derive(Debug)]
struct Kept {
    store: Store,
    about: About,
    readers: Desk<CustomerKey, Opening>,
    writers: Desk<Change, Committed>,
}

impl Ledger {
    /// None at all: nothing is fenced.
    pub fn none() -> Ledger {
        let (_, health) = watch::channel(Health::default());
        Ledger { kept: None, health }
    }

    /// Serves from this store. `lease` is how long a customer is ours at most.
    /// `committed` is told how many changes each commit had and how long it took.
    pub fn serve(
        store: Store,
        about: About,
        lease: Duration,
        committed: impl Fn(usize, Duration) + Clone + Send + Sync + 'static,
    ) -> Ledger {
        let (says, health) = watch::channel(Health::default());
        let (reading, writing) = (store.clone(), store.clone());
        let open = move |keys| {
            let store = reading.clone();
            async move { store.open(keys, lease).await }
        };
        let commit = move |changes: Arc<Vec<Change>>| {
            let (store, committed) = (writing.clone(), committed.clone());
            async move {
                let (count, began) = (changes.len(), clock::instant());
                let done = store.commit(changes).await?;
                committed(count, began.elapsed());
                Ok(done)
            }
        };
        let reading = if store.is_shared() { Kind::Leasing } else { Kind::Reading };
        let readers = Desk::open(open, reading, says.clone());
        let writers = Desk::open(commit, Kind::Writing, says);
        Ledger { kept: Some(Kept { store, about, readers, writers }), health }
    }

    /// What tells it from others; `None` for no ledger.
    pub fn about(&self) -> Option<&About> {
        self.kept.as_ref().map(|kept| &kept.about)
    }

    /// Its store, if there is a ledger.
    pub fn store(&self) -> Option<&Store> {
        self.kept.as_ref().map(|kept| &kept.store)
    }

    /// What is the matter with it, while something is.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    /// Whether several relays can work on it at once.
    pub fn is_shared(&self) -> bool {
        self.store().is_some_and(Store::is_shared)
    }

    /// A customer's key; without a ledger they are all one.
    pub fn key(&self, entity_id: &str) -> CustomerKey {
        self.about().map_or_else(CustomerKey::default, |about| about.key(entity_id))
    }

    /// Reads a customer, waiting as long as the ledger takes.
    pub async fn open(&self, key: CustomerKey) -> Opening {
        match &self.kept {
            Some(kept) => kept.readers.ask(key).await,
            None => Opening::Ours(Box::default()),
        }
    }

    /// Whether a replay has come to its end before. Without a ledger nobody knows.
    pub async fn has_ended(&self, replay_id: Uuid) -> Result<bool, LedgerError> {
        match &self.kept {
            Some(kept) => kept.store.has_ended(replay_id).await,
            None => Ok(false),
        }
    }

    /// Records a change, waiting as long as the ledger takes.
    pub async fn commit(&self, change: Change) -> Committed {
        match &self.kept {
            Some(kept) => kept.writers.ask(change).await,
            None => Committed::Done,
        }
    }
}
