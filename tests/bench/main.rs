//! `make bench`: what the relay costs beside a bare loop that does the same and keeps no promise.
//!
//! All candidates run as processes of their own on one broker, interleaved, with equal settings, so
//! that the kernel's figures of each can be compared. Ratios within one run count; the figures
//! themselves are the machine's. With `AGAINST=PROGRAM` it is measured against another build of itself
//! instead.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark prints what it measured"
)]
#![allow(
    clippy::disallowed_methods,
    reason = "a benchmark reads the clock, and decides nothing by it"
)]

#[path = "../support/mod.rs"]
mod support;

mod bare;
mod bed;
mod budget;
mod candidate;
mod clients;
mod drain;
mod figures;
mod latency;
mod portal;
mod report;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use serde_json::json;

use bed::{Bed, Load};
use candidate::Candidate;
use drain::Series;

/// Measures the relay beside bare loops: throughput, CPU, memory, latency.
#[derive(Parser)]
#[command(name = "make bench")]
struct Options {
    /// One run of 3,000 events, for CI
    #[arg(long)]
    quick: bool,
    /// Runs of each measurement [default: 5, or 1 with --quick]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    runs: Option<u32>,
    /// Events drained in each run [default: 20000, or 3000 with --quick]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(100..))]
    events: Option<u32>,
    /// Write the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Given by `cargo bench`, and not by `cargo test --benches`
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    child: Option<Child>,
}

/// What this program is started as by itself.
#[derive(Subcommand)]
enum Child {
    /// A bare loop
    #[command(hide = true)]
    Bare(bare::Options),
}

/// A budget is broken by the median of at least so many runs.
const SURE_RUNS: u32 = 5;

/// How much is measured.
struct Scale {
    runs: u32,
    events: u32,
    /// Events of one run with a slow portal: 20 rounds, or 10.
    slow_events: u32,
    /// Events of one run of the latency measurement.
    lone_events: u32,
}

impl Scale {
    fn of(options: &Options) -> Scale {
        let (runs, events, slow_events, lone_events) =
            if options.quick { (1, 3_000, 640, 200) } else { (5, 20_000, 1_280, 300) };
        Scale {
            runs: options.runs.unwrap_or(runs),
            events: options.events.unwrap_or(events),
            slow_events,
            lone_events,
        }
    }
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let options = Options::parse();
    if let Some(Child::Bare(bare)) = options.child {
        bare::run(bare).await?;
        return Ok(ExitCode::SUCCESS);
    }
    if !options.bench {
        println!("measures nothing here: run `make bench`");
        return Ok(ExitCode::SUCCESS);
    }
    measure(&Scale::of(&options), options.json.as_deref()).await
}

async fn measure(scale: &Scale, file: Option<&Path>) -> Result<ExitCode> {
    let bed = Bed::start().await?;
    println!("{}\n", bed.description());
    if candidate::other_build().is_some() {
        let candidates = [Candidate::Relay, Candidate::OtherRelay];
        let mut both = none_yet(&Load::fast(scale.events), &candidates);
        drain_each(&bed, &mut both, scale.runs).await?;
        report::against(&both);
        return bed.stop().await.map(|()| ExitCode::SUCCESS);
    }
    let fast = fast_drains(&bed, scale).await?;
    report::fast(&fast);
    let mut slow = none_yet(&Load::slow(scale.slow_events), &Candidate::LOOPS);
    drain_each(&bed, &mut slow, scale.runs).await?;
    report::slow(&slow);
    let lone = latency::measure(&bed, scale.runs, scale.lone_events).await?;
    report::latency(&lone);
    let starts = latency::starts(&bed, scale.runs).await?;
    report::starts(&starts);
    let mut wide = none_yet(&Load::wide(scale.events), &[Candidate::Relay]);
    drain_each(&bed, &mut wide, 1).await?;
    report::memory(&wide);
    let budgets = budget::all(&fast, &slow, &lone, &starts, &wide);
    report::budgets(&budgets);
    if let Some(file) = file {
        let figures = json!({
            "machine": bed.description(),
            "fast": report::series_json(&fast),
            "slow": report::series_json(&slow),
            "latency_us": report::durations_json(&lone),
            "start_to_first_call_us": report::durations_json(&starts),
            "prefetch_500": report::series_json(&wide),
            "budgets": budgets.iter().map(budget::Budget::json).collect::<Vec<_>>(),
        });
        std::fs::write(file, format!("{figures:#}\n"))
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    bed.stop().await?;
    Ok(if budgets.iter().any(budget::Budget::is_broken) {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// As many runs as asked for. If they break the budget, so many that one busy moment cannot.
async fn fast_drains(bed: &Bed, scale: &Scale) -> Result<Vec<Series>> {
    let mut series = none_yet(&Load::fast(scale.events), &Candidate::ALL);
    drain_each(bed, &mut series, scale.runs).await?;
    if budget::cpu(&series).is_broken() && scale.runs < SURE_RUNS {
        eprintln!("over budget; measured again to be sure");
        drain_each(bed, &mut series, SURE_RUNS - scale.runs).await?;
    }
    Ok(series)
}

fn none_yet(load: &Load, candidates: &[Candidate]) -> Vec<Series> {
    candidates.iter().map(|&candidate| Series::new(candidate, load)).collect()
}

/// Drains the same load with each candidate, `runs` times, another one first each time.
async fn drain_each(bed: &Bed, series: &mut [Series], runs: u32) -> Result<()> {
    let count = series.len();
    for run in 0..runs {
        for turn in 0..count {
            let one = &mut series[(turn + run as usize) % count];
            eprintln!("run {} of {runs}: {}", run + 1, one.candidate.name());
            one.drains.push(drain::drain(bed, one.candidate, &one.load).await?);
        }
    }
    Ok(())
}
