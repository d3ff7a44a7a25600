//! The open connections of one port: how many there are, which of them is closed first when there are
//! too many, and what was refused.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::telemetry::{Metrics, Refusal};

/// A connection's place in the queue of those that may be closed: first come those without a complete
/// request head, in either group the one that has waited longest for its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) has_request: bool,
    turn: u64,
}

/// Between two log lines about refusals, or about failures to accept.
const LOG_INTERVAL: Duration = Duration::from_mins(1);

#[derive(Debug)]
pub(super) struct Registry {
    max_connections: usize,
    metrics: Arc<Metrics>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    open: usize,
    next_turn: u64,
    /// Those that wait for their client, and how each is told to close.
    waiting: BTreeMap<Place, CancellationToken>,
    refusals: LoggedSeldom,
    failures: LoggedSeldom,
}

impl Registry {
    pub(super) fn new(max_connections: usize, metrics: Arc<Metrics>) -> Arc<Registry> {
        Arc::new(Registry { max_connections, metrics, inner: Mutex::default() })
    }

    pub(super) fn is_full(&self) -> bool {
        self.inner().open >= self.max_connections
    }

    pub(super) fn opened(&self) {
        self.count(|open| open + 1);
    }

    pub(super) fn closed(&self) {
        self.count(|open| open - 1);
    }

    fn count(&self, change: impl FnOnce(usize) -> usize) {
        let open = {
            let mut inner = self.inner();
            inner.open = change(inner.open);
            inner.open
        };
        self.metrics.admin_connections(open);
    }

    /// From now on it may be closed for another one.
    pub(super) fn wait(&self, has_request: bool, displaced: &CancellationToken) -> Place {
        let mut inner = self.inner();
        let place = Place { has_request, turn: inner.next_turn };
        inner.next_turn += 1;
        inner.waiting.insert(place, displaced.clone());
        place
    }

    /// It may not be closed any more.
    pub(super) fn keep(&self, place: Place) {
        self.inner().waiting.remove(&place);
    }

    /// Closes the connection that has waited longest for its client, if any waits.
    pub(super) fn make_room(&self) -> bool {
        let first = self.inner().waiting.pop_first();
        first.map(|(_, displaced)| displaced.cancel()).is_some()
    }

    /// Counts a connection that was closed, or not even begun.
    pub(super) fn refuse(&self, refusal: Refusal) {
        self.metrics.admin_refused(refusal);
        if let Some(count) = self.inner().refusals.count() {
            tracing::warn!(
                reason = refusal.name(),
                count,
                "a connection to the admin port was closed; see {} for all reasons",
                "customer_relay_admin_connections_refused_total"
            );
        }
    }

    pub(super) fn accept_failed(&self, error: &io::Error) {
        if let Some(count) = self.inner().failures.count() {
            tracing::warn!(%error, count, "cannot accept a connection to the admin port; retrying");
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Something that a visitor can cause as often as he likes, and the log must not repeat as often.
#[derive(Debug, Default)]
struct LoggedSeldom {
    logged: Option<Instant>,
    count: u64,
}

impl LoggedSeldom {
    /// How many there were since the last line, if it is time for one.
    fn count(&mut self) -> Option<u64> {
        self.count += 1;
        let now = clock::instant();
        if self.logged.is_some_and(|logged| now.duration_since(logged) < LOG_INTERVAL) {
            return None;
        }
        self.logged = Some(now);
        Some(std::mem::take(&mut self.count))
    }
}
