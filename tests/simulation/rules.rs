//! What must hold at any time, and in the end. Each rule is told by what is seen from outside: calls,
//! answers, messages. None asks the machine for its reasons.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use customer_relay::domain::breaker::State;
use customer_relay::domain::field::Field;
use customer_relay::domain::gate::{Gate, Pass};
use customer_relay::domain::group::Carrier;
use customer_relay::domain::turn::{Action, Ending, Turn};
use customer_relay::domain::verdict::Verdict;

use super::portal::FIELDS;
use super::relay::Relay;
use super::world::{Published, World};

/// A call begins. `before`: whether calls were kept back until a proof, and how many were under way.
pub(super) fn check_pass(gate: &Gate, pass: Pass, before: (bool, usize)) -> Result<()> {
    ensure!(!gate.is_paused(), "a call while paused");
    let (is_suspended, under_way) = before;
    ensure!(
        !is_suspended || pass != Pass::Ordinary || under_way == 0,
        "calls are suspended, but {under_way} under way and one more begins"
    );
    Ok(())
}

/// A call failed in an outage: whatever its turn does, no attempt is counted.
pub(super) fn check_uncounted<T: Carrier>(turn: &Turn<T>, action: &Action<T>) -> Result<()> {
    let (Action::End(Ending::Verdicts(verdicts)), Some(group)) = (action, turn.group()) else {
        return Ok(());
    };
    for (member, verdict) in group.members.iter().zip(verdicts) {
        let before = member.event().history.attempts;
        let after = match verdict {
            Verdict::Retry { history, .. } | Verdict::Wait { history, .. } => history.attempts,
            Verdict::DeadLetter(dead) => dead.history.attempts,
            Verdict::Applied | Verdict::Superseded | Verdict::Ignored { .. } => before,
        };
        let customer = &member.event().customer;
        ensure!(after == before, "an attempt of {customer}'s event is counted in an outage");
    }
    Ok(())
}

impl World {
    pub(super) fn check(&self) -> Result<()> {
        let mut calling: Vec<&Arc<str>> = self.relays.iter().flat_map(Relay::calling).collect();
        calling.sort_unstable();
        let twice = calling.windows(2).find(|pair| pair[0] == pair[1]);
        ensure!(twice.is_none(), "two calls at once for {twice:?}");
        for (index, relay) in self.relays.iter().enumerate() {
            let in_hand = self.broker.unacked(index);
            ensure!(in_hand <= self.prefetch + 1, "{in_hand} deliveries in hand");
            let (calls, limit) = (relay.calling().count(), self.setting.in_flight);
            ensure!(calls <= limit + 1, "{calls} calls under way, {limit} allowed");
            let is_open = matches!(relay.gate.state(), State::Open { .. });
            ensure!(!is_open || relay.gate.under_way() <= limit + 1, "in an outage");
        }
        Ok(())
    }

    /// Everything has come to its end.
    pub(super) fn check_ends(&self) -> Result<()> {
        for (number, event) in self.published.iter().enumerate() {
            let is_dead = self.broker.dead.iter().any(|letter| letter.event == number);
            let is_bad = self.portal.bad.contains_key(&event.customer);
            let has_ended = is_dead || self.portal.applied.contains_key(&number);
            ensure!(!is_bad || has_ended, "event {number} of a bad customer has no end");
        }
        if self.setting.has_ledger { self.check_values() } else { Ok(()) }
    }

    /// The portal has the newest value of each field.
    fn check_values(&self) -> Result<()> {
        let mut events: HashMap<(&Arc<str>, Field), Vec<usize>> = HashMap::new();
        for (number, event) in self.published.iter().enumerate() {
            let customer = &event.customer;
            let is_bad = self.portal.is_bad(customer, number) || self.ledger.refuses(customer);
            for field in FIELDS.into_iter().filter(|field| event.update.value(*field).is_some()) {
                if !is_bad {
                    events.entry((&event.customer, field)).or_default().push(number);
                }
            }
        }
        for ((customer, field), numbers) in events {
            let has = self.portal.value_of(customer, field);
            ensure!(
                has.is_some_and(|has| self.may_be_newest(has, &numbers)),
                "the portal has event {has:?} for {customer}.{}, of {numbers:?}",
                field.name()
            );
        }
        Ok(())
    }

    /// Events of one moment go by their first receipt. A crash or a lost session may have lost that of
    /// some: those may be the newest, or not. With one relay that takes both: a crash before the broker has
    /// noticed that a session is lost. So may all be, once a clock was set.
    fn may_be_newest(&self, has: usize, numbers: &[usize]) -> bool {
        let time = numbers.iter().map(|number| self.published[*number].place.time).max().flatten();
        let event = |number: &usize| &self.published[*number];
        let latest = numbers.iter().filter(|number| event(number).place.time == time);
        let is_told = |number: &&usize| {
            let event = event(number);
            let is_lost = self.setting.relays > 1 && event.is_receipt_lost;
            !is_lost && !event.is_receipt_forgotten && !self.has_jumped
        };
        let newest = latest.clone().copied().filter(|number| is_told(&number));
        let newest = newest.max_by_key(|number| (event(number).received, *number));
        let mut untold = latest.filter(|number| !is_told(number));
        newest == Some(has) || untold.any(|number| *number == has)
    }

    /// The most calls that one event had, the most control calls in any minute, and the most outages
    /// in any hour.
    pub(super) fn most(&self) -> (u32, usize, usize) {
        let calls = self.portal.calls.values().copied().max().unwrap_or(0);
        let controls = most_within(&self.portal.controls, Duration::from_mins(1));
        (calls, controls, most_within(&self.openings, Duration::from_hours(1)))
    }

    /// How long an event has waited for its effect, or does.
    pub(super) fn lag(&self, number: usize) -> Duration {
        let Published { at, .. } = self.published[number];
        self.portal.applied.get(&number).copied().unwrap_or(self.now).saturating_sub(at)
    }
}

fn most_within(times: &[Duration], span: Duration) -> usize {
    let count =
        |from: &Duration| times.iter().filter(|at| *at >= from && **at < *from + span).count();
    times.iter().map(count).max().unwrap_or(0)
}
