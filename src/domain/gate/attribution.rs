//! Attributes a call's result to its event, or to everybody.

use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::{Attribution, Gate, News, Pass};
use crate::domain::breaker::{Kind, State};
use crate::domain::controls::{UNFIT_AFTER, UNFIT_AFTER_THROTTLED};
use crate::domain::faults::Call;
use crate::domain::outcome::{Evidence, Outcome};
use crate::domain::response::Judgement;
use crate::domain::throttle::{Freed, LONGEST_CLOSING, Throttled};

/// How a call ended, and when.
#[derive(Clone, Copy)]
struct End {
    outcome: Outcome,
    /// Its Retry-After.
    asked: Option<Duration>,
    now: Instant,
    wall: Timestamp,
    /// Draws jitter.
    dice: f64,
}

/// The next control call after one that told nothing.
const FIRST_WAIT: Duration = Duration::from_secs(1);

type Said = (Attribution, Option<News>);

impl Gate {
    /// A call has ended. `wall` is the same moment as `now`; `dice` in [0, 1) draws jitter.
    pub fn end(
        &mut self,
        call: &Call,
        pass: Pass,
        judgement: &Judgement,
        (now, wall): (Instant, Timestamp),
        dice: f64,
    ) -> (Attribution, Option<News>) {
        self.under_way -= 1;
        let outcome = judgement.outcome;
        let end = End { outcome, asked: judgement.retry_after, now, wall, dice };
        let was_check = matches!(pass, Pass::Control | Pass::ControlProbe) && self.controls.end();
        match (pass, self.breaker.state()) {
            (Pass::Probe | Pass::ControlProbe, State::HalfOpen { kind, since }) => {
                self.end_probe(call, pass, kind, now.duration_since(since), end)
            }
            (Pass::Control | Pass::ControlProbe, State::Closed) => {
                self.end_control(call, was_check, end)
            }
            (Pass::Ordinary | Pass::Probe, State::Closed) => self.end_ordinary(call, end),
            // It began before the outage, or an operator ended that meanwhile.
            (_, State::Open { .. } | State::HalfOpen { .. }) => (late(outcome), None),
        }
    }

    fn end_probe(
        &mut self,
        call: &Call,
        pass: Pass,
        kind: Kind,
        lasted: Duration,
        end: End,
    ) -> Said {
        let End { outcome, asked, now, wall, dice } = end;
        if pass == Pass::ControlProbe && outcome != Outcome::Applied {
            self.controls.distrust(&call.customer);
        }
        // A control call that is refused says little: its customer may be the wrong one.
        let is_proof = pass != Pass::ControlProbe || outcome == Outcome::Applied;
        if is_proof && outcome == Outcome::Rejected && self.accepts_rejections {
            self.breaker.close(now);
        } else if !self.breaker.end_probe((outcome, is_proof), asked, now, dice) {
            let news = match self.breaker.state() {
                State::Open { kind, probe_at, .. } => Some(News::StillOpen(kind, probe_at)),
                State::Closed | State::HalfOpen { .. } => None,
            };
            return (Attribution::Again, news);
        }
        self.throttle.healthy(call, now);
        self.recover();
        let attribution = match outcome.evidence() {
            Evidence::Success => {
                self.faults.prove(call, now, wall);
                match pass {
                    Pass::ControlProbe => self.controls.succeeded(&call.customer, false, now),
                    Pass::Ordinary | Pass::Probe | Pass::Control => {
                        self.controls.event_succeeded(now);
                    }
                }
                Attribution::Applied
            }
            Evidence::OwnFault => Attribution::Own,
            Evidence::Fault(_) if outcome == Outcome::Rejected && self.accepts_rejections => {
                Attribution::Own
            }
            Evidence::TooMany | Evidence::Fault(_) => {
                Attribution::Open(self.faults.open(call, outcome, (now, wall)))
            }
        };
        (attribution, Some(News::Closed(kind, lasted)))
    }

    fn recover(&mut self) {
        self.window.restart();
        self.is_recovering = self.has_waiting();
    }

    /// A control call tells about everybody, and has no event that could be at fault.
    fn end_control(&mut self, call: &Call, was_check: bool, end: End) -> Said {
        let End { outcome, asked, now, wall, .. } = end;
        let evidence = match outcome.evidence() {
            // By an operator's word it is the fault of what was sent: that proves nothing any more.
            Evidence::Fault(_) if outcome == Outcome::Rejected && self.accepts_rejections => {
                Evidence::OwnFault
            }
            evidence => evidence,
        };
        match evidence {
            Evidence::Success => {
                self.faults.prove(call, now, wall);
                let freed = self.throttle.healthy(call, now);
                self.controls.succeeded(&call.customer, freed != Freed::No, now);
                (Attribution::Applied, self.freed(freed))
            }
            Evidence::OwnFault => {
                self.faults.clear_suspicion(now);
                self.controls.postpone(now + FIRST_WAIT);
                let freed = self.throttle.healthy(call, now);
                let freed = self.freed(freed);
                (Attribution::Again, self.leave_out(call, outcome, now).or(freed))
            }
            Evidence::TooMany if was_check => {
                (Attribution::Again, self.check_failed(call, outcome, UNFIT_AFTER_THROTTLED, now))
            }
            Evidence::TooMany => match self.faults.first_outcome() {
                // It does not refute what three customers say.
                Some(first) if self.faults.is_everybody() => {
                    self.controls.failed(&call.customer);
                    self.open(kind_of(first), End { asked: None, ..end })
                }
                Some(_) | None => {
                    let wait = asked.unwrap_or(FIRST_WAIT).clamp(FIRST_WAIT, LONGEST_CLOSING);
                    self.controls.postpone(now + wait);
                    self.controls.doubt(&call.customer);
                    let (_, news) = self.throttled(call, end);
                    (Attribution::Again, news)
                }
            },
            Evidence::Fault(_) if was_check => {
                (Attribution::Again, self.check_failed(call, outcome, UNFIT_AFTER, now))
            }
            // Others went well meanwhile: it is the fault of what was sent.
            Evidence::Fault(_) if self.faults.went_well_since(call.started) => {
                self.controls.distrust(&call.customer);
                self.controls.postpone(now + FIRST_WAIT);
                (Attribution::Again, None)
            }
            Evidence::Fault(kind) if self.controls.failed(&call.customer) => self.open(kind, end),
            Evidence::Fault(_) => (Attribution::Again, None),
        }
    }

    fn check_failed(
        &mut self,
        call: &Call,
        outcome: Outcome,
        most: u32,
        now: Instant,
    ) -> Option<News> {
        let is_unfit = self.controls.check_failed(most, now);
        is_unfit.then(|| self.leave_out(call, outcome, now)).flatten()
    }

    /// Sends this update no more: it proves nothing.
    fn leave_out(&mut self, call: &Call, outcome: Outcome, now: Instant) -> Option<News> {
        let is_probe = self.controls.give_up(&call.customer, now);
        is_probe.then_some(News::UnfitProbeCustomer(outcome))
    }

    fn end_ordinary(&mut self, call: &Call, end: End) -> Said {
        let End { outcome, now, wall, .. } = end;
        match outcome.evidence() {
            Evidence::Success => {
                self.faults.prove(call, now, wall);
                self.controls.event_succeeded(now);
                (Attribution::Applied, self.went_well(call, now))
            }
            Evidence::OwnFault => {
                self.faults.clear_suspicion(now);
                (Attribution::Own, self.went_well(call, now))
            }
            Evidence::TooMany => self.throttled(call, end),
            Evidence::Fault(_) if outcome == Outcome::Rejected && self.accepts_rejections => {
                self.faults.clear_suspicion(now);
                (Attribution::Own, None)
            }
            Evidence::Fault(_) => {
                let fault = self.faults.open(call, outcome, (now, wall));
                if self.faults.is_unreachable() {
                    self.faults.take(fault);
                    return self.open(Kind::Unreachable, end);
                }
                (Attribution::Open(fault), None)
            }
        }
    }

    fn went_well(&mut self, call: &Call, now: Instant) -> Option<News> {
        let freed = self.throttle.healthy(call, now);
        self.freed(freed).or_else(|| self.window.grow().map(News::Ramped))
    }

    fn freed(&mut self, freed: Freed) -> Option<News> {
        if freed == Freed::Surely {
            self.window.restore();
        }
        (freed != Freed::No).then_some(News::ThrottledAlone)
    }

    fn throttled(&mut self, call: &Call, end: End) -> Said {
        let End { asked, now, dice, .. } = end;
        let was_closed = self.throttle.closed_until(now).is_some();
        let beside = self.under_way;
        let threshold = self.policy.faults.threshold;
        let throttled = self.throttle.record(call, asked, beside, threshold, (now, dice));
        // Said once, not by each call that was under way.
        let until = self.throttle.closed_until(now).filter(|_| !was_closed);
        let news = until.map(|until| News::Throttled(until.duration_since(now)));
        match throttled {
            Throttled::Customer => (Attribution::Own, None),
            Throttled::ByCustomer | Throttled::Alone => (Attribution::Wait, news),
            Throttled::All { wait } => {
                self.window.halve(call.started, now);
                (Attribution::AgainAt(now + wait), news)
            }
            Throttled::Long => {
                self.window.halve(call.started, now);
                (Attribution::Wait, news)
            }
            Throttled::Lasting => self.open(Kind::Throttled, end),
        }
    }

    /// Declares an outage: no open fault is an event's own.
    fn open(&mut self, kind: Kind, end: End) -> Said {
        self.breaker.open(kind, end.asked, end.now, end.dice);
        self.faults.call_all_again();
        self.controls.outage_declared();
        (Attribution::Again, Some(News::Opened(kind)))
    }

    /// No control call can be made: it is an outage if it may be everybody, or our credentials. Other
    /// faults wait in a tier.
    pub(super) fn without_control(
        &mut self,
        (now, wall): (Instant, Timestamp),
        dice: f64,
    ) -> Option<News> {
        self.faults.refute_proven(now);
        let suspect = if self.faults.is_everybody() || self.controls.has_failed() {
            self.faults.first_outcome()
        } else {
            self.faults.unproven()
        };
        let Some(outcome) = suspect else {
            self.faults.give_up_waiting(now);
            return None;
        };
        let end = End { outcome, asked: None, now, wall, dice };
        self.open(kind_of(outcome), end).1
    }

    /// An operator says whether rejections are the events' own fault. If they are, an outage of
    /// that kind is over.
    pub fn set_accepts_rejections(&mut self, accepts: bool, now: Instant) -> Option<News> {
        self.accepts_rejections = accepts;
        if accepts {
            self.faults.accept_rejections();
        }
        match self.breaker.state() {
            State::Open { kind: kind @ Kind::RejectingAll, since, .. } if accepts => {
                self.breaker.close(now);
                self.recover();
                Some(News::Closed(kind, now.duration_since(since)))
            }
            State::Open { .. } | State::HalfOpen { .. } | State::Closed => None,
        }
    }
}

/// A call under way when the outage began: what went well did, what failed says nothing.
fn late(outcome: Outcome) -> Attribution {
    match outcome.evidence() {
        Evidence::Success => Attribution::Applied,
        Evidence::OwnFault => Attribution::Own,
        Evidence::TooMany | Evidence::Fault(_) => Attribution::Again,
    }
}

/// What a fault of everybody's is an outage of.
fn kind_of(outcome: Outcome) -> Kind {
    let kind = outcome.facts().and_then(|facts| facts.outage);
    kind.expect("successes and duplicate e-mails open no fault")
}
