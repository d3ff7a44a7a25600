//! The portal simulator as a process, with its control API.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::eventually;
use super::process::Process;
use super::relay::PROBE;

/// What the simulator expects, and relays are configured with.
pub const TOKEN: &str = "token-of-the-tests";
/// See [`TOKEN`].
pub const SECRET_KEY: &str = "secret-of-the-tests";

/// A running simulator.
pub struct Simulator {
    process: Process,
    url: String,
    http: reqwest::Client,
}

impl Simulator {
    /// Starts one on a free port.
    pub async fn start(args: &[&str]) -> Result<Simulator> {
        let mut all = vec!["--listen", "127.0.0.1:0", "--token", TOKEN, "--secret-key", SECRET_KEY];
        all.extend(args);
        let all: Vec<String> = all.into_iter().map(str::to_owned).collect();
        let mut process = Process::start(env!("CARGO_BIN_EXE_portal-simulator"), &all, &[])?;
        let line = process.line_with("listening on", Duration::from_secs(10)).await?;
        let url = line.split_whitespace().last().context("no URL")?.to_owned();
        // An error means that it was said before.
        drop(rustls::crypto::ring::default_provider().install_default());
        Ok(Simulator { process, url, http: reqwest::Client::builder().no_proxy().build()? })
    }

    /// Its base URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// A GET below the base URL.
    pub async fn get(&self, path: &str) -> Result<Value> {
        let answer = self.http.get(format!("{}{path}", self.url)).send().await?;
        Ok(serde_json::from_slice(&answer.bytes().await?)?)
    }

    async fn send(
        &self,
        method: reqwest::Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<Value> {
        let mut request = self.http.request(method, format!("{}{path}", self.url));
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let answer = request.send().await?;
        let status = answer.status();
        let body = answer.text().await?;
        ensure!(status.is_success(), "{path}: {status} {body}");
        Ok(serde_json::from_str(&body)?)
    }

    /// Adds a fault rule; see the simulator's `--help`.
    pub async fn fault(&self, rule: Value) -> Result<()> {
        self.send(reqwest::Method::POST, "/control/faults", Some(rule)).await.map(drop)
    }

    /// The same; the rule's number.
    pub async fn add_fault(&self, rule: Value) -> Result<u64> {
        let answer = self.send(reqwest::Method::POST, "/control/faults", Some(rule)).await?;
        answer["id"].as_u64().context("no id")
    }

    /// Ends one fault.
    pub async fn remove_fault(&self, id: u64) -> Result<()> {
        self.send(reqwest::Method::DELETE, &format!("/control/faults/{id}"), None).await.map(drop)
    }

    /// Ends all faults.
    pub async fn heal(&self) -> Result<()> {
        self.send(reqwest::Method::DELETE, "/control/faults", None).await.map(drop)
    }

    /// Changes what it expects.
    pub async fn expect_secret(&self, secret_key: &str) -> Result<()> {
        let body = json!({ "secret_key": secret_key });
        self.send(reqwest::Method::PUT, "/control/credentials", Some(body)).await.map(drop)
    }

    /// One customer: fields, calls, applied, `max_in_flight`, history.
    pub async fn customer(&self, id: &str) -> Result<Value> {
        self.get(&format!("/customers/{}", encoded(id))).await
    }

    /// Totals.
    pub async fn stats(&self) -> Result<Value> {
        self.get("/control/stats").await
    }

    /// The calls logged for a customer, oldest first.
    pub async fn requests(&self, entity_id: &str) -> Result<Vec<Value>> {
        let entity_id = encoded(entity_id);
        let answer =
            self.get(&format!("/control/requests?limit=1000&entity_id={entity_id}")).await?;
        Ok(answer["requests"].as_array().cloned().unwrap_or_default())
    }

    /// Every customer that events are about, by read-back.
    pub async fn customers(&self) -> Result<Vec<Value>> {
        let mut all = Vec::new();
        let mut after = String::new();
        loop {
            let page = self.get(&format!("/customers?limit=5000{after}")).await?;
            all.extend(page["customers"].as_array().cloned().unwrap_or_default());
            match page["next"].as_str() {
                Some(next) => after = format!("&after={}", encoded(next)),
                None => break,
            }
        }
        all.retain(|customer| customer["fields"]["entity_id"] != PROBE);
        Ok(all)
    }

    /// Waits until a customer's update number `applied` is applied.
    pub async fn applied(&self, id: &str, applied: u64, limit: Duration) -> Result<Value> {
        eventually(&format!("{applied} updates of {id}"), limit, || async {
            let customer = self.customer(id).await?;
            let count = customer["applied"].as_u64().unwrap_or(0);
            Ok((count >= applied).then_some(customer))
        })
        .await
    }
}

/// An id as a part of a URL.
fn encoded(id: &str) -> String {
    form_urlencoded::byte_serialize(id.as_bytes()).collect::<String>().replace('+', "%20")
}
