//! One customer's turn: carries out what [`Turn`] says, one thing after the other.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry::Context;

use super::Worker;
use super::admit::Admitted;
use super::gate;
use crate::clock;
use crate::domain::dead_letter::{Reason, describe};
use crate::domain::doubt::Lost;
use crate::domain::faults::Call;
use crate::domain::field::Field;
use crate::domain::outcome::Outcome;
use crate::domain::request::sign;
use crate::domain::response::{Judgement, judge};
use crate::domain::retry::Tier;
use crate::domain::row::Row;
use crate::domain::turn::{Action, Ending, Input, Moment, Read, Turn};
use crate::domain::update::Update;
use crate::domain::verdict::Verdict;
use crate::ledger::{Change, CustomerKey, Lease, Loaded};
use crate::pauses::Pauses;
use crate::telemetry::trace;

/// One customer's turn, and what the machine knows nothing of.
pub(super) struct Visit {
    pub(super) turn: Turn<Box<Admitted>>,
    pub(super) key: CustomerKey,
    pub(super) lease: Option<Lease>,
    /// Of the attempt under way, or the last one if that is not told yet.
    attempt: Option<Attempt>,
    /// Of its immediate retries.
    pauses: Option<Pauses>,
}

/// The calls of one attempt, for its log line.
struct Attempt {
    update: Arc<Update>,
    judgement: Judgement,
    calls: u32,
    took: Duration,
}

type Fact = Input<Box<Admitted>>;
/// How long deliveries are kept while no calls are made; it goes on over several waits.
type Hold<'a> = Option<Pin<Box<dyn Future<Output = ()> + Send + 'a>>>;

impl Worker {
    /// Handles one event to its end, and those with it that are ready to go along.
    pub(super) async fn handle(self: &Arc<Self>, admitted: Box<Admitted>) {
        let customer = Arc::clone(&admitted.customer);
        let key = self.ledger.key(&customer);
        let (turn, mut action) = Turn::begin(admitted);
        let (lease, attempt, pauses) = (None, None, None);
        let mut hold = None;
        let mut visit = Visit { turn, key, lease, attempt, pauses };
        let ending = loop {
            let fact = match action {
                Action::Read => self.read(&mut visit).await,
                Action::Sleep(pause) => {
                    tokio::time::sleep(pause).await;
                    Input::Done
                }
                Action::Pass => self.pass(&visit, &mut hold).await,
                Action::Secure { joins } => self.secure(&mut visit, joins).await,
                Action::Announce => self.announce(&visit).await,
                Action::Call(update) => self.call(&mut visit, update).await,
                Action::Pause => self.pause(&mut visit).await,
                Action::Wait(fault) => {
                    self.unless_interrupted(&visit, self.gate.news_of(fault)).await
                }
                Action::SleepUntil(time) => {
                    let sleep = tokio::time::sleep_until(time.into());
                    self.unless_interrupted(&visit, sleep).await
                }
                Action::PutBack(others) => {
                    self.with_lanes(|lanes| lanes.put_back(&customer, others));
                    Input::Done
                }
                Action::End(ending) => break ending,
            };
            action = self.step(&mut visit, fact);
        };
        self.end_turn(visit, ending, &customer).await;
    }

    /// One step of the machine. An attempt whose end it tells is logged.
    fn step(&self, visit: &mut Visit, fact: Fact) -> Action<Box<Admitted>> {
        let (now, wall, dice, lost) = (clock::instant(), clock::now(), clock::dice(), self.lost());
        let moment = Moment { now, wall, dice, lost };
        let policy = self.config.turn_policy();
        let (action, news) =
            self.gate.learn_at(now, |rules| visit.turn.step(rules, fact, &moment, &policy));
        news.inspect(|news| gate::log(*news, now));
        match &action {
            Action::End(Ending::Verdicts(verdicts)) => visit.log_attempt(self, verdicts, &[]),
            Action::Pass | Action::SleepUntil(_) => visit.log_attempt(self, &[], &[]),
            Action::PutBack(others) => visit.log_attempt(self, &[], others),
            Action::End(_)
            | Action::Read
            | Action::Sleep(_)
            | Action::Secure { .. }
            | Action::Announce
            | Action::Call(_)
            | Action::Pause
            | Action::Wait(_) => {}
        }
        action
    }

    /// What the ledger does not know, if anything.
    pub(super) fn lost(&self) -> Option<Lost> {
        self.ledger.gap().map(|gap| gap.lost(self.config.rules.future_tolerance))
    }

    /// Reads the customer, and whether the first event's replay has ended.
    async fn read(&self, visit: &mut Visit) -> Fact {
        let delivery = &visit.turn.first().delivery;
        // Whoever asks is given the customer's lease.
        if delivery.is_forgotten() {
            return Input::Forgotten;
        }
        let loaded = tokio::select! {
            biased;
            loaded = self.ledger.load(visit.key) => loaded,
            () = delivery.forgotten() => return Input::Forgotten,
            () = self.cut.cancelled() => return Input::Cut,
        };
        let read = as_read(loaded, &mut visit.lease);
        if matches!(read, Read::Ours { .. }) && visit.turn.first().history.replay_id.is_some() {
            match self.ended_before(&visit.turn.first().delivery).await {
                Ok(false) => {}
                Ok(true) => return Input::Read(Read::Repeated),
                Err(_) => return Input::Read(Read::Undecided),
            }
        }
        Input::Read(read)
    }

    /// Waits for the event's turn to call.
    async fn pass<'a>(&'a self, visit: &Visit, hold: &mut Hold<'a>) -> Fact {
        let first = visit.turn.first();
        if self.stop.is_cancelled() {
            return Input::Stopped;
        }
        if first.delivery.is_forgotten() {
            return Input::Forgotten;
        }
        if let Some(pass) = self.gate.pass_at_once() {
            return Input::Permitted(pass);
        }
        let hold = hold.get_or_insert_with(|| self.gate.hold_is_over());
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Input::Stopped,
            () = first.delivery.forgotten() => Input::Forgotten,
            pass = self.gate.pass(&first.customer) => Input::Permitted(pass),
            () = hold => Input::HeldForLong,
        }
    }

    /// The customer must be ours for the time of a call; those that are ready go along.
    async fn secure(&self, visit: &mut Visit, joins: bool) -> Fact {
        if visit.attempt.is_some() {
            // A repetition. A first call has kept the rate at the gate.
            tokio::select! {
                biased;
                () = self.cut.cancelled() => return Input::Cut,
                () = self.gate.keep_rate() => {}
            }
        }
        let span = self.config.longest_attempt();
        let mut read = None;
        if visit.lease.is_some_and(|lease| !lease.lasts(clock::instant(), span)) {
            let first = visit.turn.first();
            let loaded = tokio::select! {
                biased;
                loaded = self.ledger.load(visit.key) => loaded,
                () = first.delivery.forgotten() => Loaded::Held,
                () = self.cut.cancelled() => Loaded::Held,
            };
            read = Some(as_read(loaded, &mut visit.lease));
        }
        let mut joined = Vec::new();
        if joins {
            let (customer, lost) = (&visit.turn.first().customer, self.lost());
            joined = self.with_lanes(|lanes| {
                lanes.take_along(customer, |one| {
                    one.may_merge() && !one.is_covered(lost) && !one.delivery.is_forgotten()
                })
            });
        }
        Input::Secured { read, joined }
    }

    /// Commits what nothing but the ledger will remember after a crash.
    async fn announce(&self, visit: &Visit) -> Fact {
        let group = visit.turn.group().expect("the customer has been read");
        let row = group.changed_row().map(Row::pack);
        let change = super::unchanged(visit.key, visit.lease, clock::now());
        let change = Change { row, keeps_lease: true, ..change };
        Input::Announced(self.ledger.commit(change).await)
    }

    /// Calls the portal.
    async fn call(&self, visit: &mut Visit, update: Arc<Update>) -> Fact {
        let repeats = visit.attempt.as_ref().map_or(0, |attempt| attempt.calls);
        let first = visit.turn.first();
        let before_it = (first.delivery.context(), repeats);
        let called = tokio::select! {
            called = self.call_once(&first.customer, &update, before_it, visit.lease) => called,
            () = self.cut.cancelled() => return Input::Cut,
        };
        let before = visit.attempt.take().map_or(Duration::ZERO, |attempt| attempt.took);
        let Called { call, judgement, calls, took } = called;
        let told = judgement.clone();
        let (calls, took) = (repeats + calls, before + took);
        visit.attempt = Some(Attempt { update, judgement: told, calls, took });
        Input::Answered(call, judgement)
    }

    /// Pauses before an immediate retry, if one is left.
    async fn pause(&self, visit: &mut Visit) -> Fact {
        let immediate = || Pauses::immediate(self.config.immediate);
        let pauses = visit.pauses.get_or_insert_with(immediate);
        let pause = if self.stop.is_cancelled() { None } else { pauses.next_pause() };
        let Some(pause) = pause else { return Input::Paused(false) };
        tokio::select! {
            () = tokio::time::sleep(pause) => Input::Paused(true),
            () = self.cut.cancelled() => Input::Paused(false),
        }
    }

    /// Waits for something, unless the worker stops or the delivery is forgotten before.
    async fn unless_interrupted(&self, visit: &Visit, done: impl Future<Output = ()>) -> Fact {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Input::Stopped,
            () = visit.turn.first().delivery.forgotten() => Input::Forgotten,
            () = done => Input::Done,
        }
    }

    /// Makes one call; one more if the credentials were refused and have changed since, and the customer
    /// is still ours. `repeats`: calls before it in the same attempt.
    pub(super) async fn call_once(
        &self,
        customer: &Arc<str>,
        update: &Update,
        (context, repeats): (&Context, u32),
        lease: Option<Lease>,
    ) -> Called {
        let order = self.config.portal.field_order;
        let sets_email = update.value(Field::Email).is_some();
        let mut credentials = self.keyring.current();
        let (mut calls, began) = (0, clock::instant());
        loop {
            calls += 1;
            let request = sign(update, order, &credentials.secret_key);
            let started = clock::instant();
            let tracing = &self.telemetry.tracing;
            let context = tracing.calling(context, self.portal.url(), repeats + calls - 1);
            let answer = self.portal.update_customer(&request, &credentials, &context).await;
            if let Ok(answer) = &answer {
                self.clocks.note_answer(answer.date.as_deref(), started);
            }
            let judgement = judge(&answer, sets_email, clock::now());
            self.metrics().called(&judgement, started.elapsed());
            tracing.called(&context, &judgement);
            if judgement.outcome == Outcome::Unauthorized {
                let fresh = self.keyring.reread();
                if fresh != credentials {
                    self.gate.keep_rate().await;
                    let (now, span) = (clock::instant(), self.config.portal.timeout);
                    if lease.is_none_or(|lease| lease.lasts(now, span)) {
                        credentials = fresh;
                        continue;
                    }
                }
            }
            let call = Call::new(Arc::clone(customer), started, credentials.number);
            return Called { call, judgement, calls, took: began.elapsed() };
        }
    }
}

/// The lease is remembered, as long as there is one.
fn as_read(loaded: Loaded, lease: &mut Option<Lease>) -> Read {
    match loaded {
        Loaded::Ours(loaded) => {
            *lease = loaded.lease;
            Read::Ours { row: loaded.row, was_taken_over: loaded.was_taken_over }
        }
        Loaded::Held => Read::Held,
        Loaded::Unreadable(error) => Read::Unreadable(error),
        Loaded::Refused => Read::Refused,
    }
}

/// What a call came to.
pub(super) struct Called {
    pub(super) call: Call,
    pub(super) judgement: Judgement,
    calls: u32,
    took: Duration,
}

impl Visit {
    /// One wide line an attempt and event; nothing in it was written by the event or the portal, but
    /// the ids. `others`: events that went along, and are to be tried by themselves.
    fn log_attempt(&mut self, worker: &Worker, verdicts: &[Verdict], others: &[Box<Admitted>]) {
        let (Some(attempt), Some(group)) = (self.attempt.take(), self.turn.group()) else { return };
        self.pauses = None;
        worker.metrics().attempted(attempt.judgement.outcome);
        let merged = group.members.len() + others.len();
        for (index, member) in group.members.iter().enumerate() {
            if attempt.judgement.outcome == Outcome::Applied {
                attempt.log_applied(&member.carrier, merged, member.withheld().names().as_deref());
            } else {
                attempt.log_fault(&member.carrier, merged, verdicts.get(index));
            }
        }
        for other in others {
            attempt.log_fault(other, merged, None);
        }
    }
}

impl Attempt {
    fn log_applied(&self, admitted: &Admitted, merged: usize, withheld: Option<&str>) {
        let context = admitted.delivery.context();
        let _trace = context.clone().attach();
        tracing::info!(
            event_id = admitted.log_id(),
            attempt = admitted.history.attempts + 1,
            calls = self.calls,
            merged,
            withheld,
            took_ms = self.took.as_secs_f64() * 1e3,
            trace_id = trace::id(context),
            "applied"
        );
    }

    fn log_fault(&self, admitted: &Admitted, merged: usize, verdict: Option<&Verdict>) {
        let Judgement { outcome, http_status, portal_status, .. } = self.judgement;
        let context = admitted.delivery.context();
        let _trace = context.clone().attach();
        tracing::warn!(
            event_id = admitted.log_id(),
            attempt = admitted.history.attempts + 1,
            calls = self.calls,
            merged,
            took_ms = self.took.as_secs_f64() * 1e3,
            outcome = outcome.name(),
            http_status,
            portal_status,
            detail = describe(&self.judgement, &self.update),
            verdict = verdict.map_or("hold", Verdict::name),
            delay_ms = verdict.and_then(Verdict::tier).map(Tier::millis),
            reason = verdict.and_then(Verdict::reason).map(Reason::name),
            trace_id = trace::id(context),
            "not applied"
        );
    }
}
