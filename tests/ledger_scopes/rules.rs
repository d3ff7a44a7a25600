//! What concerns the whole ledger: a rule, a table, a step. All wait, nothing is a dead letter, and it
//! goes on by itself.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::scene::{Scene, works};
use crate::dead_commands::{ids, told};
use crate::support::bed::LIMIT;
use crate::support::process::Process;
use crate::support::{eventually, relay};

/// Longer than a single refusal is looked at before it is called the event's own.
const LONG: Duration = Duration::from_secs(12);

async fn paused(port: &str) -> Result<()> {
    eventually("a pause", LIMIT, || async { Ok((!works(port).await?).then_some(())) }).await
}

async fn works_again(port: &str) -> Result<()> {
    eventually("no pause", LIMIT, || async { Ok(works(port).await?.then_some(())) }).await
}

/// After whatever was mended: everything that was sent is applied, and few calls were made for it.
async fn all_end(scene: &mut Scene, port: &str, customers: &[&str], applied: u64) -> Result<()> {
    works_again(port).await?;
    for customer in customers {
        scene.bed.applied(customer, applied).await?;
        let calls = scene.calls(customer).await?;
        ensure!(calls as u64 <= 2 * applied, "{calls} calls for {applied} events of {customer}");
    }
    scene.others_go_on().await?;
    ensure!(!scene.bed.output().contains("unrecordable"), "an event was blamed");
    Ok(())
}

pub async fn a_rule_that_refuses_all_customers_pauses_until_it_is_gone(
    mut scene: Scene,
) -> Result<()> {
    let (relay, port) = scene.serve().await?;
    scene.others_go_on().await?;
    scene.hand.add_rule("customers", "1 = 1").await?;
    for customer in ["C1", "C2", "C3"] {
        scene.send(customer).await?;
    }
    paused(&port).await?;
    let calls = scene.bed.simulator.stats().await?["calls"].clone();
    for customer in ["C1", "C4"] {
        scene.send(customer).await?;
    }
    tokio::time::sleep(LONG).await;
    ensure!(!works(&port).await?, "it goes on, though nothing can be recorded");
    assert_eq!(scene.bed.simulator.stats().await?["calls"], calls, "calls during a pause");
    assert_eq!(scene.dead().await?, 0);
    scene.hand.remove_rule("customers").await?;
    all_end(&mut scene, &port, &["C2", "C3", "C4"], 1).await?;
    all_end(&mut scene, &port, &["C1"], 2).await?;
    assert_eq!(scene.dead().await?, 0);
    scene.bed.end(relay).await.map(drop)
}

pub async fn a_rule_on_changes_alone_pauses_until_it_is_gone(mut scene: Scene) -> Result<()> {
    let (relay, port) = scene.serve().await?;
    scene.others_go_on().await?;
    scene.send("C1").await?;
    all_end(&mut scene, &port, &["C1"], 1).await?;
    scene.hand.add_rule_on_changes("customers").await?;
    scene.send("C1").await?;
    paused(&port).await?;
    tokio::time::sleep(LONG).await;
    ensure!(!works(&port).await?, "it goes on, though nothing can be recorded");
    assert_eq!(scene.dead().await?, 0);
    scene.hand.remove_rule_on_changes("customers").await?;
    all_end(&mut scene, &port, &["C1"], 2).await?;
    assert_eq!(scene.dead().await?, 0);
    scene.bed.end(relay).await.map(drop)
}

pub async fn a_rule_that_refuses_all_that_waits_pauses_until_it_is_gone(
    mut scene: Scene,
) -> Result<()> {
    let (relay, port) = scene.serve().await?;
    scene.others_go_on().await?;
    scene.hand.add_rule("pending", "1 = 1").await?;
    for customer in ["C1", "C2"] {
        let matches = json!({"entity_id": customer});
        let fault = json!({"kind": "status", "code": 500});
        scene
            .bed
            .simulator
            .add_fault(json!({"match": matches, "times": 6, "fault": fault}))
            .await?;
        scene.send(customer).await?;
    }
    paused(&port).await?;
    tokio::time::sleep(LONG).await;
    ensure!(!works(&port).await?, "it goes on, though nothing can be recorded");
    assert_eq!(scene.dead().await?, 0);
    scene.hand.remove_rule("pending").await?;
    scene.bed.simulator.heal().await?;
    works_again(&port).await?;
    for customer in ["C1", "C2"] {
        scene.bed.applied(customer, 1).await?;
    }
    scene.others_go_on().await?;
    assert_eq!(scene.dead().await?, 0);
    assert_eq!(scene.hand.number("SELECT count(*) FROM pending").await?, 0);
    scene.bed.end(relay).await.map(drop)
}

fn bad_event(scene: &Scene, customer: &str) -> Value {
    scene.bed.event(&format!("e-{customer}"), customer, &json!({"city": "New Delhi"}))
}

pub async fn a_rule_that_refuses_the_index_pauses_until_it_is_gone(mut scene: Scene) -> Result<()> {
    let (relay, port) = scene.serve().await?;
    scene.others_go_on().await?;
    scene.hand.add_rule("dead", "1 = 1").await?;
    for customer in ["C1", "C2"] {
        scene.bed.publish(&bad_event(&scene, customer)).await?;
    }
    paused(&port).await?;
    tokio::time::sleep(LONG).await;
    ensure!(!works(&port).await?, "it goes on, though nothing can be recorded");
    scene.hand.remove_rule("dead").await?;
    all_end(&mut scene, &port, &[], 0).await?;
    // The broker had them before the ledger was asked; none of them comes twice.
    eventually("both in the index", LIMIT, || async {
        Ok((scene.hand.number("SELECT count(*) FROM dead").await? == 2).then_some(()))
    })
    .await?;
    for letter in scene.bed.queues.take_all(&scene.bed.queue("dead")).await? {
        assert_eq!(letter.header("x-relay-reason").as_deref(), Some("invalid-event"));
    }
    scene.bed.end(relay).await.map(drop)
}

pub async fn a_rule_that_refuses_ended_replays_pauses_until_it_is_gone(
    mut scene: Scene,
) -> Result<()> {
    let (relay, port) = scene.serve().await?;
    for customer in ["C1", "C2"] {
        scene.bed.publish(&bad_event(&scene, customer)).await?;
    }
    eventually("two dead letters", LIMIT, || async {
        Ok((scene.hand.number("SELECT count(*) FROM dead").await? == 2).then_some(()))
    })
    .await?;
    scene.hand.add_rule("replays", "1 = 1").await?;
    let listed = told(&scene.bed, &["dead", "list"]).await?;
    let ids = ids(&listed);
    let again: Vec<&str> = ["dead", "replay"]
        .into_iter()
        .chain(ids.iter().map(String::as_str))
        .chain(["--yes", "--no-canary"])
        .collect();
    let (code, said) = scene.command(&again).await?;
    ensure!(code == 0, "exit {code}: {said}");
    paused(&port).await?;
    tokio::time::sleep(LONG).await;
    ensure!(!works(&port).await?, "it goes on, though nothing can be recorded");
    scene.hand.remove_rule("replays").await?;
    all_end(&mut scene, &port, &[], 0).await?;
    eventually("two ends", LIMIT, || async {
        Ok((scene.hand.number("SELECT count(*) FROM replays").await? == 2).then_some(()))
    })
    .await?;
    let left = scene.bed.queues.take_all(&scene.bed.queue("dead")).await?;
    assert_eq!(left.len(), 2, "the same fault again, once each");
    scene.bed.end(relay).await.map(drop)
}

pub async fn a_table_or_a_column_that_is_gone_pauses_until_it_is_back(
    mut scene: Scene,
) -> Result<()> {
    let (relay, port) = scene.serve().await?;
    scene.others_go_on().await?;
    let whole = if scene.hand.is_sqlite() { "INTEGER" } else { "BIGINT" };
    let back = format!("ALTER TABLE customers ADD COLUMN seen {whole} NOT NULL DEFAULT 0");
    for (number, (harm, mend)) in (1..).zip([
        ("ALTER TABLE customers RENAME TO elsewhere", "ALTER TABLE elsewhere RENAME TO customers"),
        ("ALTER TABLE customers DROP COLUMN seen", &back),
    ]) {
        scene.hand.act(harm).await?;
        for customer in ["C1", "C2"] {
            scene.send(customer).await?;
        }
        paused(&port).await?;
        tokio::time::sleep(Duration::from_secs(3)).await;
        ensure!(!works(&port).await?, "it goes on without {harm}");
        scene.hand.act(mend).await?;
        all_end(&mut scene, &port, &["C1", "C2"], number).await?;
    }
    assert_eq!(scene.dead().await?, 0);
    scene.bed.end(relay).await.map(drop)
}

pub async fn a_step_that_cannot_be_taken_stops_the_start_and_changes_nothing(
    mut scene: Scene,
) -> Result<()> {
    let (relay, _) = scene.serve().await?;
    scene.apply("C1").await?;
    relay::stop(relay).await?;
    let set = |taken: u32| {
        if scene.hand.is_sqlite() {
            format!("PRAGMA user_version = {taken}")
        } else {
            format!("UPDATE relay_schema SET taken = {taken}")
        }
    };
    // What the last step would make is there already.
    scene.hand.act(&set(3)).await?;
    let mut relay: Process = scene.bed.launch_relay()?;
    let status = relay.ended(LIMIT).await?;
    ensure!(!status.success(), "it started");
    let said = relay.output();
    ensure!(
        said.contains("ledger") && said.contains("already exists") || said.contains("duplicate"),
        "{said}"
    );
    let columns = if scene.hand.is_sqlite() {
        "SELECT user_version FROM pragma_user_version"
    } else {
        "SELECT taken FROM relay_schema"
    };
    assert_eq!(scene.hand.number(columns).await?, 3);
    scene.hand.act(&set(4)).await?;
    let (relay, _) = scene.serve().await.context("nothing else was changed")?;
    scene.apply("C1").await?;
    scene.bed.end(relay).await.map(drop)
}
