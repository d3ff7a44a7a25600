//! The account of a storm with a ledger: events of one customer may go as one call, and older values
//! are not sent at all, so what counts is what the portal holds in the end. Pure.

use std::collections::BTreeMap;

use super::conserve::{Account, NAMED, letters, named, overlaps};
use super::events::{Event, Fate, Fields};
use super::evidence::Evidence;

/// Adds up.
pub fn account(events: &[Event], evidence: &Evidence) -> Account {
    let mut findings = Vec::new();
    let letters = letters(events.len(), &evidence.letters, &mut findings);
    converged(events, evidence, &letters, &mut findings);
    dead(events, evidence, &letters, &mut findings);
    for message in &evidence.queued {
        findings.push(format!("left in {}: {:?}", message.queue, message.event));
    }
    overlaps(evidence, &mut findings);
    Account {
        sent: evidence.published.sent.iter().sum(),
        applied: evidence.customers.iter().map(|customer| customer.applied).sum(),
        letters: evidence.letters.len(),
        allowance: evidence.allowance,
        findings,
        ..Account::default()
    }
}

/// Each customer has the newest value of every field, of the events that can be applied.
fn converged(
    events: &[Event],
    evidence: &Evidence,
    letters: &[Vec<&str>],
    findings: &mut Vec<String>,
) {
    let mut expected: BTreeMap<&str, Fields> = BTreeMap::new();
    for (number, event) in events.iter().enumerate() {
        let counts = match event.fate {
            Fate::Applied => true,
            // Its attempts may have been exhausted.
            Fate::Poisoned => letters[number].is_empty(),
            Fate::Invalid | Fate::Rejected => false,
        };
        if counts {
            expected.entry(&event.customer).or_default().extend(event.fields.clone());
        }
    }
    let held: BTreeMap<&str, &Fields> =
        evidence.customers.iter().map(|one| (one.id.as_str(), &one.fields)).collect();
    let mut wrong = Vec::new();
    for (customer, fields) in &expected {
        if held.get(customer) != Some(&fields) {
            wrong.push(format!("{customer}: {:?}, not {fields:?}", held.get(customer)));
        }
    }
    if !wrong.is_empty() {
        let shown = wrong[..wrong.len().min(NAMED)].join("\n    ");
        findings.push(format!("{} customers did not converge:\n    {shown}", wrong.len()));
    }
}

/// What cannot be applied is a dead letter for the right reason, each copy of it; nothing else is.
fn dead(events: &[Event], evidence: &Evidence, letters: &[Vec<&str>], findings: &mut Vec<String>) {
    let (mut lost, mut wrong) = (Vec::new(), Vec::new());
    for (number, event) in events.iter().enumerate() {
        let expected = event.fate.reason();
        if letters[number].iter().any(|reason| Some(*reason) != expected) {
            wrong.push(number);
        }
        let must_be_dead = matches!(event.fate, Fate::Invalid | Fate::Rejected);
        if must_be_dead && letters[number].len() < evidence.published.confirmed[number] {
            lost.push(number);
        }
    }
    for (what, numbers) in [("LOST", lost), ("a wrong dead letter", wrong)] {
        if !numbers.is_empty() {
            findings.push(format!("{what}: {}", named(&numbers, events)));
        }
    }
}
