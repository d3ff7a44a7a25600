//! What comes in from outside and cannot be kept or shown as it is: dates that were never set, ids with
//! control characters, hostile texts in headers and answers. Each has its end, holds up nobody, and
//! reaches no terminal, log line or ledger raw.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use customer_relay::domain::text::{escape, is_printable};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};

use crate::dead_commands::{ids, told};
use crate::harness::{Context, suite};
use crate::support::bed::{Bed, LIMIT, structured};
use crate::support::process::Process;
use crate::support::queues::Taken;

suite!(Broker:
    a_date_that_was_never_set_is_dead_lettered,
    a_timestamp_that_stands_in_for_a_time_is_held_to_the_same_limits,
    the_limit_is_a_setting_and_a_letter_is_replayed_once_it_has_moved,
    an_order_by_sequence_asks_for_a_possible_time_too,
    an_id_with_a_control_character_is_dead_lettered_and_holds_up_nobody,
    an_id_of_any_length_is_one_and_a_broken_escape_is_none,
    a_letter_with_a_hostile_id_is_mended_by_hand,
    commands_work_on_hostile_letters_and_print_nothing_raw,
    what_the_portal_says_is_shown_without_control_characters;
Postgres:
    commands_work_on_hostile_letters_with_postgresql,
);

/// What a ledger refuses, a terminal obeys, or a reader takes for something else.
const HOSTILE: [&str; 10] = [
    "\0",
    "\u{1}",
    "\n",
    "\x1b[2J",
    "\x7f",
    "\u{85}",
    "\u{9b}31m",
    "\u{2028}",
    "\u{202e}",
    "\u{2066}",
];

fn city() -> Value {
    json!({"city": "Kochi"})
}

fn at(bed: &Bed, id: &str, entity_id: &str, time: &str) -> Value {
    let mut event = bed.event(id, entity_id, &city());
    event["time"] = json!(time);
    event
}

fn header(dead: &Taken, name: &str) -> String {
    dead.header(&format!("x-relay-{name}")).unwrap_or_default()
}

/// Takes the dead letter and asserts which rule refused it; its detail.
async fn refused(bed: &Bed, rule: &str) -> Result<String> {
    let dead = bed.dead_letter().await?;
    let detail = header(&dead, "detail");
    assert_eq!((&*header(&dead, "reason"), &*header(&dead, "rule")), ("invalid-event", rule));
    ensure!(detail.contains(&format!("rule {rule}")), "{detail}");
    assert_eq!(header(&dead, "attempts"), "0");
    Ok(detail)
}

/// Asserts that there is nothing in it that a terminal would obey.
fn assert_plain(what: &str, text: &str) {
    for line in text.lines() {
        assert!(is_printable(line), "{what}: raw {line:?}");
    }
}

async fn end(bed: Bed, relay: Process) -> Result<()> {
    let output = bed.end(relay).await?;
    assert_plain("the log", &output);
    Ok(())
}

async fn a_date_that_was_never_set_is_dead_lettered(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    for time in [
        "0001-01-01T00:00:00Z",
        "0000-01-01T00:00:00Z",
        "1677-09-21T00:12:43Z",
        "1969-12-31T23:59:59Z",
        "1970-01-01T00:00:00Z",
        "1999-12-31T23:59:59.999999999Z",
        "2000-01-01T00:00:00+00:01",
    ] {
        bed.publish(&at(&bed, "unset", "C1", time)).await?;
        let detail = refused(&bed, "time").await?;
        ensure!(
            detail.contains("looks like an unset date") && detail.contains("event.earliest_time"),
            "{time}: {detail}"
        );
    }
    bed.publish(&at(&bed, "first", "C1", "2000-01-01T00:00:00Z")).await?;
    bed.applied("C1", 1).await?;
    let shown = told(&bed, &["customer", "show", "C1"]).await?;
    assert_eq!(shown["fields"]["city"]["time"], "2000-01-01T00:00:00Z");
    end(bed, relay).await
}

async fn a_timestamp_that_stands_in_for_a_time_is_held_to_the_same_limits(
    context: Context,
) -> Result<()> {
    let bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    let bare = |seconds| BasicProperties::default().with_timestamp(seconds);
    let body = br#"{"entity_id":"C1","city":"Kochi"}"#;
    for (seconds, rule, words) in [
        (0, "time", "looks like an unset date"),
        (946_684_799, "time", "looks like an unset date"),
        (1_795_339_800_123, "future", "milliseconds"),
        (i64::MAX.unsigned_abs() + 1, "future", "milliseconds"),
        (u64::MAX, "future", "milliseconds"),
    ] {
        bed.publish_as(bare(seconds), body).await?;
        let detail = refused(&bed, rule).await?;
        ensure!(detail.contains(words), "{seconds}: {detail}");
    }
    let mut attributes = FieldTable::default();
    attributes.insert("ce-specversion".into(), AMQPValue::LongString("1.0".into()));
    attributes.insert("ce-time".into(), AMQPValue::Timestamp(0));
    bed.publish_as(BasicProperties::default().with_headers(attributes), body).await?;
    refused(&bed, "time").await?;
    // A time of its own counts, whatever the message's timestamp is.
    let event = bed.event("timed", "C1", &city()).to_string();
    bed.publish_as(structured().with_timestamp(0), event.as_bytes()).await?;
    bed.applied("C1", 1).await?;
    bed.publish_as(bare(946_684_800), br#"{"entity_id":"C2","city":"Kochi"}"#).await?;
    bed.applied("C2", 1).await?;
    end(bed, relay).await
}

async fn the_limit_is_a_setting_and_a_letter_is_replayed_once_it_has_moved(
    context: Context,
) -> Result<()> {
    let mut bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    bed.publish(&at(&bed, "e1", "C1", "1995-05-05T00:00:00Z")).await?;
    bed.queues.holds(&bed.queue("dead"), 1, LIMIT).await?;
    let listed = told(&bed, &["dead", "list", "--customer", "C1"]).await?;
    assert_eq!(listed["dead_letters"][0]["group"], "invalid-event:time");
    let shown = told(&bed, &["dead", "show", &ids(&listed)[0]]).await?;
    assert_eq!(shown["outlook"]["setting"], "event.earliest_time");
    // An edit gives fields other values, not the event another time.
    let set = ["dead", "edit", "--customer", "C1", "--set", "city=Pune", "--dry-run"];
    let preview = told(&bed, &set).await?;
    let why = preview["letters"][0]["refused"].as_str().context("not refused")?;
    ensure!(why.contains("event.earliest_time"), "{why}");

    bed.settings.set("event.earliest_time", "1990-01-01");
    crate::support::relay::stop(relay).await?;
    let relay = bed.start_relay().await?;
    let plan = bed.state().join("plan.json").display().to_string();
    let put_back = ["dead", "replay", "--all", "--yes", "--wait", "--save", &plan];
    assert_eq!(told(&bed, &put_back).await?["applied"], 1);
    bed.publish(&at(&bed, "e2", "C1", "1989-12-31T23:59:59Z")).await?;
    ensure!(refused(&bed, "time").await?.contains("before 1990-01-01T00:00:00Z"));
    for (limit, is_one) in [
        ("1990-01-01T00:00:00+01:00", true),
        ("0001-01-01", true),
        ("yesterday", false),
        ("", false),
        ("1990-13-01", false),
        ("2999-01-01", false),
    ] {
        bed.settings.set("event.earliest_time", limit);
        let (code, out, err) = bed.settings.command(&["config"], b"").await?;
        let is_refused = err.contains("event.earliest_time") && err.contains("in the past");
        ensure!((code == 0) == is_one && is_refused != is_one, "{limit}: {code} {out}{err}");
    }
    bed.settings.set("event.earliest_time", "1990-01-01");
    end(bed, relay).await
}

async fn an_order_by_sequence_asks_for_a_possible_time_too(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    bed.settings.set("order.by", "sequence");
    let relay = bed.start_relay().await?;
    let mut event = at(&bed, "e1", "C1", "0001-01-01T00:00:00Z");
    event["sequence"] = json!("7");
    bed.publish(&event).await?;
    refused(&bed, "time").await?;
    event["time"] = json!(null);
    bed.publish(&event).await?;
    bed.applied("C1", 1).await?;
    end(bed, relay).await
}

/// One message for each place that an id can stand in, of customers of its own; the id that is shown.
fn with_hostile_ids(bed: &Bed) -> Vec<(BasicProperties, Vec<u8>, String)> {
    let mut messages = Vec::new();
    for (n, hostile) in HOSTILE.iter().enumerate() {
        let id = format!("evt-{n}{hostile}x");
        let shown = escape(&id, usize::MAX).into_owned();
        let customer = format!("BAD{n}");
        let event = bed.event(&id, &customer, &city());
        messages.push((structured(), event.to_string().into_bytes(), shown.clone()));

        let data = json!({"entity_id": customer, "city": "Kochi"}).to_string().into_bytes();
        let named = BasicProperties::default().with_message_id(id.as_str().into());
        messages.push((named, data.clone(), shown.clone()));

        let mut attributes = FieldTable::default();
        attributes.insert("ce-specversion".into(), AMQPValue::LongString("1.0".into()));
        attributes.insert("ce-id".into(), AMQPValue::LongString(id.into()));
        messages.push((BasicProperties::default().with_headers(attributes), data, shown));

        let mut event = bed.event(&format!("plain-{n}"), &customer, &city());
        event["source"] = json!(format!("crm{hostile}"));
        messages.push((structured(), event.to_string().into_bytes(), format!("plain-{n}")));
    }
    messages
}

async fn an_id_with_a_control_character_is_dead_lettered_and_holds_up_nobody(
    context: Context,
) -> Result<()> {
    let bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    let messages = with_hostile_ids(&bed);
    for (n, (properties, body, _)) in messages.iter().enumerate() {
        bed.publish_as(properties.clone(), body).await?;
        let good = bed.event(&format!("good-{n}"), &format!("GOOD{n}"), &city());
        bed.publish(&good).await?;
    }
    for n in 0..messages.len() {
        bed.applied(&format!("GOOD{n}"), 1).await?;
    }
    bed.queues.holds(&bed.queue("dead"), u32::try_from(messages.len())?, LIMIT).await?;
    let mut expected: BTreeSet<(Vec<u8>, String)> =
        messages.iter().map(|(_, body, shown)| (body.clone(), shown.clone())).collect();
    for dead in bed.queues.take_all(&bed.queue("dead")).await? {
        assert_eq!((&*header(&dead, "reason"), &*header(&dead, "rule")), ("invalid-event", "id"));
        let detail = header(&dead, "detail");
        ensure!(detail.contains("control character U+"), "{detail}");
        for (name, value) in dead.headers() {
            let is_ours = name.starts_with("x-relay-");
            ensure!(!is_ours || is_printable(&value), "{name}: {value:?}");
        }
        expected.remove(&(dead.body.clone(), header(&dead, "event")));
    }
    ensure!(expected.is_empty(), "not as they were, or another event is named: {expected:?}");
    let called = bed.simulator.customers().await?;
    assert_eq!(called.len(), messages.len(), "a refused event was sent");
    end(bed, relay).await
}

async fn an_id_of_any_length_is_one_and_a_broken_escape_is_none(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    let long = "é".repeat(60_000);
    bed.publish(&bed.event(&long, "C1", &city())).await?;
    bed.publish(&bed.event(&long, "C1", &city())).await?;
    bed.applied("C1", 1).await?;
    bed.publish(&bed.event(" \u{a0}", "C2", &city())).await?;
    bed.applied("C2", 1).await?;
    let event = bed.event("SURROGATE", "C3", &city()).to_string();
    for escape in [r"\ud800", r"\udc00", r"\ud800x", r"\ud83d\ud83d"] {
        let body = event.replace("SURROGATE", escape);
        bed.publish_as(structured(), body.as_bytes()).await?;
        let dead = bed.dead_letter().await?;
        assert_eq!(header(&dead, "reason"), "undecodable", "{escape}");
        ensure!(header(&dead, "detail").starts_with("not valid JSON"), "{escape}");
    }
    bed.publish_as(structured(), event.replace("SURROGATE", r"\ud83d\ude00").as_bytes()).await?;
    bed.applied("C3", 1).await?;
    let output = bed.end(relay).await?;
    assert_plain("the log", &output);
    ensure!(output.lines().all(|line| line.len() < 2000), "an id is written out at length");
    Ok(())
}

/// A dead letter that a stranger has written, or a relay before this rule: every text of it is hostile.
fn by_a_stranger(hostile: &str) -> (BasicProperties, Vec<u8>) {
    let text = |text: String| AMQPValue::LongString(text.into());
    let mut headers = FieldTable::default();
    headers.insert("x-relay-reason".into(), text("invalid-event".into()));
    for name in ["event", "detail", "field", "rule", "flags", "last-reason", "exchange", "odd"] {
        headers.insert(format!("x-relay-{name}").into(), text(format!("{name}{hostile}.")));
    }
    headers.insert(format!("x-relay-odd{hostile}name").into(), text(hostile.into()));
    headers.insert(format!("crm{hostile}").into(), text(hostile.into()));
    let properties = BasicProperties::default()
        .with_message_id(format!("m{hostile}").into())
        .with_type(format!("t{hostile}").into())
        .with_headers(headers);
    let body = json!({"entity_id": "C1", "city": hostile}).to_string().into_bytes();
    (properties, body)
}

/// Runs a command twice, for people and as JSON; what it wrote is plain. The JSON.
async fn plain(bed: &Bed, count: usize, args: &[&str], expected: i32) -> Result<Value> {
    let mut last = Value::Null;
    for as_json in [&[][..], &["--json"]] {
        let args = [args, as_json].concat();
        are_back(bed, count).await?;
        let (code, out, err) = bed.settings.command(&args, b"").await?;
        ensure!(code == expected, "{args:?}: exit {code}\n{out}{err}");
        assert_plain(&format!("{args:?}"), &out);
        assert_plain(&format!("{args:?}"), &err);
        if !as_json.is_empty() && code == 0 {
            last = serde_json::from_str(&out).with_context(|| format!("{args:?}: {out}"))?;
        }
    }
    Ok(last)
}

/// Waits until all letters are back in their queue: a command that was here before may have let go of
/// them a moment ago.
async fn are_back(bed: &Bed, count: usize) -> Result<()> {
    bed.queues.holds(&bed.queue("dead"), u32::try_from(count)?, LIMIT).await
}

async fn look_at_all(bed: &Bed, count: usize) -> Result<()> {
    assert_eq!(plain(bed, count, &["dead", "groups"], 0).await?["total"], count);
    let listed = plain(bed, count, &["dead", "list"], 0).await?;
    assert_eq!(listed["found"], count);
    // The stranger's letter is the last one.
    for id in ids(&listed).iter().rev().take(3) {
        for reveals in [&[][..], &["--reveal", "--why", "\x1b[2J\u{202e}"]] {
            let args = [&["dead", "show", id], reveals].concat();
            plain(bed, count, &args, 0).await?;
        }
    }
    plain(bed, count, &["dead", "watch", "--times", "1"], 0).await?;
    plain(bed, count, &["dead", "audit"], 0).await?;
    plain(bed, count, &["customer", "show", "BAD3"], 0).await?;
    plain(bed, count, &["customer", "show", "\x1b[2J"], 1).await?;
    for asked in ["evt-3\x1b[2Jx", r"evt-3\u{1b}[2Jx"] {
        let found = plain(bed, count, &["dead", "list", "--event", asked], 0).await?;
        assert_eq!(found["found"], 3, "{asked:?}");
    }
    Ok(())
}

async fn change_all(bed: &Bed, count: usize) -> Result<()> {
    let why = ["--why", "be\x1b[2J\u{85}cause", "--yes"];
    let dry = plain(bed, count, &["dead", "replay", "--all", "--dry-run"], 0).await?;
    assert_eq!(dry["verdicts"]["still-invalid"], count, "{dry}");
    let edit = ["dead", "edit", "--reason", "invalid-event", "--set", "city=Pune", "--dry-run"];
    let preview = plain(bed, count, &edit, 0).await?;
    let letters = preview["letters"].as_array().context("no letters")?;
    ensure!(letters.iter().any(|letter| letter["refused"].is_string()), "{preview}");
    for step in ["archive", "restore"] {
        let args = [&["dead", step, "--all"], &why[..]].concat();
        if step == "archive" {
            are_back(bed, count).await?;
        }
        assert_eq!(told(bed, &args).await?[format!("{step}d")], count);
    }
    let file = bed.state().join("letters.jsonl").display().to_string();
    let export = ["dead", "export", "--all", "--to", &file, "--why", "\u{9b}2J"];
    are_back(bed, count).await?;
    assert_eq!(told(bed, &export).await?["exported"], count);
    are_back(bed, count).await?;
    let purge = [&["dead", "purge", "--all"], &why[..]].concat();
    assert_eq!(told(bed, &purge).await?["deleted"], count);
    let import = [&["dead", "import", &file], &why[..]].concat();
    assert_eq!(told(bed, &import).await?["imported"], count);
    assert_eq!(plain(bed, count, &["dead", "reindex"], 0).await?["indexed"], count);
    assert_eq!(plain(bed, count, &["dead", "groups"], 0).await?["total"], count);
    are_back(bed, count).await?;
    assert_eq!(told(bed, &purge).await?["deleted"], count);
    let acts = plain(bed, 0, &["dead", "audit"], 0).await?;
    let whys = acts["acts"].as_array().into_iter().flatten().map(|act| act["why"].as_str());
    ensure!(whys.flatten().any(|why| why == r"be\u{1b}[2J\u{85}cause"), "{acts}");
    Ok(())
}

async fn work_on_hostile_letters(bed: Bed) -> Result<()> {
    let relay = bed.start_relay().await?;
    let messages = with_hostile_ids(&bed);
    for (properties, body, _) in &messages {
        bed.publish_as(properties.clone(), body).await?;
    }
    let dead = bed.queue("dead");
    bed.queues.holds(&dead, u32::try_from(messages.len())?, LIMIT).await?;
    let (code, out, err) = bed.settings.command(&["dead", "list"], b"").await?;
    ensure!(code == 0 && out.contains(r"evt-0\u{0}x"), "{out}{err}");
    let (properties, body) = by_a_stranger(&HOSTILE.concat());
    bed.queues.publish("", &dead, properties, &body).await?;
    let count = messages.len() + 1;
    assert_eq!(plain(&bed, count, &["dead", "reindex"], 0).await?["indexed"], count);
    look_at_all(&bed, count).await?;
    change_all(&bed, count).await?;
    for (_, body, _) in &messages[12..14] {
        let (code, out, err) = bed.settings.command(&["explain", "-"], body).await?;
        assert_plain("explain", &format!("{code} {out}{err}"));
    }
    end(bed, relay).await
}

/// As the runbook says.
async fn a_letter_with_a_hostile_id_is_mended_by_hand(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    bed.publish(&bed.event("evt-\u{0}x", "C1", &city())).await?;
    bed.queues.holds(&bed.queue("dead"), 1, LIMIT).await?;
    let listed = told(&bed, &["dead", "list", "--customer", "C1"]).await?;
    let (id, why) = (ids(&listed).remove(0), ["--why", "by hand", "--yes"]);
    let [file, plan] = ["letter.jsonl", "plan.json"].map(|name| bed.state().join(name));
    let [name, plan] = [&file, &plan].map(|file| file.display().to_string());
    assert_eq!(told(&bed, &["dead", "export", &id, "--to", &name]).await?["exported"], 1);
    let exported = std::fs::read_to_string(&file)?;
    let mended = exported.replace(r"evt-\\u0000x", "evt-x");
    ensure!(mended != exported, "{exported}");
    std::fs::write(&file, mended)?;
    told(&bed, &[&["dead", "purge", &id], &why[..]].concat()).await?;
    told(&bed, &[&["dead", "import", &name], &why[..]].concat()).await?;
    let put_back = ["dead", "replay", &id, "--yes", "--wait", "--save", &plan];
    assert_eq!(told(&bed, &put_back).await?["applied"], 1);
    let shown = told(&bed, &["customer", "show", "C1"]).await?;
    assert_eq!(shown["fields"]["city"]["event"], "evt-x");
    end(bed, relay).await
}

async fn commands_work_on_hostile_letters_and_print_nothing_raw(context: Context) -> Result<()> {
    work_on_hostile_letters(context.bed().await?).await
}

async fn commands_work_on_hostile_letters_with_postgresql(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    bed.settings.set("ledger.url", &context.postgres().await?.database().await?);
    work_on_hostile_letters(bed).await
}

async fn what_the_portal_says_is_shown_without_control_characters(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    bed.set_probe_customer();
    let relay = bed.start_relay().await?;
    let message = format!("bad{} for New\nDelhi of a@b.example", HOSTILE.join("-"));
    let body = json!({"status": 400, "message": message});
    let fault = json!({"kind": "raw", "code": 200, "body": body});
    bed.simulator.fault(json!({"match": {"entity_id": "C1"}, "fault": fault})).await?;
    bed.publish(&bed.event("e1", "C1", &city())).await?;
    bed.queues.holds(&bed.queue("dead"), 1, LIMIT).await?;
    plain(&bed, 1, &["dead", "list"], 0).await?;
    let dead = bed.dead_letter().await?;
    let detail = header(&dead, "detail");
    assert_eq!(header(&dead, "reason"), "rejected", "{detail}");
    ensure!(is_printable(&detail) && detail.contains(r"bad\u{0}-\u{1}-\u{a}-"), "{detail}");
    ensure!(!detail.contains("a@b.example"), "{detail}");
    end(bed, relay).await
}
