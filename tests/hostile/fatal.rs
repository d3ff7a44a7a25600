//! What the contract says to be a dead letter on arrival, whatever else is in the message.

use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use super::case::{Case, End};
use super::draft::{Draft, Finish, Form};
use super::{harmless, headers, texts, times};

/// A message that is no event, or one that no rule lets pass; with harmless changes beside it.
pub fn case(mut draft: Draft, dice: &mut StdRng) -> Case {
    harmless::change(&mut draft, dice);
    match dice.random_range(0..10) {
        0..3 => body(&mut draft, dice),
        3 | 4 => attribute(&mut draft, dice),
        5 => {
            draft.label("fatal time");
            times::fatal(&mut draft, dice);
        }
        6 if draft.form != Form::Bare => {
            draft.label("fatal sequence");
            times::fatal_sequence(&mut draft, dice);
        }
        6 | 7 => control_id(&mut draft, dice),
        _ => field(&mut draft, dice),
    }
    draft.finished(dice)
}

const BODIES: [(&str, Finish); 21] = [
    ("an empty body", |_, _| Vec::new()),
    ("spaces alone", |_, _| b" \r\n\t".to_vec()),
    ("not JSON", |_, _| b"entity_id=C1&city=Kochi".to_vec()),
    ("random bytes", |_, dice| {
        let bytes: Vec<u8> = (0..dice.random_range(1..5000)).map(|_| dice.random()).collect();
        [b"\x01", &bytes[..]].concat()
    }),
    ("NUL bytes", |_, dice| vec![0; dice.random_range(1..70_000)]),
    ("cut off", |mut body, dice| {
        body.truncate(dice.random_range(1..body.len()));
        body
    }),
    ("two texts", |body, _| [&body[..], &body[..]].concat()),
    ("a NUL behind it", |body, _| [&body[..], b"\0"].concat()),
    ("an array", |body, _| [b"[", &body[..], b"]"].concat()),
    ("a scalar", |_, dice| {
        ["null", "true", "0", "\"text\"", "-1e5"][dice.random_range(0..5)].as_bytes().to_vec()
    }),
    ("a key twice", |body, _| replaced(&body, "{", "{\"entity_id\":1,\"entity_id\":1,")),
    ("a key twice, deep below", |body, _| {
        replaced(&body, "{", "{\"other\":[{\"a\":{\"b\":1,\"\\u0062\":2}}],")
    }),
    ("a key of U+0000 twice", |body, _| replaced(&body, "{", "{\"\\u0000\":1,\"\\u0000\":1,")),
    ("broken UTF-8 in a text", |body, _| {
        [b"{\"other\":\"\xff\xfe\xc0\x80\",", &body[1..]].concat()
    }),
    ("broken UTF-8 in a name", |body, _| [b"{\"\xed\xa0\x80\":1,", &body[1..]].concat()),
    ("raw control characters", |body, _| replaced(&body, "{", "{\"other\":\"\0\n\x1b\",")),
    ("UTF-16", |body, _| {
        let text = String::from_utf8_lossy(&body).into_owned();
        text.encode_utf16().flat_map(u16::to_le_bytes).collect()
    }),
    ("thousands of levels", |body, dice| {
        let levels = dice.random_range(2_000..80_000);
        let deep = format!("{{\"other\":{}{},", "[".repeat(levels), "]".repeat(levels));
        replaced(&body, "{", &deep)
    }),
    ("thousands of levels without an end", |_, dice| {
        ["{\"a\":", "["][dice.random_range(0..2)].repeat(40_000).into_bytes()
    }),
    ("numbers that are none", |body, _| replaced(&body, "{", "{\"other\":0x10,\"more\":NaN,")),
    ("a comment", |body, _| [b"/* */", &body[..]].concat()),
];

fn replaced(body: &[u8], from: &str, to: &str) -> Vec<u8> {
    String::from_utf8_lossy(body).replacen(from, to, 1).into_bytes()
}

fn body(draft: &mut Draft, dice: &mut StdRng) {
    draft.finish = None;
    if dice.random_range(0..12) == 0 {
        draft.label("too large");
        draft.data["note"] = json!("x".repeat(dice.random_range(262_144..400_000)));
        return draft.ends(&[End::dead_of("too-large")]);
    }
    let (label, finish) = BODIES[dice.random_range(0..BODIES.len())];
    draft.label(label);
    draft.finish = Some(finish);
    draft.ends(&[End::dead_of("undecodable")]);
}

/// JSON that is no text.
fn no_text(dice: &mut StdRng) -> Value {
    let values = [
        json!(true),
        json!(false),
        json!(0),
        json!(-7),
        json!(1.5),
        json!([]),
        json!(["1.0"]),
        json!({}),
        json!({"text": "1.0"}),
    ];
    values[dice.random_range(0..values.len())].clone()
}

fn attribute(draft: &mut Draft, dice: &mut StdRng) {
    match draft.form {
        Form::Structured => attribute_in_body(draft, dice),
        Form::Binary => attribute_in_header(draft, dice),
        Form::Bare => {
            draft.label("another type");
            let kind = format!("customer.{}", texts::any(dice, 200));
            draft.edit(|properties| properties.with_type(kind.into()));
            draft.ends(&[End::dead_of("unsupported-type")]);
        }
    }
}

fn attribute_in_body(draft: &mut Draft, dice: &mut StdRng) {
    let mut reason = "undecodable";
    match dice.random_range(0..6) {
        0 => {
            draft.label("another version");
            let version = if dice.random() { json!("0.3") } else { no_text(dice) };
            draft.set("specversion", version);
        }
        1 => {
            draft.label("another type");
            reason = "unsupported-type";
            let kind = format!("customer.{}", texts::any(dice, 5000));
            draft.set("type", json!(kind));
        }
        2 => {
            draft.label("no data");
            let values = [json!(null), json!([]), json!("entity_id=C1"), json!(7), json!(false)];
            draft.set("data", values[dice.random_range(0..5)].clone());
        }
        3 => {
            draft.label("no time and no sequence");
            for name in ["time", "sequence"] {
                draft.set(name, [json!(null), json!("")][dice.random_range(0..2)].clone());
            }
            // A timestamp that a harmless change has set stands in, or not.
            draft.ends(&[End::invalid("", "order")]);
            if draft.properties.timestamp().is_some() {
                draft.ends(&[End::Applied, End::dead_of("invalid-event")]);
            }
            return;
        }
        _ => {
            draft.label("an attribute that is no text");
            let name = ["id", "source", "type", "time"][dice.random_range(0..4)];
            draft.set(name, no_text(dice));
        }
    }
    draft.ends(&[End::dead_of(reason)]);
}

fn attribute_in_header(draft: &mut Draft, dice: &mut StdRng) {
    let mut reason = "undecodable";
    match dice.random_range(0..4) {
        0 => {
            draft.label("another version");
            draft.set("specversion", json!(["0.3", "1", "1.0 "][dice.random_range(0..3)]));
        }
        1 => {
            draft.label("another type");
            reason = "unsupported-type";
            draft.set("type", json!(format!("customer.{}", texts::any(dice, 5000))));
        }
        _ => {
            draft.label("an attribute that is no text");
            let name = ["id", "source", "type", "time", "sequence"][dice.random_range(0..5)];
            draft.header_attributes.push((name.to_owned(), headers::no_text(dice)));
        }
    }
    draft.ends(&[End::dead_of(reason)]);
}

fn control_id(draft: &mut Draft, dice: &mut StdRng) {
    draft.label("an id with control characters");
    let room = draft.id_room();
    let text = match dice.random_range(0..3) {
        0 => format!("{}\u{202e}", texts::fit(dice, room - 30)),
        _ => texts::with_controls(dice, room - 20),
    };
    let id = if dice.random() { format!("{text}-{}", draft.number) } else { text };
    if draft.form != Form::Bare && dice.random_bool(0.2) {
        draft.set("source", json!(id));
    } else {
        draft.set_id(&id);
    }
    draft.ends(&[End::invalid("", "id")]);
}

/// Texts that no rule for a field lets pass.
const REFUSED: [(&str, &[&str]); 7] = [
    ("email", &["a@b", "no address", "a@b@example.com", "é@example.com", "a@example.com\0"]),
    ("mobile_no", &["98765", "+919876543879", "9XXXXXX879", "98765438790000000000", "٩٨٧٦٥٤٣٨٧٩"]),
    ("address", &["12/4", "MG Road\u{202e}", "line\nbreak", "कोच्चि", "\u{1b}[2J", "a\0b"]),
    ("country", &["India1", "In\u{ad}dia", "\u{200b}India", "In\0dia"]),
    ("city", &["New Delhi", "Kochi2", "Ko\u{9b}chi", "कोच्चि"]),
    ("state", &["Tamil Nadu", "Kerala!", "Ker\r\nala"]),
    ("pincode", &["068230", "68230", "6823080", "abcdef", "६८२३०८", "682\u{0}308"]),
];

fn field(draft: &mut Draft, dice: &mut StdRng) {
    let integers = ["mobile_no", "pincode"];
    let (field, refused) = REFUSED[dice.random_range(0..REFUSED.len())];
    match dice.random_range(0..8) {
        0 => {
            draft.label("no customer");
            draft.data["entity_id"] = if dice.random() { json!(null) } else { no_text(dice) };
            draft.ends(&[End::invalid("entity_id", "")]);
        }
        1 => {
            draft.label("a customer of control characters, spaces, or too long");
            let number = draft.number;
            let id = match dice.random_range(0..3) {
                0 => format!("{number}\0{number}"),
                1 => format!("S {number}"),
                _ => texts::long(dice, 5000),
            };
            draft.data["entity_id"] = json!(id);
            draft.ends(&[End::invalid("entity_id", "")]);
        }
        2 => {
            draft.label("nothing to update");
            let id = draft.data["entity_id"].clone();
            draft.data = json!({"entity_id": id, "city": null, "other": "x"});
            draft.ends(&[End::invalid("entity_id", "nothing-to-update")]);
        }
        3 | 4 => {
            draft.label("a field of a wrong type");
            let value = match no_text(dice) {
                Value::Number(_) if integers.contains(&field) => json!(1e300),
                value => value,
            };
            draft.data[field] = value;
            draft.ends(&[End::invalid(field, "type")]);
        }
        5 => {
            draft.label("a blank field");
            draft.data[field] = json!(["", " ", "\u{2003}\t"][dice.random_range(0..3)]);
            draft.ends(&[End::invalid(field, "blank")]);
        }
        6 => {
            draft.label("a long field");
            let text = format!("{}!/\u{202e}", texts::long(dice, 70_000));
            draft.data[field] = json!(text);
            draft.ends(&[End::invalid(field, "")]);
        }
        _ => {
            draft.label("a field that breaks its rule");
            draft.data[field] = json!(refused[dice.random_range(0..refused.len())]);
            draft.ends(&[End::invalid(field, "")]);
        }
    }
}
