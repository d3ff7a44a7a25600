//! The one place that reads the clock and throws dice; decisions take both as arguments.

#![expect(clippy::disallowed_methods, reason = "the one place that may")]

use std::time::Instant;

use jiff::Timestamp;

use crate::domain::clock_offset::Time;

/// Now, in UTC.
pub fn now() -> Timestamp {
    Timestamp::now()
}

/// Now, for measuring how long something takes.
pub fn instant() -> Instant {
    Instant::now()
}

/// Now, on both clocks.
pub fn time() -> Time {
    Time { wall: now(), now: instant() }
}

/// A number in [0, 1), for jitter.
pub fn dice() -> f64 {
    rand::random()
}
