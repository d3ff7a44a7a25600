//! Mixtures of good and bad customers at a portal that is well, on real parts: no outage, few calls,
//! few control calls, little log, and every bad event a dead letter with the right reason.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::harness::{Context, suite};
use crate::support::bed::Bed;
use crate::support::process::Process;
use crate::support::relay::PROBE;
use crate::support::traffic::{all_applied, calls, is_long, lines, publish, with_short_timetable};

suite!(
Broker:
    sixty_bad_customers_of_five_kinds_are_told_from_an_outage,
    two_hundred_bad_customers_are_told_from_an_outage,
    a_queue_in_which_all_are_bad_is_told_from_an_outage,
    bad_customers_beside_traffic_are_told_from_an_outage,
    without_a_ledger_they_are_told_as_well;
Postgres:
    with_postgresql_they_are_told_as_well;
);

/// The kinds of bad customers, and what their events die of.
fn kinds() -> [(Value, &'static str); 5] {
    let html = json!({"kind": "raw", "code": 200, "body": "<html>busy</html>"});
    [
        (html, "contract-violation"),
        (json!({"kind": "body_status", "status": 400}), "rejected"),
        (json!({"kind": "status", "code": 404, "envelope": true}), "unknown-entity"),
        (json!({"kind": "body_status", "status": 401}), "unauthorized-customer"),
        (json!({"kind": "status", "code": 500}), "retries-exhausted"),
    ]
}

/// A name of a bad customer: its kind stands in it.
fn name(number: usize) -> String {
    format!("BAD{}X{number}", number % 5)
}

async fn stage(context: &Context) -> Result<Bed> {
    let mut bed = context.bed_with(&["--log-requests", "100000"]).await?;
    with_short_timetable(&mut bed);
    bed.settings.set("log.filter", "info");
    for (number, (fault, _)) in kinds().into_iter().enumerate() {
        let matches = json!({"entity_prefix": format!("BAD{number}X")});
        bed.simulator.fault(json!({"match": matches, "fault": fault})).await?;
    }
    Ok(bed)
}

async fn publish_bad(bed: &Bed, count: usize) -> Result<()> {
    let city = json!({"city": "Kochi"});
    let events: Vec<Value> =
        (0..count).map(|n| bed.event(&format!("bad{n}"), &name(n), &city)).collect();
    bed.queues.publish_events(&bed.exchange(), &events).await
}

/// All of them are dead letters with the right reasons; what that took.
async fn all_dead(bed: Bed, relay: Process, count: usize, limit: Duration) -> Result<()> {
    let began = Instant::now();
    let dead = bed.queue("dead");
    bed.queues.holds(&dead, u32::try_from(count)?, limit).await?;
    let took = began.elapsed();
    for letter in bed.queues.take_all(&dead).await? {
        let body: Value = serde_json::from_slice(&letter.body)?;
        let customer = body["data"]["entity_id"].as_str().unwrap_or_default();
        let kind: usize = customer[3..4].parse()?;
        let reason = letter.header("x-relay-reason").unwrap_or_default();
        ensure!(reason == kinds()[kind].1, "{customer}: {reason}");
    }
    let mut of_each: BTreeMap<String, usize> = BTreeMap::new();
    for call in calls(&bed).await? {
        let customer = call["entity_id"].as_str().unwrap_or_default().to_owned();
        *of_each.entry(customer).or_default() += 1;
    }
    let bad = |customer: &&String| customer.starts_with("BAD");
    let most = of_each.iter().filter(|(name, _)| bad(name)).map(|(_, calls)| *calls).max();
    let output = bed.end(relay).await?;
    let controls = lines(&output, "\"control call\"").len();
    let outages = lines(&output, "outage: calls are paused").len();
    let most = most.unwrap_or(0);
    println!(
        "{count} bad customers: {:.1} s, at most {most} calls of one, {controls} control calls, \
         {outages} outages, {} KiB of log",
        took.as_secs_f64(),
        output.len() / 1024
    );
    ensure!(most <= 6, "{most} calls of one event");
    ensure!(controls <= 30, "{controls} control calls, of {PROBE} or others");
    ensure!(outages == 0, "{outages} outages");
    ensure!(output.len() < 1024 * 1024, "{} bytes of log", output.len());
    Ok(())
}

const LIMIT: Duration = Duration::from_mins(1);

async fn sixty(bed: Bed) -> Result<()> {
    let relay = bed.start_relay().await?;
    publish(&bed, "GOOD", 20).await?;
    all_applied(&bed, 20, LIMIT).await?;
    publish_bad(&bed, 60).await?;
    all_dead(bed, relay, 60, LIMIT).await
}

async fn sixty_bad_customers_of_five_kinds_are_told_from_an_outage(context: Context) -> Result<()> {
    let mut bed = stage(&context).await?;
    // Nothing but what was applied can be sent again.
    bed.settings.set("portal.probe_customer", "");
    sixty(bed).await
}

async fn two_hundred_bad_customers_are_told_from_an_outage(context: Context) -> Result<()> {
    let bed = stage(&context).await?;
    let relay = bed.start_relay().await?;
    let count = if is_long() { 1000 } else { 200 };
    publish_bad(&bed, count).await?;
    all_dead(bed, relay, count, LIMIT * 2).await
}

async fn a_queue_in_which_all_are_bad_is_told_from_an_outage(context: Context) -> Result<()> {
    let bed = stage(&context).await?;
    bed.declare().await?;
    publish_bad(&bed, 60).await?;
    let relay = bed.start_relay().await?;
    all_dead(bed, relay, 60, LIMIT).await
}

async fn bad_customers_beside_traffic_are_told_from_an_outage(context: Context) -> Result<()> {
    let bed = stage(&context).await?;
    let relay = bed.start_relay().await?;
    for round in 0..20 {
        publish(&bed, &format!("GOOD{round}N"), 50).await?;
        let city = json!({"city": "Kochi"});
        let events: Vec<Value> = (round * 3..round * 3 + 3)
            .map(|n| bed.event(&format!("bad{n}"), &name(n), &city))
            .collect();
        bed.queues.publish_events(&bed.exchange(), &events).await?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    all_applied(&bed, 1000, LIMIT).await?;
    all_dead(bed, relay, 60, LIMIT).await
}

async fn without_a_ledger_they_are_told_as_well(context: Context) -> Result<()> {
    let mut bed = stage(&context).await?;
    bed.settings.set("ledger.url", "none");
    sixty(bed).await
}

async fn with_postgresql_they_are_told_as_well(context: Context) -> Result<()> {
    let mut bed = stage(&context).await?;
    bed.settings.set("ledger.url", &context.postgres().await?.database().await?);
    sixty(bed).await
}
