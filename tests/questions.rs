//! Questions to the ledger at the admin port: whoever asks, however often, and however big the account
//! is, events go on as before.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use customer_relay::domain::dead_letter::Reason;
use customer_relay::domain::letter::Letter;
use customer_relay::ledger::{Note, Store, Target};
use jiff::Timestamp;
use serde_json::Value;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use crate::harness::{Context, suite};
use crate::support::bed::{Bed, LIMIT};
use crate::support::chaos::{ChaosProxy, Fault};
use crate::support::process::Process;
use crate::support::traffic::{all_applied, began, calls, events};
use crate::support::visitors::{GoodClient, admin_port, ask, closed, connect};

suite!(Broker:
    beside_a_crowd_that_asks_and_leaves_events_go_on_with_a_file;
Postgres:
    beside_a_crowd_that_asks_and_leaves_events_go_on_with_a_server,
    while_one_question_is_answered_others_are_told_to_ask_again;
);

const SECOND: Duration = Duration::from_secs(1);
/// Each comes back a second after he is gone.
const VISITORS: u32 = 300;
/// Dead letters of the customer that they ask for.
const LETTERS: u64 = 3000;
const EVENTS: usize = 200;

fn question(entity_id: &str) -> Vec<u8> {
    let body = format!(r#"{{"entity_id":"{entity_id}"}}"#);
    format!(
        "POST /customer/show HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer t\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

async fn start(bed: &mut Bed) -> Result<(Process, SocketAddr)> {
    bed.settings.set("admin.listen", "127.0.0.1:0").set("admin.token", "t");
    let mut relay = bed.launch_relay()?;
    let port = admin_port(&mut relay).await?;
    relay.line_with("\"consuming\"", LIMIT).await?;
    Ok((relay, port))
}

/// Asks and waits for the answer.
async fn answer(port: SocketAddr, entity_id: &str) -> Result<String> {
    let mut stream = connect(port, &question(entity_id)).await?;
    Ok(closed(&mut stream, 10 * SECOND).await?.0)
}

async fn add_letters(target: &Target, entity_id: &str) -> Result<()> {
    let (store, about) = Store::visit(target).await?.context("no ledger")?;
    let key = Some(about.key(entity_id));
    let letter = |number: u64| Letter {
        id: Uuid::from_u128(number.into()),
        event: Some(format!("e{number}")),
        reason: Reason::InvalidEvent,
        detail: Some("a long detail ".repeat(50)),
        field: None,
        rule: None,
        http_status: None,
        portal_status: None,
        attempts: 1,
        died: Some(Timestamp::now()),
        flags: None,
        replays: 0,
        revision: 0,
    };
    let notes = (1..=LETTERS).map(|number| (key, Note::Dead(Box::new(letter(number)))));
    Ok(store.note(notes.collect()).await?)
}

/// Of the relay's process: threads, and the most memory that it had, in KiB.
fn size(relay: &Process) -> Result<(u64, u64)> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", relay.pid()))?;
    let threads = status.lines().find_map(|line| line.strip_prefix("Threads:"));
    Ok((threads.context("no figure")?.trim().parse()?, relay.peak_memory_kib()?))
}

/// Visitors who connect, ask and leave after 2 ms, again and again.
fn crowd(port: SocketAddr) -> Vec<AbortOnDropHandle<()>> {
    let visitor = |number: u32| {
        AbortOnDropHandle::new(tokio::spawn(async move {
            tokio::time::sleep(SECOND * number / VISITORS).await;
            loop {
                // A full port refuses him: he comes back.
                let stream = connect(port, &question("BIG")).await;
                tokio::time::sleep(Duration::from_millis(2)).await;
                drop(stream);
                tokio::time::sleep(SECOND).await;
            }
        }))
    };
    (0..VISITORS).map(visitor).collect()
}

/// An event each for new customers, forty a second; how long the slowest took to its call.
async fn steady_events(bed: &Bed) -> Result<Duration> {
    let mut published = Vec::with_capacity(EVENTS);
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    while published.len() < EVENTS {
        ticks.tick().await;
        let batch = events(bed, "S", published.len()..published.len() + 4);
        published.extend([Timestamp::now().as_millisecond(); 4]);
        bed.queues.publish_events(&bed.exchange(), &batch).await?;
    }
    all_applied(bed, EVENTS, LIMIT).await?;
    let mut slowest = 0;
    for call in calls(bed).await? {
        let customer = call["values"]["entity_id"].as_str().or(call["entity_id"].as_str());
        let number: usize =
            customer.and_then(|id| id.strip_prefix('S')).context("who?")?.parse()?;
        slowest = slowest.max(began(&call) - published[number]);
    }
    Ok(Duration::from_millis(slowest.unsigned_abs()))
}

async fn beside_a_crowd(mut bed: Bed, url: &str) -> Result<()> {
    bed.settings.set("ledger.url", url);
    let (relay, port) = start(&mut bed).await?;
    add_letters(&Target::parse(url)?, "BIG").await?;
    let told = answer(port, "BIG").await?;
    let (_, body) = told.split_once("\r\n\r\n").context("no body")?;
    let known: Value = serde_json::from_str(body)?;
    assert_eq!(known["dead_letters"].as_array().map(Vec::len), Some(1000));
    assert_eq!(known["dead_letters_in_all"], LETTERS);
    let before = size(&relay)?;
    let client = GoodClient::start(port, "/livez");
    let crowd = crowd(port);
    let slowest = steady_events(&bed).await?;
    let during = size(&relay)?;
    drop(crowd);
    let (answers, longest) = client.stop().await?;
    println!(
        "the slowest of {EVENTS} events took {slowest:?}; /livez {answers} times, the slowest in \
         {longest:?}; threads and KiB {before:?}, {during:?} beside the crowd"
    );
    ensure!(slowest < 2 * SECOND, "an event took {slowest:?}");
    ensure!(answers > 20 && longest < 2 * SECOND, "{answers} answers, the slowest in {longest:?}");
    ensure!(during.0 < before.0 + 10, "threads: {before:?}, {during:?}");
    ensure!(during.1 < before.1 + 64 * 1024, "KiB: {before:?}, {during:?}");
    bed.end(relay).await.map(drop)
}

async fn beside_a_crowd_that_asks_and_leaves_events_go_on_with_a_file(
    context: Context,
) -> Result<()> {
    let bed = context.bed().await?;
    let url = format!("sqlite:{}", bed.state().join("ledger.db").display());
    beside_a_crowd(bed, &url).await
}

async fn beside_a_crowd_that_asks_and_leaves_events_go_on_with_a_server(
    context: Context,
) -> Result<()> {
    let url = context.postgres().await?.database().await?;
    beside_a_crowd(context.bed().await?, &url).await
}

async fn while_one_question_is_answered_others_are_told_to_ask_again(
    context: Context,
) -> Result<()> {
    let mut bed = context.bed().await?;
    let url = context.postgres().await?.database().await?;
    let address = url.split('@').nth(1).and_then(|rest| rest.split('/').next());
    let proxy = ChaosProxy::start(address.context("no address")?).await?;
    bed.settings.set("ledger.url", &proxy.through(&url)).set("admin.max_connections", "8");
    let (relay, port) = start(&mut bed).await?;
    proxy.set(Fault::Stall).await;
    let mut first = connect(port, &question("C1")).await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    for _ in 0..10 {
        let begun = Instant::now();
        let said = answer(port, "C1").await?;
        ensure!(said.starts_with("HTTP/1.1 503") && said.contains("retry-after: 1"), "{said}");
        ensure!(said.contains("ask again in a second"), "{said}");
        ensure!(begun.elapsed() < SECOND, "{:?}", begun.elapsed());
    }
    ensure!(ask(port, "/livez").await?.0.ends_with("alive\n"));
    proxy.set(Fault::None).await;
    let (said, _) = closed(&mut first, 15 * SECOND).await?;
    ensure!(said.starts_with("HTTP/1.1 404"), "{said}");
    // The turn is free again, also after one who has left.
    drop(connect(port, &question("C1")).await?);
    tokio::time::sleep(Duration::from_millis(500)).await;
    ensure!(answer(port, "C1").await?.starts_with("HTTP/1.1 404"));
    bed.end(relay).await.map(drop)
}
