//! Which of two events is the newer: what cannot be compared is refused, what can be is compared in one way,
//! and no part of an event goes without what it is judged by.

use anyhow::{Context as _, Result, ensure};
use lapin::BasicProperties;
use serde_json::{Value, json};

use crate::harness::{Context, suite};
use crate::support::bed::{Bed, LIMIT};
use crate::support::traffic::wrote;
use crate::support::{eventually, relay};

suite!(Broker:
    an_event_without_what_the_order_asks_for_is_no_older_one_but_a_dead_letter,
    by_arrival_an_event_without_a_time_is_newer_than_what_came_before_it,
    a_time_is_read_in_one_way_however_it_is_written,
    what_is_required_must_be_what_the_order_goes_by,
    a_pincode_goes_with_its_country_or_not_at_all;
Postgres:
    by_arrival_and_with_its_country_at_a_server_too,
);

/// An event with a city, and a time and a sequence as far as given.
fn event(bed: &Bed, id: &str, time: Option<&str>, sequence: Option<&str>, city: &str) -> Value {
    let mut event = bed.event(id, "C1", &json!({ "city": city }));
    event["time"] = json!(time);
    event["sequence"] = json!(sequence);
    event
}

/// Its message says nothing that its body does not.
async fn publish(bed: &Bed, event: &Value) -> Result<()> {
    let properties = BasicProperties::default().with_delivery_mode(2);
    let body = event.to_string();
    bed.queues.publish(&bed.exchange(), "customer.updated", properties, body.as_bytes()).await
}

async fn city(bed: &Bed) -> Result<Value> {
    Ok(bed.simulator.customer("C1").await?["fields"]["city"].clone())
}

/// Publishes events that are each to be applied, one after another.
async fn all_apply(bed: &Bed, before: u64, events: &[Value]) -> Result<()> {
    for (count, event) in (before + 1..).zip(events) {
        publish(bed, event).await?;
        bed.applied("C1", count).await?;
        ensure!(city(bed).await? == event["data"]["city"], "{event}");
    }
    Ok(())
}

async fn rule(bed: &Bed) -> Result<(String, String)> {
    let dead = bed.dead_letter().await?;
    let header = |name: &str| dead.header(name).with_context(|| format!("no {name}"));
    assert_eq!(header("x-relay-reason")?, "invalid-event");
    Ok((header("x-relay-rule")?, header("x-relay-detail")?))
}

const TEN: Option<&str> = Some("2026-11-01T10:00:00Z");
const ELEVEN: Option<&str> = Some("2026-11-01T11:00:00Z");

/// Each pair of a later event that lacks what the earlier one has: it used to be lost in silence.
async fn an_event_without_what_the_order_asks_for_is_no_older_one_but_a_dead_letter(
    context: Context,
) -> Result<()> {
    for (by, first, later, lacks) in [
        ("time", (TEN, None), (None, Some("7")), "order"),
        ("time", (TEN, Some("7")), (None, None), "order"),
        ("sequence", (None, Some("7")), (ELEVEN, None), "order"),
        ("time", (TEN, Some("7")), (TEN, Some("-5")), "sequence"),
        ("sequence", (None, Some("9")), (None, Some("+10")), "sequence"),
        ("sequence", (None, Some("9")), (None, Some("10.5")), "sequence"),
    ] {
        let mut bed = context.bed().await?;
        bed.settings.set("order.by", by);
        let relay = bed.start_relay().await?;
        all_apply(&bed, 0, &[event(&bed, "first", first.0, first.1, "Kochi")]).await?;
        publish(&bed, &event(&bed, "later", later.0, later.1, "Pune")).await?;
        let setting = if lacks == "order" { "order.require" } else { "order.sequence" };
        let (rule, detail) = rule(&bed).await?;
        assert_eq!(rule, lacks, "{by} {later:?}");
        ensure!(detail.contains(setting), "{detail}");
        bed.end(relay).await?;
    }
    let mut bed = context.bed().await?;
    bed.settings.set("order.by", "sequence").set("order.sequence", "text");
    let relay = bed.start_relay().await?;
    let texts = ["01J-a", "01J-b", "01K"];
    let events =
        texts.map(|text| event(&bed, text, None, Some(text), &format!("K{}", &text[2..3])));
    all_apply(&bed, 0, &events[..1]).await?;
    all_apply(&bed, 1, &events[2..]).await?;
    publish(&bed, &events[1]).await?;
    wrote(&bed, "\"superseded: ", 1, LIMIT).await?;
    bed.end(relay).await.map(drop)
}

async fn by_arrival(mut bed: Bed) -> Result<()> {
    bed.settings.set("order.missing", "arrival");
    let relay = bed.start_relay().await?;
    let tomorrow = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
    let tomorrow = tomorrow.to_string();
    let events = [
        event(&bed, "timed", TEN, None, "Kochi"),
        event(&bed, "bare", None, None, "Pune"),
        event(&bed, "numbered", None, Some("1"), "Agra"),
        event(&bed, "bare-again", None, None, "Delhi"),
    ];
    all_apply(&bed, 0, &events).await?;
    // Dated before it was received, it is older.
    publish(&bed, &event(&bed, "late", ELEVEN, None, "Surat")).await?;
    wrote(&bed, "\"superseded: ", 1, LIMIT).await?;
    // Ahead of our clock, within the tolerance that is set here.
    relay::stop(relay).await?;
    bed.settings.set("event.future_tolerance", "2h");
    let relay = bed.start_relay().await?;
    let events = [
        event(&bed, "ahead", Some(&tomorrow), None, "Bhopal"),
        event(&bed, "after-it", None, None, "Nagpur"),
    ];
    all_apply(&bed, 4, &events).await?;
    bed.end(relay).await.map(drop)
}

async fn by_arrival_an_event_without_a_time_is_newer_than_what_came_before_it(
    context: Context,
) -> Result<()> {
    by_arrival(context.bed().await?).await
}

async fn a_time_is_read_in_one_way_however_it_is_written(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    let ascending = [
        "2016-12-31T23:59:59.7Z",
        "2016-12-31T23:59:60.2Z",
        "2017-01-01T00:00:00Z",
        "2017-01-01T05:30:00.000000001999999+05:30",
        "2017-01-01t24:00:00z",
        "2017-01-02T00:00:00.000000001Z",
    ];
    let cities = ["Agra", "Bhopal", "Cochin", "Delhi", "Erode", "Firozabad"];
    let events: Vec<Value> = ascending
        .iter()
        .zip(cities)
        .map(|(time, city)| event(&bed, time, Some(time), None, city))
        .collect();
    all_apply(&bed, 0, &events).await?;
    for event in &events[..5] {
        let mut again = event.clone();
        again["id"] = json!("again");
        again["time"] = json!("2016-12-31T23:59:59.699999999999Z");
        publish(&bed, &again).await?;
    }
    wrote(&bed, "\"superseded: ", 5, LIMIT).await?;
    assert_eq!(city(&bed).await?, "Firozabad");
    bed.end(relay).await.map(drop)
}

async fn what_is_required_must_be_what_the_order_goes_by(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    for (by, required, missing, fault) in [
        ("time", "", "invalid", None),
        ("time", "both", "invalid", None),
        ("time", "any", "invalid", None),
        ("sequence", "", "invalid", None),
        ("time", "", "arrival", None),
        ("time", "any", "arrival", None),
        ("time", "sequence", "invalid", Some("order.require")),
        ("sequence", "time", "invalid", Some("order.require")),
        ("sequence", "", "arrival", Some("order.missing")),
        ("time", "both", "arrival", Some("order.missing")),
        ("time", "often", "invalid", Some("order.require")),
    ] {
        bed.settings.set("order.by", by).set("order.require", required);
        bed.settings.set("order.missing", missing);
        let (code, out, err) = bed.settings.command(&["config"], b"").await?;
        let is_told = fault.is_none_or(|setting| err.contains(setting));
        let context = format!("{by} {required} {missing}: exit {code} {out}{err}");
        ensure!((code == 0) == fault.is_none() && is_told, "{context}");
    }
    bed.settings.set("order.require", "").set("order.missing", "invalid");
    bed.declare().await?;
    bed.finish().await
}

async fn with_its_country(bed: Bed, customer: &str) -> Result<()> {
    let relay = bed.start_relay().await?;
    let event = |id: &str, time: Option<&str>, data: Value| {
        let mut event = bed.event(id, customer, &data);
        event["time"] = json!(time);
        event
    };
    publish(&bed, &event("new", ELEVEN, json!({"country": "India"}))).await?;
    bed.applied(customer, 1).await?;
    // No pincode of India: it would have been refused, with the city.
    let pair = json!({"country": "Nepal", "pincode": "44600", "city": "Pokhara"});
    publish(&bed, &event("pair", TEN, pair)).await?;
    bed.applied(customer, 2).await?;
    let older = json!({"pincode": "682301"});
    publish(&bed, &event("older", Some("2026-11-01T09:00:00Z"), older)).await?;
    wrote(&bed, "\"superseded: ", 1, LIMIT).await?;
    let fields = &bed.simulator.customer(customer).await?["fields"];
    assert_eq!((&fields["country"], &fields["city"]), (&json!("India"), &json!("Pokhara")));
    assert_eq!(fields["pincode"], Value::Null, "{fields}");
    // One of India needs none.
    let whole = json!({"country": "India", "pincode": "682308"});
    publish(&bed, &event("whole", Some("2026-11-01T10:30:00Z"), whole)).await?;
    bed.applied(customer, 3).await?;
    let newest = json!({"country": "Nepal", "pincode": "44601"});
    publish(&bed, &event("newest", Some("2026-11-01T12:00:00Z"), newest)).await?;
    eventually("the pair", LIMIT, || async {
        let fields = &bed.simulator.customer(customer).await?["fields"];
        let pair = (&fields["country"], &fields["pincode"]);
        Ok((pair == (&json!("Nepal"), &json!("44601"))).then_some(()))
    })
    .await?;
    let output = bed.end(relay).await?;
    ensure!(output.contains(" 0 dead letters"), "{output}");
    Ok(())
}

async fn a_pincode_goes_with_its_country_or_not_at_all(context: Context) -> Result<()> {
    with_its_country(context.bed().await?, "C1").await
}

async fn by_arrival_and_with_its_country_at_a_server_too(context: Context) -> Result<()> {
    for test in [0, 1] {
        let mut bed = context.bed().await?;
        let url = context.postgres().await?.database().await?;
        bed.settings.set("ledger.url", &url);
        match test {
            0 => by_arrival(bed).await?,
            _ => with_its_country(bed, "C2").await?,
        }
    }
    Ok(())
}
