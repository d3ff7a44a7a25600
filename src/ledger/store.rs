//! One store, of either kind.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::postgres::Postgres;
use super::sqlite::{self, Sqlite};
use uuid::Uuid;

use super::{
    About, Act, Change, Committed, CustomerKey, LedgerError, Note, Opening, PendingNote, ReplayEnd,
    Target,
};
use crate::clock;
use crate::domain::letter::Letter;
use crate::domain::row::Row;

/// Where the ledger is kept.
#[derive(Clone, Debug)]
pub enum Store {
    /// In a file.
    Sqlite(Arc<Sqlite>),
    /// At a server.
    Postgres(Postgres),
}

/// All that is known of a customer.
#[derive(Clone, Debug, Default)]
pub struct Account {
    /// The field versions, and when they were last written; `None` if there are none.
    pub row: Option<(Row, Timestamp)>,
    /// What waits in retry tiers, by when it is due.
    pub pending: Vec<PendingNote>,
    /// Dead letters, oldest first.
    pub dead: Vec<Letter>,
}

impl Account {
    /// Whether nothing is known of the customer. A row without anything in it only holds a lease.
    pub fn is_empty(&self) -> bool {
        let is_blank = |(row, _): &(Row, Timestamp)| *row == Row::default();
        self.row.as_ref().is_none_or(is_blank) && self.pending.is_empty() && self.dead.is_empty()
    }
}

/// How a ledger is.
#[derive(Clone, Debug)]
pub struct Condition {
    /// Customers recorded.
    pub customers: u64,
    /// Events that wait in retry tiers.
    pub pending: u64,
    /// Dead letters indexed.
    pub dead: u64,
    /// What is wrong with it.
    pub faults: Vec<String>,
}

/// A customer's row as it stands in the ledger.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) key: CustomerKey,
    pub(super) row: Vec<u8>,
    pub(super) seen: i64,
}

/// Everything of a ledger but what tells it from others, one part of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Part {
    /// By key; the last one is where the next part begins.
    pub(super) customers: Vec<Stored>,
    pub(super) pending: Vec<(CustomerKey, PendingNote)>,
    pub(super) dead: Vec<Indexed>,
    pub(super) replays: Vec<ReplayEnd>,
    pub(super) acts: Vec<Act>,
}

/// A dead letter in the index, and whose it is.
pub type Indexed = (Option<CustomerKey>, Letter);

/// How many replays ended like this: verdict, reason, number.
pub type ReplayCount = (String, Option<String>, u64);

impl Store {
    /// The worker's own: made if it is not there, and held against other relays where only one may
    /// work on it.
    pub async fn open_to_work(target: &Target) -> Result<Option<(Store, About)>, LedgerError> {
        let Some(store) = Store::reach(target).await? else { return Ok(None) };
        let about = match store.prepare().await? {
            Some(about) => about,
            None => store.found(About::new(clock::now())).await?,
        };
        Ok(Some((store, about)))
    }

    /// Opened to work on; whatever is in it is not looked at yet.
    pub(super) async fn reach(target: &Target) -> Result<Option<Store>, LedgerError> {
        match target {
            Target::None => Ok(None),
            Target::Sqlite(path) => {
                let sqlite = in_background(path, Sqlite::open_to_work).await?;
                Ok(Some(Store::Sqlite(Arc::new(sqlite))))
            }
            Target::Postgres(config) => Ok(Some(Store::Postgres(Postgres::connect(config).await?))),
        }
    }

    /// For a look, or an operator's change beside a relay at work. Nothing is made.
    pub async fn visit(target: &Target) -> Result<Option<(Store, About)>, LedgerError> {
        let store = match target {
            Target::None => return Ok(None),
            Target::Sqlite(path) => {
                Store::Sqlite(Arc::new(in_background(path, Sqlite::visit).await?))
            }
            Target::Postgres(config) => Store::Postgres(Postgres::connect(config).await?),
        };
        let about = store.about().await?.ok_or_else(|| {
            LedgerError::Missing(format!("none in {target}; `customer-relay run` makes it"))
        })?;
        Ok(Some((store, about)))
    }

    /// Brings the tables up to date; what is known of the ledger, if it is not new.
    pub(super) async fn prepare(&self) -> Result<Option<About>, LedgerError> {
        match self {
            Store::Sqlite(sqlite) => on(sqlite, Sqlite::prepare).await,
            Store::Postgres(postgres) => postgres.prepare().await,
        }
    }

    pub(super) async fn about(&self) -> Result<Option<About>, LedgerError> {
        match self {
            Store::Sqlite(sqlite) => on(sqlite, Sqlite::about).await,
            Store::Postgres(postgres) => postgres.about().await,
        }
    }

    /// Makes it a ledger of its own; what it is, if somebody else was quicker.
    pub(super) async fn found(&self, about: About) -> Result<About, LedgerError> {
        match self {
            Store::Sqlite(sqlite) => on(sqlite, move |sqlite| sqlite.found(&about)).await,
            Store::Postgres(postgres) => postgres.found(&about).await,
        }
    }

    /// Whether several relays can work on it at once.
    pub(super) fn is_shared(&self) -> bool {
        matches!(self, Store::Postgres(_))
    }

    /// Reads customers, and takes a lease on each where leases are needed.
    pub(super) async fn open(
        &self,
        keys: Arc<Vec<CustomerKey>>,
        lease: Duration,
    ) -> Result<Vec<Opening>, LedgerError> {
        match self {
            Store::Sqlite(sqlite) => on(sqlite, move |sqlite| sqlite.open(&keys)).await,
            Store::Postgres(postgres) => postgres.open(&keys, lease).await,
        }
    }

    /// Records changes, all or none.
    pub(super) async fn commit(
        &self,
        changes: Arc<Vec<Change>>,
    ) -> Result<Vec<Committed>, LedgerError> {
        match self {
            Store::Sqlite(sqlite) => on(sqlite, move |sqlite| sqlite.commit(&changes)).await,
            Store::Postgres(postgres) => postgres.commit(&changes).await,
        }
    }

    /// All that is known of a customer.
    pub async fn account(&self, key: CustomerKey) -> Result<Account, LedgerError> {
        match self {
            Store::Sqlite(sqlite) => on(sqlite, move |sqlite| sqlite.account(key)).await,
            Store::Postgres(postgres) => postgres.account(key).await,
        }
    }

    /// Erases all that is known of a customer.
    pub async fn forget(&self, key: CustomerKey) -> Result<(), LedgerError> {
        match self {
            Store::Sqlite(sqlite) => on(sqlite, move |sqlite| sqlite.forget(key)).await,
            Store::Postgres(postgres) => postgres.forget(key).await,
        }
    }

    /// The customers' rows as they are, none of them leased.
    pub async fn rows(&self, keys: Vec<CustomerKey>) -> Result<Vec<Row>, LedgerError> {
        match self {
            Store::Sqlite(sqlite) => on(sqlite, move |sqlite| sqlite.rows(&keys)).await,
            Store::Postgres(postgres) => postgres.rows(&keys).await,
        }
    }

    /// Every dead letter of the index, oldest first.
    pub async fn letters(&self) -> Result<Vec<Indexed>, LedgerError> {
        match self {
            Store::Sqlite(sqlite) => on(sqlite, Sqlite::letters).await,
            Store::Postgres(postgres) => postgres.letters().await,
        }
    }

    /// Dead letters in the index.
    pub async fn letter_count(&self) -> Result<u64, LedgerError> {
        match self {
            Store::Sqlite(sqlite) => on(sqlite, Sqlite::letter_count).await,
            Store::Postgres(postgres) => postgres.letter_count().await,
        }
    }

    /// Makes the index anew from what is in the queue. What a relay added since `began` stays.
    pub async fn reindex(&self, found: Vec<Indexed>, began: Timestamp) -> Result<(), LedgerError> {
        match self {
            Store::Sqlite(sqlite) => on(sqlite, move |it| it.reindex(&found, began)).await,
            Store::Postgres(postgres) => postgres.reindex(&found, began).await,
        }
    }

    /// Notes what became of dead letters, all or none.
    pub async fn note(&self, notes: Vec<(Option<CustomerKey>, Note)>) -> Result<(), LedgerError> {
        let at = clock::now();
        let change =
            |(customer, note)| Change { customer, at, notes: vec![note], ..Change::default() };
        self.commit(Arc::new(notes.into_iter().map(change).collect())).await.map(drop)
    }

    /// Whether a replay has come to its end.
    pub async fn has_ended(&self, replay_id: Uuid) -> Result<bool, LedgerError> {
        match self {
            Store::Sqlite(sqlite) => on(sqlite, move |it| it.has_ended(replay_id)).await,
            Store::Postgres(postgres) => postgres.has_ended(replay_id).await,
        }
    }

    /// How the replays ended whose ids begin like this.
    pub async fn replay_counts(&self, beginning: &str) -> Result<Vec<ReplayCount>, LedgerError> {
        let beginning = beginning.to_owned();
        match self {
            Store::Sqlite(sqlite) => on(sqlite, move |it| it.replay_counts(&beginning)).await,
            Store::Postgres(postgres) => postgres.replay_counts(&beginning).await,
        }
    }

    /// Adds to the operators' log.
    pub async fn log_act(&self, act: Act) -> Result<(), LedgerError> {
        match self {
            Store::Sqlite(sqlite) => on(sqlite, move |sqlite| sqlite.log_act(&act)).await,
            Store::Postgres(postgres) => postgres.log_act(&act).await,
        }
    }

    /// The operators' log, its last acts, oldest first.
    pub async fn acts(&self, last: u32) -> Result<Vec<Act>, LedgerError> {
        match self {
            Store::Sqlite(sqlite) => on(sqlite, move |sqlite| sqlite.acts(last)).await,
            Store::Postgres(postgres) => postgres.acts(last).await,
        }
    }

    /// Looks it over, all of it.
    pub async fn condition(&self) -> Result<Condition, LedgerError> {
        match self {
            Store::Sqlite(sqlite) => on(sqlite, Sqlite::condition).await,
            Store::Postgres(postgres) => postgres.condition().await,
        }
    }

    /// How much it holds, without looking for what is wrong.
    pub async fn counts(&self) -> Result<Condition, LedgerError> {
        match self {
            Store::Sqlite(sqlite) => on(sqlite, Sqlite::counts).await,
            Store::Postgres(postgres) => postgres.condition().await,
        }
    }

    /// How many customers have an event that waits for a retry or is a dead letter, and since when
    /// the first of them has. Holds nobody up, and may take a while.
    pub async fn out_of_step(&self) -> Result<(u64, Option<Timestamp>), LedgerError> {
        match self {
            Store::Sqlite(sqlite) => on(sqlite, Sqlite::out_of_step).await,
            Store::Postgres(postgres) => postgres.out_of_step().await,
        }
    }

    /// Who works on it beside us, where no lock says so.
    pub(super) async fn in_use_by(&self) -> Result<Option<String>, LedgerError> {
        match self {
            Store::Sqlite(_) => Ok(None),
            Store::Postgres(postgres) => postgres.in_use_by().await,
        }
    }

    /// Empties what is no ledger yet.
    pub(super) async fn clear(&self) -> Result<(), LedgerError> {
        match self {
            Store::Sqlite(sqlite) => on(sqlite, Sqlite::clear).await,
            Store::Postgres(postgres) => postgres.clear().await,
        }
    }

    /// Forgets customers that were last written before `limit`, retries long overdue, and replays
    /// that ended long ago; how many customers.
    pub async fn sweep(
        &self,
        limit: Option<Timestamp>,
        overdue: Timestamp,
    ) -> Result<u64, LedgerError> {
        match self {
            Store::Sqlite(sqlite) => on(sqlite, move |sqlite| sqlite.sweep(limit, overdue)).await,
            Store::Postgres(postgres) => postgres.sweep(limit, overdue).await,
        }
    }

    /// Customers and what belongs to them, from behind a key on.
    pub(super) async fn part(&self, behind: Option<CustomerKey>) -> Result<Part, LedgerError> {
        match self {
            Store::Sqlite(sqlite) => on(sqlite, move |sqlite| sqlite.part(behind)).await,
            Store::Postgres(postgres) => postgres.part(behind).await,
        }
    }

    /// Takes a part over; what is there already is replaced.
    pub(super) async fn take_over(&self, part: Part) -> Result<(), LedgerError> {
        match self {
            Store::Sqlite(sqlite) => on(sqlite, move |sqlite| sqlite.take_over(&part)).await,
            Store::Postgres(postgres) => postgres.take_over(&part).await,
        }
    }
}

/// SQLite waits for the disk: not on a thread that others wait for.
async fn on<T: Send + 'static>(
    sqlite: &Arc<Sqlite>,
    act: impl FnOnce(&Sqlite) -> Result<T, sqlite::Fault> + Send + 'static,
) -> Result<T, LedgerError> {
    let sqlite = Arc::clone(sqlite);
    let done = tokio::task::spawn_blocking(move || {
        act(&sqlite).map_err(|fault| fault.explained(sqlite.path()))
    });
    done.await.unwrap_or_else(|error| Err(LedgerError::Broken(error.to_string())))
}

async fn in_background<T: Send + 'static>(
    path: &Path,
    act: impl FnOnce(&Path) -> Result<T, LedgerError> + Send + 'static,
) -> Result<T, LedgerError> {
    let path = path.to_owned();
    let done = tokio::task::spawn_blocking(move || act(&path));
    done.await.unwrap_or_else(|error| Err(LedgerError::Broken(error.to_string())))
}
