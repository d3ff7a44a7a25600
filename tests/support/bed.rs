//! What one test runs on: names of its own at a broker, a portal simulator of its own, settings for
//! relays. It fails if a test leaves a message behind.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lapin::BasicProperties;
use serde_json::{Value, json};
use tokio_util::task::TaskTracker;

use super::held;
use super::process::{Output, Process};
use super::queues::{Queues, Taken, holds_events};
use super::relay::{self, Settings};
use super::simulator::Simulator;

/// How long anything may take that is not about time.
pub const LIMIT: Duration = Duration::from_secs(30);
/// How long what is on its way may take, at the end of a test.
const GIVEN_TO_END: Duration = Duration::from_secs(5);
const LINES_SHOWN: usize = 30;

/// One test's surroundings.
pub struct Bed {
    /// What relays and commands of this test are told; change it before they start.
    pub settings: Settings,
    /// The portal.
    pub simulator: Simulator,
    /// The broker, past any proxy.
    pub queues: Queues,
    name: String,
    prefix: String,
    url: String,
    cleanups: TaskTracker,
    outputs: Mutex<Vec<Output>>,
    is_finished: bool,
    state: tempfile::TempDir,
}

impl Bed {
    /// Nothing is declared yet at the broker; a relay or [`declare`](Self::declare) does that.
    /// What a failed test leaves is deleted by one of `cleanups`.
    pub async fn new(
        url: &str,
        name: &str,
        simulator_args: &[&str],
        cleanups: TaskTracker,
    ) -> Result<Bed> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("test-{}-{count}-{}", std::process::id(), name.replace("::", "-"));
        let prefix = prefix[..prefix.len().min(120)].to_owned();
        let simulator = Simulator::start(simulator_args).await?;
        let state = tempfile::tempdir()?;
        let mut settings = Settings::new(url, &prefix, &simulator);
        settings.keep_ledger_in(state.path()).set("portal.settle_after", "400ms");
        // Every tier is a queue to be declared and deleted again: five are enough for most tests.
        settings.set("retry.max_delay", "400ms").set("log.filter", "info,lapin=off");
        Ok(Bed {
            settings,
            simulator,
            queues: Queues::connect(url).await?,
            name: name.to_owned(),
            prefix,
            url: url.to_owned(),
            cleanups,
            outputs: Mutex::default(),
            is_finished: false,
            state,
        })
    }

    /// Where the bed's ledger and other files are.
    pub fn state(&self) -> &std::path::Path {
        self.state.path()
    }

    /// The CRM's exchange.
    pub fn exchange(&self) -> String {
        format!("{}.events", self.prefix)
    }

    /// Where the broker is, past any proxy.
    pub fn broker_url(&self) -> &str {
        &self.url
    }

    /// A queue of this test: `work`, `dead`, `retry.100ms` …
    pub fn queue(&self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
    }

    /// The queues that an event passes on its way: `work`, and the retry tiers.
    pub async fn ways(&self) -> Result<(String, Vec<String>)> {
        let topology = topology(&self.settings).await?;
        let queues = topology["queues"].as_array().context("no queues")?;
        let names = queues.iter().filter_map(|queue| queue["name"].as_str());
        let tier = self.queue("retry.");
        let tiers = names.filter(|name| name.starts_with(&tier)).map(str::to_owned).collect();
        Ok((self.queue("work"), tiers))
    }

    /// What all names of this test begin with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// A structured event of now, of a customer's new field values.
    pub fn event(&self, id: &str, entity_id: &str, fields: &Value) -> Value {
        let mut data = fields.clone();
        data["entity_id"] = json!(entity_id);
        json!({"specversion": "1.0", "id": id, "source": self.prefix, "type": "customer.updated",
               "time": jiff::Timestamp::now().to_string(), "data": data})
    }

    /// Gives relays a customer whose update tells an event's fault from everybody's.
    pub fn set_probe_customer(&mut self) {
        self.settings.set("portal.probe_customer", r#"{"entity_id":"PROBE","country":"India"}"#);
    }

    /// Publishes an event as the CRM does.
    pub async fn publish(&self, event: &Value) -> Result<()> {
        self.publish_as(structured(), event.to_string().as_bytes()).await
    }

    /// Publishes any message to the CRM's exchange, with a timestamp as the CRM's library sets it:
    /// a body without a time of its own needs one.
    pub async fn publish_as(&self, properties: BasicProperties, body: &[u8]) -> Result<()> {
        let properties = stamped(properties);
        self.queues.publish(&self.exchange(), "customer.updated", properties, body).await
    }

    /// Publishes a message straight to the work queue, as retry tiers and replays do.
    pub async fn put_back(&self, properties: BasicProperties, body: &[u8]) -> Result<()> {
        let properties = stamped(properties);
        self.queues.publish("", &self.queue("work"), properties, body).await
    }

    /// Puts the ledger's id at the broker back as relays of 0.1 wrote it: without a number.
    pub async fn forget_number(&self) -> Result<String> {
        let queue = self.queue("ledger-id");
        let id = self.queues.take(&queue, LIMIT).await?.body;
        let properties =
            BasicProperties::default().with_delivery_mode(2).with_content_type("text/plain".into());
        self.queues.publish("", &queue, properties, &id).await?;
        Ok(String::from_utf8(id)?)
    }

    /// `topology apply`.
    pub async fn declare(&self) -> Result<()> {
        let (code, out, err) = self.settings.command(&["topology", "apply"], b"").await?;
        ensure!(code == 0, "topology apply: exit {code}\n{out}{err}");
        Ok(())
    }

    /// A relay that consumes.
    pub async fn start_relay(&self) -> Result<Process> {
        let mut relay = self.launch_relay()?;
        relay.line_with("\"consuming\"", LIMIT).await?;
        Ok(relay)
    }

    /// A relay, whatever comes of it.
    pub fn launch_relay(&self) -> Result<Process> {
        let relay = self.settings.launch_relay()?;
        let mut outputs = self.outputs.lock().unwrap_or_else(PoisonError::into_inner);
        outputs.push(relay.kept_output());
        Ok(relay)
    }

    /// Everything the relays of this test wrote.
    pub fn output(&self) -> String {
        let outputs = self.outputs.lock().unwrap_or_else(PoisonError::into_inner);
        let text = |output: &Output| output.lock().unwrap_or_else(PoisonError::into_inner).clone();
        outputs.iter().map(text).collect()
    }

    /// Waits until a customer has so many applied updates.
    pub async fn applied(&self, entity_id: &str, count: u64) -> Result<Value> {
        self.simulator.applied(entity_id, count, LIMIT).await
    }

    /// Takes the next dead letter, waiting for it.
    pub async fn dead_letter(&self) -> Result<Taken> {
        self.queues.take(&self.queue("dead"), LIMIT).await
    }

    /// Ends a relay in an orderly way, then [`finish`](Self::finish); what the relays wrote.
    pub async fn end(self, relay: Process) -> Result<String> {
        self.nothing_waits().await?;
        relay::stop(relay).await?;
        let output = self.output();
        self.finish().await?;
        Ok(output)
    }

    /// The same, where a queue holds what no library can read.
    pub async fn end_without(self, relay: Process, queue: &str) -> Result<String> {
        self.queues.purge(queue).await?;
        self.end(relay).await
    }

    /// What is sent once more, or handed back, waits for a moment yet; what stays is found at the end.
    async fn nothing_waits(&self) -> Result<()> {
        let (work, tiers) = self.ways().await?;
        let end = Instant::now() + GIVEN_TO_END;
        // A message between two queues, or in hand, is in none of the counts for a moment.
        let mut empty_looks = 0;
        while empty_looks < 4 && Instant::now() < end {
            let waiting = held::ready(self, &work, &tiers).await?;
            empty_looks = if waiting == 0 { empty_looks + 1 } else { 0 };
            tokio::time::sleep(Duration::from_millis(40)).await;
        }
        Ok(())
    }

    /// Asserts that nothing is left in any queue of the topology, and deletes it.
    pub async fn finish(mut self) -> Result<()> {
        let topology = topology(&self.settings).await?;
        let mut left = std::collections::BTreeMap::new();
        for queue in topology["queues"].as_array().context("no queues")? {
            let name = queue["name"].as_str().context("no name")?;
            let depth = self.queues.depth(name).await?;
            if depth > 0 && holds_events(name) {
                left.insert(name.to_owned(), depth);
            }
        }
        if !left.is_empty() {
            let mut messages = Vec::new();
            for queue in left.keys() {
                for taken in self.queues.look_at_all(queue).await? {
                    let body = String::from_utf8_lossy(&taken.body).into_owned();
                    messages.push(format!("{body} {:?}", taken.headers()));
                }
            }
            bail!("left in queues: {left:?}\n{}", messages.join("\n"));
        }
        let left = self.queues.delete(&topology).await?;
        self.is_finished = true;
        ensure!(left.is_empty(), "left in queues: {left:?}");
        Ok(())
    }

    #[expect(clippy::print_stderr, reason = "whoever reads of the failure needs it")]
    fn show_outputs(&self) {
        let output = self.output();
        let lines: Vec<&str> = output.lines().collect();
        let shown = lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n");
        eprintln!("{} failed; the last its relays wrote:\n{shown}", self.name);
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if self.is_finished {
            return;
        }
        self.show_outputs();
        let (settings, url) = (self.settings.clone(), self.url.clone());
        self.cleanups.spawn(async move {
            let delete = async {
                let topology = topology(&settings).await?;
                Queues::connect(&url).await?.delete(&topology).await
            };
            // A test that broke its broker has nothing left to delete.
            drop(tokio::time::timeout(Duration::from_secs(10), delete).await);
        });
    }
}

async fn topology(settings: &Settings) -> Result<Value> {
    let (code, out, err) = settings.command(&["topology", "show", "--json"], b"").await?;
    ensure!(code == 0, "topology show: exit {code}\n{err}");
    Ok(serde_json::from_str(&out)?)
}

fn stamped(properties: BasicProperties) -> BasicProperties {
    if properties.timestamp().is_some() {
        return properties;
    }
    let now = jiff::Timestamp::now().as_second();
    properties.with_timestamp(u64::try_from(now).unwrap_or_default())
}

/// The properties of a structured event.
pub fn structured() -> BasicProperties {
    BasicProperties::default()
        .with_content_type("application/cloudevents+json".into())
        .with_delivery_mode(2)
}
