//! What happens from outside, as a list that can be shortened, printed and read again.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use customer_relay::domain::outcome::Outcome;

/// A failure is shortened for so long.
const SHRINKS_FOR: Duration = Duration::from_secs(20);

/// One thing that happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// An event of a customer is published.
    Publish(usize),
    /// One that the portal never takes, though it takes the customer's others.
    PublishBad(usize, Outcome),
    /// Something is wrong with everybody.
    Trouble(Outcome),
    Heal,
    /// A relay is killed, and started again.
    Crash(usize),
    /// A relay is stopped in good order, and started again.
    Stop(usize),
    /// A relay loses its connection to the broker.
    LoseSession(usize),
    /// The portal expects other credentials; the relays get them with `Mend`.
    Change,
    Mend,
    /// Leases run out: all but those under which a call is made.
    ExpireLeases,
    /// From now on the ledger takes no row of this customer.
    Refuse(usize),
    /// A relay stands still for so many seconds: SIGSTOP, or its host does.
    Sleep(usize, u64),
    /// A relay's wall clock is set to so many seconds from the right time.
    SetClock(usize, i64),
    /// An operator.
    Pause,
    Resume,
}

/// What happens when.
pub(super) type Script = Vec<(Duration, Event)>;

/// As text, a line each: milliseconds and what.
pub(super) fn print(script: &Script) -> String {
    let mut text = String::new();
    for (at, event) in script {
        let event = match event {
            Event::Publish(customer) => format!("publish {customer}"),
            Event::PublishBad(customer, fault) => {
                format!("publish-bad {customer} {}", fault.name())
            }
            Event::Trouble(outcome) => format!("trouble {}", outcome.name()),
            Event::Heal => "heal".into(),
            Event::Crash(relay) => format!("crash {relay}"),
            Event::Stop(relay) => format!("stop {relay}"),
            Event::LoseSession(relay) => format!("lose-session {relay}"),
            Event::Change => "change-secret".into(),
            Event::Mend => "mend-secret".into(),
            Event::ExpireLeases => "expire-leases".into(),
            Event::Refuse(customer) => format!("refuse {customer}"),
            Event::Sleep(relay, seconds) => format!("sleep {relay} {seconds}"),
            Event::SetClock(relay, seconds) => format!("set-clock {relay} {seconds}"),
            Event::Pause => "pause".into(),
            Event::Resume => "resume".into(),
        };
        writeln!(text, "{} {event}", at.as_millis()).expect("writing to a String cannot fail");
    }
    text
}

/// From text.
pub(super) fn parse(text: &str) -> Result<Script> {
    text.lines().filter(|line| !line.trim().is_empty()).map(parse_line).collect()
}

fn parse_line(line: &str) -> Result<(Duration, Event)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let number = |index: usize| -> Result<usize> {
        Ok(words.get(index).with_context(|| format!("no number: {line}"))?.parse()?)
    };
    let outcome = |index: usize| {
        let is_meant = |outcome: &Outcome| words.get(index) == Some(&outcome.name());
        Outcome::ALL.into_iter().find(is_meant).context("no such outcome")
    };
    let event = match words.get(1).copied() {
        Some("publish") => Event::Publish(number(2)?),
        Some("publish-bad") => Event::PublishBad(number(2)?, outcome(3)?),
        Some("trouble") => Event::Trouble(outcome(2)?),
        Some("heal") => Event::Heal,
        Some("crash") => Event::Crash(number(2)?),
        Some("stop") => Event::Stop(number(2)?),
        Some("lose-session") => Event::LoseSession(number(2)?),
        Some("change-secret") => Event::Change,
        Some("mend-secret") => Event::Mend,
        Some("expire-leases") => Event::ExpireLeases,
        Some("refuse") => Event::Refuse(number(2)?),
        Some("sleep") => Event::Sleep(number(2)?, number(3)?.try_into()?),
        Some("set-clock") => {
            let seconds = words.get(3).with_context(|| format!("no seconds: {line}"))?;
            Event::SetClock(number(2)?, seconds.parse()?)
        }
        Some("pause") => Event::Pause,
        Some("resume") => Event::Resume,
        _ => bail!("what is {line:?}?"),
    };
    Ok((Duration::from_millis(number(0)?.try_into()?), event))
}

/// The shortest part of a failing script that still fails: halves, quarters and so on are left out
/// while it does.
pub(super) fn shrink(script: &Script, fails: impl Fn(&Script) -> bool) -> Script {
    let end = Instant::now() + SHRINKS_FOR;
    let mut shortest = script.clone();
    let mut part = shortest.len().div_ceil(2);
    while part > 0 {
        let mut from = 0;
        while from < shortest.len() && Instant::now() < end {
            let mut shorter = shortest.clone();
            shorter.drain(from..(from + part).min(shorter.len()));
            if fails(&shorter) {
                shortest = shorter;
            } else {
                from += part;
            }
        }
        part /= 2;
    }
    shortest
}
