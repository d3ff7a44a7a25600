//! What happens between the relay and its broker never costs a message, and explains itself.

use std::time::Duration;

use anyhow::{Result, ensure};
use lapin::options::QueueDeleteOptions;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::{Context, suite};
use crate::support::bed::{Bed, LIMIT};
use crate::support::chaos::{ChaosProxy, Fault};
use crate::support::eventually;
use crate::support::process::{Process, wrote_all};
use crate::support::traffic::wrote;

suite!(OwnBroker:
    a_channel_closed_by_the_broker_is_made_anew,
    a_memory_alarm_holds_retries_back_and_loses_nothing_even_to_kill_9;
Broker:
    a_silent_broker_is_given_up_after_two_heartbeats,
    a_connection_lost_during_a_call_loses_nothing,
    a_connection_lost_before_the_ack_costs_no_second_call,
    nothing_is_acked_while_a_retry_cannot_be_published,
    a_retry_whose_confirm_does_not_come_is_not_acked,
    a_broker_that_is_not_there_yet_is_waited_for_and_named,
    the_next_address_is_tried_when_one_does_not_answer,
    a_retry_queue_that_was_deleted_is_repaired_and_nothing_is_lost,
    a_work_queue_that_was_deleted_is_declared_anew_and_consumed;
ManagedBroker:
    connections_closed_by_an_operator_are_made_anew;
NoBroker:
    the_tests_own_link_breaks_however_short_the_break,
);

fn city() -> Value {
    json!({"city": "Kochi"})
}

/// Leads the relay's connections through a proxy.
pub async fn proxied(context: &Context, bed: &mut Bed) -> Result<ChaosProxy> {
    let broker = context.broker().await?;
    let proxy = ChaosProxy::start(broker.address()).await?;
    bed.settings.set("broker.url", &proxy.through(&broker.url()));
    bed.settings.set("broker.operation_timeout", "1s").set("retry.immediate_retries", "0");
    Ok(proxy)
}

/// A relay with one call under way that is going to fail.
async fn with_a_failing_call(bed: &Bed) -> Result<()> {
    bed.simulator.fault(json!({"times": 1, "fault": {"kind": "status", "code": 503}})).await?;
    bed.publish(&bed.event("e1", "C1", &city())).await?;
    eventually("the call", LIMIT, || async {
        Ok((bed.simulator.stats().await?["in_flight"] == 1).then_some(()))
    })
    .await?;
    // As the first delivery comes, the session asks for more: that is through by then.
    tokio::time::sleep(Duration::from_millis(150)).await;
    Ok(())
}

async fn nothing_is_acked_while_a_retry_cannot_be_published(context: Context) -> Result<()> {
    let mut bed = context.bed_with(&["--latency", "500ms"]).await?;
    let proxy = proxied(&context, &mut bed).await?;
    let relay = bed.start_relay().await?;
    with_a_failing_call(&bed).await?;
    proxy.set(Fault::Refuse).await;
    bed.queues.holds(&bed.queue("work"), 1, LIMIT).await?;
    eventually("the failed call", LIMIT, || async {
        Ok((bed.simulator.requests("C1").await?.len() == 1).then_some(()))
    })
    .await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(bed.queues.depth(&bed.queue("work")).await?, 1, "still the broker's");
    proxy.set(Fault::None).await;
    bed.applied("C1", 1).await?;

    let output = bed.end(relay).await?;
    assert!(output.contains("1 left to redelivery"), "{output}");

    Ok(())
}

async fn a_retry_whose_confirm_does_not_come_is_not_acked(context: Context) -> Result<()> {
    let mut bed = context.bed_with(&["--latency", "500ms"]).await?;
    let proxy = proxied(&context, &mut bed).await?;
    let relay = bed.start_relay().await?;
    with_a_failing_call(&bed).await?;
    proxy.set(Fault::Stall).await;
    wrote_all(&relay, &["not published yet; the delivery is kept unacked"], LIMIT).await?;
    for queue in ["work", "retry.100ms", "retry.150ms", "retry.200ms", "dead"] {
        assert_eq!(bed.queues.depth(&bed.queue(queue)).await?, 0, "{queue}");
    }
    assert_eq!(bed.simulator.requests("C1").await?.len(), 1);
    proxy.set(Fault::None).await;
    bed.applied("C1", 1).await?;
    // A publish that the stall held up may have come through late: a double, no loss.
    tokio::time::sleep(Duration::from_millis(700)).await;
    bed.end(relay).await.map(drop)
}

async fn a_silent_broker_is_given_up_after_two_heartbeats(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    let proxy = proxied(&context, &mut bed).await?;
    bed.settings.set("broker.heartbeat", "1s");
    let relay = bed.start_relay().await?;
    proxy.set(Fault::Stall).await;
    let stalled = std::time::Instant::now();
    wrote_all(&relay, &["the session with the broker is over"], Duration::from_secs(8)).await?;
    ensure!(stalled.elapsed() >= Duration::from_secs(1), "after {:?}", stalled.elapsed());
    proxy.set(Fault::None).await;
    bed.publish(&bed.event("e1", "C1", &city())).await?;
    bed.applied("C1", 1).await?;
    bed.end(relay).await.map(drop)
}

async fn a_broker_that_is_not_there_yet_is_waited_for_and_named(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    bed.declare().await?;
    let proxy = proxied(&context, &mut bed).await?;
    proxy.set(Fault::Refuse).await;
    bed.publish(&bed.event("e1", "C1", &city())).await?;
    let mut relay = bed.launch_relay()?;
    let line = relay.line_with("cannot reach the broker", LIMIT).await?;
    let address = proxy.addr().to_string();
    assert!(line.contains(&address) && line.contains("is it running"), "{line}");
    eventually("a second try", LIMIT, || async {
        Ok((relay.output().matches("cannot reach the broker").count() > 1).then_some(()))
    })
    .await?;
    proxy.set(Fault::None).await;
    bed.applied("C1", 1).await?;
    let output = bed.end(relay).await?;
    assert!(!output.contains("guest:guest"), "a password in the output");
    Ok(())
}

async fn the_next_address_is_tried_when_one_does_not_answer(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    let url = context.broker().await?.url();
    bed.settings.set("broker.url", &format!("amqp://guest:guest@127.0.0.1:1/%2f, {url}"));
    let relay = bed.start_relay().await?;
    bed.simulator.fault(json!({"times": 3, "fault": {"kind": "status", "code": 503}})).await?;
    bed.publish(&bed.event("e1", "C1", &city())).await?;
    bed.applied("C1", 1).await?;
    bed.end(relay).await.map(drop)
}

async fn a_retry_queue_that_was_deleted_is_repaired_and_nothing_is_lost(
    context: Context,
) -> Result<()> {
    let mut bed = context.bed().await?;
    bed.settings.set("retry.immediate_retries", "0");
    let relay = bed.start_relay().await?;
    let channel = bed.queues.new_channel().await?;
    let tiers = ["100", "150", "200", "300", "400"].map(|ms| bed.queue(&format!("retry.{ms}ms")));
    for tier in &tiers {
        channel.queue_delete(tier.as_str().into(), QueueDeleteOptions::default()).await?;
    }
    bed.simulator.fault(json!({"times": 1, "fault": {"kind": "status", "code": 503}})).await?;
    bed.publish(&bed.event("e1", "C1", &city())).await?;
    bed.applied("C1", 1).await?;
    for tier in &tiers {
        bed.queues.depth(tier).await?;
    }
    let output = bed.end(relay).await?;
    assert!(output.contains("it was returned"), "{output}");
    assert!(output.contains("1 applied, 0 ignored, 1 to a retry"), "{output}");
    Ok(())
}

async fn a_work_queue_that_was_deleted_is_declared_anew_and_consumed(
    context: Context,
) -> Result<()> {
    let bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    let channel = bed.queues.new_channel().await?;
    let work = bed.queue("work");
    channel.queue_delete(work.as_str().into(), QueueDeleteOptions::default()).await?;
    eventually("the relay to consume again", LIMIT, || async {
        Ok((relay.output().matches("\"message\":\"consuming\"").count() == 2).then_some(()))
    })
    .await?;
    bed.publish(&bed.event("e1", "C1", &city())).await?;
    bed.applied("C1", 1).await?;
    let output = bed.end(relay).await?;
    assert!(output.contains("was the queue deleted?"), "{output}");
    Ok(())
}

async fn connections_closed_by_an_operator_are_made_anew(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    let broker = context.broker().await?;
    bed.settings.set("retry.immediate_retries", "0");
    // A user of its own: connections of other tests stay.
    let user = format!("{}-user", bed.prefix());
    broker.ctl(&["add_user", &user, "secret"]).await?;
    broker.ctl(&["set_permissions", &user, ".*", ".*", ".*"]).await?;
    bed.settings.set("broker.url", &format!("amqp://{user}:secret@{}/%2f", broker.address()));
    let relay = bed.start_relay().await?;
    bed.simulator.fault(json!({"times": 1, "fault": {"kind": "status", "code": 503}})).await?;
    bed.publish(&bed.event("e1", "C1", &city())).await?;
    bed.applied("C1", 1).await?;
    broker.ctl(&["close_all_user_connections", &user, "an operator"]).await?;
    eventually("the relay to consume again", LIMIT, || async {
        Ok((relay.output().matches("\"message\":\"consuming\"").count() == 2).then_some(()))
    })
    .await?;
    bed.simulator.fault(json!({"times": 1, "fault": {"kind": "status", "code": 503}})).await?;
    bed.publish(&bed.event("e2", "C1", &city())).await?;
    bed.applied("C1", 2).await?;
    bed.end(relay).await?;
    broker.ctl(&["delete_user", &user]).await.map(drop)
}

async fn a_memory_alarm_holds_retries_back_and_loses_nothing_even_to_kill_9(
    context: Context,
) -> Result<()> {
    let broker = context.own_broker().await?;
    let mut bed = context.bed_on(&broker, &[]).await?;
    bed.settings.set("broker.operation_timeout", "1s").set("retry.immediate_retries", "0");
    bed.declare().await?;
    bed.simulator.fault(json!({"match": {"entity_id": "C1"}, "times": 2, "fault": {"kind": "status", "code": 503}})).await?;
    bed.publish(&bed.event("e1", "C1", &city())).await?;
    broker.ctl(&["set_vm_memory_high_watermark", "0"]).await?;
    let blocked = ["kept unacked", "the broker has blocked publishers"];
    let relay = bed.start_relay().await?;
    wrote_all(&relay, &blocked, LIMIT).await?;
    relay.kill().await?;
    // Not acked before the confirm that could not come: the broker has it back.
    bed.queues.holds(&bed.queue("work"), 1, LIMIT).await?;

    let relay = bed.start_relay().await?;
    wrote_all(&relay, &blocked, LIMIT).await?;
    for queue in ["work", "retry.100ms", "retry.150ms", "retry.200ms", "dead"] {
        assert_eq!(bed.queues.depth(&bed.queue(queue)).await?, 0, "{queue}");
    }
    assert_eq!(bed.simulator.requests("C1").await?.len(), 2, "no call is made meanwhile");
    broker.ctl(&["set_vm_memory_high_watermark", "0.8"]).await?;
    bed.applied("C1", 1).await?;
    // A publish that the alarm held up may have come through late: a double, no loss.
    tokio::time::sleep(Duration::from_millis(700)).await;
    bed.end(relay).await?;
    broker.stop().await
}

async fn consuming_again(bed: &Bed, relay: &Process, sessions: usize) -> Result<()> {
    eventually("the relay to consume again", LIMIT, || async {
        let consuming = relay.output().matches("\"message\":\"consuming\"").count();
        Ok((consuming == sessions).then_some(()))
    })
    .await?;
    bed.publish(&bed.event("next", "next", &city())).await?;
    bed.applied("next", 1).await.map(drop)
}

async fn a_connection_lost_during_a_call_loses_nothing(context: Context) -> Result<()> {
    let mut bed = context.bed_with(&["--latency", "500ms"]).await?;
    let proxy = proxied(&context, &mut bed).await?;
    let relay = bed.start_relay().await?;
    bed.publish(&bed.event("e1", "C1", &city())).await?;
    eventually("the call", LIMIT, || async {
        Ok((bed.simulator.stats().await?["in_flight"] == 1).then_some(()))
    })
    .await?;
    proxy.set(Fault::Reset).await;
    proxy.set(Fault::None).await;
    consuming_again(&bed, &relay, 2).await?;
    // The message comes again, and the ledger knows what became of it.
    wrote(&bed, "\"superseded: ", 1, LIMIT).await?;
    assert_eq!(bed.simulator.requests("C1").await?.len(), 1);
    let output = bed.end(relay).await?;
    assert!(output.contains("1 settled but not acked"), "{output}");
    Ok(())
}

async fn a_connection_lost_before_the_ack_costs_no_second_call(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    let proxy = proxied(&context, &mut bed).await?;
    bed.declare().await?;
    let relay = bed.start_relay().await?;
    bed.simulator.fault(json!({"times": 1, "fault": {"kind": "latency", "ms": 3000}})).await?;
    bed.publish(&bed.event("e1", "C1", &city())).await?;
    eventually("the call", LIMIT, || async {
        Ok((bed.simulator.stats().await?["in_flight"] == 1).then_some(()))
    })
    .await?;
    // The ack is written, and arrives nowhere.
    proxy.set(Fault::Stall).await;
    bed.applied("C1", 1).await?;
    wrote_all(&relay, &["\"message\":\"applied\""], LIMIT).await?;
    proxy.set(Fault::Reset).await;
    proxy.set(Fault::None).await;
    consuming_again(&bed, &relay, 2).await?;
    wrote(&bed, "\"superseded: ", 1, LIMIT).await?;
    assert_eq!(bed.simulator.requests("C1").await?.len(), 1);
    bed.end(relay).await.map(drop)
}

async fn a_channel_closed_by_the_broker_is_made_anew(context: Context) -> Result<()> {
    let broker = context.own_broker().await?;
    let bed = context.bed_on(&broker, &[]).await?;
    let set = async |setting: &str| {
        broker.ctl(&["eval", &format!("application:set_env(rabbit, {setting}).")]).await
    };
    // Deliveries may be kept for a second only; without this the broker allows half an hour, and
    // looks once a minute. A channel keeps what it began with: only the relay's first has so little.
    set("consumer_timeout, 1000").await?;
    set("channel_tick_interval, 500").await?;
    bed.declare().await?;
    let relay = bed.start_relay().await?;
    set("consumer_timeout, 1800000").await?;
    bed.simulator.fault(json!({"times": 1, "fault": {"kind": "latency", "ms": 4000}})).await?;
    bed.publish(&bed.event("e1", "C1", &city())).await?;
    wrote_all(&relay, &["PRECONDITION_FAILED", "a new one follows"], LIMIT).await?;
    consuming_again(&bed, &relay, 2).await?;
    bed.applied("C1", 1).await?;
    wrote(&bed, "\"superseded: ", 1, LIMIT).await?;
    assert_eq!(bed.simulator.requests("C1").await?.len(), 1);
    bed.end(relay).await?;
    broker.stop().await
}

async fn the_tests_own_link_breaks_however_short_the_break(_: Context) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let proxy = ChaosProxy::start(listener.local_addr()?.to_string()).await?;
    for _ in 0..200 {
        let mut client = TcpStream::connect(proxy.addr()).await?;
        let (mut server, _) = listener.accept().await?;
        server.write_all(b"!").await?;
        client.read_u8().await?;
        proxy.set(Fault::Stall).await;
        client.write_all(b"?").await?;
        tokio::time::sleep(Duration::from_millis(1)).await;
        proxy.set(Fault::Reset).await;
        proxy.set(Fault::None).await;
        for end in [&mut client, &mut server] {
            let ended = tokio::time::timeout(LIMIT, end.read_u8()).await;
            ensure!(ended.is_ok_and(|read| read.is_err()), "the connection lives on");
        }
    }
    Ok(())
}
