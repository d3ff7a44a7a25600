//! The checksum and the form are those of the reference vectors, in the library and in `explain`.

use anyhow::{Context as _, Result, ensure};
use customer_relay::domain::request::checksum;
use serde_json::{Value, json};

use crate::harness::{Context, suite};
use crate::support::process;
use crate::support::relay::Settings;
use crate::support::simulator::{Simulator, TOKEN};

suite!(NoBroker:
    the_checksum_is_that_of_every_vector,
    explain_shows_form_canonical_text_and_checksum_of_every_event_vector,
    the_curl_line_of_explain_is_taken_by_the_portal,
);

fn vectors(level: &str) -> Result<Vec<Value>> {
    let all: Vec<Value> = serde_json::from_str(include_str!("vectors.json"))?;
    let of_level: Vec<Value> = all.into_iter().filter(|vector| vector["level"] == level).collect();
    ensure!(of_level.len() >= 6, "too few vectors of level {level}");
    Ok(of_level)
}

fn text<'a>(vector: &'a Value, key: &str) -> &'a str {
    vector[key].as_str().unwrap_or_else(|| panic!("no {key} in {vector}"))
}

async fn the_checksum_is_that_of_every_vector(_: Context) -> Result<()> {
    for vector in [vectors("hash")?, vectors("event")?].concat() {
        let order = vector["order"].as_array().unwrap().iter().filter_map(Value::as_str);
        let values = order.filter_map(|name| vector["fields"][name].as_str());
        let actual = checksum(values, text(&vector, "secret_key"));
        assert_eq!(actual, text(&vector, "checksum"), "{}", vector["id"]);
    }
    Ok(())
}

fn settings(simulator: &Simulator) -> Settings {
    Settings::new("amqp://guest:guest@127.0.0.1:1/%2f", "vectors", simulator)
}

fn order(vector: &Value) -> String {
    let names = vector["order"].as_array().unwrap().iter().filter_map(Value::as_str);
    names.collect::<Vec<_>>().join(",")
}

async fn explained(settings: &Settings, vector: &Value) -> Result<Value> {
    let body = vector["fields"].to_string();
    let (code, out, err) = settings.command(&["explain", "--json"], body.as_bytes()).await?;
    ensure!(code == 0, "{}: exit {code} {err}", vector["id"]);
    Ok(serde_json::from_str(&out)?)
}

async fn explain_shows_form_canonical_text_and_checksum_of_every_event_vector(
    _: Context,
) -> Result<()> {
    let simulator = Simulator::start(&[]).await?;
    for vector in vectors("event")? {
        let mut settings = settings(&simulator);
        settings.set("portal.secret_key", text(&vector, "secret_key"));
        settings.set("portal.field_order", &order(&vector));
        let explained = explained(&settings, &vector).await?;
        assert_eq!(explained["form"], vector["form_body"], "{}", vector["id"]);
        assert_eq!(explained["checksum"], vector["checksum"], "{}", vector["id"]);
        assert_eq!(explained["fields"], vector["fields"], "{}", vector["id"]);
        let values = text(&vector, "canonical").strip_suffix(text(&vector, "secret_key"));
        let canonical = format!("{}***", values.context("the secret is not last")?);
        assert_eq!(explained["canonical"], canonical, "{}", vector["id"]);
    }
    Ok(())
}

/// What the shell makes of the line, each argument on a line; run by curl itself where there is one.
async fn the_curl_line_of_explain_is_taken_by_the_portal(_: Context) -> Result<()> {
    let token = [("CUSTOMER_RELAY__PORTAL__TOKEN".to_owned(), TOKEN.to_owned())];
    let has_curl = process::run("sh", &["-c", "command -v curl"], &[], b"").await?.0 == 0;
    for vector in vectors("event")? {
        let simulator = Simulator::start(&["--field-order", &order(&vector)]).await?;
        simulator.expect_secret(text(&vector, "secret_key")).await?;
        let mut settings = settings(&simulator);
        settings.set("portal.secret_key", text(&vector, "secret_key"));
        settings.set("portal.field_order", &order(&vector));
        let line = explained(&settings, &vector).await?["curl"].as_str().unwrap().to_owned();
        ensure!(!line.contains(TOKEN), "the token is in {line}");

        let script = format!("curl() {{ printf '%s\\n' \"$@\"; }}; {line}");
        let (_, arguments, _) = process::run("sh", &["-c", &script], &token, b"").await?;
        let arguments: Vec<&str> = arguments.lines().collect();
        let after = |option: &str| {
            let all = arguments.windows(2).filter(move |pair| pair[0] == option);
            all.map(|pair| pair[1]).collect::<Vec<_>>()
        };
        assert_eq!(after("--data-raw"), [text(&vector, "form_body")]);
        let checksum = format!("checksum: {}", text(&vector, "checksum"));
        let form = "Content-Type: application/x-www-form-urlencoded";
        assert_eq!(after("--header"), [&format!("token: {TOKEN}"), &checksum, form]);
        if has_curl {
            let (code, answer, err) = process::run("sh", &["-c", &line], &token, b"").await?;
            ensure!(code == 0, "{line}: exit {code} {err}");
            let answer: Value = serde_json::from_str(&answer)?;
            assert_eq!(answer["status"], json!(200), "{line}: {answer}");
            let id = text(&vector["fields"], "entity_id");
            assert_eq!(simulator.customer(id).await?["applied"], 1);
        }
    }
    Ok(())
}
