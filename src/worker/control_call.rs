//! Control calls: an update that was applied is sent once more, which changes nothing, to find out
//! whether the portal takes anything. When, and whose, the gate's rules say.

use std::sync::Arc;
use std::time::Duration;

use opentelemetry::Context;

use super::Worker;
use crate::clock;
use crate::domain::controls::Candidate;
use crate::domain::gate::{Control, Pass};
use crate::domain::retry::after;
use crate::domain::row::Row;
use crate::domain::update::Update;
use crate::ledger::{Change, Committed, CustomerKey, Lease, Loaded, LoadedCustomer};

/// Before a control call is tried again that could not be made: its customer was busy.
const BUSY_PAUSE: Duration = Duration::from_millis(100);

/// Makes control calls when they are due. Never ends.
pub(super) async fn make_control_calls(worker: &Arc<Worker>) {
    loop {
        worker.gate.wants_control().await;
        let control =
            worker.gate.control(|customer| worker.with_lanes(|lanes| lanes.reserve(customer)));
        let is_made = match control {
            // A task like an event's: at the end of the relay what waits behind it is handed back.
            Control::Call(candidate, pass) => {
                let task = worker.tasks.spawn(ask(Arc::clone(worker), candidate, pass));
                task.await.expect("a panic ends the process, and no task is aborted")
            }
            Control::None => false,
        };
        if !is_made {
            tokio::time::sleep(BUSY_PAUSE).await;
        }
    }
}

/// Sends it again if that may be, and begins what has come for its customer meanwhile.
async fn ask(worker: Arc<Worker>, candidate: Candidate, pass: Pass) -> bool {
    let is_made = worker.send_again(&candidate, pass).await;
    if let Some(next) = worker.with_lanes(|lanes| lanes.finish(&candidate.customer)) {
        worker.start_lane(next);
    }
    is_made
}

impl Worker {
    /// Sends an update again, if it is its customer's newest: another relay may have applied something
    /// newer, or have the customer just now. The ledger knows. False if it was not sent.
    async fn send_again(&self, candidate: &Candidate, pass: Pass) -> bool {
        let Candidate { customer, update, .. } = candidate;
        let give_back = || self.gate.learn(|rules| rules.give_back(pass, clock::instant()));
        // Another one is to be asked.
        let give_up = || self.gate.learn(|rules| rules.give_up(customer, clock::instant()));
        let key = self.ledger.key(customer);
        let read = async {
            // Nothing else lies between the lease and the call.
            self.gate.keep_rate().await;
            self.ledger.load(key).await
        };
        let loaded = tokio::select! {
            loaded = read => loaded,
            () = self.cut.cancelled() => {
                give_back();
                return false;
            }
        };
        let mut loaded = match loaded {
            Loaded::Ours(loaded) => loaded,
            Loaded::Held => {
                give_back();
                return false;
            }
            Loaded::Unreadable(_) | Loaded::Refused => {
                give_up();
                give_back();
                return false;
            }
        };
        if loaded.was_taken_over && has_values(&loaded) {
            let now = clock::now();
            loaded.row.mark(None, after(now, self.config.portal.settle_after), now);
        }
        let is_newest = self.ledger.about().is_none() || candidate.is_newest(&loaded.row);
        if !is_newest && give_up() {
            tracing::warn!(
                "portal.probe_customer has had events of its own, which its update would overwrite: \
                 it is not sent; name a customer that the CRM does not update"
            );
        }
        // No event comes again after a crash to say so: it is in the ledger before.
        let marked = if is_newest { Some(self.mark(key, &loaded, true).await) } else { None };
        if marked == Some(Committed::Refused) {
            give_up();
        }
        // The commit may have lasted: who else has the customer now?
        let span = self.config.longest_attempt();
        let is_ours = loaded.lease.is_none_or(|lease| lease.lasts(clock::instant(), span));
        if marked != Some(Committed::Done) || !is_ours {
            give_back();
            self.end_lease(key, loaded.lease, None).await;
            return false;
        }
        if self.call_again((customer, update), pass, loaded.lease).await {
            self.mark(key, &loaded, false).await;
        } else {
            let row = has_values(&loaded).then(|| loaded.row.pack());
            self.end_lease(key, loaded.lease, row).await;
        }
        true
    }

    async fn end_lease(&self, key: CustomerKey, lease: Option<Lease>, row: Option<Vec<u8>>) {
        let change = Change { row, ..super::unchanged(key, lease, clock::now()) };
        if !change.is_empty() {
            self.ledger.commit(change).await;
        }
    }

    /// Whether the call may still be under way.
    async fn call_again(
        &self,
        (customer, update): (&Arc<str>, &Update),
        pass: Pass,
        lease: Option<Lease>,
    ) -> bool {
        let context = Context::new();
        tokio::select! {
            called = self.call_once(customer, update, (&context, 0), lease) => {
                let judgement = self.config.retry.believe(called.judgement);
                let outcome = judgement.outcome;
                tracing::info!(outcome = outcome.name(), "control call");
                self.gate.end_control(&called.call, pass, &judgement);
                outcome.may_be_under_way()
            }
            () = self.cut.cancelled() => {
                self.gate.learn(|rules| rules.give_back(pass, clock::instant()));
                true
            }
        }
    }

    /// Records that a call may be under way. A lease that was lost has somebody else know.
    async fn mark(
        &self,
        key: CustomerKey,
        loaded: &LoadedCustomer,
        keeps_lease: bool,
    ) -> Committed {
        let (mut row, at) = (loaded.row.clone(), clock::now());
        row.mark(None, after(at, self.config.portal.settle_after), at);
        let row = has_values(loaded).then(|| row.pack());
        let change = Change { row, keeps_lease, ..super::unchanged(key, loaded.lease, at) };
        if change.is_empty() { Committed::Done } else { self.ledger.commit(change).await }
    }
}

/// Where nothing was ever applied, nothing can be undone: a probe customer leaves no row behind.
fn has_values(loaded: &LoadedCustomer) -> bool {
    loaded.row != Row::default()
}
