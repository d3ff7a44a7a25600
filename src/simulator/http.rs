//! Routes a request to the page's endpoint, the read-back or the control API.

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{ALLOW, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::json;

use crate::answer::{self, Body, Cut};
use crate::control;
use crate::endpoint;
use crate::page;
use crate::state::Simulator;

/// Answers one request; an `Err` ends the connection without an answer.
pub(crate) async fn route(
    simulator: Arc<Simulator>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Cut> {
    let path = request.uri().path();
    if path == page::PATH {
        return match *request.method() {
            Method::POST => endpoint::update_customer(simulator, request).await,
            _ => Ok(only_post()),
        };
    }
    if path == "/healthz" {
        return Ok(answer::json(StatusCode::OK, &json!({ "status": "ok" })));
    }
    control::route(&simulator, request).await
}

fn only_post() -> Response<Body> {
    let mut response = answer::error(StatusCode::METHOD_NOT_ALLOWED, "the call is a POST");
    response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
    response
}
