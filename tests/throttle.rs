//! A portal that wants fewer calls gets fewer: everybody waits as long as it asks, and nothing is
//! counted; a customer who is throttled alone waits alone.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::harness::{Context, suite};
use crate::support::bed::LIMIT;
use crate::support::eventually;
use crate::support::traffic::{all_applied, began, calls, lines, publish};

suite!(Broker:
    no_call_begins_sooner_than_the_portal_asked_and_none_is_counted,
    many_calls_under_way_become_few_and_none_is_counted,
    a_customer_who_is_throttled_alone_waits_alone,
    the_rate_is_never_exceeded,
);

const ASKED_MS: i64 = 2000;

async fn no_call_begins_sooner_than_the_portal_asked_and_none_is_counted(
    context: Context,
) -> Result<()> {
    let mut bed = context.bed().await?;
    bed.settings.set("worker.in_flight", "1");
    let relay = bed.start_relay().await?;
    let fault = json!({"kind": "status", "code": 429, "retry_after": ASKED_MS / 1000});
    bed.simulator.fault(json!({"times": 3, "fault": fault})).await?;
    publish(&bed, "C", 100).await?;
    all_applied(&bed, 100, LIMIT).await?;
    let calls = calls(&bed).await?;
    assert_eq!(calls.len(), 103);
    for pair in calls[..4].windows(2) {
        let gap = began(&pair[1]) - began(&pair[0]);
        ensure!(gap >= ASKED_MS, "called again after {gap} ms");
    }
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
