//! `make chaos`: storms of faults, one seed after another, each on a broker of its own. Prints a
//! row for each seed, and for a seed that fails the command that runs it again. For a closer look,
//! `CHAOS_FAULTS=kill,cut,…` leaves out all other kinds of faults.
#![allow(clippy::print_stdout, reason = "the table is for people")]
#![allow(unreachable_pub, reason = "a test binary is reached by nobody")]
#![allow(clippy::disallowed_methods, reason = "tests measure, and are told by the environment")]
#![allow(missing_docs, reason = "a test binary has no reader but its source's")]

mod storm;
#[path = "../support/mod.rs"]
mod support;
mod table;

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use tokio_util::task::TaskTracker;

use storm::Report;
use storm::plan::Scale;
use support::bed::Bed;
use support::broker::{self, Source};
use table::Totals;

const SEEDS: u64 = 20;

fn main() -> ExitCode {
    let runtime = tokio::runtime::Runtime::new();
    match runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(storms())) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn storms() -> Result<bool> {
    let seeds = seeds()?;
    let is_alone = seeds.start() == seeds.end();
    let sources = broker::available().await?;
    let is_given = sources.iter().any(|source| matches!(source, Source::Given(_)));
    ensure!(!is_given, "a storm kills its broker: unset TEST_AMQP_URL");
    println!("{}", table::head());
    let mut totals = Totals::default();
    for seed in seeds {
        // By the seed, so that a seed that is run alone meets the same release.
        let turn = usize::try_from(seed % sources.len() as u64)?;
        match storm(seed, &sources[turn]).await {
            Ok(report) => {
                println!("{}", table::row(&report));
                if let Err(findings) = report.verdict() {
                    let log = keep_output(&report)?;
                    println!("{findings}\n  the relays' log: {}", log.display());
                } else if is_alone {
                    println!("{}", report.story());
                }
                totals.add(&report);
            }
            Err(error) => {
                println!("seed {seed} broke off: {error:#}");
                totals.failed.push(seed);
            }
        }
    }
    println!("{totals}");
    Ok(totals.failed.is_empty())
}

async fn storm(seed: u64, source: &Source) -> Result<Report> {
    let plan = storm::plan(seed, Scale::FULL)?;
    let broker = source.start().await?;
    let (args, cleanups) = (plan.simulator_args(), TaskTracker::new());
    let bed = Bed::new(&broker.url(), "chaos", &args, cleanups.clone()).await?;
    let report = storm::run(plan, bed, broker).await;
    cleanups.close();
    cleanups.wait().await;
    report
}

fn seeds() -> Result<RangeInclusive<u64>> {
    if let Some(seed) = number("SEED")? {
        return Ok(seed..=seed);
    }
    Ok(1..=number("SEEDS")?.unwrap_or(SEEDS))
}

fn number(name: &str) -> Result<Option<u64>> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty());
    text.map(|text| text.parse().with_context(|| format!("{name} is no number"))).transpose()
}

fn keep_output(report: &Report) -> Result<PathBuf> {
    let name = format!("chaos-{}.log", report.plan.seed);
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, &report.output)?;
    Ok(path)
}
