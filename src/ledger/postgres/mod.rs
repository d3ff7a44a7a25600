//! The ledger at a PostgreSQL server, for several relays at once: each customer is leased before it
//! is called for, by the server's clock, and recorded under a fencing number. The only folder that
//! knows `tokio_postgres` and its pool.

mod connect;
mod customers;
mod fault;
mod number;
mod rows;
mod tasks;

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use deadpool_postgres::{Object, Pool};
use jiff::Timestamp;
use tokio_postgres::Config;
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

/// Longer than a connection, and a statement after it, may take: see `connect`.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);

/// A ledger's server.
#[derive(Clone, Debug)]
pub(super) struct Postgres {
    pool: Pool,
    /// Whose leases are ours.
    owner: String,
    /// Rows that somebody else had locked, until they are seen free: nobody waits for them.
    locked: Arc<Mutex<HashSet<Vec<u8>>>>,
}

impl Postgres {
    /// Prepares connections; the first one is made at once, so that a mistake shows.
    pub(super) async fn connect(config: &Config) -> Result<Postgres, LedgerError> {
        let (owner, locked) = (Uuid::now_v7().to_string(), Arc::default());
        let postgres = Postgres { pool: connect::pool(config)?, owner, locked };
        drop(postgres.client().await?);
        Ok(postgres)
    }

    async fn client(&self) -> Result<Object, Fault> {
        Ok(self.pool.get().await?)
    }

    /// The same of what every event waits for: a server, or a way to it, that does not answer at all is
    /// told from one that takes its time, and nobody waits for it.
    fn answer_soon<'a, T>(
        &'a self,
        task: impl Future<Output = Result<T, Fault>> + Send + 'a,
    ) -> Answer<'a, T>
    where
        T: Send + 'a,
    {
        self.answer(async {
            let silent = || Fault::Silent(ANSWER_LIMIT);
            tokio::time::timeout(ANSWER_LIMIT, task).await.unwrap_or_else(|_| Err(silent()))
        })
    }

    /// What a task of ours answers, in the contract's words. After a fault of the server sessions are
    /// begun anew: what it said (that it is read-only, say) may hold for the old ones alone.
    fn answer<'a, T>(
        &'a self,
        task: impl Future<Output = Result<T, Fault>> + Send + 'a,
    ) -> Answer<'a, T> {
        Box::pin(async move {
            let answer = task.await;
            let is_full = matches!(&answer, Err(fault) if fault.is_full_pool());
            let answer = answer.map_err(LedgerError::from);
            if let Err(LedgerError::Broken(_) | LedgerError::Unreachable(_)) = answer
                && !is_full
            {
                self.pool.retain(|_, _| false);
            }
            answer
        })
    }
}

impl Backend for Postgres {
    fn create_tables(&self) -> Answer<'_, Option<About>> {
        self.answer(connect::create_tables(self))
    }

    fn create_ledger(&self, about: About) -> Answer<'_, About> {
        self.answer(async move { connect::create_ledger(self, &about).await })
    }

    fn load_about(&self) -> Answer<'_, Option<About>> {
        self.answer(connect::load_about(self))
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn find_other_users(&self) -> Answer<'_, Option<String>> {
        self.answer(tasks::find_other_users(self))
    }

    fn lease_customers(
        &self,
        keys: Arc<Vec<CustomerKey>>,
        lease: Duration,
    ) -> Answer<'_, Vec<Loaded>> {
        self.answer_soon(async move { customers::lease(self, &keys, lease).await })
    }

    fn commit_changes(&self, changes: Arc<Vec<Change>>) -> Answer<'_, Vec<Committed>> {
        self.answer_soon(async move { customers::commit(self, &changes).await })
    }

    fn rehearse(&self, change: Change) -> Answer<'_, ()> {
        self.answer_soon(async move { customers::rehearse(self, &change).await })
    }

    fn load_account(&self, key: CustomerKey) -> Answer<'_, Account> {
        self.answer(tasks::load_account(self, key))
    }

    fn load_rows(&self, keys: Vec<CustomerKey>) -> Answer<'_, Vec<Result<Row, Unreadable>>> {
        self.answer(async move { tasks::load_rows(self, &keys).await })
    }

    fn replace_unreadable(&self, key: CustomerKey, row: Row, at: Timestamp) -> Answer<'_, bool> {
        self.answer(async move { tasks::replace_unreadable(self, key, &row, at).await })
    }

    fn erase_customer(
        &self,
        key: CustomerKey,
        unless_due_after: Option<Timestamp>,
    ) -> Answer<'_, bool> {
        self.answer(tasks::erase_customer(self, key, unless_due_after))
    }

    fn load_dead_letters(&self) -> Answer<'_, Vec<Indexed>> {
        self.answer(tasks::load_dead_letters(self))
    }

    fn count_dead_letters(&self) -> Answer<'_, u64> {
        self.answer(tasks::count_dead_letters(self))
    }

    fn replace_dead_letters(&self, found: Vec<Indexed>, began: Timestamp) -> Answer<'_, ()> {
        self.answer(async move { tasks::replace_dead_letters(self, &found, began).await })
    }

    fn has_replay_ended(&self, replay_id: Uuid) -> Answer<'_, bool> {
        self.answer_soon(tasks::has_replay_ended(self, replay_id))
    }

    fn count_replays(&self, beginning: String) -> Answer<'_, Vec<ReplayCount>> {
        self.answer(async move { tasks::count_replays(self, &beginning).await })
    }

    fn append_audit(&self, entry: AuditEntry) -> Answer<'_, ()> {
        self.answer(async move { tasks::append_audit(self, &entry).await })
    }

    fn load_audit(&self, last: u32) -> Answer<'_, Vec<AuditEntry>> {
        self.answer(tasks::load_audit(self, last))
    }

    fn inspect(&self) -> Answer<'_, Condition> {
        self.answer(tasks::inspect(self))
    }

    fn count(&self) -> Answer<'_, Counts> {
        self.answer(tasks::count(self))
    }

    fn count_out_of_step(&self) -> Answer<'_, (u64, Option<Timestamp>)> {
        self.answer_soon(tasks::count_out_of_step(self))
    }

    fn sweep(&self, limit: Option<Timestamp>, overdue: Timestamp) -> Answer<'_, u64> {
        self.answer(tasks::sweep(self, limit, overdue))
    }

    fn clear(&self) -> Answer<'_, ()> {
        self.answer(tasks::clear(self))
    }

    fn load_part(&self, behind: Option<CustomerKey>) -> Answer<'_, Part> {
        self.answer(tasks::load_part(self, behind))
    }

    fn store_part(&self, part: Part) -> Answer<'_, ()> {
        self.answer(async move { tasks::store_part(self, &part).await })
    }

    fn load_number(&self) -> Answer<'_, Numbered> {
        self.answer_soon(number::load(self))
    }

    fn raise_number(&self, at_least: u64, at: Timestamp) -> Answer<'_, Numbered> {
        self.answer_soon(number::raise(self, None, at_least, at))
    }

    fn open_gap(&self, gap: Gap, at_least: u64, at: Timestamp) -> Answer<'_, Numbered> {
        self.answer(number::raise(self, Some(gap), at_least, at))
    }

    fn close_gap(&self) -> Answer<'_, ()> {
        self.answer(number::close_gap(self))
    }

    fn read_clock(&self) -> Answer<'_, Option<Timestamp>> {
        self.answer_soon(async { tasks::read_clock(self).await.map(Some) })
    }

    fn load_doubts(&self) -> Answer<'_, Vec<Doubted>> {
        self.answer(number::load_doubts(self))
    }
}
