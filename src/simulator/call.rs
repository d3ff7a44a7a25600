//! One call from its arrival to its end. However it ends, with an answer, a cut connection or a
//! client that went away, it is counted and logged once.

use std::sync::Arc;

use hyper::Response;
use hyper::header::{HeaderMap, HeaderName};
use tokio::time::Instant;

use crate::answer::Body;
use crate::clock;
use crate::endpoint::Verified;
use crate::fault::{Action, Fault};
use crate::fields::Form;
use crate::page::Rule;
use crate::portal::Ticket;
use crate::request_log::{Entry, Parameters};
use crate::state::Simulator;

/// A call in flight; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Call {
    simulator: Arc<Simulator>,
    ticket: Ticket,
    form: Arc<Form>,
    verified: Verified,
    arrived: Instant,
    seq: u64,
    /// Present when the request log is on.
    noted: Option<Noted>,
    end: End,
    is_applied: bool,
    status: Option<u16>,
}

/// What is copied from the request for the log alone.
#[derive(Debug)]
struct Noted {
    unix_ms: i64,
    headers: Vec<HeaderName>,
    traceparent: Option<String>,
}

/// How the call ends, as far as is known.
#[derive(Debug)]
enum End {
    Open,
    Applied,
    Refused(Rule),
    Fault(Arc<Fault>),
}

impl Call {
    /// Counts the arrival of a call.
    pub(crate) fn begin(
        simulator: &Arc<Simulator>,
        form: Arc<Form>,
        headers: &HeaderMap,
        verified: Verified,
    ) -> Self {
        let noted = || Noted {
            unix_ms: clock::unix_ms(),
            headers: headers.keys().cloned().collect(),
            traceparent: traceparent(headers),
        };
        Self {
            seq: simulator.stats.begin(),
            ticket: simulator.portal.enter(&form),
            simulator: Arc::clone(simulator),
            form,
            verified,
            arrived: clock::now(),
            noted: simulator.log.is_on().then(noted),
            end: End::Open,
            is_applied: false,
            status: None,
        }
    }

    /// The parameters that were sent.
    pub(crate) fn form(&self) -> &Arc<Form> {
        &self.form
    }

    /// Which formal requirements the call met when it arrived.
    pub(crate) fn verified(&self) -> Verified {
        self.verified
    }

    /// Notes that a fault struck, which then is the call's outcome.
    pub(crate) fn struck(&mut self, fault: Arc<Fault>) {
        self.end = End::Fault(fault);
    }

    /// Notes that the update was applied.
    pub(crate) fn applied(&mut self) {
        self.is_applied = true;
        if matches!(self.end, End::Open) {
            self.end = End::Applied;
        }
    }

    /// Notes that the portal refused the update.
    pub(crate) fn refused(&mut self, rule: Rule) {
        self.end = End::Refused(rule);
    }

    /// Ends the call with `response`.
    pub(crate) fn answered(mut self, response: Response<Body>) -> Response<Body> {
        self.status = Some(response.status().as_u16());
        response
    }

    fn outcome(&self) -> String {
        match &self.end {
            End::Open => "abandoned".to_owned(),
            End::Applied => "applied".to_owned(),
            End::Refused(rule) => format!("refused:{}", rule.name()),
            End::Fault(fault) => format!("fault:{}", fault.kind),
        }
    }

    /// Did the client go away before the portal was done with the call?
    fn is_abandoned(&self) -> bool {
        let is_cut =
            matches!(&self.end, End::Fault(fault) if matches!(fault.action, Action::Instead(_)));
        self.status.is_none() && !is_cut
    }

    fn entry(&self, noted: Noted) -> Entry {
        Entry {
            seq: self.seq,
            unix_ms: noted.unix_ms,
            parameters: Parameters(Arc::clone(&self.form)),
            headers: noted.headers,
            traceparent: noted.traceparent,
            verified: self.verified,
            outcome: self.outcome(),
            applied: self.is_applied,
            status: self.status,
            duration_us: u64::try_from(self.arrived.elapsed().as_micros()).unwrap_or(u64::MAX),
        }
    }
}

/// A copy, because a header's value would keep the connection's whole buffer.
fn traceparent(headers: &HeaderMap) -> Option<String> {
    headers.get("traceparent")?.to_str().ok().map(str::to_owned)
}

impl Drop for Call {
    fn drop(&mut self) {
        let refused = match self.end {
            End::Refused(rule) => Some(rule),
            End::Open | End::Applied | End::Fault(_) => None,
        };
        self.simulator.portal.leave(&self.ticket);
        self.simulator.stats.end(refused, self.is_abandoned());
        tracing::debug!(
            seq = self.seq,
            outcome = self.outcome(),
            status = self.status,
            "call ended"
        );
        if let Some(noted) = self.noted.take() {
            self.simulator.log.push(self.entry(noted));
        }
    }
}
