//! Customers at the server: leased by its clock, recorded under a fencing number.

use std::collections::{HashMap, HashSet};
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use deadpool_postgres::{Client, Transaction};
use tokio_postgres::error::SqlState;

use super::super::change::{Change, Committed, Note};
use super::super::model::{CustomerKey, Lease, Loaded, LoadedCustomer};
use super::Postgres;
use super::fault::Fault;
use super::rows::{get, key, write_note};
use crate::clock;
use crate::domain::row::Row;

/// No relay leases a customer for a day: what lasts longer was written under a clock that was ahead.
const LEASE: &str = "
    INSERT INTO customers AS known (key, row, seen, owner, fence, leased_until)
    SELECT wanted.key, '', 0, $2, 1, clock_timestamp() + $3::float8 * interval '1 second'
    FROM unnest($1::bytea[]) AS wanted (key) ORDER BY wanted.key
    ON CONFLICT (key) DO UPDATE SET
        owner = $2,
        fence = known.fence + 1,
        leased_until = clock_timestamp() + $3::float8 * interval '1 second',
        was_taken_over = known.was_taken_over
            OR known.owner IS NOT NULL AND known.owner <> $2
    WHERE known.owner IS NULL OR known.owner = $2 OR known.leased_until IS NULL
        OR known.leased_until NOT BETWEEN clock_timestamp()
            AND clock_timestamp() + interval '1 day'
    RETURNING key, row, fence, was_taken_over";

/// Rows and the ends of leases, all in one statement. That a customer was taken over is known until a turn
/// of its events has come to its end, and what they did is recorded: the row has it for a mark.
const RECORD: &str = "
    UPDATE customers AS known SET
        row = coalesce(news.row, known.row),
        seen = CASE WHEN news.row IS NULL THEN known.seen ELSE news.seen END,
        owner = CASE WHEN news.keeps THEN known.owner END,
        was_taken_over = known.was_taken_over AND news.tells_nothing
    FROM unnest($1::bytea[], $2::bytea[], $3::bigint[], $4::boolean[], $5::boolean[])
        AS news (key, row, seen, keeps, tells_nothing)
    WHERE known.key = news.key";

pub(super) async fn lease(
    postgres: &Postgres,
    keys: &[CustomerKey],
    lease: Duration,
) -> Result<Vec<Loaded>, Fault> {
    // Locks are taken in one order by everybody.
    let mut sorted: Vec<&[u8]> = keys.iter().map(|key| key.0.as_slice()).collect();
    sorted.sort_unstable();
    sorted.dedup();
    let began = clock::instant();
    let client = postgres.client().await?;
    let statement = client.prepare_cached(LEASE).await?;
    let span = lease.as_secs_f64();
    let has_known = {
        let known = known_locked(postgres);
        sorted.iter().any(|key| known.contains(*key))
    };
    if has_known {
        leave_locked(postgres, &client, &mut sorted).await?;
    }
    let found = match client.query(&statement, &[&sorted, &postgres.owner, &span]).await {
        Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {
            leave_locked(postgres, &client, &mut sorted).await?;
            client.query(&statement, &[&sorted, &postgres.owner, &span]).await?
        }
        found => found?,
    };
    let mut ours = HashMap::with_capacity(found.len());
    let mut unreadable: Vec<&[u8]> = Vec::new();
    for columns in &found {
        let lease = Lease { fence: get(columns, 2)?, until: began + lease };
        let loaded = match Row::unpack(get(columns, 1)?) {
            Ok(row) => Loaded::Ours(Box::new(LoadedCustomer {
                row,
                lease: Some(lease),
                was_taken_over: get(columns, 3)?,
            })),
            Err(error) => {
                // Unless its last owner's call may still be under way: the next one must know that.
                let is_ours_alone = !get::<bool>(columns, 3)?;
                unreadable.extend(is_ours_alone.then_some(get::<&[u8]>(columns, 0)?));
                Loaded::Unreadable(error.to_string())
            }
        };
        ours.insert(key(columns, 0)?, loaded);
    }
    if !unreadable.is_empty() {
        let give_back = "UPDATE customers SET owner = NULL WHERE key = ANY ($1) AND owner = $2";
        client.execute(give_back, &[&unreadable, &postgres.owner]).await?;
    }
    Ok(keys.iter().map(|key| ours.get(key).cloned().unwrap_or(Loaded::Held)).collect())
}

pub(super) async fn commit(
    postgres: &Postgres,
    changes: &[Change],
) -> Result<Vec<Committed>, Fault> {
    let mut client = postgres.client().await?;
    let transaction = client.transaction().await?;
    match write_what_is_ours(postgres, &transaction, changes).await {
        Ok(ends) => transaction.commit().await.map(|()| ends).map_err(Fault::from),
        Err(fault) => {
            // Over before the next one begins: its locks would be taken for somebody else's.
            if let Err(error) = transaction.rollback().await {
                tracing::debug!(%error, "the connection was gone already");
            }
            Err(fault)
        }
    }
}

async fn write_what_is_ours(
    postgres: &Postgres,
    transaction: &Transaction<'_>,
    changes: &[Change],
) -> Result<Vec<Committed>, Fault> {
    let owned = lock_leases(postgres, transaction, changes).await?;
    let locked = locked_changes(postgres, transaction, changes, &owned).await?;
    if !locked.is_empty() {
        return Err(Fault::Locked(locked));
    }
    let is_lost = |change: &Change| {
        let Some((lease, key)) = change.lease.zip(change.customer) else { return false };
        owned.get(&key) != Some(&lease.fence)
    };
    let ends: Vec<Committed> = changes
        .iter()
        .map(|change| if is_lost(change) { Committed::LeaseLost } else { Committed::Done })
        .collect();
    let ended = changes.iter().zip(&ends);
    let done: Vec<&Change> =
        ended.filter(|(_, end)| **end == Committed::Done).map(|(change, _)| change).collect();
    write_changes(transaction, &done).await?;
    Ok(ends)
}

pub(super) async fn rehearse(postgres: &Postgres, change: &Change) -> Result<(), Fault> {
    let mut client = postgres.client().await?;
    let transaction = client.transaction().await?;
    if let Some(key) = &change.customer
        && (change.row.is_some() || change.lease.is_some())
    {
        let keys = [key.0.as_slice()];
        transaction.query(LEASE, &[&keys.as_slice(), &postgres.owner, &0.0_f64]).await?;
    }
    // Twice: a rule may be about rows that are there already.
    for _ in 0..2 {
        write_changes(&transaction, &[change]).await?;
    }
    Ok(transaction.rollback().await?)
}

fn known_locked(postgres: &Postgres) -> MutexGuard<'_, HashSet<Vec<u8>>> {
    // Nothing in it can be half done.
    postgres.locked.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Leaves out the customers whose rows somebody else has locked, by hand or asleep: he keeps those alone.
async fn leave_locked(
    postgres: &Postgres,
    client: &Client,
    keys: &mut Vec<&[u8]>,
) -> Result<(), Fault> {
    let known = "SELECT key FROM customers WHERE key = ANY ($1)";
    let known = client.query(known, &[&*keys]).await?;
    let free = "SELECT key FROM customers WHERE key = ANY ($1) FOR UPDATE SKIP LOCKED";
    let free = client.query(free, &[&*keys]).await?;
    let mut locked = HashSet::with_capacity(known.len());
    for columns in &known {
        locked.insert(get::<&[u8]>(columns, 0)?);
    }
    for columns in &free {
        locked.remove(get::<&[u8]>(columns, 0)?);
    }
    let mut remembered = known_locked(postgres);
    for key in &*keys {
        if !locked.contains(key) {
            remembered.remove(*key);
        } else if remembered.insert(key.to_vec()) {
            tracing::warn!(
                "another session of the database has locked a row of the ledger: its customer waits"
            );
        }
    }
    keys.retain(|key| !locked.contains(key));
    Ok(())
}

/// The changes under leases that are ours, whose rows somebody else has locked.
async fn locked_changes(
    postgres: &Postgres,
    transaction: &Transaction<'_>,
    changes: &[Change],
    owned: &HashMap<CustomerKey, i64>,
) -> Result<Vec<usize>, Fault> {
    let leases = changes.iter().map(|change| change.lease.zip(change.customer)).enumerate();
    let missing = leases.filter_map(|(index, leased)| Some((index, leased?)));
    let missing: Vec<(usize, (Lease, CustomerKey))> =
        missing.filter(|(_, (_, key))| !owned.contains_key(key)).collect();
    if missing.is_empty() {
        return Ok(Vec::new());
    }
    let keys: Vec<&[u8]> = missing.iter().map(|(_, (_, key))| key.0.as_slice()).collect();
    let select = "SELECT key, fence FROM customers WHERE key = ANY ($1) AND owner = $2";
    let found = transaction.query(select, &[&keys, &postgres.owner]).await?;
    let mut fences: HashMap<CustomerKey, i64> = HashMap::with_capacity(found.len());
    for columns in &found {
        fences.insert(key(columns, 0)?, get(columns, 1)?);
    }
    let is_ours = |(lease, key): &(Lease, CustomerKey)| fences.get(key) == Some(&lease.fence);
    Ok(missing.iter().filter(|(_, leased)| is_ours(leased)).map(|(index, _)| *index).collect())
}

/// The fencing numbers of the leases that are still ours, but for rows that somebody else has locked;
/// nobody takes one of them before the transaction ends.
async fn lock_leases(
    postgres: &Postgres,
    transaction: &Transaction<'_>,
    changes: &[Change],
) -> Result<HashMap<CustomerKey, i64>, Fault> {
    let leased = changes.iter().filter(|change| change.lease.is_some());
    let keys: Vec<&[u8]> =
        leased.filter_map(|change| change.customer.as_ref()).map(|key| key.0.as_slice()).collect();
    let select = "SELECT key, fence FROM customers WHERE key = ANY ($1) AND owner = $2
                  ORDER BY key FOR UPDATE SKIP LOCKED";
    let statement = transaction.prepare_cached(select).await?;
    let found = transaction.query(&statement, &[&keys, &postgres.owner]).await?;
    found.iter().map(|columns| Ok((key(columns, 0)?, get(columns, 1)?))).collect()
}

async fn write_changes(transaction: &Transaction<'_>, changes: &[&Change]) -> Result<(), Fault> {
    record(transaction, changes.iter().copied()).await?;
    for change in changes {
        for note in &change.notes {
            write_note(transaction, change.customer, note).await?;
        }
    }
    Ok(())
}

async fn record(
    transaction: &Transaction<'_>,
    changes: impl Iterator<Item = &Change>,
) -> Result<(), Fault> {
    let (mut keys, mut rows, mut seen) = (vec![], vec![], vec![]);
    let (mut keeps, mut tells_nothing) = (vec![], vec![]);
    for change in changes {
        if let Some(key) = &change.customer
            && (change.row.is_some() || change.lease.is_some())
        {
            keys.push(key.0.as_slice());
            rows.push(change.row.as_deref());
            seen.push(change.at.as_microsecond());
            keeps.push(change.keeps_lease);
            // A row has the mark of the call; where none can be written, the letter is all there is.
            let is_letter = change.notes.iter().any(|note| matches!(note, Note::Dead(_)));
            tells_nothing.push(change.row.is_none() && !is_letter);
        }
    }
    if !keys.is_empty() {
        let statement = transaction.prepare_cached(RECORD).await?;
        transaction.execute(&statement, &[&keys, &rows, &seen, &keeps, &tells_nothing]).await?;
    }
    Ok(())
}
