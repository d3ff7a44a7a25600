//! From an envelope to an update that can be sent, or to the verdict that ends it before a call.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use super::event::{CustomerUpdated, Decoded, Envelope, Mapping, decode};
use super::field::Field;
use super::history::History;
use super::retry::Tiers;
use super::update::{FieldPolicies, Update};
use super::verdict::Verdict;

/// What an event must be like to be sent.
#[derive(Clone, Debug)]
pub struct Rules {
    /// `event.types` and `mapping.*`.
    pub mapping: Mapping,
    /// `broker.other_types`: events of other types are dropped instead of dead-lettered.
    pub ignores_other_types: bool,
    /// `event.max_bytes`: the largest body.
    pub max_bytes: usize,
    /// `event.future_tolerance`: how far ahead an event's time may lie.
    pub future_tolerance: Duration,
    /// `event.future_limit`: how far ahead it may lie at all; up to here it waits.
    pub future_limit: Duration,
    /// `fields.*`
    pub fields: FieldPolicies,
}

/// A message that leads to no call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// What is done with it.
    pub verdict: Verdict,
    /// Whose event it is, if a rule for its fields refused it.
    pub customer: Option<String>,
}

impl From<Verdict> for Box<Refused> {
    fn from(verdict: Verdict) -> Box<Refused> {
        Box::new(Refused { verdict, customer: None })
    }
}

/// Decodes and validates.
pub fn admit(
    envelope: &Envelope<'_>,
    history: &History,
    rules: &Rules,
    tiers: &Tiers,
    now: Timestamp,
) -> Result<(CustomerUpdated, Update), Box<Refused>> {
    if let Some(remaining) = history.until_due(now) {
        return Err(Verdict::early(history.clone(), remaining, tiers).into());
    }
    if envelope.body.len() > rules.max_bytes {
        return Err(Verdict::too_large(envelope.body.len(), rules.max_bytes, history).into());
    }
    let event = match decode(envelope, &rules.mapping) {
        Ok(Decoded::CustomerUpdated(event)) => *event,
        Ok(Decoded::OtherType(kind)) if rules.ignores_other_types => {
            return Err(Verdict::Ignored { kind }.into());
        }
        Ok(Decoded::OtherType(kind)) => {
            return Err(Verdict::unsupported_type(&kind, history).into());
        }
        Err(fault) => return Err(Verdict::undecodable(&fault, history).into()),
    };
    let limits = (rules.future_tolerance, rules.future_limit);
    let early =
        event.time.and_then(|time| Verdict::from_the_future(time, now, limits, history, tiers));
    if let Some(verdict) = early {
        return Err(verdict.into());
    }
    match rules.fields.validate(&event.fields) {
        Ok(update) => Ok((event, update)),
        Err(faults) => {
            let customer = event.fields[Field::EntityId].as_ref().and_then(Value::as_str);
            let customer = customer.map(str::to_owned);
            Err(Box::new(Refused { verdict: Verdict::invalid(&faults, history), customer }))
        }
    }
}
