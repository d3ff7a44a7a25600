//! A port that its visitors cannot use against the process: connections are capped, and each has time
//! limits for all that it waits for of its client. Nothing here knows what is served; every server of
//! the relay's stands on it.
//!
//! It has a thread of its own, so that a visitor who keeps it busy takes nothing from the events.

mod connection;
mod registry;
mod watched;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use serde_json::json;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::telemetry::{Metrics, Refusal};
use connection::Connection;
use registry::Registry;
use watched::WatchedStream;

/// What a visitor may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once.
    pub max_connections: usize,
    /// From accept, or the first byte of a later request, to its complete head; and again from there
    /// to its complete body.
    pub request_timeout: Duration,
    /// How long an answer may wait for a client that does not read it.
    pub answer_timeout: Duration,
    /// From an answer to the next request of its connection.
    pub idle_timeout: Duration,
    /// A request's largest body, in bytes.
    pub max_body: usize,
}

/// What one connection takes at worst, in KiB: buffers of ours and of the kernel, a body, an answer of
/// a hundred KiB that nobody reads.
pub const MAX_CONNECTION_KIB: usize = 300;

/// A request's largest head, in bytes.
const MAX_HEAD: usize = 8 * 1024;
/// A head has no more fields.
const MAX_HEADERS: usize = 64;
/// The least that hyper takes; it bounds what is read ahead and what waits to be written.
const BUFFER: usize = 16 * 1024;
/// What the kernel is told to keep for a connection, each way; it takes twice as much. A container pays
/// for it as for any memory.
const KERNEL_BUFFER: u32 = 32 * 1024;
/// Connections that the kernel completes before they are accepted; it may allow fewer.
const BACKLOG: u32 = 4096;
/// A request that takes us longer is given up.
const WORK_LIMIT: Duration = Duration::from_secs(30);
/// After an error that is not one connection's own.
const ACCEPT_PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(500));

/// A port that listens, and answers nobody yet.
#[derive(Debug)]
pub struct Listener(std::net::TcpListener);

/// A port, open as long as this lives.
#[derive(Debug)]
pub struct Serving {
    closing: Option<DropGuard>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// Takes the address.
    pub fn bind(address: SocketAddr) -> io::Result<Listener> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        // Connections inherit all three. An answer is written in one go.
        socket.set_nodelay(true)?;
        socket.set_recv_buffer_size(KERNEL_BUFFER)?;
        socket.set_send_buffer_size(KERNEL_BUFFER)?;
        socket.bind(address)?;
        Ok(Listener(socket.listen(BACKLOG)?.into_std()?))
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// Answers, in a thread of this name, until what is returned is dropped.
    pub fn serve(
        self,
        name: &str,
        router: Router,
        limits: Limits,
        metrics: Arc<Metrics>,
    ) -> io::Result<Serving> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = {
            let _context = runtime.enter();
            TcpListener::from_std(self.0)?
        };
        let closing = CancellationToken::new();
        let closed = closing.clone();
        let server = Arc::new(Server {
            registry: Registry::new(limits.max_connections, metrics),
            http: http(),
            router: TowerToHyperService::new(router),
            limits,
        });
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            runtime.block_on(async {
                // A task like the connections' own, so that it takes turns with them.
                tokio::spawn(accept(listener, server));
                closed.cancelled().await;
            });
        })?;
        Ok(Serving { closing: Some(closing.drop_guard()), thread: Some(thread) })
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        drop(self.closing.take());
        if let Some(thread) = self.thread.take() {
            // A panic there was reported by its place.
            drop(thread.join());
        }
    }
}

/// What all connections share.
struct Server {
    registry: Arc<Registry>,
    http: http1::Builder,
    router: TowerToHyperService<Router>,
    limits: Limits,
}

fn http() -> http1::Builder {
    let mut http = http1::Builder::new();
    http.max_buf_size(BUFFER).max_header_size(MAX_HEAD).max_headers(MAX_HEADERS);
    // The connection's own deadlines say why they end it.
    http.header_read_timeout(None);
    http
}

/// Takes connections; no error ends it, and none makes it spin.
async fn accept(listener: TcpListener, server: Arc<Server>) {
    let (first_pause, longest_pause) = ACCEPT_PAUSES;
    let mut pause = first_pause;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                pause = first_pause;
                admit(stream, &server);
                // What was closed for it is gone, and it has been read from, before the next one.
                tokio::task::yield_now().await;
            }
            // The client is gone already.
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                server.registry.make_room();
                server.registry.accept_failed(&error);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(longest_pause);
            }
        }
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, TimedOut};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted | TimedOut)
}

fn admit(stream: TcpStream, server: &Arc<Server>) {
    let registry = &server.registry;
    if registry.is_full() && !registry.make_room() {
        registry.refuse(Refusal::Full);
        return;
    }
    let connection = Connection::open(registry, server.limits);
    tokio::spawn(serve(stream, connection, Arc::clone(server)));
}

async fn serve(stream: TcpStream, connection: Arc<Connection>, server: Arc<Server>) {
    let io = TokioIo::new(WatchedStream::new(stream, Arc::clone(&connection)));
    let service = service_fn(|request| answer(request, Arc::clone(&connection), &server));
    let exchange = server.http.serve_connection(io, service);
    let refusal = tokio::select! {
        // In this order: what is served moves the deadlines.
        biased;
        ended = exchange => {
            let is_too_large = ended.is_err_and(|error| error.is_parse_too_large());
            is_too_large.then_some(Refusal::TooLarge)
        }
        refusal = connection.out_of_time() => refusal,
        () = connection.displaced() => Some(Refusal::Displaced),
    };
    if let Some(refusal) = refusal {
        server.registry.refuse(refusal);
    }
}

/// One request, from its complete head to an answer that can be written.
async fn answer(
    request: hyper::Request<Incoming>,
    connection: Arc<Connection>,
    server: &Server,
) -> Result<Response, Infallible> {
    connection.reads_body();
    let (head, body) = request.into_parts();
    let response = match read(body, server.limits.max_body).await {
        Ok(body) => {
            connection.works();
            let answered = server.router.call(Request::from_parts(head, body));
            match tokio::time::timeout(WORK_LIMIT, answered).await {
                Ok(Ok(response)) => response,
                Err(_) => sorry(StatusCode::SERVICE_UNAVAILABLE, "no answer in time"),
            }
        }
        Err(status) => {
            if status == StatusCode::PAYLOAD_TOO_LARGE {
                server.registry.refuse(Refusal::TooLarge);
            }
            sorry(status, "the body is too large or incomplete")
        }
    };
    connection.answers();
    let (head, body) = response.into_parts();
    // Dropped with the body, when all of it is on its way.
    let sent = connection::Sent(connection);
    let body = body.map_err(move |error| {
        let _keep = &sent;
        error
    });
    Ok(Response::from_parts(head, Body::new(body)))
}

/// The whole body, before anything is done: a client that is slow to send it holds up nothing else.
async fn read(body: Incoming, max: usize) -> Result<Body, StatusCode> {
    if body.size_hint().lower() > max as u64 {
        return Err(StatusCode::PAYLOAD_TOO_LARGE);
    }
    match Limited::new(body, max).collect().await {
        Ok(body) => Ok(Body::from(body.to_bytes())),
        Err(error) if error.is::<LengthLimitError>() => Err(StatusCode::PAYLOAD_TOO_LARGE),
        Err(_) => Err(StatusCode::BAD_REQUEST),
    }
}

/// An answer that says why there is none.
pub fn sorry(status: StatusCode, text: &str) -> Response {
    (status, Json(json!({ "error": text }))).into_response()
}
