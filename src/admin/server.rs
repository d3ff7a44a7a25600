//! The port, served: beside the worker, from its start to its end, also while it is a standby.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequestParts, Json, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{StatusCode, request};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use secrecy::ExposeSecret as _;
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

use super::listener::{Limits, Listener, Serving, sorry};
use super::{SHOW_CUSTOMER, describe};
use crate::clock;
use crate::config::{AdminConfig, Secret, read_secret};
use crate::ledger::{About, CustomerKey, Ledger, LedgerError, Store};
use crate::telemetry::{Exposition, Telemetry};

/// No question is longer, in bytes.
const MAX_QUESTION: usize = 16 * 1024;
/// Between two beats of the relay's own event loop.
const BEAT_INTERVAL: Duration = Duration::from_secs(1);
/// Without a beat for so long the relay hangs.
const BEAT_LIMIT: Duration = Duration::from_secs(5);
/// Metrics of this age are given again: visitors who ask without pause cost one rendering each time.
const METRICS_AGE: Duration = Duration::from_millis(100);

/// It cannot listen there.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {0}: {1}; set admin.listen to an address of this host with a free port")]
pub struct ListenError(SocketAddr, std::io::Error);

/// The port, open as long as this lives.
#[derive(Debug)]
pub struct Port {
    shared: Arc<Shared>,
    _serving: Serving,
    _beating: AbortOnDropHandle<()>,
}

#[derive(Debug)]
struct Shared {
    token: Secret,
    telemetry: Telemetry,
    /// Empty while another relay works on it; `None` in it: there is no ledger.
    ledger: OnceLock<Option<(Store, About)>>,
    /// Where the relay itself runs: the port has a thread of its own.
    relay: Handle,
    /// The ledger is asked one question at a time: the relay's own reads and commits come first.
    questions: Arc<Semaphore>,
    last_beat: Mutex<Instant>,
    last_metrics: Mutex<Option<(Instant, Bytes)>>,
}

impl Port {
    /// Listens, if an address is set.
    pub fn open(config: &AdminConfig, telemetry: &Telemetry) -> Result<Option<Port>, ListenError> {
        let Some(wanted) = config.listen else { return Ok(None) };
        let failed = |error| ListenError(wanted, error);
        let listener = Listener::bind(wanted).map_err(failed)?;
        let address = listener.address().map_err(failed)?;
        let shared = Arc::new(Shared {
            token: config.token.clone(),
            telemetry: telemetry.clone(),
            ledger: OnceLock::new(),
            relay: Handle::current(),
            questions: Arc::new(Semaphore::new(1)),
            last_beat: Mutex::new(clock::instant()),
            last_metrics: Mutex::default(),
        });
        let beating = tokio::spawn(beat(Arc::clone(&shared)));
        let limits = Limits {
            max_connections: config.max_connections,
            request_timeout: config.request_timeout,
            answer_timeout: config.answer_timeout,
            idle_timeout: config.idle_timeout,
            max_body: MAX_QUESTION,
        };
        let metrics = Arc::clone(&telemetry.metrics);
        let router = router(Arc::clone(&shared));
        let serving = listener.serve("admin-port", router, limits, metrics).map_err(failed)?;
        tracing::info!(%address, max_connections = limits.max_connections, "the admin port is open");
        let beating = AbortOnDropHandle::new(beating);
        Ok(Some(Port { shared, _serving: serving, _beating: beating }))
    }

    /// From now on it answers from this ledger.
    pub fn knows(&self, ledger: &Ledger) {
        let known = ledger.store().cloned().zip(ledger.about().cloned());
        // There is one ledger from start to end.
        self.shared.ledger.get_or_init(|| known);
    }
}

/// Shows that the relay's event loop turns. Never ends.
async fn beat(shared: Arc<Shared>) {
    loop {
        *shared.last_beat.lock().unwrap_or_else(PoisonError::into_inner) = clock::instant();
        tokio::time::sleep(BEAT_INTERVAL).await;
    }
}

fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route(SHOW_CUSTOMER, post(show_customer))
        .layer(DefaultBodyLimit::max(MAX_QUESTION))
        .with_state(shared)
}

/// Whether the relay itself is alive: this thread is not what matters.
async fn livez(State(shared): State<Arc<Shared>>) -> Response {
    let last_beat = *shared.last_beat.lock().unwrap_or_else(PoisonError::into_inner);
    let silent = clock::instant().saturating_duration_since(last_beat);
    if silent < BEAT_LIMIT {
        return "alive\n".into_response();
    }
    let text = format!("the relay's event loop has not turned for {} s", silent.as_secs());
    sorry(StatusCode::SERVICE_UNAVAILABLE, &text)
}

/// Whether it can do its work, and how it is.
async fn readyz(State(shared): State<Arc<Shared>>) -> Response {
    let reading = shared.telemetry.health.reading();
    let status = if reading.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(reading.to_json())).into_response()
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    let Some(exposition) = &shared.telemetry.exposition else {
        return sorry(StatusCode::NOT_FOUND, "no metrics are kept");
    };
    let text = {
        let now = clock::instant();
        let mut last = shared.last_metrics.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some((made, text)) if now.saturating_duration_since(*made) < METRICS_AGE => {
                Ok(text.clone())
            }
            _ => exposition.text().map(|text| last.insert((now, text.into())).1.clone()),
        }
    };
    match text {
        Ok(text) => ([(CONTENT_TYPE, Exposition::CONTENT_TYPE)], text).into_response(),
        Err(error) => sorry(StatusCode::INTERNAL_SERVER_ERROR, &error),
    }
}

#[derive(serde::Deserialize)]
struct Question {
    entity_id: String,
}

async fn show_customer(
    _: Operator,
    State(shared): State<Arc<Shared>>,
    Json(Question { entity_id }): Json<Question>,
) -> Response {
    let (store, about) = match shared.ledger.get() {
        Some(Some(ledger)) => ledger,
        Some(None) => {
            return sorry(StatusCode::NOT_FOUND, "ledger.url is \"none\": nothing is kept");
        }
        None => {
            let text = "standby: another relay works on the ledger; ask that one";
            return sorry(StatusCode::SERVICE_UNAVAILABLE, text);
        }
    };
    let Ok(turn) = Arc::clone(&shared.questions).try_acquire_owned() else {
        let text = "another question to the ledger is being answered: ask again in a second";
        return ([(RETRY_AFTER, "1")], sorry(StatusCode::SERVICE_UNAVAILABLE, text))
            .into_response();
    };
    let (store, key) = (store.clone(), about.key(&entity_id));
    // On the relay's own event loop, where the ledger's connections live. Whoever asked may be gone
    // before it is done: the turn ends with the work.
    let asked = shared.relay.spawn(async move {
        let answer = ask(store, key, entity_id).await;
        drop(turn);
        answer
    });
    let Ok(answer) = asked.await else {
        return sorry(StatusCode::SERVICE_UNAVAILABLE, "the relay is ending");
    };
    match answer {
        Ok(Some(known)) => ([(CONTENT_TYPE, "application/json")], known).into_response(),
        Ok(None) => sorry(StatusCode::NOT_FOUND, "the ledger knows nothing of this customer"),
        Err(error) => sorry(StatusCode::SERVICE_UNAVAILABLE, &error.to_string()),
    }
}

/// What is known of a customer, as JSON. That is made on a thread that nobody else waits for: there can
/// be megabytes of it.
async fn ask(
    store: Store,
    key: CustomerKey,
    entity_id: String,
) -> Result<Option<String>, LedgerError> {
    let account = store.load_account(key).await?;
    let describe = move || {
        let known = describe(&entity_id, &account, clock::now());
        known.map(|known| known.to_string())
    };
    let described = tokio::task::spawn_blocking(describe).await;
    described.map_err(|error| LedgerError::Broken(error.to_string()))
}

/// Somebody who has shown the token, before anything else of the question is read.
struct Operator;

impl FromRequestParts<Arc<Shared>> for Operator {
    type Rejection = Response;

    async fn from_request_parts(
        parts: &mut request::Parts,
        shared: &Arc<Shared>,
    ) -> Result<Operator, Response> {
        let shown = parts.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let shown = shown.and_then(|value| value.strip_prefix("Bearer "));
        if shown.is_some_and(|shown| is_token(&shared.token, shown)) {
            return Ok(Operator);
        }
        let text = "show the relay's admin.token: Authorization: Bearer …";
        Err(([(WWW_AUTHENTICATE, "Bearer")], sorry(StatusCode::UNAUTHORIZED, text)).into_response())
    }
}

/// A token in a file counts as it is now. Hashes are compared: how long that takes tells nothing.
fn is_token(token: &Secret, shown: &str) -> bool {
    let current = token.file.as_deref().and_then(|file| read_secret(file).ok());
    let expected = current.as_deref().unwrap_or_else(|| token.value.expose_secret());
    !expected.is_empty() && Sha256::digest(expected) == Sha256::digest(shown)
}
