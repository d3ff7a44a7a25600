//! The breaker: tells an outage of the portal from the fault of one customer, keeps calls back
//! while it lasts, and finds out by probes when it is over.
//!
//! ```text
//!            threshold faults in a row                   probe is due
//!   closed ───────────────────────────────▶ open ───────────────────────▶ half-open
//!     ▲                                       ▲        the portal is not      │
//!     │                                       └───────── yet healthy ─────────┤
//!     └───────────────── the probe's answer proves the portal healthy ────────┘
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::outcome::Outcome;

/// What an outage is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No connection: refused, DNS, TLS, connect timeout.
    Unreachable,
    /// It answers with failures, late, or outside its page.
    Failing,
    /// It accepts nobody's token or checksum.
    Credentials,
    /// It is not where we call, or knows nobody.
    Configuration,
    /// It rejects everybody's updates, without a word that tells why.
    RejectingAll,
    /// It wants no more calls for long.
    Throttled,
}

impl Kind {
    /// Every kind; the runbook has an entry for each.
    pub const ALL: [Kind; 6] = [
        Kind::Unreachable,
        Kind::Failing,
        Kind::Credentials,
        Kind::Configuration,
        Kind::RejectingAll,
        Kind::Throttled,
    ];

    /// The name in logs, metrics and the runbook.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Unreachable => "unreachable",
            Kind::Failing => "failing",
            Kind::Credentials => "credentials",
            Kind::Configuration => "configuration",
            Kind::RejectingAll => "rejecting-all",
            Kind::Throttled => "throttled",
        }
    }

    /// What a person can do about it.
    pub fn advice(self) -> &'static str {
        match self {
            Kind::Unreachable => "check the portal, the network and DNS, portal.base_url",
            Kind::Failing => "ask the portal's operator; nothing is to be done here",
            Kind::Credentials => {
                "compare portal.token and portal.secret_key with the portal's operator; files are \
                 read again when they change"
            }
            Kind::Configuration => "check portal.base_url; has the portal moved?",
            Kind::RejectingAll => {
                "is portal.secret_key or portal.field_order wrong? If the events themselves are \
                 bad: customer-relay resume --accept-rejections"
            }
            Kind::Throttled => "agree on a rate with the portal's operator and set portal.max_rate",
        }
    }

    /// Whether a call that ended like this shows that such an outage is over. A bare rejection may
    /// hide a wrong secret; a rejected e-mail was looked at.
    fn is_over_after(self, outcome: Outcome) -> bool {
        match outcome {
            Outcome::Applied | Outcome::DuplicateEmail => true,
            Outcome::Rejected => !matches!(self, Kind::Credentials | Kind::RejectingAll),
            Outcome::UnknownEntity => {
                matches!(self, Kind::Unreachable | Kind::Failing | Kind::Throttled)
            }
            Outcome::Unauthorized
            | Outcome::ContractViolation
            | Outcome::Throttled
            | Outcome::Failed
            | Outcome::GatewayFailed
            | Outcome::Misrouted
            | Outcome::Unreachable
            | Outcome::TimedOut
            | Outcome::Interrupted => false,
        }
    }
}

/// When the breaker opens, and how it probes.
#[derive(Clone, Copy, Debug)]
pub struct OutagePolicy {
    /// About the pause before the first probe; each further one is twice as long.
    pub first_probe: Duration,
    /// The longest pause between probes.
    pub max_probe_interval: Duration,
}

/// Whether calls are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// They are.
    Closed,
    /// None is.
    Open {
        /// What about.
        kind: Kind,
        /// When the outage was noticed.
        since: Instant,
        /// When the next probe is due.
        probe_at: Instant,
    },
    /// One is: the probe.
    HalfOpen {
        /// What about.
        kind: Kind,
        /// When the outage was noticed.
        since: Instant,
    },
}

impl State {
    /// A stable name, for metrics.
    pub fn name(&self) -> &'static str {
        match self {
            State::Closed => "closed",
            State::Open { .. } => "open",
            State::HalfOpen { .. } => "half-open",
        }
    }

    /// What the outage is about, while there is one.
    pub fn kind(&self) -> Option<Kind> {
        match self {
            State::Closed => None,
            State::Open { kind, .. } | State::HalfOpen { kind, .. } => Some(*kind),
        }
    }
}

/// An outage that begins so soon after the last one goes on with its pauses.
const RESUMES_WITHIN: Duration = Duration::from_mins(10);
/// More customers than are ever held at once need not be told apart.
const MAX_PROBED: usize = 4096;

/// The state, and what leads from one to the next.
#[derive(Debug)]
pub struct Breaker {
    policy: OutagePolicy,
    state: State,
    /// When the last outage ended.
    closed_at: Option<Instant>,
    /// Customers whose events were probes of this outage.
    probed: Vec<Arc<str>>,
    probes: u32,
    /// Whether the next probe is rather a control call.
    is_controls_turn: bool,
}

impl Breaker {
    pub(super) fn new(policy: OutagePolicy) -> Breaker {
        Breaker {
            policy,
            state: State::Closed,
            closed_at: None,
            probed: Vec::new(),
            probes: 0,
            is_controls_turn: false,
        }
    }

    /// Whether calls are made.
    pub fn state(&self) -> State {
        self.state
    }

    /// Begins an outage. The first probe comes no sooner than `asked`, up to the
    /// longest pause, and is an event: a control call
    /// has just failed, or there is none to make.
    pub(super) fn open(&mut self, kind: Kind, asked: Option<Duration>, now: Instant, dice: f64) {
        let resumes = self.closed_at.is_some_and(|at| now.duration_since(at) < RESUMES_WITHIN);
        if !resumes {
            self.probes = 0;
        }
        self.probed.clear();
        self.is_controls_turn = false;
        let probe_at = now + self.pause(asked, dice);
        self.state = State::Open { kind, since: now, probe_at };
    }

    /// Whether this customer's event was a probe of this outage already.
    pub(super) fn has_probed(&self, customer: &Arc<str>) -> bool {
        self.probed.contains(customer)
    }

    /// Lets one call through. With `None` it is a control call.
    pub(super) fn begin_probe(&mut self, customer: Option<&Arc<str>>) {
        let State::Open { kind, since, .. } = self.state else { return };
        self.state = State::HalfOpen { kind, since };
        self.probes = self.probes.saturating_add(1);
        self.is_controls_turn = customer.is_some();
        let Some(customer) = customer else { return };
        if self.has_probed(customer) || self.probed.len() >= MAX_PROBED {
            // All that are there had their turn: a new round.
            self.probed.clear();
        }
        self.probed.push(Arc::clone(customer));
    }

    /// The probe was not made after all: another one may be, at once.
    pub(super) fn abandon_probe(&mut self, now: Instant) {
        if let State::HalfOpen { kind, since } = self.state {
            self.state = State::Open { kind, since, probe_at: now };
        }
    }

    /// What the probe found; true if the outage is over.
    pub(super) fn end_probe(
        &mut self,
        (outcome, is_proof): (Outcome, bool),
        asked: Option<Duration>,
        now: Instant,
        dice: f64,
    ) -> bool {
        let State::HalfOpen { kind, since } = self.state else { return false };
        if is_proof && kind.is_over_after(outcome) {
            self.close(now);
            return true;
        }
        let seen = outcome.facts().and_then(|facts| facts.outage);
        let kind = seen.filter(|_| is_proof).unwrap_or(kind);
        let probe_at = now + self.pause(asked, dice);
        self.state = State::Open { kind, since, probe_at };
        false
    }

    /// Ends the outage.
    pub(super) fn close(&mut self, now: Instant) {
        self.state = State::Closed;
        self.closed_at = Some(now);
    }

    /// Something has changed that may end the outage: the next probe is due now.
    pub(super) fn hurry(&mut self, now: Instant) {
        if let State::Open { probe_at, .. } = &mut self.state {
            *probe_at = now;
        }
    }

    /// Whether a probe is due that should be a control call: every other one is.
    pub(super) fn prefers_control(&self, now: Instant) -> bool {
        let State::Open { probe_at, .. } = self.state else { return false };
        self.is_controls_turn && probe_at <= now
    }

    /// No control call can be made now, or one just failed: the next probe is an event.
    pub(super) fn skip_control(&mut self) {
        self.is_controls_turn = false;
    }

    /// Between half and the whole of a ceiling that doubles with each probe.
    fn pause(&self, asked: Option<Duration>, dice: f64) -> Duration {
        let doubled = self.policy.first_probe.saturating_mul(1 << self.probes.min(20));
        let ceiling = doubled.min(self.policy.max_probe_interval);
        let jittered = ceiling.mul_f64(0.5 + dice.clamp(0.0, 1.0) / 2.0);
        // What one customer's answer asks for keeps nobody else waiting for longer than this.
        let asked = asked.unwrap_or_default().min(self.policy.max_probe_interval);
        jittered.max(asked)
    }
}
