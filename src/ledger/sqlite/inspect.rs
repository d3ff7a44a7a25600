//! How a ledger file is: what it holds, and what is wrong with it.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use jiff::Timestamp;
use rusqlite::Connection;

use super::super::model::{Condition, Counts, CustomerKey};
use super::super::tables::OUT_OF_STEP;
use super::fault::Fault;
use super::rows::{number, seen_row, time};

pub(super) fn inspect(reader: &Connection, path: &Path) -> Result<Condition, Fault> {
    let mut faults = find_damage(reader)?;
    faults.extend(open_to_others(path));
    Ok(Condition { counts: count(reader)?, faults, unreadable: unreadable(reader)? })
}

/// What SQLite itself finds wrong.
pub(super) fn find_damage(reader: &Connection) -> Result<Vec<String>, Fault> {
    let mut check = reader.prepare("PRAGMA integrity_check(10)")?;
    let said = check.query_map([], |row| row.get::<_, String>(0))?;
    let said = said.collect::<Result<Vec<_>, _>>()?;
    Ok(said.into_iter().filter(|line| line != "ok").collect())
}

pub(super) fn count(reader: &Connection) -> Result<Counts, Fault> {
    let count = "SELECT (SELECT count(*) FROM customers), (SELECT count(*) FROM pending),
                        (SELECT count(*) FROM dead)";
    Ok(reader.query_row(count, [], |row| {
        Ok(Counts { customers: number(row, 0)?, pending: number(row, 1)?, dead: number(row, 2)? })
    })?)
}

pub(super) fn count_out_of_step(reader: &Connection) -> Result<(u64, Option<Timestamp>), Fault> {
    Ok(reader.query_row(OUT_OF_STEP, [], |row| {
        let customers = number(row, 0)?;
        let since = if customers > 0 && row.get::<_, Option<i64>>(1)?.is_some() {
            Some(time(row, 1)?)
        } else {
            None
        };
        Ok((customers, since))
    })?)
}

fn unreadable(reader: &Connection) -> Result<Vec<CustomerKey>, Fault> {
    let mut select = reader.prepare("SELECT key, row, seen FROM customers")?;
    let mut rows = select.query([])?;
    let mut found = Vec::new();
    while let Some(columns) = rows.next()? {
        let (row, _) = seen_row(columns, 1)?;
        // Whatever else stands there is no customer's: no event asks for it.
        if let (Ok(key), true) = (columns.get(0), row.is_err()) {
            found.push(CustomerKey(key));
        }
    }
    Ok(found)
}

/// A file that others may read, which it never is when we make it.
fn open_to_others(path: &Path) -> Option<String> {
    let mode = std::fs::metadata(path).ok()?.permissions().mode() & 0o777;
    (mode & 0o077 != 0).then(|| {
        let file = path.display();
        format!("{file} is open to other users (mode {mode:o}): chmod 600 {file}")
    })
}
