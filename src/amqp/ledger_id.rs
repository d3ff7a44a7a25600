//! Which ledger a work queue is fenced by: kept at the broker too, as the one message of a queue, so
//! that a ledger that was lost or mistaken is noticed before it does harm.

use std::time::Duration;

use lapin::BasicProperties;
use lapin::options::BasicGetOptions;
use uuid::Uuid;

use super::connection::{AmqpError, Link, within};
use super::lone;
use super::publisher::PublishError;
use super::topology::Topology;

/// Nobody looks for longer.
const SECOND_LOOK: Duration = Duration::from_millis(50);

/// Looks which ledger it is. The message stays where it is; `None` if there is none yet.
pub async fn look(link: &Link, topology: &Topology) -> Result<Option<String>, AmqpError> {
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
    Ok(got.map(|got| String::from_utf8_lossy(&got.delivery.data).into_owned()))
}

/// Writes which ledger it is, in place of whatever stood there.
pub async fn write(link: &Link, topology: &Topology, id: Uuid) -> Result<(), PublishError> {
    let properties = BasicProperties::default().with_content_type("text/plain".into());
    lone::put(link, &topology.ledger_id_queue(), id.to_string().as_bytes(), properties).await
}
