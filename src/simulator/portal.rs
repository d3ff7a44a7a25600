//! The customers as the portal holds them, in memory behind one short-held lock. An update is
//! checked and applied in one step, so that an e-mail can never belong to two customers.

use std::ops::Bound;
use std::sync::{Arc, Mutex};

use serde::Serialize;

use crate::book::{Book, Customer};
use crate::fields::{Field, Form};
use crate::page::{self, Rule};
use crate::state::lock;

/// All customers, and who owns which e-mail.
#[derive(Debug)]
pub(crate) struct Portal {
    creates_customers: bool,
    seeded: u32,
    book: Mutex<Book>,
}

/// A call that is in flight for a customer, until `leave` takes it back.
#[derive(Debug)]
pub(crate) struct Ticket {
    generation: u64,
    form: Arc<Form>,
}

/// A page of the read-back.
#[derive(Debug, Serialize)]
pub(crate) struct Page {
    customers: Vec<Customer>,
    /// Ask for what comes `after` this one; null on the last page.
    next: Option<String>,
}

/// How many customers there are and how many updates were applied to them.
#[derive(Debug, Serialize)]
pub(crate) struct Totals {
    customers: u64,
    applied: u64,
}

impl Portal {
    /// A portal with `seeded` customers named C1, C2, …; `creates_customers` says whether an
    /// update may create the customer that it names.
    pub(crate) fn new(creates_customers: bool, seeded: u32) -> Self {
        let book = Mutex::new(Book::seeded(seeded, 0));
        Self { creates_customers, seeded, book }
    }

    /// Goes back to the customers of the start.
    pub(crate) fn reset(&self) {
        let mut book = lock(&self.book);
        *book = Book::seeded(self.seeded, book.generation + 1);
    }

    /// Counts a call for the customer that `form` names.
    pub(crate) fn enter(&self, form: &Arc<Form>) -> Ticket {
        let mut book = lock(&self.book);
        if !form.entity_id().is_empty() {
            let customer = book.entry(form.entity_id());
            customer.calls += 1;
            customer.in_flight += 1;
            customer.max_in_flight = customer.max_in_flight.max(customer.in_flight);
        }
        Ticket { generation: book.generation, form: Arc::clone(form) }
    }

    /// Ends the call that `enter` counted.
    pub(crate) fn leave(&self, ticket: &Ticket) {
        let mut book = lock(&self.book);
        if book.generation == ticket.generation
            && let Some(customer) = book.customers.get_mut(ticket.form.entity_id())
        {
            customer.in_flight -= 1;
        }
    }

    /// Checks `form` against the page and the other customers, then applies it.
    pub(crate) fn update(&self, form: &Arc<Form>) -> Result<(), Rule> {
        let mut book = lock(&self.book);
        let current = book.customers.get(form.entity_id());
        page::check(form, current.and_then(|customer| customer.fields.get(Field::Country)))?;
        if !self.creates_customers && !current.is_some_and(|customer| customer.is_known) {
            return Err(Rule::CustomerNotFound);
        }
        if let Some(email) = form.get(Field::Email) {
            book.give_email(form.entity_id(), email)?;
        }
        book.apply(form);
        Ok(())
    }

    /// One customer, also one that was called but never created.
    pub(crate) fn customer(&self, entity_id: &str) -> Option<Customer> {
        lock(&self.book).customers.get(entity_id).cloned()
    }

    /// Up to `limit` known customers whose id sorts after `after`, without their histories.
    pub(crate) fn page(&self, after: Option<&str>, limit: usize) -> Page {
        let book = lock(&self.book);
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let range = book.customers.range::<str, _>((start, Bound::Unbounded));
        let mut known = range.filter(|(_, customer)| customer.is_known).peekable();
        let page: Vec<_> = known.by_ref().take(limit).collect();
        let last = page.last().filter(|_| known.peek().is_some());
        Page {
            next: last.map(|(entity_id, _)| (*entity_id).clone()),
            customers: page.into_iter().map(|(_, customer)| customer.summary()).collect(),
        }
    }

    /// The portal's sums.
    pub(crate) fn totals(&self) -> Totals {
        let book = lock(&self.book);
        Totals { customers: book.known, applied: book.applied }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(portal: &Portal, body: &str) -> Result<(), Rule> {
        portal.update(&Arc::new(Form::parse(body.as_bytes())))
    }

    fn field(portal: &Portal, entity_id: &str, field: Field) -> Option<String> {
        portal.customer(entity_id)?.fields.get(field).map(str::to_owned)
    }

    #[test]
    fn an_update_sets_what_is_sent_and_keeps_the_rest() {
        let portal = Portal::new(true, 0);
        update(&portal, "entity_id=C1&city=Kochi&state=Kerala").expect("valid");
        update(&portal, "entity_id=C1&city=Thrissur").expect("valid");
        assert_eq!(field(&portal, "C1", Field::City).as_deref(), Some("Thrissur"));
        assert_eq!(field(&portal, "C1", Field::State).as_deref(), Some("Kerala"));
        let customer = portal.customer("C1").expect("created");
        assert_eq!((customer.applied, customer.history.len()), (2, 2));
    }

    #[test]
    fn an_email_has_one_owner_and_is_free_again_after_a_change() {
        let portal = Portal::new(true, 0);
        update(&portal, "entity_id=C1&email=a@x.in").expect("valid");
        update(&portal, "entity_id=C1&email=a@x.in&city=Kochi").expect("its own e-mail");
        let taken = update(&portal, "entity_id=C2&email=A@x.in");
        assert_eq!(taken, Err(Rule::EmailTaken));
        assert!(!portal.customer("C2").is_some_and(|customer| customer.is_known));
        update(&portal, "entity_id=C1&email=b@x.in").expect("free");
        update(&portal, "entity_id=C2&email=a@x.in").expect("given back");
        assert_eq!(update(&portal, "entity_id=C1&email=a@x.in"), Err(Rule::EmailTaken));
        assert_eq!(field(&portal, "C1", Field::Email).as_deref(), Some("b@x.in"));
    }

    #[test]
    fn a_refused_update_changes_nothing() {
        let portal = Portal::new(true, 0);
        update(&portal, "entity_id=C1&city=Kochi").expect("valid");
        let refused = update(&portal, "entity_id=C1&email=a@x.in&city=New+Delhi");
        assert_eq!(refused, Err(Rule::Value(Field::City)));
        assert_eq!(field(&portal, "C1", Field::Email), None);
        update(&portal, "entity_id=C2&email=a@x.in").expect("still free");
    }

    #[test]
    fn the_stored_country_decides_about_a_pincode() {
        let portal = Portal::new(true, 0);
        update(&portal, "entity_id=C1&country=Nepal").expect("valid");
        update(&portal, "entity_id=C1&pincode=446").expect("foreign");
        update(&portal, "entity_id=C1&country=India").expect("valid");
        let refused = update(&portal, "entity_id=C1&pincode=446");
        assert_eq!(refused, Err(Rule::Value(Field::Pincode)));
    }

    #[test]
    fn a_strict_portal_knows_only_its_seeded_customers() {
        let portal = Portal::new(false, 2);
        update(&portal, "entity_id=C2&city=Kochi").expect("seeded");
        assert_eq!(update(&portal, "entity_id=C3&city=Kochi"), Err(Rule::CustomerNotFound));
        assert_eq!(update(&portal, "entity_id=C1&email=c2@seed.example"), Err(Rule::EmailTaken));
        assert_eq!(portal.totals().customers, 2);
    }

    #[test]
    fn calls_in_flight_are_counted_by_customer_and_survive_a_reset() {
        let portal = Portal::new(true, 0);
        let form = Arc::new(Form::parse(b"entity_id=C1"));
        let (first, second) = (portal.enter(&form), portal.enter(&form));
        portal.leave(&first);
        let customer = portal.customer("C1").expect("called");
        assert_eq!((customer.calls, customer.in_flight, customer.max_in_flight), (2, 1, 2));
        portal.reset();
        let _third = portal.enter(&form);
        portal.leave(&second);
        assert_eq!(portal.customer("C1").map(|customer| customer.in_flight), Some(1));
    }

    #[test]
    fn the_read_back_goes_in_pages() {
        let portal = Portal::new(true, 3);
        let first = portal.page(None, 2);
        assert_eq!((first.customers.len(), first.next.as_deref()), (2, Some("C2")));
        let last = portal.page(first.next.as_deref(), 2);
        assert_eq!((last.customers.len(), last.next), (1, None));
    }
}
