//! What 0.1.0 has left behind is read by this version: its ledgers, its queues, its plans and its
//! exports. The fixtures were made by its own program, on real parts: tests/fixtures/main.rs says
//! how. A row of the year 9999 comes of a relay whose clock was wrong.

mod ends;
mod operators;
mod said;

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rusqlite::Connection;
use serde_json::json;

use crate::dead_commands::told;
use crate::harness::{Context, suite};
use crate::ledger_commands::shown;
use crate::postgres::connect;
use crate::support::bed::{Bed, LIMIT};
use crate::support::fixtures::{Fixture, event, publish};
use crate::support::relay;
use ends::{
    an_id_with_control_characters_waits_no_more, events_left_end_as_they_should, fences_hold,
    rows_that_stopped_it_are_read,
};
use operators::operators_go_on_where_they_were;
use said::{ensure_says, says_what_it_said};

suite!(
Broker:
    a_file_says_what_it_said,
    rows_of_a_file_that_stopped_it_are_read,
    events_left_with_a_file_end_as_they_should,
    fences_of_a_file_hold,
    operators_with_a_file_go_on_where_they_were,
    an_id_with_control_characters_waits_no_more_at_a_file,
    a_pause_is_still_obeyed;
Postgres:
    a_server_says_what_it_said,
    rows_of_a_server_that_stopped_it_are_read,
    events_left_with_a_server_end_as_they_should,
    fences_of_a_server_hold,
    operators_with_a_server_go_on_where_they_were,
    an_id_with_control_characters_waits_no_more_at_a_server,
    an_event_that_a_server_refused_stops_no_other,
    a_file_is_carried_over_to_a_server;
);

const SQLITE: &str = "0.1.0/sqlite";
const POSTGRES: &str = "0.1.0/postgres";

/// A bed with the ledger of a fixture, as old as it was then.
async fn with_file(context: &Context) -> Result<(Bed, Fixture)> {
    let mut bed = context.bed().await?;
    let fixture = Fixture::of(&bed, SQLITE);
    let file = bed.state().join("ledger.db");
    let ledger = Connection::open(&file)?;
    ledger.execute_batch(&fixture.text("ledger.sql")?)?;
    ledger.execute_batch(&grown_younger(&fixture)?)?;
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600))?;
    prepare(&mut bed).await?;
    Ok((bed, fixture))
}

async fn with_server(context: &Context) -> Result<(Bed, Fixture)> {
    let mut bed = context.bed().await?;
    let fixture = Fixture::of(&bed, POSTGRES);
    let url = context.postgres().await?.database().await?;
    connect(&url).await?.batch_execute(&fixture.text("ledger.sql")?).await?;
    connect(&url).await?.batch_execute(&grown_younger(&fixture)?).await?;
    bed.settings.set("ledger.url", &url);
    prepare(&mut bed).await?;
    Ok((bed, fixture))
}

/// What waits, and what was replayed, is forgotten after a while: as if it were of today.
fn grown_younger(fixture: &Fixture) -> Result<String> {
    let age = fixture.age_in_us()?;
    Ok(format!(
        "UPDATE pending SET due = due + {age}, since = since + {age};
         UPDATE replays SET at = at + {age};"
    ))
}

async fn prepare(bed: &mut Bed) -> Result<()> {
    bed.settings.set("order.missing", "arrival").set("event.max_bytes", "1024");
    bed.set_probe_customer();
    bed.declare().await
}

/// Puts the messages of these queues in place.
async fn place(bed: &Bed, fixture: &Fixture, queues: &[&str]) -> Result<()> {
    publish(bed, "retry.100ms", &fixture.messages(queues)?).await
}

/// Takes away what rests in the queues.
async fn empty(bed: &Bed) -> Result<()> {
    for queue in ["dead", "archive"] {
        bed.queues.take_all(&bed.queue(queue)).await?;
    }
    Ok(())
}

/// Queues that nothing happens to while nobody asks for it.
const RESTING: [&str; 3] = ["ledger-id", "dead", "archive"];

async fn a_file_says_what_it_said(context: Context) -> Result<()> {
    let (bed, fixture) = with_file(&context).await?;
    says_what_it_said(bed, &fixture).await
}

async fn a_server_says_what_it_said(context: Context) -> Result<()> {
    let (bed, fixture) = with_server(&context).await?;
    says_what_it_said(bed, &fixture).await
}

async fn rows_of_a_file_that_stopped_it_are_read(context: Context) -> Result<()> {
    let (bed, fixture) = with_file(&context).await?;
    rows_that_stopped_it_are_read(bed, &fixture).await
}

async fn rows_of_a_server_that_stopped_it_are_read(context: Context) -> Result<()> {
    let (bed, fixture) = with_server(&context).await?;
    rows_that_stopped_it_are_read(bed, &fixture).await
}

async fn events_left_with_a_file_end_as_they_should(context: Context) -> Result<()> {
    let (bed, fixture) = with_file(&context).await?;
    events_left_end_as_they_should(bed, &fixture).await
}

async fn events_left_with_a_server_end_as_they_should(context: Context) -> Result<()> {
    let (bed, fixture) = with_server(&context).await?;
    events_left_end_as_they_should(bed, &fixture).await
}

async fn an_id_with_control_characters_waits_no_more_at_a_file(context: Context) -> Result<()> {
    let (bed, fixture) = with_file(&context).await?;
    an_id_with_control_characters_waits_no_more(bed, &fixture).await
}

async fn an_id_with_control_characters_waits_no_more_at_a_server(context: Context) -> Result<()> {
    let (bed, fixture) = with_server(&context).await?;
    an_id_with_control_characters_waits_no_more(bed, &fixture).await
}

async fn fences_of_a_file_hold(context: Context) -> Result<()> {
    let (bed, fixture) = with_file(&context).await?;
    fences_hold(bed, &fixture).await
}

async fn fences_of_a_server_hold(context: Context) -> Result<()> {
    let (bed, fixture) = with_server(&context).await?;
    fences_hold(bed, &fixture).await
}

async fn operators_with_a_file_go_on_where_they_were(context: Context) -> Result<()> {
    let (bed, fixture) = with_file(&context).await?;
    operators_go_on_where_they_were(bed, &fixture).await
}

async fn operators_with_a_server_go_on_where_they_were(context: Context) -> Result<()> {
    let (bed, fixture) = with_server(&context).await?;
    operators_go_on_where_they_were(bed, &fixture).await
}

async fn an_event_that_a_server_refused_stops_no_other(context: Context) -> Result<()> {
    let (bed, fixture) = with_server(&context).await?;
    let refused = fixture.said_of("refused")?;
    ensure!(refused.as_str().is_some_and(|text| text.contains("invalid byte sequence")));
    place(&bed, &fixture, &["ledger-id"]).await?;
    publish(&bed, "retry.100ms", &fixture.messages_of("refused.jsonl")?).await?;
    let relay = bed.start_relay().await?;
    let dead = bed.dead_letter().await?;
    assert_eq!(dead.header("x-relay-reason").as_deref(), Some("invalid-event"));
    bed.publish(&event("e-behind", "C1", json!({"city": "Kochi"}))).await?;
    bed.applied("C1", 1).await?;
    bed.end(relay).await.map(drop)
}

async fn a_pause_is_still_obeyed(context: Context) -> Result<()> {
    let (bed, fixture) = with_file(&context).await?;
    place(&bed, &fixture, &["ledger-id", "paused"]).await?;
    let mut relay = bed.launch_relay()?;
    relay.line_with("paused", LIMIT).await?;
    bed.publish(&event("e1", "C1", json!({"city": "Kochi"}))).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    ensure!(bed.simulator.requests("C1").await?.is_empty(), "it calls while it is paused");
    let (code, out, err) = bed.settings.command(&["resume"], b"").await?;
    ensure!(code == 0, "{out}{err}");
    bed.applied("C1", 1).await?;
    relay::stop(relay).await?;
    bed.finish().await
}

async fn a_file_is_carried_over_to_a_server(context: Context) -> Result<()> {
    let (mut bed, fixture) = with_file(&context).await?;
    place(&bed, &fixture, &RESTING).await?;
    // It brings the file up to date.
    relay::stop(bed.start_relay().await?).await?;
    let url = context.postgres().await?.database().await?;
    let told_before = told(&bed, &["ledger", "show"]).await?;
    let migrated = told(&bed, &["ledger", "migrate", "--to", &url, "--yes"]).await?;
    bed.settings.set("ledger.url", &url);
    let told_now = told(&bed, &["ledger", "show"]).await?;
    for name in ["customers", "pending", "dead_letters"] {
        assert_eq!(told_now[name], told_before[name], "{name}: {migrated}");
    }
    let relay = bed.start_relay().await?;
    for said in fixture.said("customer")? {
        let customer = said["customer"].as_str().context("no name")?;
        if said["is"].is_object() {
            ensure_says(&shown(&bed, customer).await?, &said["is"])?;
        }
    }
    empty(&bed).await?;
    bed.end(relay).await.map(drop)
}
