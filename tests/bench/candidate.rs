//! Who is measured.

use anyhow::{Context as _, Result};

use crate::bed::Stage;
use crate::support::process::Process;
use crate::support::simulator::{SECRET_KEY, TOKEN};

/// Below the portal's base URL.
const CALL_PATH: &str = "/airpay/ms/cards/api/update-customer";

/// A program that drains the work queue into the portal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Candidate {
    /// `customer-relay run` as it comes: SQLite keeps its ledger, and it writes a line an event.
    Relay,
    /// The same with no ledger.
    NoLedger,
    /// The same without those lines.
    QuietRelay,
    /// Another build of it: the program that `AGAINST` names.
    OtherRelay,
    /// The bare loop with lapin and reqwest.
    BareReqwest,
    /// The bare loop with lapin and hyper.
    BareHyper,
}

/// The program of another build, if one is to be compared.
pub(crate) fn other_build() -> Option<String> {
    std::env::var("AGAINST").ok().filter(|program| !program.is_empty())
}

impl Candidate {
    /// All that every run has.
    pub(crate) const ALL: [Candidate; 5] = [
        Candidate::Relay,
        Candidate::NoLedger,
        Candidate::QuietRelay,
        Candidate::BareReqwest,
        Candidate::BareHyper,
    ];
    /// Those that differ where the log plays no part.
    pub(crate) const LOOPS: [Candidate; 3] =
        [Candidate::Relay, Candidate::BareReqwest, Candidate::BareHyper];

    /// What it is called in the tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Candidate::Relay => "relay",
            Candidate::NoLedger => "relay (ledger.url=none)",
            Candidate::QuietRelay => "relay (log.filter=warn)",
            Candidate::OtherRelay => "relay, the other build",
            Candidate::BareReqwest => "bare loop, reqwest",
            Candidate::BareHyper => "bare loop, hyper",
        }
    }

    /// Starts it on a stage's queue, calling the portal at `base_url`.
    pub(crate) fn start(self, stage: &Stage<'_>, base_url: &str) -> Result<Process> {
        let mut settings = stage.settings.clone();
        settings.set("portal.base_url", base_url);
        match self {
            Candidate::Relay => settings.launch_relay(),
            Candidate::NoLedger => settings.set("ledger.url", "none").launch_relay(),
            Candidate::QuietRelay => settings.set("log.filter", "warn").launch_relay(),
            Candidate::OtherRelay => {
                let program = other_build().context("AGAINST names no program")?;
                // What builds before 0.1.1 cannot do without, and what they do not know.
                settings.set("admin.token", "bench-token-of-32-characters-or-more");
                settings.leave_out("outage.control_calls");
                settings.launch(&program)
            }
            Candidate::BareReqwest => bare("reqwest", stage, base_url),
            Candidate::BareHyper => bare("hyper", stage, base_url),
        }
    }
}

fn bare(client: &str, stage: &Stage<'_>, base_url: &str) -> Result<Process> {
    let program = std::env::current_exe()?;
    let url = format!("{base_url}{CALL_PATH}");
    let (prefetch, in_flight) = (stage.load.prefetch.to_string(), stage.load.in_flight.to_string());
    let (amqp_url, queue) = (stage.bed.broker_url(), stage.work_queue());
    let args = [
        "bare",
        "--client",
        client,
        "--amqp-url",
        &amqp_url,
        "--queue",
        &queue,
        "--prefetch",
        &prefetch,
        "--in-flight",
        &in_flight,
        "--url",
        &url,
        "--token",
        TOKEN,
        "--secret-key",
        SECRET_KEY,
    ];
    Process::start(&program.to_string_lossy(), &args.map(str::to_owned), &[])
}
