//! `make cluster-test`: three nodes, of which the work queue's leader is killed, frozen, and cut off
//! from its peers. Each time the relay goes on by itself, and nothing is lost.
#![allow(clippy::print_stdout, reason = "the figures are for people")]
#![allow(clippy::disallowed_methods, reason = "a test measures")]

mod account;
mod docker;
mod load;
mod look;
mod nodes;
#[path = "../support/mod.rs"]
mod support;
mod trial;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use account::Row;
use docker::docker;
use nodes::{Cluster, Fault, IMAGE};
use support::relay::Settings;
use support::simulator::Simulator;
use trial::Stage;

/// Each fault with how long calls may rest.
///
/// A killed node's connections end at once: an election, and pauses of at most a second between
/// tries to reconnect; then the lock that the relay's own lost connection held there must go, and
/// asking for it may hang for an operation's limit of 5 s. A silent node is given up by its peers after `net_ticktime` (5 s, and a
/// quarter), by the relay after two heartbeats of 2 s; one without peers answers on, and only an
/// operation's limit of 5 s tells. Whatever the relay tries at such a node takes 5 s more.
const FAULTS: [(Fault, Duration); 3] = [
    (Fault::Kill, Duration::from_secs(20)),
    (Fault::Pause, Duration::from_secs(30)),
    (Fault::Cut, Duration::from_secs(30)),
];

fn main() -> ExitCode {
    let runtime = tokio::runtime::Runtime::new();
    match runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(run())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("cluster test: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<()> {
    docker::ready_for(IMAGE).await?;
    let stage = set_up().await?;
    let mut rows = Vec::new();
    for (fault, bound) in FAULTS {
        rows.push(stage.try_fault(fault, bound).await?);
    }
    println!("\n{}", account::HEAD.trim_end());
    for row in &rows {
        println!("{row}");
    }
    let dead = format!("{}.dead", stage.prefix);
    let dead = stage.cluster.depth(&dead).await?;
    let name = stage.cluster.name().to_owned();
    drop(stage);
    judge(&rows, dead)?;
    let left = docker(&["ps", "--all", "--quiet", &format!("--filter=name={name}")]).await?;
    ensure!(left.is_empty(), "containers are left behind: {left}");
    Ok(())
}

async fn set_up() -> Result<Stage> {
    println!("starting three nodes of {IMAGE} …");
    let cluster = Cluster::start().await?;
    // With so slow a portal the relay is twice as fast as the stream, and has a backlog at first.
    let simulator = Simulator::start(&["--log-requests", "0", "--latency", "100ms"]).await?;
    let fault = json!({"kind": "status", "code": 503});
    simulator.fault(json!({"match": {"probability": 0.03}, "fault": fault})).await?;
    let prefix = cluster.name().to_owned();
    let mut settings = Settings::new(&cluster.urls(0).join(","), &prefix, &simulator);
    settings
        // Every event is to be known again at the portal, whole.
        .set("ledger.url", "none")
        .set("worker.merge", "false")
        .set("broker.heartbeat", "2s")
        .set("broker.operation_timeout", "5s")
        .set("worker.in_flight", "20")
        // Every failed call goes through a tier.
        .set("retry.immediate_retries", "0");
    let (code, _, trouble) = settings.command(&["topology", "apply"], b"").await?;
    ensure!(code == 0, "topology apply: {trouble}");
    cluster.whole(0).await?;
    Ok(Stage { cluster, simulator, settings, prefix })
}

fn judge(rows: &[Row], dead: u64) -> Result<()> {
    for Row { fault, fail_over, bound, lost, .. } in rows {
        let fault = fault.name();
        ensure!(lost.is_empty(), "{fault}: events lost: {lost:?}");
        ensure!(fail_over <= bound, "{fault}: no calls for {fail_over:.1?}, bound {bound:?}");
    }
    ensure!(dead == 0, "{dead} dead letters");
    Ok(())
}
