//! What goes back on the wire: the page's two JSON shapes, a body that may break off, and the ways
//! to end a connection without an answer.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use http_body_util::{Either, Full};
use hyper::body::{Body as HttpBody, Bytes, Frame};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;
use serde_json::json;

use crate::fault::Canned;
use crate::page::Rule;

/// An answer's body: whole, or one that breaks off.
pub(crate) type Body = Either<Full<Bytes>, BrokenOff>;

/// A connection that ends without an answer. As a handler's or a body's error it stops the HTTP
/// machinery, and the server then ends the connection as it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Cut {
    /// With a TCP reset.
    #[error("the connection is to be reset")]
    Reset,
    /// In good order, but early.
    #[error("the connection is to be closed")]
    Close,
}

impl From<Infallible> for Cut {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

/// A body that sends its part, lets it reach the wire, and then cuts the connection.
#[derive(Debug)]
pub(crate) struct BrokenOff {
    part: Option<Bytes>,
    has_paused: bool,
}

impl HttpBody for BrokenOff {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        if let Some(part) = self.part.take() {
            return Poll::Ready(Some(Ok(Frame::data(part))));
        }
        if self.has_paused {
            return Poll::Ready(Some(Err(Cut::Close)));
        }
        // hyper flushes what it has only when the body has nothing more to give for now.
        self.has_paused = true;
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

/// The page's error shape.
pub(crate) fn envelope(status: impl Serialize, message: &str) -> Bytes {
    #[derive(Serialize)]
    struct Envelope<'a, S> {
        status: S,
        message: &'a str,
    }
    let envelope = serde_json::to_vec(&Envelope { status, message });
    envelope.expect("a number or a text and a text are JSON").into()
}

/// The page's success.
pub(crate) fn success() -> Response<Body> {
    let body = br#"{"status":200,"message":"success","data":[]}"#;
    with_json(StatusCode::OK, Bytes::from_static(body))
}

/// A refusal for breaking `rule`; the page's bare `fail` unless `detailed`, and HTTP 200 unless
/// `http_errors`.
pub(crate) fn refusal(rule: Rule, detailed: bool, http_errors: bool) -> Response<Body> {
    let message = if detailed { rule.message() } else { "fail".to_owned() };
    let http_status = status_of(rule);
    let is_too_large = rule == Rule::TooLarge;
    let status = if http_errors || is_too_large { http_status } else { StatusCode::OK };
    let has_own_status = is_too_large || rule == Rule::CustomerNotFound;
    let body_status = if has_own_status { http_status } else { StatusCode::BAD_REQUEST };
    with_json(status, envelope(body_status.as_u16(), &message))
}

fn status_of(rule: Rule) -> StatusCode {
    match rule {
        Rule::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Rule::ContentType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        Rule::Token | Rule::Checksum => StatusCode::UNAUTHORIZED,
        Rule::UnknownParameter | Rule::RepeatedParameter | Rule::Value(_) => {
            StatusCode::BAD_REQUEST
        }
        Rule::CustomerNotFound => StatusCode::NOT_FOUND,
        Rule::EmailTaken => StatusCode::CONFLICT,
    }
}

/// A refusal that repeats `values` to the caller.
pub(crate) fn echo<'a>(values: impl Iterator<Item = &'a str>) -> Response<Body> {
    let values: Vec<_> = values.collect();
    let message = format!("invalid details: {}", values.join(", "));
    with_json(StatusCode::OK, envelope(400, &message))
}

/// A success of which only the first bytes arrive.
pub(crate) fn truncated() -> Response<Body> {
    let part = Some(Bytes::from_static(br#"{"status":200,"mess"#));
    let mut response = Response::new(Either::Right(BrokenOff { part, has_paused: false }));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from_static("44"));
    response
}

/// A scripted answer.
pub(crate) fn canned(answer: &Canned) -> Response<Body> {
    let mut response = Response::new(Either::Left(Full::new(answer.body.clone())));
    *response.status_mut() = answer.status;
    response.headers_mut().extend(answer.headers.iter().cloned());
    response
}

/// Any JSON, for the control API.
pub(crate) fn json(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(body) => with_json(status, body.into()),
        Err(error) => self::error(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

/// A control API error that says what is wrong.
pub(crate) fn error(status: StatusCode, message: &str) -> Response<Body> {
    with_json(status, json!({ "error": message }).to_string().into())
}

fn with_json(status: StatusCode, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Either::Left(Full::new(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_http_200_unless_told_otherwise() {
        let status = |rule, http_errors| refusal(rule, false, http_errors).status().as_u16();
        assert_eq!(status(Rule::Token, false), 200);
        assert_eq!(status(Rule::Token, true), 401);
        assert_eq!(status(Rule::EmailTaken, true), 409);
        assert_eq!(status(Rule::UnknownParameter, true), 400);
        assert_eq!(status(Rule::TooLarge, false), 413);
    }

    #[test]
    fn an_envelope_has_the_pages_shape() {
        assert_eq!(envelope(400, "fail"), r#"{"status":400,"message":"fail"}"#);
    }
}
