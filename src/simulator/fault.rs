//! A fault that is ready to be played, and the answers that are known in advance.

use std::time::Duration;

use hyper::StatusCode;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};

use crate::rate::Rate;

/// A fault that is ready to be played.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    /// The kind's name as the script gives it.
    pub(crate) kind: String,
    /// Check and apply the update before the fault strikes?
    pub(crate) applies: bool,
    /// Calls within it are spared.
    pub(crate) spared: Option<Rate>,
    /// What happens.
    pub(crate) action: Action,
}

/// What a fault does to a call.
#[derive(Clone, Debug)]
pub(crate) enum Action {
    /// Wait, then go on as if nothing was.
    Latency(Duration),
    /// Check and apply after the wait, whether or not the client still waits.
    Late(Duration),
    /// No ordinary answer at all.
    Instead(Instead),
}

/// What a call gets in place of the portal's answer.
#[derive(Clone, Debug)]
pub(crate) enum Instead {
    /// Reset the connection before any byte of an answer.
    Reset,
    /// Keep silent, then close; without a time until the client goes.
    Hang(Option<Duration>),
    /// Promise more bytes than are sent, then close.
    Truncated,
    /// Refuse with a message that repeats every value sent.
    Echo,
    /// Give this answer.
    Answer(Canned),
}

/// An answer that is known in advance.
#[derive(Clone, Debug)]
pub(crate) struct Canned {
    pub(crate) status: StatusCode,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) body: Bytes,
}

impl From<Canned> for Instead {
    fn from(canned: Canned) -> Self {
        Self::Answer(canned)
    }
}

impl Canned {
    /// An answer without headers.
    pub(crate) fn new(code: u16, body: Bytes) -> Result<Self, String> {
        Ok(Self { status: checked(code)?, headers: Vec::new(), body })
    }

    /// An answer with a content type.
    pub(crate) fn typed(code: u16, content_type: &str, body: Bytes) -> Result<Self, String> {
        Self::new(code, body)?.with(CONTENT_TYPE, content_type)
    }

    /// The answer with one more header, whose text may hold more than ASCII.
    pub(crate) fn with(mut self, name: HeaderName, value: &str) -> Result<Self, String> {
        let value = HeaderValue::from_bytes(value.as_bytes())
            .map_err(|_| format!("`{value}` cannot be the value of header {name}"))?;
        self.headers.push((name, value));
        Ok(self)
    }
}

/// The HTTP status `code`, if a final answer may have it.
pub(crate) fn checked(code: u16) -> Result<StatusCode, String> {
    let status = StatusCode::from_u16(code).ok().filter(|_| (200..=599).contains(&code));
    status.ok_or_else(|| format!("`code` is an HTTP status from 200 to 599, not {code}"))
}

/// What a gateway in front of the portal might show.
pub(crate) fn gateway_page(status: StatusCode) -> Bytes {
    let title = format!("{} {}", status.as_u16(), status.canonical_reason().unwrap_or("Unknown"));
    let body = format!("<h1>{title}</h1><hr><p>portal gateway</p>");
    format!("<html><head><title>{title}</title></head><body>{body}</body></html>\n").into()
}
