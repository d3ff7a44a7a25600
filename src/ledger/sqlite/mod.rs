//! The ledger in a file, and a lock beside it that keeps other relays of this host out. The only
//! folder that knows `rusqlite`.

pub(super) mod backup;
mod fault;
mod inspect;
mod number;
mod open;
mod place;
mod rows;
mod tasks;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::Connection;
use uuid::Uuid;

use super::backend::{Answer, Backend};
use super::change::{AuditEntry, Change, Committed};
use super::error::LedgerError;
use super::model::{
    About, Account, Condition, Counts, CustomerKey, Doubted, Indexed, Loaded, Numbered, Part,
    ReplayCount,
};
use crate::domain::doubt::Gap;
use crate::domain::packed::Unreadable;
use crate::domain::row::Row;
use fault::Fault;
use place::Place;

/// A ledger file, open.
#[derive(Clone, Debug)]
pub(super) struct Sqlite(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    place: Place,
    /// Operators' questions; opened for the first of them. Closed before the other one: only one
    /// that may write can write the log of changes back and remove it.
    reader: Mutex<Option<Connection>>,
    /// Customers are read where they are written: what it has written it need not read again.
    writer: Mutex<Connection>,
    /// Held as long as the process lives, by whoever works on the ledger.
    _lock: Option<File>,
}

impl Sqlite {
    /// For the one relay that works on it.
    pub(super) async fn open_to_work(path: &Path) -> Result<Sqlite, LedgerError> {
        Sqlite::open(path, |path| {
            let (writer, lock) = open::to_work(path)?;
            Ok((writer, Some(lock)))
        })
        .await
    }

    /// Beside a relay at work.
    pub(super) async fn visit(path: &Path) -> Result<Sqlite, LedgerError> {
        Sqlite::open(path, |path| Ok((open::to_visit(path)?, None))).await
    }

    async fn open(
        path: &Path,
        open: impl FnOnce(&Path) -> Result<(Connection, Option<File>), LedgerError> + Send + 'static,
    ) -> Result<Sqlite, LedgerError> {
        let path = path.to_owned();
        blocking(move || {
            let (writer, lock) = open(&path)?;
            let (reader, writer) = (Mutex::default(), Mutex::new(writer));
            let place = Place::default();
            Ok(Sqlite(Arc::new(Shared { path, place, reader, writer, _lock: lock })))
        })
        .await
    }

    fn write<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Answer<'_, T> {
        let shared = Arc::clone(&self.0);
        Box::pin(blocking(move || {
            // SQLite itself undoes what a panic left half done.
            let mut writer = shared.writer.lock().unwrap_or_else(PoisonError::into_inner);
            shared.place.check(&shared.path)?;
            act(&mut writer).map_err(|fault| fault.explained(&shared.path))
        }))
    }

    fn read<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Answer<'_, T> {
        let shared = Arc::clone(&self.0);
        Box::pin(blocking(move || {
            let read = || {
                let mut reader = shared.reader.lock().unwrap_or_else(PoisonError::into_inner);
                if reader.is_none() {
                    *reader = Some(open::reader(&shared.path)?);
                }
                act(reader.as_ref().expect("it was opened just now"))
            };
            read().map_err(|fault: Fault| fault.explained(&shared.path))
        }))
    }
}

/// SQLite waits for the disk: not on a thread that others wait for.
async fn blocking<T: Send + 'static>(
    act: impl FnOnce() -> Result<T, LedgerError> + Send + 'static,
) -> Result<T, LedgerError> {
    let done = tokio::task::spawn_blocking(act).await;
    done.unwrap_or_else(|error| Err(LedgerError::Broken(error.to_string())))
}

impl Backend for Sqlite {
    fn create_tables(&self) -> Answer<'_, Option<About>> {
        self.write(open::create_tables)
    }

    fn create_ledger(&self, about: About) -> Answer<'_, About> {
        self.write(move |writer| tasks::create_ledger(writer, about))
    }

    fn load_about(&self) -> Answer<'_, Option<About>> {
        self.write(|writer| open::load_about(writer))
    }

    fn is_shared(&self) -> bool {
        false
    }

    fn find_other_users(&self) -> Answer<'_, Option<String>> {
        // The lock keeps them out.
        Box::pin(std::future::ready(Ok(None)))
    }

    fn lease_customers(
        &self,
        keys: Arc<Vec<CustomerKey>>,
        _lease: Duration,
    ) -> Answer<'_, Vec<Loaded>> {
        self.write(move |writer| tasks::load_customers(writer, &keys))
    }

    fn commit_changes(&self, changes: Arc<Vec<Change>>) -> Answer<'_, Vec<Committed>> {
        self.write(move |writer| tasks::commit_changes(writer, &changes))
    }

    fn rehearse(&self, change: Change) -> Answer<'_, ()> {
        self.write(move |writer| tasks::rehearse(writer, &change))
    }

    fn load_account(&self, key: CustomerKey) -> Answer<'_, Account> {
        self.read(move |reader| tasks::load_account(reader, key))
    }

    fn load_rows(&self, keys: Vec<CustomerKey>) -> Answer<'_, Vec<Result<Row, Unreadable>>> {
        self.read(move |reader| tasks::load_rows(reader, &keys))
    }

    fn replace_unreadable(&self, key: CustomerKey, row: Row, at: Timestamp) -> Answer<'_, bool> {
        self.write(move |writer| tasks::replace_unreadable(writer, key, &row, at))
    }

    fn erase_customer(
        &self,
        key: CustomerKey,
        unless_due_after: Option<Timestamp>,
    ) -> Answer<'_, bool> {
        self.write(move |writer| tasks::erase_customer(writer, key, unless_due_after))
    }

    fn load_dead_letters(&self) -> Answer<'_, Vec<Indexed>> {
        self.read(tasks::load_dead_letters)
    }

    fn count_dead_letters(&self) -> Answer<'_, u64> {
        self.read(|reader| Ok(inspect::count(reader)?.dead))
    }

    fn replace_dead_letters(&self, found: Vec<Indexed>, began: Timestamp) -> Answer<'_, ()> {
        self.write(move |writer| tasks::replace_dead_letters(writer, &found, began))
    }

    fn has_replay_ended(&self, replay_id: Uuid) -> Answer<'_, bool> {
        self.write(move |writer| tasks::has_replay_ended(writer, replay_id))
    }

    fn count_replays(&self, beginning: String) -> Answer<'_, Vec<ReplayCount>> {
        self.read(move |reader| tasks::count_replays(reader, &beginning))
    }

    fn append_audit(&self, entry: AuditEntry) -> Answer<'_, ()> {
        self.write(move |writer| rows::write_audit(writer, &entry))
    }

    fn load_audit(&self, last: u32) -> Answer<'_, Vec<AuditEntry>> {
        self.read(move |reader| tasks::load_audit(reader, last))
    }

    fn inspect(&self) -> Answer<'_, Condition> {
        let path = self.0.path.clone();
        self.read(move |reader| inspect::inspect(reader, &path))
    }

    fn count(&self) -> Answer<'_, Counts> {
        self.read(inspect::count)
    }

    fn count_out_of_step(&self) -> Answer<'_, (u64, Option<Timestamp>)> {
        self.read(inspect::count_out_of_step)
    }

    fn sweep(&self, limit: Option<Timestamp>, overdue: Timestamp) -> Answer<'_, u64> {
        let sqlite = self.clone();
        Box::pin(async move {
            let mut forgotten = 0;
            if let Some(limit) = limit {
                let keys = sqlite.read(move |reader| tasks::find_unseen(reader, limit)).await?;
                // Pages are short transactions: commits wait for none of them for long.
                for page in keys.chunks(tasks::PAGE.into()) {
                    let page = page.to_vec();
                    let forget = move |writer: &mut Connection| tasks::forget(writer, &page, limit);
                    forgotten += sqlite.write(forget).await?;
                }
            }
            sqlite.write(move |writer| tasks::sweep(writer, overdue)).await?;
            Ok(forgotten)
        })
    }

    fn clear(&self) -> Answer<'_, ()> {
        self.write(tasks::clear)
    }

    fn load_part(&self, behind: Option<CustomerKey>) -> Answer<'_, Part> {
        self.read(move |reader| tasks::load_part(reader, behind))
    }

    fn store_part(&self, part: Part) -> Answer<'_, ()> {
        self.write(move |writer| tasks::store_part(writer, &part))
    }

    fn load_number(&self) -> Answer<'_, Numbered> {
        self.read(number::load)
    }

    fn raise_number(&self, at_least: u64, at: Timestamp) -> Answer<'_, Numbered> {
        self.write(move |writer| number::raise(writer, None, at_least, at))
    }

    fn open_gap(&self, gap: Gap, at_least: u64, at: Timestamp) -> Answer<'_, Numbered> {
        self.write(move |writer| number::raise(writer, Some(gap), at_least, at))
    }

    fn close_gap(&self) -> Answer<'_, ()> {
        self.write(|writer| number::close_gap(writer))
    }

    fn read_clock(&self) -> Answer<'_, Option<Timestamp>> {
        Box::pin(async { Ok(None) })
    }

    fn load_doubts(&self) -> Answer<'_, Vec<Doubted>> {
        self.read(number::load_doubts)
    }
}
