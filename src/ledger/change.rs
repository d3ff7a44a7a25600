//! What is recorded about a customer at the end of a turn, all of it in one commit.

use jiff::Timestamp;
use uuid::Uuid;

use super::{CustomerKey, Lease};
use crate::domain::letter::Letter;

/// One customer's news.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// Whose; `None` if the message does not say.
    pub customer: Option<CustomerKey>,
    /// The customer's new row, packed.
    pub row: Option<Vec<u8>>,
    /// Under which it was made.
    pub lease: Option<Lease>,
    /// The lease goes on.
    pub keeps_lease: bool,
    /// When.
    pub at: Timestamp,
    /// What operators will ask for.
    pub notes: Vec<Note>,
}

impl Change {
    /// Whether there is anything to write.
    pub fn is_empty(&self) -> bool {
        self.row.is_none() && self.lease.is_none() && self.notes.is_empty()
    }
}

/// What became of one event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// It waits for a retry no more.
    Settled {
        /// Which event.
        event: String,
    },
    /// It waits in a retry tier.
    Pending(PendingNote),
    /// It is a dead letter.
    Dead(Box<Letter>),
    /// A dead letter is in the dead-letter queue no more.
    Gone {
        /// Which one.
        dead_id: Uuid,
    },
    /// What an operator put back has come to an end.
    Replayed(ReplayEnd),
}

/// How a replay of a dead letter ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplayEnd {
    /// Which replay.
    pub replay_id: Uuid,
    /// The verdict.
    pub ended: String,
    /// Why it is a dead letter again, if it is.
    pub reason: Option<String>,
    /// When.
    pub at: Timestamp,
}

/// An event that waits in a retry tier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingNote {
    /// Which event.
    pub event: String,
    /// Attempts so far.
    pub attempts: u32,
    /// When it first went there: kept, however often it goes.
    pub since: Timestamp,
    /// When it comes back.
    pub due: Timestamp,
    /// Why it waits.
    pub reason: String,
}

/// One act of an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Act {
    /// When.
    pub at: Timestamp,
    /// Who, and on which host.
    pub who: String,
    /// The verb.
    pub act: String,
    /// On what, without anything personal.
    pub what: String,
    /// The operator's reason.
    pub why: Option<String>,
    /// How many dead letters.
    pub count: u64,
}

/// What came of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Committed {
    /// It is durable.
    Done,
    /// The lease had run out and another relay has the customer: nothing was recorded.
    LeaseLost,
}
