//! Connecting: several addresses in turn, a time limit on every operation, no recovery behind our
//! back.
//!
//! lapin's own recovery stays off: after a channel error it leaves consumers that yield nothing and
//! connections that hoard deliveries. A lost connection is given up whole and made anew.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lapin::options::ConfirmSelectOptions;
use lapin::protocol::{AMQPErrorKind, AMQPHardError};
use lapin::uri::AMQPUri;
use lapin::{Channel, Connection, ConnectionProperties, ErrorKind};

use super::legible;

/// What went wrong between us and the broker.
#[derive(Debug, thiserror::Error)]
pub enum AmqpError {
    /// The broker did not answer in time.
    #[error("{0}: no answer within {1:?}")]
    TimedOut(&'static str, Duration),
    /// The broker or the network said no.
    #[error("{0}: {1}")]
    Failed(&'static str, lapin::Error),
    /// No address answered; the last one's error.
    #[error("cannot reach the broker at {address}: {hint}")]
    Unreachable {
        /// Host, port and virtual host.
        address: String,
        /// What happened and what to look at.
        hint: String,
    },
}

/// A broker URL that cannot be used. The URL itself is not repeated: it holds a password.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}; expected amqp://user:password@host:port/vhost (the default vhost is %2f)")]
pub struct InvalidUrl(String);

/// Where the broker is, and how patient we are with it.
#[derive(Clone)]
pub struct Broker {
    addresses: Vec<AMQPUri>,
    /// Counts up whenever an address disappoints; the remainder is the one to try first.
    first: Arc<AtomicUsize>,
    pub(super) limit: Duration,
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addresses: Vec<String> = self.addresses.iter().map(place).collect();
        f.debug_struct("Broker").field("addresses", &addresses).finish_non_exhaustive()
    }
}

impl Broker {
    /// Reads one or several comma-separated URLs. `limit` bounds each operation on the broker.
    pub fn try_new(urls: &str, heartbeat: Duration, limit: Duration) -> Result<Self, InvalidUrl> {
        let addresses = urls.split(',').map(|url| address(url.trim(), heartbeat));
        Ok(Broker { addresses: addresses.collect::<Result<_, _>>()?, first: Arc::default(), limit })
    }

    /// Opens a connection at the first address that answers. `purpose` names it at the broker.
    pub async fn connect(&self, purpose: &str) -> Result<Link, AmqpError> {
        let mut last = None;
        for _ in &self.addresses {
            let turn = self.first.load(Ordering::Relaxed);
            let address = &self.addresses[turn % self.addresses.len()];
            match self.connect_to(address, purpose).await {
                Ok(link) => return Ok(Link { turn, ..link }),
                Err(error) => last = Some((place(address), error)),
            }
            self.avoid(turn);
        }
        let (address, error) = last.unwrap_or_else(|| {
            (String::new(), AmqpError::TimedOut("connect to no address", self.limit))
        });
        Err(AmqpError::Unreachable { address, hint: hint(&error) })
    }

    /// Tries the next address first from now on: a node that is cut off from its peers takes
    /// connections, and does nothing on them.
    pub fn avoid(&self, turn: usize) {
        // Of several links to one address the first that disappoints counts.
        let next = |first: usize| (first == turn).then(|| turn.wrapping_add(1));
        self.first.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).ok();
    }

    async fn connect_to(&self, address: &AMQPUri, purpose: &str) -> Result<Link, AmqpError> {
        let name = format!("customer-relay {} {purpose}", env!("CARGO_PKG_VERSION"));
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let connection = legible::connect(address.clone(), properties);
        let connection = within(self.limit, "connect", connection).await?;
        Ok(Link { connection, limit: self.limit, address: place(address), turn: 0 })
    }
}

fn address(url: &str, heartbeat: Duration) -> Result<AMQPUri, InvalidUrl> {
    // Its own words repeat parts of it.
    let unread = |_: String| InvalidUrl("not an AMQP URL".to_owned());
    let mut address: AMQPUri = url.parse().map_err(unread)?;
    let heartbeat = u16::try_from(heartbeat.as_secs()).unwrap_or(u16::MAX);
    address.query.heartbeat.get_or_insert(heartbeat);
    Ok(address)
}

/// Host, port and virtual host: an address without its password.
fn place(address: &AMQPUri) -> String {
    let authority = &address.authority;
    format!("{}:{} vhost {:?}", authority.host, authority.port, address.vhost)
}

fn hint(error: &AmqpError) -> String {
    let AmqpError::Failed(_, lapin) = error else { return error.to_string() };
    match lapin.kind() {
        ErrorKind::ProtocolError(error) => match error.kind() {
            AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) => {
                format!("{}: does the virtual host exist?", error.get_message())
            }
            AMQPErrorKind::Soft(_) | AMQPErrorKind::Hard(_) => {
                format!("{}: check user and password in broker.url", error.get_message())
            }
        },
        ErrorKind::IOError(error) => format!("{error}: is it running, is broker.url right?"),
        _ => lapin.to_string(),
    }
}

/// One open connection.
pub struct Link {
    pub(super) connection: Connection,
    pub(super) limit: Duration,
    address: String,
    turn: usize,
}

impl Link {
    /// Host, port and virtual host.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// For [`Broker::avoid`].
    pub fn turn(&self) -> usize {
        self.turn
    }

    /// Opens a channel.
    pub(super) async fn channel(&self) -> Result<Channel, AmqpError> {
        within(self.limit, "open a channel", self.connection.create_channel()).await
    }

    /// Opens a channel on which every published message is confirmed.
    pub(super) async fn confirm_channel(&self) -> Result<Channel, AmqpError> {
        let channel = self.channel().await?;
        let confirm = channel.confirm_select(ConfirmSelectOptions::default());
        within(self.limit, "ask for confirms", confirm).await?;
        Ok(channel)
    }

    /// Whether the broker has stopped taking publishes (memory or disk alarm).
    pub(super) fn is_blocked(&self) -> bool {
        self.connection.status().blocked()
    }

    pub(super) fn is_open(&self) -> bool {
        self.connection.status().connected()
    }

    /// Closes the connection, in an orderly way if the broker answers in time.
    ///
    /// Every connection that is given up must come here: one that is merely dropped can live on
    /// inside lapin and hoard deliveries.
    pub async fn close(&self) {
        let close = self.connection.close(200, "done".into());
        if let Err(error) = within(self.limit, "close the connection", close).await {
            tracing::debug!(%error, "the connection was gone already");
        }
    }
}

/// Closes a channel that is not needed any more; that it may be gone already does no harm.
pub(super) async fn close_channel(channel: &Channel, limit: Duration) {
    let close = channel.close(200, "done".into());
    if let Err(error) = within(limit, "close a channel", close).await {
        tracing::debug!(%error, "the channel was gone already");
    }
}

/// Bounds one operation on the broker.
pub(super) async fn within<T>(
    limit: Duration,
    what: &'static str,
    operation: impl Future<Output = lapin::Result<T>>,
) -> Result<T, AmqpError> {
    match tokio::time::timeout(limit, operation).await {
        Ok(result) => result.map_err(|error| AmqpError::Failed(what, error)),
        Err(_) => Err(AmqpError::TimedOut(what, limit)),
    }
}
