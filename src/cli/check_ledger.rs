//! What `check` finds about the ledger, and about settings that weaken what it is for.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::ledger::mark_at_broker;
use crate::amqp::{Hold, Link, hold, topology};
use crate::config::{Config, Declare};
use crate::domain::doubt::Gap;
use crate::domain::ledger_mark::{Comparison, LedgerMark};
use crate::domain::version::Required;
use crate::ledger::{
    About, Condition, Counts, CustomerKey, Directory, LedgerError, Numbered, Store, Target,
};

/// Dead letters are replayed within such a time; a ledger should remember for longer.
const DEAD_LETTERS_LIVE: Duration = Duration::from_hours(30 * 24);

/// The ledger, looked at.
#[derive(Default)]
pub(super) struct Looked {
    about: Option<About>,
    condition: Option<Condition>,
    at_broker: Option<LedgerMark>,
    numbered: Option<Numbered>,
    notes: Vec<String>,
    warnings: Vec<String>,
    faults: Vec<String>,
}

/// Looks at everything; makes nothing.
pub(super) async fn look(link: &Link, config: &Config) -> anyhow::Result<Looked> {
    let target = &config.ledger.target;
    let mut looked = Looked { at_broker: mark_at_broker(link, config).await?, ..Looked::default() };
    if let Target::Sqlite(path) = target {
        let Directory { faults, warnings } = Directory::look(path);
        (looked.faults, looked.warnings) = (faults, warnings);
    }
    match examine(target).await {
        Ok(Some((about, condition, numbered))) => looked.compare(about, condition, numbered),
        Ok(None) => looked.note_none(),
        Err(LedgerError::Missing(_)) => looked.note_missing(target),
        Err(
            error @ (LedgerError::Unreachable(_)
            | LedgerError::Broken(_)
            | LedgerError::Unfit(_)
            | LedgerError::Locked(_)
            | LedgerError::Refused(_)
            | LedgerError::InUse(_)),
        ) => {
            looked.faults.push(error.to_string());
        }
    }
    looked.warnings.extend(weaknesses(config));
    looked.warnings.extend(beside_others(link, config).await?);
    Ok(looked)
}

async fn examine(target: &Target) -> Result<Option<(About, Condition, Numbered)>, LedgerError> {
    let Some((store, about)) = Store::visit(target).await? else { return Ok(None) };
    Ok(Some((about, store.inspect().await?, store.load_number().await?)))
}

impl Looked {
    pub(super) fn is_faulty(&self) -> bool {
        !self.faults.is_empty()
    }

    fn compare(&mut self, about: About, mut condition: Condition, numbered: Numbered) {
        self.faults.append(&mut condition.faults);
        self.faults.extend(unreadable_rows(&condition.unreadable));
        match &self.at_broker {
            Some(known) => match numbered.mark(&about).compare(known) {
                Comparison::FailedOver { since } => self.warnings.push(fail_over(since)),
                compared => self.faults.extend(compared.fault()),
            },
            None => self.notes.push("its id is not at the broker yet; `run` writes it".to_owned()),
        }
        self.notes.extend(numbered.gap.map(open_gap));
        (self.about, self.condition) = (Some(about), Some(condition));
        self.numbered = Some(numbered);
    }

    fn note_none(&mut self) {
        if let Some(LedgerMark { id, .. }) = &self.at_broker {
            self.warnings
                .push(format!("this work queue was fenced by the ledger {id}; now it is not"));
        }
    }

    fn note_missing(&mut self, target: &Target) {
        match &self.at_broker {
            Some(LedgerMark { id, .. }) => self.faults.push(format!(
                "the work queue is fenced by the ledger {id}, but there is none in {target}: put it \
                 back, or a backup of it with `customer-relay ledger restore FILE`; without one, let \
                 `run` make a new one and accept that with `customer-relay ledger adopt`"
            )),
            None => self.notes.push("not there yet; `run` makes it".to_owned()),
        }
    }

    pub(super) fn to_json(&self, config: &Config) -> Value {
        let counts = self.condition.as_ref().map(|condition| condition.counts);
        json!({
            "target": config.ledger.target.to_string(),
            "id": self.about.as_ref().map(|about| about.id.to_string()),
            "created": self.about.as_ref().map(|about| about.created.to_string()),
            "id_at_broker": self.at_broker.as_ref().map(|known| &known.id),
            "number": self.numbered.as_ref().map(|numbered| numbered.number),
            "number_at_broker": self.at_broker.as_ref().and_then(|known| known.number),
            "customers": counts.map(|counts| counts.customers),
            "pending": counts.map(|counts| counts.pending),
            "dead_letters": counts.map(|counts| counts.dead),
            "faults": self.faults,
            "notes": self.notes,
            "warnings": self.warnings,
        })
    }

    pub(super) fn to_lines(&self, config: &Config) -> Vec<String> {
        let subject = format!("ledger {}", config.ledger.target);
        let mut lines = Vec::new();
        if let Some(Condition { counts, .. }) = &self.condition {
            let Counts { customers, pending, dead } = counts;
            let mark = if self.is_faulty() { "note " } else { "ok   " };
            let holds =
                format!("{customers} customers, {pending} pending retries, {dead} dead letters");
            lines.push(format!("{mark}  {subject}: {holds}"));
        }
        lines.extend(self.faults.iter().map(|fault| format!("FAULT  {subject}: {fault}")));
        lines.extend(self.notes.iter().map(|note| format!("note   {subject}: {note}")));
        lines.extend(self.warnings.iter().map(|warning| format!("WARN   {warning}")));
        lines
    }
}

pub(super) fn fail_over(since: Option<Timestamp>) -> String {
    let since = since.map_or_else(|| "an unknown time".to_owned(), |since| since.to_string());
    format!(
        "the ledger's PostgreSQL has failed over since {since}: unless the replica was synchronous, \
         its last commits may be lost; then `customer-relay ledger doubts --open {since}`"
    )
}

fn open_gap(Gap { from, until }: Gap) -> String {
    format!(
        "what was applied between {from} and {until} is not known: `customer-relay ledger doubts` \
         shows the events in doubt, `--close` ends it"
    )
}

/// Customers whose events wait until somebody mends their rows.
fn unreadable_rows(keys: &[CustomerKey]) -> Option<String> {
    const SHOWN: usize = 3;
    let shown: Vec<String> = keys.iter().take(SHOWN).map(ToString::to_string).collect();
    let more = if keys.len() > SHOWN { ", …" } else { "" };
    (!keys.is_empty()).then(|| {
        format!(
            "{} customers' rows cannot be read (keys {}{more}); their events wait: `customer-relay \
             ledger mend --all --from BACKUP`, or `--empty`",
            keys.len(),
            shown.join(", ")
        )
    })
}

/// Settings under which the portal may end with an older value.
fn weaknesses(config: &Config) -> Vec<String> {
    let mut found = Vec::new();
    if config.ledger.target == Target::None {
        let text = "ledger none: an update that waits for a retry, or a dead letter that is replayed, \
                    can overwrite a newer one of the same customer; set ledger.url";
        found.push(text.to_owned());
    }
    if config.rules.orders_by_arrival {
        let text = "order.missing \"arrival\": events without a time are ordered as they came, among the \
                    times of others by our clock, which is not how the CRM made them; let it send a time";
        found.push(text.to_owned());
    }
    if config.rules.required == Required::Any {
        let text = "order.require \"any\": an event with a time alone and one with a sequence alone cannot be \
                    compared, and what order.by names counts as older where it is absent; ask for \"time\", \
                    \"sequence\" or \"both\"";
        found.push(text.to_owned());
    }
    if let Some(retention) = config.ledger.retention.filter(|kept| *kept < DEAD_LETTERS_LIVE) {
        found.push(format!(
            "ledger.retention ({} h) is shorter than 30 days: a dead letter that is replayed after it \
             can overwrite a newer update; make it longer than any dead letter lives",
            retention.as_secs() / 3600
        ));
    }
    let (settle_after, timeout) = (config.portal.settle_after, config.portal.timeout);
    if settle_after < timeout {
        found.push(format!(
            "portal.settle_after ({settle_after:?}) is shorter than portal.timeout ({timeout:?}): a \
             call that was given up may still overwrite a newer one; make it twice the timeout"
        ));
    }
    found
}

/// What keeps relays from working beside each other on a ledger that is not made for it.
async fn beside_others(link: &Link, config: &Config) -> anyhow::Result<Vec<String>> {
    let topology = &config.broker.topology;
    if matches!(config.ledger.target, Target::Postgres(_)) {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    let work = topology.work_queue();
    let consumers = topology::consumers(link, &work).await?.unwrap_or(0);
    if consumers > 1 {
        found.push(format!(
            "{work} has {consumers} consumers, but without PostgreSQL nothing keeps their updates of one \
             customer in order; stop all but one"
        ));
    }
    // Where we own the topology, we may declare.
    if config.broker.declare == Declare::Check
        && matches!(hold(link, topology).await?, Hold::Forbidden)
    {
        found.push(format!(
            "this user may not declare {}, the lock of the active relay: nothing keeps a relay of \
             another host out; allow it, or use postgres://",
            topology.active_queue()
        ));
    }
    Ok(found)
}
