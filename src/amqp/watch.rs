//! A session, watched from beside its deliveries: what operators have ordered, and whether the
//! broker is still there for us. Heartbeats go on from a node that has lost its peers, and a
//! consumer can be forgotten without a word.

use std::time::Duration;

use lapin::Channel;
use lapin::options::{BasicGetOptions, QueueDeclareOptions};
use lapin::types::FieldTable;

use super::connection::{AmqpError, Link, within};
use super::topology::{Topology, bind};
use crate::health::Depths;

/// What was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// An operator has paused the relay.
    pub is_paused: bool,
    /// An operator's word is that rejections are the events' own fault.
    pub accepts_rejections: bool,
    /// Messages that wait in the work queue, handed to nobody.
    pub ready: u32,
}

/// The way to look, again and again, on the connection that consumes.
pub struct Watch {
    channel: Channel,
    /// A queue that is gone closes the channel of whoever asks: not the one above.
    counting: Channel,
    /// Where we may bind the work queue: whoever deletes the exchange and declares it anew takes the
    /// binding with it, and nobody is told.
    binding: Option<Channel>,
    limit: Duration,
    topology: Topology,
}

impl Watch {
    /// Opens channels to look through.
    pub async fn open(
        link: &Link,
        topology: &Topology,
        may_bind: bool,
    ) -> Result<Watch, AmqpError> {
        let binding = if may_bind { Some(link.channel().await?) } else { None };
        Ok(Watch {
            binding,
            channel: link.channel().await?,
            counting: link.channel().await?,
            limit: link.limit,
            topology: topology.clone(),
        })
    }

    /// Looks once. An error means that the session is of no use any more.
    pub async fn look(&self) -> Result<Seen, AmqpError> {
        self.feel_pulse().await?;
        Ok(Seen {
            is_paused: self.ready(&self.topology.paused_queue()).await? > 0,
            accepts_rejections: self.ready(&self.topology.accepts_rejections_queue()).await? > 0,
            ready: self.ready(&self.topology.work_queue()).await?,
        })
    }

    /// Binds the work queue to the exchange, in case it is not bound any more. An error means that this
    /// cannot be: a new session finds out why.
    pub async fn bind_again(&self) -> Result<(), AmqpError> {
        match &self.binding {
            Some(channel) => bind(channel, &self.topology, self.limit).await,
            None => Ok(()),
        }
    }

    /// Counts the messages that are ready in all queues for events. An error means that they are not
    /// known any more on this connection.
    pub async fn depths(&self) -> Result<Depths, AmqpError> {
        let mut depths = Depths::default();
        let topology = &self.topology;
        let (work, dead, archive) =
            (topology.work_queue(), topology.dead_queue(), topology.archive_queue());
        for queue in &topology.queues {
            let depth = match queue.name.as_str() {
                name if name == work => &mut depths.work,
                name if name == dead => &mut depths.dead,
                name if name == archive => &mut depths.archive,
                name if topology.is_retry_queue(name) => &mut depths.retry,
                _ => continue,
            };
            *depth += u64::from(count(&self.counting, &queue.name, self.limit).await?);
        }
        Ok(depths)
    }

    /// A replicated queue gives a message, or says that it has none, only with its peers' consent.
    async fn feel_pulse(&self) -> Result<(), AmqpError> {
        let pulse = self.topology.pulse_queue();
        let get = self.channel.basic_get(pulse.as_str().into(), BasicGetOptions { no_ack: true });
        within(self.limit, "feel the pulse of the broker's queues", get).await.map(drop)
    }

    async fn ready(&self, queue: &str) -> Result<u32, AmqpError> {
        count(&self.channel, queue, self.limit).await
    }
}

async fn count(channel: &Channel, queue: &str, limit: Duration) -> Result<u32, AmqpError> {
    let options = QueueDeclareOptions::default().passive();
    let look = channel.queue_declare(queue.into(), options, FieldTable::default());
    Ok(within(limit, "look at a queue", look).await?.message_count())
}
