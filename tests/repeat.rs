//! Runs a test again and again, to find a failure that is rare: `TEST_RUNS=50`. Each run draws a
//! seed of its own, unless `TEST_SEED` says which.

use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Failed;

use crate::support::setting;

/// How many times each test is run.
pub fn runs() -> Result<usize> {
    let runs = setting("TEST_RUNS").map_or(Ok(1), |runs| runs.parse());
    let runs = runs.context("TEST_RUNS is not a number")?;
    ensure!(runs > 0, "TEST_RUNS must be at least 1");
    Ok(runs)
}

/// Goes on after a failure, and fails with all there were.
pub fn repeated(
    name: &str,
    runs: usize,
    once: impl Fn() -> Result<(), Failed>,
) -> Result<(), Failed> {
    let mut failures = Vec::new();
    for run in 1..=runs {
        let ended = catch_unwind(AssertUnwindSafe(&once))
            .unwrap_or_else(|_| Err(Failed::from("it panicked: see above")));
        eprintln!("{name}: run {run} of {runs}: {}", if ended.is_ok() { "right" } else { "WRONG" });
        if let Err(failed) = ended {
            failures.push(format!("run {run}: {}", failed.message().unwrap_or("no message")));
        }
    }
    if failures.is_empty() {
        return Ok(());
    }
    Err(Failed::from(format!("{} of {runs} wrong\n{}", failures.len(), failures.join("\n"))))
}
