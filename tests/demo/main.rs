//! The tour: a broker, the portal simulator and the relay, more than a thousand real events
//! through all of them, and an account of what became of each.
#![allow(clippy::print_stdout, reason = "the tour talks to a person")]

mod account;
mod events;
#[path = "../support/mod.rs"]
mod support;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use account::Account;
use events::Plan;
use support::broker::{self, Broker};
use support::process::Process;
use support::queues::Queues;
use support::relay::{self, Settings};
use support::simulator::Simulator;

/// The tour ends by itself before this.
const LIMIT: Duration = Duration::from_secs(180);

fn main() -> ExitCode {
    let runtime = tokio::runtime::Runtime::new();
    match runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(tour())) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("\nThe tour broke off: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn tour() -> Result<bool> {
    let broker = start_broker().await?;
    let simulator = Simulator::start(&["--messages", "detailed"]).await?;
    println!("portal simulator   {}", simulator.url());
    let prefix = format!("demo-{}", std::process::id());
    let state = tempfile::tempdir()?;
    let mut settings = settings(&broker, &prefix, &simulator);
    settings.keep_ledger_in(state.path());
    println!("ledger             SQLite in {}", state.path().display());
    let queues = Queues::connect(&broker.url()).await?;
    let (code, topology, trouble) = settings.command(&["topology", "show", "--json"], b"").await?;
    ensure!(code == 0, "{trouble}");
    let topology: Value = serde_json::from_str(&topology)?;

    let whole = walk(&settings, &simulator, &queues, &prefix).await;
    queues.delete(&topology).await?;
    broker.stop().await?;
    whole
}

/// Everything between a broker that is up and a broker that is clean again.
async fn walk(
    settings: &Settings,
    simulator: &Simulator,
    queues: &Queues,
    prefix: &str,
) -> Result<bool> {
    let relay = settings.start_relay().await?;
    println!("relay              process {}, consuming {prefix}.work\n", relay.pid());
    let plan = Plan::new();
    for fault in plan.faults() {
        simulator.fault(fault).await?;
    }
    println!("{}", plan.describe());
    publish(settings, &plan).await?;
    let finished = tokio::select! {
        finished = watch(simulator, queues, prefix, &plan, &relay) => finished?,
        _ = tokio::signal::ctrl_c() => {
            println!("\nCtrl-C: stopping early");
            false
        }
    };
    println!("\nstopping the relay with SIGTERM");
    let output = relay::stop(relay).await?;
    let report = output.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let report = report.filter_map(|line| line["message"].as_str().map(str::to_owned));
    let report = report.last().context("the relay reported nothing")?;
    println!("  it says: {report}\n");

    let account = Account::of(&plan, simulator, queues, prefix).await?;
    println!("{account}");
    Ok(account.adds_up() && (finished || account.is_interrupted()))
}

async fn start_broker() -> Result<Broker> {
    let sources = broker::available().await?;
    let source = sources.last().context("no broker")?;
    println!("starting a broker  ({}) …", source.label());
    let broker = source.start().await?;
    println!("RabbitMQ {:<9} {:?} at {}", broker.version(), broker.kind(), broker.address());
    Ok(broker)
}

/// The defaults, but for a retry schedule that a person can wait for.
fn settings(broker: &Broker, prefix: &str, simulator: &Simulator) -> Settings {
    let mut settings = Settings::new(&broker.url(), prefix, simulator);
    for (key, value) in [
        ("retry.shortest_delay", "500ms"),
        ("retry.first_delay", "1s"),
        ("retry.max_delay", "4s"),
        ("retry.max_uncounted_delay", "2s"),
        ("retry.rejected_delay", "1s"),
        ("retry.max_attempts", "4"),
        ("portal.timeout", "2s"),
    ] {
        settings.set(key, value);
    }
    settings
}

async fn publish(settings: &Settings, plan: &Plan) -> Result<()> {
    let lines = plan.lines().join(&b'\n');
    let began = Instant::now();
    let (code, out, trouble) =
        settings.command(&["publish", "--raw", "--json", "-"], &lines).await?;
    ensure!(code == 0, "customer-relay publish: {trouble}");
    let published: Value = serde_json::from_str(&out)?;
    let took = began.elapsed();
    println!("published          {} events, each confirmed, in {took:.1?}", published["published"]);
    Ok(())
}

/// Tells how it goes until every event has its end.
async fn watch(
    simulator: &Simulator,
    queues: &Queues,
    prefix: &str,
    plan: &Plan,
    relay: &Process,
) -> Result<bool> {
    let began = Instant::now();
    let mut told = String::new();
    while began.elapsed() < LIMIT {
        let stats = simulator.stats().await?;
        let dead = queues.depth(&format!("{prefix}.dead")).await?;
        // Each event that is sent has a customer of its own.
        let applied = stats["customers"].as_u64().unwrap_or(0);
        let line =
            format!("{:>6} calls {applied:>6} applied {dead:>6} dead letters", stats["calls"]);
        if line != told {
            println!("  {:>5.1} s {line}", began.elapsed().as_secs_f64());
            told = line;
        }
        if applied + u64::from(dead) >= plan.ends() {
            return Ok(true);
        }
        ensure!(relay.output().contains("consuming"), "the relay is gone");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    println!("  not finished within {LIMIT:?}");
    Ok(false)
}

/// A fault rule for customers whose id begins so.
fn fault(prefix: &str, times_per_customer: Option<u32>, fault: &Value) -> Value {
    let mut rule = json!({"match": {"entity_prefix": prefix}, "fault": fault});
    if let Some(times) = times_per_customer {
        rule["times_per_customer"] = json!(times);
    }
    rule
}
