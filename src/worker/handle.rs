//! One event's turn: fence, pass the gate, sign, call, judge, decide, find a witness, settle.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use opentelemetry::Context;

use super::Worker;
use super::admit::Admitted;
use super::gate::Permit;
use super::group::Group;
use super::witness::verdict_stands;
use crate::clock;
use crate::domain::dead_letter::{Reason, describe};
use crate::domain::field::Field;
use crate::domain::gate::Standing;
use crate::domain::request::sign;
use crate::domain::response::{Judgement, Outcome, Scope, judge};
use crate::domain::retry::Tier;
use crate::domain::update::Update;
use crate::domain::verdict::{Verdict, decide};
use crate::domain::witness::Call;
use crate::ledger::{Committed, CustomerKey, Opened, Opening};
use crate::pauses::Pauses;
use crate::telemetry::trace;

/// What the calls of one attempt came to.
pub(super) struct Attempt {
    /// The last of them, as others see it.
    pub(super) call: Call,
    pub(super) judgement: Judgement,
    /// Whether any of its calls but the last may have been applied without our knowing.
    ambiguous: bool,
    /// Whether one of its calls may still be under way at the portal.
    pub(super) may_be_under_way: bool,
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

/// What came of asking the ledger for a customer.
enum Entry {
    Ours(Opened),
    /// Another relay has it.
    Held,
    /// The delivery was forgotten, or the worker ends.
    Useless,
}

type Hold<'a> = Option<Pin<Box<dyn Future<Output = ()> + Send + 'a>>>;

/// Pauses between two looks at a customer that another relay has just now.
const HELD_PAUSES: [Duration; 3] =
    [Duration::from_millis(50), Duration::from_millis(150), Duration::from_millis(300)];

impl Worker {
    /// Handles one event to its end, and those with it that are ready to go along.
    pub(super) async fn handle(self: &Arc<Self>, admitted: Box<Admitted>) {
        let customer = Arc::clone(&admitted.customer);
        let key = self.ledger.key(&customer);
        let opened = match self.open(&admitted, key).await {
            Entry::Ours(opened) => opened,
            Entry::Held => return Box::pin(self.hand_back_lane(admitted)).await,
            Entry::Useless => return self.tally.forgotten(),
        };
        if admitted.history.replay_id.is_some() {
            match self.ended_before(&admitted.delivery).await {
                Ok(true) => return Box::pin(self.end_repeated(admitted, &opened, key)).await,
                Ok(false) => {}
                Err(_) => return Box::pin(self.hand_back_lane(admitted)).await,
            }
        }
        let rules = (self.config.order_by, self.config.portal.settle_after);
        let mut group = Group::new(admitted, key, opened, rules, clock::now());
        match self.verdicts(&mut group).await {
            Some(verdicts) => self.end_turn(group, &customer, verdicts).await,
            None => Box::pin(self.give_up(group, &customer)).await,
        }
    }

    /// Reads a customer.
    async fn open(&self, admitted: &Admitted, key: CustomerKey) -> Entry {
        let mut pauses = HELD_PAUSES.iter();
        loop {
            let opening = tokio::select! {
                biased;
                opening = self.ledger.open(key) => opening,
                () = admitted.delivery.forgotten() => return Entry::Useless,
                () = self.cut.cancelled() => return Entry::Useless,
            };
            match (opening, pauses.next()) {
                (Opening::Ours(opened), _) => return Entry::Ours(*opened),
                (Opening::Held, Some(pause)) => tokio::time::sleep(*pause).await,
                (Opening::Held, None) => return Entry::Held,
            }
        }
    }

    /// One verdict a member. `None` if the first delivery was forgotten before its end: it will
    /// come again.
    async fn verdicts(self: &Arc<Self>, group: &mut Group) -> Option<Vec<Verdict>> {
        let (mut hold, mut is_again) = (None, false);
        loop {
            let Some(planned) = group.plan() else {
                return Some(group.each(|_| Verdict::Superseded));
            };
            let permit = match self.turn(group.head(), &mut hold).await {
                Turn::Call(permit) => permit,
                Turn::HandBack => return Some(self.all_back(group)),
                Turn::Forgotten => return None,
            };
            let Some(update) = self.ready(group, planned).await else {
                if group.plan().is_none() {
                    continue;
                }
                return Some(self.all_back(group));
            };
            let is_probe = permit.is_probe();
            let attempt = tokio::select! {
                attempt = self.attempt(group.head(), &update, is_probe) => attempt,
                () = self.cut.cancelled() => {
                    group.mark_under_way(clock::now());
                    group.change_histories(|history| history.ambiguous = true);
                    return Some(self.all_back(group));
                }
            };
            if attempt.may_be_under_way {
                group.mark_under_way(clock::now());
            }
            group.change_histories(|history| history.ambiguous |= attempt.ambiguous);
            let judgement = &attempt.judgement;
            if judgement.outcome != Outcome::Applied {
                self.controls.forget(&group.head().customer);
            }
            let standing = permit.end(&attempt.call, judgement);
            let ruled = match standing {
                Standing::Hold | Standing::HoldUntil(_) => None,
                Standing::Settle(scope) => {
                    self.ruled(group, &update, &attempt, scope, &mut is_again).await
                }
            };
            log(group, &update, &attempt, ruled.as_deref());
            if let Some(verdicts) = ruled {
                if judgement.outcome == Outcome::Applied {
                    self.controls.remember(group, update);
                }
                return Some(verdicts);
            }
            if group.members.len() > 1 && matches!(standing, Standing::Settle(_)) {
                let others = group.split();
                let customer = &group.head().customer;
                self.with_lanes(|lanes| lanes.put_back(customer, others));
                continue;
            }
            let is_ambiguous = judgement.outcome.is_ambiguous();
            group.change_histories(|history| history.ambiguous |= is_ambiguous);
            if let Standing::HoldUntil(time) = standing {
                self.sleep_until(time, group.head()).await;
            }
            if is_probe && !self.gate.look(crate::domain::gate::Gate::has_waiting) {
                // It makes room for another customer's event: the next probe.
                return Some(self.all_back(group));
            }
        }
    }

    /// All that there is to do between the permit and the call: the customer must still be ours,
    /// those that are ready go along, and what only the ledger will remember is recorded. `None` if
    /// no call can be made, or there is nothing to send any more.
    async fn ready(&self, group: &mut Group, planned: Arc<Update>) -> Option<Arc<Update>> {
        let mut is_as_planned = true;
        let span = self.config.longest_attempt();
        if group.lease().is_some_and(|lease| !lease.lasts(clock::instant(), span)) {
            let Entry::Ours(opened) = self.open(group.head(), group.key).await else {
                return None;
            };
            group.reopen(opened, clock::now());
            is_as_planned = false;
        }
        if self.config.worker.merges && group.head().may_merge() {
            let customer = &group.head().customer;
            let along =
                self.with_lanes(|lanes| lanes.take_along(customer, |waiting| waiting.may_merge()));
            let now = clock::now();
            is_as_planned &= along.is_empty();
            for admitted in along {
                group.add(admitted, now);
            }
        }
        if let Some(change) = group.announcement(clock::now())
            && self.ledger.commit(change).await != Committed::Done
        {
            return None;
        }
        if is_as_planned { Some(planned) } else { group.plan() }
    }

    /// Whose fault it was, and what follows for each of them. `None` if they are to be tried again:
    /// later, or one by one where one of several may have been refused for another's sake.
    async fn ruled(
        self: &Arc<Self>,
        group: &mut Group,
        update: &Update,
        attempt: &Attempt,
        scope: Option<Scope>,
        is_again: &mut bool,
    ) -> Option<Vec<Verdict>> {
        let (now, dice) = (clock::now(), clock::dice());
        let policy = &self.config.retry;
        let judgement = &attempt.judgement;
        let verdicts = group.members.iter().map(|member| {
            if scope.is_none() && member.share.is_empty() {
                return Verdict::Superseded;
            }
            decide(judgement, scope, update, &member.admitted.history, policy, now, dice)
        });
        let mut verdicts: Vec<Verdict> = verdicts.collect();
        if let [member] = &group.members[..] {
            let verdict = verdicts.pop()?;
            let admitted = &member.admitted;
            let witnessed = self.witnessed(admitted, attempt, verdict, is_again).await?;
            return Some(vec![witnessed]);
        }
        let stand = |verdict| verdict_stands(verdict, judgement.outcome);
        verdicts.iter().all(stand).then_some(verdicts)
    }

    fn all_back(&self, group: &Group) -> Vec<Verdict> {
        group.each(|history| Verdict::hand_back(&self.config.retry.tiers, history.clone()))
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
    async fn attempt(&self, admitted: &Admitted, update: &Update, is_probe: bool) -> Attempt {
        let (customer, context) = (&admitted.customer, admitted.delivery.context());
        let began = clock::instant();
        let mut pauses = Pauses::immediate(self.config.immediate);
        let (mut calls, mut ambiguous, mut may_be_under_way) = (0, false, false);
        loop {
            let attempt = self.call_once(customer, update, context, calls).await;
            calls += attempt.calls;
            may_be_under_way |= attempt.may_be_under_way;
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
            let took = began.elapsed();
            self.metrics().attempted(outcome);
            return Attempt { ambiguous, may_be_under_way, calls, took, ..attempt };
        }
    }

    /// Makes one call; one more if the credentials were refused and have changed since. `repeats`:
    /// calls before it in the same attempt.
    pub(super) async fn call_once(
        &self,
        customer: &Arc<str>,
        update: &Update,
        context: &Context,
        repeats: u32,
    ) -> Attempt {
        let order = self.config.portal.field_order;
        let sets_email = update.value(Field::Email).is_some();
        let mut credentials = self.keyring.current();
        let mut calls = 0;
        loop {
            calls += 1;
            let request = sign(update, order, &credentials.secret_key);
            let started = clock::instant();
            let tracing = &self.telemetry.tracing;
            let context = tracing.calling(context, self.portal.url(), repeats + calls - 1);
            let answer = self.portal.update_customer(&request, &credentials, &context).await;
            let judgement = judge(&answer, sets_email, clock::now());
            let took = started.elapsed();
            self.metrics().called(&judgement, took);
            tracing.called(&context, &judgement);
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
            let may_be_under_way = judgement.outcome.may_be_under_way();
            return Attempt { call, judgement, ambiguous: false, may_be_under_way, calls, took };
        }
    }
}

/// One wide line an attempt and event; nothing in it was written by the event or the portal, but the
/// ids.
fn log(group: &Group, update: &Update, attempt: &Attempt, verdicts: Option<&[Verdict]>) {
    let Judgement { outcome, http_status, portal_status, .. } = attempt.judgement;
    let took_ms = attempt.took.as_secs_f64() * 1e3;
    let (calls, merged) = (attempt.calls, group.members.len());
    for (index, member) in group.members.iter().enumerate() {
        let context = member.admitted.delivery.context();
        let trace_id = trace::id(context);
        let _trace = context.clone().attach();
        let event_id = member.admitted.log_id();
        let number = member.admitted.history.attempts + 1;
        if outcome == Outcome::Applied {
            let withheld = member.withheld().names();
            tracing::info!(
                event_id,
                attempt = number,
                calls,
                merged,
                withheld,
                took_ms,
                trace_id,
                "applied"
            );
            continue;
        }
        let detail = describe(&attempt.judgement, update);
        let verdict = verdicts.and_then(|verdicts| verdicts.get(index));
        tracing::warn!(
            event_id,
            attempt = number,
            calls,
            merged,
            took_ms,
            outcome = outcome.name(),
            http_status,
            portal_status,
            detail,
            verdict = verdict.map_or("hold", Verdict::name),
            delay_ms = verdict.and_then(Verdict::tier).map(Tier::millis),
            reason = verdict.and_then(Verdict::reason).map(Reason::name),
            trace_id,
            "not applied"
        );
    }
}
