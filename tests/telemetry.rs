//! What is told of the relay: one trace from publisher to portal, metrics, logs, readiness.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use customer_relay::telemetry::instruments::{self, Kind};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use opentelemetry_proto::tonic::trace::v1::{Span, span};
use serde_json::{Value, json};

use crate::harness::{Context, suite};
use crate::support::bed::{Bed, LIMIT, structured};
use crate::support::collector::{Collector, attributes, hex};
use crate::support::eventually;
use crate::support::process::Process;
use crate::support::relay;

suite!(
    NoBroker:
    the_readme_lists_each_metric_and_no_other;
    Broker:
    one_trace_spans_publisher_retries_dead_letter_replay_and_call,
    a_linked_trace_is_our_own_through_retries,
    every_metric_is_there_after_traffic,
    customers_out_of_step_are_counted,
    a_relay_is_ready_through_an_outage_and_a_pause,
    a_standby_is_ready_and_not_active,
    a_relay_without_a_broker_is_alive_but_not_ready,
    a_collector_that_is_gone_holds_nothing_up,
    an_exporter_that_is_not_spoken_is_a_mistake;
    Postgres:
    customers_out_of_step_are_counted_in_postgresql_too,
);

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PUBLISHER: &str = "b7ad6b7169203331";

fn traced() -> BasicProperties {
    let mut headers = FieldTable::default();
    let traceparent = format!("00-{TRACE}-{PUBLISHER}-01");
    headers.insert("traceparent".into(), AMQPValue::LongString(traceparent.into()));
    structured().with_headers(headers)
}

/// A relay with an admin port, and where that is.
pub async fn serve(bed: &mut Bed) -> Result<(Process, String)> {
    bed.settings.set("admin.listen", "127.0.0.1:0").set("admin.token", "token-for-operators");
    let mut relay = bed.launch_relay()?;
    let line = relay.line_with("the admin port is open", LIMIT).await?;
    let line: Value = serde_json::from_str(&line)?;
    let address = line["address"].as_str().context("no address")?.to_owned();
    Ok((relay, format!("http://{address}")))
}

pub async fn get(url: &str) -> Result<(u16, String)> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    let answer = client.get(url).send().await?;
    Ok((answer.status().as_u16(), answer.text().await?))
}

/// Waits until `/readyz` says this.
pub async fn reads(port: &str, status: u16, wanted: &[(&str, Value)]) -> Result<Value> {
    let what = format!("{status} {wanted:?} at /readyz");
    eventually(&what, LIMIT, || async {
        let (found, text) = get(&format!("{port}/readyz")).await?;
        let said: Value = serde_json::from_str(&text)?;
        let is_so = wanted.iter().all(|(key, value)| said[*key] == *value);
        Ok((found == status && is_so).then_some(said))
    })
    .await
}

/// Waits until a line of `/metrics` begins like this.
pub async fn shows(port: &str, line: &str) -> Result<String> {
    eventually(&format!("{line:?} in /metrics"), LIMIT, || async {
        let (_, text) = get(&format!("{port}/metrics")).await?;
        Ok(text.lines().any(|found| found.starts_with(line)).then_some(text))
    })
    .await
}

async fn spans(collector: &Collector, count: usize) -> Result<Vec<Span>> {
    eventually(&format!("{count} spans"), LIMIT, || async {
        let spans = collector.spans();
        Ok((spans.len() >= count).then_some(spans))
    })
    .await
}

fn named<'a>(spans: &'a [Span], name: &str) -> Vec<&'a Span> {
    let mut found: Vec<&Span> = spans.iter().filter(|span| span.name == name).collect();
    found.sort_by_key(|span| span.start_time_unix_nano);
    found
}

async fn one_trace_spans_publisher_retries_dead_letter_replay_and_call(
    context: Context,
) -> Result<()> {
    let mut bed = context.bed().await?;
    let collector = Collector::start().await?;
    collector.asked_by(&mut bed.settings);
    bed.settings.set("retry.immediate_retries", "0").set("retry.max_attempts", "3");
    bed.set_probe_customer();
    let relay = bed.start_relay().await?;
    let fault = json!({"match": {"entity_id": "C1"}, "fault": {"kind": "status", "code": 500}});
    bed.simulator.fault(fault).await?;
    let event = bed.event("e1", "C1", &json!({"city": "Kochi"})).to_string();
    bed.publish_as(traced(), event.as_bytes()).await?;
    // Another one goes well meanwhile: it is the customer's own fault.
    bed.publish(&bed.event("e2", "C2", &json!({"city": "Kochi"}))).await?;
    bed.applied("C2", 1).await?;
    let dead = bed.dead_letter().await?;
    assert_eq!(dead.header("x-relay-reason").as_deref(), Some("retries-exhausted"));
    assert_eq!(dead.header("x-relay-trace-id").as_deref(), Some(TRACE));
    bed.simulator.heal().await?;
    bed.put_back(dead.properties.clone(), &dead.body).await?;
    bed.applied("C1", 1).await?;
    let calls = bed.simulator.requests("C1").await?;
    let dead_queue = bed.queue("dead");
    let output = bed.end(relay).await?;

    let all = collector.spans();
    let ours: Vec<Span> = all.into_iter().filter(|span| hex(&span.trace_id) == TRACE).collect();
    let work = ours.iter().find(|span| span.name.starts_with("process ")).context("no span")?;
    let processed = named(&ours, &work.name);
    assert_eq!(processed.len(), 4, "three attempts and the replay");
    let is_retry = |span: &&Span| span.name.starts_with("send ") && span.name.contains(".retry.");
    assert_eq!(ours.iter().filter(is_retry).count(), 2);
    assert_eq!(named(&ours, &format!("send {dead_queue}")).len(), 1);
    let called = named(&ours, "POST");
    assert_eq!(called.len(), 4);
    assert_eq!(ours.len(), 4 + 2 + 1 + 4, "{ours:?}");

    // From each span up to the publisher's.
    for span in &ours {
        let (mut up, mut steps) = (span, 0);
        while hex(&up.parent_span_id) != PUBLISHER {
            let parent = ours.iter().find(|span| span.span_id == up.parent_span_id);
            up = parent.with_context(|| format!("{} has no parent here", up.name))?;
            steps += 1;
            ensure!(steps < 20, "a circle");
        }
    }
    assert_eq!(hex(&processed[0].parent_span_id), PUBLISHER);
    let sent_before = |span: &Span| ours.iter().find(|sent| sent.span_id == span.parent_span_id);
    for again in &processed[1..] {
        let sent = sent_before(again).context("no parent")?;
        assert_eq!(sent.kind(), span::SpanKind::Producer, "{}", sent.name);
    }
    // The replay's call is what the portal saw.
    let traceparent = calls.last().context("no call")?["traceparent"].as_str().unwrap_or_default();
    let call = hex(&called[3].span_id);
    assert_eq!(traceparent, format!("00-{TRACE}-{call}-01"));
    assert_eq!(called[3].parent_span_id, processed[3].span_id);

    let said = attributes(&processed[0].attributes);
    assert_eq!(said["messaging.system"], "rabbitmq");
    assert_eq!(said["messaging.operation.type"], "process");
    assert_eq!(said["customer_relay.verdict"], "retry");
    assert_eq!(processed[0].kind(), span::SpanKind::Consumer);
    let said = attributes(&called[0].attributes);
    assert_eq!((&*said["http.request.method"], &*said["error.type"]), ("POST", "portal-failed"));
    assert_eq!(said["http.response.status_code"], "500");
    assert_eq!(called[0].kind(), span::SpanKind::Client);
    let who = collector.resource();
    assert_eq!(who["service.name"], "customer-relay");
    assert_eq!(who["service.version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(who["deployment.environment.name"], "tests");
    assert!(!who["service.instance.id"].is_empty());

    let logs = collector.logs();
    let of_ours = logs.iter().filter(|(text, trace)| text == "not applied" && trace == TRACE);
    assert_eq!(of_ours.count(), 3, "{logs:?}");
    let lines = output.lines().filter(|line| line.contains(TRACE)).count();
    assert!(lines >= 5, "three attempts, a dead letter, an applied event: {lines}");
    let metrics: BTreeSet<String> = collector.metric_names().into_iter().collect();
    for instrument in instruments::ALL {
        assert!(metrics.contains(instrument.name), "{} was not exported", instrument.name);
    }
    Ok(())
}

async fn a_linked_trace_is_our_own_through_retries(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    let collector = Collector::start().await?;
    collector.asked_by(&mut bed.settings);
    bed.settings.set("telemetry.publisher_trace", "link").set("retry.immediate_retries", "0");
    // A control call has a trace of its own.
    bed.settings.set("outage.control_calls", "off").set("portal.probe_customer", "");
    let relay = bed.start_relay().await?;
    bed.simulator.fault(json!({"times": 1, "fault": {"kind": "status", "code": 503}})).await?;
    let event = bed.event("e1", "C1", &json!({"city": "Kochi"})).to_string();
    bed.publish_as(traced(), event.as_bytes()).await?;
    bed.applied("C1", 1).await?;
    bed.end(relay).await?;
    let all = spans(&collector, 5).await?;
    let traces: BTreeSet<String> = all.iter().map(|span| hex(&span.trace_id)).collect();
    assert_eq!(traces.len(), 1, "{traces:?}");
    assert!(!traces.contains(TRACE));
    let first = all.iter().min_by_key(|span| span.start_time_unix_nano).context("no span")?;
    assert!(first.parent_span_id.is_empty());
    let links: Vec<String> = first.links.iter().map(|link| hex(&link.span_id)).collect();
    assert_eq!(links, [PUBLISHER]);
    Ok(())
}

async fn every_metric_is_there_after_traffic(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    bed.settings.set("retry.immediate_retries", "0");
    let (relay, port) = serve(&mut bed).await?;
    reads(&port, 200, &[("role", json!("active"))]).await?;
    bed.publish(&bed.event("e0", "C0", &json!({"city": "Kochi"}))).await?;
    bed.applied("C0", 1).await?;
    bed.simulator.fault(json!({"times": 1, "fault": {"kind": "status", "code": 500}})).await?;
    bed.publish(&bed.event("e1", "C1", &json!({"city": "Kochi"}))).await?;
    bed.applied("C1", 1).await?;
    shows(&port, "customer_relay_queue_messages{queue=\"archive\"} 0").await?;
    let text = shows(&port, "customer_relay_verdicts_total{verdict=\"applied\"} 2").await?;
    let families: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .filter(|name| *name != "target_info")
        .collect();
    let declared: Vec<String> =
        instruments::ALL.iter().map(instruments::Instrument::prometheus_name).collect();
    let declared: BTreeSet<&str> = declared.iter().map(String::as_str).collect();
    assert_eq!(families, declared);
    let labels = labels_of(&text);
    for instrument in instruments::ALL {
        let known: BTreeSet<String> =
            instrument.labels.iter().map(|label| label.replace('.', "_")).collect();
        let name = instrument.prometheus_name();
        let odd: Vec<&(String, String)> =
            labels.iter().filter(|(of, label)| *of == name && !known.contains(label)).collect();
        assert!(odd.is_empty(), "{name} has labels that are not declared: {odd:?}");
    }
    for line in [
        "target_info{",
        "customer_relay_breaker_state{state=\"closed\"} 1",
        "customer_relay_outage{kind=\"unreachable\"} 0",
        "customer_relay_active 1",
        "customer_relay_broker_connected 1",
        "customer_relay_deliveries_in_hand 0",
        "customer_relay_attempts_total{outcome=\"portal-failed\"} 1",
        "customer_relay_verdicts_total{verdict=\"retry\"} 1",
        "customer_relay_verdicts_total{reason=\"rejected\",verdict=\"dead-letter\"} 0",
        "http_client_request_duration_seconds_count{error_type=\"portal-failed\",http_response_status_code=\"500\"} 1",
    ] {
        assert!(text.lines().any(|found| found.starts_with(line)), "{line} is not in\n{text}");
    }
    let about = text.lines().find(|line| line.starts_with("target_info{")).unwrap_or_default();
    for label in ["service_name=\"customer-relay\"", "service_version=", "service_instance_id="] {
        assert!(about.contains(label), "{about}");
    }
    bed.end(relay).await.map(drop)
}

/// Each metric with each label it has.
fn labels_of(text: &str) -> BTreeSet<(String, String)> {
    let mut found = BTreeSet::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((name, rest)) = line.split_once('{') else { continue };
        let name = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|end| name.strip_suffix(end))
            .unwrap_or(name);
        let labels = rest.split('}').next().unwrap_or_default();
        for label in labels.split("\",").filter_map(|label| label.split('=').next()) {
            if label != "le" {
                found.insert((name.to_owned(), label.to_owned()));
            }
        }
    }
    found
}

async fn customers_out_of_step_are_counted(context: Context) -> Result<()> {
    count_out_of_step(context.bed().await?).await
}

async fn customers_out_of_step_are_counted_in_postgresql_too(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    bed.settings.set("ledger.url", &context.postgres().await?.database().await?);
    count_out_of_step(bed).await
}

/// Two dead letters of one customer, one of another, and a third one's retry.
async fn count_out_of_step(mut bed: Bed) -> Result<()> {
    bed.settings.set("fields.address", "reject").set("retry.immediate_retries", "0");
    let (relay, port) = serve(&mut bed).await?;
    reads(&port, 200, &[("role", json!("active"))]).await?;
    shows(&port, "customer_relay_customers_out_of_step 0").await?;
    shows(&port, "customer_relay_out_of_step_age_seconds 0").await?;
    let broken = json!({"match": {"entity_id": "C3"}, "fault": {"kind": "status", "code": 500}});
    bed.simulator.fault(broken).await?;
    bed.publish(&bed.event("e0", "C3", &json!({"city": "Kochi"}))).await?;
    for (id, customer) in [("e1", "C1"), ("e2", "C1"), ("e3", "C2")] {
        bed.publish(&bed.event(id, customer, &json!({"address": "12/4"}))).await?;
    }
    let text = shows(&port, "customer_relay_customers_out_of_step 3").await?;
    let line = "customer_relay_out_of_step_age_seconds ";
    let age = text.lines().find_map(|found| found.strip_prefix(line)).context("no age")?;
    let age: f64 = age.parse()?;
    assert!(age > 0.0 && age < 60.0, "{age}");
    shows(&port, "customer_relay_queue_messages{queue=\"dead\"} 3").await?;
    bed.simulator.heal().await?;
    bed.applied("C3", 1).await?;
    shows(&port, "customer_relay_customers_out_of_step 2").await?;
    for _ in 0..3 {
        bed.dead_letter().await?;
    }
    bed.end(relay).await.map(drop)
}

async fn a_relay_is_ready_through_an_outage_and_a_pause(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    let (relay, port) = serve(&mut bed).await?;
    reads(&port, 200, &[("role", json!("active")), ("breaker", json!("closed"))]).await?;
    assert_eq!(get(&format!("{port}/livez")).await?, (200, "alive\n".to_owned()));
    assert_eq!(get(&format!("{port}/customer/show")).await?.0, 405, "it is posted");

    bed.simulator.fault(json!({"fault": {"kind": "status", "code": 502}})).await?;
    for number in 0..3 {
        let event =
            bed.event(&format!("e{number}"), &format!("C{number}"), &json!({"city": "Pune"}));
        bed.publish(&event).await?;
    }
    let outage = reads(&port, 200, &[("outage", json!("failing"))]).await?;
    assert_ne!(outage["breaker"], "closed");
    shows(&port, "customer_relay_outage{kind=\"failing\"} 1").await?;
    bed.simulator.heal().await?;
    for number in 0..3 {
        bed.applied(&format!("C{number}"), 1).await?;
    }
    reads(&port, 200, &[("outage", Value::Null), ("breaker", json!("closed"))]).await?;

    let (code, _, err) = bed.settings.command(&["pause"], b"").await?;
    assert_eq!(code, 0, "{err}");
    reads(&port, 200, &[("paused", json!(true))]).await?;
    shows(&port, "customer_relay_paused 1").await?;
    let (code, _, err) = bed.settings.command(&["resume"], b"").await?;
    assert_eq!(code, 0, "{err}");
    reads(&port, 200, &[("paused", json!(false))]).await?;
    bed.end(relay).await.map(drop)
}

async fn a_standby_is_ready_and_not_active(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    let active = bed.start_relay().await?;
    let (standby, port) = serve(&mut bed).await?;
    reads(&port, 200, &[("role", json!("standby"))]).await?;
    shows(&port, "customer_relay_active 0").await?;
    relay::stop(active).await?;
    reads(&port, 200, &[("role", json!("active"))]).await?;
    shows(&port, "customer_relay_active 1").await?;
    bed.end(standby).await.map(drop)
}

async fn a_relay_without_a_broker_is_alive_but_not_ready(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    bed.declare().await?;
    let reached = bed.settings.clone();
    bed.settings.set("broker.url", "amqp://guest:guest@127.0.0.1:1/%2f");
    let (relay, port) = serve(&mut bed).await?;
    let said = reads(&port, 503, &[("role", json!("none"))]).await?;
    assert_eq!((&said["broker"], &said["ready"]), (&json!("not connected"), &json!(false)));
    assert_eq!(get(&format!("{port}/livez")).await?.0, 200);
    shows(&port, "customer_relay_broker_connected 0").await?;
    relay::stop(relay).await?;
    bed.settings = reached;
    bed.finish().await
}

async fn a_collector_that_is_gone_holds_nothing_up(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    bed.settings.set_variable("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1");
    let relay = bed.start_relay().await?;
    bed.publish(&bed.event("e1", "C1", &json!({"city": "Kochi"}))).await?;
    bed.applied("C1", 1).await?;
    let began = std::time::Instant::now();
    bed.end(relay).await?;
    ensure!(began.elapsed() < Duration::from_secs(25), "{:?}", began.elapsed());
    Ok(())
}

async fn an_exporter_that_is_not_spoken_is_a_mistake(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    bed.settings.set_variable("OTEL_TRACES_EXPORTER", "zipkin");
    let (code, _, err) = bed.settings.command(&["run"], b"").await?;
    assert_eq!(code, 64, "{err}");
    assert!(err.contains("OTEL_TRACES_EXPORTER: expected \"otlp\""), "{err}");
    bed.declare().await?;
    bed.finish().await
}

/// The rows of the README's table of metrics: name, kind, labels, meaning.
fn rows(readme: &str) -> Vec<[String; 4]> {
    let lines = readme.lines().skip_while(|line| *line != "## Metrics").skip(1);
    let lines = lines.take_while(|line| !line.starts_with("## "));
    let rows = lines.filter(|line| line.starts_with("| `"));
    let cells = |line: &str| {
        let mut cells = line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned());
        std::array::from_fn(|_| cells.next().unwrap_or_default())
    };
    rows.map(cells).collect()
}

async fn the_readme_lists_each_metric_and_no_other(_: Context) -> Result<()> {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let listed = rows(&std::fs::read_to_string(readme)?);
    let declared: Vec<[String; 4]> = instruments::ALL
        .iter()
        .map(|instrument| {
            let kind = match instrument.kind {
                Kind::Counter => "counter",
                Kind::Histogram => "histogram",
                Kind::Gauge => "gauge",
            };
            let labels =
                instrument.labels.iter().map(|label| format!("`{}`", label.replace('.', "_")));
            let labels = labels.collect::<Vec<_>>().join(", ");
            let name = format!("`{}`", instrument.prometheus_name());
            [name, kind.to_owned(), labels, instrument.meaning.to_owned()]
        })
        .collect();
    assert_eq!(listed, declared);
    Ok(())
}
