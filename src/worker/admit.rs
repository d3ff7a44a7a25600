//! A delivery, read: an event that only needs its turn, or the verdict that ends it here.

use std::sync::Arc;

use crate::amqp::Delivery;
use crate::clock;
use crate::config::Config;
use crate::domain::admission::{self, Admission, Refused};
use crate::domain::history::History;
use crate::domain::redact::cut;
use crate::domain::row::{Passage, Receipt};
use crate::domain::update::Update;
use crate::domain::verdict::Verdict;
use crate::domain::version::Place;

/// Longest event id in a log line, in bytes.
pub(super) const MAX_ID_BYTES: usize = 128;

/// An event that only needs its turn. Boxed wherever it goes: what each task copies is a pointer.
#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) delivery: Delivery,
    /// Whose lane it goes in.
    pub(super) customer: Arc<str>,
    pub(super) event_id: Option<String>,
    pub(super) place: Place,
    pub(super) update: Arc<Update>,
    pub(super) history: History,
    /// It was part of a merged call that was refused: now it is tried by itself.
    pub(super) goes_alone: bool,
}

impl Admitted {
    /// Whether it may be sent in one call with others. What an operator or the relay itself has
    /// sent again goes by itself.
    pub(super) fn may_merge(&self) -> bool {
        let is_plain = self.history.passage() == Passage::Newer && self.history.revision == 0;
        is_plain && !self.goes_alone && !self.delivery.is_forgotten()
    }

    /// The event's id, as long as a log line has room for.
    pub(super) fn log_id(&self) -> Option<&str> {
        self.event_id.as_deref().map(|id| cut(id, MAX_ID_BYTES))
    }

    pub(super) fn receipt(&self) -> Receipt {
        let is_redelivery = self.delivery.message().is_redelivery();
        Receipt { told: self.history.receipt, is_redelivery }
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
    pub(super) event: Option<String>,
}

/// Reads, decodes and validates a delivery.
pub(super) fn admit(config: &Config, delivery: Delivery) -> Result<Box<Admitted>, Box<Ended>> {
    match read(config, &delivery) {
        Ok((Admission { event, place, update }, history)) => Ok(Box::new(Admitted {
            customer: update.entity_id().into(),
            event_id: event.id,
            place,
            update: Arc::new(update),
            history,
            delivery,
            goes_alone: false,
        })),
        Err(refused) => {
            let Refused { verdict, customer, event } = *refused;
            Err(Box::new(Ended { delivery, verdict, customer, event }))
        }
    }
}

fn read(config: &Config, delivery: &Delivery) -> Result<(Admission, History), Box<Refused>> {
    let now = clock::now();
    let message = delivery.message();
    let history = message
        .history(now)
        .map_err(|fault| Verdict::invalid_header(&fault.to_string(), &History::new(now)))?;
    let rules = &config.rules;
    let mut envelope = message.envelope();
    // Published by hand straight to the work queue: nothing but the queue says what it is.
    envelope.kind = envelope.kind.or(rules.mapping.default_type());
    let admission = admission::admit(&envelope, &history, rules, &config.retry.tiers, now)?;
    Ok((admission, history))
}
