//! A message's headers must fit one frame, or the broker closes the connection. Our own texts are
//! cut first, then the largest foreign header is moved out, with a note of its name and size.

use std::cmp::Reverse;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};

use super::headers::{DETAIL, DROPPED_HEADERS, PREFIX, attribute_name};
use crate::domain::text::{cut, escape};

/// Frame header, class, weight, body size, property flags and end, generously.
const FRAME_OVERHEAD: usize = 64;
/// What the broker itself writes on a message that leaves a retry tier or passes the delivery limit:
/// `x-death` and its first and last forms, with names of up to 255 bytes each.
const BROKER_HEADERS: usize = 3 * 1024;
/// No header of ours is larger, name included.
const MAX_OURS: usize = 4096;
/// No attribute of an event that is needed is larger.
const MAX_ATTRIBUTE: usize = 2048;
/// What the event is told by.
const ATTRIBUTES: [&str; 7] =
    ["id", "source", "specversion", "type", "time", "sequence", "datacontenttype"];
/// For the note of what was moved out, its name included.
const NOTE_BYTES: usize = 400;
/// What remains of a text of ours that had to be cut.
const CUT_TEXT_BYTES: usize = 120;

/// The properties, made to fit a frame of `frame_max` bytes (0: no limit).
pub(super) fn fit(properties: BasicProperties, frame_max: u32) -> BasicProperties {
    if frame_max == 0 {
        return properties;
    }
    let limit = room(frame_max);
    let Some(table) = properties.headers().clone() else { return properties };
    let others = properties_len(&properties);
    if others + table_len(&table) <= limit {
        return properties;
    }
    let mut headers: Vec<(ShortString, AMQPValue)> =
        table.into_iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    cut_our_texts(&mut headers);
    let size = others + headers.iter().map(entry_len).sum::<usize>();
    if size > limit {
        headers.sort_by_key(|entry| {
            let bytes = entry_len(entry);
            (is_needed(entry.0.as_str(), bytes), Reverse(bytes))
        });
        let (count, _) = enough(headers.iter().map(entry_len), size + NOTE_BYTES - limit);
        let note = note(headers.drain(..count));
        headers.push((DROPPED_HEADERS.into(), AMQPValue::LongString(note.into())));
    }
    let mut table = FieldTable::default();
    for (name, value) in headers {
        table.insert(name, value);
    }
    properties.with_headers(table)
}

/// Names and sizes of the first ones.
fn note(moved_out: impl ExactSizeIterator<Item = (ShortString, AMQPValue)>) -> String {
    const MAX_LIST_BYTES: usize = 300;
    let mut list = String::new();
    let mut left = moved_out.len();
    for entry in moved_out {
        let name = escape(entry.0.as_str(), MAX_LIST_BYTES / 2);
        let next = format!("{name} ({} bytes)", entry_len(&entry));
        if list.len() + next.len() > MAX_LIST_BYTES {
            break;
        }
        list = if list.is_empty() { next } else { format!("{list}, {next}") };
        left -= 1;
    }
    if left > 0 { format!("{list} and {left} more") } else { list }
}

/// Bytes for properties and headers in a frame, the broker's own additions left room for.
fn room(frame_max: u32) -> usize {
    let frame_max = frame_max as usize;
    frame_max.saturating_sub(FRAME_OVERHEAD + BROKER_HEADERS.min(frame_max / 4))
}

/// How many of these are so many bytes together, or more, from the first one on; and how many they are.
pub(super) fn enough(lengths: impl Iterator<Item = usize>, excess: usize) -> (usize, usize) {
    let mut taken = 0;
    let is_taken = |length: &usize| {
        let is_too_little = taken < excess;
        taken += if is_too_little { *length } else { 0 };
        is_too_little
    };
    (lengths.take_while(is_taken).count(), taken)
}

/// Whether without this header, of so many bytes, the event is another one, or its past is lost. Whoever
/// else writes a header of such a name, or one like it, may have made it too large to be sent.
pub(super) fn is_needed(name: &str, bytes: usize) -> bool {
    let most = if name.starts_with(PREFIX) { MAX_OURS } else { MAX_ATTRIBUTE };
    bytes <= most
        && (name.starts_with(PREFIX)
            || name == "traceparent"
            || attribute_name(name).is_some_and(|name| ATTRIBUTES.contains(&name)))
}

fn cut_our_texts(headers: &mut [(ShortString, AMQPValue)]) {
    for (name, value) in headers {
        if let (DETAIL, AMQPValue::LongString(text)) = (name.as_str(), &*value) {
            let text = text.to_string();
            *value = AMQPValue::LongString(cut(&text, CUT_TEXT_BYTES).into());
        }
    }
}

/// Bytes of the properties beside the headers: short strings of at most 256 bytes, few numbers.
fn properties_len(properties: &BasicProperties) -> usize {
    let texts = [
        properties.content_type(),
        properties.content_encoding(),
        properties.correlation_id(),
        properties.reply_to(),
        properties.expiration(),
        properties.message_id(),
        properties.kind(),
        properties.user_id(),
        properties.app_id(),
        properties.cluster_id(),
    ];
    texts.into_iter().flatten().map(|text| text.as_str().len() + 1).sum::<usize>() + 10
}

fn table_len(table: &FieldTable) -> usize {
    4 + table.into_iter().map(|(name, value)| name_len(name) + value_len(value)).sum::<usize>()
}

fn entry_len((name, value): &(ShortString, AMQPValue)) -> usize {
    name_len(name) + value_len(value)
}

fn name_len(name: &ShortString) -> usize {
    name.as_str().len() + 1
}

/// Bytes of a value on the wire, its type octet included.
fn value_len(value: &AMQPValue) -> usize {
    1 + match value {
        AMQPValue::Void => 0,
        AMQPValue::Boolean(_) | AMQPValue::ShortShortInt(_) | AMQPValue::ShortShortUInt(_) => 1,
        AMQPValue::ShortInt(_) | AMQPValue::ShortUInt(_) => 2,
        AMQPValue::LongInt(_) | AMQPValue::LongUInt(_) | AMQPValue::Float(_) => 4,
        AMQPValue::DecimalValue(_) => 5,
        AMQPValue::LongLongInt(_) | AMQPValue::Double(_) | AMQPValue::Timestamp(_) => 8,
        AMQPValue::ShortString(text) => 1 + text.as_str().len(),
        AMQPValue::LongString(text) => 4 + text.len(),
        AMQPValue::ByteArray(bytes) => 4 + bytes.len(),
        AMQPValue::FieldArray(items) => 4 + items.as_slice().iter().map(value_len).sum::<usize>(),
        AMQPValue::FieldTable(table) => table_len(table),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn properties(headers: &[(&str, usize)]) -> BasicProperties {
        let mut table = FieldTable::default();
        for (name, bytes) in headers {
            let text = AMQPValue::LongString("x".repeat(*bytes).into());
            table.insert((*name).into(), text);
        }
        BasicProperties::default().with_headers(table)
    }

    fn fitted(headers: &[(&str, usize)]) -> FieldTable {
        let properties = fit(properties(headers), 4096);
        let table = properties.headers().clone().expect("headers");
        assert!(table_len(&table) <= room(4096));
        table
    }

    #[test]
    fn what_fits_is_left_alone() {
        let table = fitted(&[("crm-shard", 100), (DETAIL, 1000)]);
        assert_eq!(table_len(&table), 4 + (10 + 105) + (15 + 1005));
    }

    #[test]
    fn our_texts_are_cut_before_a_foreign_header_is_moved_out() {
        let table = fitted(&[("crm-shard", 2000), (DETAIL, 1000)]);
        assert!(table.contains_key("crm-shard"));
        let table = fitted(&[("crm-shard", 2990), ("crm-small", 20), (DETAIL, 1000)]);
        assert!(!table.contains_key("crm-shard") && table.contains_key("crm-small"));
        let note = table.inner().get(DROPPED_HEADERS).and_then(|value| value.as_long_string());
        assert_eq!(note.expect("a note").to_string(), "crm-shard (3005 bytes)");
    }

    #[test]
    fn what_an_event_is_told_by_stays_whatever_is_moved_out() {
        let names: Vec<String> = (0..600).map(|n| format!("f{n:04}")).collect();
        let fillers = names.iter().map(|name| (name.as_str(), 1));
        let needed = [("ce-time", 20), ("cloudEvents:id", 300), ("traceparent", 55)];
        let headers: Vec<_> = fillers.chain(needed).collect();
        let table = fitted(&headers);
        assert!(needed.iter().all(|(name, _)| table.contains_key(name)));
        assert!(table.inner().len() > 150, "no more than has to go: {}", table.inner().len());
        let note = table.inner().get(DROPPED_HEADERS).and_then(|value| value.as_long_string());
        let note = note.expect("a note").to_string();
        assert!(note.len() < 330 && note.ends_with(" more"), "{note}");
        let forged: Vec<String> = (0..9).map(|n| format!("{PREFIX}forged-{n}")).collect();
        let headers: Vec<_> = forged.iter().map(|name| (name.as_str(), 900)).collect();
        assert!(fitted(&headers).inner().len() > 2, "even what looks like ours goes in the end");
    }
}
