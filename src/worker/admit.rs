//! A delivery, read: an event that only needs its turn, or the verdict that ends it here.

use std::ops::Deref;
use std::sync::Arc;

use jiff::Timestamp;

use super::clocks::Clocks;
use crate::amqp::Delivery;
use crate::clock;
use crate::config::Config;
use crate::domain::admission::{self, Admission, Moment, Refused};
use crate::domain::group::{Carrier, Event};
use crate::domain::history::History;
use crate::domain::lanes::Waiting;
use crate::domain::text::cut;
use crate::domain::verdict::Verdict;
use crate::domain::version::EventRef;

/// Longest event id in a log line, in bytes.
const MAX_ID_BYTES: usize = 128;

/// A delivery with an event that only needs its turn. Boxed wherever it goes: what each task copies is
/// a pointer.
#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) delivery: Delivery,
    pub(super) event: Event,
    pub(super) event_id: Option<String>,
}

impl Admitted {
    /// The event's id, as long as a log line has room for.
    pub(super) fn log_id(&self) -> Option<&str> {
        // An admitted event's id is printable.
        self.event_id.as_deref().map(|id| cut(id, MAX_ID_BYTES))
    }
}

impl Deref for Admitted {
    type Target = Event;

    fn deref(&self) -> &Event {
        &self.event
    }
}

impl Carrier for Box<Admitted> {
    fn event(&self) -> &Event {
        &self.event
    }

    fn event_mut(&mut self) -> &mut Event {
        &mut self.event
    }
}

impl Waiting for Box<Admitted> {
    fn moment(&self) -> Option<u64> {
        self.event.moment()
    }

    fn is_gone(&self) -> bool {
        self.delivery.is_forgotten()
    }
}

/// A delivery that ends without a call.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) delivery: Delivery,
    pub(super) verdict: Verdict,
    /// Whose event it is, if a rule for its fields refused it.
    pub(super) customer: Option<String>,
    /// Which event it is, as far as it could be read.
    pub(super) event: Option<EventRef>,
    /// Whose event waits because it lies ahead of our clock, and its time.
    pub(super) ahead: Option<(String, Timestamp)>,
}

/// Reads, decodes and validates a delivery.
pub(super) fn admit(
    config: &Config,
    clocks: &Clocks,
    delivery: Delivery,
) -> Result<Box<Admitted>, Box<Ended>> {
    match read(config, clocks, &delivery) {
        Ok((Admission { event, place, update }, history)) => Ok(Box::new(Admitted {
            event: Event {
                customer: update.entity_id().into(),
                place,
                update: Arc::new(update),
                history,
                goes_alone: false,
            },
            event_id: event.id,
            delivery,
        })),
        Err(refused) => {
            let Refused { verdict, customer, event, ahead } = *refused;
            Err(Box::new(Ended { delivery, verdict, customer, event, ahead }))
        }
    }
}

fn read(
    config: &Config,
    clocks: &Clocks,
    delivery: &Delivery,
) -> Result<(Admission, History), Box<Refused>> {
    let time = clock::time();
    let now = time.wall;
    let message = delivery.message();
    let mut history = message
        .history(now)
        .map_err(|fault| Verdict::invalid_header(&fault.to_string(), &History::new(now)))?;
    let lately = message.returns();
    history.returns = history.returns.saturating_add(lately);
    if let Some(verdict) = Verdict::returned(&history, lately, &config.retry.tiers) {
        tracing::warn!(
            message_id = message.shown_id().as_deref(),
            lately,
            returns = history.returns,
            "came back without an end, again and again: it may be what ends the relay"
        );
        return Err(verdict.into());
    }
    let rules = &config.rules;
    let mut envelope = message.envelope();
    // Published by hand straight to the work queue: nothing but the queue says what it is.
    envelope.kind = envelope.kind.or(rules.mapping.default_type());
    let trust = |customer: &str| clocks.trust(customer, time);
    let moment = Moment { now, dice: clock::dice(), trust: &trust };
    let admission = admission::admit(&envelope, &history, rules, &config.retry, &moment)?;
    Ok((admission, history))
}
