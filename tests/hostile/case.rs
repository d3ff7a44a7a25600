//! One generated message: what is sent, and the ends that its making allows. Nothing here asks the
//! code under test.

use std::fmt;

use anyhow::Result;
use lapin::BasicProperties;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::support::queues::Taken;

/// How a message comes to the work queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Via {
    /// From the CRM.
    Exchange,
    /// By the default exchange, as retries and replays come.
    WorkQueue,
}

/// How a message may end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// The portal has its value.
    Applied,
    /// Gone, for a newer one of its customer.
    Superseded,
    /// In a retry tier, until it is due.
    Waits,
    /// A dead letter; what is not named may be anything.
    Dead { reason: Option<String>, field: Option<String>, rule: Option<String> },
}

impl End {
    /// A dead letter for whatever reason.
    pub fn dead() -> End {
        End::Dead { reason: None, field: None, rule: None }
    }

    /// A dead letter of this reason.
    pub fn dead_of(reason: &str) -> End {
        End::Dead { reason: Some(reason.to_owned()), field: None, rule: None }
    }

    /// A dead letter by a rule of ours.
    pub fn invalid(field: &str, rule: &str) -> End {
        let named = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let reason = Some("invalid-event".to_owned());
        End::Dead { reason, field: named(field), rule: named(rule) }
    }
}

/// One message.
#[derive(Clone, Serialize, Deserialize)]
pub struct Case {
    /// Which one of its storm; its correlation id begins with it.
    #[serde(default)]
    pub number: usize,
    /// What was done to a plain event.
    pub labels: Vec<String>,
    pub via: Via,
    pub properties: BasicProperties,
    #[serde(rename = "body_base64", with = "body")]
    pub body: Vec<u8>,
    /// Whose event it is, where the portal may hear of it.
    pub customer: Option<String>,
    /// The address that it sets.
    pub address: String,
    /// What the portal's simulator is told to do with this customer's calls.
    #[serde(default)]
    pub answer: Option<Value>,
    /// How often it is sent.
    #[serde(default = "once")]
    pub copies: u32,
    pub ends: Vec<End>,
}

fn once() -> u32 {
    1
}

mod body {
    use base64::Engine as _;
    use base64::prelude::BASE64_STANDARD;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub fn serialize<S: Serializer>(body: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64_STANDARD.encode(body))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        BASE64_STANDARD.decode(text).map_err(D::Error::custom)
    }
}

/// Of a body or a header; more of it says no more to a person.
const SHOWN: usize = 100_000;

/// As JSON, to be kept as a regression case.
impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match serde_json::to_string(self) {
            Ok(text) if text.len() <= SHOWN => f.write_str(&text),
            _ => {
                let labels = &self.labels;
                write!(f, "{}", json!({"number": self.number, "labels": labels, "too_long": true}))
            }
        }
    }
}

impl Case {
    /// Whether it may end so.
    pub fn may(&self, end: &End) -> bool {
        self.ends.contains(end)
    }

    /// Whether it may be this dead letter.
    pub fn may_be(&self, letter: &Taken) -> bool {
        let said = |name: &str| letter.header(&format!("x-relay-{name}"));
        let is = |wanted: &Option<String>, name| wanted.is_none() || *wanted == said(name);
        self.ends.iter().any(|end| match end {
            End::Dead { reason, field, rule } => {
                is(reason, "reason") && is(field, "field") && is(rule, "rule")
            }
            End::Applied | End::Superseded | End::Waits => false,
        })
    }
}

/// Which case a message is, by its correlation id.
pub fn number_of(properties: &BasicProperties) -> Option<usize> {
    let tag = properties.correlation_id().as_ref()?.as_str();
    tag.split_once('|')?.0.parse().ok()
}

/// Cases that once failed, one a line; they are part of every storm.
pub fn kept() -> Result<Vec<Case>> {
    include_str!("kept.jsonl").lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}
