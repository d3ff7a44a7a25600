//! The house keeps its rules: the simulator knows nothing of the relay, the domain touches nothing,
//! and each outside library has its home.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use customer_relay::domain::breaker::Kind;
use customer_relay::domain::dead_letter::Reason;
use customer_relay::domain::outcome::{Facts, Limit, Outcome, Scope};

use crate::harness::{Context, suite};

suite!(NoBroker:
    the_simulator_shares_no_code_with_the_relay,
    the_domain_touches_nothing,
    each_outside_library_has_its_home,
    the_runbook_has_one_entry_for_each_reason_and_kind_and_no_other,
    the_runbook_states_the_facts_of_each_outcome,
    each_planted_mistake_names_its_rule_and_still_applies,
);

fn sources(folder: &Path) -> Result<Vec<(PathBuf, String)>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            all.extend(sources(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path)?;
            all.push((path, text));
        }
    }
    Ok(all)
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Lines of code, without comments: those may speak of anything.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(|line| line.split("//").next().unwrap_or_default())
}

fn names(text: &str, word: &str) -> bool {
    code(text).any(|line| line.contains(word))
}

async fn the_simulator_shares_no_code_with_the_relay(_: Context) -> Result<()> {
    let files = sources(&src().join("simulator"))?;
    ensure!(files.len() > 5, "looked in the wrong place");
    for (path, text) in files {
        for word in ["customer_relay", "../", "#[path"] {
            ensure!(!names(&text, word), "{} names {word}", path.display());
        }
    }
    Ok(())
}

async fn the_domain_touches_nothing(_: Context) -> Result<()> {
    let files = sources(&src().join("domain"))?;
    ensure!(files.len() > 5, "looked in the wrong place");
    for (path, text) in files {
        for word in [
            "tokio",
            "lapin",
            "reqwest",
            "hyper",
            "axum",
            "sqlx",
            "std::env",
            "std::fs",
            "std::net",
            "Instant::now",
            "SystemTime",
            "Timestamp::now",
            "rand::",
            "async ",
        ] {
            ensure!(!names(&text, word), "{} names {word}", path.display());
        }
    }
    Ok(())
}

async fn each_outside_library_has_its_home(_: Context) -> Result<()> {
    for (word, homes) in [
        ("lapin::", &["amqp"][..]),
        ("reqwest::", &["portal", "admin/client.rs"]),
        ("axum::", &["admin"]),
        ("hyper::", &["admin/listener"]),
        ("rustix::", &["descriptors.rs"]),
        ("backoff::", &["pauses.rs"]),
        ("governor::", &["worker/gate.rs"]),
        ("rusqlite::", &["ledger/sqlite"]),
        ("tokio_postgres::", &["ledger"]),
        ("deadpool_postgres::", &["ledger/postgres"]),
        ("postcard::", &["domain/packed.rs"]),
        ("opentelemetry_sdk::", &["telemetry"]),
        ("opentelemetry_otlp::", &["telemetry"]),
        ("opentelemetry_prometheus::", &["telemetry"]),
        ("opentelemetry_appender_tracing::", &["telemetry"]),
        ("prometheus::", &["telemetry"]),
    ] {
        let is_home = |path: &Path| homes.iter().any(|home| path.starts_with(src().join(home)));
        let mut found_at_home = false;
        for (path, text) in sources(&src())? {
            let is_named = names(&text, word) && !path.starts_with(src().join("simulator"));
            found_at_home |= is_home(&path) && is_named;
            ensure!(is_home(&path) || !is_named, "{} names {word}, not {homes:?}", path.display());
        }
        ensure!(found_at_home, "{word} is not even named in {homes:?}");
    }
    Ok(())
}

async fn the_runbook_has_one_entry_for_each_reason_and_kind_and_no_other(_: Context) -> Result<()> {
    let runbook = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/RUNBOOK.md");
    let runbook = std::fs::read_to_string(runbook)?;
    let entries = |section: &str| -> Vec<&str> {
        let lines = runbook.lines().skip_while(|line| *line != section).skip(1);
        let lines = lines.take_while(|line| !line.starts_with("## "));
        lines.filter_map(|line| line.strip_prefix("### ")).collect()
    };
    assert_eq!(entries("## Dead letters, by reason"), Reason::ALL.map(Reason::name));
    assert_eq!(entries("## Outages, by kind"), Kind::ALL.map(Kind::name));
    Ok(())
}

/// The table's row of an outcome.
fn row(outcome: Outcome) -> String {
    let name = outcome.name();
    let Some(facts) = outcome.facts() else {
        return format!("| `{name}` |{}", " - |".repeat(7));
    };
    let Facts { scope, outage, limit, reason, .. } = facts;
    let scope = match scope {
        Scope::Message => "event",
        Scope::Customer => "customer or everybody",
        Scope::Endpoint => "everybody",
        Scope::Throttle => "too fast",
    };
    let outage = outage.map_or("-", Kind::name);
    let limit = match limit {
        Limit::Attempts => "max_attempts",
        Limit::Rejected => "rejected_retries",
        Limit::DuplicateEmail => "duplicate_email_retries",
        Limit::ContractViolation => "contract_violation_attempts",
    };
    let reason = reason.name();
    let [applied, under_way, again] =
        [facts.is_ambiguous, facts.may_be_under_way, facts.allows_immediate_retry]
            .map(|is_so| if is_so { "yes" } else { "no" });
    format!(
        "| `{name}` | {scope} | {outage} | {limit} | {reason} | {applied} | {under_way} | {again} |"
    )
}

async fn the_runbook_states_the_facts_of_each_outcome(_: Context) -> Result<()> {
    let runbook = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/RUNBOOK.md");
    let runbook = std::fs::read_to_string(runbook)?;
    let lines = runbook.lines().skip_while(|line| *line != "## Outcomes of a call").skip(1);
    let lines = lines.take_while(|line| !line.starts_with("## "));
    let rows: Vec<&str> = lines.filter(|line| line.starts_with("| `")).collect();
    assert_eq!(rows, Outcome::ALL.map(row));
    Ok(())
}

/// Each part of a patch, by file: the lines that it finds there.
fn lines_before(patch: &str) -> Result<Vec<(&str, String)>> {
    let (mut file, mut parts) = (None, Vec::new());
    for line in patch.lines() {
        if line.starts_with("@@ ") {
            parts.push((file.context("a part without a file")?, String::new()));
        } else if let Some(path) = line.strip_prefix("--- a/") {
            file = Some(path);
        } else if let (Some(kept), Some((_, before))) =
            (line.strip_prefix([' ', '-']).filter(|_| !line.starts_with("---")), parts.last_mut())
        {
            before.push_str(kept);
            before.push('\n');
        }
    }
    Ok(parts)
}

async fn each_planted_mistake_names_its_rule_and_still_applies(_: Context) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut count = 0;
    for entry in std::fs::read_dir(root.join("tests/mutants"))? {
        let path = entry?.path();
        let name = path.display();
        ensure!(path.extension().is_some_and(|extension| extension == "patch"), "{name}?");
        let text = std::fs::read_to_string(&path)?;
        ensure!(text.starts_with("Rule: "), "{name} does not begin with the rule that it breaks");
        let parts = lines_before(&text)?;
        ensure!(!parts.is_empty(), "{name} changes nothing");
        for (file, before) in parts {
            let source = std::fs::read_to_string(root.join(file))?;
            ensure!(source.contains(&before), "{name} does not apply to {file}: make it anew");
        }
        count += 1;
    }
    ensure!(count >= 14, "{count} planted mistakes");
    Ok(())
}
