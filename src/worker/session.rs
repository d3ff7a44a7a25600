//! Sessions with the broker: open, consume, reopen when lost, and drain at the end.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Worker, gate, start, watch};
use crate::admin::ListenError;
use crate::amqp::topology::{self, Finding};
use crate::amqp::{AmqpError, Deliveries, Delivery, Link, Seen, Watch};
use crate::clock;
use crate::config::Declare;
use crate::domain::appetite::Appetite;
use crate::domain::gate::{Gate as Rules, Intake};
use crate::ledger::LedgerError;
use crate::pauses::Pauses;

/// Between two looks at orders and the broker's health.
const LOOK: Duration = Duration::from_secs(2);
/// For a thousand deliveries to come in.
const GATHER: Duration = Duration::from_millis(200);
/// Every so many looks all queues' messages are counted: the retry tiers are many.
const LOOKS_A_COUNT: u32 = 3;
/// A session that lives so long takes more, whatever becomes of what it took: that may have to wait.
const LIVED: Duration = Duration::from_secs(5);
/// Every so many looks the work queue is bound again.
const LOOKS_A_BINDING: u32 = 5;
/// So many looks in a row at messages that wait while we have nothing: we are forgotten.
const LOOKS_STARVED: u32 = 3;

/// Why the worker did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The HTTP client could not be made.
    #[error(transparent)]
    Portal(anyhow::Error),
    /// The broker's queues are not what the relay needs.
    #[error("the broker's topology does not fit:\n{}", lines(.0))]
    Topology(Vec<Finding>),
    /// The port for operators cannot be opened.
    #[error(transparent)]
    Admin(ListenError),
    /// The ledger cannot be used.
    #[error(transparent)]
    Ledger(LedgerError),
    /// The ledger is not the one that the work queue is fenced by, or an older copy of it.
    #[error("{0}")]
    WrongLedger(String),
}

fn lines(findings: &[Finding]) -> String {
    findings.iter().map(|finding| format!("  {finding}")).collect::<Vec<_>>().join("\n")
}

/// Why there is no session.
pub(super) enum OpenError {
    Broker(AmqpError),
    Topology(Vec<Finding>),
    /// The ledger cannot be read now.
    Ledger(LedgerError),
    /// It is not the one that the work queue is fenced by, or an older copy of it.
    WrongLedger(String),
}

impl From<LedgerError> for OpenError {
    fn from(error: LedgerError) -> Self {
        OpenError::Ledger(error)
    }
}

impl From<AmqpError> for OpenError {
    fn from(error: AmqpError) -> Self {
        OpenError::Broker(error)
    }
}

/// Consumes, over as many sessions as it takes. A topology that does not fit ends the worker only
/// before its first session; later it is an operator at work, and is waited for.
pub(super) async fn consume_until_stopped(worker: &Arc<Worker>) -> Result<(), StartError> {
    let longest = worker.config.broker.max_reconnect_pause;
    let mut pauses = Pauses::endless(longest);
    let mut has_started = false;
    loop {
        let opened = tokio::select! {
            opened = open(worker) => opened,
            () = worker.stop.cancelled() => break,
        };
        match opened {
            Ok(session) => {
                worker.vitals.note(|seen| (seen.is_misfit, seen.is_active) = (false, true));
                (has_started, pauses) = (true, Pauses::endless(longest));
                let over = consume(worker, session).await;
                watch::session_is_over(worker);
                if over == SessionOver::Stopped {
                    return Ok(());
                }
            }
            Err(OpenError::Topology(faults)) if !has_started => {
                return Err(StartError::Topology(faults));
            }
            Err(OpenError::Topology(faults)) => {
                tracing::error!("the broker's topology does not fit:\n{}", lines(&faults));
                worker.vitals.note(|seen| seen.is_misfit = true);
            }
            Err(OpenError::Ledger(error)) => tracing::warn!(%error, "no session with the broker"),
            Err(OpenError::WrongLedger(fault)) => {
                let error = StartError::WrongLedger(fault);
                if !has_started {
                    return Err(error);
                }
                tracing::error!(%error);
                worker.vitals.note(|seen| seen.is_misfit = true);
            }
            Err(OpenError::Broker(error)) => tracing::warn!(%error, "no session with the broker"),
        }
        watch::session_is_over(worker);
        let pause = pauses.next_pause().unwrap_or(longest);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = worker.stop.cancelled() => break,
        }
    }
    finish_tasks(worker).await;
    Ok(())
}

/// A session that may consume.
struct Session {
    deliveries: Deliveries,
    watch: Watch,
}

async fn open(worker: &Worker) -> Result<Session, OpenError> {
    let broker = &worker.config.broker;
    let link = broker.broker.connect("consume").await?;
    let (address, turn) = (link.address().to_owned(), link.turn());
    worker.vitals.note(|seen| seen.is_connected = true);
    let opened = async {
        let watch = match prepare(worker, &link).await {
            Ok(watch) => watch,
            Err(error) => {
                link.close().await;
                return Err(error);
            }
        };
        let deliveries = Deliveries::open(link, &worker.work_queue).await?;
        Ok(Session { deliveries, watch })
    };
    let session = opened.await.inspect_err(|_| broker.broker.avoid(turn))?;
    tracing::info!(address, "connected");
    Ok(session)
}

/// Looks that the queues are there, waits to be the active relay, and looks what operators have
/// ordered.
async fn prepare(worker: &Worker, link: &Link) -> Result<Watch, OpenError> {
    let may_bind = ensure_topology(worker, link).await?;
    start::claim(worker, link).await?;
    let watch = Watch::open(link, &worker.config.broker.topology, may_bind).await?;
    let fuse_orders = worker.fuse_orders.load(Ordering::SeqCst);
    obey(worker, watch.look().await?, fuse_orders);
    Ok(watch)
}

/// Whether we may bind the work queue to the exchange.
async fn ensure_topology(worker: &Worker, link: &Link) -> Result<bool, OpenError> {
    let broker = &worker.config.broker;
    let findings = match broker.declare {
        Declare::Apply => topology::apply(link, &broker.topology).await?,
        Declare::Check => topology::check(link, &broker.topology).await?,
    };
    let may_bind = topology::is_bound(&findings, &broker.topology);
    let faults: Vec<Finding> = findings.into_iter().filter(Finding::is_fault).collect();
    if faults.is_empty() { Ok(may_bind) } else { Err(OpenError::Topology(faults)) }
}

#[derive(PartialEq, Eq)]
enum SessionOver {
    Lost,
    Stopped,
}

async fn consume(worker: &Arc<Worker>, session: Session) -> SessionOver {
    let Session { deliveries, watch } = session;
    let one_ended = deliveries.one_ended();
    let mut supply = Supply::new(worker, deliveries);
    let mut intake = worker.gate.intake();
    intake.mark_changed();
    let mut watching = std::pin::pin!(keep_watch(worker, &watch));
    loop {
        let grows_at = supply.grows_at();
        let over = tokio::select! {
            next = supply.deliveries.next() => match next {
                Ok(delivery) => {
                    if !supply.note(&delivery) {
                        worker.begin(delivery);
                        continue;
                    }
                    match supply.take_all(delivery).await {
                        Ok(()) => continue,
                        Err(error) => Some(error.to_string()),
                    }
                }
                Err(end) => Some(end.to_string()),
            },
            () = worker.stop.cancelled() => {
                drain(worker, supply.deliveries).await;
                return SessionOver::Stopped;
            }
            _ = intake.changed() => {
                let wanted = *intake.borrow_and_update();
                supply.change(wanted).await;
                None
            }
            () = one_ended.notified(), if supply.may_ask() => None,
            () = until(grows_at) => None,
            end = &mut watching => Some(end),
            () = worker.ledger_changed.notified() => Some("another ledger is in place".to_owned()),
        };
        let over = match over {
            Some(over) => over,
            None => match supply.top_up().await {
                Ok(()) => continue,
                Err(error) => error.to_string(),
            },
        };
        tracing::warn!(end = over, "the session with the broker is over; a new one follows");
        worker.config.broker.broker.avoid(supply.deliveries.turn());
        worker.with_receipts(|receipts| receipts.lose_session(clock::instant()));
        supply.deliveries.close().await;
        return SessionOver::Lost;
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// What the broker is asked for: as much as is wanted, and never so much that more than the prefetch and
/// the calls in flight are in hand. What was brought by consumers that have ended counts as well.
struct Supply<'a> {
    worker: &'a Arc<Worker>,
    deliveries: Deliveries,
    appetite: Appetite,
    /// When more was last asked for.
    asked_at: Instant,
    /// `None`: nothing has been said yet.
    wanted: Option<Intake>,
    /// The log says what is wanted.
    is_told: bool,
}

/// A further consumer takes no fewer: one for each delivery that ends would be many.
fn least(limit: usize) -> usize {
    (limit / 4).max(1)
}

impl Supply<'_> {
    fn new(worker: &Arc<Worker>, deliveries: Deliveries) -> Supply<'_> {
        let appetite = Appetite::new(worker.config.broker.prefetch);
        let (asked_at, wanted) = (clock::instant(), None);
        Supply { worker, deliveries, appetite, asked_at, wanted, is_told: false }
    }

    /// A delivery has come. Whether more is to be asked for now.
    fn note(&mut self, delivery: &Delivery) -> bool {
        self.appetite.begin(delivery.message().returns())
    }

    /// The session's first delivery has come, and is harmless. Nothing is begun before the others are asked
    /// for: what is taken alone comes back behind all the others. And one consumer has them all: what
    /// several have comes back by consumer, not in its order.
    async fn take_all(&mut self, first: Delivery) -> Result<(), AmqpError> {
        let (mut others, mut asked) = (Vec::new(), Ok(()));
        if self.is_full() {
            others = self.deliveries.cancel().await;
            asked = self.top_up().await;
        }
        std::iter::once(first).chain(others).for_each(|delivery| self.worker.begin(delivery));
        asked
    }

    /// As many deliveries at once are wanted from now on.
    async fn change(&mut self, wanted: Intake) {
        let before = self.wanted.replace(wanted);
        for delivery in self.deliveries.cancel().await {
            self.note(&delivery);
            self.worker.begin(delivery);
        }
        self.is_told = false;
        if wanted == Intake::Nothing {
            tracing::info!("not consuming: paused, or the ledger fails");
        }
        if before.is_some_and(|before| before != wanted) {
            gather(self.worker, wanted);
        }
    }

    fn is_full(&self) -> bool {
        self.wanted == Some(Intake::Full)
    }

    /// When more is asked for, though little of what came has ended.
    fn grows_at(&self) -> Option<Instant> {
        let is_growing = self.is_full() && self.appetite.goal().is_some();
        is_growing.then(|| self.asked_at + LIVED)
    }

    /// Whether less has been asked for than is wanted.
    fn is_short(&self) -> bool {
        let (granted, _) = self.deliveries.granted_and_strays();
        match self.wanted {
            Some(Intake::Full) => {
                let prefetch = usize::from(self.worker.config.broker.prefetch);
                granted + least(prefetch) <= prefetch
            }
            Some(Intake::One) => granted == 0,
            Some(Intake::Nothing) | None => false,
        }
    }

    /// Whether something is to be asked for once less is in hand.
    fn may_ask(&self) -> bool {
        self.is_short() || self.is_uneven()
    }

    /// Whether there are several consumers, or one that may have less in hand than is wanted.
    fn is_uneven(&self) -> bool {
        let (granted, _) = self.deliveries.granted_and_strays();
        let is_less = granted < usize::from(self.appetite.limit());
        self.is_full() && (self.deliveries.are_scattered() || is_less)
    }

    /// Whether one consumer for all is to be asked for: what several have comes back by consumer, not in
    /// its order. With little in hand it costs next to nothing.
    fn is_to_be_one(&self) -> bool {
        let limit = usize::from(self.appetite.limit());
        let few = if self.deliveries.are_scattered() { limit / 8 } else { 0 };
        let is_grown = self.appetite.goal().is_none();
        is_grown && self.is_uneven() && self.deliveries.in_hand() <= few
    }

    /// How many more may be asked for now.
    fn room(&self) -> usize {
        let (granted, strays) = self.deliveries.granted_and_strays();
        let taken = granted + strays;
        match self.wanted {
            Some(Intake::Full) => {
                let limit = usize::from(self.appetite.limit());
                let room = limit.saturating_sub(taken);
                if granted == 0 || room >= least(limit) { room } else { 0 }
            }
            // What is in hand may wait for other things than the portal.
            Some(Intake::One) if granted == 0 => {
                usize::from(taken < self.worker.config.in_hand_at_most())
            }
            Some(Intake::One | Intake::Nothing) | None => 0,
        }
    }

    async fn top_up(&mut self) -> Result<(), AmqpError> {
        let now = clock::instant();
        let ended = self.deliveries.ended();
        let has_lived = self.grows_at().is_some_and(|at| at <= now);
        let has_ended = self.is_full() && self.appetite.goal().is_some_and(|goal| goal <= ended);
        if has_lived || has_ended {
            self.appetite.grow(ended);
            self.asked_at = now;
        }
        if self.is_to_be_one() {
            for delivery in self.deliveries.cancel().await {
                self.worker.begin(delivery);
            }
        }
        let room = self.room();
        if room == 0 {
            return Ok(());
        }
        self.deliveries.ask(u16::try_from(room).expect("the prefetch is one")).await?;
        self.asked_at = now;
        if !std::mem::replace(&mut self.is_told, true) {
            let prefetch = if self.is_full() { self.worker.config.broker.prefetch } else { 1 };
            tracing::info!(queue = self.worker.work_queue, prefetch, "consuming");
        }
        Ok(())
    }
}

/// After an outage or a pause: what has piled up meanwhile comes in before the calls begin, so that
/// what waits for one customer goes as one.
fn gather(worker: &Worker, wanted: Intake) {
    if wanted == Intake::Full && worker.config.worker.merges {
        worker.gate.learn(|rules| rules.gather(clock::instant() + GATHER));
    }
}

/// Obeys orders until the session is of no use any more; tells why.
async fn keep_watch(worker: &Worker, watch: &Watch) -> String {
    let (mut starved, mut received) = (0, worker.tally.received());
    for look in 0_u32.. {
        if look.is_multiple_of(LOOKS_A_COUNT) {
            let depths = watch.depths().await;
            if let Err(error) = &depths {
                tracing::debug!(%error, "the queues' messages cannot be counted");
            }
            worker.vitals.note(|seen| seen.depths = depths.ok());
        }
        tokio::time::sleep(LOOK).await;
        if look % LOOKS_A_BINDING == LOOKS_A_BINDING - 1
            && let Err(error) = watch.bind_again().await
        {
            return error.to_string();
        }
        let fuse_orders = worker.fuse_orders.load(Ordering::SeqCst);
        let seen = match watch.look().await {
            Ok(seen) => seen,
            Err(error) => return error.to_string(),
        };
        obey(worker, seen, fuse_orders);
        worker.clocks.note_queue(seen.ready == 0);
        let before = std::mem::replace(&mut received, worker.tally.received());
        let wants_any = worker.gate.look(Rules::intake) != Intake::Nothing;
        let gets_none = received == before && worker.tasks.is_empty();
        let is_starved = seen.ready > 0 && !seen.is_paused && wants_any && gets_none;
        starved = if is_starved { starved + 1 } else { 0 };
        if starved == LOOKS_STARVED {
            return format!("{} messages wait, but the broker hands out none", seen.ready);
        }
    }
    std::future::pending().await
}

/// Obeys the orders that are at the broker. `fuse_orders`: how many of the fuse had come there when the
/// look began; one that came meanwhile may not have been seen.
fn obey(worker: &Worker, seen: Seen, fuse_orders: u64) {
    let Seen { is_paused, accepts_rejections, .. } = seen;
    let (was_paused, accepted) =
        worker.gate.look(|rules| (rules.is_paused(), rules.accepts_rejections()));
    let is_pausing = worker.fuse_is_pausing.load(Ordering::SeqCst)
        || worker.fuse_orders.load(Ordering::SeqCst) != fuse_orders;
    if is_paused != was_paused && !is_pausing {
        tracing::warn!(is_paused, "an operator's order");
        worker.gate.learn(|rules| rules.set_paused(is_paused));
    }
    if accepts_rejections != accepted {
        tracing::warn!(accepts_rejections, "an operator's order");
        let now = clock::instant();
        let news = worker.gate.learn(|rules| rules.set_accepts_rejections(accepts_rejections, now));
        news.inspect(|news| gate::log(*news, now));
    }
}

/// Takes no more deliveries; those that were on their way are handed back in their lanes, those
/// under way are finished.
async fn drain(worker: &Arc<Worker>, mut deliveries: Deliveries) {
    tracing::info!(grace_period = ?worker.config.worker.grace_period, "draining");
    for delivery in deliveries.cancel().await {
        worker.begin(delivery);
    }
    finish_tasks(worker).await;
    deliveries.flush_acks().await;
    worker.publisher.close().await;
    deliveries.close().await;
}

/// Waits for what is under way: the grace period for calls, then a while for handing back.
async fn finish_tasks(worker: &Worker) {
    worker.tasks.close();
    let grace_period = worker.config.worker.grace_period;
    tokio::select! {
        () = worker.tasks.wait() => return,
        () = tokio::time::sleep(grace_period) => {}
        () = worker.cut.cancelled() => {}
    }
    tracing::warn!(calls = worker.tasks.len(), "the grace period is over; calls are cut");
    worker.cut.cancel();
    let limit = worker.config.broker.operation_timeout;
    if tokio::time::timeout(limit, worker.tasks.wait()).await.is_err() {
        let left = worker.tasks.len();
        tracing::warn!(left, "not handed back in time; the broker will deliver them again");
    }
}
