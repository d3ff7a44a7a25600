//! The house keeps its rules: the simulator knows nothing of the relay, the domain touches nothing,
//! and each outside library has its home.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use customer_relay::domain::breaker::Kind;
use customer_relay::domain::dead_letter::Reason;

use crate::harness::{Context, suite};

suite!(NoBroker:
    the_simulator_shares_no_code_with_the_relay,
    the_domain_touches_nothing,
    each_outside_library_has_its_home,
    the_runbook_has_one_entry_for_each_reason_and_kind_and_no_other,
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
        ("backoff::", &["pauses.rs"]),
        ("governor::", &["worker/gate.rs"]),
        ("rusqlite::", &["ledger/sqlite.rs"]),
        ("tokio_postgres::", &["ledger"]),
        ("deadpool_postgres::", &["ledger/postgres.rs"]),
        ("postcard::", &["domain/row.rs"]),
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
