//! What an operator can ask and do after a storm: each command works on whatever came of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::case::Case;
use crate::dead_commands::ids;
use crate::support::bed::Bed;
use crate::support::queues::Taken;
use crate::support::traffic::is_long;

/// So many letters are shown one by one, and so many customers asked for; more of them after a long
/// storm.
const SHOWN: usize = 6;
const ASKED: usize = 2;
const TIMES_LONG: usize = 10;
/// All of them together.
const LIMIT: Duration = Duration::from_secs(150);

/// Slower than this is worth a line.
const SLOW: Duration = Duration::from_secs(5);

/// Runs a command; what is wrong with it is noted, and what it wrote given back.
async fn run(bed: &Bed, findings: &mut Vec<String>, args: &[&str]) -> Result<String> {
    let began = Instant::now();
    let (code, out, err) = bed.settings.command(args, b"").await?;
    if began.elapsed() > SLOW {
        println!("{args:?} took {:.1?}", began.elapsed());
    }
    if code != 0 {
        let err: String = err.chars().take(1500).collect();
        findings.push(format!("{args:?}: exit {code}: {err}"));
    }
    for (name, text) in [("output", &out), ("errors", &err)] {
        // What ends a line is meant; nothing else may reach a terminal.
        if let Some(c) = text.chars().find(|c| c.is_control() && *c != '\n') {
            let line = text.lines().find(|line| line.contains(c)).unwrap_or_default();
            let line: String = line.chars().take(400).collect();
            findings.push(format!("{args:?}: {c:?} in its {name}: {line:?}"));
        }
    }
    if args.contains(&"--json") && code == 0 && serde_json::from_str::<Value>(&out).is_err() {
        findings.push(format!("{args:?}: no JSON"));
    }
    Ok(out)
}

async fn json(bed: &Bed, findings: &mut Vec<String>, args: &[&str]) -> Result<Value> {
    let out = run(bed, findings, &[args, &["--json"]].concat()).await?;
    Ok(serde_json::from_str(&out).unwrap_or_default())
}

/// Looks at everything, moves it about and deletes it; what is wrong.
pub async fn all(bed: &Bed, cases: &[Case], port: &str) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    match tokio::time::timeout(LIMIT, run_all(bed, &mut findings, cases, port)).await {
        Ok(ended) => ended.with_context(|| format!("so far: {findings:#?}"))?,
        Err(_) => findings.push(format!("the commands did not end within {LIMIT:?}")),
    }
    Ok(findings)
}

async fn run_all(bed: &Bed, found: &mut Vec<String>, cases: &[Case], port: &str) -> Result<()> {
    let before = bed.queues.look_at_all(&bed.queue("dead")).await?;
    look(bed, found, &before).await?;
    change(bed, found, &before).await?;
    customers(bed, found, cases, port).await?;
    run(bed, found, &["dead", "audit"]).await?;
    for args in [&["dead", "audit"][..], &["ledger", "show"], &["check"]] {
        json(bed, found, args).await?;
    }
    let purge = ["dead", "purge", "--all", "--yes", "--why", "the storm is over"];
    if bed.queues.depth(&bed.queue("dead")).await? > 0 {
        json(bed, found, &purge).await?;
    }
    Ok(())
}

fn often(count: usize) -> usize {
    if is_long() { count * TIMES_LONG } else { count }
}

/// Beside headers that leave no room a detail is cut in the message, but not in the index.
fn keep_details_that_were_cut(before: &Value, after: &mut Value) {
    let Some(letters) = after["dead_letters"].as_array_mut() else { return };
    for (letter, before) in
        letters.iter_mut().zip(before["dead_letters"].as_array().into_iter().flatten())
    {
        let (now, then) = (letter["detail"].as_str(), before["detail"].as_str());
        if now.zip(then).is_some_and(|(now, then)| now.len() >= 100 && then.starts_with(now)) {
            letter["detail"] = before["detail"].clone();
        }
    }
}

async fn look(bed: &Bed, found: &mut Vec<String>, before: &[Taken]) -> Result<()> {
    let count = before.len();
    let listed = json(bed, found, &["dead", "list", "--limit", "1000000"]).await?;
    if ids(&listed).len() != count {
        found.push(format!("dead list: {} of {count}", ids(&listed).len()));
    }
    run(bed, found, &["dead", "list", "--limit", "1000000"]).await?;
    run(bed, found, &["dead", "groups"]).await?;
    let groups = json(bed, found, &["dead", "groups"]).await?;
    if groups["total"] != count {
        found.push(format!("dead groups: {} of {count}", groups["total"]));
    }
    let indexed = json(bed, found, &["dead", "reindex"]).await?;
    if indexed["indexed"] != count {
        found.push(format!("dead reindex: {indexed} of {count}"));
    }
    let mut again = json(bed, found, &["dead", "list", "--limit", "1000000"]).await?;
    keep_details_that_were_cut(&listed, &mut again);
    if again != listed {
        found.push(format!("the index made anew differs: {}", difference(&listed, &again)));
    }
    let ids = ids(&listed);
    let step = (ids.len() / often(SHOWN)).max(1);
    for (turn, id) in ids.iter().step_by(step).enumerate() {
        let show = ["dead", "show", id.as_str()];
        match turn % 3 {
            0 => drop(json(bed, found, &show).await?),
            1 => drop(run(bed, found, &show).await?),
            _ => {
                let reveal = [&show[..], &["--reveal", "--why", "a storm"]].concat();
                run(bed, found, &reveal).await?;
            }
        }
    }
    Ok(())
}

/// The first letter of two lists that differs.
fn difference(left: &Value, right: &Value) -> String {
    let letters = |list: &Value| list["dead_letters"].as_array().cloned().unwrap_or_default();
    let (left, right) = (letters(left), letters(right));
    let pair = left.iter().zip(&right).find(|(left, right)| left != right);
    pair.map_or_else(
        || format!("{} and {} letters", left.len(), right.len()),
        |(left, right)| format!("{left} and {right}"),
    )
}

async fn change(bed: &Bed, found: &mut Vec<String>, before: &[Taken]) -> Result<()> {
    run(bed, found, &["dead", "replay", "--all", "--dry-run"]).await?;
    let edit = ["dead", "edit", "--reason", "invalid-event", "--set", "city=Kochi", "--dry-run"];
    json(bed, found, &edit).await?;
    run(bed, found, &[&edit[..], &["--reveal"]].concat()).await?;
    json(bed, found, &["dead", "archive", "--reason", "undecodable", "--yes"]).await?;
    json(bed, found, &["dead", "restore", "--all", "--yes"]).await?;
    same(found, "archive and restore", before, &bed.queues.look_at_all(&bed.queue("dead")).await?);
    let file = bed.state().join("exported.jsonl");
    let file = file.to_string_lossy();
    json(bed, found, &["dead", "export", "--all", "--to", &file]).await?;
    json(bed, found, &["dead", "purge", "--all", "--yes", "--why", "they are in a file"]).await?;
    let left = bed.queues.depth(&bed.queue("dead")).await?;
    ensure!(left == 0, "dead purge left {left}; so far: {found:#?}");
    json(bed, found, &["dead", "import", &file, "--yes"]).await?;
    same(found, "export and import", before, &bed.queues.look_at_all(&bed.queue("dead")).await?);
    Ok(())
}

/// All that a letter is, but what says by which way it came.
fn told(letter: &Taken) -> (Vec<u8>, String) {
    let mut headers = letter.headers();
    headers.retain(|name, _| !name.starts_with("x-delivery-") && !name.starts_with("x-acquired-"));
    let properties = letter.properties.clone().with_headers(lapin::types::FieldTable::default());
    (letter.body.clone(), format!("{properties:?} {headers:?}"))
}

fn same(found: &mut Vec<String>, what: &str, before: &[Taken], after: &[Taken]) {
    let count = |letters: &[Taken]| {
        let mut counts = BTreeMap::new();
        for letter in letters {
            *counts.entry(told(letter)).or_insert(0) += 1;
        }
        counts
    };
    let (before, after) = (count(before), count(after));
    if before == after {
        return;
    }
    let lost: Vec<_> = before.iter().filter(|(letter, _)| !after.contains_key(letter)).collect();
    let made: Vec<_> = after.keys().filter(|letter| !before.contains_key(letter)).collect();
    let shown = |text: Option<&String>| -> String {
        text.map(|text| text.chars().take(3000).collect()).unwrap_or_default()
    };
    found.push(format!(
        "{what}: {} letters changed, such as\n    {}\n    {}",
        lost.len(),
        shown(lost.first().map(|((_, text), _)| text)),
        shown(made.first().map(|(_, text)| text)),
    ));
}

/// Customers with ids that need care, asked for in every way, and forgotten.
async fn customers(bed: &Bed, found: &mut Vec<String>, cases: &[Case], port: &str) -> Result<()> {
    // No program can be given U+0000.
    let may_ask = |id: &&str| !id.contains('\0') && id.len() < 1000;
    let strange = |case: &&Case| case.labels.iter().any(|label| label.contains("customer"));
    let ids = cases.iter().filter(strange).filter_map(|case| case.customer.as_deref());
    let ids: BTreeSet<&str> = ids.filter(may_ask).collect();
    for (turn, id) in ids.into_iter().take(often(ASKED)).enumerate() {
        let known = bed.simulator.customer(id).await?;
        let is_known = known["applied"].as_u64().is_some_and(|count| count > 0);
        if is_known {
            run(bed, found, &["customer", "show", "--", id]).await?;
            run(bed, found, &["customer", "show", "--json", "--via", port, "--", id]).await?;
        }
        run(bed, found, &["dead", "list", &format!("--customer={id}")]).await?;
        let sure = if turn % 2 == 0 { "--yes" } else { "--dry-run" };
        run(bed, found, &["customer", "forget", "--json", sure, "--", id]).await?;
    }
    Ok(())
}
