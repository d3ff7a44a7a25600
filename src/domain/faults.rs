//! Calls that failed, and the calls that went well: tells an event's own fault from everybody's.
//!
//! A *proof* is a call that went well, of an event or a control call. A fault is *open* until a proof
//! *refutes* that it was everybody's, or until an outage is declared. Only a refuted fault counts.
//!
//! ```text
//!             proof, same credentials, began after the fault ended
//!   open ─────────────────────────────────────────────────────────▶ refuted: one attempt
//!     │────── an outage is declared, or the credentials change ────▶ called again, not counted
//!     └────── no control call is possible, or none helped in time ─▶ untellable: waits in a tier
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::outcome::Outcome;

/// Successes within this before and after a rejection show that it was about the event, by the first
/// call: an outage that comes and goes between them is taken for none.
const CLOSE: Duration = Duration::from_secs(1);
/// The successes of that time that are kept are so far apart.
const APART: Duration = Duration::from_millis(50);

/// A call, as far as others are concerned.
#[derive(Clone, Debug)]
pub struct Call {
    /// Whose update it was.
    pub customer: Arc<str>,
    /// When it began.
    pub started: Instant,
    /// Which credentials signed it: their number in the order of their coming into force.
    pub credentials: u64,
    /// The same event's call has failed before in this turn, and all was well in between.
    pub is_again: bool,
    /// Since when the event's failed calls lack a proof.
    pub unproven_since: Option<Timestamp>,
}

impl Call {
    /// A customer's call, of whose event nothing is known.
    pub fn new(customer: Arc<str>, started: Instant, credentials: u64) -> Call {
        Call { customer, started, credentials, is_again: false, unproven_since: None }
    }
}

/// When open faults give reason to act.
#[derive(Clone, Copy, Debug)]
pub struct FaultPolicy {
    /// So many distinct customers with open faults, and no success between, suspend the calls. At
    /// least 1.
    pub threshold: usize,
    /// A fault is open for so long before a control call is made for it.
    pub patience: Duration,
    /// A fault that is open for longer waits in a tier instead.
    pub longest: Duration,
}

/// An open fault's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FaultId(u64);

/// What is known of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Nothing yet.
    Open,
    /// It is not everybody's: one attempt.
    Refuted(Proof),
    /// It may have been everybody's, or our credentials': the call is made again, nothing counted.
    CallAgain,
    /// Nothing can tell: it waits in a tier, nothing counted.
    Untellable,
}

/// What refutes that a fault was everybody's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// Successes close before and after it leave no room for an outage between.
    Close,
    /// A success after it.
    Later,
    /// A success between it and an earlier failure of the same event. An outage may have come twice.
    Between,
}

#[derive(Debug)]
struct Fault {
    call: Call,
    outcome: Outcome,
    ended: Instant,
    /// A call had gone well shortly before, and had ended before this one began.
    was_well: bool,
    /// The event failed before, and another customer's call has gone well since.
    is_proven_between: bool,
    finding: Finding,
}

/// All faults whose events are in hand.
#[derive(Debug)]
pub struct Faults {
    policy: FaultPolicy,
    known: BTreeMap<FaultId, Fault>,
    numbers: u64,
    /// When a call last went well.
    last_success: Option<Instant>,
    /// When calls went well within the last second: some of them.
    successes: VecDeque<Instant>,
    /// The latest two customers whose calls went well, and when.
    proofs: Vec<(Arc<str>, Timestamp)>,
    /// The latest credentials that a call went well with, in this process.
    proven: Option<u64>,
    /// The credentials in force, as far as calls have shown.
    credentials: u64,
    /// Calls in a row that found no connection.
    unreachable: usize,
}

impl Faults {
    pub(super) fn new(policy: FaultPolicy) -> Faults {
        Faults {
            policy,
            known: BTreeMap::new(),
            numbers: 0,
            last_success: None,
            successes: VecDeque::new(),
            proofs: Vec::with_capacity(2),
            proven: None,
            credentials: 0,
            unreachable: 0,
        }
    }

    /// A call went well: a proof.
    pub(super) fn prove(&mut self, call: &Call, now: Instant, wall: Timestamp) {
        // One that lies ahead was noted before our clock was set back: nobody knows when.
        self.proofs.retain(|(customer, at)| *customer != call.customer && *at <= wall);
        self.proofs.truncate(1);
        self.proofs.insert(0, (Arc::clone(&call.customer), wall));
        self.clear_suspicion(now);
        self.proven = self.proven.max(Some(call.credentials));
        self.credentials = self.credentials.max(call.credentials);
        for fault in self.known.values_mut().filter(|fault| fault.finding == Finding::Open) {
            if call.started < fault.ended {
                continue;
            }
            let is_close = fault.was_well && call.started <= fault.ended + CLOSE;
            let proof = if is_close { Proof::Close } else { Proof::Later };
            fault.finding = if call.credentials == fault.call.credentials {
                Finding::Refuted(proof)
            } else {
                Finding::CallAgain
            };
        }
    }

    /// Whether a call has gone well since then.
    pub(super) fn went_well_since(&self, then: Instant) -> bool {
        self.last_success.is_some_and(|at| at >= then)
    }

    /// An answer showed that the portal works, though it proves nothing about other events.
    pub(super) fn clear_suspicion(&mut self, now: Instant) {
        self.last_success = Some(now);
        self.unreachable = 0;
        if self.successes.back().is_none_or(|at| *at + APART <= now) {
            self.successes.push_back(now);
            while self.successes.front().is_some_and(|at| *at + CLOSE < now) {
                self.successes.pop_front();
            }
        }
    }

    /// A call failed. Its turn must end with [`take`](Self::take).
    pub(super) fn open(
        &mut self,
        call: &Call,
        outcome: Outcome,
        (now, wall): (Instant, Timestamp),
    ) -> FaultId {
        self.unreachable = if outcome == Outcome::Unreachable { self.unreachable + 1 } else { 0 };
        // It may have been judged at any time since it began.
        let is_close_before = |at: &Instant| *at <= call.started && *at + CLOSE >= now;
        let was_well = self.successes.iter().any(is_close_before);
        let is_outdated = call.credentials < self.credentials;
        self.credentials = self.credentials.max(call.credentials);
        let finding = if is_outdated { Finding::CallAgain } else { Finding::Open };
        let is_proven_between = call
            .unproven_since
            .is_some_and(|since| self.is_proven_between(since, wall, &call.customer));
        let (call, ended) = (call.clone(), now);
        let fault = Fault { call, outcome, ended, was_well, is_proven_between, finding };
        self.numbers += 1;
        let id = FaultId(self.numbers);
        self.known.insert(id, fault);
        id
    }

    /// What is known of a fault by now.
    pub fn finding(&self, id: FaultId, now: Instant) -> Finding {
        match self.known.get(&id) {
            Some(Fault { finding: Finding::Open, ended, .. })
                if *ended + self.policy.longest <= now =>
            {
                Finding::Untellable
            }
            Some(fault) => fault.finding,
            // Taken already: its turn has ended.
            None => Finding::CallAgain,
        }
    }

    /// Whether another customer's call has gone well since then.
    fn is_proven_between(&self, since: Timestamp, wall: Timestamp, customer: &str) -> bool {
        let is_between = |at| (since..=wall).contains(at);
        self.proofs.iter().any(|(proven, at)| &**proven != customer && is_between(at))
    }

    /// When a fault that stays open is given up.
    pub fn gives_up_at(&self, id: FaultId) -> Option<Instant> {
        Some(self.known.get(&id)?.ended + self.policy.longest)
    }

    /// Its turn goes on without it.
    pub(super) fn take(&mut self, id: FaultId) {
        self.known.remove(&id);
    }

    /// Everybody is concerned: no open fault is an event's own.
    pub(super) fn call_all_again(&mut self) {
        self.settle_open(|_| Some(Finding::CallAgain));
        self.unreachable = 0;
    }

    /// Other credentials came into force.
    pub(super) fn credentials_changed(&mut self, number: u64) {
        self.credentials = self.credentials.max(number);
        self.settle_open(|fault| (fault.call.credentials < number).then_some(Finding::CallAgain));
    }

    /// An operator has said that rejections are the events' own fault.
    pub(super) fn accept_rejections(&mut self) {
        let refuted = Finding::Refuted(Proof::Close);
        self.settle_open(|fault| (fault.outcome == Outcome::Rejected).then_some(refuted));
    }

    /// Nothing can be asked: those that have waited long enough wait in a tier.
    pub(super) fn give_up_waiting(&mut self, now: Instant) {
        let patience = self.policy.patience;
        self.settle_open(|fault| {
            let is_over = fault.call.is_again || fault.ended + patience <= now;
            is_over.then_some(Finding::Untellable)
        });
    }

    /// Nothing can be asked: what failed before and after a proof is the event's own fault, if no
    /// traffic tells otherwise.
    pub(super) fn refute_proven(&mut self, now: Instant) {
        let patience = self.policy.patience;
        self.settle_open(|fault| {
            let is_over = fault.is_proven_between && fault.ended + patience <= now;
            is_over.then_some(Finding::Refuted(Proof::Between))
        });
    }

    fn settle_open(&mut self, finding: impl Fn(&Fault) -> Option<Finding>) {
        for fault in self.known.values_mut().filter(|fault| fault.finding == Finding::Open) {
            if let Some(finding) = finding(fault) {
                fault.finding = finding;
            }
        }
    }

    /// Whether so many distinct customers' calls failed, nothing but faults between, that it may be
    /// everybody.
    pub fn is_everybody(&self) -> bool {
        let is_since = |fault: &&Fault| {
            !fault.is_proven_between && self.last_success.is_none_or(|at| at < fault.ended)
        };
        let mut customers: Vec<&str> = Vec::new();
        for fault in self.open_faults().filter(is_since) {
            if !customers.contains(&&*fault.call.customer) {
                customers.push(&fault.call.customer);
            }
            if customers.len() >= self.policy.threshold {
                return true;
            }
        }
        false
    }

    /// Whether so many calls in a row found no connection.
    pub(super) fn is_unreachable(&self) -> bool {
        self.unreachable >= self.policy.threshold
    }

    /// When the first open fault has waited long enough for traffic to tell.
    pub(super) fn patience_ends(&self) -> Option<Instant> {
        self.open_faults().map(|fault| fault.ended + self.patience(fault)).min()
    }

    /// What was called again is known to be nobody else's fault: a proof is all that is missing.
    fn patience(&self, fault: &Fault) -> Duration {
        if fault.call.is_again { Duration::ZERO } else { self.policy.patience }
    }

    /// The outcome of the first open fault.
    pub(super) fn first_outcome(&self) -> Option<Outcome> {
        self.open_faults().next().map(|fault| fault.outcome)
    }

    /// An open fault that may be our credentials': they have never gone well in this process.
    pub(super) fn unproven(&self) -> Option<Outcome> {
        let may_be_ours = |fault: &&Fault| {
            matches!(fault.outcome, Outcome::Rejected | Outcome::Unauthorized)
                && self.proven != Some(fault.call.credentials)
        };
        self.open_faults().find(may_be_ours).map(|fault| fault.outcome)
    }

    /// Whether a customer has an open fault.
    pub fn concerns(&self, customer: &str) -> bool {
        self.open_faults().any(|fault| &*fault.call.customer == customer)
    }

    fn open_faults(&self) -> impl Iterator<Item = &Fault> {
        self.known.values().filter(|fault| fault.finding == Finding::Open)
    }
}
