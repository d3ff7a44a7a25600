//! A message becomes an event: the three forms of a CloudEvent are read, the fields are found by
//! the configured JSON Pointers. What a field's value may be is not judged here.

use std::borrow::Cow;
use std::cell::LazyCell;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::field::PerField;
use super::json::{self, Json, Object};

/// What a message says about its event, free of AMQP types.
#[derive(Debug, Default)]
pub struct Envelope<'a> {
    /// The body, as it came.
    pub body: &'a [u8],
    /// The `content_type` property.
    pub content_type: Option<&'a str>,
    /// The `message_id` property: the event's id where it names none itself.
    pub message_id: Option<&'a str>,
    /// The `timestamp` property: the event's time where it names none itself.
    pub timestamp: Option<Timestamp>,
    /// The `type` property, then the routing key: the event's type where it names none itself.
    pub kind: Option<&'a str>,
    /// CloudEvents attributes found in headers, prefix removed; `None` for a value that is no
    /// text, integer or time.
    pub attributes: Vec<(&'a str, Option<Cow<'a, str>>)>,
}

/// Where the fields stand in an event's data, and which event types carry them.
#[derive(Clone, Debug)]
pub struct Mapping {
    /// One JSON Pointer (RFC 6901) a field, from the event's data.
    pub pointers: PerField<String>,
    /// The event types that are customer updates.
    pub types: Vec<String>,
}

impl Mapping {
    /// The type of an event that comes without any.
    pub fn default_type(&self) -> Option<&str> {
        self.types.first().map(String::as_str)
    }
}

/// A customer update as the CRM wrote it, its values not judged yet.
#[derive(Debug, PartialEq)]
pub struct CustomerUpdated {
    /// The CRM's id of the event.
    pub id: Option<String>,
    /// Which system's event it is: ids are unique within one.
    pub source: Option<String>,
    /// When the change happened, by the CRM's clock.
    pub time: Option<Timestamp>,
    /// The CRM's own order (CloudEvents' `sequence` extension).
    pub sequence: Option<String>,
    /// The values the mapping found; JSON null counts as absent.
    pub fields: PerField<Option<Value>>,
}

/// What came out of a body.
#[derive(Debug, PartialEq)]
pub enum Decoded {
    /// An update of a customer.
    CustomerUpdated(Box<CustomerUpdated>),
    /// An event of another type, named as far as it is text.
    OtherType(String),
}

/// Why a body is no event. The text names places and attributes, never values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Undecodable(String);

const STRUCTURED: &str = "application/cloudevents+json";

/// Reads the event in an envelope.
///
/// Structured: the content type says so, or the body is an object with `specversion`. Binary: the
/// attributes stand in headers, which win over a body's own unless its content type is the
/// structured one. Bare: the body is the data.
pub fn decode(envelope: &Envelope<'_>, mapping: &Mapping) -> Result<Decoded, Undecodable> {
    let Json::Object(mut body) = json::parse(without_bom(envelope.body)).map_err(Undecodable)?
    else {
        return Err(Undecodable("the body is not a JSON object".into()));
    };
    let says_structured = envelope.content_type.is_some_and(is_structured);
    let headers = Headers::of(envelope, says_structured);
    let structured = is_data_inside(envelope, &body);

    let data = if structured { take_data(&mut body)? } else { std::mem::take(&mut body) };
    let attributes = Attributes { headers, body };
    if structured || attributes.headers.is_binary() {
        attributes.check_version()?;
    }

    let kind = attributes.text("type")?.or_else(|| envelope.kind.and_then(said));
    let Some(kind) = kind else {
        return Err(Undecodable("no event type: none of its own, no type property".into()));
    };
    if !mapping.types.contains(&kind) {
        return Ok(Decoded::OtherType(kind));
    }
    Ok(Decoded::CustomerUpdated(Box::new(CustomerUpdated {
        id: attributes.text("id")?.or_else(|| envelope.message_id.and_then(said)),
        source: attributes.text("source")?,
        time: attributes.time()?.or(envelope.timestamp),
        sequence: attributes.text("sequence")?,
        fields: find_fields(data, &mapping.pointers),
    })))
}

/// Whether the body is a structured event, with the data inside it.
pub(super) fn is_data_inside(envelope: &Envelope<'_>, body: &Object<'_>) -> bool {
    envelope.content_type.is_some_and(is_structured) || body.contains_key("specversion")
}

/// An empty text says nothing: it would be one id for many events, or a sequence above all numbers.
fn said(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn without_bom(body: &[u8]) -> &[u8] {
    body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body)
}

fn is_structured(content_type: &str) -> bool {
    let media_type = content_type.split(';').next().expect("a split has a first piece");
    media_type.trim().eq_ignore_ascii_case(STRUCTURED)
}

fn take_data<'a>(body: &mut Object<'a>) -> Result<Object<'a>, Undecodable> {
    match body.remove("data") {
        Some(Json::Object(data)) => Ok(data),
        Some(_) => Err(Undecodable("data: not a JSON object".into())),
        None if body.contains_key("data_base64") => {
            Err(Undecodable("data_base64: only JSON data is read".into()))
        }
        None => Err(Undecodable("data: missing".into())),
    }
}

/// Looks the pointers up. Nearly all are plain names: only for others the data is copied as a whole.
fn find_fields(data: Object<'_>, pointers: &PerField<String>) -> PerField<Option<Value>> {
    let data = Json::Object(data);
    let whole = LazyCell::new(|| Value::from(&data));
    PerField::from_fn(|field| {
        let found = match (pointers[field].strip_prefix('/'), &data) {
            (Some(name), Json::Object(data)) if !name.contains(['/', '~']) => {
                data.get(name).map(Value::from)
            }
            _ => whole.pointer(&pointers[field]).cloned(),
        };
        found.filter(|value| !value.is_null())
    })
}

/// Attributes in message headers; empty when the structured form rules them out.
struct Headers<'a>(&'a [(&'a str, Option<Cow<'a, str>>)]);

impl<'a> Headers<'a> {
    fn of(envelope: &'a Envelope<'a>, says_structured: bool) -> Self {
        let binary = envelope.attributes.iter().any(|(name, _)| *name == "specversion");
        Headers(if binary && !says_structured { &envelope.attributes } else { &[] })
    }

    fn is_binary(&self) -> bool {
        !self.0.is_empty()
    }

    fn text(&self, name: &str) -> Result<Option<String>, Undecodable> {
        match self.0.iter().find(|(attribute, _)| *attribute == name) {
            Some((_, Some(text))) => Ok(said(text)),
            Some((_, None)) => Err(Undecodable(format!("header {name}: not a text"))),
            None => Ok(None),
        }
    }
}

struct Attributes<'a> {
    headers: Headers<'a>,
    body: Object<'a>,
}

impl Attributes<'_> {
    /// The attribute as text, from the headers first; null and an empty text count as absent.
    fn text(&self, name: &str) -> Result<Option<String>, Undecodable> {
        if let Some(text) = self.headers.text(name)? {
            return Ok(Some(text));
        }
        match self.body.get(name) {
            None | Some(Json::Null) => Ok(None),
            Some(Json::Text(text)) => Ok(said(text)),
            Some(Json::Number(number)) if name == "sequence" && number.is_u64() => {
                Ok(Some(number.to_string()))
            }
            Some(_) => Err(Undecodable(format!("{name}: not a text"))),
        }
    }

    fn check_version(&self) -> Result<(), Undecodable> {
        match self.text("specversion")?.as_deref() {
            Some("1.0") => Ok(()),
            Some(_) => Err(Undecodable("specversion: only 1.0 is read".into())),
            None => Err(Undecodable("specversion: missing".into())),
        }
    }

    fn time(&self) -> Result<Option<Timestamp>, Undecodable> {
        let read = |text: String| {
            let fault = || Undecodable("time: not an RFC 3339 time with an offset".into());
            read_time(&text).ok_or_else(fault)
        };
        self.text("time")?.map(read).transpose()
    }
}

/// An RFC 3339 time, to the nanosecond: what a fraction has beyond that is cut off. A second 60 is the last
/// nanosecond of its minute, so that it is later than the 59 before it; 24:00:00 is the next day's first
/// moment, as in ISO 8601.
fn read_time(text: &str) -> Option<Timestamp> {
    const LEAP: &str = ":60";
    match text.parse() {
        Ok(time) if !text.contains(LEAP) => Some(time),
        _ => read_rare_time(text),
    }
}

fn read_rare_time(text: &str) -> Option<Timestamp> {
    const NANOSECONDS: usize = ".123456789".len();
    let (minute, rest) = (text.get(..16)?, text.get(16..)?);
    let (second, rest) = (rest.get(..3)?, rest.get(3..)?);
    let offset = rest.find(|c: char| c != '.' && !c.is_ascii_digit())?;
    let (fraction, offset) = rest.split_at(offset);
    if !fraction.is_empty() && (!fraction.starts_with('.') || fraction.len() == 1) {
        return None;
    }
    let parse = |text: String| text.parse::<Timestamp>().ok();
    if second == ":60" {
        return parse(format!("{minute}:59.999999999{offset}"));
    }
    if let Some(day) = minute.strip_suffix("24:00") {
        let is_midnight = second == ":00" && fraction.chars().all(|c| c == '.' || c == '0');
        let midnight = is_midnight.then(|| format!("{day}00:00:00{offset}"));
        return parse(midnight?)?.checked_add(SignedDuration::from_hours(24)).ok();
    }
    let fraction = fraction.get(..NANOSECONDS).unwrap_or(fraction);
    parse(format!("{minute}{second}{fraction}{offset}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::field::Field;

    fn mapping() -> Mapping {
        Mapping {
            pointers: PerField::from_fn(|field| format!("/{field}")),
            types: vec!["customer.updated".into()],
        }
    }

    fn update(envelope: &Envelope<'_>) -> CustomerUpdated {
        match decode(envelope, &mapping()) {
            Ok(Decoded::CustomerUpdated(event)) => *event,
            other => panic!("not an update: {other:?}"),
        }
    }

    fn refusal(envelope: &Envelope<'_>) -> String {
        decode(envelope, &mapping()).expect_err("undecodable").to_string()
    }

    const STRUCTURED_BODY: &[u8] = br#"{"specversion":"1.0","id":"in-body","source":"crm",
        "type":"customer.updated","time":"2026-11-22T09:30:00.123456Z","sequence":"42",
        "data":{"entity_id":"C1","pincode":682308,"email":null}}"#;

    #[test]
    fn the_structured_form_is_told_by_its_content_type_or_by_specversion() {
        for content_type in [Some("application/cloudevents+json; charset=utf-8"), None] {
            let envelope = Envelope { body: STRUCTURED_BODY, content_type, ..Envelope::default() };
            let event = update(&envelope);
            assert_eq!(event.id.as_deref(), Some("in-body"));
            assert_eq!(event.sequence.as_deref(), Some("42"));
            assert_eq!(event.time.map(Timestamp::as_microsecond), Some(1_795_339_800_123_456));
            assert_eq!(event.fields[Field::Pincode], Some(682_308.into()));
            assert_eq!(event.fields[Field::Email], None, "null is absent");
        }
    }

    #[test]
    fn the_binary_form_has_its_attributes_in_headers() {
        let attributes = vec![
            ("specversion", Some("1.0".into())),
            ("id", Some("in-header".into())),
            ("type", Some("customer.updated".into())),
        ];
        let body = br#"{"entity_id":"C1"}"#;
        let event = update(&Envelope { body, attributes, ..Envelope::default() });
        assert_eq!(event.id.as_deref(), Some("in-header"));
        assert_eq!(event.fields[Field::EntityId], Some("C1".into()));
    }

    #[test]
    fn binary_headers_win_unless_the_content_type_is_the_structured_one() {
        let attributes =
            || vec![("specversion", Some("1.0".into())), ("id", Some("in-header".into()))];
        let envelope =
            Envelope { body: STRUCTURED_BODY, attributes: attributes(), ..Envelope::default() };
        assert_eq!(update(&envelope).id.as_deref(), Some("in-header"));
        let envelope = Envelope { content_type: Some(STRUCTURED), ..envelope };
        assert_eq!(update(&envelope).id.as_deref(), Some("in-body"));
    }

    #[test]
    fn the_bare_form_takes_id_time_and_type_from_properties() {
        let envelope = Envelope {
            body: br#"{"entity_id":"C1","id":"not an attribute"}"#,
            message_id: Some("m-1"),
            timestamp: Some(Timestamp::UNIX_EPOCH),
            kind: Some("customer.updated"),
            ..Envelope::default()
        };
        let event = update(&envelope);
        assert_eq!(event.id.as_deref(), Some("m-1"));
        assert_eq!(event.time, Some(Timestamp::UNIX_EPOCH));
    }

    #[test]
    fn an_empty_attribute_is_none() {
        let body = br#"{"specversion":"1.0","id":"","source":"","type":"","time":"","sequence":"",
            "data":{}}"#;
        let envelope = Envelope {
            body,
            kind: Some("customer.updated"),
            message_id: Some(""),
            ..Envelope::default()
        };
        let event = update(&envelope);
        assert_eq!((&event.id, &event.source, &event.sequence), (&None, &None, &None));
        assert_eq!(event.time, None);
        let attributes = vec![("specversion", Some("1.0".into())), ("id", Some("".into()))];
        let envelope = Envelope { body: b"{}", attributes, message_id: Some("m-1"), ..envelope };
        assert_eq!(update(&envelope).id.as_deref(), Some("m-1"));
    }

    #[test]
    fn a_time_is_read_in_one_way() {
        let reads = |text: &str, as_text: &str| {
            let expected = as_text.parse().expect("a time");
            assert_eq!(read_time(text), Some(expected), "{text}");
        };
        reads("2016-12-31T23:59:60.2Z", "2016-12-31T23:59:59.999999999Z");
        reads("2017-01-01t05:29:60+05:30", "2016-12-31T23:59:59.999999999Z");
        reads("2026-11-22T24:00:00Z", "2026-11-23T00:00:00Z");
        reads("2026-12-31T24:00:00.000+05:30", "2026-12-31T18:30:00Z");
        reads("2026-11-22T09:30:00.1234567899999Z", "2026-11-22T09:30:00.123456789Z");
        reads("2026-11-22 09:30:00.000000000000-01:00", "2026-11-22T10:30:00Z");
        for text in [
            "2026-11-22T24:00:00.1Z",
            "2026-11-22T24:00:01Z",
            "2026-11-22T24:01:00Z",
            "2026-11-22T09:30:61Z",
            "2026-11-22T09:60:00Z",
            "2026-11-22T09:30:60",
            "2026-11-22T09:30:00.Z",
            "2026-11-22T09:30:00.1234567890",
            "2026-11-22T09:30:00..1Z",
            "2026-11-22T09:30:60\u{661}Z",
            "yesterday",
            "",
        ] {
            assert_eq!(read_time(text), None, "{text}");
        }
    }

    #[test]
    fn another_type_is_named() {
        let envelope =
            Envelope { body: b"{}", kind: Some("customer.deleted"), ..Envelope::default() };
        let other = Decoded::OtherType("customer.deleted".into());
        assert_eq!(decode(&envelope, &mapping()), Ok(other));
    }

    #[test]
    fn what_is_no_event_says_why_without_a_value() {
        let kind = Some("customer.updated");
        let bare = |body| Envelope { body, kind, ..Envelope::default() };
        assert_eq!(refusal(&bare(b"[1]")), "the body is not a JSON object");
        assert!(refusal(&bare(b"{")).starts_with("the text ends too early"));
        let cases: [(&[u8], &str); 5] = [
            (br#"{"specversion":"0.3","data":{}}"#, "specversion: only 1.0 is read"),
            (br#"{"specversion":"1.0"}"#, "data: missing"),
            (br#"{"specversion":"1.0","data":"x"}"#, "data: not a JSON object"),
            (br#"{"specversion":"1.0","id":7,"data":{}}"#, "id: not a text"),
            (
                br#"{"specversion":"1.0","time":"yesterday","data":{}}"#,
                "time: not an RFC 3339 time with an offset",
            ),
        ];
        for (body, text) in cases {
            assert_eq!(refusal(&bare(body)), text);
        }
        let attributes = vec![("specversion", Some("1.0".into())), ("id", None)];
        let wrong_header = Envelope { attributes, ..bare(b"{}") };
        assert_eq!(refusal(&wrong_header), "header id: not a text");
    }

    #[test]
    fn fields_are_found_where_the_mapping_points() {
        let mut mapping = mapping();
        mapping.pointers[Field::Email] = "/contact/mails/0".into();
        let body = br#"{"contact":{"mails":["a@example.com"]}}"#;
        let envelope = Envelope { body, kind: Some("customer.updated"), ..Envelope::default() };
        let Ok(Decoded::CustomerUpdated(event)) = decode(&envelope, &mapping) else {
            panic!("not decoded");
        };
        assert_eq!(event.fields[Field::Email], Some("a@example.com".into()));
    }

    proptest! {
        #[test]
        fn a_later_time_never_reads_as_an_earlier_one(
            seconds in (0_u32..62, 0_u32..62), fractions in ("[0-9]{0,12}", "[0-9]{0,12}"),
        ) {
            let text = |second: u32, fraction: &str| {
                let dot = if fraction.is_empty() { "" } else { "." };
                format!("2016-12-31T23:59:{second:02}{dot}{fraction}Z")
            };
            let [one, two] =
                [(seconds.0, &fractions.0), (seconds.1, &fractions.1)].map(|(second, fraction)| {
                    (second <= 60).then(|| {
                        let number = format!("{second}.{fraction:0<12}");
                        (number.parse::<f64>().expect("a number"), read_time(&text(second, fraction)))
                    })
                });
            if let (Some((first, one)), Some((second, two))) = (one, two) {
                prop_assert!(one.is_some() && two.is_some());
                prop_assert!(first > second || one <= two, "{} {}", first, second);
            }
        }

        #[test]
        fn reading_a_time_never_panics(text in "\\PC{0,40}|[0-9T:.Z+ -]{0,40}") {
            prop_assert!(read_time(&text).is_none_or(|time| time <= Timestamp::MAX));
        }

        #[test]
        fn decode_never_panics(
            body in proptest::collection::vec(any::<u8>(), 0..300),
            text in "\\PC{0,200}",
            content_type in proptest::option::of("\\PC{0,40}"),
        ) {
            for body in [&body[..], text.as_bytes()] {
                let envelope =
                    Envelope { body, content_type: content_type.as_deref(), ..Envelope::default() };
                drop(decode(&envelope, &mapping()));
            }
        }
    }
}
