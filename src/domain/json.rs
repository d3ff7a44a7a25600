//! JSON read strictly: a key that stands twice in one object, at any level, is an error, since two
//! readers of such a text need not agree on what it says. Errors name a place, never a value.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Parses one JSON text. Nesting is bounded by `serde_json` at 128 levels.
pub(super) fn parse(text: &[u8]) -> Result<Value, String> {
    serde_json::from_slice::<Strict>(text).map(|Strict(value)| value).map_err(|error| {
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

struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Strict)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(Strict(item)) = seq.next_element()? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some((key, Strict(value))) = map.next_entry::<String, Strict>()? {
            if object.insert(key, value).is_some() {
                return Err(A::Error::custom(DUPLICATE_KEY));
            }
        }
        Ok(Value::Object(object))
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
