//! Rows of the tables, read and written.

use std::sync::LazyLock;

use jiff::Timestamp;
use rusqlite::types::Type;
use rusqlite::{Connection, Error, OptionalExtension as _, Row as Columns, params};

use super::super::change::{AuditEntry, DoubtNote, Note, PendingNote, ReplayEnd};
use super::super::model::{CustomerKey, Indexed, SeenRow, StoredRow, nearest_time, time_of};
use super::super::tables;
use super::fault::Fault;
use crate::clock;
use crate::domain::dead_letter::Reason;
use crate::domain::letter::Letter;
use crate::domain::packed::Unreadable;
use crate::domain::row::Row;
use crate::domain::version::EventRef;

/// Bytes that are no customer's row.
const NO_ROW: &[u8] = &[0];

/// A customer's row, and when it was last written.
pub(super) fn load_row(
    connection: &Connection,
    key: CustomerKey,
) -> Result<Option<SeenRow>, Fault> {
    let mut select = connection.prepare_cached("SELECT row, seen FROM customers WHERE key = ?1")?;
    Ok(select.query_row(params![key.0], |columns| seen_row(columns, 0)).optional()?)
}

/// A customer's row from this column, and when it was last written, from the next.
pub(super) fn seen_row(columns: &Columns<'_>, index: usize) -> rusqlite::Result<SeenRow> {
    // Whatever else stands there is not what we write.
    let row = columns.get_ref(index)?.as_blob().map_err(|_| Unreadable::Damaged);
    let row = row.and_then(Row::unpack);
    Ok(match columns.get_ref(index + 1)?.as_i64() {
        Ok(seen) => (row, nearest_time(seen)),
        Err(_) => (Err(Unreadable::Damaged), Timestamp::UNIX_EPOCH),
    })
}

/// A row to be carried over as it is. What cannot be read there cannot be read in the copy either, so
/// that its customer's events wait there too; only a time of writing that is none is today's.
pub(super) fn stored_row(columns: &Columns<'_>) -> rusqlite::Result<StoredRow> {
    let key = CustomerKey(columns.get(0)?);
    let (row, seen) = (columns.get_ref(1)?.as_blob(), columns.get_ref(2)?.as_i64());
    if row.is_err() || seen.is_err() {
        tables::warn_of_damaged_customer(key);
    }
    Ok(StoredRow {
        key,
        row: row.map_or_else(|_| NO_ROW.to_vec(), <[u8]>::to_vec),
        seen: seen.unwrap_or_else(|_| clock::now().as_microsecond()),
    })
}

pub(super) fn write_row(
    connection: &Connection,
    key: CustomerKey,
    row: &[u8],
    seen: i64,
) -> Result<(), Fault> {
    let upsert = "INSERT INTO customers (key, row, seen) VALUES (?1, ?2, ?3)
                  ON CONFLICT (key) DO UPDATE SET row = excluded.row, seen = excluded.seen";
    connection.prepare_cached(upsert)?.execute(params![key.0, row, seen])?;
    Ok(())
}

pub(super) fn write_note(
    connection: &Connection,
    customer: Option<CustomerKey>,
    note: &Note,
) -> Result<(), Fault> {
    match note {
        Note::Settled { event: EventRef { id, source, revision } } => {
            // A relay of version 0.1 knew neither source nor revision, nor told the tier.
            let delete = "DELETE FROM pending WHERE customer = ?1 AND event = ?2
                          AND (source = ?3 AND revision = ?4 OR tier_ms IS NULL)";
            let values = params![customer.map(|key| key.0), id, source, revision];
            connection.prepare_cached(delete)?.execute(values)?;
        }
        Note::Pending(note) => {
            let customer = customer.expect("only a customer's event waits in the ledger");
            write_pending(connection, customer, note)?;
        }
        Note::Dead(letter) => write_dead_letter(connection, customer, letter)?,
        Note::Gone { dead_id } => {
            let delete = "DELETE FROM dead WHERE dead_id = ?1";
            connection.prepare_cached(delete)?.execute(params![dead_id.to_string()])?;
        }
        Note::Replayed(end) => write_replay_end(connection, end)?,
        Note::Doubted(note) => {
            let customer = customer.expect("only a customer's event is in doubt");
            write_doubt(connection, customer, note)?;
        }
    }
    Ok(())
}

pub(super) fn write_doubt(
    connection: &Connection,
    customer: CustomerKey,
    note: &DoubtNote,
) -> Result<(), Fault> {
    static UPSERT: LazyLock<String> = LazyLock::new(|| tables::DOUBTS.upsert('?'));
    const UPDATE: &str = "UPDATE doubts SET at = ?5, ended = ?6
        WHERE customer = ?1 AND event = ?2 AND source = ?3 AND revision = ?4";
    let DoubtNote { event: EventRef { id, source, revision }, at, ended, is_past } = note;
    let values = params![customer.0, id, source, revision, at.as_microsecond(), ended];
    let statement = if *is_past { UPDATE } else { &UPSERT };
    connection.prepare_cached(statement)?.execute(values)?;
    Ok(())
}

pub(super) fn write_pending(
    connection: &Connection,
    customer: CustomerKey,
    note: &PendingNote,
) -> Result<(), Fault> {
    static UPSERT: LazyLock<String> = LazyLock::new(|| tables::PENDING.upsert('?'));
    let PendingNote { event, attempts, since, due, reason, tier_ms } = note;
    let EventRef { id, source, revision } = event;
    if tier_ms.is_some() {
        // What a relay of version 0.1 wrote of it, which knew neither source nor revision.
        let adopt = "UPDATE pending SET source = ?3, revision = ?4
                     WHERE customer = ?1 AND event = ?2 AND tier_ms IS NULL";
        let values = params![customer.0, id, source, revision];
        connection.prepare_cached(adopt)?.execute(values)?;
    }
    let (since, due) = (since.as_microsecond(), due.as_microsecond());
    let values = params![customer.0, id, source, revision, attempts, since, due, tier_ms, reason];
    connection.prepare_cached(&UPSERT)?.execute(values)?;
    Ok(())
}

pub(super) fn write_dead_letter(
    connection: &Connection,
    customer: Option<CustomerKey>,
    letter: &Letter,
) -> Result<(), Fault> {
    static UPSERT: LazyLock<String> = LazyLock::new(|| tables::DEAD.upsert('?'));
    connection.prepare_cached(&UPSERT)?.execute(params![
        letter.id.to_string(),
        customer.map(|key| key.0),
        letter.event,
        letter.reason.name(),
        letter.field,
        letter.rule,
        letter.http_status,
        letter.portal_status,
        letter.attempts,
        letter.died.map_or(0, Timestamp::as_microsecond),
        letter.detail,
        letter.flags,
        letter.replays,
        letter.revision,
        letter.fingerprint()
    ])?;
    Ok(())
}

pub(super) fn write_replay_end(connection: &Connection, end: &ReplayEnd) -> Result<(), Fault> {
    static UPSERT: LazyLock<String> = LazyLock::new(|| tables::REPLAYS.upsert('?'));
    let ReplayEnd { replay_id, ended, reason, at } = end;
    let values = params![replay_id.to_string(), ended, reason, at.as_microsecond()];
    connection.prepare_cached(&UPSERT)?.execute(values)?;
    Ok(())
}

pub(super) fn write_audit(connection: &Connection, entry: &AuditEntry) -> Result<(), Fault> {
    static INSERT: LazyLock<String> = LazyLock::new(|| tables::AUDIT.upsert('?'));
    let AuditEntry { at, who, act, what, why, count } = entry;
    let count = i64::try_from(*count).expect("nobody acts on 2^63 letters");
    let values = params![at.as_microsecond(), who, act, what, why, count];
    connection.prepare_cached(&INSERT)?.execute(values)?;
    Ok(())
}

pub(super) fn pending(columns: &Columns<'_>) -> rusqlite::Result<(CustomerKey, PendingNote)> {
    let note = PendingNote {
        event: EventRef { id: columns.get(1)?, source: columns.get(2)?, revision: columns.get(3)? },
        attempts: columns.get(4)?,
        since: time(columns, 5)?,
        due: time(columns, 6)?,
        tier_ms: columns.get(7)?,
        reason: columns.get(8)?,
    };
    Ok((CustomerKey(columns.get(0)?), note))
}

pub(super) fn dead_letter(columns: &Columns<'_>) -> rusqlite::Result<Indexed> {
    let reason: String = columns.get(3)?;
    let letter = Letter {
        id: parsed(columns, 0)?,
        event: columns.get(2)?,
        // A newer relay's.
        reason: Reason::parse(&reason).unwrap_or(Reason::Foreign),
        field: columns.get(4)?,
        rule: columns.get(5)?,
        http_status: columns.get(6)?,
        portal_status: columns.get(7)?,
        attempts: columns.get(8)?,
        died: if columns.get::<_, i64>(9)? > 0 { Some(time(columns, 9)?) } else { None },
        detail: columns.get(10)?,
        flags: columns.get(11)?,
        replays: columns.get(12)?,
        revision: columns.get(13)?,
    };
    Ok((columns.get::<_, Option<[u8; 16]>>(1)?.map(CustomerKey), letter))
}

pub(super) fn replay_end(columns: &Columns<'_>) -> rusqlite::Result<ReplayEnd> {
    Ok(ReplayEnd {
        replay_id: parsed(columns, 0)?,
        ended: columns.get(1)?,
        reason: columns.get(2)?,
        at: time(columns, 3)?,
    })
}

pub(super) fn audit(columns: &Columns<'_>) -> rusqlite::Result<AuditEntry> {
    Ok(AuditEntry {
        at: time(columns, 0)?,
        who: columns.get(1)?,
        act: columns.get(2)?,
        what: columns.get(3)?,
        why: columns.get(4)?,
        count: number(columns, 5)?,
    })
}

/// All that can be read. A row that somebody has damaged is left out, and said: the index is made anew
/// from the queue, and an event that waits comes back by itself.
pub(super) fn readable<T>(
    table: &'static str,
    rows: impl Iterator<Item = rusqlite::Result<T>>,
) -> Result<Vec<T>, Fault> {
    let mut all = Vec::new();
    for row in rows {
        match row {
            Ok(row) => all.push(row),
            Err(
                error @ (Error::FromSqlConversionFailure(..)
                | Error::IntegralValueOutOfRange(..)
                | Error::InvalidColumnType(..)
                | Error::Utf8Error(..)),
            ) => tables::warn_of_damage(table, &error),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(all)
}

/// Microseconds since 1970.
pub(super) fn time(columns: &Columns<'_>, index: usize) -> rusqlite::Result<Timestamp> {
    let microseconds: i64 = columns.get(index)?;
    time_of(microseconds).ok_or(Error::IntegralValueOutOfRange(index, microseconds))
}

/// What is counted, which is never below 0.
pub(super) fn number(columns: &Columns<'_>, index: usize) -> rusqlite::Result<u64> {
    let number: i64 = columns.get(index)?;
    u64::try_from(number).map_err(|_| Error::IntegralValueOutOfRange(index, number))
}

fn parsed<T>(columns: &Columns<'_>, index: usize) -> rusqlite::Result<T>
where
    T: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    let text: String = columns.get(index)?;
    text.parse().map_err(|error| {
        Error::FromSqlConversionFailure(
            index,
            Type::Text,
            Box::<dyn std::error::Error + Send + Sync>::from(error),
        )
    })
}
