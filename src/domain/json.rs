//! JSON read strictly: a key that stands twice in one object, at any level, is an error, since two
//! readers of such a text need not agree on what it says. Errors name a place, never a value.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Number, Value};

/// A value whose texts are the body's own bytes, where nothing in them is escaped: an event's decoding
/// copies what it keeps, and nothing else.
#[derive(Debug)]
pub(super) enum Json<'a> {
    Null,
    Bool(bool),
    Number(Number),
    Text(Cow<'a, str>),
    List(Vec<Json<'a>>),
    Object(Object<'a>),
}

pub(super) type Object<'a> = BTreeMap<Cow<'a, str>, Json<'a>>;

/// Parses one JSON text. Nesting is bounded by `serde_json` at 128 levels.
pub(super) fn parse(text: &[u8]) -> Result<Json<'_>, String> {
    serde_json::from_slice(text).map_err(|error| {
        let problem = if error.to_string().starts_with(DUPLICATE_KEY) {
            "a key stands twice in one object"
        } else if error.is_eof() {
            "the text ends too early"
        } else if error.to_string().starts_with("recursion limit") {
            "nested more than 128 levels deep"
        } else {
            "not valid JSON"
        };
        format!("{problem} (line {}, column {})", error.line(), error.column())
    })
}

const DUPLICATE_KEY: &str = "duplicate key";

impl From<&Json<'_>> for Value {
    fn from(json: &Json<'_>) -> Value {
        match json {
            Json::Null => Value::Null,
            Json::Bool(value) => Value::Bool(*value),
            Json::Number(number) => Value::Number(number.clone()),
            Json::Text(text) => Value::String(text.as_ref().to_owned()),
            Json::List(items) => items.iter().map(Value::from).collect(),
            Json::Object(object) => {
                object.iter().map(|(key, value)| (key.as_ref(), value)).collect()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Json<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Strict)
    }
}

#[derive(serde::Deserialize, PartialEq, Eq, PartialOrd, Ord)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

struct Strict;

impl<'de> Visitor<'de> for Strict {
    type Value = Json<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json<'de>, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json<'de>, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json<'de>, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json<'de>, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json<'de>, E> {
        Ok(Number::from_f64(value).map_or(Json::Null, Json::Number))
    }

    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Json<'de>, E> {
        Ok(Json::Text(value.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Json<'de>, E> {
        Ok(Json::Text(value.to_owned().into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json<'de>, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Json::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json<'de>, A::Error> {
        let mut object = Object::new();
        while let Some((Key(key), value)) = map.next_entry()? {
            if object.insert(key, value).is_some() {
                return Err(A::Error::custom(DUPLICATE_KEY));
            }
        }
        Ok(Json::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn a_key_that_stands_twice_is_refused_at_any_level() {
        for text in [r#"{"a":1,"a":1}"#, r#"{"a":{"b":[{"c":1,"c":2}]}}"#] {
            let error = parse(text.as_bytes()).expect_err("refused");
            assert!(error.starts_with("a key stands twice"), "{error}");
        }
    }

    #[test]
    fn errors_name_a_place_and_no_value() {
        let error = parse(br#"{"email": "secret@example.com" oops}"#).expect_err("refused");
        assert_eq!(error, "not valid JSON (line 1, column 32)");
        assert!(parse(&b"[".repeat(200)).expect_err("refused").starts_with("nested"));
        assert!(parse(b"{\"a\":").expect_err("refused").starts_with("the text ends"));
        assert!(parse(&[b'"', 0xff, b'"']).is_err(), "invalid UTF-8");
    }
}
