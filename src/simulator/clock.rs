//! The simulator's clocks; no other file reads one.
#![expect(clippy::disallowed_methods, reason = "the one place that may")]

use tokio::time::Instant;

/// Milliseconds since the Unix epoch.
pub(crate) fn unix_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

/// A point in time to measure from.
pub(crate) fn now() -> Instant {
    Instant::now()
}
