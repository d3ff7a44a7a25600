//! A collector of the tests' own: receives OTLP over HTTP, keeps what it gets.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;

use super::relay::Settings;

#[derive(Default)]
struct Kept {
    traces: Vec<ExportTraceServiceRequest>,
    metrics: Vec<ExportMetricsServiceRequest>,
    logs: Vec<ExportLogsServiceRequest>,
}

type Shared = Arc<Mutex<Kept>>;

/// Listens until the test ends.
pub struct Collector {
    url: String,
    kept: Shared,
}

impl Collector {
    /// Starts on a free port.
    pub async fn start() -> Result<Collector> {
        let kept = Shared::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let router = Router::new()
            .route("/v1/traces", post(keep(|kept, request| kept.traces.push(request))))
            .route("/v1/metrics", post(keep(|kept, request| kept.metrics.push(request))))
            .route("/v1/logs", post(keep(|kept, request| kept.logs.push(request))))
            .with_state(Arc::clone(&kept));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Collector { url, kept })
    }

    /// Has relays export to it, often.
    pub fn asked_by(&self, settings: &mut Settings) {
        for (name, value) in [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", self.url.as_str()),
            ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=tests"),
            ("OTEL_BSP_SCHEDULE_DELAY", "100"),
            ("OTEL_BLRP_SCHEDULE_DELAY", "100"),
            ("OTEL_METRIC_EXPORT_INTERVAL", "500"),
        ] {
            settings.set_variable(name, value);
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every span so far.
    pub fn spans(&self) -> Vec<Span> {
        let kept = self.kept();
        let resources = kept.traces.iter().flat_map(|request| &request.resource_spans);
        let scopes = resources.flat_map(|resource| &resource.scope_spans);
        scopes.flat_map(|scope| scope.spans.clone()).collect()
    }

    /// The attributes of who exported spans first.
    pub fn resource(&self) -> BTreeMap<String, String> {
        let kept = self.kept();
        let first = kept.traces.first().and_then(|request| request.resource_spans.first());
        let resource: Option<&Resource> = first.and_then(|spans| spans.resource.as_ref());
        resource.map(|resource| attributes(&resource.attributes)).unwrap_or_default()
    }

    /// The names of all metrics so far.
    pub fn metric_names(&self) -> Vec<String> {
        let kept = self.kept();
        let resources = kept.metrics.iter().flat_map(|request| &request.resource_metrics);
        let scopes = resources.flat_map(|resource| &resource.scope_metrics);
        scopes.flat_map(|scope| &scope.metrics).map(|metric| metric.name.clone()).collect()
    }

    /// The text and the trace id, in hex, of all log records so far.
    pub fn logs(&self) -> Vec<(String, String)> {
        let kept = self.kept();
        let resources = kept.logs.iter().flat_map(|request| &request.resource_logs);
        let records = resources.flat_map(|resource| &resource.scope_logs);
        let records = records.flat_map(|scope| &scope.log_records);
        records
            .map(|record| {
                let body = record.body.as_ref().and_then(|body| body.value.as_ref());
                (body.map(text).unwrap_or_default(), hex(&record.trace_id))
            })
            .collect()
    }

    /// Everything that was received, as text.
    pub fn everything(&self) -> String {
        let kept = self.kept();
        format!("{:?}{:?}{:?}", kept.traces, kept.metrics, kept.logs)
    }
}

fn keep<M: Message + Default>(
    keep: impl Fn(&mut Kept, M) + Clone + Send + Sync + 'static,
) -> impl Fn(State<Shared>, Bytes) -> std::future::Ready<StatusCode> + Clone + Send + 'static {
    move |State(kept), body| {
        let Ok(request) = M::decode(body) else {
            return std::future::ready(StatusCode::BAD_REQUEST);
        };
        keep(&mut kept.lock().unwrap_or_else(PoisonError::into_inner), request);
        std::future::ready(StatusCode::OK)
    }
}

/// Attributes as text.
pub fn attributes(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let named = attributes.iter().map(|attribute| {
        let value = attribute.value.as_ref().and_then(|value| value.value.as_ref());
        (attribute.key.clone(), value.map(text).unwrap_or_default())
    });
    named.collect()
}

fn text(value: &any_value::Value) -> String {
    match value {
        any_value::Value::StringValue(text) => text.clone(),
        any_value::Value::IntValue(number) => number.to_string(),
        any_value::Value::BoolValue(value) => value.to_string(),
        other => format!("{other:?}"),
    }
}

/// An id as people write it.
pub fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat()
}
