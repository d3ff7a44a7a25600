//! What the relay may cost, and what it does cost.

use std::time::Duration;

use serde_json::{Value, json};

use crate::candidate::Candidate;
use crate::drain::Series;
use crate::figures::{Spread, percentile_ms};
use crate::latency::Durations;

/// One promise about speed, and the figure.
pub(crate) struct Budget {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) figure: f64,
    pub(crate) limit: f64,
    /// Whether a busy machine leaves the figure as it is: then breaking the limit is a failure.
    pub(crate) is_enforced: bool,
    /// What we would rather have.
    pub(crate) aim: Option<f64>,
}

impl Budget {
    fn new(name: &'static str, unit: &'static str, figure: f64, limit: f64) -> Budget {
        Budget { name, unit, figure, limit, is_enforced: false, aim: None }
    }

    pub(crate) fn is_kept(&self) -> bool {
        self.figure <= self.limit
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.is_enforced && !self.is_kept()
    }

    pub(crate) fn json(&self) -> Value {
        let Budget { name, unit, figure, limit, is_enforced, aim } = self;
        json!({"name": name, "unit": unit, "figure": figure, "limit": limit, "aim": aim,
               "enforced": is_enforced, "kept": self.is_kept()})
    }
}

/// All of them.
pub(crate) fn all(
    fast: &[Series],
    slow: &[Series],
    lone: &[Durations],
    starts: &[Durations],
    wide: &[Series],
) -> Vec<Budget> {
    let memory = wide.iter().flat_map(Series::peak_mib).fold(0.0, f64::max);
    let added = p99(lone, Candidate::Relay) - p99(lone, Candidate::BareReqwest);
    let start = durations(starts, Candidate::Relay);
    let (relay, bare) = (rates(fast, Candidate::Relay), rates(fast, Candidate::NoLedger));
    let kept = Spread::of_ratios(&relay, &bare).median;
    vec![
        cpu(fast),
        Budget::new("events/s short of ledger.url=none", "%", (1.0 - kept) * 100.0, 15.0),
        Budget {
            is_enforced: true,
            ..Budget::new("peak memory at prefetch 500", "MiB", memory, 64.0)
        },
        Budget::new("added latency at p99", "ms", added, 5.0),
        Budget::new("start to first call", "ms", percentile_ms(start, 50), 500.0),
        Budget::new("short of in flight / latency", "%", shortfall_percent(slow), 5.0),
    ]
}

/// What the promises cost, by the kernel's account.
pub(crate) fn cpu(fast: &[Series]) -> Budget {
    let (relay, bare) = (cpu_us(fast, Candidate::Relay), cpu_us(fast, Candidate::BareReqwest));
    let ratio = Spread::of_ratios(&relay, &bare).median;
    let budget = Budget::new("CPU per event, relay / bare reqwest", "", ratio, 1.5);
    Budget { is_enforced: true, aim: Some(1.2), ..budget }
}

/// By run.
pub(crate) fn cpu_us(series: &[Series], candidate: Candidate) -> Vec<f64> {
    by_run(series, candidate, Series::cpu_us)
}

/// By run.
pub(crate) fn rates(series: &[Series], candidate: Candidate) -> Vec<f64> {
    by_run(series, candidate, Series::rates)
}

fn by_run(series: &[Series], candidate: Candidate, figure: fn(&Series) -> Vec<f64>) -> Vec<f64> {
    series.iter().filter(|one| one.candidate == candidate).flat_map(figure).collect()
}

/// How far the relay stays behind what a slow portal allows.
pub(crate) fn shortfall_percent(slow: &[Series]) -> f64 {
    let relay = slow.iter().filter(|one| one.candidate == Candidate::Relay);
    let shortfall = |one: &Series| {
        let possible = f64::from(one.load.in_flight) / one.load.latency.as_secs_f64();
        (1.0 - Spread::of(one.rates()).median / possible) * 100.0
    };
    relay.map(shortfall).fold(0.0, f64::max)
}

fn p99(lone: &[Durations], candidate: Candidate) -> f64 {
    percentile_ms(durations(lone, candidate), 99)
}

fn durations(all: &[Durations], candidate: Candidate) -> &[Duration] {
    all.iter().find(|one| one.candidate == candidate).map_or(&[], |one| &one.all)
}
