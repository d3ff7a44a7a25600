//! What can never succeed is a dead letter at once: the original, byte for byte, with what a person
//! needs to know, without what must not be known or must not travel.

use std::time::Duration;

use anyhow::Result;
use lapin::BasicProperties;
use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldArray, FieldTable};
use serde_json::{Value, json};

use crate::harness::{Context, suite};
use crate::support::bed::Bed;
use crate::support::queues::Taken;

suite!(Broker:
    a_rejected_update_is_dead_lettered_at_once,
    an_invalid_field_names_field_rule_and_setting,
    the_body_is_kept_byte_for_byte,
    the_crms_headers_and_properties_are_kept,
    the_expiration_is_noted_and_dropped,
    the_user_id_is_noted_and_dropped,
    cc_is_dropped_and_routes_no_copy,
    bcc_is_dropped_and_routes_no_copy,
    x_death_is_dropped_and_makes_no_cycle,
    x_first_death_is_dropped,
    x_last_death_is_dropped,
    x_delivery_count_is_dropped,
    x_acquired_count_is_dropped,
    the_delivery_mode_becomes_persistent,
    what_an_exchange_forges_of_our_headers_is_dropped,
    personal_data_echoed_by_the_portal_stays_out_of_headers_and_output,
    an_answer_that_never_came_flags_the_dead_letter_for_review,
    a_dead_letter_that_is_put_back_begins_anew,
    our_texts_are_cut_before_headers_outgrow_a_frame,
    the_largest_foreign_header_is_moved_out_with_a_note,
    headers_near_the_frame_limit_come_through_a_tier,
);

fn header(taken: &Taken, name: &str) -> String {
    taken.header(&format!("x-relay-{name}")).unwrap_or_default()
}

async fn a_rejected_update_is_dead_lettered_at_once(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    bed.settings.set("outage.witness_wait", "10s");
    let relay = bed.start_relay().await?;
    let rejected = json!({"kind": "body_status", "status": 400});
    bed.simulator.fault(json!({"match": {"entity_id": "C1"}, "fault": rejected})).await?;
    let event = bed.event("e1", "C1", &json!({"city": "Kochi"}));
    let witness =
        |n: usize| bed.event(&format!("w{n}"), &format!("W{n}"), &json!({"city": "Kochi"}));
    // Others are applied all the while.
    for n in 0..20 {
        bed.publish(&witness(n)).await?;
    }
    bed.publish(&event).await?;
    for n in 20..60 {
        bed.publish(&witness(n)).await?;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let dead = bed.dead_letter().await?;
    for (name, expected) in [
        ("reason", "rejected"),
        ("attempts", "1"),
        ("http-status", "200"),
        ("portal-status", "400"),
        ("detail", "rejected: HTTP 200, status 400, message \"fail\""),
        ("exchange", &bed.exchange()),
        ("routing-key", "customer.updated"),
        ("relay-version", env!("CARGO_PKG_VERSION")),
        ("replays", "0"),
        ("flags", ""),
        ("field", ""),
    ] {
        assert_eq!(header(&dead, name), expected, "{name}");
    }
    let id = header(&dead, "dead-id");
    assert!(id.len() == 36 && id.as_bytes()[14] == b'7', "a UUIDv7: {id}");
    let first_seen: jiff::Timestamp = header(&dead, "first-seen").parse()?;
    let dead_at: jiff::Timestamp = header(&dead, "dead-at").parse()?;
    assert!(first_seen <= dead_at && dead_at <= jiff::Timestamp::now());
    assert_eq!(bed.simulator.requests("C1").await?.len(), 1);
    assert_eq!(dead.body, event.to_string().as_bytes());
    let output = bed.end(relay).await?;
    assert!(output.contains(&id) && output.contains("1 dead letters"), "{output}");
    Ok(())
}

async fn an_invalid_field_names_field_rule_and_setting(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    for (fields, field, rule, setting) in [
        (json!({"mobile_no": "9XXXXXX879"}), "mobile_no", "pattern", "fields.mobile_no_pattern"),
        (json!({"address": "12/4 MG Road"}), "address", "alphanumeric", "fields.address"),
        (json!({"city": "New Delhi"}), "city", "spaces", "fields.city_spaces"),
        (json!({"state": "Tamil Nadu"}), "state", "spaces", "fields.state_spaces"),
        (json!({"pincode": "082308"}), "pincode", "six-digits", "fields.default_country"),
        (json!({"email": "asha"}), "email", "format", ""),
        (json!({"city": " "}), "city", "blank", ""),
        (json!({}), "entity_id", "nothing-to-update", ""),
    ] {
        bed.publish(&bed.event("e1", "C1", &fields)).await?;
        let dead = bed.dead_letter().await?;
        assert_eq!(header(&dead, "reason"), "invalid-event", "{fields}");
        assert_eq!(header(&dead, "field"), field, "{fields}");
        assert_eq!(header(&dead, "rule"), rule, "{fields}");
        assert_eq!(header(&dead, "attempts"), "0", "{fields}");
        let detail = header(&dead, "detail");
        assert!(detail.contains(setting), "{detail}");
        let mut values = fields.as_object().unwrap().values().filter_map(Value::as_str);
        assert!(!values.any(|value| value != " " && detail.contains(value)), "{detail}");
    }
    assert!(bed.simulator.requests("C1").await?.is_empty());
    bed.end(relay).await.map(drop)
}

async fn the_body_is_kept_byte_for_byte(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    bed.simulator.fault(json!({"match": {"entity_id": "C1"}, "times": 1, "fault": {"kind": "status", "code": 429}})).await?;
    bed.simulator
        .fault(
            json!({"match": {"entity_id": "C1"}, "fault": {"kind": "body_status", "status": 400}}),
        )
        .await?;
    let body = "\u{feff}{ \"entity_id\":\t\"C1\", \"x\":1.50,\r\n \"city\" : \"K\\u006fchi\", \"é\": \"ü\"}  \n";
    bed.publish_as(BasicProperties::default(), body.as_bytes()).await?;
    let dead = bed.dead_letter().await?;
    assert_eq!(header(&dead, "reason"), "rejected");
    assert_eq!(dead.body, body.as_bytes());
    assert_eq!(
        bed.simulator.requests("C1").await?.len(),
        3,
        "throttled, refused, and refused again"
    );
    bed.end(relay).await.map(drop)
}

/// A message by way of a retry tier to its dead letter: both republications happen.
async fn through_a_tier(bed: &Bed, properties: BasicProperties) -> Result<Taken> {
    let relay = bed.start_relay().await?;
    bed.simulator.fault(json!({"match": {"entity_id": "C1"}, "times": 3, "fault": {"kind": "status", "code": 503}})).await?;
    bed.simulator
        .fault(
            json!({"match": {"entity_id": "C1"}, "fault": {"kind": "body_status", "status": 400}}),
        )
        .await?;
    let body = json!({"entity_id": "C1", "city": "Kochi"}).to_string();
    bed.publish_as(properties, body.as_bytes()).await?;
    let dead = bed.dead_letter().await?;
    assert_eq!(header(&dead, "reason"), "rejected");
    assert_eq!(header(&dead, "attempts"), "2");
    assert_eq!(header(&dead, "exchange"), bed.exchange());
    crate::support::relay::stop(relay).await?;
    Ok(dead)
}

fn headers(entries: &[(&str, AMQPValue)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in entries {
        table.insert((*name).into(), value.clone());
    }
    table
}

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

async fn the_crms_headers_and_properties_are_kept(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    let nested = AMQPValue::FieldTable(headers(&[("a", AMQPValue::Boolean(true))]));
    let crm = [
        ("crm-shard", text("7")),
        ("crm-number", AMQPValue::LongInt(-3)),
        ("crm-table", nested),
        ("x-crm", text("stays")),
        ("traceparent", text("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")),
    ];
    let properties = BasicProperties::default()
        .with_content_type("application/json; charset=utf-8".into())
        .with_content_encoding("identity".into())
        .with_priority(7)
        .with_correlation_id("correlation".into())
        .with_reply_to("reply.here".into())
        .with_message_id("message".into())
        .with_timestamp(1_763_000_000)
        .with_type("customer.updated".into())
        .with_app_id("crm".into())
        .with_cluster_id("cluster".into())
        .with_delivery_mode(2);
    let dead = through_a_tier(&bed, properties.clone().with_headers(headers(&crm))).await?;
    let kept = dead.properties.headers().clone().unwrap();
    for (name, value) in &crm {
        assert_eq!(kept.inner().get(*name), Some(value), "{name}");
    }
    // RabbitMQ adds the count of its deliveries itself.
    let known = |name: &str| name.starts_with("x-relay-") || name == "x-delivery-count";
    let others = |name: &str| !known(name) && !crm.iter().any(|(crm, _)| *crm == name);
    let added: Vec<_> = kept.inner().keys().filter(|name| others(name.as_str())).collect();
    assert!(added.is_empty(), "{added:?}");
    assert_eq!(
        dead.properties.with_headers(FieldTable::default()),
        properties.with_headers(FieldTable::default())
    );
    bed.finish().await
}

async fn the_expiration_is_noted_and_dropped(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    let properties = BasicProperties::default().with_expiration("60000".into());
    let dead = through_a_tier(&bed, properties).await?;
    assert_eq!(dead.properties.expiration(), &None);
    assert_eq!(header(&dead, "original-expiration"), "60000");
    bed.finish().await
}

async fn the_user_id_is_noted_and_dropped(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    let uri: lapin::uri::AMQPUri =
        context.broker().await?.url().parse().map_err(anyhow::Error::msg)?;
    let user = uri.authority.userinfo.username;
    let properties = BasicProperties::default().with_user_id(user.as_str().into());
    let dead = through_a_tier(&bed, properties).await?;
    assert_eq!(dead.properties.user_id(), &None);
    assert_eq!(header(&dead, "original-user-id"), user);
    bed.finish().await
}

/// A message with this header comes through a tier and ends without it; its queue-shaped value
/// leads nowhere.
async fn is_dropped(
    context: &Context,
    name: &str,
    value: impl Fn(&Bed) -> AMQPValue,
) -> Result<()> {
    let bed = context.bed().await?;
    let channel = bed.queues.new_channel().await?;
    let spy = bed.queue("spy");
    let durable = QueueDeclareOptions::durable();
    channel.queue_declare(spy.as_str().into(), durable, FieldTable::default()).await?;
    let properties = BasicProperties::default().with_headers(headers(&[(name, value(&bed))]));
    let dead = through_a_tier(&bed, properties).await?;
    let dropped = dead.header(name);
    // RabbitMQ counts deliveries itself, in a header of the same name.
    assert!(
        dropped.is_none() || (name, dropped.as_deref()) == ("x-delivery-count", Some("0")),
        "{dropped:?}"
    );
    assert_eq!(bed.queues.depth(&spy).await?, 0, "a copy was routed elsewhere");
    channel.queue_delete(spy.as_str().into(), QueueDeleteOptions::default()).await?;
    bed.finish().await
}

fn spy(bed: &Bed) -> AMQPValue {
    AMQPValue::FieldArray(FieldArray::from(vec![text(&bed.queue("spy"))]))
}

/// What RabbitMQ 3 takes for a cycle once the message expires in a tier.
fn death(bed: &Bed) -> AMQPValue {
    let entry = headers(&[
        ("queue", text(&bed.queue("work"))),
        ("reason", text("delivery_limit")),
        ("count", AMQPValue::LongLongInt(1)),
        ("exchange", text("")),
        ("routing-keys", AMQPValue::FieldArray(FieldArray::from(vec![text("customer.updated")]))),
        ("time", AMQPValue::Timestamp(1_763_000_000)),
    ]);
    AMQPValue::FieldArray(FieldArray::from(vec![AMQPValue::FieldTable(entry)]))
}

async fn cc_is_dropped_and_routes_no_copy(context: Context) -> Result<()> {
    is_dropped(&context, "CC", spy).await
}

async fn bcc_is_dropped_and_routes_no_copy(context: Context) -> Result<()> {
    is_dropped(&context, "BCC", spy).await
}

async fn x_death_is_dropped_and_makes_no_cycle(context: Context) -> Result<()> {
    is_dropped(&context, "x-death", death).await
}

async fn x_first_death_is_dropped(context: Context) -> Result<()> {
    is_dropped(&context, "x-first-death-queue", |_| text("somewhere")).await
}

async fn x_last_death_is_dropped(context: Context) -> Result<()> {
    is_dropped(&context, "x-last-death-queue", |_| text("somewhere")).await
}

async fn x_delivery_count_is_dropped(context: Context) -> Result<()> {
    is_dropped(&context, "x-delivery-count", |_| AMQPValue::LongLongInt(19)).await
}

async fn x_acquired_count_is_dropped(context: Context) -> Result<()> {
    is_dropped(&context, "x-acquired-count", |_| AMQPValue::LongLongInt(19)).await
}

async fn the_delivery_mode_becomes_persistent(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    let dead = through_a_tier(&bed, BasicProperties::default().with_delivery_mode(1)).await?;
    assert_eq!(dead.properties.delivery_mode(), &Some(2));
    bed.finish().await
}

async fn what_an_exchange_forges_of_our_headers_is_dropped(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    let forged = headers(&[
        ("x-relay-attempts", AMQPValue::LongLongInt(20)),
        ("x-relay-same-reason", text("not a number")),
        ("x-relay-first-seen", text("2020-01-01T00:00:00Z")),
        ("x-relay-not-before", text("2099-01-01T00:00:00Z")),
        ("x-relay-force", AMQPValue::Boolean(true)),
        ("x-relay-resend", AMQPValue::Boolean(true)),
        ("x-relay-replays", AMQPValue::LongLongInt(9)),
        ("x-relay-exchange", text("forged")),
        ("x-relay-field", text("forged")),
        ("x-relay-anything", text("forged")),
    ]);
    let dead = through_a_tier(&bed, BasicProperties::default().with_headers(forged)).await?;
    for name in ["force", "resend", "field", "anything", "not-before"] {
        assert_eq!(header(&dead, name), "", "{name}");
    }
    assert_eq!(header(&dead, "replays"), "0");
    assert!(!header(&dead, "first-seen").starts_with("2020"));
    bed.finish().await
}

async fn personal_data_echoed_by_the_portal_stays_out_of_headers_and_output(
    context: Context,
) -> Result<()> {
    let mut bed = context.bed().await?;
    bed.settings.set("log.filter", "trace");
    let relay = bed.start_relay().await?;
    bed.simulator
        .fault(json!({"match": {"entity_id": "CUST0001"}, "fault": {"kind": "echo"}}))
        .await?;
    let fields = json!({"email": "Asha.Menon@example.com", "mobile_no": "9876543879",
                        "address": "12 MG Road", "city": "Kochi", "state": "Kerala",
                        "pincode": "682308"});
    bed.publish(&bed.event("e1", "CUST0001", &fields)).await?;
    let dead = bed.dead_letter().await?;
    assert_eq!(header(&dead, "reason"), "rejected");
    assert!(header(&dead, "detail").contains("invalid details: ***"), "the echo came through");
    let headers = format!("{:?}", dead.headers());
    let output = bed.end(relay).await?;
    let mut values: Vec<&str> =
        fields.as_object().unwrap().values().filter_map(Value::as_str).collect();
    values.extend(["CUST0001", "secret-of-the-tests", "token-of-the-tests"]);
    for value in values {
        assert!(!headers.contains(value), "{value} in {headers}");
        // The microseconds of a line's time may be any six digits, a pincode's too.
        let untimed = |line: &str| line.find("\"level\"").unwrap_or(0);
        let leak = output.lines().find(|line| line[untimed(line)..].contains(value));
        assert_eq!(leak, None, "{value} in the output");
    }
    Ok(())
}

async fn a_dead_letter_that_is_put_back_begins_anew(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    bed.settings.set("retry.max_attempts", "2").set("retry.immediate_retries", "0");
    bed.set_probe_customer();
    let relay = bed.start_relay().await?;
    let failed = json!({"kind": "status", "code": 500});
    bed.simulator.fault(json!({"match": {"entity_id": "C1"}, "fault": failed})).await?;
    bed.publish(&bed.event("e1", "C1", &json!({"city": "Kochi"}))).await?;
    let mut ids = Vec::new();
    for (replays, calls) in [("0", 2), ("1", 4), ("2", 6)] {
        let dead = bed.dead_letter().await?;
        assert_eq!(header(&dead, "reason"), "retries-exhausted");
        assert_eq!(
            (header(&dead, "attempts"), header(&dead, "replays")),
            ("2".into(), replays.into())
        );
        assert_eq!(header(&dead, "exchange"), bed.exchange());
        assert_eq!(bed.simulator.requests("C1").await?.len(), calls);
        ids.push(header(&dead, "dead-id"));
        if calls == 6 {
            bed.simulator.heal().await?;
        }
        bed.put_back(dead.properties, &dead.body).await?;
    }
    ids.dedup();
    assert_eq!(ids.len(), 3, "each dead letter has an id of its own");
    bed.applied("C1", 1).await?;
    bed.end(relay).await.map(drop)
}

async fn an_answer_that_never_came_flags_the_dead_letter_for_review(
    context: Context,
) -> Result<()> {
    let mut bed = context.bed().await?;
    bed.settings.set("portal.timeout", "300ms");
    bed.set_probe_customer();
    let relay = bed.start_relay().await?;
    bed.simulator.fault(json!({"times": 1, "fault": {"kind": "hang"}})).await?;
    let rejected = json!({"kind": "body_status", "status": 400});
    bed.simulator.fault(json!({"match": {"entity_id": "C1"}, "fault": rejected})).await?;
    bed.publish(&bed.event("e1", "C1", &json!({"city": "Kochi"}))).await?;
    let dead = bed.dead_letter().await?;
    assert_eq!(header(&dead, "reason"), "rejected");
    assert_eq!(header(&dead, "flags"), "needs-review");
    bed.end(relay).await.map(drop)
}

/// `frame_max` as lapin and RabbitMQ agree on it.
const FRAME_MAX: usize = 131_072;

/// An event that breaks many rules: our text about it is long.
fn faulty() -> Value {
    json!({"entity_id": "C1", "email": "asha", "mobile_no": "98", "address": "12/4", "country": "1",
           "city": "New Delhi", "state": "Tamil Nadu", "pincode": "0"})
}

/// What became of a foreign header of each size, from one that surely fits to one that cannot.
async fn near_the_frame_limit(bed: &Bed) -> Result<Vec<(usize, Taken)>> {
    let mut letters = Vec::new();
    for room in (400..8000).step_by(400).rev() {
        let size = FRAME_MAX - room;
        let crm = headers(&[("crm-large", text(&"x".repeat(size))), ("crm-small", text("stays"))]);
        let properties = BasicProperties::default().with_headers(crm);
        bed.publish_as(properties, faulty().to_string().as_bytes()).await?;
        let dead = bed.dead_letter().await?;
        assert_eq!(header(&dead, "reason"), "invalid-event");
        assert_eq!(dead.header("crm-small").as_deref(), Some("stays"));
        letters.push((size, dead));
    }
    Ok(letters)
}

/// What the whole text about [`faulty`] has at least.
const WHOLE: usize = 500;

async fn our_texts_are_cut_before_headers_outgrow_a_frame(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    let letters = near_the_frame_limit(&bed).await?;
    let kept = |letter: &&(usize, Taken)| letter.1.header("crm-large").is_some();
    let cut = |letter: &&(usize, Taken)| header(&letter.1, "detail").len() <= 120;
    assert!(letters.iter().any(|letter| header(&letter.1, "detail").len() > WHOLE));
    let (size, letter) = letters.iter().filter(cut).find(kept).expect("one cut, nothing moved out");
    assert_eq!(letter.header("crm-large").map(|kept| kept.len()), Some(*size));
    assert!(header(letter, "detail").starts_with("email: "));
    assert_eq!(header(letter, "dropped-headers"), "");
    bed.end(relay).await.map(drop)
}

async fn the_largest_foreign_header_is_moved_out_with_a_note(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    let letters = near_the_frame_limit(&bed).await?;
    let moved = |letter: &&(usize, Taken)| letter.1.header("crm-large").is_none();
    let (size, letter) = letters.iter().find(moved).expect("one that cannot fit");
    let note = header(letter, "dropped-headers");
    // Its name, its type and two lengths count too.
    assert_eq!(note, format!("crm-large ({} bytes)", size + 15));
    bed.end(relay).await.map(drop)
}

/// The broker adds headers of its own to what expires in a tier.
async fn headers_near_the_frame_limit_come_through_a_tier(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    let large = text(&"x".repeat(FRAME_MAX - 600));
    let crm = headers(&[("crm-large", large)]);
    let dead = through_a_tier(&bed, BasicProperties::default().with_headers(crm)).await?;
    assert_eq!(header(&dead, "attempts"), "2");
    bed.finish().await
}
