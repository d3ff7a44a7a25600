//! Where a case runs: a ledger's place of its own, which can also be changed by hand.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use customer_relay::domain::dead_letter::Reason;
use customer_relay::domain::field::{Field, FieldSet};
use customer_relay::domain::letter::Letter;
use customer_relay::domain::row::Row;
use customer_relay::domain::version::{EventRef, OrderBy, Place, Sequence, Version};
use customer_relay::ledger::{
    About, Change, Committed, CustomerKey, DoubtNote, LedgerError, Loaded, Note, PendingNote,
    Store, Target,
};
use jiff::Timestamp;
use tempfile::TempDir;
use uuid::Uuid;

use super::hand::Hand;
use crate::harness::Context;
use crate::support::bed::LIMIT;
use crate::support::eventually;

/// Long enough for any case.
pub const LEASE: Duration = Duration::from_mins(1);

pub struct Ground {
    context: Context,
    hand: Hand,
    folder: TempDir,
}

impl Ground {
    pub fn sqlite(context: Context) -> Result<Ground> {
        let folder = tempfile::tempdir()?;
        let hand = Hand::File(folder.path().join("ledger.db"));
        Ok(Ground { context, hand, folder })
    }

    pub async fn postgres(context: Context) -> Result<Ground> {
        let hand = Hand::Server(context.postgres().await?.database().await?);
        Ok(Ground { context, hand, folder: tempfile::tempdir()? })
    }

    /// An empty one of the same kind.
    pub async fn another(&self) -> Result<Ground> {
        match &self.hand {
            Hand::File(_) => Ground::sqlite(self.context.clone()),
            Hand::Server(_) => Ground::postgres(self.context.clone()).await,
        }
    }

    pub fn is_sqlite(&self) -> bool {
        self.hand.is_sqlite()
    }

    pub fn target(&self) -> Result<Target> {
        self.hand.target()
    }

    /// A ledger file beside it, whatever its kind.
    pub fn beside(&self) -> Result<Target> {
        let path = self.folder.path().join("beside.db");
        Ok(Target::parse(&format!("sqlite:{}", path.display()))?)
    }

    pub async fn open(&self) -> Result<(Store, About)> {
        self.try_open().await?.context("a place for a ledger")
    }

    /// Opens it once more.
    pub async fn open_again(&self) -> Result<(Store, About)> {
        once_free(|| self.try_open()).await?.context("a place for a ledger")
    }

    pub async fn try_open(&self) -> Result<Option<(Store, About)>, LedgerError> {
        Store::open_to_work(&self.target().expect("a URL of ours")).await
    }

    pub async fn visit(&self) -> Result<Option<(Store, About)>, LedgerError> {
        Store::visit(&self.target().expect("a URL of ours")).await
    }

    pub async fn by_hand(&self, sql: &str) -> Result<()> {
        self.hand.act(sql).await
    }

    pub async fn number(&self, query: &str) -> Result<i64> {
        self.hand.number(query).await
    }

    pub async fn count(&self, table: &str) -> Result<i64> {
        self.number(&format!("SELECT count(*) FROM {table}")).await
    }

    pub fn bytes(&self, bytes: &[u8]) -> String {
        self.hand.bytes(bytes)
    }

    pub fn key(&self, key: CustomerKey) -> String {
        self.hand.key(key)
    }

    /// So many customers with this row and keys that ascend, last written at `seen`.
    pub async fn add_customers(&self, count: u32, row: &[u8], seen: i64) -> Result<()> {
        let row = self.bytes(row);
        let sql = if self.is_sqlite() {
            format!(
                "WITH RECURSIVE number (n) AS
                     (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < {count})
                 INSERT INTO customers (key, row, seen)
                 SELECT CAST(printf('%016x', n) AS BLOB), {row}, {seen} FROM number"
            )
        } else {
            format!(
                "INSERT INTO customers (key, row, seen)
                 SELECT convert_to(lpad(to_hex(n), 16, '0'), 'UTF8'), {row}, {seen}
                 FROM generate_series(1, {count}) AS n"
            )
        };
        self.by_hand(&sql).await
    }
}

pub fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("a time")
}

pub fn event(id: &str) -> EventRef {
    EventRef { id: id.to_owned(), source: 7, revision: 0 }
}

/// A row in which this event owns two fields.
pub fn row(id: &str, time: Timestamp) -> Row {
    let sequence = Some(Sequence::parse("00420\u{1f600}"));
    let place = Place { time: Some(time), sequence, event: event(id) };
    let mut row = Row::default();
    let fields = FieldSet::NONE.with(Field::City).with(Field::Email);
    row.record(&Version { place, receipt: time }, fields, OrderBy::Time);
    row.mark(Some(&event("e-under-way")), Timestamp::MAX, time);
    row
}

pub fn waiting(id: &str) -> PendingNote {
    PendingNote {
        event: event(id),
        attempts: 3,
        since: at(1_000_000),
        due: at(2_000_000),
        reason: "unavailable".into(),
        tier_ms: Some(400),
    }
}

pub fn doubt(id: &str) -> DoubtNote {
    DoubtNote { event: event(id), at: at(4), ended: "in-doubt".into(), is_past: false }
}

pub fn letter(id: u128) -> Letter {
    Letter {
        id: Uuid::from_u128(id),
        event: Some(format!("e{id}")),
        reason: Reason::InvalidEvent,
        detail: Some("state: spaces inside".into()),
        field: Some("state".into()),
        rule: Some("spaces".into()),
        http_status: Some(400),
        portal_status: Some(-7),
        attempts: 4,
        died: Some(at(3_000_000)),
        flags: Some("needs-review".into()),
        replays: 2,
        revision: 1,
    }
}

/// Records this for a customer, with the lease that takes.
pub async fn commit(store: &Store, change: Change) -> Result<()> {
    let lease = match change.customer {
        Some(key) => lease(store, key).await?.and_then(|loaded| loaded.lease),
        None => None,
    };
    let ends = store.commit_changes(Arc::new(vec![Change { lease, ..change }])).await?;
    ensure!(ends == [Committed::Done], "{ends:?}");
    Ok(())
}

/// One customer, if it is to be had.
pub async fn lease(
    store: &Store,
    key: CustomerKey,
) -> Result<Option<customer_relay::ledger::LoadedCustomer>> {
    match store.lease_customers(Arc::new(vec![key]), LEASE).await?.pop().context("an answer")? {
        Loaded::Ours(loaded) => Ok(Some(*loaded)),
        Loaded::Held => Ok(None),
        found @ (Loaded::Unreadable(_) | Loaded::Refused) => anyhow::bail!("{found:?}"),
    }
}

pub async fn note(store: &Store, key: CustomerKey, notes: Vec<Note>) -> Result<()> {
    commit(store, Change { customer: Some(key), at: at(5), notes, ..Change::default() }).await
}

/// What takes a ledger for itself that was given up a moment ago. Programs that other tests start at
/// that moment hold its lock until they have begun.
pub async fn once_free<T, F>(take: impl Fn() -> F) -> Result<T>
where
    F: Future<Output = Result<T, LedgerError>>,
{
    eventually("the ledger is free", LIMIT, || async {
        match take().await {
            Err(LedgerError::InUse(_)) => Ok(None),
            taken => Ok(Some(taken?)),
        }
    })
    .await
}
