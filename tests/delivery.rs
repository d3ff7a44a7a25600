//! An event reaches the portal: every form of it, with the right values, in order, signed.

use anyhow::{Result, ensure};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};

use crate::harness::{Context, suite};

suite!(Broker:
    a_structured_event_reaches_the_portal_signed_and_in_order,
    a_binary_event_is_read_with_each_of_the_three_header_prefixes,
    a_bare_event_takes_its_id_and_type_from_the_properties,
    fields_that_the_portal_does_not_know_are_never_sent,
    fields_are_found_by_the_configured_pointers,
    values_are_trimmed_once_and_the_same_bytes_are_signed_and_sent,
    the_configured_order_drives_hash_and_body,
    a_wrong_order_is_found_out_by_the_portal,
    an_event_of_another_type_is_a_dead_letter,
    an_event_of_another_type_is_ignored_where_that_is_set,
);

const NAMES: [&str; 8] =
    ["entity_id", "email", "mobile_no", "address", "country", "city", "state", "pincode"];

fn all_fields() -> Value {
    json!({"email": "asha@example.com", "mobile_no": "9876543879", "address": "12 MG Road",
           "country": "India", "city": "Kochi", "state": "Kerala", "pincode": "682308"})
}

async fn a_structured_event_reaches_the_portal_signed_and_in_order(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    bed.publish(&bed.event("e1", "C1", &all_fields())).await?;
    let customer = bed.applied("C1", 1).await?;
    for (name, value) in all_fields().as_object().unwrap() {
        assert_eq!(&customer["fields"][name], value, "{name}");
    }
    let calls = bed.simulator.requests("C1").await?;
    assert_eq!(calls.len(), 1);
    let call = &calls[0];
    assert_eq!(call["parameters"], json!(NAMES));
    for verified in ["content_type_ok", "token_ok", "checksum_ok"] {
        assert_eq!(call[verified], true, "{verified}");
    }
    assert_eq!(call["outcome"], "applied");
    let output = bed.end(relay).await?;
    assert!(output.contains("1 applied, 0 ignored, 0 to a retry"), "{output}");
    Ok(())
}

async fn a_binary_event_is_read_with_each_of_the_three_header_prefixes(
    context: Context,
) -> Result<()> {
    let bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    for (customer, prefix) in [("C1", "cloudEvents_"), ("C2", "cloudEvents:"), ("C3", "ce-")] {
        let mut headers = FieldTable::default();
        for (name, value) in [
            ("specversion", "1.0"),
            ("type", "customer.updated"),
            ("id", &format!("id-of-{customer}")),
            ("source", "crm"),
        ] {
            let value = AMQPValue::LongString(value.into());
            headers.insert(format!("{prefix}{name}").as_str().into(), value);
        }
        let properties = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_message_id("id-of-the-message".into())
            .with_type("something.else".into())
            .with_headers(headers);
        let body = json!({"entity_id": customer, "city": "Kochi"}).to_string();
        bed.publish_as(properties, body.as_bytes()).await?;
        bed.applied(customer, 1).await?;
    }
    let output = bed.end(relay).await?;
    for customer in ["C1", "C2", "C3"] {
        let id = format!("\"event_id\":\"id-of-{customer}\"");
        assert!(output.contains(&id), "the headers' id wins over message_id: {output}");
    }
    Ok(())
}

async fn a_bare_event_takes_its_id_and_type_from_the_properties(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    let bare = || BasicProperties::default().with_message_id("id-of-the-message".into());
    let body = |customer| json!({"entity_id": customer, "city": "Kochi"}).to_string();
    bed.publish_as(bare(), body("by-routing-key").as_bytes()).await?;
    bed.publish_as(bare().with_type("customer.updated".into()), body("by-type").as_bytes()).await?;
    bed.publish_as(bare().with_type("customer.deleted".into()), body("other").as_bytes()).await?;
    bed.put_back(bare(), body("by-queue").as_bytes()).await?;
    for customer in ["by-routing-key", "by-type", "by-queue"] {
        let customer = bed.applied(customer, 1).await?;
        assert_eq!(customer["fields"]["city"], "Kochi");
    }
    let dead = bed.dead_letter().await?;
    assert_eq!(dead.header("x-relay-reason").as_deref(), Some("unsupported-type"));
    assert_eq!(dead.body, body("other").as_bytes());
    let output = bed.end(relay).await?;
    assert_eq!(output.matches("\"event_id\":\"id-of-the-message\"").count(), 3, "{output}");
    Ok(())
}

async fn fields_that_the_portal_does_not_know_are_never_sent(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    let fields = json!({"city": "Kochi", "state": null, "loyalty": "gold", "balance": 12.5,
                        "card": {"pan": "4111"}});
    bed.publish(&bed.event("e1", "C1", &fields)).await?;
    bed.applied("C1", 1).await?;
    let calls = bed.simulator.requests("C1").await?;
    assert_eq!(calls[0]["parameters"], json!(["entity_id", "city"]));
    assert_eq!(calls[0]["checksum_ok"], true);
    bed.end(relay).await.map(drop)
}

async fn fields_are_found_by_the_configured_pointers(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    for (key, pointer) in [
        ("mapping.entity_id", "/customer/id"),
        ("mapping.email", "/contact/e~1mail"),
        ("mapping.pincode", "/addresses/0/zip"),
    ] {
        bed.settings.set(key, pointer);
    }
    let relay = bed.start_relay().await?;
    let mut event =
        bed.event("e1", "not-this", &json!({"email": "not@this.example", "city": "Kochi"}));
    event["data"]["customer"] = json!({"id": "C1"});
    event["data"]["contact"] = json!({"e/mail": "asha@example.com"});
    event["data"]["addresses"] = json!([{"zip": 682_308}]);
    bed.publish(&event).await?;
    let customer = bed.applied("C1", 1).await?;
    let expected = json!({"entity_id": "C1", "email": "asha@example.com", "city": "Kochi",
                          "pincode": "682308"});
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(&customer["fields"][name], value, "{name}");
    }
    bed.end(relay).await.map(drop)
}

async fn values_are_trimmed_once_and_the_same_bytes_are_signed_and_sent(
    context: Context,
) -> Result<()> {
    let bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    let fields = json!({"email": "asha+crm@example.com", "address": "  12  MG Road\t",
                        "mobile_no": 9_876_543_879_u64, "city": " Kochi "});
    bed.publish(&bed.event("e1", " C1 ", &fields)).await?;
    bed.applied("C1", 1).await?;
    let call = &bed.simulator.requests("C1").await?[0];
    let values = json!({"entity_id": "C1", "email": "asha+crm@example.com", "city": "Kochi",
                        "address": "12  MG Road", "mobile_no": "9876543879"});
    for (name, value) in values.as_object().unwrap() {
        assert_eq!(&call["values"][name], value, "{name}");
    }
    assert_eq!(call["checksum_ok"], true);
    bed.end(relay).await.map(drop)
}

const CURL_ORDER: &str = "entity_id,email,mobile_no,address,city,state,country,pincode";

async fn the_configured_order_drives_hash_and_body(context: Context) -> Result<()> {
    let mut bed = context.bed_with(&["--field-order", CURL_ORDER]).await?;
    bed.settings.set("portal.field_order", CURL_ORDER);
    let relay = bed.start_relay().await?;
    bed.publish(&bed.event("e1", "C1", &all_fields())).await?;
    bed.applied("C1", 1).await?;
    let call = &bed.simulator.requests("C1").await?[0];
    assert_eq!(call["parameters"], json!(CURL_ORDER.split(',').collect::<Vec<_>>()));
    bed.end(relay).await.map(drop)
}

async fn a_wrong_order_is_found_out_by_the_portal(context: Context) -> Result<()> {
    let bed = context.bed_with(&["--field-order", CURL_ORDER]).await?;
    let relay = bed.start_relay().await?;
    bed.publish(&bed.event("e1", "C1", &all_fields())).await?;
    let dead = bed.dead_letter().await?;
    assert_eq!(dead.header("x-relay-reason").as_deref(), Some("rejected"));
    let call = &bed.simulator.requests("C1").await?[0];
    ensure!(call["checksum_ok"] == false && call["outcome"] == "refused:checksum", "{call}");
    bed.end(relay).await.map(drop)
}

async fn an_event_of_another_type_is_a_dead_letter(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    let mut event = bed.event("e1", "C1", &all_fields());
    event["type"] = json!("customer.merged");
    bed.publish(&event).await?;
    let dead = bed.dead_letter().await?;
    assert_eq!(dead.header("x-relay-reason").as_deref(), Some("unsupported-type"));
    let detail = dead.header("x-relay-detail").unwrap();
    assert!(detail.contains("customer.merged") && detail.contains("event.types"), "{detail}");
    assert!(bed.simulator.requests("C1").await?.is_empty());
    bed.end(relay).await.map(drop)
}

async fn an_event_of_another_type_is_ignored_where_that_is_set(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    bed.settings.set("broker.other_types", "ignore");
    bed.settings.set("event.types", "customer.updated, customer.moved");
    let relay = bed.start_relay().await?;
    let mut event = bed.event("e1", "C1", &all_fields());
    event["type"] = json!("customer.merged");
    bed.publish(&event).await?;
    event["type"] = json!("customer.moved");
    bed.publish(&event).await?;
    bed.applied("C1", 1).await?;
    assert_eq!(bed.simulator.requests("C1").await?.len(), 1);
    let output = bed.end(relay).await?;
    assert!(output.contains("1 applied, 1 ignored"), "{output}");
    Ok(())
}
