//! What a storm leaves behind for the checker, and how many doubles it explains. Pure.

use super::crm::Published;
use super::events::Fields;

/// One customer at the portal.
#[derive(Clone, Debug, Default)]
pub struct Customer {
    pub id: String,
    /// As they are now.
    pub fields: Fields,
    /// The applied updates, oldest first.
    pub history: Vec<Fields>,
    /// How many were applied, those that the history has dropped included.
    pub applied: usize,
    /// The most calls that were under way for it at once.
    pub most_at_once: usize,
}

/// A message found in a queue.
#[derive(Clone, Debug, Default)]
pub struct Message {
    pub queue: String,
    /// Why it is dead, if it is.
    pub reason: String,
    /// Which event it is, if it is one of ours.
    pub event: Option<usize>,
}

/// Where everything was found.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    pub published: Published,
    pub customers: Vec<Customer>,
    pub letters: Vec<Message>,
    /// Left in any other queue.
    pub queued: Vec<Message>,
    pub allowance: Allowance,
}

/// What explains doubles.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allowance {
    pub prefetch: usize,
    pub in_flight: usize,
    pub kills: usize,
    /// Faults that may lose acks or confirms, kills among them.
    pub losses: usize,
    /// Calls that were applied without the caller's knowing.
    pub ambiguous_calls: usize,
}

impl Allowance {
    /// A lost connection or process costs at most what was unacked: each such delivery comes again
    /// although its call was applied, or the copy that it left in a tier or among the dead letters
    /// was never confirmed. An ambiguous call costs the one call that repeats it.
    pub fn doubles(&self) -> usize {
        self.prefetch * self.losses + self.ambiguous_calls
    }

    /// A process that was killed may leave calls under way, and its successor makes them again.
    pub fn overlapping_customers(&self) -> usize {
        self.in_flight * self.kills
    }
}
