//! A queue, walked through: every message is looked at, and those that are not erased go back to
//! their places when the walk ends.
//!
//! By a few consumers, each of which takes over where the last one has its hands full: RabbitMQ puts
//! back what one consumer had in its order, and up to 32 consumers in theirs. What was fetched one by
//! one (`basic.get`) comes back in any order, and takes some milliseconds each.

use std::task::Poll;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};

use super::connection::{AmqpError, Link, within};
use super::delivery::{Message, flush_acks};
use super::topology;

/// Of the whole queue, each consumer has about such a part in hand: 8 more may follow for what
/// arrives meanwhile.
const CONSUMERS: u32 = 24;
/// Each has at least so much.
const NARROWEST: u32 = 1000;
/// Between two looks whether everything is back.
const PUT_BACK_LOOK: Duration = Duration::from_millis(10);
/// After such a silence it is asked whether anything is left.
const SILENCE: Duration = Duration::from_millis(200);

/// A walk.
pub struct Scan<'a> {
    link: &'a Link,
    queue: &'a str,
    channel: Channel,
    /// The last one works; the others keep what they have.
    consumers: Vec<Consumer>,
    width: u16,
    /// What the last one may still take.
    room: u16,
    /// What was there at the beginning, and has not come yet.
    expected: u32,
    seen: u32,
    erased: u32,
}

impl<'a> Scan<'a> {
    /// Begins, with at most so many messages ahead of being looked at; `None` if there is no such
    /// queue.
    pub async fn begin(
        link: &'a Link,
        queue: &'a str,
        ahead: Option<usize>,
    ) -> Result<Option<Scan<'a>>, AmqpError> {
        let Some(expected) = topology::depth(link, queue).await? else { return Ok(None) };
        let widest = ahead.map_or(u16::MAX, |ahead| u16::try_from(ahead).unwrap_or(u16::MAX));
        let width = (expected / CONSUMERS).max(NARROWEST).min(widest.into());
        let width = u16::try_from(width).unwrap_or(u16::MAX).max(1);
        let (channel, consumers) = (link.channel().await?, Vec::new());
        Ok(Some(Scan {
            link,
            queue,
            channel,
            consumers,
            width,
            room: 0,
            expected,
            seen: 0,
            erased: 0,
        }))
    }

    /// The next message; `None` if there is no further one.
    pub async fn next(&mut self) -> Result<Option<Message>, AmqpError> {
        let mut silent = Duration::ZERO;
        loop {
            if let Poll::Ready(came) = self.came() {
                return self.taken(came);
            }
            if self.expected == 0 && !self.has_news().await? {
                return match self.came() {
                    Poll::Ready(came) => self.taken(came),
                    Poll::Pending => Ok(None),
                };
            }
            if self.room == 0 {
                self.widen().await?;
            }
            let Some(consumer) = self.consumers.last_mut() else { return Ok(None) };
            match tokio::time::timeout(SILENCE, consumer.next()).await {
                Ok(came) => return self.taken(came),
                Err(_) if silent >= self.link.limit => {
                    return Err(AmqpError::TimedOut("look at a message", silent));
                }
                // Somebody else may have some of them in hand.
                Err(_) => (self.expected, silent) = (self.ready().await?, silent + SILENCE),
            }
        }
    }

    /// What has come already, expected or not. A queue says that nothing is left as soon as all is on
    /// its way to us, which over a slow link is long before it is here.
    fn came(&mut self) -> Poll<Option<lapin::Result<Delivery>>> {
        let Some(consumer) = self.consumers.last_mut().filter(|_| self.room > 0) else {
            return Poll::Pending;
        };
        consumer.next().now_or_never().map_or(Poll::Pending, Poll::Ready)
    }

    fn taken(
        &mut self,
        came: Option<lapin::Result<Delivery>>,
    ) -> Result<Option<Message>, AmqpError> {
        match came {
            Some(Ok(delivery)) => {
                self.room -= 1;
                self.expected = self.expected.saturating_sub(1);
                self.seen += 1;
                Ok(Some(Message(delivery)))
            }
            Some(Err(error)) => Err(AmqpError::Failed("look at a message", error)),
            // The queue was deleted.
            None => Ok(None),
        }
    }

    /// Erases a message that was looked at.
    pub async fn erase(&mut self, message: Message) -> Result<(), AmqpError> {
        let ack = message.0.ack(BasicAckOptions::default());
        within(self.link.limit, "erase a message", ack).await?;
        (self.erased, self.room) = (self.erased + 1, self.room + 1);
        Ok(())
    }

    /// Ends the walk, once what was not erased is back in its place: the broker puts it back after
    /// the channel is gone, and whoever looks before that finds less. What the walk has not come to
    /// is taken in hand too: left behind full hands, it would come back first.
    pub async fn end(mut self) -> Result<(), AmqpError> {
        while self.next().await?.is_some() {}
        if self.erased > 0 {
            flush_acks(&self.channel, self.link.limit).await?;
        }
        let close = self.channel.close(200, "looked".into());
        within(self.link.limit, "close a channel", close).await?;
        let (mut back, mut still) = (self.ready().await?, Duration::ZERO);
        while back < self.seen - self.erased && still < self.link.limit {
            tokio::time::sleep(PUT_BACK_LOOK).await;
            let before = std::mem::replace(&mut back, self.ready().await?);
            still = if back > before { Duration::ZERO } else { still + PUT_BACK_LOOK };
        }
        Ok(())
    }

    /// Whether more has come than was there at the beginning. What somebody else has just let go of
    /// may still be on its way back.
    async fn has_news(&mut self) -> Result<bool, AmqpError> {
        self.expected = self.ready().await?;
        if self.expected == 0 {
            tokio::time::sleep(SILENCE).await;
            self.expected = self.ready().await?;
            // What was sent to us before its answer has come when that has.
            let round_trip = self.channel.basic_qos(self.width, BasicQosOptions::default());
            within(self.link.limit, "look at a queue", round_trip).await?;
        }
        Ok(self.expected > 0)
    }

    async fn ready(&self) -> Result<u32, AmqpError> {
        Ok(topology::depth(self.link, self.queue).await?.unwrap_or(0))
    }

    async fn widen(&mut self) -> Result<(), AmqpError> {
        let qos = self.channel.basic_qos(self.width, BasicQosOptions::default());
        within(self.link.limit, "set the prefetch", qos).await?;
        // Their names are in their order.
        let tag = format!("scan-{:06}", self.consumers.len());
        let (options, none) = (BasicConsumeOptions::default(), FieldTable::default());
        let consume =
            self.channel.basic_consume(self.queue.into(), tag.as_str().into(), options, none);
        self.consumers.push(within(self.link.limit, "look at a queue", consume).await?);
        self.room = self.width;
        Ok(())
    }
}
