//! The ledger at a PostgreSQL server, for several relays at once: each customer is leased before it
//! is called for, by the server's clock, and recorded under a fencing number. The only file that
//! knows `tokio_postgres` and its pool.

use std::time::Duration;

use deadpool_postgres::{
    GenericClient, Manager, ManagerConfig, Object, Pool, RecyclingMethod, Runtime, Transaction,
};
use jiff::Timestamp;
use rustls_platform_verifier::ConfigVerifierExt as _;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Config, Row as Columns};
use tokio_postgres_rustls::MakeRustlsConnect;
use uuid::Uuid;

use super::store::{Account, Condition, Indexed, Part, ReplayCount, Stored};
use super::{
    About, Act, Change, Committed, CustomerKey, Lease, LedgerError, Note, Opened, Opening,
    PendingNote, ReplayEnd, schema,
};
use crate::clock;
use crate::domain::dead_letter::Reason;
use crate::domain::letter::Letter;
use crate::domain::row::{Row, Unreadable};

/// Connections: one to read, one to write, and some for operators' commands.
const CONNECTIONS: usize = 4;
/// Until a connection, or a free one, must be there.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// A statement that takes longer is given up by the server.
const STATEMENT_LIMIT: &str = "-c statement_timeout=10s -c idle_in_transaction_session_timeout=20s";
/// Replays are remembered so much longer than retries that are overdue, in microseconds: 30 days.
const REPLAYS_KEPT: i64 = 30 * 24 * 3600 * 1_000_000;
/// Rows handled at once where a whole table is gone through.
const PAGE: i64 = 1000;
/// Any number, as long as all relays use the same.
const SCHEMA_LOCK: i64 = 0x7265_6c61_7901;

/// A ledger's server.
#[derive(Clone, Debug)]
pub struct Postgres {
    pool: Pool,
    /// Whose leases are ours.
    owner: String,
}

/// What the server or the way to it says is wrong.
enum Fault {
    Server(tokio_postgres::Error),
    Pool(deadpool_postgres::PoolError),
    Unreadable(Unreadable),
    Other(String),
}

impl From<tokio_postgres::Error> for Fault {
    fn from(error: tokio_postgres::Error) -> Fault {
        Fault::Server(error)
    }
}

impl From<deadpool_postgres::PoolError> for Fault {
    fn from(error: deadpool_postgres::PoolError) -> Fault {
        Fault::Pool(error)
    }
}

impl From<Unreadable> for Fault {
    fn from(error: Unreadable) -> Fault {
        Fault::Unreadable(error)
    }
}

impl From<Fault> for LedgerError {
    fn from(fault: Fault) -> LedgerError {
        match fault {
            Fault::Server(error) | Fault::Pool(deadpool_postgres::PoolError::Backend(error)) => {
                explained(&error)
            }
            Fault::Pool(error) => LedgerError::Unreachable(error.to_string()),
            Fault::Unreadable(error) => LedgerError::Broken(error.to_string()),
            Fault::Other(text) => LedgerError::Broken(text),
        }
    }
}

/// The server's own words, without its details: those may hold values.
fn explained(error: &tokio_postgres::Error) -> LedgerError {
    let Some(said) = error.as_db_error() else {
        let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
        let text =
            format!("{error}{}; is it running, is ledger.url right?", cause.unwrap_or_default());
        return LedgerError::Unreachable(text);
    };
    let text = format!("{} ({})", said.message(), said.code().code());
    match said.code() {
        &SqlState::INVALID_PASSWORD | &SqlState::INVALID_AUTHORIZATION_SPECIFICATION => {
            LedgerError::Unreachable(format!("{text}: check user and password in ledger.url"))
        }
        &SqlState::INVALID_CATALOG_NAME => {
            LedgerError::Unreachable(format!("{text}: create it, or mend ledger.url"))
        }
        &SqlState::INSUFFICIENT_PRIVILEGE => LedgerError::Broken(format!(
            "{text}: the relay's user needs CREATE on the schema once, then to read and write its \
             tables"
        )),
        _ => LedgerError::Broken(text),
    }
}

impl Postgres {
    /// Prepares connections; the first one is made at once, so that a mistake shows.
    pub(super) async fn connect(config: &Config) -> Result<Postgres, LedgerError> {
        let mut config = config.clone();
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_LIMIT);
        }
        if config.get_application_name().is_none() {
            config.application_name("customer-relay");
        }
        let options = config
            .get_options()
            .map_or_else(|| STATEMENT_LIMIT.to_owned(), |own| format!("{STATEMENT_LIMIT} {own}"));
        config.options(options);
        let tls = rustls::ClientConfig::with_platform_verifier()
            .map_err(|error| LedgerError::Unreachable(format!("TLS: {error}")))?;
        let manager = Manager::from_config(
            config,
            MakeRustlsConnect::new(tls),
            ManagerConfig { recycling_method: RecyclingMethod::Fast },
        );
        let pool = Pool::builder(manager)
            .max_size(CONNECTIONS)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(CONNECT_LIMIT))
            .create_timeout(Some(CONNECT_LIMIT))
            .build()
            .map_err(|error| LedgerError::Unreachable(error.to_string()))?;
        let postgres = Postgres { pool, owner: Uuid::now_v7().to_string() };
        drop(postgres.client().await?);
        Ok(postgres)
    }

    async fn client(&self) -> Result<Object, Fault> {
        Ok(self.pool.get().await?)
    }

    pub(super) async fn prepare(&self) -> Result<Option<About>, LedgerError> {
        Ok(self.prepared().await?)
    }

    async fn prepared(&self) -> Result<Option<About>, Fault> {
        let mut client = self.client().await?;
        let transaction = client.transaction().await?;
        // Relays that start together take their turn.
        transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&SCHEMA_LOCK]).await?;
        transaction
            .batch_execute("CREATE TABLE IF NOT EXISTS relay_schema (taken BIGINT NOT NULL)")
            .await?;
        let taken = steps_taken(&transaction).await?;
        let Some(steps) = schema::POSTGRES.get(taken..) else {
            return Err(Fault::Other("a newer relay made this ledger; use that one".into()));
        };
        if !steps.is_empty() {
            for step in steps {
                transaction.batch_execute(step).await?;
            }
            let steps = i64::try_from(schema::POSTGRES.len()).unwrap_or(i64::MAX);
            transaction.batch_execute("DELETE FROM relay_schema").await?;
            transaction.execute("INSERT INTO relay_schema VALUES ($1)", &[&steps]).await?;
        }
        let about = about(&transaction).await?;
        transaction.commit().await?;
        Ok(about)
    }

    pub(super) async fn about(&self) -> Result<Option<About>, LedgerError> {
        let client = self.client().await?;
        match steps_taken(&client).await {
            Err(Fault::Server(error)) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => {
                Ok(None)
            }
            Ok(taken) if taken != schema::POSTGRES.len() => {
                Err(Fault::Other(schema::ANOTHER_VERSION.into()).into())
            }
            Ok(_) => Ok(about(&client).await?),
            Err(fault) => Err(fault.into()),
        }
    }

    pub(super) async fn found(&self, about: &About) -> Result<About, LedgerError> {
        Ok(self.founded(about).await?)
    }

    /// Of relays that start together, the quickest makes it.
    async fn founded(&self, new: &About) -> Result<About, Fault> {
        let client = self.client().await?;
        let insert = "INSERT INTO about (one, id, salt, created) VALUES (1, $1, $2, $3)
                      ON CONFLICT DO NOTHING";
        let (id, created) = (new.id.to_string(), new.created.as_microsecond());
        client.execute(insert, &[&id, &new.salt.as_slice(), &created]).await?;
        about(&client).await?.ok_or_else(|| Fault::Other("it cannot be made".into()))
    }

    pub(super) async fn open(
        &self,
        keys: &[CustomerKey],
        lease: Duration,
    ) -> Result<Vec<Opening>, LedgerError> {
        Ok(self.leased(keys, lease).await?)
    }

    async fn leased(&self, keys: &[CustomerKey], lease: Duration) -> Result<Vec<Opening>, Fault> {
        // Locks are taken in one order by everybody.
        let mut sorted: Vec<&[u8]> = keys.iter().map(|key| key.0.as_slice()).collect();
        sorted.sort_unstable();
        sorted.dedup();
        let began = clock::instant();
        let client = self.client().await?;
        let statement = client
            .prepare_cached(
                "INSERT INTO customers AS known (key, row, seen, owner, fence, leased_until)
                 SELECT wanted.key, '', 0, $2, 1, clock_timestamp() + $3::float8 * interval '1 second'
                 FROM unnest($1::bytea[]) AS wanted (key) ORDER BY wanted.key
                 ON CONFLICT (key) DO UPDATE SET
                     owner = $2,
                     fence = known.fence + 1,
                     leased_until = clock_timestamp() + $3::float8 * interval '1 second',
                     was_taken_over = known.owner IS NOT NULL AND known.owner <> $2
                 WHERE known.owner IS NULL OR known.owner = $2
                     OR known.leased_until <= clock_timestamp()
                 RETURNING key, row, fence, was_taken_over",
            )
            .await?;
        let found = client.query(&statement, &[&sorted, &self.owner, &lease.as_secs_f64()]).await?;
        let mut ours = std::collections::HashMap::with_capacity(found.len());
        for columns in found {
            let lease = Lease { fence: columns.get(2), until: began + lease };
            let opened = Opened {
                row: Row::unpack(columns.get(1))?,
                lease: Some(lease),
                was_taken_over: columns.get(3),
            };
            ours.insert(key(&columns, 0), opened);
        }
        let opening = |key: &CustomerKey| match ours.get(key) {
            Some(opened) => Opening::Ours(Box::new(opened.clone())),
            None => Opening::Held,
        };
        Ok(keys.iter().map(opening).collect())
    }

    pub(super) async fn commit(&self, changes: &[Change]) -> Result<Vec<Committed>, LedgerError> {
        Ok(self.committed(changes).await?)
    }

    async fn committed(&self, changes: &[Change]) -> Result<Vec<Committed>, Fault> {
        let mut client = self.client().await?;
        let transaction = client.transaction().await?;
        let owned = self.lock_leases(&transaction, changes).await?;
        let is_lost = |change: &Change| {
            let Some((lease, key)) = change.lease.zip(change.customer) else { return false };
            owned.get(&key) != Some(&lease.fence)
        };
        let lost: Vec<bool> = changes.iter().map(is_lost).collect();
        let done =
            || changes.iter().zip(&lost).filter(|(_, lost)| !**lost).map(|(change, _)| change);
        write_rows(&transaction, done()).await?;
        for change in done() {
            for note in &change.notes {
                write_note(&transaction, change.customer, note).await?;
            }
        }
        transaction.commit().await?;
        let end = |lost: &bool| if *lost { Committed::LeaseLost } else { Committed::Done };
        Ok(lost.iter().map(end).collect())
    }

    /// The fencing numbers of the leases that are still ours; nobody takes one of them before the
    /// transaction ends.
    async fn lock_leases(
        &self,
        transaction: &Transaction<'_>,
        changes: &[Change],
    ) -> Result<std::collections::HashMap<CustomerKey, i64>, Fault> {
        let leased = changes.iter().filter(|change| change.lease.is_some());
        let keys: Vec<&[u8]> = leased
            .filter_map(|change| change.customer.as_ref())
            .map(|key| key.0.as_slice())
            .collect();
        let statement = transaction
            .prepare_cached(
                "SELECT key, fence FROM customers WHERE key = ANY ($1) AND owner = $2
                 ORDER BY key FOR UPDATE",
            )
            .await?;
        let found = transaction.query(&statement, &[&keys, &self.owner]).await?;
        Ok(found.iter().map(|columns| (key(columns, 0), columns.get(1))).collect())
    }

    pub(super) async fn account(&self, key: CustomerKey) -> Result<Account, LedgerError> {
        Ok(self.accounted(key).await?)
    }

    async fn accounted(&self, wanted: CustomerKey) -> Result<Account, Fault> {
        let client = self.client().await?;
        let wanted = wanted.0.as_slice();
        let select = "SELECT row, seen FROM customers WHERE key = $1";
        let row = client.query_opt(select, &[&wanted]).await?;
        let row = row.map(|columns| {
            Ok::<_, Unreadable>((Row::unpack(columns.get(0))?, time(columns.get(1))))
        });
        let select = format!("SELECT {PENDING} FROM pending WHERE customer = $1 ORDER BY due");
        let pending = client.query(&select, &[&wanted]).await?;
        let select = format!("SELECT {DEAD} FROM dead WHERE customer = $1 ORDER BY died");
        let dead = client.query(&select, &[&wanted]).await?;
        Ok(Account {
            row: row.transpose()?,
            pending: pending.iter().map(|columns| pending_note(columns).1).collect(),
            dead: dead.iter().map(|columns| letter(columns).1).collect(),
        })
    }

    pub(super) async fn forget(&self, key: CustomerKey) -> Result<(), LedgerError> {
        let forget = async {
            let mut client = self.client().await?;
            let transaction = client.transaction().await?;
            for delete in [
                "DELETE FROM customers WHERE key = $1",
                "DELETE FROM pending WHERE customer = $1",
                "DELETE FROM dead WHERE customer = $1",
            ] {
                transaction.execute(delete, &[&key.0.as_slice()]).await?;
            }
            Ok::<_, Fault>(transaction.commit().await?)
        };
        Ok(forget.await?)
    }

    pub(super) async fn rows(&self, keys: &[CustomerKey]) -> Result<Vec<Row>, LedgerError> {
        let rows = async {
            let wanted: Vec<&[u8]> = keys.iter().map(|key| key.0.as_slice()).collect();
            let client = self.client().await?;
            let select = "SELECT key, row FROM customers WHERE key = ANY ($1)";
            let found = client.query(select, &[&wanted]).await?;
            let mut known = std::collections::HashMap::with_capacity(found.len());
            for columns in found {
                known.insert(key(&columns, 0), Row::unpack(columns.get(1))?);
            }
            let row = |key: &CustomerKey| known.get(key).cloned().unwrap_or_default();
            Ok::<_, Fault>(keys.iter().map(row).collect())
        };
        Ok(rows.await?)
    }

    pub(super) async fn letters(&self) -> Result<Vec<Indexed>, LedgerError> {
        let letters = async {
            let client = self.client().await?;
            let select = format!("SELECT {DEAD} FROM dead ORDER BY died");
            Ok::<_, Fault>(client.query(&select, &[]).await?.iter().map(letter).collect())
        };
        Ok(letters.await?)
    }

    pub(super) async fn letter_count(&self) -> Result<u64, LedgerError> {
        let count = async {
            let client = self.client().await?;
            let count = client.query_one("SELECT count(*) FROM dead", &[]).await?;
            Ok::<_, Fault>(u64::try_from(count.get::<_, i64>(0)).unwrap_or_default())
        };
        Ok(count.await?)
    }

    pub(super) async fn reindex(
        &self,
        found: &[Indexed],
        began: Timestamp,
    ) -> Result<(), LedgerError> {
        let reindex = async {
            let mut client = self.client().await?;
            let transaction = client.transaction().await?;
            let delete = "DELETE FROM dead WHERE died < $1";
            transaction.execute(delete, &[&began.as_microsecond()]).await?;
            for (key, letter) in found {
                write_letter(&transaction, *key, letter).await?;
            }
            Ok::<_, Fault>(transaction.commit().await?)
        };
        Ok(reindex.await?)
    }

    pub(super) async fn has_ended(&self, replay_id: Uuid) -> Result<bool, LedgerError> {
        let look = async {
            let client = self.client().await?;
            let select = "SELECT 1 FROM replays WHERE replay_id = $1";
            Ok::<_, Fault>(client.query_opt(select, &[&replay_id.to_string()]).await?.is_some())
        };
        Ok(look.await?)
    }

    pub(super) async fn replay_counts(
        &self,
        beginning: &str,
    ) -> Result<Vec<ReplayCount>, LedgerError> {
        let counts = async {
            let client = self.client().await?;
            let select =
                "SELECT ended, reason, count(*) FROM replays WHERE starts_with(replay_id, $1)
                          GROUP BY ended, reason ORDER BY ended, reason";
            let found = client.query(select, &[&beginning]).await?;
            let count = |columns: &Columns| {
                let number = u64::try_from(columns.get::<_, i64>(2)).unwrap_or_default();
                (columns.get(0), columns.get(1), number)
            };
            Ok::<_, Fault>(found.iter().map(count).collect())
        };
        Ok(counts.await?)
    }

    pub(super) async fn log_act(&self, act: &Act) -> Result<(), LedgerError> {
        let log = async { write_act(&self.client().await?, act).await };
        Ok(log.await?)
    }

    pub(super) async fn acts(&self, last: u32) -> Result<Vec<Act>, LedgerError> {
        let acts = async {
            let client = self.client().await?;
            let select = format!("SELECT {ACT} FROM audit ORDER BY number DESC LIMIT $1");
            let found = client.query(&select, &[&i64::from(last)]).await?;
            Ok::<_, Fault>(found.iter().rev().map(act).collect())
        };
        Ok(acts.await?)
    }

    pub(super) async fn condition(&self) -> Result<Condition, LedgerError> {
        let look = async {
            let client = self.client().await?;
            let count = "SELECT (SELECT count(*) FROM customers), (SELECT count(*) FROM pending),
                                (SELECT count(*) FROM dead)";
            let counts = client.query_one(count, &[]).await?;
            let number = |at| u64::try_from(counts.get::<_, i64>(at)).unwrap_or_default();
            let (customers, pending, dead) = (number(0), number(1), number(2));
            Ok::<_, Fault>(Condition { customers, pending, dead, faults: Vec::new() })
        };
        Ok(look.await?)
    }

    pub(super) async fn out_of_step(&self) -> Result<(u64, Option<Timestamp>), LedgerError> {
        let look = async {
            let found = self.client().await?.query_one(schema::OUT_OF_STEP, &[]).await?;
            let customers = u64::try_from(found.get::<_, i64>(0)).unwrap_or_default();
            Ok::<_, Fault>((customers, found.get::<_, Option<i64>>(1).map(time)))
        };
        Ok(look.await?)
    }

    /// Removes what a copy that did not end has left.
    pub(super) async fn clear(&self) -> Result<(), LedgerError> {
        let clear = async {
            let client = self.client().await?;
            client.batch_execute("TRUNCATE customers, pending, dead, replays, audit").await?;
            Ok::<_, Fault>(())
        };
        Ok(clear.await?)
    }

    /// Who works on it beside us, if anybody. A relay that is paused holds no lease, but its
    /// connections tell.
    pub(super) async fn in_use_by(&self) -> Result<Option<String>, LedgerError> {
        let look = async {
            let client = self.client().await?;
            let select = "SELECT (SELECT count(*) FROM customers
                                  WHERE owner IS NOT NULL AND leased_until > clock_timestamp()),
                                 (SELECT count(*) FROM pg_stat_activity
                                  WHERE datname = current_database() AND pid <> pg_backend_pid()
                                      AND application_name = current_setting('application_name'))";
            let found = client.query_one(select, &[]).await?;
            Ok::<_, Fault>((found.get::<_, i64>(0), found.get::<_, i64>(1)))
        };
        let (leases, connections) = look.await?;
        Ok((leases + connections > 0).then(|| {
            format!("{leases} customers are leased, {connections} other connections are open")
        }))
    }

    pub(super) async fn sweep(
        &self,
        limit: Option<Timestamp>,
        overdue: Timestamp,
    ) -> Result<u64, LedgerError> {
        let sweep = async {
            let client = self.client().await?;
            let mut forgotten = 0;
            if let Some(limit) = limit {
                // Pages are short transactions; a customer that is leased is in use.
                let delete = "DELETE FROM customers WHERE key IN (
                                  SELECT key FROM customers WHERE seen < $1 AND owner IS NULL
                                  LIMIT $2 FOR UPDATE SKIP LOCKED)";
                loop {
                    let page = client.execute(delete, &[&limit.as_microsecond(), &PAGE]).await?;
                    forgotten += page;
                    if page == 0 {
                        break;
                    }
                }
            }
            let delete = "DELETE FROM pending WHERE due < $1";
            client.execute(delete, &[&overdue.as_microsecond()]).await?;
            let kept = overdue.as_microsecond() - REPLAYS_KEPT;
            client.execute("DELETE FROM replays WHERE at < $1", &[&kept]).await?;
            Ok::<_, Fault>(forgotten)
        };
        Ok(sweep.await?)
    }

    pub(super) async fn part(&self, behind: Option<CustomerKey>) -> Result<Part, LedgerError> {
        let part = async {
            let client = self.client().await?;
            let from = behind.map_or_else(Vec::new, |key| key.0.to_vec());
            let select =
                "SELECT key, row, seen FROM customers WHERE key > $1 ORDER BY key LIMIT $2";
            let customers = client.query(select, &[&from, &PAGE]).await?;
            let stored = |columns: &Columns| Stored {
                key: key(columns, 0),
                row: columns.get(1),
                seen: columns.get(2),
            };
            let mut part =
                Part { customers: customers.iter().map(stored).collect(), ..Part::default() };
            if behind.is_none() {
                let select = format!("SELECT {PENDING} FROM pending");
                part.pending = client.query(&select, &[]).await?.iter().map(pending_note).collect();
                let select = format!("SELECT {DEAD} FROM dead");
                part.dead = client.query(&select, &[]).await?.iter().map(letter).collect();
                let select = "SELECT replay_id, ended, reason, at FROM replays";
                part.replays = client.query(select, &[]).await?.iter().map(replay_end).collect();
                let select = format!("SELECT {ACT} FROM audit ORDER BY number");
                part.acts = client.query(&select, &[]).await?.iter().map(act).collect();
            }
            Ok::<_, Fault>(part)
        };
        Ok(part.await?)
    }

    pub(super) async fn take_over(&self, part: &Part) -> Result<(), LedgerError> {
        let take = async {
            let mut client = self.client().await?;
            let transaction = client.transaction().await?;
            let keys: Vec<&[u8]> = part.customers.iter().map(|one| one.key.0.as_slice()).collect();
            let rows: Vec<&[u8]> = part.customers.iter().map(|one| one.row.as_slice()).collect();
            let seen: Vec<i64> = part.customers.iter().map(|one| one.seen).collect();
            let insert = "INSERT INTO customers (key, row, seen)
                          SELECT * FROM unnest($1::bytea[], $2::bytea[], $3::bigint[])
                          ON CONFLICT (key) DO UPDATE SET row = excluded.row, seen = excluded.seen";
            transaction.execute(insert, &[&keys, &rows, &seen]).await?;
            for (key, note) in &part.pending {
                write_note(&transaction, Some(*key), &Note::Pending(note.clone())).await?;
            }
            for (key, letter) in &part.dead {
                write_letter(&transaction, *key, letter).await?;
            }
            for end in &part.replays {
                write_note(&transaction, None, &Note::Replayed(end.clone())).await?;
            }
            for act in &part.acts {
                write_act(&transaction, act).await?;
            }
            Ok::<_, Fault>(transaction.commit().await?)
        };
        Ok(take.await?)
    }
}

async fn steps_taken(client: &impl GenericClient) -> Result<usize, Fault> {
    let taken = client.query_opt("SELECT taken FROM relay_schema", &[]).await?;
    let taken = taken.map_or(0, |row| row.get::<_, i64>(0));
    Ok(usize::try_from(taken).unwrap_or(usize::MAX))
}

async fn about(client: &impl GenericClient) -> Result<Option<About>, Fault> {
    let found = client.query_opt("SELECT id, salt, created FROM about", &[]).await?;
    let Some(found) = found else { return Ok(None) };
    let id = found.get::<_, String>(0).parse();
    let salt = found.get::<_, &[u8]>(1).try_into();
    let (Ok(id), Ok(salt)) = (id, salt) else {
        return Err(Fault::Other("its id is damaged".into()));
    };
    Ok(Some(About { id, salt, created: time(found.get(2)) }))
}

/// Rows and the ends of leases, all in one statement.
async fn write_rows(
    transaction: &Transaction<'_>,
    changes: impl Iterator<Item = &Change>,
) -> Result<(), Fault> {
    let (mut keys, mut rows, mut seen, mut keeps) = (vec![], vec![], vec![], vec![]);
    for change in changes {
        if let Some(key) = &change.customer
            && (change.row.is_some() || change.lease.is_some())
        {
            keys.push(key.0.as_slice());
            rows.push(change.row.as_deref());
            seen.push(change.at.as_microsecond());
            keeps.push(change.keeps_lease);
        }
    }
    if keys.is_empty() {
        return Ok(());
    }
    let statement = transaction
        .prepare_cached(
            "UPDATE customers AS known SET
                 row = coalesce(news.row, known.row),
                 seen = CASE WHEN news.row IS NULL THEN known.seen ELSE news.seen END,
                 owner = CASE WHEN news.keeps THEN known.owner END,
                 was_taken_over = FALSE
             FROM unnest($1::bytea[], $2::bytea[], $3::bigint[], $4::boolean[])
                 AS news (key, row, seen, keeps)
             WHERE known.key = news.key",
        )
        .await?;
    transaction.execute(&statement, &[&keys, &rows, &seen, &keeps]).await?;
    Ok(())
}

async fn write_note(
    transaction: &Transaction<'_>,
    customer: Option<CustomerKey>,
    note: &Note,
) -> Result<(), Fault> {
    let customer = customer.map(|key| key.0.to_vec());
    match note {
        Note::Settled { event } => {
            let delete = "DELETE FROM pending WHERE customer = $1 AND event = $2";
            let statement = transaction.prepare_cached(delete).await?;
            transaction.execute(&statement, &[&customer, event]).await?;
        }
        Note::Pending(PendingNote { event, attempts, since, due, reason }) => {
            let upsert = format!(
                "INSERT INTO pending ({PENDING}) VALUES ($1, $2, $3, $4, $5, $6)
                 ON CONFLICT (customer, event) DO UPDATE SET
                     attempts = excluded.attempts, due = excluded.due, reason = excluded.reason"
            );
            let (customer, attempts) = (customer.unwrap_or_default(), i64::from(*attempts));
            let (since, due) = (since.as_microsecond(), due.as_microsecond());
            let statement = transaction.prepare_cached(&upsert).await?;
            let values: [&(dyn ToSql + Sync); 6] =
                [&customer, event, &attempts, &since, &due, reason];
            transaction.execute(&statement, &values).await?;
        }
        Note::Dead(letter) => {
            let key = customer.as_deref().map(key_of);
            write_letter(transaction, key, letter).await?;
        }
        Note::Gone { dead_id } => {
            let delete = "DELETE FROM dead WHERE dead_id = $1";
            transaction.execute(delete, &[&dead_id.to_string()]).await?;
        }
        Note::Replayed(ReplayEnd { replay_id, ended, reason, at }) => {
            let insert = "INSERT INTO replays (replay_id, ended, reason, at)
                          VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING";
            let statement = transaction.prepare_cached(insert).await?;
            let (replay_id, at) = (replay_id.to_string(), at.as_microsecond());
            transaction.execute(&statement, &[&replay_id, ended, reason, &at]).await?;
        }
    }
    Ok(())
}

async fn write_letter(
    transaction: &Transaction<'_>,
    customer: Option<CustomerKey>,
    letter: &Letter,
) -> Result<(), Fault> {
    let upsert = format!(
        "INSERT INTO dead ({DEAD})
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
         ON CONFLICT (dead_id) DO UPDATE SET
             customer = excluded.customer, event = excluded.event, reason = excluded.reason,
             field = excluded.field, rule = excluded.rule, detail = excluded.detail,
             revision = excluded.revision"
    );
    let statement = transaction.prepare_cached(&upsert).await?;
    let customer = customer.map(|key| key.0.to_vec());
    let number = |number: u32| i64::from(number);
    transaction
        .execute(
            &statement,
            &[
                &letter.id.to_string(),
                &customer,
                &letter.event,
                &letter.reason.name(),
                &letter.field,
                &letter.rule,
                &letter.http_status.map(i64::from),
                &letter.portal_status,
                &number(letter.attempts),
                &letter.died.map_or(0, Timestamp::as_microsecond),
                &letter.detail,
                &letter.flags,
                &number(letter.replays),
                &number(letter.revision),
            ],
        )
        .await?;
    Ok(())
}

async fn write_act(client: &impl GenericClient, act: &Act) -> Result<(), Fault> {
    let insert = format!("INSERT INTO audit ({ACT}) VALUES ($1, $2, $3, $4, $5, $6)");
    let Act { at, who, act, what, why, count } = act;
    let (at, count) = (at.as_microsecond(), i64::try_from(*count).unwrap_or(i64::MAX));
    client.execute(&insert, &[&at, who, act, what, why, &count]).await?;
    Ok(())
}

/// The columns of an event that waits, in the order in which they are read and written.
const PENDING: &str = "customer, event, attempts, since, due, reason";

/// The columns of a dead letter, in the order in which they are read and written.
const DEAD: &str = "dead_id, customer, event, reason, field, rule, http_status, portal_status, \
                    attempts, died, detail, flags, replays, revision";

/// The columns of an operator's act, in the order in which they are read and written.
const ACT: &str = "at, who, act, what, why, count";

fn pending_note(columns: &Columns) -> (CustomerKey, PendingNote) {
    let note = PendingNote {
        event: columns.get(1),
        attempts: u32::try_from(columns.get::<_, i64>(2)).unwrap_or_default(),
        since: time(columns.get(3)),
        due: time(columns.get(4)),
        reason: columns.get(5),
    };
    (key(columns, 0), note)
}

fn letter(columns: &Columns) -> Indexed {
    let small = |at| u32::try_from(columns.get::<_, i64>(at)).unwrap_or_default();
    let http_status = columns.get::<_, Option<i64>>(6);
    let died = columns.get::<_, i64>(9);
    let letter = Letter {
        id: columns.get::<_, String>(0).parse().unwrap_or_default(),
        event: columns.get(2),
        reason: Reason::parse(columns.get(3)).unwrap_or(Reason::Foreign),
        field: columns.get(4),
        rule: columns.get(5),
        http_status: http_status.and_then(|status| u16::try_from(status).ok()),
        portal_status: columns.get(7),
        attempts: small(8),
        died: (died > 0).then(|| time(died)),
        detail: columns.get(10),
        flags: columns.get(11),
        replays: small(12),
        revision: small(13),
    };
    (columns.get::<_, Option<&[u8]>>(1).map(key_of), letter)
}

fn replay_end(columns: &Columns) -> ReplayEnd {
    ReplayEnd {
        replay_id: columns.get::<_, String>(0).parse().unwrap_or_default(),
        ended: columns.get(1),
        reason: columns.get(2),
        at: time(columns.get(3)),
    }
}

fn act(columns: &Columns) -> Act {
    Act {
        at: time(columns.get(0)),
        who: columns.get(1),
        act: columns.get(2),
        what: columns.get(3),
        why: columns.get(4),
        count: u64::try_from(columns.get::<_, i64>(5)).unwrap_or_default(),
    }
}

fn key(columns: &Columns, at: usize) -> CustomerKey {
    key_of(columns.get(at))
}

/// A key of another length is nobody's.
fn key_of(bytes: &[u8]) -> CustomerKey {
    CustomerKey(bytes.try_into().unwrap_or_default())
}

fn time(microseconds: i64) -> Timestamp {
    Timestamp::from_microsecond(microseconds).unwrap_or_default()
}
