//! What fails for now is tried again, when it is due, as often as the timetable says, and counted
//! as the design counts.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use jiff::Timestamp;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};

use crate::harness::{Context, suite};
use crate::support::bed::{Bed, LIMIT, structured};
use crate::support::eventually;
use crate::support::queues::Taken;
use crate::support::relay;

suite!(OwnBroker:
    a_delay_survives_kill_9_of_broker_and_worker_and_ends_when_it_is_due;
Broker:
    attempts_are_counted_as_in_the_designs_example,
    a_throttled_event_waits_as_long_as_asked_and_counts_no_attempt,
    a_retry_after_beyond_the_longest_tier_is_kept_over_several_waits,
    a_counted_retry_waits_as_long_as_asked_too,
    a_gateways_or_a_routes_fault_counts_if_others_go_well_and_is_not_retried_at_once,
    a_portal_that_refuses_connections_counts_no_attempt,
    the_last_attempt_ends_in_a_dead_letter,
    an_unknown_customer_is_a_dead_letter_after_the_last_attempt,
    an_unauthorized_customer_is_a_dead_letter_after_the_last_attempt,
    an_answer_outside_the_page_is_a_dead_letter_after_three_attempts,
    a_duplicate_email_gets_two_more_tries,
    a_duplicate_email_that_is_given_up_in_time_is_applied,
    a_hanging_call_ends_at_the_limit_and_is_not_retried_at_once,
    a_lost_connection_is_retried_at_once,
    an_event_from_the_future_waits_until_it_is_due,
    an_event_from_beyond_the_limit_is_invalid,
    a_delivery_before_its_time_goes_to_a_tier_again_without_a_call,
    a_delay_survives_kill_9_of_the_worker,
);

fn city() -> Value {
    json!({"city": "Kochi"})
}

/// Tiers too long for a message to leave them while a test looks.
fn with_long_tiers(bed: &mut Bed) {
    for (key, value) in [
        ("retry.shortest_delay", "20s"),
        ("retry.first_delay", "40s"),
        ("retry.max_delay", "80s"),
        ("retry.max_uncounted_delay", "40s"),
        ("retry.rejected_delay", "20s"),
    ] {
        bed.settings.set(key, value);
    }
}

/// Takes the message that waits in one of these tiers.
async fn take_from(bed: &Bed, tiers: &[&str]) -> Result<Taken> {
    eventually(&format!("a message in one of {tiers:?}"), LIMIT, || async {
        for tier in tiers {
            let queue = bed.queue(&format!("retry.{tier}ms"));
            if let Some(taken) = bed.queues.try_take(&queue).await? {
                return Ok(Some(taken));
            }
        }
        Ok(None)
    })
    .await
}

fn header(taken: &Taken, name: &str) -> String {
    taken.header(&format!("x-relay-{name}")).unwrap_or_default()
}

/// Milliseconds between a customer's calls.
async fn gaps(bed: &Bed, entity_id: &str) -> Result<Vec<i64>> {
    let calls = bed.simulator.requests(entity_id).await?;
    let times: Vec<i64> = calls.iter().filter_map(|call| call["unix_ms"].as_i64()).collect();
    Ok(times.windows(2).map(|pair| pair[1] - pair[0]).collect())
}

async fn attempts_are_counted_as_in_the_designs_example(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    with_long_tiers(&mut bed);
    let relay = bed.start_relay().await?;
    let fault = json!({"kind": "status", "code": 503});
    let rule = json!({"match": {"entity_id": "C1"}, "times": 6, "fault": fault});
    bed.simulator.fault(rule).await?;
    bed.publish(&bed.event("e1", "C1", &city())).await?;

    let waiting = take_from(&bed, &["20000", "30000", "40000"]).await?;
    assert_eq!(header(&waiting, "attempts"), "1", "three calls within 2 s are one attempt");
    assert_eq!(header(&waiting, "last-reason"), "portal-failed");
    assert_eq!(bed.simulator.requests("C1").await?.len(), 3);
    let first_seen = header(&waiting, "first-seen");
    bed.put_back(waiting.properties, &waiting.body).await?;

    let waiting = take_from(&bed, &["40000", "60000", "80000"]).await?;
    assert_eq!(header(&waiting, "attempts"), "2");
    assert_eq!(header(&waiting, "first-seen"), first_seen);
    assert_eq!(bed.simulator.requests("C1").await?.len(), 6);
    bed.put_back(waiting.properties, &waiting.body).await?;

    bed.applied("C1", 1).await?;
    assert_eq!(bed.simulator.requests("C1").await?.len(), 7);
    let output = bed.end(relay).await?;
    let applied = output.lines().find(|line| line.contains("\"message\":\"applied\"")).unwrap();
    assert!(applied.contains("\"attempt\":3"), "{applied}");
    Ok(())
}

async fn a_throttled_event_waits_as_long_as_asked_and_counts_no_attempt(
    context: Context,
) -> Result<()> {
    let mut bed = context.bed().await?;
    bed.settings.set("retry.max_delay", "1600ms");
    let relay = bed.start_relay().await?;
    let fault = json!({"kind": "status", "code": 429, "retry_after": 1});
    bed.simulator.fault(json!({"match": {"entity_id": "C1"}, "times": 1, "fault": fault})).await?;
    bed.publish(&bed.event("e1", "C1", &city())).await?;
    bed.applied("C1", 1).await?;
    let gaps = gaps(&bed, "C1").await?;
    ensure!(gaps.len() == 1 && gaps[0] >= 1000, "calls {gaps:?} ms apart, asked for 1000");
    let output = bed.end(relay).await?;
    let applied = output.lines().find(|line| line.contains("\"message\":\"applied\"")).unwrap();
    assert!(applied.contains("\"attempt\":1"), "{applied}");
    assert!(output.contains("1 applied, 0 ignored, 0 to a retry, 0 to wait"), "{output}");
    Ok(())
}

async fn a_retry_after_beyond_the_longest_tier_is_kept_over_several_waits(
    context: Context,
) -> Result<()> {
    let bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    let fault = json!({"kind": "status", "code": 503, "retry_after": 2});
    bed.simulator.fault(json!({"match": {"entity_id": "C1"}, "times": 1, "fault": fault})).await?;
    bed.publish(&bed.event("e1", "C1", &city())).await?;
    bed.applied("C1", 1).await?;
    let gaps = gaps(&bed, "C1").await?;
    ensure!(gaps.len() == 1 && gaps[0] >= 2000, "calls {gaps:?} ms apart, asked for 2000");
    bed.end(relay).await.map(drop)
}

async fn a_counted_retry_waits_as_long_as_asked_too(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    let fault = json!({"kind": "status", "code": 503, "retry_after": 1});
    bed.simulator.fault(json!({"match": {"entity_id": "C1"}, "times": 1, "fault": fault})).await?;
    bed.publish(&bed.event("e1", "C1", &city())).await?;
    bed.applied("C1", 1).await?;
    let gaps = gaps(&bed, "C1").await?;
    ensure!(gaps.len() == 1 && gaps[0] >= 1000, "no immediate retry, {gaps:?} ms, asked for 1000");
    let output = bed.end(relay).await?;
    assert!(output.contains("1 applied, 0 ignored, 1 to a retry"), "{output}");
    Ok(())
}

async fn a_gateways_or_a_routes_fault_counts_if_others_go_well_and_is_not_retried_at_once(
    context: Context,
) -> Result<()> {
    let mut bed = context.bed().await?;
    with_long_tiers(&mut bed);
    let relay = bed.start_relay().await?;
    let html = |code: u16| json!({"kind": "status", "code": code, "envelope": false});
    for (customer, fault, reason) in [
        ("C502", html(502), "gateway-failed"),
        ("C503", html(503), "gateway-failed"),
        ("C404", html(404), "misrouted"),
        ("C405", html(405), "misrouted"),
        ("C415", html(415), "misrouted"),
        ("C307", json!({"kind": "redirect", "location": bed.simulator.url()}), "misrouted"),
    ] {
        let rule = json!({"match": {"entity_id": customer}, "times": 1, "fault": fault});
        bed.simulator.fault(rule).await?;
        bed.publish(&bed.event("e1", customer, &city())).await?;
        let waiting = take_from(&bed, &["20000", "30000", "40000"]).await?;
        assert_eq!(header(&waiting, "attempts"), "1", "{customer}");
        assert_eq!(header(&waiting, "last-reason"), reason, "{customer}");
        assert_eq!(bed.simulator.requests(customer).await?.len(), 1, "{customer}: at once");
        bed.put_back(waiting.properties, &waiting.body).await?;
        bed.applied(customer, 1).await?;
    }
    bed.end(relay).await.map(drop)
}

async fn a_portal_that_refuses_connections_counts_no_attempt(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    with_long_tiers(&mut bed);
    let nobody = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    bed.settings.set("portal.base_url", &format!("http://{nobody}"));
    bed.settings.set("outage.control_calls", "off");
    let relay = bed.start_relay().await?;
    bed.publish(&bed.event("e1", "C1", &city())).await?;
    let waiting = take_from(&bed, &["20000", "30000", "40000"]).await?;
    assert_eq!(header(&waiting, "attempts"), "0");
    assert_eq!(header(&waiting, "last-reason"), "unreachable");
    relay::stop(relay).await?;
    bed.settings.set("portal.base_url", bed.simulator.url());
    let relay = bed.start_relay().await?;
    bed.put_back(waiting.properties, &waiting.body).await?;
    bed.applied("C1", 1).await?;
    bed.end(relay).await.map(drop)
}

/// An event whose every call meets `fault`, to its dead letter.
async fn dead_letter_after(bed: &Bed, fault: Value) -> Result<Taken> {
    bed.simulator.fault(json!({"match": {"entity_id": "C1"}, "fault": fault})).await?;
    bed.publish(&bed.event("e1", "C1", &city())).await?;
    bed.dead_letter().await
}

fn assert_ended(dead: &Taken, reason: &str, attempts: &str, flags: &str) {
    assert_eq!(header(dead, "reason"), reason);
    assert_eq!(header(dead, "attempts"), attempts);
    assert_eq!(header(dead, "flags"), flags);
}

async fn the_last_attempt_ends_in_a_dead_letter(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    bed.settings.set("retry.max_attempts", "3");
    bed.set_probe_customer();
    let relay = bed.start_relay().await?;
    let dead = dead_letter_after(&bed, json!({"kind": "status", "code": 503})).await?;
    assert_ended(&dead, "retries-exhausted", "3", "needs-review");
    assert_eq!(header(&dead, "http-status"), "503");
    assert_eq!(header(&dead, "portal-status"), "503");
    assert_eq!(bed.simulator.requests("C1").await?.len(), 9, "three calls an attempt");
    bed.end(relay).await.map(drop)
}

async fn an_unknown_customer_is_a_dead_letter_after_the_last_attempt(
    context: Context,
) -> Result<()> {
    let mut bed = context.bed().await?;
    bed.settings.set("retry.max_attempts", "2");
    bed.set_probe_customer();
    let relay = bed.start_relay().await?;
    let dead = dead_letter_after(&bed, json!({"kind": "status", "code": 404})).await?;
    assert_ended(&dead, "unknown-entity", "2", "");
    assert_eq!(header(&dead, "portal-status"), "404");
    assert_eq!(bed.simulator.requests("C1").await?.len(), 2);
    bed.end(relay).await.map(drop)
}

async fn an_unauthorized_customer_is_a_dead_letter_after_the_last_attempt(
    context: Context,
) -> Result<()> {
    let mut bed = context.bed().await?;
    bed.settings.set("retry.max_attempts", "2");
    bed.set_probe_customer();
    let relay = bed.start_relay().await?;
    let dead = dead_letter_after(&bed, json!({"kind": "status", "code": 403})).await?;
    assert_ended(&dead, "unauthorized-customer", "2", "");
    assert_eq!(bed.simulator.requests("C1").await?.len(), 2);
    bed.end(relay).await.map(drop)
}

async fn an_answer_outside_the_page_is_a_dead_letter_after_three_attempts(
    context: Context,
) -> Result<()> {
    let mut bed = context.bed().await?;
    bed.set_probe_customer();
    let relay = bed.start_relay().await?;
    let body = json!({"status": 211, "message": "success"});
    let dead = dead_letter_after(&bed, json!({"kind": "raw", "code": 200, "body": body})).await?;
    assert_ended(&dead, "contract-violation", "3", "");
    assert_eq!(header(&dead, "portal-status"), "211");
    assert_eq!(bed.simulator.requests("C1").await?.len(), 3);
    bed.end(relay).await.map(drop)
}

async fn a_duplicate_email_gets_two_more_tries(context: Context) -> Result<()> {
    let bed = context.bed_with(&["--messages", "detailed"]).await?;
    let relay = bed.start_relay().await?;
    let email = json!({"email": "asha@example.com"});
    bed.publish(&bed.event("e1", "C1", &email)).await?;
    bed.applied("C1", 1).await?;
    bed.publish(&bed.event("e2", "C2", &email)).await?;
    let dead = bed.dead_letter().await?;
    assert_ended(&dead, "duplicate-email", "3", "");
    assert_eq!(header(&dead, "field"), "email");
    let gaps = gaps(&bed, "C2").await?;
    ensure!(gaps.len() == 2 && gaps.iter().all(|gap| *gap >= 100), "delayed tries: {gaps:?} ms");
    bed.end(relay).await.map(drop)
}

async fn a_duplicate_email_that_is_given_up_in_time_is_applied(context: Context) -> Result<()> {
    let mut bed = context.bed_with(&["--messages", "detailed"]).await?;
    bed.settings.set("retry.max_delay", "800ms").set("retry.rejected_delay", "800ms");
    let relay = bed.start_relay().await?;
    bed.publish(&bed.event("e1", "C1", &json!({"email": "asha@example.com"}))).await?;
    bed.applied("C1", 1).await?;
    bed.publish(&bed.event("e2", "C2", &json!({"email": "asha@example.com"}))).await?;
    eventually("the first refusal", LIMIT, || async {
        Ok((!bed.simulator.requests("C2").await?.is_empty()).then_some(()))
    })
    .await?;
    bed.publish(&bed.event("e3", "C1", &json!({"email": "new@example.com"}))).await?;
    let customer = bed.applied("C2", 1).await?;
    assert_eq!(customer["fields"]["email"], "asha@example.com");
    bed.end(relay).await.map(drop)
}

async fn a_hanging_call_ends_at_the_limit_and_is_not_retried_at_once(
    context: Context,
) -> Result<()> {
    let mut bed = context.bed().await?;
    with_long_tiers(&mut bed);
    bed.settings.set("portal.timeout", "300ms");
    let relay = bed.start_relay().await?;
    bed.simulator
        .fault(json!({"match": {"entity_id": "C1"}, "times": 1, "fault": {"kind": "hang"}}))
        .await?;
    bed.publish(&bed.event("e1", "C1", &city())).await?;
    let waiting = take_from(&bed, &["20000", "30000", "40000"]).await?;
    assert_eq!(header(&waiting, "attempts"), "1");
    assert_eq!(header(&waiting, "last-reason"), "timed-out");
    assert_eq!(bed.simulator.customer("C1").await?["calls"], 1);
    bed.put_back(waiting.properties, &waiting.body).await?;
    bed.applied("C1", 1).await?;
    let output = bed.end(relay).await?;
    let applied = output.lines().find(|line| line.contains("\"message\":\"applied\"")).unwrap();
    assert!(applied.contains("\"attempt\":2"), "{applied}");
    Ok(())
}

async fn a_lost_connection_is_retried_at_once(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    bed.simulator
        .fault(json!({"match": {"entity_id": "C1"}, "times": 1, "fault": {"kind": "reset"}}))
        .await?;
    bed.simulator
        .fault(json!({"match": {"entity_id": "C1"}, "times": 1, "fault": {"kind": "truncated"}}))
        .await?;
    bed.publish(&bed.event("e1", "C1", &city())).await?;
    bed.applied("C1", 1).await?;
    let output = bed.end(relay).await?;
    let applied = output.lines().find(|line| line.contains("\"message\":\"applied\"")).unwrap();
    assert!(applied.contains("\"attempt\":1") && applied.contains("\"calls\":3"), "{applied}");
    Ok(())
}

async fn an_event_from_the_future_waits_until_it_is_due(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    bed.settings.set("event.future_tolerance", "1s");
    let relay = bed.start_relay().await?;
    let mut event = bed.event("e1", "C1", &city());
    let time = Timestamp::now() + Duration::from_millis(2500);
    event["time"] = json!(time.to_string());
    bed.publish(&event).await?;
    bed.applied("C1", 1).await?;
    let calls = bed.simulator.requests("C1").await?;
    let due = time.as_millisecond() - 1000;
    ensure!(calls[0]["unix_ms"].as_i64() >= Some(due), "called before {due}: {calls:?}");
    let output = bed.end(relay).await?;
    assert!(output.contains("\"attempt\":1"), "{output}");
    Ok(())
}

async fn an_event_from_beyond_the_limit_is_invalid(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    let mut event = bed.event("e1", "C1", &city());
    event["time"] = json!((Timestamp::now() + Duration::from_hours(25)).to_string());
    bed.publish(&event).await?;
    let dead = bed.dead_letter().await?;
    assert_ended(&dead, "invalid-event", "0", "");
    assert_eq!(header(&dead, "rule"), "future");
    assert!(header(&dead, "detail").contains("event.future_limit"));
    assert!(bed.simulator.requests("C1").await?.is_empty());
    bed.end(relay).await.map(drop)
}

async fn a_delivery_before_its_time_goes_to_a_tier_again_without_a_call(
    context: Context,
) -> Result<()> {
    let bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    let due = Timestamp::now() + Duration::from_millis(1500);
    let mut headers = FieldTable::default();
    headers.insert("x-relay-not-before".into(), AMQPValue::LongString(due.to_string().into()));
    headers.insert("x-relay-attempts".into(), AMQPValue::LongLongInt(4));
    let event = bed.event("e1", "C1", &city()).to_string();
    bed.put_back(structured().with_headers(headers), event.as_bytes()).await?;
    bed.applied("C1", 1).await?;
    let calls = bed.simulator.requests("C1").await?;
    assert_eq!(calls.len(), 1);
    ensure!(calls[0]["unix_ms"].as_i64() >= Some(due.as_millisecond()), "called before {due}");
    let output = bed.end(relay).await?;
    let applied = output.lines().find(|line| line.contains("\"message\":\"applied\"")).unwrap();
    assert!(applied.contains("\"attempt\":5"), "the early delivery was no attempt: {applied}");
    Ok(())
}

async fn a_delay_survives_kill_9_of_the_worker(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    for key in ["retry.shortest_delay", "retry.first_delay", "retry.max_delay"] {
        bed.settings.set(key, "3s");
    }
    bed.settings.set("retry.max_uncounted_delay", "3s").set("retry.immediate_retries", "0");
    let relay = bed.start_relay().await?;
    bed.simulator.fault(json!({"times": 1, "fault": {"kind": "status", "code": 503}})).await?;
    bed.publish(&bed.event("e1", "C1", &city())).await?;
    bed.queues.holds(&bed.queue("retry.3000ms"), 1, LIMIT).await?;
    // The ack follows the confirm: killed before it, the relay would have the message at once.
    tokio::time::sleep(Duration::from_secs(1)).await;
    relay.kill().await?;
    let relay = bed.start_relay().await?;
    bed.applied("C1", 1).await?;
    let gaps = gaps(&bed, "C1").await?;
    ensure!(gaps.len() == 1 && (3000..8000).contains(&gaps[0]), "{gaps:?} ms instead of 3000");
    bed.end(relay).await.map(drop)
}

/// One event waits 3.75 s, one 30 s; everything dies in between.
async fn a_delay_survives_kill_9_of_broker_and_worker_and_ends_when_it_is_due(
    context: Context,
) -> Result<()> {
    let mut broker = context.own_broker().await?;
    let mut bed = context.bed_on(&broker, &[]).await?;
    for (key, value) in [
        ("retry.shortest_delay", "3750ms"),
        ("retry.first_delay", "3750ms"),
        ("retry.max_delay", "30s"),
        ("retry.max_uncounted_delay", "30s"),
        ("retry.immediate_retries", "0"),
    ] {
        bed.settings.set(key, value);
    }
    let relay = bed.start_relay().await?;
    // Measured on RabbitMQ 4.0.5: a queue declared about a second before the kill lost a confirmed
    // message in 6 of 8 runs, in none of 4 with this pause. Here the delay is tested, not that.
    tokio::time::sleep(Duration::from_secs(3)).await;
    for (customer, fault) in [
        ("short", json!({"kind": "status", "code": 503})),
        ("long", json!({"kind": "status", "code": 503, "retry_after": 30})),
    ] {
        let rule = json!({"match": {"entity_id": customer}, "times": 1, "fault": fault});
        bed.simulator.fault(rule).await?;
        bed.publish(&bed.event("e1", customer, &city())).await?;
    }
    bed.queues.holds(&bed.queue("retry.30000ms"), 1, LIMIT).await?;
    eventually("both calls", LIMIT, || async {
        Ok((bed.simulator.stats().await?["faults"]["status"] == 2).then_some(()))
    })
    .await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let died = std::time::Instant::now();
    broker.kill().await?;
    relay.kill().await?;
    broker.start_again().await?;
    let back = i64::try_from(died.elapsed().as_millis())?;
    bed.queues = crate::support::queues::Queues::connect(&broker.url()).await?;
    let relay = bed.start_relay().await?;
    bed.applied("short", 1).await?;
    if let Err(error) = bed.simulator.applied("long", 1, LIMIT * 2).await {
        let columns = ["list_queues", "name", "messages", "messages_ready"];
        bail!("{error}\n{}", broker.ctl(&columns).await?);
    }
    for (customer, due) in [("short", 3750), ("long", 30_000)] {
        let gaps = gaps(&bed, customer).await?;
        let [gap] = gaps[..] else { bail!("{customer}: {gaps:?}") };
        // What falls due while there is no broker comes with the broker.
        let latest = due.max(back) + 10_000;
        ensure!((due..latest).contains(&gap), "{customer}: {gap} ms; due {due}, back {back}");
    }
    bed.end(relay).await?;
    broker.stop().await
}
