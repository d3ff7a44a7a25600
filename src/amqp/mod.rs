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
mod legible;
mod letter;
mod lone;
pub mod orders;
mod publisher;
mod republish;
mod scan;
mod scan_lock;
pub mod topology;
mod transfer;
mod watch;

pub use active::{Hold, hold, is_consumed, is_held};
pub use connection::{AmqpError, Broker, InvalidUrl, Link};
pub use delivery::{Deliveries, Delivery, Forgotten, Message};
pub use erase::{Erased, erase};
pub use feed::Feed;
pub use headers::InvalidHeader;
pub use publisher::{PublishError, Publisher};
pub use republish::NewMessage;
pub use scan::Scan;
pub use scan_lock::{LockError, ScanLock, lock_scans};
pub use transfer::{Exported, InvalidExport};
pub use watch::{Seen, Watch};

/// A directive for every log filter: without it whole messages are written out, personal data and all.
pub const TELLS_OF_PEOPLE: &str = "lapin::returned_messages=off";

/// The exchange that routes by queue name; what comes through it was sent by us or an operator.
const DEFAULT_EXCHANGE: &str = "";
