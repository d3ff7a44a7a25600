//! The tables, and the same as JSON.

use serde_json::{Value, json};

use crate::bed::Load;
use crate::budget::{Budget, cpu_us, rates};
use crate::candidate::Candidate;
use crate::drain::Series;
use crate::figures::{Spread, percentile_ms};
use crate::latency::Durations;

/// A portal that answers at once: what an event costs.
pub(crate) fn fast(series: &[Series]) {
    println!("Draining a full queue, portal answers at once. Median (min - max) of the runs.");
    println!(
        "CPU is the process's user and system time from ready to drained, its start left out."
    );
    table(series);
    let relay = cpu_us(series, Candidate::Relay);
    for (name, candidate) in [
        ("bare reqwest", Candidate::BareReqwest),
        ("bare hyper", Candidate::BareHyper),
        ("itself without its ledger", Candidate::NoLedger),
        ("itself without its log lines", Candidate::QuietRelay),
    ] {
        let ratio = Spread::of_ratios(&relay, &cpu_us(series, candidate));
        println!("  CPU per event, relay / {name}: {ratio:.2}");
    }
    println!();
}

/// Two builds of the relay.
pub(crate) fn against(series: &[Series]) {
    println!("Draining a full queue, portal answers at once. Median (min - max) of the runs.");
    table(series);
    let [relay, other] = [Candidate::Relay, Candidate::OtherRelay];
    let cpu = Spread::of_ratios(&cpu_us(series, relay), &cpu_us(series, other));
    let took = Spread::of_ratios(&rates(series, other), &rates(series, relay));
    println!("  CPU per event, relay / the other build: {cpu:.3}");
    println!("  time per event, relay / the other build: {took:.3}");
}

/// A portal that is far away: whether its latency is all that limits.
pub(crate) fn slow(series: &[Series]) {
    println!("Draining a full queue, portal takes 200 ms.");
    table(series);
    let Some(Series { load, .. }) = series.first() else { return };
    let possible = f64::from(load.in_flight) / load.latency.as_secs_f64();
    println!("  possible: {} in flight / 200 ms = {possible:.0} events/s\n", load.in_flight);
}

fn table(series: &[Series]) {
    if let Some(Series { load, drains, .. }) = series.first() {
        let Load { events, prefetch, in_flight, .. } = load;
        let runs = drains.len();
        println!("{runs} runs of {events} events, prefetch {prefetch}, {in_flight} in flight");
    }
    println!("  {:<25}{:<24}{:<24}peak MiB", "", "events/s", "CPU us/event");
    for one in series {
        let [rate, cpu, peak] = [one.rates(), one.cpu_us(), one.peak_mib()].map(Spread::of);
        println!("  {:<25}{rate:<24.0}{cpu:<24.1}{peak:.1}", one.candidate.name());
    }
}

/// An idle queue.
pub(crate) fn latency(lone: &[Durations]) {
    println!("Lone events at an idle queue: publish to arrival at the portal, in ms.");
    println!("  {:<25}{:<10}{:<10}{:<10}added p50 / p99", "", "p50", "p99", "max");
    let figures = |one: &Durations| [50, 99, 100].map(|percent| percentile_ms(&one.all, percent));
    let bare = lone.iter().find(|one| one.candidate == Candidate::BareReqwest).map(figures);
    for one in lone {
        let [p50, p99, max] = figures(one);
        let [bare50, bare99, _] = bare.unwrap_or_default();
        let name = one.candidate.name();
        let added = format!("{:+.2} / {:+.2}", p50 - bare50, p99 - bare99);
        println!("  {name:<25}{p50:<10.2}{p99:<10.2}{max:<10.2}{added}");
    }
    println!();
}

/// From process start to first call.
pub(crate) fn starts(starts: &[Durations]) {
    println!("Start of the process to its first call, events waiting, in ms.");
    for one in starts {
        let all = one.all.iter().map(|start| start.as_secs_f64() * 1e3).collect();
        println!("  {:<25}{:.0}", one.candidate.name(), Spread::of(all));
    }
    println!();
}

/// Many messages in hand.
pub(crate) fn memory(wide: &[Series]) {
    println!("Many messages in hand.");
    table(wide);
    println!();
}

/// Promises and figures; what is broken is said plainly.
pub(crate) fn budgets(budgets: &[Budget]) {
    println!("Budgets");
    for budget in budgets {
        let Budget { name, unit, figure, limit, is_enforced, aim } = budget;
        let aim = aim.map(|aim| format!(", aim {aim}")).unwrap_or_default();
        let state = match (budget.is_kept(), is_enforced) {
            (true, _) => "kept",
            (false, true) => "BROKEN",
            (false, false) => "missed (a busy machine may be why)",
        };
        println!("  {name:<37}{figure:>7.2} {unit:<4} budget {limit}{aim}: {state}");
    }
}

/// Every run's figures.
pub(crate) fn series_json(series: &[Series]) -> Value {
    let one = |one: &Series| {
        json!({
            "candidate": one.candidate.name(), "events": one.load.events,
            "prefetch": one.load.prefetch, "in_flight": one.load.in_flight,
            "events_per_second": one.rates(), "cpu_us_per_event": one.cpu_us(),
            "peak_mib": one.peak_mib(),
        })
    };
    series.iter().map(one).collect()
}

/// Percentiles in microseconds.
pub(crate) fn durations_json(all: &[Durations]) -> Value {
    let one = |one: &Durations| {
        let us = |percent| (percentile_ms(&one.all, percent) * 1e3).round();
        json!({"candidate": one.candidate.name(), "count": one.all.len(), "p50": us(50),
               "p99": us(99), "max": us(100)})
    };
    all.iter().map(one).collect()
}
