//! Which ledger a work queue is fenced by: kept at the broker too, as the one message of a queue, so
//! that a ledger that was lost or mistaken is noticed before it does harm.

use std::time::Duration;

use lapin::BasicProperties;
use lapin::options::{BasicAckOptions, BasicGetOptions, BasicPublishOptions};
use uuid::Uuid;

use super::connection::{AmqpError, Link, within};
use super::publisher::{PublishError, judge};
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
    let channel = link.confirm_channel().await?;
    let queue = topology.ledger_id_queue();
    let publish = async {
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let properties =
            BasicProperties::default().with_content_type("text/plain".into()).with_delivery_mode(2);
        let (target, body) = (queue.as_str().into(), id.to_string());
        channel.basic_publish("".into(), target, options, body.as_bytes(), properties).await?.await
    };
    judge(within(link.limit, "write the ledger's id", publish).await?, &queue)?;
    // Whatever is before it, it replaces.
    loop {
        let get = channel.basic_get(queue.as_str().into(), BasicGetOptions::default());
        let Some(got) = within(link.limit, "look at the ledger's id", get).await? else { break };
        if got.message_count == 0 {
            // Ours: it goes back when the channel closes.
            break;
        }
        let ack = got.delivery.acker.ack(BasicAckOptions::default());
        within(link.limit, "replace the ledger's id", ack).await?;
    }
    let close = channel.close(200, "done".into());
    Ok(within(link.limit, "close a channel", close).await?)
}
