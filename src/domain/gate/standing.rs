//! Whose matter the end of a call is: the event's own, or everybody's.

use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::{Gate, News, Pass, Standing};
use crate::domain::breaker::{Kind, State, Suspicion};
use crate::domain::response::{Judgement, Outcome, Scope};
use crate::domain::throttle::Throttled;
use crate::domain::witness::Call;

/// How a call ended, and when.
#[derive(Clone, Copy)]
struct End {
    outcome: Outcome,
    /// Its Retry-After, as far as it is believed.
    asked: Option<Duration>,
    now: Instant,
    /// Draws jitter.
    dice: f64,
}

type Said = (Standing, Option<News>);

impl Gate {
    /// A call has ended. `wall` is the same moment as `now`; `dice` in [0, 1) draws jitter.
    pub fn end(
        &mut self,
        call: &Call,
        pass: Pass,
        judgement: &Judgement,
        (now, wall): (Instant, Timestamp),
        dice: f64,
    ) -> (Standing, Option<News>) {
        self.under_way -= 1;
        let outcome = judgement.outcome;
        let asked = judgement.retry_after.map(|asked| asked.min(self.policy.max_retry_after));
        let end = End { outcome, asked, now, dice };
        if outcome == Outcome::Applied {
            self.witnesses.record(call.clone(), now, wall);
        }
        match (pass, self.breaker.state()) {
            (Pass::Probe, State::HalfOpen { kind, since }) => {
                self.end_probe(call, kind, now.duration_since(since), end)
            }
            (_, State::Closed) => self.end_ordinary(call, pass, end),
            // It began before the outage, or an operator ended that meanwhile.
            (_, State::Open { .. } | State::HalfOpen { .. }) => (late(outcome), None),
        }
    }

    fn end_probe(&mut self, call: &Call, kind: Kind, lasted: Duration, end: End) -> Said {
        let End { outcome, asked, now, dice } = end;
        if outcome == Outcome::Rejected && self.accepts_rejections {
            self.breaker.close();
        } else if !self.breaker.end_probe(outcome, asked, now, dice) {
            let news = match self.breaker.state() {
                State::Open { kind, probe_at, .. } => Some(News::StillOpen(kind, probe_at)),
                State::Closed | State::HalfOpen { .. } => None,
            };
            return (Standing::Hold, news);
        }
        self.throttle.healthy(&call.customer, now);
        self.recover();
        (Standing::Settle(outcome.scope()), Some(News::Closed(kind, lasted)))
    }

    fn recover(&mut self) {
        self.window.restart();
        self.is_recovering = self.has_waiting();
    }

    fn end_ordinary(&mut self, call: &Call, pass: Pass, end: End) -> Said {
        let settle = Standing::Settle(end.outcome.scope());
        match end.outcome {
            Outcome::Applied | Outcome::DuplicateEmail => {
                self.breaker.healthy();
                if self.throttle.healthy(&call.customer, end.now) {
                    self.window.restore();
                }
                (settle, self.window.grow().map(News::Ramped))
            }
            Outcome::Throttled => self.throttled(call, end),
            Outcome::Rejected if self.accepts_rejections => (settle, None),
            // Others went well meanwhile: no fault of everybody's.
            _ if self.witnesses.overtook(call) => (settle, None),
            Outcome::Rejected
            | Outcome::Unauthorized
            | Outcome::UnknownEntity
            | Outcome::ContractViolation
            | Outcome::Failed
            | Outcome::GatewayFailed
            | Outcome::Misrouted
            | Outcome::Unreachable
            | Outcome::TimedOut
            | Outcome::Interrupted => match self.breaker.suspect(&call.customer, end.outcome) {
                _ if pass == Pass::Control => {
                    let kind = Kind::of(end.outcome).unwrap_or(Kind::RejectingAll);
                    let opened = self.open(kind, end);
                    self.breaker.skip_control();
                    opened
                }
                // Where everybody is rejected, the ruling asks for a control call.
                Suspicion::None | Suspicion::Control => (settle, None),
                Suspicion::Outage(kind) => self.open(kind, end),
            },
        }
    }

    fn throttled(&mut self, call: &Call, end: End) -> Said {
        let End { asked, now, dice, .. } = end;
        let was_closed = self.throttle.closed_until(now).is_some();
        let throttled = self.throttle.record(&call.customer, asked, self.under_way, (now, dice));
        if throttled != Throttled::Customer {
            self.window.halve(call.started, now);
        }
        match throttled {
            Throttled::Customer => (Standing::Settle(Some(Scope::Customer)), None),
            Throttled::All { wait } => {
                // Said once, not by each call that was under way.
                let news = (!was_closed).then_some(News::Throttled(wait));
                (Standing::HoldUntil(now + wait), news)
            }
            Throttled::Lasting => self.open(Kind::Throttled, end),
            Throttled::Long { wait } => {
                match self.breaker.suspect(&call.customer, Outcome::Throttled) {
                    Suspicion::None | Suspicion::Control => {
                        (Standing::Settle(Some(Scope::Throttle)), None)
                    }
                    Suspicion::Outage(kind) => self.open(kind, End { asked: Some(wait), ..end }),
                }
            }
        }
    }

    fn open(&mut self, kind: Kind, end: End) -> Said {
        self.breaker.open(kind, end.asked, end.now, end.dice);
        (Standing::Hold, Some(News::Opened(kind)))
    }

    /// No control call can be made: if everybody is rejected, it is an outage.
    pub fn control_is_impossible(&mut self, now: Instant, dice: f64) -> Option<News> {
        let is_open = self.breaker.state() != State::Closed;
        if is_open || self.accepts_rejections || !self.breaker.is_everybody() {
            return None;
        }
        self.breaker.open(Kind::RejectingAll, None, now, dice);
        self.breaker.skip_control();
        Some(News::Opened(Kind::RejectingAll))
    }

    /// An operator says whether rejections are the events' own fault. If they are, an outage of
    /// that kind is over.
    pub fn set_accepts_rejections(&mut self, accepts: bool, now: Instant) -> Option<News> {
        self.accepts_rejections = accepts;
        match self.breaker.state() {
            State::Open { kind: kind @ Kind::RejectingAll, since, .. } if accepts => {
                self.breaker.close();
                self.recover();
                Some(News::Closed(kind, now.duration_since(since)))
            }
            State::Open { .. } | State::HalfOpen { .. } | State::Closed => None,
        }
    }
}

/// A call under way when the outage began: what went well did, what failed says nothing.
fn late(outcome: Outcome) -> Standing {
    match outcome.scope() {
        None => Standing::Settle(None),
        Some(scope) if outcome == Outcome::DuplicateEmail => Standing::Settle(Some(scope)),
        Some(_) => Standing::Hold,
    }
}
