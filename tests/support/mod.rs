//! The test bed: a broker, a portal simulator and relays as real processes, one private set of
//! names a test.
#![allow(dead_code, reason = "tests, demo and benchmark each use a part of it")]
#![allow(unreachable_pub, reason = "shared by several test binaries")]

pub mod bed;
pub mod broker;
pub mod chaos;
pub mod collector;
pub mod container;
pub mod crm;
pub mod fake_clock;
pub mod fixtures;
pub mod held;
pub mod local_node;
pub mod local_postgres;
pub mod messages;
pub mod postgres;
pub mod process;
pub mod queues;
pub mod raw_publisher;
pub mod relay;
pub mod simulator;
pub mod traffic;
pub mod visitors;

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Looks again and again until `look` sees what it wants; fails with `what` after `limit`.
pub async fn eventually<T, F>(what: &str, limit: Duration, mut look: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<Option<T>>>,
{
    let end = Instant::now() + limit;
    loop {
        // A look itself may hang.
        let Ok(seen) = tokio::time::timeout(limit, look()).await else {
            bail!("{what}: no answer within {limit:?}");
        };
        if let Some(seen) = seen? {
            return Ok(seen);
        }
        if Instant::now() > end {
            bail!("{what}: not within {limit:?}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What a test's dice begin with: `TEST_SEED`, to run a failure again, or any number.
pub fn seed() -> Result<u64> {
    match std::env::var("TEST_SEED") {
        Ok(seed) => seed.parse().context("TEST_SEED is no number"),
        Err(_) => Ok(rand::random_range(0..1_000_000)),
    }
}

/// A setting of the tests; an empty one is none.
pub fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The end of a log, for an error's text.
fn tail(log: &str) -> String {
    const LINES_SHOWN: usize = 40;
    let left_out = log.lines().count().saturating_sub(LINES_SHOWN);
    log.lines().skip(left_out).collect::<Vec<_>>().join("\n")
}
