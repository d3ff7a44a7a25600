//! The gate that every call passes: who may call now, who waits; in `standing`, whose matter the end
//! of a call is.
//!
//! It brings together the breaker, the window of calls under way, throttling and the witnesses.
//! Waiting events are served in order of arrival, but for probes: those go to another customer
//! each time.

mod standing;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::breaker::{Breaker, Kind, OutagePolicy, State};
use super::response::Scope;
use super::throttle::Throttle;
use super::window::Window;
use super::witness::{Call, Doubt, Testimony, Witnesses};

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
    /// To find out whose fault it is that everybody is rejected.
    Control,
}

/// Whose matter the end of a call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The event's own: a verdict follows. `None` if it went well.
    Settle(Option<Scope>),
    /// Not the event's: it is kept and tried again, as if it had not been called.
    Hold,
    /// The same, but this event no sooner than told.
    HoldUntil(Instant),
}

/// What may be done with an event whose fault is still to be told from everybody's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ruling {
    /// The fault is the event's own.
    Final,
    /// It may be, or have been, everybody's: the event is kept and tried again.
    Hold,
    /// Only a control call can tell.
    Ask,
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
    /// When the breaker opens, and how it probes.
    pub outage: OutagePolicy,
    /// Calls under way at once, at most.
    pub in_flight: usize,
    /// The longest `Retry-After` that is believed.
    pub max_retry_after: Duration,
}

/// Everything that is known across deliveries.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[derive(Debug)]
pub struct Gate {
    policy: GatePolicy,
    breaker: Breaker,
    window: Window,
    throttle: Throttle,
    witnesses: Witnesses,
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
    /// Closed breaker, whole window.
    pub fn new(policy: GatePolicy) -> Gate {
        Gate {
            breaker: Breaker::new(policy.outage),
            window: Window::new(policy.in_flight),
            throttle: Throttle::default(),
            witnesses: Witnesses::default(),
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

    /// What was learned from calls that went well.
    pub fn witnesses(&self) -> &Witnesses {
        &self.witnesses
    }

    /// Whether an operator has paused the relay.
    pub fn is_paused(&self) -> bool {
        self.is_paused
    }

    /// Whether an operator has said that rejections are the events' own fault.
    pub fn accepts_rejections(&self) -> bool {
        self.accepts_rejections
    }

    /// Whether anybody waits.
    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
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
                State::Closed => {
                    self.closed_until(now).is_none() && self.under_way < self.window.limit()
                }
                State::Open { probe_at, .. } => probe_at <= now && !self.wants_control(now),
                State::HalfOpen { .. } => false,
            }
    }

    /// Whether a call that failed may be made again at once.
    pub fn allows_repeat(&self, now: Instant) -> bool {
        self.breaker.state() == State::Closed && self.throttle.closed_until(now).is_none()
    }

    /// Notes a call that failed, to find out whose fault it was. `is_again`: the same event's call
    /// had failed before, and all was well in between.
    pub fn doubt(&self, call: &Call, ended: Instant, is_again: bool) -> Doubt {
        let is_first_of_many = !is_again && self.breaker.is_everybody();
        self.witnesses.doubt(call.clone(), ended, is_first_of_many)
    }

    /// Whether the end of a call that failed may be held against its event for good; `None` while
    /// nobody can tell.
    pub fn ruling(&self, doubt: &Doubt) -> Option<Ruling> {
        match self.witnesses.testify(doubt) {
            Some(Testimony::Own) => return Some(Ruling::Final),
            Some(Testimony::WellNow) => return Some(Ruling::Hold),
            None => {}
        }
        if self.is_stopped() || self.breaker.state() != State::Closed {
            Some(Ruling::Hold)
        } else {
            self.breaker.is_everybody().then_some(Ruling::Ask)
        }
    }

    /// Lets the next one pass, if there is one and it may. Each pass ends in [`end`](Self::end) or
    /// [`give_back`](Self::give_back).
    pub fn admit(&mut self, now: Instant) -> Option<(Ticket, Pass)> {
        if !self.is_ready(now) {
            return None;
        }
        let admitted = if self.breaker.state() == State::Closed {
            let (ticket, _) = self.waiting.pop_front()?;
            (ticket, Pass::Ordinary)
        } else {
            let is_fresh = |(_, customer): &(Ticket, _)| !self.breaker.has_probed(customer);
            let index = self.waiting.iter().position(is_fresh).unwrap_or(0);
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
        let is_free = self.breaker.state() == State::Closed && self.waiting.is_empty();
        if !is_free || !self.is_ready(now) {
            return None;
        }
        self.under_way += 1;
        Some(Pass::Ordinary)
    }

    /// When [`is_ready`](Self::is_ready) may change by the passing of time alone.
    pub fn next_change(&self, now: Instant) -> Option<Instant> {
        if self.is_stopped() || !self.has_waiting() {
            return None;
        }
        match self.breaker.state() {
            State::Closed => self.closed_until(now),
            State::Open { .. } if self.breaker.prefers_control(now) => Some(now),
            State::Open { probe_at, .. } => Some(probe_at),
            State::HalfOpen { .. } => None,
        }
    }

    /// Lets a control call pass, whatever waits. `None` if there is nothing to find out.
    pub fn admit_control(&mut self, now: Instant) -> Option<Pass> {
        let pass = match self.breaker.state() {
            _ if self.is_stopped() => return None,
            State::Closed if self.throttle.closed_until(now).is_some() => return None,
            State::Closed => Pass::Control,
            State::Open { probe_at, .. }
                if probe_at <= now || self.breaker.prefers_control(now) =>
            {
                self.breaker.begin_probe(None);
                Pass::Probe
            }
            State::Open { .. } | State::HalfOpen { .. } => return None,
        };
        self.under_way += 1;
        Some(pass)
    }

    /// Whether the probe that is due should be a control call.
    pub fn wants_control(&self, now: Instant) -> bool {
        !self.is_stopped() && self.has_waiting() && self.breaker.prefers_control(now)
    }

    /// There is nothing that a control call could send: the probe goes to an event.
    pub fn skip_control(&mut self) {
        self.breaker.skip_control();
    }

    /// Takes a pass back that was not used.
    pub fn give_back(&mut self, pass: Pass, now: Instant) {
        self.under_way -= 1;
        if pass == Pass::Probe {
            self.breaker.abandon_probe(now);
        }
    }

    /// The credentials have changed: whether that was it is worth finding out at once.
    pub fn credentials_changed(&mut self, now: Instant) {
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

    fn closed_until(&self, now: Instant) -> Option<Instant> {
        let gathers_until = self.gathers_until.filter(|until| now < *until);
        self.throttle.closed_until(now).max(gathers_until)
    }

    fn is_stopped(&self) -> bool {
        self.is_paused || self.lacks_ledger
    }
}
