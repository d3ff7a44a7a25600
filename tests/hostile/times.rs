//! Times and sequences: every spelling of one moment, and what is no moment at all.

use jiff::{SignedDuration, Timestamp};
use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use super::case::End;
use super::draft::{Draft, Form};
use super::texts;

/// A moment, spelled in one of the ways that RFC 3339 allows.
pub fn spelled(time: Timestamp, dice: &mut StdRng) -> String {
    let minutes = [0, 330, -570, 1439, -1439, 1, -1][dice.random_range(0..7)];
    let local = time + SignedDuration::from_mins(minutes);
    let seconds = local.strftime("%Y-%m-%dT%H:%M:%S").to_string();
    let nanoseconds = format!("{:09}", time.subsec_nanosecond());
    let fraction = match nanoseconds.trim_end_matches('0') {
        "" => String::new(),
        digits if dice.random_bool(0.5) => format!(".{digits}"),
        _ => format!(".{nanoseconds}"),
    };
    let sign = if minutes < 0 { '-' } else { '+' };
    let offset = match minutes.abs() {
        0 => ["Z", "z", "+00:00", "-00:00"][dice.random_range(0..4)].to_owned(),
        minutes => format!("{sign}{:02}:{:02}", minutes / 60, minutes % 60),
    };
    let between = ["T", "t", " "][dice.random_range(0..3)];
    format!("{}{fraction}{offset}", seconds.replacen('T', between, 1))
}

/// A time of the past, since the limit; or none, where a sequence or a timestamp stands in.
pub fn harmless(draft: &mut Draft, dice: &mut StdRng) {
    let now = Timestamp::now();
    let time = match dice.random_range(0..4) {
        0 => "2000-01-02T00:00:00.000000001Z".parse().unwrap_or(now),
        1 => now - SignedDuration::from_hours(dice.random_range(1..200_000)),
        2 => now + SignedDuration::from_mins(4),
        _ => {
            now - SignedDuration::new(
                dice.random_range(1..86_400),
                dice.random_range(0..999_999_999),
            )
        }
    };
    let seconds = u64::try_from(time.as_second()).unwrap_or_default();
    if draft.form == Form::Bare {
        return draft.edit(|properties| properties.with_timestamp(seconds));
    }
    match dice.random_range(0..4) {
        0 => {
            draft.owns_timestamp = true;
            draft.edit(|properties| properties.with_timestamp(seconds));
            draft.set("time", [json!(null), json!("")][dice.random_range(0..2)].clone());
        }
        1 => draft.set("time", one(&RARE, dice)),
        _ => draft.set("time", json!(spelled(time, dice))),
    }
}

/// A number of every kind, at most 64 bytes.
pub fn harmless_sequence(draft: &mut Draft, dice: &mut StdRng) {
    let texts = ["", "0", "000", "0042", "18446744073709551616"];
    let sequence = match dice.random_range(0..4) {
        0 => json!(texts[dice.random_range(0..texts.len())]),
        1 => json!("9".repeat(dice.random_range(1..=64))),
        2 if draft.form == Form::Structured => json!(u64::MAX),
        _ => json!(dice.random::<u32>().to_string()),
    };
    draft.set("sequence", sequence);
}

/// What few clocks show.
const RARE: [&str; 4] = [
    "2016-12-31T23:59:60Z",
    "2017-01-01T05:29:60.999+05:30",
    "2016-12-31T24:00:00Z",
    "2017-01-01T00:00:00.00000000000000001Z",
];

/// No number.
const TEXTS: [&str; 8] = ["-5", "+5", "1.5", "1e9", "0x10", "१२३", " 7", "evt-7"];

/// What was a date that was never set.
const UNSET: [&str; 12] = [
    "0001-01-01T00:00:00Z",
    "0001-01-01T00:00:00+14:00",
    "0000-01-01T00:00:00Z",
    "1500-06-15T12:00:00Z",
    "1677-09-21T00:12:43.145224191Z",
    "1677-09-21T00:12:43.145224193Z",
    "1900-01-01T00:00:00Z",
    "1969-12-31T23:59:59.999999999Z",
    "1970-01-01T00:00:00Z",
    "1970-01-01t00:00:00z",
    "1980-01-06T00:00:00Z",
    "1999-12-31T23:59:59Z",
];

/// Further ahead than anything waits.
const FAR: [&str; 5] = [
    "2262-04-11T23:47:16.854775807Z",
    "2262-04-11T23:47:16.854775808Z",
    "2300-01-01T00:00:00Z",
    "9999-12-30T21:59:59.999999999Z",
    "2038-01-19T03:14:08Z",
];

/// No time, or one that nothing here can be asked to read.
const NONE: [&str; 17] = [
    "yesterday",
    "2026-11-22",
    "2026-11-22T09:30:00",
    "2026-11-22T25:00:00Z",
    "2026-02-30T00:00:00Z",
    "2026-13-01T00:00:00Z",
    "22.11.2026 09:30",
    "1795339800",
    "10000-01-01T00:00:00Z",
    "9999-12-30T00:00:00-23:59",
    "9999-12-31T23:59:59-23:59",
    "2026-11-22T09:30:00+99:99",
    "Sun, 22 Nov 2026 09:30:00 GMT",
    "null",
    "2026-11-22T09:30:00Z\0",
    "２０２６-11-22T09:30:00Z",
    "-2026-11-22T09:30:00Z",
];

/// Spelled in ways that the contract leaves open.
const OPEN: [&str; 5] = [
    "2026-11-22T09:30:00.1234567891Z",
    "2026-11-22T09:30:00.00000000000000000000000000000001Z",
    "20261122T093000Z",
    "2026-11-22T09:30:00,5Z",
    "+002026-11-22T09:30:00Z",
];

fn one(texts: &[&str], dice: &mut StdRng) -> Value {
    json!(texts[dice.random_range(0..texts.len())])
}

/// A time that ends the event on arrival.
pub fn fatal(draft: &mut Draft, dice: &mut StdRng) {
    if draft.form == Form::Bare {
        let (timestamp, ends) = match dice.random_range(0..3) {
            0 => ([0, 1, 86_400, 900_000_000][dice.random_range(0..4)], End::invalid("", "time")),
            1 => (
                [4_102_444_800, 253_402_000_000][dice.random_range(0..2)],
                End::invalid("", "future"),
            ),
            // What no calendar holds is no timestamp, or one of a date that is out of the question.
            _ => (
                [1_795_339_800_000, u64::MAX][dice.random_range(0..2)],
                End::dead_of("invalid-event"),
            ),
        };
        draft.ends(&[ends]);
        return draft.edit(|properties| properties.with_timestamp(timestamp));
    }
    let (time, ends) = match dice.random_range(0..4) {
        0 => (one(&UNSET, dice), vec![End::invalid("", "time")]),
        1 => (one(&FAR, dice), vec![End::invalid("", "future")]),
        2 => (one(&OPEN, dice), vec![End::Applied, End::dead()]),
        _ => (one(&NONE, dice), vec![End::dead_of("undecodable")]),
    };
    draft.ends(&ends);
    draft.set("time", time);
}

/// A time that is not due for longer than a storm lasts.
pub fn waiting(draft: &mut Draft, dice: &mut StdRng) {
    let time = Timestamp::now() + SignedDuration::from_mins(dice.random_range(30..1200));
    if draft.form == Form::Bare {
        let seconds = u64::try_from(time.as_second()).unwrap_or_default();
        draft.edit(|properties| properties.with_timestamp(seconds));
    } else {
        draft.set("time", json!(spelled(time, dice)));
    }
    draft.ends(&[End::Waits]);
}

/// A sequence that ends the event on arrival.
pub fn fatal_sequence(draft: &mut Draft, dice: &mut StdRng) {
    let is_json = draft.form == Form::Structured;
    let (sequence, ends) = match dice.random_range(0..if is_json { 5 } else { 3 }) {
        0 => (json!("1".repeat(10_000)), End::invalid("", "sequence-length")),
        1 => (json!(texts::long(dice, 300)), End::invalid("", "sequence-length")),
        2 => (one(&TEXTS, dice), End::invalid("", "sequence")),
        3 => (json!(-1), End::dead_of("undecodable")),
        _ => {
            let values = [json!(1.5), json!(1e19), json!(true), json!([]), json!({"n": 1})];
            (values[dice.random_range(0..5)].clone(), End::dead_of("undecodable"))
        }
    };
    draft.set("sequence", sequence);
    draft.ends(&[ends]);
}
