//! Throttling: is it everybody who calls too often, or some customers who may not be called?
//!
//! A 429 closes the gate for as long as it asks. Early in that time one call is let through, the
//! *trial*: a control call, or where none can be made a customer's that was not throttled. If it goes
//! well, the portal throttles by customer, and the gate opens again. At a portal that has shown this
//! twice a 429 keeps its own customer back alone, until very many come in a row.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::faults::Call;

/// A wait up to this keeps all calls back; for a longer one the event goes to a retry tier.
pub const LONGEST_CLOSING: Duration = Duration::from_secs(30);
/// Throttled for so long without a call that went well: an outage.
const PATIENCE: Duration = Duration::from_mins(1);
const SHORTEST_WAIT: Duration = Duration::from_secs(1);
/// The trial comes so long after the 429, unless the portal is known to throttle by customer.
const TRIAL_AFTER: Duration = Duration::from_secs(1);
/// So many trials that went well, beyond those that did not, show that the portal throttles by customer.
const TRIALS: u32 = 2;
/// Beyond so many no more are counted.
const MAX_TRIALS: u32 = 8;
/// So many 429 in a row, no call in between that went well, ask for another trial, though the portal is
/// known to throttle by customer; twice as many with each trial that showed it again.
const MAX_STREAK: u32 = 32;
/// The next trial, where the portal is known to throttle by customer; elsewhere it comes twice as late
/// each time.
const NEXT_TRIAL_AFTER: Duration = Duration::from_millis(100);
/// A customer that was throttled so often, while hardly any other was for a time only, is throttled
/// alone.
const STRIKES: u32 = 3;
/// "Hardly any": less than one 429 of customers that were called again since, for so many calls that
/// went well.
const CALLS_PER_THROTTLED: u64 = 10;
const MAX_STRUCK: usize = 4096;
/// So many calls that were under way with a throttled one went well, and most of all that were: it
/// was throttled alone, and there is nothing to wait for.
const COMPANIONS: usize = 4;

/// What one more 429 means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Throttled {
    /// This customer gets them whenever it is called, others do not.
    Customer,
    /// Nobody calls for a while.
    All {
        /// How long.
        wait: Duration,
    },
    /// The portal throttles by customer: this one waits in a tier, others go on.
    ByCustomer,
    /// One is to wait for long, which tells nothing of others: it waits in a tier, they go on.
    Alone,
    /// The wait is too long to keep the delivery for: it waits in a tier.
    Long,
    /// It has lasted too long, or several customers are to wait for long, and the trial failed as well:
    /// an outage.
    Lasting,
}

/// Whether a call that went well shows that others need not wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Freed {
    /// Nobody waits for the portal, or it does not show that.
    No,
    /// The trial went well. That may be so because it came after a pause: as many calls as after any 429.
    Carefully,
    /// The portal throttles by customer: all calls, as if nothing had been.
    Surely,
}

/// A customer whose calls get 429, and the totals at the first of them.
#[derive(Debug)]
struct Struck {
    strikes: u32,
    successes: u64,
    passing: u64,
}

/// No calls, for now.
#[derive(Debug)]
struct Closing {
    began: Instant,
    until: Instant,
    /// From when one call may be made all the same; `None` once it was.
    trial_at: Option<Instant>,
    /// Whose 429 began it.
    customer: Arc<str>,
    /// Calls that were under way with it.
    companions: usize,
    /// How many of them went well.
    successes: usize,
    /// Whether any of them was throttled too.
    is_shared: bool,
    /// Trials that were throttled.
    tried: u32,
}

/// Whether calls are kept back because the portal wants fewer.
#[derive(Debug, Default)]
pub struct Throttle {
    closing: Option<Closing>,
    /// Since when no call went well.
    since: Option<Instant>,
    /// Number of 429 since then.
    streak: u32,
    successes: u64,
    /// Number of 429 of customers that were called successfully later.
    passing: u64,
    struck: HashMap<Arc<str>, Struck>,
    /// The order in which they were first struck.
    order: VecDeque<Arc<str>>,
    /// Trials that went well; each that did not halves them.
    trials: u32,
    /// Customers that are to wait for long, and no call has gone well since.
    long: Vec<Arc<str>>,
    /// When a control call may show that others need not wait, though nobody is kept back.
    asks_at: Option<Instant>,
}

impl Throttle {
    /// Until when no call is made.
    pub fn closed_until(&self, now: Instant) -> Option<Instant> {
        self.closing.as_ref().map(|closing| closing.until).filter(|until| *until > now)
    }

    /// When the trial may be made, while calls are kept back.
    pub(super) fn trial_at(&self, now: Instant) -> Option<Instant> {
        self.closing.as_ref().filter(|closing| closing.until > now)?.trial_at
    }

    /// When a control call is asked for: as the trial, or because one customer alone is to wait.
    pub(super) fn control_at(&self, now: Instant) -> Option<Instant> {
        self.trial_at(now).or(self.asks_at)
    }

    /// The trial is made.
    pub(super) fn begin_trial(&mut self) {
        self.asks_at = None;
        if let Some(closing) = &mut self.closing {
            closing.trial_at = None;
        }
    }

    /// The trial was not made after all.
    pub(super) fn give_back_trial(&mut self, now: Instant) {
        if let Some(closing) = &mut self.closing {
            closing.trial_at = Some(now);
        }
    }

    /// Whether a customer was throttled, and no call of it went well since.
    pub(super) fn has_struck(&self, customer: &str) -> bool {
        self.struck.contains_key(customer)
    }

    /// A customer's call went well.
    pub(super) fn healthy(&mut self, call: &Call, now: Instant) -> Freed {
        (self.since, self.streak) = (None, 0);
        self.long.clear();
        self.asks_at = None;
        self.successes += 1;
        if !self.struck.is_empty()
            && let Some(struck) = self.struck.remove(&call.customer)
        {
            self.passing += u64::from(struck.strikes);
            // It was not throttled for what it is.
            self.trials /= 2;
            self.order.retain(|customer| *customer != call.customer);
        }
        self.is_alone(call, now)
    }

    /// One more call of those that were under way has gone well, or the trial has.
    fn is_alone(&mut self, call: &Call, now: Instant) -> Freed {
        let Some(closing) = self.closing.as_mut().filter(|closing| closing.until > now) else {
            return Freed::No;
        };
        let is_trial = call.started > closing.began;
        closing.successes += 1;
        let Closing { companions, successes, is_shared, .. } = *closing;
        let is_most = !is_shared && successes >= COMPANIONS && successes * 4 >= companions * 3;
        if is_trial {
            self.trials = (self.trials + 1).min(MAX_TRIALS);
        }
        if is_trial || is_most {
            self.closing = None;
        }
        match (is_most, is_trial) {
            (true, _) => Freed::Surely,
            (false, true) if self.is_by_customer() => Freed::Surely,
            (false, true) => Freed::Carefully,
            (false, false) => Freed::No,
        }
    }

    /// A call got a 429 while so many others are under way. `asked` is its Retry-After; with `threshold`
    /// customers that are to wait for long it is an outage.
    pub(super) fn record(
        &mut self,
        call: &Call,
        asked: Option<Duration>,
        companions: usize,
        threshold: usize,
        (now, dice): (Instant, f64),
    ) -> Throttled {
        if self.strike(&call.customer) {
            return Throttled::Customer;
        }
        let lasts = now.duration_since(*self.since.get_or_insert(now)) > PATIENCE;
        let wait = asked.map_or_else(|| self.backoff(dice), |asked| asked.max(SHORTEST_WAIT));
        self.streak = self.streak.saturating_add(1);
        if self.is_by_customer() {
            if self.streak > MAX_STREAK << (self.trials - TRIALS) {
                self.close(call, now + wait.min(LONGEST_CLOSING), companions, now);
            }
            return Throttled::ByCustomer;
        }
        let is_trial = self.is_trial(call, now);
        let is_long = wait > LONGEST_CLOSING;
        if is_long && !self.long.contains(&call.customer) {
            self.long.push(Arc::clone(&call.customer));
        }
        if is_trial && (lasts || self.long.len() >= threshold) {
            return Throttled::Lasting;
        }
        // One customer that is to wait for long keeps nobody else back.
        if is_long && self.long.len() < threshold {
            self.asks_at.get_or_insert(now + TRIAL_AFTER);
            return Throttled::Alone;
        }
        self.close(call, now + wait.min(LONGEST_CLOSING), companions, now);
        if is_long || lasts { Throttled::Long } else { Throttled::All { wait } }
    }

    /// Two trials, beyond those that failed, have shown it.
    fn is_by_customer(&self) -> bool {
        self.trials >= TRIALS
    }

    /// Whether this call was let through while others were kept back.
    fn is_trial(&self, call: &Call, now: Instant) -> bool {
        let closing = self.closing.as_ref().filter(|closing| closing.until > now);
        closing.is_some_and(|one| call.started > one.began && one.trial_at.is_none())
    }

    fn close(&mut self, call: &Call, until: Instant, companions: usize, now: Instant) {
        if let Some(closing) = self.closing.as_mut().filter(|closing| closing.until > now) {
            closing.until = closing.until.max(until);
            closing.is_shared |= closing.customer != call.customer;
            if call.started > closing.began && closing.trial_at.is_none() {
                // The trial itself was throttled.
                self.trials /= 2;
                closing.tried += 1;
                let is_by_customer = self.trials >= TRIALS;
                let doubled = TRIAL_AFTER.saturating_mul(1 << closing.tried.min(5));
                let pause = if is_by_customer { NEXT_TRIAL_AFTER } else { doubled };
                closing.trial_at = Some(now + pause).filter(|at| *at < closing.until);
            }
            return;
        }
        let after = if self.trials >= TRIALS { Duration::ZERO } else { TRIAL_AFTER };
        self.closing = Some(Closing {
            began: now,
            until,
            trial_at: Some(now + after).filter(|at| *at < until),
            customer: Arc::clone(&call.customer),
            companions,
            successes: 0,
            is_shared: false,
            tried: 0,
        });
    }

    /// Notes one more 429 of a customer; true if it gets them alone.
    fn strike(&mut self, customer: &Arc<str>) -> bool {
        let (successes, passing) = (self.successes, self.passing);
        if !self.struck.contains_key(customer) {
            if self.order.len() == MAX_STRUCK
                && let Some(oldest) = self.order.pop_front()
            {
                self.struck.remove(&oldest);
            }
            self.order.push_back(Arc::clone(customer));
        }
        let struck = self.struck.entry(Arc::clone(customer));
        let struck = struck.or_insert(Struck { strikes: 0, successes, passing });
        struck.strikes = struck.strikes.saturating_add(1);
        let (since, others) = (successes - struck.successes, passing - struck.passing);
        let is_shared = others * CALLS_PER_THROTTLED > since;
        if is_shared && struck.strikes >= STRIKES {
            // What was everybody's says nothing of this customer: it is counted anew.
            *struck = Struck { strikes: 1, successes, passing };
        }
        struck.strikes >= STRIKES && since > 0
    }

    fn backoff(&self, dice: f64) -> Duration {
        let ceiling = SHORTEST_WAIT.saturating_mul(1 << self.streak.min(5)).min(LONGEST_CLOSING);
        ceiling.mul_f64(0.5 + dice.clamp(0.0, 1.0) / 2.0)
    }
}
