//! Whose fault a rejection is: "fail" hides a bad event and a wrong secret alike, so a call that
//! went well must tell, or a person. `TEST_LONG=1` has events as rare, and settings as operators do.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{Context, suite};
use crate::support::bed::{Bed, LIMIT};
use crate::support::queues::Taken;
use crate::support::relay::PROBE;
use crate::support::simulator::SECRET_KEY;
use crate::support::traffic::{
    OPENED, all_applied, assert_one_outage, is_long, lines, publish, publish_for,
    with_default_outage, with_short_timetable, wrote,
};
use crate::telemetry::{reads, serve, shows};

suite!(Broker:
    a_wrong_secret_is_healed_by_its_file_alone,
    a_wrong_secret_that_the_portal_names_is_healed_by_its_file_alone,
    a_wrong_secret_is_noticed_at_low_traffic_and_costs_no_event,
    a_fresh_relay_with_a_wrong_secret_blames_no_event,
    without_control_calls_a_wrong_secret_blames_no_event_either,
    a_customer_whose_calls_fail_like_a_gateway_is_a_dead_letter_by_its_timetable,
    a_wave_of_bad_events_is_told_apart_by_a_control_call,
    a_probe_customer_that_the_portal_does_not_know_is_found_out,
    many_bad_customers_do_not_hold_up_the_others,
    a_lone_fault_that_nothing_tells_about_waits_and_is_not_counted,
    a_person_may_say_that_rejections_are_the_events_own_fault,
);

const NEW_SECRET: &str = "the portal's new secret";

fn header(taken: &Taken, name: &str) -> String {
    taken.header(&format!("x-relay-{name}")).unwrap_or_default()
}

fn rejecting() -> Value {
    json!({"kind": "body_status", "status": 400})
}

/// A relay's settings with the right secret in a file.
async fn bed_with_secret_in_file(context: &Context, args: &[&str]) -> Result<(Bed, TempDir)> {
    let mut bed = context.bed_with(args).await?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("secret_key");
    fs::write(&file, SECRET_KEY)?;
    bed.settings.set("portal.secret_key", "");
    bed.settings.set("portal.secret_key_file", file.to_str().unwrap());
    Ok((bed, folder))
}

fn mend(folder: &TempDir) -> Result<()> {
    Ok(fs::write(folder.path().join("secret_key"), NEW_SECRET)?)
}

/// The portal's secret changes in the midst of events; the relay's file follows later.
async fn wrong_secret_heals(context: Context, args: &[&str], kind: &str) -> Result<()> {
    let (mut bed, folder) = bed_with_secret_in_file(&context, args).await?;
    if is_long() {
        with_default_outage(&mut bed);
    }
    let relay = bed.start_relay().await?;
    publish(&bed, "A", 50).await?;
    all_applied(&bed, 50, LIMIT).await?;
    bed.simulator.expect_secret(NEW_SECRET).await?;
    publish(&bed, "B", 300).await?;
    wrote(&bed, OPENED, 1, LIMIT).await?;
    let minute = Duration::from_secs(if is_long() { 60 } else { 0 });
    let count = 350 + publish_for(&bed, "C", 0, minute).await?.len();
    wrote(&bed, "the probe failed", 4, LIMIT).await?;
    mend(&folder)?;
    all_applied(&bed, count, LIMIT).await?;
    let output = bed.end(relay).await?;
    assert_one_outage(&output, kind);
    assert!(output.contains(" 0 dead letters"), "{output}");
    let probes = lines(&output, "the probe failed").len();
    println!("{count} events, wrong secret: kind {kind}, {probes} probes failed");
    Ok(())
}

async fn a_wrong_secret_is_healed_by_its_file_alone(context: Context) -> Result<()> {
    wrong_secret_heals(context, &[], "rejecting-all").await
}

async fn a_wrong_secret_that_the_portal_names_is_healed_by_its_file_alone(
    context: Context,
) -> Result<()> {
    wrong_secret_heals(context, &["--messages", "detailed"], "credentials").await
}

async fn a_wrong_secret_is_noticed_at_low_traffic_and_costs_no_event(
    context: Context,
) -> Result<()> {
    let (mut bed, folder) = bed_with_secret_in_file(&context, &[]).await?;
    let pause = if is_long() {
        with_default_outage(&mut bed);
        Duration::from_secs(20)
    } else {
        Duration::from_secs(1)
    };
    let relay = bed.start_relay().await?;
    publish(&bed, "A", 1).await?;
    all_applied(&bed, 1, LIMIT).await?;
    bed.simulator.expect_secret(NEW_SECRET).await?;
    // Rare events are the point.
    for n in 0..4 {
        bed.publish(&bed.event(&format!("e{n}"), &format!("B{n}"), &json!({"city": "Kochi"})))
            .await?;
        tokio::time::sleep(pause).await;
    }
    wrote(&bed, OPENED, 1, LIMIT).await?;
    mend(&folder)?;
    all_applied(&bed, 5, LIMIT * 2).await?;
    let output = bed.end(relay).await?;
    assert_one_outage(&output, "rejecting-all");
    assert!(output.contains(" 0 dead letters"), "{output}");
    let probes = lines(&output, "the probe failed").len();
    println!("one event in {pause:?}, wrong secret: {probes} probes failed");
    Ok(())
}

/// Nothing was ever applied with the wrong secret, and nothing can be sent again.
async fn fresh_with_wrong_secret(context: &Context, control_calls: &str) -> Result<()> {
    let (mut bed, folder) = bed_with_secret_in_file(context, &[]).await?;
    bed.settings.set("portal.probe_customer", "").set("outage.control_calls", control_calls);
    let pause = if is_long() {
        with_default_outage(&mut bed);
        Duration::from_secs(20)
    } else {
        Duration::from_secs(2)
    };
    bed.simulator.expect_secret(NEW_SECRET).await?;
    let relay = bed.start_relay().await?;
    for n in 0..4 {
        bed.publish(&bed.event(&format!("e{n}"), &format!("B{n}"), &json!({"city": "Kochi"})))
            .await?;
        tokio::time::sleep(pause).await;
    }
    wrote(&bed, OPENED, 1, LIMIT).await?;
    mend(&folder)?;
    all_applied(&bed, 4, LIMIT * 2).await?;
    let output = bed.end(relay).await?;
    assert_one_outage(&output, "rejecting-all");
    assert!(output.contains(" 0 dead letters"), "{output}");
    assert!(!output.contains("\"attempt\":2"), "counted in an outage: {output}");
    Ok(())
}

async fn a_fresh_relay_with_a_wrong_secret_blames_no_event(context: Context) -> Result<()> {
    fresh_with_wrong_secret(&context, "applied").await
}

async fn without_control_calls_a_wrong_secret_blames_no_event_either(
    context: Context,
) -> Result<()> {
    fresh_with_wrong_secret(&context, "off").await
}

async fn a_customer_whose_calls_fail_like_a_gateway_is_a_dead_letter_by_its_timetable(
    context: Context,
) -> Result<()> {
    let mut bed = context.bed().await?;
    with_short_timetable(&mut bed);
    bed.settings.set("portal.probe_customer", "").set("outage.control_calls", "off");
    let relay = bed.start_relay().await?;
    let html = json!({"kind": "status", "code": 502});
    bed.simulator.fault(json!({"match": {"entity_id": "ALONE"}, "fault": html})).await?;
    bed.publish(&bed.event("alone", "ALONE", &json!({"city": "Kochi"}))).await?;
    let began = std::time::Instant::now();
    let mut healthy = 0;
    while bed.queues.depth(&bed.queue("dead")).await? == 0 {
        ensure!(began.elapsed() < LIMIT * 2, "no end after {:?}", began.elapsed());
        publish(&bed, &format!("H{healthy}N"), 1).await?;
        healthy += 1;
        tokio::time::sleep(Duration::from_millis(1700)).await;
    }
    let dead = bed.dead_letter().await?;
    assert_eq!(header(&dead, "reason"), "retries-exhausted");
    assert_eq!(header(&dead, "attempts"), "3");
    all_applied(&bed, healthy, LIMIT).await?;
    let calls = bed.simulator.requests("ALONE").await?.len();
    println!(
        "502 and HTML for one customer: a dead letter after {:?}, {calls} calls",
        began.elapsed()
    );
    ensure!(calls <= 6, "{calls} calls of one event");
    let output = bed.end(relay).await?;
    ensure!(!output.contains(OPENED), "{output}");
    Ok(())
}

async fn a_wave_of_bad_events_is_told_apart_by_a_control_call(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    publish(&bed, "GOOD", 3).await?;
    all_applied(&bed, 3, LIMIT).await?;
    let rule = json!({"match": {"entity_prefix": "BAD"}, "fault": rejecting()});
    bed.simulator.fault(rule).await?;
    publish(&bed, "BAD", 200).await?;
    let dead = bed.queue("dead");
    bed.queues.holds(&dead, 200, LIMIT * 2).await?;
    for dead in bed.queues.take_all(&dead).await? {
        assert_eq!(
            (header(&dead, "reason"), header(&dead, "flags")),
            ("rejected".into(), String::new())
        );
        assert_eq!(header(&dead, "attempts"), "1");
    }
    publish(&bed, "AFTER", 1).await?;
    bed.applied("AFTER0", 1).await?;
    let output = bed.end(relay).await?;
    let controls = lines(&output, "\"control call\"");
    ensure!(!controls.is_empty(), "no control call: {output}");
    Ok(())
}

const UNFIT: &str = "portal.probe_customer fails while events are applied";

async fn a_probe_customer_that_the_portal_does_not_know_is_found_out(
    context: Context,
) -> Result<()> {
    let mut bed = context.bed().await?;
    bed.settings.set("outage.control_calls", "probe-customer");
    let unknown = json!({"kind": "status", "code": 404, "envelope": true});
    bed.simulator.fault(json!({"match": {"entity_id": PROBE}, "fault": unknown})).await?;
    bed.simulator.fault(json!({"match": {"entity_prefix": "BAD"}, "fault": rejecting()})).await?;
    let relay = bed.start_relay().await?;
    publish(&bed, "BAD", 1).await?;
    wrote(&bed, OPENED, 1, LIMIT).await?;
    // A failed check may be a stumble; the second one follows in ten seconds.
    let mut published = 0;
    while lines(&bed.output(), UNFIT).is_empty() {
        ensure!(published < 60, "not found out");
        publish(&bed, &format!("GOOD{published}X"), 1).await?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        published += 1;
    }
    let outages = lines(&bed.output(), OPENED).len();
    for round in 0..3 {
        let waits = lines(&bed.output(), "\"not applied\"").len();
        publish(&bed, &format!("BAD{round}X"), 1).await?;
        wrote(&bed, "\"not applied\"", waits + 1, LIMIT).await?;
        publish(&bed, &format!("AFTER{round}X"), 1).await?;
        bed.applied(&format!("AFTER{round}X0"), 1).await?;
    }
    publish_for(&bed, "MORE", 0, Duration::from_secs(5)).await?;
    let dead = bed.queue("dead");
    bed.queues.holds(&dead, 4, LIMIT).await?;
    bed.queues.take_all(&dead).await?;
    let output = bed.end(relay).await?;
    ensure!(outages <= 30, "{outages} outages until it was found out");
    assert_eq!(lines(&output, OPENED).len(), outages, "an outage after it was found out");
    Ok(())
}

async fn a_lone_fault_that_nothing_tells_about_waits_and_is_not_counted(
    context: Context,
) -> Result<()> {
    let mut bed = context.bed().await?;
    bed.settings.set("retry.max_attempts", "2");
    bed.settings.set("portal.probe_customer", "").set("outage.control_calls", "off");
    let (relay, port) = serve(&mut bed).await?;
    reads(&port, 200, &[("role", json!("active"))]).await?;
    let rule = json!({"match": {"entity_id": "ALONE"}, "fault": {"kind": "status", "code": 500}});
    bed.simulator.fault(rule).await?;
    bed.publish(&bed.event("e1", "ALONE", &json!({"city": "Kochi"}))).await?;
    wrote(&bed, "\"verdict\":\"wait\"", 4, LIMIT).await?;
    shows(&port, "customer_relay_unwitnessed_total{verdict=\"wait\"}").await?;
    assert_eq!(bed.queues.depth(&bed.queue("dead")).await?, 0);
    assert!(
        !bed.output().contains("\"attempt\":2"),
        "counted, and nothing tells whose fault it is"
    );
    // Each success of another customer between two failures counts one of them.
    for n in 0..2 {
        let waits = lines(&bed.output(), "\"verdict\":\"wait\"").len();
        wrote(&bed, "\"verdict\":\"wait\"", waits + 1, LIMIT).await?;
        publish(&bed, &format!("OTHER{n}"), 1).await?;
        bed.applied(&format!("OTHER{n}0"), 1).await?;
        wrote(&bed, ["\"verdict\":\"retry\"", "\"verdict\":\"dead-letter\""][n], 1, LIMIT).await?;
    }
    let dead = bed.dead_letter().await?;
    assert_eq!(header(&dead, "reason"), "retries-exhausted");
    assert_eq!(header(&dead, "attempts"), "2");
    assert!(!header(&dead, "flags").contains("unwitnessed"));
    bed.end(relay).await.map(drop)
}

async fn a_person_may_say_that_rejections_are_the_events_own_fault(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    bed.settings.set("portal.probe_customer", "").set("outage.control_calls", "off");
    let relay = bed.start_relay().await?;
    let rule = json!({"match": {"entity_prefix": "BAD"}, "fault": rejecting()});
    bed.simulator.fault(rule).await?;
    publish(&bed, "BAD", 50).await?;
    let opened = wrote(&bed, OPENED, 1, LIMIT).await?;
    assert_eq!(opened[0]["kind"], "rejecting-all");
    wrote(&bed, "the probe failed", 3, LIMIT).await?;
    assert_eq!(bed.queues.depth(&bed.queue("dead")).await?, 0);
    let (code, out, err) =
        bed.settings.command(&["resume", "--accept-rejections", "--for", "5m"], b"").await?;
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.contains("dead-lettered without a witness for 5m"), "{out}");
    let dead = bed.queue("dead");
    bed.queues.holds(&dead, 50, LIMIT).await?;
    for dead in bed.queues.take_all(&dead).await? {
        assert_eq!(header(&dead, "reason"), "rejected");
    }
    publish(&bed, "AFTER", 1).await?;
    bed.applied("AFTER0", 1).await?;
    bed.queues.take_all(&bed.queue("accepts-rejections")).await?;
    let output = bed.end(relay).await?;
    assert_one_outage(&output, "rejecting-all");
    Ok(())
}

async fn many_bad_customers_do_not_hold_up_the_others(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    publish(&bed, "A", 1).await?;
    all_applied(&bed, 1, LIMIT).await?;
    let unknown = json!({"kind": "status", "code": 404});
    let rule = json!({"match": {"entity_prefix": "U"}, "times_per_customer": 1, "fault": unknown});
    bed.simulator.fault(rule).await?;
    publish(&bed, "U", 150).await?;
    publish(&bed, "B", 1).await?;
    // Alone among them it would be the hundred-and-fiftieth probe.
    bed.simulator.applied("B0", 1, Duration::from_secs(15)).await?;
    all_applied(&bed, 152, LIMIT).await?;
    let output = bed.end(relay).await?;
    assert!(output.contains("control call"), "{output}");
    Ok(())
}
