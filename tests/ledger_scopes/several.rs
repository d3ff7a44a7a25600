//! Several relays at one server: an unreadable row stalls neither, and mending it reaches both.

use anyhow::{Result, ensure};

use super::scene::{Scene, gauge, gauge_reads};
use crate::harness::{Context, suite};
use crate::support::relay;

suite!(Postgres: an_unreadable_row_stalls_no_relay_and_mending_it_reaches_all);

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
