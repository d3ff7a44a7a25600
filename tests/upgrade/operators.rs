//! What operators began with 0.1.0 they end with this version: plans, exports, edits, moves.

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{RESTING, place};
use crate::dead_commands::told;
use crate::support::bed::Bed;
use crate::support::fixtures::{Fixture, publish};

pub async fn operators_go_on_where_they_were(bed: Bed, fixture: &Fixture) -> Result<()> {
    place(&bed, fixture, &RESTING).await?;
    let mut work = fixture.messages(&["work"])?;
    work.retain(|message| message.is_of("PLAN-2"));
    publish(&bed, "retry.100ms", &work).await?;
    let relay = bed.start_relay().await?;

    // A plan of which one letter is applied, one under way and one to be put back.
    let mut plan: Value = serde_json::from_str(&fixture.text("plan.json")?)?;
    plan["made"] = json!(Timestamp::now().to_string());
    let file = bed.state().join("plan.json");
    std::fs::write(&file, plan.to_string())?;
    let file = file.to_str().context("a path")?;
    let replayed = told(&bed, &["dead", "replay", "--plan", file, "--yes", "--wait"]).await?;
    for (name, value) in [("letters", 3), ("applied", 3), ("left", 0), ("pending", 0)] {
        assert_eq!(replayed[name], value, "{name} of {replayed}");
    }
    assert_eq!(replayed["put_back"], 1, "{replayed}");

    // Of an export, the one that was purged.
    let file = bed.state().join("export.jsonl");
    std::fs::write(&file, fixture.text("export.jsonl")?)?;
    let import = ["dead", "import", file.to_str().context("a path")?, "--yes"];
    let imported = told(&bed, &import).await?;
    assert_eq!((&imported["imported"], &imported["left_out"]), (&json!(1), &json!(1)));

    // The original of a letter that was edited twice, and one that was archived.
    let archived = told(&bed, &["dead", "restore", "--all", "--yes"]).await?;
    ensure!(archived["restored"].as_u64() >= Some(2), "{archived}");
    let one = |customer: &'static str| letter(&bed, customer);
    let (edited, exported) = (one("EDITED").await?, one("EXPORTED").await?);
    let archived = one("ARCHIVED").await?;
    let edit = ["dead", "edit", &edited, &exported, &archived, "--set", "state=Kerala"];
    let done = told(&bed, &[&edit[..], &["--why", "one word", "--yes"]].concat()).await?;
    assert_eq!(done["edited"], 3, "{done}");

    // Letters of an operator, of the broker, of a stranger, of one whose call may be under way.
    let mut replayed = vec!["dead", "replay", &edited, &exported, &archived];
    let customers = ["DEAD-KILLS", "DEAD-FOREIGN", "MARKED-FOR-LONG", "REPLAYED-DEAD"];
    let mut others = Vec::new();
    for customer in customers {
        others.push(one(customer).await?);
    }
    replayed.extend(others.iter().map(String::as_str));
    let save = bed.state().join("another.json");
    replayed.extend(["--yes", "--wait", "--no-canary", "--save", save.to_str().context("a path")?]);
    let replayed = told(&bed, &replayed).await?;
    assert_eq!(replayed["applied"], 7, "{replayed}");
    for customer in customers.iter().chain(&["EDITED", "EXPORTED", "ARCHIVED", "PLAN-2", "PLAN-3"])
    {
        bed.applied(customer, 1).await?;
    }
    let known = bed.simulator.customer("EDITED").await?;
    assert_eq!(known["fields"]["state"], "Kerala");

    let audit = told(&bed, &["dead", "audit"]).await?;
    let acts: Vec<&Value> =
        audit["acts"].as_array().context("a list")?.iter().map(|act| &act["act"]).collect();
    let then = fixture.said_of("audit")?["acts"].as_array().map_or(0, Vec::len);
    assert_eq!(acts[then..], ["replay", "import", "restore", "edit", "replay"]);
    let purge = ["dead", "purge", "--all", "--why", "the end", "--yes"];
    told(&bed, &purge).await?;
    bed.queues.take_all(&bed.queue("archive")).await?;
    bed.end(relay).await.map(drop)
}

/// A customer's dead letter.
async fn letter(bed: &Bed, customer: &str) -> Result<String> {
    let listed = told(bed, &["dead", "list", "--customer", customer]).await?;
    let id = listed["dead_letters"][0]["dead_id"].as_str();
    id.map(str::to_owned).with_context(|| format!("no dead letter of {customer}"))
}
