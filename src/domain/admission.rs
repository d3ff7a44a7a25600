//! From an envelope to an update that can be sent, or to the verdict that ends it before a call.

use std::time::Duration;

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::clock_offset::Trust;
use super::event::{CustomerUpdated, Decoded, Envelope, Mapping, decode};
use super::field::Field;
use super::history::History;
use super::request::hex;
use super::retry::RetryPolicy;
use super::text::{escape, is_unprintable};
use super::update::{FieldPolicies, Update};
use super::verdict::Verdict;
use super::version::{
    EventRef, MAX_EVENT_BYTES, MAX_SEQUENCE_BYTES, Place, Required, Sequence, Sequences, UNNAMED,
};

/// What an event must be like to be sent.
#[derive(Clone, Debug)]
pub struct Rules {
    /// `event.types` and `mapping.*`.
    pub mapping: Mapping,
    /// `broker.other_types`: events of other types are dropped instead of dead-lettered.
    pub ignores_other_types: bool,
    /// `event.max_bytes`: the largest body.
    pub max_bytes: usize,
    /// `event.earliest_time`: an earlier time is a date that was never set.
    pub earliest_time: Timestamp,
    /// `event.future_tolerance`: how far ahead an event's time may lie.
    pub future_tolerance: Duration,
    /// `event.future_limit`: how far ahead it may lie at all; up to here it waits.
    pub future_limit: Duration,
    /// `fields.*`
    pub fields: FieldPolicies,
    /// `order.require`: what an event must say of its order.
    pub required: Required,
    /// `order.sequence`: what a sequence is.
    pub sequences: Sequences,
    /// `order.missing = "arrival"`: an event without what is required takes its place by its
    /// receipt instead of being invalid.
    pub orders_by_arrival: bool,
}

/// When a message is read, and what is known of our clock at that time.
#[derive(Clone, Copy)]
pub struct Moment<'a> {
    /// On our wall clock.
    pub now: Timestamp,
    /// In [0, 1): draws what is random.
    pub dice: f64,
    /// Whether our clock is believed when it says that this customer's event lies ahead.
    pub trust: &'a dyn Fn(&str) -> Trust,
}

impl Moment<'_> {
    /// Our clock is believed: where nothing is done but look.
    pub fn certain(now: Timestamp) -> Moment<'static> {
        Moment { now, dice: 0.0, trust: &|_| Trust::Confirmed }
    }
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
    /// Whose event it is, if one of our rules refused it.
    pub customer: Option<String>,
    /// Which event it is, as far as it could be read.
    pub event: Option<EventRef>,
    /// Whose event waits because it lies ahead of our clock, and its time.
    pub ahead: Option<(String, Timestamp)>,
}

impl From<Verdict> for Box<Refused> {
    fn from(verdict: Verdict) -> Box<Refused> {
        Box::new(Refused { verdict, customer: None, event: None, ahead: None })
    }
}

/// What becomes of a delivery that comes before its time.
pub fn early(
    history: &History,
    rules: &Rules,
    retry: &RetryPolicy,
    now: Timestamp,
) -> Option<Verdict> {
    let longest = rules.future_limit.max(retry.max_retry_after);
    let remaining = history.until_due(now, longest)?;
    Some(Verdict::early(history.clone(), remaining, &retry.tiers, now))
}

/// Decodes and validates.
pub fn admit(
    envelope: &Envelope<'_>,
    history: &History,
    rules: &Rules,
    retry: &RetryPolicy,
    moment: &Moment<'_>,
) -> Result<Admission, Box<Refused>> {
    if let Some(verdict) = early(history, rules, retry, moment.now) {
        return Err(verdict.into());
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
    let name = name(&event, envelope);
    let mut place = Place::new(&event, name, history.revision, rules.sequences);
    let mut ahead = None;
    let verdict = if let Some(verdict) = refusal(&event, &place, history, rules) {
        verdict
    } else if let Some(verdict) = lies_ahead(&event, history, rules, retry, moment) {
        ahead = whose(&event).zip(event.time).filter(|_| verdict.tier().is_some());
        verdict
    } else {
        match rules.fields.validate(&event.fields) {
            Ok(update) => {
                if rules.required.lacked_by(&place).is_some() {
                    // It goes by its receipt alone.
                    place.sequence = None;
                }
                return Ok(Admission { event, place, update });
            }
            Err(faults) => Verdict::invalid(&faults, history),
        }
    };
    let customer = verdict.reason().and_then(|_| whose(&event));
    let id = escape(&place.event.id, MAX_EVENT_BYTES).into_owned();
    let event = EventRef { id, ..place.event };
    Err(Box::new(Refused { verdict, customer, event: Some(event), ahead }))
}

/// What refuses an event as a whole, whatever its fields say.
fn refusal(
    event: &CustomerUpdated,
    place: &Place,
    history: &History,
    rules: &Rules,
) -> Option<Verdict> {
    for (name, id) in [("id", &event.id), ("source", &event.source)] {
        let hidden =
            id.iter().flat_map(|id| id.chars()).find(|character| is_unprintable(*character));
        if let Some(character) = hidden {
            return Some(Verdict::unprintable_id(name, character, history));
        }
    }
    if event.sequence.as_ref().is_some_and(|text| text.len() > MAX_SEQUENCE_BYTES) {
        return Some(Verdict::sequence_too_long(history));
    }
    let is_text = matches!(place.sequence, Some(Sequence::Text(_)));
    if is_text && rules.sequences == Sequences::Digits {
        return Some(Verdict::sequence_of_text(history));
    }
    if let Some(lacked) = rules.required.lacked_by(place).filter(|_| !rules.orders_by_arrival) {
        return Some(Verdict::unordered(lacked, history));
    }
    let time = event.time?;
    if time < rules.earliest_time {
        return Some(Verdict::unset_time(time, rules.earliest_time, history));
    }
    None
}

/// What becomes of an event from the future: invalid beyond the limit, waiting beyond the tolerance. It
/// may be our clock that is behind: then nothing is said of the event.
fn lies_ahead(
    event: &CustomerUpdated,
    history: &History,
    rules: &Rules,
    retry: &RetryPolicy,
    moment: &Moment<'_>,
) -> Option<Verdict> {
    let Moment { now, dice, trust } = *moment;
    // Most are not, and an error costs more to make than this to see.
    let time = event.time.filter(|time| *time > now)?;
    let ahead = Duration::try_from(time.duration_since(now)).ok()?;
    if ahead <= rules.future_tolerance {
        return None;
    }
    let remaining = ahead.saturating_sub(rules.future_tolerance);
    // One without a customer is judged like one of a customer that nothing is known of.
    let customer = whose(event).unwrap_or_default();
    Some(match trust(&customer) {
        Trust::Confirmed if ahead > rules.future_limit => Verdict::too_far_ahead(ahead, history),
        Trust::Confirmed => Verdict::wait_until_due(remaining, history, &retry.tiers, now),
        Trust::Unknown | Trust::Contradicted => {
            Verdict::wait_for_clock(remaining, history, retry, now, dice)
        }
    })
}

fn whose(event: &CustomerUpdated) -> Option<String> {
    let id = event.fields[Field::EntityId].as_ref()?.as_str()?;
    Some(id.trim().to_owned())
}

/// What tells an event from all others: its id within its source, as it is where that is short;
/// else a hash, and of the whole content where it has no id.
fn name(event: &CustomerUpdated, envelope: &Envelope<'_>) -> String {
    match &event.id {
        Some(id) if id.len() <= MAX_EVENT_BYTES && !id.starts_with(UNNAMED) => id.clone(),
        Some(id) => format!("{LONG}{}", hash([id.as_bytes()])),
        None => {
            let timestamp = envelope.timestamp.map_or_else(String::new, |time| time.to_string());
            let kind = envelope.kind.unwrap_or("");
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
    use crate::domain::field::PerField;
    use crate::domain::retry::tests::default_policy;
    use crate::domain::update::tests::default_policies;

    fn name_of(id: Option<&str>, body: &[u8]) -> String {
        let envelope = Envelope { body, ..Envelope::default() };
        let event = CustomerUpdated {
            id: id.map(str::to_owned),
            source: None,
            time: None,
            sequence: None,
            fields: PerField::default(),
        };
        name(&event, &envelope)
    }

    fn verdict(hours_ahead: u64, trust: Trust) -> Option<Verdict> {
        let now: Timestamp = "2026-11-22T09:30:00Z".parse().expect("a time");
        let hour = Duration::from_hours(1);
        let event = CustomerUpdated {
            id: None,
            source: None,
            time: Some(now + hour * u32::try_from(hours_ahead).expect("small")),
            sequence: None,
            fields: PerField::default(),
        };
        let rules = Rules {
            mapping: Mapping { pointers: PerField::default(), types: Vec::new() },
            ignores_other_types: false,
            max_bytes: 0,
            earliest_time: Timestamp::MIN,
            future_tolerance: Duration::from_mins(5),
            future_limit: 24 * hour,
            fields: default_policies(),
            required: Required::Any,
            sequences: Sequences::Digits,
            orders_by_arrival: false,
        };
        let moment = Moment { now, dice: 0.5, trust: &|_| trust };
        lies_ahead(&event, &History::new(now), &rules, &default_policy(), &moment)
    }

    #[test]
    fn an_event_from_the_future_waits_or_is_invalid() {
        assert_eq!(verdict(0, Trust::Confirmed), None);
        let Some(Verdict::Wait { history, .. }) = verdict(1, Trust::Confirmed) else {
            panic!("does not wait");
        };
        let now = history.first_seen;
        let left = history.until_due(now, Duration::MAX);
        assert_eq!(left, Some(Duration::from_mins(55)));
        assert!(matches!(verdict(25, Trust::Confirmed), Some(Verdict::DeadLetter(_))));
    }

    #[test]
    fn an_event_that_is_ahead_of_a_doubtful_clock_comes_back_soon_and_is_never_invalid() {
        for trust in [Trust::Unknown, Trust::Contradicted] {
            assert_eq!(verdict(0, trust), None);
            for hours in [1, 25, 1_000_000] {
                let Some(Verdict::Wait { history, tier }) = verdict(hours, trust) else {
                    panic!("does not wait");
                };
                assert_eq!(history.not_before, None);
                assert!(tier.delay() <= Duration::from_secs(4), "{tier:?}");
            }
        }
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
