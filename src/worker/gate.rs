//! The gate at work: tasks wait here for their turn to call. The rules are [`domain::gate`]'s; this
//! only wakes, times and tells.
//!
//! [`domain::gate`]: crate::domain::gate

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use tokio::sync::{Notify, oneshot, watch};

use crate::clock;
use crate::config::Config;
use crate::domain::gate::{Gate as Rules, Intake, News, Pass, Standing, Ticket};
use crate::domain::response::Judgement;
use crate::domain::witness::Call;

/// The gate, shared by all tasks.
pub(super) struct Gate {
    inner: Mutex<Inner>,
    intake: watch::Sender<Intake>,
    /// Something changed that a timer depends on.
    changed: Notify,
    /// Something changed that those who wait for a witness should know.
    learned: Notify,
    learners: AtomicUsize,
    limiter: Option<DefaultDirectRateLimiter>,
    hold: Duration,
}

struct Inner {
    rules: Rules,
    admitted: HashMap<Ticket, oneshot::Sender<Pass>>,
    /// When the rate allows the next call.
    next_call: Option<Instant>,
}

impl Gate {
    pub(super) fn new(config: &Config) -> Gate {
        let rules = Rules::new(config.outage.gate);
        let (intake, _) = watch::channel(rules.intake());
        // One after the other, evenly: a burst is what a portal with a limit refuses.
        let quota = |rate| Quota::per_second(rate).allow_burst(std::num::NonZeroU32::MIN);
        Gate {
            inner: Mutex::new(Inner { rules, admitted: HashMap::new(), next_call: None }),
            intake,
            changed: Notify::new(),
            learned: Notify::new(),
            learners: AtomicUsize::new(0),
            limiter: config.portal.max_rate.map(|rate| RateLimiter::direct(quota(rate))),
            hold: config.outage.hold,
        }
    }

    /// Lets a call pass that finds free way: the usual case, and cheap.
    pub(super) fn pass_at_once(&self) -> Option<Permit<'_>> {
        if self.limiter.is_some() {
            return None;
        }
        let pass = self.lock().rules.admit_at_once(clock::instant())?;
        Some(Permit { gate: self, pass: Some(pass) })
    }

    /// Waits for the turn of a customer's event. May be dropped at any time.
    pub(super) async fn pass(&self, customer: &Arc<str>) -> Permit<'_> {
        let mut waiting = {
            let mut inner = self.lock();
            let (admitted, turn) = oneshot::channel();
            let ticket = inner.rules.ask(customer);
            inner.admitted.insert(ticket, admitted);
            self.admit(&mut inner, clock::instant());
            Waiting { gate: self, ticket, turn }
        };
        self.changed.notify_one();
        match (&mut waiting.turn).await {
            Ok(pass) => Permit { gate: self, pass: Some(pass) },
            // Its sender is only dropped with the gate.
            Err(_) => std::future::pending().await,
        }
    }

    /// Lets a control call pass, if there is anything to find out.
    pub(super) fn pass_control(&self) -> Option<Permit<'_>> {
        let pass = self.lock().rules.admit_control(clock::instant())?;
        Some(Permit { gate: self, pass: Some(pass) })
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
        let changed = {
            let mut inner = self.lock();
            let changed = change(&mut inner.rules);
            self.admit(&mut inner, clock::instant());
            changed
        };
        self.changed.notify_one();
        self.tell();
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

    /// Waits until `known` has an answer, but no longer than `limit`.
    pub(super) async fn learn_of<T>(
        &self,
        limit: Duration,
        known: impl Fn(&Rules) -> Option<T>,
    ) -> Option<T> {
        self.learners.fetch_add(1, Ordering::SeqCst);
        let learned = async {
            loop {
                let mut news = std::pin::pin!(self.learned.notified());
                news.as_mut().enable();
                if let Some(known) = self.look(&known) {
                    return known;
                }
                news.await;
            }
        };
        let learned = tokio::time::timeout(limit, learned).await;
        self.learners.fetch_sub(1, Ordering::SeqCst);
        learned.ok()
    }

    /// Lets pass in time who waits for time to pass, until a probe is due that should be a control
    /// call.
    pub(super) async fn keep_time(&self) {
        loop {
            let now = clock::instant();
            let (next, wants_control) = {
                let inner = self.lock();
                let next = [inner.rules.next_change(now), inner.next_call].into_iter().flatten();
                (next.min(), inner.rules.wants_control(now))
            };
            if wants_control {
                return;
            }
            tokio::select! {
                () = self.changed.notified() => {}
                () = sleep_until(next) => self.admit(&mut self.lock(), clock::instant()),
            }
        }
    }

    /// Lets pass who may pass now.
    fn admit(&self, inner: &mut Inner, now: Instant) {
        inner.next_call = None;
        while inner.rules.has_waiting() && inner.rules.is_ready(now) {
            if let Some(Err(early)) = self.limiter.as_ref().map(RateLimiter::check) {
                inner.next_call = Some(now + early.wait_time_from(DefaultClock::default().now()));
                break;
            }
            let Some((ticket, pass)) = inner.rules.admit(now) else { break };
            let admitted = inner.admitted.remove(&ticket);
            if admitted.is_none_or(|admitted| admitted.send(pass).is_err()) {
                inner.rules.give_back(pass, now);
            }
        }
        self.intake.send_if_modified(|intake| {
            let before = std::mem::replace(intake, inner.rules.intake());
            before != *intake
        });
    }

    fn tell(&self) {
        if self.learners.load(Ordering::SeqCst) > 0 {
            self.learned.notify_waiters();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        // A panic ends the process.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn sleep_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
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
        if inner.admitted.remove(&self.ticket).is_some() {
            inner.rules.withdraw(self.ticket);
        } else if let Ok(pass) = self.turn.try_recv() {
            inner.rules.give_back(pass, clock::instant());
        }
        self.gate.admit(&mut inner, clock::instant());
    }
}

/// The right to make one call. Dropped unused, it is given back.
pub(super) struct Permit<'a> {
    gate: &'a Gate,
    pass: Option<Pass>,
}

impl Permit<'_> {
    /// Whether the call is to find out whether an outage is over.
    pub(super) fn is_probe(&self) -> bool {
        self.pass == Some(Pass::Probe)
    }

    /// Ends the call: whose matter it is.
    pub(super) fn end(mut self, call: &Call, judgement: &Judgement) -> Standing {
        let Some(pass) = self.pass.take() else { return Standing::Hold };
        let (gate, now, wall) = (self.gate, clock::instant(), clock::now());
        let (standing, news) = {
            let mut inner = gate.lock();
            let dice = clock::dice();
            let ended = inner.rules.end(call, pass, judgement, (now, wall), dice);
            gate.admit(&mut inner, now);
            ended
        };
        if let Some(news) = news {
            gate.changed.notify_one();
            log(news, now);
        }
        gate.tell();
        standing
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if let Some(pass) = self.pass.take() {
            let (mut inner, now) = (self.gate.lock(), clock::instant());
            inner.rules.give_back(pass, now);
            self.gate.admit(&mut inner, now);
        }
    }
}

/// What there is to tell about the portal, once.
pub(super) fn log(news: News, now: Instant) {
    match news {
        // Many bad events in a row look like one, for a moment.
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
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
