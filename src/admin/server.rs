//! The port, served: beside the worker, from its start to its end, also while it is a standby.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::extract::{DefaultBodyLimit, FromRequestParts, Json, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use axum::http::{StatusCode, request};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use secrecy::ExposeSecret as _;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{SHOW_CUSTOMER, describe};
use crate::clock;
use crate::config::{AdminConfig, Secret, read_secret};
use crate::ledger::{About, Ledger, Store};
use crate::telemetry::{Exposition, Telemetry};

/// No question is longer, in bytes.
const MAX_QUESTION: usize = 16 * 1024;

/// It cannot listen there.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {0}: {1}; set admin.listen to an address of this host with a free port")]
pub struct ListenError(SocketAddr, std::io::Error);

/// The port, open as long as this lives.
#[derive(Debug)]
pub struct Port {
    shared: Arc<Shared>,
    _open: DropGuard,
}

#[derive(Debug)]
struct Shared {
    token: Secret,
    telemetry: Telemetry,
    /// Empty while another relay works on it; `None` in it: there is no ledger.
    ledger: OnceLock<Option<(Store, About)>>,
}

impl Port {
    /// Listens, if an address is set.
    pub async fn open(
        config: &AdminConfig,
        telemetry: &Telemetry,
    ) -> Result<Option<Port>, ListenError> {
        let Some(wanted) = config.listen else { return Ok(None) };
        let failed = |error| ListenError(wanted, error);
        let listener = TcpListener::bind(wanted).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let (token, telemetry) = (config.token.clone(), telemetry.clone());
        let shared = Arc::new(Shared { token, telemetry, ledger: OnceLock::new() });
        let closing = CancellationToken::new();
        let served = axum::serve(listener, router(Arc::clone(&shared)))
            .with_graceful_shutdown(closing.clone().cancelled_owned());
        tokio::spawn(async move {
            if let Err(error) = served.await {
                tracing::error!(%error, "the admin port is closed");
            }
        });
        tracing::info!(%address, "the admin port is open");
        Ok(Some(Port { shared, _open: closing.drop_guard() }))
    }

    /// From now on it answers from this ledger.
    pub fn knows(&self, ledger: &Ledger) {
        let known = ledger.store().cloned().zip(ledger.about().cloned());
        // There is one ledger from start to end.
        self.shared.ledger.get_or_init(|| known);
    }
}

fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route(SHOW_CUSTOMER, post(show_customer))
        .layer(DefaultBodyLimit::max(MAX_QUESTION))
        .with_state(shared)
}

/// Whether it can do its work, and how it is.
async fn readyz(State(shared): State<Arc<Shared>>) -> Response {
    let reading = shared.telemetry.health.reading();
    let status = if reading.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(reading.to_json())).into_response()
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    match shared.telemetry.exposition.as_ref().map(Exposition::text) {
        Some(Ok(text)) => ([(CONTENT_TYPE, Exposition::CONTENT_TYPE)], text).into_response(),
        Some(Err(error)) => sorry(StatusCode::INTERNAL_SERVER_ERROR, &error),
        None => sorry(StatusCode::NOT_FOUND, "no metrics are kept"),
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
    match store.account(about.key(&entity_id)).await {
        Ok(account) => match describe(&entity_id, &account, clock::now()) {
            Some(known) => Json(known).into_response(),
            None => sorry(StatusCode::NOT_FOUND, "the ledger knows nothing of this customer"),
        },
        Err(error) => sorry(StatusCode::SERVICE_UNAVAILABLE, &error.to_string()),
    }
}

fn sorry(status: StatusCode, text: &str) -> Response {
    (status, Json(json!({ "error": text }))).into_response()
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
