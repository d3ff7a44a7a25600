//! The ledger's number grows while a relay works, and the broker keeps a copy of it: so an older copy
//! of the ledger, whatever put it in place, is noticed.
//!
//! Once a minute, not with each commit: the broker's copy could not keep up with commits, and what is
//! lost with less than a minute's work is found by no number. So nothing of it is on an event's way.

use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;

use super::Worker;
use crate::amqp::{AmqpError, Link, PublishError, ledger_id};
use crate::clock;
use crate::domain::ledger_mark::{Comparison, LedgerMark};
use crate::ledger::{AuditEntry, LedgerError};

const RENEW_EVERY: Duration = Duration::from_mins(1);
/// At the end: whoever stops us does not wait for long.
const LAST_RENEWAL: Duration = Duration::from_secs(2);

/// Why the number did not grow.
#[derive(Debug, thiserror::Error)]
enum Unrenewed {
    #[error(transparent)]
    Broker(#[from] AmqpError),
    #[error(transparent)]
    Unpublished(#[from] PublishError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("{0}")]
    WrongLedger(String),
}

/// Renews the number when a session begins and each minute after. Never ends.
pub(super) async fn keep_number(worker: &Worker) {
    loop {
        worker.claimed.notified().await;
        worker.has_claimed.store(true, Ordering::SeqCst);
        loop {
            renew_or_say(worker).await;
            tokio::select! {
                () = tokio::time::sleep(RENEW_EVERY) => {}
                () = worker.claimed.notified() => {}
            }
            // Without a session it is not known whether the ledger is still the right one.
            if !worker.vitals.seen().is_active {
                break;
            }
        }
    }
}

/// Once more at the orderly end, if it was ever known to be the right ledger.
pub(super) async fn renew_at_end(worker: &Worker) {
    if worker.has_claimed.load(Ordering::SeqCst)
        && tokio::time::timeout(LAST_RENEWAL, renew_or_say(worker)).await.is_err()
    {
        tracing::debug!("the ledger's number was not renewed at the end");
    }
}

async fn renew_or_say(worker: &Worker) {
    match renew(worker).await {
        Ok(()) => {}
        Err(Unrenewed::WrongLedger(fault)) => {
            tracing::error!("{fault}");
            worker.ledger_changed.notify_one();
        }
        Err(error) => tracing::warn!(%error, "the ledger's number is not renewed yet"),
    }
}

/// The ledger first: whatever number the broker has, the right ledger is as far at least.
async fn renew(worker: &Worker) -> Result<(), Unrenewed> {
    let Some(about) = worker.ledger.about() else { return Ok(()) };
    let link = connect(worker).await?;
    let renewed = async {
        let known = ledger_id::look(&link, &worker.config.broker.topology).await?;
        let own = worker.ledger.load_number().await?.mark(about);
        if let Some(known) = &known {
            let comparison = own.compare(known);
            if let Some(fault) = comparison.fault() {
                return Err(Unrenewed::WrongLedger(fault));
            }
            if let Comparison::FailedOver { since } = comparison {
                note_fail_over(worker, since).await?;
            }
        }
        let raised = worker.ledger.raise_number(clock::now()).await?.mark(about);
        // Another relay may have been quicker: what is there is never lowered.
        if known.is_none_or(|known| known.number < raised.number) {
            ledger_id::write(&link, &worker.config.broker.topology, &raised).await?;
        }
        Ok(())
    };
    let renewed = renewed.await;
    link.close().await;
    renewed
}

/// Writes which ledger it is, where nothing says so yet.
pub(super) async fn write_mark(worker: &Worker, mark: &LedgerMark) -> Result<(), PublishError> {
    let link = connect(worker).await?;
    let written = ledger_id::write(&link, &worker.config.broker.topology, mark).await;
    link.close().await;
    written
}

/// On a connection of its own: one that has published is not read from any more while the broker has
/// a memory alarm, and acks would not arrive.
async fn connect(worker: &Worker) -> Result<Link, AmqpError> {
    worker.config.broker.broker.connect("ledger-id").await
}

/// The number did not go back, so at most the last minute's commits are missing, and with a
/// synchronous replica none: no event is held for that. Whoever knows better opens the gap.
async fn note_fail_over(worker: &Worker, since: Option<Timestamp>) -> Result<(), LedgerError> {
    let now = clock::now();
    let since = since.map_or_else(|| "an unknown time".to_owned(), |at| at.to_string());
    let what = format!("PostgreSQL failed over between {since} and {now}");
    tracing::warn!(
        %since,
        until = %now,
        "the ledger's PostgreSQL has failed over; unless the replica was synchronous, its last \
         commits may be lost: then `customer-relay ledger doubts --open {since}`"
    );
    let Some(store) = worker.ledger.store() else { return Ok(()) };
    let (who, act) = ("customer-relay".to_owned(), "fail-over".to_owned());
    store.append_audit(AuditEntry { at: now, who, act, what, why: None, count: 0 }).await
}
