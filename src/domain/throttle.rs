//! Throttling: is it everybody who calls too often, or one customer who may not be called?

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A wait up to this keeps all calls back; for a longer one the event goes to a retry tier.
pub const LONGEST_CLOSING: Duration = Duration::from_secs(30);
/// Throttled for so long without a call that went well: an outage.
const PATIENCE: Duration = Duration::from_mins(1);
const SHORTEST_WAIT: Duration = Duration::from_secs(1);
/// A customer who was throttled so often, while hardly any other was, is throttled alone.
const STRIKES: u32 = 3;
/// "Hardly any": less than one 429 of others for so many calls that went well.
const CALLS_PER_THROTTLED: u64 = 10;
const MAX_STRUCK: usize = 16;
/// So many calls that were under way with a throttled one went well, and most of all that were: it
/// was throttled alone, and there is nothing to wait for.
const COMPANIONS: usize = 4;

/// What one more 429 means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Throttled {
    /// Only this customer gets them.
    Customer,
    /// Nobody calls for a while.
    All {
        /// How long.
        wait: Duration,
    },
    /// The wait is too long to keep a delivery for.
    Long {
        /// How long.
        wait: Duration,
    },
    /// It has lasted too long.
    Lasting,
}

/// A customer whose calls get 429, and the totals at the first of them.
#[derive(Debug)]
struct Struck {
    customer: Arc<str>,
    strikes: u32,
    successes: u64,
    throttled: u64,
}

/// No calls, for now.
#[derive(Debug)]
struct Closing {
    until: Instant,
    /// Whose 429 began it.
    customer: Arc<str>,
    /// Calls that were under way with it.
    companions: usize,
    /// How many of them went well.
    successes: usize,
    /// Whether any of them was throttled too.
    is_shared: bool,
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
    throttled: u64,
    struck: VecDeque<Struck>,
}

impl Throttle {
    /// Until when no call is made.
    pub fn closed_until(&self, now: Instant) -> Option<Instant> {
        self.closing.as_ref().map(|closing| closing.until).filter(|until| *until > now)
    }

    /// A customer's call went well. True if that shows that the one who was throttled is alone: the
    /// way is free again.
    pub(super) fn healthy(&mut self, customer: &Arc<str>, now: Instant) -> bool {
        (self.since, self.streak) = (None, 0);
        self.successes += 1;
        self.struck.retain(|struck| struck.customer != *customer);
        self.is_alone(now)
    }

    /// One more call that was under way has gone well.
    fn is_alone(&mut self, now: Instant) -> bool {
        let Some(closing) = self.closing.as_mut().filter(|closing| closing.until > now) else {
            return false;
        };
        closing.successes += 1;
        let Closing { companions, successes, is_shared, .. } = *closing;
        let is_alone = !is_shared && successes >= COMPANIONS && successes * 4 >= companions * 3;
        if is_alone {
            self.closing = None;
        }
        is_alone
    }

    /// A call got a 429 while so many others are under way. `asked` is its Retry-After, as far as it
    /// is believed.
    pub(super) fn record(
        &mut self,
        customer: &Arc<str>,
        asked: Option<Duration>,
        companions: usize,
        (now, dice): (Instant, f64),
    ) -> Throttled {
        self.throttled += 1;
        if self.strike(customer) {
            return Throttled::Customer;
        }
        let since = *self.since.get_or_insert(now);
        let wait = asked.unwrap_or_else(|| self.backoff(dice));
        self.streak = self.streak.saturating_add(1);
        if wait > LONGEST_CLOSING {
            return Throttled::Long { wait };
        }
        if now.duration_since(since) > PATIENCE {
            return Throttled::Lasting;
        }
        self.close(customer, now + wait, companions, now);
        Throttled::All { wait }
    }

    fn close(&mut self, customer: &Arc<str>, until: Instant, companions: usize, now: Instant) {
        if let Some(closing) = self.closing.as_mut().filter(|closing| closing.until > now) {
            closing.until = closing.until.max(until);
            closing.is_shared |= closing.customer != *customer;
        } else {
            let (customer, successes, is_shared) = (Arc::clone(customer), 0, false);
            self.closing = Some(Closing { until, customer, companions, successes, is_shared });
        }
    }

    /// Notes one more 429 of a customer; true if it gets them alone.
    fn strike(&mut self, customer: &Arc<str>) -> bool {
        let Some(struck) = self.struck.iter_mut().find(|struck| struck.customer == *customer)
        else {
            if self.struck.len() == MAX_STRUCK {
                self.struck.pop_front();
            }
            let (successes, throttled) = (self.successes, self.throttled);
            let customer = Arc::clone(customer);
            self.struck.push_back(Struck { customer, strikes: 1, successes, throttled });
            return false;
        };
        struck.strikes += 1;
        let successes = self.successes - struck.successes;
        let others = (self.throttled - struck.throttled) - u64::from(struck.strikes - 1);
        struck.strikes >= STRIKES && successes > 0 && others * CALLS_PER_THROTTLED <= successes
    }

    fn backoff(&self, dice: f64) -> Duration {
        let ceiling = SHORTEST_WAIT.saturating_mul(1 << self.streak.min(5)).min(LONGEST_CLOSING);
        ceiling.mul_f64(0.5 + dice.clamp(0.0, 1.0) / 2.0)
    }
}
