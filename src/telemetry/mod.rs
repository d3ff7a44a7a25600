//! How the relay is watched: logs, metrics, and traces from the CRM through to the portal. The only
//! folder that knows OpenTelemetry's SDK and exporters.

mod exporters;
pub mod instruments;
pub mod log;
mod metrics;
pub mod trace;

pub use exporters::{Exporters, InvalidVariable, Signals, Telemetry};
pub use metrics::{Exposition, Metrics};
