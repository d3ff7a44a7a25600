//! What all measurements stand on: one broker, and for each drain names, queues and a portal of its
//! own, gone afterwards.

use std::fs;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use serde_json::{Value, json};

use crate::support::broker::{self, Broker};
use crate::support::eventually;
use crate::support::queues::Queues;
use crate::support::relay::Settings;
use crate::support::simulator::Simulator;

const LIMIT: Duration = Duration::from_secs(30);

/// What is drained, and with which settings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) events: u32,
    pub(crate) prefetch: u32,
    pub(crate) in_flight: u32,
    /// How long the portal takes for a call.
    pub(crate) latency: Duration,
}

impl Load {
    /// A portal that answers at once; the relay's own defaults.
    pub(crate) fn fast(events: u32) -> Load {
        Load { events, prefetch: 100, in_flight: 32, latency: Duration::ZERO }
    }

    /// A portal that is far away.
    pub(crate) fn slow(events: u32) -> Load {
        Load { events, prefetch: 128, in_flight: 64, latency: Duration::from_millis(200) }
    }

    /// As many messages in hand as the memory budget is for.
    pub(crate) fn wide(events: u32) -> Load {
        Load { prefetch: 500, in_flight: 128, ..Load::fast(events) }
    }
}

/// The broker, and a connection to it.
pub(crate) struct Bed {
    broker: Broker,
    queues: Queues,
    stages: AtomicU32,
}

impl Bed {
    /// Starts the newest broker that can be had.
    pub(crate) async fn start() -> Result<Bed> {
        let source = broker::available().await?.pop().context("no broker")?;
        let broker = source.start().await?;
        let queues = Queues::connect(&broker.url()).await?;
        Ok(Bed { broker, queues, stages: AtomicU32::new(0) })
    }

    /// Ends the broker.
    pub(crate) async fn stop(self) -> Result<()> {
        self.broker.stop().await
    }

    /// Machine and broker, in one line.
    pub(crate) fn description(&self) -> String {
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
        let model = model.unwrap_or_default().trim_matches([' ', '\t', ':']);
        let (version, kind) = (self.broker.version(), self.broker.kind());
        format!("{cores} cores {model}, RabbitMQ {version} ({kind:?}), all of it on one machine")
    }

    /// The broker's URL.
    pub(crate) fn broker_url(&self) -> String {
        self.broker.url()
    }

    /// A private stage, its queues declared by the relay's own `topology apply`.
    pub(crate) async fn stage(&self, load: &Load) -> Result<Stage<'_>> {
        let number = self.stages.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("bench-{}-{number}", std::process::id());
        let latency = format!("{}ms", load.latency.as_millis());
        let simulator = Simulator::start(&["--log-requests", "0", "--latency", &latency]).await?;
        let mut settings = Settings::new(&self.broker.url(), &prefix, &simulator);
        let state = tempfile::tempdir()?;
        settings.keep_ledger_in(state.path());
        settings.set("broker.prefetch", &load.prefetch.to_string());
        settings.set("worker.in_flight", &load.in_flight.to_string());
        let (code, _, error) = settings.command(&["topology", "apply"], b"").await?;
        ensure!(code == 0, "the topology cannot be declared: {error}");
        let (_, topology, _) = settings.command(&["topology", "show", "--json"], b"").await?;
        let topology = serde_json::from_str(&topology)?;
        Ok(Stage { bed: self, prefix, load: *load, simulator, settings, topology, _state: state })
    }
}

/// Names, queues and a portal for one candidate's turn.
pub(crate) struct Stage<'a> {
    pub(crate) bed: &'a Bed,
    pub(crate) load: Load,
    pub(crate) simulator: Simulator,
    pub(crate) settings: Settings,
    prefix: String,
    topology: Value,
    /// The relay's ledger.
    _state: tempfile::TempDir,
}

impl Stage<'_> {
    /// The queue that candidates consume.
    pub(crate) fn work_queue(&self) -> String {
        format!("{}.work", self.prefix)
    }

    /// Waits until a candidate consumes.
    pub(crate) async fn consumed(&self) -> Result<()> {
        self.has_consumers(1).await
    }

    async fn has_consumers(&self, count: u32) -> Result<()> {
        eventually(&format!("{count} consumers"), LIMIT, || async {
            let channel = self.bed.queues.new_channel().await?;
            let passive = QueueDeclareOptions::default().passive();
            let queue = self.work_queue();
            let state = channel.queue_declare(queue.into(), passive, FieldTable::default()).await?;
            channel.close(200, "looked".into()).await?;
            Ok((state.consumer_count() == count).then_some(()))
        })
        .await
    }

    /// Publishes the events of these customers, each a snapshot of all fields, confirmed.
    pub(crate) async fn publish(&self, customers: Range<u32>) -> Result<()> {
        let events: Vec<Value> = customers.map(snapshot).collect();
        self.bed.queues.publish_events(&format!("{}.events", self.prefix), &events).await
    }

    /// Waits until the portal has applied one update for each event, and had no other calls.
    pub(crate) async fn applied(&self, limit: Duration) -> Result<()> {
        let events = u64::from(self.load.events);
        let stats = eventually("all updates applied", limit, || async {
            let stats = self.simulator.stats().await?;
            Ok((stats["applied"].as_u64() >= Some(events)).then_some(stats))
        })
        .await?;
        ensure!(stats["calls"].as_u64() == Some(events), "calls in vain: {stats}");
        Ok(())
    }

    /// Deletes everything; fails if a message is left. The candidate has ended, so whatever it did
    /// not ack is back in the queue.
    pub(crate) async fn delete(self) -> Result<()> {
        self.has_consumers(0).await?;
        let left = self.bed.queues.delete(&self.topology).await?;
        ensure!(left.is_empty(), "left in the queues: {left:?}");
        Ok(())
    }
}

/// One customer's update.
fn snapshot(customer: u32) -> Value {
    json!({
        "specversion": "1.0", "id": format!("evt-{customer:012}"), "source": "/crm/customers",
        "type": "customer.updated", "time": "2025-11-22T09:30:00.123456Z",
        "sequence": format!("{customer:020}"), "datacontenttype": "application/json",
        "data": {
            "entity_id": customer_id(customer), "email": format!("customer.{customer}@example.com"),
            "mobile_no": format!("9{customer:09}"), "address": "12 Mahatma Gandhi Road Ernakulam",
            "country": "India", "city": "Kochi", "state": "Kerala", "pincode": "682308"
        }
    })
}

fn customer_id(customer: u32) -> String {
    format!("CUST{customer:08}")
}

/// Which customer an id names.
pub(crate) fn customer_of(id: &str) -> Option<u32> {
    id.strip_prefix("CUST")?.parse().ok()
}
