//! The portal's customers and their e-mails as plain data; whoever holds the book may change it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use serde::{Serialize, Serializer};

use crate::clock;
use crate::fields::{Field, Fields, Form};
use crate::page::Rule;

/// How many applied updates a customer remembers.
const HISTORY: usize = 32;

/// Who the customers are, and who owns which e-mail.
#[derive(Debug, Default)]
pub(crate) struct Book {
    /// Grows with every reset, so that calls from before it no longer count.
    pub(crate) generation: u64,
    pub(crate) customers: BTreeMap<String, Customer>,
    owners: HashMap<String, String>,
    pub(crate) known: u64,
    pub(crate) applied: u64,
}

/// One customer: the current fields and what was done to them.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Customer {
    pub(crate) fields: Fields,
    /// False for an entity that was only ever called in vain.
    #[serde(skip)]
    pub(crate) is_known: bool,
    pub(crate) calls: u64,
    pub(crate) applied: u64,
    pub(crate) in_flight: u32,
    pub(crate) max_in_flight: u32,
    #[serde(skip_serializing_if = "VecDeque::is_empty")]
    pub(crate) history: VecDeque<Applied>,
}

/// One applied update, as it was sent.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Applied {
    unix_ms: i64,
    #[serde(serialize_with = "as_sent")]
    fields: Arc<Form>,
}

fn as_sent<S: Serializer>(form: &Arc<Form>, serializer: S) -> Result<S::Ok, S::Error> {
    form.as_ref().serialize(serializer)
}

impl Book {
    /// A book of the customers C1, C2, … up to `count`.
    pub(crate) fn seeded(count: u32, generation: u64) -> Self {
        let mut book = Self { generation, ..Self::default() };
        for number in 1..=count {
            let (entity_id, email) = (format!("C{number}"), format!("c{number}@seed.example"));
            book.owners.insert(email.clone(), entity_id.clone());
            let customer = book.create(&entity_id);
            customer.fields.set(Field::EntityId, &entity_id);
            customer.fields.set(Field::Email, &email);
        }
        book
    }

    /// The customer's entry, made when there is none.
    pub(crate) fn entry(&mut self, entity_id: &str) -> &mut Customer {
        self.customers.entry(entity_id.to_owned()).or_default()
    }

    fn create(&mut self, entity_id: &str) -> &mut Customer {
        let is_new = !self.customers.get(entity_id).is_some_and(|customer| customer.is_known);
        self.known += u64::from(is_new);
        let customer = self.entry(entity_id);
        customer.is_known = true;
        customer
    }

    /// Makes `entity_id` the owner of `email` and frees the one it had; letter case is ignored.
    pub(crate) fn give_email(&mut self, entity_id: &str, email: &str) -> Result<(), Rule> {
        let email = email.to_ascii_lowercase();
        match self.owners.get(&email) {
            Some(owner) if owner != entity_id => return Err(Rule::EmailTaken),
            Some(_) => return Ok(()),
            None => {}
        }
        let customer = self.customers.get(entity_id);
        if let Some(old) = customer.and_then(|customer| customer.fields.get(Field::Email)) {
            self.owners.remove(&old.to_ascii_lowercase());
        }
        self.owners.insert(email, entity_id.to_owned());
        Ok(())
    }

    /// Sets what `form` sends, and remembers it.
    pub(crate) fn apply(&mut self, form: &Arc<Form>) {
        self.applied += 1;
        let customer = self.create(form.entity_id());
        customer.applied += 1;
        for (field, value) in form.sent() {
            customer.fields.set(field, value);
        }
        if customer.history.len() == HISTORY {
            customer.history.pop_front();
        }
        customer.history.push_back(Applied { unix_ms: clock::unix_ms(), fields: form.clone() });
    }
}

impl Customer {
    /// Was it created, or only called in vain?
    pub(crate) fn is_known(&self) -> bool {
        self.is_known
    }

    /// The customer without the history.
    pub(crate) fn summary(&self) -> Self {
        Self { fields: self.fields.clone(), history: VecDeque::new(), ..*self }
    }
}
