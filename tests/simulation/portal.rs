//! A portal that is well, or not; and customers who are never well.

use std::collections::HashSet;
use std::sync::Arc;

use customer_relay::domain::response::{Judgement, Outcome};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt};
use std::time::Duration;

/// What is wrong with everybody.
const OUTAGES: [Outcome; 9] = [
    Outcome::Failed,
    Outcome::TimedOut,
    Outcome::Interrupted,
    Outcome::GatewayFailed,
    Outcome::Unreachable,
    Outcome::Misrouted,
    Outcome::Unauthorized,
    Outcome::Rejected,
    Outcome::Throttled,
];

/// What is wrong with one customer in six.
const POISON: [Outcome; 4] =
    [Outcome::Rejected, Outcome::Failed, Outcome::UnknownEntity, Outcome::ContractViolation];

#[derive(Debug)]
pub(super) struct Portal {
    trouble: Option<Outcome>,
    /// Events that took effect.
    pub(super) applied: HashSet<usize>,
}

/// What is wrong with a customer for ever.
pub(super) fn poison(customer: &Arc<str>) -> Option<Outcome> {
    let number: usize = customer[1..].parse().unwrap_or(0);
    (number % 6 == 5).then(|| POISON[number / 6 % POISON.len()])
}

impl Portal {
    pub(super) fn new() -> Portal {
        Portal { trouble: None, applied: HashSet::new() }
    }

    pub(super) fn change(&mut self, dice: &mut StdRng) {
        self.trouble = match self.trouble {
            None => OUTAGES.choose(dice).copied(),
            Some(_) => None,
        };
    }

    pub(super) fn heal(&mut self) {
        self.trouble = None;
    }

    pub(super) fn is_well(&self) -> bool {
        self.trouble.is_none()
    }

    /// Answers a call for a customer; `None` is a control call's event.
    pub(super) fn answer(
        &mut self,
        customer: &Arc<str>,
        event: Option<usize>,
        dice: &mut StdRng,
    ) -> Judgement {
        let outcome = self.trouble.or(poison(customer)).unwrap_or(Outcome::Applied);
        let may_apply = outcome.is_ambiguous() && dice.random_bool(0.3);
        if outcome == Outcome::Applied || may_apply {
            self.applied.extend(event);
        }
        let is_asking = outcome == Outcome::Throttled && dice.next_u32().is_multiple_of(2);
        Judgement {
            outcome,
            http_status: None,
            portal_status: None,
            message: None,
            retry_after: is_asking.then(|| Duration::from_secs(dice.random_range(1..60))),
        }
    }
}
