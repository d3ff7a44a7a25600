//! The port for operators: how a relay is, for whoever asks; what it knows, for whoever shows the
//! token. Served by the relay at work, asked by the command line.

mod account;
mod client;
pub mod listener;
mod server;

pub use account::{describe, describe_letter};
pub use client::{AskError, ask_for_customer, probe};
pub use server::{ListenError, Port};

/// Where a customer is asked for: JSON with the `entity_id`, posted, so that it stands in no log.
const SHOW_CUSTOMER: &str = "/customer/show";
