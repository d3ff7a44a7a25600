//! How the relay is watched: logs, and trace context from the CRM through to the portal.

pub mod log;
pub mod trace;
