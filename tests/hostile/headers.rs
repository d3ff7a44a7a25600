//! AMQP header tables of every type: nested, huge, forged, with names and texts of every kind.

use lapin::types::{
    AMQPValue, ByteArray, DecimalValue, FieldArray, FieldTable, LongString, ShortString,
};
use rand::RngExt;
use rand::rngs::StdRng;

use super::texts;

/// Levels of tables and arrays in one another.
const DEEPEST: u32 = 60;
/// A frame has 131,072 bytes; texts of other properties need some.
const NEARLY_A_FRAME: usize = 128_500;

/// A value of any type that RabbitMQ takes: numbers that are none it does not.
pub fn value(dice: &mut StdRng, levels: u32) -> AMQPValue {
    match dice.random_range(0..17) {
        0 => AMQPValue::Boolean(dice.random()),
        1 => AMQPValue::ShortShortInt(dice.random()),
        2 => AMQPValue::ShortShortUInt(dice.random()),
        3 => AMQPValue::ShortInt(dice.random()),
        4 => AMQPValue::ShortUInt(dice.random()),
        5 => AMQPValue::LongInt(dice.random()),
        6 => AMQPValue::LongUInt(dice.random()),
        7 => AMQPValue::LongLongInt([i64::MIN, -1, i64::MAX][dice.random_range(0..3)]),
        8 => AMQPValue::Float([0.0, -1.5, f32::MAX][dice.random_range(0..3)]),
        9 => AMQPValue::Double([-0.0, 5e-324, 1e300][dice.random_range(0..3)]),
        10 => AMQPValue::DecimalValue(DecimalValue { scale: dice.random(), value: dice.random() }),
        11 => AMQPValue::Timestamp([0, 1, u64::MAX][dice.random_range(0..3)]),
        12 => AMQPValue::ByteArray(ByteArray::from(texts::bytes(dice, 100))),
        13 => AMQPValue::Void,
        14 if levels > 0 => AMQPValue::FieldTable(table(dice, 3, levels - 1)),
        15 if levels > 0 => {
            let count = dice.random_range(0..4);
            let values: Vec<AMQPValue> = (0..count).map(|_| value(dice, levels - 1)).collect();
            AMQPValue::FieldArray(values.into())
        }
        _ => AMQPValue::LongString(LongString::from(texts::bytes(dice, 300))),
    }
}

/// What is no text, integer or time.
pub fn no_text(dice: &mut StdRng) -> AMQPValue {
    match dice.random_range(0..7) {
        0 => AMQPValue::Boolean(true),
        1 => AMQPValue::Double(1.5),
        2 => AMQPValue::Void,
        3 => AMQPValue::FieldTable(FieldTable::default()),
        4 => AMQPValue::FieldArray(FieldArray::default()),
        5 => AMQPValue::LongString(vec![0xff, 0xfe].into()),
        _ => AMQPValue::ByteArray(b"text".to_vec().into()),
    }
}

/// A name that means nothing to the relay or the broker.
fn name(dice: &mut StdRng) -> ShortString {
    match dice.random_range(0..6) {
        0 => ShortString::from(""),
        1 => ShortString::from("n".repeat(255)),
        _ => ShortString::from(format!("z-{}", texts::any(dice, 200))),
    }
}

fn table(dice: &mut StdRng, most: usize, levels: u32) -> FieldTable {
    let mut table = FieldTable::default();
    for _ in 0..dice.random_range(0..=most) {
        table.insert(name(dice), value(dice, levels));
    }
    table
}

/// Headers of every type that belong to somebody else.
pub fn foreign(headers: &mut FieldTable, dice: &mut StdRng) {
    for (name, value) in table(dice, 8, 4).inner() {
        headers.insert(name.clone(), value.clone());
    }
}

/// Tables and arrays in one another.
pub fn deep(headers: &mut FieldTable, dice: &mut StdRng) {
    let mut value = value(dice, 0);
    for level in 0..DEEPEST {
        value = if level % 2 == 0 {
            AMQPValue::FieldArray(vec![value].into())
        } else {
            let mut table = FieldTable::default();
            table.insert("inner".into(), value);
            AMQPValue::FieldTable(table)
        };
    }
    headers.insert("z-deep".into(), value);
}

/// Adds one header or many, so that all together nearly fill a frame.
pub fn fill(headers: &mut FieldTable, dice: &mut StdRng) {
    let room = NEARLY_A_FRAME - dice.random_range(0..3000) - size(headers);
    if dice.random_bool(0.5) {
        let text = texts::long(dice, room);
        headers.insert("z-huge".into(), AMQPValue::LongString(text.into()));
        return;
    }
    let count = dice.random_range(100..2000);
    for number in 0..count {
        let text = "x".repeat((room / count).saturating_sub(20));
        let name = format!("z-many-{number}");
        headers.insert(name.into(), AMQPValue::LongString(text.into()));
    }
}

/// Bytes on the wire, about.
fn size(headers: &FieldTable) -> usize {
    let entry =
        |(name, value): (&ShortString, &AMQPValue)| 6 + name.as_str().len() + value_size(value);
    headers.inner().iter().map(entry).sum()
}

fn value_size(value: &AMQPValue) -> usize {
    match value {
        AMQPValue::LongString(text) => text.as_bytes().len(),
        AMQPValue::ByteArray(bytes) => bytes.as_slice().len(),
        AMQPValue::FieldTable(table) => size(table),
        AMQPValue::FieldArray(values) => {
            values.as_slice().iter().map(|value| 6 + value_size(value)).sum()
        }
        _ => 8,
    }
}

/// Names of the relay's own headers, as anybody can read them in the README.
const OURS: [&str; 14] = [
    "attempts",
    "first-seen",
    "not-before",
    "last-reason",
    "ambiguous",
    "receipt",
    "resend",
    "replay-id",
    "force",
    "revision",
    "exchange",
    "dead-id",
    "reason",
    "flags",
];

/// A past that a publisher has made up.
pub fn forged(headers: &mut FieldTable, dice: &mut StdRng) {
    for _ in 0..dice.random_range(1..5) {
        let name = format!("x-relay-{}", OURS[dice.random_range(0..OURS.len())]);
        let value = match dice.random_range(0..4) {
            0 => AMQPValue::LongLongInt(4_000_000_000),
            1 => AMQPValue::LongString("2099-01-01T00:00:00Z".into()),
            2 => AMQPValue::LongString("01900000-0000-7000-8000-000000000000".into()),
            _ => value(dice, 2),
        };
        headers.insert(name.into(), value);
    }
}

/// A history that only a broker may write.
pub fn forged_deaths(headers: &mut FieldTable, dice: &mut StdRng) {
    let text = |text: &str| AMQPValue::LongString(text.into());
    let mut death = FieldTable::default();
    death.insert("reason".into(), text(["delivery_limit", "expired"][dice.random_range(0..2)]));
    death.insert("queue".into(), text("work"));
    death.insert("exchange".into(), text(&texts::any(dice, 200)));
    death.insert("count".into(), AMQPValue::LongLongInt(i64::MAX));
    death.insert("time".into(), AMQPValue::Timestamp(u64::MAX));
    let deaths = FieldArray::from(vec![AMQPValue::FieldTable(death)]);
    headers.insert("x-death".into(), AMQPValue::FieldArray(deaths));
    headers.insert("x-first-death-reason".into(), text("rejected"));
    headers.insert("x-delivery-count".into(), AMQPValue::LongLongInt(1000));
    headers.insert("x-acquired-count".into(), AMQPValue::LongLongInt(1000));
}

/// Copies that go nowhere. RabbitMQ takes nothing but lists of texts here.
pub fn copies(headers: &mut FieldTable, dice: &mut StdRng) {
    for name in ["CC", "BCC"] {
        let count = dice.random_range(0..3);
        let keys: Vec<AMQPValue> = (0..count)
            .map(|_| AMQPValue::LongString(format!("nowhere.{}", texts::any(dice, 100)).into()))
            .collect();
        headers.insert(name.into(), AMQPValue::FieldArray(keys.into()));
    }
}

/// Trace context that is none.
pub fn traces(headers: &mut FieldTable, dice: &mut StdRng) {
    for name in ["traceparent", "tracestate", "baggage"] {
        let value = match dice.random_range(0..5) {
            0 => AMQPValue::LongString("00-0-0-01".into()),
            1 => {
                AMQPValue::LongString(format!("00-{}-{}-ff", "0".repeat(32), "0".repeat(16)).into())
            }
            2 => AMQPValue::LongString("a=b,".repeat(200).into()),
            _ => value(dice, 2),
        };
        headers.insert(name.into(), value);
    }
}
