//! Messages handed to us, each ended by exactly one ack.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::Fuse;
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Consumer};
use opentelemetry::Context;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::connection::{AmqpError, Link, within};
use crate::clock;
use crate::domain::receipts::ReceiptKey;
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

/// What came by consumers that were asked for in turn, and ended together.
#[derive(Debug, Default)]
struct Crop {
    in_hand: AtomicUsize,
    ended: AtomicUsize,
}

/// A delivery counts as in hand as long as this lives.
#[derive(Debug)]
struct Held {
    crop: Arc<Crop>,
    one_ended: Arc<Notify>,
}

impl Held {
    fn new(crop: &Arc<Crop>, one_ended: &Arc<Notify>) -> Held {
        crop.in_hand.fetch_add(1, Ordering::Relaxed);
        Held { crop: Arc::clone(crop), one_ended: Arc::clone(one_ended) }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.crop.in_hand.fetch_sub(1, Ordering::Relaxed);
        self.crop.ended.fetch_add(1, Ordering::Relaxed);
        self.one_ended.notify_one();
    }
}

/// One hand-over of a message to us.
#[derive(Debug)]
pub struct Delivery {
    /// Boxed: it is large, and travels through several tasks.
    message: Box<Message>,
    _held: Held,
    session: CancellationToken,
    limit: Duration,
    came: Instant,
    context: Context,
    receipt: Option<ReceiptKey>,
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

    /// What tells of its first receipt, if its message does not.
    pub fn receipt(&self) -> Option<ReceiptKey> {
        self.receipt
    }

    /// From now on this does.
    pub fn set_receipt(&mut self, receipt: Option<ReceiptKey>) {
        self.receipt = receipt;
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

/// The deliveries of one session: one connection, one channel. The broker lets nobody change how many
/// deliveries a consumer may have in hand, and what a cancelled one was just being given goes back out
/// of its order: to take more, one asks for another consumer beside those that are there.
pub struct Deliveries {
    link: Link,
    channel: Channel,
    queue: String,
    consumers: Vec<Fuse<Consumer>>,
    /// Consumers so far: each has a tag of its own.
    numbers: u32,
    /// What the consumers may have in hand together.
    granted: usize,
    /// What they brought, and what was brought by those before them that is still in hand.
    crop: Arc<Crop>,
    strays: Vec<Arc<Crop>>,
    /// Of those before them, how many have come to an end.
    ended: usize,
    one_ended: Arc<Notify>,
    /// What has come already, in the order in which the channel gave it.
    came: VecDeque<Box<Message>>,
    /// All consumers are to end.
    is_cancelling: bool,
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
                consumers: Vec::new(),
                numbers: 0,
                granted: 0,
                crop: Arc::default(),
                strays: Vec::new(),
                ended: 0,
                one_ended: Arc::default(),
                came: VecDeque::new(),
                is_cancelling: false,
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

    /// Asks for so many deliveries at once beside what was asked for before.
    pub async fn ask(&mut self, more: u16) -> Result<(), AmqpError> {
        let qos = self.channel.basic_qos(more, BasicQosOptions::default());
        within(self.link.limit, "set the prefetch", qos).await?;
        self.numbers += 1;
        let tag = ShortString::from(format!("customer-relay-{:09}", self.numbers));
        let consume = self.channel.basic_consume(
            self.queue.as_str().into(),
            tag,
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        self.consumers.push(within(self.link.limit, "consume", consume).await?.fuse());
        self.granted += usize::from(more);
        Ok(())
    }

    /// The next delivery, or why there are no more. Waits for ever if none was asked for.
    pub async fn next(&mut self) -> Result<Delivery, SessionEnd> {
        let message = match self.came.pop_front() {
            Some(message) => message,
            None => std::future::poll_fn(|context| self.poll_came(context)).await?,
        };
        Ok(Delivery {
            message,
            _held: Held::new(&self.crop, &self.one_ended),
            session: self.session.clone(),
            limit: self.link.limit,
            came: clock::instant(),
            context: Context::new(),
            receipt: None,
        })
    }

    /// Takes all that has come to the consumers: whatever the broker sent before something that is here
    /// is here as well.
    fn poll_came(&mut self, task: &mut TaskContext<'_>) -> Poll<Result<Box<Message>, SessionEnd>> {
        let (mut sources, mut over) = (0, 0);
        for consumer in &mut self.consumers {
            let before = self.came.len();
            while let Poll::Ready(next) = consumer.poll_next_unpin(task) {
                match next {
                    Some(Ok(message)) => self.came.push_back(Box::new(Message(message))),
                    Some(Err(error)) => return Poll::Ready(Err(SessionEnd(Some(error)))),
                    None => {
                        over += 1;
                        break;
                    }
                }
            }
            sources += usize::from(self.came.len() > before);
        }
        if sources > 1 {
            self.came.make_contiguous().sort_by_key(|message| message.0.delivery_tag);
        }
        // To have fewer consumers than were asked for is no session.
        let is_over = over > 0 && (!self.is_cancelling || over == self.consumers.len());
        match self.came.pop_front() {
            Some(message) => Poll::Ready(Ok(message)),
            None if is_over => Poll::Ready(Err(SessionEnd(None))),
            None => Poll::Pending,
        }
    }

    /// What has been asked for, and what else is still in hand.
    pub fn granted_and_strays(&self) -> (usize, usize) {
        let strays = self.strays.iter().map(|crop| crop.in_hand.load(Ordering::Relaxed));
        (self.granted, strays.sum())
    }

    /// Whether there are several consumers.
    pub fn are_scattered(&self) -> bool {
        self.consumers.len() > 1
    }

    /// How many are in hand.
    pub fn in_hand(&self) -> usize {
        let (_, strays) = self.granted_and_strays();
        strays + self.crop.in_hand.load(Ordering::Relaxed)
    }

    /// How many deliveries have come to their end.
    pub fn ended(&self) -> usize {
        let of = |crop: &Arc<Crop>| crop.ended.load(Ordering::Relaxed);
        self.ended + of(&self.crop) + self.strays.iter().map(of).sum::<usize>()
    }

    /// Told each time that a delivery has come to its end.
    pub fn one_ended(&self) -> Arc<Notify> {
        Arc::clone(&self.one_ended)
    }

    /// Asks the broker for no more deliveries, and returns those that were on their way.
    pub async fn cancel(&mut self) -> Vec<Delivery> {
        let mut last = Vec::new();
        if self.consumers.is_empty() {
            return last;
        }
        self.is_cancelling = true;
        for consumer in &self.consumers {
            let tag = consumer.get_ref().tag();
            let cancel = self.channel.basic_cancel(tag, BasicCancelOptions::default());
            if let Err(error) = within(self.link.limit, "cancel a consumer", cancel).await {
                tracing::debug!(%error, "the consumer was gone already");
                break;
            }
        }
        while let Ok(Ok(delivery)) = tokio::time::timeout(self.link.limit, self.next()).await {
            last.push(delivery);
        }
        self.consumers.clear();
        (self.granted, self.is_cancelling) = (0, false);
        self.strays.push(std::mem::take(&mut self.crop));
        let (strays, over): (Vec<_>, Vec<_>) = std::mem::take(&mut self.strays)
            .into_iter()
            .partition(|crop| crop.in_hand.load(Ordering::Relaxed) > 0);
        self.strays = strays;
        self.ended += over.iter().map(|crop| crop.ended.load(Ordering::Relaxed)).sum::<usize>();
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
