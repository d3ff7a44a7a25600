//! What operators ask the ledger: where a customer is, by hand and at the admin port; to forget one;
//! to adopt, carry over and check a ledger.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use customer_relay::domain::field::{Field, FieldSet};
use customer_relay::domain::row::Row;
use customer_relay::domain::version::{EventRef, OrderBy, Place, Version};
use customer_relay::ledger::{Change, Committed, Ledger, Store, Target};
use jiff::{SignedDuration, Timestamp};
use lapin::BasicProperties;
use lapin::options::QueueBindOptions;
use lapin::types::FieldTable;
use serde_json::{Value, json};

use crate::harness::{Context, suite};
use crate::support::bed::{Bed, LIMIT, structured};
use crate::support::eventually;
use crate::support::process::{self, Process};
use crate::support::relay::{self, PROGRAM, Settings};

suite!(Broker:
    show_tells_what_is_applied_superseded_pending_and_dead,
    the_admin_port_tells_the_same_to_whoever_has_the_token,
    a_standby_serves_the_admin_port_too,
    a_forgotten_customer_is_gone_and_others_dead_letters_keep_their_order,
    many_dead_letters_keep_their_order_when_looked_at_and_when_one_of_them_is_erased,
    what_still_waits_for_a_forgotten_customer_is_told,
    a_lost_ledger_stops_the_relay_until_another_one_is_adopted,
    check_tells_how_the_ledger_is,
    check_warns_of_settings_that_weaken_the_ledger,
    a_copy_that_was_interrupted_is_no_ledger_and_is_made_again;
Postgres:
    a_ledger_that_moves_to_postgresql_keeps_its_fences_and_the_old_one_is_refused,
    a_ledger_that_is_in_use_or_already_there_is_not_copied;
NoBroker:
    show_finds_one_of_a_million_customers_in_under_a_second,
    what_is_not_there_is_said_with_a_way_out,
);

const TOKEN: &str = "token-of-operators";

async fn command(bed: &Bed, args: &[&str]) -> Result<(i32, String, String)> {
    bed.settings.command(args, b"").await
}

/// What a command says in JSON, when it goes well.
async fn told(settings: &Settings, args: &[&str]) -> Result<Value> {
    let (code, out, err) = settings.command(&[args, &["--json"]].concat(), b"").await?;
    ensure!(code == 0, "{args:?}: exit {code}\n{out}{err}");
    Ok(serde_json::from_str(&out)?)
}

pub async fn shown(bed: &Bed, id: &str) -> Result<Value> {
    told(&bed.settings, &["customer", "show", id]).await
}

/// An event of the past.
fn old_event(bed: &Bed, id: &str, entity_id: &str, city: &str) -> Value {
    let mut event = bed.event(id, entity_id, &json!({ "city": city }));
    event["time"] = json!((Timestamp::now() - SignedDuration::from_hours(1)).to_string());
    event
}

/// An event that no call is made for.
fn bad_event(bed: &Bed, id: &str, entity_id: &str) -> Value {
    bed.event(id, entity_id, &json!({"city": "New Delhi"}))
}

async fn superseded(bed: &Bed, id: &str, count: u64) -> Result<Value> {
    eventually(&format!("{count} superseded of {id}"), LIMIT, || async {
        let known = shown(bed, id).await?;
        Ok((known["superseded"] == count).then_some(known))
    })
    .await
}

async fn dead_count(bed: &Bed) -> Result<u32> {
    bed.queues.depth(&bed.queue("dead")).await
}

async fn pending(bed: &mut Bed) -> Result<(Process, Value)> {
    bed.settings.set("retry.shortest_delay", "60s").set("retry.first_delay", "60s");
    bed.settings.set("retry.max_delay", "60s").set("retry.max_uncounted_delay", "60s");
    bed.settings.set("retry.rejected_delay", "60s");
    let relay = bed.start_relay().await?;
    let fault = json!({"kind": "status", "code": 503});
    bed.simulator.fault(json!({"match": {"entity_id": "W"}, "fault": fault})).await?;
    bed.publish(&bed.event("e-waits", "W", &json!({"city": "Kochi"}))).await?;
    let known = eventually("a pending retry", LIMIT, || async {
        let (code, out, _) = command(bed, &["customer", "show", "W", "--json"]).await?;
        let known: Value = serde_json::from_str(&out).unwrap_or_default();
        let waits = known["pending"].as_array().is_some_and(|pending| !pending.is_empty());
        Ok((code == 0 && waits).then_some(known))
    });
    let known = known.await?;
    Ok((relay, known))
}

async fn show_tells_what_is_applied_superseded_pending_and_dead(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    let (relay, known) = pending(&mut bed).await?;
    let waits = &known["pending"][0];
    assert_eq!((&waits["event"], &waits["attempts"]), (&json!("e-waits"), &json!(1)));
    assert_eq!(waits["reason"], "portal-failed");
    ensure!((20..=60).contains(&waits["due_in_s"].as_i64().unwrap()), "{waits}");

    bed.publish(&bed.event("e-new", "C1", &json!({"city": "Kochi"}))).await?;
    bed.applied("C1", 1).await?;
    bed.publish(&old_event(&bed, "e-old", "C1", "Delhi")).await?;
    bed.publish(&bad_event(&bed, "e-bad", "C1")).await?;
    let known = superseded(&bed, "C1", 1).await?;
    assert_eq!(known["fields"]["city"]["event"], "e-new");
    for part in ["time", "received"] {
        let time: Timestamp = known["fields"]["city"][part].as_str().unwrap().parse()?;
        ensure!(Timestamp::now().duration_since(time) < SignedDuration::from_mins(1), "{known}");
    }
    ensure!(known["last_written"].is_string() && known["call_under_way"].is_null(), "{known}");
    let dead = bed.dead_letter().await?;
    let known = eventually("a dead letter", LIMIT, || async {
        let known = shown(&bed, "C1").await?;
        Ok((known["dead_letters"].as_array().map(Vec::len) == Some(1)).then_some(known))
    });
    let known = known.await?;
    let letter = &known["dead_letters"][0];
    assert_eq!(letter["dead_id"].as_str(), dead.header("x-relay-dead-id").as_deref());
    assert_eq!((&letter["reason"], &letter["field"]), (&json!("invalid-event"), &json!("city")));

    let (code, text, _) = command(&bed, &["customer", "show", "C1"]).await?;
    assert_eq!(code, 0);
    for part in ["e-new", "superseded    1 events", "dead letter", "invalid-event"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let (code, out, err) = command(&bed, &["customer", "show", "C9"]).await?;
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains("knows nothing of this customer"), "{err}");
    bed.queues.take(&bed.queue("retry.60000ms"), LIMIT).await?;
    bed.end(relay).await.map(drop)
}

/// A relay that serves the admin port, and where.
async fn relay_with_port(bed: &mut Bed) -> Result<(Process, String)> {
    bed.settings.set("admin.listen", "127.0.0.1:0").set("admin.token", TOKEN);
    let mut relay = bed.launch_relay()?;
    let line = relay.line_with("the admin port is open", LIMIT).await?;
    let line: Value = serde_json::from_str(&line)?;
    let address = line["address"].as_str().context("no address")?;
    Ok((relay, format!("http://{address}")))
}

async fn the_admin_port_tells_the_same_to_whoever_has_the_token(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    let (mut relay, url) = relay_with_port(&mut bed).await?;
    relay.line_with("\"consuming\"", LIMIT).await?;
    bed.publish(&bed.event("e1", "C1", &json!({"city": "Kochi"}))).await?;
    bed.applied("C1", 1).await?;
    let known =
        eventually("C1 in the ledger", LIMIT, || async { Ok(shown(&bed, "C1").await.ok()) });
    let known = known.await?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("token");
    fs::write(&file, format!("{TOKEN}\n"))?;
    let mut operator = bed.settings.clone();
    operator.set("ledger.url", "none").set("admin.token", "");
    operator.set("admin.token_file", file.to_str().unwrap());
    let via = ["customer", "show", "C1", "--via", &url];
    assert_eq!(told(&operator, &via).await?, known);
    let (code, _, err) = operator.command(&["customer", "show", "C9", "--via", &url], b"").await?;
    assert_eq!(code, 1);
    assert!(err.contains("knows nothing of this customer"), "{err}");

    fs::write(&file, "another-token")?;
    let (code, out, err) = operator.command(&via, b"").await?;
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains("refuses the token") && err.contains("admin.token_file"), "{err}");
    let http = reqwest::Client::builder().no_proxy().build()?;
    let ask = || http.post(format!("{url}/customer/show")).body(r#"{"entity_id":"C1"}"#);
    assert_eq!(ask().send().await?.status(), 401);
    assert_eq!(ask().header("authorization", "Bearer ").send().await?.status(), 401);
    assert_eq!(http.get(format!("{url}/livez")).send().await?.status(), 200);

    for (via, expected) in [("http://127.0.0.1:1", 69), ("http://portal.example", 64)] {
        let (code, _, err) =
            operator.command(&["customer", "show", "C1", "--via", via], b"").await?;
        assert_eq!(code, expected, "{err}");
    }
    bed.end(relay).await.map(drop)
}

async fn a_standby_serves_the_admin_port_too(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    let active = bed.start_relay().await?;
    let (standby, url) = relay_with_port(&mut bed).await?;
    let ask = ["customer", "show", "C1", "--via", &url];
    let (code, _, err) = command(&bed, &ask).await?;
    assert_eq!(code, 69);
    assert!(err.contains("standby"), "{err}");
    relay::stop(active).await?;
    eventually("the standby to take over", LIMIT, || async {
        let (code, _, err) = command(&bed, &ask).await?;
        Ok((code == 1 && err.contains("knows nothing")).then_some(()))
    })
    .await?;
    bed.end(standby).await.map(drop)
}

async fn a_forgotten_customer_is_gone_and_others_dead_letters_keep_their_order(
    context: Context,
) -> Result<()> {
    let bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    bed.publish(&bed.event("e-good", "GONE", &json!({"city": "Kochi"}))).await?;
    bed.applied("GONE", 1).await?;
    for (n, customer) in ["STAYS", "GONE", "OTHER", "GONE", "STAYS"].iter().enumerate() {
        bed.publish(&bad_event(&bed, &format!("e{n}"), customer)).await?;
        bed.queues.holds(&bed.queue("dead"), u32::try_from(n)? + 1, LIMIT).await?;
    }
    let mut foreign = bed.event("e5", "GONE", &json!({"city": "Kochi"}));
    foreign["type"] = json!("customer.merged");
    bed.publish(&foreign).await?;
    bed.publish_as(BasicProperties::default(), b"no event at all, GONE").await?;
    bed.queues.holds(&bed.queue("dead"), 7, LIMIT).await?;
    let archive = bed.queue("archive");
    for customer in ["GONE", "STAYS"] {
        let event = bed.event("e-archived", customer, &json!({"city": "Kochi"}));
        bed.queues.publish("", &archive, structured(), event.to_string().as_bytes()).await?;
    }

    let forget = ["customer", "forget", "GONE"];
    let (code, _, err) = command(&bed, &forget).await?;
    assert_eq!(code, 64);
    assert!(err.contains("--yes"), "{err}");
    let expected = json!({bed.queue("dead"): 3, archive.clone(): 1});
    let plan = told(&bed.settings, &[&forget[..], &["--dry-run"]].concat()).await?;
    assert_eq!((&plan["messages"], &plan["ledger"]["fields"]), (&expected, &json!(1)), "{plan}");
    assert_eq!(plan["ledger"]["dead_letters"], 2);
    assert_eq!(dead_count(&bed).await?, 7, "a dry run changes nothing");
    let done = told(&bed.settings, &[&forget[..], &["--yes"]].concat()).await?;
    assert_eq!((&done["messages"], &done["still_waiting"]), (&expected, &json!(0)), "{done}");

    let (code, _, err) = command(&bed, &["customer", "show", "GONE"]).await?;
    assert_eq!(code, 1, "{err}");
    let dead = shown(&bed, "STAYS").await?["dead_letters"].as_array().map(Vec::len);
    assert_eq!(dead, Some(2));
    bed.queues.holds(&bed.queue("dead"), 4, LIMIT).await?;
    let left = bed.queues.take_all(&bed.queue("dead")).await?;
    let left: Vec<String> = left.into_iter().map(|taken| event_id(&taken.body)).collect();
    assert_eq!(left, ["e0", "e2", "e4", "no event"]);
    assert_eq!(bed.queues.take_all(&archive).await?.len(), 1);
    bed.publish(&bed.event("e-again", "GONE", &json!({"city": "Kochi"}))).await?;
    bed.applied("GONE", 2).await?;
    bed.end(relay).await.map(drop)
}

fn event_id(body: &[u8]) -> String {
    let event: Value = serde_json::from_slice(body).unwrap_or_default();
    event["id"].as_str().unwrap_or("no event").to_owned()
}

/// More than one of the consumers that walk through a queue can hold, and far more than 32.
async fn many_dead_letters_keep_their_order_when_looked_at_and_when_one_of_them_is_erased(
    context: Context,
) -> Result<()> {
    const LETTERS: usize = 1_300;
    let bed = context.bed().await?;
    relay::stop(bed.start_relay().await?).await?;
    let channel = bed.queues.new_channel().await?;
    let (work, dead, exchange) = (bed.queue("work"), bed.queue("dead"), bed.exchange());
    let (key, none) = ("customer.updated", FieldTable::default());
    let (work, from) = (work.as_str().into(), exchange.as_str().into());
    channel.queue_unbind(work, from, key.into(), none.clone()).await?;
    let (to, from) = (dead.as_str().into(), exchange.as_str().into());
    channel.queue_bind(to, from, key.into(), QueueBindOptions::default(), none).await?;
    let customer = |n| if n % 100 == 7 { "GONE" } else { "STAYS" };
    let letter = |n| bed.event(&format!("e{n}"), customer(n), &json!({"city": "Kochi"}));
    let letters: Vec<Value> = (0..LETTERS).map(letter).collect();
    bed.queues.publish_events(&exchange, &letters).await?;
    bed.queues.holds(&dead, u32::try_from(LETTERS)?, LIMIT).await?;

    let listed = told(&bed.settings, &["dead", "list", "--limit", "1200"]).await?;
    assert_eq!(listed["dead_letters"].as_array().map(Vec::len), Some(1200));
    let done = told(&bed.settings, &["customer", "forget", "GONE", "--yes"]).await?;
    assert_eq!(done["messages"][&dead], 13, "{done}");
    bed.queues.holds(&dead, u32::try_from(LETTERS - 13)?, LIMIT).await?;
    let left = bed.queues.take_all(&dead).await?;
    let left = left.iter().map(|taken| event_id(&taken.body));
    let expected = (0..LETTERS).filter(|n| customer(*n) == "STAYS").map(|n| format!("e{n}"));
    ensure!(left.eq(expected), "the order has changed");
    bed.finish().await
}

async fn what_still_waits_for_a_forgotten_customer_is_told(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    let (relay, _) = pending(&mut bed).await?;
    let forget = ["customer", "forget", "W", "--yes"];
    let known = shown(&bed, "W").await?;
    let (code, _, err) = command(&bed, &forget).await?;
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("1 events of \"W\" wait") && err.contains("--leave-waiting"), "{err}");
    assert_eq!(shown(&bed, "W").await?["pending"], known["pending"], "nothing was erased");
    let (code, out, err) = command(&bed, &[&forget[..], &["--leave-waiting"]].concat()).await?;
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("1 messages still wait") && out.contains("appears again"), "{out}");
    bed.queues.take(&bed.queue("retry.60000ms"), LIMIT).await?;
    bed.end(relay).await.map(drop)
}

fn ledger_file(bed: &Bed) -> PathBuf {
    bed.state().join("ledger.db")
}

fn lose_ledger(bed: &Bed) -> Result<()> {
    for entry in fs::read_dir(bed.state())? {
        fs::remove_file(entry?.path())?;
    }
    Ok(())
}

async fn refused(bed: &Bed) -> Result<String> {
    let mut relay = bed.launch_relay()?;
    let status = relay.ended(LIMIT).await?;
    ensure!(status.code() == Some(1), "{status}:\n{}", relay.output());
    Ok(relay.output())
}

async fn a_lost_ledger_stops_the_relay_until_another_one_is_adopted(
    context: Context,
) -> Result<()> {
    let bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    bed.publish(&bed.event("e1", "C1", &json!({"city": "Kochi"}))).await?;
    bed.applied("C1", 1).await?;
    relay::stop(relay).await?;
    let before = told(&bed.settings, &["ledger", "show"]).await?;
    assert_eq!((&before["matches"], &before["customers"]), (&json!(true), &json!(1)), "{before}");

    lose_ledger(&bed)?;
    let (code, out, _) = command(&bed, &["check"]).await?;
    assert_eq!(code, 1);
    assert!(out.contains("FAULT") && out.contains("ledger adopt"), "{out}");
    ensure!(!ledger_file(&bed).exists(), "check has made a ledger");
    let said = refused(&bed).await?;
    assert!(said.contains("customer-relay ledger adopt"), "{said}");
    let (code, out, _) = command(&bed, &["check"]).await?;
    assert_eq!(code, 1);
    assert!(out.contains("FAULT") && out.contains("ledger adopt"), "{out}");
    let (code, _, err) = command(&bed, &["ledger", "adopt"]).await?;
    assert_eq!(code, 64, "{err}");
    let shown = told(&bed.settings, &["ledger", "show"]).await?;
    assert_eq!((&shown["matches"], &shown["customers"]), (&json!(false), &json!(0)), "{shown}");

    let adopted = told(&bed.settings, &["ledger", "adopt", "--yes"]).await?;
    assert_eq!((&adopted["adopted"], &adopted["id_before"]), (&json!(true), &before["id"]));
    assert_ne!(adopted["id"], before["id"]);
    let again = told(&bed.settings, &["ledger", "adopt"]).await?;
    assert_eq!(again["adopted"], false, "there is nothing to be asked");
    let relay = bed.start_relay().await?;
    bed.publish(&bed.event("e2", "C1", &json!({"city": "Delhi"}))).await?;
    bed.applied("C1", 2).await?;
    relay::stop(relay).await?;
    let (code, out, _) = command(&bed, &["check"]).await?;
    assert_eq!(code, 0, "{out}");
    bed.finish().await
}

async fn checked(bed: &Bed) -> Result<(i32, Value)> {
    let (code, out, err) = command(bed, &["check", "--json"]).await?;
    let told = serde_json::from_str(&out).with_context(|| format!("exit {code}: {err}"))?;
    Ok((code, told))
}

fn open_to(path: &Path, mode: u32) -> Result<()> {
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(mode))?)
}

async fn check_tells_how_the_ledger_is(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    bed.declare().await?;
    let (code, told) = checked(&bed).await?;
    assert_eq!((code, &told["ledger"]["id"]), (0, &Value::Null), "{told}");
    assert!(told["ledger"]["notes"][0].as_str().unwrap().contains("`run` makes it"), "{told}");
    ensure!(!ledger_file(&bed).exists(), "check has made a ledger");
    relay::stop(bed.start_relay().await?).await?;
    let (code, told) = checked(&bed).await?;
    let ledger = &told["ledger"];
    assert_eq!(
        (code, &ledger["faults"], &ledger["customers"]),
        (0, &json!([]), &json!(0)),
        "{told}"
    );
    assert_eq!(ledger["id"], ledger["id_at_broker"]);

    open_to(&ledger_file(&bed), 0o644)?;
    let (code, told) = checked(&bed).await?;
    assert_eq!(code, 1);
    assert!(told["ledger"]["faults"][0].as_str().unwrap().contains("chmod 600"), "{told}");
    open_to(&ledger_file(&bed), 0o600)?;
    open_to(bed.state(), 0o777)?;
    let (code, told) = checked(&bed).await?;
    assert_eq!(code, 1);
    assert!(told["ledger"]["faults"][0].as_str().unwrap().contains("chmod 700"), "{told}");
    open_to(bed.state(), 0o700)?;

    fs::write(ledger_file(&bed), "no ledger at all".repeat(1000))?;
    for args in [&["check"][..], &["customer", "show", "C1"], &["ledger", "show"]] {
        let (code, out, err) = command(&bed, args).await?;
        assert_eq!(code, 1, "{args:?}: {out}{err}");
        assert!(format!("{out}{err}").contains("damaged"), "{args:?}: {out}{err}");
    }
    let below_a_file = format!("sqlite:{}/below/ledger.db", ledger_file(&bed).display());
    bed.settings.set("ledger.url", &below_a_file);
    let (code, told) = checked(&bed).await?;
    assert_eq!(code, 1);
    assert!(told["ledger"]["faults"].to_string().contains("cannot be made"), "{told}");
    bed.finish().await
}

async fn check_warns_of_settings_that_weaken_the_ledger(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    bed.declare().await?;
    open_to(bed.state(), 0o700)?;
    bed.settings.set("portal.settle_after", "60s");
    let warnings =
        |told: &Value| told["ledger"]["warnings"].as_array().cloned().unwrap_or_default();
    let (_, told) = checked(&bed).await?;
    assert_eq!(warnings(&told), Vec::<Value>::new());
    bed.settings.set("ledger.url", "none").set("order.missing", "arrival");
    bed.settings.set("ledger.retention", "48h").set("portal.settle_after", "1s");
    let (code, told) = checked(&bed).await?;
    assert_eq!(code, 0, "a warning is no fault");
    let found = warnings(&told);
    assert_eq!(found.len(), 4, "{found:?}");
    for (warning, part) in
        found.iter().zip(["ledger none", "order.missing", "ledger.retention", "settle_after"])
    {
        assert!(warning.as_str().unwrap().contains(part), "{warning}");
    }
    let (_, text, _) = command(&bed, &["check"]).await?;
    assert!(text.contains("WARN   ledger none"), "{text}");
    bed.finish().await
}

/// A ledger file with so many customers, and C1 among them.
async fn ledger_with(path: &Path, customers: u32) -> Result<()> {
    let target = Target::parse(&format!("sqlite:{}", path.display()))?;
    let (store, about) = Store::open_to_work(&target).await?.context("no ledger")?;
    let time = Some(Timestamp::now());
    let event = EventRef { id: "e-known".into(), source: 7, revision: 0 };
    let place = Place { time, sequence: None, event };
    let version = Version { place, receipt: Timestamp::now() };
    let mut row = Row::default();
    row.record(&version, FieldSet::NONE.with(Field::City).with(Field::Email), OrderBy::Time);
    let ledger = Ledger::serve(store, about.clone(), Duration::from_mins(1), |_, _| {});
    let (customer, row) = (Some(about.key("C1")), row.pack());
    let change =
        Change { customer, row: Some(row.clone()), at: Timestamp::now(), ..Change::default() };
    assert_eq!(ledger.commit(change).await, Committed::Done);
    let file = rusqlite::Connection::open(path)?;
    // Keys that ascend are written quickest.
    let insert =
        "WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < ?1)
                  INSERT INTO customers SELECT CAST(printf('%016x', n) AS BLOB), ?2, 1 FROM number";
    file.execute(insert, rusqlite::params![customers, row])?;
    Ok(())
}

async fn a_copy_that_was_interrupted_is_no_ledger_and_is_made_again(
    context: Context,
) -> Result<()> {
    const CUSTOMERS: u32 = 100_000;
    let mut bed = context.bed().await?;
    bed.declare().await?;
    ledger_with(&ledger_file(&bed), CUSTOMERS).await?;
    let place = tempfile::tempdir()?;
    let copy = place.path().join("copy.db");
    let url = format!("sqlite:{}", copy.display());
    let migrate = ["ledger", "migrate", "--to", &url, "--yes"];
    let args: Vec<String> = migrate.iter().map(|arg| (*arg).to_owned()).collect();
    let copying = Process::start(PROGRAM, &args, bed.settings.environment())?;
    let log = place.path().join("copy.db-wal");
    eventually("a part of the copy", LIMIT, || async {
        Ok(fs::metadata(&log).is_ok_and(|log| log.len() > 500_000).then_some(()))
    })
    .await?;
    copying.kill().await?;

    let source = bed.settings.clone();
    bed.settings.set("ledger.url", &url);
    let (code, _, err) = command(&bed, &["ledger", "show"]).await?;
    assert_eq!(code, 69, "{err}");
    assert!(err.contains("there is no ledger"), "{err}");
    bed.settings = source;
    let before = told(&bed.settings, &["ledger", "show"]).await?;
    assert_eq!(before["id_at_broker"], Value::Null);
    let migrated = told(&bed.settings, &migrate).await?;
    assert_eq!(migrated["customers"], CUSTOMERS + 1);
    bed.settings.set("ledger.url", &url);
    let after = told(&bed.settings, &["ledger", "show"]).await?;
    assert_eq!((&after["customers"], &after["matches"]), (&json!(CUSTOMERS + 1), &json!(true)));
    assert_eq!(after["created"], before["created"]);
    assert_eq!(shown(&bed, "C1").await?["fields"]["city"]["event"], "e-known");
    bed.finish().await
}

async fn a_ledger_that_moves_to_postgresql_keeps_its_fences_and_the_old_one_is_refused(
    context: Context,
) -> Result<()> {
    let mut bed = context.bed().await?;
    let url = context.postgres().await?.database().await?;
    let (relay, waits) = pending(&mut bed).await?;
    let since = &waits["pending"][0]["since"];
    ensure!(since.is_string(), "{waits}");
    bed.publish(&bed.event("e-new", "C1", &json!({"city": "Kochi"}))).await?;
    bed.publish(&bad_event(&bed, "e-bad", "C2")).await?;
    bed.applied("C1", 1).await?;
    bed.queues.holds(&bed.queue("dead"), 1, LIMIT).await?;
    relay::stop(relay).await?;
    let (before, dead_before) = (shown(&bed, "C1").await?, shown(&bed, "C2").await?);
    let source = told(&bed.settings, &["ledger", "show"]).await?;
    let args = ["ledger", "migrate", "--to", "-", "--yes"];
    let (code, out, err) = bed.settings.command(&args, url.as_bytes()).await?;
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("1 customers copied") && out.contains("ledger.url"), "{out}");

    let said = refused(&bed).await?;
    assert!(said.contains("fenced by the ledger"), "{said}");
    bed.settings.set("ledger.url", &url);
    let copy = told(&bed.settings, &["ledger", "show"]).await?;
    assert_eq!((&copy["matches"], &copy["created"]), (&json!(true), &source["created"]));
    assert_ne!(copy["id"], source["id"]);
    assert_eq!((shown(&bed, "C1").await?, shown(&bed, "C2").await?), (before, dead_before));
    assert_eq!(shown(&bed, "W").await?["pending"][0]["since"], *since);
    let relay = bed.start_relay().await?;
    bed.publish(&old_event(&bed, "e-old", "C1", "Delhi")).await?;
    superseded(&bed, "C1", 1).await?;
    assert_eq!(bed.simulator.customer("C1").await?["applied"], 1);
    bed.dead_letter().await?;
    relay::stop(relay).await?;

    let known = shown(&bed, "C1").await?;
    let back = format!("sqlite:{}", bed.state().join("back.db").display());
    let migrated = told(&bed.settings, &["ledger", "migrate", "--to", &back, "--yes"]).await?;
    assert_eq!(migrated["id_before"], copy["id"]);
    bed.settings.set("ledger.url", &back);
    assert_eq!(shown(&bed, "C1").await?, known);
    assert_eq!(shown(&bed, "W").await?["pending"][0]["since"], *since);
    bed.queues.take(&bed.queue("retry.60000ms"), LIMIT).await?;
    bed.finish().await
}

async fn a_ledger_that_is_in_use_or_already_there_is_not_copied(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    let postgres = context.postgres().await?;
    let (url, other) = tokio::try_join!(postgres.database(), postgres.database())?;
    let file = bed.settings.clone();
    let relay = bed.start_relay().await?;
    let (code, _, err) = command(&bed, &["ledger", "migrate", "--to", &url, "--yes"]).await?;
    assert_eq!(code, 1);
    assert!(err.contains("consumers") && err.contains("stop the relays first"), "{err}");
    // Without a consumer, but with the file locked.
    told(&bed.settings, &["pause"]).await?;
    bed.queues.holds(&bed.queue("paused"), 1, LIMIT).await?;
    let in_use = |settings: Settings, to: String| async move {
        eventually("the ledger in use", LIMIT, || async {
            let args = ["ledger", "migrate", "--to", &to, "--yes"];
            let (code, _, err) = settings.command(&args, b"").await?;
            Ok((code == 69 && err.contains("in use") && err.contains("stop the")).then_some(()))
        })
        .await
    };
    in_use(bed.settings.clone(), url.clone()).await?;
    relay::stop(relay).await?;
    told(&bed.settings, &["resume"]).await?;
    told(&bed.settings, &["ledger", "migrate", "--to", &url, "--yes"]).await?;

    // A paused relay on PostgreSQL locks nothing and leases nothing.
    bed.settings.set("ledger.url", &url);
    told(&bed.settings, &["pause"]).await?;
    let mut relay = bed.launch_relay()?;
    relay.line_with("not consuming", LIMIT).await?;
    in_use(bed.settings.clone(), other.clone()).await?;
    relay::stop(relay).await?;
    told(&bed.settings, &["resume"]).await?;

    let (code, _, err) = file.command(&["ledger", "migrate", "--to", &url, "--yes"], b"").await?;
    assert_eq!(code, 1);
    assert!(err.contains("is a ledger already"), "{err}");
    let (code, _, err) = file.command(&["ledger", "migrate", "--to", &other, "--yes"], b"").await?;
    assert_eq!(code, 1);
    assert!(err.contains("fenced by the ledger"), "{err}");
    let args = ["ledger", "migrate", "--to", "none", "--yes"];
    assert_eq!(command(&bed, &args).await?.0, 64);
    bed.finish().await
}

fn settings(ledger: &str) -> Vec<(String, String)> {
    let unreached = "amqp://guest:guest@127.0.0.1:1/%2f";
    [("LEDGER__URL", ledger), ("BROKER__URL", unreached)]
        .map(|(key, value)| (format!("CUSTOMER_RELAY__{key}"), value.to_owned()))
        .to_vec()
}

async fn show_finds_one_of_a_million_customers_in_under_a_second(_: Context) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("ledger.db");
    ledger_with(&file, 1_000_000).await?;
    let settings = settings(&format!("sqlite:{}", file.display()));
    let start = Instant::now();
    let (code, out, err) =
        process::run(PROGRAM, &["customer", "show", "C1", "--json"], &settings, b"").await?;
    let took = start.elapsed();
    assert_eq!(code, 0, "{err}");
    assert_eq!(serde_json::from_str::<Value>(&out)?["fields"]["email"]["event"], "e-known");
    println!("one of a million customers: {took:?}");
    ensure!(took < Duration::from_secs(1), "{took:?}");
    Ok(())
}

async fn what_is_not_there_is_said_with_a_way_out(_: Context) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let absent = format!("sqlite:{}", folder.path().join("ledger.db").display());
    for (ledger, expected, words) in [
        ("none", 1, "set it to a ledger"),
        (&absent, 69, "`customer-relay run` makes it"),
        ("postgres://me:hidden@127.0.0.1:1/relay", 69, "is ledger.url right?"),
    ] {
        let settings = settings(ledger);
        let (code, out, err) =
            process::run(PROGRAM, &["customer", "show", "C1"], &settings, b"").await?;
        assert_eq!((code, out.as_str()), (expected, ""), "{ledger}: {err}");
        assert!(err.contains(words) && !err.contains("hidden"), "{ledger}: {err}");
    }
    let to = format!("sqlite:{}", folder.path().join("copy.db").display());
    let args = ["ledger", "migrate", "--to", &to, "--yes"];
    let (code, _, err) = process::run(PROGRAM, &args, &settings(&absent), b"").await?;
    assert_eq!(code, 69, "{err}");
    assert!(err.contains("127.0.0.1:1"), "{err}");
    ensure!(fs::read_dir(folder.path())?.next().is_none(), "something was made");
    Ok(())
}
