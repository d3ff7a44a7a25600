//! Several relays at one server: an unreadable row stalls neither, and mending it reaches both.

use anyhow::{Result, ensure};

use serde_json::json;

use super::scene::{Scene, gauge, gauge_reads, works};
use crate::harness::{Context, suite};
use crate::support::bed::LIMIT;
use crate::support::{eventually, relay};

suite!(Postgres:
    an_unreadable_row_stalls_no_relay_and_mending_it_reaches_all,
    a_row_that_somebody_has_locked_stalls_its_own_customer_alone,
);

async fn an_unreadable_row_stalls_no_relay_and_mending_it_reaches_all(
    context: Context,
) -> Result<()> {
    let mut scene = Scene::with_server(context).await?;
    let (one, first) = scene.serve().await?;
    let (other, second) = scene.serve().await?;
    for customer in ["BAD-1", "BAD-2"] {
        let key = scene.record(customer).await?;
        let garbage = scene.hand.bytes(b"\xffgarbage");
        scene.hand.act(&format!("UPDATE customers SET row = {garbage} WHERE key = {key}")).await?;
    }
    for customer in ["BAD-1", "BAD-2", "BAD-1", "BAD-2"] {
        scene.send(customer).await?;
    }
    for _ in 0..3 {
        scene.others_go_on().await?;
    }
    // Each has met what it was given of them.
    ensure!(gauge(&first).await? != "0" || gauge(&second).await? != "0", "nobody has met them");
    let (code, said) = scene.command(&["ledger", "mend", "--all", "--empty", "--yes"]).await?;
    ensure!(code == 0 && said.contains("2 emptied"), "{said}");
    for customer in ["BAD-1", "BAD-2"] {
        scene.bed.applied(customer, 2).await?;
    }
    gauge_reads(&first, "0").await?;
    gauge_reads(&second, "0").await?;
    assert_eq!(scene.dead().await?, 0);
    relay::stop(one).await?;
    scene.bed.end(other).await.map(drop)
}

/// A session that somebody left open has one customer's row between two events, and another one's during
/// its call.
async fn a_row_that_somebody_has_locked_stalls_its_own_customer_alone(
    context: Context,
) -> Result<()> {
    let mut scene = Scene::with_server(context).await?;
    let (one, port) = scene.serve().await?;
    let (idle, busy) = (scene.record("IDLE").await?, scene.record("BUSY").await?);
    let lock = |key: &str| format!("UPDATE customers SET seen = seen WHERE key = {key}");
    let between = scene.hand.begin(&lock(&idle)).await?;
    scene.send("IDLE").await?;
    let slow = json!({"kind": "latency", "ms": 2000});
    let rule = json!({"match": {"entity_prefix": "BUSY"}, "times": 1, "fault": slow});
    scene.bed.simulator.fault(rule).await?;
    scene.send("BUSY").await?;
    eventually("a call", LIMIT, || async {
        Ok((scene.bed.simulator.stats().await?["in_flight"] == 1).then_some(()))
    })
    .await?;
    let during = scene.hand.begin(&lock(&busy)).await?;
    for _ in 0..6 {
        scene.others_go_on().await?;
        ensure!(works(&port).await?, "the ledger works");
    }
    assert_eq!(scene.calls("IDLE").await?, 1, "before it was locked");
    drop((between, during));
    scene.bed.applied("IDLE", 2).await?;
    scene.bed.applied("BUSY", 2).await?;
    scene.record("BUSY").await?;
    assert_eq!((scene.calls("BUSY").await?, scene.dead().await?), (3, 0));
    scene.bed.end(one).await.map(drop)
}
