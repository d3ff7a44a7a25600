//! The control API for tests and demos: fault scripts, the request log, totals, credentials, and
//! the read-back of customers. No part of the portal's page.

use std::borrow::Cow;
use std::str::FromStr;

use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::answer::{self, Body, Cut};
use crate::book::Customer;
use crate::endpoint;
use crate::portal::Totals as PortalTotals;
use crate::state::{Simulator, lock};
use crate::stats::Totals;

/// An answer, or what is wrong with the request.
type Answer = Result<Response<Body>, String>;

/// Answers every path but the page's own.
pub(crate) async fn route(
    simulator: &Simulator,
    request: Request<Incoming>,
) -> Result<Response<Body>, Cut> {
    let (head, body) = request.into_parts();
    let body = endpoint::read(body).await?.unwrap_or_default();
    let segments: Vec<_> = head.uri.path().split('/').skip(1).collect();
    let query = Query(head.uri.query().unwrap_or_default());
    let answer = match (&head.method, segments.as_slice()) {
        (&Method::GET, ["customers"]) => customers(simulator, query),
        (&Method::GET, ["customers", id]) => Ok(customer(simulator, &percent_decoded(id))),
        (&Method::GET, ["control", "requests"]) => requests(simulator, query),
        (&Method::GET, ["control", "stats"]) => Ok(stats(simulator)),
        (&Method::GET, ["control", "faults"]) => Ok(faults(simulator)),
        (&Method::POST, ["control", "faults"]) => add_fault(simulator, &body),
        (&Method::DELETE, ["control", "faults"]) => Ok(clear_faults(simulator)),
        (&Method::DELETE, ["control", "faults", id]) => Ok(remove_fault(simulator, id)),
        (&Method::DELETE, ["control", "state"]) => Ok(reset(simulator)),
        (&Method::PUT, ["control", "credentials"]) => change_credentials(simulator, &body),
        _ => Ok(answer::error(StatusCode::NOT_FOUND, "no such path or method")),
    };
    Ok(answer.unwrap_or_else(|message| answer::error(StatusCode::BAD_REQUEST, &message)))
}

fn customers(simulator: &Simulator, query: Query) -> Answer {
    let after = query.get("after");
    let limit = query.number("limit")?.unwrap_or(100).clamp(1, 10_000);
    Ok(answer::json(StatusCode::OK, &simulator.portal.page(after.as_deref(), limit)))
}

fn customer(simulator: &Simulator, entity_id: &str) -> Response<Body> {
    #[derive(Serialize)]
    struct NotFound {
        error: &'static str,
        /// Calls in vain are counted too.
        #[serde(flatten)]
        called: Option<Customer>,
    }
    match simulator.portal.customer(entity_id) {
        Some(customer) if customer.is_known() => answer::json(StatusCode::OK, &customer),
        called => {
            let body = NotFound { error: "customer not found", called };
            answer::json(StatusCode::NOT_FOUND, &body)
        }
    }
}

fn requests(simulator: &Simulator, query: Query) -> Answer {
    let limit = query.number("limit")?.unwrap_or(100);
    let entity_id = query.get("entity_id");
    let entries = simulator.log.newest(limit, entity_id.as_deref());
    Ok(answer::json(StatusCode::OK, &json!({ "requests": entries })))
}

fn stats(simulator: &Simulator) -> Response<Body> {
    #[derive(Serialize)]
    struct All {
        #[serde(flatten)]
        portal: PortalTotals,
        #[serde(flatten)]
        calls: Totals,
    }
    let all = All { portal: simulator.portal.totals(), calls: simulator.stats.totals() };
    answer::json(StatusCode::OK, &all)
}

fn faults(simulator: &Simulator) -> Response<Body> {
    answer::json(StatusCode::OK, &json!({ "faults": simulator.faults.list() }))
}

fn add_fault(simulator: &Simulator, body: &Bytes) -> Answer {
    let id = simulator.faults.add(parsed(body)?)?;
    Ok(answer::json(StatusCode::CREATED, &json!({ "id": id })))
}

fn clear_faults(simulator: &Simulator) -> Response<Body> {
    simulator.faults.clear();
    done()
}

fn remove_fault(simulator: &Simulator, id: &str) -> Response<Body> {
    if id.parse().is_ok_and(|id| simulator.faults.remove(id)) {
        done()
    } else {
        answer::error(StatusCode::NOT_FOUND, "no fault rule has this id")
    }
}

fn reset(simulator: &Simulator) -> Response<Body> {
    simulator.reset();
    done()
}

fn change_credentials(simulator: &Simulator, body: &Bytes) -> Answer {
    lock(&simulator.credentials).change(parsed(body)?);
    Ok(done())
}

fn done() -> Response<Body> {
    answer::json(StatusCode::OK, &json!({ "status": "ok" }))
}

fn parsed<T: DeserializeOwned>(body: &Bytes) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| error.to_string())
}

/// A query string.
#[derive(Clone, Copy)]
struct Query<'a>(&'a str);

impl<'a> Query<'a> {
    fn get(self, name: &str) -> Option<Cow<'a, str>> {
        let mut pairs = form_urlencoded::parse(self.0.as_bytes());
        pairs.find_map(|(key, value)| (key == name).then_some(value))
    }

    fn number<T: FromStr>(self, name: &str) -> Result<Option<T>, String> {
        let number = self.get(name).map(|value| value.parse()).transpose();
        number.map_err(|_| format!("`{name}` is a whole number"))
    }
}

/// Decodes a path segment, in which unlike in a form a plus sign means itself.
fn percent_decoded(segment: &str) -> String {
    let form = segment.replace('+', "%2B").replace('&', "%26").replace('=', "%3D");
    form_urlencoded::parse(form.as_bytes()).map(|(name, _)| name.into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_segment_is_percent_decoded() {
        assert_eq!(percent_decoded("a%2Fb%20c+d&e=f"), "a/b c+d&e=f");
        assert_eq!(percent_decoded("%E0%A4%AE"), "म");
    }

    #[test]
    fn a_query_gives_texts_and_numbers() {
        let query = Query("after=C%2B1&limit=5&bad=x");
        assert_eq!(query.get("after").as_deref(), Some("C+1"));
        assert!(matches!(query.number::<usize>("limit"), Ok(Some(5))));
        assert!(matches!(query.number::<usize>("none"), Ok(None)));
        assert!(query.number::<usize>("bad").is_err());
    }
}
