//! What 0.1.0's commands said of a ledger and its dead letters, this version's say too.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use serde_json::Value;

use super::{RESTING, empty, place};
use crate::dead_commands::told;
use crate::ledger_commands::shown;
use crate::support::bed::Bed;
use crate::support::fixtures::Fixture;

/// Whether all that was said is said: what is new beside it does not count, nor what shows the time
/// that has gone by, nor the runbook's words.
fn says(now: &Value, then: &Value) -> bool {
    const CHANGING: [&str; 5] = ["due", "due_in_s", "since", "call_under_way", "hint"];
    match (now, then) {
        (Value::Object(now), Value::Object(then)) => then.iter().all(|(name, then)| {
            CHANGING.contains(&name.as_str()) || now.get(name).is_some_and(|now| says(now, then))
        }),
        (Value::Array(now), Value::Array(then)) => {
            now.len() == then.len() && now.iter().zip(then).all(|(now, then)| says(now, then))
        }
        (Value::String(now), Value::String(then)) => says_text(now, then),
        _ => now == then,
    }
}

/// Of a time the index keeps microseconds; how it is shown what is no plain text may change.
fn says_text(now: &str, then: &str) -> bool {
    let time = |text: &str| text.parse::<Timestamp>().map(Timestamp::as_microsecond);
    if let (Ok(now), Ok(then)) = (time(now), time(then)) {
        return now == then;
    }
    now == then || (!is_plain(then) && !now.contains(char::is_control))
}

fn is_plain(text: &str) -> bool {
    text.chars().all(|c| c == ' ' || c.is_ascii_graphic())
}

pub fn ensure_says(now: &Value, then: &Value) -> Result<()> {
    ensure!(says(now, then), "it said {then:#}\nand says now {now:#}");
    Ok(())
}

pub async fn says_what_it_said(bed: Bed, fixture: &Fixture) -> Result<()> {
    place(&bed, fixture, &RESTING).await?;
    let relay = bed.start_relay().await?;
    let (code, out, err) = bed.settings.command(&["check"], b"").await?;
    ensure!(code == 0, "{out}{err}");
    ensure_says(&told(&bed, &["ledger", "show"]).await?, &fixture.said_of("ledger")?)?;
    ensure_says(&told(&bed, &["dead", "audit"]).await?, &fixture.said_of("audit")?)?;
    let groups = told(&bed, &["dead", "groups"]).await?;
    ensure_says(
        &by(&groups["groups"], "group")?,
        &by(&fixture.said_of("groups")?["groups"], "group")?,
    )?;
    for said in fixture.said("customer")? {
        let customer = said["customer"].as_str().context("no name")?;
        if said["is"].is_object() {
            ensure_says(&shown(&bed, customer).await?, &said["is"])?;
        }
    }
    let marked = shown(&bed, "MARKED-FOR-LONG").await?;
    assert_eq!(marked["call_under_way"]["event"], "e-hangs", "{marked}");
    letters_are_shown(&bed, fixture).await?;
    empty(&bed).await?;
    bed.end(relay).await.map(drop)
}

/// An object of a list's members.
fn by(list: &Value, name: &str) -> Result<Value> {
    let members = list.as_array().context("no list")?.iter();
    let named = members.map(|one| Some((one[name].as_str()?.to_owned(), one.clone())));
    Ok(Value::Object(named.collect::<Option<_>>().with_context(|| format!("no {name}"))?))
}

async fn letters_are_shown(bed: &Bed, fixture: &Fixture) -> Result<()> {
    let said = fixture.said("letter")?;
    let said: Vec<Value> = said.into_iter().map(|mut line| line["letter"].take()).collect();
    for indexed in [false, true] {
        if indexed {
            let indexed = told(bed, &["dead", "reindex"]).await?;
            assert_eq!(indexed["indexed"], said.len());
        }
        let listed = by(&told(bed, &["dead", "list"]).await?["dead_letters"], "dead_id")?;
        for then in &said {
            let id = then["dead_id"].as_str().context("no id")?;
            ensure_says(&listed[id], then)?;
        }
    }
    // One of each group, and each whose texts are hostile.
    let mut groups = BTreeSet::new();
    for then in &said {
        let is_hostile = !is_plain(&then["event"].to_string());
        if groups.insert(then["group"].to_string()) || is_hostile {
            let id = then["dead_id"].as_str().context("no id")?;
            let shown = told(bed, &["dead", "show", id]).await?;
            ensure!(shown["outlook"]["verdict"].is_string(), "{shown}");
        }
    }
    let (code, out, err) = bed.settings.command(&["dead", "list"], b"").await?;
    ensure!(code == 0 && out.contains("e-state"), "{out}{err}");
    Ok(())
}
