//! An event's body with other field values: everything else in it stays.

use serde_json::{Map, Value};

use super::event::{Envelope, is_data_inside};
use super::field::{Field, PerField};
use super::json::{self, Json};

/// One field's new value; `None` takes the field out.
pub type Change = (Field, Option<String>);

/// The body with these changes, made where the mapping points. The text says why it cannot be.
pub fn edit(
    envelope: &Envelope<'_>,
    pointers: &PerField<String>,
    changes: &[Change],
) -> Result<Vec<u8>, String> {
    let body = json::parse(envelope.body)?;
    let Json::Object(object) = &body else {
        return Err("the body is not a JSON object".into());
    };
    let is_inside = is_data_inside(envelope, object);
    let mut body = Value::from(&body);
    let data = if is_inside { &mut body["data"] } else { &mut body };
    for (field, value) in changes {
        put(data, &pointers[*field], value.as_deref())?;
    }
    Ok(body.to_string().into_bytes())
}

/// Objects that are missing on the way are made; anything else in the way is left alone.
fn put(data: &mut Value, pointer: &str, value: Option<&str>) -> Result<(), String> {
    let names = pointer.split('/').skip(1).map(|name| name.replace("~1", "/").replace("~0", "~"));
    let names: Vec<String> = names.collect();
    let Some((last, path)) = names.split_last() else {
        return Err("the mapping points at the whole of the data".into());
    };
    let mut place = data;
    for name in path {
        if place.is_null() {
            *place = Value::Object(Map::new());
        }
        place = match place {
            Value::Object(object) => object.entry(name.clone()).or_insert(Value::Null),
            Value::Array(items) => name
                .parse()
                .ok()
                .and_then(|index: usize| items.get_mut(index))
                .ok_or_else(|| format!("{pointer}: no such place"))?,
            _ => return Err(format!("{pointer}: something else stands there")),
        };
    }
    if place.is_null() {
        *place = Value::Object(Map::new());
    }
    let Value::Object(object) = place else {
        return Err(format!("{pointer}: something else stands there"));
    };
    match value {
        Some(value) => drop(object.insert(last.clone(), Value::from(value))),
        None => drop(object.remove(last)),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edited(body: &str, pointer: &str, value: Option<&str>) -> Result<String, String> {
        let envelope = Envelope { body: body.as_bytes(), ..Envelope::default() };
        let mut pointers = PerField::from_fn(|field| format!("/{field}"));
        pointers[Field::State] = pointer.to_owned();
        let bytes = edit(&envelope, &pointers, &[(Field::State, value.map(str::to_owned))])?;
        Ok(String::from_utf8(bytes).expect("text"))
    }

    #[test]
    fn a_value_is_changed_where_the_mapping_points_and_nothing_else_is() {
        let structured = r#"{"specversion":"1.0","data":{"entity_id":"C1","state":"Tamil Nadu"}}"#;
        assert_eq!(
            edited(structured, "/state", Some("TamilNadu")).expect("edited"),
            r#"{"data":{"entity_id":"C1","state":"TamilNadu"},"specversion":"1.0"}"#
        );
        assert_eq!(
            edited(r#"{"entity_id":"C1","state":"x"}"#, "/state", None).expect("edited"),
            r#"{"entity_id":"C1"}"#
        );
        assert_eq!(
            edited(r#"{"entity_id":"C1"}"#, "/home/state", Some("Goa")).expect("edited"),
            r#"{"entity_id":"C1","home":{"state":"Goa"}}"#
        );
        assert_eq!(
            edited(r#"{"at":[{"s":"x"}]}"#, "/at/0/s", Some("Goa")).expect("edited"),
            r#"{"at":[{"s":"Goa"}]}"#
        );
    }

    #[test]
    fn what_cannot_be_edited_says_why() {
        assert!(edited("no", "/state", None).is_err());
        assert!(edited(r#"{"at":[]}"#, "/at/0/s", Some("x")).is_err());
        assert!(edited(r#"{"at":7}"#, "/at/s", Some("x")).is_err());
    }
}
