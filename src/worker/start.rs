//! What a relay must have before it consumes: its ledger, and where only one relay may be active,
//! the locks that say it is this one.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::number::write_mark;
use super::session::OpenError;
use super::{StartError, Worker};
use crate::amqp::{AmqpError, Hold, Link, hold, is_consumed, is_held, ledger_id};
use crate::clock;
use crate::config::Config;
use crate::ledger::{Ledger, LedgerError, Store};
use crate::telemetry::Metrics;

/// Between two looks whether the active relay is still there.
const STANDBY_LOOK: Duration = Duration::from_secs(1);
/// Between two looks whether what a session that has ended had in hand is back in the work queue.
const RETURNED_LOOK: Duration = Duration::from_millis(50);
/// Whoever consumes after so long is no session that has ended.
const RETURNED_LIMIT: Duration = Duration::from_secs(2);
/// A lease outlives the calls that it is for by so much.
const LEASE_MARGIN: Duration = Duration::from_secs(5);

/// Opens the ledger, as soon as no other relay of this host works on it. `None` if the worker was
/// stopped before.
pub(super) async fn open_ledger(
    config: &Config,
    metrics: &Arc<Metrics>,
    stop: &CancellationToken,
) -> Result<Option<Ledger>, StartError> {
    let mut is_standby = false;
    loop {
        match Store::open_to_work(&config.ledger.target).await {
            Ok(Some((store, about))) => {
                let lease = config.longest_attempt() + LEASE_MARGIN;
                let metrics = Arc::clone(metrics);
                let committed = move |changes, took| metrics.committed(changes, took);
                return Ok(Some(Ledger::serve(store, about, lease, committed)));
            }
            Ok(None) => return Ok(Some(Ledger::none())),
            Err(LedgerError::InUse(by)) => {
                if !is_standby {
                    tracing::info!(by, "standby: another relay works on the ledger");
                }
                is_standby = true;
            }
            Err(error) => return Err(StartError::Ledger(error)),
        }
        tokio::select! {
            () = tokio::time::sleep(STANDBY_LOOK) => {}
            () = stop.cancelled() => return Ok(None),
        }
    }
}

/// Waits until this relay may consume on this connection, and looks that its ledger is the one that
/// the work queue is fenced by.
pub(super) async fn claim(worker: &Worker, link: &Link) -> Result<(), OpenError> {
    let mut is_standby = false;
    while !may_be_active(worker, link).await? {
        if !is_standby {
            let lock = worker.config.broker.topology.active_queue();
            tracing::info!(lock, "standby: another relay is active on the work queue");
        }
        is_standby = true;
        worker.vitals.note(|seen| seen.is_standby = true);
        tokio::time::sleep(STANDBY_LOOK).await;
    }
    worker.vitals.note(|seen| seen.is_standby = false);
    if !worker.ledger.is_shared() {
        wait_for_returns(worker, link).await?;
    }
    let topology = &worker.config.broker.topology;
    let known = ledger_id::look(link, topology).await?;
    let Some(about) = worker.ledger.about() else {
        if let Some(known) = known {
            let hint = "this work queue was fenced by a ledger; ledger.url is \"none\": nothing is";
            tracing::warn!(ledger_id = known.id, "{hint}");
        }
        return Ok(());
    };
    // Read after the broker's: whatever number is there was first the ledger's.
    let own = worker.ledger.load_number().await?.mark(about);
    match known {
        Some(known) => {
            if let Some(fault) = own.compare(&known).fault() {
                return Err(OpenError::WrongLedger(fault));
            }
        }
        None => {
            if let Err(error) = write_mark(worker, &own).await {
                tracing::warn!(%error, "the ledger's id is not written yet; the next session tries");
            }
        }
    }
    worker.claimed.notify_one();
    Ok(())
}

/// The lock of a session that has ended may be free a moment before what it had in hand is back: what was
/// published after that must not be received first.
async fn wait_for_returns(worker: &Worker, link: &Link) -> Result<(), AmqpError> {
    let topology = &worker.config.broker.topology;
    let end = clock::instant() + RETURNED_LIMIT;
    while clock::instant() < end {
        if !is_consumed(link, topology).await? {
            return Ok(());
        }
        tokio::time::sleep(RETURNED_LOOK).await;
    }
    let queue = topology.work_queue();
    tracing::warn!(queue, "somebody else consumes the work queue: its events have no sure order");
    Ok(())
}

/// Where several may be active, it is enough that none is that must be alone.
async fn may_be_active(worker: &Worker, link: &Link) -> Result<bool, AmqpError> {
    let topology = &worker.config.broker.topology;
    if worker.ledger.is_shared() {
        return Ok(!is_held(link, topology).await?);
    }
    match hold(link, topology).await? {
        Hold::Ours => Ok(true),
        Hold::Taken => Ok(false),
        Hold::Forbidden => {
            tracing::warn!(
                queue = topology.active_queue(),
                "this user may not declare the lock of the active relay: make sure that there is \
                 one relay only, or allow it"
            );
            Ok(true)
        }
    }
}
