//! What a message already went through; it travels with the message in our own headers.

use std::time::Duration;

use jiff::Timestamp;
use uuid::Uuid;

use super::outcome::Outcome;
use super::retry::after;
use super::row::Passage;

/// A time before which no call is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotBefore {
    /// By the clock of the relay that said so.
    pub at: Timestamp,
    /// How long the wait was then; messages of older relays do not say it.
    pub wait: Option<Duration>,
}

impl NotBefore {
    /// For so long from now.
    pub fn after(now: Timestamp, wait: Duration) -> NotBefore {
        NotBefore { at: after(now, wait), wait: Some(wait) }
    }

    /// What is left of the wait; never more than there was of it, or than `longest` if that is not known:
    /// then a clock was set meanwhile.
    fn left(self, now: Timestamp, longest: Duration) -> Option<Duration> {
        let left =
            Duration::try_from(self.at.duration_since(now)).ok().filter(|it| !it.is_zero())?;
        match self.wait {
            Some(wait) => Some(left.min(wait)).filter(|left| !left.is_zero()),
            None => Some(left).filter(|left| *left <= longest),
        }
    }
}

/// A message's past with the relay.
#[expect(clippy::struct_excessive_bools, reason = "one header each")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    /// Deliveries so far that reached the portal and ended in a counted fault.
    pub attempts: u32,
    /// When the relay first received the message.
    pub first_seen: Timestamp,
    /// The message does not say that yet.
    pub is_new: bool,
    /// How long it waits in a retry tier, if that is less than the tier's delay. No header: the broker ends
    /// the wait.
    pub waits: Option<Duration>,
    /// No call before this time.
    pub not_before: Option<NotBefore>,
    /// Why the message last went to a retry tier.
    pub last_reason: Option<String>,
    /// How many attempts in a row ended for `last_reason`.
    pub same_reason: u32,
    /// Whether an earlier call may have been applied without our knowing.
    pub ambiguous: bool,
    /// When a call failed that was not counted, because no proof told whose fault it was; the first
    /// one since the last attempt.
    pub unproven_since: Option<Timestamp>,
    /// How often it came back from whoever had it in hand, since they last told what came of it: a call
    /// of theirs may be under way. Who hands it back knows of no more than one.
    pub returns: u32,
    /// Whether it would be given up, had any other customer's call gone well meanwhile.
    pub unwitnessed: bool,
    /// When its event was first received, as far as its order hangs on that.
    pub receipt: Option<Timestamp>,
    /// It was applied, and is sent again because an older call may have undone it.
    pub is_resend: bool,
    /// When an operator's word came that all its values are to be sent, over newer ones too. What comes
    /// after that word is not meant by it.
    pub forced_at: Option<Timestamp>,
    /// How often an operator has edited it.
    pub revision: u32,
    /// An operator has judged it and put it back, though it may be older than what the ledger does not
    /// know.
    pub doubt_accepted: bool,
    /// Which replay put it back. What follows from an end that was reached is no part of it.
    pub replay_id: Option<Uuid>,
}

impl History {
    /// The past of a message that comes for the first time.
    pub fn new(now: Timestamp) -> Self {
        History {
            attempts: 0,
            first_seen: now,
            is_new: true,
            waits: None,
            not_before: None,
            last_reason: None,
            same_reason: 0,
            ambiguous: false,
            unproven_since: None,
            returns: 0,
            unwitnessed: false,
            receipt: None,
            is_resend: false,
            forced_at: None,
            revision: 0,
            doubt_accepted: false,
            replay_id: None,
        }
    }

    /// How the event passes the ledger's fence.
    pub fn passage(&self) -> Passage {
        if let Some(since) = self.forced_at {
            Passage::Forced(since)
        } else if self.is_resend {
            Passage::Resent
        } else {
            Passage::Newer
        }
    }

    /// The past of an event that was applied, and is to be applied again no sooner than then.
    #[must_use]
    pub fn resend(&self, not_before: NotBefore) -> History {
        let last_reason = Some("resend".to_owned());
        History {
            not_before: Some(not_before),
            last_reason,
            is_resend: true,
            forced_at: self.forced_at,
            doubt_accepted: self.doubt_accepted,
            receipt: self.receipt,
            revision: self.revision,
            ..History::new(self.first_seen)
        }
    }

    /// How long until the message is due; `None` once it is. `longest`: no wait is longer.
    pub fn until_due(&self, now: Timestamp, longest: Duration) -> Option<Duration> {
        self.not_before?.left(now, longest)
    }

    /// The number of attempts in a row that ended like this one, this one included.
    pub fn run_of(&self, outcome: Outcome) -> u32 {
        match self.last_reason.as_deref() {
            Some(reason) if reason == outcome.name() => self.same_reason.saturating_add(1),
            Some(_) | None => 1,
        }
    }

    /// The past after one more counted attempt.
    pub(super) fn counted(&self, outcome: Outcome) -> History {
        let same_reason = self.run_of(outcome);
        let attempts = self.attempts.saturating_add(1);
        History { attempts, same_reason, unproven_since: None, ..self.uncounted(outcome) }
    }

    /// The past after a call that failed and is not counted.
    pub(super) fn note_unproven(&mut self, outcome: Outcome, now: Timestamp) {
        self.ambiguous |= outcome.is_ambiguous();
        // It is not ahead of us, unless a clock was set meanwhile.
        self.unproven_since = Some(self.unproven_since.map_or(now, |since| since.min(now)));
    }

    /// The past after a wait that is no attempt.
    pub(super) fn uncounted(&self, outcome: Outcome) -> History {
        let ambiguous = self.ambiguous || outcome.is_ambiguous();
        let last_reason = Some(outcome.name().to_owned());
        let (not_before, same_reason, returns, unwitnessed) = (None, 0, 0, false);
        let past = self.clone();
        History { not_before, last_reason, same_reason, ambiguous, returns, unwitnessed, ..past }
    }
}
