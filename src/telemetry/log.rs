//! Where log lines go and what they look like.

use std::io::{self, IsTerminal};
use std::sync::Arc;

use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, fmt, registry};

use super::Exporters;
use super::lines::{Lines, Written};
use crate::amqp::TELLS_OF_PEOPLE;
use crate::domain::text::{escape_coloured_page, escape_json, escape_page};

/// The look of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people on a terminal, JSON otherwise.
    Auto,
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

/// A log filter that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("not a log filter: {0}")]
pub struct InvalidFilter(String);

/// Checks a filter such as `info` or `customer_relay=debug,lapin=warn`. What would tell of people is left
/// out, whatever it says.
pub fn parse_filter(filter: &str) -> Result<EnvFilter, InvalidFilter> {
    let filter = EnvFilter::try_new(filter).map_err(|error| InvalidFilter(error.to_string()))?;
    Ok(filter.add_directive(TELLS_OF_PEOPLE.parse().expect("a directive of ours")))
}

/// Sends log lines to standard error from now on; to a collector too, if that is wanted.
pub fn start(
    filter: EnvFilter,
    format: Format,
    exporters: Option<&Exporters>,
) -> io::Result<Written> {
    let is_terminal = io::stderr().is_terminal();
    let human = match format {
        Format::Auto => is_terminal,
        Format::Human => true,
        Format::Json => false,
    };
    let gathered = Lines::start(match (human, is_terminal) {
        (true, true) => escape_coloured_page,
        (true, false) => escape_page,
        (false, _) => escape_json,
    })?;
    let lines = fmt::layer().with_writer(Arc::clone(&gathered));
    let lines = if human {
        lines.with_ansi(is_terminal).with_target(false).boxed()
    } else {
        lines.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed()
    };
    let logs = exporters.and_then(|exporters| exporters.logs.as_ref());
    let exported = logs.map(OpenTelemetryTracingBridge::new);
    if let Err(error) = registry().with(filter).with(lines).with(exported).try_init() {
        tracing::debug!(%error, "log lines were set up before");
    }
    Ok(Written(gathered))
}
