//! Rows of the tables, read and written.

use std::sync::LazyLock;

use deadpool_postgres::{GenericClient, Transaction};
use jiff::Timestamp;
use tokio_postgres::Row as Columns;
use tokio_postgres::types::{FromSql, ToSql};

use super::super::change::{AuditEntry, DoubtNote, Note, PendingNote, ReplayEnd};
use super::super::error::LedgerError;
use super::super::model::{CustomerKey, Indexed, StoredRow, time_of};
use super::super::tables;
use super::fault::Fault;
use crate::domain::dead_letter::Reason;
use crate::domain::letter::Letter;
use crate::domain::version::EventRef;

pub(super) async fn write_note(
    transaction: &Transaction<'_>,
    customer: Option<CustomerKey>,
    note: &Note,
) -> Result<(), Fault> {
    match note {
        Note::Settled { event: EventRef { id, source, revision } } => {
            // A relay of version 0.1 knew neither source nor revision, nor told the tier.
            let delete = "DELETE FROM pending WHERE customer = $1 AND event = $2
                          AND (source = $3 AND revision = $4 OR tier_ms IS NULL)";
            let key = customer.as_ref().map(|key| key.0.as_slice());
            let (source, revision) = (i64::from(*source), i64::from(*revision));
            let statement = transaction.prepare_cached(delete).await?;
            transaction.execute(&statement, &[&key, id, &source, &revision]).await?;
        }
        Note::Pending(note) => {
            let customer = customer.expect("only a customer's event waits in the ledger");
            write_pending(transaction, customer, note).await?;
        }
        Note::Dead(letter) => write_dead_letter(transaction, customer, letter).await?,
        Note::Gone { dead_id } => {
            let statement =
                transaction.prepare_cached("DELETE FROM dead WHERE dead_id = $1").await?;
            transaction.execute(&statement, &[&dead_id.to_string()]).await?;
        }
        Note::Replayed(end) => write_replay_end(transaction, end).await?,
        Note::Doubted(note) => {
            let customer = customer.expect("only a customer's event is in doubt");
            write_doubt(transaction, customer, note).await?;
        }
    }
    Ok(())
}

pub(super) async fn write_doubt(
    transaction: &Transaction<'_>,
    customer: CustomerKey,
    note: &DoubtNote,
) -> Result<(), Fault> {
    static UPSERT: LazyLock<String> = LazyLock::new(|| tables::DOUBTS.upsert('$'));
    const UPDATE: &str = "UPDATE doubts SET at = $5, ended = $6
        WHERE customer = $1 AND event = $2 AND source = $3 AND revision = $4";
    let DoubtNote { event, at, ended, is_past } = note;
    let (source, revision) = (i64::from(event.source), i64::from(event.revision));
    let (key, at) = (customer.0.as_slice(), at.as_microsecond());
    let values: [&(dyn ToSql + Sync); 6] = [&key, &event.id, &source, &revision, &at, ended];
    let statement = if *is_past { UPDATE } else { &UPSERT };
    let statement = transaction.prepare_cached(statement).await?;
    transaction.execute(&statement, &values).await?;
    Ok(())
}

pub(super) async fn write_pending(
    transaction: &Transaction<'_>,
    customer: CustomerKey,
    note: &PendingNote,
) -> Result<(), Fault> {
    static UPSERT: LazyLock<String> = LazyLock::new(|| tables::PENDING.upsert('$'));
    let PendingNote { event, attempts, since, due, reason, tier_ms } = note;
    let [source, revision, attempts] = [event.source, event.revision, *attempts].map(i64::from);
    let (since, due) = (since.as_microsecond(), due.as_microsecond());
    let (key, tier_ms) = (customer.0.as_slice(), tier_ms.map(i64::from));
    if tier_ms.is_some() {
        // What a relay of version 0.1 wrote of it, which knew neither source nor revision.
        let adopt = "UPDATE pending SET source = $3, revision = $4
                     WHERE customer = $1 AND event = $2 AND tier_ms IS NULL";
        let statement = transaction.prepare_cached(adopt).await?;
        transaction.execute(&statement, &[&key, &event.id, &source, &revision]).await?;
    }
    let values: [&(dyn ToSql + Sync); 9] =
        [&key, &event.id, &source, &revision, &attempts, &since, &due, &tier_ms, reason];
    let statement = transaction.prepare_cached(&UPSERT).await?;
    transaction.execute(&statement, &values).await?;
    Ok(())
}

pub(super) async fn write_dead_letter(
    transaction: &Transaction<'_>,
    customer: Option<CustomerKey>,
    letter: &Letter,
) -> Result<(), Fault> {
    static UPSERT: LazyLock<String> = LazyLock::new(|| tables::DEAD.upsert('$'));
    let statement = transaction.prepare_cached(&UPSERT).await?;
    let key = customer.as_ref().map(|key| key.0.as_slice());
    let [attempts, replays, revision] =
        [letter.attempts, letter.replays, letter.revision].map(i64::from);
    let values: [&(dyn ToSql + Sync); 15] = [
        &letter.id.to_string(),
        &key,
        &letter.event,
        &letter.reason.name(),
        &letter.field,
        &letter.rule,
        &letter.http_status.map(i64::from),
        &letter.portal_status,
        &attempts,
        &letter.died.map_or(0, Timestamp::as_microsecond),
        &letter.detail,
        &letter.flags,
        &replays,
        &revision,
        &letter.fingerprint(),
    ];
    transaction.execute(&statement, &values).await?;
    Ok(())
}

pub(super) async fn write_replay_end(
    transaction: &Transaction<'_>,
    end: &ReplayEnd,
) -> Result<(), Fault> {
    static UPSERT: LazyLock<String> = LazyLock::new(|| tables::REPLAYS.upsert('$'));
    let ReplayEnd { replay_id, ended, reason, at } = end;
    let statement = transaction.prepare_cached(&UPSERT).await?;
    let (replay_id, at) = (replay_id.to_string(), at.as_microsecond());
    transaction.execute(&statement, &[&replay_id, ended, reason, &at]).await?;
    Ok(())
}

pub(super) async fn write_audit(
    client: &impl GenericClient,
    entry: &AuditEntry,
) -> Result<(), Fault> {
    static INSERT: LazyLock<String> = LazyLock::new(|| tables::AUDIT.upsert('$'));
    let AuditEntry { at, who, act, what, why, count } = entry;
    let count = i64::try_from(*count).expect("nobody acts on 2^63 letters");
    client.execute(&*INSERT, &[&at.as_microsecond(), who, act, what, why, &count]).await?;
    Ok(())
}

pub(super) fn pending(columns: &Columns) -> Result<(CustomerKey, PendingNote), Fault> {
    let note = PendingNote {
        event: EventRef {
            id: get(columns, 1)?,
            source: number(columns, 2)?,
            revision: number(columns, 3)?,
        },
        attempts: number(columns, 4)?,
        since: time(columns, 5)?,
        due: time(columns, 6)?,
        tier_ms: optional_number(columns, 7)?,
        reason: get(columns, 8)?,
    };
    Ok((key(columns, 0)?, note))
}

pub(super) fn dead_letter(columns: &Columns) -> Result<Indexed, Fault> {
    let letter = Letter {
        id: parsed(columns, 0)?,
        event: get(columns, 2)?,
        // A newer relay's.
        reason: Reason::parse(get(columns, 3)?).unwrap_or(Reason::Foreign),
        field: get(columns, 4)?,
        rule: get(columns, 5)?,
        http_status: optional_number(columns, 6)?,
        portal_status: get(columns, 7)?,
        attempts: number(columns, 8)?,
        died: if get::<i64>(columns, 9)? > 0 { Some(time(columns, 9)?) } else { None },
        detail: get(columns, 10)?,
        flags: get(columns, 11)?,
        replays: number(columns, 12)?,
        revision: number(columns, 13)?,
    };
    let customer = get::<Option<&[u8]>>(columns, 1)?.map(|bytes| key_of(columns, bytes));
    Ok((customer.transpose()?, letter))
}

pub(super) fn replay_end(columns: &Columns) -> Result<ReplayEnd, Fault> {
    Ok(ReplayEnd {
        replay_id: parsed(columns, 0)?,
        ended: get(columns, 1)?,
        reason: get(columns, 2)?,
        at: time(columns, 3)?,
    })
}

pub(super) fn audit(columns: &Columns) -> Result<AuditEntry, Fault> {
    Ok(AuditEntry {
        at: time(columns, 0)?,
        who: get(columns, 1)?,
        act: get(columns, 2)?,
        what: get(columns, 3)?,
        why: get(columns, 4)?,
        count: number(columns, 5)?,
    })
}

pub(super) fn stored_row(columns: &Columns) -> Result<StoredRow, Fault> {
    Ok(StoredRow { key: key(columns, 0)?, row: get(columns, 1)?, seen: get(columns, 2)? })
}

/// All rows of an answer that can be read. A row that somebody has damaged is left out, and said: the
/// index is made anew from the queue, and an event that waits comes back by itself.
pub(super) fn readable<T>(
    table: &'static str,
    found: &[Columns],
    read: impl Fn(&Columns) -> Result<T, Fault>,
) -> Vec<T> {
    let warn = |fault| tables::warn_of_damage(table, &LedgerError::from(fault));
    found.iter().filter_map(|columns| read(columns).map_err(warn).ok()).collect()
}

/// Every row of an answer, in the same order.
pub(super) fn all<T>(
    found: &[Columns],
    read: impl Fn(&Columns) -> Result<T, Fault>,
) -> Result<Vec<T>, Fault> {
    found.iter().map(read).collect()
}

pub(super) fn get<'a, T: FromSql<'a>>(columns: &'a Columns, index: usize) -> Result<T, Fault> {
    Ok(columns.try_get(index)?)
}

pub(super) fn key(columns: &Columns, index: usize) -> Result<CustomerKey, Fault> {
    key_of(columns, get(columns, index)?)
}

fn key_of(columns: &Columns, bytes: &[u8]) -> Result<CustomerKey, Fault> {
    bytes.try_into().map(CustomerKey).map_err(|_| damaged(columns, 0, "no customer's key"))
}

/// Microseconds since 1970.
pub(super) fn time(columns: &Columns, index: usize) -> Result<Timestamp, Fault> {
    time_of(get(columns, index)?).ok_or_else(|| damaged(columns, index, "no time"))
}

/// A number that is never below 0, and has the size that we wrote.
pub(super) fn number<T: TryFrom<i64>>(columns: &Columns, index: usize) -> Result<T, Fault> {
    T::try_from(get(columns, index)?).map_err(|_| damaged(columns, index, "out of bounds"))
}

fn optional_number<T: TryFrom<i64>>(columns: &Columns, index: usize) -> Result<Option<T>, Fault> {
    match get::<Option<i64>>(columns, index)? {
        Some(_) => number(columns, index).map(Some),
        None => Ok(None),
    }
}

fn parsed<T: std::str::FromStr>(columns: &Columns, index: usize) -> Result<T, Fault> {
    get::<&str>(columns, index)?.parse().map_err(|_| damaged(columns, index, "not an id"))
}

fn damaged(columns: &Columns, index: usize, problem: &str) -> Fault {
    let name = columns.columns()[index].name();
    Fault::Other(format!("the column {name} holds what no relay writes: {problem}"))
}
