//! Publishing that counts: persistent, mandatory, confirmed.
//!
//! A channel carries one unconfirmed message at a time, so a returned message can only be its own
//! (lapin attributes returns by guess where several are under way). Several channels give the
//! parallelism.

use std::fmt;
use std::time::Duration;

use lapin::options::BasicPublishOptions;
use lapin::{Channel, Confirmation};
use tokio::sync::{Mutex, Semaphore};

use super::connection::{AmqpError, Broker, Link, close_channel, within};
use super::frame;
use super::republish::NewMessage;

/// What takes longer for each KiB of its body, beside the time that any operation may take, is stuck.
const SLOWEST_KIB: Duration = Duration::from_millis(4);

/// Why a message is not safe at the broker.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// No confirmation came; the message may or may not be there.
    #[error(transparent)]
    Broker(#[from] AmqpError),
    /// The broker takes no messages for now.
    #[error("the broker has blocked publishers (memory or disk alarm)")]
    Blocked,
    /// No queue took it.
    #[error("no queue takes {0}: it was returned ({1})")]
    Returned(String, String),
    /// The queue refused it.
    #[error("{0} refused the message (is it full?)")]
    Refused(String),
}

impl PublishError {
    /// A stable name, for metrics and spans.
    pub fn name(&self) -> &'static str {
        match self {
            PublishError::Broker(AmqpError::TimedOut(..)) => "timeout",
            PublishError::Broker(_) => "connection",
            PublishError::Blocked => "blocked",
            PublishError::Returned(..) => "returned",
            PublishError::Refused(_) => "refused",
        }
    }
}

/// A connection for publishing, made when it is first needed and again when it is lost.
pub struct Publisher {
    broker: Broker,
    slots: Semaphore,
    state: Mutex<State>,
}

/// A channel to publish one message on.
struct Ready {
    channel: Channel,
    frame_max: u32,
    turn: usize,
}

#[derive(Default)]
struct State {
    link: Option<Link>,
    idle: Vec<Channel>,
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").field("broker", &self.broker).finish_non_exhaustive()
    }
}

impl Publisher {
    /// At most `width` messages are under way at once, each on a channel of its own.
    pub fn new(broker: Broker, width: usize) -> Self {
        Publisher { broker, slots: Semaphore::new(width), state: Mutex::default() }
    }

    /// Returns once the broker has the message in a queue, durably.
    pub async fn publish(
        &self,
        exchange: &str,
        routing_key: &str,
        message: NewMessage,
        body: &[u8],
    ) -> Result<(), PublishError> {
        let _slot = self.slots.acquire().await.expect("the semaphore is never closed");
        let Ready { channel, frame_max, turn } = self.channel().await?;
        let target = if exchange.is_empty() { routing_key } else { exchange };
        let properties = frame::fit(message.properties, frame_max);
        let send = async {
            let options = BasicPublishOptions { mandatory: true, ..Default::default() };
            let (exchange, routing_key) = (exchange.into(), routing_key.into());
            channel.basic_publish(exchange, routing_key, options, body, properties).await?.await
        };
        let limit = self.broker.limit + SLOWEST_KIB * kib(body);
        match within(limit, "publish", send).await {
            Ok(confirmation) => {
                self.state.lock().await.idle.push(channel);
                judge(confirmation, target)
            }
            Err(error) => {
                if matches!(error, AmqpError::TimedOut(..)) && !self.is_blocked().await {
                    // The node may have no peers: another one may have.
                    self.give_up(turn).await;
                } else {
                    // Its confirm may still come: nothing else may be sent on this channel.
                    close_channel(&channel, self.broker.limit).await;
                }
                Err(error.into())
            }
        }
    }

    /// Closes the connection, if there is one.
    pub async fn close(&self) {
        let mut state = self.state.lock().await;
        state.idle.clear();
        if let Some(link) = state.link.take() {
            link.close().await;
        }
    }

    /// An idle channel or a new one, on a new connection if need be.
    async fn channel(&self) -> Result<Ready, PublishError> {
        let mut state = self.state.lock().await;
        if state.link.as_ref().is_some_and(|link| !link.is_open()) {
            state.idle.clear();
            if let Some(link) = state.link.take() {
                link.close().await;
            }
        }
        if state.link.is_none() {
            state.link = Some(self.broker.connect("publish").await?);
        }
        let State { link: Some(link), idle } = &mut *state else {
            return Err(PublishError::Blocked);
        };
        if link.is_blocked() {
            return Err(PublishError::Blocked);
        }
        let frame_max = link.connection.configuration().frame_max();
        let turn = link.turn();
        while let Some(channel) = idle.pop() {
            if channel.status().connected() {
                return Ok(Ready { channel, frame_max, turn });
            }
        }
        let channel = link.confirm_channel().await?;
        Ok(Ready { channel, frame_max, turn })
    }

    /// Whether the broker has stopped taking publishes. A connection tells after its first one.
    async fn is_blocked(&self) -> bool {
        self.state.lock().await.link.as_ref().is_some_and(Link::is_blocked)
    }

    /// Closes the connection of this turn, unless another one has taken its place.
    async fn give_up(&self, turn: usize) {
        self.broker.avoid(turn);
        let given_up = {
            let mut state = self.state.lock().await;
            let is_same = state.link.as_ref().is_some_and(|link| link.turn() == turn);
            if is_same {
                state.idle.clear();
            }
            if is_same { state.link.take() } else { None }
        };
        if let Some(link) = given_up {
            link.close().await;
        }
    }
}

fn kib(body: &[u8]) -> u32 {
    u32::try_from(body.len() / 1024).unwrap_or(u32::MAX)
}

/// What the broker's word on a message means for it.
pub(super) fn judge(confirmation: Confirmation, target: &str) -> Result<(), PublishError> {
    match confirmation {
        Confirmation::Ack(None) => Ok(()),
        Confirmation::Ack(Some(returned)) => {
            Err(PublishError::Returned(target.to_owned(), returned.reply_text.to_string()))
        }
        Confirmation::Nack(_) | Confirmation::NotRequested => {
            Err(PublishError::Refused(target.to_owned()))
        }
    }
}
