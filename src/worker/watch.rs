//! How the relay is, told to whoever watches: gauges and `/readyz` read it here.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::Worker;
use crate::health::{OutOfStep, Reading};

/// Between two looks at who is out of step.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A look may take so much of the time: on a ledger full of dead letters it is not for nothing.
const LOOKS_SHARE: u32 = 20;

/// From now on readings come from this worker.
pub(super) fn tell(worker: &Arc<Worker>) {
    let told = Arc::downgrade(worker);
    worker.telemetry.health.comes_from(move || Some(told.upgrade()?.reading()));
}

/// There is no session with the broker now: what was seen through it is not known any more.
pub(super) fn session_is_over(worker: &Worker) {
    worker.clocks.note_queue(false);
    worker.vitals.note(|seen| {
        (seen.is_connected, seen.is_active, seen.is_standby) = (false, false, false);
        seen.depths = None;
    });
}

/// Asks the ledger at intervals, beside the work. Never ends.
pub(super) async fn look_for_out_of_step(worker: &Worker) {
    let Some(store) = worker.ledger.store() else { return std::future::pending().await };
    loop {
        let began = crate::clock::instant();
        match store.count_out_of_step().await {
            Ok((customers, since)) => {
                let found = OutOfStep { customers, since };
                worker.vitals.note(|seen| seen.out_of_step = Some(found));
            }
            Err(error) => {
                tracing::debug!(%error, "who is out of step is not known");
                worker.vitals.note(|seen| seen.out_of_step = None);
            }
        }
        tokio::time::sleep(LOOK_EVERY.max(began.elapsed() * LOOKS_SHARE)).await;
    }
}

impl Worker {
    fn reading(&self) -> Reading {
        let seen = self.vitals.seen();
        let (state, calls, is_paused) =
            self.gate.look(|rules| (rules.state(), rules.under_way(), rules.is_paused()));
        Reading {
            is_standby: seen.is_standby,
            is_connected: seen.is_connected,
            fits_broker: !seen.is_misfit,
            is_active: seen.is_active,
            is_draining: self.stop.is_cancelled(),
            is_paused,
            is_ledger_healthy: self.ledger.health().borrow().is_good(),
            unreadable_rows: self.ledger.unreadable_rows(),
            is_fuse_blown: self.fuse.lock().unwrap_or_else(PoisonError::into_inner).is_blown(),
            breaker: state.name(),
            outage: state.kind(),
            in_hand: self.tally.in_hand(),
            in_hand_at_most: self.config.in_hand_at_most() as u64,
            calls,
            depths: seen.depths,
            out_of_step: seen.out_of_step,
            clock_offsets: self.clocks.seconds(),
        }
    }
}
