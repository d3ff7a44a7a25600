//! A plain event in one of the three forms of a CloudEvent, to be changed before it is written down.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::{Map, Value, json};

use super::case::{Case, End, Via};
use super::{headers, texts};

/// Where an event's attributes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// In the body.
    Structured,
    /// In headers.
    Binary,
    /// In properties of the message.
    Bare,
}

/// Changes a body's bytes.
pub type Finish = fn(Vec<u8>, &mut StdRng) -> Vec<u8>;

/// An event that is not written down yet. Plain, it is applied.
pub struct Draft {
    pub number: usize,
    pub form: Form,
    pub via: Via,
    pub attributes: Map<String, Value>,
    /// The binary form's attributes that are no JSON.
    pub header_attributes: Vec<(String, AMQPValue)>,
    pub data: Value,
    pub headers: FieldTable,
    pub properties: BasicProperties,
    pub finish: Option<Finish>,
    /// Its headers nearly fill a frame.
    pub is_huge: bool,
    /// The type property counts: nothing else may be there.
    pub owns_type: bool,
    /// The timestamp counts.
    pub owns_timestamp: bool,
    pub labels: Vec<String>,
    pub ends: Vec<End>,
    prefix: &'static str,
}

/// The address that a case's event sets.
pub fn address(number: usize) -> String {
    format!("{number} storm road")
}

impl Draft {
    /// A plain event of a customer of its own.
    pub fn plain(number: usize, form: Form, dice: &mut StdRng) -> Draft {
        let time =
            jiff::Timestamp::now() - jiff::SignedDuration::from_secs(dice.random_range(1..3600));
        let mut data = json!({"entity_id": format!("S{number}"), "address": address(number)});
        for (field, value) in [("city", "Kochi"), ("state", "Kerala"), ("pincode", "682308")] {
            if dice.random_bool(0.5) {
                data[field] = json!(value);
            }
        }
        let mut draft = Draft {
            number,
            form,
            via: Via::Exchange,
            attributes: Map::new(),
            header_attributes: Vec::new(),
            data,
            headers: FieldTable::default(),
            properties: BasicProperties::default(),
            finish: None,
            is_huge: false,
            owns_type: form == Form::Bare,
            owns_timestamp: form == Form::Bare,
            labels: vec![format!("{form:?}")],
            ends: vec![End::Applied],
            prefix: ["ce-", "cloudEvents_", "cloudEvents:"][dice.random_range(0..3)],
        };
        draft.set_id(&format!("e{number}"));
        match form {
            Form::Bare => {
                let seconds = u64::try_from(time.as_second()).unwrap_or_default();
                draft.properties = draft.properties.with_timestamp(seconds);
            }
            Form::Structured | Form::Binary => {
                draft.set("time", json!(time.to_string()));
                draft.set("specversion", json!("1.0"));
                draft.set("source", json!("storm"));
                draft.set("type", json!("customer.updated"));
            }
        }
        if form == Form::Structured && dice.random_bool(0.8) {
            let content_type = "application/cloudevents+json".into();
            draft.properties = draft.properties.with_content_type(content_type);
        }
        draft
    }

    /// Gives an attribute a value, where the form has a place for it.
    pub fn set(&mut self, name: &str, value: Value) {
        self.attributes.insert(name.to_owned(), value);
    }

    /// Gives the event an id.
    pub fn set_id(&mut self, id: &str) {
        match self.form {
            Form::Bare => self.edit(|properties| properties.with_message_id(id.into())),
            Form::Structured | Form::Binary => self.set("id", json!(id)),
        }
    }

    /// The longest id that the form has room for, in bytes.
    pub fn id_room(&self) -> usize {
        if self.form == Form::Bare { 255 } else { 10_000 }
    }

    /// Changes properties.
    pub fn edit(&mut self, change: impl FnOnce(BasicProperties) -> BasicProperties) {
        self.properties = change(std::mem::take(&mut self.properties));
    }

    /// Notes what was done.
    pub fn label(&mut self, label: &str) {
        self.labels.push(label.to_owned());
    }

    /// Notes how it must end.
    pub fn ends(&mut self, ends: &[End]) {
        self.ends = ends.to_vec();
    }

    fn body(&mut self) -> Vec<u8> {
        let body = match self.form {
            Form::Structured => {
                let mut event = self.attributes.clone();
                event.entry("data").or_insert_with(|| self.data.clone());
                Value::Object(event)
            }
            Form::Binary | Form::Bare => self.data.clone(),
        };
        if self.form == Form::Binary {
            for (name, value) in &self.attributes {
                let Value::String(text) = value else { continue };
                let name = format!("{}{name}", self.prefix);
                self.headers.insert(name.into(), AMQPValue::LongString(text.as_str().into()));
            }
            for (name, value) in &self.header_attributes {
                self.headers.insert(format!("{}{name}", self.prefix).into(), value.clone());
            }
        }
        body.to_string().into_bytes()
    }

    /// The message. Its correlation id is its mark, whatever becomes of the rest.
    pub fn finished(mut self, dice: &mut StdRng) -> Case {
        let mut body = self.body();
        if let Some(finish) = self.finish {
            body = finish(body, dice);
        }
        let mark = format!("{}|{}", self.number, texts::any(dice, 200));
        if self.is_huge {
            headers::fill(&mut self.headers, dice);
        }
        let mut properties = self.properties.with_correlation_id(mark.into());
        if !self.headers.inner().is_empty() {
            properties = properties.with_headers(self.headers);
        }
        Case {
            number: self.number,
            labels: self.labels,
            via: self.via,
            properties,
            body,
            customer: self.data["entity_id"].as_str().map(|id| id.trim().to_owned()),
            address: address(self.number),
            answer: None,
            copies: 1,
            ends: self.ends,
        }
    }
}
