//! Which ledger a work queue is fenced by, and how far it has come: kept at the broker too, as the one
//! message of a queue, so that a ledger that was lost, mistaken or set back is noticed before it does
//! harm.
//!
//! The body is the ledger's id and nothing else: relays of 0.1 compare all of it. What is new since is
//! in headers, which they neither read nor write.

use std::time::Duration;

use lapin::BasicProperties;
use lapin::options::BasicGetOptions;
use lapin::types::{AMQPValue, FieldTable};

use super::connection::{AmqpError, Link, within};
use super::headers::plain_text;
use super::lone;
use super::publisher::PublishError;
use super::topology::Topology;
use crate::domain::ledger_mark::LedgerMark;

/// Nobody looks for longer.
const SECOND_LOOK: Duration = Duration::from_millis(50);

const NUMBER: &str = "x-relay-ledger-number";
const NUMBERED_AT: &str = "x-relay-ledger-numbered-at";
const TIMELINE: &str = "x-relay-ledger-timeline";

/// Looks which ledger it is. The message stays where it is; `None` if there is none yet.
pub async fn look(link: &Link, topology: &Topology) -> Result<Option<LedgerMark>, AmqpError> {
    let channel = link.channel().await?;
    let queue = topology.ledger_id_queue();
    let look = || {
        let get = channel.basic_get(queue.as_str().into(), BasicGetOptions::default());
        within(link.limit, "look at the ledger's id", get)
    };
    let mut got = look().await?;
    if got.is_none() {
        // Somebody else may be looking at it just now.
        tokio::time::sleep(SECOND_LOOK).await;
        got = look().await?;
    }
    // What was looked at goes back to its place.
    let close = channel.close(200, "looked".into());
    within(link.limit, "close a channel", close).await?;
    Ok(got.map(|got| read(&got.delivery.data, got.delivery.properties.headers().as_ref())))
}

/// Writes which ledger it is, in place of whatever stood there.
pub async fn write(
    link: &Link,
    topology: &Topology,
    mark: &LedgerMark,
) -> Result<(), PublishError> {
    let mut headers = FieldTable::default();
    let texts = [
        (NUMBER, mark.number.map(|number| number.to_string())),
        (NUMBERED_AT, mark.at.map(|at| at.to_string())),
        (TIMELINE, mark.timeline.clone()),
    ];
    for (name, text) in texts {
        if let Some(text) = text {
            headers.insert(name.into(), AMQPValue::LongString(text.into()));
        }
    }
    let properties =
        BasicProperties::default().with_content_type("text/plain".into()).with_headers(headers);
    lone::put(link, &topology.ledger_id_queue(), mark.id.as_bytes(), properties).await
}

/// A header that is not what we write says nothing: then the ledger is as one of 0.1.
fn read(body: &[u8], headers: Option<&FieldTable>) -> LedgerMark {
    let text = |name| headers?.inner().get(name).and_then(plain_text);
    LedgerMark {
        id: String::from_utf8_lossy(body).into_owned(),
        number: text(NUMBER).and_then(|number| number.parse().ok()),
        at: text(NUMBERED_AT).and_then(|time| time.parse().ok()),
        timeline: text(TIMELINE).map(str::to_owned),
    }
}
