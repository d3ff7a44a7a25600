//! Connections to the server; its tables are brought up to date.

use std::time::Duration;

use deadpool_postgres::{
    GenericClient, Manager, ManagerConfig, Pool, RecyclingMethod, Runtime, Transaction,
};
use rustls_platform_verifier::ConfigVerifierExt as _;
use tokio_postgres::Config;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::super::change::Note;
use super::super::error::LedgerError;
use super::super::model::About;
use super::super::tables::{ANOTHER_VERSION, NEWER_VERSION, PENDING, PLAIN_SINCE};
use super::Postgres;
use super::fault::Fault;
use super::rows::{get, number, pending, readable, time, write_note, write_pending};

/// Connections: one to read, one to write, and some for operators' commands.
const CONNECTIONS: usize = 4;
/// Until a connection, or a free one, must be there.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// A statement that takes longer, or waits longer for a lock, is given up by the server.
const STATEMENT_LIMIT: &str =
    "-c statement_timeout=10s -c lock_timeout=2s -c idle_in_transaction_session_timeout=20s";
/// Any number, as long as all relays use the same.
const SCHEMA_LOCK: i64 = 0x7265_6c61_7901;

/// The steps that lead to today's tables; `relay_schema` counts those that were taken. Times are
/// microseconds since 1970, as in SQLite; leases alone go by the server's clock.
const STEPS: [&str; 4] = [
    include_str!("steps/1.sql"),
    include_str!("steps/2.sql"),
    include_str!("steps/3.sql"),
    include_str!("steps/4.sql"),
];

/// A pool without a connection yet.
pub(super) fn pool(config: &Config) -> Result<Pool, LedgerError> {
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
    Pool::builder(manager)
        .max_size(CONNECTIONS)
        .runtime(Runtime::Tokio1)
        .wait_timeout(Some(CONNECT_LIMIT))
        .create_timeout(Some(CONNECT_LIMIT))
        .build()
        .map_err(|error| LedgerError::Unreachable(error.to_string()))
}

/// Takes the steps that were not taken yet.
pub(super) async fn create_tables(postgres: &Postgres) -> Result<Option<About>, Fault> {
    let mut client = postgres.client().await?;
    let transaction = client.transaction().await?;
    // A large table takes its time. Relays that start together take their turn.
    transaction.batch_execute("SET LOCAL statement_timeout = 0").await?;
    // Another relay may be at it.
    transaction.batch_execute("SET LOCAL lock_timeout = 0").await?;
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&SCHEMA_LOCK]).await?;
    let is_there = "SELECT to_regclass('relay_schema') IS NOT NULL";
    if !get::<bool>(&transaction.query_one(is_there, &[]).await?, 0)? {
        transaction.batch_execute("CREATE TABLE relay_schema (taken BIGINT NOT NULL)").await?;
    }
    let taken = steps_taken(&transaction).await?;
    let Some(steps) = STEPS.get(taken..) else {
        return Err(Fault::Other(NEWER_VERSION.into()));
    };
    if !steps.is_empty() {
        for step in steps {
            transaction.batch_execute(step).await?;
        }
        if taken < PLAIN_SINCE {
            make_pending_plain(&transaction).await?;
        }
        let taken = i64::try_from(STEPS.len()).expect("a handful of steps");
        transaction.batch_execute("DELETE FROM relay_schema").await?;
        transaction.execute("INSERT INTO relay_schema VALUES ($1)", &[&taken]).await?;
    }
    let about = about(&transaction).await?;
    transaction.commit().await?;
    Ok(about)
}

/// Events that wait are found by their ids, which an older relay wrote as they came.
async fn make_pending_plain(transaction: &Transaction<'_>) -> Result<(), Fault> {
    let found = transaction.query(&PENDING.select(""), &[]).await?;
    let waiting = readable("pending", &found, pending);
    for (customer, note) in waiting {
        let mut plain = note.clone();
        plain.make_plain();
        if plain != note {
            let settled = Note::Settled { event: note.event };
            write_note(transaction, Some(customer), &settled).await?;
            write_pending(transaction, customer, &plain).await?;
        }
    }
    Ok(())
}

/// What the ledger is, if its tables are today's.
pub(super) async fn load_about(postgres: &Postgres) -> Result<Option<About>, Fault> {
    let client = postgres.client().await?;
    match steps_taken(&client).await {
        Err(fault) if fault.is_missing_table() => Ok(None),
        Err(fault) => Err(fault),
        Ok(taken) if taken != STEPS.len() => Err(Fault::Other(ANOTHER_VERSION.into())),
        Ok(_) => about(&client).await,
    }
}

/// Of relays that start together, the quickest makes it.
pub(super) async fn create_ledger(postgres: &Postgres, new: &About) -> Result<About, Fault> {
    let client = postgres.client().await?;
    let insert = "INSERT INTO about (one, id, salt, created) VALUES (1, $1, $2, $3)
                  ON CONFLICT DO NOTHING";
    let (id, created) = (new.id.to_string(), new.created.as_microsecond());
    client.execute(insert, &[&id, &new.salt.as_slice(), &created]).await?;
    about(&client).await?.ok_or_else(|| Fault::Other("it cannot be made".into()))
}

async fn steps_taken(client: &impl GenericClient) -> Result<usize, Fault> {
    match client.query_opt("SELECT taken FROM relay_schema", &[]).await? {
        Some(columns) => number(&columns, 0),
        None => Ok(0),
    }
}

async fn about(client: &impl GenericClient) -> Result<Option<About>, Fault> {
    let found = client.query_opt("SELECT id, salt, created FROM about", &[]).await?;
    let Some(found) = found else { return Ok(None) };
    let id = get::<&str>(&found, 0)?.parse();
    let salt = get::<&[u8]>(&found, 1)?.try_into();
    let (Ok(id), Ok(salt)) = (id, salt) else {
        return Err(Fault::Other("its id is damaged".into()));
    };
    Ok(Some(About { id, salt, created: time(&found, 2)? }))
}
