//! The lock of the one active relay: an exclusive queue, which goes with the connection that holds
//! it. The work queue itself has no single-active-consumer argument, so that a team can change its
//! mind without making it anew.

use lapin::ErrorKind;
use lapin::options::QueueDeclareOptions;
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::FieldTable;

use super::connection::{AmqpError, Link, close_channel, within};
use super::topology::Topology;

/// What came of reaching for the lock.
pub enum Hold {
    /// It is ours as long as the connection lives.
    Ours,
    /// Another relay has it, or a connection that the broker has not yet given up.
    Taken,
    /// This user may not declare the queue: nothing keeps a second relay out.
    Forbidden,
}

/// Whether another relay holds the lock.
pub async fn is_held(link: &Link, topology: &Topology) -> Result<bool, AmqpError> {
    let options = QueueDeclareOptions::default().passive();
    Ok(matches!(declare(link, topology, options).await?, Hold::Taken))
}

/// Reaches for the lock.
pub async fn hold(link: &Link, topology: &Topology) -> Result<Hold, AmqpError> {
    let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    declare(link, topology, options).await
}

/// Whether anybody consumes the work queue. A consumer whose connection is gone counts until what it had
/// in hand is back in the queue.
pub async fn is_consumed(link: &Link, topology: &Topology) -> Result<bool, AmqpError> {
    let channel = link.channel().await?;
    let (queue, options) = (topology.work_queue(), QueueDeclareOptions::default().passive());
    let look = channel.queue_declare(queue.as_str().into(), options, FieldTable::default());
    let queue = within(link.limit, "look at the work queue", look).await?;
    close_channel(&channel, link.limit).await;
    Ok(queue.consumer_count() > 0)
}

async fn declare(
    link: &Link,
    topology: &Topology,
    options: QueueDeclareOptions,
) -> Result<Hold, AmqpError> {
    // A refusal costs the channel.
    let channel = link.channel().await?;
    let queue = topology.active_queue();
    let declare = channel.queue_declare(queue.as_str().into(), options, FieldTable::default());
    match within(link.limit, "hold the lock of the active relay", declare).await {
        Ok(_) => {
            close_channel(&channel, link.limit).await;
            Ok(Hold::Ours)
        }
        Err(AmqpError::Failed(what, error)) => match soft(&error) {
            // A look finds nobody; a declaration finds what a node that is gone has left.
            Some(AMQPSoftError::NOTFOUND) if options.passive => Ok(Hold::Ours),
            Some(AMQPSoftError::RESOURCELOCKED | AMQPSoftError::NOTFOUND) => Ok(Hold::Taken),
            Some(AMQPSoftError::ACCESSREFUSED) => Ok(Hold::Forbidden),
            _ => Err(AmqpError::Failed(what, error)),
        },
        Err(error) => Err(error),
    }
}

/// Whether somebody else has what was declared for one connection only.
pub(super) fn is_locked(error: &lapin::Error) -> bool {
    matches!(soft(error), Some(AMQPSoftError::RESOURCELOCKED))
}

fn soft(error: &lapin::Error) -> Option<AMQPSoftError> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => match error.kind() {
            AMQPErrorKind::Soft(soft) => Some(soft.clone()),
            AMQPErrorKind::Hard(_) => None,
        },
        _ => None,
    }
}
