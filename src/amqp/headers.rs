//! Headers and properties, read: what a message says about its event and about its past.

use std::borrow::Cow;
use std::time::Duration;

use super::DEFAULT_EXCHANGE;
use super::delivery::Message;
use crate::domain::dead_letter::Reason;
use crate::domain::event::Envelope;
use crate::domain::history::{History, NotBefore};
use crate::domain::text::escape;
use crate::telemetry::trace;
use jiff::Timestamp;
use lapin::types::{AMQPValue, ShortString};
use opentelemetry::propagation::Extractor;
use uuid::Uuid;

/// What all our headers begin with.
pub(super) const PREFIX: &str = "x-relay-";

pub(super) const ATTEMPTS: &str = "x-relay-attempts";
pub(super) const FIRST_SEEN: &str = "x-relay-first-seen";
pub(super) const NOT_BEFORE: &str = "x-relay-not-before";
pub(super) const WAIT: &str = "x-relay-wait-ms";
pub(super) const LAST_REASON: &str = "x-relay-last-reason";
pub(super) const SAME_REASON: &str = "x-relay-same-reason";
pub(super) const AMBIGUOUS: &str = "x-relay-ambiguous";
pub(super) const UNPROVEN_SINCE: &str = "x-relay-unproven-since";
pub(super) const RETURNS: &str = "x-relay-returns";
pub(super) const RECEIPT: &str = "x-relay-receipt";
pub(super) const RESEND: &str = "x-relay-resend";
pub(super) const REPLAY_ID: &str = "x-relay-replay-id";
pub(super) const FORCE: &str = "x-relay-force";
pub(super) const FORCED_AT: &str = "x-relay-forced-at";
pub(super) const DOUBT_ACCEPTED: &str = "x-relay-doubt-accepted";
pub(super) const REVISION: &str = "x-relay-revision";
pub(super) const EXCHANGE: &str = "x-relay-exchange";
pub(super) const ROUTING_KEY: &str = "x-relay-routing-key";
pub(super) const ORIGINAL_EXPIRATION: &str = "x-relay-original-expiration";
pub(super) const ORIGINAL_USER_ID: &str = "x-relay-original-user-id";
pub(super) const ORIGINAL_REPLY_TO: &str = "x-relay-original-reply-to";
pub(super) const DROPPED_HEADERS: &str = "x-relay-dropped-headers";

pub(super) const DEAD_ID: &str = "x-relay-dead-id";
pub(super) const EVENT: &str = "x-relay-event";
pub(super) const DEAD_AT: &str = "x-relay-dead-at";
pub(super) const REASON: &str = "x-relay-reason";
pub(super) const DETAIL: &str = "x-relay-detail";
pub(super) const FIELD: &str = "x-relay-field";
pub(super) const RULE: &str = "x-relay-rule";
pub(super) const HTTP_STATUS: &str = "x-relay-http-status";
pub(super) const PORTAL_STATUS: &str = "x-relay-portal-status";
pub(super) const RELAY_VERSION: &str = "x-relay-relay-version";
pub(super) const REPLAYS: &str = "x-relay-replays";
pub(super) const TRACE_ID: &str = "x-relay-trace-id";
pub(super) const FLAGS: &str = "x-relay-flags";

/// What RabbitMQ's interceptor `set_header_timestamp` and its older plugin write.
const BROKER_TIME: &str = "timestamp_in_ms";

/// What quorum queues write on what they give out again.
const DELIVERY_COUNT: &str = "x-delivery-count";

/// Longest reason of a retry; ours are shorter, in bytes.
const MAX_REASON_BYTES: usize = 64;

/// What only dead letters carry. On one that comes back they tell of the past.
pub(super) const OF_DEAD_LETTERS: [&str; 12] = [
    DEAD_ID,
    EVENT,
    DEAD_AT,
    REASON,
    DETAIL,
    FIELD,
    RULE,
    HTTP_STATUS,
    PORTAL_STATUS,
    RELAY_VERSION,
    TRACE_ID,
    FLAGS,
];

/// One of our own headers does not hold what we write there.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("header {name}: expected {expected}")]
pub struct InvalidHeader {
    name: &'static str,
    expected: &'static str,
}

impl Message {
    /// What the message says about its event.
    pub fn envelope(&self) -> Envelope<'_> {
        let properties = &self.0.properties;
        let kind = text(properties.kind().as_ref()).filter(|kind| !kind.is_empty());
        Envelope {
            body: &self.0.data,
            content_type: text(properties.content_type().as_ref()),
            message_id: text(properties.message_id().as_ref()),
            timestamp: properties.timestamp().map(moment),
            kind: kind.or_else(|| self.origin().1),
            attributes: self.headers().filter_map(attribute).collect(),
        }
    }

    /// What the message already went through. Our headers count only if they came through the
    /// default exchange: a publisher cannot forge a past.
    pub fn history(&self, now: Timestamp) -> Result<History, InvalidHeader> {
        let mut history = History::new(now);
        if !self.is_ours() {
            return Ok(history);
        }
        let first_seen = self.time(FIRST_SEEN)?;
        (history.first_seen, history.is_new) = (first_seen.unwrap_or(now), first_seen.is_none());
        history.ambiguous = self.is_set(AMBIGUOUS);
        history.receipt = self.time(RECEIPT)?;
        history.is_resend = self.is_set(RESEND);
        if self.is_set(FORCE) {
            // Whoever puts a letter back that says so says it anew.
            let said = if self.is_replay() { None } else { self.time(FORCED_AT)? };
            history.forced_at = Some(said.unwrap_or(now));
        }
        // Whoever puts such a letter back has judged it.
        history.doubt_accepted = self.is_set(DOUBT_ACCEPTED)
            || self.own_text(REASON).and_then(Reason::parse) == Some(Reason::InDoubt);
        history.revision = self.count(REVISION)?;
        history.replay_id = self.replay_id();
        if self.is_replay() {
            return Ok(history);
        }
        history.attempts = self.count(ATTEMPTS)?;
        history.same_reason = self.count(SAME_REASON)?;
        history.unproven_since = self.time(UNPROVEN_SINCE)?;
        history.not_before = self.not_before()?;
        history.returns = self.count(RETURNS)?;
        // Whoever may write to the work queue may have put it there.
        let last_reason = self.own_text(LAST_REASON);
        history.last_reason = last_reason.map(|reason| escape(reason, MAX_REASON_BYTES).into());
        Ok(history)
    }

    fn not_before(&self) -> Result<Option<NotBefore>, InvalidHeader> {
        let Some(at) = self.time(NOT_BEFORE)? else { return Ok(None) };
        let Some(wait) = self.header(WAIT) else { return Ok(Some(NotBefore { at, wait: None })) };
        let wait = integer(wait).and_then(|millis| u64::try_from(millis).ok());
        let wait = wait.map(Duration::from_millis);
        let expected = "milliseconds, an integer of 0 or more";
        wait.map(|wait| Some(NotBefore { at, wait: Some(wait) }))
            .ok_or(InvalidHeader { name: WAIT, expected })
    }

    /// The broker's clock when it took the message in, where it stamps messages and this one came from
    /// its publisher at once: not by way of a retry tier, and not once more.
    pub fn stamped_at(&self) -> Option<Timestamp> {
        if self.is_ours() || self.is_redelivery() {
            return None;
        }
        Timestamp::from_millisecond(integer(self.header(BROKER_TIME)?)?).ok()
    }

    /// A dead letter that somebody put back, by whatever means: its attempts begin anew.
    fn is_replay(&self) -> bool {
        self.is_ours() && self.header(DEAD_ID).is_some()
    }

    /// The id of the dead letter that the message was, if somebody has put it back.
    pub fn dead_id(&self) -> Option<Uuid> {
        if self.is_replay() { self.own_text(DEAD_ID)?.parse().ok() } else { None }
    }

    /// Which replay put the message back, if one of ours did.
    pub fn replay_id(&self) -> Option<Uuid> {
        if self.is_ours() { self.own_text(REPLAY_ID)?.parse().ok() } else { None }
    }

    /// Whether the broker has given the message out before, to us or another relay.
    pub fn is_redelivery(&self) -> bool {
        self.0.redelivered
    }

    /// How often this copy came back from whoever had it in hand, as the broker counts it.
    pub fn returns(&self) -> u32 {
        if !self.is_redelivery() {
            return 0;
        }
        let count = self.header(DELIVERY_COUNT).and_then(integer);
        count.and_then(|count| u32::try_from(count).ok()).unwrap_or(0).max(1)
    }

    /// How often the message was put back after it was a dead letter.
    pub fn replays(&self) -> u32 {
        let before = if self.is_ours() { self.count(REPLAYS).unwrap_or(0) } else { 0 };
        before.saturating_add(u32::from(self.is_replay()))
    }

    /// The W3C trace context that came with the message.
    pub fn trace_context(&self) -> opentelemetry::Context {
        match self.header("traceparent") {
            Some(_) => trace::extract(&Carrier(self)),
            None => opentelemetry::Context::new(),
        }
    }

    /// Sent by us or an operator, straight to the work queue.
    pub fn is_ours(&self) -> bool {
        self.0.exchange.as_str() == DEFAULT_EXCHANGE
    }

    /// Exchange and routing key that the message was first published with, as far as they are
    /// known: by the default exchange's routing key only a queue is named.
    pub(super) fn origin(&self) -> (&str, Option<&str>) {
        if !self.is_ours() {
            return (self.0.exchange.as_str(), Some(self.0.routing_key.as_str()));
        }
        if let Some(exchange) = self.own_text(EXCHANGE) {
            return (exchange, self.own_text(ROUTING_KEY));
        }
        self.deaths().last().map_or((DEFAULT_EXCHANGE, None), |death| {
            let exchange = death.exchange.unwrap_or(DEFAULT_EXCHANGE);
            let routing_key = death.routing_key.filter(|_| exchange != DEFAULT_EXCHANGE);
            (exchange, routing_key)
        })
    }

    pub(super) fn headers(&self) -> impl Iterator<Item = (&ShortString, &AMQPValue)> {
        self.0.properties.headers().iter().flatten()
    }

    pub(super) fn header(&self, name: &str) -> Option<&AMQPValue> {
        self.0.properties.headers().as_ref()?.inner().get(name)
    }

    fn is_set(&self, name: &'static str) -> bool {
        match self.header(name) {
            Some(AMQPValue::Boolean(is_set)) => *is_set,
            Some(value) => plain_text(value) == Some("true"),
            None => false,
        }
    }

    pub(super) fn own_text(&self, name: &'static str) -> Option<&str> {
        plain_text(self.header(name)?)
    }

    /// A header of ours as text.
    pub(super) fn text_or_number(&self, name: &str) -> Option<Cow<'_, str>> {
        let value = self.header(name)?;
        let number = || integer(value).map(|number| Cow::Owned(number.to_string()));
        plain_text(value).map(Cow::Borrowed).or_else(number)
    }

    pub(super) fn count(&self, name: &'static str) -> Result<u32, InvalidHeader> {
        let Some(value) = self.header(name) else { return Ok(0) };
        let number = integer(value).or_else(|| plain_text(value)?.parse().ok());
        let expected = "an integer of 0 or more";
        number.and_then(|n| u32::try_from(n).ok()).ok_or(InvalidHeader { name, expected })
    }

    pub(super) fn time(&self, name: &'static str) -> Result<Option<Timestamp>, InvalidHeader> {
        let Some(value) = self.header(name) else { return Ok(None) };
        let expected = "an RFC 3339 time";
        let time = plain_text(value).and_then(|text| text.parse().ok());
        time.map(Some).ok_or(InvalidHeader { name, expected })
    }
}

fn text(text: Option<&ShortString>) -> Option<&str> {
    text.map(ShortString::as_str)
}

pub(super) fn plain_text(value: &AMQPValue) -> Option<&str> {
    match value {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok(),
        AMQPValue::ShortString(text) => Some(text.as_str()),
        _ => None,
    }
}

pub(super) fn integer(value: &AMQPValue) -> Option<i64> {
    match value {
        AMQPValue::ShortShortInt(n) => Some((*n).into()),
        AMQPValue::ShortShortUInt(n) => Some((*n).into()),
        AMQPValue::ShortInt(n) => Some((*n).into()),
        AMQPValue::ShortUInt(n) => Some((*n).into()),
        AMQPValue::LongInt(n) => Some((*n).into()),
        AMQPValue::LongUInt(n) => Some((*n).into()),
        AMQPValue::LongLongInt(n) => Some(*n),
        _ => None,
    }
}

/// An AMQP timestamp. One beyond the calendar (milliseconds, taken for seconds) is its last moment: far
/// enough in the future to be refused for that.
fn moment(seconds: u64) -> Timestamp {
    let in_calendar = i64::try_from(seconds).ok().and_then(|s| Timestamp::from_second(s).ok());
    in_calendar.unwrap_or(Timestamp::MAX)
}

/// A CloudEvents attribute: a header with one of the binding's prefixes.
fn attribute<'a>(
    (name, value): (&'a ShortString, &'a AMQPValue),
) -> Option<(&'a str, Option<Cow<'a, str>>)> {
    let name = attribute_name(name.as_str())?;
    let value = match value {
        AMQPValue::Timestamp(seconds) => Some(Cow::Owned(moment(*seconds).to_string())),
        value => plain_text(value)
            .map(Cow::Borrowed)
            .or_else(|| integer(value).map(|number| Cow::Owned(number.to_string()))),
    };
    Some((name, value))
}

/// The attribute that a header of this name holds.
pub(super) fn attribute_name(header: &str) -> Option<&str> {
    const PREFIXES: [&str; 3] = ["cloudEvents_", "cloudEvents:", "ce-"];
    PREFIXES.iter().find_map(|prefix| header.strip_prefix(prefix))
}

/// Reads trace context from a message's headers.
struct Carrier<'a>(&'a Message);

impl Extractor for Carrier<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        plain_text(self.0.header(key)?)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.headers().map(|(name, _)| name.as_str()).collect()
    }
}
