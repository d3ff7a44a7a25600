//! How the relay is watched: logs, metrics, and traces from the CRM through to the portal. The only
//! folder that knows OpenTelemetry's SDK and exporters.

mod exporters;
pub mod instruments;
mod lines;
pub mod log;
mod metrics;
pub mod panic;
mod refusal;
pub mod trace;

pub use exporters::{Exporters, InvalidVariable, Signals, Telemetry};
pub use lines::Written;
pub use metrics::{Exposition, Metrics};
pub use refusal::Refusal;
