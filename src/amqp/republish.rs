//! Messages on their way out again: what travels on, what must not, and what we note on them.

use std::collections::BTreeMap;

use jiff::Timestamp;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use opentelemetry::Context;
use opentelemetry::propagation::Injector;
use uuid::Uuid;

use super::delivery::Message;
use super::headers::{
    AMBIGUOUS, ATTEMPTS, DEAD_AT, DEAD_ID, DETAIL, DOUBT_ACCEPTED, EVENT, EXCHANGE, FIELD,
    FIRST_SEEN, FLAGS, FORCE, FORCED_AT, HTTP_STATUS, LAST_REASON, NOT_BEFORE, OF_DEAD_LETTERS,
    ORIGINAL_EXPIRATION, ORIGINAL_REPLY_TO, ORIGINAL_USER_ID, PORTAL_STATUS, PREFIX, REASON,
    RECEIPT, RELAY_VERSION, REPLAY_ID, REPLAYS, RESEND, RETURNS, REVISION, ROUTING_KEY, RULE,
    SAME_REASON, TRACE_ID, UNPROVEN_SINCE, WAIT,
};
use crate::domain::dead_letter::DeadLetter;
use crate::domain::history::{History, NotBefore};
use crate::telemetry::trace;

/// Headers that would lose or misroute a republished message: broker histories are taken for
/// cycles by RabbitMQ 3.x, `CC` and `BCC` route copies elsewhere.
fn must_not_travel(name: &str) -> bool {
    matches!(name, "CC" | "BCC" | "x-death" | "x-delivery-count" | "x-acquired-count")
        || name.starts_with("x-first-death-")
        || name.starts_with("x-last-death-")
}

/// A message to be published: the original's body stays where it is.
#[derive(Debug)]
pub struct NewMessage {
    pub(super) properties: BasicProperties,
}

impl NewMessage {
    /// Goes with this trace instead of the one that the original came with.
    #[must_use]
    pub fn in_trace(self, context: &Context) -> NewMessage {
        let mut headers = self.properties.headers().clone().unwrap_or_default();
        trace::inject(context, &mut Carrier(&mut headers));
        let is_dead = headers.inner().contains_key(DEAD_ID);
        if let Some(id) = trace::id(context).filter(|_| is_dead) {
            headers.insert(TRACE_ID.into(), AMQPValue::LongString(id.into()));
        }
        NewMessage { properties: self.properties.with_headers(headers) }
    }

    /// A persistent message with no more than a type of content and a timestamp, for events read
    /// from a file: one that tells no time of its own has that of its publishing.
    pub fn event(content_type: &str, message_id: &str, now: Timestamp) -> NewMessage {
        NewMessage {
            properties: BasicProperties::default()
                .with_content_type(content_type.into())
                .with_message_id(message_id.into())
                .with_timestamp(u64::try_from(now.as_second()).expect("the clock is past 1970"))
                .with_delivery_mode(PERSISTENT),
        }
    }
}

const PERSISTENT: u8 = 2;

pub(super) type Setter = fn(BasicProperties, ShortString) -> BasicProperties;

impl Message {
    /// The message for a retry tier: the same, with its new past.
    pub fn onward(&self, history: &History) -> NewMessage {
        let mut headers = self.travelling_headers();
        write_history(&mut headers, history);
        let properties = self.properties_with(headers);
        let properties = match history.waits {
            // The broker takes it off when it has ended the wait.
            Some(waits) => properties.with_expiration(waits.as_millis().to_string().into()),
            None => properties,
        };
        NewMessage { properties }
    }

    /// The message for the dead-letter queue: the same, with what a person needs to know.
    pub fn buried(
        &self,
        dead: &DeadLetter,
        event: Option<&str>,
        id: Uuid,
        now: Timestamp,
    ) -> NewMessage {
        let mut headers = self.travelling_headers();
        headers.optional_text(EVENT, event);
        write_history(&mut headers, &dead.history);
        headers.text(DEAD_ID, &id.to_string());
        headers.text(DEAD_AT, &now.to_string());
        headers.text(REASON, dead.reason.name());
        headers.text(DETAIL, &dead.detail);
        headers.text(RELAY_VERSION, env!("CARGO_PKG_VERSION"));
        headers.number(REPLAYS, self.replays().into());
        if let Some(field) = dead.field {
            headers.text(FIELD, field.name());
        }
        if let Some(rule) = dead.rule {
            headers.text(RULE, rule);
        }
        if let Some(status) = dead.http_status {
            headers.number(HTTP_STATUS, status.into());
        }
        if let Some(status) = dead.portal_status {
            headers.number(PORTAL_STATUS, status);
        }
        if let Some(trace_id) = trace::id(&self.trace_context()) {
            headers.text(TRACE_ID, &trace_id);
        }
        let flags = [("needs-review", dead.needs_review), ("unwitnessed", dead.unwitnessed)];
        let flags: Vec<&str> = flags.iter().filter(|flag| flag.1).map(|flag| flag.0).collect();
        if !flags.is_empty() {
            headers.text(FLAGS, &flags.join(","));
        }
        NewMessage { properties: self.properties_with(headers) }
    }

    /// The headers that travel on, with a note of where the message came from.
    pub(super) fn travelling_headers(&self) -> Headers {
        let mut headers = Headers(BTreeMap::new());
        for (name, value) in self.headers() {
            let forged = !self.is_ours() && name.as_str().starts_with(PREFIX);
            let stale = OF_DEAD_LETTERS.contains(&name.as_str());
            if !forged && !stale && !must_not_travel(name.as_str()) {
                headers.0.insert(name.clone(), value.clone());
            }
        }
        if self.replays() > 0 {
            headers.number(REPLAYS, self.replays().into());
        }
        let (exchange, routing_key) = self.origin();
        headers.text(EXCHANGE, exchange);
        if let Some(routing_key) = routing_key {
            headers.text(ROUTING_KEY, routing_key);
        }
        if let Some(expiration) = self.0.properties.expiration() {
            headers.text(ORIGINAL_EXPIRATION, expiration.as_str());
        }
        if let Some(user_id) = self.0.properties.user_id() {
            headers.text(ORIGINAL_USER_ID, user_id.as_str());
        }
        if let Some(reply_to) = self.0.properties.reply_to().as_ref().filter(|to| is_direct(to)) {
            headers.text(ORIGINAL_REPLY_TO, reply_to.as_str());
        }
        headers
    }

    /// Every property but these: `expiration` would end the message in whatever queue it waits, `user_id`
    /// is refused from any other user, and a direct `reply_to` from all who do not wait for the reply.
    pub(super) fn properties_with(&self, headers: Headers) -> BasicProperties {
        let original = &self.0.properties;
        let mut properties = BasicProperties::default()
            .with_delivery_mode(PERSISTENT)
            .with_headers(headers.0.into());
        let texts: [(&Option<ShortString>, Setter); 7] = [
            (original.content_type(), BasicProperties::with_content_type),
            (original.content_encoding(), BasicProperties::with_content_encoding),
            (original.correlation_id(), BasicProperties::with_correlation_id),
            (original.message_id(), BasicProperties::with_message_id),
            (original.kind(), BasicProperties::with_type),
            (original.app_id(), BasicProperties::with_app_id),
            (original.cluster_id(), BasicProperties::with_cluster_id),
        ];
        for (text, set) in texts {
            if let Some(text) = text {
                properties = set(properties, text.clone());
            }
        }
        if let Some(reply_to) = original.reply_to().as_ref().filter(|to| !is_direct(to)) {
            properties = properties.with_reply_to(reply_to.clone());
        }
        if let Some(priority) = original.priority() {
            properties = properties.with_priority(*priority);
        }
        if let Some(timestamp) = original.timestamp() {
            properties = properties.with_timestamp(*timestamp);
        }
        properties
    }
}

/// RabbitMQ's way to be answered without a queue, good on one channel only.
fn is_direct(reply_to: &ShortString) -> bool {
    reply_to.as_str().starts_with("amq.rabbitmq.reply-to")
}

pub(super) fn write_history(headers: &mut Headers, history: &History) {
    headers.number(ATTEMPTS, history.attempts.into());
    if history.returns > 0 {
        headers.number(RETURNS, history.returns.into());
    } else {
        headers.0.remove(RETURNS);
    }
    headers.text(FIRST_SEEN, &history.first_seen.to_string());
    headers.number(SAME_REASON, history.same_reason.into());
    headers.optional_text(LAST_REASON, history.last_reason.as_deref());
    if let Some(NotBefore { at, wait }) = history.not_before {
        headers.text(NOT_BEFORE, &at.to_string());
        if let Some(wait) = wait {
            headers.number(WAIT, i64::try_from(wait.as_millis()).unwrap_or(i64::MAX));
        }
    }
    let unproven_since = history.unproven_since.map(|time| time.to_string());
    headers.optional_text(UNPROVEN_SINCE, unproven_since.as_deref());
    headers.optional_text(FLAGS, history.unwitnessed.then_some("unwitnessed"));
    let receipt = history.receipt.map(|time| time.to_string());
    headers.optional_text(RECEIPT, receipt.as_deref());
    headers.flag(AMBIGUOUS, history.ambiguous);
    headers.flag(RESEND, history.is_resend);
    headers.flag(FORCE, history.forced_at.is_some());
    let forced_at = history.forced_at.map(|time| time.to_string());
    headers.optional_text(FORCED_AT, forced_at.as_deref());
    headers.flag(DOUBT_ACCEPTED, history.doubt_accepted);
    let replay_id = history.replay_id.map(|id| id.to_string());
    headers.optional_text(REPLAY_ID, replay_id.as_deref());
    if history.revision > 0 {
        headers.number(REVISION, history.revision.into());
    }
}

/// Writes trace context into a message's headers.
struct Carrier<'a>(&'a mut FieldTable);

impl Injector for Carrier<'_> {
    fn set(&mut self, key: &str, value: String) {
        if value.is_empty() {
            return;
        }
        self.0.insert(key.into(), AMQPValue::LongString(value.into()));
    }
}

pub(super) struct Headers(pub(super) BTreeMap<ShortString, AMQPValue>);

impl Headers {
    pub(super) fn text(&mut self, name: &'static str, text: &str) {
        self.0.insert(name.into(), AMQPValue::LongString(text.into()));
    }

    pub(super) fn number(&mut self, name: &'static str, number: i64) {
        self.0.insert(name.into(), AMQPValue::LongLongInt(number));
    }

    pub(super) fn flag(&mut self, name: &'static str, is_set: bool) {
        if is_set {
            self.0.insert(name.into(), AMQPValue::Boolean(true));
        } else {
            self.0.remove(name);
        }
    }

    /// Sets the text, or removes an older one.
    pub(super) fn optional_text(&mut self, name: &'static str, text: Option<&str>) {
        match text {
            Some(text) => self.text(name, text),
            None => drop(self.0.remove(name)),
        }
    }
}
