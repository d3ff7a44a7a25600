//! What is in hand when a session or the process ends counts as delivered once more, and at the delivery
//! limit the broker makes dead letters of it: so little is in hand while something is wrong, and never
//! more than is said.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::broker_faults::proxied;
use crate::harness::{Context, suite};
use crate::support::bed::{Bed, LIMIT};
use crate::support::chaos::{ChaosProxy, Fault};
use crate::support::eventually;
use crate::support::held;
use crate::support::raw_publisher::{publish_filled, publish_with_all, publish_with_id};
use crate::support::traffic::{OPENED, all_applied, publish, wrote};
use crate::telemetry::{get, serve};

suite!(Broker:
    a_message_that_cannot_be_read_costs_the_others_nothing,
    what_is_no_text_is_a_dead_letter_that_every_command_reads,
    what_the_broker_makes_larger_than_a_frame_is_read,
    a_crash_loop_condemns_no_crowd,
    what_ends_every_relay_is_given_up,
    never_more_is_in_hand_than_the_prefetch_and_the_calls,
    a_relay_has_one_consumer_again_when_little_is_in_hand;
);

/// `müller` in Latin-1, which the broker takes and no text is.
const NO_TEXT: &[u8] = b"m\xfcller";

async fn a_message_that_cannot_be_read_costs_the_others_nothing(context: Context) -> Result<()> {
    let mut bed = context.bed_with(&["--latency", "500ms"]).await?;
    bed.settings.set("worker.in_flight", "4");
    bed.declare().await?;
    publish(&bed, "BEFORE", 30).await?;
    let event = bed.event("unreadable", "UNREADABLE", &json!({"city": "Kochi"})).to_string();
    let to = (&*bed.exchange(), "customer.updated");
    publish_with_id(bed.broker_url(), to, NO_TEXT, event.as_bytes()).await?;
    publish(&bed, "AFTER", 60).await?;
    let relay = bed.start_relay().await?;
    // Its body says its id: what stands beside it is nobody's business.
    all_applied(&bed, 91, LIMIT * 4).await?;
    let output = bed.end(relay).await?;
    ensure!(!output.contains("is over; a new one follows"), "{output}");
    Ok(())
}

/// Of what the relay made a dead letter, and of what lies in the dead-letter queue unread.
async fn what_is_no_text_is_a_dead_letter_that_every_command_reads(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    let (dead, exchange) = (bed.queue("dead"), bed.exchange());
    let mut relay = bed.start_relay().await?;
    relay.line_with("\"consuming\"", LIMIT).await?;
    let url = bed.broker_url();
    let event = bed.event("e", "C1", &json!({"city": "Kochi"}));
    publish_with_all(url, (&exchange, "customer.updated"), NO_TEXT, b"no event").await?;
    let data = event["data"].to_string();
    publish_with_all(url, (&exchange, "customer.updated"), NO_TEXT, data.as_bytes()).await?;
    for id in ["e1", "e2"] {
        let event = bed.event(id, "C2", &json!({"city": "Kochi"})).to_string();
        publish_with_all(url, ("", &dead), NO_TEXT, event.as_bytes()).await?;
    }
    bed.publish(&event).await?;
    bed.applied("C1", 1).await?;
    eventually("four dead letters", LIMIT, || async {
        Ok((bed.queues.depth(&dead).await? == 4).then_some(()))
    })
    .await?;
    let file = bed.state().join("exported.jsonl").to_string_lossy().into_owned();
    for (args, told) in [
        (&["dead", "reindex", "--json"][..], "\"indexed\": 4"),
        (&["dead", "list", "--json"], "m\\\\u{1a}ller"),
        (&["dead", "list"], "unsupported-type"),
        (&["dead", "groups"], "foreign"),
        (&["dead", "replay", "--all", "--dry-run"], ""),
        (&["dead", "archive", "--reason", "foreign", "--yes", "--why", "a test"], ""),
        (&["dead", "restore", "--all", "--yes"], ""),
        (&["dead", "export", "--all", "--to", &file], ""),
        (&["customer", "forget", "C9", "--yes"], ""),
        (&["check"], ""),
        (&["dead", "purge", "--all", "--yes", "--why", "a test"], ""),
        (&["dead", "import", &file, "--yes"], ""),
        (&["dead", "replay", "--reason", "foreign", "--yes", "--wait", "--no-canary"], ""),
        (&["dead", "purge", "--all", "--yes", "--why", "a test"], ""),
    ] {
        let (code, out, err) = bed.settings.command(args, b"").await?;
        ensure!(code == 0 && out.contains(told), "{args:?}: exit {code}: {out}{err}");
        ensure!(!format!("{out}{err}").contains('\u{1a}'), "{args:?}: {out}{err}");
    }
    bed.queues.holds(&dead, 0, LIMIT).await?;
    let output = bed.end(relay).await?;
    ensure!(!output.contains("is over; a new one follows"), "{output}");
    Ok(())
}

/// It adds what it counts to the headers of a message that comes again, or that it gives up.
async fn what_the_broker_makes_larger_than_a_frame_is_read(context: Context) -> Result<()> {
    let bed = context.bed_with(&["--latency", "2s"]).await?;
    bed.declare().await?;
    let event = bed.event("e", "C1", &json!({"city": "Kochi"})).to_string();
    publish_filled(bed.broker_url(), (&bed.exchange(), "customer.updated"), event.as_bytes())
        .await?;
    for _ in 0..2 {
        let relay = bed.start_relay().await?;
        eventually("a call under way", LIMIT, || async {
            Ok((bed.simulator.stats().await?["in_flight"] == 1).then_some(()))
        })
        .await?;
        relay.kill().await?;
    }
    let relay = bed.start_relay().await?;
    all_applied(&bed, 1, LIMIT).await?;
    bed.queues.holds(&bed.queue("work"), 0, LIMIT).await?;
    let output = bed.end(relay).await?;
    ensure!(output.contains("larger than a frame may be"), "{output}");
    ensure!(!output.contains("is over; a new one follows"), "{output}");
    Ok(())
}

async fn a_crash_loop_condemns_no_crowd(context: Context) -> Result<()> {
    const EVENTS: usize = 60;
    // The broker's delivery limit forgives 20.
    const KILLS: usize = 50;
    let bed = context.bed_with(&["--latency", "5s"]).await?;
    bed.declare().await?;
    publish(&bed, "C", EVENTS).await?;
    for _ in 0..KILLS {
        let before = bed.simulator.stats().await?["calls"].as_u64();
        let relay = bed.start_relay().await?;
        eventually("a call under way", LIMIT, || async {
            Ok((bed.simulator.stats().await?["calls"].as_u64() > before).then_some(()))
        })
        .await?;
        relay.kill().await?;
    }
    let dead = bed.queue("dead");
    let condemned = bed.queues.depth(&dead).await?;
    println!("{KILLS} quick kills: {condemned} of {EVENTS} are dead letters by the delivery limit");
    ensure!(condemned == 0, "{condemned} of {EVENTS} events are dead letters");
    let relay = bed.start_relay().await?;
    all_applied(&bed, EVENTS, LIMIT * 2).await?;
    bed.end(relay).await.map(drop)
}

/// What ends every relay that has it in hand is a dead letter in the end, with a reason.
async fn what_ends_every_relay_is_given_up(context: Context) -> Result<()> {
    const MAX_KILLS: usize = 30;
    let bed = context.bed_with(&["--latency", "5s"]).await?;
    bed.declare().await?;
    publish(&bed, "C", 1).await?;
    let (work, dead) = (bed.queue("work"), bed.queue("dead"));
    let mut kills = 0;
    while bed.queues.depth(&dead).await? == 0 {
        ensure!(kills < MAX_KILLS, "after {kills} kills it is no dead letter");
        let before = bed.simulator.stats().await?["calls"].as_u64();
        let mut relay = bed.start_relay().await?;
        let is_over = eventually("a call, or the end", LIMIT * 2, || async {
            let is_called = bed.simulator.stats().await?["calls"].as_u64() > before;
            let is_over = bed.queues.depth(&dead).await? == 1;
            Ok((is_called || is_over).then_some(is_over))
        })
        .await?;
        if is_over {
            // Killed before its ack, it would make a second one.
            relay.signal("TERM").await?;
            relay.ended(LIMIT).await?;
            break;
        }
        relay.kill().await?;
        kills += 1;
    }
    println!("given up after {kills} kills");
    bed.queues.holds(&work, 0, LIMIT).await?;
    let letters = bed.queues.take_all(&dead).await?;
    let headers = format!("{:?}", letters[0].headers());
    ensure!(headers.contains("delivery-limit") && headers.contains("needs-review"), "{headers}");
    let relay = bed.start_relay().await?;
    bed.end(relay).await.map(drop)
}

async fn in_hand(port: &str) -> Result<u64> {
    let (_, text) = get(&format!("{port}/metrics")).await?;
    let line =
        text.lines().find_map(|line| line.strip_prefix("customer_relay_deliveries_in_hand "));
    Ok(line.context("no such gauge")?.parse()?)
}

async fn order(bed: &Bed, verb: &str) -> Result<()> {
    let (code, out, err) = bed.settings.command(&[verb], b"").await?;
    ensure!(code == 0, "{verb}: {out}{err}");
    Ok(())
}

/// What makes the relay take less, or begin anew, and then all again.
#[derive(Clone, Copy, Debug)]
enum Cause {
    Pause,
    Outage,
    Ledger,
    Connection,
}

/// One round of it; `consuming`: so often it began to consume before.
async fn bring_about(bed: &Bed, proxy: &ChaosProxy, cause: Cause, consuming: usize) -> Result<()> {
    match cause {
        Cause::Pause => {
            let paused = bed.output().matches(PAUSED).count();
            order(bed, "pause").await?;
            wrote(bed, PAUSED, paused + 1, LIMIT * 2).await?;
            order(bed, "resume").await?;
        }
        Cause::Outage => {
            let opened = bed.output().matches(OPENED).count();
            bed.simulator.fault(json!({"fault": {"kind": "status", "code": 503}})).await?;
            wrote(bed, OPENED, opened + 1, LIMIT * 2).await?;
            bed.simulator.heal().await?;
        }
        Cause::Ledger => {
            let other = rusqlite::Connection::open(bed.state().join("ledger.db"))?;
            other.execute_batch("BEGIN IMMEDIATE")?;
            let paused = bed.output().matches(PAUSED).count();
            wrote(bed, PAUSED, paused + 1, LIMIT * 2).await?;
            drop(other);
        }
        Cause::Connection => {
            proxy.set(Fault::Reset).await;
            proxy.set(Fault::None).await;
        }
    }
    wrote(bed, CONSUMING, consuming + 1, LIMIT * 2).await.map(drop)
}

/// The most that was in hand meanwhile.
async fn most_in_hand(port: &str, meanwhile: impl Future<Output = Result<()>>) -> Result<u64> {
    let mut meanwhile = std::pin::pin!(meanwhile);
    let mut most = 0;
    loop {
        tokio::select! {
            ended = &mut meanwhile => return ended.map(|()| most),
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
        }
        most = in_hand(port).await?.max(most);
    }
}

const PAUSED: &str = "not consuming";
/// All that may be asked for; in an outage it is one.
const CONSUMING: &str = "\"prefetch\":20,";

async fn never_more_is_in_hand_than_the_prefetch_and_the_calls(context: Context) -> Result<()> {
    const MOST: u64 = 20 + 4;
    const EVENTS: usize = 200;
    let mut bed = context.bed_with(&["--latency", "1s"]).await?;
    bed.settings.set("broker.prefetch", "20").set("worker.in_flight", "4");
    bed.settings.set("retry.max_attempts", "20");
    let proxy = proxied(&context, &mut bed).await?;
    let (mut relay, port) = serve(&mut bed).await?;
    relay.line_with(CONSUMING, LIMIT).await?;
    publish(&bed, "C", EVENTS).await?;
    let causes = async {
        for cause in [Cause::Pause, Cause::Outage, Cause::Ledger, Cause::Connection] {
            for _ in 0..2 {
                let consuming = bed.output().matches(CONSUMING).count();
                let ended = bring_about(&bed, &proxy, cause, consuming).await;
                ended.with_context(|| format!("{cause:?}"))?;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
        Ok(())
    };
    let greatest = most_in_hand(&port, causes).await?;
    println!("two of each cause: at most {greatest} in hand, {MOST} allowed");
    ensure!((20..=MOST).contains(&greatest), "{greatest} in hand");
    all_applied(&bed, EVENTS, LIMIT * 6).await?;
    // What was applied as its connection was lost comes again.
    let (work, tiers) = bed.ways().await?;
    eventually("nothing in hand", LIMIT * 4, || async {
        let is_empty = held::ready(&bed, &work, &tiers).await? == 0;
        Ok((is_empty && in_hand(&port).await? == 0).then_some(()))
    })
    .await?;
    bed.end(relay).await.map(drop)
}

/// What is in hand of several comes back by consumer after a crash, not in its order.
async fn a_relay_has_one_consumer_again_when_little_is_in_hand(context: Context) -> Result<()> {
    let mut bed = context.bed_with(&["--latency", "400ms"]).await?;
    bed.settings.set("broker.prefetch", "40").set("worker.in_flight", "8");
    bed.declare().await?;
    publish(&bed, "C", 120).await?;
    let relay = bed.start_relay().await?;
    all_applied(&bed, 8, LIMIT).await?;
    order(&bed, "pause").await?;
    wrote(&bed, PAUSED, 1, LIMIT).await?;
    order(&bed, "resume").await?;
    let work = bed.queue("work");
    eventually("several consumers", LIMIT, || async {
        Ok((bed.queues.consumers(&work).await? > 1).then_some(()))
    })
    .await?;
    all_applied(&bed, 120, LIMIT).await?;
    eventually("one consumer", LIMIT, || async {
        Ok((bed.queues.consumers(&work).await? == 1).then_some(()))
    })
    .await?;
    publish(&bed, "D", 60).await?;
    all_applied(&bed, 180, LIMIT).await?;
    assert_eq!(bed.queues.consumers(&work).await?, 1);
    bed.end(relay).await.map(drop)
}
