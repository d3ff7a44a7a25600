//! The events of the tour: kinds of them, how many, and what must become of each kind.

use serde_json::{Value, json};

use super::fault;

/// What must become of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Applied at the first call.
    Applied,
    /// Applied in the end, after retries.
    AppliedLater,
    /// Not sent: its customer's newer values stand.
    Superseded,
    /// A dead letter for this reason.
    Dead(&'static str),
}

/// One event: its bytes, its customer and its end.
pub(crate) struct Planned {
    pub(crate) line: Vec<u8>,
    pub(crate) customer: Option<String>,
    pub(crate) data: Value,
    pub(crate) end: End,
}

/// A kind of events: their customers' id prefix, how many, what the portal does, the end.
struct Kind {
    prefix: &'static str,
    count: u32,
    story: &'static str,
    end: End,
}

const KINDS: [Kind; 14] = [
    Kind { prefix: "OK-", count: 1000, story: "plain updates", end: End::Applied },
    Kind {
        prefix: "F503-",
        count: 60,
        story: "the portal answers 503 four times",
        end: End::AppliedLater,
    },
    Kind { prefix: "GW-", count: 37, story: "a gateway answers 502 once", end: End::AppliedLater },
    Kind { prefix: "SLOW-", count: 3, story: "429, Retry-After 2 s, once", end: End::AppliedLater },
    Kind {
        prefix: "RST-",
        count: 20,
        story: "the connection is reset once",
        end: End::AppliedLater,
    },
    Kind { prefix: "HANG-", count: 5, story: "the portal hangs once", end: End::AppliedLater },
    Kind {
        prefix: "LATE-",
        count: 30,
        story: "older than what its customer has",
        end: End::Superseded,
    },
    Kind {
        prefix: "REJ-",
        count: 20,
        story: "the portal says status 400, fail",
        end: End::Dead("rejected"),
    },
    Kind {
        prefix: "DUP-",
        count: 3,
        story: "the e-mail belongs to another",
        end: End::Dead("duplicate-email"),
    },
    Kind {
        prefix: "500-",
        count: 5,
        story: "the portal answers 500 for ever",
        end: End::Dead("retries-exhausted"),
    },
    Kind {
        prefix: "STATE-",
        count: 15,
        story: "state \"Tamil Nadu\"",
        end: End::Dead("invalid-event"),
    },
    Kind {
        prefix: "TYPE-",
        count: 5,
        story: "events of another type",
        end: End::Dead("unsupported-type"),
    },
    Kind { prefix: "TEXT-", count: 10, story: "not JSON", end: End::Dead("undecodable") },
    Kind { prefix: "BIG-", count: 2, story: "300 KiB", end: End::Dead("too-large") },
];

/// All events of the tour.
pub(crate) struct Plan(Vec<Planned>);

impl Plan {
    /// Kinds mixed evenly, so that poison and faults fall among healthy events.
    pub(crate) fn new() -> Plan {
        let mut events: Vec<(f64, Planned)> = Vec::new();
        for kind in &KINDS {
            for number in 0..kind.count {
                let place = (f64::from(number) + 0.5) / f64::from(kind.count);
                events.push((place, planned(kind, number)));
            }
        }
        events.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        Plan(events.into_iter().map(|(_, event)| event).collect())
    }

    /// How many.
    pub(crate) fn len(&self) -> u64 {
        self.0.len() as u64
    }

    /// How many end at the portal or as dead letters.
    pub(crate) fn ends(&self) -> u64 {
        self.iter().filter(|event| event.end != End::Superseded).count() as u64
    }

    /// Each of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Planned> {
        self.0.iter()
    }

    /// Their bodies.
    pub(crate) fn lines(&self) -> Vec<Vec<u8>> {
        self.iter().map(|event| event.line.clone()).collect()
    }

    /// What there is, for a person.
    pub(crate) fn describe(&self) -> String {
        let lines = KINDS.iter().map(|Kind { count, story, end, .. }| {
            let end = match end {
                End::Applied => "applied".to_owned(),
                End::AppliedLater => "applied after retries".to_owned(),
                End::Superseded => "superseded: not sent".to_owned(),
                End::Dead(reason) => format!("dead letter: {reason}"),
            };
            format!("  {count:>5}  {story:<36} -> {end}\n")
        });
        format!("{} events, mixed:\n{}", self.len(), lines.collect::<String>())
    }

    /// What the simulator is told to do.
    pub(crate) fn faults(&self) -> Vec<Value> {
        let status = |code: u16| json!({"kind": "status", "code": code});
        vec![
            fault("F503-", Some(4), &status(503)),
            fault("GW-", Some(1), &json!({"kind": "status", "code": 502, "envelope": false})),
            fault("SLOW-", Some(1), &json!({"kind": "status", "code": 429, "retry_after": 2})),
            fault("RST-", Some(1), &json!({"kind": "reset"})),
            fault("HANG-", Some(1), &json!({"kind": "hang"})),
            fault("REJ-", None, &json!({"kind": "body_status", "status": 400, "message": "fail"})),
            fault("500-", None, &status(500)),
        ]
    }
}

fn planned(kind: &Kind, number: u32) -> Planned {
    let id = format!("{}{number}", kind.prefix);
    let mut data = json!({
        "entity_id": id,
        "email": format!("{}@example.com", id.to_lowercase()),
        "mobile_no": format!("9{:09}", number),
        "address": format!("{number} MG Road"),
        "country": "India", "city": "Kochi", "state": "Kerala", "pincode": "682308",
    });
    let mut event = json!({
        "specversion": "1.0", "id": format!("evt-{id}"), "source": "crm",
        "type": "customer.updated", "time": "2026-11-22T09:30:00Z",
    });
    let mut customer = id.clone();
    match kind.prefix {
        // That customer's newer event is published long before it.
        "LATE-" => {
            customer = format!("OK-{number}");
            data["entity_id"] = json!(customer);
            data["city"] = json!("Pune");
            event["time"] = json!("2026-11-21T09:30:00Z");
        }
        // OK-0 has that address before: it is the first event of all.
        "DUP-" => data["email"] = json!("ok-0@example.com"),
        "STATE-" => data["state"] = json!("Tamil Nadu"),
        "TYPE-" => event["type"] = json!("customer.deleted"),
        "BIG-" => data["notes"] = json!("x".repeat(300 * 1024)),
        _ => {}
    }
    event["data"] = data.clone();
    let line = match kind.prefix {
        "TEXT-" => format!("customer {id} has moved"),
        _ => event.to_string(),
    };
    Planned { line: line.into_bytes(), customer: Some(customer), data, end: kind.end }
}
