//! Nothing is lost, and nothing ends where it does not belong, when everything breaks at once. The
//! long version, seed after seed, is `make chaos`. The checker itself is held to its word first.

mod storm;

use anyhow::{Result, ensure};

use crate::harness::{Context, suite};
use crate::support::seed;
use storm::conserve::{Account, account};
use storm::converge;
use storm::crm::Published;
use storm::events::{Event, Fate, Fields};
use storm::evidence::{Allowance, Customer, Evidence, Message};
use storm::plan::{Plan, Scale};

suite!(
OwnBroker:
    every_event_has_its_end_in_a_storm_of_faults,
    the_portal_converges_in_a_storm_of_faults;
NoBroker:
    a_seed_decides_the_whole_plan,
    the_checker_accepts_the_ends_that_are_right,
    the_checker_notices_a_lost_event,
    the_checker_notices_a_wrong_end,
    the_checker_notices_what_is_left_in_a_queue,
    the_checker_notices_doubles_that_nothing_explains,
    the_checker_notices_values_of_another_customer,
    the_checker_notices_calls_at_once,
    the_checker_notices_a_customer_that_did_not_converge,
);

/// Odd seeds have no ledger.
async fn every_event_has_its_end_in_a_storm_of_faults(context: Context) -> Result<()> {
    weather(context, seed()? | 1).await
}

/// Even seeds have one.
async fn the_portal_converges_in_a_storm_of_faults(context: Context) -> Result<()> {
    weather(context, seed()? & !1).await
}

async fn weather(context: Context, seed: u64) -> Result<()> {
    let plan = storm::plan(seed, Scale::SHORT)?;
    let broker = context.own_broker().await?;
    let bed = context.bed_on(&broker, &plan.simulator_args()).await?;
    let report = storm::run(plan, bed, broker).await?;
    let Account { sent, applied, letters, doubles, .. } = report.account;
    let faults: usize = report.injected.values().sum();
    println!(
        "RabbitMQ {}, TEST_SEED={}: {faults} faults, {sent} messages, {applied} applied, \
         {letters} dead letters, {doubles} doubles",
        report.version, report.plan.seed
    );
    report.verdict()
}

async fn a_seed_decides_the_whole_plan(_: Context) -> Result<()> {
    let draw = |seed| Plan::draw(seed, Scale::SHORT);
    assert_eq!(draw(7), draw(7));
    assert_ne!(draw(7).events, draw(8).events);
    assert_ne!(draw(7).faults, draw(8).faults);
    Ok(())
}

fn event(customer: &str, fate: Fate, number: usize) -> Event {
    let fields = Fields::from([("address".to_owned(), format!("{number} MG Road"))]);
    Event { customer: customer.to_owned(), fate, fields }
}

fn events() -> Vec<Event> {
    vec![
        event("C-1", Fate::Applied, 0),
        event("C-1", Fate::Applied, 1),
        event("C-2", Fate::Invalid, 2),
        event("R-1", Fate::Rejected, 3),
        event("P-0", Fate::Poisoned, 4),
    ]
}

fn letter(number: usize, reason: &str) -> Message {
    Message { queue: "dead".to_owned(), reason: reason.to_owned(), event: Some(number) }
}

fn customer(id: &str, numbers: &[usize]) -> Customer {
    let history: Vec<Fields> =
        numbers.iter().map(|number| event(id, Fate::Applied, *number).fields).collect();
    let fields = history.last().cloned().unwrap_or_default();
    Customer { id: id.to_owned(), fields, applied: history.len(), history, most_at_once: 1 }
}

/// All is well.
fn evidence() -> Evidence {
    Evidence {
        published: Published { sent: vec![1; 5], confirmed: vec![1; 5] },
        customers: vec![customer("C-1", &[0, 1])],
        letters: vec![
            letter(2, "invalid-event"),
            letter(3, "rejected"),
            letter(4, "retries-exhausted"),
        ],
        queued: Vec::new(),
        allowance: Allowance::default(),
    }
}

/// The only finding speaks of `text`.
fn finds(evidence: &Evidence, text: &str) -> Result<()> {
    let findings = account(&events(), evidence).findings;
    ensure!(findings.len() == 1 && findings[0].contains(text), "{text:?}? {findings:?}");
    Ok(())
}

async fn the_checker_accepts_the_ends_that_are_right(_: Context) -> Result<()> {
    let sums = account(&events(), &evidence());
    ensure!(sums.findings.is_empty(), "{:?}", sums.findings);
    assert_eq!((sums.applied, sums.letters, sums.doubles), (2, 3, 0));
    Ok(())
}

async fn the_checker_notices_a_lost_event(_: Context) -> Result<()> {
    let lost = Evidence { customers: vec![customer("C-1", &[1])], ..evidence() };
    finds(&lost, "LOST: e0 of C-1")?;
    let mut unburied = evidence();
    unburied.letters.pop();
    finds(&unburied, "LOST: e4 of P-0")?;
    let mut copy = evidence();
    (copy.published.sent[1], copy.published.confirmed[1]) = (3, 2);
    finds(&copy, "LOST: e1 of C-1")
}

async fn the_checker_notices_a_wrong_end(_: Context) -> Result<()> {
    let mut wrong = evidence();
    wrong.published.sent[0] = 2;
    wrong.letters.push(letter(0, "rejected"));
    finds(&wrong, "Applied by plan, but a dead letter (rejected): e0 of C-1")?;
    let mut wrong = evidence();
    wrong.letters[1] = letter(3, "unauthorized-customer");
    finds(&wrong, "Rejected by plan, but a dead letter (unauthorized-customer): e3 of R-1")?;
    let mut wrong = evidence();
    wrong.letters.remove(0);
    wrong.customers.push(customer("C-2", &[2]));
    finds(&wrong, "Invalid by plan, but applied: e2 of C-2")
}

async fn the_checker_notices_what_is_left_in_a_queue(_: Context) -> Result<()> {
    let left = Message { queue: "work".to_owned(), reason: String::new(), event: Some(0) };
    let customers = vec![customer("C-1", &[1])];
    finds(&Evidence { queued: vec![left], customers, ..evidence() }, "left in work: e0 of C-1")
}

async fn the_checker_notices_doubles_that_nothing_explains(_: Context) -> Result<()> {
    let mut doubled = evidence();
    doubled.customers = vec![customer("C-1", &[0, 1, 0])];
    finds(&doubled, "1 doubles")?;
    doubled.allowance.ambiguous_calls = 1;
    assert_eq!(account(&events(), &doubled).doubles, 1);
    ensure!(account(&events(), &doubled).findings.is_empty(), "an ambiguous call explains it");
    doubled.allowance = Allowance::default();
    doubled.published.sent[0] = 2;
    assert_eq!(account(&events(), &doubled).doubles, 0);
    Ok(())
}

async fn the_checker_notices_values_of_another_customer(_: Context) -> Result<()> {
    let mut wrong = evidence();
    wrong.published.sent[4] = 2;
    wrong.customers.push(customer("C-2", &[4]));
    finds(&wrong, "C-2: an update was published for nobody")?;
    let mut wrong = evidence();
    wrong.customers[0].fields.insert("city".to_owned(), "Pune".to_owned());
    finds(&wrong, "C-1: state")
}

async fn the_checker_notices_calls_at_once(_: Context) -> Result<()> {
    let mut wrong = evidence();
    wrong.customers[0].most_at_once = 2;
    finds(&wrong, "1 customers had calls at once")?;
    wrong.allowance = Allowance { kills: 1, in_flight: 1, ..Allowance::default() };
    ensure!(account(&events(), &wrong).findings.is_empty(), "a kill explains it");
    wrong.customers[0].most_at_once = 3;
    finds(&wrong, "C-1: 3 calls at once")
}

async fn the_checker_notices_a_customer_that_did_not_converge(_: Context) -> Result<()> {
    let events = vec![event("C-1", Fate::Applied, 0), event("C-1", Fate::Applied, 1)];
    let published = Published { sent: vec![1, 1], confirmed: vec![1, 1] };
    let held = |number: usize| {
        let fields = events[number].fields.clone();
        let customers = vec![Customer { id: "C-1".into(), fields, ..Customer::default() }];
        Evidence { published: published.clone(), customers, ..Evidence::default() }
    };
    assert_eq!(converge::account(&events, &held(1)).findings, Vec::<String>::new());
    let findings = converge::account(&events, &held(0)).findings;
    assert!(findings[0].starts_with("1 customers did not converge"), "{findings:?}");
    Ok(())
}
