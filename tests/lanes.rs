//! One customer's events go one at a time and in order; customers do not wait for each other.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::broker_faults::proxied;
use crate::harness::{Context, suite};
use crate::support::bed::{Bed, LIMIT};
use crate::support::chaos::Fault;
use crate::support::eventually;
use crate::support::held;
use crate::support::traffic::is_long;

suite!(Broker:
    a_customers_events_go_one_at_a_time_and_in_order_beside_others,
    what_waits_behind_a_retry_follows_it_and_ends_in_order,
    a_hanging_customer_does_not_hold_up_others,
    a_hot_customers_events_come_again_at_its_own_pace,
    of_events_of_one_moment_the_last_one_wins_after_a_kill,
    of_events_without_a_time_the_last_one_wins_after_a_kill,
    of_events_of_one_moment_the_last_one_wins_after_a_lost_connection,
);

/// A customer's applied updates, in the order of the calls.
async fn applied(bed: &Bed, entity_id: &str) -> Result<Vec<String>> {
    let calls = bed.simulator.requests(entity_id).await?;
    let applied = calls.iter().filter(|call| call["applied"] == true);
    Ok(applied.filter_map(|call| Some(call["values"]["address"].as_str()?.to_owned())).collect())
}

fn number(n: usize) -> Value {
    json!({"address": format!("{n:03} MG Road")})
}

async fn a_customers_events_go_one_at_a_time_and_in_order_beside_others(
    context: Context,
) -> Result<()> {
    const IN_FLIGHT: u64 = 4;
    let mut bed = context.bed_with(&["--latency", "5ms"]).await?;
    bed.settings.set("worker.in_flight", &IN_FLIGHT.to_string()).set("worker.merge", "false");
    bed.declare().await?;
    let events: Vec<Value> = (0..500)
        .map(|n| bed.event(&format!("e{n}"), &format!("C{}", n % 10), &number(n / 10)))
        .collect();
    bed.queues.publish_events(&bed.exchange(), &events).await?;
    let relay = bed.start_relay().await?;
    let expected: Vec<Value> = (0..50).map(|n| number(n)["address"].clone()).collect();
    for customer in (0..10).map(|n| format!("C{n}")) {
        let seen = bed.applied(&customer, 50).await?;
        assert_eq!(seen["max_in_flight"], 1, "{customer}");
        assert_eq!(json!(applied(&bed, &customer).await?), json!(expected), "{customer}");
    }
    let most = bed.simulator.stats().await?["max_in_flight"].as_u64().unwrap();
    ensure!((2..=IN_FLIGHT).contains(&most), "{most} calls at once, of {IN_FLIGHT} allowed");
    bed.end(relay).await.map(drop)
}

async fn what_waits_behind_a_retry_follows_it_and_ends_in_order(context: Context) -> Result<()> {
    let mut bed = context.bed_with(&["--latency", "300ms"]).await?;
    bed.settings.set("retry.immediate_retries", "0").set("worker.merge", "false");
    bed.declare().await?;
    bed.simulator.fault(json!({"times": 1, "fault": {"kind": "status", "code": 503}})).await?;
    let events: Vec<Value> =
        (0..6).map(|n| bed.event(&format!("e{n}"), "C1", &number(n))).collect();
    bed.queues.publish_events(&bed.exchange(), &events).await?;
    let relay = bed.start_relay().await?;
    bed.applied("C1", 6).await?;
    let expected: Vec<Value> = (0..6).map(|n| number(n)["address"].clone()).collect();
    assert_eq!(json!(applied(&bed, "C1").await?), json!(expected));
    let output = bed.end(relay).await?;
    assert!(output.contains("6 applied, 0 ignored, 1 to a retry, 5 to wait"), "{output}");
    Ok(())
}

async fn a_hanging_customer_does_not_hold_up_others(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    bed.settings
        .set("portal.timeout", "5s")
        .set("worker.in_flight", "2")
        .set("worker.merge", "false");
    let relay = bed.start_relay().await?;
    let rule = json!({"match": {"entity_id": "hangs"}, "times": 1, "fault": {"kind": "hang"}});
    bed.simulator.fault(rule).await?;
    for n in 0..5 {
        bed.publish(&bed.event("e", "hangs", &number(n))).await?;
    }
    eventually("the hanging call", LIMIT, || async {
        Ok((bed.simulator.stats().await?["in_flight"] == 1).then_some(()))
    })
    .await?;
    bed.publish(&bed.event("e", "C1", &number(0))).await?;
    bed.simulator.applied("C1", 1, Duration::from_secs(3)).await?;
    assert_eq!(bed.simulator.stats().await?["in_flight"], 1, "it hung all the while");
    bed.applied("hangs", 5).await?;
    bed.end(relay).await.map(drop)
}

/// Other events before the hot ones come.
const QUIET: usize = 20;

/// How many events it had no room for, and republished: what the relay says when it stops.
fn handed_back(output: &str) -> Result<usize> {
    let (before, _) = output.split_once(" to wait or handed back").context("no sum")?;
    let count = before.rsplit(' ').next().context("no figure")?;
    Ok(count.parse()?)
}

/// How many events wait, in the work queue or a retry tier.
async fn waiting(bed: &Bed) -> Result<u32> {
    let (work, tiers) = bed.ways().await?;
    held::ready(bed, &work, &tiers).await
}

async fn a_hot_customers_events_come_again_at_its_own_pace(context: Context) -> Result<()> {
    let (hot, latency) = if is_long() { (10_000, "500ms") } else { (2000, "100ms") };
    let mut bed = context.bed_with(&["--latency", latency]).await?;
    // As operators have it.
    for delay in ["shortest_delay", "first_delay"] {
        bed.settings.set(&format!("retry.{delay}"), "1s");
    }
    bed.settings.set("retry.max_delay", "10m").set("retry.max_uncounted_delay", "5m");
    let relay = bed.start_relay().await?;
    let mut quiet = Vec::new();
    for n in 0..QUIET {
        quiet.push(other(&bed, &format!("QUIET{n}")).await?);
    }
    let mut events: Vec<Value> =
        (0..hot).map(|n| bed.event(&format!("hot-{n}"), "HOT", &number(n))).collect();
    // Each of a moment of its own.
    let first = Timestamp::now();
    for (n, event) in events.iter_mut().enumerate() {
        let time = first + Duration::from_micros(n as u64);
        event["time"] = json!(time.to_string());
    }
    bed.queues.publish_events(&bed.exchange(), &events).await?;
    let began = std::time::Instant::now();
    let last = number(hot - 1)["address"].clone();
    let mut others = Vec::new();
    loop {
        others.push(other(&bed, &format!("OTHER{}", others.len())).await?);
        let is_last = bed.simulator.customer("HOT").await?["fields"]["address"] == last;
        if waiting(&bed).await? == 0 && is_last {
            break;
        }
        ensure!(began.elapsed() < LIMIT * 20, "no end");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let took = began.elapsed();
    let output = bed.end(relay).await?;
    let back = handed_back(&output)?;
    let (count, before, beside) = (others.len(), p99(quiet), p99(others));
    println!(
        "{hot} events of one customer, a portal of {latency}: handed back {back} times in {took:?}; of \
         {count} other events 99 % took {beside:?} or less, and {before:?} when it was quiet"
    );
    ensure!(back <= 3 * hot, "handed back {back} times");
    Ok(())
}

/// How long another customer's event takes.
async fn other(bed: &Bed, customer: &str) -> Result<Duration> {
    let came = std::time::Instant::now();
    bed.publish(&bed.event(customer, customer, &json!({"city": "Kochi"}))).await?;
    bed.simulator.applied(customer, 1, LIMIT).await?;
    Ok(came.elapsed())
}

fn p99(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[(times.len() * 99).div_ceil(100) - 1]
}

/// Publishes more events of one moment, or of none, of each of some customers than their lanes hold; the
/// value of the last one of each.
async fn publish_bursts(bed: &Bed, time: Option<Timestamp>) -> Result<Vec<(String, Value)>> {
    const EACH: usize = 5;
    let mut last = Vec::new();
    for customer in (0..4).map(|n| format!("C{n}")) {
        for n in 0..EACH {
            let mut event = bed.event(&format!("{customer}-{n}"), &customer, &number(n));
            match time {
                Some(time) => event["time"] = json!(time.to_string()),
                None => drop(event.as_object_mut().map(|event| event.remove("time"))),
            }
            bed.publish(&event).await?;
        }
        last.push((customer, number(EACH - 1)["address"].clone()));
    }
    Ok(last)
}

async fn have(bed: &Bed, last: &[(String, Value)]) -> Result<()> {
    let ended = eventually("the last values", LIMIT * 3, || async {
        for (customer, address) in last {
            if bed.simulator.customer(customer).await?["fields"]["address"] != *address {
                return Ok(None);
            }
        }
        Ok((waiting(bed).await? == 0).then_some(()))
    });
    let ended = ended.await;
    for (customer, address) in last {
        let seen = bed.simulator.customer(customer).await?;
        let waiting = waiting(bed).await?;
        ensure!(
            seen["fields"]["address"] == *address,
            "{customer}, {waiting} events still wait: {seen}"
        );
    }
    ended
}

async fn after_a_kill(context: Context, time: Option<Timestamp>) -> Result<()> {
    let mut bed = context.bed_with(&["--latency", "300ms"]).await?;
    bed.settings.set("broker.prefetch", "8").set("order.missing", "arrival");
    bed.declare().await?;
    let last = publish_bursts(&bed, time).await?;
    for _ in 0..2 {
        let relay = bed.start_relay().await?;
        eventually("a call under way", LIMIT, || async {
            Ok((bed.simulator.stats().await?["in_flight"].as_u64() > Some(0)).then_some(()))
        })
        .await?;
        relay.kill().await?;
    }
    let relay = bed.start_relay().await?;
    have(&bed, &last).await?;
    bed.end(relay).await.map(drop)
}

async fn of_events_of_one_moment_the_last_one_wins_after_a_kill(context: Context) -> Result<()> {
    after_a_kill(context, Some(Timestamp::now())).await
}

async fn of_events_without_a_time_the_last_one_wins_after_a_kill(context: Context) -> Result<()> {
    after_a_kill(context, None).await
}

async fn of_events_of_one_moment_the_last_one_wins_after_a_lost_connection(
    context: Context,
) -> Result<()> {
    let mut bed = context.bed_with(&["--latency", "300ms"]).await?;
    bed.settings.set("broker.prefetch", "8");
    let proxy = proxied(&context, &mut bed).await?;
    let relay = bed.start_relay().await?;
    let last = publish_bursts(&bed, Some(Timestamp::now())).await?;
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        proxy.set(Fault::Reset).await;
        proxy.set(Fault::None).await;
    }
    have(&bed, &last).await?;
    bed.end(relay).await.map(drop)
}
