//! A portal that is well, or not; customers that never are; calls that take effect late.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use customer_relay::domain::field::Field;
use customer_relay::domain::outcome::Outcome;
use customer_relay::domain::response::Judgement;
use customer_relay::domain::update::Update;
use rand::RngExt;
use rand::rngs::StdRng;

/// What is sent in the simulation.
pub(super) const FIELDS: [Field; 2] = [Field::City, Field::State];
/// A call that was given up takes effect within so many seconds: less than `portal.settle_after`.
const LATEST_EFFECT: u64 = 59;
/// No portal means it: nothing may wait for so long.
const ABSURD_WAIT: Duration = Duration::from_hours(24 * 100);

/// An effect that comes later than its answer.
#[derive(Debug)]
struct Late {
    customer: Arc<str>,
    values: Vec<(Field, usize)>,
}

#[derive(Debug, Default)]
pub(super) struct Portal {
    /// What is wrong with everybody.
    pub(super) trouble: Option<Outcome>,
    /// What is wrong with a customer for ever.
    pub(super) bad: HashMap<Arc<str>, Outcome>,
    /// What is wrong with an event for ever, though its customer is well.
    pub(super) bad_events: HashMap<usize, Outcome>,
    /// Credentials with another number are refused, like this.
    pub(super) credentials: u64,
    pub(super) refusal: Option<Outcome>,
    /// The event that each field's value came from.
    values: HashMap<(Arc<str>, Field), usize>,
    /// Calls that were given up take effect at once, or never.
    pub(super) is_prompt: bool,
    late: BTreeMap<(Duration, u64), Late>,
    lates: u64,
    /// When events first took effect.
    pub(super) applied: HashMap<usize, Duration>,
    /// Calls of each event.
    pub(super) calls: HashMap<usize, u32>,
    /// When calls and control calls ended.
    pub(super) ended: Vec<Duration>,
    pub(super) controls: Vec<Duration>,
}

/// An event's number as a value that the portal's page allows.
pub(super) fn value(event: usize) -> String {
    let letters = (0..6).map(|place| event / 26_usize.pow(place) % 26);
    letters.map(|letter| char::from(b'A' + u8::try_from(letter).expect("below 26"))).collect()
}

fn event(value: &str) -> usize {
    let digits = value.bytes().rev().map(|byte| usize::from(byte - b'A'));
    digits.fold(0, |number, digit| number * 26 + digit)
}

/// Each field that an update sends, and the event that its value came from.
fn values(update: &Update) -> Vec<(Field, usize)> {
    let of = |field| Some((field, event(update.value(field)?)));
    FIELDS.into_iter().filter_map(of).collect()
}

impl Portal {
    /// Answers a call. `is_control`: it tells nothing about an event.
    pub(super) fn answer(
        &mut self,
        (customer, update): (&Arc<str>, &Update),
        credentials: u64,
        is_control: bool,
        now: Duration,
        dice: &mut StdRng,
    ) -> Judgement {
        let values = values(update);
        if is_control {
            self.controls.push(now);
        } else {
            self.ended.push(now);
            let events: HashSet<usize> = values.iter().map(|(_, event)| *event).collect();
            for event in events {
                *self.calls.entry(event).or_default() += 1;
            }
        }
        let refusal = self.refusal.filter(|_| credentials != self.credentials);
        let bad = self.bad.get(customer).copied();
        let fault = self.fault_of(&values);
        let outcome = refusal.or(self.trouble).or(bad).or(fault).unwrap_or(Outcome::Applied);
        if outcome == Outcome::Applied {
            self.apply(customer, &values, now);
        } else if outcome.is_ambiguous() && fault.is_none() && dice.random_bool(0.3) {
            let is_late = outcome.may_be_under_way() && dice.random_bool(0.5);
            let delay = if is_late { dice.random_range(1..=LATEST_EFFECT) } else { 0 };
            self.take_effect_later(customer, values, Duration::from_secs(delay), now);
        }
        let is_asking = outcome == Outcome::Throttled && dice.random_bool(0.5);
        let asked = if dice.random_bool(0.1) {
            ABSURD_WAIT
        } else {
            Duration::from_secs(dice.random_range(1..60))
        };
        Judgement {
            outcome,
            http_status: None,
            portal_status: None,
            message: None,
            retry_after: is_asking.then_some(asked),
        }
    }

    /// Whether it never takes this event.
    pub(super) fn is_bad(&self, customer: &Arc<str>, event: usize) -> bool {
        self.bad.contains_key(customer) || self.bad_events.contains_key(&event)
    }

    /// What is wrong with one of the events that these values came from.
    fn fault_of(&self, values: &[(Field, usize)]) -> Option<Outcome> {
        values.iter().find_map(|(_, event)| self.bad_events.get(event)).copied()
    }

    /// The caller died; the call may take effect all the same.
    pub(super) fn abandon(
        &mut self,
        (customer, update): (&Arc<str>, &Update),
        now: Duration,
        dice: &mut StdRng,
    ) {
        let values = values(update);
        let is_bad = self.bad.contains_key(customer) || self.fault_of(&values).is_some();
        if is_bad || dice.random_bool(0.5) {
            return;
        }
        let delay = Duration::from_secs(dice.random_range(0..=LATEST_EFFECT));
        self.take_effect_later(customer, values, delay, now);
    }

    fn take_effect_later(
        &mut self,
        customer: &Arc<str>,
        values: Vec<(Field, usize)>,
        delay: Duration,
        now: Duration,
    ) {
        let at = if self.is_prompt { now } else { now + delay };
        let late = Late { customer: Arc::clone(customer), values };
        self.lates += 1;
        self.late.insert((at, self.lates), late);
    }

    pub(super) fn pass_time(&mut self, now: Duration) {
        while let Some(entry) = self.late.first_entry() {
            if entry.key().0 > now {
                return;
            }
            let ((at, _), Late { customer, values }) = entry.remove_entry();
            self.apply(&customer, &values, at);
        }
    }

    /// Customers that a call is still under way for, though it was given up.
    pub(super) fn under_way(&self) -> impl Iterator<Item = &Arc<str>> {
        self.late.values().map(|late| &late.customer)
    }

    pub(super) fn next_effect(&self) -> Option<Duration> {
        self.late.keys().next().map(|(at, _)| *at)
    }

    fn apply(&mut self, customer: &Arc<str>, values: &[(Field, usize)], now: Duration) {
        for (field, event) in values {
            self.values.insert((Arc::clone(customer), *field), *event);
            self.applied.entry(*event).or_insert(now);
        }
    }

    /// All that its future hangs on.
    pub(super) fn state(&self) -> String {
        let mut values: Vec<_> = self.values.iter().collect();
        values.sort_unstable();
        format!("{:?} {values:?} {:?}", self.trouble, self.late)
    }

    pub(super) fn value_of(&self, customer: &Arc<str>, field: Field) -> Option<usize> {
        self.values.get(&(Arc::clone(customer), field)).copied()
    }
}
