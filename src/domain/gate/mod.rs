//! The gate that every call passes: who may call now, who waits; in `attribution`, whether a call's
//! result is the event's own matter or everybody's.
//!
//! It brings together the breaker, the window of calls under way, throttling, open faults and control
//! calls: everything that is known across deliveries. Waiting events are served in order of arrival,
//! but for probes and trials: those go to other customers.

mod attribution;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::breaker::{Breaker, Kind, OutagePolicy, State};
use super::controls::{Candidate, ControlCalls, Controls};
use super::faults::{FaultId, FaultPolicy, Faults, Finding};
use super::outcome::Outcome;
use super::throttle::Throttle;
use super::update::Update;
use super::window::Window;

/// The place of one who waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket(u64);

/// Why a call is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// It is its turn.
    Ordinary,
    /// To find out whether an outage is over.
    Probe,
    /// A control call, for open faults.
    Control,
    /// A control call that is the probe of an outage.
    ControlProbe,
}

/// What a call's result is attributed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attribution {
    /// It went well.
    Applied,
    /// The event itself, for certain: one attempt.
    Own,
    /// The event or everybody: [`Gate::finding`] tells.
    Open(FaultId),
    /// Not the event: it is called again in its turn, nothing counted.
    Again,
    /// The same, but no sooner than told.
    AgainAt(Instant),
    /// Throttling: it waits in a tier, nothing counted.
    Wait,
}

/// What is to be done about a control call.
#[derive(Clone, Debug)]
pub enum Control {
    /// This one is to be made now. It ends in [`Gate::end`] or [`Gate::give_back`].
    Call(Candidate, Pass),
    /// None now.
    None,
}

/// What there is to tell about the portal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// An outage begins.
    Opened(Kind),
    /// A probe found that it goes on; the next one comes at this time.
    StillOpen(Kind, Instant),
    /// It is over, after so long.
    Closed(Kind, Duration),
    /// So many calls may be under way again.
    Ramped(usize),
    /// No calls for so long.
    Throttled(Duration),
    /// The portal throttles some customers alone, after all: calls go on.
    ThrottledAlone,
    /// The probe customer's update fails while events go well: it proves nothing.
    UnfitProbeCustomer(Outcome),
}

/// How many deliveries the broker is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intake {
    /// As many as configured.
    Full,
    /// One at a time: what is to be the next probe.
    One,
    /// None: paused by an operator, or nothing could be recorded.
    Nothing,
}

/// The gate's rules.
#[derive(Clone, Copy, Debug)]
pub struct GatePolicy {
    /// How the breaker probes.
    pub outage: OutagePolicy,
    /// When open faults suspend calls, and how long they stay open.
    pub faults: FaultPolicy,
    /// Whose update a control call may send.
    pub control_calls: ControlCalls,
    /// Calls under way at once, at most.
    pub in_flight: usize,
}

/// Everything that is known across deliveries.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[derive(Debug)]
pub struct Gate {
    policy: GatePolicy,
    breaker: Breaker,
    window: Window,
    throttle: Throttle,
    faults: Faults,
    controls: Controls,
    waiting: VecDeque<(Ticket, Arc<str>)>,
    tickets: u64,
    under_way: usize,
    /// After an outage, until those that were held have had their turn.
    is_recovering: bool,
    is_paused: bool,
    /// Nothing could be recorded: no calls.
    lacks_ledger: bool,
    /// No calls before this time: what has piled up comes in, to be merged.
    gathers_until: Option<Instant>,
    accepts_rejections: bool,
}

impl Gate {
    /// Closed breaker, whole window. `probe_customer`: an update that may be sent at any time.
    pub fn new(policy: GatePolicy, probe_customer: Option<Arc<Update>>) -> Gate {
        Gate {
            breaker: Breaker::new(policy.outage),
            window: Window::new(policy.in_flight),
            throttle: Throttle::default(),
            faults: Faults::new(policy.faults),
            controls: Controls::new(policy.control_calls, probe_customer),
            waiting: VecDeque::new(),
            tickets: 0,
            under_way: 0,
            is_recovering: false,
            is_paused: false,
            lacks_ledger: false,
            gathers_until: None,
            accepts_rejections: false,
            policy,
        }
    }

    /// Whether calls are made, and what is the matter if not.
    pub fn state(&self) -> State {
        self.breaker.state()
    }

    /// Calls under way now.
    pub fn under_way(&self) -> usize {
        self.under_way
    }

    /// Calls that may be under way now.
    pub fn limit(&self) -> usize {
        self.window.limit()
    }

    /// Whether an operator has paused the relay.
    pub fn is_paused(&self) -> bool {
        self.is_paused
    }

    /// Whether an operator has said that rejections are the events' own fault.
    pub fn accepts_rejections(&self) -> bool {
        self.accepts_rejections
    }

    /// Whether no control call can ever be made.
    pub fn lacks_control_calls(&self) -> bool {
        !self.controls.can_be_made()
    }

    /// Whether anybody waits.
    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether calls are kept back until a proof tells whether all fail.
    pub fn is_suspended(&self) -> bool {
        self.breaker.state() == State::Closed && self.faults.is_everybody()
    }

    /// How many deliveries the broker should give us.
    pub fn intake(&self) -> Intake {
        if self.is_stopped() {
            Intake::Nothing
        } else if self.breaker.state() == State::Closed && !self.is_recovering {
            Intake::Full
        } else {
            Intake::One
        }
    }

    /// Queues up a customer's event.
    pub fn ask(&mut self, customer: &Arc<str>) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.waiting.push_back((ticket, Arc::clone(customer)));
        ticket
    }

    /// Gives a place up.
    pub fn withdraw(&mut self, ticket: Ticket) {
        self.waiting.retain(|(waiting, _)| *waiting != ticket);
        self.is_recovering &= self.has_waiting();
    }

    /// Whether a call may be made now, if somebody waits.
    pub fn is_ready(&self, now: Instant) -> bool {
        !self.is_stopped()
            && match self.breaker.state() {
                State::Closed => self.may_call(now),
                State::Open { probe_at, .. } => probe_at <= now && !self.wants_control(now),
                State::HalfOpen { .. } => false,
            }
    }

    fn may_call(&self, now: Instant) -> bool {
        // A control call takes no event's place.
        let of_events = self.under_way.saturating_sub(usize::from(self.controls.is_under_way()));
        if self.gathers(now).is_some() || of_events >= self.window.limit() {
            return false;
        }
        if self.throttle.closed_until(now).is_some() {
            return self.may_try(now);
        }
        !self.faults.is_everybody() || self.may_ask(now)
    }

    /// Whether an event may be the trial of a throttled portal: one must wait whose customer was not
    /// throttled, and no control call can be made.
    fn may_try(&self, now: Instant) -> bool {
        let is_alone = !self.controls.is_possible() || self.controls.is_busy();
        let is_due = self.throttle.trial_at(now).is_some_and(|at| at <= now);
        is_alone && is_due && self.fresh(now).is_some()
    }

    /// While calls are suspended and no control call can be made just now, one event at a time may
    /// tell as well.
    fn may_ask(&self, now: Instant) -> bool {
        let is_asking = self.under_way > 0 || self.controls.is_under_way();
        !is_asking && (self.controls.is_busy() || self.controls.next_at(now).is_some())
    }

    /// Which of those that wait is called next while the breaker is closed.
    fn fresh(&self, now: Instant) -> Option<usize> {
        if self.throttle.closed_until(now).is_none() {
            return (!self.waiting.is_empty()).then_some(0);
        }
        // The last one: those before it may be of the same bad batch as the one that was throttled.
        self.waiting.iter().rposition(|(_, customer)| !self.throttle.has_struck(customer))
    }

    /// Whether a call that failed may be made again at once.
    pub fn allows_repeat(&self, now: Instant) -> bool {
        self.breaker.state() == State::Closed
            && !self.is_stopped()
            && !self.faults.is_everybody()
            && self.throttle.closed_until(now).is_none()
    }

    /// Lets the next one pass, if there is one and it may. Each pass ends in [`end`](Self::end) or
    /// [`give_back`](Self::give_back).
    pub fn admit(&mut self, now: Instant) -> Option<(Ticket, Pass)> {
        if !self.is_ready(now) {
            return None;
        }
        let admitted = if self.breaker.state() == State::Closed {
            let index = self.fresh(now)?;
            let (ticket, _) = self.waiting.remove(index)?;
            if self.throttle.closed_until(now).is_some() {
                self.throttle.begin_trial();
            }
            (ticket, Pass::Ordinary)
        } else {
            let is_fresh = |(_, customer): &(Ticket, _)| !self.breaker.has_probed(customer);
            // The last one: those before it may be of the same bad batch.
            let index = self.waiting.iter().rposition(is_fresh).unwrap_or(0);
            let (ticket, customer) = self.waiting.remove(index)?;
            self.breaker.begin_probe(Some(&customer));
            (ticket, Pass::Probe)
        };
        self.is_recovering &= self.has_waiting();
        self.under_way += 1;
        Some(admitted)
    }

    /// Lets a call pass that found nobody before it and free way. Saves a ticket.
    pub fn admit_at_once(&mut self, now: Instant) -> Option<Pass> {
        let is_free = self.breaker.state() == State::Closed
            && self.waiting.is_empty()
            && self.throttle.closed_until(now).is_none();
        if !is_free || !self.is_ready(now) {
            return None;
        }
        self.under_way += 1;
        Some(Pass::Ordinary)
    }

    /// When [`is_ready`](Self::is_ready) or [`wants_control`](Self::wants_control) may change by the
    /// passing of time alone.
    pub fn next_change(&self, now: Instant) -> Option<Instant> {
        if self.is_stopped() {
            return None;
        }
        let for_calls = self.has_waiting().then(|| match self.breaker.state() {
            State::Closed => {
                let trial = self.throttle.trial_at(now).filter(|at| *at > now);
                trial.or(self.throttle.closed_until(now)).max(self.gathers(now))
            }
            State::Open { probe_at, .. } => Some(probe_at),
            State::HalfOpen { .. } => None,
        });
        [for_calls.flatten(), self.next_control(now)].into_iter().flatten().min()
    }

    /// When a control call is due: for open faults, or as the trial of a throttled portal.
    fn next_control(&self, now: Instant) -> Option<Instant> {
        if self.breaker.state() != State::Closed || self.controls.is_under_way() {
            return None;
        }
        let for_faults = self.faults.patience_ends().map(|patience_ends| {
            let wanted = if self.faults.is_everybody() { now } else { patience_ends };
            self.throttle.closed_until(now).map_or(wanted, |at| at.max(wanted))
        });
        let trial_at = self.throttle.control_at(now).filter(|_| self.controls.is_possible());
        let for_check = self
            .controls
            .wants_check()
            .then(|| self.throttle.closed_until(now).map_or(now, |at| at.max(now)));
        let wanted = [for_faults, trial_at, for_check].into_iter().flatten().min()?;
        Some(self.controls.next_at(now).map_or(wanted, |at| at.max(wanted)))
    }

    /// Whether a control call is due: for open faults, or as the probe of an outage.
    pub fn wants_control(&self, now: Instant) -> bool {
        !self.is_stopped()
            && match self.breaker.state() {
                State::Closed => self.next_control(now).is_some_and(|at| at <= now),
                State::Open { .. } => self.has_waiting() && self.breaker.prefers_control(now),
                State::HalfOpen { .. } => false,
            }
    }

    /// Begins the control call that is due, of a customer that has no event in hand. Where there is
    /// nothing to send, what is open is decided without it.
    pub fn control(
        &mut self,
        (now, wall): (Instant, Timestamp),
        dice: f64,
        is_free: impl Fn(&Arc<str>) -> bool,
    ) -> (Control, Option<News>) {
        if !self.wants_control(now) {
            return (Control::None, None);
        }
        let is_probe = self.breaker.state() != State::Closed;
        let Some(candidate) = self.controls.next(is_free) else {
            if is_probe {
                self.breaker.skip_control();
                return (Control::None, None);
            }
            // One whose own event has failed is as good as asked.
            let have_failed = self.controls.are_all(|one| self.faults.concerns(one));
            let is_decided = have_failed && self.faults.is_everybody();
            let is_possible = self.controls.is_possible() && !is_decided;
            return (
                Control::None,
                if is_possible { None } else { self.without_control((now, wall), dice) },
            );
        };
        if is_probe {
            self.breaker.begin_probe(None);
        } else {
            self.throttle.begin_trial();
        }
        self.controls.begin(&candidate);
        self.under_way += 1;
        let pass = if is_probe { Pass::ControlProbe } else { Pass::Control };
        (Control::Call(candidate, pass), None)
    }

    /// What is known of an open fault. While no calls are made at all, it is called again after that.
    pub fn finding(&self, fault: FaultId, now: Instant) -> Finding {
        match self.faults.finding(fault, now) {
            Finding::Open | Finding::Untellable if self.is_stopped() => Finding::CallAgain,
            finding => finding,
        }
    }

    /// When a fault that stays open is given up.
    pub fn gives_up_at(&self, fault: FaultId) -> Option<Instant> {
        self.faults.gives_up_at(fault)
    }

    /// A fault's turn goes on, or ends, without it.
    pub fn take_fault(&mut self, fault: FaultId) {
        self.faults.take(fault);
    }

    /// An update was applied: it may be sent again.
    pub fn remember(
        &mut self,
        now: Instant,
        customer: &str,
        candidate: impl FnOnce() -> Candidate,
    ) {
        self.controls.remember(now, candidate, customer);
    }

    /// What is kept of this customer would overwrite something newer. True if it is the probe customer's,
    /// which is only checked from now on.
    pub fn give_up(&mut self, customer: &str, now: Instant) -> bool {
        self.controls.give_up(customer, now)
    }

    /// A later update of this customer may have been applied: the kept one is not to be sent again.
    pub fn forget(&mut self, customer: &str) {
        self.controls.forget(customer);
    }

    /// Takes a pass back that was not used.
    pub fn give_back(&mut self, pass: Pass, now: Instant) {
        self.under_way -= 1;
        match pass {
            Pass::Ordinary => self.throttle.give_back_trial(now),
            Pass::Probe => self.breaker.abandon_probe(now),
            Pass::Control => {
                self.controls.give_back();
                self.throttle.give_back_trial(now);
            }
            Pass::ControlProbe => {
                self.controls.end();
                self.breaker.abandon_probe(now);
                self.breaker.skip_control();
            }
        }
    }

    /// Other credentials came into force: whether that was it is worth finding out at once.
    pub fn credentials_changed(&mut self, number: u64, now: Instant) {
        self.faults.credentials_changed(number);
        self.breaker.hurry(now);
    }

    /// An operator pauses or resumes.
    pub fn set_paused(&mut self, is_paused: bool) {
        self.is_paused = is_paused;
    }

    /// The ledger fails, or works again.
    pub fn set_lacks_ledger(&mut self, lacks_ledger: bool) {
        self.lacks_ledger = lacks_ledger;
    }

    /// Lets what has piled up come in before the next call.
    pub fn gather(&mut self, until: Instant) {
        self.gathers_until = Some(until);
    }

    fn gathers(&self, now: Instant) -> Option<Instant> {
        self.gathers_until.filter(|until| now < *until)
    }

    fn is_stopped(&self) -> bool {
        self.is_paused || self.lacks_ledger
    }
}
