//! What operators see of dead letters, and do to them: nothing that is looked at is changed, nothing
//! is lost, and every act is written down. `TEST_LONG=1` looks through 100,000.

use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldArray, FieldTable, ShortString};
use serde_json::{Value, json};

use crate::harness::{Context, suite};
use crate::support::bed::{Bed, LIMIT, structured};
use crate::support::chaos::{ChaosProxy, Fault};
use crate::support::process::Process;
use crate::support::relay::{self, PROGRAM};
use crate::support::traffic::is_long;

suite!(Broker:
    groups_say_what_they_died_of_and_what_to_do,
    a_letter_shows_its_past_and_its_verdict_now_without_personal_data,
    filters_find_letters_and_say_what_is_wrong_with_themselves,
    letters_of_the_broker_and_of_strangers_are_shown_and_put_back,
    two_hundred_looks_drop_nothing_and_keep_the_order,
    very_many_letters_are_looked_through_in_seconds,
    one_looks_at_a_time_and_the_other_is_told_who,
    all_letters_are_seen_over_a_slow_link,
    a_group_is_healed_by_one_edit_and_the_originals_can_be_restored,
    one_letter_is_edited_in_the_operators_editor,
    archived_letters_are_kept_and_come_back,
    exported_letters_come_back_byte_for_byte,
    what_is_purged_is_gone_and_needs_a_word,
    nothing_is_changed_without_a_word_where_nobody_can_be_asked,
    a_live_view_prints_lines_into_a_pipe;
Postgres:
    all_of_it_works_with_postgresql,
);

/// What a command says in JSON, when it goes well.
pub async fn told(bed: &Bed, args: &[&str]) -> Result<Value> {
    let (code, out, err) = bed.settings.command(&[args, &["--json"]].concat(), b"").await?;
    ensure!(code == 0, "{args:?}: exit {code}\n{out}{err}");
    serde_json::from_str(&out).with_context(|| format!("{args:?}: no JSON: {out}"))
}

/// How a command fails.
pub async fn refused(bed: &Bed, args: &[&str]) -> Result<(i32, String)> {
    let (code, out, err) = bed.settings.command(args, b"").await?;
    ensure!(code != 0, "{args:?} is not refused:\n{out}");
    Ok((code, err))
}

/// Publishes events that a rule refuses, and waits until they are dead letters.
pub async fn bury(bed: &Bed, events: &[Value]) -> Result<()> {
    let before = bed.queues.depth(&bed.queue("dead")).await?;
    bed.queues.publish_events(&bed.exchange(), events).await?;
    bed.queues.holds(&bed.queue("dead"), before + u32::try_from(events.len())?, LIMIT).await
}

pub fn ids(listed: &Value) -> Vec<String> {
    let letters = listed["dead_letters"].as_array().into_iter().flatten();
    letters.filter_map(|letter| Some(letter["dead_id"].as_str()?.to_owned())).collect()
}

fn of_customer(bed: &Bed, n: usize, fields: &Value) -> Value {
    bed.event(&format!("e{n}"), &format!("CUST{n:04}"), fields)
}

async fn groups_say_what_they_died_of_and_what_to_do(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    let mut events: Vec<Value> =
        (0..3).map(|n| of_customer(&bed, n, &json!({"state": "Tamil Nadu"}))).collect();
    events.push(of_customer(&bed, 3, &json!({"mobile_no": "9XXXXXX879"})));
    bury(&bed, &events).await?;
    let groups = told(&bed, &["dead", "groups"]).await?;
    assert_eq!(groups["total"], 4);
    let first = &groups["groups"][0];
    assert_eq!(first["group"], "invalid-event:state:spaces");
    assert_eq!((&first["count"], &first["share_percent"]), (&json!(3), &json!(75)));
    assert!(first["hint"].as_str().is_some_and(|hint| hint.contains("breaks a rule")), "{first}");
    assert!(first["oldest"].is_string() && first["newest"].is_string());
    assert_eq!(groups["groups"][1]["group"], "invalid-event:mobile_no:pattern");
    let (code, table, _) = bed.settings.command(&["dead", "groups"], b"").await?;
    assert_eq!(code, 0);
    assert!(table.contains("invalid-event:state:spaces") && table.contains("75%"), "{table}");
    bed.queues.take_all(&bed.queue("dead")).await?;
    bed.end(relay).await.map(drop)
}

async fn a_letter_shows_its_past_and_its_verdict_now_without_personal_data(
    context: Context,
) -> Result<()> {
    let mut bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    let fields = json!({"state": "Tamil Nadu", "email": "asha@example.com"});
    bury(&bed, &[bed.event("e1", "CUST0001", &fields)]).await?;
    let id = ids(&told(&bed, &["dead", "list"]).await?).remove(0);
    let shown = told(&bed, &["dead", "show", &id]).await?;
    assert_eq!(shown["outlook"]["verdict"], "still-invalid");
    assert_eq!(shown["outlook"]["setting"], "fields.state_spaces");
    assert_eq!(shown["event"], "e1");
    assert_eq!(shown["history"]["reason"], "invalid-event");
    assert!(shown["advice"].as_str().is_some_and(|text| text.contains("put back")), "{shown}");
    bed.settings.set("fields.state_spaces", "keep");
    for args in [&["dead", "show", &id][..], &["dead", "show", &id, "--json"]] {
        let (_, out, err) = bed.settings.command(args, b"").await?;
        for secret in ["asha", "Tamil", "CUST0001"] {
            assert!(!out.contains(secret) && !err.contains(secret), "{secret} in {out}{err}");
        }
    }
    let shown = told(&bed, &["dead", "show", &id]).await?;
    assert_eq!(shown["outlook"]["verdict"], "would-be-sent");
    assert_eq!(shown["outlook"]["unfenced"], false);
    assert_eq!(shown["call"]["sends"], json!(["entity_id", "email", "state"]));
    let revealed = told(&bed, &["dead", "show", &id, "--reveal", "--why", "case 7"]).await?;
    assert_eq!(revealed["fields"]["email"], "asha@example.com");
    let form = revealed["call"]["form"].as_str().context("a form")?;
    assert!(form.starts_with("entity_id=CUST0001&email=asha%40example.com"), "{form}");
    assert_eq!(revealed["call"]["checksum"].as_str().map(str::len), Some(64));
    let acts = told(&bed, &["dead", "audit"]).await?;
    let act = &acts["acts"][0];
    assert_eq!(
        (&act["act"], &act["what"], &act["why"]),
        (&json!("reveal"), &json!(id), &json!("case 7"))
    );
    assert!(act["who"].as_str().is_some_and(|who| who.contains('@')), "{act}");
    let nobody = "01900000-0000-7000-8000-000000000000";
    let (code, err) = refused(&bed, &["dead", "show", nobody]).await?;
    assert!(code == 1 && err.contains(nobody), "{code} {err}");
    bed.queues.take_all(&bed.queue("dead")).await?;
    bed.end(relay).await.map(drop)
}

async fn filters_find_letters_and_say_what_is_wrong_with_themselves(
    context: Context,
) -> Result<()> {
    let bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    let mut events: Vec<Value> =
        (0..4).map(|n| of_customer(&bed, n, &json!({"state": "Tamil Nadu"}))).collect();
    events.extend((4..6).map(|n| of_customer(&bed, n, &json!({"address": "12/4"}))));
    bury(&bed, &events).await?;
    for (args, found) in [
        (&[][..], 6),
        (&["--reason", "invalid-event"], 6),
        (&["--reason", "rejected"], 0),
        (&["--field", "address"], 2),
        (&["--customer", "CUST0005"], 1),
        (&["--event", "e2"], 1),
        (&["--group", "invalid-event:state:spaces"], 4),
        (&["--text", "SETTING FIELDS.STATE_SPACES"], 4),
        (&["--newer-than", "1h"], 6),
        (&["--older-than", "1h"], 0),
        (&["--field", "state", "--customer", "CUST0005"], 0),
    ] {
        let listed = told(&bed, &[&["dead", "list"], args].concat()).await?;
        assert_eq!(listed["found"], found, "{args:?}");
    }
    let listed = told(&bed, &["dead", "list", "--limit", "2", "--sort", "newest"]).await?;
    assert_eq!((&listed["found"], ids(&listed).len()), (&json!(6), 2));
    let (code, err) = refused(&bed, &["dead", "list", "--reason", "bad-luck"]).await?;
    assert!(code == 64 && err.contains("invalid-event"), "{code} {err}");
    // Without the index the same is found in the queue itself.
    let mut settings = bed.settings.clone();
    settings.set("ledger.url", "none");
    let args = ["dead", "list", "--customer", "CUST0005", "--json"];
    let (code, out, err) = settings.command(&args, b"").await?;
    assert!(code == 0 && out.contains("\"found\": 1"), "{out}{err}");
    bed.queues.take_all(&bed.queue("dead")).await?;
    bed.end(relay).await.map(drop)
}

/// A letter as a broker of any release notes it, that took it out of a queue.
fn by_the_broker(bed: &Bed, reason: &str) -> BasicProperties {
    let mut death = FieldTable::default();
    let text = |text: &str| AMQPValue::LongString(text.into());
    death.insert("reason".into(), text(reason));
    death.insert("queue".into(), text(&bed.queue("work")));
    death.insert("exchange".into(), text(&bed.exchange()));
    death.insert("time".into(), AMQPValue::Timestamp(1_795_339_800));
    death.insert("count".into(), AMQPValue::LongLongInt(1));
    let keys = FieldArray::from(vec![text("customer.updated")]);
    death.insert("routing-keys".into(), AMQPValue::FieldArray(keys));
    let mut headers = FieldTable::default();
    let deaths = FieldArray::from(vec![AMQPValue::FieldTable(death)]);
    headers.insert(ShortString::from("x-death"), AMQPValue::FieldArray(deaths));
    structured().with_headers(headers)
}

async fn letters_of_the_broker_and_of_strangers_are_shown_and_put_back(
    context: Context,
) -> Result<()> {
    let bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    let dead = bed.queue("dead");
    for (n, properties) in [
        by_the_broker(&bed, "delivery_limit"),
        by_the_broker(&bed, "expired"),
        BasicProperties::default().with_timestamp(1_795_339_800),
    ]
    .into_iter()
    .enumerate()
    {
        let event = of_customer(&bed, n, &json!({"city": "Kochi"}));
        bed.queues.publish("", &dead, properties, event.to_string().as_bytes()).await?;
    }
    let listed = told(&bed, &["dead", "list"]).await?;
    let reasons: Vec<&Value> = listed["dead_letters"]
        .as_array()
        .context("a list")?
        .iter()
        .map(|one| &one["reason"])
        .collect();
    assert_eq!(reasons, ["delivery-limit", "foreign", "foreign"]);
    let detail = listed["dead_letters"][1]["detail"].as_str().unwrap_or_default();
    assert!(detail.contains("expired") && detail.contains(&bed.queue("work")), "{detail}");
    assert!(
        listed["dead_letters"][0]["died"]
            .as_str()
            .is_some_and(|died| died.starts_with("2026-11-22"))
    );
    let again = told(&bed, &["dead", "list"]).await?;
    assert_eq!(ids(&listed), ids(&again), "ids that follow from the content");
    let id = &ids(&listed)[2];
    assert_eq!(told(&bed, &["dead", "show", id]).await?["outlook"]["verdict"], "would-be-sent");
    let replayed = told(&bed, &["dead", "replay", "--all", "--yes", "--wait"]).await?;
    assert_eq!((&replayed["put_back"], &replayed["applied"]), (&json!(3), &json!(3)), "{replayed}");
    for n in 0..3 {
        bed.applied(&format!("CUST{n:04}"), 1).await?;
    }
    remove_plans(&replayed)?;
    bed.end(relay).await.map(drop)
}

/// Plans are written where the command runs.
/// Puts all dead letters back at once.
pub async fn put_all_back(bed: &Bed) -> Result<()> {
    remove_plans(&told(bed, &["dead", "replay", "--all", "--no-canary", "--yes"]).await?)
}

pub fn remove_plans(replayed: &Value) -> Result<()> {
    let file = replayed["file"].as_str().context("a plan's file")?;
    Ok(std::fs::remove_file(file)?)
}

async fn two_hundred_looks_drop_nothing_and_keep_the_order(context: Context) -> Result<()> {
    const LETTERS: usize = 30;
    let bed = context.bed().await?;
    bed.declare().await?;
    let dead = bed.queue("dead");
    for n in 0..LETTERS {
        let event = of_customer(&bed, n, &json!({"city": "Kochi"}));
        bed.queues.publish("", &dead, structured(), event.to_string().as_bytes()).await?;
    }
    let first = ids(&told(&bed, &["dead", "list"]).await?);
    for look in 0..200 {
        let last = first[LETTERS - 1].as_str();
        let args = if look % 2 == 0 { vec!["dead", "list"] } else { vec!["dead", "show", last] };
        let (code, out, err) = bed.settings.command(&args, b"").await?;
        ensure!(code == 0, "look {look}: {out}{err}");
    }
    assert_eq!(ids(&told(&bed, &["dead", "list"]).await?), first);
    bed.queues.holds(&dead, u32::try_from(LETTERS)?, LIMIT).await?;
    let taken = bed.queues.take_all(&dead).await?;
    let order = taken.iter().map(|taken| serde_json::from_slice::<Value>(&taken.body));
    let order = order.map(|event| event.map(|event| event["id"].clone()));
    let expected = (0..LETTERS).map(|n| json!(format!("e{n}")));
    assert!(order.collect::<serde_json::Result<Vec<_>>>()?.into_iter().eq(expected));
    bed.finish().await
}

const KINDS: [(&str, &str, &str); 6] = [
    ("invalid-event", "state", "spaces"),
    ("invalid-event", "mobile_no", "pattern"),
    ("invalid-event", "address", "alphanumeric"),
    ("rejected", "", ""),
    ("unknown-entity", "", ""),
    ("retries-exhausted", "", ""),
];

/// A letter as a relay lays it down.
fn by_a_relay(n: usize) -> BasicProperties {
    let (reason, field, rule) = KINDS[n % KINDS.len()];
    let mut headers = FieldTable::default();
    let dead_id = format!("01900000-0000-7000-8000-{n:012x}");
    for (name, value) in [
        ("x-relay-dead-id", dead_id.as_str()),
        ("x-relay-dead-at", "2026-11-20T09:30:00Z"),
        ("x-relay-reason", reason),
        ("x-relay-detail", "a detail of some words, as they are"),
        ("x-relay-field", field),
        ("x-relay-rule", rule),
        ("x-relay-first-seen", "2026-11-20T09:29:00Z"),
        ("x-relay-exchange", "crm.events"),
        ("x-relay-routing-key", "customer.updated"),
    ] {
        if !value.is_empty() {
            headers.insert(ShortString::from(name), AMQPValue::LongString(value.into()));
        }
    }
    structured().with_headers(headers)
}

/// A command that may take its time: what it says, how long it took and its peak memory in MiB.
async fn measured(bed: &Bed, args: &[&str]) -> Result<(Value, Duration, u64)> {
    let began = Instant::now();
    let args: Vec<String> = args.iter().map(ToString::to_string).collect();
    let mut command = Process::start(PROGRAM, &args, bed.settings.environment())?;
    let mut peak = 0;
    let limit = Duration::from_mins(2);
    while command.ended(Duration::from_millis(20)).await.is_err() {
        peak = command.peak_memory_kib().unwrap_or(0).max(peak);
        ensure!(began.elapsed() < limit, "{args:?} takes longer than {limit:?}");
    }
    let took = began.elapsed();
    // The last lines are read after the end.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let told = serde_json::from_str(&command.output());
    Ok((told.with_context(|| command.output())?, took, peak / 1024))
}

async fn very_many_letters_are_looked_through_in_seconds(context: Context) -> Result<()> {
    let count = if is_long() { 100_000 } else { 20_000 };
    let bed = context.bed().await?;
    relay::stop(bed.start_relay().await?).await?;
    let dead = bed.queue("dead");
    let letters = (0..count).map(|n| {
        (by_a_relay(n), of_customer(&bed, n, &json!({"city": "Kochi"})).to_string().into_bytes())
    });
    bed.queues.publish_many(&dead, letters).await?;
    bed.queues.holds(&dead, u32::try_from(count)?, Duration::from_mins(1)).await?;
    let last = format!("01900000-0000-7000-8000-{:012x}", count - 1);
    let customer = format!("CUST{:04}", count - 1);
    let mut more = count;
    for round in ["from the queue", "from the index"] {
        let looks: [(&str, &[&str]); 3] = [
            ("groups", &["dead", "groups", "--json"]),
            ("show", &["dead", "show", &last, "--json"]),
            ("customer", &["dead", "list", "--customer", &customer, "--json"]),
        ];
        let looks = if round == "from the queue" { &looks[..1] } else { &looks };
        for (name, args) in looks.iter().copied() {
            // Somebody else adds to it meanwhile.
            let event = of_customer(&bed, more, &json!({"city": "Kochi"})).to_string();
            let adds = bed.queues.publish("", &dead, by_a_relay(more), event.as_bytes());
            more += 1;
            let is_indexed = round == "from the index";
            let (looked, ()) = tokio::try_join!(measured(&bed, args), async {
                if is_indexed { Ok(()) } else { adds.await }
            })?;
            let (told, took, peak) = looked;
            println!("{count} letters, {name} {round}: {:.2} s, {peak} MiB", took.as_secs_f64());
            match name {
                "groups" => assert_eq!(told["groups"].as_array().map(Vec::len), Some(6), "{told}"),
                "show" => assert_eq!(told["dead_id"], last.as_str()),
                _ => assert_eq!(told["found"], 1, "{told}"),
            }
            ensure!(took < TIME_LIMIT, "{name} {round} took {took:?}");
            ensure!(peak < 150, "{name} {round} took {peak} MiB");
        }
        if round == "from the queue" {
            let indexed = measured(&bed, &["dead", "reindex", "--json"]).await?;
            println!("reindex: {:.2} s, {} MiB", indexed.1.as_secs_f64(), indexed.2);
            assert_eq!(indexed.0["indexed"], count + 1);
        }
    }
    bed.queues.holds(&dead, u32::try_from(count + 1)?, LIMIT).await?;
    let left = bed.queues.take_all(&dead).await?;
    let left =
        left.iter().map(|taken| Ok(serde_json::from_slice::<Value>(&taken.body)?["id"].clone()));
    let left = left.collect::<Result<Vec<Value>>>()?;
    let moved = (0..count).find(|n| left[*n] != format!("e{n}"));
    ensure!(
        moved.is_none(),
        "the order has changed at {moved:?}: {:?}",
        &left[moved.unwrap_or(0)..][..5]
    );
    bed.finish().await
}

/// Of a debug build beside other tests.
const TIME_LIMIT: Duration = Duration::from_secs(if cfg!(debug_assertions) { 60 } else { 5 });

/// A queue has no more letters ready long before the last one is here.
async fn all_letters_are_seen_over_a_slow_link(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    let events: Vec<Value> =
        (0..40).map(|n| of_customer(&bed, n, &json!({"state": "Tamil Nadu"}))).collect();
    bury(&bed, &events).await?;
    let url = bed.broker_url().to_owned();
    let proxy = ChaosProxy::start(context.broker().await?.address()).await?;
    proxy.set(Fault::Delay(Duration::from_millis(150))).await;
    bed.settings.set("broker.url", &proxy.through(&url));
    assert_eq!(told(&bed, &["dead", "reindex"]).await?["indexed"], 40);
    bed.settings.set("broker.url", &url);
    assert_eq!(told(&bed, &["dead", "groups"]).await?["total"], 40);
    bed.queues.take_all(&bed.queue("dead")).await?;
    bed.end(relay).await.map(drop)
}

async fn one_looks_at_a_time_and_the_other_is_told_who(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    bed.declare().await?;
    let dead = bed.queue("dead");
    for n in 0..20 {
        let event = of_customer(&bed, n, &json!({"city": "Kochi"}));
        bed.queues.publish("", &dead, structured(), event.to_string().as_bytes()).await?;
    }
    let plan = bed.state().join("plan.json").display().to_string();
    let args = ["dead", "replay", "--all", "--yes", "--no-canary", "--rate", "1", "--save", &plan];
    let args: Vec<String> = args.iter().map(ToString::to_string).collect();
    let mut environment = bed.settings.environment().to_vec();
    environment.push(("USER".into(), "first-operator".into()));
    let slow = Process::start(PROGRAM, &args, &environment)?;
    bed.queues.holds(&bed.queue("work"), 1, LIMIT).await?;
    let (code, err) = refused(&bed, &["dead", "list"]).await?;
    assert!(code == 69 && err.contains("first-operator@"), "{code} {err}");
    slow.kill().await?;
    crate::support::eventually("the lock to be free", LIMIT, || async {
        let (code, ..) = bed.settings.command(&["dead", "list"], b"").await?;
        Ok((code == 0).then_some(()))
    })
    .await?;
    bed.queues.take_all(&dead).await?;
    bed.queues.take_all(&bed.queue("work")).await?;
    bed.finish().await
}

async fn a_group_is_healed_by_one_edit_and_the_originals_can_be_restored(
    context: Context,
) -> Result<()> {
    let bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    let mut events: Vec<Value> =
        (0..5).map(|n| of_customer(&bed, n, &json!({"state": "Tamil Nadu"}))).collect();
    events.push(of_customer(&bed, 5, &json!({"state": "Tamil Nadu", "city": "New Delhi"})));
    bury(&bed, &events).await?;
    let group = ["--group", "invalid-event:state:spaces"];
    let set = ["--set", "state=TamilNadu"];
    let edit = [&["dead", "edit"], &group[..], &set[..]].concat();
    let (code, err) = refused(&bed, &edit).await?;
    assert!(code == 64 && err.contains("--why"), "{code} {err}");
    let (code, err) =
        refused(&bed, &["dead", "edit", group[0], group[1], "--set", "planet=Mars"]).await?;
    assert!(code == 64 && err.contains("entity_id"), "{code} {err}");
    let preview = told(&bed, &[&edit[..], &["--dry-run"]].concat()).await?;
    let letters = preview["letters"].as_array().context("letters")?;
    assert_eq!(letters.len(), 5, "{preview}");
    assert_eq!(letters[0]["before"]["state"], "Ta***u");
    let done = told(&bed, &[&edit[..], &["--why", "one word", "--yes"]].concat()).await?;
    assert_eq!((&done["edited"], &done["refused"]), (&json!(5), &json!(0)));
    let group = told(&bed, &["dead", "list", "--field", "state"]).await?;
    assert!(
        group["dead_letters"].as_array().context("a list")?.iter().all(|one| one["revision"] == 1)
    );
    // One of them as it was.
    let his = told(&bed, &["dead", "list", "--customer", "CUST0000"]).await?;
    let id = ids(&his).remove(0);
    let undone = told(&bed, &["dead", "restore", &id, "--yes"]).await?;
    assert_eq!(undone["restored"], 1);
    let shown = told(&bed, &["dead", "show", &id]).await?;
    assert_eq!(
        (&shown["revision"], &shown["outlook"]["verdict"]),
        (&json!(0), &json!("still-invalid"))
    );
    let args = ["dead", "replay", "--field", "state", "--only-fixable", "--yes", "--wait"];
    let replayed = told(&bed, &args).await?;
    assert_eq!((&replayed["put_back"], &replayed["applied"]), (&json!(4), &json!(4)), "{replayed}");
    remove_plans(&replayed)?;
    let fields = &bed.simulator.customer("CUST0004").await?["fields"];
    assert_eq!(fields["state"], "TamilNadu");
    let acts = told(&bed, &["dead", "audit"]).await?;
    let acts: Vec<&Value> =
        acts["acts"].as_array().context("acts")?.iter().map(|act| &act["act"]).collect();
    assert_eq!(acts, ["edit", "restore", "replay"]);
    bed.queues.take_all(&bed.queue("dead")).await?;
    bed.queues.take_all(&bed.queue("archive")).await?;
    bed.end(relay).await.map(drop)
}

async fn one_letter_is_edited_in_the_operators_editor(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    bury(&bed, &[of_customer(&bed, 1, &json!({"state": "Tamil Nadu"}))]).await?;
    let id = ids(&told(&bed, &["dead", "list"]).await?).remove(0);
    let mut settings = bed.settings.clone();
    settings.set("log.filter", "info");
    let mut environment = settings.environment().to_vec();
    environment.push(("EDITOR".into(), "sed -i 's/Tamil Nadu/Kerala/'".into()));
    let args = ["dead", "edit", &id, "--why", "a call to the customer", "--yes", "--json"];
    let (code, out, err) = crate::support::process::run(PROGRAM, &args, &environment, b"").await?;
    assert_eq!(code, 0, "{out}{err}");
    assert!(!out.contains("Kerala") && !err.contains("Kerala"), "{out}{err}");
    let shown = told(&bed, &["dead", "show", &id]).await?;
    assert_eq!(shown["outlook"]["verdict"], "would-be-sent", "{shown}");
    let (code, err) = refused(&bed, &["dead", "edit", &id, "--why", "x", "--yes"]).await?;
    assert!(code == 64 && err.contains("EDITOR"), "{code} {err}");
    bed.queues.take_all(&bed.queue("dead")).await?;
    bed.queues.take_all(&bed.queue("archive")).await?;
    bed.end(relay).await.map(drop)
}

async fn archived_letters_are_kept_and_come_back(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    let events: Vec<Value> =
        (0..3).map(|n| of_customer(&bed, n, &json!({"state": "Tamil Nadu"}))).collect();
    bury(&bed, &events).await?;
    let before = told(&bed, &["dead", "list"]).await?;
    let his = told(&bed, &["dead", "list", "--customer", "CUST0001"]).await?;
    let id = &ids(&his)[0];
    assert_eq!(told(&bed, &["dead", "archive", id, "--dry-run"]).await?["archived"], 1);
    assert_eq!(told(&bed, &["dead", "archive", id, "--yes"]).await?["archived"], 1);
    assert_eq!(told(&bed, &["dead", "list"]).await?["found"], 2);
    assert_eq!(bed.queues.depth(&bed.queue("archive")).await?, 1);
    let shown = told(&bed, &["customer", "show", "CUST0001"]).await;
    assert!(shown.is_err(), "the index forgets it: {shown:?}");
    assert_eq!(told(&bed, &["dead", "restore", id, "--yes"]).await?["restored"], 1);
    let mut after = told(&bed, &["dead", "list"]).await?;
    let mut before = before;
    for listed in [&mut before, &mut after] {
        let letters = listed["dead_letters"].as_array_mut().context("a list")?;
        letters.sort_by_key(|letter| letter["dead_id"].to_string());
    }
    assert_eq!(after["dead_letters"], before["dead_letters"]);
    bed.queues.take_all(&bed.queue("dead")).await?;
    bed.end(relay).await.map(drop)
}

async fn exported_letters_come_back_byte_for_byte(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    bury(&bed, &[of_customer(&bed, 1, &json!({"state": "Tamil Nadu"}))]).await?;
    let mut odd = FieldTable::default();
    odd.insert("x-crm-shard".into(), AMQPValue::ShortInt(7));
    odd.insert("x-crm-bytes".into(), AMQPValue::LongString(vec![0xff, 0xfe].into()));
    let odd =
        BasicProperties::default().with_headers(odd).with_priority(3).with_app_id("crm".into());
    bed.queues.publish("", &bed.queue("dead"), odd, b"\xff not text \x00").await?;
    let file = bed.state().join("letters.jsonl").display().to_string();
    let exported = told(&bed, &["dead", "export", "--all", "--to", &file]).await?;
    assert_eq!(exported["exported"], 2);
    assert_eq!(std::fs::metadata(&file)?.permissions().mode() & 0o777, 0o600);
    let (code, err) = refused(&bed, &["dead", "export", "--all", "--to", &file]).await?;
    assert!(code == 1 && err.contains(&file), "{code} {err}");
    let again = told(&bed, &["dead", "import", &file, "--yes"]).await?;
    assert_eq!(
        (&again["imported"], &again["left_out"]),
        (&json!(1), &json!(1)),
        "no id, no double"
    );
    let dead = bed.queue("dead");
    let before = bed.queues.take_all(&dead).await?;
    assert_eq!(before[1].body, before[2].body);
    let again = told(&bed, &["dead", "import", &file, "--yes"]).await?;
    assert_eq!(again["imported"], 2);
    let after = bed.queues.take_all(&dead).await?;
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(before.body, after.body);
        let headers = [before, after].map(|taken| {
            let mut headers =
                taken.properties.headers().clone().unwrap_or_default().inner().clone();
            headers.remove("x-delivery-count");
            headers
        });
        assert_eq!(headers[0], headers[1]);
        assert_eq!(before.properties.priority(), after.properties.priority());
        assert_eq!(before.properties.app_id(), after.properties.app_id());
    }
    let (code, err) = refused(&bed, &["dead", "import", "/etc/hostname", "--yes"]).await?;
    assert!(code == 1 && err.contains("line 1"), "{code} {err}");
    bed.end(relay).await.map(drop)
}

async fn what_is_purged_is_gone_and_needs_a_word(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    let events: Vec<Value> =
        (0..3).map(|n| of_customer(&bed, n, &json!({"state": "Tamil Nadu"}))).collect();
    bury(&bed, &events).await?;
    let (code, err) = refused(&bed, &["dead", "purge", "--all", "--yes"]).await?;
    assert!(code == 64 && err.contains("--why"), "{code} {err}");
    let (code, err) = refused(&bed, &["dead", "purge", "--all", "--why", "x"]).await?;
    assert!(code == 64 && err.contains("--yes"), "{code} {err}");
    let first = ids(&told(&bed, &["dead", "list"]).await?).remove(0);
    let purged = told(&bed, &["dead", "purge", &first, "--why", "a test", "--yes"]).await?;
    assert_eq!(purged["deleted"], 1);
    let listed = told(&bed, &["dead", "list"]).await?;
    assert!(ids(&listed).len() == 2 && !ids(&listed).contains(&first));
    let purged = told(&bed, &["dead", "purge", "--all", "--why", "a test", "--yes"]).await?;
    assert_eq!(purged["deleted"], 2);
    bed.end(relay).await.map(drop)
}

async fn nothing_is_changed_without_a_word_where_nobody_can_be_asked(
    context: Context,
) -> Result<()> {
    let bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    bury(&bed, &[of_customer(&bed, 1, &json!({"state": "Tamil Nadu"}))]).await?;
    for args in [
        &["dead", "replay", "--all"][..],
        &["dead", "archive", "--all"],
        &["dead", "edit", "--field", "state", "--set", "state=Goa", "--why", "x"],
    ] {
        let (code, err) = refused(&bed, args).await?;
        assert!(code == 64 && err.contains("--yes"), "{args:?}: {code} {err}");
    }
    for verb in ["replay", "archive", "restore", "edit"] {
        let why = if verb == "edit" { &["--why", "x"][..] } else { &[] };
        let args = [&["dead", verb, "--yes"], why].concat();
        let (code, err) = refused(&bed, &args).await?;
        assert!(code == 64 && err.contains("which letters?"), "{verb}: {code} {err}");
    }
    bed.queues.holds(&bed.queue("dead"), 1, LIMIT).await?;
    bed.queues.take_all(&bed.queue("dead")).await?;
    bed.end(relay).await.map(drop)
}

async fn a_live_view_prints_lines_into_a_pipe(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    bury(&bed, &[of_customer(&bed, 1, &json!({"state": "Tamil Nadu"}))]).await?;
    let args = ["dead", "watch", "--times", "2", "--interval", "1", "--json"];
    let (code, out, err) = bed.settings.command(&args, b"").await?;
    assert_eq!(code, 0, "{err}");
    let lines: Vec<Value> = out.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    assert_eq!(lines.len(), 2);
    assert_eq!((&lines[1]["dead"], &lines[1]["work"]), (&json!(1), &json!(0)));
    bed.queues.take_all(&bed.queue("dead")).await?;
    bed.end(relay).await.map(drop)
}

async fn all_of_it_works_with_postgresql(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    bed.settings.set("ledger.url", &context.postgres().await?.database().await?);
    let relay = bed.start_relay().await?;
    let events: Vec<Value> =
        (0..4).map(|n| of_customer(&bed, n, &json!({"state": "Tamil Nadu"}))).collect();
    bury(&bed, &events).await?;
    assert_eq!(told(&bed, &["dead", "groups"]).await?["groups"][0]["count"], 4);
    assert_eq!(told(&bed, &["dead", "reindex"]).await?["indexed"], 4);
    assert_eq!(told(&bed, &["dead", "list", "--customer", "CUST0002"]).await?["found"], 1);
    let set = ["dead", "edit", "--field", "state", "--set", "state=Goa", "--why", "x", "--yes"];
    assert_eq!(told(&bed, &set).await?["edited"], 4);
    let foreseen = told(&bed, &["dead", "replay", "--all", "--dry-run"]).await?;
    assert_eq!(foreseen["verdicts"], json!({"would-be-sent": 4}));
    let replayed = told(&bed, &["dead", "replay", "--all", "--yes", "--wait"]).await?;
    assert_eq!((&replayed["applied"], &replayed["pending"]), (&json!(4), &json!(0)), "{replayed}");
    remove_plans(&replayed)?;
    let acts = told(&bed, &["dead", "audit"]).await?;
    assert_eq!(acts["acts"].as_array().map(Vec::len), Some(2));
    bed.queues.take_all(&bed.queue("archive")).await?;
    bed.end(relay).await.map(drop)
}
