//! A trace that the CRM began goes on to the portal, through retries and dead letters.

use anyhow::Result;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::json;

use crate::harness::{Context, suite};
use crate::support::bed::{Bed, structured};

suite!(Broker:
    the_crms_trace_reaches_the_portal_also_after_a_retry,
    a_dead_letter_names_its_trace,
    a_malformed_trace_is_left_out,
);

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

async fn publish_traced(bed: &Bed, traceparent: &str) -> Result<()> {
    let mut headers = FieldTable::default();
    headers.insert("traceparent".into(), AMQPValue::LongString(traceparent.into()));
    let event = bed.event("e1", "C1", &json!({"city": "Kochi"})).to_string();
    bed.publish_as(structured().with_headers(headers), event.as_bytes()).await
}

fn sampled() -> String {
    format!("00-{TRACE}-b7ad6b7169203331-01")
}

async fn the_crms_trace_reaches_the_portal_also_after_a_retry(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    bed.settings.set("retry.immediate_retries", "0");
    let relay = bed.start_relay().await?;
    bed.simulator.fault(json!({"times": 1, "fault": {"kind": "status", "code": 503}})).await?;
    publish_traced(&bed, &sampled()).await?;
    bed.applied("C1", 1).await?;
    let calls = bed.simulator.requests("C1").await?;
    assert_eq!(calls.len(), 2);
    for call in calls {
        let traceparent = call["traceparent"].as_str().unwrap_or_default().to_owned();
        let parts: Vec<&str> = traceparent.split('-').collect();
        assert_eq!((parts.len(), parts[1], parts[3]), (4, TRACE, "01"), "{traceparent}");
    }
    bed.end(relay).await.map(drop)
}

async fn a_dead_letter_names_its_trace(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    bed.simulator
        .fault(
            json!({"match": {"entity_id": "C1"}, "fault": {"kind": "body_status", "status": 400}}),
        )
        .await?;
    publish_traced(&bed, &sampled()).await?;
    let dead = bed.dead_letter().await?;
    assert_eq!(dead.header("x-relay-trace-id").as_deref(), Some(TRACE));
    assert_eq!(dead.header("traceparent"), Some(sampled()));
    bed.end(relay).await.map(drop)
}

async fn a_malformed_trace_is_left_out(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    publish_traced(&bed, "00-nonsense").await?;
    bed.applied("C1", 1).await?;
    assert!(bed.simulator.requests("C1").await?[0]["traceparent"].is_null());
    bed.simulator
        .fault(
            json!({"match": {"entity_id": "C1"}, "fault": {"kind": "body_status", "status": 400}}),
        )
        .await?;
    publish_traced(&bed, "00-nonsense").await?;
    let dead = bed.dead_letter().await?;
    assert_eq!(dead.header("x-relay-trace-id"), None);
    bed.end(relay).await.map(drop)
}
