//! The update-customer call over HTTP: what goes out, what comes back, nothing judged.

use std::time::Duration;

use anyhow::Context as _;
use opentelemetry::Context;
use opentelemetry::propagation::Injector;
use reqwest::header::{AGE, CONTENT_TYPE, DATE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::{Client, Response};
use url::Url;

use super::credentials::Credentials;
use crate::config::PortalConfig;
use crate::domain::request::SignedRequest;
use crate::domain::response::{Answer, NoAnswer};
use crate::telemetry::trace;

/// The portal's update-customer endpoint.
#[derive(Debug)]
pub struct Portal {
    client: Client,
    url: Url,
    max_answer_bytes: usize,
}

/// Idle connections are dropped well before gateways usually drop theirs.
const IDLE_TIMEOUT: Duration = Duration::from_secs(45);

impl Portal {
    /// Makes a client that keeps its connections and follows no redirect: token and checksum must
    /// not reach another host.
    pub fn try_new(config: &PortalConfig) -> anyhow::Result<Portal> {
        let url = config.url.clone().context("portal.base_url is not set")?;
        let client = Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .no_proxy()
            .connect_timeout(config.connect_timeout)
            .timeout(config.timeout)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .tcp_nodelay(true)
            .user_agent(concat!("customer-relay/", env!("CARGO_PKG_VERSION")))
            .build()
            .context("cannot set up the HTTP client")?;
        Ok(Portal { client, url, max_answer_bytes: config.max_answer_bytes })
    }

    /// Where calls go.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// Makes one call, signed with the same credentials.
    pub async fn update_customer(
        &self,
        request: &SignedRequest,
        credentials: &Credentials,
        context: &Context,
    ) -> Result<Answer, NoAnswer> {
        let mut headers = HeaderMap::with_capacity(8);
        let form = HeaderValue::from_static("application/x-www-form-urlencoded");
        headers.insert(CONTENT_TYPE, form);
        headers.insert(HeaderName::from_static("token"), credentials.token.clone());
        let checksum = HeaderValue::from_str(&request.checksum).expect("hex is a header value");
        headers.insert(HeaderName::from_static("checksum"), checksum);
        trace::inject(context, &mut Carrier(&mut headers));
        let mut call = reqwest::Request::new(reqwest::Method::POST, self.url.clone());
        *call.headers_mut() = headers;
        *call.body_mut() = Some(request.form.clone().into());
        let response = self.client.execute(call).await.map_err(|error| no_answer(&error))?;
        let status = response.status().as_u16();
        let retry_after = response.headers().get(RETRY_AFTER);
        let retry_after = retry_after.and_then(|value| value.to_str().ok()).map(str::to_owned);
        let date = date(&response);
        let body = read_body(response, self.max_answer_bytes).await?;
        Ok(Answer { status, retry_after, date, body })
    }

    /// Asks for nothing but the portal's clock, without credentials: any answer has a date.
    pub async fn read_clock(&self, limit: Duration) -> Result<Option<String>, reqwest::Error> {
        let mut root = self.url.clone();
        root.set_path("/");
        let response = self.client.head(root).timeout(limit).send().await?;
        Ok(date(&response))
    }
}

/// When an answer was made, by whoever made it: not one that a cache has kept.
fn date(response: &Response) -> Option<String> {
    let headers = response.headers();
    let is_kept = headers.contains_key(AGE);
    let date = headers.get(DATE).filter(|_| !is_kept)?;
    date.to_str().ok().map(str::to_owned)
}

/// What stands at the end of a body that was cut, so that it is not JSON any more, and never success.
const CUT: u8 = 0xff;

/// The body, cut at `max_bytes`.
async fn read_body(mut response: Response, max_bytes: usize) -> Result<Vec<u8>, NoAnswer> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| no_answer(&error))? {
        let room = max_bytes - body.len();
        body.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if chunk.len() > room {
            body.push(CUT);
            break;
        }
    }
    Ok(body)
}

fn no_answer(error: &reqwest::Error) -> NoAnswer {
    tracing::debug!(%error, "no answer from the portal");
    if error.is_connect() {
        NoAnswer::Unreachable
    } else if error.is_timeout() {
        NoAnswer::TimedOut
    } else {
        NoAnswer::Interrupted
    }
}

struct Carrier<'a>(&'a mut HeaderMap);

impl Injector for Carrier<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(key), Ok(value)) = (key.parse::<HeaderName>(), HeaderValue::from_str(&value)) {
            self.0.insert(key, value);
        }
    }
}
