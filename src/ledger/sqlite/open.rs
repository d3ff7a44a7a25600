//! A ledger file is made, locked and opened; its tables are brought up to date.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension as _, params};

use super::super::change::Note;
use super::super::error::LedgerError;
use super::super::model::About;
use super::super::tables::{ANOTHER_VERSION, NEWER_VERSION, PENDING, PLAIN_SINCE};
use super::fault::{Fault, broken};
use super::rows::{pending, readable, time, write_note, write_pending};

/// Another process that holds the file is waited for.
pub(super) const BUSY_LIMIT: Duration = Duration::from_secs(5);
/// The log of changes is written back into the file when it has so many pages.
const CHECKPOINT_PAGES: i64 = 2000;
/// Pages kept in memory, in KiB: SQLite counts those below zero.
const CACHE_KIB: i64 = -8192;

/// The steps that lead to today's tables; `user_version` counts those that were taken.
pub(super) const STEPS: [&str; 4] = [
    include_str!("steps/1.sql"),
    include_str!("steps/2.sql"),
    include_str!("steps/3.sql"),
    include_str!("steps/4.sql"),
];

/// For the one relay that works on it: made if it is not there, for nobody else to read. The lock
/// is held as long as the file returned.
pub(super) fn to_work(path: &Path) -> Result<(Connection, File), LedgerError> {
    make_directory(path)?;
    let lock = lock(path)?;
    let mut file = OpenOptions::new();
    file.read(true).write(true).create(true).truncate(false).mode(0o600);
    file.open(path).map_err(|error| {
        broken(
            path,
            &format!("cannot be opened: {error}. May this user write there? Or set ledger.url"),
        )
    })?;
    Ok((writer(path).map_err(|fault| fault.explained(path))?, lock))
}

/// Beside a relay at work.
pub(super) fn to_visit(path: &Path) -> Result<Connection, LedgerError> {
    match path.try_exists() {
        Ok(true) => writer(path).map_err(|fault| fault.explained(path)),
        Ok(false) => Err(LedgerError::Missing(format!(
            "no file {}; `customer-relay run` makes it; is ledger.url right?",
            path.display()
        ))),
        Err(error) => Err(broken(path, &error.to_string())),
    }
}

fn writer(path: &Path) -> Result<Connection, Fault> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_LIMIT)?;
    // Before the first table. A commit writes whole pages, most often for one row of each: small
    // ones, but not so small that many a row splits one.
    connection.pragma_update(None, "page_size", 2048)?;
    // Pages that become free can be given back.
    connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // A commit is on the disk before it is one.
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
    connection.pragma_update(None, "cache_size", CACHE_KIB)?;
    Ok(connection)
}

/// For operators' questions, beside the one that writes: they wait for no commit, and no commit
/// for them.
pub(super) fn reader(path: &Path) -> Result<Connection, Fault> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_LIMIT)?;
    Ok(connection)
}

/// Takes the steps that were not taken yet.
pub(super) fn create_tables(writer: &mut Connection) -> Result<Option<About>, Fault> {
    let transaction = writer.transaction()?;
    let taken = steps_taken(&transaction)?;
    let Some(steps) = STEPS.get(taken..) else {
        return Err(Fault::Other(NEWER_VERSION.into()));
    };
    for step in steps {
        transaction.execute_batch(step)?;
    }
    if taken < PLAIN_SINCE {
        make_pending_plain(&transaction)?;
    }
    if !steps.is_empty() {
        let taken = i64::try_from(STEPS.len()).expect("a handful of steps");
        transaction.pragma_update(None, "user_version", taken)?;
    }
    let about = about(&transaction)?;
    transaction.commit()?;
    Ok(about)
}

/// Events that wait are found by their ids, which an older relay wrote as they came.
fn make_pending_plain(transaction: &Connection) -> Result<(), Fault> {
    let mut select = transaction.prepare(&PENDING.select(""))?;
    let waiting = readable("pending", select.query_map([], pending)?)?;
    for (customer, note) in waiting {
        let mut plain = note.clone();
        plain.make_plain();
        if plain != note {
            write_note(transaction, Some(customer), &Note::Settled { event: note.event })?;
            write_pending(transaction, customer, &plain)?;
        }
    }
    Ok(())
}

/// What the ledger is, if its tables are today's.
pub(super) fn load_about(connection: &Connection) -> Result<Option<About>, Fault> {
    let taken = steps_taken(connection)?;
    if taken != STEPS.len() {
        return Err(Fault::Other(ANOTHER_VERSION.into()));
    }
    about(connection)
}

pub(super) fn steps_taken(connection: &Connection) -> Result<usize, Fault> {
    let taken: u32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    Ok(usize::try_from(taken).expect("32 bits fit"))
}

fn about(connection: &Connection) -> Result<Option<About>, Fault> {
    let found = connection
        .query_row("SELECT id, salt, created FROM about", params![], |row| {
            Ok((row.get::<_, String>(0)?, row.get(1)?, time(row, 2)?))
        })
        .optional()?;
    let Some((id, salt, created)) = found else { return Ok(None) };
    let id = id.parse().map_err(|_| Fault::Other("its id is damaged".into()))?;
    Ok(Some(About { id, salt, created }))
}

pub(super) fn make_directory(path: &Path) -> Result<(), LedgerError> {
    let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty())
    else {
        return Ok(());
    };
    let mut private = std::fs::DirBuilder::new();
    private.recursive(true).mode(0o700).create(directory).map_err(|error| {
        LedgerError::Broken(format!(
            "the directory {} cannot be made ({error}): make it and give it to this user, or set \
             ledger.url to another place",
            directory.display()
        ))
    })
}

/// Freed by the kernel when the process ends, however it ends.
pub(super) fn lock(path: &Path) -> Result<File, LedgerError> {
    let beside = path.with_added_extension("lock");
    let failed = |error: std::io::Error| {
        broken(&beside, &format!("cannot be locked: {error}. May this user write there?"))
    };
    let mut options = OpenOptions::new();
    let opened =
        options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&beside);
    let mut file = opened.map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let holder = std::fs::read_to_string(&beside).map_err(failed)?;
            return Err(LedgerError::InUse(format!(
                "process {} holds {}",
                holder.trim(),
                beside.display()
            )));
        }
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    }
    // For people who wonder who it is.
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(failed)?;
    Ok(file)
}
