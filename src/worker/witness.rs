//! Before an event is held to have failed for good, somebody else's call must have gone well: a
//! witness. Where there is none, a control call is made: an update that was applied is sent again,
//! which changes nothing, or the configured probe customer's.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use opentelemetry::Context;

use super::Worker;
use super::admit::Admitted;
use super::group::Group;
use super::handle::Attempt;
use crate::clock;
use crate::domain::dead_letter::{DeadLetter, Reason};
use crate::domain::field::FieldSet;
use crate::domain::gate::Ruling;
use crate::domain::history::History;
use crate::domain::response::{Outcome, Scope};
use crate::domain::retry::after;
use crate::domain::update::Update;
use crate::domain::verdict::Verdict;
use crate::domain::version::Version;
use crate::domain::witness::Doubt;
use crate::ledger::{Change, Opening};

/// Updates kept that were applied, each of another customer.
const KEPT: usize = 4;
/// At the second failure all is known to be well: a control call will tell soon.
const PATIENCE_AGAIN: Duration = Duration::from_millis(100);
/// They need not be the very latest.
const REMEMBER_EVERY: Duration = Duration::from_secs(1);

/// What can be sent again.
pub(super) struct Controls {
    applied: Mutex<Applied>,
    probe_customer: Option<Arc<Update>>,
    /// One control call answers all who ask.
    one: tokio::sync::Mutex<()>,
}

/// An update that may be sent again as long as it is its customer's newest.
#[derive(Clone)]
struct Control {
    update: Arc<Update>,
    /// What it consisted of.
    versions: Vec<(Version, FieldSet)>,
}

#[derive(Default)]
struct Applied {
    updates: VecDeque<(Arc<str>, Control)>,
    remembered_at: Option<Instant>,
}

impl Controls {
    pub(super) fn new(probe_customer: Option<Update>) -> Controls {
        let (applied, one) = Default::default();
        Controls { applied, probe_customer: probe_customer.map(Arc::new), one }
    }

    /// An update was applied.
    pub(super) fn remember(&self, group: &Group, update: Arc<Update>) {
        let customer = &group.head().customer;
        let control = || {
            let parts = group.members.iter().map(|member| (member.version.clone(), member.share));
            Control { update, versions: parts.collect() }
        };
        let mut applied = self.lock();
        if let Some(known) = applied.updates.iter_mut().find(|(known, _)| known == customer) {
            known.1 = control();
            return;
        }
        let now = clock::instant();
        if applied.remembered_at.is_some_and(|at| now.duration_since(at) < REMEMBER_EVERY) {
            return;
        }
        applied.remembered_at = Some(now);
        if applied.updates.len() == KEPT {
            applied.updates.pop_front();
        }
        applied.updates.push_back((Arc::clone(customer), control()));
    }

    /// A later update of this customer may have been applied: the kept one is not to be sent again.
    pub(super) fn forget(&self, customer: &Arc<str>) {
        self.lock().updates.retain(|(known, _)| known != customer);
    }

    /// What to send, best first. Asked again, another one is first.
    fn candidates(&self) -> Vec<(Arc<str>, Control)> {
        let mut applied = self.lock();
        if let Some(latest) = applied.updates.pop_back() {
            applied.updates.push_front(latest);
        }
        let probe = self.probe_customer.iter();
        let probe = probe.map(|update| {
            let control = Control { update: Arc::clone(update), versions: Vec::new() };
            (update.entity_id().into(), control)
        });
        probe.chain(applied.updates.iter().rev().cloned()).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Applied> {
        self.applied.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a control call came to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Controlled {
    /// It was made, or somebody else's was: the gate knows more.
    Known,
    /// The customers whose updates could be sent are busy.
    Busy,
    /// There is nothing to send.
    Impossible,
}

impl Worker {
    /// Holds a verdict back until it is known whose fault it was; `None` if the event is to be
    /// tried again. Waits for a witness, and in the end asks with a control call.
    pub(super) async fn witnessed(
        self: &Arc<Self>,
        admitted: &Admitted,
        attempt: &Attempt,
        verdict: Verdict,
        is_again: &mut bool,
    ) -> Option<Verdict> {
        let (customer, history) = (&admitted.customer, &admitted.history);
        let is_rejection = match needs_witness(&verdict, attempt.judgement.outcome) {
            Needs::Nothing => return Some(verdict),
            Needs::CertainWitness => true,
            Needs::AnyWitness => false,
        };
        let since = history.first_attempt;
        let is_known = self.gate.look(|rules| {
            let outlived = since.is_some_and(|since| rules.witnesses().another_at(customer, since));
            if is_rejection { rules.accepts_rejections() } else { outlived }
        });
        if is_known {
            return Some(verdict);
        }
        if is_rejection && self.keyring.current().number != attempt.call.credentials {
            return None;
        }
        let ended = clock::instant();
        let doubt = if is_rejection {
            self.gate.look(|rules| rules.doubt(&attempt.call, ended, *is_again))
        } else {
            Doubt::of_attempts(attempt.call.clone(), ended)
        };
        let patience = self.config.outage.witness_wait;
        let wait = if *is_again { patience.min(PATIENCE_AGAIN) } else { patience };
        *is_again = true;
        match self.ruling(admitted, &doubt, wait).await {
            Some(Ruling::Final) => Some(verdict),
            Some(Ruling::Hold) => None,
            Some(Ruling::Ask) | None => Some(self.unwitnessed(verdict, attempt, history)),
        }
    }

    /// `None` if nobody can tell.
    async fn ruling(
        self: &Arc<Self>,
        admitted: &Admitted,
        doubt: &Doubt,
        wait: Duration,
    ) -> Option<Ruling> {
        let ruling = tokio::select! {
            ruling = self.gate.learn_of(wait, |rules| rules.ruling(doubt)) => ruling,
            () = self.stop.cancelled() => return Some(Ruling::Hold),
            () = admitted.delivery.forgotten() => return Some(Ruling::Hold),
        };
        if matches!(ruling, Some(Ruling::Final | Ruling::Hold)) {
            return ruling;
        }
        let _one = self.controls.one.lock().await;
        let known = || self.gate.look(|rules| rules.ruling(doubt));
        if let known @ Some(Ruling::Final | Ruling::Hold) = known() {
            return known;
        }
        match self.control(Some(&admitted.customer)).await {
            Controlled::Known | Controlled::Busy => known().or(Some(Ruling::Hold)),
            Controlled::Impossible => {
                let news = self
                    .gate
                    .learn(|rules| rules.control_is_impossible(clock::instant(), clock::dice()));
                news.inspect(|news| super::gate::log(*news, clock::instant()));
                known()
            }
        }
    }

    /// The probe of an outage in which the events themselves may be what is wrong.
    pub(super) async fn probe_by_control(self: &Arc<Self>) {
        let _one = self.controls.one.lock().await;
        if self.control(None).await != Controlled::Known {
            self.gate.learn(crate::domain::gate::Gate::skip_control);
        }
    }

    /// Sends what was applied before once more, for any customer but this one.
    async fn control(self: &Arc<Self>, except: Option<&Arc<str>>) -> Controlled {
        let mut candidates = self.controls.candidates();
        candidates.retain(|(customer, _)| Some(customer) != except);
        if candidates.is_empty() {
            return Controlled::Impossible;
        }
        let free = candidates
            .into_iter()
            .find(|(customer, _)| self.with_lanes(|lanes| lanes.reserve(customer)));
        let Some((customer, control)) = free else { return Controlled::Busy };
        let controlled = self.send_again(&customer, &control).await;
        if let Some(next) = self.with_lanes(|lanes| lanes.finish(&customer)) {
            self.start_lane(next);
        }
        controlled
    }

    /// Another relay may have applied something newer, or have the customer just now: the ledger
    /// knows.
    async fn send_again(&self, customer: &Arc<str>, control: &Control) -> Controlled {
        let key = self.ledger.key(customer);
        let opening = tokio::select! {
            opening = self.ledger.open(key) => opening,
            () = self.cut.cancelled() => return Controlled::Busy,
        };
        let Opening::Ours(mut opened) = opening else { return Controlled::Busy };
        let is_newest = |(version, fields): &(Version, FieldSet)| {
            fields.iter().all(|field| opened.row.newest(field) == Some(version))
        };
        let is_newest = self.ledger.about().is_none() || control.versions.iter().all(is_newest);
        let mut may_be_under_way = false;
        if !is_newest {
            self.controls.forget(customer);
        } else if let Some(permit) = self.gate.pass_control() {
            let context = Context::new();
            self.gate.keep_rate().await;
            tokio::select! {
                attempt = self.call_once(customer, &control.update, &context, 0) => {
                    let outcome = attempt.judgement.outcome;
                    tracing::info!(outcome = outcome.name(), "control call");
                    may_be_under_way = attempt.may_be_under_way;
                    permit.end(&attempt.call, &attempt.judgement);
                }
                () = self.cut.cancelled() => may_be_under_way = true,
            }
        }
        let at = clock::now();
        if may_be_under_way {
            opened.row.mark(None, after(at, self.config.portal.settle_after), at);
        }
        let row = may_be_under_way.then(|| opened.row.pack());
        let change =
            Change { customer: Some(key), row, lease: opened.lease, at, ..Change::default() };
        if !change.is_empty() {
            // A lease that was lost has somebody else know that a call may be under way.
            self.ledger.commit(change).await;
        }
        if is_newest { Controlled::Known } else { Controlled::Busy }
    }

    fn unwitnessed(&self, verdict: Verdict, attempt: &Attempt, history: &History) -> Verdict {
        let outcome = attempt.judgement.outcome;
        let verdict = match verdict {
            Verdict::DeadLetter(dead) if dead.reason == Reason::Rejected => {
                DeadLetter { unwitnessed: true, ..*dead }.into()
            }
            Verdict::DeadLetter(_) => {
                tracing::error!(
                    outcome = outcome.name(),
                    "all attempts are used up, but no other customer's call went well since the \
                     first: the event waits on"
                );
                Verdict::unwitnessed(history, outcome, &self.config.retry.tiers)
            }
            other => return other,
        };
        self.metrics().unwitnessed(&verdict);
        verdict
    }
}

/// Whether the end of a merged call can be the end of each of its events: it is nobody's own fault.
pub(super) fn verdict_stands(verdict: &Verdict, outcome: Outcome) -> bool {
    let is_final = matches!(verdict, Verdict::DeadLetter(_));
    let is_own = outcome.scope() == Some(Scope::Message);
    !is_final && !is_own && matches!(needs_witness(verdict, outcome), Needs::Nothing)
}

/// What must be shown before a verdict stands.
enum Needs {
    Nothing,
    /// That this very call did not fail by anything but the event.
    CertainWitness,
    /// That others' calls go well, or went well since the event's first attempt.
    AnyWitness,
}

fn needs_witness(verdict: &Verdict, outcome: Outcome) -> Needs {
    match verdict.reason() {
        Some(Reason::Rejected) => Needs::CertainWitness,
        // Its words show that the portal looked at the update itself.
        Some(Reason::DuplicateEmail) => Needs::Nothing,
        Some(_) => Needs::AnyWitness,
        // Counted, and in the end a dead letter, only if it is not everybody.
        None if outcome == Outcome::Unauthorized => Needs::AnyWitness,
        None => Needs::Nothing,
    }
}
