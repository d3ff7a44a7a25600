//! From an envelope to an update that can be sent, or to the verdict that ends it before a call.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::event::{CustomerUpdated, Decoded, Envelope, Mapping, decode};
use super::field::Field;
use super::history::History;
use super::request::hex;
use super::retry::Tiers;
use super::update::{FieldPolicies, Update};
use super::verdict::Verdict;
use super::version::{MAX_EVENT_BYTES, MAX_SEQUENCE_BYTES, Place, UNNAMED};

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
    /// `order.missing = "arrival"`: an event without time and sequence takes its place by its
    /// receipt instead of being invalid.
    pub orders_by_arrival: bool,
}

/// A message that leads to a call.
#[derive(Debug, PartialEq)]
pub struct Admission {
    /// The event.
    pub event: CustomerUpdated,
    /// Its place among its customer's events.
    pub place: Place,
    /// What is to be sent.
    pub update: Update,
}

/// A message that leads to no call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// What is done with it.
    pub verdict: Verdict,
    /// Whose event it is, if a rule for its fields refused it.
    pub customer: Option<String>,
    /// Which event it is, as far as it could be read.
    pub event: Option<String>,
}

impl From<Verdict> for Box<Refused> {
    fn from(verdict: Verdict) -> Box<Refused> {
        Box::new(Refused { verdict, customer: None, event: None })
    }
}

/// Decodes and validates.
pub fn admit(
    envelope: &Envelope<'_>,
    history: &History,
    rules: &Rules,
    tiers: &Tiers,
    now: Timestamp,
) -> Result<Admission, Box<Refused>> {
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
    let place = Place::new(&event, name(&event, envelope), history.revision);
    let refused = |verdict, customer| {
        Err(Box::new(Refused { verdict, customer, event: Some(place.event.clone()) }))
    };
    if event.sequence.as_ref().is_some_and(|text| text.len() > MAX_SEQUENCE_BYTES) {
        return refused(Verdict::sequence_too_long(history), None);
    }
    if place.is_unordered() && !rules.orders_by_arrival {
        return refused(Verdict::unordered(history), None);
    }
    let limits = (rules.future_tolerance, rules.future_limit);
    let early =
        event.time.and_then(|time| Verdict::from_the_future(time, now, limits, history, tiers));
    if let Some(verdict) = early {
        return refused(verdict, None);
    }
    match rules.fields.validate(&event.fields) {
        Ok(update) => Ok(Admission { event, place, update }),
        Err(faults) => {
            let customer = event.fields[Field::EntityId].as_ref().and_then(Value::as_str);
            refused(Verdict::invalid(&faults, history), customer.map(str::to_owned))
        }
    }
}

/// What tells an event from all others: its id within its source, as it is where that is short;
/// else a hash, and of the whole content where it has no id.
fn name(event: &CustomerUpdated, envelope: &Envelope<'_>) -> String {
    match &event.id {
        Some(id) if id.len() <= MAX_EVENT_BYTES && !id.starts_with(UNNAMED) => id.clone(),
        Some(id) => format!("{LONG}{}", hash([id.as_bytes()])),
        None => {
            let timestamp = envelope.timestamp.map(|time| time.to_string()).unwrap_or_default();
            let kind = envelope.kind.unwrap_or_default();
            format!("{UNNAMED}{}", hash([envelope.body, timestamp.as_bytes(), kind.as_bytes()]))
        }
    }
}

/// What stands before the hash of an id that is too long.
const LONG: char = '#';

fn hash<const N: usize>(parts: [&[u8]; N]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.len().to_be_bytes());
        hash.update(part);
    }
    hex(&hash.finalize()[..16])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name_of(id: Option<&str>, body: &[u8]) -> String {
        let envelope = Envelope { body, ..Envelope::default() };
        let event = CustomerUpdated {
            id: id.map(str::to_owned),
            source: None,
            time: None,
            sequence: None,
            fields: super::super::field::PerField::default(),
        };
        name(&event, &envelope)
    }

    #[test]
    fn an_event_is_told_from_others_by_its_id_or_by_all_that_it_says() {
        assert_eq!(name_of(Some("evt-1"), b"{}"), "evt-1");
        let long = name_of(Some(&"x".repeat(65)), b"{}");
        assert!(long.starts_with('#') && long.len() <= MAX_EVENT_BYTES);
        assert_ne!(long, name_of(Some(&"y".repeat(65)), b"{}"));
        assert!(name_of(None, b"{}").starts_with(UNNAMED));
        assert_ne!(name_of(None, b"{}"), name_of(None, b"{} "));
        let like_a_hash = name_of(None, b"{}");
        assert_ne!(name_of(Some(&like_a_hash), b"{}"), like_a_hash, "an id cannot pose as a hash");
    }
}
