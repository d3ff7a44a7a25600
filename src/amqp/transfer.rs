//! Messages as JSON and back: body, properties and headers exactly as they were.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, ShortString};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::delivery::Message;
use super::republish::NewMessage;

/// A message outside the broker.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exported {
    /// The body, if it is text.
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<String>,
    /// The body, if it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
    #[serde(default)]
    properties: Properties,
    #[serde(default)]
    headers: BTreeMap<String, Value>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Properties {
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_encoding: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    correlation_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reply_to: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    r#type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    app_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timestamp: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<u8>,
}

/// A line that is no exported message.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct InvalidExport(String);

impl Message {
    /// The message, to be written down.
    pub fn export(&self) -> Result<Exported, InvalidExport> {
        let text = |text: &Option<ShortString>| text.as_ref().map(ToString::to_string);
        let known = &self.0.properties;
        let properties = Properties {
            content_type: text(known.content_type()),
            content_encoding: text(known.content_encoding()),
            correlation_id: text(known.correlation_id()),
            reply_to: text(known.reply_to()),
            message_id: text(known.message_id()),
            r#type: text(known.kind()),
            app_id: text(known.app_id()),
            cluster_id: text(known.cluster_id()),
            timestamp: *known.timestamp(),
            priority: *known.priority(),
        };
        let header = |(name, value): (&ShortString, &AMQPValue)| {
            Ok((
                name.to_string(),
                written(value).map_err(|error| InvalidExport(error.to_string()))?,
            ))
        };
        // What the broker adds to each delivery is no part of the message.
        let is_own = |(name, _): &(&ShortString, &AMQPValue)| {
            !matches!(name.as_str(), "x-delivery-count" | "x-acquired-count")
        };
        let headers =
            self.headers().filter(is_own).map(header).collect::<Result<_, InvalidExport>>()?;
        let text = std::str::from_utf8(self.body()).ok().map(str::to_owned);
        let body_base64 = text.is_none().then(|| STANDARD.encode(self.body()));
        Ok(Exported { body: text, body_base64, properties, headers })
    }
}

impl Exported {
    /// The message again, persistent, and its body.
    pub fn import(self) -> Result<(NewMessage, Vec<u8>), InvalidExport> {
        let body = match (self.body, self.body_base64) {
            (Some(text), None) => text.into_bytes(),
            (None, Some(encoded)) => STANDARD
                .decode(encoded)
                .map_err(|error| InvalidExport(format!("body_base64: {error}")))?,
            _ => return Err(InvalidExport("one of body and body_base64 must be there".into())),
        };
        let mut headers = BTreeMap::new();
        for (name, value) in self.headers {
            let short = ShortString::try_new(name.as_str());
            let name_error = |_| InvalidExport(format!("header {name}: the name is too long"));
            let value =
                read(value).map_err(|error| InvalidExport(format!("header {name}: {error}")))?;
            headers.insert(short.map_err(name_error)?, value);
        }
        let known = self.properties;
        let mut properties =
            BasicProperties::default().with_delivery_mode(2).with_headers(headers.into());
        let texts = [
            (known.content_type, BasicProperties::with_content_type as super::republish::Setter),
            (known.content_encoding, BasicProperties::with_content_encoding),
            (known.correlation_id, BasicProperties::with_correlation_id),
            (known.reply_to, BasicProperties::with_reply_to),
            (known.message_id, BasicProperties::with_message_id),
            (known.r#type, BasicProperties::with_type),
            (known.app_id, BasicProperties::with_app_id),
            (known.cluster_id, BasicProperties::with_cluster_id),
        ];
        for (text, set) in texts {
            if let Some(text) = text {
                let short = ShortString::try_new(text.as_str())
                    .map_err(|_| InvalidExport("a property is too long".into()))?;
                properties = set(properties, short);
            }
        }
        if let Some(timestamp) = known.timestamp {
            properties = properties.with_timestamp(timestamp);
        }
        if let Some(priority) = known.priority {
            properties = properties.with_priority(priority);
        }
        Ok((NewMessage { properties }, body))
    }
}

impl NewMessage {
    /// The dead id that it carries.
    pub fn letter_id(&self) -> Option<uuid::Uuid> {
        let headers = self.properties.headers().as_ref()?;
        super::headers::plain_text(headers.inner().get(super::headers::DEAD_ID)?)?.parse().ok()
    }
}

/// Texts, numbers and truth as themselves, everything else with its type.
fn written(value: &AMQPValue) -> serde_json::Result<Value> {
    Ok(match value {
        AMQPValue::LongLongInt(number) => (*number).into(),
        AMQPValue::Boolean(is_so) => (*is_so).into(),
        AMQPValue::LongString(text) => match std::str::from_utf8(text.as_bytes()) {
            Ok(text) => text.into(),
            Err(_) => serde_json::to_value(value)?,
        },
        _ => serde_json::to_value(value)?,
    })
}

fn read(value: Value) -> serde_json::Result<AMQPValue> {
    Ok(match value {
        Value::String(text) => AMQPValue::LongString(text.into()),
        Value::Bool(is_so) => AMQPValue::Boolean(is_so),
        typed => match typed.as_i64() {
            Some(number) => AMQPValue::LongLongInt(number),
            None => serde_json::from_value(typed)?,
        },
    })
}
