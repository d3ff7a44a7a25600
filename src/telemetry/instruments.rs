//! Every instrument: its name, kind, unit, labels and meaning. The README's table and the alert
//! rules are held against this one. Labels come from small fixed sets; none holds an id.

use opentelemetry::metrics::{Counter, Gauge, Histogram, Meter};

/// What an instrument does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// How often what size came.
    Histogram,
    /// How it is now.
    Gauge,
}

/// One instrument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instrument {
    /// Its OpenTelemetry name.
    pub name: &'static str,
    /// What it does.
    pub kind: Kind,
    /// UCUM; empty for none.
    pub unit: &'static str,
    /// Its attributes.
    pub labels: &'static [&'static str],
    /// What it says.
    pub meaning: &'static str,
}

macro_rules! instruments {
    ($($constant:ident = $kind:ident $name:literal [$unit:literal] ($($label:literal),*) $meaning:literal;)+) => {
        $(
            #[doc = $meaning]
            pub const $constant: Instrument = Instrument {
                name: $name,
                kind: Kind::$kind,
                unit: $unit,
                labels: &[$($label),*],
                meaning: $meaning,
            };
        )+

        /// Every instrument.
        pub const ALL: &[Instrument] = &[$($constant),+];
    };
}

instruments! {
    CONSUMED = Counter "messaging.client.consumed.messages" ["{message}"]
        ("messaging.destination.name") "deliveries taken from the work queue";
    PROCESS_DURATION = Histogram "messaging.process.duration" ["s"]
        ("verdict") "from delivery to ack";
    SENT = Counter "messaging.client.sent.messages" ["{message}"]
        ("messaging.destination.name", "error.type") "messages sent to retry tiers and the dead-letter queue; `error.type` on failure only";
    CALL_DURATION = Histogram "http.client.request.duration" ["s"]
        ("http.response.status_code", "error.type") "calls of the portal";
    VERDICTS = Counter "customer_relay.verdicts" ["{delivery}"]
        ("verdict", "reason") "how deliveries ended; `reason` for dead letters only";
    ATTEMPTS = Counter "customer_relay.attempts" ["{attempt}"]
        ("outcome") "what attempts came to";
    EVENT_LAG = Histogram "customer_relay.event.lag" ["s"]
        () "from an event's time to its being applied";
    FIELDS_WITHHELD = Counter "customer_relay.fields.withheld" ["{field}"]
        () "fields kept from overwriting newer values";
    UNWITNESSED = Counter "customer_relay.unwitnessed" ["{delivery}"]
        ("verdict") "that nobody could tell whose fault it was: kept waiting (`wait`), or a `dead-letter` with the flag";
    DELIVERIES_LOST = Counter "customer_relay.deliveries.lost" ["{delivery}"]
        ("kind") "lost with their session: `doubled` (settled, the ack lost), `forgotten` (no end yet)";
    DELIVERIES_IN_HAND = Gauge "customer_relay.deliveries.in_hand" ["{delivery}"]
        () "deliveries without an end yet";
    DELIVERIES_LIMIT = Gauge "customer_relay.deliveries.limit" ["{delivery}"]
        () "how many may be in hand: `broker.prefetch` and `worker.in_flight`";
    CALLS_IN_FLIGHT = Gauge "customer_relay.calls.in_flight" ["{call}"]
        () "calls under way";
    BREAKER_STATE = Gauge "customer_relay.breaker.state" [""]
        ("state") "1 for the state that the breaker is in: `closed`, `open`, `half-open`";
    OUTAGE = Gauge "customer_relay.outage" [""]
        ("kind") "1 for the kind of outage, while there is one";
    PAUSED = Gauge "customer_relay.paused" [""]
        () "1: an operator, or the fuse, has paused the relay";
    ACTIVE = Gauge "customer_relay.active" [""]
        () "1: it consumes; 0: standby, or no session with the broker";
    BROKER_CONNECTED = Gauge "customer_relay.broker.connected" [""]
        () "1: there is a session with the broker";
    QUEUE_MESSAGES = Gauge "customer_relay.queue.messages" ["{message}"]
        ("queue") "messages ready in `work`, `retry` (all tiers), `dead`, `archive`; told by the active relay";
    OUT_OF_STEP = Gauge "customer_relay.customers.out_of_step" ["{customer}"]
        () "customers with an event that waits for a retry or is a dead letter";
    OUT_OF_STEP_AGE = Gauge "customer_relay.out_of_step.age" ["s"]
        () "for how long the first of them has been out of step";
    COMMIT_DURATION = Histogram "customer_relay.ledger.commit.duration" ["s"]
        () "commits of the ledger";
    COMMIT_CHANGES = Histogram "customer_relay.ledger.commit.changes" ["{change}"]
        () "changes in one commit";
    LEDGER_HEALTHY = Gauge "customer_relay.ledger.healthy" [""]
        () "0: the ledger cannot be read or written";
    LEDGER_UNREADABLE_ROWS = Gauge "customer_relay.ledger.unreadable_rows" ["{customer}"]
        () "customers whose rows in the ledger cannot be read; their events wait";
    LEDGER_IN_DOUBT = Counter "customer_relay.ledger.in_doubt" ["{event}"]
        ("end") "events that may be older than what a restored ledger does not know: `sent`, `held` (a dead letter, `in-doubt`), `refused` (another dead letter)";
    FUSE_BLOWN = Gauge "customer_relay.fuse.blown" [""]
        () "1: one of our rules refuses most customers";
    CLOCK_OFFSET = Gauge "customer_relay.clock.offset" ["s"]
        ("source") "our clock minus another one, negative while ours is behind: the `portal`'s, the `database`'s, the `broker`'s, or what `events` say of one that is behind; none while that is not known";
    LOG_LINES_DROPPED = Counter "customer_relay.log.lines.dropped" ["{line}"]
        () "log lines dropped because nobody read standard error in time";
    ADMIN_CONNECTIONS = Gauge "customer_relay.admin.connections" ["{connection}"]
        () "connections open at the admin port";
    ADMIN_REFUSED = Counter "customer_relay.admin.connections.refused" ["{connection}"]
        ("reason") "connections that the admin port closed: `full`, `displaced` (by a newer one), `slow-head`, `slow-body`, `slow-reader`, `too-large`";
}

/// From a millisecond to a minute.
const SECONDS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];
/// From at once to a week.
const LAG_SECONDS: [f64; 12] =
    [0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0, 21600.0, 86400.0, 604_800.0];
const CHANGES: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

impl Instrument {
    /// The name that Prometheus knows it by.
    pub fn prometheus_name(&self) -> String {
        let unit = if self.unit == "s" { "_seconds" } else { "" };
        let total = if self.kind == Kind::Counter { "_total" } else { "" };
        format!("{}{unit}{total}", self.name.replace('.', "_"))
    }

    pub(super) fn counter(&self, meter: &Meter) -> Counter<u64> {
        let counter = meter.u64_counter(self.name).with_unit(self.unit);
        counter.with_description(self.meaning).build()
    }

    /// A gauge that is told of each change.
    pub(super) fn gauge(&self, meter: &Meter) -> Gauge<u64> {
        meter.u64_gauge(self.name).with_unit(self.unit).with_description(self.meaning).build()
    }

    pub(super) fn histogram(&self, meter: &Meter) -> Histogram<f64> {
        let bounds = match *self {
            EVENT_LAG => LAG_SECONDS.to_vec(),
            COMMIT_CHANGES => CHANGES.to_vec(),
            _ => SECONDS.to_vec(),
        };
        let histogram = meter.f64_histogram(self.name).with_unit(self.unit);
        histogram.with_description(self.meaning).with_boundaries(bounds).build()
    }
}
