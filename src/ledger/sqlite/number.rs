//! How far a ledger file has come, and which events were in doubt since an older copy was put in place.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Row as Columns, params};

use super::super::change::DoubtNote;
use super::super::model::{CustomerKey, Doubted, Numbered};
use super::super::tables::DOUBTS;
use super::fault::Fault;
use super::rows::{number, readable, time};
use crate::domain::doubt::Gap;
use crate::domain::version::EventRef;

const SELECT: &str = "SELECT number, nullif(numbered_at, 0), gap_from, gap_until FROM about";

pub(super) fn load(connection: &Connection) -> Result<Numbered, Fault> {
    let found = connection.prepare_cached(SELECT)?.query_row([], numbered).optional()?;
    found.ok_or_else(|| Fault::Other("it has no id: it is no ledger yet".into()))
}

/// Raises the number, and joins a gap with the one there is.
pub(super) fn raise(
    writer: &mut Connection,
    gap: Option<Gap>,
    at_least: u64,
    at: Timestamp,
) -> Result<Numbered, Fault> {
    let transaction = writer.transaction()?;
    let at_least = i64::try_from(at_least).expect("it grows by one a minute");
    transaction.execute(
        "UPDATE about SET number = max(number, ?1) + 1, numbered_at = ?2",
        params![at_least, at.as_microsecond()],
    )?;
    if let Some(gap) = gap {
        let Gap { from, until } = gap.join(load(&transaction)?.gap);
        let values = params![from.as_microsecond(), until.as_microsecond()];
        transaction.execute("UPDATE about SET gap_from = ?1, gap_until = ?2", values)?;
    }
    let raised = load(&transaction)?;
    transaction.commit()?;
    Ok(raised)
}

pub(super) fn close_gap(writer: &Connection) -> Result<(), Fault> {
    writer.execute("UPDATE about SET gap_from = NULL, gap_until = NULL", [])?;
    Ok(())
}

pub(super) fn load_doubts(reader: &Connection) -> Result<Vec<Doubted>, Fault> {
    let mut select = reader.prepare(&DOUBTS.select("ORDER BY at"))?;
    readable("doubts", select.query_map([], doubt)?)
}

fn numbered(columns: &Columns<'_>) -> rusqlite::Result<Numbered> {
    let (from, until) = (optional_time(columns, 2)?, optional_time(columns, 3)?);
    let gap = from.zip(until).map(|(from, until)| Gap { from, until });
    Ok(Numbered {
        number: number(columns, 0)?,
        at: optional_time(columns, 1)?,
        gap,
        timeline: None,
    })
}

fn optional_time(columns: &Columns<'_>, index: usize) -> rusqlite::Result<Option<Timestamp>> {
    match columns.get::<_, Option<i64>>(index)? {
        Some(_) => time(columns, index).map(Some),
        None => Ok(None),
    }
}

fn doubt(columns: &Columns<'_>) -> rusqlite::Result<Doubted> {
    let event =
        EventRef { id: columns.get(1)?, source: columns.get(2)?, revision: columns.get(3)? };
    let note = DoubtNote { event, at: time(columns, 4)?, ended: columns.get(5)?, is_past: false };
    Ok((CustomerKey(columns.get(0)?), note))
}
