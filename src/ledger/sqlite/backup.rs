//! A ledger file copied while a relay works on it, and a copy put in a ledger's place. Killed at any
//! moment, a restore leaves the old file or the new one, whole.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rusqlite::{Connection, OpenFlags};
use uuid::Uuid;

use super::super::change::AuditEntry;
use super::super::error::LedgerError;
use super::super::model::{About, Counts, Numbered};
use super::super::tables::NEWER_VERSION;
use super::fault::Fault;
use super::rows::write_audit;
use super::{blocking, inspect, number, open};
use crate::domain::doubt::Gap;

/// What stands beside an open file of SQLite's.
const BESIDE: [&str; 3] = ["-wal", "-shm", "-journal"];

/// A copy of a ledger, looked at.
#[derive(Clone, Debug)]
pub struct Copied {
    /// What tells it from others.
    pub about: About,
    /// How far it has come.
    pub numbered: Numbered,
    /// What it holds.
    pub counts: Counts,
    /// When a customer was last written in it.
    pub last_written: Option<Timestamp>,
}

impl Copied {
    /// Up to when it knows what was applied, at least.
    pub fn known_until(&self) -> Timestamp {
        self.numbered.at.or(self.last_written).unwrap_or(self.about.created)
    }
}

/// Copies a ledger that may be at work into a file that is not there yet.
pub(in crate::ledger) async fn backup(from: &Path, to: &Path) -> Result<Copied, LedgerError> {
    let (from, to) = (from.to_owned(), to.to_owned());
    blocking(move || {
        if to.symlink_metadata().is_ok() {
            return Err(unfit(&to, "is there already: name a file that is not"));
        }
        let ledger = open::to_visit(&from)?;
        // A name that nobody else uses: a file that is there is never replaced.
        let part = to.with_added_extension(format!("part-{}", Uuid::now_v7().simple()));
        create_private(&part).map_err(|error| failed(&part, "cannot be made", &error))?;
        let made = copy_into(&ledger, &from, &part).and_then(|copied| {
            let done = sync(&part).and_then(|()| publish(&part, &to));
            done.map(|()| copied).map_err(|error| failed(&to, "cannot be written", &error))
        });
        if made.is_err() {
            // It is of no use.
            drop(fs::remove_file(&part));
        }
        made
    })
    .await
}

fn create_private(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// SQLite writes into an empty file that is there: so nobody else can ever read it.
fn copy_into(ledger: &Connection, from: &Path, part: &Path) -> Result<Copied, LedgerError> {
    let copy = || {
        open::load_about(ledger)?;
        let name = part.to_str().ok_or_else(|| Fault::Other("its name is not UTF-8".into()))?;
        // One transaction that only reads: the relay commits beside it. What was erased is not copied.
        ledger.execute("VACUUM INTO ?1", [name])?;
        Ok(())
    };
    copy().map_err(|fault: Fault| fault.explained(from))?;
    look_at(&open_plain(part).map_err(|fault| fault.explained(part))?, part)
}

/// Gives a finished file its name, unless something has it.
fn publish(part: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(part, to) {
        Ok(()) => fs::remove_file(part)?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(error),
        // A file system without hard links.
        Err(_) => fs::rename(part, to)?,
    }
    sync_directory(to)
}

/// A copy that is about to be put in a ledger's place. The ledger is locked against relays as long as
/// it lives.
#[derive(Debug)]
pub(in crate::ledger) struct Restore {
    ledger: PathBuf,
    prepared: PathBuf,
    copied: Copied,
    _lock: File,
}

impl Restore {
    /// Copies a file beside the ledger and looks it over; brings its tables up to date.
    pub(in crate::ledger) async fn prepare(
        ledger: &Path,
        file: &Path,
    ) -> Result<Restore, LedgerError> {
        let (ledger, file) = (ledger.to_owned(), file.to_owned());
        blocking(move || {
            let prepared = ledger.with_added_extension("restoring");
            check_owner(&ledger, &file)?;
            refuse_prepared(&file, &prepared)?;
            open::make_directory(&ledger)?;
            let lock = open::lock(&ledger)?;
            let copied = prepare(&file, &prepared).inspect_err(|_| discard(&prepared))?;
            Ok(Restore { ledger, prepared, copied, _lock: lock })
        })
        .await
    }

    pub(in crate::ledger) fn copied(&self) -> &Copied {
        &self.copied
    }

    /// Puts it in the ledger's place. The file that is replaced is kept; its name.
    pub(in crate::ledger) async fn complete(
        self,
        (gap, at_least, at): (Gap, u64, Timestamp),
        audit: AuditEntry,
    ) -> Result<Option<PathBuf>, LedgerError> {
        blocking(move || {
            let Restore { ledger, prepared, .. } = &self;
            let finish = || {
                let mut copy = open_plain(prepared)?;
                number::raise(&mut copy, Some(gap), at_least, at)?;
                write_audit(&copy, &audit)
            };
            finish().map_err(|fault: Fault| fault.explained(prepared))?;
            let replaced = sync(prepared).and_then(|()| replace(ledger, prepared, at));
            replaced.map_err(|error| failed(ledger, "cannot be replaced", &error))
        })
        .await
    }
}

impl Drop for Restore {
    fn drop(&mut self) {
        // Once it is in its place, nothing is there any more.
        discard(&self.prepared);
    }
}

fn discard(prepared: &Path) {
    drop(fs::remove_file(prepared));
    for suffix in BESIDE {
        drop(fs::remove_file(with_suffix(prepared, suffix)));
    }
}

/// A file for nobody else's eyes, of the user that the relay runs as.
fn check_owner(ledger: &Path, file: &Path) -> Result<(), LedgerError> {
    let found = fs::metadata(file).map_err(|error| failed(file, "cannot be read", &error))?;
    if !found.is_file() {
        return Err(unfit(file, "is no file"));
    }
    let own = fs::metadata("/proc/self")
        .map_err(|error| failed(Path::new("/proc/self"), "cannot be read", &error))?
        .uid();
    let mode = found.permissions().mode() & 0o777;
    if found.uid() != own {
        let whose = format!("belongs to user {}, and this is user {own}", found.uid());
        return Err(unfit(file, &format!("{whose}: give it to the relay's user, and run as that")));
    }
    if mode & 0o077 != 0 {
        let text = format!("is open to other users (mode {mode:o}): chmod 600 {}", file.display());
        return Err(unfit(file, &text));
    }
    let Ok(replaced) = fs::metadata(ledger) else { return Ok(()) };
    if replaced.uid() != own {
        let whose = format!("belongs to user {}, and this is user {own}", replaced.uid());
        return Err(unfit(ledger, &format!("{whose}: run as the relay's user")));
    }
    if (replaced.dev(), replaced.ino()) == (found.dev(), found.ino()) {
        return Err(unfit(file, "is the ledger itself: name a backup"));
    }
    Ok(())
}

/// What a restore that was killed has left behind is deleted by the next one: it is no backup.
fn refuse_prepared(file: &Path, prepared: &Path) -> Result<(), LedgerError> {
    let place = |path: &Path| fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
    let used = std::iter::once(prepared.to_owned())
        .chain(BESIDE.map(|suffix| with_suffix(prepared, suffix)));
    if used.filter_map(|used| place(&used)).any(|used| Some(used) == place(file)) {
        let text =
            "has the name under which restores prepare their copy: give it another one first";
        return Err(unfit(file, text));
    }
    Ok(())
}

fn prepare(file: &Path, prepared: &Path) -> Result<Copied, LedgerError> {
    discard(prepared);
    copy_file(file, prepared).map_err(|error| failed(file, "cannot be copied", &error))?;
    let mut copy = open_plain(prepared).map_err(|fault| not_a_ledger(file, &fault))?;
    let taken = open::steps_taken(&copy).map_err(|fault| not_a_ledger(file, &fault))?;
    if taken == 0 {
        return Err(unfit(file, "is no ledger: it has none of a ledger's tables"));
    }
    if taken > open::STEPS.len() {
        return Err(unfit(file, NEWER_VERSION));
    }
    refuse_damaged(&copy, file)?;
    let settled = open::create_tables(&mut copy).and_then(|_| {
        // All of it in one file.
        copy.pragma_update(None, "journal_mode", "DELETE")?;
        Ok(())
    });
    settled.map_err(|fault| not_a_ledger(file, &fault))?;
    look_at(&copy, file)
}

/// What is in the log of changes belongs to it, if there is one.
fn copy_file(file: &Path, prepared: &Path) -> io::Result<()> {
    let private = |from: &Path, to: &Path| {
        io::copy(&mut File::open(from)?, &mut create_private(to)?)?;
        Ok(())
    };
    private(file, prepared)?;
    let log = with_suffix(file, "-wal");
    if log.exists() { private(&log, &with_suffix(prepared, "-wal")) } else { Ok(()) }
}

/// Neither made nor changed by being opened.
fn open_plain(path: &Path) -> Result<Connection, Fault> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(open::BUSY_LIMIT)?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    Ok(connection)
}

fn refuse_damaged(copy: &Connection, file: &Path) -> Result<(), LedgerError> {
    let faults = inspect::find_damage(copy).map_err(|fault| not_a_ledger(file, &fault))?;
    if faults.is_empty() {
        return Ok(());
    }
    Err(unfit(file, &format!("is damaged ({}): name another backup", faults.join("; "))))
}

fn look_at(copy: &Connection, file: &Path) -> Result<Copied, LedgerError> {
    refuse_damaged(copy, file)?;
    let look = || {
        let about = open::load_about(copy)?.ok_or_else(|| Fault::Other("it has no id".into()))?;
        // Text would be later than any time.
        let last = "SELECT max(seen) FROM customers
                    WHERE typeof(seen) = 'integer' AND seen BETWEEN 1 AND 253402207200000000";
        let last: Option<i64> = copy.query_row(last, [], |columns| columns.get(0))?;
        Ok(Copied {
            about,
            numbered: number::load(copy)?,
            counts: inspect::count(copy)?,
            last_written: last.and_then(|time| Timestamp::from_microsecond(time).ok()),
        })
    };
    look().map_err(|fault| not_a_ledger(file, &fault))
}

/// Between any two steps the ledger's name stands for a whole file, with no other file's log of
/// changes beside it.
fn replace(ledger: &Path, prepared: &Path, at: Timestamp) -> io::Result<Option<PathBuf>> {
    let name = format!("replaced-{}", at.strftime("%Y%m%dT%H%M%S%.3fZ"));
    let kept = ledger.with_added_extension(name);
    let is_there = ledger.exists();
    if is_there && let Err(fault) = take_log_in(ledger) {
        tracing::warn!(%fault, "the replaced ledger cannot be read; it is kept as it is");
    }
    for suffix in BESIDE {
        let beside = with_suffix(ledger, suffix);
        if beside.exists() {
            fs::rename(beside, with_suffix(&kept, suffix))?;
        }
    }
    if is_there {
        // A file system without hard links: copied.
        fs::hard_link(ledger, &kept).or_else(|_| fs::copy(ledger, &kept).map(drop))?;
    }
    sync_directory(ledger)?;
    fs::rename(prepared, ledger)?;
    sync_directory(ledger)?;
    Ok(is_there.then_some(kept))
}

/// Writes what is in the log of changes into the file, and removes the log.
fn take_log_in(ledger: &Path) -> Result<(), Fault> {
    let old = open_plain(ledger)?;
    old.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    old.pragma_update(None, "journal_mode", "DELETE")?;
    old.close().map_err(|(_, error)| error.into())
}

pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn sync_directory(file: &Path) -> io::Result<()> {
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty());
    sync(parent.unwrap_or(Path::new(".")))
}

fn unfit(path: &Path, problem: &str) -> LedgerError {
    LedgerError::Unfit(format!("{} {problem}", path.display()))
}

fn failed(path: &Path, problem: &str, error: &io::Error) -> LedgerError {
    unfit(path, &format!("{problem}: {error}"))
}

fn not_a_ledger(file: &Path, fault: &Fault) -> LedgerError {
    unfit(file, &format!("is damaged or no ledger: {fault}"))
}
