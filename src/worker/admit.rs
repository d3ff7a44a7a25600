//! A delivery, read: an event that only needs its turn, or the verdict that ends it here.

use std::sync::Arc;

use opentelemetry::Context;

use crate::amqp::Delivery;
use crate::clock;
use crate::config::Config;
use crate::domain::admission::{self, Refused};
use crate::domain::event::CustomerUpdated;
use crate::domain::history::History;
use crate::domain::update::Update;
use crate::domain::verdict::Verdict;

/// An event that only needs its turn. Boxed wherever it goes: what each task copies is a pointer.
#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) delivery: Delivery,
    /// Whose lane it goes in.
    pub(super) customer: Arc<str>,
    pub(super) event_id: Option<String>,
    pub(super) update: Update,
    pub(super) history: History,
    pub(super) context: Context,
}

/// A delivery that ends without a call.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) delivery: Delivery,
    pub(super) verdict: Verdict,
    /// Whose event it is, if a rule for its fields refused it.
    pub(super) customer: Option<String>,
}

/// Reads, decodes and validates a delivery.
pub(super) fn admit(
    config: &Config,
    work_queue: &str,
    delivery: Delivery,
) -> Result<Box<Admitted>, Box<Ended>> {
    match read(config, work_queue, &delivery) {
        Ok((event, update, history)) => {
            let context = delivery.message().trace_context();
            let (customer, event_id) = (update.entity_id().into(), event.id);
            Ok(Box::new(Admitted { delivery, customer, event_id, update, history, context }))
        }
        Err(refused) => {
            let Refused { verdict, customer } = *refused;
            Err(Box::new(Ended { delivery, verdict, customer }))
        }
    }
}

fn read(
    config: &Config,
    work_queue: &str,
    delivery: &Delivery,
) -> Result<(CustomerUpdated, Update, History), Box<Refused>> {
    let now = clock::now();
    let message = delivery.message();
    let history = message
        .history(now)
        .map_err(|fault| Verdict::invalid_header(&fault.to_string(), &History::new(now)))?;
    let rules = &config.rules;
    let mut envelope = message.envelope(work_queue);
    // Published by hand straight to the work queue: nothing but the queue says what it is.
    envelope.kind = envelope.kind.or(rules.mapping.default_type());
    let (event, update) = admission::admit(&envelope, &history, rules, &config.retry.tiers, now)?;
    Ok((event, update, history))
}
