//! What is recorded about a customer at the end of a turn, all of it in one commit.

use jiff::Timestamp;
use uuid::Uuid;

use super::{CustomerKey, Lease};

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
    Dead(DeadNote),
    /// A dead letter is back in the work queue.
    Replayed {
        /// Which one.
        dead_id: Uuid,
    },
}

/// An event that waits in a retry tier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingNote {
    /// Which event.
    pub event: String,
    /// Attempts so far.
    pub attempts: u32,
    /// When it comes back.
    pub due: Timestamp,
    /// Why it waits.
    pub reason: String,
}

/// A dead letter, without anything personal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadNote {
    /// Its id.
    pub dead_id: Uuid,
    /// Which event.
    pub event: Option<String>,
    /// Why.
    pub reason: String,
    /// The field at fault.
    pub field: Option<String>,
    /// The rule it breaks.
    pub rule: Option<String>,
    /// HTTP status of the last answer.
    pub http_status: Option<u16>,
    /// Status in the body of the last answer.
    pub portal_status: Option<i64>,
    /// Attempts made.
    pub attempts: u32,
    /// When it became one.
    pub died: Timestamp,
}

/// What came of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Committed {
    /// It is durable.
    Done,
    /// The lease had run out and another relay has the customer: nothing was recorded.
    LeaseLost,
}
