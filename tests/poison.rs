//! What can never be an event is a dead letter on arrival, and the worker goes on.

use anyhow::{Result, ensure};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};

use crate::harness::{Context, suite};
use crate::support::bed::{Bed, LIMIT, structured};
use crate::support::eventually;
use crate::support::process::Process;
use crate::support::raw_publisher::publish_nested;

suite!(Broker:
    a_body_that_is_no_event_is_dead_lettered_and_the_worker_goes_on,
    a_value_of_a_wrong_type_is_dead_lettered_and_names_its_field,
    a_body_of_ten_mebibytes_is_dead_lettered_as_too_large,
    a_header_of_a_wrong_type_is_dead_lettered,
    our_own_header_of_a_wrong_type_is_dead_lettered,
    deeply_nested_headers_end_no_process,
    a_message_that_kills_its_consumers_ends_as_delivery_limit_and_no_other_does,
);

/// Takes the dead letter, then proves that the worker goes on.
async fn is_dead(bed: &Bed, what: &str, body: &[u8], reason: &str, field: &str) -> Result<String> {
    let dead = bed.dead_letter().await?;
    let header = |name: &str| dead.header(&format!("x-relay-{name}")).unwrap_or_default();
    assert_eq!(header("reason"), reason, "{what}: {}", header("detail"));
    assert_eq!(header("field"), field, "{what}");
    assert_eq!(header("attempts"), "0", "{what}");
    ensure!(dead.body == body, "{what}: the body was changed");
    let before = bed.simulator.customer("good").await?["applied"].as_u64().unwrap_or(0);
    bed.publish(&bed.event("good", "good", &json!({"city": "Kochi"}))).await?;
    bed.applied("good", before + 1).await?;
    Ok(header("detail"))
}

async fn end(bed: Bed, relay: Process) -> Result<()> {
    let called = bed.simulator.customers().await?;
    assert_eq!(called.len(), 1, "a call was made for poison: {called:?}");
    bed.end(relay).await.map(drop)
}

/// Of a good event, and of one that becomes a dead letter and meets the operators' commands.
async fn deeply_nested_headers_end_no_process(context: Context) -> Result<()> {
    const LEVELS: usize = 20_000;
    let bed = context.bed().await?;
    let mut relay = bed.start_relay().await?;
    let url = context.broker().await?.url();
    for (id, customer, city) in [("e1", "C1", "Kochi"), ("e2", "C2", "New Delhi")] {
        let event = bed.event(id, customer, &json!({"city": city})).to_string();
        publish_nested(&url, (&bed.exchange(), "customer.updated"), LEVELS, event.as_bytes())
            .await?;
    }
    bed.applied("C1", 1).await?;
    relay.line_with("dead letter", LIMIT).await?;
    for args in [
        &["dead", "reindex", "--json"][..],
        &["dead", "list"],
        &["dead", "purge", "--all", "--yes", "--why", "a test"],
    ] {
        let (code, out, err) = bed.settings.command(args, b"").await?;
        ensure!(code == 0, "{args:?}: exit {code}: {out}{err}");
    }
    bed.end(relay).await.map(drop)
}

async fn a_body_that_is_no_event_is_dead_lettered_and_the_worker_goes_on(
    context: Context,
) -> Result<()> {
    let bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    let event = bed.event("e1", "C1", &json!({"city": "Kochi"}));
    let with = |key: &str, value: Value| {
        let mut event = event.clone();
        event[key] = value;
        event.to_string().into_bytes()
    };
    let text = event.to_string();
    let deep = format!("{}1{}", "[".repeat(200), "]".repeat(200));
    let bodies: Vec<(&str, Vec<u8>)> = vec![
        ("empty", Vec::new()),
        ("not JSON", b"entity_id=C1&city=Kochi".to_vec()),
        ("cut off", text.as_bytes()[..text.len() - 3].to_vec()),
        ("more than one text", format!("{text}{text}").into_bytes()),
        ("an array", format!("[{text}]").into_bytes()),
        ("a string", b"\"C1\"".to_vec()),
        ("null", b"null".to_vec()),
        (
            "invalid UTF-8",
            [b"{\"data\":{\"entity_id\":\"C".as_slice(), &[0xff, b'"', b'}', b'}']].concat(),
        ),
        ("a NUL byte", b"\0".to_vec()),
        ("a key twice", text.replacen('{', "{\"id\":\"x\",", 1).into_bytes()),
        (
            "a key twice below",
            text.replacen("\"data\":{", "\"data\":{\"city\":\"A\",", 1).into_bytes(),
        ),
        (
            "deep nesting",
            text.replacen("\"data\":{", &format!("\"data\":{{\"deep\":{deep},"), 1).into_bytes(),
        ),
        ("another version", with("specversion", json!("0.3"))),
        ("a version that is a number", with("specversion", json!(1.0))),
        ("an id that is a number", with("id", json!(7))),
        ("a type that is an object", with("type", json!({}))),
        ("a time without an offset", with("time", json!("2026-11-22T09:30:00"))),
        ("a time that is a number", with("time", json!(1_763_000_000))),
        ("a sequence that is a float", with("sequence", json!(1.5))),
        ("data that is text", with("data", json!("entity_id=C1"))),
        ("data that is null", with("data", json!(null))),
        ("no data", text.replacen("\"data\"", "\"date\"", 1).into_bytes()),
    ];
    for (what, body) in bodies {
        ensure!(body != text.as_bytes(), "{what}: not spoilt");
        bed.publish_as(structured(), &body).await?;
        let detail = is_dead(&bed, what, &body, "undecodable", "").await?;
        ensure!(!detail.is_empty() && !detail.contains("Kochi"), "{what}: {detail}");
    }
    end(bed, relay).await
}

async fn a_value_of_a_wrong_type_is_dead_lettered_and_names_its_field(
    context: Context,
) -> Result<()> {
    let bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    for (data, field) in [
        (json!({"city": "Kochi"}), "entity_id"),
        (json!({"entity_id": null, "city": "Kochi"}), "entity_id"),
        (json!({"entity_id": 7, "city": "Kochi"}), "entity_id"),
        (json!({"entity_id": "C 1", "city": "Kochi"}), "entity_id"),
        (json!({"entity_id": "C".repeat(51), "city": "Kochi"}), "entity_id"),
        (json!({"entity_id": "C1", "email": true}), "email"),
        (json!({"entity_id": "C1", "mobile_no": 9_876_543_879.5}), "mobile_no"),
        (json!({"entity_id": "C1", "mobile_no": 1e300}), "mobile_no"),
        (json!({"entity_id": "C1", "address": ["12", "MG Road"]}), "address"),
        (json!({"entity_id": "C1", "city": {"name": "Kochi"}}), "city"),
        (json!({"entity_id": "C1", "state": 12}), "state"),
        (json!({"entity_id": "C1", "pincode": -682_308}), "pincode"),
        (json!({"entity_id": "C1", "city": "कोच्चि"}), "city"),
        (json!({"entity_id": "C1"}), "entity_id"),
    ] {
        let mut event = bed.event("e1", "C1", &json!({}));
        event["data"] = data;
        let body = event.to_string();
        bed.publish(&event).await?;
        is_dead(&bed, &body, body.as_bytes(), "invalid-event", field).await?;
    }
    end(bed, relay).await
}

async fn a_body_of_ten_mebibytes_is_dead_lettered_as_too_large(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    let event = bed.event("e1", "C1", &json!({"city": "Kochi", "note": "x".repeat(10 << 20)}));
    let body = event.to_string();
    bed.publish(&event).await?;
    let detail = is_dead(&bed, "10 MiB", body.as_bytes(), "too-large", "").await?;
    assert!(
        detail.contains(&body.len().to_string()) && detail.contains("event.max_bytes"),
        "{detail}"
    );
    end(bed, relay).await
}

fn headers(entries: &[(&str, AMQPValue)]) -> BasicProperties {
    let mut table = FieldTable::default();
    for (name, value) in entries {
        table.insert((*name).into(), value.clone());
    }
    BasicProperties::default().with_headers(table)
}

async fn a_header_of_a_wrong_type_is_dead_lettered(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    let body = json!({"entity_id": "C1", "city": "Kochi"}).to_string();
    let version = ("ce-specversion", AMQPValue::LongString("1.0".into()));
    for (name, value) in [
        ("ce-id", AMQPValue::Boolean(true)),
        ("ce-id", AMQPValue::Double(1.5)),
        ("ce-time", AMQPValue::FieldTable(FieldTable::default())),
        ("ce-type", AMQPValue::Void),
        ("ce-id", AMQPValue::LongString(vec![0xff, 0xfe].into())),
    ] {
        let what = format!("{name}: {value:?}");
        bed.publish_as(headers(&[version.clone(), (name, value)]), body.as_bytes()).await?;
        let detail = is_dead(&bed, &what, body.as_bytes(), "undecodable", "").await?;
        assert!(detail.contains(&name[3..]), "{what}: {detail}");
    }
    end(bed, relay).await
}

async fn our_own_header_of_a_wrong_type_is_dead_lettered(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    let body = json!({"entity_id": "C1", "city": "Kochi"}).to_string();
    for (name, value) in [
        ("x-relay-attempts", AMQPValue::LongString("many".into())),
        ("x-relay-attempts", AMQPValue::LongLongInt(-1)),
        ("x-relay-attempts", AMQPValue::Boolean(true)),
        ("x-relay-not-before", AMQPValue::LongLongInt(5)),
        ("x-relay-first-seen", AMQPValue::LongString("yesterday".into())),
    ] {
        let what = format!("{name}: {value:?}");
        bed.put_back(headers(&[(name, value)]), body.as_bytes()).await?;
        let detail = is_dead(&bed, &what, body.as_bytes(), "undecodable", "").await?;
        assert!(detail.contains(name), "{what}: {detail}");
    }
    end(bed, relay).await
}

/// Crashes of a worker: twice a real one, otherwise a consumer that vanishes with its connection.
async fn a_message_that_kills_its_consumers_ends_as_delivery_limit_and_no_other_does(
    context: Context,
) -> Result<()> {
    let bed = context.bed().await?;
    bed.declare().await?;
    let hang = json!({"match": {"entity_id": "deadly"}, "fault": {"kind": "hang"}});
    bed.simulator.fault(hang).await?;
    bed.publish(&bed.event("e1", "deadly", &json!({"city": "Kochi"}))).await?;
    for crash in 1.. {
        if bed.queues.depth(&bed.queue("dead")).await? == 1 {
            ensure!(crash > 20, "given up after {} crashes", crash - 1);
            break;
        }
        ensure!(crash <= 22, "not given up after 21 crashes");
        // A relay that finds it back more often lets it wait, and gives it up itself.
        if crash == 1 || crash == 3 {
            let relay = bed.start_relay().await?;
            eventually("the deadly call", LIMIT, || async {
                Ok((bed.simulator.stats().await?["in_flight"] == 1).then_some(()))
            })
            .await?;
            relay.kill().await?;
        } else {
            bed.queues.vanish_with(&bed.queue("work")).await?;
        }
        let waiting = [bed.queue("work"), bed.queue("dead")];
        eventually("the message to come back", LIMIT, || async {
            let depths =
                [bed.queues.depth(&waiting[0]).await?, bed.queues.depth(&waiting[1]).await?];
            Ok((depths.iter().sum::<u32>() == 1).then_some(()))
        })
        .await?;
    }
    let (code, shown, trouble) = bed.settings.command(&["dead", "list", "--json"], b"").await?;
    assert_eq!(code, 0, "{trouble}");
    let shown: Value = serde_json::from_str(&shown)?;
    assert_eq!(shown["dead_letters"][0]["reason"], "delivery-limit", "{shown}");

    // Put back when it kills nobody any more, it is applied: its past is no burden.
    bed.simulator.heal().await?;
    let relay = bed.start_relay().await?;
    let dead = bed.dead_letter().await?;
    bed.put_back(dead.properties, &dead.body).await?;
    bed.applied("deadly", 1).await?;
    bed.end(relay).await.map(drop)
}
