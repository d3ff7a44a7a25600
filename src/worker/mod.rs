//! The journey: consume, admit, handle, settle, and at the end drain. The only module with state
//! that outlives one event.

mod admit;
mod fuse;
mod gate;
mod group;
mod handle;
mod housekeep;
mod replay;
mod report;
mod session;
mod settle;
mod start;
mod watch;
mod witness;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::Port;
use crate::amqp::{Delivery, Publisher};
use crate::clock;
use crate::config::Config;
use crate::domain::fuse::Fuse;
use crate::domain::lanes::{Arrival, Lanes};
use crate::domain::redact::cut;
use crate::domain::retry::after;
use crate::domain::verdict::Verdict;
use crate::health::Vitals;
use crate::ledger::{Change, Ledger};
use crate::portal::{Keyring, Portal};
use crate::telemetry::trace::Received;
use crate::telemetry::{Metrics, Telemetry, trace};
use admit::Admitted;
use gate::Gate;
use group::{Group, Member};
pub use report::Report;
use report::Tally;
pub use session::StartError;
use settle::End;
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
    ledger: Ledger,
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
    telemetry: Telemetry,
    vitals: Vitals,
}

/// Relays events until `stop`, then drains: finishes what is under way within the grace period,
/// hands back the rest, and reports. `cut` ends the grace period early.
pub async fn run(
    config: Config,
    telemetry: Telemetry,
    stop: CancellationToken,
    cut: CancellationToken,
) -> Result<Report, StartError> {
    let portal = Portal::try_new(&config.portal).map_err(StartError::Portal)?;
    let keyring = Keyring::try_new(&config.portal).map_err(StartError::Portal)?;
    let admin = Port::open(&config.admin, &telemetry).await.map_err(StartError::Admin)?;
    let Some(ledger) = start::open_ledger(&config, &telemetry.metrics, &stop).await? else {
        return Ok(Report::default());
    };
    if let Some(admin) = &admin {
        admin.knows(&ledger);
    }
    let worker = Arc::new(Worker {
        portal,
        keyring,
        work_queue: config.broker.topology.work_queue(),
        publisher: Publisher::new(config.broker.broker.clone(), PUBLISH_WIDTH),
        lanes: Mutex::new(Lanes::new(lane_limit(&config))),
        ledger,
        gate: Gate::new(&config),
        controls: Controls::new(config.portal.probe_customer.clone()),
        fuse: Mutex::default(),
        fuse_is_pausing: AtomicBool::new(false),
        tasks: TaskTracker::new(),
        stop,
        cut,
        tally: Tally::new(Arc::clone(&telemetry.metrics)),
        telemetry,
        vitals: Vitals::default(),
        config,
    });
    watch::tell(&worker);
    worker.log_policies();
    tokio::select! {
        ended = session::consume_until_stopped(&worker) => ended?,
        () = watch_credentials(&worker) => {}
        () = keep_time(&worker) => {}
        () = housekeep::obey_health(&worker) => {}
        () = housekeep::sweep_ledger(&worker) => {}
        () = watch::look_for_out_of_step(&worker) => {}
    }
    Ok(worker.tally.report())
}

/// One customer may have a quarter of all deliveries in hand.
fn lane_limit(config: &Config) -> usize {
    usize::from(config.broker.prefetch / 4).max(1)
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
    fn begin(self: &Arc<Self>, mut delivery: Delivery) {
        self.tally.receive();
        self.trace(&mut delivery);
        match admit::admit(&self.config, delivery) {
            Ok(admitted) => {
                self.passed(&admitted.customer);
                let customer = Arc::clone(&admitted.customer);
                match self.with_lanes(|lanes| lanes.arrive(&customer, admitted)) {
                    Arrival::Starts(admitted) => self.start_lane(admitted),
                    Arrival::Waits => {}
                    Arrival::Full(admitted) => {
                        let worker = Arc::clone(self);
                        self.tasks.spawn(async move { worker.hand_back(admitted).await });
                    }
                }
            }
            Err(ended) => {
                let worker = Arc::clone(self);
                self.tasks.spawn(async move {
                    let admit::Ended { delivery, verdict, customer, event } = *ended;
                    let verdict = worker.unless_ended_before(&delivery, verdict).await;
                    worker.refused(&verdict, customer.as_deref());
                    let key = customer.map(|customer| worker.ledger.key(&customer));
                    let change = Change { customer: key, at: clock::now(), ..Change::default() };
                    worker.settle(vec![End::new(delivery, verdict, event)], change).await;
                });
            }
        }
    }

    /// The delivery's span begins, or it goes on with the context that came with its message.
    fn trace(&self, delivery: &mut Delivery) {
        let message = delivery.message();
        let received = Received {
            queue: &self.work_queue,
            id: message.id().map(|id| cut(id, admit::MAX_ID_BYTES)),
            bytes: message.body().len(),
            is_ours: message.is_ours(),
        };
        let context = self.telemetry.tracing.received(message.trace_context(), received);
        delivery.set_context(context);
    }

    fn metrics(&self) -> &Metrics {
        &self.telemetry.metrics
    }

    fn start_lane(self: &Arc<Self>, first: Box<Admitted>) {
        let worker = Arc::clone(self);
        // Boxed: a task's future is moved several times, and this one is large.
        self.tasks.spawn(Box::pin(async move { worker.run_lane(first).await }));
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

    /// Ends a turn: what the portal has is recorded, each event goes where its verdict says, and if
    /// the first one goes to a retry tier, those that wait behind it follow untried, so that they do
    /// not overtake it. An event that arrives only now does not follow: it may be the very message,
    /// back already.
    async fn end_turn(&self, mut group: Group, customer: &str, verdicts: Vec<Verdict>) {
        let now = clock::now();
        if verdicts.contains(&Verdict::Applied) {
            group.record(now);
        }
        let superseded = verdicts.iter().filter(|verdict| **verdict == Verdict::Superseded).count();
        for _ in 0..superseded {
            group.count_superseded();
        }
        for (member, verdict) in group.members.iter().zip(&verdicts) {
            if matches!(verdict, Verdict::Applied | Verdict::Superseded) {
                self.tally.withheld(member.withheld().len());
            }
            if *verdict == Verdict::Applied {
                self.metrics().applied(member.version.place.time, now);
            }
            if *verdict == Verdict::Superseded {
                log_superseded(&group, member);
            }
        }
        let change = group.change(now);
        let tier = verdicts.first().and_then(Verdict::tier);
        let mut ends: Vec<End> = Vec::with_capacity(verdicts.len());
        let (tiers, is_fenced) = (&self.config.retry.tiers, self.ledger.about().is_some());
        for (member, verdict) in group.members.into_iter().zip(verdicts) {
            let event = &member.version.place.event;
            // Without a ledger nothing would keep it from overwriting what is newer by then.
            let danger = match verdict {
                Verdict::Applied if is_fenced => group.row.endangered(event, now),
                _ => None,
            };
            let Admitted { delivery, history, .. } = *member.admitted;
            let resend =
                danger.map(|left| (tiers.at_least(left), history.resend(after(now, left))));
            ends.push(End { delivery, verdict, event: Some(member.version.place.event), resend });
        }
        if let Some(tier) = tier {
            for follower in self.with_lanes(|lanes| lanes.take_waiting(customer)) {
                let Admitted { delivery, history, place, .. } = *follower;
                ends.push(End::new(delivery, Verdict::Wait { tier, history }, Some(place.event)));
            }
        }
        self.settle(ends, change).await;
    }

    /// Hands an event back, and those behind it, without looking at it: not its customer's turn.
    async fn hand_back_lane(&self, head: Box<Admitted>) {
        let customer = Arc::clone(&head.customer);
        self.hand_back(head).await;
        for follower in self.with_lanes(|lanes| lanes.take_waiting(&customer)) {
            self.hand_back(follower).await;
        }
    }

    async fn hand_back(&self, admitted: Box<Admitted>) {
        let Admitted { delivery, history, place, customer, .. } = *admitted;
        let verdict = Verdict::hand_back(&self.config.retry.tiers, history);
        let change = Change {
            customer: Some(self.ledger.key(&customer)),
            at: clock::now(),
            ..Change::default()
        };
        self.settle(vec![End::new(delivery, verdict, Some(place.event))], change).await;
    }

    /// Ends a turn whose first delivery was forgotten: the others wait for another one.
    async fn give_up(&self, group: Group, customer: &str) {
        let change = group.change(clock::now());
        let mut others = Vec::new();
        for member in group.members {
            if member.admitted.delivery.is_forgotten() {
                self.tally.forgotten();
            } else {
                others.push(member.admitted);
            }
        }
        self.with_lanes(|lanes| lanes.put_back(customer, others));
        if !change.is_empty() {
            self.ledger.commit(change).await;
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
        if let Some(about) = self.ledger.about() {
            tracing::info!(
                ledger = %self.config.ledger.target,
                ledger_id = %about.id,
                order_by = ?self.config.order_by,
                merges = self.config.worker.merges,
                "no update overwrites a newer one"
            );
        } else {
            tracing::warn!(
                "ledger.url is \"none\": an update that waits for a retry can overwrite a newer one \
                 of the same customer"
            );
        }
    }
}

fn log_superseded(group: &Group, member: &Member) {
    let newer = group.superseding(member).map(|version| &version.place);
    let _trace = member.admitted.delivery.context().clone().attach();
    tracing::info!(
        event_id = member.admitted.log_id(),
        is_duplicate = group.row.owns(&member.version),
        by_event = newer.map(|place| place.event.as_str()),
        by_time = newer.and_then(|place| place.time).map(|time| time.to_string()),
        by_sequence = newer.and_then(|place| place.sequence.as_ref()).map(ToString::to_string),
        trace_id = trace::id(member.admitted.delivery.context()),
        "superseded: the portal has newer values, or these very ones"
    );
}
