//! Queues that hold one message at most, as a word to everybody: an order, a ledger's id.

use lapin::BasicProperties;
use lapin::options::{BasicAckOptions, BasicGetOptions, BasicPublishOptions};

use super::connection::{Link, within};
use super::publisher::{PublishError, judge};

/// Puts a message into a queue, in place of whatever is there, without a gap.
pub(super) async fn put(
    link: &Link,
    queue: &str,
    body: &[u8],
    properties: BasicProperties,
) -> Result<(), PublishError> {
    let channel = link.confirm_channel().await?;
    let properties = properties.with_delivery_mode(2);
    let publish = async {
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        channel.basic_publish("".into(), queue.into(), options, body, properties).await?.await
    };
    judge(within(link.limit, "publish", publish).await?, queue)?;
    // Whatever is before it, it replaces.
    loop {
        let get = channel.basic_get(queue.into(), BasicGetOptions::default());
        let Some(got) = within(link.limit, "look at a message", get).await? else { break };
        if got.message_count == 0 {
            // Ours: it goes back when the channel closes.
            break;
        }
        let ack = got.delivery.acker.ack(BasicAckOptions::default());
        within(link.limit, "replace a message", ack).await?;
    }
    let close = channel.close(200, "done".into());
    Ok(within(link.limit, "close a channel", close).await?)
}
