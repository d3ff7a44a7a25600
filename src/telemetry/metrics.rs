//! Metrics, recorded: one method for each thing that happens. Gauges are read when somebody asks.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Gauge, Histogram, Meter};
use prometheus::{Encoder as _, Registry, TextEncoder};

use super::instruments::{self as all, Instrument};
use super::lines;
use super::refusal::Refusal;
use crate::clock;
use crate::domain::breaker::Kind;
use crate::domain::clock_offset::Source;
use crate::domain::dead_letter::Reason;
use crate::domain::outcome::Outcome;
use crate::domain::response::Judgement;
use crate::domain::verdict::Verdict;
use crate::health::{Health, Reading, age};

/// The instruments that are recorded as things happen.
#[derive(Debug)]
pub struct Metrics {
    queue: [KeyValue; 1],
    consumed: Counter<u64>,
    process_duration: Histogram<f64>,
    sent: Counter<u64>,
    call_duration: Histogram<f64>,
    verdicts: Counter<u64>,
    attempts: Counter<u64>,
    event_lag: Histogram<f64>,
    withheld: Counter<u64>,
    unwitnessed: Counter<u64>,
    lost: Counter<u64>,
    commit_duration: Histogram<f64>,
    commit_changes: Histogram<f64>,
    in_doubt: Counter<u64>,
    admin_connections: Gauge<u64>,
    admin_refused: Counter<u64>,
}

impl Metrics {
    /// Makes every instrument. Series whose labels are known begin with 0, so that their first
    /// increase is one.
    pub(super) fn new(meter: &Meter, work_queue: &str, health: &Arc<Health>) -> Metrics {
        observe(meter, health);
        observe_log(meter);
        let metrics = Metrics {
            queue: [destination(work_queue)],
            consumed: all::CONSUMED.counter(meter),
            process_duration: all::PROCESS_DURATION.histogram(meter),
            sent: all::SENT.counter(meter),
            call_duration: all::CALL_DURATION.histogram(meter),
            verdicts: all::VERDICTS.counter(meter),
            attempts: all::ATTEMPTS.counter(meter),
            event_lag: all::EVENT_LAG.histogram(meter),
            withheld: all::FIELDS_WITHHELD.counter(meter),
            unwitnessed: all::UNWITNESSED.counter(meter),
            lost: all::DELIVERIES_LOST.counter(meter),
            commit_duration: all::COMMIT_DURATION.histogram(meter),
            commit_changes: all::COMMIT_CHANGES.histogram(meter),
            in_doubt: all::LEDGER_IN_DOUBT.counter(meter),
            admin_connections: all::ADMIN_CONNECTIONS.gauge(meter),
            admin_refused: all::ADMIN_REFUSED.counter(meter),
        };
        metrics.begin();
        metrics
    }

    fn begin(&self) {
        self.consumed.add(0, &self.queue);
        self.withheld.add(0, &[]);
        for verdict in ["applied", "superseded", "ignored", "retry", "wait"] {
            self.verdicts.add(0, &[KeyValue::new("verdict", verdict)]);
        }
        for reason in Reason::ALL {
            self.verdicts.add(0, &dead_letter(reason));
        }
        for outcome in Outcome::ALL {
            self.attempts.add(0, &[KeyValue::new("outcome", outcome.name())]);
        }
        for verdict in ["wait", "dead-letter"] {
            self.unwitnessed.add(0, &[KeyValue::new("verdict", verdict)]);
        }
        for kind in ["doubled", "forgotten"] {
            self.lost.add(0, &[KeyValue::new("kind", kind)]);
        }
        for end in ["sent", "held", "refused"] {
            self.in_doubt.add(0, &[KeyValue::new("end", end)]);
        }
        self.admin_connections(0);
        for refusal in Refusal::ALL {
            self.admin_refused.add(0, &[KeyValue::new("reason", refusal.name())]);
        }
    }

    /// A delivery was taken.
    pub fn consumed(&self) {
        self.consumed.add(1, &self.queue);
    }

    /// A delivery was settled and acked, so long after it came.
    pub fn settled(&self, verdict: &Verdict, took: Duration) {
        let name = [KeyValue::new("verdict", verdict.name())];
        match verdict.reason() {
            Some(reason) => self.verdicts.add(1, &dead_letter(reason)),
            None => self.verdicts.add(1, &name),
        }
        self.process_duration.record(took.as_secs_f64(), &name);
    }

    /// A message went to a queue, or did not.
    pub fn sent(&self, queue: &str, error: Option<&'static str>) {
        match error {
            None => self.sent.add(1, &[destination(queue)]),
            Some(error) => {
                self.sent.add(1, &[destination(queue), KeyValue::new("error.type", error)]);
            }
        }
    }

    /// A call of the portal has ended.
    pub fn called(&self, judgement: &Judgement, took: Duration) {
        let status = judgement.http_status.map(|status| KeyValue::new(STATUS, i64::from(status)));
        let failed = judgement.outcome != Outcome::Applied;
        let error = failed.then(|| KeyValue::new("error.type", judgement.outcome.name()));
        let seconds = took.as_secs_f64();
        match (status, error) {
            (Some(status), Some(error)) => self.call_duration.record(seconds, &[status, error]),
            (Some(one), None) | (None, Some(one)) => self.call_duration.record(seconds, &[one]),
            (None, None) => self.call_duration.record(seconds, &[]),
        }
    }

    /// An attempt has ended.
    pub fn attempted(&self, outcome: Outcome) {
        self.attempts.add(1, &[KeyValue::new("outcome", outcome.name())]);
    }

    /// An event was applied. A CRM's clock may be ahead of ours.
    pub fn applied(&self, time: Option<Timestamp>, now: Timestamp) {
        if let Some(time) = time {
            self.event_lag.record(now.duration_since(time).as_secs_f64().max(0.0), &[]);
        }
    }

    /// Fields were kept from overwriting newer values.
    pub fn withheld(&self, fields: usize) {
        if fields > 0 {
            self.withheld.add(fields as u64, &[]);
        }
    }

    /// This is the verdict because no other call could tell whose fault it was.
    pub fn unwitnessed(&self, verdict: &Verdict) {
        self.unwitnessed.add(1, &[KeyValue::new("verdict", verdict.name())]);
    }

    /// A delivery came to its end, but its ack was lost.
    pub fn doubled(&self) {
        self.lost.add(1, &[KeyValue::new("kind", "doubled")]);
    }

    /// A delivery was lost before its end.
    pub fn forgotten(&self) {
        self.lost.add(1, &[KeyValue::new("kind", "forgotten")]);
    }

    /// So many changes were committed at once.
    pub fn committed(&self, changes: usize, took: Duration) {
        self.commit_duration.record(took.as_secs_f64(), &[]);
        #[expect(clippy::cast_precision_loss, reason = "a few hundred at most")]
        self.commit_changes.record(changes as f64, &[]);
    }

    /// An event in doubt has come to this end, if it is one.
    pub fn in_doubt(&self, verdict: &Verdict) {
        let end = match (verdict, verdict.reason()) {
            (Verdict::Applied, _) => "sent",
            (_, Some(Reason::InDoubt)) => "held",
            (_, Some(_)) => "refused",
            (_, None) => return,
        };
        self.in_doubt.add(1, &[KeyValue::new("end", end)]);
    }

    /// So many connections are open at the admin port.
    pub fn admin_connections(&self, open: usize) {
        self.admin_connections.record(open as u64, &[]);
    }

    /// The admin port has closed a connection that its client did not want to end.
    pub fn admin_refused(&self, refusal: Refusal) {
        self.admin_refused.add(1, &[KeyValue::new("reason", refusal.name())]);
    }
}

const STATUS: &str = "http.response.status_code";

fn destination(queue: &str) -> KeyValue {
    KeyValue::new("messaging.destination.name", queue.to_owned())
}

fn dead_letter(reason: Reason) -> [KeyValue; 2] {
    [KeyValue::new("verdict", "dead-letter"), KeyValue::new("reason", reason.name())]
}

/// What a gauge says: its value, or one for each label.
type Points = Vec<(f64, Option<KeyValue>)>;
type Read = fn(&Reading) -> Points;

fn observe(meter: &Meter, health: &Arc<Health>) {
    let gauges: [(Instrument, Read); 15] = [
        (all::DELIVERIES_IN_HAND, |now| number(now.in_hand)),
        (all::DELIVERIES_LIMIT, |now| number(now.in_hand_at_most)),
        (all::CALLS_IN_FLIGHT, |now| number(now.calls as u64)),
        (all::BREAKER_STATE, |now| {
            let states = ["closed", "open", "half-open"].into_iter();
            states.map(|state| point(now.breaker == state, "state", state)).collect()
        }),
        (all::OUTAGE, |now| {
            let kinds = Kind::ALL.into_iter();
            kinds.map(|kind| point(now.outage == Some(kind), "kind", kind.name())).collect()
        }),
        (all::PAUSED, |now| number(now.is_paused.into())),
        (all::ACTIVE, |now| number((now.is_connected && now.is_active).into())),
        (all::BROKER_CONNECTED, |now| number(now.is_connected.into())),
        (all::QUEUE_MESSAGES, |now| {
            let Some(depths) = now.depths else { return Points::new() };
            let queues = [
                ("work", depths.work),
                ("retry", depths.retry),
                ("dead", depths.dead),
                ("archive", depths.archive),
            ];
            queues.map(|(queue, depth)| (float(depth), Some(KeyValue::new("queue", queue)))).into()
        }),
        (all::OUT_OF_STEP, |now| {
            now.out_of_step.map_or_else(Points::new, |seen| number(seen.customers))
        }),
        (all::OUT_OF_STEP_AGE, |now| {
            let age = now.out_of_step.map(|seen| age(seen, clock::now()).as_secs_f64());
            age.map(|age| (age, None)).into_iter().collect()
        }),
        (all::LEDGER_HEALTHY, |now| number(now.is_ledger_healthy.into())),
        (all::LEDGER_UNREADABLE_ROWS, |now| number(now.unreadable_rows as u64)),
        (all::FUSE_BLOWN, |now| number(now.is_fuse_blown.into())),
        (all::CLOCK_OFFSET, |now| {
            let known = Source::ALL.into_iter().zip(now.clock_offsets);
            let label = |source: Source| Some(KeyValue::new("source", source.name()));
            known.filter_map(|(source, offset)| Some((offset?, label(source)))).collect()
        }),
    ];
    for (gauge, read) in gauges {
        let health = Arc::clone(health);
        let observed = meter.f64_observable_gauge(gauge.name).with_unit(gauge.unit);
        observed
            .with_description(gauge.meaning)
            .with_callback(move |observer| {
                for (value, label) in read(&health.reading()) {
                    observer.observe(value, label.as_slice());
                }
            })
            .build();
    }
}

fn observe_log(meter: &Meter) {
    let dropped = all::LOG_LINES_DROPPED;
    let observed = meter.u64_observable_counter(dropped.name).with_unit(dropped.unit);
    let observed = observed.with_description(dropped.meaning);
    observed.with_callback(|observer| observer.observe(lines::dropped(), &[])).build();
}

fn number(number: u64) -> Points {
    vec![(float(number), None)]
}

fn point(is_so: bool, name: &'static str, value: &'static str) -> (f64, Option<KeyValue>) {
    (float(is_so.into()), Some(KeyValue::new(name, value)))
}

#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
fn float(number: u64) -> f64 {
    number as f64
}

/// All metrics, for Prometheus.
#[derive(Clone, Debug)]
pub struct Exposition(pub(super) Registry);

impl Exposition {
    /// The type of [`text`](Self::text).
    pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

    /// As they are now, in Prometheus' text format.
    pub fn text(&self) -> Result<Vec<u8>, String> {
        let mut text = Vec::new();
        let encoded = TextEncoder::new().encode(&self.0.gather(), &mut text);
        encoded.map(|()| text).map_err(|error| error.to_string())
    }
}
