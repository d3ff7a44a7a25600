//! What operators order: a pause and its end, for every relay on the queue; and the fuse, which
//! orders a pause by itself when one of our own rules refuses most customers.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::harness::{Context, suite};
use crate::support::bed::{Bed, LIMIT};
use crate::support::chaos::{ChaosProxy, Fault};
use crate::support::eventually;
use crate::support::traffic::{all_applied, began, calls, lines, publish, wrote};

suite!(Broker:
    a_pause_stops_calls_and_consumption_survives_a_restart_and_ends_with_resume,
    a_pause_until_a_time_ends_by_itself,
    a_second_pause_replaces_the_first,
    orders_speak_json_and_refuse_nonsense,
    the_fuse_says_which_rule_refuses_most_customers,
    the_fuse_pauses_the_relay_if_told_to;
NoBroker:
    an_order_without_a_broker_says_so,
);

async fn order(bed: &Bed, args: &[&str]) -> Result<String> {
    let (code, out, err) = bed.settings.command(args, b"").await?;
    ensure!(code == 0, "{args:?}: exit {code}\n{out}{err}");
    Ok(out)
}

async fn has_no_consumer(bed: &Bed) -> Result<()> {
    eventually("no consumer", LIMIT, || async {
        Ok((bed.queues.consumers(&bed.queue("work")).await? == 0).then_some(()))
    })
    .await
}

const PAUSED: &str = "\"not consuming: paused, or the ledger fails\"";

async fn a_pause_stops_calls_and_consumption_survives_a_restart_and_ends_with_resume(
    context: Context,
) -> Result<()> {
    let bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    publish(&bed, "A", 1).await?;
    all_applied(&bed, 1, LIMIT).await?;
    let said = order(&bed, &["pause", "--because", "maintenance"]).await?;
    assert!(said.contains("paused until `customer-relay resume`"), "{said}");
    wrote(&bed, PAUSED, 1, LIMIT).await?;
    has_no_consumer(&bed).await?;
    publish(&bed, "B", 5).await?;
    crate::support::relay::stop(relay).await?;

    let relay = bed.launch_relay()?;
    wrote(&bed, PAUSED, 2, LIMIT).await?;
    bed.queues.holds(&bed.queue("work"), 5, LIMIT).await?;
    assert_eq!(calls(&bed).await?.len(), 1, "no call while paused");
    let said = order(&bed, &["resume"]).await?;
    assert!(said.contains("resumed"), "{said}");
    all_applied(&bed, 6, LIMIT).await?;
    let said = order(&bed, &["resume"]).await?;
    assert!(said.contains("there was no pause"), "{said}");
    bed.end(relay).await.map(drop)
}

/// In how long a pause ends, commands to give it included.
const UNTIL: SignedDuration = SignedDuration::from_secs(8);

/// So many events are applied, the first of them when the pause is over.
async fn ends_at(bed: &Bed, until: Timestamp, count: usize) -> Result<()> {
    all_applied(bed, count, LIMIT).await?;
    let early = until.as_millisecond() - began(&calls(bed).await?[0]);
    // The broker counts whole milliseconds from when it has the order.
    ensure!(early <= 10, "the pause ended {early} ms too early");
    Ok(())
}

async fn a_pause_until_a_time_ends_by_itself(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    bed.declare().await?;
    let until = Timestamp::now() + UNTIL;
    order(&bed, &["pause", "--until", &until.to_string()]).await?;
    let relay = bed.launch_relay()?;
    publish(&bed, "C", 3).await?;
    ends_at(&bed, until, 3).await?;
    bed.end(relay).await.map(drop)
}

async fn a_second_pause_replaces_the_first(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    bed.declare().await?;
    order(&bed, &["pause"]).await?;
    let until = Timestamp::now() + SignedDuration::from_hours(1);
    order(&bed, &["pause", "--until", &until.to_string()]).await?;
    let paused = bed.queue("paused");
    bed.queues.holds(&paused, 1, LIMIT).await?;
    let until = Timestamp::now() + UNTIL;
    order(&bed, &["pause", "--until", &until.to_string()]).await?;
    let relay = bed.launch_relay()?;
    publish(&bed, "C", 1).await?;
    ends_at(&bed, until, 1).await?;
    assert_eq!(bed.queues.depth(&paused).await?, 0);
    bed.end(relay).await.map(drop)
}

async fn orders_speak_json_and_refuse_nonsense(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    bed.declare().await?;
    let json = |text: String| serde_json::from_str::<Value>(&text).context(text);
    let said = json(order(&bed, &["pause", "--json"]).await?)?;
    assert_eq!(said, json!({"paused": true, "until": null}));
    let said = json(order(&bed, &["resume", "--json"]).await?)?;
    assert_eq!(said, json!({"was_paused": true, "accepts_rejections": false}));
    for (args, code, text) in [
        (&["pause", "--until", "yesterday"][..], 64, "--until"),
        (&["pause", "--until", "2020-01-01T00:00:00Z"], 64, "--until must end in the future"),
        (&["pause", "--until", "2099-01-01T00:00:00Z"], 64, "within 49 days"),
        (&["resume", "--for", "5m"], 64, "--accept-rejections"),
        (&["resume", "--accept-rejections", "--for", "0s"], 64, "--for must end in the future"),
    ] {
        let (seen, out, err) = bed.settings.command(args, b"").await?;
        assert_eq!(seen, code, "{args:?}: {out}{err}");
        assert!(err.contains(text) && out.is_empty(), "{args:?}: {out}{err}");
    }
    bed.finish().await
}

async fn an_order_without_a_broker_says_so(_: Context) -> Result<()> {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let url = format!("amqp://guest:guest@{nobody}/%2f");
    let environment = [("CUSTOMER_RELAY__BROKER__URL".to_owned(), url)];
    for args in [&["pause"][..], &["resume"], &["resume", "--accept-rejections"]] {
        let program = crate::support::relay::PROGRAM;
        let (code, out, err) =
            crate::support::process::run(program, args, &environment, b"").await?;
        assert_eq!(code, 69, "{args:?}: {out}{err}");
        assert!(err.contains(&nobody.to_string()), "{err}");
    }
    Ok(())
}

/// 150 customers, two in three with a city that our rules refuse.
async fn publish_refused(bed: &Bed) -> Result<u32> {
    let events: Vec<Value> = (0..150)
        .map(|n| {
            let city = if n % 3 == 0 { "Kochi" } else { "New Delhi" };
            bed.event(&format!("e{n}"), &format!("C{n}"), &json!({ "city": city }))
        })
        .collect();
    bed.queues.publish_events(&bed.exchange(), &events).await?;
    Ok(100)
}

const BLOWN: &str = "fuse: one of our rules refuses most customers";

async fn the_fuse_says_which_rule_refuses_most_customers(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    let refused = publish_refused(&bed).await?;
    all_applied(&bed, 50, LIMIT).await?;
    let blown = wrote(&bed, BLOWN, 1, LIMIT).await?;
    assert_eq!((&blown[0]["field"], &blown[0]["pauses"]), (&json!("city"), &json!(false)));
    ensure!(blown[0]["customers"].as_u64() >= Some(100), "{blown:?}");
    let dead = bed.queue("dead");
    bed.queues.holds(&dead, refused, LIMIT).await?;
    bed.queues.take_all(&dead).await?;
    let output = bed.end(relay).await?;
    assert_eq!(lines(&output, BLOWN).len(), 1, "said once");
    assert!(!output.contains("an operator's order"), "{output}");
    Ok(())
}

async fn the_fuse_pauses_the_relay_if_told_to(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    bed.settings.set("dead.fuse", "pause");
    let broker = context.broker().await?;
    let proxy = ChaosProxy::start(broker.address()).await?;
    bed.settings.set("broker.url", &proxy.through(&broker.url()));
    let relay = bed.start_relay().await?;
    // The fuse's order takes longer to reach the broker than relays take to look for orders.
    proxy.set(Fault::Delay(Duration::from_millis(500))).await;
    let refused = publish_refused(&bed).await?;
    wrote(&bed, BLOWN, 1, LIMIT).await?;
    bed.queues.holds(&bed.queue("paused"), 1, LIMIT).await?;
    proxy.set(Fault::None).await;
    wrote(&bed, PAUSED, 1, LIMIT).await?;
    let work = bed.queue("work");
    let left = bed.queues.depth(&work).await?;
    publish(&bed, "AFTER", 3).await?;
    // Relays look for orders every two seconds: none may end what the fuse began.
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(bed.queues.depth(&work).await?, left + 3, "nothing is consumed");
    assert_eq!(lines(&bed.output(), PAUSED).len(), 1, "paused once");
    order(&bed, &["resume"]).await?;
    all_applied(&bed, 53, LIMIT).await?;
    let dead = bed.queue("dead");
    bed.queues.holds(&dead, refused, LIMIT).await?;
    bed.queues.take_all(&dead).await?;
    bed.end(relay).await.map(drop)
}
