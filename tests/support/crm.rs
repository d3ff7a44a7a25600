//! A CRM's history: events with random patches and snapshots, in the CRM's own order, and what the
//! portal holds when they are applied in that order.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use super::bed::Bed;

/// A customer's values by field.
pub type Fields = BTreeMap<String, String>;

/// Events in the CRM's order.
pub struct History {
    pub events: Vec<Value>,
    /// What every customer's fields are in the end.
    pub expected: BTreeMap<String, Fields>,
}

/// All fields but the customer's id, each value the event's own as far as the page allows.
fn snapshot(number: usize, customer: usize, dice: &mut StdRng) -> Fields {
    let letters = |mut number: usize| {
        let mut text = String::from("Q");
        while number > 0 {
            text.push(char::from(b'a' + u8::try_from(number % 26).unwrap_or(0)));
            number /= 26;
        }
        text
    };
    Fields::from([
        ("email".into(), format!("c{customer}.e{number}@crm.example")),
        ("mobile_no".into(), format!("9{number:09}")),
        ("address".into(), format!("{number} MG Road")),
        ("country".into(), "India".into()),
        ("city".into(), letters(number)),
        ("state".into(), letters(number + 7)),
        ("pincode".into(), format!("6{:05}", dice.random_range(0..100_000))),
    ])
}

impl History {
    /// Draws so many events of so many customers: three in ten are snapshots, the others patches.
    pub fn draw(source: &str, count: usize, customers: usize, dice: &mut StdRng) -> History {
        let began = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(1);
        let mut expected: BTreeMap<String, Fields> = BTreeMap::new();
        let mut events = Vec::with_capacity(count);
        for number in 0..count {
            let customer = dice.random_range(0..customers);
            let mut fields = snapshot(number, customer, dice);
            if !dice.random_bool(0.3) {
                let kept = dice.random_range(0..7);
                let mut index = 0;
                fields.retain(|_, _| {
                    index += 1;
                    index - 1 == kept || dice.random_bool(0.3)
                });
            }
            let id = format!("C{customer}");
            expected.entry(id.clone()).or_default().extend(fields.clone());
            let mut data = json!(fields);
            data["entity_id"] = json!(id);
            // Some events have one moment: then their sequence counts.
            let time = began + Duration::from_millis(number as u64 / 3);
            events.push(json!({
                "specversion": "1.0", "id": format!("e{number}"), "source": source,
                "type": "customer.updated", "time": time.to_string(),
                "sequence": number.to_string(), "data": data,
            }));
        }
        History { events, expected }
    }

    /// The fields that are not as they should be, with what they are and should be.
    pub async fn wrong_fields(&self, bed: &Bed) -> Result<Vec<String>> {
        let mut wrong = Vec::new();
        let customers = bed.simulator.customers().await?;
        ensure!(customers.len() == self.expected.len(), "{} customers", customers.len());
        for customer in customers {
            let id = customer["fields"]["entity_id"].as_str().unwrap_or_default();
            for (field, value) in &self.expected[id] {
                let found = &customer["fields"][field];
                if *found != json!(value) {
                    wrong.push(format!("{id}.{field} is {found}, not {value:?}"));
                }
            }
        }
        Ok(wrong)
    }
}
