//! Orders of operators, kept by the broker: a queue of ours that holds a message is an order in
//! force. So they survive restarts, reach every relay on the work queue, and end by themselves when
//! the message expires. A relay only ever counts; the message itself is for people.

use std::time::Duration;

use lapin::BasicProperties;
use lapin::options::QueuePurgeOptions;

use super::connection::{AmqpError, Link, within};
use super::lone;
use super::publisher::PublishError;
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
    let mut properties = BasicProperties::default().with_content_type("application/json".into());
    if let Some(lasts) = lasts {
        properties = properties.with_expiration(lasts.as_millis().max(1).to_string().into());
    }
    lone::put(link, &order.queue(topology), note.as_bytes(), properties).await
}

/// Withdraws an order; false if there was none.
pub async fn withdraw(link: &Link, topology: &Topology, order: Order) -> Result<bool, AmqpError> {
    let channel = link.channel().await?;
    let queue = order.queue(topology);
    let purge = channel.queue_purge(queue.as_str().into(), QueuePurgeOptions::default());
    Ok(within(link.limit, "withdraw the order", purge).await? > 0)
}
