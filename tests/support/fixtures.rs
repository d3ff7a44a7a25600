//! Fixtures that an older version has left behind, put in place; and the events that they know of.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::bed::Bed;
use super::messages::Message;
use super::queues::Queues;

/// What all names of the queues begin with in a fixture.
pub const PREFIX: &str = "customer-relay";
/// The CRM's exchange in a fixture.
pub const EXCHANGE: &str = "crm.events";

/// A folder of fixtures, read for one test's broker and names.
pub struct Fixture {
    folder: PathBuf,
    prefix: String,
    exchange: String,
}

impl Fixture {
    /// The one of a version and a kind of ledger: `0.1.0/sqlite`.
    pub fn of(bed: &Bed, name: &str) -> Fixture {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
        Fixture { folder, prefix: bed.prefix().to_owned(), exchange: bed.exchange() }
    }

    /// A file with the queues' names of this test.
    pub fn text(&self, file: &str) -> Result<String> {
        let path = self.folder.join(file);
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let text = text.replace(&format!("{PREFIX}."), &format!("{}.", self.prefix));
        Ok(text.replace(EXCHANGE, &self.exchange))
    }

    /// Lines of what the older program's commands said: the members of this name.
    pub fn said(&self, name: &str) -> Result<Vec<Value>> {
        let lines = self.text("said.jsonl")?;
        let lines: Vec<Value> =
            lines.lines().map(serde_json::from_str).collect::<serde_json::Result<_>>()?;
        let named = lines.into_iter().filter(|line| !line[name].is_null()).collect::<Vec<_>>();
        ensure!(!named.is_empty(), "nothing of {name} is said");
        Ok(named)
    }

    /// The one thing that was said of this.
    pub fn said_of(&self, name: &str) -> Result<Value> {
        Ok(self.said(name)?.swap_remove(0)[name].take())
    }

    /// How many microseconds ago the fixture was made.
    pub fn age_in_us(&self) -> Result<i64> {
        let made = self.said_of("made")?;
        let made: jiff::Timestamp = made.as_str().context("no time")?.parse()?;
        Ok(jiff::Timestamp::now().as_microsecond() - made.as_microsecond())
    }

    /// Its messages of these queues.
    pub fn messages(&self, queues: &[&str]) -> Result<Vec<Message>> {
        let mut messages = self.messages_of("messages.jsonl")?;
        messages.retain(|message| queues.contains(&message.queue.as_str()));
        ensure!(!messages.is_empty(), "no messages of {queues:?}");
        Ok(messages)
    }

    /// The messages of a file.
    pub fn messages_of(&self, file: &str) -> Result<Vec<Message>> {
        self.text(file)?.lines().map(Message::parse).collect()
    }
}

/// Publishes messages as they were published before; what waited in a retry tier waits in this one.
pub async fn publish(bed: &Bed, tier: &str, messages: &[Message]) -> Result<()> {
    for Message { queue, exchange, properties, body } in messages {
        let queue = if queue == "retry" { tier } else { queue };
        let queue = bed.queue(queue);
        let key = if exchange.is_empty() { queue.as_str() } else { "customer.updated" };
        bed.queues.publish(exchange, key, properties.clone(), body).await?;
    }
    Ok(())
}

/// An event of 2026-11-20T09:30:00Z.
pub fn event(id: &str, customer: &str, mut fields: Value) -> Value {
    fields["entity_id"] = json!(customer);
    json!({"specversion": "1.0", "id": id, "source": "crm", "type": "customer.updated",
           "time": "2026-11-20T09:30:00Z", "data": fields})
}

/// The same with another member, or without one.
pub fn with(mut event: Value, name: &str, value: Option<&str>) -> Value {
    let members = event.as_object_mut().expect("an event is an object");
    match value {
        Some(value) => members.insert(name.into(), value.into()),
        None => members.remove(name),
    };
    event
}

/// The same of another time.
pub fn at(event: Value, time: &str) -> Value {
    with(event, "time", Some(time))
}

/// Publishes an event as the CRM does, without a timestamp on the message.
pub async fn publish_untimed(queues: &Queues, exchange: &str, event: &Value) -> Result<()> {
    let (properties, body) = (super::bed::structured(), event.to_string());
    queues.publish(exchange, "customer.updated", properties, body.as_bytes()).await
}
