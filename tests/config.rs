//! Settings: all mistakes at once, later layers win, secrets stay hidden.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::harness::{Context, suite};
use crate::support::process;
use crate::support::relay::PROGRAM;

suite!(NoBroker:
    every_mistake_is_told_at_once_and_nothing_starts,
    a_setting_that_does_not_exist_is_refused_in_every_layer,
    the_environment_wins_over_the_file_and_flags_over_both,
    the_file_can_be_named_by_the_environment,
    secrets_are_masked_wherever_settings_are_shown,
    secrets_come_from_files_less_one_newline,
    the_defaults_that_are_printed_are_a_settings_file,
    the_portals_address_must_be_safe,
);

type Environment = Vec<(String, String)>;

fn environment(settings: &[(&str, &str)]) -> Environment {
    let name = |key: &str| format!("CUSTOMER_RELAY__{}", key.to_uppercase().replace('.', "__"));
    settings.iter().map(|(key, value)| (name(key), (*value).to_owned())).collect()
}

const PORTAL: [(&str, &str); 4] = [
    ("broker.url", "amqp://crm:hunter2@127.0.0.1:1/%2f"),
    ("portal.base_url", "http://127.0.0.1:1"),
    ("portal.token", "token-hunter2"),
    ("portal.secret_key", "secret-hunter2"),
];

async fn run(args: &[&str], settings: &[(&str, &str)]) -> Result<(i32, String, String)> {
    process::run(PROGRAM, args, &environment(settings), b"").await
}

/// The value and the source of a setting.
async fn effective(args: &[&str], settings: &Environment, key: &str) -> Result<(Value, String)> {
    let (code, out, err) =
        process::run(PROGRAM, &[&["config", "--json"], args].concat(), settings, b"").await?;
    ensure!(code == 0, "exit {code}: {err}");
    let all: Value = serde_json::from_str(&out)?;
    let source = all[key]["source"].as_str().unwrap_or_default().to_owned();
    Ok((all[key]["value"].clone(), source))
}

async fn every_mistake_is_told_at_once_and_nothing_starts(_: Context) -> Result<()> {
    let mut settings = PORTAL[..3].to_vec();
    settings.extend([
        ("worker.in_flight", "0"),
        ("retry.multiplier", "0.5"),
        ("portal.field_order", "entity_id,email"),
        ("broker.declare", "hunter2"),
        ("fields.mobile_no_pattern", "("),
        ("mapping.email", "email"),
        ("broker.heartbeat", "soon"),
    ]);
    let flag = ["run", "--set", "retry.max_delay=hunter2", "--set", "nonsense"];
    let (code, out, err) = run(&flag, &settings).await?;
    assert_eq!((code, out.as_str()), (64, ""), "{err}");
    for key in [
        "worker.in_flight",
        "portal.field_order",
        "broker.declare",
        "fields.mobile_no_pattern",
        "mapping.email",
        "broker.heartbeat",
        "retry.max_delay",
        "portal.secret_key",
        "--set",
    ] {
        assert!(err.contains(key), "{key} is not in {err}");
    }
    assert!(err.contains("CUSTOMER_RELAY__WORKER__IN_FLIGHT"), "the source is named: {err}");
    assert!(!err.contains("hunter2"), "a value is repeated: {err}");
    assert!(!err.contains("starting") && !err.contains("broker at"), "{err}");
    Ok(())
}

async fn a_setting_that_does_not_exist_is_refused_in_every_layer(_: Context) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("relay.toml");
    std::fs::write(&file, "[worker]\nin_flihgt = 3\n[nowhere]\nx = 1\n")?;
    let file = file.to_str().unwrap();
    let mut settings = PORTAL.to_vec();
    settings.push(("retry.maximum", "3"));
    let args = ["run", "--config", file, "--set", "broker.prefech=1"];
    let (code, _, err) = run(&args, &settings).await?;
    assert_eq!(code, 64);
    for part in ["worker.in_flihgt", "nowhere.x", "retry.maximum", "broker.prefech", "in_flight"] {
        assert!(err.contains(part), "{part} is not in {err}");
    }
    Ok(())
}

async fn the_environment_wins_over_the_file_and_flags_over_both(_: Context) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("relay.toml");
    std::fs::write(&file, "[worker]\nin_flight = 3\n")?;
    let args = ["--config", file.to_str().unwrap()];
    let key = "worker.in_flight";
    let none = Environment::new();
    let env = environment(&[(key, "4")]);
    assert_eq!(effective(&[], &none, key).await?, (json!(32), "default".to_owned()));
    assert_eq!(effective(&args, &none, key).await?, (json!(3), file.display().to_string()));
    let (value, source) = effective(&args, &env, key).await?;
    assert_eq!(
        (value, source.as_str()),
        (json!("4"), "environment CUSTOMER_RELAY__WORKER__IN_FLIGHT")
    );
    let flagged = [&args[..], &["--set", "worker.in_flight=5"]].concat();
    assert_eq!(effective(&flagged, &env, key).await?, (json!("5"), "--set".to_owned()));
    Ok(())
}

async fn the_file_can_be_named_by_the_environment(_: Context) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("relay.toml");
    std::fs::write(&file, "[broker]\nprefix = \"from-file\"\n")?;
    let named = vec![("CUSTOMER_RELAY_CONFIG".to_owned(), file.display().to_string())];
    let (value, _) = effective(&[], &named, "broker.prefix").await?;
    assert_eq!(value, "from-file");
    std::fs::write(&file, "[portal]\nsecret_key = hunter2\n")?;
    let (code, _, err) = process::run(PROGRAM, &["config"], &named, b"").await?;
    assert_eq!(code, 64);
    assert!(err.contains("line 2") && !err.contains("hunter2"), "{err}");
    Ok(())
}

async fn secrets_are_masked_wherever_settings_are_shown(_: Context) -> Result<()> {
    for args in [&["config"][..], &["config", "--json"]] {
        let (code, out, err) = run(args, &PORTAL).await?;
        assert_eq!(code, 0, "{err}");
        assert!(!out.contains("hunter2"), "{out}");
        assert!(out.contains("amqp://crm:***@127.0.0.1:1/%2f"), "{out}");
        assert_eq!(out.matches("***").count(), 3, "{out}");
    }
    Ok(())
}

async fn secrets_come_from_files_less_one_newline(_: Context) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("secret");
    std::fs::write(&file, "key with a space \n\n")?;
    let settings = [("portal.secret_key_file", file.to_str().unwrap())];
    let event = br#"{"entity_id":"C1","city":"Kochi"}"#;
    let args = ["explain", "--json"];
    let (code, out, err) = process::run(PROGRAM, &args, &environment(&settings), event).await?;
    assert_eq!(code, 0, "{err}");
    let explained: Value = serde_json::from_str(&out)?;
    let values = ["C1", "Kochi"];
    let expected = customer_relay::domain::request::checksum(values, "key with a space \n");
    assert_eq!(explained["checksum"], expected);
    let missing = [("portal.secret_key_file", "/nowhere/secret")];
    let (code, _, err) = process::run(PROGRAM, &args, &environment(&missing), event).await?;
    assert_eq!(code, 64);
    assert!(err.contains("portal.secret_key_file") && err.contains("/nowhere/secret"), "{err}");
    Ok(())
}

async fn the_defaults_that_are_printed_are_a_settings_file(_: Context) -> Result<()> {
    let (code, out, _) = run(&["config", "--defaults"], &[]).await?;
    assert_eq!(code, 0);
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("defaults.toml");
    std::fs::write(&file, &out)?;
    let args = ["--config", file.to_str().unwrap()];
    let key = "retry.max_delay";
    let (value, source) = effective(&args, &Environment::new(), key).await?;
    assert_eq!((value, source), (json!("12288s"), file.display().to_string()));
    let (_, all, _) = run(&["config", "--json"], &[]).await?;
    let all: Value = serde_json::from_str(&all)?;
    let table: toml::Table = out.parse()?;
    let keys: usize = table.values().filter_map(toml::Value::as_table).map(toml::Table::len).sum();
    assert_eq!(all.as_object().unwrap().len(), keys);
    Ok(())
}

async fn the_portals_address_must_be_safe(_: Context) -> Result<()> {
    for url in [
        "http://portal.example.com",
        "ftp://127.0.0.1",
        "https://user:pass@portal.example.com",
        "https://portal.example.com/airpay/ms/cards/api/update-customer",
        "portal.example.com",
    ] {
        let mut settings = PORTAL.to_vec();
        settings[1] = ("portal.base_url", url);
        let (code, _, err) = run(&["run"], &settings).await?;
        assert_eq!(code, 64, "{url}: {err}");
        assert!(err.contains("portal.base_url"), "{url}: {err}");
    }
    Ok(())
}
