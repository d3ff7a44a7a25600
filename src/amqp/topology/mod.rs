//! The relay's queues as data.
//!
//! A queue's arguments cannot be changed once it exists, so everything that may change (the retry
//! schedule) is part of a name, and everything else has one value for all versions.

mod examine;

use std::fmt;

use serde_json::{Value, json};

use crate::domain::retry::{Tier, Tiers};
pub use examine::{Finding, State, apply, bind, check, consumers, depth, is_bound};

/// After this many crashes or lost connections a message goes to the dead-letter queue, if no relay can
/// read it.
pub const WORK_DELIVERY_LIMIT: i64 = 20;
/// Looking at a dead letter counts as a delivery; a bare queue of RabbitMQ 4 deletes a message
/// that was looked at 21 times, and "no limit" is refused by older ones.
pub const DEAD_DELIVERY_LIMIT: i64 = 100_000;

/// All that the relay needs at the broker.
#[derive(Clone, Debug)]
pub struct Topology {
    /// The CRM's topic exchange.
    pub exchange: String,
    /// What the work queue is bound by.
    pub routing_key: String,
    /// The relay's queues: work, dead, archive, four small ones, then the retry tiers.
    pub queues: Vec<Queue>,
    prefix: String,
}

/// One durable quorum queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Its name.
    pub name: String,
    /// Its arguments, beside its type.
    pub arguments: Vec<(&'static str, Argument)>,
}

/// The value of a queue argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Argument {
    /// A text.
    Text(String),
    /// A number.
    Number(i64),
}

impl fmt::Display for Argument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Argument::Text(text) => write!(f, "{text:?}"),
            Argument::Number(number) => number.fmt(f),
        }
    }
}

impl Topology {
    /// The topology for these names and retry tiers.
    pub fn new(exchange: &str, routing_key: &str, prefix: &str, tiers: &Tiers) -> Topology {
        let mut topology = Topology {
            exchange: exchange.to_owned(),
            routing_key: routing_key.to_owned(),
            queues: Vec::new(),
            prefix: prefix.to_owned(),
        };
        let (work, dead) = (topology.work_queue(), topology.dead_queue());
        let mut queues = vec![Queue {
            name: work.clone(),
            arguments: [("x-delivery-limit", Argument::Number(WORK_DELIVERY_LIMIT))]
                .into_iter()
                .chain(dead_lettered_to(&dead))
                .collect(),
        }];
        let kept = [dead, topology.archive_queue()];
        queues.extend(kept.into_iter().chain(topology.small_queues()).map(|name| {
            let limit = ("x-delivery-limit", Argument::Number(DEAD_DELIVERY_LIMIT));
            // Full means refused, never silently dropped from the head.
            let overflow = ("x-overflow", Argument::Text("reject-publish".into()));
            Queue { name, arguments: vec![limit, overflow] }
        }));
        queues.extend(tiers.iter().map(|tier| {
            Queue {
                name: topology.retry_queue(tier),
                arguments: [("x-message-ttl", Argument::Number(tier.millis().into()))]
                    .into_iter()
                    .chain(dead_lettered_to(&work))
                    .collect(),
            }
        }));
        topology.queues = queues;
        topology
    }

    /// Where events wait for the relay.
    pub fn work_queue(&self) -> String {
        format!("{}.work", self.prefix)
    }

    /// Where dead letters wait for a person.
    pub fn dead_queue(&self) -> String {
        format!("{}.dead", self.prefix)
    }

    /// Where dead letters are put that a person has done with.
    pub fn archive_queue(&self) -> String {
        format!("{}.archive", self.prefix)
    }

    /// Holds a message while an operator has paused the relay.
    pub fn paused_queue(&self) -> String {
        format!("{}.paused", self.prefix)
    }

    /// Holds a message while an operator's word is that rejections are the events' own fault.
    pub fn accepts_rejections_queue(&self) -> String {
        format!("{}.accepts-rejections", self.prefix)
    }

    /// Always empty: asking it for a message proves that the broker's node has its peers.
    pub fn pulse_queue(&self) -> String {
        format!("{}.pulse", self.prefix)
    }

    /// Holds one message: which ledger this work queue is fenced by.
    pub fn ledger_id_queue(&self) -> String {
        format!("{}.ledger-id", self.prefix)
    }

    /// Held by the connection of the one active relay, where only one may be. Nobody declares it
    /// beforehand: it goes with that connection.
    pub fn active_queue(&self) -> String {
        format!("{}.active", self.prefix)
    }

    /// Held by the connection of whoever looks through the dead letters.
    pub fn scan_queue(&self) -> String {
        format!("{}.scan", self.prefix)
    }

    /// Whether it is one of the retry tiers.
    pub(super) fn is_retry_queue(&self, name: &str) -> bool {
        let rest = name.strip_prefix(self.prefix.as_str());
        rest.is_some_and(|rest| rest.starts_with(".retry."))
    }

    fn small_queues(&self) -> [String; 4] {
        [
            self.paused_queue(),
            self.accepts_rejections_queue(),
            self.pulse_queue(),
            self.ledger_id_queue(),
        ]
    }

    /// Where messages wait out one delay.
    pub fn retry_queue(&self, tier: Tier) -> String {
        format!("{}.retry.{}ms", self.prefix, tier.millis())
    }

    /// Definitions for `rabbitmqctl import_definitions`, for one virtual host.
    pub fn export(&self, vhost: &str) -> Value {
        let queues = self.queues.iter().map(|queue| {
            let mut arguments = json!({"x-queue-type": "quorum"});
            for (name, value) in &queue.arguments {
                arguments[*name] = match value {
                    Argument::Text(text) => json!(text),
                    Argument::Number(number) => json!(number),
                };
            }
            json!({"name": queue.name, "vhost": vhost, "durable": true, "auto_delete": false,
                   "arguments": arguments})
        });
        json!({
            "exchanges": [{"name": self.exchange, "vhost": vhost, "type": "topic",
                           "durable": true, "auto_delete": false, "internal": false,
                           "arguments": {}}],
            "queues": queues.collect::<Vec<_>>(),
            "bindings": [{"source": self.exchange, "vhost": vhost,
                          "destination": self.work_queue(), "destination_type": "queue",
                          "routing_key": self.routing_key, "arguments": {}}],
        })
    }
}

/// Dead-lettering that waits for the target's confirm, which needs the queue to refuse what it
/// cannot hold.
fn dead_lettered_to(queue: &str) -> [(&'static str, Argument); 4] {
    [
        ("x-dead-letter-exchange", Argument::Text(String::new())),
        ("x-dead-letter-routing-key", Argument::Text(queue.to_owned())),
        ("x-dead-letter-strategy", Argument::Text("at-least-once".into())),
        ("x-overflow", Argument::Text("reject-publish".into())),
    ]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::domain::verdict::MAX_RETURNS;

    fn topology() -> Topology {
        let tiers = Tiers::try_new(Duration::from_secs(1), Duration::from_secs(2)).expect("tiers");
        Topology::new("crm.events", "customer.updated", "relay", &tiers)
    }

    #[test]
    fn we_give_up_no_later_than_the_broker() {
        assert_eq!(WORK_DELIVERY_LIMIT, i64::from(MAX_RETURNS));
    }

    #[test]
    fn the_names_are_the_documented_ones() {
        let topology = topology();
        let names: Vec<&str> = topology.queues.iter().map(|queue| queue.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "relay.work",
                "relay.dead",
                "relay.archive",
                "relay.paused",
                "relay.accepts-rejections",
                "relay.pulse",
                "relay.ledger-id",
                "relay.retry.1000ms",
                "relay.retry.1500ms",
                "relay.retry.2000ms"
            ]
        );
    }

    #[test]
    fn no_queue_can_drop_a_message_in_silence() {
        for queue in topology().queues {
            let argument = |name| {
                queue.arguments.iter().find(|(found, _)| *found == name).map(|(_, value)| value)
            };
            let reject = Argument::Text("reject-publish".into());
            assert_eq!(argument("x-overflow"), Some(&reject), "{}", queue.name);
            let is_tier = argument("x-message-ttl").is_some();
            assert_ne!(is_tier, argument("x-delivery-limit").is_some(), "{}", queue.name);
            if argument("x-dead-letter-exchange").is_some() {
                let strategy = Argument::Text("at-least-once".into());
                assert_eq!(argument("x-dead-letter-strategy"), Some(&strategy));
            }
        }
    }
}
