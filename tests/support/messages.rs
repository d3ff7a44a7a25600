//! Messages as lines of JSON: properties and headers with their AMQP types, where they came from,
//! and the body. What is written is read back as the same message.

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lapin::BasicProperties;
use serde_json::{Value, json};

/// A message outside the broker.
#[derive(Clone, Debug)]
pub struct Message {
    /// Which queue of the relay's it was in, without the prefix: `work`, `dead`, `retry` …
    pub queue: String,
    /// What it was published to.
    pub exchange: String,
    /// The properties, headers included.
    pub properties: BasicProperties,
    /// The body.
    pub body: Vec<u8>,
}

impl Message {
    /// Whether it is an event of this customer's.
    pub fn is_of(&self, customer: &str) -> bool {
        String::from_utf8_lossy(&self.body).contains(&format!("\"{customer}\""))
    }

    /// One line, for a person to read as far as it is text.
    pub fn to_line(&self) -> Result<String> {
        let mut properties = serde_json::to_value(&self.properties)?;
        as_text(&mut properties);
        let (name, body) = match std::str::from_utf8(&self.body) {
            Ok(text) => ("body", text.to_owned()),
            Err(_) => ("body_base64", STANDARD.encode(&self.body)),
        };
        let line = json!({"queue": self.queue, "exchange": self.exchange,
                          "properties": properties, name: body});
        Ok(line.to_string())
    }

    /// The message of a line.
    pub fn parse(line: &str) -> Result<Message> {
        let mut line: Value = serde_json::from_str(line)?;
        let text = |name: &str| line[name].as_str().map(str::to_owned);
        let (queue, exchange) = (text("queue").context("queue")?, text("exchange").context("it")?);
        let body = match text("body") {
            Some(text) => text.into_bytes(),
            None => {
                STANDARD.decode(text("body_base64").context("neither body nor body_base64")?)?
            }
        };
        let mut properties = line["properties"].take();
        as_bytes(&mut properties);
        Ok(Message { queue, exchange, properties: serde_json::from_value(properties)?, body })
    }
}

/// What AMQP calls a long string is bytes: those of a text are written as one.
fn as_text(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|_, value| !value.is_null());
            if let Some(bytes) = members.get_mut("LongString") {
                let text = serde_json::from_value(bytes.clone()).map(String::from_utf8);
                if let Ok(Ok(text)) = text {
                    *bytes = text.into();
                }
                return;
            }
            members.values_mut().for_each(as_text);
        }
        Value::Array(values) => values.iter_mut().for_each(as_text),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn as_bytes(value: &mut Value) {
    match value {
        Value::Object(members) => {
            if let Some(Value::String(text)) = members.get("LongString") {
                let bytes = text.clone().into_bytes();
                members.insert("LongString".into(), bytes.into());
                return;
            }
            members.values_mut().for_each(as_bytes);
        }
        Value::Array(values) => values.iter_mut().for_each(as_bytes),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
