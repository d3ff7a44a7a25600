//! The port, asked: for whoever has no way to the ledger itself.

use std::time::Duration;

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use url::Url;

use super::SHOW_CUSTOMER;

/// Until the answer must be there.
const LIMIT: Duration = Duration::from_secs(15);

/// The same for a probe: whoever probes waits 5 s, as a rule.
const PROBE_LIMIT: Duration = Duration::from_secs(4);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody answers there, or no relay does.
    #[error(
        "the admin port at {0} is not reached: {1}; is admin.listen set, is the address right?"
    )]
    Unreachable(Url, String),
    /// It answers, but has no way to the ledger itself.
    #[error("the relay at {0} has no answer now: {1}")]
    Unavailable(Url, String),
    /// The token is not the relay's.
    #[error(
        "the admin port at {0} refuses the token: set admin.token or admin.token_file to its own"
    )]
    Refused(Url),
    /// Nothing is known.
    #[error("{0}")]
    Unknown(String),
}

/// What a relay knows of a customer: what [`describe`](super::describe) tells. `base` is safe to
/// send a token to.
pub async fn ask_for_customer(base: &Url, token: &str, entity_id: &str) -> Result<Value, AskError> {
    let unreachable = |error| unreachable(base, &error);
    let mut url = base.clone();
    url.set_path(&format!("{}{SHOW_CUSTOMER}", base.path().trim_end_matches('/')));
    let mut shown = HeaderValue::try_from(format!("Bearer {token}"))
        .map_err(|_| AskError::Refused(base.clone()))?;
    shown.set_sensitive(true);
    let client = client(LIMIT).map_err(unreachable)?;
    let question = json!({ "entity_id": entity_id }).to_string();
    let asked =
        client.post(url).header(AUTHORIZATION, shown).header(CONTENT_TYPE, "application/json");
    let answer = asked.body(question).send().await.map_err(unreachable)?;
    let (status, body) = (answer.status(), answer.bytes().await.map_err(unreachable)?);
    // What is no JSON is no relay's answer: judged as such.
    judge(base, status, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

/// A page that needs no token: its HTTP status and text.
pub async fn probe(url: &Url) -> Result<(u16, String), AskError> {
    let unreachable = |error| unreachable(url, &error);
    let client = client(PROBE_LIMIT).map_err(unreachable)?;
    let answer = client.get(url.clone()).send().await.map_err(unreachable)?;
    let status = answer.status().as_u16();
    Ok((status, answer.text().await.map_err(unreachable)?))
}

fn client(limit: Duration) -> reqwest::Result<Client> {
    Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .no_proxy()
        .timeout(limit)
        .build()
}

fn unreachable(base: &Url, error: &reqwest::Error) -> AskError {
    let cause = std::iter::successors(std::error::Error::source(error), |error| error.source());
    let text = cause.last().map_or_else(|| error.to_string(), ToString::to_string);
    AskError::Unreachable(base.clone(), text)
}

fn judge(base: &Url, status: StatusCode, body: Value) -> Result<Value, AskError> {
    let text = body["error"].as_str().map(str::to_owned);
    match (status, text) {
        (StatusCode::OK, None) if body.is_object() => Ok(body),
        (StatusCode::UNAUTHORIZED, _) => Err(AskError::Refused(base.clone())),
        (StatusCode::NOT_FOUND, Some(text)) => Err(AskError::Unknown(text)),
        (StatusCode::SERVICE_UNAVAILABLE, Some(text)) => {
            Err(AskError::Unavailable(base.clone(), text))
        }
        (status, _) => {
            let text = format!("HTTP {status}, which no relay says");
            Err(AskError::Unreachable(base.clone(), text))
        }
    }
}
