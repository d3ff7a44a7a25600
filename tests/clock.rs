//! Our own clock is wrong, or jumps: healthy events wait at most, people are told within a minute, and
//! it ends by itself. The relay's wall clock is set while it runs; its monotonic clock is not.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};

use crate::harness::{Context, suite};
use crate::support::bed::{Bed, LIMIT, structured};
use crate::support::eventually;
use crate::support::fake_clock::FakeClock;
use crate::support::process::Process;
use crate::support::relay;
use crate::telemetry::{get, serve};

suite!(
    Broker:
    a_relay_that_starts_with_a_clock_behind_keeps_every_event,
    a_relay_that_starts_with_a_clock_ahead_says_so,
    every_jump_of_the_clock_is_told_and_no_event_is_lost,
    an_event_far_ahead_of_a_right_clock_is_still_invalid,
    the_brokers_stamps_show_a_clock_that_is_off,
    a_wait_that_an_early_clock_began_ends_in_time,
    events_without_a_time_keep_their_order_when_the_clock_is_set_back,
    a_call_that_an_early_clock_marked_is_not_waited_for_all_day;
    Postgres:
    one_of_several_relays_with_a_wrong_clock_harms_no_event,
);

const HOUR: i64 = 3600;
const EVENTS: usize = 20;
/// What an operator waits for a line of the log.
const MINUTE: Duration = Duration::from_mins(1);

struct Scene {
    bed: Bed,
    clock: FakeClock,
    sent: usize,
}

impl Scene {
    async fn new(context: &Context) -> Result<Scene> {
        let mut bed = context.bed().await?;
        let clock = FakeClock::new(bed.state(), "clock")?;
        clock.give_to(&mut bed.settings);
        Ok(Scene { bed, clock, sent: 0 })
    }

    async fn serve(&mut self) -> Result<(Process, String)> {
        let (mut relay, port) = serve(&mut self.bed).await?;
        relay.line_with("\"consuming\"", LIMIT).await?;
        Ok((relay, port))
    }

    /// Publishes events of now, each of another customer; those customers.
    async fn publish(&mut self) -> Result<Vec<String>> {
        let first = self.sent;
        self.sent += EVENTS;
        let customers: Vec<String> =
            (first..self.sent).map(|number| format!("C{number}")).collect();
        for customer in &customers {
            let event = self.bed.event(&format!("e-{customer}"), customer, &city("Kochi"));
            self.bed.publish(&event).await?;
        }
        Ok(customers)
    }

    async fn are_applied(&self, customers: &[String]) -> Result<()> {
        for customer in customers {
            self.bed.applied(customer, 1).await?;
        }
        Ok(())
    }

    async fn are_not_called(&self, customers: &[String]) -> Result<()> {
        for customer in customers {
            ensure!(self.bed.simulator.requests(customer).await?.is_empty(), "{customer}");
        }
        Ok(())
    }

    async fn dead(&self) -> Result<u32> {
        self.bed.queues.depth(&self.bed.queue("dead")).await
    }

    async fn end(self, relay: Process) -> Result<String> {
        ensure!(self.dead().await? == 0, "dead letters");
        self.bed.end(relay).await
    }
}

fn city(city: &str) -> Value {
    json!({ "city": city })
}

/// Waits for one more line of these words; how long that took.
async fn is_told(relay: &Process, words: &str, before: usize) -> Result<Duration> {
    let began = Instant::now();
    eventually(&format!("{words:?} in the log"), MINUTE, || async {
        Ok((told(relay, words) > before).then_some(()))
    })
    .await
    .with_context(|| relay.output())?;
    Ok(began.elapsed())
}

fn told(relay: &Process, words: &str) -> usize {
    relay.output().lines().filter(|line| line.contains(words)).count()
}

const RIGHT: &str = "our clock is right again";

fn words(hours: i64, whose: &str) -> String {
    let side = if hours < 0 { "behind" } else { "ahead of" };
    format!("{side} {whose}")
}

/// Waits until the gauge is within two seconds of that.
async fn gauge_reads(port: &str, source: &str, seconds: i64) -> Result<Duration> {
    let began = Instant::now();
    let (name, label) = ("customer_relay_clock_offset_seconds", format!("source=\"{source}\""));
    eventually(&format!("{seconds} s in {name} of {source}"), MINUTE, || async {
        let (_, text) = get(&format!("{port}/metrics")).await?;
        let is_it = |line: &&str| line.starts_with(name) && line.contains(&label);
        let Some(line) = text.lines().find(is_it) else { return Ok(None) };
        let value: f64 = line.split_whitespace().last().context("a value")?.parse()?;
        #[expect(clippy::cast_precision_loss, reason = "some hours")]
        Ok(((value - seconds as f64).abs() <= 3.0).then_some(()))
    })
    .await?;
    Ok(began.elapsed())
}

async fn a_relay_that_starts_with_a_clock_behind_keeps_every_event(context: Context) -> Result<()> {
    for hours in [-2, -26] {
        let mut scene = Scene::new(&context).await?;
        scene.clock.set(hours * HOUR)?;
        let (relay, port) = scene.serve().await?;
        let customers = scene.publish().await?;
        let line = is_told(&relay, &words(hours, "the portal's"), 0).await?;
        let gauge = gauge_reads(&port, "portal", hours * HOUR).await?;
        println!("starts {hours} h off: told after {line:?}, the gauge {gauge:?} later");
        scene.are_not_called(&customers).await?;
        ensure!(scene.dead().await? == 0, "dead letters");
        scene.clock.set(0)?;
        let line = is_told(&relay, RIGHT, 0).await?;
        println!("right again: told after {line:?}");
        gauge_reads(&port, "portal", 0).await?;
        scene.are_applied(&customers).await?;
        let output = scene.end(relay).await?;
        ensure!(output.matches("\"our clock is").count() == 2, "told more than once: {output}");
    }
    Ok(())
}

async fn a_relay_that_starts_with_a_clock_ahead_says_so(context: Context) -> Result<()> {
    for hours in [2, 26] {
        let mut scene = Scene::new(&context).await?;
        scene.clock.set(hours * HOUR)?;
        let (relay, port) = scene.serve().await?;
        let customers = scene.publish().await?;
        scene.are_applied(&customers).await?;
        let line = is_told(&relay, &words(hours, "the portal's"), 0).await?;
        let gauge = gauge_reads(&port, "portal", hours * HOUR).await?;
        println!("starts {hours} h off: told after {line:?}, the gauge {gauge:?} later");
        scene.clock.set(0)?;
        is_told(&relay, RIGHT, 0).await?;
        let customers = scene.publish().await?;
        scene.are_applied(&customers).await?;
        scene.end(relay).await?;
    }
    Ok(())
}

async fn every_jump_of_the_clock_is_told_and_no_event_is_lost(context: Context) -> Result<()> {
    let mut scene = Scene::new(&context).await?;
    let (relay, port) = scene.serve().await?;
    let customers = scene.publish().await?;
    scene.are_applied(&customers).await?;
    let mut waiting = Vec::new();
    for hours in [-2, 26, -26, 2] {
        let words = words(hours, "the portal's");
        let before = told(&relay, &words);
        scene.clock.set(hours * HOUR)?;
        let customers = scene.publish().await?;
        let line = is_told(&relay, &words, before).await?;
        let gauge = gauge_reads(&port, "portal", hours * HOUR).await?;
        println!("jump to {hours} h: told after {line:?}, the gauge {gauge:?} later");
        if hours < 0 {
            scene.are_not_called(&customers).await?;
            waiting.extend(customers);
        } else {
            waiting.extend(customers);
            scene.are_applied(&waiting).await?;
        }
        ensure!(scene.dead().await? == 0, "dead letters");
    }
    scene.clock.set(0)?;
    is_told(&relay, RIGHT, 0).await?;
    gauge_reads(&port, "portal", 0).await?;
    scene.are_applied(&waiting).await?;
    let customers = scene.publish().await?;
    scene.are_applied(&customers).await?;
    scene.end(relay).await.map(drop)
}

/// No call has been made, so no clock is known: the relay asks for one.
async fn an_event_far_ahead_of_a_right_clock_is_still_invalid(context: Context) -> Result<()> {
    let mut scene = Scene::new(&context).await?;
    let (relay, _) = scene.serve().await?;
    let mut event = scene.bed.event("e1", "C1", &city("Kochi"));
    let time = jiff::Timestamp::now() + Duration::from_hours(25);
    event["time"] = json!(time.to_string());
    scene.bed.publish(&event).await?;
    let dead = scene.bed.dead_letter().await?;
    assert_eq!(dead.header("x-relay-rule").as_deref(), Some("future"));
    assert_eq!(dead.header("x-relay-attempts").as_deref(), Some("0"));
    scene.end(relay).await.map(drop)
}

async fn the_brokers_stamps_show_a_clock_that_is_off(context: Context) -> Result<()> {
    let mut scene = Scene::new(&context).await?;
    scene.clock.set(2 * HOUR)?;
    let (relay, port) = scene.serve().await?;
    // They count once the relay has seen that nothing waits in the work queue.
    for number in 0..20 {
        let event = scene.bed.event(&format!("e{number}"), &format!("C{number}"), &city("Kochi"));
        let now = jiff::Timestamp::now().as_millisecond();
        let mut headers = FieldTable::default();
        headers.insert("timestamp_in_ms".into(), AMQPValue::LongLongInt(now));
        let properties = structured().with_headers(headers);
        scene.bed.publish_as(properties, event.to_string().as_bytes()).await?;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    gauge_reads(&port, "broker", 2 * HOUR).await?;
    scene.clock.set(0)?;
    gauge_reads(&port, "broker", 0).await?;
    scene.end(relay).await.map(drop)
}

/// A not-before of a clock that is ahead lies a day ahead of the right one.
async fn a_wait_that_an_early_clock_began_ends_in_time(context: Context) -> Result<()> {
    let mut scene = Scene::new(&context).await?;
    scene.bed.settings.set("retry.shortest_delay", "800ms").set("retry.first_delay", "800ms");
    scene.bed.settings.set("retry.max_delay", "3200ms").set("retry.max_uncounted_delay", "800ms");
    scene.clock.set(26 * HOUR)?;
    let (relay, _) = scene.serve().await?;
    let fault = json!({"kind": "status", "code": 503, "retry_after": 3});
    let rule = json!({"match": {"entity_id": "C1"}, "times": 1, "fault": fault});
    scene.bed.simulator.fault(rule).await?;
    scene.bed.publish(&scene.bed.event("e1", "C1", &city("Kochi"))).await?;
    scene.bed.queues.holds(&scene.bed.queue("retry.3200ms"), 1, LIMIT).await?;
    scene.clock.set(0)?;
    let began = Instant::now();
    scene.bed.applied("C1", 1).await?;
    println!("applied {:?} after the clock was set back", began.elapsed());
    scene.end(relay).await.map(drop)
}

async fn events_without_a_time_keep_their_order_when_the_clock_is_set_back(
    context: Context,
) -> Result<()> {
    let mut scene = Scene::new(&context).await?;
    scene.bed.settings.set("order.missing", "arrival");
    scene.clock.set(2 * HOUR)?;
    let (relay, _) = scene.serve().await?;
    put(&scene.bed, "e1", "Kochi").await?;
    scene.bed.applied("C1", 1).await?;
    scene.clock.set(0)?;
    put(&scene.bed, "e2", "Delhi").await?;
    scene.bed.applied("C1", 2).await?;
    relay::stop(relay).await?;
    scene.clock.set(-26 * HOUR)?;
    let (relay, _) = scene.serve().await?;
    put(&scene.bed, "e3", "Madurai").await?;
    let customer = scene.bed.applied("C1", 3).await?;
    assert_eq!(customer["fields"]["city"], "Madurai");
    let output = scene.end(relay).await?;
    ensure!(!output.contains("\"superseded\""), "{output}");
    Ok(())
}

/// An event without a time, and a message without a timestamp.
async fn put(bed: &Bed, id: &str, name: &str) -> Result<()> {
    let mut event = bed.event(id, "C1", &city(name));
    event.as_object_mut().context("an object")?.remove("time");
    let properties = BasicProperties::default()
        .with_content_type("application/cloudevents+json".into())
        .with_delivery_mode(2);
    let body = event.to_string();
    bed.queues.publish(&bed.exchange(), "customer.updated", properties, body.as_bytes()).await
}

/// What is applied while a call may be under way is sent once more: soon after, not a day later.
async fn a_call_that_an_early_clock_marked_is_not_waited_for_all_day(
    context: Context,
) -> Result<()> {
    let mut scene = Scene::new(&context).await?;
    scene.bed.settings.set("portal.timeout", "300ms").set("portal.settle_after", "600ms");
    scene.clock.set(26 * HOUR)?;
    let (relay, _) = scene.serve().await?;
    let rule = json!({"match": {"entity_id": "C1"}, "times": 1, "fault": {"kind": "hang"}});
    scene.bed.simulator.fault(rule).await?;
    scene.bed.publish(&scene.bed.event("e1", "C1", &city("Kochi"))).await?;
    scene.bed.publish(&scene.bed.event("e2", "C2", &city("Kochi"))).await?;
    scene.bed.applied("C2", 1).await?;
    eventually("a timeout", LIMIT, || async {
        Ok(relay.output().contains("timed-out").then_some(()))
    })
    .await?;
    scene.clock.set(0)?;
    scene.bed.publish(&scene.bed.event("e3", "C1", &city("Delhi"))).await?;
    scene.bed.applied("C1", 1).await?;
    scene.end(relay).await.map(drop)
}

async fn one_of_several_relays_with_a_wrong_clock_harms_no_event(context: Context) -> Result<()> {
    for hours in [-26, 26] {
        let mut scene = Scene::new(&context).await?;
        let url = context.postgres().await?.database().await?;
        scene.bed.settings.set("ledger.url", &url);
        let (right, _) = scene.serve().await?;
        let other = FakeClock::new(scene.bed.state(), "other-clock")?;
        other.give_to(&mut scene.bed.settings);
        other.set(hours * HOUR)?;
        let (wrong, port) = scene.serve().await?;
        let customers = scene.publish().await?;
        let line = is_told(&wrong, &words(hours, "the "), 0).await?;
        let gauge = gauge_reads(&port, "database", hours * HOUR).await?;
        println!("one of two {hours} h off: told after {line:?}, the gauge {gauge:?} later");
        scene.are_applied(&customers).await?;
        other.set(0)?;
        is_told(&wrong, RIGHT, 0).await?;
        ensure!(told(&right, "our clock") == 0, "the other one is right");
        relay::stop(right).await?;
        scene.end(wrong).await?;
    }
    Ok(())
}
