//! Dead letters put back: what is newer stays, each has its effect once, and a few go first.
//! `TEST_LONG=1` puts 10,000 back.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lapin::types::AMQPValue;
use serde_json::{Value, json};

use crate::dead_commands::{bury, ids, refused, remove_plans, told};
use crate::harness::{Context, suite};
use crate::support::bed::{Bed, LIMIT};
use crate::support::eventually;
use crate::support::process::Process;
use crate::support::relay::{self, PROGRAM};
use crate::support::traffic::is_long;

suite!(Broker:
    a_replay_leaves_newer_data_alone_and_says_so_before,
    force_overwrites_newer_data_once,
    a_canary_that_fails_stops_the_rest,
    too_many_failures_stop_a_replay,
    a_replay_that_was_killed_goes_on_and_each_letter_is_applied_once,
    a_copy_of_a_replay_that_has_ended_is_acked_unseen,
    one_setting_heals_a_group,
    a_plan_is_what_was_seen_whatever_comes_after,
    without_a_ledger_there_is_no_canary,
);

fn bad(bed: &Bed, n: usize) -> Value {
    bed.event(&format!("e{n}"), &format!("C{n}"), &json!({"state": "Tamil Nadu", "city": "Kochi"}))
}

/// A relay under other settings, in place of this one.
async fn healed(bed: &mut Bed, relay: Process) -> Result<Process> {
    relay::stop(relay).await?;
    bed.settings.set("fields.state_spaces", "squeeze");
    bed.start_relay().await
}

async fn replay(bed: &Bed, args: &[&str]) -> Result<Value> {
    let replayed = told(bed, &[&["dead", "replay", "--yes"], args].concat()).await?;
    remove_plans(&replayed)?;
    Ok(replayed)
}

async fn a_replay_leaves_newer_data_alone_and_says_so_before(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    bury(&bed, &[bad(&bed, 0), bad(&bed, 1), bad(&bed, 2)]).await?;
    // Since then one customer's city, and all of another's, have changed.
    bed.publish(&bed.event("n0", "C0", &json!({"city": "Pune"}))).await?;
    bed.publish(&bed.event("n1", "C1", &json!({"city": "Pune", "state": "Goa"}))).await?;
    bed.applied("C0", 1).await?;
    bed.applied("C1", 1).await?;
    let relay = healed(&mut bed, relay).await?;
    let foreseen = told(&bed, &["dead", "replay", "--all", "--dry-run"]).await?;
    let expected = json!({"partly-superseded": 1, "superseded": 1, "would-be-sent": 1});
    assert_eq!(foreseen["verdicts"], expected);
    let letters = foreseen["letters"].as_array().context("letters")?;
    let partly = letters.iter().find(|letter| letter["event"] == "e0").context("e0")?;
    assert_eq!(partly["withheld"], "city", "{foreseen}");
    assert_eq!(foreseen["unfenced"], 0);
    let replayed = replay(&bed, &["--all", "--wait"]).await?;
    assert_eq!((&replayed["applied"], &replayed["superseded"]), (&json!(2), &json!(1)));
    assert_eq!((&replayed["pending"], &replayed["left"]), (&json!(0), &json!(0)));
    let fields = async |id: &str| anyhow::Ok(bed.simulator.customer(id).await?["fields"].clone());
    assert_eq!(
        fields("C0").await?,
        json!({"entity_id": "C0", "city": "Pune", "state": "TamilNadu"})
    );
    assert_eq!(fields("C1").await?, json!({"entity_id": "C1", "city": "Pune", "state": "Goa"}));
    assert_eq!(
        fields("C2").await?,
        json!({"entity_id": "C2", "city": "Kochi", "state": "TamilNadu"})
    );
    bed.end(relay).await.map(drop)
}

async fn force_overwrites_newer_data_once(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    bury(&bed, &[bad(&bed, 0)]).await?;
    bed.publish(&bed.event("n0", "C0", &json!({"city": "Pune"}))).await?;
    bed.applied("C0", 1).await?;
    let relay = healed(&mut bed, relay).await?;
    let (code, err) = refused(&bed, &["dead", "replay", "--all", "--force", "--yes"]).await?;
    assert!(code == 64 && err.contains("--why"), "{code} {err}");
    let replayed =
        replay(&bed, &["--all", "--force", "--why", "the CRM was wrong", "--wait"]).await?;
    assert_eq!(replayed["applied"], 1);
    assert_eq!(bed.simulator.customer("C0").await?["fields"]["city"], "Kochi");
    let acts = told(&bed, &["dead", "audit"]).await?;
    assert_eq!(acts["acts"][0]["why"], "the CRM was wrong");
    // The forced value lowered no version: what is older than Pune stays out.
    let mut late = bed.event("late", "C0", &json!({"city": "Agra"}));
    late["time"] = json!("2026-01-01T00:00:00Z");
    bed.publish(&late).await?;
    bed.queues.holds(&bed.queue("work"), 0, LIMIT).await?;
    assert_eq!(bed.simulator.customer("C0").await?["fields"]["city"], "Kochi");
    bed.end(relay).await.map(drop)
}

async fn a_canary_that_fails_stops_the_rest(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    let events: Vec<Value> = (0..30).map(|n| bad(&bed, n)).collect();
    bury(&bed, &events).await?;
    let plan = bed.state().join("plan.json").display().to_string();
    let args = ["dead", "replay", "--all", "--yes", "--json", "--save", &plan];
    let (code, out, err) = bed.settings.command(&args, b"").await?;
    assert_eq!(code, 75, "{out}{err}");
    assert!(err.contains("canary") && err.contains(&plan), "{err}");
    let stopped: Value = serde_json::from_str(&out)?;
    assert_eq!((&stopped["put_back"], &stopped["left"]), (&json!(1), &json!(29)), "{stopped}");
    assert_eq!(stopped["dead_again"], json!({"invalid-event": 1}));
    bed.queues.holds(&bed.queue("dead"), 30, LIMIT).await?;
    let acts = told(&bed, &["dead", "audit"]).await?;
    assert_eq!(acts["acts"][1]["act"], "replay-stopped");
    bed.queues.take_all(&bed.queue("dead")).await?;
    bed.end(relay).await.map(drop)
}

async fn too_many_failures_stop_a_replay(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    // The first eleven are healed by hand, the others are not.
    let events: Vec<Value> = (0..200).map(|n| bad(&bed, n)).collect();
    bury(&bed, &events).await?;
    let listed = ids(&told(&bed, &["dead", "list", "--limit", "200"]).await?);
    let first: Vec<&str> = listed[..11].iter().map(String::as_str).collect();
    let edit = ["--set", "state=Goa", "--why", "x", "--yes"];
    told(&bed, &[&["dead", "edit"], &first[..], &edit[..]].concat()).await?;
    // What was edited stands behind the others now: it is put back by itself.
    let replayed = replay(&bed, &[&first[..], &["--wait"]].concat()).await?;
    assert_eq!(replayed["applied"], 11, "{replayed}");
    let plan = bed.state().join("plan.json").display().to_string();
    let args = [
        "dead",
        "replay",
        "--all",
        "--yes",
        "--no-canary",
        "--rate",
        "40",
        "--json",
        "--save",
        &plan,
    ];
    let (code, out, err) = bed.settings.command(&args, b"").await?;
    assert!(code == 75 && err.contains("failure rate"), "{code} {out}{err}");
    let stopped: Value = serde_json::from_str(&out)?;
    let put_back = stopped["put_back"].as_u64().context("a number")?;
    ensure!((10..150).contains(&put_back), "{put_back} were put back");
    bed.queues.take_all(&bed.queue("dead")).await?;
    bed.queues.take_all(&bed.queue("archive")).await?;
    bed.end(relay).await.map(drop)
}

async fn a_replay_that_was_killed_goes_on_and_each_letter_is_applied_once(
    context: Context,
) -> Result<()> {
    let letters_count = if is_long() { 10_000 } else { 2_000 };
    let mut bed = context.bed().await?;
    bed.settings.set("log.filter", "warn,lapin=off").set("worker.merge", "false");
    let relay = bed.launch_relay()?;
    let events: Vec<Value> = (0..letters_count).map(|n| bad(&bed, n)).collect();
    bed.declare().await?;
    bed.queues.publish_events(&bed.exchange(), &events).await?;
    let (dead, work) = (bed.queue("dead"), bed.queue("work"));
    bed.queues.holds(&dead, u32::try_from(letters_count)?, Duration::from_mins(2)).await?;
    relay::stop(relay).await?;
    bed.settings.set("fields.state_spaces", "squeeze");
    let relay = bed.launch_relay()?;
    let plan = bed.state().join("plan.json").display().to_string();
    let args = ["dead", "replay", "--all", "--yes", "--rate", "500", "--save", &plan];
    let args: Vec<String> = args.iter().map(ToString::to_string).collect();
    let first = Process::start(PROGRAM, &args, bed.settings.environment())?;
    let began = std::time::Instant::now();
    let applied =
        async || anyhow::Ok(bed.simulator.stats().await?["applied"].as_u64().unwrap_or(0));
    eventually("half of it", Duration::from_mins(2), || async {
        Ok((applied().await? > letters_count as u64 / 2).then_some(()))
    })
    .await?;
    first.kill().await?;
    let killed_after = applied().await?;
    crate::support::eventually("the lock to be free", LIMIT, || async {
        let (code, ..) = bed.settings.command(&["dead", "groups"], b"").await?;
        Ok((code == 0).then_some(()))
    })
    .await?;
    let resume = ["dead", "replay", "--plan", &plan, "--yes", "--rate", "500", "--wait"];
    let replayed = told(&bed, &resume).await?;
    println!(
        "{letters_count} letters, killed after {killed_after}, gone on with {}: {:.1} s",
        replayed["put_back"],
        began.elapsed().as_secs_f64()
    );
    assert_eq!((&replayed["left"], &replayed["pending"]), (&json!(0), &json!(0)), "{replayed}");
    let ended = ["applied", "superseded"].map(|end| replayed[end].as_u64().unwrap_or(0));
    assert_eq!(ended.iter().sum::<u64>(), letters_count as u64, "{replayed}");
    assert_eq!(applied().await?, letters_count as u64, "each applied once");
    bed.queues.holds(&work, 0, LIMIT).await?;
    bed.end(relay).await.map(drop)
}

async fn a_copy_of_a_replay_that_has_ended_is_acked_unseen(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    bury(&bed, &[bad(&bed, 0), bad(&bed, 1)]).await?;
    relay::stop(relay).await?;
    bed.settings.set("fields.state_spaces", "squeeze");
    // No relay consumes: what is put back can be looked at, and laid down twice.
    let first = ids(&told(&bed, &["dead", "list"]).await?).remove(0);
    for (args, is_bad) in [(&["--all", "--force", "--why", "x"][..], false), (&[&first[..]], true)]
    {
        if is_bad {
            continue;
        }
        let replayed = replay(&bed, &[args, &["--no-canary"]].concat()).await?;
        assert_eq!(replayed["put_back"], 2, "{replayed}");
    }
    let copies = bed.queues.take_all(&bed.queue("work")).await?;
    for copy in [&copies[0], &copies[1], &copies[0], &copies[1]] {
        assert!(copy.header("x-relay-replay-id").is_some() && copy.header("x-death").is_none());
        bed.queues.publish("", &bed.queue("work"), copy.properties.clone(), &copy.body).await?;
    }
    let relay = bed.start_relay().await?;
    bed.applied("C0", 1).await?;
    bed.applied("C1", 1).await?;
    bed.queues.holds(&bed.queue("work"), 0, LIMIT).await?;
    eventually("both copies seen", LIMIT, || async {
        let seen = bed.output().matches("this replay has come to its end before").count();
        Ok((seen == 2).then_some(()))
    })
    .await?;
    assert_eq!(bed.simulator.requests("C0").await?.len(), 1, "forced, and yet once");
    let headers = copies[0].properties.headers().clone().unwrap_or_default();
    assert_eq!(headers.inner().get("x-relay-force"), Some(&AMQPValue::Boolean(true)));
    bed.end(relay).await.map(drop)
}

async fn one_setting_heals_a_group(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    let events: Vec<Value> = (0..40).map(|n| bad(&bed, n)).collect();
    bury(&bed, &events).await?;
    let other = bed.event("other", "OTHER", &json!({"address": "12/4"}));
    bury(&bed, &[other]).await?;
    let relay = healed(&mut bed, relay).await?;
    let group = "invalid-event:state:spaces";
    let replayed = replay(&bed, &["--group", group, "--wait"]).await?;
    assert_eq!((&replayed["letters"], &replayed["applied"]), (&json!(40), &json!(40)));
    assert_eq!(bed.simulator.stats().await?["applied"], 40);
    assert_eq!(told(&bed, &["dead", "list"]).await?["found"], 1, "the account adds up");
    bed.queues.take_all(&bed.queue("dead")).await?;
    bed.end(relay).await.map(drop)
}

async fn a_plan_is_what_was_seen_whatever_comes_after(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    bury(&bed, &[bad(&bed, 0)]).await?;
    let plan = bed.state().join("plan.json").display().to_string();
    told(&bed, &["dead", "replay", "--all", "--dry-run", "--save", &plan]).await?;
    bury(&bed, &[bad(&bed, 1)]).await?;
    let relay = healed(&mut bed, relay).await?;
    let foreseen = told(&bed, &["dead", "replay", "--plan", &plan, "--dry-run"]).await?;
    assert_eq!(foreseen["verdicts"], json!({"would-be-sent": 1}));
    bed.queues.holds(&bed.queue("dead"), 2, LIMIT).await?;
    let done = told(&bed, &["dead", "replay", "--plan", &plan, "--yes", "--wait"]).await?;
    assert_eq!((&done["letters"], &done["applied"]), (&json!(1), &json!(1)));
    assert_eq!(told(&bed, &["dead", "list"]).await?["found"], 1);
    let (code, err) = refused(&bed, &["dead", "replay", "--plan", "/etc/hostname"]).await?;
    assert!(code == 64 && err.contains("/etc/hostname"), "{code} {err}");
    bed.queues.take_all(&bed.queue("dead")).await?;
    bed.end(relay).await.map(drop)
}

async fn without_a_ledger_there_is_no_canary(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    bed.settings.set("ledger.url", "none");
    let relay = bed.start_relay().await?;
    bury(&bed, &[bad(&bed, 0)]).await?;
    let relay = healed(&mut bed, relay).await?;
    let (code, err) = refused(&bed, &["dead", "replay", "--all", "--yes"]).await?;
    assert!(code == 1 && err.contains("--no-canary"), "{code} {err}");
    let replayed = replay(&bed, &["--all", "--no-canary"]).await?;
    assert_eq!(replayed["put_back"], 1);
    bed.applied("C0", 1).await?;
    bed.end(relay).await.map(drop)
}
