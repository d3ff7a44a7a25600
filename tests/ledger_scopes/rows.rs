//! A customer's row that cannot be read: its events wait, the others' go on, and there are ways out.

use anyhow::{Result, ensure};
use serde_json::json;

use super::scene::{Scene, gauge_reads};
use crate::ledger_commands::shown;
use crate::support::bed::LIMIT;
use crate::support::{eventually, relay};
use crate::telemetry::reads;

/// Overwrites the row of each customer in another way; their names.
async fn overwrite(scene: &Scene) -> Result<Vec<&'static str>> {
    let hand = &scene.hand;
    let flip = if hand.is_sqlite() {
        let other = "CASE substr(row, 6, 1) WHEN x'ff' THEN x'fe' ELSE x'ff' END";
        format!("CAST(substr(row, 1, 5) || {other} || substr(row, 7) AS BLOB)")
    } else {
        "set_bit(row, 45, 1 - get_bit(row, 45))".to_owned()
    };
    let mut ways = vec![
        ("BAD-NUL", hand.bytes(b"\0")),
        ("BAD-RANDOM", hand.bytes(b"\x9c\x01overwritten by hand")),
        ("BAD-FLIPPED", flip),
        ("BAD-NEWER", hand.bytes(b"\x03of a newer form")),
        (
            "BAD-LONGER",
            if hand.is_sqlite() {
                "CAST(row || x'00' AS BLOB)".to_owned()
            } else {
                format!("row || {}", hand.bytes(b"\0"))
            },
        ),
    ];
    if hand.is_sqlite() {
        ways.push(("BAD-TEXT", "'a text'".to_owned()));
    }
    for (customer, row) in &ways {
        let key = hand.key(scene.key(customer).await?);
        hand.act(&format!("UPDATE customers SET row = {row} WHERE key = {key}")).await?;
    }
    Ok(ways.into_iter().map(|(customer, _)| customer).collect())
}

const ALL: [&str; 6] =
    ["BAD-NUL", "BAD-RANDOM", "BAD-FLIPPED", "BAD-NEWER", "BAD-LONGER", "BAD-TEXT"];

pub async fn unreadable_rows_stop_their_customers_alone_and_are_mended(
    mut scene: Scene,
) -> Result<()> {
    let (relay, _) = scene.serve().await?;
    for customer in ALL {
        scene.record(customer).await?;
    }
    relay::stop(relay).await?;
    let backup = scene.back_up().await?;
    let (relay, port) = scene.serve().await?;
    let bad = overwrite(&scene).await?;
    for customer in &bad {
        scene.send(customer).await?;
    }
    scene.others_go_on().await?;
    gauge_reads(&port, &bad.len().to_string()).await?;
    reads(&port, 200, &[("ledger", json!("works")), ("unreadable_rows", json!(bad.len()))]).await?;
    let (code, said) = scene.command(&["check"]).await?;
    let wanted = format!("{} customers' rows cannot be read", bad.len());
    ensure!(code != 0 && said.contains(&wanted) && said.contains("ledger mend"), "{said}");
    for customer in &bad {
        let known = eventually("it waits", LIMIT, || async {
            let known = shown(&scene.bed, customer).await?;
            Ok((!known["pending"][0].is_null()).then_some(known))
        })
        .await?;
        ensure!(known["unreadable"].is_string(), "{known}");
        let waits = &known["pending"][0];
        ensure!(waits["attempts"] == 0 && waits["reason"] == "ledger-row", "{waits}");
        assert_eq!(scene.calls(customer).await?, 1, "no call without its row");
    }
    let (code, said) =
        scene.command(&["ledger", "mend", "OTHER-1", "--from", &backup, "--yes"]).await?;
    ensure!(code != 0 && said.contains("1 not in the backup"), "{said}");

    let (code, said) = scene.command(&["ledger", "mend", bad[0], "--from", &backup]).await?;
    ensure!(code != 0 && said.contains("--yes"), "nobody was asked: {said}");
    for (customer, rest) in [
        (bad[0], vec![bad[0], "--from", &backup, "--yes"]),
        (bad[1], vec![bad[1], "--empty", "--yes"]),
        (bad[2], vec!["--all", "--from", &backup, "--yes"]),
    ] {
        let (code, said) = scene.command(&[vec!["ledger", "mend"], rest].concat()).await?;
        ensure!(code == 0, "exit {code}: {said}");
        let has_advice = said.contains("snapshot") && said.contains("ledger doubts --open 20");
        assert_eq!(has_advice, !said.contains("1 emptied"), "{said}");
        scene.bed.applied(customer, 2).await?;
    }
    for customer in &bad {
        scene.bed.applied(customer, 2).await?;
        assert_eq!(scene.calls(customer).await?, 2, "{customer}: once each");
    }
    gauge_reads(&port, "0").await?;
    let (_, audit) = scene.command(&["dead", "audit"]).await?;
    assert_eq!(audit.matches("rows that cannot be read").count(), 4, "{audit}");
    assert_eq!(audit.matches(" as of 20").count(), 3, "{audit}");
    assert_eq!(scene.dead().await?, 0);
    // The fence of a mended row holds; only an emptied one has forgotten.
    let mut old = scene.bed.event("e-old", bad[0], &json!({"city": "Older"}));
    old["time"] = json!("2026-01-01T00:00:00Z");
    scene.bed.publish(&old).await?;
    eventually("superseded", LIMIT, || async {
        Ok((shown(&scene.bed, bad[0]).await?["superseded"] == 1).then_some(()))
    })
    .await?;
    scene.bed.end(relay).await.map(drop)
}

pub async fn waiting_at_an_unreadable_row_survives_a_kill(mut scene: Scene) -> Result<()> {
    let (relay, _) = scene.serve().await?;
    let key = scene.record("BAD").await?;
    let garbage = scene.hand.bytes(b"\xff\xff");
    scene.hand.act(&format!("UPDATE customers SET row = {garbage} WHERE key = {key}")).await?;
    for _ in 0..5 {
        scene.send("BAD").await?;
    }
    scene.others_go_on().await?;
    // What is leased when a relay is killed stays so for half a minute.
    scene.nobody_is_leased_but(&key).await?;
    relay.kill().await?;
    let (relay, _) = scene.serve().await?;
    scene.others_go_on().await?;
    relay::stop(relay).await?;
    let (relay, port) = scene.serve().await?;
    gauge_reads(&port, "1").await?;
    assert_eq!(scene.calls("BAD").await?, 1);
    let (code, said) = scene.command(&["ledger", "mend", "--all", "--empty", "--yes"]).await?;
    ensure!(code == 0, "exit {code}: {said}");
    eventually("the newest is applied", LIMIT, || async {
        let customer = scene.bed.simulator.customer("BAD").await?;
        Ok((customer["fields"]["city"] == "Kochiag").then_some(()))
    })
    .await?;
    gauge_reads(&port, "0").await?;
    eventually("nothing waits", LIMIT, || async {
        Ok((scene.hand.number("SELECT count(*) FROM pending").await? == 0).then_some(()))
    })
    .await?;
    let calls = scene.calls("BAD").await?;
    ensure!((2..=6).contains(&calls), "{calls} calls for 6 events");
    scene.bed.end(relay).await.map(drop)
}
