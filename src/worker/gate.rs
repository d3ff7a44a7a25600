//! The gate at work: tasks wait here for their turn to call, or for news of a fault. The rules are
//! [`domain::gate`]'s; this only wakes, times and tells.
//!
//! [`domain::gate`]: crate::domain::gate

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use tokio::sync::{Notify, oneshot, watch};

use crate::clock;
use crate::config::Config;
use crate::domain::faults::{Call, FaultId, Finding};
use crate::domain::gate::{Control, Gate as Rules, Intake, News, Pass, Ticket};
use crate::domain::response::Judgement;

/// The gate, shared by all tasks.
pub(super) struct Gate {
    inner: Mutex<Inner>,
    intake: watch::Sender<Intake>,
    agenda: watch::Sender<Agenda>,
    /// More may be known of open faults.
    learned: Notify,
    limiter: Option<DefaultDirectRateLimiter>,
    hold: Duration,
}

struct Inner {
    rules: Rules,
    admitted: HashMap<Ticket, oneshot::Sender<Pass>>,
    /// Turns that wait for news of a fault.
    learners: usize,
    /// What was told last: to look there is quicker than at a channel, and nearly always nothing is new.
    told: (Agenda, Intake),
}

/// What the passing of time will change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Agenda {
    /// When to look again; never in the past.
    next: Option<Instant>,
    /// A control call is due.
    wants_control: bool,
}

impl Gate {
    pub(super) fn new(config: &Config) -> Gate {
        let probe_customer = config.portal.probe_customer.clone().map(Arc::new);
        let rules = Rules::new(config.outage.gate, probe_customer);
        let told = (Agenda::default(), rules.intake());
        let (intake, _) = watch::channel(told.1);
        // One after the other, evenly: a burst is what a portal with a limit refuses.
        let quota = |rate| Quota::per_second(rate).allow_burst(std::num::NonZeroU32::MIN);
        Gate {
            inner: Mutex::new(Inner { rules, admitted: HashMap::new(), learners: 0, told }),
            intake,
            agenda: watch::Sender::default(),
            learned: Notify::new(),
            limiter: config.portal.max_rate.map(|rate| RateLimiter::direct(quota(rate))),
            hold: config.outage.hold,
        }
    }

    /// Lets a call pass that finds free way: the usual case, and cheap.
    pub(super) fn pass_at_once(&self) -> Option<Pass> {
        if self.limiter.is_some() {
            return None;
        }
        self.lock().rules.admit_at_once(clock::instant())
    }

    /// Waits for the turn of a customer's event. May be dropped at any time.
    pub(super) async fn pass(&self, customer: &Arc<str>) -> Pass {
        let mut waiting = {
            let mut inner = self.lock();
            let (admitted, turn) = oneshot::channel();
            let ticket = inner.rules.ask(customer);
            inner.admitted.insert(ticket, admitted);
            self.go_on(&mut inner, clock::instant());
            Waiting { gate: self, ticket, turn }
        };
        match (&mut waiting.turn).await {
            Ok(pass) => pass,
            // Its sender is only dropped with the gate.
            Err(_) => std::future::pending().await,
        }
    }

    /// Waits until the rate allows one more call that passes no gate: one that is repeated at once.
    pub(super) async fn keep_rate(&self) {
        let clock = DefaultClock::default();
        while let Some(Err(early)) = self.limiter.as_ref().map(RateLimiter::check) {
            tokio::time::sleep(early.wait_time_from(clock.now())).await;
        }
    }

    /// Looks at the rules.
    pub(super) fn look<T>(&self, look: impl FnOnce(&Rules) -> T) -> T {
        look(&self.lock().rules)
    }

    /// Changes what is known, and lets pass who may pass now.
    pub(super) fn learn<T>(&self, change: impl FnOnce(&mut Rules) -> T) -> T {
        self.learn_at(clock::instant(), change)
    }

    /// The same, by whoever knows what time it is.
    pub(super) fn learn_at<T>(&self, now: Instant, change: impl FnOnce(&mut Rules) -> T) -> T {
        let mut inner = self.lock();
        let changed = change(&mut inner.rules);
        self.go_on(&mut inner, now);
        changed
    }

    /// How many deliveries the broker should be asked for, and every change of that.
    pub(super) fn intake(&self) -> watch::Receiver<Intake> {
        self.intake.subscribe()
    }

    /// Resolves when deliveries have been kept long enough during an outage.
    pub(super) fn hold_is_over(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async {
            let mut intake = self.intake.subscribe();
            loop {
                // The sender lives in `self`.
                drop(intake.wait_for(|intake| *intake != Intake::Full).await);
                tokio::select! {
                    () = tokio::time::sleep(self.hold) => return,
                    _ = intake.wait_for(|intake| *intake == Intake::Full) => {}
                }
            }
        })
    }

    /// Waits until more is known of a fault.
    pub(super) async fn news_of(&self, fault: FaultId) {
        let _learning = Learning::of(self);
        loop {
            let mut news = std::pin::pin!(self.learned.notified());
            news.as_mut().enable();
            let (finding, gives_up_at) = self
                .look(|rules| (rules.finding(fault, clock::instant()), rules.gives_up_at(fault)));
            if finding != Finding::Open {
                return;
            }
            tokio::select! {
                () = news => {}
                () = sleep_until(gives_up_at) => return,
            }
        }
    }

    /// Lets pass in time who waits for time to pass. Never ends.
    pub(super) async fn keep_time(&self) {
        let mut agenda = self.agenda.subscribe();
        loop {
            let next = agenda.borrow_and_update().next;
            tokio::select! {
                // The sender lives in `self`.
                changed = agenda.changed() => drop(changed),
                () = sleep_until(next) => self.learn(|_| ()),
            }
        }
    }

    /// Waits until a control call is due.
    pub(super) async fn wants_control(&self) {
        let mut agenda = self.agenda.subscribe();
        drop(agenda.wait_for(|agenda| agenda.wants_control).await);
    }

    /// Begins the control call that is due, of a customer whose lane is free.
    pub(super) fn control(&self, is_free: impl Fn(&Arc<str>) -> bool) -> Control {
        let now = clock::instant();
        let (control, news) =
            self.learn(|rules| rules.control((now, clock::now()), clock::dice(), is_free));
        news.inspect(|news| log(*news, now));
        control
    }

    /// A control call has ended.
    pub(super) fn end_control(&self, call: &Call, pass: Pass, judgement: &Judgement) {
        let now = clock::instant();
        let (_, news) = self
            .learn(|rules| rules.end(call, pass, judgement, (now, clock::now()), clock::dice()));
        news.inspect(|news| log(*news, now));
    }

    /// Lets pass who may pass now, and tells what has changed.
    fn go_on(&self, inner: &mut Inner, now: Instant) {
        let mut next_call = None;
        while inner.rules.has_waiting() && inner.rules.is_ready(now) {
            if let Some(Err(early)) = self.limiter.as_ref().map(RateLimiter::check) {
                next_call = Some(now + early.wait_time_from(DefaultClock::default().now()));
                break;
            }
            let Some((ticket, pass)) = inner.rules.admit(now) else { break };
            let admitted = inner.admitted.remove(&ticket);
            if admitted.is_none_or(|admitted| admitted.send(pass).is_err()) {
                inner.rules.give_back(pass, now);
            }
        }
        let next = [inner.rules.next_change(now), next_call].into_iter().flatten();
        let next = next.filter(|at| *at > now).min();
        let agenda = Agenda { next, wants_control: inner.rules.wants_control(now) };
        let tells = (agenda, inner.rules.intake());
        if tells != inner.told {
            inner.told = tells;
            set_if_new(&self.agenda, tells.0);
            set_if_new(&self.intake, tells.1);
        }
        if inner.learners > 0 {
            self.learned.notify_waiters();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        // A panic ends the process.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn set_if_new<T: PartialEq + Copy>(sender: &watch::Sender<T>, value: T) {
    if *sender.borrow() != value {
        sender.send_replace(value);
    }
}

async fn sleep_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

/// One that waits for news. Dropped, it does not any more.
struct Learning<'a> {
    gate: &'a Gate,
}

impl Learning<'_> {
    fn of(gate: &Gate) -> Learning<'_> {
        gate.lock().learners += 1;
        Learning { gate }
    }
}

impl Drop for Learning<'_> {
    fn drop(&mut self) {
        self.gate.lock().learners -= 1;
    }
}

/// A place in the queue. Dropped, it is given up.
struct Waiting<'a> {
    gate: &'a Gate,
    ticket: Ticket,
    turn: oneshot::Receiver<Pass>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut inner = self.gate.lock();
        let now = clock::instant();
        if inner.admitted.remove(&self.ticket).is_some() {
            inner.rules.withdraw(self.ticket);
        } else if let Ok(pass) = self.turn.try_recv() {
            inner.rules.give_back(pass, now);
        }
        self.gate.go_on(&mut inner, now);
    }
}

/// What there is to tell about the portal, once.
pub(super) fn log(news: News, now: Instant) {
    match news {
        News::Opened(kind) => tracing::warn!(
            kind = kind.name(),
            "outage: calls are paused, nothing is counted or dead-lettered, probes follow"
        ),
        News::StillOpen(kind, next_probe) => tracing::error!(
            kind = kind.name(),
            advice = kind.advice(),
            next_probe_ms = millis(next_probe.saturating_duration_since(now)),
            "outage: the probe failed"
        ),
        News::Closed(kind, lasted) => tracing::info!(
            kind = kind.name(),
            lasted_ms = millis(lasted),
            "outage over: calls ramp up"
        ),
        News::Ramped(limit) => tracing::info!(limit, "calls under way at once, at most"),
        News::Throttled(wait) => tracing::warn!(
            wait_ms = millis(wait),
            "throttled by the portal: no calls for a while, then fewer at once"
        ),
        News::ThrottledAlone => {
            tracing::info!("the portal throttles some customers alone: calls go on");
        }
        News::UnfitProbeCustomer(outcome) => tracing::warn!(
            outcome = outcome.name(),
            "the update of portal.probe_customer fails while events are applied: no control call \
             sends it until it goes well; is it a customer of this portal, with fields that it takes?"
        ),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
