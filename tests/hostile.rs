//! No event and no answer of the portal can stop or slow the others: generated messages and answers
//! of every kind that JSON and AMQP allow, and what became of each. `TEST_LONG=1` sends thousands,
//! `TEST_SEED=n` draws the same again, `TEST_CASES=3,17` sends those of them alone.
//!
//! What lapin cannot read (properties and names of headers that are not UTF-8) is not among them.

mod account;
mod answers;
mod case;
mod commands;
mod draft;
mod fatal;
mod harmless;
mod headers;
mod storm;
mod texts;
mod times;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

use crate::harness::{Context, suite};
use crate::support::bed::Bed;
use crate::support::eventually;
use crate::support::traffic::is_long;
use crate::support::{relay, seed};
use crate::telemetry::serve;
use case::{Case, End};
use draft::{Draft, Form};

suite!(
Broker:
    a_storm_of_hostile_messages_harms_nobody_else;
Postgres:
    a_storm_of_hostile_messages_harms_nobody_else_with_postgresql;
NoBroker:
    a_seed_decides_every_message,
    the_relay_explains_what_becomes_of_a_message,
);

/// Messages of a storm.
const MESSAGES: usize = 240;
const MESSAGES_LONG: usize = 4_000;
/// Messages that `explain` is asked about.
const EXPLAINED: usize = 60;

async fn a_storm_of_hostile_messages_harms_nobody_else(context: Context) -> Result<()> {
    let bed = context.bed_with(&["--log-requests", "1000000"]).await?;
    weather(bed, "SQLite").await
}

async fn a_storm_of_hostile_messages_harms_nobody_else_with_postgresql(
    context: Context,
) -> Result<()> {
    let mut bed = context.bed_with(&["--log-requests", "1000000"]).await?;
    bed.settings.set("ledger.url", &context.postgres().await?.database().await?);
    weather(bed, "PostgreSQL").await
}

/// The short storm of every run; a long one draws another each time, and so does `TEST_SEED`.
const SHORT_STORM: u64 = 591_917;

async fn weather(mut bed: Bed, ledger: &str) -> Result<()> {
    let is_drawn = is_long() || std::env::var_os("TEST_SEED").is_some();
    let seed = if is_drawn { seed()? } else { SHORT_STORM };
    let all = draw(seed, if is_long() { MESSAGES_LONG } else { MESSAGES })?;
    let cases = chosen(all)?;
    bed.settings
        .set("retry.max_attempts", "3")
        .set("retry.max_retry_after", "1s")
        .set("portal.timeout", "5s");
    let evidence = storm::storm(&mut bed, &cases).await.with_context(|| told(seed))?;
    println!("{} {ledger}: {}", told(seed), summary(&cases, &evidence));
    let mut findings = account::findings(&cases, &evidence);
    if !findings.is_empty() {
        eprintln!("{}: {}", told(seed), listed(&findings));
    }
    let (relay, port) = serve(&mut bed).await?;
    findings.extend(go_on(&bed, &cases).await?);
    let began = std::time::Instant::now();
    findings.extend(commands::all(&bed, &cases, &port).await?);
    println!("{} {ledger}: the commands took {:.1?}", told(seed), began.elapsed());
    ensure!(findings.is_empty(), "{}: {}", told(seed), listed(&findings));
    relay::stop(relay).await?;
    bed.finish().await
}

fn told(seed: u64) -> String {
    format!("TEST_SEED={seed}")
}

fn listed(findings: &[String]) -> String {
    let shown: Vec<&str> = findings.iter().take(40).map(String::as_str).collect();
    format!("{} findings\n- {}", findings.len(), shown.join("\n- "))
}

fn summary(cases: &[Case], evidence: &storm::Evidence) -> String {
    let plain = account::percentiles(&evidence.plain);
    let (median, p99, longest) = plain.unwrap_or_default();
    format!(
        "{} messages, {} dead letters, {} waiting, {} calls; {} plain events in {median} ms, {p99} \
         ms at the 99th percentile, {longest} ms at most; {} MiB, {} bytes of log an event",
        cases.len(),
        evidence.letters.len(),
        evidence.waiting.len(),
        evidence.calls,
        evidence.plain.len(),
        evidence.peak_memory_kib / 1024,
        evidence.output.len() / (cases.len() + evidence.plain.len()).max(1),
    )
}

/// All messages of a seed, in the order in which they are sent.
fn draw(seed: u64, count: usize) -> Result<Vec<Case>> {
    let mut dice = StdRng::seed_from_u64(seed);
    let mut cases = Vec::new();
    while cases.len() < count {
        let number = cases.len();
        let form =
            [Form::Structured, Form::Structured, Form::Binary, Form::Bare][dice.random_range(0..4)];
        let draft = Draft::plain(number, form, &mut dice);
        match dice.random_range(0..20) {
            0..7 => {
                let mut case = harmless::case(draft, &mut dice);
                case.copies = if dice.random_range(0..8) == 0 { 3 } else { 1 };
                cases.push(case);
            }
            7..14 => cases.push(fatal::case(draft, &mut dice)),
            14 => cases.push(harmless::open_case(draft, &mut dice)),
            15 => cases.push(harmless::wrong_past(draft, &mut dice)),
            16 if dice.random_range(0..4) == 0 => cases.push(waiting(draft, &mut dice)),
            16 => cases.extend(one_customers(number, &mut dice)),
            _ => cases.push(answers::case(number, &mut dice)),
        }
    }
    for mut kept in case::kept()? {
        kept.number = cases.len();
        let mark = format!("{}|kept", kept.number);
        kept.properties = kept.properties.with_correlation_id(mark.into());
        cases.push(kept);
    }
    cases.shuffle(&mut dice);
    Ok(cases)
}

fn waiting(mut draft: Draft, dice: &mut StdRng) -> Case {
    draft.label("not due");
    harmless::change(&mut draft, dice);
    times::waiting(&mut draft, dice);
    draft.finished(dice)
}

/// Three of one customer, an hour between each; the last is what the portal has in the end.
fn one_customers(number: usize, dice: &mut StdRng) -> Vec<Case> {
    let now = jiff::Timestamp::now();
    (0..3)
        .map(|turn| {
            let mut draft = Draft::plain(number + turn, Form::Structured, dice);
            draft.label("one of three of a customer");
            draft.data["entity_id"] = json!(format!("G{number}"));
            let hours = i64::try_from(3 - turn).unwrap_or_default();
            let time = now - jiff::SignedDuration::from_hours(hours);
            draft.set("time", json!(times::spelled(time, dice)));
            if turn < 2 {
                draft.ends(&[End::Applied, End::Superseded]);
            }
            draft.finished(dice)
        })
        .collect()
}

/// Those that `TEST_CASES` names.
fn chosen(cases: Vec<Case>) -> Result<Vec<Case>> {
    let Ok(named) = std::env::var("TEST_CASES") else { return Ok(cases) };
    let numbers: Vec<usize> =
        named.split(',').map(|number| number.trim().parse()).collect::<Result<_, _>>()?;
    Ok(cases.into_iter().filter(|case| numbers.contains(&case.number)).collect())
}

/// After a restart every customer that was heard of gets a plain update: what the ledger keeps of
/// it can be read. Whose update is not applied is told.
async fn go_on(bed: &Bed, cases: &[Case]) -> Result<Vec<String>> {
    let heard_of = |case: &&Case| case.may(&End::Applied) && case.answer.is_none();
    let mut customers: Vec<&str> =
        cases.iter().filter(heard_of).filter_map(|case| case.customer.as_deref()).collect();
    customers.sort_unstable();
    customers.dedup();
    // Newer than what was four minutes ahead.
    let time = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(290);
    let event = |(number, customer): (usize, &&str)| {
        let fields = json!({"city": "Thrissur"});
        let mut event = bed.event(&format!("again-{number}"), customer, &fields);
        event["time"] = json!(time.to_string());
        event
    };
    let events: Vec<Value> = customers.iter().enumerate().map(event).collect();
    bed.queues.publish_events(&bed.exchange(), &events).await?;
    let missing = || async {
        let held = bed.simulator.customers().await?;
        let is_new = |customer: &&Value| customer["fields"]["city"] == json!("Thrissur");
        let new: Vec<&str> = held
            .iter()
            .filter(is_new)
            .filter_map(|customer| customer["fields"]["entity_id"].as_str())
            .collect();
        let missing = customers.iter().filter(|customer| !new.contains(customer));
        anyhow::Ok(missing.map(ToString::to_string).collect::<Vec<_>>())
    };
    let limit = Duration::from_secs(20);
    let all = eventually("an update of each customer", limit, || async {
        Ok(missing().await?.is_empty().then_some(()))
    })
    .await;
    let tell = |id: String| format!("the next update of customer {id:?} is not applied");
    Ok(if all.is_ok() {
        Vec::new()
    } else {
        missing().await?.into_iter().take(5).map(tell).collect()
    })
}

async fn a_seed_decides_every_message(_: Context) -> Result<()> {
    let labels = |seed| -> Result<Vec<_>> {
        Ok(draw(seed, 200)?.into_iter().map(|case| (case.number, case.labels)).collect())
    };
    assert_eq!(labels(7)?, labels(7)?);
    assert_ne!(labels(7)?, labels(8)?);
    Ok(())
}

/// Offline, and by the body alone: what it says to be refused is refused for that reason, and what it
/// would send is nothing that must be refused.
async fn the_relay_explains_what_becomes_of_a_message(_: Context) -> Result<()> {
    let seed = seed()?;
    let by_its_body = |case: &Case| {
        let other = ["Binary", "Bare", "no time and no sequence", "a past that is none"];
        !case.labels.iter().any(|label| other.contains(&label.as_str()))
            && case.properties.expiration().is_none()
            && case.answer.is_none()
    };
    let cases = draw(seed, EXPLAINED * 4)?.into_iter().filter(by_its_body).take(EXPLAINED);
    let mut findings = Vec::new();
    for case in cases {
        let (code, out, err) = crate::support::process::run(
            relay::PROGRAM,
            &["explain", "--json", "-"],
            &[("CUSTOMER_RELAY__PORTAL__SECRET_KEY".to_owned(), "secret".to_owned())],
            &case.body,
        )
        .await?;
        let said: Value = serde_json::from_str(&out).unwrap_or_default();
        let reason = said["refused"]["reason"].as_str();
        let agrees = match reason {
            Some(reason) => case.ends.iter().any(|end| match end {
                End::Dead { reason: None, .. } => true,
                End::Dead { reason: Some(wanted), .. } => wanted == reason,
                End::Applied | End::Superseded | End::Waits => false,
            }),
            None if said["unsent"].is_object() => case.may(&End::Waits),
            None => case.may(&End::Applied),
        };
        if code != 0 || !agrees {
            findings.push(format!("exit {code} {reason:?} {err}: {case}"));
        }
    }
    ensure!(findings.is_empty(), "{}: {}", told(seed), listed(&findings));
    Ok(())
}
