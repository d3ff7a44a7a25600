//! A call that is under way at the portal, after whoever made it lost sight of it, undoes nothing:
//! what is newer is sent once more when that call can no longer land.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::dead_commands::{ids, put_all_back, told};
use crate::harness::{Context, suite};
use crate::support::bed::{Bed, LIMIT};
use crate::support::chaos::{ChaosProxy, Fault};
use crate::support::traffic::{CLOSED, OPENED, wrote};
use crate::support::{eventually, held, relay};

suite!(
ManagedBroker:
    a_newer_value_is_sent_again_though_its_session_was_lost_meanwhile,
    another_sources_event_of_the_same_id_is_sent_again,
    an_edited_letter_is_sent_again_after_a_call_of_its_original,
    what_was_to_be_sent_again_and_became_a_dead_letter_is_sent_when_it_is_put_back,
    a_control_call_that_outlives_its_relay_undoes_nothing;
Postgres:
    events_of_one_id_and_edits_are_sent_again_with_postgres,
    a_control_call_that_outlives_its_relay_undoes_nothing_with_postgres,
    a_timed_out_call_is_remembered_though_the_customer_is_read_again,
    a_relay_that_slept_between_two_calls_does_not_make_the_second;
);

const EARLY: &str = "2026-11-01T10:00:00Z";
const LATE: &str = "2026-11-01T11:00:00Z";

fn at(bed: &Bed, id: &str, time: &str, city: &str) -> Value {
    let mut event = bed.event(id, "C1", &json!({"city": city}));
    event["time"] = json!(time);
    event
}

/// The portal's next call for C1 is applied so much later, whoever waits for it.
async fn next_call_is_late(bed: &Bed, late: Duration) -> Result<()> {
    let fault = json!({"kind": "late", "ms": late.as_millis()});
    let rule = json!({"match": {"entity_prefix": "C1"}, "times": 1, "fault": fault});
    bed.simulator.fault(rule).await
}

/// From now on the portal refuses every call for C1.
async fn refuse_all(bed: &Bed) -> Result<()> {
    let refused = json!({"kind": "body_status", "status": 400});
    bed.simulator.fault(json!({"match": {"entity_prefix": "C1"}, "fault": refused})).await
}

async fn under_way(bed: &Bed, calls: u64) -> Result<()> {
    eventually(&format!("{calls} calls under way"), LIMIT, || async {
        Ok((bed.simulator.stats().await?["in_flight"] == calls).then_some(()))
    })
    .await
}

async fn cities(bed: &Bed) -> Result<Vec<String>> {
    let customer = bed.simulator.customer("C1").await?;
    let history = customer["history"].as_array().cloned().unwrap_or_default();
    let city = |update: Value| update["fields"]["city"].as_str().map(str::to_owned);
    Ok(history.into_iter().filter_map(city).collect())
}

/// Waits until the late call has landed on top of `newest`, and everything has come to its end.
async fn ends_with(context: &Context, bed: &Bed, newest: &str) -> Result<()> {
    eventually("the late call", LIMIT, || async {
        let cities = cities(bed).await?;
        let newer = cities.iter().position(|city| city == newest);
        Ok(newer.filter(|newer| newer + 1 < cities.len()))
    })
    .await?;
    held::until_all_ended(bed, context.broker().await?, LIMIT).await?;
    let cities = cities(bed).await?;
    ensure!(cities.last().is_some_and(|last| last == newest), "{cities:?}");
    Ok(())
}

async fn a_newer_value_is_sent_again_though_its_session_was_lost_meanwhile(
    context: Context,
) -> Result<()> {
    let mut bed = context.bed().await?;
    let broker = context.broker().await?;
    let proxy = ChaosProxy::start(broker.address()).await?;
    bed.settings.set("broker.url", &proxy.through(&broker.url()));
    bed.settings.set("broker.operation_timeout", "1s");
    bed.settings.set("portal.timeout", "1500ms").set("portal.settle_after", "14s");
    let relay = bed.start_relay().await?;
    next_call_is_late(&bed, Duration::from_secs(12)).await?;
    bed.publish(&at(&bed, "old", EARLY, "Pune")).await?;
    wrote(&bed, "timed-out", 1, LIMIT).await?;
    bed.applied("C1", 1).await?;
    let slow = json!({"kind": "latency", "ms": 1000});
    bed.simulator.fault(json!({"times": 1, "fault": slow})).await?;
    bed.publish(&at(&bed, "new", LATE, "Kochi")).await?;
    under_way(&bed, 1).await?;
    proxy.set(Fault::Refuse).await;
    bed.applied("C1", 2).await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    proxy.set(Fault::None).await;
    ends_with(&context, &bed, "Kochi").await?;
    bed.end(relay).await.map(drop)
}

/// Ids are unique within a source.
async fn another_sources_event_of_the_same_id_is_sent_again(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    another_source(&context, bed).await
}

async fn another_source(context: &Context, mut bed: Bed) -> Result<()> {
    bed.settings.set("portal.timeout", "500ms").set("portal.settle_after", "7s");
    let relay = bed.start_relay().await?;
    next_call_is_late(&bed, Duration::from_secs(5)).await?;
    bed.publish(&at(&bed, "same", EARLY, "Pune")).await?;
    wrote(&bed, "timed-out", 1, LIMIT).await?;
    let mut newer = at(&bed, "same", LATE, "Kochi");
    newer["source"] = json!("another");
    bed.publish(&newer).await?;
    ends_with(context, &bed, "Kochi").await?;
    bed.end(relay).await.map(drop)
}

async fn an_edited_letter_is_sent_again_after_a_call_of_its_original(
    context: Context,
) -> Result<()> {
    let bed = context.bed().await?;
    edited_letter(&context, bed).await
}

async fn edited_letter(context: &Context, mut bed: Bed) -> Result<()> {
    bed.settings.set("portal.timeout", "500ms").set("portal.settle_after", "12s");
    bed.settings.set("retry.max_attempts", "1");
    let relay = bed.start_relay().await?;
    next_call_is_late(&bed, Duration::from_secs(10)).await?;
    refuse_all(&bed).await?;
    bed.publish(&at(&bed, "old", EARLY, "Pune")).await?;
    let dead = bed.queue("dead");
    bed.queues.holds(&dead, 1, LIMIT).await?;
    let id = ids(&told(&bed, &["dead", "list"]).await?).remove(0);
    let edit = ["dead", "edit", &id, "--set", "city=Kochi", "--why", "a test", "--yes"];
    assert_eq!(told(&bed, &edit).await?["edited"], 1);
    bed.simulator.heal().await?;
    put_all_back(&bed).await?;
    ends_with(context, &bed, "Kochi").await?;
    bed.queues.take_all(&bed.queue("archive")).await?;
    bed.end(relay).await.map(drop)
}

async fn what_was_to_be_sent_again_and_became_a_dead_letter_is_sent_when_it_is_put_back(
    context: Context,
) -> Result<()> {
    let mut bed = context.bed().await?;
    bed.settings.set("portal.timeout", "500ms").set("portal.settle_after", "4s");
    let relay = bed.start_relay().await?;
    next_call_is_late(&bed, Duration::from_secs(3)).await?;
    bed.publish(&at(&bed, "old", EARLY, "Pune")).await?;
    wrote(&bed, "timed-out", 1, LIMIT).await?;
    bed.publish(&at(&bed, "new", LATE, "Kochi")).await?;
    eventually("the newer value", LIMIT, || async {
        Ok(cities(&bed).await?.contains(&"Kochi".to_owned()).then_some(()))
    })
    .await?;
    refuse_all(&bed).await?;
    bed.queues.holds(&bed.queue("dead"), 1, LIMIT).await?;
    ensure!(cities(&bed).await?.last().is_some_and(|last| last == "Pune"), "not undone");
    bed.simulator.heal().await?;
    put_all_back(&bed).await?;
    ends_with(&context, &bed, "Kochi").await?;
    bed.end(relay).await.map(drop)
}

async fn events_of_one_id_and_edits_are_sent_again_with_postgres(context: Context) -> Result<()> {
    let postgres = context.postgres().await?;
    let mut bed = context.bed().await?;
    bed.settings.set("ledger.url", &postgres.database().await?);
    another_source(&context, bed).await?;
    let mut bed = context.bed().await?;
    bed.settings.set("ledger.url", &postgres.database().await?);
    edited_letter(&context, bed).await
}

async fn a_control_call_that_outlives_its_relay_undoes_nothing(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    killed_in_a_control_call(&context, bed).await
}

async fn a_control_call_that_outlives_its_relay_undoes_nothing_with_postgres(
    context: Context,
) -> Result<()> {
    let mut bed = context.bed().await?;
    bed.settings.set("ledger.url", &context.postgres().await?.database().await?);
    killed_in_a_control_call(&context, bed).await
}

/// A customer's last update is on its way once more when the relay is killed.
async fn killed_in_a_control_call(context: &Context, mut bed: Bed) -> Result<()> {
    bed.settings.set("portal.timeout", "3s").set("portal.settle_after", "14s");
    bed.settings.set("portal.probe_customer", "").set("retry.immediate_retries", "0");
    bed.settings.set("broker.heartbeat", "1s");
    let relay = bed.start_relay().await?;
    bed.publish(&at(&bed, "old", EARLY, "Pune")).await?;
    bed.applied("C1", 1).await?;
    next_call_is_late(&bed, Duration::from_secs(12)).await?;
    let fails = json!({"kind": "status", "code": 500});
    let rule = json!({"match": {"entity_prefix": "BAD"}, "fault": fails});
    bed.simulator.fault(rule).await?;
    bed.publish(&bed.event("bad", "BAD", &json!({"city": "Agra"}))).await?;
    under_way(&bed, 1).await?;
    relay.kill().await?;
    bed.simulator.heal().await?;
    let relay = bed.start_relay().await?;
    bed.publish(&at(&bed, "new", LATE, "Kochi")).await?;
    ends_with(context, &bed, "Kochi").await?;
    bed.end(relay).await.map(drop)
}

/// A lease is renewed while an event waits out an outage: its own timed-out call is not forgotten.
async fn a_timed_out_call_is_remembered_though_the_customer_is_read_again(
    context: Context,
) -> Result<()> {
    let mut bed = context.bed().await?;
    let postgres = context.postgres().await?;
    bed.settings.set("ledger.url", &postgres.database().await?);
    bed.settings.set("portal.timeout", "1500ms").set("portal.settle_after", "19s");
    // Half of it is longer than a lease outlasts an attempt.
    bed.settings.set("outage.first_probe", "11s").set("outage.max_probe_interval", "11s");
    bed.settings.set("portal.probe_customer", "").set("outage.control_calls", "off");
    let relay = bed.start_relay().await?;
    next_call_is_late(&bed, Duration::from_secs(17)).await?;
    let fails = json!({"kind": "status", "code": 503});
    bed.simulator.fault(json!({"match": {"entity_prefix": "X"}, "fault": fails})).await?;
    bed.publish(&at(&bed, "old", EARLY, "Pune")).await?;
    under_way(&bed, 1).await?;
    for n in 0..3 {
        bed.publish(&bed.event(&format!("x{n}"), &format!("X{n}"), &json!({"city": "Agra"})))
            .await?;
    }
    wrote(&bed, OPENED, 1, LIMIT).await?;
    wrote(&bed, "timed-out", 1, LIMIT).await?;
    bed.simulator.heal().await?;
    wrote(&bed, CLOSED, 1, LIMIT).await?;
    bed.applied("C1", 1).await?;
    bed.publish(&at(&bed, "new", LATE, "Kochi")).await?;
    ends_with(&context, &bed, "Kochi").await?;
    bed.end(relay).await.map(drop)
}

/// A relay sleeps in the pause before an immediate retry, for longer than anybody waits for its calls. By
/// then another one has applied something newer, and sent it again: nothing would mend an old call now.
async fn a_relay_that_slept_between_two_calls_does_not_make_the_second(
    context: Context,
) -> Result<()> {
    let mut bed = context.bed().await?;
    let postgres = context.postgres().await?;
    bed.settings.set("ledger.url", &postgres.database().await?);
    bed.settings.set("portal.timeout", "1s").set("portal.settle_after", "2s");
    bed.settings.set("broker.heartbeat", "1s").set("retry.immediate_first_pause", "2s");
    bed.settings.set("retry.immediate_budget", "3s");
    let sleeper = bed.start_relay().await?;
    let fails = json!({"kind": "status", "code": 503});
    let rule = json!({"match": {"entity_prefix": "C1"}, "times": 1, "fault": fails});
    bed.simulator.fault(rule).await?;
    bed.publish(&at(&bed, "old", EARLY, "Pune")).await?;
    eventually("the first call", LIMIT, || async {
        Ok((bed.simulator.stats().await?["calls"] == 1).then_some(()))
    })
    .await?;
    // The answer is on its way, and the pause after it lasts for a second at least.
    tokio::time::sleep(Duration::from_millis(300)).await;
    sleeper.signal("STOP").await?;
    let other = bed.start_relay().await?;
    bed.publish(&at(&bed, "new", LATE, "Kochi")).await?;
    // Once on its own, and once more when no call of the sleeper could land any more.
    eventually("the newer value, twice", LIMIT, || async {
        Ok(cities(&bed).await?.ends_with(&["Kochi".into(), "Kochi".into()]).then_some(()))
    })
    .await?;
    sleeper.signal("CONT").await?;
    held::until_all_ended(&bed, context.broker().await?, LIMIT).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let cities = cities(&bed).await?;
    ensure!(cities.last().is_some_and(|last| last == "Kochi"), "{cities:?}");
    relay::stop(other).await?;
    bed.end(sleeper).await.map(drop)
}
