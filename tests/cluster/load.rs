//! The CRM: a steady stream of events, each published until it is confirmed, on whichever node
//! confirms.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures_util::FutureExt;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{Channel, Confirmation, Connection, ConnectionProperties, PublisherConfirm};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::support::bed::structured;

pub(crate) const PER_SECOND: usize = 100;
/// Events at once, before the steady stream: so the relay has work while the CRM fails over.
const AHEAD: usize = 1000;
/// So many events of one customer that the simulator remembers each.
const CUSTOMERS: usize = 500;
const WINDOW: usize = 500;
/// For each operation on the broker.
const LIMIT: Duration = Duration::from_secs(5);
const TICK: Duration = Duration::from_millis(10);
const PAUSE: Duration = Duration::from_millis(200);

/// What was published in the end.
#[derive(Debug, Default)]
pub(crate) struct Published {
    /// Events, each confirmed.
    pub(crate) events: usize,
    /// Those that were sent again because their first confirm did not come.
    pub(crate) again: BTreeSet<usize>,
    /// The longest time without a confirm.
    pub(crate) longest_wait: Duration,
}

/// A stream of events under way.
pub(crate) struct Load {
    stop: CancellationToken,
    task: JoinHandle<Result<Published>>,
}

impl Load {
    /// Begins to publish to an exchange. The addresses of the events begin with `word`.
    pub(crate) fn start(urls: Vec<String>, exchange: String, word: &'static str) -> Load {
        let stop = CancellationToken::new();
        let crm = Crm {
            exchange,
            word,
            stop: stop.clone(),
            began: Instant::now(),
            last_confirm: Instant::now(),
            unconfirmed: BTreeSet::new(),
            published: Published::default(),
        };
        Load { stop, task: tokio::spawn(crm.publish(urls)) }
    }

    /// Makes no more events; returns when all are confirmed.
    pub(crate) async fn stop(self) -> Result<Published> {
        self.stop.cancel();
        let published = timeout(LIMIT * 12, self.task).await;
        published.context("the events are not confirmed")??
    }
}

/// The address that only this event has.
pub(crate) fn address(word: &str, event: usize) -> String {
    format!("{event} {word} road")
}

/// The customers whom events of this word are about.
pub(crate) fn customers(word: &str) -> impl Iterator<Item = String> {
    (0..CUSTOMERS).map(move |customer| format!("{word}-{customer}"))
}

/// A message on its way.
struct Sent {
    event: usize,
    at: Instant,
    confirm: PublisherConfirm,
}

struct Crm {
    exchange: String,
    word: &'static str,
    stop: CancellationToken,
    began: Instant,
    last_confirm: Instant,
    unconfirmed: BTreeSet<usize>,
    published: Published,
}

impl Crm {
    async fn publish(mut self, urls: Vec<String>) -> Result<Published> {
        for url in urls.iter().cycle() {
            // A frozen node may accept a connection and never say a word on it.
            let connecting = Connection::connect(url, ConnectionProperties::default());
            let Ok(Ok(connection)) = timeout(LIMIT, connecting).await else {
                sleep(PAUSE).await;
                continue;
            };
            let done = self.publish_on(&connection).await;
            // One that is merely dropped can live on inside lapin.
            drop(timeout(LIMIT, connection.close(200, "done".into())).await);
            match done {
                Ok(()) => break,
                Err(sent) => self.published.again.extend(sent),
            }
            sleep(PAUSE).await;
        }
        Ok(self.published)
    }

    /// Publishes until all is confirmed after the stop; else which events went out in vain.
    async fn publish_on(&mut self, connection: &Connection) -> Result<(), Vec<usize>> {
        let mut sent = VecDeque::new();
        match self.publish_into(connection, &mut sent).await {
            Ok(()) => Ok(()),
            Err(_) => Err(sent.into_iter().map(|Sent { event, .. }| event).collect()),
        }
    }

    /// Sends what is not confirmed yet and what comes up.
    async fn publish_into(
        &mut self,
        connection: &Connection,
        sent: &mut VecDeque<Sent>,
    ) -> Result<()> {
        let channel = timeout(LIMIT, connection.create_channel()).await??;
        timeout(LIMIT, channel.confirm_select(ConfirmSelectOptions::default())).await??;
        let mut unsent: VecDeque<usize> = self.unconfirmed.iter().copied().collect();
        while !(self.stop.is_cancelled() && self.unconfirmed.is_empty()) {
            unsent.extend(self.come_up());
            while sent.len() < WINDOW
                && let Some(event) = unsent.pop_front()
            {
                let confirm = timeout(LIMIT, self.send(&channel, event)).await??;
                sent.push_back(Sent { event, at: Instant::now(), confirm });
            }
            self.take_confirms(sent)?;
            sleep(TICK).await;
        }
        Ok(())
    }

    /// The events that are due by now.
    fn come_up(&mut self) -> std::ops::Range<usize> {
        let known = self.published.events;
        if !self.stop.is_cancelled() {
            let due = usize::try_from(self.began.elapsed().as_millis()).unwrap_or(known);
            self.published.events = AHEAD + due * PER_SECOND / 1000;
        }
        let new = known..self.published.events;
        self.unconfirmed.extend(new.clone());
        new
    }

    async fn send(&self, channel: &Channel, event: usize) -> Result<PublisherConfirm> {
        let body = self.body(event).to_string();
        let (exchange, key) = (self.exchange.as_str().into(), "customer.updated".into());
        let options = BasicPublishOptions::default();
        Ok(channel.basic_publish(exchange, key, options, body.as_bytes(), structured()).await?)
    }

    fn take_confirms(&mut self, sent: &mut VecDeque<Sent>) -> Result<()> {
        while let Some(Sent { event, at, confirm }) = sent.front_mut() {
            let Some(confirmation) = confirm.now_or_never() else {
                ensure!(at.elapsed() < LIMIT, "no confirm within {LIMIT:?}");
                break;
            };
            let Confirmation::Ack(None) = confirmation? else { bail!("not taken") };
            self.unconfirmed.remove(event);
            sent.pop_front();
            let wait = self.last_confirm.elapsed();
            self.published.longest_wait = self.published.longest_wait.max(wait);
            self.last_confirm = Instant::now();
        }
        Ok(())
    }

    fn body(&self, event: usize) -> Value {
        let (word, customer) = (self.word, event % CUSTOMERS);
        let data = json!({"entity_id": format!("{word}-{customer}"), "pincode": "682308",
                          "address": address(word, event)});
        json!({"specversion": "1.0", "id": format!("{word}-{event}"), "source": "cluster-test",
               "type": "customer.updated", "time": jiff::Timestamp::now().to_string(),
               "data": data})
    }
}
