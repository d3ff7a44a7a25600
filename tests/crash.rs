//! Nothing is lost when the worker or the broker is killed: at the end each event is applied or a
//! dead letter. Doubles are counted; they have no second effect.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use crate::harness::{Context, suite};
use crate::support::bed::{Bed, LIMIT};
use crate::support::queues::Queues;
use crate::support::{eventually, seed};

suite!(
OwnBroker:
    nothing_is_lost_when_the_broker_is_killed_mid_traffic;
Broker:
    nothing_is_lost_when_the_worker_is_killed_mid_traffic,
);

const CUSTOMERS: usize = 250;
/// One in so many events can never be applied.
const POISON: usize = 50;

/// Events whose address is theirs alone.
fn events(bed: &Bed, count: usize) -> Vec<Value> {
    let event = |n: usize| {
        let pincode = if n.is_multiple_of(POISON) { "0" } else { "682308" };
        let fields = json!({"address": format!("{n} MG Road"), "pincode": pincode});
        bed.event(&format!("e{n}"), &format!("C{}", n % CUSTOMERS), &fields)
    };
    (0..count).map(event).collect()
}

/// How often each address was applied.
async fn applied(bed: &Bed) -> Result<BTreeMap<String, usize>> {
    let mut times = BTreeMap::new();
    for customer in bed.simulator.customers().await? {
        let id = customer["fields"]["entity_id"].as_str().context("no id")?;
        let customer = bed.simulator.customer(id).await?;
        let history = customer["history"].as_array().context("no history")?;
        ensure!(history.len() < 32, "{id}: the simulator may have forgotten updates");
        for update in history {
            let address = update["fields"]["address"].as_str().context("no address")?;
            *times.entry(address.to_owned()).or_default() += 1;
        }
    }
    Ok(times)
}

/// Waits for the end and holds it against what was published.
async fn conserve(bed: &Bed, count: usize, what: &str) -> Result<()> {
    let valid = (count - count.div_ceil(POISON)) as u64;
    eventually("every valid event", LIMIT * 4, || async {
        let sum = bed.simulator.stats().await?["applied"].as_u64().unwrap_or(0);
        Ok((sum >= valid && applied(bed).await?.len() as u64 == valid).then_some(()))
    })
    .await?;
    let poison = u32::try_from(count.div_ceil(POISON))?;
    eventually("every dead letter", LIMIT, || async {
        Ok((bed.queues.depth(&bed.queue("dead")).await? >= poison).then_some(()))
    })
    .await?;
    let mut buried = BTreeSet::new();
    let letters = bed.queues.take_all(&bed.queue("dead")).await?;
    for letter in &letters {
        assert_eq!(letter.header("x-relay-reason").as_deref(), Some("invalid-event"));
        let event: Value = serde_json::from_slice(&letter.body)?;
        buried.insert(event["data"]["address"].as_str().unwrap().to_owned());
    }
    let times = applied(bed).await?;
    for n in 0..count {
        let address = format!("{n} MG Road");
        let is_poison = n.is_multiple_of(POISON);
        ensure!(buried.contains(&address) == is_poison, "event {n}: dead letter or not?");
        ensure!(times.contains_key(&address) != is_poison, "event {n}: applied or not?");
    }
    let doubles = times.values().sum::<usize>() - times.len();
    let twice_dead = letters.len() - buried.len();
    println!("{what}: {count} events, none lost, {doubles} applied and {twice_dead} buried twice");
    Ok(())
}

/// Each event is to reach the portal whole, however late. With a ledger it is the outcome that
/// counts: see `converge`.
fn by_name(bed: &mut Bed) {
    bed.settings.set("ledger.url", "none").set("worker.merge", "false");
}

async fn some_calls(bed: &Bed, more: u64) -> Result<()> {
    let before = bed.simulator.stats().await?["calls"].as_u64().unwrap_or(0);
    eventually("calls under way", LIMIT, || async {
        let stats = bed.simulator.stats().await?;
        let is_busy = stats["in_flight"].as_u64() > Some(0);
        Ok((is_busy && stats["calls"].as_u64() >= Some(before + more)).then_some(()))
    })
    .await
}

async fn nothing_is_lost_when_the_worker_is_killed_mid_traffic(context: Context) -> Result<()> {
    const EVENTS: usize = 5000;
    let seed = seed()?;
    let mut dice = StdRng::seed_from_u64(seed);
    let mut bed = context.bed_with(&["--latency", "20ms", "--log-requests", "0"]).await?;
    by_name(&mut bed);
    bed.declare().await?;
    bed.queues.publish_events(&bed.exchange(), &events(&bed, EVENTS)).await?;
    let matcher = json!({"probability": 0.03, "seed": seed});
    bed.simulator
        .fault(json!({"match": matcher, "fault": {"kind": "status", "code": 503}}))
        .await?;
    // Some calls take long, so that each kill meets calls under way.
    let long = json!({"kind": "latency", "ms": 500});
    bed.simulator.fault(json!({"match": {"every": 25}, "fault": long})).await?;
    let mut relay = bed.start_relay().await?;
    for _ in 0..6 {
        some_calls(&bed, dice.random_range(50..600)).await?;
        let abandoned = bed.simulator.stats().await?["abandoned"].as_u64();
        relay.kill().await?;
        eventually("calls cut by the kill", Duration::from_secs(5), || async {
            Ok((bed.simulator.stats().await?["abandoned"].as_u64() > abandoned).then_some(()))
        })
        .await?;
        relay = bed.start_relay().await?;
    }
    let left = bed.queues.depth(&bed.queue("work")).await?;
    ensure!(left > 0, "all done before the last kill");
    conserve(&bed, EVENTS, &format!("worker killed 6 times, TEST_SEED={seed}")).await?;
    bed.end(relay).await.map(drop)
}

async fn nothing_is_lost_when_the_broker_is_killed_mid_traffic(context: Context) -> Result<()> {
    const EVENTS: usize = 5000;
    let seed = seed()?;
    let mut dice = StdRng::seed_from_u64(seed);
    let mut broker = context.own_broker().await?;
    let mut bed = context.bed_on(&broker, &["--latency", "20ms", "--log-requests", "0"]).await?;
    bed.settings.set("broker.operation_timeout", "3s");
    by_name(&mut bed);
    bed.declare().await?;
    bed.queues.publish_events(&bed.exchange(), &events(&bed, EVENTS)).await?;
    let matcher = json!({"probability": 0.1, "seed": seed});
    bed.simulator
        .fault(json!({"match": matcher, "fault": {"kind": "status", "code": 503}}))
        .await?;
    let relay = bed.start_relay().await?;
    for _ in 0..2 {
        some_calls(&bed, dice.random_range(50..600)).await?;
        broker.kill().await?;
        broker.start_again().await?;
        bed.queues = Queues::connect(&broker.url()).await?;
    }
    conserve(&bed, EVENTS, &format!("broker killed twice, TEST_SEED={seed}")).await?;
    let output = bed.end(relay).await?;
    let sessions = output.matches("\"message\":\"consuming\"").count();
    ensure!(sessions >= 3, "{sessions} sessions: the relay noticed no kill");
    broker.stop().await
}
