//! The table of storms: a row a seed, and the totals. "ambiguous" are calls that were applied without
//! the caller's knowing; each may become a double.

use std::fmt;

use super::storm::Report;
use super::storm::conserve::Account;
use super::storm::faults::Kind;

/// The heading.
pub fn head() -> String {
    let kinds: Vec<&str> = Kind::ALL.into_iter().map(Kind::name).collect();
    format!(
        "{:>6}  {:<8} {:>4} {:>6}  {}  {:>7} {:>5} {:>20} {:>9}  verdict",
        "seed",
        "RabbitMQ",
        "s",
        "events",
        kinds.join(" "),
        "applied",
        "dead",
        "doubles of allowed",
        "ambiguous"
    )
}

/// A storm that has ended.
pub fn row(report: &Report) -> String {
    let counts = Kind::ALL.map(|kind| {
        let count = report.injected.get(&kind).copied().unwrap_or_default();
        format!("{count:>width$}", width = kind.name().len())
    });
    let Account { applied, letters, doubles, allowance, sent, ref findings } = report.account;
    let ambiguous = allowance.ambiguous_calls;
    let doubles = format!("{doubles} of {} ({:.2} %)", allowance.doubles(), percent(doubles, sent));
    format!(
        "{:>6}  {:<8} {:>4.0} {:>6}  {}  {applied:>7} {letters:>5} {doubles:>20} {ambiguous:>9}  {}",
        report.plan.seed,
        report.version,
        report.took.as_secs_f64(),
        report.plan.events.all.len(),
        counts.join(" "),
        match (findings.is_empty(), report.plan.has_ledger) {
            (true, true) => "ok, converged",
            (true, false) => "ok",
            (false, _) => "FAILED",
        }
    )
}

/// All storms so far.
#[derive(Debug, Default)]
pub struct Totals {
    storms: usize,
    events: usize,
    faults: usize,
    orderly_ends: usize,
    sum: Account,
    ambiguous_calls: usize,
    /// Seeds that broke a promise, or broke off.
    pub failed: Vec<u64>,
}

impl Totals {
    /// Adds a storm.
    pub fn add(&mut self, report: &Report) {
        self.storms += 1;
        self.events += report.plan.events.all.len();
        self.faults += report.injected.values().sum::<usize>();
        self.orderly_ends += report.orderly_ends;
        self.sum.sent += report.account.sent;
        self.sum.applied += report.account.applied;
        self.sum.letters += report.account.letters;
        self.sum.doubles += report.account.doubles;
        self.ambiguous_calls += report.account.allowance.ambiguous_calls;
        if !report.account.findings.is_empty() {
            self.failed.push(report.plan.seed);
        }
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Totals { storms, events, faults, orderly_ends, sum, ambiguous_calls, failed } = self;
        let Account { sent, applied, letters, doubles, .. } = sum;
        let rate = percent(*doubles, *sent);
        write!(
            out,
            "\n{storms} storms, {faults} faults: {events} events sent {sent} times, {applied} \
             applied, {letters} dead letters, {doubles} doubles ({rate:.2} %), \
             {ambiguous_calls} ambiguous calls; {orderly_ends} relays ended on SIGTERM with 0"
        )?;
        for seed in failed {
            write!(out, "\nFAILED; to run it again: make chaos SEED={seed}")?;
        }
        Ok(())
    }
}

#[expect(clippy::cast_precision_loss, reason = "some thousands")]
fn percent(part: usize, whole: usize) -> f64 {
    part as f64 * 100.0 / whole.max(1) as f64
}
