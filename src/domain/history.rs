//! What a message already went through; it travels with the message in our own headers.

use std::time::Duration;

use jiff::Timestamp;
use uuid::Uuid;

use super::response::Outcome;
use super::row::Passage;

/// A message's past with the relay.
#[expect(clippy::struct_excessive_bools, reason = "one header each")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    /// Deliveries so far that reached the portal and ended in a counted fault.
    pub attempts: u32,
    /// When the relay first received the message.
    pub first_seen: Timestamp,
    /// No call before this time.
    pub not_before: Option<Timestamp>,
    /// Why the message last went to a retry tier.
    pub last_reason: Option<String>,
    /// How many attempts in a row ended for `last_reason`.
    pub same_reason: u32,
    /// Whether an earlier call may have been applied without our knowing.
    pub ambiguous: bool,
    /// When the first counted attempt ended.
    pub first_attempt: Option<Timestamp>,
    /// Whether it would be given up, had any other customer's call gone well meanwhile.
    pub unwitnessed: bool,
    /// When its event was first received, as far as its order hangs on that.
    pub receipt: Option<Timestamp>,
    /// It was applied, and is sent again because an older call may have undone it.
    pub is_resend: bool,
    /// An operator's word that all its values are to be sent, newer ones or not.
    pub is_forced: bool,
    /// How often an operator has edited it.
    pub revision: u32,
    /// Which replay put it back. What follows from an end that was reached is no part of it.
    pub replay_id: Option<Uuid>,
}

impl History {
    /// The past of a message that comes for the first time.
    pub fn new(now: Timestamp) -> Self {
        History {
            attempts: 0,
            first_seen: now,
            not_before: None,
            last_reason: None,
            same_reason: 0,
            ambiguous: false,
            first_attempt: None,
            unwitnessed: false,
            receipt: None,
            is_resend: false,
            is_forced: false,
            revision: 0,
            replay_id: None,
        }
    }

    /// How the event passes the ledger's fence.
    pub fn passage(&self) -> Passage {
        if self.is_forced {
            Passage::Forced
        } else if self.is_resend {
            Passage::Resent
        } else {
            Passage::Newer
        }
    }

    /// The past of an event that was applied, and is to be applied again no sooner than then.
    #[must_use]
    pub fn resend(&self, not_before: Timestamp) -> History {
        let last_reason = Some("resend".to_owned());
        History {
            not_before: Some(not_before),
            last_reason,
            is_resend: true,
            is_forced: self.is_forced,
            receipt: self.receipt,
            revision: self.revision,
            ..History::new(self.first_seen)
        }
    }

    /// How long until the message is due; `None` once it is.
    pub fn until_due(&self, now: Timestamp) -> Option<Duration> {
        let wait = self.not_before?.duration_since(now);
        Duration::try_from(wait).ok().filter(|wait| !wait.is_zero())
    }

    /// The number of attempts in a row that ended like this one, this one included.
    pub fn run_of(&self, outcome: Outcome) -> u32 {
        match self.last_reason.as_deref() {
            Some(reason) if reason == outcome.name() => self.same_reason + 1,
            Some(_) | None => 1,
        }
    }

    /// The past after one more counted attempt.
    pub(super) fn counted(&self, outcome: Outcome, now: Timestamp) -> History {
        let same_reason = self.run_of(outcome);
        let first_attempt = Some(self.first_attempt.unwrap_or(now));
        let attempts = self.attempts + 1;
        History { attempts, same_reason, first_attempt, ..self.uncounted(outcome) }
    }

    /// The past after a wait that is no attempt.
    pub(super) fn uncounted(&self, outcome: Outcome) -> History {
        let ambiguous = self.ambiguous || outcome.is_ambiguous();
        let last_reason = Some(outcome.name().to_owned());
        let (not_before, same_reason, unwitnessed) = (None, 0, false);
        History { not_before, last_reason, same_reason, ambiguous, unwitnessed, ..self.clone() }
    }
}
