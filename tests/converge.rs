//! The portal converges: whatever retries, redeliveries, several relays and crashes do to the order
//! of arrival, it ends with the newest value of every field.

use std::time::Duration;

use anyhow::{Result, ensure};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::json;

use crate::harness::{Context, suite};
use crate::support::bed::Bed;
use crate::support::crm::History;
use crate::support::process::Process;
use crate::support::traffic::is_long;
use crate::support::{held, relay, seed};

suite!(
Broker:
    one_relay_with_sqlite_ends_as_in_order_application_does,
    without_the_fence_retries_overwrite_newer_values;
Postgres:
    three_relays_with_postgres_end_as_in_order_application_does,
);

/// Events of a long run, `TEST_LONG=1`; there are as many to a customer in a short one.
const MANY: usize = 20_000;
const FEW: usize = 6_000;
const EVENTS_A_CUSTOMER: usize = 40;
const LIMIT: Duration = Duration::from_mins(4);

fn events() -> usize {
    if is_long() { MANY } else { FEW }
}

/// One call in five fails, and goes to a retry tier at once: what comes later overtakes.
async fn stage(context: &Context) -> Result<Bed> {
    let mut bed = context.bed_with(&["--log-requests", "0"]).await?;
    for (key, value) in [
        ("retry.immediate_retries", "0"),
        ("retry.max_attempts", "200"),
        ("broker.prefetch", "400"),
        (
            "log.filter",
            "warn,customer_relay::cli=info,customer_relay::worker::session=info,lapin=off",
        ),
    ] {
        bed.settings.set(key, value);
    }
    bed.declare().await?;
    let fails = json!({"kind": "status", "code": 503, "envelope": true});
    bed.simulator.fault(json!({"match": {"every": 5}, "fault": fails})).await?;
    Ok(bed)
}

/// Publishes it all, and waits until every event has come to its end.
async fn relay_all(context: &Context, bed: &Bed, history: &History) -> Result<()> {
    bed.queues.publish_events(&bed.exchange(), &history.events).await?;
    held::until_all_ended(bed, context.broker().await?, LIMIT).await
}

async fn assert_converged(bed: &Bed, history: &History, seed: u64) -> Result<()> {
    let wrong = history.wrong_fields(bed).await?;
    let shown = &wrong[..wrong.len().min(5)];
    ensure!(wrong.is_empty(), "TEST_SEED={seed}: {} wrong: {shown:?}", wrong.len());
    ensure!(customers_overlap(bed).await? == 0, "two calls for one customer at once");
    Ok(())
}

/// How often each relay said that fields were withheld, all in all.
fn withheld(output: &str) -> u64 {
    let counts = output.split(" superseded, ").skip(1);
    counts.filter_map(|text| text.split(' ').next()?.parse::<u64>().ok()).sum()
}

async fn customers_overlap(bed: &Bed) -> Result<usize> {
    let customers = bed.simulator.customers().await?;
    let mut overlapping = 0;
    for customer in &customers {
        overlapping += usize::from(customer["max_in_flight"].as_u64() > Some(1));
    }
    Ok(overlapping)
}

async fn end(relays: Vec<Process>) -> Result<String> {
    let mut output = String::new();
    for one in relays {
        output += &relay::stop(one).await?;
    }
    Ok(output)
}

async fn one_relay_with_sqlite_ends_as_in_order_application_does(context: Context) -> Result<()> {
    let seed = seed()?;
    let mut dice = StdRng::seed_from_u64(seed);
    let mut bed = stage(&context).await?;
    bed.settings.set("worker.merge", "false");
    let history = History::draw(bed.prefix(), events(), events() / EVENTS_A_CUSTOMER, &mut dice);
    let relay = bed.start_relay().await?;
    relay_all(&context, &bed, &history).await?;
    assert_converged(&bed, &history, seed).await?;
    let withheld = withheld(&end(vec![relay]).await?);
    println!(
        "SQLite, one relay: {} events, 0 wrong fields; the fence withheld {withheld} older values",
        history.events.len()
    );
    ensure!(withheld > 100, "nothing was put to the test");
    bed.finish().await
}

async fn without_the_fence_retries_overwrite_newer_values(context: Context) -> Result<()> {
    let mut dice = StdRng::seed_from_u64(seed()?);
    let mut bed = stage(&context).await?;
    bed.settings.set("worker.merge", "false").set("ledger.url", "none");
    let history = History::draw(bed.prefix(), FEW, FEW / EVENTS_A_CUSTOMER, &mut dice);
    let relay = bed.start_relay().await?;
    relay_all(&context, &bed, &history).await?;
    let wrong = history.wrong_fields(&bed).await?.len();
    let fields: usize = history.expected.values().map(std::collections::BTreeMap::len).sum();
    println!("no ledger: {wrong} of {fields} fields ended wrong after {FEW} events");
    ensure!(wrong > 0, "the test above proves nothing");
    end(vec![relay]).await?;
    bed.finish().await
}

async fn three_relays_with_postgres_end_as_in_order_application_does(
    context: Context,
) -> Result<()> {
    let seed = seed()?;
    let mut dice = StdRng::seed_from_u64(seed);
    let mut bed = stage(&context).await?;
    let postgres = context.postgres().await?;
    bed.settings.set("ledger.url", &postgres.database().await?).set("broker.prefetch", "150");
    let history = History::draw(bed.prefix(), events(), events() / EVENTS_A_CUSTOMER, &mut dice);
    let mut relays = Vec::new();
    for _ in 0..3 {
        relays.push(bed.start_relay().await?);
    }
    relay_all(&context, &bed, &history).await?;
    assert_converged(&bed, &history, seed).await?;
    let withheld = withheld(&end(relays).await?);
    println!(
        "PostgreSQL, three relays: {} events, 0 wrong fields; the fence withheld {withheld} values, merging included",
        history.events.len()
    );
    ensure!(withheld > 100, "nothing was put to the test");
    bed.finish().await
}
