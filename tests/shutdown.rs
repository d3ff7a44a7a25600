//! A stop is orderly: what is under way ends, the rest is handed back as if it had not come.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::harness::{Context, suite};
use crate::support::bed::{Bed, LIMIT};
use crate::support::eventually;
use crate::support::queues::Taken;
use crate::support::relay::{self, PROBE};

suite!(Broker:
    thirty_restarts_and_outages_under_load_lose_nothing_and_dead_letter_nothing,
    sigterm_finishes_what_is_under_way_and_hands_back_the_rest,
    sigint_finishes_what_is_under_way_and_hands_back_the_rest,
    calls_that_outlast_the_grace_period_are_cut_and_handed_back_without_an_attempt,
    an_idle_relay_stops_at_once,
    a_relay_that_waits_for_its_broker_stops_at_once;
NoBroker:
    every_manifest_gives_it_time_to_stop,
);

async fn calls_under_way(bed: &Bed, count: u64) -> Result<()> {
    eventually(&format!("{count} calls under way"), LIMIT, || async {
        Ok((bed.simulator.stats().await?["in_flight"] == count).then_some(()))
    })
    .await
}

fn events(bed: &Bed, count: usize) -> Vec<Value> {
    let event = |n| bed.event(&format!("e{n}"), &format!("C{n}"), &json!({"city": "Kochi"}));
    (0..count).map(event).collect()
}

/// Takes what was handed back: through the shortest tier to the work queue.
async fn handed_back(bed: &Bed, count: usize) -> Result<Vec<Taken>> {
    let mut taken = Vec::new();
    while taken.len() < count {
        taken.push(bed.queues.take(&bed.queue("work"), LIMIT).await?);
    }
    for message in &taken {
        assert_eq!(message.header("x-relay-attempts").as_deref(), Some("0"));
        let count = message.header("x-delivery-count").unwrap_or_else(|| "0".to_owned());
        assert_eq!(count, "0", "it would count towards the delivery limit");
    }
    Ok(taken)
}

async fn stop_by(context: Context, signal: &str) -> Result<()> {
    let mut bed = context.bed_with(&["--latency", "700ms"]).await?;
    bed.settings.set("worker.in_flight", "2");
    bed.declare().await?;
    bed.queues.publish_events(&bed.exchange(), &events(&bed, 10)).await?;
    let mut relay = bed.start_relay().await?;
    calls_under_way(&bed, 2).await?;
    relay.signal(signal).await?;
    assert_eq!(relay.ended(LIMIT).await?.code(), Some(0));
    let stats = bed.simulator.stats().await?;
    ensure!(stats["calls"] == 2 && stats["applied"] == 2 && stats["abandoned"] == 0, "{stats}");
    handed_back(&bed, 8).await?;
    let line = "stopped: 2 applied, 0 ignored, 0 to a retry, 8 to wait or handed back, \
                0 dead letters; 0 settled but not acked, 0 left to redelivery";
    relay.line_with(line, LIMIT).await.or_else(|error| {
        if bed.output().contains(line) { Ok(String::new()) } else { Err(error) }
    })?;
    bed.finish().await
}

async fn sigterm_finishes_what_is_under_way_and_hands_back_the_rest(
    context: Context,
) -> Result<()> {
    stop_by(context, "TERM").await
}

async fn sigint_finishes_what_is_under_way_and_hands_back_the_rest(context: Context) -> Result<()> {
    stop_by(context, "INT").await
}

async fn calls_that_outlast_the_grace_period_are_cut_and_handed_back_without_an_attempt(
    context: Context,
) -> Result<()> {
    let mut bed = context.bed().await?;
    bed.settings.set("worker.grace_period", "300ms").set("worker.in_flight", "2");
    bed.simulator.fault(json!({"fault": {"kind": "hang"}})).await?;
    let relay = bed.start_relay().await?;
    bed.queues.publish_events(&bed.exchange(), &events(&bed, 5)).await?;
    calls_under_way(&bed, 2).await?;
    relay::stop(relay).await?;
    let taken = handed_back(&bed, 5).await?;
    let ambiguous = |message: &&Taken| message.header("x-relay-ambiguous").is_some();
    assert_eq!(taken.iter().filter(ambiguous).count(), 2, "the two that were cut");
    assert!(bed.output().contains("the grace period is over"), "{}", bed.output());
    bed.finish().await
}

async fn an_idle_relay_stops_at_once(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    let mut relay = bed.start_relay().await?;
    relay.signal("TERM").await?;
    let status = relay.ended(Duration::from_secs(5)).await?;
    assert_eq!(status.code(), Some(0));
    bed.finish().await
}

async fn a_relay_that_waits_for_its_broker_stops_at_once(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    bed.declare().await?;
    let there = context.broker().await?.url();
    bed.settings.set("broker.url", "amqp://guest:guest@127.0.0.1:1/%2f");
    let mut relay = bed.launch_relay()?;
    relay.line_with("cannot reach the broker", LIMIT).await?;
    relay.signal("TERM").await?;
    let status = relay.ended(Duration::from_secs(5)).await?;
    assert_eq!(status.code(), Some(0));
    bed.settings.set("broker.url", &there);
    bed.finish().await
}

async fn thirty_restarts_and_outages_under_load_lose_nothing_and_dead_letter_nothing(
    context: Context,
) -> Result<()> {
    const EVENTS: u64 = 2500;
    let mut bed = context.bed_with(&["--latency", "20ms"]).await?;
    bed.settings.set("worker.in_flight", "4").set("broker.prefetch", "40");
    bed.declare().await?;
    let events = events(&bed, usize::try_from(EVENTS)?);
    bed.queues.publish_events(&bed.exchange(), &events).await?;
    let total = async |name: &str| anyhow::Ok(bed.simulator.stats().await?[name].as_u64());
    for round in 0..30 {
        let applied = total("applied").await?;
        let mut relay = bed.start_relay().await?;
        eventually("some updates", LIMIT, || async {
            Ok((total("applied").await? >= applied.map(|applied| applied + 8)).then_some(()))
        })
        .await?;
        bed.simulator.fault(json!({"fault": {"kind": "status", "code": 500}})).await?;
        relay.line_with("calls are paused", LIMIT).await?;
        if round % 2 == 0 {
            // Every other one is stopped in the outage.
            relay::stop(relay).await?;
            bed.simulator.heal().await?;
            continue;
        }
        bed.simulator.heal().await?;
        relay.line_with("outage over", LIMIT).await?;
        relay::stop(relay).await?;
    }
    let applied = total("customers").await?.unwrap();
    ensure!((160..EVENTS).contains(&applied), "{applied} of {EVENTS} before the last start");
    bed.settings.set("worker.in_flight", "64").set("broker.prefetch", "200");
    let relay = bed.start_relay().await?;
    eventually("all events", LIMIT * 2, || async {
        let is_probed = bed.simulator.customer(PROBE).await?["applied"].as_u64() > Some(0);
        Ok((total("customers").await? == Some(EVENTS + u64::from(is_probed))).then_some(()))
    })
    .await?;
    let stats = bed.simulator.stats().await?;
    let output = bed.output();
    let reports: Vec<&str> = output.lines().filter(|line| line.contains("stopped: ")).collect();
    // A control call sends again what was applied.
    let control = |line: &&str| line.contains("control call") && line.contains("\"applied\"");
    let controls = output.lines().filter(control).count() as u64;
    let doubled = stats["applied"] != EVENTS + controls;
    ensure!(!doubled, "by an orderly stop: {stats}, {controls} control calls, {reports:#?}");
    bed.end(relay).await.map(drop)
}

/// After that it is gone, whatever keeps it: see `cli::run`.
const FAREWELL: u64 = 10;

/// The seconds that a file gives: what stands behind `key`, without its unit.
fn seconds(file: &str, key: &str) -> Result<u64> {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file))?;
    let line = text.lines().find_map(|line| line.trim().strip_prefix(key));
    let value = line.with_context(|| format!("no {key} in {file}"))?;
    let digits: String = value.chars().filter(char::is_ascii_digit).collect();
    digits.parse().with_context(|| format!("{file}: {key}{value}"))
}

async fn every_manifest_gives_it_time_to_stop(_: Context) -> Result<()> {
    let default = |key| seconds("src/config/defaults.toml", key);
    let longest = default("grace_period =")? + default("operation_timeout =")? + FAREWELL;
    for (file, key) in [
        ("deploy/compose.yaml", "stop_grace_period:"),
        ("deploy/kubernetes/base/deployment.yaml", "terminationGracePeriodSeconds:"),
        ("deploy/systemd/customer-relay.service", "TimeoutStopSec="),
    ] {
        let given = seconds(file, key)?;
        ensure!(given > longest, "{file}: {key} {given}, and the relay may take {longest} s");
    }
    Ok(())
}
