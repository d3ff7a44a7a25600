//! An outage is not a failure of messages: while the portal is down, or does not take us, nothing
//! is counted or dead-lettered, and when it is back everything goes on by itself.
//! `TEST_LONG=1` makes the first outage last a minute, with the settings that operators get.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::harness::{Context, suite};
use crate::support::bed::{Bed, LIMIT};
use crate::support::chaos::{ChaosProxy, Fault};
use crate::support::eventually;
use crate::support::process::Process;
use crate::support::queues::Taken;
use crate::support::traffic::{
    OPENED, all_applied, assert_one_outage, began, calls, is_long, lines, publish, publish_for,
    with_default_outage, wrote,
};

suite!(Broker:
    a_failing_portal_costs_no_attempt_and_no_dead_letter,
    a_portal_that_refuses_connections_is_an_outage_and_heals,
    a_portal_that_fails_for_three_customers_is_an_outage_and_heals,
    a_portal_that_hangs_for_three_customers_is_an_outage_and_heals,
    a_portal_that_takes_nobodys_credentials_is_an_outage_and_heals,
    a_portal_that_has_moved_is_an_outage_and_heals,
    a_portal_that_rejects_everybody_is_an_outage_and_heals,
    a_portal_that_wants_no_calls_for_long_is_an_outage_and_heals,
    one_poison_customer_stays_alone,
    one_poison_customer_does_not_slow_the_others,
    a_shutdown_in_an_outage_hands_back_at_once;
ManagedBroker:
    deliveries_in_hand_are_handed_back_when_an_outage_lasts,
);

/// The settings' default.
const IN_FLIGHT: usize = 32;
/// Faults in a row that open the breaker, less one: so many events may count an attempt.
const MOST_COUNTED: usize = 2;

fn failing() -> Value {
    json!({"fault": {"kind": "status", "code": 500}})
}

async fn a_failing_portal_costs_no_attempt_and_no_dead_letter(context: Context) -> Result<()> {
    let mut bed = context.bed_with(&["--log-requests", "100000"]).await?;
    let (lasts, longest_interval) = if is_long() {
        with_default_outage(&mut bed);
        (Duration::from_mins(1), Duration::from_secs(30))
    } else {
        (Duration::from_secs(4), Duration::from_secs(1))
    };
    let relay = bed.start_relay().await?;
    let second = Duration::from_secs(1);
    let mut count = publish_for(&bed, "C", 0, second).await?.len();
    bed.simulator.fault(failing()).await?;
    count += publish_for(&bed, "C", count, lasts).await?.len();
    let refused = bed.simulator.stats().await?["faults"]["status"].as_u64().context("no calls")?;
    let healed_at = Timestamp::now().as_millisecond();
    bed.simulator.heal().await?;
    count += publish_for(&bed, "C", count, second).await?.len();
    all_applied(&bed, count, LIMIT * 3).await?;

    let calls = calls(&bed).await?;
    let first = calls.iter().find(|call| call["applied"] == true && began(call) >= healed_at);
    let took = began(first.context("nothing was applied")?) - healed_at;
    let output = bed.end(relay).await?;
    assert_one_outage(&output, "failing");
    assert!(output.contains(&format!("{count} applied, 0 ignored")), "{output}");
    let counted = lines(&output, "\"verdict\":\"retry\"").len();
    ensure!(counted <= MOST_COUNTED, "{counted} attempts counted");
    let probes = lines(&output, "the probe failed").len();
    // Those under way when it began, and those that took the places of the first to fail.
    let bound = (IN_FLIGHT + MOST_COUNTED) * 3 + probes + 1;
    ensure!(refused <= bound as u64, "{refused} calls in the outage, {probes} of them probes");
    let ramp: Vec<Value> = lines(&output, "calls under way at once, at most")
        .into_iter()
        .map(|line| line["limit"].clone())
        .collect();
    assert_eq!(ramp, [2, 4, 8, 16, 32]);
    let limit = longest_interval + Duration::from_secs(10);
    ensure!(u128::try_from(took)? <= limit.as_millis(), "{took} ms from the heal to a success");
    println!(
        "{count} events, outage of {lasts:?}: {refused} calls in it, {probes} probes failed, \
         {counted} attempts counted, first success {took} ms after the heal"
    );
    Ok(())
}

/// Events of three customers meet the fault: an outage of this kind, until the portal is healed.
async fn opens_and_heals(bed: Bed, fault: Value, kind: &str) -> Result<()> {
    let relay = bed.start_relay().await?;
    bed.simulator.fault(json!({ "fault": fault })).await?;
    publish(&bed, "C", 3).await?;
    wrote(&bed, OPENED, 1, LIMIT).await?;
    bed.simulator.heal().await?;
    heals(bed, relay, kind).await
}

async fn heals(bed: Bed, relay: Process, kind: &str) -> Result<()> {
    all_applied(&bed, 3, LIMIT * 2).await?;
    let output = bed.end(relay).await?;
    assert_one_outage(&output, kind);
    assert!(output.contains(" 0 dead letters"), "{output}");
    Ok(())
}

async fn a_portal_that_refuses_connections_is_an_outage_and_heals(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    let address = bed.simulator.url().trim_start_matches("http://").to_owned();
    let proxy = ChaosProxy::start(address).await?;
    bed.settings.set("portal.base_url", &proxy.through(bed.simulator.url()));
    let relay = bed.start_relay().await?;
    proxy.set(Fault::Refuse).await;
    publish(&bed, "C", 3).await?;
    wrote(&bed, OPENED, 1, LIMIT).await?;
    proxy.set(Fault::None).await;
    heals(bed, relay, "unreachable").await
}

async fn a_portal_that_fails_for_three_customers_is_an_outage_and_heals(
    context: Context,
) -> Result<()> {
    let fault = json!({"kind": "status", "code": 500});
    opens_and_heals(context.bed().await?, fault, "failing").await
}

async fn a_portal_that_hangs_for_three_customers_is_an_outage_and_heals(
    context: Context,
) -> Result<()> {
    let mut bed = context.bed().await?;
    bed.settings.set("portal.timeout", "1s");
    opens_and_heals(bed, json!({"kind": "hang"}), "failing").await
}

async fn a_portal_that_takes_nobodys_credentials_is_an_outage_and_heals(
    context: Context,
) -> Result<()> {
    let fault = json!({"kind": "status", "code": 401});
    opens_and_heals(context.bed().await?, fault, "credentials").await
}

async fn a_portal_that_has_moved_is_an_outage_and_heals(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    let fault = json!({"kind": "redirect", "location": bed.simulator.url()});
    opens_and_heals(bed, fault, "configuration").await
}

async fn a_portal_that_rejects_everybody_is_an_outage_and_heals(context: Context) -> Result<()> {
    let fault = json!({"kind": "body_status", "status": 400});
    opens_and_heals(context.bed().await?, fault, "rejecting-all").await
}

async fn a_portal_that_wants_no_calls_for_long_is_an_outage_and_heals(
    context: Context,
) -> Result<()> {
    const ASKED_MS: i64 = 40_000;
    let bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    let fault = json!({"kind": "status", "code": 429, "retry_after": ASKED_MS / 1000});
    bed.simulator.fault(json!({ "fault": fault })).await?;
    publish(&bed, "C", 3).await?;
    wrote(&bed, OPENED, 1, LIMIT).await?;
    bed.simulator.heal().await?;
    all_applied(&bed, 3, LIMIT * 3).await?;
    let calls = calls(&bed).await?;
    for customer in ["C0", "C1", "C2"] {
        let own = |applied: bool| {
            let is_own =
                move |call: &&Value| call["entity_id"] == customer && call["applied"] == applied;
            calls.iter().filter(is_own).map(began)
        };
        let refused = own(false).next_back().context("no 429")?;
        let applied = own(true).next().context("not applied")?;
        let waited = applied - refused;
        ensure!(waited >= ASKED_MS, "{customer} called again after {waited} ms");
    }
    heals(bed, relay, "throttled").await
}

/// One event of a customer on whom the portal always fails.
async fn publish_poison(bed: &Bed) -> Result<()> {
    let poison =
        json!({"match": {"entity_id": "POISON"}, "fault": {"kind": "status", "code": 500}});
    bed.simulator.fault(poison).await?;
    bed.publish(&bed.event("poison", "POISON", &json!({"city": "Kochi"}))).await
}

async fn one_poison_customer_stays_alone(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    bed.settings.set("retry.max_attempts", "3");
    bed.declare().await?;
    publish_poison(&bed).await?;
    publish(&bed, "C", 1000).await?;
    let relay = bed.start_relay().await?;
    all_applied(&bed, 1000, LIMIT * 2).await?;
    let dead = bed.dead_letter().await?;
    assert_eq!(header(&dead, "reason"), "retries-exhausted");
    assert_eq!(header(&dead, "attempts"), "3");
    assert_eq!(header(&dead, "flags"), "needs-review");
    let output = bed.end(relay).await?;
    assert!(!output.contains("outage"), "{output}");
    let troubled = lines(&output, "\"not applied\"");
    assert!(troubled.iter().all(|line| line["event_id"] == "poison"), "{troubled:?}");
    assert!(output.contains(", 2 to a retry, 0 to wait"), "{output}");
    Ok(())
}

async fn one_poison_customer_does_not_slow_the_others(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    bed.settings.set("retry.max_attempts", "3");
    let relay = bed.start_relay().await?;
    let without = p99_wait(&bed, "A").await?;
    publish_poison(&bed).await?;
    let beside = p99_wait(&bed, "B").await?;
    println!(
        "healthy customers' p99 from publish to call: {without} ms, beside poison {beside} ms"
    );
    ensure!(beside <= without + 1000, "{without} ms before, {beside} ms beside a poison customer");
    bed.dead_letter().await?;
    bed.end(relay).await.map(drop)
}

/// Publishes for 5 s. The 99th percentile of the time from publish to call, in milliseconds.
async fn p99_wait(bed: &Bed, prefix: &str) -> Result<i64> {
    let published = publish_for(bed, prefix, 0, Duration::from_secs(5)).await?;
    let waits = eventually("a call for each event", LIMIT, || async {
        let waits = calls(bed).await?.into_iter().filter_map(|call| {
            let number = call["values"]["entity_id"].as_str()?.strip_prefix(prefix)?;
            Some(began(&call) - published[number.parse::<usize>().ok()?])
        });
        let waits: Vec<i64> = waits.collect();
        Ok((waits.len() >= published.len()).then_some(waits))
    });
    let mut waits = waits.await?;
    waits.sort_unstable();
    Ok(waits[waits.len() * 99 / 100])
}

fn header(taken: &Taken, name: &str) -> String {
    taken.header(&format!("x-relay-{name}")).unwrap_or_default()
}

/// How many of these have counted an attempt.
fn counted(taken: &[Taken]) -> usize {
    taken.iter().filter(|taken| !matches!(header(taken, "attempts").as_str(), "" | "0")).count()
}

async fn put_back(bed: &Bed, taken: Vec<Taken>) -> Result<()> {
    for Taken { body, properties } in taken {
        bed.put_back(properties, &body).await?;
    }
    Ok(())
}

async fn a_shutdown_in_an_outage_hands_back_at_once(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    let mut relay = bed.start_relay().await?;
    bed.simulator.fault(failing()).await?;
    publish(&bed, "C", 30).await?;
    wrote(&bed, OPENED, 1, LIMIT).await?;
    relay.signal("TERM").await?;
    // The grace period is 20 s.
    let status = relay.ended(Duration::from_secs(10)).await?;
    ensure!(status.success(), "ended with {status}");
    let work = bed.queue("work");
    bed.queues.holds(&work, 30, LIMIT).await?;
    let taken = bed.queues.take_all(&work).await?;
    ensure!(counted(&taken) <= MOST_COUNTED, "{} attempts counted", counted(&taken));
    put_back(&bed, taken).await?;
    bed.simulator.heal().await?;
    let relay = bed.start_relay().await?;
    all_applied(&bed, 30, LIMIT).await?;
    bed.end(relay).await.map(drop)
}

const PREFETCH: usize = 20;

async fn deliveries_in_hand_are_handed_back_when_an_outage_lasts(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    let broker = context.broker().await?;
    // A user of its own: connections of other tests stay.
    let user = format!("{}-user", bed.prefix());
    broker.ctl(&["add_user", &user, "secret"]).await?;
    broker.ctl(&["set_permissions", &user, ".*", ".*", ".*"]).await?;
    bed.settings.set("broker.url", &format!("amqp://{user}:secret@{}/%2f", broker.address()));
    bed.settings.set("broker.prefetch", &PREFETCH.to_string()).set("outage.hold", "1s");
    // Long enough for a test to look into.
    for key in ["shortest_delay", "first_delay", "max_delay", "max_uncounted_delay"] {
        bed.settings.set(&format!("retry.{key}"), "8s");
    }
    bed.settings.set("retry.rejected_delay", "8s");
    bed.declare().await?;
    bed.simulator.fault(failing()).await?;
    publish(&bed, "C", PREFETCH * 2).await?;
    let relay = bed.start_relay().await?;
    wrote(&bed, OPENED, 1, LIMIT).await?;
    has_prefetch(&context, &bed, 1).await?;

    let tier = bed.queue("retry.8000ms");
    let mut taken = Vec::new();
    while taken.len() < PREFETCH {
        taken.push(bed.queues.take(&tier, LIMIT).await?);
    }
    ensure!(counted(&taken) <= MOST_COUNTED, "{} attempts counted", counted(&taken));
    put_back(&bed, taken).await?;

    broker.ctl(&["close_all_user_connections", &user, "an operator"]).await?;
    wrote(&bed, "\"connected\"", 2, LIMIT).await?;
    has_prefetch(&context, &bed, 1).await?;
    bed.simulator.heal().await?;
    all_applied(&bed, PREFETCH * 2, LIMIT * 2).await?;
    has_prefetch(&context, &bed, PREFETCH).await?;
    let output = bed.end(relay).await?;
    assert_one_outage(&output, "failing");
    broker.ctl(&["delete_user", &user]).await.map(drop)
}

/// Waits until the broker states that the relay's consumers have this prefetch together.
async fn has_prefetch(context: &Context, bed: &Bed, prefetch: usize) -> Result<()> {
    let (broker, work) = (context.broker().await?, bed.queue("work"));
    eventually(&format!("prefetch {prefetch}"), LIMIT * 2, || async {
        let consumers = broker.ctl(&["list_consumers", "queue_name", "prefetch_count"]).await?;
        let rows = consumers.lines().filter_map(|line| line.split_once(char::is_whitespace));
        let ours = rows.filter(|(queue, _)| *queue == work);
        let sum = ours.map(|(_, count)| Ok(count.trim().parse::<usize>()?)).sum::<Result<usize>>();
        Ok((sum? == prefetch).then_some(()))
    })
    .await
}
