//! What the CRM publishes in one storm, drawn from the seed. Pure.

use std::collections::BTreeMap;

use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::{Value, json};

const CUSTOMERS: usize = 400;
/// The simulator remembers 32 updates of a customer; doubles need room there too.
const MOST_PER_CUSTOMER: usize = 20;
/// Customers whose every update the portal rejects.
const REJECTED_CUSTOMERS: usize = 5;
/// A copy follows its event by up to so many others.
const COPY_WITHIN: usize = 20;
/// What the ids of customers begin with: ordinary ones, rejected ones, the poison one.
const ORDINARY: &str = "C-";
/// See [`ORDINARY`].
pub const REJECTED: &str = "R-";
/// See [`ORDINARY`].
pub const POISON: &str = "P-";

/// Where an event must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Applied, never a dead letter.
    Applied,
    /// A dead letter, `invalid-event`.
    Invalid,
    /// A dead letter, `rejected`.
    Rejected,
    /// The portal fails on it as long as the storm lasts: applied afterwards, unless its attempts
    /// were exhausted before.
    Poisoned,
}

impl Fate {
    /// Why its dead letters are some; `None` if it has none.
    pub fn reason(self) -> Option<&'static str> {
        match self {
            Fate::Applied => None,
            Fate::Invalid => Some("invalid-event"),
            Fate::Rejected => Some("rejected"),
            Fate::Poisoned => Some("retries-exhausted"),
        }
    }
}

/// Field values by name.
pub type Fields = BTreeMap<String, String>;

/// One event; its address is its own, and tells its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub customer: String,
    pub fate: Fate,
    /// All but `entity_id`.
    pub fields: Fields,
}

/// All events, and the order in which they are published, copies on purpose included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Events {
    pub all: Vec<Event>,
    pub order: Vec<usize>,
}

impl Events {
    /// Draws so many.
    pub fn draw(dice: &mut StdRng, count: usize) -> Events {
        let mut load: BTreeMap<String, usize> = BTreeMap::new();
        let mut all = Vec::with_capacity(count);
        while all.len() < count {
            let (customer, fate) = draw_customer(dice);
            let load = load.entry(customer.clone()).or_default();
            // The dead letters of a rejected customer need no room.
            if *load < MOST_PER_CUSTOMER || fate == Fate::Rejected {
                *load += 1;
                let fields = draw_fields(dice, all.len(), &customer, fate);
                all.push(Event { customer, fate, fields });
            }
        }
        let mut order: Vec<usize> = (0..count).collect();
        for number in 0..count {
            if dice.random_bool(0.03) {
                let at = (number + dice.random_range(1..COPY_WITHIN)).min(order.len());
                order.insert(at, number);
            }
        }
        Events { all, order }
    }

    /// The event's message.
    pub fn message(&self, number: usize, source: &str, time: &str) -> Value {
        let Event { customer, fields, .. } = &self.all[number];
        let mut data = json!(fields);
        data["entity_id"] = json!(customer);
        json!({"specversion": "1.0", "id": format!("e{number}"), "source": source,
               "type": "customer.updated", "time": time, "data": data})
    }
}

/// The number of the event with this address.
pub fn number(address: &str) -> Option<usize> {
    address.strip_suffix(" MG Road")?.parse().ok()
}

fn draw_customer(dice: &mut StdRng) -> (String, Fate) {
    let ordinary = |dice: &mut StdRng| format!("{ORDINARY}{}", dice.random_range(0..CUSTOMERS));
    match dice.random_range(0..1000) {
        0..5 => (format!("{POISON}0"), Fate::Poisoned),
        5..25 => (ordinary(dice), Fate::Invalid),
        25..45 => {
            (format!("{REJECTED}{}", dice.random_range(0..REJECTED_CUSTOMERS)), Fate::Rejected)
        }
        _ => (ordinary(dice), Fate::Applied),
    }
}

/// Any subset beside the address. An e-mail is the customer's own for ever: it never moves.
fn draw_fields(dice: &mut StdRng, number: usize, customer: &str, fate: Fate) -> Fields {
    let cities = ["Kochi", "Pune", "Delhi"];
    let states = ["Kerala", "Maharashtra", "Delhi"];
    let place = dice.random_range(0..3);
    let values = [
        ("email", format!("{}@crm.example", customer.to_lowercase())),
        ("mobile_no", format!("9{:09}", dice.random_range(0..1_000_000_000))),
        ("city", cities[place].to_owned()),
        ("state", states[place].to_owned()),
        ("pincode", format!("68{:04}", dice.random_range(0..10_000))),
    ];
    let mut fields = Fields::from([("address".to_owned(), format!("{number} MG Road"))]);
    for (name, value) in values {
        if dice.random_bool(0.4) {
            fields.insert(name.to_owned(), value);
        }
    }
    if fate == Fate::Invalid {
        fields.insert("pincode".to_owned(), "0".to_owned());
    }
    fields
}
