//! The machine that the worker runs, under a seeded scheduler: without a broker, a clock or a thread.
//! Each step does one thing that could happen next; after each the promises must hold, and in the end
//! everything must have come to an end. A script that fails is shortened and printed.
//! `TEST_SEED=n` draws one storm again, `TEST_TRACE=1` prints its steps, with `TEST_QUICK=1` nothing is
//! shortened. `make mutants` shows what these tests catch. In `model` nothing is drawn: all orders are tried.
#![allow(clippy::print_stderr, clippy::print_stdout, reason = "seeds and steps are for people")]
#![allow(unreachable_pub, reason = "a test binary is reached by nobody")]
#![allow(clippy::disallowed_methods, reason = "tests measure, and are told by the environment")]
#![allow(missing_docs, reason = "a test binary has no reader but its source's")]

mod broker;
mod ledger;
mod mixtures;
mod model;
mod orders;
mod outages;
mod portal;
mod relay;
mod rules;
mod script;
mod storms;
mod world;

use std::io::Write as _;

use anyhow::Result;

/// The end of a test. With `TEST_QUICK` the first one that fails ends them all.
#[expect(clippy::exit, reason = "the harness cannot leave the other tests out")]
fn end(result: Result<()>) -> Result<()> {
    if let Err(error) = &result
        && is_quick()
    {
        // Not by a macro: the harness would keep that for the end.
        writeln!(std::io::stderr(), "Error: {error:#}")?;
        std::process::exit(1);
    }
    result
}

/// Whether it is enough to learn that something fails.
fn is_quick() -> bool {
    std::env::var_os("TEST_QUICK").is_some()
}
