//! Keeps a prepaid-card portal in step with a CRM: `customer.updated` events from RabbitMQ become
//! signed update-customer calls, and nothing is lost on the way.
//!
//! An event's journey, and where to read it:
//!
//! 1. the broker hands over a message, unacked: [`amqp`]
//! 2. the message becomes an event, the event an update, or a refusal: [`domain::event`],
//!    [`domain::update`]
//! 3. the update waits for its customer's turn: [`worker`]
//! 4. it is held against what the portal is known to have, and merged with what waits behind it:
//!    [`ledger`], [`domain::row`], [`domain::merge`]
//! 5. it is signed and sent: [`domain::request`], [`portal`]
//! 6. the answer is judged: [`domain::response`], [`domain::outcome`]
//! 7. a fault is attributed to the event or to everybody: [`domain::gate`], [`domain::faults`]
//! 8. the outcome becomes a verdict: [`domain::verdict`], with the timetable of [`domain::retry`]
//! 9. the verdict is carried out, durably, and recorded; only then is the message acked: [`worker`],
//!    [`ledger`]
//!
//! Steps 4 to 8 are one machine, [`domain::turn`], that the worker and the simulation carry out.
//! [`domain`] decides and touches nothing; everything else acts.

pub mod domain;

pub mod amqp;
pub mod ledger;
pub mod portal;

pub mod admin;

pub mod worker;

pub mod dead_letters;

pub mod cli;
pub mod clock;
pub mod config;
pub mod descriptors;
pub mod health;
pub mod pauses;
pub mod telemetry;
