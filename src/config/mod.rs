//! The configuration: layers, then one validated [`Config`] or all mistakes at once.

mod layers;
mod reader;
mod secrets;
mod show;

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use serde_json::Value;
use url::Url;

pub use layers::{DEFAULTS, Layers, Sources};
pub use reader::{Mistake, Mistakes};
pub use secrets::{Secret, read_file as read_secret};

use crate::amqp::Broker;
use crate::amqp::topology::Topology;
use crate::domain::admission::Rules;
use crate::domain::breaker::OutagePolicy;
use crate::domain::controls::ControlCalls;
use crate::domain::doubt::OnDoubt;
use crate::domain::event::Mapping;
use crate::domain::faults::FaultPolicy;
use crate::domain::field::PerField;
use crate::domain::gate::GatePolicy;
use crate::domain::group::Order;
use crate::domain::request::FieldOrder;
use crate::domain::retry::{RetryPolicy, Tiers};
use crate::domain::turn::TurnPolicy;
use crate::domain::update::{AddressPolicy, FieldPolicies, SpacePolicy, Update};
use crate::domain::version::{OrderBy, Required, Sequences};
use crate::ledger::Target;
use crate::pauses::ImmediatePolicy;
use crate::telemetry::log;
use crate::telemetry::trace::PublisherTrace;
use reader::Reader;

/// Which settings a command cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Those with defaults are enough.
    Broker,
    /// The portal's secret key too.
    SecretKey,
    /// The admin port's token too.
    AdminToken,
    /// All that the portal needs.
    Portal,
}

/// Every setting, checked.
#[derive(Debug)]
pub struct Config {
    /// `broker.*`
    pub broker: BrokerConfig,
    /// `event.*`, `mapping.*` and `fields.*`
    pub rules: Rules,
    /// `portal.*`
    pub portal: PortalConfig,
    /// `worker.*`
    pub worker: WorkerConfig,
    /// `outage.*`, with what else the gate needs
    pub outage: OutageConfig,
    /// `retry.*`, the delayed ones
    pub retry: RetryPolicy,
    /// `retry.immediate_*`
    pub immediate: ImmediatePolicy,
    /// `order.by`
    pub order_by: OrderBy,
    /// `ledger.*`
    pub ledger: LedgerConfig,
    /// `admin.*`
    pub admin: AdminConfig,
    /// `log.*`
    pub log: LogConfig,
    /// `telemetry.publisher_trace`
    pub publisher_trace: PublisherTrace,
}

/// The broker and our place in it.
#[derive(Debug)]
pub struct BrokerConfig {
    /// How to reach it.
    pub broker: Broker,
    /// The queues.
    pub topology: Topology,
    /// Whether missing queues are declared.
    pub declare: Declare,
    /// Unacked deliveries at once.
    pub prefetch: u16,
    /// Limit of each operation on it.
    pub operation_timeout: Duration,
    /// Longest pause between two tries to reconnect.
    pub max_reconnect_pause: Duration,
}

/// Who owns the queues' definitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Declare {
    /// We do.
    Apply,
    /// The broker's operators do.
    Check,
}

/// The portal and how we call it.
#[derive(Debug)]
pub struct PortalConfig {
    /// The whole URL of the call; `None` if no base URL is set and none is needed.
    pub url: Option<Url>,
    /// The `token` header.
    pub token: Secret,
    /// What signs each call.
    pub secret_key: Secret,
    /// The order of values in hash and body.
    pub field_order: FieldOrder,
    /// Limit for the connection.
    pub connect_timeout: Duration,
    /// Limit for the whole call.
    pub timeout: Duration,
    /// Most of an answer that is read, in bytes.
    pub max_answer_bytes: usize,
    /// Most calls that begin within a second; `None` for no limit.
    pub max_rate: Option<NonZeroU32>,
    /// How long a call may be under way at the portal after we gave it up.
    pub settle_after: Duration,
    /// An update that may be sent at any time, to tell our faults from an event's.
    pub probe_customer: Option<Update>,
}

/// How outages are noticed and sat out.
#[derive(Clone, Copy, Debug)]
pub struct OutageConfig {
    /// The gate's rules.
    pub gate: GatePolicy,
    /// How long deliveries are kept during an outage before they are handed back.
    pub hold: Duration,
    /// What a blown fuse does.
    pub fuse: FuseAction,
}

/// What happens when one of our rules refuses most customers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FuseAction {
    /// It is said.
    Alert,
    /// It is said, and the relay pauses.
    Pause,
}

/// The worker's limits.
#[derive(Clone, Copy, Debug)]
pub struct WorkerConfig {
    /// Calls under way at once.
    pub in_flight: usize,
    /// What calls under way get at shutdown.
    pub grace_period: Duration,
    /// Whether events of one customer that wait together go as one call.
    pub merges: bool,
}

/// Where it is kept what the portal has.
#[derive(Clone, Debug)]
pub struct LedgerConfig {
    /// Where.
    pub target: Target,
    /// How long customers are kept that nothing is heard of; `None`: for ever.
    pub retention: Option<Duration>,
    /// What is done with an event that may overwrite what an older copy of the ledger does not know.
    pub on_doubt: OnDoubt,
}

/// The port for operators.
#[derive(Clone, Debug)]
pub struct AdminConfig {
    /// Where it listens; `None`: there is none.
    pub listen: Option<SocketAddr>,
    /// What a caller must show.
    pub token: Secret,
    /// Connections at once.
    pub max_connections: usize,
    /// Limit for a request's head, and again for its body.
    pub request_timeout: Duration,
    /// Limit for a client that does not read its answer.
    pub answer_timeout: Duration,
    /// Limit between two requests of a connection.
    pub idle_timeout: Duration,
}

/// Log lines.
#[derive(Debug)]
pub struct LogConfig {
    /// Which.
    pub filter: String,
    /// Their look.
    pub format: log::Format,
}

/// RabbitMQ closes the channel of a consumer that keeps a delivery for half an hour.
const MAX_HOLD: Duration = Duration::from_mins(10);

/// A visitor of the admin port has no longer for anything.
const MAX_ADMIN_TIMEOUT: Duration = Duration::from_mins(10);

/// Ten years.
const LONGEST_RETENTION: Duration = Duration::from_hours(24 * 3653);

/// The path of the call, as the portal's page gives it.
const PORTAL_PATH: &str = "/airpay/ms/cards/api/update-customer";

impl Config {
    /// What a customer's turn goes by.
    pub fn turn_policy(&self) -> TurnPolicy<'_> {
        TurnPolicy {
            order: Order { by: self.order_by, settle_after: self.portal.settle_after },
            merges: self.worker.merges,
            on_doubt: self.ledger.on_doubt,
            retry: &self.retry,
        }
    }

    /// Reads every layer and checks every setting. All mistakes are told at once.
    pub fn load(layers: &Layers, needs: Needs) -> Result<Config, Mistakes> {
        let mut reader = Reader::new(layers);
        let config = read(&mut reader, needs);
        reader.finish(config)
    }

    /// How many deliveries may be in hand at once.
    pub fn in_hand_at_most(&self) -> usize {
        usize::from(self.broker.prefetch) + self.worker.in_flight
    }

    /// How long the calls of one attempt can take: immediate retries begin within their budget, and
    /// a refused call is made once more with fresh credentials.
    pub fn longest_attempt(&self) -> Duration {
        self.immediate.budget + 2 * self.portal.timeout
    }
}

fn read(reader: &mut Reader<'_>, needs: Needs) -> Option<Config> {
    // Each part is read even if an earlier one failed: all mistakes at once.
    let retry = retry(reader);
    let immediate = immediate(reader);
    let broker = broker(reader, retry.as_ref().map(|retry| &retry.tiers));
    let rules = rules(reader);
    let portal = portal(reader, needs, rules.as_ref().map(|rules| &rules.fields));
    let worker = WorkerConfig {
        in_flight: reader.integer("worker.in_flight", 1..=2000),
        grace_period: reader.duration("worker.grace_period"),
        merges: reader.boolean("worker.merge"),
    };
    if let (Some(broker), Some(rules)) = (&broker, &rules) {
        bound_memory(reader, usize::from(broker.prefetch) + worker.in_flight, rules.max_bytes);
    }
    let outage = outage(reader, worker.in_flight);
    let order_by = reader.choice("order.by", &ORDER_BY);
    let ledger = ledger(reader);
    let admin = admin(reader, needs);
    let log = log(reader);
    let publisher = [("parent", PublisherTrace::Parent), ("link", PublisherTrace::Link)];
    let publisher_trace = reader.choice("telemetry.publisher_trace", &publisher);
    let (broker, rules, retry, outage) = (broker?, rules?, retry?, outage?);
    let (order_by, ledger, publisher_trace) = (order_by?, ledger?, publisher_trace?);
    Some(Config {
        broker,
        rules,
        portal,
        worker,
        outage,
        retry,
        immediate,
        order_by,
        ledger,
        admin,
        log,
        publisher_trace,
    })
}

fn bound_memory(reader: &mut Reader<'_>, deliveries: usize, max_bytes: usize) {
    const KEY: &str = "worker.max_bytes_in_hand";
    let allowed: usize = reader.integer(KEY, 1..=1 << 40);
    let wanted = deliveries.saturating_mul(max_bytes);
    if allowed < wanted {
        let problem = format!(
            "must hold event.max_bytes of broker.prefetch and worker.in_flight deliveries: {wanted} or \
             more, or lower one of those"
        );
        reader.mistake(KEY, &problem);
    }
}

fn ledger(reader: &mut Reader<'_>) -> Option<LedgerConfig> {
    let target = Target::parse(&reader.text("ledger.url"));
    let target = reader.accept("ledger.url", target);
    let retention = match reader.text("ledger.retention").as_str() {
        "off" => None,
        _ => Some(reader.duration_up_to("ledger.retention", LONGEST_RETENTION)),
    };
    let on_doubt = [("send", OnDoubt::Send), ("hold", OnDoubt::Hold)];
    let on_doubt = reader.choice("ledger.in_doubt", &on_doubt);
    Some(LedgerConfig { target: target?, retention, on_doubt: on_doubt? })
}

fn admin(reader: &mut Reader<'_>, needs: Needs) -> AdminConfig {
    const KEY: &str = "admin.listen";
    let listen = reader.text(KEY);
    let listen = if listen.is_empty() {
        None
    } else {
        let expected = "expected address and port, such as 127.0.0.1:9090";
        reader.accept(KEY, listen.parse().map_err(|_| expected))
    };
    let is_served = listen.is_some() && needs == Needs::Portal;
    let is_needed = is_served || needs == Needs::AdminToken;
    AdminConfig {
        listen,
        token: secrets::admin_token(reader, is_needed),
        max_connections: reader.integer("admin.max_connections", 8..=100_000),
        request_timeout: admin_timeout(reader, "admin.request_timeout"),
        answer_timeout: admin_timeout(reader, "admin.answer_timeout"),
        idle_timeout: admin_timeout(reader, "admin.idle_timeout"),
    }
}

fn admin_timeout(reader: &mut Reader<'_>, key: &str) -> Duration {
    let timeout = reader.duration(key);
    if timeout > MAX_ADMIN_TIMEOUT {
        reader.mistake(key, "must not exceed 10m");
    }
    timeout
}

fn outage(reader: &mut Reader<'_>, in_flight: usize) -> Option<OutageConfig> {
    let outage = OutagePolicy {
        first_probe: reader.duration("outage.first_probe"),
        max_probe_interval: reader.duration("outage.max_probe_interval"),
    };
    if outage.first_probe > outage.max_probe_interval {
        reader.mistake("outage.first_probe", "must not exceed outage.max_probe_interval");
    }
    let hold = reader.duration("outage.hold");
    if hold > MAX_HOLD {
        reader
            .mistake("outage.hold", "must not exceed 10m, a third of RabbitMQ's consumer timeout");
    }
    if hold <= reader.duration("outage.witness_wait") {
        reader
            .mistake("outage.hold", "must exceed outage.witness_wait: nothing would be found out");
    }
    let fuse = [("alert", FuseAction::Alert), ("pause", FuseAction::Pause)];
    let fuse = reader.choice("dead.fuse", &fuse)?;
    let faults = FaultPolicy {
        threshold: reader.integer("outage.threshold", 1..=100),
        patience: reader.duration("outage.witness_wait"),
        longest: hold,
    };
    let control_calls = [
        ("applied", ControlCalls::Applied),
        ("probe-customer", ControlCalls::ProbeCustomer),
        ("off", ControlCalls::Off),
    ];
    let control_calls = reader.choice("outage.control_calls", &control_calls)?;
    let gate = GatePolicy { outage, faults, control_calls, in_flight };
    Some(OutageConfig { gate, hold, fuse })
}

fn broker(reader: &mut Reader<'_>, tiers: Option<&Tiers>) -> Option<BrokerConfig> {
    let heartbeat = reader.duration("broker.heartbeat");
    let operation_timeout = reader.duration("broker.operation_timeout");
    let broker = Broker::try_new(&reader.text("broker.url"), heartbeat, operation_timeout);
    let broker = reader.accept("broker.url", broker);
    let exchange = reader.name("broker.exchange");
    let routing_key = reader.name("broker.routing_key");
    let prefix = reader.name("broker.prefix");
    let declare = [("apply", Declare::Apply), ("check", Declare::Check)];
    let declare = reader.choice("broker.declare", &declare).unwrap_or(Declare::Check);
    let prefetch = reader.integer("broker.prefetch", 1..=2000);
    let max_reconnect_pause = reader.duration("broker.max_reconnect_pause");
    let topology = Topology::new(&exchange, &routing_key, &prefix, tiers?);
    Some(BrokerConfig {
        broker: broker?,
        topology,
        declare,
        prefetch,
        operation_timeout,
        max_reconnect_pause,
    })
}

fn rules(reader: &mut Reader<'_>) -> Option<Rules> {
    let pointers = PerField::from_fn(|field| reader.pointer(&format!("mapping.{field}")));
    let mapping = Mapping { pointers, types: reader.list("event.types") };
    let other_types = [("dead", false), ("ignore", true)];
    let ignores_other_types = reader.choice("broker.other_types", &other_types);
    let max_bytes = reader.integer("event.max_bytes", 1..=134_217_728);
    let earliest_time = reader.past_time("event.earliest_time");
    let future_tolerance = reader.duration("event.future_tolerance");
    let future_limit = reader.duration("event.future_limit");
    let sequences = [("digits", Sequences::Digits), ("text", Sequences::Text)];
    let sequences = reader.choice("order.sequence", &sequences);
    let order = order(reader);
    let fields = fields(reader)?;
    let (required, orders_by_arrival) = order?;
    Some(Rules {
        mapping,
        ignores_other_types: ignores_other_types?,
        max_bytes,
        earliest_time: earliest_time?,
        future_tolerance,
        future_limit,
        fields,
        required,
        sequences: sequences?,
        orders_by_arrival,
    })
}

const ORDER_BY: [(&str, OrderBy); 2] = [("time", OrderBy::Time), ("sequence", OrderBy::Sequence)];

/// `order.require` and `order.missing`, held against `order.by`: together they compare nothing that cannot be.
fn order(reader: &mut Reader<'_>) -> Option<(Required, bool)> {
    let by = reader.choice("order.by", &ORDER_BY);
    let required = [
        ("", None),
        ("time", Some(Required::Time)),
        ("sequence", Some(Required::Sequence)),
        ("both", Some(Required::Both)),
        ("any", Some(Required::Any)),
    ];
    let required = reader.choice("order.require", &required);
    let missing = [("invalid", false), ("arrival", true)];
    let by_arrival = reader.choice("order.missing", &missing);
    let (by, required, by_arrival) = (by?, required?, by_arrival?);
    let required = required.unwrap_or(match by {
        OrderBy::Time => Required::Time,
        OrderBy::Sequence => Required::Sequence,
    });
    if matches!(
        (by, required),
        (OrderBy::Time, Required::Sequence) | (OrderBy::Sequence, Required::Time)
    ) {
        let problem =
            "must ask for what order.by names: events that may lack it cannot be compared by it";
        reader.mistake("order.require", problem);
    }
    if by_arrival
        && (by == OrderBy::Sequence || !matches!(required, Required::Time | Required::Any))
    {
        let problem = "\"arrival\" gives an event a time, and nothing else: it takes order.by = \"time\", and \
                       order.require = \"time\" or \"any\"";
        reader.mistake("order.missing", problem);
    }
    Some((required, by_arrival))
}

fn fields(reader: &mut Reader<'_>) -> Option<FieldPolicies> {
    let address = [
        ("reject", AddressPolicy::Reject),
        ("clean", AddressPolicy::Clean),
        ("keep", AddressPolicy::Keep),
    ];
    let spaces = [
        ("reject", SpacePolicy::Reject),
        ("squeeze", SpacePolicy::Squeeze),
        ("keep", SpacePolicy::Keep),
    ];
    let mobile_no_pattern = reader.pattern("fields.mobile_no_pattern");
    let foreign_pincode_pattern = reader.pattern("fields.foreign_pincode_pattern");
    let address = reader.choice("fields.address", &address);
    let city_spaces = reader.choice("fields.city_spaces", &spaces);
    let state_spaces = reader.choice("fields.state_spaces", &spaces);
    Some(FieldPolicies {
        entity_id_max_length: reader.integer("fields.entity_id_max_length", 1..=1000),
        mobile_no_normalize: reader.boolean("fields.mobile_no_normalize"),
        default_country: reader.text("fields.default_country"),
        mobile_no_pattern: mobile_no_pattern?,
        foreign_pincode_pattern: foreign_pincode_pattern?,
        address: address?,
        city_spaces: city_spaces?,
        state_spaces: state_spaces?,
    })
}

fn portal(reader: &mut Reader<'_>, needs: Needs, fields: Option<&FieldPolicies>) -> PortalConfig {
    let portal = needs == Needs::Portal;
    let secret_key = portal || needs == Needs::SecretKey;
    let order = reader.list("portal.field_order");
    let order = FieldOrder::try_new(order.iter().map(String::as_str));
    PortalConfig {
        url: base_url(reader, portal),
        token: secrets::token(reader, portal),
        secret_key: secrets::secret_key(reader, secret_key),
        field_order: reader.accept("portal.field_order", order).unwrap_or_default(),
        connect_timeout: reader.duration("portal.connect_timeout"),
        timeout: reader.duration("portal.timeout"),
        max_answer_bytes: reader.integer("portal.max_answer_bytes", 1024..=16_777_216),
        max_rate: NonZeroU32::new(reader.integer("portal.max_rate", 0..=1_000_000)),
        settle_after: reader.duration("portal.settle_after"),
        probe_customer: fields.and_then(|fields| probe_customer(reader, fields)),
    }
}

/// The probe customer's update: a JSON object with the eight names, held to the same rules as an
/// event's.
fn probe_customer(reader: &mut Reader<'_>, fields: &FieldPolicies) -> Option<Update> {
    const KEY: &str = "portal.probe_customer";
    let text = reader.text(KEY);
    if text.is_empty() {
        return None;
    }
    let Ok(Value::Object(mut values)) = serde_json::from_str(&text) else {
        let example = "expected JSON such as {\"entity_id\":\"PROBE\",\"country\":\"India\"}";
        reader.mistake(KEY, example);
        return None;
    };
    let raw = PerField::from_fn(|field| values.remove(field.name()));
    if let Some(name) = values.keys().next() {
        reader.mistake(KEY, &format!("there is no field {name:?}"));
    }
    let update = fields
        .validate(&raw)
        .map_err(|faults| faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "));
    reader.accept(KEY, update)
}

fn base_url(reader: &mut Reader<'_>, required: bool) -> Option<Url> {
    const KEY: &str = "portal.base_url";
    let text = reader.text(KEY);
    if text.is_empty() {
        if required {
            reader.mistake(KEY, "not set; for example https://portal.example.com");
        }
        return None;
    }
    let url = portal_url(&text);
    reader.accept(KEY, url)
}

/// A URL that a secret may be sent to.
pub fn safe_url(text: &str) -> Result<Url, String> {
    let url: Url = text.parse().map_err(|error| format!("not a URL: {error}"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not hold a user or password".into());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("must not hold a query or fragment".into());
    }
    let is_loopback = match url.host() {
        Some(url::Host::Domain(domain)) => domain == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    match url.scheme() {
        "https" => {}
        "http" if is_loopback => {}
        _ => return Err("must be https (http only to a loopback address)".into()),
    }
    Ok(url)
}

fn portal_url(base: &str) -> Result<Url, String> {
    let mut url = safe_url(base)?;
    let path = url.path().trim_end_matches('/').to_owned();
    if path.ends_with(PORTAL_PATH) {
        return Err(format!("must not hold the path {PORTAL_PATH}; it is appended"));
    }
    url.set_path(&format!("{path}{PORTAL_PATH}"));
    Ok(url)
}

fn retry(reader: &mut Reader<'_>) -> Option<RetryPolicy> {
    let shortest = reader.duration("retry.shortest_delay");
    let longest = reader.duration("retry.max_delay");
    let tiers = Tiers::try_new(shortest, longest);
    let tiers = tiers.map_err(|error| reader.mistake(error.key, &error.problem)).ok();
    let first_delay = reader.duration("retry.first_delay");
    let multiplier = reader.float("retry.multiplier");
    let max_attempts = reader.integer("retry.max_attempts", 1..=1000);
    let max_uncounted_delay = reader.duration("retry.max_uncounted_delay");
    let max_retry_after = reader.duration("retry.max_retry_after");
    let contract_violation_attempts = reader.integer("retry.contract_violation_attempts", 1..=1000);
    let rejected_retries = reader.integer("retry.rejected_retries", 0..=1000);
    let duplicate_email_retries = reader.integer("retry.duplicate_email_retries", 0..=1000);
    let rejected_delay = reader.duration("retry.rejected_delay");
    let policy = RetryPolicy {
        tiers: tiers?,
        max_attempts,
        first_delay,
        multiplier,
        max_uncounted_delay,
        max_retry_after,
        contract_violation_attempts,
        rejected_retries,
        duplicate_email_retries,
        rejected_delay,
    };
    policy.try_new().map_err(|error| reader.mistake(error.key, &error.problem)).ok()
}

fn immediate(reader: &mut Reader<'_>) -> ImmediatePolicy {
    ImmediatePolicy {
        retries: reader.integer("retry.immediate_retries", 0..=10),
        budget: reader.duration("retry.immediate_budget"),
        first_pause: reader.duration("retry.immediate_first_pause"),
    }
}

fn log(reader: &mut Reader<'_>) -> LogConfig {
    let filter = reader.text("log.filter");
    reader.accept("log.filter", log::parse_filter(&filter));
    let formats =
        [("auto", log::Format::Auto), ("human", log::Format::Human), ("json", log::Format::Json)];
    LogConfig { filter, format: reader.choice("log.format", &formats).unwrap_or(log::Format::Auto) }
}

#[cfg(test)]
mod tests;
