//! One event's turn: pass the gate, sign, call, judge, decide, find a witness, settle.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use opentelemetry::Context;

use super::Worker;
use super::admit::Admitted;
use super::gate::Permit;
use crate::clock;
use crate::domain::dead_letter::{Reason, describe};
use crate::domain::field::Field;
use crate::domain::gate::Standing;
use crate::domain::history::History;
use crate::domain::redact::cut;
use crate::domain::request::sign;
use crate::domain::response::{Judgement, Outcome, judge};
use crate::domain::retry::Tier;
use crate::domain::update::Update;
use crate::domain::verdict::{Verdict, decide};
use crate::domain::witness::Call;
use crate::pauses::Pauses;

/// Longest event id in a log line, in bytes.
const MAX_ID_BYTES: usize = 128;

/// What the calls of one attempt came to.
pub(super) struct Attempt {
    /// The last of them, as others see it.
    pub(super) call: Call,
    pub(super) judgement: Judgement,
    /// Whether any of its calls but the last may have been applied without our knowing.
    ambiguous: bool,
    calls: u32,
    took: Duration,
}

/// What came of waiting for a turn.
enum Turn<'a> {
    Call(Permit<'a>),
    /// The worker stops, or the outage lasts.
    HandBack,
    /// The session is lost: the message will come again.
    Forgotten,
}

type Hold<'a> = Option<Pin<Box<dyn Future<Output = ()> + Send + 'a>>>;

impl Worker {
    /// Handles one event to its end.
    pub(super) async fn handle(self: &Arc<Self>, admitted: Box<Admitted>) {
        let Some(verdict) = self.verdict(&admitted).await else {
            self.tally.forgotten();
            return;
        };
        let Admitted { delivery, customer, update, .. } = *admitted;
        if verdict == Verdict::Applied {
            self.controls.remember(&customer, update);
        }
        match verdict.tier() {
            Some(tier) => Box::pin(self.postpone_lane(delivery, &customer, tier, verdict)).await,
            None => self.settle(delivery, verdict).await,
        }
    }

    /// `None` if the delivery was forgotten before its end: it will come again.
    async fn verdict(self: &Arc<Self>, admitted: &Admitted) -> Option<Verdict> {
        let policy = &self.config.retry;
        let mut history = admitted.history.clone();
        let (mut hold, mut is_again) = (None, false);
        loop {
            let permit = match self.turn(admitted, &mut hold).await {
                Turn::Call(permit) => permit,
                Turn::HandBack => return Some(Verdict::hand_back(&policy.tiers, history)),
                Turn::Forgotten => return None,
            };
            let is_probe = permit.is_probe();
            let attempt = tokio::select! {
                attempt = self.attempt(admitted, is_probe) => attempt,
                () = self.cut.cancelled() => {
                    let history = History { ambiguous: true, ..history };
                    return Some(Verdict::hand_back(&policy.tiers, history));
                }
            };
            history.ambiguous |= attempt.ambiguous;
            let judgement = &attempt.judgement;
            if judgement.outcome != Outcome::Applied {
                self.controls.forget(&admitted.customer);
            }
            let standing = permit.end(&attempt.call, judgement);
            let ruled = match standing {
                Standing::Hold | Standing::HoldUntil(_) => None,
                Standing::Settle(scope) => {
                    let (now, dice) = (clock::now(), clock::dice());
                    let update = &admitted.update;
                    let verdict = decide(judgement, scope, update, &history, policy, now, dice);
                    let again = &mut is_again;
                    self.witnessed(admitted, &attempt, &history, verdict, again).await
                }
            };
            log(admitted, &attempt, ruled.as_ref());
            if ruled.is_some() {
                return ruled;
            }
            history.ambiguous |= judgement.outcome.is_ambiguous();
            if let Standing::HoldUntil(time) = standing {
                self.sleep_until(time, admitted).await;
            }
            if is_probe && !self.gate.look(crate::domain::gate::Gate::has_waiting) {
                // It makes room for another customer's event: the next probe.
                return Some(Verdict::hand_back(&policy.tiers, history));
            }
        }
    }

    /// Waits for the event's turn to call. `hold` goes on over several turns.
    async fn turn<'a>(&'a self, admitted: &Admitted, hold: &mut Hold<'a>) -> Turn<'a> {
        if self.stop.is_cancelled() {
            return Turn::HandBack;
        }
        if admitted.delivery.is_forgotten() {
            return Turn::Forgotten;
        }
        if let Some(permit) = self.gate.pass_at_once() {
            return Turn::Call(permit);
        }
        let hold = hold.get_or_insert_with(|| self.gate.hold_is_over());
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Turn::HandBack,
            () = admitted.delivery.forgotten() => Turn::Forgotten,
            permit = self.gate.pass(&admitted.customer) => Turn::Call(permit),
            () = hold => Turn::HandBack,
        }
    }

    /// Keeps an event for itself, until a time at most.
    async fn sleep_until(&self, time: Instant, admitted: &Admitted) {
        tokio::select! {
            () = tokio::time::sleep_until(time.into()) => {}
            () = self.stop.cancelled() => {}
            () = admitted.delivery.forgotten() => {}
        }
    }

    /// Calls the portal, with immediate retries where they may help; a probe is one call.
    async fn attempt(&self, admitted: &Admitted, is_probe: bool) -> Attempt {
        let Admitted { update, customer, context, .. } = admitted;
        let began = clock::instant();
        let mut pauses = Pauses::immediate(self.config.immediate);
        let (mut calls, mut ambiguous) = (0, false);
        loop {
            let attempt = self.call_once(customer, update, context).await;
            calls += attempt.calls;
            let outcome = attempt.judgement.outcome;
            let may_help = outcome.allows_immediate_retry()
                && attempt.judgement.retry_after.is_none()
                && !is_probe
                && !self.stop.is_cancelled();
            let pause = if may_help { pauses.next_pause() } else { None };
            if let Some(pause) = pause {
                tokio::time::sleep(pause).await;
                if self.gate.look(|rules| rules.allows_repeat(clock::instant())) {
                    ambiguous |= outcome.is_ambiguous();
                    self.gate.keep_rate().await;
                    continue;
                }
            }
            return Attempt { ambiguous, calls, took: began.elapsed(), ..attempt };
        }
    }

    /// Makes one call; one more if the credentials were refused and have changed since.
    pub(super) async fn call_once(
        &self,
        customer: &Arc<str>,
        update: &Update,
        context: &Context,
    ) -> Attempt {
        let order = self.config.portal.field_order;
        let sets_email = update.value(Field::Email).is_some();
        let mut credentials = self.keyring.current();
        let mut calls = 0;
        loop {
            calls += 1;
            let request = sign(update, order, &credentials.secret_key);
            let started = clock::instant();
            let answer = self.portal.update_customer(&request, &credentials, context).await;
            let judgement = judge(&answer, sets_email, clock::now());
            if judgement.outcome == Outcome::Unauthorized {
                let fresh = self.keyring.reread();
                if fresh != credentials {
                    credentials = fresh;
                    self.gate.keep_rate().await;
                    continue;
                }
            }
            let call =
                Call { customer: Arc::clone(customer), started, credentials: credentials.number };
            let took = started.elapsed();
            return Attempt { call, judgement, ambiguous: false, calls, took };
        }
    }
}

/// One wide line an attempt; nothing in it was written by the event or the portal, but the ids.
fn log(admitted: &Admitted, attempt: &Attempt, verdict: Option<&Verdict>) {
    let Judgement { outcome, http_status, portal_status, .. } = attempt.judgement;
    let event_id = admitted.event_id.as_deref().map(|id| cut(id, MAX_ID_BYTES));
    let number = admitted.history.attempts + 1;
    let took_ms = attempt.took.as_secs_f64() * 1e3;
    if outcome == Outcome::Applied {
        tracing::info!(event_id, attempt = number, calls = attempt.calls, took_ms, "applied");
        return;
    }
    let detail = describe(&attempt.judgement, &admitted.update);
    tracing::warn!(
        event_id,
        attempt = number,
        calls = attempt.calls,
        took_ms,
        outcome = outcome.name(),
        http_status,
        portal_status,
        detail,
        verdict = verdict.map_or("hold", Verdict::name),
        delay_ms = verdict.and_then(Verdict::tier).map(Tier::millis),
        reason = verdict.and_then(Verdict::reason).map(Reason::name),
        "not applied"
    );
}
