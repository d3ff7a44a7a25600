//! What a relay must have before it consumes: its ledger, and where only one relay may be active,
//! the locks that say it is this one.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::session::OpenError;
use super::{StartError, Worker};
use crate::amqp::{AmqpError, Hold, Link, hold, is_held, ledger_id};
use crate::clock;
use crate::config::Config;
use crate::ledger::{Ledger, LedgerError, Store};

/// Between two looks whether the active relay is still there.
const STANDBY_LOOK: Duration = Duration::from_secs(1);
/// A lease outlives the calls that it is for by so much.
const LEASE_MARGIN: Duration = Duration::from_secs(5);
/// Between two times that the ledger is swept.
const SWEEP_EVERY: Duration = Duration::from_hours(1);
/// Retries that are overdue for so long are not coming: their messages were taken away.
const OVERDUE: Duration = Duration::from_hours(7 * 24);

/// Opens the ledger, as soon as no other relay of this host works on it. `None` if the worker was
/// stopped before.
pub(super) async fn open_ledger(
    config: &Config,
    stop: &CancellationToken,
) -> Result<Option<Ledger>, StartError> {
    let mut is_standby = false;
    loop {
        match Store::open_to_work(&config.ledger.target).await {
            Ok(Some((store, about))) => {
                let lease = config.longest_attempt() + LEASE_MARGIN;
                return Ok(Some(Ledger::serve(store, about, lease)));
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
            tracing::info!("standby: another relay is active on the work queue");
        }
        is_standby = true;
        tokio::time::sleep(STANDBY_LOOK).await;
    }
    let topology = &worker.config.broker.topology;
    let known = ledger_id::look(link, topology).await?;
    let Some(about) = worker.ledger.about() else {
        if let Some(id) = known {
            let hint = "this work queue was fenced by a ledger; ledger.url is \"none\": nothing is";
            tracing::warn!(ledger_id = id, "{hint}");
        }
        return Ok(());
    };
    let own = about.id.to_string();
    match known {
        Some(known) if known == own => Ok(()),
        Some(known) => Err(OpenError::ForeignLedger { known, own }),
        None => {
            if let Err(error) = ledger_id::write(link, topology, about.id).await {
                tracing::warn!(%error, "the ledger's id is not written yet; the next session tries");
            }
            Ok(())
        }
    }
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

/// Stops calls while nothing can be recorded, and sweeps the ledger now and then. Never ends.
pub(super) async fn watch_ledger(worker: &Arc<Worker>) {
    let mut health = worker.ledger.health();
    let mut sweeps = tokio::time::interval(SWEEP_EVERY);
    loop {
        tokio::select! {
            changed = health.changed() => {
                if changed.is_err() {
                    // There is no ledger.
                    return std::future::pending().await;
                }
                let is_good = health.borrow_and_update().is_good();
                worker.gate.learn(|rules| rules.set_lacks_ledger(!is_good));
            }
            _ = sweeps.tick() => sweep(worker).await,
        }
    }
}

async fn sweep(worker: &Worker) {
    let Some(store) = worker.ledger.store() else { return };
    let now = clock::now();
    let before = |span| now.checked_sub(span).unwrap_or_default();
    let limit = worker.config.ledger.retention.map(before);
    match store.sweep(limit, before(OVERDUE)).await {
        Ok(0) => {}
        Ok(forgotten) => tracing::info!(forgotten, "customers not seen for ledger.retention"),
        Err(error) => tracing::warn!(%error, "the ledger could not be swept"),
    }
}
