//! The worker's journey as the model walks it: take, pass the gate, call, rule, settle.

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use customer_relay::config::Config;
use customer_relay::domain::breaker::State;
use customer_relay::domain::dead_letter::Reason;
use customer_relay::domain::gate::{Gate, News, Pass, Ruling, Standing};
use customer_relay::domain::history::History;
use customer_relay::domain::lanes::Arrival;
use customer_relay::domain::response::{Judgement, Outcome};
use customer_relay::domain::verdict::{Verdict, decide};
use customer_relay::domain::witness::{Call, Doubt};
use rand::RngExt;

use super::broker::Message;
use super::portal::poison;
use super::world::{InHand, Stage, WITNESS_WAIT, World};

#[derive(PartialEq, Eq)]
enum Controlled {
    Begun,
    Busy,
    Impossible,
}

impl World {
    pub(super) fn take(&mut self) -> Result<()> {
        let (tag, message) = self.broker.deliver().context("nothing to deliver")?;
        let customer = Arc::clone(&message.customer);
        self.hand.insert(tag, InHand { message, stage: Stage::Lane, is_again: false });
        if let Arrival::Starts(tag) = self.lanes.arrive(&customer, tag) {
            self.ask(tag)?;
        }
        Ok(())
    }

    pub(super) fn held(&mut self, tag: u64) -> Result<&mut InHand> {
        self.hand.get_mut(&tag).context("not in hand")
    }

    pub(super) fn ask(&mut self, tag: u64) -> Result<()> {
        let customer = Arc::clone(&self.held(tag)?.message.customer);
        let ticket = self.gate.ask(&customer);
        self.tickets.insert(ticket, tag);
        self.held(tag)?.stage = Stage::Waiting;
        Ok(())
    }

    pub(super) fn admit(&mut self) -> Result<()> {
        let now = self.instant();
        if self.gate.wants_control(now) {
            if self.begin_control(None)? != Controlled::Begun {
                self.gate.skip_control();
            }
            return Ok(());
        }
        let state = self.gate.state();
        let (ticket, pass) = self.gate.admit(now).context("ready, but nobody admitted")?;
        match (state, pass) {
            (State::Closed, Pass::Ordinary) => {
                let (calls, limit) = (self.gate.under_way(), self.gate.limit());
                let beside = usize::from(self.control.is_some());
                ensure!(calls <= limit + beside, "{calls} calls under way, {limit} allowed");
            }
            (State::Open { probe_at, .. }, Pass::Probe) => {
                ensure!(probe_at <= now, "a probe before its time");
                ensure!(matches!(self.gate.state(), State::HalfOpen { .. }), "no probe");
            }
            other => bail!("a call that may not be: {other:?}"),
        }
        ensure!(!self.gate.is_paused(), "a call while paused");
        let tag = self.tickets.remove(&ticket).context("an unknown ticket")?;
        let customer = Arc::clone(&self.held(tag)?.message.customer);
        let earlier = self.hand.range(..tag).find(|(_, held)| held.message.customer == customer);
        ensure!(earlier.is_none(), "{customer}: delivery {tag} overtakes {earlier:?}");
        let held = self.held(tag)?;
        held.stage = Stage::Calling(Call { customer, started: now, credentials: 0 }, pass);
        Ok(())
    }

    fn begin_control(&mut self, except: Option<&Arc<str>>) -> Result<Controlled> {
        let candidate = self.applied.clone().filter(|customer| Some(customer) != except);
        let Some(customer) = candidate else { return Ok(Controlled::Impossible) };
        if self.control.is_some() || !self.lanes.reserve(&customer) {
            return Ok(Controlled::Busy);
        }
        let started = self.instant();
        match self.gate.admit_control(started) {
            Some(pass) => {
                self.tally.controls += 1;
                self.control = Some((Call { customer, started, credentials: 0 }, pass));
            }
            None => self.leave_lane(&customer)?,
        }
        Ok(Controlled::Begun)
    }

    pub(super) fn end_control(&mut self) -> Result<()> {
        let (call, pass) = self.control.take().context("no control call")?;
        let judgement = self.portal.answer(&call.customer, None, &mut self.dice);
        self.end(&call, pass, &judgement)?;
        self.leave_lane(&call.customer)
    }

    fn end(&mut self, call: &Call, pass: Pass, judgement: &Judgement) -> Result<Standing> {
        let moment = (self.instant(), self.timestamp()?);
        let dice = self.dice.random();
        let (standing, news) = self.gate.end(call, pass, judgement, moment, dice);
        self.tally.outages += u64::from(matches!(news, Some(News::Opened(_))));
        Ok(standing)
    }

    fn leave_lane(&mut self, customer: &Arc<str>) -> Result<()> {
        match self.lanes.finish(customer) {
            Some(next) => self.ask(next),
            None => Ok(()),
        }
    }

    /// The next step of a delivery in hand.
    pub(super) fn go_on(&mut self, tag: u64) -> Result<()> {
        let held = self.held(tag)?;
        let customer = Arc::clone(&held.message.customer);
        match std::mem::replace(&mut held.stage, Stage::Lane) {
            Stage::Calling(call, pass) => self.end_call(tag, call, pass),
            Stage::Ruling(doubt, judgement, verdict, _) => {
                self.rule(tag, doubt, judgement, verdict)
            }
            Stage::Publishing(verdict) => {
                self.carry_out(tag, &verdict)?;
                if let Some(tier) = verdict.tier() {
                    for follower in self.lanes.take_waiting(&customer) {
                        let history = self.held(follower)?.message.history.clone();
                        self.carry_out(follower, &Verdict::Wait { tier, history })?;
                        ensure!(self.broker.ack(follower), "a follower's delivery is unknown");
                        self.hand.remove(&follower);
                    }
                }
                Ok(())
            }
            Stage::Acking => {
                ensure!(self.broker.ack(tag), "the delivery is unknown");
                self.hand.remove(&tag);
                self.leave_lane(&customer)
            }
            Stage::Sleeping(_) => self.ask(tag),
            Stage::Lane | Stage::Waiting => bail!("cannot go on"),
        }
    }

    fn end_call(&mut self, tag: u64, call: Call, pass: Pass) -> Result<()> {
        let Message { event, customer, history } = self.held(tag)?.message.clone();
        let judgement = self.portal.answer(&customer, Some(event), &mut self.dice);
        match judgement.outcome {
            Outcome::Applied => self.applied = Some(Arc::clone(&customer)),
            _ => self.applied = self.applied.take().filter(|applied| *applied != customer),
        }
        let was_open = self.gate.state() != State::Closed;
        let standing = self.end(&call, pass, &judgement)?;
        let Standing::Settle(scope) = standing else {
            if let Standing::HoldUntil(time) = standing {
                self.held(tag)?.stage = Stage::Sleeping(time);
                return Ok(());
            }
            if pass == Pass::Probe && !self.gate.has_waiting() {
                let verdict = Verdict::hand_back(&self.config.retry.tiers, history);
                self.held(tag)?.stage = Stage::Publishing(Box::new(verdict));
                return Ok(());
            }
            return self.ask(tag);
        };
        let (now, dice) = (self.timestamp()?, self.dice.random());
        let verdict =
            decide(&judgement, scope, &self.update, &history, &self.config.retry, now, dice);
        let is_counted = matches!(verdict, Verdict::Retry { .. });
        ensure!(!(was_open && is_counted && pass != Pass::Probe), "counted in an outage");
        let since = history.first_attempt;
        let outlived =
            |gate: &Gate| since.is_some_and(|since| gate.witnesses().another_at(&customer, since));
        let reason = verdict.reason();
        let is_of_attempts = reason != Some(Reason::Rejected);
        let needs_ruling = match verdict.reason() {
            Some(Reason::Rejected) => true,
            Some(_) => !outlived(&self.gate),
            None => judgement.outcome == Outcome::Unauthorized,
        };
        let verdict = Box::new(verdict);
        let until = self.now + WITNESS_WAIT;
        let ended = self.instant();
        let held = self.hand.get_mut(&tag).context("not in hand")?;
        held.stage = if needs_ruling {
            let is_again = std::mem::replace(&mut held.is_again, true);
            let until = if is_again { self.now } else { until };
            let doubt = if is_of_attempts {
                Doubt::of_attempts(call, ended)
            } else {
                self.gate.doubt(&call, ended, is_again)
            };
            Stage::Ruling(doubt, judgement, verdict, until)
        } else {
            Stage::Publishing(verdict)
        };
        Ok(())
    }

    fn rule(
        &mut self,
        tag: u64,
        doubt: Doubt,
        judgement: Judgement,
        verdict: Box<Verdict>,
    ) -> Result<()> {
        match self.gate.ruling(&doubt) {
            Some(Ruling::Final) => self.held(tag)?.stage = Stage::Publishing(verdict),
            Some(Ruling::Hold) => self.ask(tag)?,
            Some(Ruling::Ask) | None => {
                let customer = Arc::clone(&self.held(tag)?.message.customer);
                match self.begin_control(Some(&customer))? {
                    Controlled::Begun => {
                        let until = self.now + WITNESS_WAIT;
                        self.held(tag)?.stage = Stage::Ruling(doubt, judgement, verdict, until);
                        return Ok(());
                    }
                    Controlled::Busy => return self.ask(tag),
                    Controlled::Impossible => {}
                }
                let (now, dice) = (self.instant(), self.dice.random());
                if let Some(News::Opened(_)) = self.gate.control_is_impossible(now, dice) {
                    self.tally.outages += 1;
                    return self.ask(tag);
                }
                let history = self.held(tag)?.message.history.clone();
                let verdict = unwitnessed(*verdict, &judgement, &history, &self.config);
                self.held(tag)?.stage = Stage::Publishing(Box::new(verdict));
            }
        }
        Ok(())
    }

    /// Publishes what a verdict says; the ack comes later, or never.
    fn carry_out(&mut self, tag: u64, verdict: &Verdict) -> Result<()> {
        let held = self.hand.get_mut(&tag).context("not in hand")?;
        held.stage = Stage::Acking;
        let message = held.message.clone();
        match verdict {
            Verdict::Applied | Verdict::Superseded | Verdict::Ignored { .. } => {}
            Verdict::Retry { tier, history } | Verdict::Wait { tier, history } => {
                let history = history.clone();
                self.broker.postpone(Message { history, ..message }, self.now + tier.delay());
            }
            Verdict::DeadLetter(dead) => {
                self.tally.dead += 1;
                self.tally.unwitnessed += u64::from(dead.unwitnessed);
                let is_poison = poison(&message.customer).is_some();
                ensure!(
                    is_poison || dead.unwitnessed,
                    "event {} of {}, whom the portal takes, is a dead letter: {}",
                    message.event,
                    message.customer,
                    dead.reason.name()
                );
                self.broker.dead.push((message, dead.unwitnessed));
            }
        }
        Ok(())
    }
}

/// See `Worker::unwitnessed`.
fn unwitnessed(
    verdict: Verdict,
    judgement: &Judgement,
    history: &History,
    config: &Config,
) -> Verdict {
    match verdict {
        Verdict::DeadLetter(mut dead) if dead.reason == Reason::Rejected => {
            dead.unwitnessed = true;
            Verdict::DeadLetter(dead)
        }
        Verdict::DeadLetter(_) => {
            Verdict::unwitnessed(history, judgement.outcome, &config.retry.tiers)
        }
        other => other,
    }
}
