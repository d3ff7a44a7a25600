//! Dashboard and alerts name only metrics and labels that the relay declares, and every alert has its
//! entry in the runbook.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use customer_relay::telemetry::instruments::{ALL, Instrument, Kind};
use regex::Regex;
use serde_json::Value;

use crate::harness::{Context, suite};

suite!(NoBroker:
    dashboard_and_alerts_name_only_what_is_declared,
    what_is_not_declared_is_found_out,
    every_alert_has_an_entry_in_the_runbook_and_every_entry_an_alert,
    the_rules_for_prometheus_operator_are_the_same,
);

const DASHBOARD: &str = include_str!("../deploy/grafana/dashboard.json");
const ALERTS: &str = include_str!("../deploy/prometheus/alerts.yml");
const OPERATORS_RULES: &str = include_str!("../deploy/kubernetes/monitoring/prometheusrule.yaml");
const RUNBOOK: &str = include_str!("../deploy/RUNBOOK.md");

/// Prometheus names, each with its labels.
fn declared() -> Vec<(String, Vec<String>)> {
    let own = |instrument: &Instrument| {
        let labels = instrument.labels.iter().map(|label| label.replace('.', "_"));
        let of_buckets = (instrument.kind == Kind::Histogram).then(|| "le".to_owned());
        (instrument.prometheus_name(), labels.chain(of_buckets).collect())
    };
    let resource = ["service_name", "service_version", "service_instance_id"];
    let target = ("target_info".to_owned(), resource.map(str::to_owned).to_vec());
    ALL.iter().map(own).chain([target]).collect()
}

fn rules() -> Result<Vec<Value>> {
    let rules: Value = serde_saphyr::from_str(ALERTS)?;
    let groups = rules["groups"].as_array().context("no groups")?;
    Ok(groups.iter().filter_map(|group| group["rules"].as_array()).flatten().cloned().collect())
}

fn texts<'a>(values: impl IntoIterator<Item = &'a Value>, key: &str) -> Vec<String> {
    values.into_iter().filter_map(|value| Some(value[key].as_str()?.to_owned())).collect()
}

/// What an expression names that is neither declared nor recorded: metrics, and labels of none of
/// the metrics beside them.
fn unknown(expression: &str, recorded: &[String]) -> Result<Vec<String>> {
    let quoted = Regex::new(r#""[^"]*""#)?;
    let text = quoted.replace_all(expression, "\"\"");
    let (mut labels, mut metrics) = (BTreeSet::new(), BTreeSet::new());
    for part in Regex::new(r"\b(?:by|without|on)\s*\(([^)]*)\)")?.captures_iter(&text) {
        labels.extend(part[1].split(',').map(|label| label.trim().to_owned()));
    }
    let matchers = Regex::new(r"(\w+)\s*(?:=~|!~|!=|=)")?;
    for part in Regex::new(r"\{([^}]*)\}")?.captures_iter(&text) {
        labels.extend(matchers.captures_iter(&part[1]).map(|label| label[1].to_owned()));
    }
    labels.remove("");
    let bare = Regex::new(r"\b(?:by|without|on)\s*\([^)]*\)|\{[^}]*\}|\[[^\]]*\]")?;
    let bare = bare.replace_all(&text, " ");
    let word = Regex::new(r"[A-Za-z_:][A-Za-z0-9_:]*\s*\(?")?;
    for found in word.find_iter(&bare) {
        let name = found.as_str();
        let is_operator = ["and", "or", "unless", "bool", "offset"].contains(&name.trim());
        if !name.ends_with('(') && !is_operator && name.trim().len() > 1 {
            metrics.insert(name.trim().to_owned());
        }
    }
    let declared = declared();
    let (mut unknown, mut known_labels) = (Vec::new(), BTreeSet::new());
    for metric in metrics {
        let of_histogram =
            ["_bucket", "_sum", "_count"].iter().find_map(|end| metric.strip_suffix(end));
        let whole = of_histogram.unwrap_or(&metric);
        let is_part = |labels: &[String]| labels.iter().any(|label| label == "le");
        let known = declared
            .iter()
            .find(|(name, labels)| *name == metric || (name == whole && is_part(labels)));
        match known {
            Some((_, labels)) => known_labels.extend(labels.iter().map(String::as_str)),
            None if recorded.contains(&metric) => known_labels.extend(["reason"]),
            None => unknown.push(metric),
        }
    }
    unknown.extend(labels.into_iter().filter(|label| !known_labels.contains(label.as_str())));
    Ok(unknown)
}

async fn dashboard_and_alerts_name_only_what_is_declared(_: Context) -> Result<()> {
    let rules = rules()?;
    let recorded = texts(&rules, "record");
    let dashboard: Value = serde_json::from_str(DASHBOARD)?;
    let panels = dashboard["panels"].as_array().context("no panels")?;
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let (of_alerts, of_panels) = (texts(&rules, "expr"), texts(targets, "expr"));
    ensure!(of_alerts.len() > 12 && of_panels.len() > 20, "looked in the wrong place");
    for expression in of_alerts.iter().chain(&of_panels) {
        let unknown = unknown(expression, &recorded)?;
        ensure!(unknown.is_empty(), "{unknown:?} of {expression} are not declared");
    }
    let shown = of_panels.join(" ");
    for (name, _) in declared() {
        ensure!(shown.contains(name.as_str()), "{name} is on no panel");
    }
    Ok(())
}

async fn the_rules_for_prometheus_operator_are_the_same(_: Context) -> Result<()> {
    let own: Value = serde_saphyr::from_str(ALERTS)?;
    let operators: Value = serde_saphyr::from_str(OPERATORS_RULES)?;
    assert_eq!(
        operators["spec"], own,
        "change deploy/kubernetes/monitoring/prometheusrule.yaml too"
    );
    Ok(())
}

async fn what_is_not_declared_is_found_out(_: Context) -> Result<()> {
    for (expression, expected) in [
        ("max(customer_relay_outages) == 1", "customer_relay_outages"),
        ("sum by (sort) (customer_relay_outage)", "sort"),
        ("rate(customer_relay_verdicts_total{end=\"applied\"}[5m])", "end"),
        ("customer_relay_active_bucket", "customer_relay_active_bucket"),
    ] {
        assert_eq!(unknown(expression, &[])?, [expected], "{expression}");
    }
    Ok(())
}

async fn every_alert_has_an_entry_in_the_runbook_and_every_entry_an_alert(
    _: Context,
) -> Result<()> {
    let rules = rules()?;
    let alerts: Vec<&Value> = rules.iter().filter(|rule| rule["alert"].is_string()).collect();
    for rule in &alerts {
        let name = rule["alert"].as_str().context("no name")?;
        let annotations = &rule["annotations"];
        let runbook = format!("deploy/RUNBOOK.md#{}", name.to_lowercase());
        assert_eq!(annotations["runbook_url"].as_str(), Some(&*runbook));
        ensure!(annotations["summary"].is_string(), "{name} says nothing");
        let severity = rule["labels"]["severity"].as_str();
        ensure!(matches!(severity, Some("critical" | "warning")), "{name}: {severity:?}");
    }
    let section = RUNBOOK.lines().skip_while(|line| *line != "## Alerts").skip(1);
    let section = section.take_while(|line| !line.starts_with("## "));
    let entries: Vec<&str> = section.filter_map(|line| line.strip_prefix("### ")).collect();
    let mut names = texts(alerts, "alert");
    let mut entries: Vec<String> = entries.into_iter().map(str::to_owned).collect();
    names.sort();
    entries.sort();
    assert_eq!(entries, names);
    Ok(())
}
