//! The ledger in a file, and a lock beside it that keeps other relays of this host out. The only
//! file that knows `rusqlite`.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Row as Columns, params};

use super::schema;
use uuid::Uuid;

use super::store::{Account, Condition, Indexed, Part, ReplayCount, Stored};
use super::{
    About, Act, Change, Committed, CustomerKey, LedgerError, Note, Opened, Opening, PendingNote,
    ReplayEnd,
};
use crate::domain::dead_letter::Reason;
use crate::domain::letter::Letter;
use crate::domain::row::{Row, Unreadable};

/// Another process that holds the file is waited for.
const BUSY_LIMIT: Duration = Duration::from_secs(5);
/// The log of changes is written back into the file when it has so many pages.
const CHECKPOINT_PAGES: i64 = 2000;
/// Pages kept in memory, in KiB: SQLite counts those below zero.
const CACHE_KIB: i64 = -8192;
/// Replays are remembered so much longer than retries that are overdue, in microseconds: 30 days.
const REPLAYS_KEPT: i64 = 30 * 24 * 3600 * 1_000_000;
/// Rows handled at once where a whole table is gone through.
const PAGE: u16 = 1000;

/// A ledger file, open.
#[derive(Debug)]
pub struct Sqlite {
    path: PathBuf,
    /// One for reading and writing: what it has written it need not read again.
    connection: Mutex<Connection>,
    /// Held as long as the process lives, by whoever works on the ledger.
    _lock: Option<File>,
}

/// What SQLite says is wrong.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    #[error("{0}")]
    Other(String),
}

impl Fault {
    /// In words that name the file and a way out.
    pub(super) fn explained(&self, path: &Path) -> LedgerError {
        let file = path.display();
        let Fault::Sqlite(error) = self else { return broken(path, &self.to_string()) };
        let text = match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => format!(
                "{file} is damaged or no ledger ({error}): put a backup in its place, or move it \
                 away and start anew (deploy/RUNBOOK.md, \"The ledger\")"
            ),
            Some(ErrorCode::DiskFull) => {
                format!("the disk of {file} is full: make room, the relay then goes on by itself")
            }
            Some(ErrorCode::ReadOnly) => {
                format!("{file} cannot be written: mend its permissions or remount its disk")
            }
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => format!(
                "{file} is locked by another process for more than {} s: end that one",
                BUSY_LIMIT.as_secs()
            ),
            Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => format!(
                "{file} cannot be opened ({error}): does its directory exist, and may this user \
                 write there? Or set ledger.url"
            ),
            _ => format!("{file}: {error}"),
        };
        LedgerError::Broken(text)
    }
}

fn broken(path: &Path, problem: &str) -> LedgerError {
    LedgerError::Broken(format!("{}: {problem}", path.display()))
}

impl Sqlite {
    /// For the one relay that works on it; directory and file are made if they are not there, for
    /// nobody else to read.
    pub(super) fn open_to_work(path: &Path) -> Result<Sqlite, LedgerError> {
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
        Sqlite::connect(path, Some(lock))
    }

    /// Beside a relay at work.
    pub(super) fn visit(path: &Path) -> Result<Sqlite, LedgerError> {
        match path.try_exists() {
            Ok(true) => Sqlite::connect(path, None),
            Ok(false) => Err(LedgerError::Missing(format!(
                "no file {}; `customer-relay run` makes it; is ledger.url right?",
                path.display()
            ))),
            Err(error) => Err(broken(path, &error.to_string())),
        }
    }

    fn connect(path: &Path, lock: Option<File>) -> Result<Sqlite, LedgerError> {
        let connect = || -> Result<Connection, Fault> {
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
        };
        let connection = Mutex::new(connect().map_err(|fault| fault.explained(path))?);
        Ok(Sqlite { path: path.to_owned(), connection, _lock: lock })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        // SQLite itself undoes what a panic left half done.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn prepare(&self) -> Result<Option<About>, Fault> {
        let mut writer = self.connection();
        let transaction = writer.transaction()?;
        let taken = steps_taken(&transaction)?;
        let Some(steps) = schema::SQLITE.get(taken..) else {
            return Err(Fault::Other("a newer relay made this ledger; use that one".into()));
        };
        for step in steps {
            transaction.execute_batch(step)?;
        }
        if !steps.is_empty() {
            let steps = i64::try_from(schema::SQLITE.len()).unwrap_or(i64::MAX);
            transaction.pragma_update(None, "user_version", steps)?;
        }
        let about = about(&transaction)?;
        transaction.commit()?;
        Ok(about)
    }

    pub(super) fn about(&self) -> Result<Option<About>, Fault> {
        let reader = self.connection();
        let taken = steps_taken(&reader)?;
        if taken != schema::SQLITE.len() {
            return Err(Fault::Other(schema::ANOTHER_VERSION.into()));
        }
        about(&reader)
    }

    pub(super) fn found(&self, about: &About) -> Result<About, Fault> {
        self.connection().execute(
            "INSERT INTO about (one, id, salt, created) VALUES (1, ?1, ?2, ?3)",
            params![about.id.to_string(), about.salt, about.created.as_microsecond()],
        )?;
        Ok(about.clone())
    }

    pub(super) fn open(&self, keys: &[CustomerKey]) -> Result<Vec<Opening>, Fault> {
        let rows = self.rows(keys)?.into_iter();
        let ours = |row| Opening::Ours(Box::new(Opened { row, ..Opened::default() }));
        Ok(rows.map(ours).collect())
    }

    pub(super) fn commit(&self, changes: &[Change]) -> Result<Vec<Committed>, Fault> {
        let mut writer = self.connection();
        let transaction =
            writer.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        for change in changes {
            if let (Some(key), Some(row)) = (change.customer, &change.row) {
                write_row(&transaction, key, row, change.at.as_microsecond())?;
            }
            for note in &change.notes {
                write_note(&transaction, change.customer, note)?;
            }
        }
        transaction.commit()?;
        Ok(vec![Committed::Done; changes.len()])
    }

    pub(super) fn account(&self, key: CustomerKey) -> Result<Account, Fault> {
        let reader = self.connection();
        let transaction = reader.unchecked_transaction()?;
        let row = transaction
            .query_row("SELECT row, seen FROM customers WHERE key = ?1", params![key.0], |row| {
                Ok((Row::unpack(row.get_ref(0)?.as_blob()?), row.get::<_, i64>(1)?))
            })
            .optional()?;
        let row = row.map(|(row, seen)| Ok::<_, Unreadable>((row?, time(seen)))).transpose()?;
        let select = format!("SELECT {PENDING} FROM pending WHERE customer = ?1 ORDER BY due");
        let mut select = transaction.prepare(&select)?;
        let pending = select.query_map(params![key.0], pending_note)?;
        let pending = pending.collect::<Result<Vec<_>, _>>()?.into_iter().map(|(_, note)| note);
        let mut select = transaction
            .prepare(&format!("SELECT {DEAD} FROM dead WHERE customer = ?1 ORDER BY died"))?;
        let dead = select.query_map(params![key.0], letter)?;
        let dead = dead.collect::<Result<Vec<_>, _>>()?.into_iter().map(|(_, letter)| letter);
        Ok(Account { row, pending: pending.collect(), dead: dead.collect() })
    }

    pub(super) fn forget(&self, key: CustomerKey) -> Result<(), Fault> {
        let mut writer = self.connection();
        let transaction = writer.transaction()?;
        // What was erased must not be left in the file's free pages.
        transaction.pragma_update(None, "secure_delete", "ON")?;
        transaction.execute("DELETE FROM customers WHERE key = ?1", params![key.0])?;
        transaction.execute("DELETE FROM pending WHERE customer = ?1", params![key.0])?;
        transaction.execute("DELETE FROM dead WHERE customer = ?1", params![key.0])?;
        transaction.commit()?;
        Ok(())
    }

    pub(super) fn rows(&self, keys: &[CustomerKey]) -> Result<Vec<Row>, Fault> {
        let connection = self.connection();
        let transaction = connection.unchecked_transaction()?;
        keys.iter().map(|key| row(&transaction, *key)).collect()
    }

    pub(super) fn letters(&self) -> Result<Vec<Indexed>, Fault> {
        let reader = self.connection();
        let mut select = reader.prepare(&format!("SELECT {DEAD} FROM dead ORDER BY died"))?;
        Ok(select.query_map([], letter)?.collect::<Result<_, _>>()?)
    }

    pub(super) fn letter_count(&self) -> Result<u64, Fault> {
        let count = self
            .connection()
            .query_row("SELECT count(*) FROM dead", [], |row| row.get::<_, i64>(0))?;
        Ok(u64::try_from(count).unwrap_or_default())
    }

    pub(super) fn reindex(&self, found: &[Indexed], began: Timestamp) -> Result<(), Fault> {
        let mut writer = self.connection();
        let transaction = writer.transaction()?;
        transaction.execute("DELETE FROM dead WHERE died < ?1", params![began.as_microsecond()])?;
        for (key, letter) in found {
            write_letter(&transaction, *key, letter)?;
        }
        Ok(transaction.commit()?)
    }

    pub(super) fn has_ended(&self, replay_id: Uuid) -> Result<bool, Fault> {
        let select = "SELECT 1 FROM replays WHERE replay_id = ?1";
        let found =
            self.connection().prepare_cached(select)?.exists(params![replay_id.to_string()])?;
        Ok(found)
    }

    pub(super) fn replay_counts(&self, beginning: &str) -> Result<Vec<ReplayCount>, Fault> {
        let reader = self.connection();
        let mut select = reader.prepare_cached(
            "SELECT ended, reason, count(*) FROM replays WHERE replay_id >= ?1 AND replay_id < ?1 || 'g'
             GROUP BY ended, reason ORDER BY ended, reason",
        )?;
        let counts = select.query_map(params![beginning], |row| {
            let count = u64::try_from(row.get::<_, i64>(2)?).unwrap_or_default();
            Ok((row.get(0)?, row.get(1)?, count))
        })?;
        Ok(counts.collect::<Result<_, _>>()?)
    }

    pub(super) fn log_act(&self, act: &Act) -> Result<(), Fault> {
        write_act(&self.connection(), act)
    }

    pub(super) fn acts(&self, last: u32) -> Result<Vec<Act>, Fault> {
        let reader = self.connection();
        let mut select =
            reader.prepare(&format!("SELECT {ACT} FROM audit ORDER BY number DESC LIMIT ?1"))?;
        let mut acts = select.query_map(params![last], act)?.collect::<Result<Vec<_>, _>>()?;
        acts.reverse();
        Ok(acts)
    }

    pub(super) fn condition(&self) -> Result<Condition, Fault> {
        let reader = self.connection();
        let mut check = reader.prepare("PRAGMA integrity_check(10)")?;
        let said = check.query_map([], |row| row.get::<_, String>(0))?;
        let said = said.collect::<Result<Vec<_>, _>>()?;
        let mut faults: Vec<String> = said.into_iter().filter(|line| line != "ok").collect();
        faults.extend(self.open_to_others());
        drop(check);
        drop(reader);
        Ok(Condition { faults, ..self.counts()? })
    }

    pub(super) fn counts(&self) -> Result<Condition, Fault> {
        let reader = self.connection();
        let count = |table: &str| -> Result<u64, Fault> {
            let count = reader.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| {
                row.get::<_, i64>(0)
            })?;
            Ok(u64::try_from(count).unwrap_or_default())
        };
        let (customers, pending, dead) = (count("customers")?, count("pending")?, count("dead")?);
        Ok(Condition { customers, pending, dead, faults: Vec::new() })
    }

    /// On a connection of its own: the one that works is not to wait.
    pub(super) fn out_of_step(&self) -> Result<(u64, Option<Timestamp>), Fault> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let reader = Connection::open_with_flags(&self.path, flags)?;
        reader.busy_timeout(BUSY_LIMIT)?;
        let found = reader.query_row(schema::OUT_OF_STEP, [], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, Option<i64>>(1)?))
        })?;
        Ok((u64::try_from(found.0).unwrap_or_default(), found.1.map(time)))
    }

    /// Removes what a copy that did not end has left.
    pub(super) fn clear(&self) -> Result<(), Fault> {
        let mut writer = self.connection();
        let transaction = writer.transaction()?;
        for table in ["customers", "pending", "dead", "replays"] {
            transaction.execute(&format!("DELETE FROM {table}"), [])?;
        }
        Ok(transaction.commit()?)
    }

    /// A file that others may read, which it never is when we make it.
    fn open_to_others(&self) -> Option<String> {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(&self.path).ok()?.permissions().mode() & 0o777;
        (mode & 0o077 != 0).then(|| {
            let file = self.path.display();
            format!("{file} is open to other users (mode {mode:o}): chmod 600 {file}")
        })
    }

    pub(super) fn sweep(&self, limit: Option<Timestamp>, overdue: Timestamp) -> Result<u64, Fault> {
        let mut forgotten = 0;
        if let Some(limit) = limit {
            let limit = limit.as_microsecond();
            let find = "SELECT key FROM customers WHERE seen < ?1";
            let found: Vec<Vec<u8>> = {
                let reader = self.connection();
                let mut find = reader.prepare(find)?;
                let keys = find.query_map(params![limit], |row| row.get(0))?;
                keys.collect::<Result<_, _>>()?
            };
            for page in found.chunks(PAGE.into()) {
                let mut writer = self.connection();
                let transaction = writer.transaction()?;
                for key in page {
                    // Not if it was seen again meanwhile.
                    let delete = "DELETE FROM customers WHERE key = ?1 AND seen < ?2";
                    forgotten +=
                        transaction.prepare_cached(delete)?.execute(params![key, limit])?;
                }
                transaction.commit()?;
            }
        }
        let writer = self.connection();
        let overdue_at = overdue.as_microsecond();
        writer.execute("DELETE FROM pending WHERE due < ?1", params![overdue_at])?;
        writer
            .execute("DELETE FROM replays WHERE at < ?1 - ?2", params![overdue_at, REPLAYS_KEPT])?;
        writer.execute_batch("PRAGMA incremental_vacuum(10000)")?;
        Ok(forgotten as u64)
    }

    pub(super) fn part(&self, behind: Option<CustomerKey>) -> Result<Part, Fault> {
        let reader = self.connection();
        let transaction = reader.unchecked_transaction()?;
        let mut part = Part::default();
        let from = behind.map_or_else(Vec::new, |key| key.0.to_vec());
        let mut select = transaction
            .prepare("SELECT key, row, seen FROM customers WHERE key > ?1 ORDER BY key LIMIT ?2")?;
        let customers = select.query_map(params![from, PAGE], |row| {
            Ok(Stored { key: CustomerKey(row.get(0)?), row: row.get(1)?, seen: row.get(2)? })
        })?;
        part.customers = customers.collect::<Result<_, _>>()?;
        if behind.is_none() {
            let mut select = transaction.prepare(&format!("SELECT {PENDING} FROM pending"))?;
            part.pending = select.query_map([], pending_note)?.collect::<Result<_, _>>()?;
            let mut select = transaction.prepare(&format!("SELECT {DEAD} FROM dead"))?;
            part.dead = select.query_map([], letter)?.collect::<Result<_, _>>()?;
            let mut select =
                transaction.prepare("SELECT replay_id, ended, reason, at FROM replays")?;
            part.replays = select.query_map([], replay_end)?.collect::<Result<_, _>>()?;
            let mut select =
                transaction.prepare(&format!("SELECT {ACT} FROM audit ORDER BY number"))?;
            part.acts = select.query_map([], act)?.collect::<Result<_, _>>()?;
        }
        Ok(part)
    }

    pub(super) fn take_over(&self, part: &Part) -> Result<(), Fault> {
        let mut writer = self.connection();
        let transaction = writer.transaction()?;
        for Stored { key, row, seen } in &part.customers {
            write_row(&transaction, *key, row, *seen)?;
        }
        for (key, note) in &part.pending {
            write_note(&transaction, Some(*key), &Note::Pending(note.clone()))?;
        }
        for (key, letter) in &part.dead {
            write_letter(&transaction, *key, letter)?;
        }
        for end in &part.replays {
            write_note(&transaction, None, &Note::Replayed(end.clone()))?;
        }
        // It cannot be erased: a copy that is begun anew finds it there.
        let has_acts = transaction.prepare("SELECT 1 FROM audit")?.exists([])?;
        for act in part.acts.iter().filter(|_| !has_acts) {
            write_act(&transaction, act)?;
        }
        transaction.commit()?;
        Ok(())
    }
}

fn make_directory(path: &Path) -> Result<(), LedgerError> {
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
fn lock(path: &Path) -> Result<File, LedgerError> {
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
            let holder = std::fs::read_to_string(&beside).unwrap_or_default();
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

fn steps_taken(connection: &Connection) -> Result<usize, Fault> {
    let taken: u32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    Ok(usize::try_from(taken).unwrap_or(usize::MAX))
}

fn row(connection: &Connection, key: CustomerKey) -> Result<Row, Fault> {
    let mut select = connection.prepare_cached("SELECT row FROM customers WHERE key = ?1")?;
    let row = select
        .query_row(params![key.0], |row| Ok(Row::unpack(row.get_ref(0)?.as_blob()?)))
        .optional()?;
    Ok(row.transpose()?.unwrap_or_default())
}

fn about(connection: &Connection) -> Result<Option<About>, Fault> {
    let found = connection
        .query_row("SELECT id, salt, created FROM about", [], |row| {
            Ok((row.get::<_, String>(0)?, row.get(1)?, row.get(2)?))
        })
        .optional()?;
    let Some((id, salt, created)) = found else { return Ok(None) };
    let id = id.parse().map_err(|_| Fault::Other("its id is damaged".into()))?;
    Ok(Some(About { id, salt, created: time(created) }))
}

fn write_row(
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

fn write_note(
    connection: &Connection,
    customer: Option<CustomerKey>,
    note: &Note,
) -> Result<(), Fault> {
    let customer = customer.map(|key| key.0);
    match note {
        Note::Settled { event } => {
            let delete = "DELETE FROM pending WHERE customer = ?1 AND event = ?2";
            connection.prepare_cached(delete)?.execute(params![customer, event])?;
        }
        Note::Pending(PendingNote { event, attempts, since, due, reason }) => {
            let upsert = format!(
                "INSERT INTO pending ({PENDING}) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                 ON CONFLICT (customer, event) DO UPDATE SET
                     attempts = excluded.attempts, due = excluded.due, reason = excluded.reason"
            );
            let (since, due) = (since.as_microsecond(), due.as_microsecond());
            let customer = customer.unwrap_or_default();
            let values = params![customer, event, attempts, since, due, reason];
            connection.prepare_cached(&upsert)?.execute(values)?;
        }
        Note::Dead(letter) => write_letter(connection, customer.map(CustomerKey), letter)?,
        Note::Gone { dead_id } => {
            let delete = "DELETE FROM dead WHERE dead_id = ?1";
            connection.prepare_cached(delete)?.execute(params![dead_id.to_string()])?;
        }
        Note::Replayed(ReplayEnd { replay_id, ended, reason, at }) => {
            let insert = "INSERT OR IGNORE INTO replays (replay_id, ended, reason, at)
                          VALUES (?1, ?2, ?3, ?4)";
            let values = params![replay_id.to_string(), ended, reason, at.as_microsecond()];
            connection.prepare_cached(insert)?.execute(values)?;
        }
    }
    Ok(())
}

fn write_letter(
    connection: &Connection,
    customer: Option<CustomerKey>,
    letter: &Letter,
) -> Result<(), Fault> {
    let upsert = format!(
        "INSERT OR REPLACE INTO dead ({DEAD})
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)"
    );
    connection.prepare_cached(&upsert)?.execute(params![
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
        letter.revision
    ])?;
    Ok(())
}

fn write_act(connection: &Connection, act: &Act) -> Result<(), Fault> {
    let insert = format!("INSERT INTO audit ({ACT}) VALUES (?1, ?2, ?3, ?4, ?5, ?6)");
    let Act { at, who, act, what, why, count } = act;
    let count = i64::try_from(*count).unwrap_or(i64::MAX);
    connection.prepare_cached(&insert)?.execute(params![
        at.as_microsecond(),
        who,
        act,
        what,
        why,
        count
    ])?;
    Ok(())
}

/// The columns of an event that waits, in the order in which they are read and written.
const PENDING: &str = "customer, event, attempts, since, due, reason";

/// The columns of a dead letter, in the order in which they are read and written.
const DEAD: &str = "dead_id, customer, event, reason, field, rule, http_status, portal_status, \
                    attempts, died, detail, flags, replays, revision";

/// The columns of an operator's act, in the order in which they are read and written.
const ACT: &str = "at, who, act, what, why, count";

fn pending_note(columns: &Columns<'_>) -> rusqlite::Result<(CustomerKey, PendingNote)> {
    let note = PendingNote {
        event: columns.get(1)?,
        attempts: columns.get(2)?,
        since: time(columns.get(3)?),
        due: time(columns.get(4)?),
        reason: columns.get(5)?,
    };
    Ok((CustomerKey(columns.get(0)?), note))
}

fn letter(columns: &Columns<'_>) -> rusqlite::Result<Indexed> {
    let died = columns.get::<_, i64>(9)?;
    let letter = Letter {
        id: columns.get::<_, String>(0)?.parse().unwrap_or_default(),
        event: columns.get(2)?,
        reason: Reason::parse(&columns.get::<_, String>(3)?).unwrap_or(Reason::Foreign),
        field: columns.get(4)?,
        rule: columns.get(5)?,
        http_status: columns.get(6)?,
        portal_status: columns.get(7)?,
        attempts: columns.get(8)?,
        died: (died > 0).then(|| time(died)),
        detail: columns.get(10)?,
        flags: columns.get(11)?,
        replays: columns.get(12)?,
        revision: columns.get(13)?,
    };
    Ok((columns.get::<_, Option<[u8; 16]>>(1)?.map(CustomerKey), letter))
}

fn replay_end(columns: &Columns<'_>) -> rusqlite::Result<ReplayEnd> {
    Ok(ReplayEnd {
        replay_id: columns.get::<_, String>(0)?.parse().unwrap_or_default(),
        ended: columns.get(1)?,
        reason: columns.get(2)?,
        at: time(columns.get(3)?),
    })
}

fn act(columns: &Columns<'_>) -> rusqlite::Result<Act> {
    Ok(Act {
        at: time(columns.get(0)?),
        who: columns.get(1)?,
        act: columns.get(2)?,
        what: columns.get(3)?,
        why: columns.get(4)?,
        count: u64::try_from(columns.get::<_, i64>(5)?).unwrap_or_default(),
    })
}

fn time(microseconds: i64) -> Timestamp {
    Timestamp::from_microsecond(microseconds).unwrap_or_default()
}
