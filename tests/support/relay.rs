//! The relay as a process, and its settings.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::process::{self, Process};
use super::simulator::{SECRET_KEY, Simulator, TOKEN};

/// Whose update tells an event's fault from everybody's.
pub const PROBE: &str = "PROBE";
const PROBE_CUSTOMER: &str = r#"{"entity_id":"PROBE","country":"India"}"#;

/// Where the program is.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_customer-relay");

/// A set of settings for relays and commands, given by the environment as operators do.
#[derive(Clone, Debug)]
pub struct Settings(Vec<(String, String)>);

impl Settings {
    /// The broker, private names below `prefix`, the simulator, and a retry schedule that is
    /// short enough for a test: tiers of 100 ms to 1.6 s.
    pub fn new(broker_url: &str, prefix: &str, simulator: &Simulator) -> Settings {
        let mut settings = Settings(Vec::new());
        for (key, value) in [
            ("broker.url", broker_url),
            ("broker.prefix", prefix),
            ("broker.exchange", &format!("{prefix}.events")),
            ("broker.max_reconnect_pause", "1s"),
            ("portal.base_url", simulator.url()),
            ("portal.token", TOKEN),
            ("portal.secret_key", SECRET_KEY),
            ("outage.first_probe", "100ms"),
            ("outage.max_probe_interval", "1s"),
            ("outage.witness_wait", "300ms"),
            ("outage.control_calls", "applied"),
            ("portal.probe_customer", PROBE_CUSTOMER),
            ("retry.shortest_delay", "100ms"),
            ("retry.first_delay", "200ms"),
            ("retry.max_delay", "1600ms"),
            ("retry.max_uncounted_delay", "400ms"),
            ("retry.rejected_delay", "200ms"),
            ("retry.immediate_first_pause", "20ms"),
            ("log.format", "json"),
        ] {
            settings.set(key, value);
        }
        settings
    }

    /// Sets one setting.
    pub fn set(&mut self, key: &str, value: &str) -> &mut Settings {
        self.leave_out(key);
        self.0.push((variable(key), value.to_owned()));
        self
    }

    /// Leaves a setting at its default.
    pub fn leave_out(&mut self, key: &str) {
        let name = variable(key);
        self.0.retain(|(known, _)| *known != name);
    }

    /// Sets a variable that is none of our settings.
    pub fn set_variable(&mut self, name: &str, value: &str) -> &mut Settings {
        self.0.retain(|(known, _)| known != name);
        self.0.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Keeps the ledger in a file in this directory.
    pub fn keep_ledger_in(&mut self, directory: &Path) -> &mut Settings {
        let file = directory.join("ledger.db");
        self.set("ledger.url", &format!("sqlite:{}", file.display()))
    }

    /// As environment variables.
    pub fn environment(&self) -> &[(String, String)] {
        &self.0
    }

    /// Runs a command to its end: exit code, standard output, standard error.
    pub async fn command(&self, args: &[&str], input: &[u8]) -> Result<(i32, String, String)> {
        process::run(PROGRAM, args, &self.0, input).await
    }

    /// Starts a relay and waits until it consumes.
    pub async fn start_relay(&self) -> Result<Process> {
        let mut relay = self.launch_relay()?;
        relay.line_with("\"consuming\"", Duration::from_secs(30)).await?;
        Ok(relay)
    }

    /// Starts a relay, whatever comes of it.
    pub fn launch_relay(&self) -> Result<Process> {
        self.launch(PROGRAM)
    }

    /// The same with another build of it.
    pub fn launch(&self, program: &str) -> Result<Process> {
        Process::start(program, &["run".to_owned()], &self.0)
    }
}

fn variable(key: &str) -> String {
    format!("CUSTOMER_RELAY__{}", key.to_uppercase().replace('.', "__"))
}

/// SIGTERM, and the orderly end.
pub async fn stop(mut relay: Process) -> Result<String> {
    relay.signal("TERM").await?;
    let status = relay.ended(Duration::from_secs(40)).await?;
    ensure!(status.success(), "the relay ended with {status}:\n{}", relay.output());
    Ok(relay.output())
}
