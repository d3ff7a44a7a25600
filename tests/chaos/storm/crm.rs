//! The CRM: publishes its events at a steady rate, straight to the broker, waits out whatever
//! happens to that, and publishes what was not confirmed once more.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{Channel, Connection, ConnectionProperties};

use super::events::Events;
use super::sky::Sky;
use crate::support::bed::structured;
use crate::support::eventually;

/// At most so many are unconfirmed at once.
const BATCH: usize = 50;
const TICK: Duration = Duration::from_millis(50);
/// The broker may be away, or block publishers, for as long as this.
const PATIENCE: Duration = Duration::from_mins(1);

/// Where to, and what.
pub struct Crm<'a> {
    pub url: String,
    pub exchange: String,
    pub events: &'a Events,
    /// Over this time.
    pub lasts: Duration,
}

/// How often each event was published. What was not confirmed may have arrived all the same.
#[derive(Clone, Debug, Default)]
pub struct Published {
    pub sent: Vec<usize>,
    pub confirmed: Vec<usize>,
}

struct Line {
    /// Held for its channel.
    _connection: Connection,
    channel: Channel,
}

impl Crm<'_> {
    /// Publishes everything.
    pub async fn publish(&self, sky: &Sky) -> Result<Published> {
        let order = &self.events.order;
        let messages = self.messages();
        let none = vec![0; self.events.all.len()];
        let mut published = Published { sent: none.clone(), confirmed: none };
        let (mut next, mut open) = (0, Vec::new());
        let mut line = None;
        while next < order.len() || !open.is_empty() {
            if open.is_empty() {
                tokio::time::sleep(TICK).await;
            }
            let share = sky.elapsed().as_secs_f64() / self.lasts.as_secs_f64();
            let due = order.len().min(proportion(order.len(), share));
            open.extend_from_slice(&order[next..due.max(next)]);
            next = due.max(next);
            let channel = match line.take() {
                Some(line) => line,
                None => self.connect().await?,
            };
            let batch: Vec<usize> = open.drain(..open.len().min(BATCH)).collect();
            for &number in &batch {
                published.sent[number] += 1;
                published.confirmed[number] += 1;
            }
            let unconfirmed = self.send(&channel.channel, &messages, &batch).await;
            for &number in &unconfirmed {
                published.confirmed[number] -= 1;
            }
            if unconfirmed.is_empty() {
                line = Some(channel);
            } else {
                sky.says(&format!("the CRM publishes {} events again", unconfirmed.len()));
            }
            open.splice(..0, unconfirmed);
        }
        sky.says("the CRM has published everything");
        Ok(published)
    }

    fn messages(&self) -> Vec<Vec<u8>> {
        let began = jiff::Timestamp::now();
        let message = |number: usize| {
            // In the order of their numbers.
            let later = Duration::from_millis(number as u64);
            let time = began.checked_add(later).unwrap_or(began).to_string();
            self.events.message(number, &self.exchange, &time)
        };
        (0..self.events.all.len()).map(|number| message(number).to_string().into_bytes()).collect()
    }

    async fn connect(&self) -> Result<Line> {
        eventually("the CRM's connection", PATIENCE, || async { Ok(open(&self.url).await.ok()) })
            .await
    }

    /// Those that were not confirmed; then the connection is not to be used any more.
    async fn send(&self, channel: &Channel, messages: &[Vec<u8>], numbers: &[usize]) -> Vec<usize> {
        let mut confirms = Vec::new();
        for &number in numbers {
            let options = BasicPublishOptions { mandatory: true, ..Default::default() };
            let (exchange, key) = (self.exchange.as_str().into(), "customer.updated".into());
            let message = &messages[number];
            let publish = channel.basic_publish(exchange, key, options, message, structured());
            confirms.push((number, publish.await));
        }
        let mut unconfirmed = Vec::new();
        for (number, confirm) in confirms {
            let confirmed = async {
                let confirm = tokio::time::timeout(PATIENCE, confirm?).await??;
                ensure!(confirm.is_ack() && confirm.take_message().is_none(), "returned");
                Ok(())
            };
            if confirmed.await.is_err() {
                unconfirmed.push(number);
            }
        }
        unconfirmed
    }
}

async fn open(url: &str) -> Result<Line> {
    let connecting = Connection::connect(url, ConnectionProperties::default());
    let connecting = tokio::time::timeout(Duration::from_secs(5), connecting);
    let connection = connecting.await.context("no answer")??;
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    Ok(Line { _connection: connection, channel })
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "some thousands, and a share of them that is not negative"
)]
fn proportion(count: usize, share: f64) -> usize {
    (count as f64 * share) as usize
}
