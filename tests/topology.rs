//! The broker's queues are data: shown, declared, compared, exported; a mismatch names itself.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use lapin::ExchangeKind;
use lapin::options::{
    ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};

use crate::harness::{Context, suite};
use crate::support::bed::{Bed, LIMIT};
use crate::support::eventually;
use crate::support::process;
use crate::support::relay::PROGRAM;

suite!(Broker:
    what_is_missing_is_named_then_declared_then_in_order,
    what_export_prints_is_what_check_wants,
    a_queue_with_another_argument_is_named_with_both_values,
    an_exchange_of_another_type_is_named,
    a_relay_that_may_only_check_creates_nothing,
    a_relay_that_may_only_check_works_on_what_is_there,
    a_binding_that_is_gone_is_made_again,
    a_wrong_password_is_told_from_a_broker_that_is_not_there;
ManagedBroker:
    without_the_right_to_configure_nothing_is_compared_and_the_relay_works;
NoBroker:
    the_definitions_in_deploy_are_what_export_prints,
    show_prints_every_queue_with_its_arguments,
    a_broker_that_is_not_there_is_exit_69,
);

async fn findings(bed: &Bed, args: &[&str]) -> Result<(i32, Vec<(String, String)>)> {
    let (code, out, err) = bed.settings.command(&[args, &["--json"]].concat(), b"").await?;
    ensure!(!out.is_empty(), "exit {code}: {err}");
    let answer: Value = serde_json::from_str(&out)?;
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap().to_owned();
    let findings = answer["findings"].as_array().unwrap().iter();
    Ok((code, findings.map(|one| (text(one, "subject"), text(one, "state"))).collect()))
}

fn states(findings: &[(String, String)]) -> BTreeSet<&str> {
    findings.iter().map(|(_, state)| state.as_str()).collect()
}

/// Exchange, five tiers, work, dead, archive, four small queues, binding.
const PARTS: usize = 14;

async fn what_is_missing_is_named_then_declared_then_in_order(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    for command in [&["topology", "check"][..], &["check"]] {
        let (code, found) = findings(&bed, command).await?;
        assert_eq!((code, found.len()), (1, PARTS), "{found:?}");
        let work = (format!("queue {}", bed.queue("work")), "missing".to_owned());
        assert!(found.contains(&work), "{found:?}");
        assert_eq!(states(&found), ["missing", "not-seen"].into(), "{found:?}");
    }
    let (_, text, _) = bed.settings.command(&["topology", "check"], b"").await?;
    assert!(text.contains("customer-relay topology apply"), "the way out: {text}");
    let (code, found) = findings(&bed, &["topology", "apply"]).await?;
    assert_eq!((code, states(&found)), (0, ["present"].into()), "{found:?}");
    for command in [&["topology", "check"][..], &["topology", "apply"], &["check"]] {
        let (code, found) = findings(&bed, command).await?;
        assert_eq!(code, 0, "{command:?}: {found:?}");
        assert!(!states(&found).contains("missing"), "{found:?}");
    }
    bed.finish().await
}

async fn show_prints_every_queue_with_its_arguments(_: Context) -> Result<()> {
    let run = |args: &'static [&'static str]| process::run(PROGRAM, args, &[], b"");
    let (code, out, _) = run(&["topology", "show", "--json"]).await?;
    assert_eq!(code, 0);
    let shown: Value = serde_json::from_str(&out)?;
    let queues = shown["queues"].as_array().unwrap();
    let queue = |name: &str| queues.iter().find(|queue| queue["name"] == name).unwrap();
    assert_eq!(queues.len(), 35, "work, dead, archive, four small ones and 28 tiers");
    let work = &queue("customer-relay.work")["arguments"];
    assert_eq!(work["x-delivery-limit"], 20);
    assert_eq!(work["x-dead-letter-routing-key"], "customer-relay.dead");
    assert_eq!(queue("customer-relay.dead")["arguments"]["x-delivery-limit"], 100_000);
    let tier = &queue("customer-relay.retry.12288000ms")["arguments"];
    assert_eq!(tier["x-message-ttl"], 12_288_000);
    assert_eq!(tier["x-dead-letter-strategy"], "at-least-once");
    assert_eq!(tier["x-overflow"], "reject-publish");
    let (code, text, _) = run(&["topology", "show"]).await?;
    assert_eq!(code, 0);
    for queue in queues {
        assert!(text.contains(queue["name"].as_str().unwrap()), "{queue}");
    }
    Ok(())
}

async fn the_definitions_in_deploy_are_what_export_prints(_: Context) -> Result<()> {
    let (code, out, err) = process::run(PROGRAM, &["topology", "export"], &[], b"").await?;
    assert_eq!((code, err.as_str()), (0, ""));
    let export: Value = serde_json::from_str(&out)?;
    let definitions: Value =
        serde_json::from_str(include_str!("../deploy/rabbitmq/definitions.json"))?;
    assert_eq!(definitions, export, "topology export > deploy/rabbitmq/definitions.json");
    Ok(())
}

async fn what_export_prints_is_what_check_wants(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    let (code, out, err) =
        bed.settings.command(&["topology", "export", "--vhost", "crm"], b"").await?;
    assert_eq!(code, 0, "{err}");
    let export: Value = serde_json::from_str(&out)?;
    let channel = bed.queues.new_channel().await?;
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    for exchange in export["exchanges"].as_array().unwrap() {
        assert_eq!((&exchange["type"], &exchange["vhost"]), (&json!("topic"), &json!("crm")));
        let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
        let name = text(&exchange["name"]).as_str().into();
        channel.exchange_declare(name, ExchangeKind::Topic, options, FieldTable::default()).await?;
    }
    for queue in export["queues"].as_array().unwrap() {
        let mut arguments = FieldTable::default();
        for (name, value) in queue["arguments"].as_object().unwrap() {
            let value = match value {
                Value::Number(number) => AMQPValue::LongLongInt(number.as_i64().unwrap()),
                other => AMQPValue::LongString(text(other).into()),
            };
            arguments.insert(name.as_str().into(), value);
        }
        let options = QueueDeclareOptions::durable();
        channel.queue_declare(text(&queue["name"]).as_str().into(), options, arguments).await?;
    }
    for binding in export["bindings"].as_array().unwrap() {
        let [queue, exchange, key] =
            ["destination", "source", "routing_key"].map(|key| text(&binding[key]));
        let (queue, exchange, key) =
            (queue.as_str().into(), exchange.as_str().into(), key.as_str().into());
        let options = QueueBindOptions::default();
        channel.queue_bind(queue, exchange, key, options, FieldTable::default()).await?;
    }
    let (code, found) = findings(&bed, &["topology", "check"]).await?;
    assert_eq!((code, found.len()), (0, PARTS), "{found:?}");
    let relay = bed.start_relay().await?;
    bed.publish(&bed.event("e1", "C1", &json!({"city": "Kochi"}))).await?;
    bed.applied("C1", 1).await?;
    bed.end(relay).await.map(drop)
}

/// A retry queue that someone made with another delay.
async fn with_another_ttl(bed: &Bed) -> Result<String> {
    bed.declare().await?;
    let name = bed.queue("retry.100ms");
    let channel = bed.queues.new_channel().await?;
    channel.queue_delete(name.as_str().into(), QueueDeleteOptions::default()).await?;
    let mut arguments = FieldTable::default();
    for (key, text) in [
        ("x-queue-type", "quorum"),
        ("x-dead-letter-exchange", ""),
        ("x-dead-letter-routing-key", &bed.queue("work")),
        ("x-dead-letter-strategy", "at-least-once"),
        ("x-overflow", "reject-publish"),
    ] {
        arguments.insert(key.into(), AMQPValue::LongString(text.into()));
    }
    arguments.insert("x-message-ttl".into(), AMQPValue::LongLongInt(54_321));
    let options = QueueDeclareOptions::durable();
    channel.queue_declare(name.as_str().into(), options, arguments).await?;
    Ok(name)
}

async fn a_queue_with_another_argument_is_named_with_both_values(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    let name = with_another_ttl(&bed).await?;
    for args in [&["topology", "check"][..], &["topology", "apply"], &["check"], &["run"]] {
        let (code, out, err) = bed.settings.command(args, b"").await?;
        assert_eq!(code, 1, "{args:?}: {out}{err}");
        let told = format!("{out}{err}");
        for part in [name.as_str(), "x-message-ttl", "'100'", "'54321'", "broker.prefix"] {
            assert!(told.contains(part), "{args:?}: {part} is not in {told}");
        }
        assert!(!told.contains("consuming"), "{told}");
    }
    bed.finish().await
}

async fn an_exchange_of_another_type_is_named(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    let channel = bed.queues.new_channel().await?;
    let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
    let exchange = bed.exchange();
    let (name, kind) = (exchange.as_str().into(), ExchangeKind::Fanout);
    channel.exchange_declare(name, kind, options, FieldTable::default()).await?;
    let (code, found) = findings(&bed, &["topology", "apply"]).await?;
    assert_eq!(code, 1);
    assert!(found.contains(&(format!("exchange {exchange}"), "differs".to_owned())), "{found:?}");
    bed.finish().await
}

async fn a_relay_that_may_only_check_creates_nothing(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    bed.settings.set("broker.declare", "check");
    let (code, out, err) = bed.settings.command(&["run"], b"").await?;
    assert_eq!(code, 1, "{out}{err}");
    assert!(err.contains(&bed.queue("work")) && err.contains("missing"), "{err}");
    let (code, found) = findings(&bed, &["topology", "check"]).await?;
    assert_eq!((code, states(&found)), (1, ["missing", "not-seen"].into()), "{found:?}");
    bed.declare().await?;
    bed.finish().await
}

async fn a_relay_that_may_only_check_works_on_what_is_there(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    bed.declare().await?;
    bed.settings.set("broker.declare", "check");
    let relay = bed.start_relay().await?;
    bed.publish(&bed.event("e1", "C1", &json!({"city": "Kochi"}))).await?;
    bed.applied("C1", 1).await?;
    bed.end(relay).await.map(drop)
}

async fn a_binding_that_is_gone_is_made_again(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    let (channel, exchange) = (bed.queues.new_channel().await?, bed.exchange());
    let delete = ExchangeDeleteOptions::default();
    channel.exchange_delete(exchange.as_str().into(), delete).await?;
    let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
    let (name, topic) = (exchange.as_str().into(), ExchangeKind::Topic);
    channel.exchange_declare(name, topic, options, FieldTable::default()).await?;
    let event = bed.event("e1", "C1", &json!({"city": "Kochi"}));
    ensure!(bed.publish(&event).await.is_err(), "the broker kept the binding");
    eventually("a binding", LIMIT, || async { Ok(bed.publish(&event).await.ok()) }).await?;
    bed.applied("C1", 1).await?;
    ensure!(!relay.output().contains("the session with the broker is over"), "{}", relay.output());
    bed.end(relay).await.map(drop)
}

async fn without_the_right_to_configure_nothing_is_compared_and_the_relay_works(
    context: Context,
) -> Result<()> {
    let mut bed = context.bed().await?;
    bed.declare().await?;
    let broker = context.broker().await?;
    let user = format!("{}-reader", bed.prefix());
    broker.ctl(&["add_user", &user, "hunter2"]).await?;
    broker.ctl(&["set_permissions", &user, "^$", ".*", ".*"]).await?;
    let owner = broker.url();
    bed.settings.set("broker.url", &format!("amqp://{user}:hunter2@{}/%2f", broker.address()));
    for command in [&["topology", "check"][..], &["check"]] {
        let (code, found) = findings(&bed, command).await?;
        assert_eq!((code, states(&found)), (0, ["not-compared", "not-seen"].into()), "{found:?}");
    }
    let (_, text, _) = bed.settings.command(&["topology", "check"], b"").await?;
    assert!(text.contains("not compared"), "{text}");
    let relay = bed.start_relay().await?;
    bed.simulator.fault(json!({"times": 3, "fault": {"kind": "status", "code": 503}})).await?;
    bed.publish(&bed.event("e1", "C1", &json!({"city": "Kochi"}))).await?;
    bed.applied("C1", 1).await?;
    crate::support::relay::stop(relay).await?;
    bed.settings.set("broker.url", &owner);
    broker.ctl(&["delete_user", &user]).await?;
    bed.finish().await
}

async fn a_broker_that_is_not_there_is_exit_69(_: Context) -> Result<()> {
    let simulator = crate::support::simulator::Simulator::start(&[]).await?;
    let url = "amqp://guest:hunter2@127.0.0.1:1/%2f";
    let settings = crate::support::relay::Settings::new(url, "nobody", &simulator);
    for args in [&["topology", "check"][..], &["topology", "apply"], &["check"]] {
        let (code, out, err) = settings.command(args, b"").await?;
        assert_eq!(code, 69, "{args:?}: {out}{err}");
        assert!(err.contains("127.0.0.1:1") && err.contains("is it running"), "{err}");
        assert!(!err.contains("hunter2"), "{err}");
    }
    Ok(())
}

async fn a_wrong_password_is_told_from_a_broker_that_is_not_there(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    bed.declare().await?;
    let broker = context.broker().await?;
    let right = broker.url();
    bed.settings.set("broker.url", &format!("amqp://guest:hunter2@{}/%2f", broker.address()));
    let (code, _, err) = bed.settings.command(&["check"], b"").await?;
    assert_eq!(code, 69, "{err}");
    assert!(err.contains("check user and password in broker.url"), "{err}");
    assert!(!err.contains("hunter2"), "{err}");
    let mut url: url::Url = right.parse()?;
    url.set_path("nowhere");
    bed.settings.set("broker.url", url.as_str());
    let (code, _, err) = bed.settings.command(&["check"], b"").await?;
    assert_eq!(code, 69, "{err}");
    assert!(err.contains("does the virtual host exist?"), "{err}");
    bed.settings.set("broker.url", &right);
    bed.finish().await
}
