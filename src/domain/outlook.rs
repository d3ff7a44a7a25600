//! What would become of a dead letter if it were put back now.

use jiff::Timestamp;

use super::admission::Admission;
use super::dead_letter::DeadLetter;
use super::field::FieldSet;
use super::history::History;
use super::merge::Candidate;
use super::row::{Receipt, Row, Seen};
use super::verdict::Verdict;
use super::version::OrderBy;

/// The verdict now, before any call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outlook {
    /// All its fields would be sent.
    Sent,
    /// Some of its fields would be sent: the portal has newer values for these.
    Partly {
        /// What would be held back.
        withheld: FieldSet,
    },
    /// The portal has newer values for all of them: no call.
    Superseded,
    /// It would be a dead letter again.
    Refused(Box<DeadLetter>),
    /// It would wait: its time has not come, or its customer's row in the ledger cannot be read.
    Waits,
    /// It would be dropped by `broker.other_types`.
    Ignored,
}

impl Outlook {
    /// A stable name, for people and scripts.
    pub fn name(&self) -> &'static str {
        match self {
            Outlook::Sent => "would-be-sent",
            Outlook::Partly { .. } => "partly-superseded",
            Outlook::Superseded => "superseded",
            Outlook::Refused(_) => "still-invalid",
            Outlook::Waits => "waits",
            Outlook::Ignored => "ignored",
        }
    }

    /// Whether a replay would fail again, for all that can be told without a call.
    pub fn is_hopeless(&self) -> bool {
        matches!(self, Outlook::Refused(_))
    }

    /// Of an event that leads to a call, held against what the portal has.
    pub fn of(
        admission: &Admission,
        history: &History,
        row: &Row,
        by: OrderBy,
        now: Timestamp,
    ) -> Outlook {
        let receipt = Receipt { told: history.receipt, is_redelivery: false };
        let seen = Seen { first: history.first_seen, now };
        let version = row.version(&admission.place, receipt, seen, by);
        let fields = admission.update.fields();
        let (update, passage) = (&admission.update, history.passage());
        let passing = Candidate { version: &version, update, passage }.passing(row, by);
        if passing == fields {
            Outlook::Sent
        } else if passing.is_empty() {
            Outlook::Superseded
        } else {
            Outlook::Partly { withheld: fields.without(passing) }
        }
    }
}

impl From<Verdict> for Outlook {
    /// Of an event that leads to none.
    fn from(verdict: Verdict) -> Outlook {
        match verdict {
            Verdict::Applied => Outlook::Sent,
            Verdict::Superseded => Outlook::Superseded,
            Verdict::Ignored { .. } => Outlook::Ignored,
            Verdict::Retry { .. } | Verdict::Wait { .. } => Outlook::Waits,
            Verdict::DeadLetter(dead) => Outlook::Refused(dead),
        }
    }
}
