//! The conservation checker: holds what was published against what became of it. Pure.

use std::collections::BTreeMap;

use super::events::{Event, Fate, Fields, number};
use super::evidence::{Allowance, Customer, Evidence, Message};

/// So many events are named in a finding; the rest is counted.
pub(super) const NAMED: usize = 8;

/// The sums, and whatever breaks a promise.
#[derive(Clone, Debug, Default)]
pub struct Account {
    pub sent: usize,
    pub applied: usize,
    pub letters: usize,
    /// Applied or buried beyond what was sent.
    pub doubles: usize,
    /// What explains them.
    pub allowance: Allowance,
    pub findings: Vec<String>,
}

/// Adds up.
pub fn account(events: &[Event], evidence: &Evidence) -> Account {
    let mut findings = Vec::new();
    let applied = applied(events, &evidence.customers, &mut findings);
    let letters = letters(events.len(), &evidence.letters, &mut findings);
    lost(events, evidence, &applied, &letters, &mut findings);
    wrong_ends(events, &applied, &letters, &mut findings);
    overlaps(evidence, &mut findings);
    let mut account = Account {
        sent: evidence.published.sent.iter().sum(),
        applied: applied.iter().sum(),
        letters: evidence.letters.len(),
        allowance: evidence.allowance,
        ..Account::default()
    };
    for (number, sent) in evidence.published.sent.iter().enumerate() {
        account.doubles += (applied[number] + letters[number].len()).saturating_sub(*sent);
    }
    let Account { doubles, allowance, .. } = account;
    let allowed_doubles = allowance.doubles();
    if doubles > allowed_doubles {
        let Allowance { prefetch, losses, ambiguous_calls, .. } = allowance;
        findings.push(format!(
            "{doubles} doubles; {losses} losses of at most {prefetch} unacked deliveries and \
             {ambiguous_calls} ambiguous calls explain {allowed_doubles}"
        ));
    }
    account.findings = findings;
    account
}

/// How often each event was applied. An update must be an event of its customer's, value by value,
/// and a customer's fields those of the last updates that set them.
fn applied(events: &[Event], customers: &[Customer], findings: &mut Vec<String>) -> Vec<usize> {
    let mut times = vec![0; events.len()];
    for customer in customers {
        let id = &customer.id;
        if customer.history.len() != customer.applied {
            findings.push(format!("{id}: the simulator has forgotten updates; draw fewer events"));
        }
        let mut expected = Fields::new();
        for update in &customer.history {
            let event = update.get("address").and_then(|address| number(address));
            let event = event.and_then(|event| Some((event, events.get(event)?)));
            match event {
                Some((number, event)) if event.customer == *id && event.fields == *update => {
                    times[number] += 1;
                }
                _ => findings.push(format!("{id}: an update was published for nobody: {update:?}")),
            }
            expected.extend(update.clone());
        }
        if customer.fields != expected {
            let state = &customer.fields;
            findings.push(format!("{id}: state {state:?}, its updates add up to {expected:?}"));
        }
    }
    times
}

/// The reasons of each event's dead letters.
pub(super) fn letters<'a>(
    events: usize,
    letters: &'a [Message],
    findings: &mut Vec<String>,
) -> Vec<Vec<&'a str>> {
    let mut reasons = vec![Vec::new(); events];
    for letter in letters {
        match letter.event.and_then(|number| reasons.get_mut(number)) {
            Some(reasons) => reasons.push(letter.reason.as_str()),
            None => findings.push(format!("a dead letter of nobody's: {letter:?}")),
        }
    }
    reasons
}

/// Every confirmed message has an end, or is told to be still queued: not one an event alone,
/// because without a ledger a copy is a message like any other.
fn lost(
    events: &[Event],
    evidence: &Evidence,
    applied: &[usize],
    letters: &[Vec<&str>],
    findings: &mut Vec<String>,
) {
    let mut queues: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    let mut waiting = vec![0; events.len()];
    for message in &evidence.queued {
        let Some(number) = message.event.filter(|number| *number < events.len()) else {
            findings.push(format!("a message of nobody's: {message:?}"));
            continue;
        };
        waiting[number] += 1;
        queues.entry(&message.queue).or_default().push(number);
    }
    let ends = |number: usize| applied[number] + letters[number].len() + waiting[number];
    let confirmed = evidence.published.confirmed.iter().enumerate();
    let lost = confirmed.filter(|(number, confirmed)| ends(*number) < **confirmed);
    let lost: Vec<usize> = lost.map(|(number, _)| number).collect();
    if !lost.is_empty() {
        findings.push(format!("LOST: {}", named(&lost, events)));
    }
    for (queue, numbers) in queues {
        findings.push(format!("left in {queue}: {}", named(&numbers, events)));
    }
}

/// Each event that has an end has the right one, and no other.
fn wrong_ends(
    events: &[Event],
    applied: &[usize],
    letters: &[Vec<&str>],
    findings: &mut Vec<String>,
) {
    let mut wrong: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (number, event) in events.iter().enumerate() {
        let expected = event.fate.reason();
        let fate = event.fate;
        for reason in letters[number].iter().filter(|reason| Some(**reason) != expected) {
            let what = format!("{fate:?} by plan, but a dead letter ({reason})");
            wrong.entry(what).or_default().push(number);
        }
        if applied[number] > 0 && matches!(fate, Fate::Invalid | Fate::Rejected) {
            wrong.entry(format!("{fate:?} by plan, but applied")).or_default().push(number);
        }
    }
    for (what, numbers) in wrong {
        findings.push(format!("{what}: {}", named(&numbers, events)));
    }
}

/// One customer's calls go one at a time, but across a kill.
pub(super) fn overlaps(evidence: &Evidence, findings: &mut Vec<String>) {
    let allowance = evidence.allowance;
    let overlapping: Vec<_> =
        evidence.customers.iter().filter(|customer| customer.most_at_once > 1).collect();
    let allowed = allowance.overlapping_customers();
    if overlapping.len() > allowed {
        let ids: Vec<_> = overlapping.iter().take(NAMED).map(|customer| &customer.id).collect();
        let count = overlapping.len();
        findings.push(format!("{count} customers had calls at once ({ids:?}); {allowed} may"));
        return;
    }
    for customer in overlapping.iter().filter(|one| one.most_at_once > 1 + allowance.kills) {
        findings.push(format!("{}: {} calls at once", customer.id, customer.most_at_once));
    }
}

pub(super) fn named(numbers: &[usize], events: &[Event]) -> String {
    let name = |number: &usize| format!("e{number} of {}", events[*number].customer);
    let names: Vec<String> = numbers.iter().take(NAMED).map(name).collect();
    let rest = numbers.len().saturating_sub(NAMED);
    let rest = if rest > 0 { format!(" and {rest} more") } else { String::new() };
    format!("{}{rest}", names.join(", "))
}
