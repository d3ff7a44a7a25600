//! How the events end that 0.1.0 left in the queues, and what its fences hold back.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::place;
use crate::ledger_commands::shown;
use crate::support::bed::{Bed, LIMIT};
use crate::support::fixtures::{Fixture, at, event, publish, publish_untimed, with};
use crate::support::messages::Message;
use crate::support::{eventually, relay};

pub async fn rows_that_stopped_it_are_read(bed: Bed, fixture: &Fixture) -> Result<()> {
    let said = fixture.said_of("stopped")?;
    let said = said.as_str().context("no text")?;
    ensure!(said.contains("a row of the ledger cannot be read"), "{said}");
    place(&bed, fixture, &["ledger-id"]).await?;
    let work = fixture.messages(&["work"])?;
    let stopped = ["YEAR-0001", "YEAR-1500", "BEHIND"];
    let is_meant = |message: &Message| stopped.iter().any(|customer| message.is_of(customer));
    let meant: Vec<Message> = work.into_iter().filter(is_meant).collect();
    assert_eq!(meant.len(), 5);
    publish(&bed, "retry.100ms", &meant).await?;
    // It goes on by itself.
    let relay = bed.start_relay().await?;
    for customer in stopped {
        bed.applied(customer, 1).await?;
    }
    let said = fixture.said("customer")?;
    let unread: Vec<&Value> = said.iter().filter(|line| line["fails"].is_string()).collect();
    assert_eq!(unread.len(), 4, "{unread:?}");
    for line in unread {
        let customer = line["customer"].as_str().context("no name")?;
        let known = eventually("the row", LIMIT, || async {
            let known = shown(&bed, customer).await?;
            let is_still_called_for = customer == "YEAR-0001" || customer == "YEAR-1500";
            let time = known["fields"]["city"]["time"].as_str().unwrap_or_default().to_owned();
            Ok((!is_still_called_for || time.starts_with("2026")).then_some(known))
        })
        .await?;
        let event = known["fields"]["city"]["event"].as_str().context("no event")?;
        ensure!(event.ends_with(customer), "{known}");
    }
    let future = &shown(&bed, "YEAR-9999").await?["fields"]["city"];
    assert_eq!(future["time"], "9999-05-31T23:59:59.999999999Z");
    bed.publish(&event("e-of-today", "YEAR-9999", json!({"city": "Aluva"}))).await?;
    superseded(&bed, "YEAR-9999", 1).await?;
    bed.end(relay).await.map(drop)
}

async fn superseded(bed: &Bed, customer: &str, count: u64) -> Result<()> {
    eventually(&format!("{count} superseded of {customer}"), LIMIT, || async {
        Ok((shown(bed, customer).await?["superseded"] == count).then_some(()))
    })
    .await
}

/// Who is called for, and the city that the portal ends with.
const ENDS: [(&str, &str); 16] = [
    ("ORDER", "Aluva"),
    ("YEAR-0001", "Aluva"),
    ("YEAR-1500", "Aluva"),
    ("YEAR-1677", "Aluva"),
    ("YEAR-1969", "Aluva"),
    ("SEQUENCE-DIGITS", "Aluva"),
    ("UNNAMED", "Aluva"),
    ("QUEUED", "Aluva"),
    ("QUEUED-BY-HAND", "Kochi"),
    ("BEHIND", "Kochi"),
    ("LEASED", "Kochi"),
    ("PLAN-2", "Kochi"),
    ("WAITS", "Kochi"),
    ("WAITS-FUTURE", "Kochi"),
    ("MARKED", "Kochi"),
    ("WAITS-EMAIL", ""),
];

pub async fn events_left_end_as_they_should(bed: Bed, fixture: &Fixture) -> Result<()> {
    place(&bed, fixture, &["ledger-id"]).await?;
    let mut left = fixture.messages(&["work", "retry"])?;
    left.retain(|message| !message.is_of("WAITS-CONTROL"));
    publish(&bed, "retry.100ms", &left).await?;
    let relay = bed.start_relay().await?;
    for (customer, city) in ENDS {
        let ended = bed.applied(customer, 1).await?;
        if !city.is_empty() {
            assert_eq!(ended["fields"]["city"], city, "{customer}");
        }
    }
    eventually("the second one's field", LIMIT, || async {
        let marked = bed.simulator.customer("MARKED").await?;
        Ok((marked["fields"]["state"] == "Kerala").then_some(()))
    })
    .await?;
    superseded(&bed, "ORDER", 3).await?;
    // One value breaks a rule, and one id.
    let mut broken = Vec::new();
    for _ in 0..2 {
        broken.extend(bed.dead_letter().await?.header("x-relay-rule"));
    }
    broken.sort_unstable();
    assert_eq!(broken, ["id", "spaces"]);
    for customer in ["WAITS", "WAITS-EMAIL", "WAITS-FUTURE", "MARKED"] {
        nothing_waits(&bed, customer).await?;
    }
    bed.end(relay).await.map(drop)
}

async fn nothing_waits(bed: &Bed, customer: &str) -> Result<()> {
    eventually(&format!("nothing pending of {customer}"), LIMIT, || async {
        let (code, out, err) = bed.settings.command(&["customer", "show", customer], b"").await?;
        let is_nothing = code == 0 || err.contains("knows nothing");
        ensure!(is_nothing, "{out}{err}");
        Ok((!out.contains("pending")).then_some(()))
    })
    .await
}

/// It was written down by an id that is not written any more.
pub async fn an_id_with_control_characters_waits_no_more(
    bed: Bed,
    fixture: &Fixture,
) -> Result<()> {
    place(&bed, fixture, &["ledger-id"]).await?;
    let mut left = fixture.messages(&["retry"])?;
    left.retain(|message| message.is_of("WAITS-CONTROL"));
    publish(&bed, "retry.100ms", &left).await?;
    let relay = bed.start_relay().await?;
    let dead = bed.dead_letter().await?;
    assert_eq!(dead.header("x-relay-rule").as_deref(), Some("id"));
    nothing_waits(&bed, "WAITS-CONTROL").await?;
    bed.end(relay).await.map(drop)
}

/// Of each customer the events that are not newer than what was applied, then one that is.
fn fenced() -> Vec<(&'static str, Vec<Value>, Value)> {
    let aluva = || json!({"city": "Aluva"});
    let new = |customer| at(event("e-new", customer, aluva()), "2026-11-27T00:00:00Z");
    let old = |customer| at(event("e-old", customer, aluva()), "2026-11-01T00:00:00Z");
    let same = |id: &str, customer| event(id, customer, json!({"city": "Kochi"}));
    let of =
        |id: &str, customer, sequence: &str| with(same(id, customer), "sequence", Some(sequence));
    let alone = |sequence| with(of("e-s", "SEQUENCE-ALONE", sequence), "time", None);
    let unnamed = with(same("", "UNNAMED"), "id", None);
    let digits = "SEQUENCE-DIGITS";
    vec![
        ("ORDER", vec![old("ORDER"), same("e-first", "ORDER")], new("ORDER")),
        ("TIES", vec![same("e-tie-0", "TIES"), same("e-tie-2", "TIES")], same("e-tie-3", "TIES")),
        (digits, vec![of("e-s", digits, "41"), same("e-s", digits)], of("e-t", digits, "0043")),
        (
            "SEQUENCE-TEXT",
            vec![of("e-s", "SEQUENCE-TEXT", "99999"), of("e-t", "SEQUENCE-TEXT", "rev-a")],
            of("e-u", "SEQUENCE-TEXT", "rev-c"),
        ),
        (
            "SEQUENCE-LONG",
            vec![of("e-s", "SEQUENCE-LONG", &format!("1{}", "0".repeat(63)))],
            new("SEQUENCE-LONG"),
        ),
        ("SEQUENCE-ALONE", vec![alone("6")], alone("8")),
        ("UNNAMED", vec![unnamed], new("UNNAMED")),
        ("YEAR-1969", vec![], new("YEAR-1969")),
        ("PLAN-1", vec![same("e-PLAN-1", "PLAN-1")], new("PLAN-1")),
        ("ID-UNICODE", vec![old("ID-UNICODE")], new("ID-UNICODE")),
        ("ID-CONTROL", vec![old("ID-CONTROL")], new("ID-CONTROL")),
        ("ID-LONG", vec![old("ID-LONG")], new("ID-LONG")),
    ]
}

pub async fn fences_hold(mut bed: Bed, fixture: &Fixture) -> Result<()> {
    place(&bed, fixture, &["ledger-id"]).await?;
    // What 0.1.0 compared without being asked.
    bed.settings.set("order.require", "any");
    let (texts, others): (Vec<_>, Vec<_>) =
        fenced().into_iter().partition(|(customer, ..)| *customer == "SEQUENCE-TEXT");
    let relay = bed.start_relay().await?;
    hold(&bed, others).await?;
    relay::stop(relay).await?;
    bed.settings.set("order.sequence", "text");
    let relay = bed.start_relay().await?;
    hold(&bed, texts).await?;
    bed.end(relay).await.map(drop)
}

async fn hold(bed: &Bed, fenced: Vec<(&'static str, Vec<Value>, Value)>) -> Result<()> {
    let exchange = bed.exchange();
    for (customer, late, new) in fenced {
        let before = shown(bed, customer).await?["superseded"].as_u64().context("a number")?;
        for (number, event) in (1..).zip(&late) {
            publish_untimed(&bed.queues, &exchange, event).await?;
            superseded(bed, customer, before + number).await?;
        }
        ensure!(bed.simulator.requests(customer).await?.is_empty(), "{customer} is called for");
        publish_untimed(&bed.queues, &exchange, &new).await?;
        bed.applied(customer, 1).await?;
    }
    Ok(())
}
