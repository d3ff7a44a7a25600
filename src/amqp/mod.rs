//! RabbitMQ: connections, deliveries, headers, confirmed publishing, topology. The only folder
//! that knows `lapin`.

mod active;
mod connection;
mod delivery;
mod erase;
mod feed;
mod frame;
mod headers;
pub mod ledger_id;
mod lone;
mod look;
pub mod orders;
mod publisher;
mod republish;
mod scan;
pub mod topology;
mod watch;

pub use active::{Hold, hold, is_held};
pub use connection::{AmqpError, Broker, InvalidUrl, Link};
pub use delivery::{Deliveries, Delivery, Forgotten, Message};
pub use erase::{Erased, erase};
pub use feed::Feed;
pub use headers::InvalidHeader;
pub use look::{DeadLetterHead, look};
pub use publisher::{PublishError, Publisher};
pub use republish::NewMessage;
pub use watch::{Seen, Watch};

/// The exchange that routes by queue name; what comes through it was sent by us or an operator.
const DEFAULT_EXCHANGE: &str = "";
