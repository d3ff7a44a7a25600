//! Personal data and secrets stay out of all that is told: marked values go down every path, and are
//! looked for in all output, in metrics, and in what is exported.

use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;

use anyhow::{Result, ensure};
use customer_relay::telemetry::panic;
use regex::Regex;
use serde_json::{Value, json};

use crate::harness::{Context, suite};
use crate::support::bed::{Bed, LIMIT, structured};
use crate::support::collector::Collector;
use crate::support::process::wrote_all;
use crate::support::relay;
use crate::support::simulator::{SECRET_KEY, TOKEN};
use crate::telemetry::{get, reads, serve};

suite!(
    NoBroker:
    a_bug_is_told_by_its_place_and_without_values;
    Broker:
    personal_data_and_secrets_are_told_nowhere,
    a_bad_configuration_repeats_no_value,
    a_refused_password_is_not_repeated,
);

/// The admin port's token; see `serve`.
const ADMIN_TOKEN: &str = "token-for-operators";

/// Whatever is personal or secret. All texts that hold `Mark`, whole values without letters, and the
/// secrets of the test bed.
const MARKS: [&str; 6] =
    ["(?i)mark", r"\b9988776655\b", r"\b778899\b", TOKEN, SECRET_KEY, ADMIN_TOKEN];

fn found(text: &str, marks: &[&str]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for mark in marks {
        let mark = Regex::new(mark)?;
        // The line tells where it comes from.
        found.extend(text.lines().filter(|line| mark.is_match(line)).map(str::to_owned));
    }
    Ok(found)
}

/// New values of a customer: no two customers may have one address.
fn fields(customer: &str) -> Value {
    json!({"email": format!("{customer}@marks.example"), "mobile_no": "9988776655", "address": "Markaddress 1",
           "country": "Markland", "city": "Markcity", "state": "Markstate", "pincode": "778899"})
}

/// The events, by path.
async fn publish_all(bed: &Bed) -> Result<()> {
    let publish = |id: &'static str, customer: &'static str| async move {
        bed.publish(&bed.event(id, customer, &fields(customer))).await
    };
    let rule =
        |customer: &str, fault: Value| json!({"match": {"entity_id": customer}, "fault": fault});
    publish("applied-1", "Markentity1").await?;
    bed.applied("Markentity1", 1).await?;
    // Superseded.
    let mut older = bed.event("superseded-1", "Markentity1", &fields("Markentity1"));
    older["time"] = json!("2026-01-01T00:00:00Z");
    bed.publish(&older).await?;
    // Refused by a portal that repeats everything.
    bed.simulator.fault(rule("Markentity2", json!({"kind": "echo"}))).await?;
    publish("echoed-1", "Markentity2").await?;
    // Retried, at last in vain; a stack trace in HTML; an answer cut short.
    bed.simulator.fault(rule("Markentity3", json!({"kind": "status", "code": 500}))).await?;
    publish("exhausted-1", "Markentity3").await?;
    bed.simulator.fault(rule("Markentity4", json!({"kind": "html"}))).await?;
    publish("html-1", "Markentity4").await?;
    bed.simulator.fault(rule("Markentity5", json!({"kind": "truncated"}))).await?;
    publish("truncated-1", "Markentity5").await?;
    // Invalid, field by field.
    for (field, value) in [
        ("email", "Mark without an at sign"),
        ("mobile_no", "Markmobile"),
        ("address", "Mark/address"),
        ("city", "Mark city"),
        ("state", "Mark state"),
        ("country", "Mark/land"),
        ("pincode", "Markpincode"),
    ] {
        let event = bed.event(&format!("invalid-{field}"), "Markentity6", &json!({field: value}));
        bed.publish(&event).await?;
    }
    let long = format!("Mark{}", "x".repeat(60));
    bed.publish(&bed.event("invalid-entity_id", &long, &fields("Markentity9"))).await?;
    bed.publish(&bed.event("invalid-type", "Markentity6", &json!({"city": ["Mark"]}))).await?;
    // No events at all.
    for body in ["{\"entity_id\":\"Markentity7\"", "Markbody", "{\"Mark\":1,\"Mark\":2}"] {
        bed.publish_as(structured(), body.as_bytes()).await?;
    }
    bed.publish(&bed.event("large-1", "Markentity8", &json!({"city": "Mark".repeat(5000)}))).await
}

/// How many of these are dead letters in the end: refused, exhausted, two that are no answers, nine
/// invalid ones, three that are no events, a large one.
const DEAD: u32 = 1 + 1 + 2 + 9 + 3 + 1;

async fn personal_data_and_secrets_are_told_nowhere(context: Context) -> Result<()> {
    let mut bed = context.bed_with(&["--messages", "detailed"]).await?;
    let collector = Collector::start().await?;
    collector.asked_by(&mut bed.settings);
    bed.set_probe_customer();
    bed.settings
        .set("log.filter", "info,customer_relay=trace,lapin=off")
        .set("retry.max_attempts", "3")
        .set("event.max_bytes", "10000");
    let (relay, port) = serve(&mut bed).await?;
    reads(&port, 200, &[("role", json!("active"))]).await?;
    publish_all(&bed).await?;
    bed.queues.holds(&bed.queue("dead"), DEAD, LIMIT).await?;
    wrote_all(&relay, &["superseded-1", "echoed-1", "exhausted-1", "html-1"], LIMIT).await?;

    // Wrong credentials, said in the portal's own words; then they are right again.
    bed.simulator.expect_secret("another-secret").await?;
    for number in 0..3 {
        let customer = format!("Markoutage{number}");
        let event = bed.event(&format!("outage-{number}"), &customer, &fields(&customer));
        bed.publish(&event).await?;
    }
    wrote_all(&relay, &["outage: calls are paused"], LIMIT).await?;
    bed.simulator.expect_secret(SECRET_KEY).await?;
    for number in 0..3 {
        bed.applied(&format!("Markoutage{number}"), 1).await?;
    }

    // Somebody guesses the token of the admin port.
    let client = reqwest::Client::builder().no_proxy().build()?;
    let guess = client.post(format!("{port}/customer/show"));
    let guess = guess.header("authorization", "Bearer Markguess").send().await?;
    assert_eq!(guess.status(), 401);
    let (_, metrics) = get(&format!("{port}/metrics")).await?;
    let (_, readiness) = get(&format!("{port}/readyz")).await?;
    let mut commands = String::new();
    for args in [&["config"][..], &["check"], &["dead", "list"]] {
        let (_, out, err) = bed.settings.command(args, b"").await?;
        commands.extend([out, err]);
    }
    for _ in 0..DEAD {
        let dead = bed.dead_letter().await?;
        let body = String::from_utf8_lossy(&dead.body);
        ensure!(!found(&body, &MARKS)?.is_empty(), "nothing was looked for in {body}");
    }
    let output = bed.end(relay).await?;
    let exported = collector.everything();

    // They were all looked at: what may be told is there.
    for event in ["applied-1", "superseded-1", "echoed-1", "exhausted-1", "outage-0"] {
        ensure!(output.contains(event), "{event} is not in the output");
        ensure!(exported.contains(event), "{event} was not exported");
    }
    ensure!(metrics.contains("customer_relay_verdicts_total{reason=\"rejected\""), "{metrics}");
    ensure!(exported.contains("customer_relay.verdicts"), "no metrics were exported");
    ensure!(commands.contains("secret_key"), "{commands}");
    for (what, text) in [
        ("output", &output),
        ("/metrics", &metrics),
        ("/readyz", &readiness),
        ("commands", &commands),
        ("exported", &exported),
    ] {
        let found = found(text, &MARKS)?;
        ensure!(found.is_empty(), "{what} tells {found:#?}");
    }
    Ok(())
}

/// Set for a process of the test below, which is this program again.
const BUG: &str = "TEST_BUG";
const SLICED: &str = "a slice that ends within a character";
const WRITTEN: &str = "a text that stands in the code";

/// Ends as the relay ends by a bug, if that is what the process was started for.
pub fn end_by_a_bug_if_asked() {
    let Ok(bug) = std::env::var(BUG) else { return };
    panic::report_by_place(|| std::process::abort());
    let address = format!("Markaddress {}", "é".repeat(9));
    assert!(bug == SLICED, "a text that stands in the code");
    println!("{}", &address[..address.len() - 1]);
}

async fn a_bug_is_told_by_its_place_and_without_values(_: Context) -> Result<()> {
    for (bug, backtrace) in [(SLICED, "0"), (SLICED, "1"), (WRITTEN, "0")] {
        let mut relay = Command::new(std::env::current_exe()?);
        let ended = relay.env(BUG, bug).env("RUST_BACKTRACE", backtrace).output()?;
        let told = String::from_utf8([ended.stdout, ended.stderr].concat())?;
        ensure!(ended.status.signal() == Some(6), "{}: {told}", ended.status);
        ensure!(told.contains("panic at tests/privacy.rs:"), "{told}");
        ensure!(told.contains("end_by_a_bug_if_asked") == (backtrace == "1"), "{told}");
        ensure!(told.contains(WRITTEN) == (bug == WRITTEN), "{told}");
        ensure!(!told.contains("Markaddress"), "{told}");
    }
    Ok(())
}

async fn a_bad_configuration_repeats_no_value(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    bed.declare().await?;
    let good = bed.settings.clone();
    for key in [
        "broker.url",
        "portal.base_url",
        "portal.timeout",
        "portal.probe_customer",
        "portal.field_order",
        "worker.in_flight",
        "worker.merge",
        "retry.multiplier",
        "ledger.url",
        "admin.listen",
        "log.format",
        "telemetry.publisher_trace",
    ] {
        bed.settings.set(key, "Mark://marked:Mark@mark/");
    }
    bed.settings.set("portal.token", "Mark\u{7f}token");
    let (code, out, err) = bed.settings.command(&["run"], b"").await?;
    assert_eq!(code, 64, "{err}");
    ensure!(err.contains("telemetry.publisher_trace") && err.contains("broker.url"), "{err}");
    let told = found(&format!("{out}{err}"), &MARKS)?;
    ensure!(told.is_empty(), "{told:#?}");
    bed.settings = good;
    bed.finish().await
}

async fn a_refused_password_is_not_repeated(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    bed.declare().await?;
    let good = bed.settings.clone();
    let broker = context.broker().await?.url();
    let (_, host) = broker.rsplit_once('@').unwrap_or(("", "127.0.0.1"));
    bed.settings.set("broker.url", &format!("amqp://guest:Markpassword@{host}"));
    let relay = bed.launch_relay()?;
    wrote_all(&relay, &["no session with the broker"], LIMIT).await?;
    relay::stop(relay).await?;
    let told = found(&bed.output(), &MARKS)?;
    ensure!(told.is_empty(), "{told:#?}");
    bed.settings = good;
    bed.finish().await
}
