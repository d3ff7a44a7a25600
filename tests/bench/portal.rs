//! A portal inside the benchmark that only notes when calls arrive: the simulator's clock is too
//! coarse and its answers are too far away.

use std::convert::Infallible;
use std::time::Instant;

use anyhow::Result;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::AbortHandle;

use crate::bed::customer_of;

const SUCCESS: &[u8] = br#"{"status":200,"message":"success","data":[]}"#;

/// A call that has arrived whole.
pub(crate) struct Call {
    pub(crate) customer: u32,
    pub(crate) arrived: Instant,
}

/// It answers every call with success; gone when dropped.
pub(crate) struct Portal {
    url: String,
    calls: UnboundedReceiver<Call>,
    server: AbortHandle,
}

impl Portal {
    /// Listens on a free port.
    pub(crate) async fn start() -> Result<Portal> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let (sender, calls) = unbounded_channel();
        let server = tokio::spawn(accept(listener, sender)).abort_handle();
        Ok(Portal { url, calls, server })
    }

    /// Its base URL.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// The next call.
    pub(crate) async fn next_call(&mut self) -> Option<Call> {
        self.calls.recv().await
    }
}

impl Drop for Portal {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn accept(listener: TcpListener, calls: UnboundedSender<Call>) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(converse(stream, calls.clone()));
    }
}

/// Until the client closes the connection.
async fn converse(stream: TcpStream, calls: UnboundedSender<Call>) {
    stream.set_nodelay(true).ok();
    let service = service_fn(|request| answer(request, &calls));
    http1::Builder::new().serve_connection(TokioIo::new(stream), service).await.ok();
}

async fn answer(
    request: Request<Incoming>,
    calls: &UnboundedSender<Call>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let body = request.into_body().collect().await;
    let arrived = Instant::now();
    let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let id = form_urlencoded::parse(&body).find(|(name, _)| name == "entity_id");
    if let Some(customer) = id.and_then(|(_, id)| customer_of(&id)) {
        // Nobody waits for calls after the last one that is measured.
        calls.send(Call { customer, arrived }).ok();
    }
    Ok(Response::new(Full::from(SUCCESS)))
}
