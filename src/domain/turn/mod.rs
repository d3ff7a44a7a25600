//! One turn of a customer's events, from reading the customer to a verdict for each: a machine. Facts
//! go in, one thing to do comes out. The worker and the simulation carry that out, and decide nothing.
//!
//! ```text
//!   read ─▶ plan ─▶ pass the gate ─▶ secure ─▶ announce ─▶ call ─▶ verdicts
//!             ▲            ▲                                 │
//!             │            └── again, nothing counted ◀──────┤ an outage, throttling
//!             │                                              │
//!             └── one by one ◀── refuted ◀── wait ◀──────────┘ an open fault
//! ```
//!
//! A call that is repeated at once is secured anew after its pause.
//!
//! | while it | the worker stops | calls are cut | the delivery is forgotten |
//! |---|---|---|---|
//! | reads | goes on | ends | ends |
//! | waits for the gate, a proof or a time | hands back | hands back | gives up |
//! | secures or announces | goes on | hands back before a repetition, else goes on | goes on |
//! | calls | goes on | marks the call, hands back | goes on |
//! | pauses before an immediate retry | ends the attempt | ends the attempt | ends the attempt |

mod after;
mod before;

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::doubt::{Lost, OnDoubt};
use super::faults::{Call, FaultId};
use super::gate::{Gate, News, Pass};
use super::group::{Carrier, Group, Order};
use super::history::History;
use super::response::Judgement;
use super::retry::RetryPolicy;
use super::row::Row;
use super::settlement::Committed;
use super::update::Update;
use super::verdict::Verdict;

/// Pauses between two looks at a customer that another relay has just now.
const HELD_PAUSES: [Duration; 3] =
    [Duration::from_millis(50), Duration::from_millis(150), Duration::from_millis(300)];

/// What a turn goes by.
#[derive(Clone, Copy, Debug)]
pub struct TurnPolicy<'a> {
    /// How versions are ordered and calls marked.
    pub order: Order,
    /// `worker.merge`, where the ledger allows it.
    pub merges: bool,
    /// `ledger.in_doubt`
    pub on_doubt: OnDoubt,
    /// `retry.*`
    pub retry: &'a RetryPolicy,
}

/// When a step is made, and what is known at that time.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// On the monotonic clock.
    pub now: Instant,
    /// On the wall clock.
    pub wall: Timestamp,
    /// In [0, 1): draws what is random.
    pub dice: f64,
    /// What the ledger does not know.
    pub lost: Option<Lost>,
}

/// What came of reading a customer.
#[derive(Debug)]
pub enum Read {
    /// It is ours until the turn ends.
    Ours {
        /// What the ledger has.
        row: Row,
        /// Another relay had it, and may have a call under way.
        was_taken_over: bool,
    },
    /// Another relay has it.
    Held,
    /// It is ours, and the replay that the event belongs to has come to its end before.
    Repeated,
    /// It is ours, but nothing can tell whether that replay has ended.
    Undecided,
    /// Its row cannot be read: its events wait until somebody mends that.
    Unreadable(String),
    /// The ledger gives other customers, but not this one.
    Refused,
}

/// A fact, mostly what came of the last action.
#[derive(Debug)]
pub enum Input<T> {
    /// Of [`Action::Read`].
    Read(Read),
    /// Of [`Action::Pass`].
    Permitted(Pass),
    /// Of [`Action::Pass`]: it has waited for long while no calls were made.
    HeldForLong,
    /// Of [`Action::Secure`]: the customer as it was read again, if it had to be, and the events that
    /// go along.
    Secured {
        /// `None`: still ours, and unchanged.
        read: Option<Read>,
        /// In their order.
        joined: Vec<T>,
    },
    /// Of [`Action::Announce`].
    Announced(Committed),
    /// Of [`Action::Call`].
    Answered(Call, Judgement),
    /// Of [`Action::Pause`]: whether there was a pause left.
    Paused(bool),
    /// Of any other action that waits, or is done.
    Done,
    /// The worker stops, while the turn waits.
    Stopped,
    /// Calls under way are cut.
    Cut,
    /// The first event's session is lost: its message will come again.
    Forgotten,
}

/// What is to be done next.
#[derive(Debug)]
pub enum Action<T> {
    /// Read the customer.
    Read,
    /// Wait for so long.
    Sleep(Duration),
    /// Wait for the gate.
    Pass,
    /// See that the customer is still ours for the time of a call, and, if `joins`, take those along
    /// that wait and may be merged.
    Secure {
        /// Whether others may go along.
        joins: bool,
    },
    /// Commit the row.
    Announce,
    /// Send this.
    Call(Arc<Update>),
    /// Pause before an immediate retry, if one is left.
    Pause,
    /// Wait until more is known of a fault.
    Wait(FaultId),
    /// Wait until then.
    SleepUntil(Instant),
    /// Put these back to where they waited.
    PutBack(Vec<T>),
    /// The turn has ended.
    End(Ending),
}

/// How a turn ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// One verdict for each member.
    Verdicts(Vec<Verdict>),
    /// It never began: the first event, and those behind it, are handed back.
    HandBackLane,
    /// It never began: its replay has ended before.
    Repeated,
    /// It never began: the customer's row cannot be read.
    Unreadable(String),
    /// It never began: the ledger refuses the customer.
    Unrecordable,
    /// The first delivery will come again; the others wait for another turn.
    GiveUp,
}

/// A call, and what is known of it before it is attributed.
#[derive(Debug)]
struct InCall {
    pass: Pass,
    update: Arc<Update>,
    last: Option<(Call, Judgement)>,
}

/// A call that failed.
#[derive(Debug)]
struct Failed {
    pass: Pass,
    update: Arc<Update>,
    judgement: Judgement,
}

#[derive(Debug)]
enum State {
    /// Reads the customer, or pauses before it does so again.
    Reading {
        pauses: std::slice::Iter<'static, Duration>,
    },
    Asking(Arc<Update>),
    Securing(Pass, Arc<Update>),
    /// With what is to be sent.
    Announcing(Pass, Arc<Update>),
    Calling(InCall),
    Pausing(InCall),
    Waiting(FaultId, Failed),
    Sleeping,
    PuttingBack,
    Ended,
}

/// The turn.
#[derive(Debug)]
pub struct Turn<T> {
    state: State,
    /// Until the customer has been read.
    head: Option<T>,
    group: Option<Group<T>>,
    /// The first event's call failed before, and all was well in between.
    is_again: bool,
}

/// All that a step may look at and change beside the turn.
struct Step<'a> {
    gate: &'a mut Gate,
    moment: &'a Moment,
    policy: &'a TurnPolicy<'a>,
    news: Option<News>,
}

impl<T: Carrier> Turn<T> {
    /// Before the customer is read.
    pub fn begin(head: T) -> (Turn<T>, Action<T>) {
        let state = State::Reading { pauses: HELD_PAUSES.iter() };
        (Turn { state, head: Some(head), group: None, is_again: false }, Action::Read)
    }

    /// What carries the event that came first.
    pub fn first(&self) -> &T {
        let group = self.group.as_ref().map(Group::head);
        group.or(self.head.as_ref()).expect("one of both, until the end")
    }

    /// The events and their customer's row, once it has been read.
    pub fn group(&self) -> Option<&Group<T>> {
        self.group.as_ref()
    }

    /// What is left at the end: the group, or the one event whose customer was never read.
    pub fn into_parts(self) -> Result<Group<T>, T> {
        self.group.ok_or_else(|| self.head.expect("one of both, until the end"))
    }

    fn group_mut(&mut self) -> &mut Group<T> {
        self.group.as_mut().expect("the customer has been read")
    }

    /// Takes a fact in. Each input but the three interruptions answers the last action.
    pub fn step(
        &mut self,
        gate: &mut Gate,
        input: Input<T>,
        moment: &Moment,
        policy: &TurnPolicy<'_>,
    ) -> (Action<T>, Option<News>) {
        let state = std::mem::replace(&mut self.state, State::Ended);
        let mut step = Step { gate, moment, policy, news: None };
        let action = match input {
            Input::Stopped | Input::Cut => self.stop(state, &mut step),
            Input::Forgotten => Self::forget(&state, &mut step),
            input => self.go_on(state, input, &mut step),
        };
        (action, step.news)
    }

    fn go_on(&mut self, state: State, input: Input<T>, step: &mut Step<'_>) -> Action<T> {
        match (state, input) {
            (State::Reading { pauses }, Input::Read(read)) => self.read(read, pauses, step),
            (State::Reading { pauses }, Input::Done) => {
                self.state = State::Reading { pauses };
                Action::Read
            }
            (State::Asking(planned), Input::Permitted(pass)) => self.permitted(pass, planned, step),
            (State::Asking(_), Input::HeldForLong) => self.hand_back(step),
            (State::Securing(pass, planned), Input::Secured { read, joined }) => {
                self.secured((pass, planned), read, joined, step)
            }
            (State::Announcing(pass, update), Input::Announced(committed)) => {
                self.announced(pass, update, &committed, step)
            }
            (State::Calling(call), Input::Answered(made, judgement)) => {
                self.answered(call, made, judgement, step)
            }
            (State::Pausing(call), Input::Paused(has_paused)) => {
                self.paused(call, has_paused, step)
            }
            (State::Waiting(fault, failed), Input::Done) => self.learned(fault, failed, step),
            (State::Sleeping | State::PuttingBack, Input::Done) => self.plan(step),
            (state, input) => unreachable!(
                "{:?} is no answer to what a turn does while {state:?}",
                std::mem::discriminant(&input)
            ),
        }
    }

    /// The worker stops, or what is under way is cut.
    fn stop(&mut self, state: State, step: &mut Step<'_>) -> Action<T> {
        match state {
            State::Reading { .. } => Action::End(Ending::GiveUp),
            State::Calling(call) | State::Pausing(call) => {
                step.give_back(call.pass);
                let group = self.group_mut();
                group.mark_under_way(step.moment.wall);
                group.change_histories(|history| history.ambiguous = true);
                self.hand_back(step)
            }
            State::Waiting(fault, failed) => {
                step.gate.take_fault(fault);
                self.note_ambiguous(failed.judgement.outcome);
                self.hand_back(step)
            }
            State::Securing(pass, _) | State::Announcing(pass, _) => {
                step.give_back(pass);
                self.hand_back(step)
            }
            State::Asking(_) | State::Sleeping | State::PuttingBack | State::Ended => {
                self.hand_back(step)
            }
        }
    }

    /// The message comes again, with another turn.
    fn forget(state: &State, step: &mut Step<'_>) -> Action<T> {
        if let State::Waiting(fault, _) = state {
            step.gate.take_fault(*fault);
        }
        Action::End(Ending::GiveUp)
    }

    fn end_each(&self, verdict: impl Fn(&History) -> Verdict) -> Action<T> {
        let group = self.group.as_ref().expect("the customer has been read");
        Action::End(Ending::Verdicts(group.each(verdict)))
    }

    fn hand_back(&self, step: &Step<'_>) -> Action<T> {
        let tiers = &step.policy.retry.tiers;
        self.end_each(|history| Verdict::hand_back(tiers, history.clone()))
    }
}

impl Step<'_> {
    /// The pass was not used.
    fn give_back(&mut self, pass: Pass) {
        self.gate.give_back(pass, self.moment.now);
    }
}
