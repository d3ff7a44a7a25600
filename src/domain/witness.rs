//! Witnesses: calls that went well, held against one that failed.
//!
//! "fail" hides a wrong secret and a bad field alike. A call that began when the failed one had
//! ended, with the same credentials, and went well, proves that by then it was not our fault or the
//! portal's. That it was not while the failed call was made either, is shown by successes close
//! before and after it, or by calling again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

/// A call, as far as others are concerned.
#[derive(Clone, Debug)]
pub struct Call {
    /// Whose update it was.
    pub customer: Arc<str>,
    /// When it began.
    pub started: Instant,
    /// Which credentials signed it: their number in the order of their coming into force.
    pub credentials: u64,
}

/// Successes within this before and after a fault show that nothing but the event was wrong: trouble
/// of everybody's that comes and goes between them is taken for no trouble.
const CLOSE: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Success {
    call: Call,
    ended: Instant,
    /// The same moment.
    ended_at: Timestamp,
}

/// A fault of which nobody can tell yet whose it is.
#[derive(Clone, Debug)]
pub struct Doubt {
    call: Call,
    ended: Instant,
    claim: Claim,
}

/// What there is to be shown.
#[derive(Clone, Copy, Debug)]
enum Claim {
    /// That this one call failed by the event's own fault.
    Call {
        /// A call had gone well just before.
        was_well: bool,
        /// Others failed as well, and the event's call was not made again: trouble of everybody's
        /// may have come and gone.
        is_first_of_many: bool,
    },
    /// That somebody's calls go well, while this event has used up its attempts.
    Attempts,
}

impl Doubt {
    /// About an event whose last attempt this call was.
    pub fn of_attempts(call: Call, ended: Instant) -> Doubt {
        Doubt { call, ended, claim: Claim::Attempts }
    }
}

/// What successes say about a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Testimony {
    /// It is the event's own.
    Own,
    /// All is well now; whether it was then, only the same call tells.
    WellNow,
}

/// The latest calls that went well, of two different customers.
#[derive(Debug, Default)]
pub struct Witnesses {
    latest: Option<Success>,
    other: Option<Success>,
}

impl Witnesses {
    pub(super) fn record(&mut self, call: Call, ended: Instant, ended_at: Timestamp) {
        let success = Success { call, ended, ended_at };
        if let Some(latest) = &mut self.latest
            && latest.call.customer == success.call.customer
        {
            *latest = success;
            return;
        }
        self.other = self.latest.replace(success);
    }

    /// Whether a call that began after this one, with the same credentials, went well meanwhile.
    pub(super) fn overtook(&self, call: &Call) -> bool {
        self.all().any(|success| {
            success.call.started > call.started && success.call.credentials == call.credentials
        })
    }

    /// A call of which it is not clear whose fault it was. `is_first_of_many`: others failed as
    /// well, and this event's call has not been made again since.
    pub(super) fn doubt(&self, call: Call, ended: Instant, is_first_of_many: bool) -> Doubt {
        let was_well = self.all().any(|success| success.ended + CLOSE >= ended);
        Doubt { call, ended, claim: Claim::Call { was_well, is_first_of_many } }
    }

    /// What calls since then say; `None` if there was none.
    pub(super) fn testify(&self, doubt: &Doubt) -> Option<Testimony> {
        let witness = self.all().find(|success| {
            success.call.started >= doubt.ended
                && success.call.credentials == doubt.call.credentials
        })?;
        let is_close = witness.call.started <= doubt.ended + CLOSE;
        let is_own = match doubt.claim {
            Claim::Call { was_well, is_first_of_many } => was_well && is_close && !is_first_of_many,
            Claim::Attempts => true,
        };
        Some(if is_own { Testimony::Own } else { Testimony::WellNow })
    }

    /// Whether another customer's call went well at `since` or later.
    pub fn another_at(&self, customer: &Arc<str>, since: Timestamp) -> bool {
        self.all().any(|success| success.call.customer != *customer && success.ended_at >= since)
    }

    fn all(&self) -> impl Iterator<Item = &Success> {
        [&self.latest, &self.other].into_iter().flatten()
    }
}
