//! Orders of operators, kept by the broker: a queue of ours that holds a message is an order in
//! force. So they survive restarts, reach every relay on the work queue, and end by themselves when
//! the message expires. A relay only ever counts; the message itself is for people.

use std::time::Duration;

use lapin::BasicProperties;
use lapin::options::{BasicAckOptions, BasicGetOptions, BasicPublishOptions, QueuePurgeOptions};

use super::connection::{AmqpError, Link, within};
use super::publisher::{PublishError, judge};
use super::topology::Topology;

/// An operator's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Make no calls.
    Pause,
    /// Rejections are the events' own fault.
    AcceptRejections,
}

impl Order {
    fn queue(self, topology: &Topology) -> String {
        match self {
            Order::Pause => topology.paused_queue(),
            Order::AcceptRejections => topology.accepts_rejections_queue(),
        }
    }
}

/// Gives an order, for so long or until it is withdrawn. `note` is for people who look at the
/// broker. An order in force is replaced without a gap.
pub async fn give(
    link: &Link,
    topology: &Topology,
    order: Order,
    note: &str,
    lasts: Option<Duration>,
) -> Result<(), PublishError> {
    let channel = link.confirm_channel().await?;
    let queue = order.queue(topology);
    let mut properties = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_delivery_mode(2);
    if let Some(lasts) = lasts {
        properties = properties.with_expiration(lasts.as_millis().max(1).to_string().into());
    }
    let publish = async {
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let target = queue.as_str().into();
        channel.basic_publish("".into(), target, options, note.as_bytes(), properties).await?.await
    };
    judge(within(link.limit, "give the order", publish).await?, &queue)?;
    // Whatever is before it, it replaces.
    loop {
        let get = channel.basic_get(queue.as_str().into(), BasicGetOptions::default());
        let Some(got) = within(link.limit, "look at the order", get).await? else { break };
        if got.message_count == 0 {
            // Ours: it goes back when the channel closes.
            break;
        }
        let ack = got.delivery.acker.ack(BasicAckOptions::default());
        within(link.limit, "replace the order", ack).await?;
    }
    let close = channel.close(200, "done".into());
    Ok(within(link.limit, "close a channel", close).await?)
}

/// Withdraws an order; false if there was none.
pub async fn withdraw(link: &Link, topology: &Topology, order: Order) -> Result<bool, AmqpError> {
    let channel = link.channel().await?;
    let queue = order.queue(topology);
    let purge = channel.queue_purge(queue.as_str().into(), QueuePurgeOptions::default());
    Ok(within(link.limit, "withdraw the order", purge).await? > 0)
}
