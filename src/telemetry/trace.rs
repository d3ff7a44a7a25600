//! Traces. W3C context comes with a message's headers and goes on to the portal, and on to every
//! queue that the message is sent to. With an exporter, deliveries, sendings and calls are spans;
//! without one the publisher's context is passed on as it came.

use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::{Link, SpanBuilder, SpanKind, Status, TraceContextExt, Tracer as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracer;
use url::Url;

use crate::domain::outcome::Outcome;
use crate::domain::response::Judgement;
use crate::domain::verdict::Verdict;

/// The context that a carrier brings; an empty one if it brings none or a malformed one.
pub fn extract(carrier: &dyn Extractor) -> Context {
    TraceContextPropagator::new().extract_with_context(&Context::new(), carrier)
}

/// Writes the context into a carrier; nothing if it is empty.
pub fn inject(context: &Context, carrier: &mut dyn Injector) {
    if context.has_active_span() {
        TraceContextPropagator::new().inject_context(context, carrier);
    }
}

/// The trace's id in hex.
pub fn id(context: &Context) -> Option<String> {
    let span = context.span();
    let span = span.span_context();
    span.is_valid().then(|| span.trace_id().to_string())
}

/// What an event's spans have to do with its publisher's trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublisherTrace {
    /// They go on with it.
    Parent,
    /// They are a trace of their own, with a link to it.
    Link,
}

/// Makes spans, if they are exported.
#[derive(Clone, Debug)]
pub struct Tracing {
    pub(super) tracer: Option<SdkTracer>,
    pub(super) publisher: PublisherTrace,
}

/// A message as its spans describe it.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    /// Where it was consumed.
    pub queue: &'a str,
    /// Its `message_id`.
    pub id: Option<&'a str>,
    /// The size of its body.
    pub bytes: usize,
    /// Sent by a relay, or by an operator, straight to the queue: its context is our own.
    pub is_ours: bool,
}

impl Tracing {
    /// A delivery begins: its span, or what came with the message.
    pub fn received(&self, came_with: Context, message: Received<'_>) -> Context {
        let Some(tracer) = &self.tracer else { return came_with };
        let Received { queue, id, bytes, is_ours } = message;
        let mut attributes = messaging("process", "process", queue);
        attributes.push(KeyValue::new(
            "messaging.message.body.size",
            i64::try_from(bytes).unwrap_or(i64::MAX),
        ));
        attributes.extend(id.map(|id| KeyValue::new("messaging.message.id", id.to_owned())));
        let span = SpanBuilder::from_name(format!("process {queue}"))
            .with_kind(SpanKind::Consumer)
            .with_attributes(attributes);
        let publisher = came_with.span().span_context().clone();
        let (span, parent) =
            if self.publisher == PublisherTrace::Link && !is_ours && publisher.is_valid() {
                (span.with_links(vec![Link::with_context(publisher)]), Context::new())
            } else {
                (span, came_with)
            };
        let span = tracer.build_with_context(span, &parent);
        parent.with_span(span)
    }

    /// A delivery has come to its end.
    pub fn settled(&self, context: &Context, verdict: &Verdict) {
        if self.tracer.is_none() {
            return;
        }
        let span = context.span();
        span.set_attribute(KeyValue::new("customer_relay.verdict", verdict.name()));
        if let Some(reason) = verdict.reason() {
            span.set_attribute(KeyValue::new("error.type", reason.name()));
            span.set_status(Status::error(reason.name()));
        }
        span.end();
    }

    /// A message is about to be sent to a queue: the context that goes with it.
    pub fn sending(&self, context: &Context, queue: &str, id: Option<&str>) -> Context {
        let Some(tracer) = &self.tracer else { return context.clone() };
        let mut attributes = messaging("send", "send", queue);
        attributes.extend(id.map(|id| KeyValue::new("messaging.message.id", id.to_owned())));
        let span = SpanBuilder::from_name(format!("send {queue}"))
            .with_kind(SpanKind::Producer)
            .with_attributes(attributes);
        context.with_span(tracer.build_with_context(span, context))
    }

    /// The broker has it, or it could not be sent.
    pub fn sent(&self, context: &Context, error: Option<&'static str>) {
        if self.tracer.is_some() {
            end(context, error);
        }
    }

    /// The portal is about to be called: the context that goes with the call.
    pub fn calling(&self, context: &Context, url: &Url, repeats: u32) -> Context {
        let Some(tracer) = &self.tracer else { return context.clone() };
        let mut attributes = vec![
            KeyValue::new("http.request.method", "POST"),
            KeyValue::new("url.full", url.to_string()),
            KeyValue::new(
                "server.address",
                url.host_str().expect("an http URL has a host").to_owned(),
            ),
        ];
        let port = url.port_or_known_default();
        attributes.extend(port.map(|port| KeyValue::new("server.port", i64::from(port))));
        if repeats > 0 {
            attributes.push(KeyValue::new("http.request.resend_count", i64::from(repeats)));
        }
        let span =
            SpanBuilder::from_name("POST").with_kind(SpanKind::Client).with_attributes(attributes);
        context.with_span(tracer.build_with_context(span, context))
    }

    /// The call has ended.
    pub fn called(&self, context: &Context, judgement: &Judgement) {
        if self.tracer.is_none() {
            return;
        }
        let Judgement { outcome, http_status, .. } = *judgement;
        if let Some(status) = http_status {
            let status = KeyValue::new("http.response.status_code", i64::from(status));
            context.span().set_attribute(status);
        }
        end(context, (outcome != Outcome::Applied).then(|| outcome.name()));
    }

    /// Whether spans are made.
    pub fn is_on(&self) -> bool {
        self.tracer.is_some()
    }
}

fn messaging(kind: &'static str, name: &'static str, queue: &str) -> Vec<KeyValue> {
    vec![
        KeyValue::new("messaging.system", "rabbitmq"),
        KeyValue::new("messaging.operation.type", kind),
        KeyValue::new("messaging.operation.name", name),
        KeyValue::new("messaging.destination.name", queue.to_owned()),
    ]
}

fn end(context: &Context, error: Option<&'static str>) {
    let span = context.span();
    if let Some(error) = error {
        span.set_attribute(KeyValue::new("error.type", error));
        span.set_status(Status::error(error));
    }
    span.end();
}
