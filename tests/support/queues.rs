//! The broker as tests see it: publish, look, take, delete.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _};
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions, ExchangeDeleteOptions, QueueDeclareOptions, QueueDeleteOptions,
    QueuePurgeOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Queue};
use serde_json::Value;

use super::eventually;

const TAKEN_AT_ONCE: u16 = 500;
const ACKED_AT_ONCE: usize = 250;
/// For several acks to reach a queue.
const ACK_PATIENCE: Duration = Duration::from_millis(300);

/// A connection of the test's own.
pub struct Queues {
    url: String,
    connection: Connection,
    channel: Channel,
}

/// A message taken from a queue.
#[derive(Debug, Clone)]
pub struct Taken {
    /// The body.
    pub body: Vec<u8>,
    /// The properties, headers included.
    pub properties: BasicProperties,
}

impl Taken {
    /// A header as text: texts as they are, numbers in decimal.
    pub fn header(&self, name: &str) -> Option<String> {
        match self.properties.headers().as_ref()?.inner().get(name)? {
            AMQPValue::LongString(text) => Some(text.to_string()),
            AMQPValue::ShortString(text) => Some(text.to_string()),
            AMQPValue::LongLongInt(number) => Some(number.to_string()),
            AMQPValue::LongInt(number) => Some(number.to_string()),
            AMQPValue::Boolean(value) => Some(value.to_string()),
            other => Some(format!("{other:?}")),
        }
    }

    /// All headers, as text.
    pub fn headers(&self) -> BTreeMap<String, String> {
        let table = self.properties.headers().clone().unwrap_or_default();
        let names = table.inner().keys().map(ToString::to_string);
        names.filter_map(|name| Some((name.clone(), self.header(&name)?))).collect()
    }
}

impl Queues {
    /// Connects.
    pub async fn connect(url: &str) -> Result<Queues> {
        let connection = Connection::connect(url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Queues { url: url.to_owned(), connection, channel })
    }

    /// The channel, for what is not offered here. A refusal closes it.
    pub async fn new_channel(&self) -> Result<Channel> {
        Ok(self.connection.create_channel().await?)
    }

    /// Publishes and waits for the confirm; fails if no queue takes it.
    pub async fn publish(
        &self,
        exchange: &str,
        routing_key: &str,
        properties: BasicProperties,
        body: &[u8],
    ) -> Result<()> {
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let confirm = self
            .channel
            .basic_publish(exchange.into(), routing_key.into(), options, body, properties)
            .await?
            .await?;
        ensure!(matches!(confirm, Confirmation::Ack(None)), "not taken: {confirm:?}");
        Ok(())
    }

    /// Publishes many structured events to an exchange, as the CRM would.
    pub async fn publish_events(&self, exchange: &str, events: &[Value]) -> Result<()> {
        let messages = events.iter().map(|event| {
            let properties = BasicProperties::default()
                .with_content_type("application/cloudevents+json".into())
                .with_delivery_mode(2);
            (properties, event.to_string().into_bytes())
        });
        self.publish_all(exchange, "customer.updated", messages).await
    }

    /// Publishes many messages straight to a queue.
    pub async fn publish_many(
        &self,
        queue: &str,
        messages: impl Iterator<Item = (BasicProperties, Vec<u8>)>,
    ) -> Result<()> {
        self.publish_all("", queue, messages).await
    }

    async fn publish_all(
        &self,
        exchange: &str,
        key: &str,
        messages: impl Iterator<Item = (BasicProperties, Vec<u8>)>,
    ) -> Result<()> {
        let mut confirms = Vec::new();
        for (properties, body) in messages {
            let options = BasicPublishOptions::default();
            let publish =
                self.channel.basic_publish(exchange.into(), key.into(), options, &body, properties);
            confirms.push(publish.await?);
            if confirms.len() == 500 {
                for confirm in confirms.drain(..) {
                    ensure!(confirm.await?.is_ack(), "not confirmed");
                }
            }
        }
        for confirm in confirms {
            ensure!(confirm.await?.is_ack(), "not confirmed");
        }
        Ok(())
    }

    /// Messages ready in a queue.
    pub async fn depth(&self, queue: &str) -> Result<u32> {
        Ok(self.look(queue).await?.message_count())
    }

    /// Consumers of a queue.
    pub async fn consumers(&self, queue: &str) -> Result<u32> {
        Ok(self.look(queue).await?.consumer_count())
    }

    async fn look(&self, queue: &str) -> Result<Queue> {
        let channel = self.connection.create_channel().await?;
        let options = QueueDeclareOptions::default().passive();
        let declared = channel.queue_declare(queue.into(), options, FieldTable::default()).await?;
        channel.close(200, "looked".into()).await?;
        Ok(declared)
    }

    /// Waits until a queue holds exactly so many ready messages.
    pub async fn holds(&self, queue: &str, count: u32, limit: Duration) -> Result<()> {
        eventually(&format!("{count} messages in {queue}"), limit, || async {
            Ok((self.depth(queue).await? == count).then_some(()))
        })
        .await
    }

    /// Takes the next message for good, waiting for it.
    pub async fn take(&self, queue: &str, limit: Duration) -> Result<Taken> {
        eventually(&format!("a message in {queue}"), limit, || self.try_take(queue)).await
    }

    /// Takes the next message for good, if there is one.
    pub async fn try_take(&self, queue: &str) -> Result<Option<Taken>> {
        let got = self.channel.basic_get(queue.into(), BasicGetOptions::default()).await?;
        let Some(got) = got else { return Ok(None) };
        let delivery = got.delivery;
        delivery.acker.ack(BasicAckOptions::default()).await?;
        Ok(Some(Taken { body: delivery.data, properties: delivery.properties }))
    }

    /// Takes the next message and is gone with it, as a consumer that dies.
    pub async fn vanish_with(&self, queue: &str) -> Result<()> {
        let connection = Connection::connect(&self.url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        let got = channel.basic_get(queue.into(), BasicGetOptions::default()).await?;
        ensure!(got.is_some(), "nothing to vanish with in {queue}");
        Ok(connection.close(200, "gone".into()).await?)
    }

    /// Takes all messages of a queue. Acked one by one, with the channel closed right behind them, up
    /// to half of them would come back: a channel passes acks on to a quorum queue only as fast as that
    /// confirms them. So they are acked together.
    pub async fn take_all(&self, queue: &str) -> Result<Vec<Taken>> {
        let count = self.depth(queue).await? as usize;
        let channel = self.connection.create_channel().await?;
        channel.basic_qos(TAKEN_AT_ONCE, BasicQosOptions::default()).await?;
        let options = BasicConsumeOptions::default();
        let deliveries =
            channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await?;
        let mut deliveries = deliveries.take(count);
        let mut all = Vec::with_capacity(count);
        while let Some(delivery) = deliveries.try_next().await? {
            let taken = all.len() + 1;
            if taken == count || taken.is_multiple_of(ACKED_AT_ONCE) {
                delivery.acker.ack(BasicAckOptions { multiple: true }).await?;
            }
            all.push(Taken { body: delivery.data, properties: delivery.properties });
        }
        if count > ACKED_AT_ONCE {
            tokio::time::sleep(ACK_PATIENCE).await;
        }
        channel.close(200, "taken".into()).await?;
        Ok(all)
    }

    /// Deletes all messages of a queue, also those that no library can read.
    pub async fn purge(&self, queue: &str) -> Result<u32> {
        let channel = self.connection.create_channel().await?;
        let purged = channel.queue_purge(queue.into(), QueuePurgeOptions::default()).await?;
        channel.close(200, "purged".into()).await?;
        Ok(purged)
    }

    /// Looks at all messages of a queue; they stay where they are.
    pub async fn look_at_all(&self, queue: &str) -> Result<Vec<Taken>> {
        let channel = self.connection.create_channel().await?;
        let mut all = Vec::new();
        while let Some(got) = channel.basic_get(queue.into(), BasicGetOptions::default()).await? {
            let delivery = got.delivery;
            all.push(Taken { body: delivery.data, properties: delivery.properties });
        }
        channel.close(200, "looked".into()).await?;
        Ok(all)
    }

    /// Deletes queues and the exchange; what was still in each queue.
    pub async fn delete(&self, topology: &Value) -> Result<BTreeMap<String, u32>> {
        let mut left = BTreeMap::new();
        for queue in topology["queues"].as_array().context("no queues")? {
            let name = queue["name"].as_str().context("no name")?;
            let count =
                self.channel.queue_delete(name.into(), QueueDeleteOptions::default()).await?;
            if count > 0 && holds_events(name) {
                left.insert(name.to_owned(), count);
            }
        }
        let exchange = topology["exchange"]["name"].as_str().context("no exchange")?;
        self.channel.exchange_delete(exchange.into(), ExchangeDeleteOptions::default()).await?;
        Ok(left)
    }
}

/// Whether a queue is for events: one tells which ledger they are fenced by.
pub fn holds_events(queue: &str) -> bool {
    !queue.ends_with(".ledger-id")
}
