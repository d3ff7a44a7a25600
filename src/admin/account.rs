//! What the ledger knows of a customer, as JSON: the same at the port and on the command line.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::domain::field::Field;
use crate::domain::letter::Letter;
use crate::domain::row::Row;
use crate::domain::version::Version;
use crate::ledger::{Account, PendingNote};

/// All of it; `None` if nothing is known.
pub fn describe(entity_id: &str, account: &Account, now: Timestamp) -> Option<Value> {
    if account.is_empty() {
        return None;
    }
    let empty = Row::default();
    let (row, unreadable) = match &account.row {
        None => (&empty, None),
        Some((Ok(row), _)) => (row, None),
        Some((Err(error), _)) => (&empty, Some(error.to_string())),
    };
    let written = account.row.as_ref().map(|(_, seen)| *seen);
    // A row that only holds a lease was never written.
    let written = written.filter(|seen| *seen > Timestamp::UNIX_EPOCH);
    let under_way = row.under_way(now);
    let under_way = under_way.map(
        |(until, event)| json!({"until": until.to_string(), "event": event.map(|event| &event.id)}),
    );
    let pending = account.pending.iter().map(|note| pending(note, now));
    Some(json!({
        "entity_id": entity_id,
        "last_written": written.map(|seen| seen.to_string()),
        "unreadable": unreadable,
        "fields": fields(row),
        "superseded": row.superseded(),
        "call_under_way": under_way,
        "pending": pending.collect::<Vec<_>>(),
        "pending_in_all": account.pending_in_all,
        "dead_letters_in_all": account.dead_in_all,
        "dead_letters": account.dead.iter().map(describe_letter).collect::<Vec<_>>(),
    }))
}

fn fields(row: &Row) -> Map<String, Value> {
    let known = Field::ALL.into_iter().filter_map(|field| Some((field, row.newest(field)?)));
    known.map(|(field, newest)| (field.name().to_owned(), version(newest))).collect()
}

fn version(version: &Version) -> Value {
    let place = &version.place;
    json!({
        "event": place.event.id,
        "time": place.time.map(|time| time.to_string()),
        "sequence": place.sequence.as_ref().map(ToString::to_string),
        "received": version.receipt.to_string(),
        "revision": place.event.revision,
    })
}

fn pending(note: &PendingNote, now: Timestamp) -> Value {
    let PendingNote { event, attempts, since, due, reason, tier_ms } = note;
    json!({"event": event.id, "tier_ms": tier_ms, "attempts": attempts, "since": since.to_string(),
           "due": due.to_string(), "due_in_s": due.duration_since(now).as_secs(),
           "reason": reason})
}

/// A dead letter, as the index knows it.
pub fn describe_letter(letter: &Letter) -> Value {
    let Letter { id, event, reason, detail, field, rule, http_status, portal_status, .. } = letter;
    json!({"dead_id": id.to_string(), "event": event, "reason": reason.name(), "detail": detail,
           "field": field, "rule": rule, "http_status": http_status, "portal_status": portal_status,
           "attempts": letter.attempts, "died": letter.died.map(|died| died.to_string()),
           "flags": letter.flags, "replays": letter.replays, "revision": letter.revision,
           "group": letter.fingerprint()})
}
