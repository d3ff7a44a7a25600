//! A bounded log of the calls that ended, kept for tests to look into. It holds customers' data and
//! whether the credentials were right, never a credential.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use hyper::header::HeaderName;
use serde::{Serialize, Serializer};

use crate::endpoint::Verified;
use crate::fields::Form;
use crate::state::lock;

/// One call to the update-customer endpoint.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Entry {
    /// The call's number by arrival, from 1.
    pub(crate) seq: u64,
    /// When it arrived.
    pub(crate) unix_ms: i64,
    #[serde(flatten)]
    pub(crate) parameters: Parameters,
    #[serde(serialize_with = "names")]
    pub(crate) headers: Vec<HeaderName>,
    pub(crate) traceparent: Option<String>,
    #[serde(flatten)]
    pub(crate) verified: Verified,
    /// `applied`, `refused:RULE`, `fault:KIND`, or `abandoned` when the client did not wait.
    pub(crate) outcome: String,
    /// Whether the update had been applied when the call ended.
    pub(crate) applied: bool,
    /// The HTTP status answered; none when nothing was.
    pub(crate) status: Option<u16>,
    pub(crate) duration_us: u64,
}

/// The parameters of a call, shared with the customer's history.
#[derive(Clone, Debug)]
pub(crate) struct Parameters(pub(crate) Arc<Form>);

impl Serialize for Parameters {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct View<'a> {
            entity_id: &'a str,
            parameters: Vec<&'a str>,
            values: &'a Form,
        }
        let form = self.0.as_ref();
        let parameters = form.names().collect();
        View { entity_id: form.entity_id(), parameters, values: form }.serialize(serializer)
    }
}

fn names<S: Serializer>(headers: &[HeaderName], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(headers.iter().map(HeaderName::as_str))
}

/// The newest entries, up to a capacity.
#[derive(Debug)]
pub(crate) struct RequestLog {
    capacity: usize,
    entries: Mutex<VecDeque<Entry>>,
}

impl RequestLog {
    /// A log of at most `capacity` entries; none at 0.
    pub(crate) fn new(capacity: usize) -> Self {
        Self { capacity, entries: Mutex::default() }
    }

    /// Is anything kept at all?
    pub(crate) fn is_on(&self) -> bool {
        self.capacity > 0
    }

    /// Adds `entry` and drops the oldest when the log is full.
    pub(crate) fn push(&self, entry: Entry) {
        let mut entries = lock(&self.entries);
        if entries.len() >= self.capacity {
            entries.pop_front();
        }
        entries.push_back(entry);
    }

    /// The newest `limit` entries in order of arrival, of one customer when `entity_id` is given.
    pub(crate) fn newest(&self, limit: usize, entity_id: Option<&str>) -> Vec<Entry> {
        let entries = lock(&self.entries);
        let wanted =
            |entry: &&Entry| entity_id.is_none_or(|id| entry.parameters.0.entity_id() == id);
        let mut newest: Vec<_> = entries.iter().rev().filter(wanted).take(limit).cloned().collect();
        newest.sort_by_key(|entry| entry.seq);
        newest
    }

    /// Forgets everything.
    pub(crate) fn clear(&self) {
        lock(&self.entries).clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(seq: u64, entity_id: &str) -> Entry {
        let form = Form::parse(format!("city=Kochi&entity_id={entity_id}").as_bytes());
        Entry {
            seq,
            unix_ms: 0,
            parameters: Parameters(Arc::new(form)),
            headers: Vec::new(),
            traceparent: Some("00-1".to_owned()),
            verified: Verified::default(),
            outcome: "applied".to_owned(),
            applied: true,
            status: Some(200),
            duration_us: 1,
        }
    }

    #[test]
    fn the_oldest_entry_goes_when_the_log_is_full() {
        let log = RequestLog::new(2);
        for (seq, entity_id) in [(2, "C2"), (1, "C1"), (3, "C1")] {
            log.push(entry(seq, entity_id));
        }
        let seqs = |entity_id| -> Vec<_> {
            log.newest(9, entity_id).into_iter().map(|entry| entry.seq).collect()
        };
        assert_eq!(seqs(None), [1, 3]);
        assert_eq!(seqs(Some("C2")), [0_u64; 0]);
        assert_eq!(log.newest(1, Some("C1")).first().map(|entry| entry.seq), Some(3));
    }

    #[test]
    fn an_entry_shows_the_order_of_the_parameters() {
        let json = serde_json::to_value(entry(1, "C1")).expect("plain data");
        assert_eq!(json["parameters"], serde_json::json!(["city", "entity_id"]));
        assert_eq!(json["values"]["city"], "Kochi");
        assert_eq!(json["traceparent"], "00-1");
        assert_eq!(json["checksum_ok"], false);
    }
}
