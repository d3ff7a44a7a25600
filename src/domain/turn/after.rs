//! What comes after a call: its result is attributed, and what is the events' own becomes verdicts.

use std::sync::Arc;

use jiff::Timestamp;

use super::{Action, Ending, Failed, InCall, State, Step, Turn};
use crate::domain::controls::Candidate;
use crate::domain::dead_letter::DeadLetter;
use crate::domain::faults::{Call, FaultId, Finding, Proof};
use crate::domain::gate::{Attribution, Pass};
use crate::domain::group::Carrier;
use crate::domain::history::History;
use crate::domain::outcome::{Outcome, Scope};
use crate::domain::response::Judgement;
use crate::domain::retry::RetryPolicy;
use crate::domain::update::Update;
use crate::domain::verdict::{Verdict, decide};

/// So many failures of a kind in a row before a proof between two of them makes a dead letter.
const PROOFS_BETWEEN: u32 = 2;

/// A verdict that counts no attempt.
type Uncounted = fn(&Judgement, &History, &RetryPolicy, Timestamp, f64) -> Verdict;

impl<T: Carrier> Turn<T> {
    pub(super) fn answered(
        &mut self,
        mut call: InCall,
        made: Call,
        judgement: Judgement,
        step: &mut Step<'_>,
    ) -> Action<T> {
        let judgement = step.policy.retry.believe(judgement);
        let outcome = judgement.outcome;
        if outcome.may_be_under_way() {
            self.group_mut().mark_under_way(step.moment.wall);
        }
        let may_help = outcome.allows_immediate_retry() && judgement.retry_after.is_none();
        if may_help && call.pass == Pass::Ordinary {
            call.last = Some((made, judgement));
            self.state = State::Pausing(call);
            return Action::Pause;
        }
        self.end_attempt(call, made, judgement, step)
    }

    pub(super) fn paused(
        &mut self,
        mut call: InCall,
        has_paused: bool,
        step: &mut Step<'_>,
    ) -> Action<T> {
        let (made, judgement) = call.last.take().expect("a turn pauses after an answer");
        if !has_paused || !step.gate.allows_repeat(step.moment.now) {
            return self.end_attempt(call, made, judgement, step);
        }
        self.note_ambiguous(judgement.outcome);
        // The pause may have lasted longer than it was to: who else has the customer now?
        self.state = State::Securing(call.pass, call.update);
        Action::Secure { joins: false }
    }

    /// The last call of an attempt has ended.
    fn end_attempt(
        &mut self,
        InCall { pass, update, .. }: InCall,
        made: Call,
        judgement: Judgement,
        step: &mut Step<'_>,
    ) -> Action<T> {
        if judgement.outcome != Outcome::Applied {
            step.gate.forget(&made.customer);
        }
        let unproven_since = self.first().event().history.unproven_since;
        let call = Call { is_again: self.is_again, unproven_since, ..made };
        let at = (step.moment.now, step.moment.wall);
        let (attribution, news) = step.gate.end(&call, pass, &judgement, at, step.moment.dice);
        step.news = news;
        let failed = Failed { pass, update, judgement };
        match attribution {
            Attribution::Applied => self.applied(failed.update, step),
            Attribution::Own => self.own(&failed, Proof::Close, step),
            Attribution::Open(fault) => {
                self.state = State::Waiting(fault, failed);
                Action::Wait(fault)
            }
            Attribution::Again => self.again_unproven(&failed, step),
            Attribution::AgainAt(time) => {
                self.note_ambiguous(failed.judgement.outcome);
                self.state = State::Sleeping;
                Action::SleepUntil(time)
            }
            Attribution::Wait => self.wait(Verdict::throttled, &failed.judgement, step),
        }
    }

    fn applied(&mut self, update: Arc<Update>, step: &mut Step<'_>) -> Action<T> {
        let group = self.group_mut();
        let customer = Arc::clone(&group.head().event().customer);
        step.gate.remember(step.moment.now, &customer, || Candidate {
            customer: Arc::clone(&customer),
            update,
            versions: group.members.iter().map(|one| (one.version.clone(), one.share)).collect(),
        });
        let of = |share: bool| if share { Verdict::Superseded } else { Verdict::Applied };
        let verdicts = group.members.iter().map(|member| of(member.share.is_empty())).collect();
        Action::End(Ending::Verdicts(verdicts))
    }

    /// More may be known of an open fault.
    pub(super) fn learned(
        &mut self,
        fault: FaultId,
        failed: Failed,
        step: &mut Step<'_>,
    ) -> Action<T> {
        let finding = step.gate.finding(fault, step.moment.now);
        if finding != Finding::Open {
            step.gate.take_fault(fault);
        }
        match finding {
            Finding::Open => {
                self.state = State::Waiting(fault, failed);
                Action::Wait(fault)
            }
            Finding::Refuted(proof) => self.own(&failed, proof, step),
            Finding::CallAgain => self.again_unproven(&failed, step),
            Finding::Untellable => self.wait(Verdict::unwitnessed, &failed.judgement, step),
        }
    }

    /// The fault is the events' own.
    fn own(&mut self, failed: &Failed, proof: Proof, step: &mut Step<'_>) -> Action<T> {
        let verdicts = self.decide(failed, step);
        let is_dead = verdicts.iter().any(|verdict| matches!(verdict, Verdict::DeadLetter(_)));
        if self.group_mut().members.len() > 1 {
            return self.own_of_several(failed, verdicts, is_dead);
        }
        if !is_dead || proof == Proof::Close {
            return Action::End(Ending::Verdicts(verdicts));
        }
        self.confirm(failed, proof, verdicts, step)
    }

    fn decide(&mut self, failed: &Failed, step: &Step<'_>) -> Vec<Verdict> {
        let Failed { judgement, update, .. } = failed;
        let accepts = judgement.outcome == Outcome::Rejected && step.gate.accepts_rejections();
        let (policy, wall, dice) = (step.policy.retry, step.moment.wall, step.moment.dice);
        self.group_mut().each(|history| {
            match decide(judgement, update, history, policy, wall, dice) {
                Verdict::DeadLetter(dead) if accepts => {
                    DeadLetter { unwitnessed: true, ..*dead }.into()
                }
                verdict => verdict,
            }
        })
    }

    /// What would be a dead letter of one of them, or is a matter of what was sent, does not tell which
    /// one is at fault: they are tried one by one.
    fn own_of_several(
        &mut self,
        failed: &Failed,
        verdicts: Vec<Verdict>,
        is_dead: bool,
    ) -> Action<T> {
        let facts = failed.judgement.outcome.facts();
        let is_of_the_update = facts.is_some_and(|facts| facts.scope == Scope::Message);
        if !is_dead && !is_of_the_update {
            return Action::End(Ending::Verdicts(verdicts));
        }
        let others = self.group_mut().split();
        self.state = State::PuttingBack;
        Action::PutBack(others)
    }

    /// One failure of a kind makes a dead letter only with a close proof, else it is called once more;
    /// with a proof between two failures, three of them in a row make one.
    fn confirm(
        &mut self,
        failed: &Failed,
        proof: Proof,
        verdicts: Vec<Verdict>,
        step: &mut Step<'_>,
    ) -> Action<T> {
        let policy = step.policy.retry;
        let history = &self.first().event().history;
        let has_more = history.attempts + 1 < policy.max_attempts;
        let in_a_row = history.run_of(failed.judgement.outcome);
        if proof == Proof::Between && in_a_row <= PROOFS_BETWEEN && has_more {
            let retry = Verdict::retry(&failed.judgement, history, policy, step.moment.dice);
            return Action::End(Ending::Verdicts(vec![retry]));
        }
        if proof == Proof::Later && in_a_row == 1 && !self.is_again {
            self.is_again = true;
            self.note_ambiguous(failed.judgement.outcome);
            return self.again(failed.pass, step);
        }
        Action::End(Ending::Verdicts(verdicts))
    }

    /// Nothing tells whose fault it was.
    fn again_unproven(&mut self, failed: &Failed, step: &mut Step<'_>) -> Action<T> {
        let (outcome, wall) = (failed.judgement.outcome, step.moment.wall);
        self.group_mut().change_histories(|history| history.note_unproven(outcome, wall));
        self.again(failed.pass, step)
    }

    /// Called again in its turn, nothing counted.
    fn again(&mut self, pass: Pass, step: &mut Step<'_>) -> Action<T> {
        if pass == Pass::Probe && !step.gate.has_waiting() {
            // It makes room for another customer's event: the next probe.
            return self.hand_back(step);
        }
        self.plan(step)
    }

    /// Nothing is counted, and they come again later.
    fn wait(&self, verdict: Uncounted, judgement: &Judgement, step: &Step<'_>) -> Action<T> {
        let (policy, wall, dice) = (step.policy.retry, step.moment.wall, step.moment.dice);
        self.end_each(|history| verdict(judgement, history, policy, wall, dice))
    }

    pub(super) fn note_ambiguous(&mut self, outcome: Outcome) {
        let is_ambiguous = outcome.is_ambiguous();
        self.group_mut().change_histories(|history| history.ambiguous |= is_ambiguous);
    }
}
