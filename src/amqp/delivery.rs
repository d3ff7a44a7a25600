//! Messages handed to us, each ended by exactly one ack.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Consumer};
use opentelemetry::Context;
use tokio_util::sync::CancellationToken;

use super::connection::{AmqpError, Link, within};
use crate::clock;
use crate::domain::text::escape;

/// Longest id in a log line or a trace, in bytes.
const MAX_SHOWN_ID_BYTES: usize = 128;

/// A message as the broker gave it to us.
#[derive(Debug)]
pub struct Message(pub(super) lapin::message::Delivery);

impl Message {
    /// The body, as it came.
    pub fn body(&self) -> &[u8] {
        &self.0.data
    }

    /// The `message_id` property.
    pub fn id(&self) -> Option<&str> {
        self.0.properties.message_id().as_ref().map(ShortString::as_str)
    }

    /// The `message_id` property, fit to be shown.
    pub fn shown_id(&self) -> Option<Cow<'_, str>> {
        self.id().map(|id| escape(id, MAX_SHOWN_ID_BYTES))
    }
}

/// The channel a delivery came on is gone: the broker gives the message out again.
#[derive(Debug, thiserror::Error)]
#[error("the delivery's channel is gone; the broker will deliver the message again")]
pub struct Forgotten;

/// One hand-over of a message to us.
#[derive(Debug)]
pub struct Delivery {
    /// Boxed: it is large, and travels through several tasks.
    message: Box<Message>,
    session: CancellationToken,
    limit: Duration,
    came: Instant,
    context: Context,
}

impl Delivery {
    /// The message.
    pub fn message(&self) -> &Message {
        &self.message
    }

    /// When it came.
    pub fn came(&self) -> Instant {
        self.came
    }

    /// The trace that it belongs to.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// From now on it belongs to this trace.
    pub fn set_context(&mut self, context: Context) {
        self.context = context;
    }

    /// Resolves once the channel is gone and an ack would no longer count.
    pub async fn forgotten(&self) {
        self.session.cancelled().await;
    }

    /// Whether the channel is gone.
    pub fn is_forgotten(&self) -> bool {
        self.session.is_cancelled()
    }

    /// Tells the broker that the message has reached its durable end.
    pub async fn ack(self) -> Result<(), Forgotten> {
        let ack = self.message.0.ack(BasicAckOptions::default());
        match within(self.limit, "ack", ack).await {
            Ok(true) => Ok(()),
            // Poisoned by a channel error, or not written: the broker never sees this ack.
            Ok(false) | Err(_) => Err(Forgotten),
        }
    }
}

/// The deliveries of one session: one connection, one channel, one consumer at a time.
pub struct Deliveries {
    link: Link,
    channel: Channel,
    queue: String,
    consumer: Option<Consumer>,
    /// Consumers so far: each has a tag of its own.
    consumers: u32,
    session: CancellationToken,
}

/// Ten times what was measured to suffice.
const ACK_PATIENCE: Duration = Duration::from_millis(300);

impl Deliveries {
    /// Prepares to consume `queue`.
    pub async fn open(link: Link, queue: &str) -> Result<Deliveries, AmqpError> {
        match link.channel().await {
            Ok(channel) => Ok(Deliveries {
                link,
                channel,
                queue: queue.to_owned(),
                consumer: None,
                consumers: 0,
                session: CancellationToken::new(),
            }),
            Err(error) => {
                link.close().await;
                Err(error)
            }
        }
    }

    /// For [`Broker::avoid`](super::Broker::avoid).
    pub fn turn(&self) -> usize {
        self.link.turn()
    }

    /// Asks for deliveries, with at most `prefetch` of them unacked.
    pub async fn ask(&mut self, prefetch: u16) -> Result<(), AmqpError> {
        let qos = self.channel.basic_qos(prefetch, BasicQosOptions::default());
        within(self.link.limit, "set the prefetch", qos).await?;
        self.consumers += 1;
        // Nothing of an old consumer's, whose deliveries may still be in hand, is to count for it.
        let tag = format!("customer-relay-{}", self.consumers);
        let consume = self.channel.basic_consume(
            self.queue.as_str().into(),
            tag.into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        self.consumer = Some(within(self.link.limit, "consume", consume).await?);
        Ok(())
    }

    /// The next delivery, or why there are no more. Waits for ever if none was asked for.
    pub async fn next(&mut self) -> Result<Delivery, SessionEnd> {
        let Some(consumer) = &mut self.consumer else { return std::future::pending().await };
        match consumer.next().await {
            Some(Ok(message)) => Ok(Delivery {
                message: Box::new(Message(message)),
                session: self.session.clone(),
                limit: self.link.limit,
                came: clock::instant(),
                context: Context::new(),
            }),
            Some(Err(error)) => Err(SessionEnd(Some(error))),
            None => Err(SessionEnd(None)),
        }
    }

    /// Asks the broker for no more deliveries, and returns those that were on their way.
    pub async fn cancel(&mut self) -> Vec<Delivery> {
        let mut last = Vec::new();
        let Some(consumer) = &self.consumer else { return last };
        let cancel = self.channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
        if let Err(error) = within(self.link.limit, "cancel the consumer", cancel).await {
            tracing::debug!(%error, "the consumer was gone already");
        }
        while let Ok(Ok(delivery)) = tokio::time::timeout(self.link.limit, self.next()).await {
            last.push(delivery);
        }
        self.consumer = None;
        last
    }

    /// Lets the acks sent so far reach the queue, before an orderly [`close`](Self::close).
    ///
    /// An ack is not answered, and a channel passes acks on to a quorum queue only as fast as that
    /// confirms them: of 100 acks with the connection closed right behind them, up to half were
    /// redelivered (measured on 3.10.8 and 4.0.5; 30 ms of patience sufficed for 400). The two
    /// round trips prove that the channel has seen the acks, then the queue's answers.
    pub async fn flush_acks(&self) {
        if let Err(error) = flush_acks(&self.channel, self.link.limit).await {
            tracing::debug!(%error, "the channel was gone already");
        }
    }

    /// Gives the session up: what is not acked now never will be on it.
    pub async fn close(self) {
        self.session.cancel();
        self.link.close().await;
    }
}

/// Waits until the acks of a channel have taken effect; see [`Deliveries::flush_acks`].
pub(super) async fn flush_acks(channel: &Channel, limit: Duration) -> Result<(), AmqpError> {
    for pause in [Duration::ZERO, ACK_PATIENCE] {
        tokio::time::sleep(pause).await;
        // Of no effect on consumers that are there already.
        let round_trip = channel.basic_qos(1, BasicQosOptions::default());
        within(limit, "flush the acks", round_trip).await?;
    }
    Ok(())
}

/// Why a session yields no more deliveries.
#[derive(Debug)]
pub struct SessionEnd(Option<lapin::Error>);

impl std::fmt::Display for SessionEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Some(error) => error.fmt(f),
            None => f.write_str("the broker cancelled the consumer (was the queue deleted?)"),
        }
    }
}
