//! What the relay's two batchers do: read customers, record changes. What is refused by itself is set
//! aside, until it is known whose fault that is.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::aside::Aside;
use super::batcher::{Asked, Work};
use super::change::{Change, Committed};
use super::error::{LedgerError, Refusal};
use super::health::Side;
use super::model::{CustomerKey, Loaded};
use super::store::Store;
use crate::clock;

/// Reads customers.
pub(super) struct Reading {
    pub(super) store: Store,
    /// How long a customer is ours at most.
    pub(super) lease: Duration,
    pub(super) aside: Arc<Aside>,
}

impl Reading {
    async fn lease(&self, keys: Arc<Vec<CustomerKey>>) -> Result<Vec<Loaded>, LedgerError> {
        self.store.lease_customers(keys, self.lease).await
    }
}

impl Work for Reading {
    type Request = CustomerKey;
    type Reply = Loaded;

    fn side(&self) -> Side {
        Side::Reading
    }

    fn commits(&self) -> bool {
        self.store.is_shared()
    }

    fn answer(
        &self,
        keys: Arc<Vec<CustomerKey>>,
    ) -> BoxFuture<'_, Result<Vec<Loaded>, LedgerError>> {
        Box::pin(self.lease(keys))
    }

    fn refused(self: Arc<Self>, asked: Asked<CustomerKey, Loaded>, refusal: Refusal) {
        tokio::spawn(async move {
            let Asked { request, reply } = asked;
            let keys = Arc::new(vec![request]);
            let again = || self.lease(Arc::clone(&keys));
            let other = Change::lease_alone(clock::now());
            let taken = self.aside.settle(&other, refusal, again).await;
            // Whoever gave up waiting needs no answer.
            drop(reply.send(taken.unwrap_or(Loaded::Refused)));
        });
    }
}

/// Told how many changes each commit had and how long it took.
type OnCommit = Box<dyn Fn(usize, Duration) + Send + Sync>;

/// Records changes.
pub(super) struct Writing {
    pub(super) store: Store,
    pub(super) committed: OnCommit,
    pub(super) aside: Arc<Aside>,
}

impl Writing {
    async fn commit(&self, changes: Arc<Vec<Change>>) -> Result<Vec<Committed>, LedgerError> {
        let began = clock::instant();
        let ends = self.store.commit_changes(Arc::clone(&changes)).await?;
        (self.committed)(changes.len(), began.elapsed());
        Ok(ends)
    }
}

impl Work for Writing {
    type Request = Change;
    type Reply = Committed;

    fn side(&self) -> Side {
        Side::Writing
    }

    fn commits(&self) -> bool {
        true
    }

    fn answer(
        &self,
        changes: Arc<Vec<Change>>,
    ) -> BoxFuture<'_, Result<Vec<Committed>, LedgerError>> {
        Box::pin(self.commit(changes))
    }

    fn refused(self: Arc<Self>, asked: Asked<Change, Committed>, refusal: Refusal) {
        tokio::spawn(async move {
            let Asked { request, reply } = asked;
            let other = request.clone().disguised();
            let changes = Arc::new(vec![request]);
            let again = || self.commit(Arc::clone(&changes));
            let taken = self.aside.settle(&other, refusal, again).await;
            // Whoever gave up waiting needs no answer.
            drop(reply.send(taken.unwrap_or(Committed::Refused)));
        });
    }
}
