//! Nobody who watches the relay can stop it: a log that nobody reads, a collector that takes and never
//! answers.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::harness::{Context, suite};
use crate::support::bed::{Bed, LIMIT};
use crate::support::eventually;
use crate::support::process::Process;
use crate::support::traffic::{all_applied, publish};
use crate::telemetry::{get, serve};

suite!(Broker:
    a_log_that_nobody_reads_costs_lines_and_no_event,
    a_relay_that_nobody_listens_to_stops_when_it_is_told_to,
);

/// Lines of so many events are more than a pipe and the relay keep.
const EVENTS: usize = 6000;

async fn dropped(port: &str) -> Result<u64> {
    let (_, text) = get(&format!("{port}/metrics")).await?;
    let name = "customer_relay_log_lines_dropped_total ";
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    Ok(line.context("no such counter")?.parse()?)
}

/// Until it is gone, or the limit is over.
async fn is_gone(relay: &mut Process, limit: Duration) -> Result<()> {
    let end = tokio::time::Instant::now() + limit;
    while !relay.has_ended()? {
        ensure!(tokio::time::Instant::now() < end, "still there {limit:?} after SIGTERM");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn a_log_that_nobody_reads_costs_lines_and_no_event(context: Context) -> Result<()> {
    let mut bed = context.bed_with(&["--log-requests", "0"]).await?;
    let (mut relay, port) = serve(&mut bed).await?;
    relay.line_with("\"consuming\"", LIMIT).await?;
    assert_eq!(dropped(&port).await?, 0);
    relay.read_output(false);
    publish(&bed, "A", EVENTS).await?;
    all_applied(&bed, EVENTS, LIMIT * 2).await?;
    assert_eq!(get(&format!("{port}/livez")).await?.0, 200);
    let dropped = eventually("dropped lines in the metric", LIMIT, || async {
        Ok(Some(dropped(&port).await?).filter(|lines| *lines > 0))
    })
    .await?;
    relay.read_output(true);
    let told = relay.line_with("log lines were dropped", LIMIT).await?;
    let told: serde_json::Value = serde_json::from_str(&told)?;
    ensure!(told["lines"].as_u64() >= Some(dropped), "{told}, but the metric said {dropped}");
    bed.end(relay).await.map(drop)
}

/// Takes connections and what comes on them, and never answers.
async fn silent_listener() -> Result<String> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            kept.push(stream);
        }
    });
    Ok(format!("http://{address}"))
}

fn export_to(bed: &mut Bed, collector: &str) {
    for (name, value) in
        [("OTEL_EXPORTER_OTLP_ENDPOINT", collector), ("OTEL_METRIC_EXPORT_INTERVAL", "1000")]
    {
        bed.settings.set_variable(name, value);
    }
}

async fn a_relay_that_nobody_listens_to_stops_when_it_is_told_to(context: Context) -> Result<()> {
    let mut bed = context.bed_with(&["--log-requests", "0"]).await?;
    export_to(&mut bed, &silent_listener().await?);
    let (mut relay, port) = serve(&mut bed).await?;
    relay.line_with("\"consuming\"", LIMIT).await?;
    relay.read_output(false);
    publish(&bed, "A", EVENTS).await?;
    all_applied(&bed, EVENTS, LIMIT * 2).await?;
    eventually("dropped lines", LIMIT, || async { Ok((dropped(&port).await? > 0).then_some(())) })
        .await?;
    relay.signal("TERM").await?;
    // The last telemetry has five seconds, the last lines one.
    is_gone(&mut relay, Duration::from_secs(15)).await?;
    relay.read_output(true);
    assert_eq!(relay.ended(LIMIT).await?.code(), Some(0));
    bed.finish().await
}
