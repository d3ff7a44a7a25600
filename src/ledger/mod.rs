//! The ledger: for each customer the version that the portal last confirmed of each field, and what
//! operators ask for. SQLite for one active relay, PostgreSQL for several, or none.
//!
//! Many events are read and committed together: one batch, one fsync. The ledger's own faults are
//! waited out, and meanwhile [`Ledger::health`] says so: nothing is settled that is not recorded. A
//! row that cannot be read, or a change that is refused, concerns one customer or event alone.

mod aside;
mod backend;
mod backup;
mod batcher;
mod change;
mod directory;
mod error;
mod health;
mod migrate;
mod model;
mod postgres;
mod sqlite;
mod store;
mod tables;
mod target;
mod work;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use uuid::Uuid;

use aside::Aside;
pub use backend::{Answer, Backend};
pub use backup::{Copied, DumpCommands, Restore, backup};
use batcher::Batcher;
pub use change::{AuditEntry, Change, Committed, DoubtNote, Note, PendingNote, ReplayEnd};
pub use directory::Directory;
pub use error::{LedgerError, Refusal};
pub use health::Health;
pub use migrate::Migration;
pub use model::{
    About, Account, Condition, Counts, CustomerKey, Doubted, Indexed, Lease, Loaded,
    LoadedCustomer, Numbered, Part, ReplayCount, SeenRow, StoredRow,
};
pub use store::Store;
pub use target::{InvalidTarget, Target};
use work::{Reading, Writing};

use crate::domain::doubt::Gap;

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
    reader: Batcher<CustomerKey, Loaded>,
    writer: Batcher<Change, Committed>,
    /// As it was when the number was last read or raised.
    gap: Mutex<Option<Gap>>,
    /// Customers whose rows could not be read when they were last asked for.
    unreadable: Mutex<BTreeSet<CustomerKey>>,
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
        committed: impl Fn(usize, Duration) + Send + Sync + 'static,
    ) -> Ledger {
        let (says, health) = watch::channel(Health::default());
        let aside = Arc::new(Aside::new(store.clone(), says.clone()));
        let reading = Reading { store: store.clone(), lease, aside: Arc::clone(&aside) };
        let writing = Writing { store: store.clone(), committed: Box::new(committed), aside };
        let reader = Batcher::open(Arc::new(reading), says.clone());
        let writer = Batcher::open(Arc::new(writing), says);
        let (gap, unreadable) = (Mutex::default(), Mutex::default());
        let kept = Kept { store, about, reader, writer, gap, unreadable };
        Ledger { kept: Some(kept), health }
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
        self.store().is_some_and(|store| store.is_shared())
    }

    /// A customer's key; without a ledger they are all one.
    pub fn key(&self, entity_id: &str) -> CustomerKey {
        self.about().map_or_else(CustomerKey::default, |about| about.key(entity_id))
    }

    /// How far it has come. What it does not know is [remembered](Self::gap).
    pub async fn load_number(&self) -> Result<Numbered, LedgerError> {
        match &self.kept {
            Some(kept) => kept.store.load_number().await.inspect(|found| kept.learn(found)),
            None => Ok(Numbered::default()),
        }
    }

    /// Raises its number by one.
    pub async fn raise_number(&self, at: Timestamp) -> Result<Numbered, LedgerError> {
        match &self.kept {
            Some(kept) => kept.store.raise_number(0, at).await.inspect(|found| kept.learn(found)),
            None => Ok(Numbered::default()),
        }
    }

    /// What was applied then is not known to it. An operator may close the gap beside us: this is how
    /// it was when the number was last read or raised, a minute ago at most.
    pub fn gap(&self) -> Option<Gap> {
        // Nothing in it can be half done.
        *self.kept.as_ref()?.gap.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads a customer, waiting as long as the ledger takes.
    pub async fn load(&self, key: CustomerKey) -> Loaded {
        let Some(kept) = &self.kept else { return Loaded::Ours(Box::default()) };
        let loaded = kept.reader.ask(key).await;
        kept.note_unreadable(key, &loaded);
        loaded
    }

    /// How many customers' rows cannot be read, of those that were asked for.
    pub fn unreadable_rows(&self) -> usize {
        self.kept.as_ref().map_or(0, |kept| kept.unreadable().len())
    }

    /// Reads the unreadable ones again: once one is mended, its next event may come to another relay.
    pub async fn look_at_unreadable_rows(&self) {
        let Some(kept) = &self.kept else { return };
        let keys: Vec<CustomerKey> = kept.unreadable().iter().copied().collect();
        if keys.is_empty() {
            return;
        }
        match kept.store.load_rows(keys.clone()).await {
            Ok(rows) => {
                for (key, _) in keys.iter().zip(rows).filter(|(_, row)| row.is_ok()) {
                    kept.unreadable().remove(key);
                }
            }
            Err(error) => tracing::debug!(%error, "unreadable rows could not be read again"),
        }
    }

    /// Whether a replay has come to its end before. Without a ledger nobody knows.
    pub async fn has_ended(&self, replay_id: Uuid) -> Result<bool, LedgerError> {
        match &self.kept {
            Some(kept) => kept.store.has_replay_ended(replay_id).await,
            None => Ok(false),
        }
    }

    /// Records a change, waiting as long as the ledger takes.
    pub async fn commit(&self, change: Change) -> Committed {
        match &self.kept {
            Some(kept) => kept.writer.ask(change.plain()).await,
            None => Committed::Done,
        }
    }
}

impl Kept {
    fn learn(&self, found: &Numbered) {
        *self.gap.lock().unwrap_or_else(PoisonError::into_inner) = found.gap;
    }

    fn unreadable(&self) -> std::sync::MutexGuard<'_, BTreeSet<CustomerKey>> {
        // Nothing in it can be half done.
        self.unreadable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_unreadable(&self, key: CustomerKey, loaded: &Loaded) {
        match loaded {
            Loaded::Unreadable(_) => drop(self.unreadable().insert(key)),
            Loaded::Ours(_) => drop(self.unreadable().remove(&key)),
            Loaded::Held | Loaded::Refused => {}
        }
    }
}
