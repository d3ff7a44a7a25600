//! The end of a customer's deliveries: a machine. What the broker must have is published and confirmed,
//! then what the ledger must have is committed, then everything is acked; a crash between any two
//! leaves what a redelivery repairs. The worker and the simulation carry it out.
//!
//! | the commit | an event that was applied | the others |
//! |---|---|---|
//! | is durable | is acked | are acked |
//! | comes after the lease was lost | goes to the shortest tier: its customer may have newer values | are acked |
//! | is refused | is a dead letter, `unrecordable` | are acked; the index may miss them |

use super::dead_letter::DeadLetter;
use super::group::Doubt;
use super::history::History;
use super::retry::Tier;
use super::verdict::Verdict;
use super::version::EventRef;

/// How one delivery ends.
#[derive(Debug)]
pub struct End<T> {
    /// What carries the event.
    pub carrier: T,
    /// What is done with it.
    pub verdict: Verdict,
    /// Which event it is, in the ledger's words; `None` if the message is none.
    pub event: Option<EventRef>,
    /// What the event went through; `None` if it was never sent.
    pub past: Option<History>,
    /// It was applied, and goes to this tier to be applied again: an older call may undo it.
    pub resend: Option<(Tier, History)>,
    /// What is to be noted of its doubt.
    pub doubt: Option<Doubt>,
}

/// What the broker must have of an end.
#[derive(Debug, PartialEq, Eq)]
pub enum Publication<'a> {
    /// Nothing.
    None,
    /// The message, in a retry tier.
    Retry(Tier, &'a History),
    /// The same, even if the delivery is forgotten: the row will say that the event was applied, so
    /// what is delivered again is taken for a duplicate and asks for nothing.
    Resend(Tier, &'a History),
    /// A dead letter.
    DeadLetter(&'a DeadLetter),
}

impl<T> End<T> {
    /// Of an event that was not sent.
    pub fn unsent(carrier: T, verdict: Verdict, event: Option<EventRef>) -> End<T> {
        End { carrier, verdict, event, past: None, resend: None, doubt: None }
    }

    /// The same, carried by something else.
    pub fn map<U>(self, carry: impl FnOnce(T) -> U) -> End<U> {
        let End { carrier, verdict, event, past, resend, doubt } = self;
        End { carrier: carry(carrier), verdict, event, past, resend, doubt }
    }

    /// What is to be published.
    pub fn publication(&self) -> Publication<'_> {
        match (&self.verdict, &self.resend) {
            (Verdict::Applied, Some((tier, history))) => Publication::Resend(*tier, history),
            (Verdict::Applied | Verdict::Superseded | Verdict::Ignored { .. }, _) => {
                Publication::None
            }
            (Verdict::Retry { tier, history } | Verdict::Wait { tier, history }, _) => {
                Publication::Retry(*tier, history)
            }
            (Verdict::DeadLetter(dead), _) => Publication::DeadLetter(dead),
        }
    }

    /// The past of an event that was applied, if the broker has no copy of it.
    fn applied_once(&self) -> Option<History> {
        let is_once = self.verdict == Verdict::Applied && self.resend.is_none();
        let past = self.past.as_ref().filter(|_| is_once)?;
        Some(History { ambiguous: true, ..past.clone() })
    }
}

/// What came of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Committed {
    /// It is durable.
    Done,
    /// The lease had run out and another relay has the customer: nothing was recorded.
    LeaseLost,
    /// The ledger takes others' changes, but not this one: nothing of it was recorded.
    Refused,
}

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Publish what this end asks for, if anything, and note it.
    Publish(usize),
    /// Commit.
    Record(Record),
    /// Ack all ends that are left.
    Ack,
}

/// What is to be committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// The row, the end of the lease, and every note.
    Ends,
    /// After the lease was lost: the notes alone, and none that says that an event has ended.
    Copies,
    /// After a refusal: the end of the lease, and the notes since.
    Letters,
    /// After another one: these notes alone.
    Index,
}

/// What came of the last action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The broker has what was to be published.
    Published,
    /// The delivery was forgotten before: its message comes again.
    Forgotten,
    /// Of [`Action::Record`].
    Recorded(Committed),
}

/// The ends on their way.
#[derive(Debug)]
pub struct Settlement<T> {
    ends: Vec<End<T>>,
    /// What is published now.
    at: usize,
    records: Record,
    shortest: Tier,
}

impl<T> Settlement<T> {
    /// Begins with the first one. `shortest`: where an event goes whose lease was lost.
    pub fn begin(ends: Vec<End<T>>, shortest: Tier) -> (Settlement<T>, Action) {
        let mut settlement = Settlement { ends, at: 0, records: Record::Ends, shortest };
        let action = settlement.publish();
        (settlement, action)
    }

    /// One of those that are left.
    pub fn end(&self, index: usize) -> &End<T> {
        &self.ends[index]
    }

    /// Those that are left.
    pub fn into_ends(self) -> Vec<End<T>> {
        self.ends
    }

    /// Takes in what came of the last action.
    pub fn step(&mut self, input: Input) -> Action {
        match (input, self.records) {
            (Input::Published, _) => {
                self.at += 1;
                self.publish()
            }
            (Input::Forgotten, _) => {
                self.ends.remove(self.at);
                self.publish()
            }
            (Input::Recorded(Committed::LeaseLost), Record::Ends) => self.revise(Record::Copies),
            (Input::Recorded(Committed::Refused), Record::Ends) => self.revise(Record::Letters),
            (Input::Recorded(Committed::Refused), Record::Letters) => {
                self.records = Record::Index;
                Action::Record(self.records)
            }
            (Input::Recorded(_), _) => Action::Ack,
        }
    }

    /// What was applied cannot be recorded so: it ends in another way.
    fn revise(&mut self, records: Record) -> Action {
        (self.at, self.records) = (0, records);
        self.publish()
    }

    /// The next one that asks for it; then the commit.
    fn publish(&mut self) -> Action {
        while let Some(end) = self.ends.get_mut(self.at) {
            let revised = match self.records {
                Record::Ends | Record::Index => return Action::Publish(self.at),
                Record::Copies => {
                    end.applied_once().map(|history| Verdict::Wait { tier: self.shortest, history })
                }
                Record::Letters => {
                    end.applied_once().map(|history| Verdict::unrecordable(&history))
                }
            };
            if let Some(verdict) = revised {
                end.verdict = verdict;
                return Action::Publish(self.at);
            }
            self.at += 1;
        }
        Action::Record(self.records)
    }
}
