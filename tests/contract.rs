//! The published contract is what the decoder does: what the schema accepts the decoder accepts, and
//! the other way round, under the default settings; and the examples are events that the relay applies.
//!
//! What a schema cannot say is not generated: keys that stand twice, times ahead of the clock, sizes,
//! depths, integers written as `42.0`, spellings of a time
//! beside RFC 3339's. White space around values is: the schema speaks of what is left without it.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use customer_relay::config::{Config, Layers, Needs, Sources};
use customer_relay::domain::admission::{Moment, admit};
use customer_relay::domain::dead_letter::Reason;
use customer_relay::domain::event::Envelope;
use customer_relay::domain::field::Field;
use customer_relay::domain::history::History;
use customer_relay::domain::verdict::Verdict;
use jiff::Timestamp;
use jsonschema::Validator;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use proptest::prelude::*;
use proptest::test_runner::{Config as Cases, TestRunner};
use serde_json::{Map, Value, json};

use crate::harness::{Context, suite};

suite!(
    NoBroker:
    the_schema_and_the_decoder_accept_the_same_structured_events,
    the_schema_and_the_decoder_accept_the_same_binary_and_bare_events,
    what_a_schema_cannot_say_the_decoder_says,
    the_schema_and_the_decoder_accept_every_example,
    every_reference_of_the_contract_leads_somewhere;
    Broker:
    every_example_of_the_contract_is_applied,
);

const SCHEMA: &str = include_str!("../deploy/contract/customer-updated.schema.json");
const DOCUMENT: &str = include_str!("../deploy/contract/asyncapi.yaml");
const KIND: &str = "customer.updated";
const CASES: u32 = 20_000;

/// Later than any time that is generated.
fn now() -> Timestamp {
    "2030-01-02T00:00:00Z".parse().unwrap()
}

/// The decoder as it is set by default.
struct Decoder(Config);

impl Decoder {
    fn new() -> Result<Decoder> {
        let layers = Layers::new(&Sources::default())?;
        Ok(Decoder(Config::load(&layers, Needs::Broker)?))
    }

    /// `None`: accepted. Else what refuses it, as field and rule, or as a text.
    fn refuses(&self, envelope: &Envelope<'_>) -> Option<String> {
        let Config { rules, retry, .. } = &self.0;
        let moment = Moment::certain(now());
        let refused = admit(envelope, &History::new(now()), rules, retry, &moment).err()?;
        let Verdict::DeadLetter(dead) = refused.verdict else {
            panic!("neither accepted nor a dead letter: {:?}", refused.verdict);
        };
        Some(match (dead.field, dead.rule) {
            (Some(field), Some(rule)) => format!("{field} {rule}"),
            (_, Some(rule)) => rule.to_owned(),
            _ if dead.reason != Reason::Undecodable => dead.reason.name().to_owned(),
            _ => dead.detail.split(" (").next().unwrap_or_default().to_owned(),
        })
    }
}

/// One part of the schema, read by its own draft and by the one that `AsyncAPI`'s tools know.
struct Schema(Validator, Validator);

impl Schema {
    fn of(part: Option<&str>) -> Result<Schema> {
        let mut schema: Value = serde_json::from_str(SCHEMA)?;
        let latest = if let Some(part) = part {
            let definitions = schema["$defs"].take();
            schema = json!({"$defs": definitions, "allOf": [{"$ref": format!("#/$defs/{part}")}]});
            jsonschema::draft202012::new(&schema)?
        } else {
            ensure!(jsonschema::draft202012::meta::is_valid(&schema), "not a schema");
            jsonschema::draft202012::new(&schema)?
        };
        schema.as_object_mut().context("an object")?.remove("$schema");
        Ok(Schema(latest, jsonschema::draft7::new(&schema)?))
    }

    fn accepts(&self, value: &Value) -> bool {
        let accepts = self.0.is_valid(value);
        assert_eq!(accepts, self.1.is_valid(value), "the drafts disagree on {value}");
        accepts
    }
}

/// How often what was refused, and how often all was well.
#[derive(Default)]
struct Tally(RefCell<BTreeMap<String, u32>>);

impl Tally {
    fn add(&self, refused: Option<String>) {
        let key = refused.unwrap_or_else(|| "accepted".into());
        *self.0.borrow_mut().entry(key).or_default() += 1;
    }

    fn has(&self, expected: &[&str]) -> Result<()> {
        let tally = self.0.borrow();
        for key in expected {
            let count = tally.get(*key).copied().unwrap_or_default();
            ensure!(count >= 10, "{key} came up {count} times only: {tally:#?}");
        }
        Ok(())
    }
}

const FIELD_RULES: [&str; 19] = [
    "entity_id required",
    "entity_id type",
    "entity_id blank",
    "entity_id too-long",
    "entity_id characters",
    "entity_id nothing-to-update",
    "email type",
    "email blank",
    "email format",
    "mobile_no type",
    "mobile_no pattern",
    "address type",
    "address alphanumeric",
    "country letters",
    "city spaces",
    "city letters",
    "state spaces",
    "pincode six-digits",
    "pincode pattern",
];

fn check<T: std::fmt::Debug>(
    events: impl Strategy<Value = T>,
    judge: impl Fn(T) -> Result<(), TestCaseError>,
) -> Result<()> {
    let cases = Cases { cases: CASES, failure_persistence: None, ..Cases::default() };
    TestRunner::new(cases).run(&events, judge).map_err(|error| anyhow::anyhow!("{error}"))
}

async fn the_schema_and_the_decoder_accept_the_same_structured_events(_: Context) -> Result<()> {
    let (decoder, schema, tally) = (Decoder::new()?, Schema::of(None)?, Tally::default());
    check(structured(), |event| {
        let body = event.to_string();
        let envelope = Envelope {
            body: body.as_bytes(),
            content_type: Some("application/cloudevents+json"),
            kind: Some(KIND),
            ..Envelope::default()
        };
        let refused = decoder.refuses(&envelope);
        let accepted = schema.accepts(&trimmed(&event, "/data"));
        prop_assert_eq!(refused.is_none(), accepted, "{:?}", refused);
        prop_assert!(!schema.accepts(&event) || refused.is_none(), "untrimmed: {:?}", refused);
        tally.add(refused);
        Ok(())
    })?;
    tally.has(&FIELD_RULES)?;
    tally.has(&[
        "accepted",
        "id",
        "time",
        "order",
        "sequence",
        "sequence-length",
        "unsupported-type",
        "the body is not a JSON object",
        "data: missing",
        "data: not a JSON object",
        "specversion: missing",
        "specversion: only 1.0 is read",
        "specversion: not a text",
        "id: not a text",
        "source: not a text",
        "type: not a text",
        "sequence: not a text",
        "time: not a text",
        "time: not an RFC 3339 time with an offset",
    ])
}

async fn the_schema_and_the_decoder_accept_the_same_binary_and_bare_events(
    _: Context,
) -> Result<()> {
    let (decoder, tally) = (Decoder::new()?, Tally::default());
    let (headers_schema, body_schema) = (Schema::of(Some("headers"))?, Schema::of(Some("body"))?);
    check((binary_headers(), bare_data()), |(headers, data)| {
        let body = data.to_string();
        let envelope = Envelope {
            body: body.as_bytes(),
            kind: Some(KIND),
            timestamp: Some(now()),
            attributes: attributes(&headers),
            ..Envelope::default()
        };
        let refused = decoder.refuses(&envelope);
        let body_is_well = body_schema.accepts(&trimmed(&data, ""));
        let headers_are_well = headers.is_empty() || headers_schema.accepts(&headers.into());
        prop_assert_eq!(refused.is_none(), body_is_well && headers_are_well, "{:?}", refused);
        tally.add(refused);
        Ok(())
    })?;
    tally.has(&FIELD_RULES)?;
    tally.has(&[
        "accepted",
        "id",
        "time",
        "sequence",
        "sequence-length",
        "unsupported-type",
        "data: missing",
        "specversion: missing",
        "specversion: only 1.0 is read",
        "time: not an RFC 3339 time with an offset",
    ])
}

async fn what_a_schema_cannot_say_the_decoder_says(_: Context) -> Result<()> {
    let (decoder, schema) = (Decoder::new()?, Schema::of(None)?);
    let event = |sequence: &str, time: &str, pincode: &str, more: &str| {
        format!(
            r#"{{"specversion":"1.0","sequence":{sequence},"time":{time},{more}
                "data":{{"entity_id":"C1","pincode":{pincode}}}}}"#
        )
    };
    let judge = |body: &str| -> Result<(bool, Option<String>)> {
        let envelope = Envelope { body: body.as_bytes(), kind: Some(KIND), ..Envelope::default() };
        Ok((schema.accepts(&serde_json::from_str(body)?), decoder.refuses(&envelope)))
    };
    let time = r#""2026-11-22T09:30:00Z""#;
    let large = format!(r#""note":"{}","#, "x".repeat(262_144));
    for (body, refused) in [
        (event("1", time, "682308", ""), None),
        (event("1", time, "682308", r#""id":"a","id":"b","#), Some("a key stands twice")),
        (event("1", r#""2030-01-03T01:00:00Z""#, "682308", ""), Some("future")),
        (event("1", r#""2000-01-01T00:00:00+00:01""#, "682308", ""), Some("time")),
        (event("1.0", time, "682308", ""), Some("sequence: not a text")),
        (event("1", time, "682308.0", ""), Some("pincode type")),
        (event("1", time, "682308", &large), Some("too-large")),
    ] {
        let (accepted, actual) = judge(&body)?;
        ensure!(accepted, "the schema can say it after all: {refused:?}");
        let as_expected = match (&actual, refused) {
            (Some(actual), Some(refused)) => actual.starts_with(refused),
            (actual, refused) => actual.is_none() && refused.is_none(),
        };
        ensure!(as_expected, "{actual:?}, not {refused:?}");
    }
    let (accepted, refused) = judge(&event("1", r#""20261122T0930Z""#, "682308", ""))?;
    ensure!(!accepted && refused.is_none(), "a time beside RFC 3339: {refused:?}");
    let (accepted, refused) = judge(&event("1", r#""1999-12-31T23:59:59-00:01""#, "682308", ""))?;
    ensure!(!accepted && refused.is_none(), "a time of 2000 that says 1999: {refused:?}");
    Ok(())
}

/// Of an event's eight fields, what is left without white space around.
fn trimmed(event: &Value, data: &str) -> Value {
    let mut event = event.clone();
    if let Some(Value::Object(data)) = event.pointer_mut(data) {
        for (name, value) in data {
            if let (Some(_), Value::String(text)) = (Field::parse(name), &*value) {
                *value = text.trim().into();
            }
        }
    }
    event
}

/// A member of an object: mostly good or absent, at times wrong, at times drawn from letters that
/// come near.
fn member(good: Vec<Value>, wrong: Vec<Value>, near: &'static str) -> BoxedStrategy<Option<Value>> {
    prop_oneof![
        14 => prop::sample::select(good).prop_map(Some),
        6 => Just(None),
        1 => Just(Some(Value::Null)),
        1 => prop::sample::select(wrong).prop_map(Some),
        1 => near.prop_map(|text| Some(text.into())),
    ]
    .boxed()
}

type Members = Vec<(&'static str, BoxedStrategy<Option<Value>>)>;

fn object(members: Members) -> BoxedStrategy<Value> {
    let (names, values): (Vec<_>, Vec<_>) = members.into_iter().unzip();
    values
        .prop_map(move |values| {
            let members = names.iter().zip(values);
            let set = members.filter_map(|(name, value)| Some(((*name).to_owned(), value?)));
            Value::Object(set.collect())
        })
        .boxed()
}

fn values(list: Value) -> Vec<Value> {
    match list {
        Value::Array(values) => values,
        other => vec![other],
    }
}

const NOT_TEXTS: [&str; 4] = ["true", "7.5", "[\"a\"]", "{\"a\":\"b\"}"];

fn with_not_texts(list: Value) -> Vec<Value> {
    let others = NOT_TEXTS.iter().map(|text| text.parse().unwrap());
    values(list).into_iter().chain(others).collect()
}

/// Mostly there: without it nothing else is of interest.
fn entity_id() -> BoxedStrategy<Option<Value>> {
    let wrong = with_not_texts(json!([
        "",
        "  ",
        "x".repeat(51),
        "é".repeat(51),
        "a b",
        "a\u{7}b",
        "a\u{a0}b",
        "a\u{85}b",
        "a\u{2028}b",
        7
    ]));
    prop_oneof![
        16 => prop::sample::select(values(json!(["C1", "x".repeat(50), "é".repeat(50), " C1\t", "\u{a0}C-1\u{3000}", "\u{feff}", "a/b"]))).prop_map(Some),
        1 => prop::sample::select(wrong).prop_map(Some),
        1 => "[a-c \\u{2000}-\\u{200c}]{1,4}".prop_map(|text| Some(text.into())),
        1 => Just(None),
        1 => Just(Some(Value::Null)),
    ]
    .boxed()
}

/// All fields, or next to none.
fn data_object(more: Members) -> BoxedStrategy<Value> {
    let mut few: Members = data_members().into_iter().take(2).collect();
    few[1].1 = prop::sample::select(vec![None, Some(Value::Null)]).boxed();
    let all = data_members().into_iter().chain(more).collect();
    prop_oneof![24 => object(all), 1 => object(few)].boxed()
}

#[expect(
    clippy::too_many_lines,
    reason = "a list: the values of each field, on both sides of its rules"
)]
fn data_members() -> Members {
    let long_email = |length: usize| format!("{}@example.com", "a".repeat(length - 12));
    vec![
        ("entity_id", entity_id()),
        (
            "email",
            member(
                values(json!([
                    "a@example.com",
                    "A.b+c@ex-ample.co.in",
                    long_email(254),
                    " a@b.c "
                ])),
                with_not_texts(json!([
                    "",
                    " ",
                    "a@b",
                    "a@b@c.d",
                    ".a@b.c",
                    "a.@b.c",
                    "a..b@c.d",
                    "a@-b.c",
                    "a@b-.c",
                    "a@b..c",
                    "a@.b.c",
                    "é@b.c",
                    "a@é.c",
                    "a b@c.d",
                    long_email(255),
                    1
                ])),
                "[a.@-]{1,8}",
            ),
        ),
        (
            "mobile_no",
            member(
                values(json!([
                    "9876543879",
                    " 6000000000",
                    9_876_543_879_u64,
                    6_000_000_000_u64,
                    9_999_999_999_u64
                ])),
                with_not_texts(json!([
                    "",
                    "9XXXXXX879",
                    "5876543879",
                    "98765438791",
                    "+919876543879",
                    "९८७६५४३८७९",
                    5_999_999_999_u64,
                    10_000_000_000_u64,
                    -9_876_543_879_i64,
                    u64::MAX
                ])),
                "[5-9][0-9]{8,10}",
            ),
        ),
        (
            "address",
            member(
                values(json!(["12 MG Road", "12  MG", " 12", "a"])),
                with_not_texts(json!([
                    "",
                    "\t",
                    "12/4 MG Road",
                    "12,",
                    "Straße",
                    "a\nb",
                    "a\u{a0}b",
                    12
                ])),
                "[aZ9 ,]{1,6}",
            ),
        ),
        (
            "country",
            member(
                values(json!([
                    "India",
                    "INDIA",
                    "iNdIa ",
                    "Sri Lanka",
                    "Nepal",
                    "Indiana",
                    "Indi a"
                ])),
                with_not_texts(json!(["", "India1", "Côte", "In-dia", 91])),
                "[Ii][Nn]dia ?|[A-z ]{1,4}",
            ),
        ),
        (
            "city",
            member(
                values(json!(["Kochi", " Kochi", "K"])),
                with_not_texts(json!(["", "New Delhi", "Kochi2", "Köln", "a-b", 1])),
                "[Kk ]{1,4}",
            ),
        ),
        (
            "state",
            member(
                values(json!(["Kerala", "Kerala\n"])),
                with_not_texts(json!(["", "Tamil Nadu", "Goa1", "Goà", false])),
                "[Gg ]{1,4}",
            ),
        ),
        (
            "pincode",
            member(
                values(json!([
                    "682308", "100000", " 682308", 682_308, 999_999, "00700", 7, 0, "1"
                ])),
                with_not_texts(json!([
                    "",
                    "068230",
                    "68230a",
                    "6823081",
                    "६८२३०८",
                    "-1",
                    -1,
                    99_999,
                    1_000_000,
                    i64::MIN
                ])),
                "[0-9]{1,7}",
            ),
        ),
        ("note", member(values(json!(["x", {"a": 1}])), values(json!([null])), ".{0,3}")),
    ]
}

fn bare_data() -> BoxedStrategy<Value> {
    let of_another_form = prop_oneof![24 => Just(None), 1 => Just(Some(json!("1.0")))].boxed();
    data_object(vec![("specversion", of_another_form)])
}

fn attribute_members() -> Members {
    let texts = || values(json!(["a", "evt 1", "", "~é", "\u{200d}\u{a0}\u{2027}\u{2070}"]));
    let wrong = || {
        with_not_texts(json!([
            7, "\u{0}", "a\n", "\u{7f}", "\u{9f}", "\u{200f}", "\u{2028}", "\u{202e}", "\u{2069}",
            "\u{feff}"
        ]))
    };
    vec![
        ("id", member(texts(), wrong(), ".{0,70}")),
        ("source", member(texts(), wrong(), ".{0,3}")),
        (
            "type",
            member(
                values(json!([KIND, KIND, ""])),
                with_not_texts(json!([7])),
                "customer\\.(updated|deleted)",
            ),
        ),
        (
            "time",
            member(
                values(json!([
                    "2026-11-22T09:30:00.123456Z",
                    "2026-11-22t09:30:00z",
                    "2024-02-29 23:59:60+05:30",
                    "2000-02-29T00:00:00-23:59",
                    "2000-01-01T00:00:00Z",
                    "2016-12-31T23:59:60Z",
                    "2026-11-22T00:00:00.123456789-00:00",
                    ""
                ])),
                with_not_texts(json!([
                    "yesterday",
                    "2026-11-22",
                    "2026-11-22T09:30:00",
                    "2026-02-29T00:00:00Z",
                    "2100-02-29T00:00:00Z",
                    "0001-01-01T00:00:00Z",
                    "1970-01-01T00:00:00Z",
                    "1996-02-29T00:00:00Z",
                    "1999-12-31T23:59:59.999999999Z",
                    "2026-04-31T00:00:00Z",
                    "2026-13-01T00:00:00Z",
                    "2026-11-22T24:00:00Z",
                    "2026-11-22T09:60:00Z",
                    "2026-11-22T09:30:61Z",
                    "2026-11-22T09:30:00.1234567890Z",
                    "2026-11-22T09:30:00.Z",
                    " 2026-11-22T09:30:00Z",
                    "2026-11-22T09:30:00Z\n",
                    1_795_339_800
                ])),
                "20[12][0-9]-[01][0-9]-[0-3][0-9][T ][0-2][0-9]:[0-6][0-9]:[0-6][0-9](\\.[0-9]{1,10})?(Z|[+-][01][0-9]:[0-5][0-9])",
            ),
        ),
        (
            "sequence",
            member(
                values(json!(["00000000000000000042", "b9", 42, 0, u64::MAX, "9".repeat(64), ""])),
                with_not_texts(json!([-1, "9".repeat(65), "é".repeat(65), 0.5, 1e300])),
                "[0-9]{1,70}",
            ),
        ),
    ]
}

fn structured() -> BoxedStrategy<Value> {
    let mut members = attribute_members();
    members.push((
        "specversion",
        prop_oneof![
            24 => Just(Some(json!("1.0"))),
            1 => Just(None),
            1 => prop::sample::select(values(json!([null, "", "0.3", "1", 1.5]))).prop_map(Some),
        ]
        .boxed(),
    ));
    members.push((
        "data",
        prop_oneof![
            24 => data_object(vec![]).prop_map(Some),
            1 => Just(None),
            1 => prop::sample::select(values(json!([null, "x", [], 1]))).prop_map(Some),
        ]
        .boxed(),
    ));
    members.push((
        "datacontenttype",
        member(values(json!(["application/json"])), values(json!([1])), ".{0,3}"),
    ));
    members.push((
        "data_base64",
        prop_oneof![8 => Just(None), 1 => Just(Some(json!("e30=")))].boxed(),
    ));
    let other = prop::sample::select(values(json!([null, [], "x", 1, true])));
    prop_oneof![64 => object(members), 1 => other].boxed()
}

/// None, which is the bare form, or texts behind one of the prefixes.
fn binary_headers() -> BoxedStrategy<Map<String, Value>> {
    let versions = prop_oneof![24 => Just("1.0"), 1 => Just(""), 1 => Just("0.3")];
    let prefixes = prop::sample::select(vec!["cloudEvents_", "cloudEvents:", "ce-"]);
    let headers = (versions, object(attribute_members()), prefixes);
    let headers = headers.prop_map(|(version, attributes, prefix)| {
        let texts =
            attributes.as_object().into_iter().flatten().filter(|(_, value)| value.is_string());
        let texts = texts.map(|(name, value)| (format!("{prefix}{name}"), value.clone()));
        let version = (format!("{prefix}specversion"), version.into());
        texts.chain([version]).collect::<Map<String, Value>>()
    });
    prop_oneof![1 => Just(Map::new()), 3 => headers].boxed()
}

fn attributes(headers: &Map<String, Value>) -> Vec<(&str, Option<Cow<'_, str>>)> {
    let prefixes = ["cloudEvents_", "cloudEvents:", "ce-"];
    let attribute = |name| prefixes.iter().find_map(|prefix| str::strip_prefix(name, prefix));
    let named = headers.iter().filter_map(|(name, value)| Some((attribute(name)?, value)));
    named.map(|(name, value)| (name, value.as_str().map(Cow::Borrowed))).collect()
}

/// An example of the `AsyncAPI` document, with the form it stands under.
struct Example {
    form: String,
    name: String,
    headers: Map<String, Value>,
    properties: Value,
    payload: Value,
}

fn document() -> Result<Value> {
    Ok(serde_saphyr::from_str(DOCUMENT)?)
}

fn examples() -> Result<Vec<Example>> {
    let document = document()?;
    let messages = document["components"]["messages"].as_object().context("no messages")?;
    let mut all = Vec::new();
    for (form, message) in messages {
        for example in message["examples"].as_array().context("no examples")? {
            let properties = example["x-amqp-properties"].clone();
            ensure!(properties.is_object(), "{form}: an example without properties");
            all.push(Example {
                form: form.clone(),
                name: example["name"].as_str().context("no name")?.to_owned(),
                headers: example["headers"].as_object().cloned().unwrap_or_default(),
                properties,
                payload: example["payload"].clone(),
            });
        }
    }
    ensure!(all.len() >= 6, "too few examples");
    Ok(all)
}

async fn the_schema_and_the_decoder_accept_every_example(_: Context) -> Result<()> {
    let decoder = Decoder::new()?;
    let (event, body) = (Schema::of(None)?, Schema::of(Some("body"))?);
    let (headers, properties) = (Schema::of(Some("headers"))?, Schema::of(Some("properties"))?);
    for example in examples()? {
        let name = format!("{} {}", example.form, example.name);
        let payload = if example.form == "structured" { &event } else { &body };
        ensure!(payload.accepts(&example.payload), "{name}: payload");
        ensure!(properties.accepts(&example.properties), "{name}: properties");
        if example.form == "binary" {
            ensure!(headers.accepts(&example.headers.clone().into()), "{name}: headers");
        }
        let text = example.payload.to_string();
        let property = |name: &str| example.properties[name].as_str();
        let seconds = example.properties["timestamp"].as_i64();
        let envelope = Envelope {
            body: text.as_bytes(),
            content_type: property("content_type"),
            message_id: property("message_id"),
            timestamp: seconds.map(Timestamp::from_second).transpose()?,
            kind: property("type").or(Some(KIND)),
            attributes: attributes(&example.headers),
        };
        assert_eq!(decoder.refuses(&envelope), None, "{name}");
    }
    Ok(())
}

async fn every_reference_of_the_contract_leads_somewhere(_: Context) -> Result<()> {
    let (document, schema) = (document()?, serde_json::from_str::<Value>(SCHEMA)?);
    let mut open = vec![(&document, &document), (&schema, &schema)];
    let mut references = 0;
    while let Some((root, value)) = open.pop() {
        if let Some(reference) = value.get("$ref").and_then(Value::as_str) {
            references += 1;
            let (file, pointer) = reference.split_once('#').unwrap_or((reference, ""));
            let target = match file {
                "" => root,
                "./customer-updated.schema.json" => &schema,
                _ => anyhow::bail!("{reference} leads out of the contract"),
            };
            ensure!(target.pointer(pointer).is_some(), "{reference} leads nowhere");
        }
        match value {
            Value::Object(members) => open.extend(members.values().map(|member| (root, member))),
            Value::Array(items) => open.extend(items.iter().map(|item| (root, item))),
            _ => {}
        }
    }
    ensure!(references > 20, "only {references} references were found");
    let operation = &document["operations"]["receiveCustomerUpdated"];
    let of_channel = document["channels"]["customerUpdated"]["messages"].as_object();
    let of_operation = operation["messages"].as_array().map(Vec::len);
    assert_eq!(of_operation, of_channel.map(Map::len), "one operation for every message");
    Ok(())
}

async fn every_example_of_the_contract_is_applied(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    for Example { properties: told, headers, payload, .. } in examples()? {
        let mut properties = BasicProperties::default().with_delivery_mode(2);
        let text = |name: &str| told[name].as_str();
        if let Some(content_type) = text("content_type") {
            properties = properties.with_content_type(content_type.into());
        }
        if let Some(message_id) = text("message_id") {
            properties = properties.with_message_id(message_id.into());
        }
        if let Some(kind) = text("type") {
            properties = properties.with_type(kind.into());
        }
        if let Some(seconds) = told["timestamp"].as_u64() {
            properties = properties.with_timestamp(seconds);
        }
        let mut table = FieldTable::default();
        for (name, value) in &headers {
            let value = value.as_str().context("a header is a text")?;
            table.insert(name.as_str().into(), AMQPValue::LongString(value.into()));
        }
        let body = payload.to_string();
        let exchange = bed.exchange();
        bed.queues
            .publish(&exchange, KIND, properties.with_headers(table), body.as_bytes())
            .await?;

        let data = payload.get("data").unwrap_or(&payload);
        let entity_id = data["entity_id"].as_str().context("no entity id")?;
        let customer = bed.applied(entity_id, 1).await?;
        for (name, value) in data.as_object().context("no data")? {
            let sent = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let at_the_portal = customer["fields"][name].as_str();
            ensure!(value.is_null() || at_the_portal == Some(&*sent), "{name}: {customer}");
        }
    }
    bed.end(relay).await?;
    Ok(())
}
