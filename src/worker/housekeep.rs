//! The ledger's keeping: no calls while it fails, and now and then what is not needed any more goes.

use std::time::Duration;

use super::Worker;
use crate::clock;

/// Not in the first moments, when there is most to do.
const FIRST_SWEEP: Duration = Duration::from_mins(1);
/// Between two looks at rows that could not be read.
const UNREADABLE_LOOK: Duration = Duration::from_secs(5);
const SWEEP_EVERY: Duration = Duration::from_hours(1);
/// Retries that are overdue for so long are not coming: their messages were taken away.
const OVERDUE: Duration = Duration::from_hours(7 * 24);

/// Stops calls and consumption while nothing can be recorded. Never ends.
pub(super) async fn obey_health(worker: &Worker) {
    let mut health = worker.ledger.health();
    while health.changed().await.is_ok() {
        let is_good = health.borrow_and_update().is_good();
        worker.gate.learn(|rules| rules.set_lacks_ledger(!is_good));
    }
    // There is no ledger.
    std::future::pending::<()>().await;
}

/// Notices that rows which could not be read are mended. Never ends.
pub(super) async fn look_at_unreadable_rows(worker: &Worker) {
    loop {
        tokio::time::sleep(UNREADABLE_LOOK).await;
        worker.ledger.look_at_unreadable_rows().await;
    }
}

/// Forgets customers that were not seen for `ledger.retention`. Never ends.
pub(super) async fn sweep_ledger(worker: &Worker) {
    let Some(store) = worker.ledger.store() else { return std::future::pending().await };
    let mut pause = FIRST_SWEEP;
    loop {
        tokio::time::sleep(pause).await;
        pause = SWEEP_EVERY;
        if worker.clocks.is_contradicted() {
            tracing::warn!("the ledger is not swept while our clock is off");
            continue;
        }
        let now = clock::now();
        let before = |span| now.checked_sub(span).expect("ten years ago is a time");
        let limit = worker.config.ledger.retention.map(before);
        match store.sweep(limit, before(OVERDUE)).await {
            Ok(0) => {}
            Ok(forgotten) => tracing::info!(forgotten, "customers not seen for ledger.retention"),
            Err(error) => tracing::warn!(%error, "the ledger could not be swept"),
        }
    }
}
