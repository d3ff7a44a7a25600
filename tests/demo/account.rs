//! What became of each event, from the simulator's read-back and the queues alone: the relay's own
//! word is not asked.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use anyhow::Result;
use serde_json::Value;

use super::events::{End, Plan, Planned};
use super::support::queues::{Queues, Taken};
use super::support::simulator::Simulator;

/// The account of one tour.
#[derive(Default)]
pub(crate) struct Account {
    published: usize,
    applied_at_once: usize,
    applied_after_retries: usize,
    superseded: usize,
    dead: BTreeMap<String, usize>,
    examples: BTreeMap<String, Taken>,
    queued: usize,
    missing: Vec<String>,
    unexpected: Vec<String>,
}

impl Account {
    /// Reads back and compares with the plan.
    pub(crate) async fn of(
        plan: &Plan,
        simulator: &Simulator,
        queues: &Queues,
        prefix: &str,
    ) -> Result<Account> {
        let customers: HashMap<String, Value> = simulator
            .customers()
            .await?
            .into_iter()
            .filter_map(|customer| {
                Some((customer["fields"]["entity_id"].as_str()?.to_owned(), customer))
            })
            .collect();
        let mut dead: HashMap<Vec<u8>, Taken> = HashMap::new();
        for taken in queues.take_all(&format!("{prefix}.dead")).await? {
            dead.insert(taken.body.clone(), taken);
        }
        let mut queued: HashMap<Vec<u8>, Taken> = HashMap::new();
        for queue in [
            "work",
            "retry.500ms",
            "retry.750ms",
            "retry.1000ms",
            "retry.1500ms",
            "retry.2000ms",
            "retry.3000ms",
            "retry.4000ms",
        ] {
            for taken in queues.take_all(&format!("{prefix}.{queue}")).await? {
                queued.insert(taken.body.clone(), taken);
            }
        }
        let mut account = Account::default();
        for event in plan.iter() {
            let customer = event.customer.as_ref().and_then(|id| customers.get(id));
            account.add(event, customer, dead.get(&event.line), queued.contains_key(&event.line));
        }
        Ok(account)
    }

    fn add(
        &mut self,
        event: &Planned,
        customer: Option<&Value>,
        dead: Option<&Taken>,
        queued: bool,
    ) {
        self.published += 1;
        let name = event.customer.clone().unwrap_or_default();
        let applied = customer
            .is_some_and(|customer| customer["applied"] != 0 && customer["fields"] == event.data);
        // Its customer has the newer values, and they differ in this one.
        let is_superseded = event.end == End::Superseded
            && customer.is_some_and(|customer| customer["fields"]["city"] == "Kochi");
        let end = if is_superseded && dead.is_none() && !queued {
            self.superseded += 1;
            Some(End::Superseded)
        } else if applied {
            // A control call sends again what was applied: that is no retry.
            if customer.is_some_and(|customer| customer["calls"] != customer["applied"]) {
                self.applied_after_retries += 1;
                Some(End::AppliedLater)
            } else {
                self.applied_at_once += 1;
                Some(End::Applied)
            }
        } else if let Some(taken) = dead {
            let reason = taken.header("x-relay-reason").unwrap_or_default();
            *self.dead.entry(reason.clone()).or_default() += 1;
            self.examples.entry(reason.clone()).or_insert_with(|| taken.clone());
            (event.end == End::Dead(reason_name(&reason))).then_some(event.end)
        } else if queued {
            self.queued += 1;
            Some(event.end)
        } else {
            self.missing.push(name);
            return;
        };
        if end != Some(event.end) {
            self.unexpected.push(format!("{name}: {:?}, expected {:?}", end, event.end));
        }
    }

    /// Every event has its end, and the right one.
    pub(crate) fn adds_up(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty()
    }

    /// Some events still wait.
    pub(crate) fn is_interrupted(&self) -> bool {
        self.queued > 0
    }
}

/// The plan's own copy of a reason's name.
fn reason_name(reason: &str) -> &'static str {
    const REASONS: [&str; 7] = [
        "rejected",
        "duplicate-email",
        "retries-exhausted",
        "invalid-event",
        "unsupported-type",
        "undecodable",
        "too-large",
    ];
    REASONS.into_iter().find(|known| *known == reason).unwrap_or("another")
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "The account, from the simulator's read-back and the queues")?;
        writeln!(f, "  {:>5}  published", self.published)?;
        writeln!(f, "  {:>5}  applied at the first call", self.applied_at_once)?;
        writeln!(f, "  {:>5}  applied after retries", self.applied_after_retries)?;
        writeln!(f, "  {:>5}  superseded by newer values", self.superseded)?;
        let dead: usize = self.dead.values().sum();
        writeln!(f, "  {dead:>5}  dead letters")?;
        for (reason, count) in &self.dead {
            writeln!(f, "         {count:>5}  {reason}")?;
            if let Some(detail) =
                self.examples.get(reason).and_then(|one| one.header("x-relay-detail"))
            {
                writeln!(f, "                {detail}")?;
            }
        }
        writeln!(f, "  {:>5}  still queued", self.queued)?;
        writeln!(f, "  {:>5}  missing {}", self.missing.len(), self.missing.join(" "))?;
        for line in &self.unexpected {
            writeln!(f, "  NOT AS PLANNED  {line}")?;
        }
        if self.adds_up() && self.is_interrupted() {
            writeln!(f, "Every event has its end or still waits in a queue: nothing is missing.")?;
        } else if self.adds_up() {
            writeln!(f, "Every event has its end: nothing is missing.")?;
        }
        Ok(())
    }
}
