//! The journey: consume, admit, handle, settle, and at the end drain. The only module with state
//! that outlives one event.

mod admit;
mod clocks;
mod control_call;
mod fuse;
mod gate;
mod handle;
mod housekeep;
mod number;
mod record;
mod replay;
mod report;
mod session;
mod settle;
mod start;
mod watch;

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use jiff::Timestamp;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::Port;
use crate::amqp::{Delivery, Publisher};
use crate::clock;
use crate::config::Config;
use crate::domain::fuse::Fuse;
use crate::domain::gate::Gate as Rules;
use crate::domain::group::{Event, Group, Member};
use crate::domain::lanes::{Arrival, Lanes};
use crate::domain::receipts::Receipts;
use crate::domain::row::Row;
use crate::domain::settlement::End;
use crate::domain::turn::Ending;
use crate::domain::verdict::Verdict;
use crate::health::Vitals;
use crate::ledger::{Change, CustomerKey, Lease, Ledger};
use crate::portal::{Keyring, Portal};
use crate::telemetry::trace::Received;
use crate::telemetry::{Metrics, Telemetry, trace};
use admit::Admitted;
use clocks::Clocks;
use gate::Gate;
use handle::Visit;
pub use report::Report;
use report::Tally;
pub use session::StartError;

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
    receipts: Mutex<Receipts>,
    ledger: Ledger,
    gate: Gate,
    fuse: Mutex<Fuse>,
    /// The fuse has paused the relay; its order is still on the way to the broker.
    fuse_is_pausing: AtomicBool,
    /// Orders of the fuse that have reached the broker, or failed to.
    fuse_orders: AtomicU64,
    tasks: TaskTracker,
    /// Ends consumption and hands back what has not begun.
    stop: CancellationToken,
    /// Cuts calls under way, when the grace period is over.
    cut: CancellationToken,
    tally: Tally,
    telemetry: Telemetry,
    vitals: Vitals,
    clocks: Clocks,
    /// A session has begun, with the right ledger.
    claimed: Notify,
    has_claimed: AtomicBool,
    /// The ledger turned out not to be the right one any more.
    ledger_changed: Notify,
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
    let admin = Port::open(&config.admin, &telemetry).map_err(StartError::Admin)?;
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
        lanes: Mutex::new(Lanes::new(
            lane_limit(&config),
            config.worker.merges,
            config.retry.max_uncounted_delay,
        )),
        receipts: Mutex::default(),
        ledger,
        gate: Gate::new(&config),
        fuse: Mutex::default(),
        fuse_is_pausing: AtomicBool::new(false),
        fuse_orders: AtomicU64::new(0),
        tasks: TaskTracker::new(),
        stop,
        cut,
        tally: Tally::new(Arc::clone(&telemetry.metrics)),
        telemetry,
        vitals: Vitals::default(),
        clocks: Clocks::new(config.rules.future_tolerance),
        claimed: Notify::new(),
        has_claimed: AtomicBool::new(false),
        ledger_changed: Notify::new(),
        config,
    });
    watch::tell(&worker);
    worker.log_policies();
    tokio::select! {
        ended = session::consume_until_stopped(&worker) => ended?,
        () = watch_credentials(&worker) => {}
        () = worker.gate.keep_time() => {}
        () = control_call::make_control_calls(&worker) => {}
        () = housekeep::obey_health(&worker) => {}
        () = housekeep::sweep_ledger(&worker) => {}
        () = housekeep::look_at_unreadable_rows(&worker) => {}
        () = number::keep_number(&worker) => {}
        () = watch::look_for_out_of_step(&worker) => {}
        () = clocks::watch(&worker) => {}
        () = clocks::ask_portal(&worker) => {}
        () = clocks::ask_database(&worker) => {}
    }
    number::renew_at_end(&worker).await;
    Ok(worker.tally.report())
}

/// One customer may have a quarter of all deliveries in hand.
fn lane_limit(config: &Config) -> usize {
    usize::from(config.broker.prefetch / 4).max(1)
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
            let number = keyring.reread().number;
            worker.gate.learn(|rules| rules.credentials_changed(number, clock::instant()));
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
        self.clocks.note_message(delivery.message());
        match admit::admit(&self.config, &self.clocks, delivery) {
            Ok(mut admitted) => {
                self.passed(&admitted.customer);
                self.note_receipt(&mut admitted);
                if let Some(time) = admitted.place.time {
                    self.clocks.note_event(&admitted.customer, time);
                }
                let customer = Arc::clone(&admitted.customer);
                match self.with_lanes(|lanes| lanes.arrive(&customer, admitted)) {
                    Arrival::Starts(admitted) => self.start_lane(admitted),
                    Arrival::Waits => {}
                    Arrival::Full => self.spawn_hand_back(customer),
                }
            }
            Err(ended) => {
                if let Some((customer, time)) = &ended.ahead {
                    self.clocks.note_event(customer, *time);
                }
                let worker = Arc::clone(self);
                self.tasks.spawn(async move {
                    let admit::Ended { delivery, verdict, customer, event, .. } = *ended;
                    let verdict = worker.unless_ended_before(&delivery, verdict).await;
                    worker.refused(&verdict, customer.as_deref());
                    let key = customer.map(|customer| worker.ledger.key(&customer));
                    let change = Change { customer: key, at: clock::now(), ..Change::default() };
                    worker.settle(vec![End::unsent(delivery, verdict, event)], change).await;
                });
            }
        }
    }

    /// Nothing but our memory tells when it was first received.
    fn note_receipt(&self, Admitted { delivery, event, .. }: &mut Admitted) {
        if !delivery.message().is_ours() {
            let now = clock::instant();
            let receipt = self.with_receipts(|receipts| receipts.receive(event, now));
            delivery.set_receipt(receipt);
        }
    }

    /// The delivery's span begins, or it goes on with the context that came with its message.
    fn trace(&self, delivery: &mut Delivery) {
        let message = delivery.message();
        let id = message.shown_id();
        let received = Received {
            queue: &self.work_queue,
            id: id.as_deref(),
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
            let began = clock::instant();
            self.handle(admitted).await;
            let took = clock::instant().saturating_duration_since(began);
            if self.with_lanes(|lanes| lanes.overflow(&customer, took)) {
                self.spawn_hand_back(Arc::clone(&customer));
            }
            next = self.with_lanes(|lanes| lanes.finish(&customer));
        }
    }

    /// Carries the end of a turn out.
    async fn end_turn(&self, visit: Visit, ending: Ending, customer: &str) {
        let Visit { turn, key, lease, .. } = visit;
        match (turn.into_parts(), ending) {
            (Ok(group), Ending::Verdicts(verdicts)) => {
                self.end_group(group, (key, lease), customer, verdicts).await;
            }
            (Ok(group), _) => Box::pin(self.give_up(group, (key, lease), customer)).await,
            (Err(head), Ending::HandBackLane) => Box::pin(self.hand_back_lane(head)).await,
            (Err(head), Ending::Unreadable(error)) => {
                Box::pin(self.wait_for_row(head, key, &error)).await;
            }
            (Err(head), Ending::Unrecordable) => {
                let verdict = Verdict::unrecordable(&head.history);
                Box::pin(self.end_unseen(head, verdict)).await;
            }
            (Err(head), Ending::Repeated) => Box::pin(self.end_repeated(head, key, lease)).await,
            (Err(_), Ending::GiveUp | Ending::Verdicts(_)) => self.tally.forgotten(),
        }
    }

    /// What the portal has is recorded, each event goes where its verdict says, and if the first one
    /// goes to a retry tier, those that wait behind it follow untried, so that they do not overtake
    /// it. An event that arrives only now does not follow: it may be the very message, back already.
    async fn end_group(
        &self,
        group: Group<Box<Admitted>>,
        (key, lease): (CustomerKey, Option<Lease>),
        customer: &str,
        verdicts: Vec<Verdict>,
    ) {
        let now = clock::now();
        for (member, verdict) in group.members.iter().zip(&verdicts) {
            if verdict.is_unwitnessed() {
                self.metrics().unwitnessed(verdict);
            }
            match verdict {
                Verdict::Applied => {
                    self.tally.withheld(member.withheld().len());
                    self.metrics().applied(member.version.place.time, now);
                }
                Verdict::Superseded => {
                    self.tally.withheld(member.withheld().len());
                    log_superseded(&group, member);
                }
                Verdict::Ignored { .. }
                | Verdict::Retry { .. }
                | Verdict::Wait { .. }
                | Verdict::DeadLetter(_) => {}
            }
        }
        let fence = (&self.config.retry.tiers, self.ledger.about().is_some());
        let concluded = group.conclude(verdicts, fence, self.lost(), now);
        let row = concluded.row.as_ref().map(Row::pack);
        let change = Change { row, ..unchanged(key, lease, now) };
        let mut ends: Vec<End<Delivery>> = concluded.ends.into_iter().map(unpack).collect();
        if let Some(tier) = concluded.follow {
            for follower in self.with_lanes(|lanes| lanes.take_waiting(customer)) {
                let Admitted { delivery, event: Event { history, place, .. }, .. } = *follower;
                ends.push(End::unsent(
                    delivery,
                    Verdict::Wait { tier, history },
                    Some(place.event),
                ));
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

    /// Hands back what a lane has no room for, so that none overtakes another of its moment.
    fn spawn_hand_back(self: &Arc<Self>, customer: Arc<str>) {
        let worker = Arc::clone(self);
        self.tasks.spawn(async move {
            loop {
                let next = worker.with_lanes(|lanes| lanes.next_back(&customer));
                if next.is_empty() {
                    return;
                }
                let back =
                    next.into_iter().map(|admitted| worker.hand_back_for_lack_of_room(admitted));
                join_all(back).await;
            }
        });
    }

    async fn hand_back_for_lack_of_room(&self, admitted: Box<Admitted>) {
        let now = clock::instant();
        let wait = self.with_lanes(|lanes| lanes.wait(&admitted.customer, now));
        let history = admitted.history.clone();
        let verdict = Verdict::hand_back_for(&self.config.retry.tiers, history, wait);
        self.end_unseen(admitted, verdict).await;
    }

    /// The customer's row cannot be read: its events wait, the others' go on.
    async fn wait_for_row(&self, head: Box<Admitted>, key: CustomerKey, error: &str) {
        tracing::error!(
            customer = %key,
            event_id = head.log_id(),
            error,
            "a customer's row in the ledger cannot be read: its events wait; `customer-relay ledger \
             mend` mends it"
        );
        let customer = Arc::clone(&head.customer);
        let mut waiting = vec![head];
        waiting.extend(self.with_lanes(|lanes| lanes.take_waiting(&customer)));
        let (now, dice) = (clock::now(), clock::dice());
        for admitted in waiting {
            let (policy, history) = (&self.config.retry, &admitted.history);
            let verdict = Verdict::wait_for_row(history, policy, now, dice);
            self.end_unseen(admitted, verdict).await;
        }
    }

    async fn hand_back(&self, admitted: Box<Admitted>) {
        let history = admitted.history.clone();
        self.end_unseen(admitted, Verdict::hand_back(&self.config.retry.tiers, history)).await;
    }

    /// Ends an event without a look at its customer.
    async fn end_unseen(&self, admitted: Box<Admitted>, verdict: Verdict) {
        let Admitted { delivery, event: Event { place, customer, .. }, .. } = *admitted;
        let change = Change {
            customer: Some(self.ledger.key(&customer)),
            at: clock::now(),
            ..Change::default()
        };
        self.settle(vec![End::unsent(delivery, verdict, Some(place.event))], change).await;
    }

    /// Ends a turn whose first delivery was forgotten: the others wait for another one.
    async fn give_up(
        &self,
        group: Group<Box<Admitted>>,
        (key, lease): (CustomerKey, Option<Lease>),
        customer: &str,
    ) {
        let row = group.changed_row().map(Row::pack);
        let change = Change { row, ..unchanged(key, lease, clock::now()) };
        let mut others = Vec::new();
        for member in group.members {
            if member.carrier.delivery.is_forgotten() {
                self.tally.forgotten();
            } else {
                others.push(member.carrier);
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

    fn with_receipts<T>(&self, act: impl FnOnce(&mut Receipts) -> T) -> T {
        // One entry at a time: a panic elsewhere leaves all whole.
        act(&mut self.receipts.lock().unwrap_or_else(PoisonError::into_inner))
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
        if self.gate.look(Rules::lacks_control_calls) {
            tracing::warn!(
                "portal.probe_customer names none, and outage.control_calls is not \"applied\": \
                 where several events fail in a row nothing can be asked, and all wait for a probe"
            );
        }
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

/// What is to be committed of a turn that changed nothing; the lease ends with it.
fn unchanged(key: CustomerKey, lease: Option<Lease>, at: Timestamp) -> Change {
    Change { customer: Some(key), lease, at, ..Change::default() }
}

fn unpack(end: End<Box<Admitted>>) -> End<Delivery> {
    end.map(|admitted| admitted.delivery)
}

fn log_superseded(group: &Group<Box<Admitted>>, member: &Member<Box<Admitted>>) {
    let newer = group.superseding(member).map(|version| &version.place);
    let _trace = member.carrier.delivery.context().clone().attach();
    tracing::info!(
        event_id = member.carrier.log_id(),
        is_duplicate = group.row.owns(&member.version),
        by_event = newer.map(|place| place.event.id.as_str()),
        by_time = newer.and_then(|place| place.time).map(|time| time.to_string()),
        by_sequence = newer.and_then(|place| place.sequence.as_ref()).map(ToString::to_string),
        trace_id = trace::id(member.carrier.delivery.context()),
        "superseded: the portal has newer values, or these very ones"
    );
}
