//! W3C trace context: taken from a message's headers, passed on to the portal.

use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::TraceContextExt;
use opentelemetry_sdk::propagation::TraceContextPropagator;

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
