//! After the storm: waits until the queues hold nothing, then collects what became of everything.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use super::events::{Fields, number};
use super::evidence::{Customer, Message};
use super::sky::Sky;
use crate::support::bed::Bed;
use crate::support::broker::Broker;
use crate::support::held;
use crate::support::process::Process;
use crate::support::queues::holds_events;

/// How long the queues may take to empty.
const LIMIT: Duration = Duration::from_secs(90);

/// All queues of the topology that should be empty in the end.
pub async fn queues(bed: &Bed) -> Result<Vec<String>> {
    let (_, shown, _) = bed.settings.command(&["topology", "show", "--json"], b"").await?;
    let topology: Value = serde_json::from_str(&shown)?;
    let queues = topology["queues"].as_array().context("no queues")?;
    let names = queues.iter().filter_map(|queue| queue["name"].as_str().map(str::to_owned));
    Ok(names.filter(|name| *name != bed.queue("dead") && holds_events(name)).collect())
}

/// Returns when no queue holds a message and the relay has ended and left them so, or when time is
/// up.
pub async fn wait(bed: &Bed, broker: &Broker, relay: &mut Process, sky: &Sky) -> Result<()> {
    let end = Instant::now() + LIMIT;
    let (work, tiers) = bed.ways().await?;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let ended = held::until_all_ended(bed, broker, left).await;
        // What it has in hand comes back to a queue, or to its end.
        sky.end(relay, "TERM").await?;
        if let Err(error) = ended {
            sky.says(&format!("{error:#}"));
            return Ok(());
        }
        if held::snapshot(broker, &work, &tiers).await?.is_empty() {
            sky.says("the queues are empty");
            return Ok(());
        }
        *relay = bed.launch_relay()?;
    }
}

/// Takes everything out of a queue.
pub async fn take(bed: &Bed, queue: &str) -> Result<Vec<Message>> {
    let message = |taken: crate::support::queues::Taken| {
        let event: Value = serde_json::from_slice(&taken.body).unwrap_or_default();
        let address = event["data"]["address"].as_str().unwrap_or_default();
        Message {
            queue: queue.to_owned(),
            reason: taken.header("x-relay-reason").unwrap_or_default(),
            event: number(address),
        }
    };
    Ok(bed.queues.take_all(queue).await?.into_iter().map(message).collect())
}

/// Every customer that the portal knows.
pub async fn customers(bed: &Bed) -> Result<Vec<Customer>> {
    let mut all = Vec::new();
    for known in bed.simulator.customers().await? {
        let id = known["fields"]["entity_id"].as_str().context("no id")?;
        let customer = bed.simulator.customer(id).await?;
        let history = customer["history"].as_array().context("no history")?;
        all.push(Customer {
            id: id.to_owned(),
            fields: fields(&customer["fields"]),
            history: history.iter().map(|update| fields(&update["fields"])).collect(),
            applied: number_of(&customer["applied"])?,
            most_at_once: number_of(&customer["max_in_flight"])?,
        });
    }
    Ok(all)
}

fn number_of(value: &Value) -> Result<usize> {
    Ok(usize::try_from(value.as_u64().context("no number")?)?)
}

/// All that are set but the customer's own id.
fn fields(object: &Value) -> Fields {
    let all = object.as_object().into_iter().flatten();
    let set = all.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())));
    set.filter(|(name, _)| name != "entity_id").collect()
}
