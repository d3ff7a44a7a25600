//! Messages erased from a queue wherever in it they stand. All others go back to their places, in
//! their order; no copy of any is kept meanwhile.

use lapin::options::{BasicAckOptions, BasicGetOptions};

use super::connection::{AmqpError, Link, within};
use super::delivery::{Message, flush_acks};
use super::topology;

/// What a walk through a queue came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Erased {
    /// Messages looked at.
    pub seen: u64,
    /// Those that were meant.
    pub meant: u64,
}

/// Erases the messages that are meant, or only counts them; `None` if there is no such queue. Each
/// look counts as a delivery: the queue allows 100,000 of them. Whoever else looks at the queue
/// meanwhile finds less in it.
pub async fn erase(
    link: &Link,
    queue: &str,
    counts_only: bool,
    is_meant: impl Fn(&Message) -> bool,
    progress: impl Fn(Erased),
) -> Result<Option<Erased>, AmqpError> {
    if topology::depth(link, queue).await?.is_none() {
        return Ok(None);
    }
    let channel = link.channel().await?;
    let mut erased = Erased::default();
    loop {
        let get = channel.basic_get(queue.into(), BasicGetOptions::default());
        let Some(got) = within(link.limit, "look at a message", get).await? else { break };
        let message = Message(got.delivery);
        erased.seen += 1;
        if is_meant(&message) {
            erased.meant += 1;
            if !counts_only {
                let ack = message.0.ack(BasicAckOptions::default());
                within(link.limit, "erase a message", ack).await?;
            }
        }
        progress(erased);
    }
    flush_acks(&channel, link.limit).await?;
    // What was not acked goes back.
    within(link.limit, "close a channel", channel.close(200, "looked".into())).await?;
    Ok(Some(erased))
}
