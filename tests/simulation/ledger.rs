//! A ledger as far as the promises need one: a row a customer, and leases where there are several
//! relays.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use customer_relay::domain::row::Row;
use customer_relay::domain::settlement::Committed;
use customer_relay::domain::turn::Read;

/// Hardly longer than a call with what lies around it: customers are read again all the time.
const LEASE: Duration = Duration::from_secs(45);

#[derive(Debug, Default)]
pub(super) struct Ledger {
    is_leased: bool,
    /// None at all: every row is empty.
    pub(super) is_none: bool,
    rows: HashMap<Arc<str>, Row>,
    leases: HashMap<Arc<str>, Lease>,
    /// Customers whose last owner may have a call under way, until a row says so.
    taken_over: HashSet<Arc<str>>,
    refused: HashSet<Arc<str>>,
    tokens: u64,
}

#[derive(Debug)]
struct Lease {
    relay: usize,
    token: u64,
    until: Duration,
}

impl Ledger {
    pub(super) fn new(is_leased: bool, is_there: bool) -> Ledger {
        Ledger { is_leased, is_none: !is_there, ..Ledger::default() }
    }

    pub(super) fn read(&mut self, customer: &Arc<str>, relay: usize, now: Duration) -> (Read, u64) {
        let row = self.rows.get(customer).cloned().unwrap_or_default();
        let mut was_taken_over = false;
        if self.is_leased {
            if let Some(lease) = self.leases.get(customer) {
                if lease.relay != relay && lease.until > now {
                    return (Read::Held, 0);
                }
                if lease.relay != relay {
                    self.taken_over.insert(Arc::clone(customer));
                }
            }
            was_taken_over = self.taken_over.contains(customer);
            self.tokens += 1;
            let lease = Lease { relay, token: self.tokens, until: now + LEASE };
            self.leases.insert(Arc::clone(customer), lease);
        }
        (Read::Ours { row, was_taken_over }, self.tokens)
    }

    /// Whether a lease lasts for a call.
    pub(super) fn lasts(
        &self,
        customer: &Arc<str>,
        token: u64,
        span: Duration,
        now: Duration,
    ) -> bool {
        !self.is_leased
            || self
                .leases
                .get(customer)
                .is_some_and(|lease| lease.token == token && lease.until > now + span)
    }

    /// What it says of a commit.
    pub(super) fn commit(
        &mut self,
        customer: &Arc<str>,
        row: Option<Row>,
        token: u64,
        keeps_lease: bool,
    ) -> Committed {
        if row.is_some() && self.refuses(customer) {
            return Committed::Refused;
        }
        if self.is_leased {
            if self.leases.get(customer).is_none_or(|lease| lease.token != token) {
                return Committed::LeaseLost;
            }
            if !keeps_lease {
                self.leases.remove(customer);
            }
            if row.is_some() {
                self.taken_over.remove(customer);
            }
        }
        if let Some(row) = row.filter(|_| !self.is_none) {
            let packed = row.pack();
            let row = Row::unpack(&packed).expect("whatever is packed comes out");
            self.rows.insert(Arc::clone(customer), row);
        }
        Committed::Done
    }

    /// Where no row can be written, a letter is all that tells of a turn.
    pub(super) fn end_turn(&mut self, customer: &Arc<str>) {
        self.taken_over.remove(customer);
    }

    /// From now on it takes no row of this customer.
    pub(super) fn refuse(&mut self, customer: &Arc<str>) {
        self.refused.insert(Arc::clone(customer));
    }

    /// Whether it takes no row of this customer.
    pub(super) fn refuses(&self, customer: &Arc<str>) -> bool {
        self.refused.contains(customer)
    }

    /// All that its future hangs on, but for whose the leases are.
    pub(super) fn state(&self) -> String {
        let leases: Vec<Duration> = self.leases.values().map(|lease| lease.until).collect();
        format!("{:?} {leases:?} {:?} {:?}", self.rows, self.taken_over, self.refused)
    }

    /// How many leases are a relay's.
    pub(super) fn leases_of(&self, relay: usize) -> usize {
        self.leases.values().filter(|lease| lease.relay == relay).count()
    }

    /// Whether a lease is the one in force.
    pub(super) fn is_in_force(&self, customer: &Arc<str>, token: u64) -> bool {
        self.leases.get(customer).is_some_and(|lease| lease.token == token)
    }

    pub(super) fn refuses_any(&self) -> bool {
        !self.refused.is_empty()
    }

    /// Every lease runs out but those of these customers.
    pub(super) fn expire_leases(&mut self, but: &HashSet<Arc<str>>) {
        self.leases.retain(|customer, _| but.contains(customer));
    }
}
