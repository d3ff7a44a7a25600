//! How the relay is at this moment: read by its metrics and by `/readyz`.

use std::fmt;
use std::sync::{OnceLock, PoisonError, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::domain::breaker::Kind;
use crate::domain::clock_offset;

/// Messages ready in the relay's queues.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depths {
    /// In the work queue.
    pub work: u64,
    /// In all retry tiers.
    pub retry: u64,
    /// In the dead-letter queue.
    pub dead: u64,
    /// In the archive.
    pub archive: u64,
}

/// Customers whose newest values the portal may not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutOfStep {
    /// How many.
    pub customers: u64,
    /// Since when the first of them is.
    pub since: Option<Timestamp>,
}

/// What is the case now.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// Another relay is active; this one waits.
    pub is_standby: bool,
    /// There is a session with the broker.
    pub is_connected: bool,
    /// The broker's queues are what the relay needs, and its ledger is the one they are fenced by.
    pub fits_broker: bool,
    /// It takes deliveries, or would if it were not paused.
    pub is_active: bool,
    /// It takes no more deliveries, and ends.
    pub is_draining: bool,
    /// An operator, or the fuse, has paused it.
    pub is_paused: bool,
    /// Whether the ledger can be read and written.
    pub is_ledger_healthy: bool,
    /// Customers whose rows in the ledger cannot be read: their events wait.
    pub unreadable_rows: usize,
    /// One of our rules refuses most customers.
    pub is_fuse_blown: bool,
    /// closed, open or half-open.
    pub breaker: &'static str,
    /// What the outage is about, while there is one.
    pub outage: Option<Kind>,
    /// Deliveries without an end yet.
    pub in_hand: u64,
    /// How many there may be.
    pub in_hand_at_most: u64,
    /// Calls under way.
    pub calls: usize,
    /// As last seen.
    pub depths: Option<Depths>,
    /// As last seen.
    pub out_of_step: Option<OutOfStep>,
    /// How far our clock is from each of [`clock_offset::Source::ALL`], in seconds: ours minus theirs.
    pub clock_offsets: [Option<f64>; clock_offset::Source::ALL.len()],
}

impl Reading {
    /// A relay that waits for another one to leave the ledger.
    pub const STANDBY: Reading = Reading {
        is_standby: true,
        is_connected: false,
        fits_broker: true,
        is_active: false,
        is_draining: false,
        is_paused: false,
        is_ledger_healthy: true,
        unreadable_rows: 0,
        is_fuse_blown: false,
        breaker: "closed",
        outage: None,
        in_hand: 0,
        in_hand_at_most: 0,
        calls: 0,
        depths: None,
        out_of_step: None,
        clock_offsets: [None; clock_offset::Source::ALL.len()],
    };

    /// Whether it can do its work: it takes deliveries, or stands by to. An outage of the portal and
    /// a pause do not change that: restarting the relay, or sending it no work, would mend neither.
    pub fn is_ready(&self) -> bool {
        let has_session = self.is_standby || (self.is_connected && self.is_active);
        has_session && self.fits_broker && self.is_ledger_healthy && !self.is_draining
    }

    /// All of it, for people.
    pub fn to_json(&self) -> Value {
        let role = match (self.is_standby, self.is_active) {
            (true, _) => "standby",
            (false, true) => "active",
            (false, false) => "none",
        };
        json!({
            "ready": self.is_ready(),
            "role": role,
            "broker": if self.is_connected { "connected" } else { "not connected" },
            "topology": if self.fits_broker { "fits" } else { "does not fit" },
            "ledger": if self.is_ledger_healthy { "works" } else { "fails" },
            "unreadable_rows": self.unreadable_rows,
            "breaker": self.breaker,
            "outage": self.outage.map(Kind::name),
            "paused": self.is_paused,
            "draining": self.is_draining,
            "fuse_blown": self.is_fuse_blown,
        })
    }
}

type Source = Box<dyn Fn() -> Option<Reading> + Send + Sync>;

/// Where readings come from: until there is a worker, the relay is a standby.
#[derive(Default)]
pub struct Health(OnceLock<Source>);

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Health")
    }
}

impl Health {
    /// From now on readings come from here; `None` once the worker is gone.
    pub fn comes_from(&self, source: impl Fn() -> Option<Reading> + Send + Sync + 'static) {
        // There is one worker from start to end.
        self.0.get_or_init(|| Box::new(source));
    }

    /// How the relay is now.
    pub fn reading(&self) -> Reading {
        match self.0.get() {
            Some(source) => {
                let gone = Reading { is_standby: false, is_draining: true, ..Reading::STANDBY };
                source().unwrap_or(gone)
            }
            None => Reading::STANDBY,
        }
    }
}

/// What the worker has seen beside its deliveries, for readings.
#[derive(Debug, Default)]
pub struct Vitals(RwLock<Seen>);

/// See [`Vitals`].
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// See [`Reading::is_standby`].
    pub is_standby: bool,
    /// See [`Reading::is_connected`].
    pub is_connected: bool,
    /// See [`Reading::is_active`].
    pub is_active: bool,
    /// The opposite of [`Reading::fits_broker`].
    pub is_misfit: bool,
    /// See [`Reading::depths`].
    pub depths: Option<Depths>,
    /// See [`Reading::out_of_step`].
    pub out_of_step: Option<OutOfStep>,
}

impl Vitals {
    /// Notes what was seen.
    pub fn note(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut self.0.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// What was seen last.
    pub fn seen(&self) -> Seen {
        *self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// For how long the first customer has been out of step.
pub fn age(out_of_step: OutOfStep, now: Timestamp) -> Duration {
    let since = out_of_step.since.unwrap_or(now);
    // The clock may have been set back.
    Duration::try_from(now.duration_since(since)).unwrap_or(Duration::ZERO)
}
