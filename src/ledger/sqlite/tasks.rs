//! What is asked of a ledger file, each as one transaction.

use jiff::Timestamp;
use rusqlite::{Connection, Row as Columns, TransactionBehavior, params};
use uuid::Uuid;

use super::super::change::{AuditEntry, Change, Committed};
use super::super::model::{
    About, Account, CustomerKey, Indexed, Loaded, LoadedCustomer, Part, ReplayCount, StoredRow,
};
use super::super::tables::{
    self, AUDIT, COUNT_STRANGE_KEYS, DEAD, PENDING, REPLAYS, REPLAYS_KEPT_US,
};
use super::fault::Fault;
use super::number::load_doubts;
use super::rows::{
    audit, dead_letter, load_row, number, pending, readable, replay_end, stored_row, write_audit,
    write_dead_letter, write_doubt, write_note, write_pending, write_replay_end, write_row,
};
use crate::domain::packed::Unreadable;
use crate::domain::row::Row;

/// Rows handled at once where a whole table is gone through.
pub(super) const PAGE: u16 = 1000;

pub(super) fn create_ledger(writer: &Connection, about: About) -> Result<About, Fault> {
    writer.execute(
        "INSERT INTO about (one, id, salt, created) VALUES (1, ?1, ?2, ?3)",
        params![about.id.to_string(), about.salt, about.created.as_microsecond()],
    )?;
    Ok(about)
}

pub(super) fn load_customers(
    writer: &Connection,
    keys: &[CustomerKey],
) -> Result<Vec<Loaded>, Fault> {
    let loaded = |row: Result<Row, Unreadable>| match row {
        Ok(row) => Loaded::Ours(Box::new(LoadedCustomer { row, ..LoadedCustomer::default() })),
        Err(error) => Loaded::Unreadable(error.to_string()),
    };
    Ok(load_rows(writer, keys)?.into_iter().map(loaded).collect())
}

pub(super) fn load_rows(
    connection: &Connection,
    keys: &[CustomerKey],
) -> Result<Vec<Result<Row, Unreadable>>, Fault> {
    let transaction = connection.unchecked_transaction()?;
    let row = |key: &CustomerKey| {
        Ok(load_row(&transaction, *key)?.map_or_else(|| Ok(Row::default()), |(row, _)| row))
    };
    keys.iter().map(row).collect()
}

pub(super) fn commit_changes(
    writer: &mut Connection,
    changes: &[Change],
) -> Result<Vec<Committed>, Fault> {
    let transaction = writer.transaction_with_behavior(TransactionBehavior::Immediate)?;
    write_changes(&transaction, changes)?;
    transaction.commit()?;
    Ok(vec![Committed::Done; changes.len()])
}

pub(super) fn rehearse(writer: &mut Connection, change: &Change) -> Result<(), Fault> {
    let transaction = writer.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Twice: a rule may be about rows that are there already.
    for _ in 0..2 {
        write_changes(&transaction, std::slice::from_ref(change))?;
    }
    Ok(transaction.rollback()?)
}

fn write_changes(transaction: &Connection, changes: &[Change]) -> Result<(), Fault> {
    for change in changes {
        if let (Some(key), Some(row)) = (change.customer, &change.row) {
            write_row(transaction, key, row, change.at.as_microsecond())?;
        }
        for note in &change.notes {
            write_note(transaction, change.customer, note)?;
        }
    }
    Ok(())
}

pub(super) fn load_account(reader: &Connection, key: CustomerKey) -> Result<Account, Fault> {
    let transaction = reader.unchecked_transaction()?;
    let row = load_row(&transaction, key)?;
    let counts = |columns: &Columns<'_>| Ok((number(columns, 0)?, number(columns, 1)?));
    let (pending_in_all, dead_in_all) =
        transaction.query_row(&tables::count_of_account('?'), params![key.0], counts)?;
    let mut select = transaction.prepare(&tables::newest_pending('?'))?;
    let waiting = select.query_map(params![key.0], pending)?;
    let mut pending = readable("pending", waiting.map(|found| found.map(|(_, note)| note)))?;
    pending.sort_by_key(|note| note.due);
    let mut select = transaction.prepare(&tables::newest_dead('?'))?;
    let letters = select.query_map(params![key.0], dead_letter)?;
    let mut dead = readable("dead", letters.map(|found| found.map(|(_, letter)| letter)))?;
    dead.reverse();
    Ok(Account { row, pending, pending_in_all, dead, dead_in_all })
}

pub(super) fn replace_unreadable(
    writer: &mut Connection,
    key: CustomerKey,
    row: &Row,
    at: Timestamp,
) -> Result<bool, Fault> {
    let transaction = writer.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let is_unreadable = matches!(load_row(&transaction, key)?, Some((Err(_), _)));
    if is_unreadable {
        let seen = at.as_microsecond();
        write_row(&transaction, key, &row.pack(), seen)?;
    }
    transaction.commit()?;
    Ok(is_unreadable)
}

pub(super) fn erase_customer(
    writer: &mut Connection,
    key: CustomerKey,
    unless_due_after: Option<Timestamp>,
) -> Result<bool, Fault> {
    let transaction = writer.transaction()?;
    if let Some(time) = unless_due_after {
        let waits = "SELECT EXISTS (SELECT 1 FROM pending WHERE customer = ?1 AND due > ?2)";
        let after = params![key.0, time.as_microsecond()];
        if transaction.query_row(waits, after, |columns| columns.get(0))? {
            return Ok(false);
        }
    }
    // What was erased must not be left in the file's free pages.
    transaction.pragma_update(None, "secure_delete", "ON")?;
    transaction.execute("DELETE FROM customers WHERE key = ?1", params![key.0])?;
    for table in ["pending", "dead", "doubts"] {
        transaction.execute(&format!("DELETE FROM {table} WHERE customer = ?1"), params![key.0])?;
    }
    transaction.commit()?;
    Ok(true)
}

pub(super) fn load_dead_letters(reader: &Connection) -> Result<Vec<Indexed>, Fault> {
    let mut select = reader.prepare(&DEAD.select("ORDER BY died"))?;
    readable("dead", select.query_map([], dead_letter)?)
}

pub(super) fn replace_dead_letters(
    writer: &mut Connection,
    found: &[Indexed],
    began: Timestamp,
) -> Result<(), Fault> {
    let transaction = writer.transaction()?;
    transaction.execute("DELETE FROM dead WHERE died < ?1", params![began.as_microsecond()])?;
    for (key, letter) in found {
        write_dead_letter(&transaction, *key, letter)?;
    }
    Ok(transaction.commit()?)
}

/// Asked by the relay for each replayed event: where it also writes.
pub(super) fn has_replay_ended(writer: &Connection, replay_id: Uuid) -> Result<bool, Fault> {
    let select = "SELECT 1 FROM replays WHERE replay_id = ?1";
    Ok(writer.prepare_cached(select)?.exists(params![replay_id.to_string()])?)
}

pub(super) fn count_replays(
    reader: &Connection,
    beginning: &str,
) -> Result<Vec<ReplayCount>, Fault> {
    let mut select = reader.prepare_cached(
        "SELECT ended, reason, count(*) FROM replays WHERE replay_id >= ?1 AND replay_id < ?1 || 'g'
         GROUP BY ended, reason ORDER BY ended, reason",
    )?;
    let counts = select
        .query_map(params![beginning], |row| Ok((row.get(0)?, row.get(1)?, number(row, 2)?)))?;
    Ok(counts.collect::<Result<_, _>>()?)
}

pub(super) fn load_audit(reader: &Connection, last: u32) -> Result<Vec<AuditEntry>, Fault> {
    let mut select = reader.prepare(&AUDIT.select("ORDER BY number DESC LIMIT ?1"))?;
    let mut entries = readable("audit", select.query_map(params![last], audit)?)?;
    entries.reverse();
    Ok(entries)
}

/// Of any type but a blob's, too.
fn count_strange_keys(reader: &Connection) -> Result<u64, Fault> {
    let count = format!("{COUNT_STRANGE_KEYS} OR typeof(key) <> 'blob'");
    Ok(reader.query_row(&count, [], |columns| number(columns, 0))?)
}

pub(super) fn find_unseen(
    reader: &Connection,
    limit: Timestamp,
) -> Result<Vec<CustomerKey>, Fault> {
    tables::warn_of_strange_keys(count_strange_keys(reader)?);
    let mut find = reader
        .prepare("SELECT key FROM customers WHERE seen < ?1 AND key > x'' AND length(key) = 16")?;
    let keys =
        find.query_map(params![limit.as_microsecond()], |row| Ok(CustomerKey(row.get(0)?)))?;
    Ok(keys.collect::<Result<_, _>>()?)
}

/// Forgets those that were not seen again meanwhile; how many.
pub(super) fn forget(
    writer: &mut Connection,
    keys: &[CustomerKey],
    limit: Timestamp,
) -> Result<u64, Fault> {
    let transaction = writer.transaction()?;
    let mut forgotten = 0;
    for key in keys {
        let delete = "DELETE FROM customers WHERE key = ?1 AND seen < ?2";
        let values = params![key.0, limit.as_microsecond()];
        forgotten += transaction.prepare_cached(delete)?.execute(values)? as u64;
    }
    transaction.commit()?;
    Ok(forgotten)
}

pub(super) fn sweep(writer: &mut Connection, overdue: Timestamp) -> Result<(), Fault> {
    let overdue = overdue.as_microsecond();
    writer.execute("DELETE FROM pending WHERE due < ?1", params![overdue])?;
    writer.execute("DELETE FROM replays WHERE at < ?1 - ?2", params![overdue, REPLAYS_KEPT_US])?;
    Ok(writer.execute_batch("PRAGMA incremental_vacuum(10000)")?)
}

pub(super) fn clear(writer: &mut Connection) -> Result<(), Fault> {
    let transaction = writer.transaction()?;
    for table in ["customers", "pending", "dead", "replays", "doubts"] {
        transaction.execute(&format!("DELETE FROM {table}"), [])?;
    }
    Ok(transaction.commit()?)
}

pub(super) fn load_part(reader: &Connection, behind: Option<CustomerKey>) -> Result<Part, Fault> {
    let transaction = reader.unchecked_transaction()?;
    let mut part = Part::default();
    let from = behind.map_or_else(Vec::new, |key| key.0.to_vec());
    let mut select = transaction
        // A key that is no blob comes before all that are.
        .prepare(
            "SELECT key, row, seen FROM customers WHERE key > ?1 AND length(key) = 16
             ORDER BY key LIMIT ?2",
        )?;
    let customers = select.query_map(params![from, PAGE], stored_row)?;
    part.customers = customers.collect::<Result<_, _>>()?;
    if behind.is_none() {
        tables::warn_of_strange_keys(count_strange_keys(&transaction)?);
        let mut select = transaction.prepare(&PENDING.select(""))?;
        part.pending = readable("pending", select.query_map([], pending)?)?;
        let mut select = transaction.prepare(&DEAD.select(""))?;
        part.dead = readable("dead", select.query_map([], dead_letter)?)?;
        let mut select = transaction.prepare(&REPLAYS.select(""))?;
        part.replays = readable("replays", select.query_map([], replay_end)?)?;
        let mut select = transaction.prepare(&AUDIT.select("ORDER BY number"))?;
        part.audit = readable("audit", select.query_map([], audit)?)?;
        part.doubts = load_doubts(&transaction)?;
    }
    Ok(part)
}

pub(super) fn store_part(writer: &mut Connection, part: &Part) -> Result<(), Fault> {
    let transaction = writer.transaction()?;
    for StoredRow { key, row, seen } in &part.customers {
        write_row(&transaction, *key, row, *seen)?;
    }
    for (key, note) in &part.pending {
        write_pending(&transaction, *key, note)?;
    }
    for (key, letter) in &part.dead {
        write_dead_letter(&transaction, *key, letter)?;
    }
    for end in &part.replays {
        write_replay_end(&transaction, end)?;
    }
    for (key, note) in &part.doubts {
        write_doubt(&transaction, *key, note)?;
    }
    let has_audit = transaction.prepare("SELECT 1 FROM audit")?.exists([])?;
    for entry in part.audit.iter().filter(|_| !has_audit) {
        write_audit(&transaction, entry)?;
    }
    Ok(transaction.commit()?)
}
