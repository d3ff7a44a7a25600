//! The tests' own check for the end of all traffic sees messages that no count of ready messages
//! shows. A test that looked at those alone would call a value wrong that was only late.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::harness::{Context, suite};
use crate::support::bed::{Bed, LIMIT};
use crate::support::broker::Broker;
use crate::support::eventually;
use crate::support::held::{self, Held, Snapshot};
use crate::support::process::Process;

suite!(
ManagedBroker:
    a_message_that_the_relay_has_in_hand_is_seen_and_waited_for,
    a_message_that_a_retry_tier_has_taken_out_is_seen_and_waited_for,
);

/// For this long the queues look empty while a message is held.
const HELD: Duration = Duration::from_secs(1);

/// A relay, and a customer whose city is Kochi.
async fn start(context: &Context) -> Result<(Bed, Process)> {
    let mut bed = context.bed().await?;
    bed.settings.set("retry.immediate_retries", "0");
    let relay = bed.start_relay().await?;
    bed.publish(&bed.event("e1", "C1", &json!({"city": "Kochi"}))).await?;
    bed.applied("C1", 1).await?;
    Ok((bed, relay))
}

async fn city(bed: &Bed) -> Result<String> {
    let customer = bed.simulator.customer("C1").await?;
    Ok(customer["fields"]["city"].as_str().context("no city")?.to_owned())
}

/// No message is ready in any queue, and no call begins, at each of several looks; and yet the
/// newest value is not there.
async fn looks_like_the_end(bed: &Bed) -> Result<()> {
    let (work, tiers) = bed.ways().await?;
    let calls = bed.simulator.stats().await?["calls"].clone();
    for _ in 0..6 {
        for queue in tiers.iter().chain([&work]) {
            ensure!(bed.queues.depth(queue).await? == 0, "{queue} is not empty");
        }
        tokio::time::sleep(HELD / 6).await;
    }
    assert_eq!(bed.simulator.stats().await?["calls"], calls);
    assert_eq!(city(bed).await?, "Kochi");
    Ok(())
}

async fn look(bed: &Bed, broker: &Broker) -> Result<Snapshot> {
    let (work, tiers) = bed.ways().await?;
    held::snapshot(broker, &work, &tiers).await
}

async fn a_message_that_the_relay_has_in_hand_is_seen_and_waited_for(
    context: Context,
) -> Result<()> {
    let broker = context.broker().await?;
    let (bed, relay) = start(&context).await?;
    // Acked, too: applied is a moment earlier.
    held::until_all_ended(&bed, broker, LIMIT).await?;
    relay.signal("STOP").await?;
    bed.publish(&bed.event("e2", "C1", &json!({"city": "Pune"}))).await?;
    bed.queues.holds(&bed.queue("work"), 0, LIMIT).await?;
    looks_like_the_end(&bed).await?;
    let seen = look(&bed, broker).await?;
    assert_eq!(seen.queues[&bed.queue("work")], Held { unacked: 1, ..Held::default() });
    ensure!(!seen.is_empty(), "{seen:?}");
    relay.signal("CONT").await?;
    held::until_all_ended(&bed, broker, LIMIT).await?;
    assert_eq!(city(&bed).await?, "Pune");
    ensure!(look(&bed, broker).await?.is_empty(), "nothing is held any more");
    bed.end(relay).await.map(drop)
}

async fn a_message_that_a_retry_tier_has_taken_out_is_seen_and_waited_for(
    context: Context,
) -> Result<()> {
    let broker = context.broker().await?;
    let (bed, relay) = start(&context).await?;
    let (_, tiers) = bed.ways().await?;
    let held_back = dead_lettering(broker, "suspend", &tiers).await?;
    assert_eq!(held_back, tiers.len(), "each tier has a worker of its own");
    let fails = json!({"kind": "status", "code": 503, "envelope": true});
    bed.simulator.fault(json!({"times": 1, "fault": fails})).await?;
    bed.publish(&bed.event("e2", "C1", &json!({"city": "Pune"}))).await?;
    let leaving = |seen: &Snapshot| seen.queues.values().map(|held| held.leaving).sum::<u64>();
    let seen = eventually("a tier that has taken a message out", LIMIT, || async {
        let seen = look(&bed, broker).await?;
        Ok((leaving(&seen) > 0).then_some(seen))
    })
    .await?;
    looks_like_the_end(&bed).await?;
    ensure!(leaving(&seen) == 1 && !seen.is_empty(), "{seen:?}");
    let early = held::until_all_ended(&bed, broker, HELD).await.expect_err("it is still held");
    ensure!(early.to_string().contains("leaving: 1"), "{early}");
    dead_lettering(broker, "resume", &tiers).await?;
    held::until_all_ended(&bed, broker, LIMIT).await?;
    assert_eq!(city(&bed).await?, "Pune");
    bed.end(relay).await.map(drop)
}

/// Suspends or resumes the broker's processes that carry messages out of these queues; how many
/// there were.
async fn dead_lettering(broker: &Broker, verb: &str, queues: &[String]) -> Result<usize> {
    let names: Vec<String> = queues.iter().map(|name| format!("<<\"{name}\">>")).collect();
    let asked = format!(
        "Queues = [rabbit_misc:r(<<\"/\">>, queue, Name) || Name <- [{}]], \
         length([sys:{verb}(Worker) || \
         {{_, Worker, _, _}} <- supervisor:which_children(rabbit_fifo_dlx_sup), \
         lists:member(element(2, sys:get_state(Worker)), Queues)]).",
        names.join(", ")
    );
    Ok(broker.ctl(&["eval", &asked]).await?.trim().parse()?)
}
