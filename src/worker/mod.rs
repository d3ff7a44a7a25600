//! The journey: consume, admit, handle, settle, and at the end drain. The only module with state
//! that outlives one event.

mod admit;
mod fuse;
mod gate;
mod handle;
mod report;
mod session;
mod settle;
mod witness;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::amqp::{Delivery, Publisher};
use crate::clock;
use crate::config::Config;
use crate::domain::fuse::Fuse;
use crate::domain::lanes::Lanes;
use crate::domain::retry::Tier;
use crate::domain::verdict::Verdict;
use crate::portal::{Keyring, Portal};
use admit::Admitted;
use gate::Gate;
pub use report::Report;
use report::Tally;
pub use session::StartError;
use witness::Controls;

/// Messages under way at once to retry tiers and the dead-letter queue.
const PUBLISH_WIDTH: usize = 16;

/// Between two looks at the files that hold the portal's credentials.
const CREDENTIALS_CHECK: Duration = Duration::from_secs(2);

/// Everything the journey needs, shared by all events.
struct Worker {
    config: Config,
    work_queue: String,
    portal: Portal,
    keyring: Keyring,
    publisher: Publisher,
    lanes: Mutex<Lanes<Box<Admitted>>>,
    gate: Gate,
    controls: Controls,
    fuse: Mutex<Fuse>,
    /// The fuse has paused the relay; its order is still on the way to the broker.
    fuse_is_pausing: AtomicBool,
    tasks: TaskTracker,
    /// Ends consumption and hands back what has not begun.
    stop: CancellationToken,
    /// Cuts calls under way, when the grace period is over.
    cut: CancellationToken,
    tally: Tally,
}

/// Relays events until `stop`, then drains: finishes what is under way within the grace period,
/// hands back the rest, and reports. `cut` ends the grace period early.
pub async fn run(
    config: Config,
    stop: CancellationToken,
    cut: CancellationToken,
) -> Result<Report, StartError> {
    let portal = Portal::try_new(&config.portal).map_err(StartError::Portal)?;
    let keyring = Keyring::try_new(&config.portal).map_err(StartError::Portal)?;
    let worker = Arc::new(Worker {
        portal,
        keyring,
        work_queue: config.broker.topology.work_queue(),
        publisher: Publisher::new(config.broker.broker.clone(), PUBLISH_WIDTH),
        lanes: Mutex::default(),
        gate: Gate::new(&config),
        controls: Controls::new(config.portal.probe_customer.clone()),
        fuse: Mutex::default(),
        fuse_is_pausing: AtomicBool::new(false),
        tasks: TaskTracker::new(),
        stop,
        cut,
        tally: Tally::default(),
        config,
    });
    worker.log_policies();
    tokio::select! {
        ended = session::consume_until_stopped(&worker) => ended?,
        () = watch_credentials(&worker) => {}
        () = keep_time(&worker) => {}
    }
    Ok(worker.tally.report())
}

/// Lets calls pass when their time has come. Never ends.
async fn keep_time(worker: &Arc<Worker>) {
    loop {
        worker.gate.keep_time().await;
        worker.probe_by_control().await;
    }
}

/// Reads the portal's credentials again whenever their files change. Never ends.
async fn watch_credentials(worker: &Worker) {
    let keyring = &worker.keyring;
    let mut seen = keyring.changed_at();
    if seen.is_none() {
        return std::future::pending().await;
    }
    loop {
        tokio::time::sleep(CREDENTIALS_CHECK).await;
        let now = keyring.changed_at();
        if now != seen {
            keyring.reread();
            worker.gate.learn(|rules| rules.credentials_changed(clock::instant()));
            seen = now;
        }
    }
}

impl Worker {
    /// A delivery begins its journey. Returns at once: what can be told without a call is settled
    /// beside the lanes, everything else waits for its customer's turn.
    fn begin(self: &Arc<Self>, delivery: Delivery) {
        match admit::admit(&self.config, &self.work_queue, delivery) {
            Ok(admitted) => {
                self.passed(&admitted.customer);
                let customer = Arc::clone(&admitted.customer);
                let start = self.with_lanes(|lanes| lanes.arrive(&customer, admitted));
                if let Some(admitted) = start {
                    self.start_lane(admitted);
                }
            }
            Err(ended) => {
                let worker = Arc::clone(self);
                self.tasks.spawn(async move {
                    let admit::Ended { delivery, verdict, customer } = *ended;
                    worker.refused(&verdict, customer.as_deref());
                    worker.settle(delivery, verdict).await;
                });
            }
        }
    }

    fn start_lane(self: &Arc<Self>, first: Box<Admitted>) {
        let worker = Arc::clone(self);
        self.tasks.spawn(async move { worker.run_lane(first).await });
    }

    /// One customer's events, until none waits.
    async fn run_lane(self: &Arc<Self>, first: Box<Admitted>) {
        let customer = Arc::clone(&first.customer);
        let mut next = Some(first);
        while let Some(admitted) = next {
            self.handle(admitted).await;
            next = self.with_lanes(|lanes| lanes.finish(&customer));
        }
    }

    /// Puts an event into a retry tier, and those that wait behind it after it, untried, so that
    /// they do not overtake it. An event that arrives only now does not follow: it may be the very
    /// message, back already.
    async fn postpone_lane(&self, head: Delivery, customer: &str, tier: Tier, verdict: Verdict) {
        let waiting = self.with_lanes(|lanes| lanes.take_waiting(customer));
        self.settle(head, verdict).await;
        for follower in waiting {
            let Admitted { delivery, history, .. } = *follower;
            self.settle(delivery, Verdict::Wait { tier, history }).await;
        }
    }

    fn with_lanes<T>(&self, act: impl FnOnce(&mut Lanes<Box<Admitted>>) -> T) -> T {
        // Nothing in a lane can be half done: a panic elsewhere leaves it whole.
        act(&mut self.lanes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn log_policies(&self) {
        let fields = &self.config.rules.fields;
        tracing::info!(
            address = ?fields.address,
            city_spaces = ?fields.city_spaces,
            state_spaces = ?fields.state_spaces,
            mobile_no_normalize = fields.mobile_no_normalize,
            default_country = fields.default_country,
            field_order = %self.config.portal.field_order,
            "field policies in force"
        );
        tracing::warn!(
            "ledger.url is \"none\": an update that waits for a retry can overwrite a newer one of \
             the same customer"
        );
    }
}
