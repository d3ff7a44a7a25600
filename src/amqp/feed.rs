//! Many messages in order: one channel, the next one sent while the confirms of the last are still
//! on their way.

use std::collections::VecDeque;

use futures_util::FutureExt;
use lapin::options::BasicPublishOptions;
use lapin::{Channel, PublisherConfirm};

use super::connection::{AmqpError, Broker, Link, within};
use super::publisher::{PublishError, judge};
use super::republish::NewMessage;

/// An ordered stream of messages to one exchange. Confirms come back in the order of sending.
///
/// Where one of several messages under way is returned, lapin does not tell which: the error is
/// that of the first one not known to be safe.
pub struct Feed {
    link: Link,
    channel: Channel,
    exchange: String,
    routing_key: String,
    unconfirmed: VecDeque<PublisherConfirm>,
}

/// Messages sent ahead of their confirms.
const WINDOW: usize = 256;

impl Feed {
    /// Connects, for messages with this exchange and routing key.
    pub async fn open(
        broker: &Broker,
        exchange: &str,
        routing_key: &str,
    ) -> Result<Feed, AmqpError> {
        let link = broker.connect("publish").await?;
        let channel = link.confirm_channel().await?;
        let (exchange, routing_key) = (exchange.to_owned(), routing_key.to_owned());
        Ok(Feed { link, channel, exchange, routing_key, unconfirmed: VecDeque::new() })
    }

    /// Sends one message; returns how many earlier ones turned out to be confirmed meanwhile.
    pub async fn send(&mut self, message: NewMessage, body: &[u8]) -> Result<u64, PublishError> {
        let mut confirmed = 0;
        while let Some(next) = self.unconfirmed.front_mut() {
            let known = next.now_or_never();
            if known.is_none() && self.unconfirmed.len() < WINDOW {
                break;
            }
            confirmed += match known {
                Some(confirmation) => {
                    self.unconfirmed.pop_front();
                    let confirmation =
                        confirmation.map_err(|error| AmqpError::Failed("publish", error))?;
                    judge(confirmation, &self.exchange).map(|()| 1)?
                }
                None => self.confirm_next().await?,
            };
        }
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let send = self.channel.basic_publish(
            self.exchange.as_str().into(),
            self.routing_key.as_str().into(),
            options,
            body,
            message.properties,
        );
        self.unconfirmed.push_back(within(self.link.limit, "publish", send).await?);
        Ok(confirmed)
    }

    /// Waits for the next confirm; returns 0 once every message is confirmed.
    pub async fn confirm_next(&mut self) -> Result<u64, PublishError> {
        let Some(confirm) = self.unconfirmed.pop_front() else { return Ok(0) };
        let confirmation = within(self.link.limit, "confirm", confirm).await?;
        judge(confirmation, &self.exchange).map(|()| 1)
    }

    /// Closes the connection.
    pub async fn close(self) {
        self.link.close().await;
    }
}
