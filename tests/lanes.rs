//! One customer's events go one at a time and in order; customers do not wait for each other.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::harness::{Context, suite};
use crate::support::bed::{Bed, LIMIT};
use crate::support::eventually;

suite!(Broker:
    a_customers_events_go_one_at_a_time_and_in_order_beside_others,
    what_waits_behind_a_retry_follows_it_and_ends_in_order,
    a_hanging_customer_does_not_hold_up_others,
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
