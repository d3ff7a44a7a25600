//! Traffic of many customers, and what a relay's log and the portal's say of it.

use std::time::Duration;

use anyhow::Result;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::bed::Bed;
use super::eventually;

const TICK: Duration = Duration::from_millis(100);
const EVENTS_A_TICK: usize = 20;

/// What relays say when an outage begins.
pub const OPENED: &str = "outage: calls are paused";
/// What they say when it is over.
pub const CLOSED: &str = "outage over";

/// An event each for customers `<prefix>0`, `<prefix>1`, …
pub fn events(bed: &Bed, prefix: &str, numbers: std::ops::Range<usize>) -> Vec<Value> {
    let fields = json!({"city": "Kochi"});
    numbers
        .map(|n| bed.event(&format!("e-{prefix}{n}"), &format!("{prefix}{n}"), &fields))
        .collect()
}

/// Publishes an event each for so many customers.
pub async fn publish(bed: &Bed, prefix: &str, count: usize) -> Result<()> {
    bed.queues.publish_events(&bed.exchange(), &events(bed, prefix, 0..count)).await
}

/// Publishes about 200 events a second for so long, for customers `<prefix><number>`, numbers from
/// `next` on. When each was published, in Unix milliseconds.
pub async fn publish_for(
    bed: &Bed,
    prefix: &str,
    next: usize,
    lasts: Duration,
) -> Result<Vec<i64>> {
    let end = tokio::time::Instant::now() + lasts;
    let mut ticks = tokio::time::interval(TICK);
    let mut published = Vec::new();
    while ticks.tick().await < end {
        let first = next + published.len();
        let batch = events(bed, prefix, first..first + EVENTS_A_TICK);
        published.extend([Timestamp::now().as_millisecond(); EVENTS_A_TICK]);
        bed.queues.publish_events(&bed.exchange(), &batch).await?;
    }
    Ok(published)
}

/// Waits until the portal has applied updates of so many customers: a control call, which sends one
/// again, adds none.
pub async fn all_applied(bed: &Bed, count: usize, limit: Duration) -> Result<()> {
    eventually(&format!("updates of {count} customers"), limit, || async {
        let applied = bed.simulator.stats().await?["customers"].as_u64().unwrap_or(0);
        Ok((applied >= count as u64).then_some(()))
    })
    .await
}

/// All calls of events that the portal has answered, oldest first.
pub async fn calls(bed: &Bed) -> Result<Vec<Value>> {
    let answer = bed.simulator.get("/control/requests?limit=1000000").await?;
    let mut calls = answer["requests"].as_array().cloned().unwrap_or_default();
    calls.retain(|call| call["entity_id"] != super::relay::PROBE);
    calls.sort_by_key(|call| call["unix_ms"].as_i64());
    Ok(calls)
}

/// When a call began, in Unix milliseconds.
pub fn began(call: &Value) -> i64 {
    call["unix_ms"].as_i64().unwrap_or_default()
}

/// The log lines that hold `text`.
pub fn lines(output: &str, text: &str) -> Vec<Value> {
    let lines = output.lines().filter(|line| line.contains(text));
    lines.filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Waits until so many log lines hold `text`; all of them.
pub async fn wrote(bed: &Bed, text: &str, count: usize, limit: Duration) -> Result<Vec<Value>> {
    eventually(&format!("{count} times {text:?} in the log"), limit, || async {
        let lines = lines(&bed.output(), text);
        Ok((lines.len() >= count).then_some(lines))
    })
    .await
}

/// Asserts that there was one outage, of this kind, and that it is over.
pub fn assert_one_outage(output: &str, kind: &str) {
    for text in [OPENED, CLOSED] {
        let kinds: Vec<Value> =
            lines(output, text).into_iter().map(|line| line["kind"].clone()).collect();
        assert_eq!(kinds, [kind], "{text}: {output}");
    }
}

/// Whether long tests are asked for: `TEST_LONG=1`.
pub fn is_long() -> bool {
    std::env::var("TEST_LONG").is_ok_and(|value| value == "1")
}

/// Pauses as operators have them, but three attempts in seconds: what storms with these, storms.
pub fn with_short_timetable(bed: &mut Bed) {
    for (key, value) in [
        ("retry.max_attempts", "3"),
        ("retry.immediate_retries", "0"),
        ("retry.shortest_delay", "1s"),
        ("retry.first_delay", "1s"),
        ("retry.max_delay", "8s"),
        ("retry.max_uncounted_delay", "8s"),
        ("retry.rejected_delay", "1s"),
        ("outage.witness_wait", "10s"),
        ("outage.first_probe", "1s"),
        ("outage.max_probe_interval", "30s"),
    ] {
        bed.settings.set(key, value);
    }
}

/// The settings that operators get, where the bed's own are shorter.
pub fn with_default_outage(bed: &mut Bed) {
    for (key, value) in [
        ("outage.first_probe", "1s"),
        ("outage.max_probe_interval", "30s"),
        ("outage.witness_wait", "10s"),
        ("outage.hold", "2m"),
        ("retry.immediate_first_pause", "200ms"),
    ] {
        bed.settings.set(key, value);
    }
}
