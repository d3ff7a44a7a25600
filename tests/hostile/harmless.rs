//! What may stand beside a plain event, or be spelled otherwise, and changes nothing: it is applied.

use lapin::types::AMQPValue;
use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use super::case::{Case, End};
use super::draft::{Draft, Form};
use super::{headers, texts, times};

type Change = fn(&mut Draft, &mut StdRng);

const CHANGES: [(&str, Change); 22] = [
    ("foreign headers", |draft, dice| headers::foreign(&mut draft.headers, dice)),
    ("deep headers", |draft, dice| headers::deep(&mut draft.headers, dice)),
    ("huge headers", |draft, _| draft.is_huge = true),
    ("forged past", |draft, dice| headers::forged(&mut draft.headers, dice)),
    ("forged deaths", |draft, dice| headers::forged_deaths(&mut draft.headers, dice)),
    ("copies", |draft, dice| headers::copies(&mut draft.headers, dice)),
    ("trace context", |draft, dice| headers::traces(&mut draft.headers, dice)),
    ("text properties", text_properties),
    ("number properties", number_properties),
    ("strange id", strange_id),
    ("no id", no_id),
    ("strange source", |draft, dice| draft.set("source", json!(texts::fit(dice, 3000)))),
    ("strange time", times::harmless),
    ("strange sequence", times::harmless_sequence),
    ("other attributes", other_attributes),
    ("type by the message", type_by_the_message),
    ("other members", other_members),
    ("large members", large_members),
    ("deep members", |draft, dice| draft.data["deep"] = nested(dice.random_range(1..100))),
    ("strange customer", strange_customer),
    ("spaces around", spaces_around),
    ("escapes", |draft, _| draft.finish = Some(escaped)),
];

/// What the contract leaves open: it may be applied or refused, and hurts nobody.
const OPEN: [(&str, Change); 5] = [
    ("a byte order mark", |draft, _| {
        draft.finish = Some(|body, _| [b"\xef\xbb\xbf", &body[..]].concat());
    }),
    ("half a surrogate pair", |draft, _| draft.finish = Some(|body, _| with(&body, r#""\ud800""#))),
    ("a number that overflows", |draft, _| draft.finish = Some(|body, _| with(&body, "1e400"))),
    ("ten thousand digits", |draft, _| {
        draft.finish = Some(|body, _| with(&body, &"7".repeat(10_000)));
    }),
    ("an expiration", |draft, dice| {
        let expiration = ["0", "1", "50", "60000"][dice.random_range(0..4)];
        draft.edit(|properties| properties.with_expiration(expiration.into()));
    }),
];

/// Changes the draft without effect, once or a few times.
pub fn change(draft: &mut Draft, dice: &mut StdRng) {
    for _ in 0..dice.random_range(0..3) {
        let (label, change) = CHANGES[dice.random_range(0..CHANGES.len())];
        draft.label(label);
        change(draft, dice);
    }
}

/// An event that the contract says to be applied.
pub fn case(mut draft: Draft, dice: &mut StdRng) -> Case {
    let (label, first) = CHANGES[dice.random_range(0..CHANGES.len())];
    draft.label(label);
    first(&mut draft, dice);
    change(&mut draft, dice);
    draft.finished(dice)
}

/// One that may be applied or not.
pub fn open_case(mut draft: Draft, dice: &mut StdRng) -> Case {
    let (label, change) = OPEN[dice.random_range(0..OPEN.len())];
    draft.label(label);
    change(&mut draft, dice);
    draft.ends(&[End::Applied, End::dead()]);
    draft.finished(dice)
}

/// One more member at a body's beginning.
fn with(body: &[u8], value: &str) -> Vec<u8> {
    let text = String::from_utf8_lossy(body);
    text.replacen('{', &format!("{{\"one more\":{value},"), 1).into_bytes()
}

#[expect(clippy::needless_pass_by_value, reason = "one shape for all last touches")]
fn escaped(body: Vec<u8>, _: &mut StdRng) -> Vec<u8> {
    let text = match serde_json::from_slice::<Value>(&body) {
        Ok(value) => format!(" \r\n\t{value:#} \n"),
        Err(_) => String::from_utf8_lossy(&body).into_owned(),
    };
    text.replace("storm", "\\u0073\\u0074orm").into_bytes()
}

fn text_properties(draft: &mut Draft, dice: &mut StdRng) {
    let text = |dice: &mut StdRng| texts::any(dice, 255).into();
    let (encoding, reply, app, cluster) = (text(dice), text(dice), text(dice), text(dice));
    draft.edit(|properties| {
        properties
            .with_content_encoding(encoding)
            .with_reply_to(reply)
            .with_app_id(app)
            .with_cluster_id(cluster)
            .with_user_id("guest".into())
    });
    if !draft.owns_type {
        let kind = text(dice);
        draft.edit(|properties| properties.with_type(kind));
    }
    if draft.form != Form::Bare && draft.attributes["id"] != json!("") {
        let id = text(dice);
        draft.edit(|properties| properties.with_message_id(id));
    }
    if draft.properties.content_type().is_none() {
        let content_type = text(dice);
        draft.edit(|properties| properties.with_content_type(content_type));
    }
}

fn number_properties(draft: &mut Draft, dice: &mut StdRng) {
    let priority = [0, 1, 9, 255][dice.random_range(0..4)];
    let mode = dice.random_range(1..=2);
    draft.edit(|properties| properties.with_priority(priority).with_delivery_mode(mode));
    if !draft.owns_timestamp {
        let timestamp = [0, 1, 1_700_000_000_000, u64::MAX][dice.random_range(0..4)];
        draft.edit(|properties| properties.with_timestamp(timestamp));
    }
}

fn strange_id(draft: &mut Draft, dice: &mut StdRng) {
    let (number, room) = (draft.number, draft.id_room());
    let text = texts::fit(dice, room - 20);
    draft.set_id(&format!("{text}{number}"));
}

fn no_id(draft: &mut Draft, _: &mut StdRng) {
    match draft.form {
        Form::Bare => draft.set_id(""),
        Form::Binary | Form::Structured => {
            draft.set("id", json!(""));
            draft.edit(|properties| properties.with_message_id("".into()));
        }
    }
}

fn other_attributes(draft: &mut Draft, dice: &mut StdRng) {
    for name in ["subject", "dataschema", "datacontenttype", "partitionkey", "x"] {
        let value = headers::value(dice, 2);
        draft.header_attributes.push((name.to_owned(), value));
        let text = texts::any(dice, 500);
        let value = match dice.random_range(0..5) {
            0 => json!({ text: [1, null, true] }),
            1 => json!(-1.5e300),
            2 => json!(false),
            _ => json!(text),
        };
        if draft.form == Form::Structured {
            draft.set(name, value);
        }
    }
}

fn type_by_the_message(draft: &mut Draft, dice: &mut StdRng) {
    draft.owns_type = true;
    match draft.form {
        Form::Structured => {
            draft.set("type", [json!(null), json!("")][dice.random_range(0..2)].clone());
            draft.edit(|properties| properties.with_type("customer.updated".into()));
        }
        Form::Binary => {
            draft.set("type", json!(""));
            draft.edit(|properties| properties.with_type("".into()));
        }
        Form::Bare => draft.edit(|properties| properties.with_type("customer.updated".into())),
    }
}

fn other_members(draft: &mut Draft, dice: &mut StdRng) {
    for value in [json!(null), json!(-0.5), json!([1, "2", {}]), json!(texts::any(dice, 5000))] {
        let name = format!("{} ", texts::any(dice, 300));
        draft.data[name] = value;
    }
    draft.data["Entity_ID"] = json!(texts::any(dice, 50));
    draft.data["email"] = json!(null);
}

fn large_members(draft: &mut Draft, dice: &mut StdRng) {
    draft.data["note"] = json!(texts::long(dice, 65_536));
}

fn nested(levels: u32) -> Value {
    (0..levels).fold(
        json!(1),
        |inner, level| {
            if level % 2 == 0 { json!([inner]) } else { json!({ "in": inner }) }
        },
    )
}

/// Any characters but white space and control characters, fifty at most.
fn strange_customer(draft: &mut Draft, dice: &mut StdRng) {
    let text = texts::strange(dice, 1000);
    let text = text.chars().filter(|c| !c.is_whitespace()).take(40).collect::<String>();
    draft.data["entity_id"] = json!(format!("{text}S{}", draft.number));
}

fn spaces_around(draft: &mut Draft, _: &mut StdRng) {
    for (_, value) in draft.data.as_object_mut().into_iter().flatten() {
        if let Value::String(text) = value {
            *text = format!(" \t\r\n{text}\u{2003} ");
        }
    }
}

/// What straight to the work queue counts as the relay's own.
pub fn wrong_past(mut draft: Draft, dice: &mut StdRng) -> Case {
    draft.label("a past that is none");
    draft.via = super::case::Via::WorkQueue;
    draft.edit(|properties| properties.with_type("customer.updated".into()));
    let names = ["attempts", "first-seen", "not-before", "receipt", "revision"];
    let name = names[dice.random_range(0..names.len())];
    let value = AMQPValue::LongString(texts::any(dice, 500).into());
    draft.headers.insert(format!("x-relay-{name}").into(), value);
    draft.ends(&[End::dead_of("undecodable")]);
    draft.finished(dice)
}
