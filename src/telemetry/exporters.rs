//! Where telemetry goes: to a collector over OTLP, as the standard `OTEL_*` variables say, and to
//! Prometheus at the admin port. What nobody asks for is not made.

use std::sync::Arc;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::MeterProvider as _;
use opentelemetry::metrics::noop::NoopMeterProvider;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{ExporterBuildError, LogExporter, MetricExporter, SpanExporter};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::logs::SdkLoggerProvider;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::resource::{EnvResourceDetector, TelemetryResourceDetector};
use opentelemetry_sdk::trace::SdkTracerProvider;
use prometheus::Registry;
use uuid::Uuid;

use super::metrics::{Exposition, Metrics};
use super::trace::{PublisherTrace, Tracing};
use crate::health::Health;

/// What instruments and spans are called by.
const SCOPE: &str = env!("CARGO_PKG_NAME");
/// A collector that is gone must not keep the relay from ending.
const FLUSH_LIMIT: Duration = Duration::from_secs(5);

/// A variable whose value makes no sense.
#[derive(Debug, thiserror::Error)]
#[error("{name}: expected {expected}")]
pub struct InvalidVariable {
    name: String,
    expected: &'static str,
}

/// Which signals are exported over OTLP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Signals {
    traces: bool,
    metrics: bool,
    logs: bool,
}

impl Signals {
    /// Reads the variables that the SDK leaves to the program; addresses, headers, limits, sampler
    /// and batches it reads itself. A signal is exported if it has an endpoint, or if its exporter
    /// is named.
    pub fn parse(environment: &[(String, String)]) -> Result<Signals, InvalidVariable> {
        let find = |name: &str| {
            let found = environment.iter().find(|(known, _)| known == name);
            found.map(|(_, value)| value.trim()).filter(|value| !value.is_empty())
        };
        if find("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return Ok(Signals::default());
        }
        let signal = |name: &str| -> Result<bool, InvalidVariable> {
            let exporter = format!("OTEL_{name}_EXPORTER");
            let is_wanted = match find(&exporter) {
                None => ["", &format!("{name}_")]
                    .into_iter()
                    .any(|signal| find(&format!("OTEL_EXPORTER_OTLP_{signal}ENDPOINT")).is_some()),
                Some("otlp") => true,
                Some("none") => false,
                Some(_) => {
                    let expected = "\"otlp\" or \"none\" (Prometheus asks at admin.listen)";
                    return Err(InvalidVariable { name: exporter, expected });
                }
            };
            let protocols = [
                format!("OTEL_EXPORTER_OTLP_{name}_PROTOCOL"),
                "OTEL_EXPORTER_OTLP_PROTOCOL".to_owned(),
            ];
            let protocol = protocols.into_iter().find(|name| find(name).is_some());
            if let Some(variable) = protocol.filter(|_| is_wanted)
                && find(&variable) != Some("http/protobuf")
            {
                let expected = "\"http/protobuf\", the one protocol that is spoken (port 4318)";
                return Err(InvalidVariable { name: variable, expected });
            }
            Ok(is_wanted)
        };
        Ok(Signals {
            traces: signal("TRACES")?,
            metrics: signal("METRICS")?,
            logs: signal("LOGS")?,
        })
    }
}

/// What exports, until it is shut down.
#[derive(Debug)]
pub struct Exporters {
    traces: Option<SdkTracerProvider>,
    /// None where nobody reads them.
    metrics: Option<SdkMeterProvider>,
    pub(super) logs: Option<SdkLoggerProvider>,
    exposition: Option<Exposition>,
}

impl Exporters {
    /// Begins to export. `serves_prometheus`: somebody may ask for [`Exposition::text`].
    pub fn start(
        signals: Signals,
        environment: &[(String, String)],
        serves_prometheus: bool,
    ) -> anyhow::Result<Exporters> {
        let resource = resource(environment);
        let mut metrics = SdkMeterProvider::builder().with_resource(resource.clone());
        if signals.metrics {
            metrics =
                metrics.with_periodic_exporter(MetricExporter::builder().with_http().build()?);
        }
        let exposition = serves_prometheus.then(Registry::new);
        if let Some(registry) = &exposition {
            let exporter = opentelemetry_prometheus::exporter().with_registry(registry.clone());
            metrics = metrics.with_reader(exporter.scope_info_enabled(false).build()?);
        }
        let traces = || -> Result<SdkTracerProvider, ExporterBuildError> {
            let exporter = SpanExporter::builder().with_http().build()?;
            let provider = SdkTracerProvider::builder().with_resource(resource.clone());
            Ok(provider.with_batch_exporter(exporter).build())
        };
        let logs = || -> Result<SdkLoggerProvider, ExporterBuildError> {
            let exporter = LogExporter::builder().with_http().build()?;
            let provider = SdkLoggerProvider::builder().with_resource(resource.clone());
            Ok(provider.with_batch_exporter(exporter).build())
        };
        Ok(Exporters {
            traces: signals.traces.then(traces).transpose()?,
            logs: signals.logs.then(logs).transpose()?,
            metrics: (signals.metrics || serves_prometheus).then(|| metrics.build()),
            exposition: exposition.map(Exposition),
        })
    }

    /// What the worker tells of itself. Gauges are read from `health`.
    pub fn telemetry(&self, work_queue: &str, publisher: PublisherTrace) -> Telemetry {
        let health = Arc::<Health>::default();
        let meter = match &self.metrics {
            Some(metrics) => metrics.meter(SCOPE),
            None => NoopMeterProvider::new().meter(SCOPE),
        };
        let metrics = Metrics::new(&meter, work_queue, &health);
        let tracer = self.traces.as_ref().map(|traces| traces.tracer(SCOPE));
        Telemetry {
            metrics: Arc::new(metrics),
            tracing: Tracing { tracer, publisher },
            health,
            exposition: self.exposition.clone(),
        }
    }

    /// Sends what is still here: all kinds at once, since each waits for the same collector. Blocks,
    /// for a few seconds at most if that is gone.
    pub fn shut_down(self) {
        let Exporters { traces, metrics, logs, .. } = self;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                note("traces", traces.map(|traces| traces.shutdown_with_timeout(FLUSH_LIMIT)));
            });
            scope.spawn(|| {
                note("metrics", metrics.map(|metrics| metrics.shutdown_with_timeout(FLUSH_LIMIT)));
            });
            note("logs", logs.map(|logs| logs.shutdown_with_timeout(FLUSH_LIMIT)));
        });
    }
}

fn note(what: &str, ended: Option<OTelSdkResult>) {
    if let Some(Err(error)) = ended {
        tracing::warn!(what, %error, "not all telemetry was exported");
    }
}

/// What the worker records, and what is read of it.
#[derive(Clone, Debug)]
pub struct Telemetry {
    /// Counters and histograms.
    pub metrics: Arc<Metrics>,
    /// Spans.
    pub tracing: Tracing,
    /// How the relay is.
    pub health: Arc<Health>,
    /// For Prometheus, if it may ask.
    pub exposition: Option<Exposition>,
}

/// Who we are; what the variables say counts before what we say.
fn resource(environment: &[(String, String)]) -> Resource {
    let named =
        environment.iter().find(|(name, value)| name == "OTEL_SERVICE_NAME" && !value.is_empty());
    let resource = Resource::builder_empty()
        .with_service_name(SCOPE)
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attribute(KeyValue::new("service.instance.id", Uuid::new_v4().to_string()))
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_detector(Box::new(EnvResourceDetector::new()));
    match named {
        Some((_, name)) => resource.with_service_name(name.clone()).build(),
        None => resource.build(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(variables: &[(&str, &str)]) -> Result<Signals, InvalidVariable> {
        let owned = variables.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        Signals::parse(&owned.collect::<Vec<_>>())
    }

    const NONE: Signals = Signals { traces: false, metrics: false, logs: false };
    const ALL: Signals = Signals { traces: true, metrics: true, logs: true };
    const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318");

    #[test]
    fn nothing_is_exported_unless_a_variable_says_so() {
        assert_eq!(parse(&[]).unwrap(), NONE);
        assert_eq!(parse(&[("OTEL_SERVICE_NAME", "x")]).unwrap(), NONE);
        assert_eq!(parse(&[ENDPOINT]).unwrap(), ALL);
        assert_eq!(parse(&[ENDPOINT, ("OTEL_SDK_DISABLED", "true")]).unwrap(), NONE);
        let no_logs = Signals { logs: false, ..ALL };
        assert_eq!(parse(&[ENDPOINT, ("OTEL_LOGS_EXPORTER", "none")]).unwrap(), no_logs);
        let traces = Signals { traces: true, ..NONE };
        assert_eq!(parse(&[("OTEL_TRACES_EXPORTER", "otlp")]).unwrap(), traces);
        let own = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://localhost:4318/v1/traces");
        assert_eq!(parse(&[own]).unwrap(), traces);
    }

    #[test]
    fn what_is_not_spoken_is_refused_by_name() {
        let zipkin = parse(&[("OTEL_TRACES_EXPORTER", "zipkin")]).unwrap_err().to_string();
        assert!(zipkin.starts_with("OTEL_TRACES_EXPORTER: expected \"otlp\""), "{zipkin}");
        let grpc = parse(&[ENDPOINT, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]);
        let grpc = grpc.unwrap_err().to_string();
        assert!(grpc.starts_with("OTEL_EXPORTER_OTLP_PROTOCOL: expected"), "{grpc}");
        assert!(parse(&[("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]).is_ok(), "nothing is exported");
    }
}
