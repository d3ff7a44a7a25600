//! One seed's storm: events at a steady rate while everything breaks, alone and together, and at
//! the end an account of every event. Black-box: it knows the relay by its promises alone.
#![allow(dead_code, reason = "two test binaries each use a part of it")]

pub mod calm;
pub mod conserve;
pub mod converge;
pub mod crm;
pub mod events;
pub mod evidence;
pub mod faults;
pub mod lanes;
pub mod plan;
pub mod portal;
pub mod sky;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::support::bed::Bed;
use crate::support::broker::Broker;
use crate::support::chaos::ChaosProxy;
use crate::support::queues::Queues;
use conserve::Account;
use crm::Crm;
use evidence::{Allowance, Evidence};
use faults::Kind;
use plan::{Plan, Scale};
use portal::Portal;
use sky::Sky;

const PREFETCH: usize = 60;
const IN_FLIGHT: usize = 32;

/// How a storm went.
pub struct Report {
    pub plan: Plan,
    pub version: String,
    pub took: Duration,
    pub injected: BTreeMap<Kind, usize>,
    /// Relays that ended on SIGTERM with exit code 0; any other end is a finding.
    pub orderly_ends: usize,
    pub account: Account,
    /// What happened when.
    pub story: Vec<String>,
    /// What the relays wrote.
    pub output: String,
}

/// A seed's plan, without the faults that `CHAOS_FAULTS=kill,term,…` does not name.
pub fn plan(seed: u64, scale: Scale) -> Result<Plan> {
    let plan = Plan::draw(seed, scale);
    match std::env::var("CHAOS_FAULTS") {
        Ok(kinds) => plan.only(&kinds),
        Err(_) => Ok(plan),
    }
}

/// Runs a plan on a bed whose simulator was started with the plan's arguments.
pub async fn run(plan: Plan, mut bed: Bed, mut broker: Broker) -> Result<Report> {
    let began = Instant::now();
    let proxy = ChaosProxy::start(broker.address()).await?;
    set(&mut bed, &proxy.through(&broker.url()));
    if !plan.has_ledger {
        // Every event is to be known again at the portal, whole.
        bed.settings.set("ledger.url", "none").set("worker.merge", "false");
    }
    bed.declare().await?;
    let sky = Sky::new(plan.lasts);
    let mut portal = Portal::open(&bed.simulator).await?;
    let mut relay = bed.start_relay().await?;
    let events = &plan.events;
    let crm = Crm { url: broker.url(), exchange: bed.exchange(), events, lasts: plan.lasts };
    let (published, (), (), (), ()) = tokio::try_join!(
        crm.publish(&sky),
        lanes::relay(&plan, &sky, &bed, &mut relay),
        lanes::broker(&plan, &sky, &mut broker),
        lanes::link(&plan, &sky, &proxy),
        lanes::portal(&plan, &sky, &mut portal),
    )
    .context("the storm itself broke off")?;
    sky.says("the storm is over");
    portal.lift_poison().await?;
    let ambiguous_calls = portal.ambiguous_calls().await?;

    bed.queues = Queues::connect(&broker.url()).await?;
    let queues = calm::queues(&bed).await?;
    calm::wait(&bed, &broker, &mut relay, &sky).await?;
    let mut evidence = Evidence { published, ..Evidence::default() };
    evidence.customers = calm::customers(&bed).await?;
    evidence.letters = calm::take(&bed, &bed.queue("dead")).await?;
    for queue in &queues {
        evidence.queued.extend(calm::take(&bed, queue).await?);
    }
    let noted = sky.into_noted();
    evidence.allowance = allowance(&noted.injected, ambiguous_calls);
    let mut account = if plan.has_ledger {
        converge::account(&plan.events.all, &evidence)
    } else {
        conserve::account(&plan.events.all, &evidence)
    };
    account.findings.extend(noted.bad_ends);
    let (version, output) = (broker.version(), bed.output());
    if account.findings.is_empty() {
        bed.finish().await?;
    }
    broker.stop().await?;
    Ok(Report {
        plan,
        version,
        took: began.elapsed(),
        injected: noted.injected,
        orderly_ends: noted.orderly_ends,
        account,
        story: noted.story,
        output,
    })
}

/// What differs from a test's usual settings: limits that a storm can meet, and attempts that
/// outlast it by far.
fn set(bed: &mut Bed, broker_url: &str) {
    for (key, value) in [
        ("broker.url", broker_url),
        ("broker.prefetch", &PREFETCH.to_string()),
        ("broker.heartbeat", "1s"),
        ("broker.operation_timeout", "2s"),
        ("portal.connect_timeout", "1s"),
        ("portal.timeout", "2s"),
        ("retry.max_delay", "1600ms"),
        ("retry.max_attempts", "200"),
        ("portal.settle_after", "4s"),
        ("worker.grace_period", "5s"),
        ("worker.in_flight", &IN_FLIGHT.to_string()),
    ] {
        bed.settings.set(key, value);
    }
}

fn allowance(injected: &BTreeMap<Kind, usize>, ambiguous_calls: usize) -> Allowance {
    let losses = injected.iter().filter(|(kind, _)| kind.loses_confirms());
    Allowance {
        prefetch: PREFETCH,
        in_flight: IN_FLIGHT,
        kills: injected.get(&Kind::Kill).copied().unwrap_or_default(),
        losses: losses.map(|(_, count)| count).sum(),
        ambiguous_calls,
    }
}

impl Report {
    /// Fails if a promise was broken, with all that helps to find out why.
    pub fn verdict(&self) -> Result<()> {
        if self.account.findings.is_empty() {
            return Ok(());
        }
        let findings = self.account.findings.join("\n  ");
        bail!("seed {}:\n  {findings}\n  the storm:\n{}", self.plan.seed, self.story())
    }

    /// What happened when, line by line.
    pub fn story(&self) -> String {
        let line = |line: &String| format!("    {line}\n");
        self.story.iter().map(line).collect()
    }
}
