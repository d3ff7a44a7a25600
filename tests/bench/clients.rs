//! Two ways to POST over kept-alive HTTP/1.1 connections, as plain as each library allows.

use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::bare::Options;

const FORM: &str = "application/x-www-form-urlencoded";

/// Which library speaks HTTP.
#[derive(clap::ValueEnum, Clone, Copy)]
pub(crate) enum Kind {
    Reqwest,
    Hyper,
}

/// The portal, as the bare loop knows it.
pub(crate) enum Client {
    Reqwest(Reqwest),
    Hyper(Hyper),
}

impl Client {
    pub(crate) fn try_new(kind: Kind, options: &Options) -> Result<Client> {
        let (url, token) = (&options.url, options.token.clone());
        Ok(match kind {
            Kind::Reqwest => Client::Reqwest(Reqwest::try_new(url, token)?),
            Kind::Hyper => Client::Hyper(Hyper::try_new(url, token)?),
        })
    }

    /// Sends a form; the answer's body.
    pub(crate) async fn post(&self, form: String, checksum: &str) -> Result<Bytes> {
        match self {
            Client::Reqwest(client) => client.post(form, checksum).await,
            Client::Hyper(client) => client.post(form, checksum).await,
        }
    }
}

/// reqwest with its own pool.
pub(crate) struct Reqwest {
    client: reqwest::Client,
    url: reqwest::Url,
    token: String,
}

impl Reqwest {
    fn try_new(url: &str, token: String) -> Result<Reqwest> {
        // An error means that one is installed already.
        drop(rustls::crypto::ring::default_provider().install_default());
        let client = reqwest::Client::builder().no_proxy().build()?;
        Ok(Reqwest { client, url: url.parse()?, token })
    }

    async fn post(&self, form: String, checksum: &str) -> Result<Bytes> {
        let call = self.client.post(self.url.clone());
        let call = call.header("token", &self.token).header("checksum", checksum);
        let answer = call.header(CONTENT_TYPE, FORM).body(form).send().await?;
        Ok(answer.bytes().await?)
    }
}

/// hyper's connections, one for each call under way, kept by hand.
pub(crate) struct Hyper {
    host: String,
    path: String,
    token: String,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

impl Hyper {
    fn try_new(url: &str, token: String) -> Result<Hyper> {
        let url: Uri = url.parse()?;
        let host = url.authority().context("no host")?.to_string();
        Ok(Hyper { host, path: url.path().to_owned(), token, idle: Mutex::default() })
    }

    async fn post(&self, form: String, checksum: &str) -> Result<Bytes> {
        let idle = self.with_idle(Vec::pop);
        let mut connection = match idle {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let call = Request::post(&self.path)
            .header(HOST, &self.host)
            .header("token", &self.token)
            .header("checksum", checksum)
            .header(CONTENT_TYPE, FORM)
            .body(Full::from(form))?;
        connection.ready().await?;
        let answer = connection.send_request(call).await?.into_body().collect().await?.to_bytes();
        self.with_idle(|idle| idle.push(connection));
        Ok(answer)
    }

    fn with_idle<T>(&self, act: impl FnOnce(&mut Vec<SendRequest<Full<Bytes>>>) -> T) -> T {
        act(&mut self.idle.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>> {
        let stream = TcpStream::connect(&self.host).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }
}
