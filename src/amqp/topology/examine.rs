//! The queues as they are at the broker: declared, compared, counted.

use std::fmt;
use std::time::Duration;

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ErrorKind, ExchangeKind};

use super::{Argument, Queue, Topology};
use crate::amqp::connection::{AmqpError, Link, within};

/// What was found about one part of the topology.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// "queue NAME", "exchange NAME" or "binding …".
    pub subject: String,
    /// How it is.
    pub state: State,
}

/// How a part of the topology is at the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// There, as it should be.
    Present,
    /// Not there.
    Missing,
    /// There, with another argument; the broker's words.
    Differs(String),
    /// There, but the broker lets us compare nothing.
    NotCompared(String),
    /// Nobody lets us see whether it is there.
    NotSeen(String),
}

impl Finding {
    /// Whether the relay cannot work with it.
    pub fn is_fault(&self) -> bool {
        matches!(self.state, State::Missing | State::Differs(_))
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let subject = &self.subject;
        match &self.state {
            State::Present => write!(f, "{subject}: present"),
            State::Missing => write!(
                f,
                "{subject}: missing; run `customer-relay topology apply`, or let the broker's \
                 operators import `customer-relay topology export`"
            ),
            State::Differs(how) => write!(
                f,
                "{subject}: exists with other arguments: {how}; arguments of a queue cannot be \
                 changed: empty and delete it, or set broker.prefix (for an exchange: \
                 broker.exchange) to another name"
            ),
            State::NotCompared(why) => write!(f, "{subject}: present, not compared ({why})"),
            State::NotSeen(why) => write!(
                f,
                "{subject}: nobody has looked ({why}); if events do not come, ask the broker's operators \
                 for it"
            ),
        }
    }
}

/// Declares whatever is missing, and reports on every part.
pub async fn apply(link: &Link, topology: &Topology) -> Result<Vec<Finding>, AmqpError> {
    examine(link, topology, true).await
}

/// Reports on every part, and changes nothing.
pub async fn check(link: &Link, topology: &Topology) -> Result<Vec<Finding>, AmqpError> {
    examine(link, topology, false).await
}

/// How many messages wait in a queue; `None` if it does not exist.
pub async fn depth(link: &Link, queue: &str) -> Result<Option<u32>, AmqpError> {
    Ok(look(link, queue).await?.map(|queue| queue.message_count()))
}

/// How many consumers a queue has; `None` if it does not exist.
pub async fn consumers(link: &Link, queue: &str) -> Result<Option<u32>, AmqpError> {
    Ok(look(link, queue).await?.map(|queue| queue.consumer_count()))
}

async fn look(link: &Link, queue: &str) -> Result<Option<lapin::Queue>, AmqpError> {
    let channel = link.channel().await?;
    let options = QueueDeclareOptions::default().passive();
    let declare = channel.queue_declare(queue.into(), options, FieldTable::default());
    match within(link.limit, "look at a queue", declare).await {
        Ok(queue) => Ok(Some(queue)),
        Err(error) => match Refusal::of(&error) {
            Some(Refusal::NotFound) => Ok(None),
            _ => Err(error),
        },
    }
}

fn binding(topology: &Topology) -> String {
    let Topology { exchange, routing_key, .. } = topology;
    format!("binding {exchange} --{routing_key}--> {}", topology.work_queue())
}

/// Whether we could bind the work queue to the exchange, and so may do it again.
pub fn is_bound(findings: &[Finding], topology: &Topology) -> bool {
    let binding = binding(topology);
    findings.iter().any(|one| one.subject == binding && one.state == State::Present)
}

/// Binds the work queue to the exchange, if it is not bound.
pub async fn bind(
    channel: &Channel,
    topology: &Topology,
    limit: Duration,
) -> Result<(), AmqpError> {
    let bind = channel.queue_bind(
        topology.work_queue().as_str().into(),
        topology.exchange.as_str().into(),
        topology.routing_key.as_str().into(),
        QueueBindOptions::default(),
        FieldTable::default(),
    );
    within(limit, "bind the work queue", bind).await
}

async fn examine(
    link: &Link,
    topology: &Topology,
    create: bool,
) -> Result<Vec<Finding>, AmqpError> {
    let mut examiner = Examiner { link, channel: link.channel().await?, create };
    let mut findings = vec![examiner.examine(Part::Exchange(&topology.exchange)).await?];
    for queue in &topology.queues {
        findings.push(examiner.examine(Part::Queue(queue)).await?);
    }
    findings.push(examiner.bind(topology).await?);
    Ok(findings)
}

#[derive(Clone, Copy)]
enum Part<'a> {
    Exchange(&'a str),
    Queue(&'a Queue),
}

/// Looks at one part after another. A refusal closes the channel, so each one costs a new channel.
struct Examiner<'a> {
    link: &'a Link,
    channel: Channel,
    create: bool,
}

impl Examiner<'_> {
    async fn examine(&mut self, part: Part<'_>) -> Result<Finding, AmqpError> {
        let subject = match part {
            Part::Exchange(name) => format!("exchange {name}"),
            Part::Queue(queue) => format!("queue {}", queue.name),
        };
        // A passive declare compares nothing, an active one creates what is missing: so the first
        // looks whether it is there, the second compares.
        if !self.create && self.declare(part, true).await?.is_some() {
            return Ok(Finding { subject, state: State::Missing });
        }
        let state = match self.declare(part, false).await? {
            Some(Refusal::Forbidden(why)) => match self.declare(part, true).await? {
                None => State::NotCompared(why),
                Some(_) => State::Missing,
            },
            refusal => state_after(refusal),
        };
        Ok(Finding { subject, state })
    }

    async fn declare(
        &mut self,
        part: Part<'_>,
        passive: bool,
    ) -> Result<Option<Refusal>, AmqpError> {
        let declared = match part {
            Part::Exchange(name) => {
                let options =
                    ExchangeDeclareOptions { passive, durable: true, ..Default::default() };
                let declare = self.channel.exchange_declare(
                    name.into(),
                    ExchangeKind::Topic,
                    options,
                    FieldTable::default(),
                );
                within(self.link.limit, "declare an exchange", declare).await
            }
            Part::Queue(queue) => {
                let options = QueueDeclareOptions { passive, ..QueueDeclareOptions::durable() };
                let name = queue.name.as_str().into();
                let declare = self.channel.queue_declare(name, options, queue.arguments());
                within(self.link.limit, "declare a queue", declare).await.map(drop)
            }
        };
        self.refusal(declared).await
    }

    async fn bind(&mut self, topology: &Topology) -> Result<Finding, AmqpError> {
        let subject = binding(topology);
        if !self.create {
            let why = "AMQP cannot look at bindings".to_owned();
            return Ok(Finding { subject, state: State::NotSeen(why) });
        }
        let bound = bind(&self.channel, topology, self.link.limit).await;
        let state = match self.refusal(bound).await? {
            Some(Refusal::Forbidden(why)) => State::NotSeen(why),
            refusal => state_after(refusal),
        };
        Ok(Finding { subject, state })
    }

    /// Tells a refusal, after which the channel is closed, from a broken link.
    async fn refusal(
        &mut self,
        declared: Result<(), AmqpError>,
    ) -> Result<Option<Refusal>, AmqpError> {
        let Err(error) = declared else { return Ok(None) };
        let refusal = Refusal::of(&error).ok_or(error)?;
        self.channel = self.link.channel().await?;
        Ok(Some(refusal))
    }
}

impl Queue {
    fn arguments(&self) -> FieldTable {
        let mut table = FieldTable::default();
        table.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        for (name, value) in &self.arguments {
            let value = match value {
                Argument::Text(text) => AMQPValue::LongString(text.as_str().into()),
                Argument::Number(number) => AMQPValue::LongLongInt(*number),
            };
            table.insert((*name).into(), value);
        }
        table
    }
}

/// The broker's no to a declaration.
enum Refusal {
    NotFound,
    Differs(String),
    Forbidden(String),
}

impl Refusal {
    fn of(error: &AmqpError) -> Option<Refusal> {
        let AmqpError::Failed(_, error) = error else { return None };
        let ErrorKind::ProtocolError(error) = error.kind() else { return None };
        let text = error.get_message().to_string();
        match error.kind() {
            AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND) => Some(Refusal::NotFound),
            AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED) => Some(Refusal::Differs(text)),
            AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => Some(Refusal::Forbidden(text)),
            AMQPErrorKind::Soft(_) | AMQPErrorKind::Hard(_) => None,
        }
    }
}

fn state_after(refusal: Option<Refusal>) -> State {
    match refusal {
        None => State::Present,
        Some(Refusal::NotFound) => State::Missing,
        Some(Refusal::Differs(how)) => State::Differs(how),
        Some(Refusal::Forbidden(why)) => State::NotCompared(why),
    }
}
