//! What operators and the relay ask of a server beside leases and commits.

use std::collections::HashMap;

use jiff::Timestamp;
use tokio_postgres::Row as Columns;
use uuid::Uuid;

use super::super::change::AuditEntry;
use super::super::model::{
    Account, Condition, Counts, CustomerKey, Indexed, Part, ReplayCount, nearest_time,
};
use super::super::tables::{self, AUDIT, DEAD, OUT_OF_STEP, PENDING, REPLAYS, REPLAYS_KEPT_US};
use super::Postgres;
use super::fault::Fault;
use super::number::load_doubts;
use super::rows::{
    all, audit, dead_letter, get, key, number, pending, readable, replay_end, stored_row, time,
    write_audit, write_dead_letter, write_doubt, write_pending, write_replay_end,
};
use crate::domain::packed::Unreadable;
use crate::domain::row::Row;

/// Rows handled at once where a whole table is gone through.
const PAGE: i64 = 1000;

pub(super) async fn load_account(
    postgres: &Postgres,
    wanted: CustomerKey,
) -> Result<Account, Fault> {
    let client = postgres.client().await?;
    let wanted = wanted.0.as_slice();
    let select = "SELECT row, seen FROM customers WHERE key = $1";
    let row = match client.query_opt(select, &[&wanted]).await? {
        Some(columns) => Some((Row::unpack(get(&columns, 0)?), nearest_time(get(&columns, 1)?))),
        None => None,
    };
    let counts = client.query_one(&tables::count_of_account('$'), &[&wanted]).await?;
    let (pending_in_all, dead_in_all) = (number(&counts, 0)?, number(&counts, 1)?);
    let waiting = client.query(&tables::newest_pending('$'), &[&wanted]).await?;
    let waiting = readable("pending", &waiting, pending).into_iter();
    let mut pending: Vec<_> = waiting.map(|(_, note)| note).collect();
    pending.sort_by_key(|note| note.due);
    let letters = client.query(&tables::newest_dead('$'), &[&wanted]).await?;
    let letters = readable("dead", &letters, dead_letter).into_iter();
    let dead = letters.rev().map(|(_, letter)| letter).collect();
    Ok(Account { row, pending, pending_in_all, dead, dead_in_all })
}

pub(super) async fn read_clock(postgres: &Postgres) -> Result<Timestamp, Fault> {
    let select = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
    time(&postgres.client().await?.query_one(select, &[]).await?, 0)
}

pub(super) async fn load_rows(
    postgres: &Postgres,
    keys: &[CustomerKey],
) -> Result<Vec<Result<Row, Unreadable>>, Fault> {
    let wanted: Vec<&[u8]> = keys.iter().map(|key| key.0.as_slice()).collect();
    let client = postgres.client().await?;
    let select = "SELECT key, row FROM customers WHERE key = ANY ($1)";
    let found = client.query(select, &[&wanted]).await?;
    let mut known = HashMap::with_capacity(found.len());
    for columns in &found {
        known.insert(key(columns, 0)?, Row::unpack(get(columns, 1)?));
    }
    let row = |key: &CustomerKey| known.get(key).cloned().unwrap_or_else(|| Ok(Row::default()));
    Ok(keys.iter().map(row).collect())
}

pub(super) async fn replace_unreadable(
    postgres: &Postgres,
    key: CustomerKey,
    row: &Row,
    at: Timestamp,
) -> Result<bool, Fault> {
    let mut client = postgres.client().await?;
    let transaction = client.transaction().await?;
    let key = key.0.as_slice();
    let select = "SELECT row FROM customers WHERE key = $1 FOR UPDATE";
    let found = transaction.query_opt(select, &[&key]).await?;
    let is_unreadable = match &found {
        Some(columns) => Row::unpack(get(columns, 0)?).is_err(),
        None => false,
    };
    if is_unreadable {
        let update = "UPDATE customers SET row = $2, seen = $3 WHERE key = $1";
        transaction.execute(update, &[&key, &row.pack(), &at.as_microsecond()]).await?;
    }
    transaction.commit().await?;
    Ok(is_unreadable)
}

pub(super) async fn erase_customer(
    postgres: &Postgres,
    key: CustomerKey,
    unless_due_after: Option<Timestamp>,
) -> Result<bool, Fault> {
    let mut client = postgres.client().await?;
    let transaction = client.transaction().await?;
    if let Some(time) = unless_due_after {
        let waits = "SELECT EXISTS (SELECT 1 FROM pending WHERE customer = $1 AND due > $2)";
        let after = time.as_microsecond();
        if get(&transaction.query_one(waits, &[&key.0.as_slice(), &after]).await?, 0)? {
            return Ok(false);
        }
    }
    for delete in [
        "DELETE FROM customers WHERE key = $1",
        "DELETE FROM pending WHERE customer = $1",
        "DELETE FROM dead WHERE customer = $1",
        "DELETE FROM doubts WHERE customer = $1",
    ] {
        transaction.execute(delete, &[&key.0.as_slice()]).await?;
    }
    transaction.commit().await?;
    Ok(true)
}

pub(super) async fn load_dead_letters(postgres: &Postgres) -> Result<Vec<Indexed>, Fault> {
    let client = postgres.client().await?;
    Ok(readable("dead", &client.query(&DEAD.select("ORDER BY died"), &[]).await?, dead_letter))
}

pub(super) async fn count_dead_letters(postgres: &Postgres) -> Result<u64, Fault> {
    number(&postgres.client().await?.query_one("SELECT count(*) FROM dead", &[]).await?, 0)
}

pub(super) async fn replace_dead_letters(
    postgres: &Postgres,
    found: &[Indexed],
    began: Timestamp,
) -> Result<(), Fault> {
    let mut client = postgres.client().await?;
    let transaction = client.transaction().await?;
    let delete = "DELETE FROM dead WHERE died < $1";
    transaction.execute(delete, &[&began.as_microsecond()]).await?;
    for (key, letter) in found {
        write_dead_letter(&transaction, *key, letter).await?;
    }
    Ok(transaction.commit().await?)
}

pub(super) async fn has_replay_ended(postgres: &Postgres, replay_id: Uuid) -> Result<bool, Fault> {
    let client = postgres.client().await?;
    let select = "SELECT 1 FROM replays WHERE replay_id = $1";
    Ok(client.query_opt(select, &[&replay_id.to_string()]).await?.is_some())
}

pub(super) async fn count_replays(
    postgres: &Postgres,
    beginning: &str,
) -> Result<Vec<ReplayCount>, Fault> {
    let client = postgres.client().await?;
    let select = "SELECT ended, reason, count(*) FROM replays WHERE starts_with(replay_id, $1)
                  GROUP BY ended, reason ORDER BY ended, reason";
    let count = |columns: &Columns| Ok((get(columns, 0)?, get(columns, 1)?, number(columns, 2)?));
    all(&client.query(select, &[&beginning]).await?, count)
}

pub(super) async fn append_audit(postgres: &Postgres, entry: &AuditEntry) -> Result<(), Fault> {
    write_audit(&postgres.client().await?, entry).await
}

pub(super) async fn load_audit(postgres: &Postgres, last: u32) -> Result<Vec<AuditEntry>, Fault> {
    let client = postgres.client().await?;
    let select = AUDIT.select("ORDER BY number DESC LIMIT $1");
    let mut entries = readable("audit", &client.query(&select, &[&i64::from(last)]).await?, audit);
    entries.reverse();
    Ok(entries)
}

pub(super) async fn inspect(postgres: &Postgres) -> Result<Condition, Fault> {
    let mut unreadable = Vec::new();
    let client = postgres.client().await?;
    let select = "SELECT key, row FROM customers WHERE key > $1 ORDER BY key LIMIT $2";
    let mut behind: Vec<u8> = Vec::new();
    loop {
        let page = client.query(select, &[&behind, &PAGE]).await?;
        let Some(last) = page.last() else { break };
        behind = get(last, 0)?;
        for columns in &page {
            // Whatever else stands there is no customer's: no event asks for it.
            if let Ok(key) = key(columns, 0)
                && Row::unpack(get(columns, 1)?).is_err()
            {
                unreadable.push(key);
            }
        }
    }
    Ok(Condition { counts: count(postgres).await?, faults: Vec::new(), unreadable })
}

pub(super) async fn count(postgres: &Postgres) -> Result<Counts, Fault> {
    let client = postgres.client().await?;
    let count = "SELECT (SELECT count(*) FROM customers), (SELECT count(*) FROM pending),
                        (SELECT count(*) FROM dead)";
    let counts = client.query_one(count, &[]).await?;
    let (customers, pending) = (number(&counts, 0)?, number(&counts, 1)?);
    Ok(Counts { customers, pending, dead: number(&counts, 2)? })
}

pub(super) async fn count_out_of_step(
    postgres: &Postgres,
) -> Result<(u64, Option<Timestamp>), Fault> {
    let found = postgres.client().await?.query_one(OUT_OF_STEP, &[]).await?;
    let since = match get::<Option<i64>>(&found, 1)? {
        Some(_) => Some(time(&found, 1)?),
        None => None,
    };
    Ok((number(&found, 0)?, since))
}

/// A relay that is paused holds no lease, but its connections tell.
pub(super) async fn find_other_users(postgres: &Postgres) -> Result<Option<String>, Fault> {
    let client = postgres.client().await?;
    let select = "SELECT (SELECT count(*) FROM customers
                          WHERE owner IS NOT NULL AND leased_until > clock_timestamp()),
                         (SELECT count(*) FROM pg_stat_activity
                          WHERE datname = current_database() AND pid <> pg_backend_pid()
                              AND application_name = current_setting('application_name'))";
    let found = client.query_one(select, &[]).await?;
    let (leases, connections): (u64, u64) = (number(&found, 0)?, number(&found, 1)?);
    Ok((leases + connections > 0).then(|| {
        format!("{leases} customers are leased, {connections} other connections are open")
    }))
}

pub(super) async fn sweep(
    postgres: &Postgres,
    limit: Option<Timestamp>,
    overdue: Timestamp,
) -> Result<u64, Fault> {
    let client = postgres.client().await?;
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
    let overdue = overdue.as_microsecond();
    client.execute("DELETE FROM pending WHERE due < $1", &[&overdue]).await?;
    let kept = overdue - REPLAYS_KEPT_US;
    client.execute("DELETE FROM replays WHERE at < $1", &[&kept]).await?;
    Ok(forgotten)
}

pub(super) async fn clear(postgres: &Postgres) -> Result<(), Fault> {
    let client = postgres.client().await?;
    Ok(client.batch_execute("TRUNCATE customers, pending, dead, replays, doubts").await?)
}

pub(super) async fn load_part(
    postgres: &Postgres,
    behind: Option<CustomerKey>,
) -> Result<Part, Fault> {
    let client = postgres.client().await?;
    let from = behind.map_or_else(Vec::new, |key| key.0.to_vec());
    let select = "SELECT key, row, seen FROM customers WHERE key > $1 AND length(key) = 16
                  ORDER BY key LIMIT $2";
    let customers = all(&client.query(select, &[&from, &PAGE]).await?, stored_row)?;
    let mut part = Part { customers, ..Part::default() };
    if behind.is_none() {
        let strange = client.query_one(tables::COUNT_STRANGE_KEYS, &[]).await?;
        tables::warn_of_strange_keys(number(&strange, 0)?);
        let found = client.query(&PENDING.select(""), &[]).await?;
        part.pending = readable("pending", &found, pending);
        part.dead = readable("dead", &client.query(&DEAD.select(""), &[]).await?, dead_letter);
        let found = client.query(&REPLAYS.select(""), &[]).await?;
        part.replays = readable("replays", &found, replay_end);
        let found = client.query(&AUDIT.select("ORDER BY number"), &[]).await?;
        part.audit = readable("audit", &found, audit);
        drop(client);
        part.doubts = load_doubts(postgres).await?;
    }
    Ok(part)
}

pub(super) async fn store_part(postgres: &Postgres, part: &Part) -> Result<(), Fault> {
    let mut client = postgres.client().await?;
    let transaction = client.transaction().await?;
    let keys: Vec<&[u8]> = part.customers.iter().map(|one| one.key.0.as_slice()).collect();
    let rows: Vec<&[u8]> = part.customers.iter().map(|one| one.row.as_slice()).collect();
    let seen: Vec<i64> = part.customers.iter().map(|one| one.seen).collect();
    let insert = "INSERT INTO customers (key, row, seen)
                  SELECT * FROM unnest($1::bytea[], $2::bytea[], $3::bigint[])
                  ON CONFLICT (key) DO UPDATE SET row = excluded.row, seen = excluded.seen";
    transaction.execute(insert, &[&keys, &rows, &seen]).await?;
    for (key, note) in &part.pending {
        write_pending(&transaction, *key, note).await?;
    }
    for (key, letter) in &part.dead {
        write_dead_letter(&transaction, *key, letter).await?;
    }
    for end in &part.replays {
        write_replay_end(&transaction, end).await?;
    }
    for (key, note) in &part.doubts {
        write_doubt(&transaction, *key, note).await?;
    }
    let has_audit = transaction.query_opt("SELECT 1 FROM audit LIMIT 1", &[]).await?.is_some();
    for entry in part.audit.iter().filter(|_| !has_audit) {
        write_audit(&transaction, entry).await?;
    }
    Ok(transaction.commit().await?)
}
