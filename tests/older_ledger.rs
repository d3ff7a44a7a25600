//! A ledger that an older relay has made is brought up to date, and nothing in it is lost.

use anyhow::{Result, ensure};
use rusqlite::Connection;
use serde_json::json;

use crate::harness::{Context, suite};
use crate::ledger_commands::shown;
use crate::postgres::connect;
use crate::support::bed::{Bed, LIMIT};
use crate::support::{eventually, relay};

suite!(
    Broker: an_older_file_is_brought_up_to_date;
    Postgres: older_tables_of_a_server_are_brought_up_to_date;
);

/// What the first release kept, by table.
const KEPT: [(&str, &str); 4] = [
    ("about", "one, id, salt, created"),
    ("customers", "key, row, seen"),
    ("pending", "customer, event, attempts, due, reason"),
    (
        "dead",
        "dead_id, customer, event, reason, field, rule, http_status, portal_status, attempts, died",
    ),
];

/// Puts the rows into the tables of the first step, made anew.
fn make_older(drop_all: &str, first_step: &str) -> String {
    let keep = KEPT.map(|(table, columns)| {
        format!("CREATE TEMP TABLE kept_{table} AS SELECT {columns} FROM {table};")
    });
    let put_back = KEPT.map(|(table, columns)| {
        format!("INSERT INTO {table} ({columns}) SELECT {columns} FROM kept_{table};")
    });
    format!("{} {drop_all} {first_step} {}", keep.concat(), put_back.concat())
}

async fn an_older_file_is_brought_up_to_date(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    let file = bed.state().join("ledger.db");
    let older = async || {
        let ledger = Connection::open(&file)?;
        let tables =
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'";
        let mut select = ledger.prepare(tables)?;
        let names = select.query_map([], |row| row.get::<_, String>(0))?;
        let drops = names.map(|name| Ok(format!("DROP TABLE {};", name?)));
        let drop_all = drops.collect::<Result<String>>()?;
        let first_step = include_str!("../src/ledger/sqlite/steps/1.sql");
        ledger.execute_batch(&make_older(&drop_all, first_step))?;
        Ok(ledger.execute_batch("PRAGMA user_version = 1")?)
    };
    upgrade(bed, older).await
}

async fn older_tables_of_a_server_are_brought_up_to_date(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    let url = context.postgres().await?.database().await?;
    bed.settings.set("ledger.url", &url);
    let older = async || {
        let drop_all = "DROP SCHEMA public CASCADE; CREATE SCHEMA public;";
        let first_step = include_str!("../src/ledger/postgres/steps/1.sql");
        let client = connect(&url).await?;
        client.batch_execute(&make_older(drop_all, first_step)).await?;
        let taken = "CREATE TABLE relay_schema (taken BIGINT NOT NULL);
                     INSERT INTO relay_schema VALUES (1)";
        Ok(client.batch_execute(taken).await?)
    };
    upgrade(bed, older).await
}

/// One field applied, one event that waits, one dead letter: before and after.
async fn upgrade(mut bed: Bed, make_older: impl AsyncFnOnce() -> Result<()>) -> Result<()> {
    for delay in ["shortest_delay", "first_delay", "max_delay", "max_uncounted_delay"] {
        bed.settings.set(&format!("retry.{delay}"), "60s");
    }
    bed.settings.set("retry.rejected_delay", "60s").set("retry.immediate_retries", "0");
    let relay = bed.start_relay().await?;
    bed.publish(&bed.event("e-applied", "C1", &json!({"city": "Kochi"}))).await?;
    bed.applied("C1", 1).await?;
    let fault = json!({"times": 1, "fault": {"kind": "status", "code": 503}});
    bed.simulator.fault(fault).await?;
    bed.publish(&bed.event("e-waits", "C1", &json!({"state": "Kerala"}))).await?;
    bed.publish(&bed.event("e-dead", "C1", &json!({"pincode": "none"}))).await?;
    let before = eventually("all three", LIMIT, || async {
        let known = shown(&bed, "C1").await?;
        let is_there = |part: &str| known[part].as_array().map(Vec::len) == Some(1);
        Ok((is_there("pending") && is_there("dead_letters")).then_some(known))
    })
    .await?;
    relay::stop(relay).await?;
    make_older().await?;
    // The relay of that time kept the ledger's id at the broker, and no number.
    bed.forget_number().await?;
    let (code, out, err) = bed.settings.command(&["customer", "show", "C1"], b"").await?;
    ensure!(code == 1 && err.contains("older ledger"), "exit {code}: {out}{err}");

    let relay = bed.start_relay().await?;
    let after = shown(&bed, "C1").await?;
    assert_eq!(after["fields"], before["fields"]);
    for part in ["event", "attempts", "due", "reason"] {
        assert_eq!(after["pending"][0][part], before["pending"][0][part], "{part}");
    }
    for part in ["dead_id", "event", "reason", "field", "rule", "died"] {
        assert_eq!(after["dead_letters"][0][part], before["dead_letters"][0][part], "{part}");
    }
    let mut older = bed.event("e-late", "C1", &json!({"city": "Aluva"}));
    older["time"] = json!("2026-01-01T00:00:00Z");
    bed.publish(&older).await?;
    eventually("the fence", LIMIT, || async {
        Ok((shown(&bed, "C1").await?["superseded"] == 1).then_some(()))
    })
    .await?;
    // What the older one did not have.
    let archive = ["dead", "archive", "--all", "--yes", "--why", "a test", "--json"];
    let (code, out, err) = bed.settings.command(&archive, b"").await?;
    ensure!(code == 0, "exit {code}: {out}{err}");
    let (code, out, err) = bed.settings.command(&["dead", "audit"], b"").await?;
    ensure!(code == 0 && out.contains("a test"), "exit {code}: {out}{err}");
    bed.queues.take(&bed.queue("archive"), LIMIT).await?;
    bed.queues.take(&bed.queue("retry.60000ms"), LIMIT).await?;
    bed.end(relay).await.map(drop)
}
