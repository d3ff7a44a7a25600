//! What the ledger refuses of one event, while it takes what others leave.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::scene::{Scene, works};
use crate::dead_commands::told;
use crate::support::bed::LIMIT;
use crate::support::{eventually, relay};

/// A refusal is found out at once; the dead letter needs a commit more.
const SOON: Duration = Duration::from_mins(1);

/// Others' events flow until there are so many dead letters.
async fn until_dead(scene: &mut Scene, port: &str, count: u32) -> Result<()> {
    let start = Instant::now();
    while scene.dead().await? < count {
        scene.others_go_on().await?;
        ensure!(works(port).await?, "it pauses for one event's sake");
        ensure!(start.elapsed() < SOON, "no dead letter within {SOON:?}");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    Ok(())
}

async fn indexed(scene: &Scene, count: i64) -> Result<()> {
    eventually(&format!("{count} in the index"), SOON, || async {
        Ok((scene.hand.number("SELECT count(*) FROM dead").await? == count).then_some(()))
    })
    .await
}

/// The dead letter says so, and a replay ends well once the rule is gone.
async fn is_shown_and_replayed(scene: &mut Scene, table: &str, needs_review: bool) -> Result<()> {
    indexed(scene, 1).await?;
    let listed = told(&scene.bed, &["dead", "list"]).await?;
    let letter = &listed["dead_letters"][0];
    ensure!(letter["reason"] == "unrecordable", "{letter}");
    let id = letter["dead_id"].as_str().context("an id")?.to_owned();
    assert_eq!(letter.to_string().contains("needs-review"), needs_review, "{letter}");
    let (code, shown) = scene.command(&["dead", "show", &id]).await?;
    ensure!(code == 0 && shown.contains("unrecordable"), "{shown}");
    scene.hand.remove_rule(table).await?;
    let (code, said) = scene.command(&["dead", "replay", &id, "--yes", "--wait"]).await?;
    ensure!(code == 0, "exit {code}: {said}");
    assert_eq!(scene.dead().await?, 0);
    indexed(scene, 0).await
}

pub async fn an_event_whose_row_is_refused_is_one_dead_letter_and_others_go_on(
    mut scene: Scene,
) -> Result<()> {
    let (relay, port) = scene.serve().await?;
    let key = scene.record("BAD").await?;
    // A lease leaves the row as it is: only what is recorded is refused.
    let seen = scene.hand.number("SELECT max(seen) FROM customers").await?;
    scene.hand.add_rule("customers", &format!("NEW.key = {key} AND NEW.seen > {seen}")).await?;
    scene.send("BAD").await?;
    until_dead(&mut scene, &port, 1).await?;
    assert_eq!(scene.calls("BAD").await?, 2, "one call for each event");
    is_shown_and_replayed(&mut scene, "customers", true).await?;
    let calls = scene.calls("BAD").await?;
    ensure!(calls <= 3, "{calls} calls for two events and a replay");
    scene.apply("BAD").await?;
    scene.bed.end(relay).await.map(drop)
}

pub async fn a_customer_that_is_refused_altogether_stops_no_other(mut scene: Scene) -> Result<()> {
    let (relay, port) = scene.serve().await?;
    scene.others_go_on().await?;
    let key = scene.hand.key(scene.key("BAD").await?);
    scene.hand.add_rule("customers", &format!("NEW.key = {key}")).await?;
    scene.send("BAD").await?;
    until_dead(&mut scene, &port, 1).await?;
    // Where a lease is needed before the call, there was none.
    let is_called = scene.hand.is_sqlite();
    assert_eq!(scene.calls("BAD").await?, usize::from(is_called));
    is_shown_and_replayed(&mut scene, "customers", is_called).await?;
    ensure!(scene.calls("BAD").await? <= 2);
    scene.apply("BAD").await?;
    scene.bed.end(relay).await.map(drop)
}

pub async fn many_events_at_fault_stop_no_other(mut scene: Scene) -> Result<()> {
    let (relay, port) = scene.serve().await?;
    scene.others_go_on().await?;
    let customers = ["BAD-1", "BAD-2", "BAD-3"];
    let mut keys = Vec::new();
    for customer in customers {
        keys.push(scene.hand.key(scene.key(customer).await?));
    }
    scene.hand.add_rule("customers", &format!("NEW.key IN ({})", keys.join(", "))).await?;
    for customer in customers {
        scene.send(customer).await?;
    }
    until_dead(&mut scene, &port, 3).await?;
    indexed(&scene, 3).await?;
    scene.hand.remove_rule("customers").await?;
    let (code, said) =
        scene.command(&["dead", "purge", "--all", "--yes", "--why", "a test"]).await?;
    ensure!(code == 0, "exit {code}: {said}");
    scene.bed.end(relay).await.map(drop)
}

pub async fn an_event_that_may_not_wait_in_the_ledger_still_ends(mut scene: Scene) -> Result<()> {
    let (relay, port) = scene.serve().await?;
    let fault = json!({"kind": "status", "code": 500});
    for customer in ["BAD", "GOOD-1", "GOOD-2", "GOOD-3"] {
        let matches = json!({"entity_id": customer});
        let fault = json!({"match": matches, "times": 3, "fault": fault});
        scene.bed.simulator.add_fault(fault).await?;
    }
    scene.hand.add_rule("pending", "NEW.event LIKE '%-BAD'").await?;
    scene.send("BAD").await?;
    let start = Instant::now();
    let mut number = 0;
    loop {
        // Now and then another one waits: the table takes that.
        number += 1;
        if number <= 3 {
            scene.send(&format!("GOOD-{number}")).await?;
        }
        scene.others_go_on().await?;
        ensure!(works(&port).await?, "it pauses for one event's sake");
        if scene.bed.simulator.customer("BAD").await?["applied"] == 1 {
            break;
        }
        ensure!(start.elapsed() < Duration::from_mins(2), "it does not end");
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    for number in 1..=number.min(3) {
        scene.bed.applied(&format!("GOOD-{number}"), 1).await?;
    }
    assert_eq!(scene.dead().await?, 0, "the broker had taken it to wait");
    let calls = scene.calls("BAD").await?;
    ensure!(calls <= 5, "{calls} calls for one event");
    scene.bed.end(relay).await.map(drop)
}

/// Nothing else comes that would show whose fault it is.
pub async fn one_refusal_without_other_traffic_is_found_out(mut scene: Scene) -> Result<()> {
    let (relay, port) = scene.serve().await?;
    let key = scene.record("BAD").await?;
    let seen = scene.hand.number("SELECT max(seen) FROM customers").await?;
    scene.hand.add_rule("customers", &format!("NEW.key = {key} AND NEW.seen > {seen}")).await?;
    scene.send("BAD").await?;
    eventually("a dead letter", Duration::from_secs(100), || async {
        ensure!(works(&port).await?, "it pauses for one event's sake");
        tokio::time::sleep(Duration::from_millis(500)).await;
        Ok((scene.dead().await? == 1).then_some(()))
    })
    .await?;
    scene.others_go_on().await?;
    is_shown_and_replayed(&mut scene, "customers", true).await?;
    scene.bed.end(relay).await.map(drop)
}

pub async fn a_stop_and_a_kill_while_a_change_is_set_aside_lose_nothing(
    mut scene: Scene,
) -> Result<()> {
    scene.bed.settings.set("worker.grace_period", "3s");
    // A lease outlives its owner by twice that.
    scene.bed.settings.set("portal.timeout", "5s");
    let (relay, _) = scene.serve().await?;
    let key = scene.record("BAD").await?;
    let seen = scene.hand.number("SELECT max(seen) FROM customers").await?;
    // All that is recorded is refused: it is the ledger's fault, which lasts.
    scene.hand.add_rule("customers", &format!("NEW.seen > {seen}")).await?;
    scene.send("BAD").await?;
    let mut relay = relay;
    relay.line_with("it is set aside", LIMIT).await?;
    relay.signal("TERM").await?;
    let start = Instant::now();
    // The grace period, then `broker.operation_timeout` to hand back what is left.
    relay.ended(Duration::from_secs(3 + 10 + 5)).await?;
    println!("ended {:?} after SIGTERM, with a grace period of 3 s", start.elapsed());
    let (mut relay, _) = scene.serve().await?;
    relay.line_with("it is set aside", SOON).await?;
    relay.kill().await?;
    scene.hand.remove_rule("customers").await?;
    let (relay, _) = scene.serve().await?;
    eventually("it is recorded", SOON, || async {
        let key = format!("SELECT count(*) FROM customers WHERE key = {key} AND seen > {seen}");
        Ok((scene.hand.number(&key).await? == 1).then_some(()))
    })
    .await?;
    let calls = scene.calls("BAD").await?;
    // Twice its end was undone. Whoever takes a lease over sends once more: a call of the last owner
    // may have been under way.
    let most = if scene.hand.is_sqlite() { 4 } else { 5 };
    ensure!((2..=most).contains(&calls), "{calls} calls for two events");
    assert_eq!(scene.dead().await?, 0);
    // What was sent once more comes back, and is superseded.
    let (work, tiers) = scene.bed.ways().await?;
    for queue in std::iter::once(&work).chain(&tiers) {
        scene.bed.queues.holds(queue, 0, LIMIT).await?;
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    relay::stop(relay).await?;
    scene.bed.finish().await
}
