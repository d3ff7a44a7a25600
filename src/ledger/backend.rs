//! The contract of a ledger's backend. Each has a folder of its own; `tests/ledger_contract.rs` holds
//! them to the same behaviour.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use uuid::Uuid;

use super::change::{AuditEntry, Change, Committed};
use super::error::LedgerError;
use super::model::{
    About, Account, Condition, Counts, CustomerKey, Doubted, Indexed, Loaded, Numbered, Part,
    ReplayCount,
};
use crate::domain::doubt::Gap;
use crate::domain::packed::Unreadable;
use crate::domain::row::Row;

/// What a backend answers, in its own time.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, LedgerError>>;

/// Where a ledger is kept. Everything is done as a whole or not at all.
pub trait Backend: Debug + Send + Sync {
    /// Brings the tables up to date. What is known of the ledger, if it is not new.
    fn create_tables(&self) -> Answer<'_, Option<About>>;

    /// Makes it a ledger of its own. What it is, if another relay was quicker.
    fn create_ledger(&self, about: About) -> Answer<'_, About>;

    /// What it is; `None` if it is none yet. Refuses tables of another version.
    fn load_about(&self) -> Answer<'_, Option<About>>;

    /// Whether several relays can work on it at once.
    fn is_shared(&self) -> bool;

    /// Who works on it beside us, where no lock says so.
    fn find_other_users(&self) -> Answer<'_, Option<String>>;

    /// Reads customers to call for, and where leases are needed takes one on each.
    fn lease_customers(
        &self,
        keys: Arc<Vec<CustomerKey>>,
        lease: Duration,
    ) -> Answer<'_, Vec<Loaded>>;

    /// Records changes, all or none but those whose lease was lost. Fails with
    /// [`LedgerError::Refused`] if one of them cannot be recorded for what is in it.
    fn commit_changes(&self, changes: Arc<Vec<Change>>) -> Answer<'_, Vec<Committed>>;

    /// Records a change as [`commit_changes`](Backend::commit_changes) does, and takes it back.
    fn rehearse(&self, change: Change) -> Answer<'_, ()>;

    /// What is known of a customer; no more than 1,000 events that wait and 1,000 dead letters, the newest.
    fn load_account(&self, key: CustomerKey) -> Answer<'_, Account>;

    /// The customers' rows as they are, none of them leased.
    fn load_rows(&self, keys: Vec<CustomerKey>) -> Answer<'_, Vec<Result<Row, Unreadable>>>;

    /// Puts a row in place of one that cannot be read. False if it can be read by now.
    fn replace_unreadable(&self, key: CustomerKey, row: Row, at: Timestamp) -> Answer<'_, bool>;

    /// Erases all that is known of a customer; with a time, unless an event waits for a retry that is due
    /// after it. Whether it did.
    fn erase_customer(
        &self,
        key: CustomerKey,
        unless_due_after: Option<Timestamp>,
    ) -> Answer<'_, bool>;

    /// Every dead letter of the index, oldest first.
    fn load_dead_letters(&self) -> Answer<'_, Vec<Indexed>>;

    /// Dead letters in the index.
    fn count_dead_letters(&self) -> Answer<'_, u64>;

    /// Makes the index anew from what is in the queue. What a relay added since `began` stays.
    fn replace_dead_letters(&self, found: Vec<Indexed>, began: Timestamp) -> Answer<'_, ()>;

    /// Whether a replay has come to its end.
    fn has_replay_ended(&self, replay_id: Uuid) -> Answer<'_, bool>;

    /// How the replays ended whose ids begin like this.
    fn count_replays(&self, beginning: String) -> Answer<'_, Vec<ReplayCount>>;

    /// Adds to the audit log, which is never changed or erased.
    fn append_audit(&self, entry: AuditEntry) -> Answer<'_, ()>;

    /// The last entries of the audit log, oldest first.
    fn load_audit(&self, last: u32) -> Answer<'_, Vec<AuditEntry>>;

    /// Looks it over, all of it.
    fn inspect(&self) -> Answer<'_, Condition>;

    /// How much it holds, without looking for what is wrong.
    fn count(&self) -> Answer<'_, Counts>;

    /// How many customers have an event that waits for a retry or is a dead letter, and since when
    /// the first of them has. Delays nothing else, and may take a while.
    fn count_out_of_step(&self) -> Answer<'_, (u64, Option<Timestamp>)>;

    /// Forgets customers that were last written before `limit`, retries long overdue, and replays
    /// that ended long ago; how many customers.
    fn sweep(&self, limit: Option<Timestamp>, overdue: Timestamp) -> Answer<'_, u64>;

    /// Empties what is no ledger yet, but for its audit log.
    fn clear(&self) -> Answer<'_, ()>;

    /// Customers and what belongs to them, from behind a key on.
    fn load_part(&self, behind: Option<CustomerKey>) -> Answer<'_, Part>;

    /// Takes a part over; what is there already is replaced, but for the audit log, which is taken
    /// over into an empty one alone.
    fn store_part(&self, part: Part) -> Answer<'_, ()>;

    /// How far it has come.
    fn load_number(&self) -> Answer<'_, Numbered>;

    /// Raises the number by one, above `at_least`.
    fn raise_number(&self, at_least: u64, at: Timestamp) -> Answer<'_, Numbered>;

    /// Says that what was applied in the gap is not known, joined with an earlier gap, and raises the
    /// number above `at_least`: from now on it is no older copy any more.
    fn open_gap(&self, gap: Gap, at_least: u64, at: Timestamp) -> Answer<'_, Numbered>;

    /// No event is in doubt any more.
    fn close_gap(&self) -> Answer<'_, ()>;

    /// The time by its own clock, if it has one that is not ours.
    fn read_clock(&self) -> Answer<'_, Option<Timestamp>>;

    /// Events that were in doubt, the first of them first.
    fn load_doubts(&self) -> Answer<'_, Vec<Doubted>>;
}
