//! A portal that wants fewer calls gets fewer: everybody waits as long as it asks, and nothing is
//! counted; a customer who is throttled alone waits alone.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::harness::{Context, suite};
use crate::support::bed::LIMIT;
use crate::support::eventually;
use crate::support::traffic::{
    all_applied, began, calls, events, lines, publish, with_short_timetable,
};

suite!(Broker:
    no_call_begins_sooner_than_the_portal_asked_and_none_is_counted,
    many_calls_under_way_become_few_and_none_is_counted,
    a_customer_who_is_throttled_alone_waits_alone,
    two_dozen_customers_who_are_throttled_for_ever_hold_up_nobody_else,
    two_hundred_customers_who_are_throttled_for_ever_hold_up_nobody_else,
    the_rate_is_never_exceeded,
);

const ASKED_MS: i64 = 2000;

async fn no_call_begins_sooner_than_the_portal_asked_and_none_is_counted(
    context: Context,
) -> Result<()> {
    let mut bed = context.bed().await?;
    bed.settings.set("worker.in_flight", "1").set("portal.probe_customer", "");
    let relay = bed.start_relay().await?;
    let fault = json!({"kind": "status", "code": 429, "retry_after": ASKED_MS / 1000});
    bed.simulator.fault(json!({"times": 3, "fault": fault})).await?;
    publish(&bed, "C", 100).await?;
    all_applied(&bed, 100, LIMIT).await?;
    let calls = calls(&bed).await?;
    assert_eq!(calls.len(), 103);
    // One other customer, a second later, may tell that only some are throttled.
    let gaps: Vec<i64> =
        calls[..4].windows(2).map(|pair| began(&pair[1]) - began(&pair[0])).collect();
    ensure!(
        gaps[0] >= 1000 && gaps.iter().sum::<i64>() >= 2 * ASKED_MS,
        "called after {gaps:?} ms"
    );
    let output = bed.end(relay).await?;
    assert!(output.contains("100 applied, 0 ignored, 0 to a retry, 0 to wait"), "{output}");
    assert!(!output.contains("\"attempt\":2"), "{output}");
    Ok(())
}

async fn many_calls_under_way_become_few_and_none_is_counted(context: Context) -> Result<()> {
    let bed = context.bed_with(&["--latency", "50ms"]).await?;
    let relay = bed.start_relay().await?;
    let fault = json!({"kind": "status", "code": 429, "retry_after": ASKED_MS / 1000});
    bed.simulator.fault(json!({ "fault": fault })).await?;
    publish(&bed, "C", 300).await?;
    eventually("calls after the first wait", LIMIT, || async {
        let calls = calls(&bed).await?;
        let (first, last) = (calls.first().map_or(0, began), calls.last().map_or(0, began));
        Ok((last - first >= ASKED_MS).then_some(()))
    })
    .await?;
    bed.simulator.heal().await?;
    all_applied(&bed, 300, LIMIT).await?;
    let refused = bed.simulator.stats().await?["faults"]["status"].as_u64().unwrap_or(0);
    // 32 under way when it began, 16 after it was halved, 8 after that.
    ensure!(refused <= 32 + 16 + 8, "{refused} calls in vain");
    let output = bed.end(relay).await?;
    assert!(output.contains("300 applied, 0 ignored, 0 to a retry, 0 to wait"), "{output}");
    let said = lines(&output, "throttled by the portal").len();
    ensure!(said <= 4, "said {said} times, once for each wait");
    assert!(!output.contains("outage"), "{output}");
    Ok(())
}

async fn a_customer_who_is_throttled_alone_waits_alone(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    bed.settings.set("retry.max_attempts", "3");
    let relay = bed.start_relay().await?;
    let fault = json!({"kind": "status", "code": 429, "retry_after": 1});
    bed.simulator.fault(json!({"match": {"entity_id": "ALONE"}, "fault": fault})).await?;
    bed.publish(&bed.event("alone", "ALONE", &json!({"city": "Kochi"}))).await?;
    publish(&bed, "C", 300).await?;
    all_applied(&bed, 300, LIMIT).await?;
    let dead = bed.dead_letter().await?;
    assert_eq!(dead.header("x-relay-reason").as_deref(), Some("retries-exhausted"));
    assert_eq!(dead.header("x-relay-attempts").as_deref(), Some("3"));
    let output = bed.end(relay).await?;
    for verdict in ["\"verdict\":\"retry\"", "\"verdict\":\"hold\"", "\"verdict\":\"dead-letter\""]
    {
        let lines = lines(&output, verdict);
        ensure!(!lines.is_empty(), "no {verdict}: {output}");
        assert!(lines.iter().all(|line| line["event_id"] == "alone"), "{lines:?}");
    }
    assert!(output.contains("300 applied, 0 ignored, 2 to a retry"), "{output}");
    assert!(!output.contains("outage"), "{output}");
    Ok(())
}

/// Four events of healthy customers a second, beside so many that get 429 whenever they are called.
async fn healthy_beside(context: &Context, throttled: usize) -> Result<()> {
    const EVENTS: usize = 120;
    const PAUSE: Duration = Duration::from_millis(250);
    let mut bed = context.bed_with(&["--log-requests", "100000"]).await?;
    with_short_timetable(&mut bed);
    let relay = bed.start_relay().await?;
    let fault = json!({"kind": "status", "code": 429, "retry_after": 5});
    bed.simulator.fault(json!({"match": {"entity_prefix": "T"}, "fault": fault})).await?;
    publish(&bed, "T", throttled).await?;
    // Then it is known that some are throttled alone.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let mut published = Vec::with_capacity(EVENTS);
    for event in events(&bed, "H", 0..EVENTS) {
        published.push(jiff::Timestamp::now().as_millisecond());
        bed.publish(&event).await?;
        tokio::time::sleep(PAUSE).await;
    }
    all_applied(&bed, EVENTS, LIMIT).await?;
    let calls = calls(&bed).await?;
    let healthy = |call: &&Value| call["entity_id"].as_str().is_some_and(|id| id.starts_with('H'));
    let began: Vec<i64> = calls.iter().filter(healthy).map(began).collect();
    assert_eq!(began.len(), EVENTS, "each is called once");
    let mut waits: Vec<i64> = began.iter().zip(&published).map(|(at, from)| at - from).collect();
    waits.sort_unstable();
    let p99 = waits[EVENTS * 99 / 100];
    bed.queues.holds(&bed.queue("dead"), u32::try_from(throttled)?, LIMIT * 4).await?;
    for letter in bed.queues.take_all(&bed.queue("dead")).await? {
        assert_eq!(letter.header("x-relay-reason").as_deref(), Some("retries-exhausted"));
    }
    let output = bed.end(relay).await?;
    let in_vain = lines(&output, "\"outcome\":\"throttled\"").len();
    println!(
        "{throttled} customers throttled for ever: others wait {} ms in the middle, {p99} ms at the \
         99th percentile, {} ms at most; {in_vain} calls in vain",
        waits[EVENTS / 2],
        waits[EVENTS - 1],
    );
    ensure!(p99 < 2000, "healthy customers waited {p99} ms");
    ensure!(!output.contains("outage"), "{output}");
    Ok(())
}

async fn two_dozen_customers_who_are_throttled_for_ever_hold_up_nobody_else(
    context: Context,
) -> Result<()> {
    healthy_beside(&context, 24).await
}

async fn two_hundred_customers_who_are_throttled_for_ever_hold_up_nobody_else(
    context: Context,
) -> Result<()> {
    healthy_beside(&context, 200).await
}

async fn the_rate_is_never_exceeded(context: Context) -> Result<()> {
    const RATE: usize = 20;
    // A call that a busy machine delays comes closer to the next ones.
    const DELAYED: usize = 5;
    let mut bed = context.bed().await?;
    bed.settings.set("portal.max_rate", &RATE.to_string());
    bed.declare().await?;
    publish(&bed, "C", RATE * 4).await?;
    let relay = bed.start_relay().await?;
    all_applied(&bed, RATE * 4, LIMIT).await?;
    let times: Vec<i64> = calls(&bed).await?.iter().map(began).collect();
    let within_a_second =
        |from: &i64| times.iter().filter(|t| (*from..from + 1000).contains(t)).count();
    let most = times.iter().map(within_a_second).max().unwrap_or(0);
    ensure!(most <= RATE + 1 + DELAYED, "{most} calls in one second");
    let lasted = times[times.len() - 1] - times[0];
    ensure!(lasted >= 3700, "{} calls within {lasted} ms", times.len());
    println!("at a rate of {RATE}: at most {most} calls in one second");
    bed.end(relay).await.map(drop)
}
