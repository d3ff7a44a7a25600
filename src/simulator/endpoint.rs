//! The update-customer call: read, verify, meet a fault if one is scripted, update, answer.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderMap};
use hyper::{Request, Response};
use serde::Serialize;

use crate::answer::{self, Body, Cut};
use crate::call::Call;
use crate::fault::{Action, Fault, Instead};
use crate::fields::Form;
use crate::page::{self, Rule};
use crate::state::{Simulator, lock};

/// The most bytes that a request's body may have.
const LONGEST_BODY: usize = 1024 * 1024;

/// Which of the call's formal requirements are met.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Verified {
    content_type_ok: bool,
    token_ok: bool,
    checksum_ok: bool,
}

/// Handles one call; an `Err` ends the connection without an answer.
pub(crate) async fn update_customer(
    simulator: Arc<Simulator>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Cut> {
    let (head, body) = request.into_parts();
    let Some(body) = read(body).await? else {
        let (form, verified) = (Arc::default(), Verified::default());
        let mut call = Call::begin(&simulator, form, &head.headers, verified);
        let response = refuse(&simulator, &mut call, Rule::TooLarge);
        return Ok(call.answered(response));
    };
    let is_form = has_form(&head.headers);
    let form = Arc::new(if is_form { Form::parse(&body) } else { Form::default() });
    let verified = verify(&simulator, &head.headers, &form);
    let mut call = Call::begin(&simulator, form, &head.headers, verified);
    pause(simulator.manners.latency).await;
    let response = match simulator.faults.strike(call.form().entity_id()) {
        Some(fault) => play(&simulator, &mut call, &fault).await?,
        None => update(&simulator, &mut call),
    };
    Ok(call.answered(response))
}

/// The whole body, or nothing when it is longer than the portal accepts.
pub(crate) async fn read(body: Incoming) -> Result<Option<Bytes>, Cut> {
    match Limited::new(body, LONGEST_BODY).collect().await {
        Ok(collected) => Ok(Some(collected.to_bytes())),
        Err(error) if error.is::<LengthLimitError>() => Ok(None),
        Err(_) => Err(Cut::Close),
    }
}

fn has_form(headers: &HeaderMap) -> bool {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = value.split(';').next().unwrap_or_default();
    media_type.trim().eq_ignore_ascii_case(page::FORM)
}

fn verify(simulator: &Simulator, headers: &HeaderMap, form: &Form) -> Verified {
    let credentials = lock(&simulator.credentials);
    let is = |name, wanted: &str| headers.get(name).is_some_and(|value| value == wanted);
    let checksum = page::checksum(form, simulator.manners.order, &credentials.secret_key);
    Verified {
        content_type_ok: has_form(headers),
        token_ok: is("token", &credentials.token),
        checksum_ok: is("checksum", &checksum),
    }
}

impl Verified {
    fn check(self) -> Result<(), Rule> {
        let requirements = [
            (self.content_type_ok, Rule::ContentType),
            (self.token_ok, Rule::Token),
            (self.checksum_ok, Rule::Checksum),
        ];
        let broken = requirements.into_iter().find(|(is_met, _)| !is_met);
        broken.map_or(Ok(()), |(_, rule)| Err(rule))
    }
}

/// Checks the call and applies it; the whole of the portal's ordinary work.
fn apply(simulator: &Simulator, form: &Arc<Form>, verified: Verified) -> Result<(), Rule> {
    verified.check()?;
    simulator.portal.update(form)
}

fn update(simulator: &Simulator, call: &mut Call) -> Response<Body> {
    match apply(simulator, call.form(), call.verified()) {
        Ok(()) => succeed(call),
        Err(rule) => refuse(simulator, call, rule),
    }
}

fn succeed(call: &mut Call) -> Response<Body> {
    call.applied();
    answer::success()
}

fn refuse(simulator: &Simulator, call: &mut Call, rule: Rule) -> Response<Body> {
    call.refused(rule);
    answer::refusal(rule, simulator.manners.detailed, simulator.manners.http_errors)
}

async fn play(
    simulator: &Arc<Simulator>,
    call: &mut Call,
    fault: &Arc<Fault>,
) -> Result<Response<Body>, Cut> {
    simulator.stats.fault(&fault.kind);
    match &fault.action {
        Action::Latency(time) => {
            pause(*time).await;
            Ok(update(simulator, call))
        }
        Action::Late(time) => {
            call.struck(Arc::clone(fault));
            update_late(simulator, call, *time).await
        }
        Action::Instead(instead) => {
            call.struck(Arc::clone(fault));
            if fault.applies && apply(simulator, call.form(), call.verified()).is_ok() {
                call.applied();
            }
            end(call, instead).await
        }
    }
}

async fn end(call: &Call, instead: &Instead) -> Result<Response<Body>, Cut> {
    match instead {
        Instead::Reset => Err(Cut::Reset),
        Instead::Hang(time) => hang(*time).await,
        Instead::Truncated => Ok(answer::truncated()),
        Instead::Echo => Ok(answer::echo(call.form().values())),
        Instead::Answer(canned) => Ok(answer::canned(canned)),
    }
}

/// Updates after `time` in a task of its own, which outlives a client that goes away.
async fn update_late(
    simulator: &Arc<Simulator>,
    call: &mut Call,
    time: Duration,
) -> Result<Response<Body>, Cut> {
    let (work, form, verified) = (Arc::clone(simulator), Arc::clone(call.form()), call.verified());
    let task = tokio::spawn(async move {
        pause(time).await;
        apply(&work, &form, verified)
    });
    match task.await.map_err(|_| Cut::Close)? {
        Ok(()) => Ok(succeed(call)),
        Err(rule) => Ok(refuse(simulator, call, rule)),
    }
}

async fn hang(time: Option<Duration>) -> Result<Response<Body>, Cut> {
    match time {
        Some(time) => pause(time).await,
        None => std::future::pending().await,
    }
    Err(Cut::Close)
}

async fn pause(time: Duration) {
    if !time.is_zero() {
        tokio::time::sleep(time).await;
    }
}
