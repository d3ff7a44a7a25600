//! `topology`: the broker's queues, shown, declared, compared or exported.

use serde_json::{Value, json};

use super::{Exit, block_on, output};
use crate::amqp::topology::{self, Argument, Finding, State, Topology};
use crate::config::Config;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Args {
    /// Print the exchange, queues and arguments the relay needs.
    Show {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Declare what is missing and compare the rest.
    Apply {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Compare without changing anything; exit 1 if something is missing or differs.
    Check {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print definitions for `rabbitmqctl import_definitions`.
    Export {
        /// The virtual host they are for.
        #[arg(long, default_value = "/")]
        vhost: String,
    },
}

pub(super) fn topology(args: &Args, config: &Config) -> anyhow::Result<Exit> {
    let topology = &config.broker.topology;
    match args {
        Args::Show { json: true } => output::print_json(&shown(topology))?,
        Args::Show { json: false } => output::print(&table(topology))?,
        Args::Export { vhost } => output::print_json(&topology.export(vhost))?,
        Args::Apply { json } => return report(&findings(config, true)?, *json),
        Args::Check { json } => return report(&findings(config, false)?, *json),
    }
    Ok(Exit::Done)
}

fn findings(config: &Config, apply: bool) -> anyhow::Result<Vec<Finding>> {
    block_on(config, async {
        let link = config.broker.broker.connect("topology").await?;
        let topology = &config.broker.topology;
        let findings = if apply {
            topology::apply(&link, topology).await
        } else {
            topology::check(&link, topology).await
        };
        link.close().await;
        Ok(findings?)
    })
}

fn report(findings: &[Finding], as_json: bool) -> anyhow::Result<Exit> {
    if as_json {
        let findings: Vec<Value> = findings.iter().map(finding_json).collect();
        output::print_json(&json!({ "findings": findings }))?;
    } else {
        let lines: Vec<String> = findings.iter().map(ToString::to_string).collect();
        output::print(&lines.join("\n"))?;
    }
    Ok(if findings.iter().any(Finding::is_fault) { Exit::Failed } else { Exit::Done })
}

/// One finding as JSON.
pub(super) fn finding_json(finding: &Finding) -> Value {
    let state = match &finding.state {
        State::Present => "present",
        State::Missing => "missing",
        State::Differs(_) => "differs",
        State::NotCompared(_) => "not-compared",
        State::NotSeen(_) => "not-seen",
    };
    json!({"subject": finding.subject, "state": state, "fault": finding.is_fault(),
           "text": finding.to_string()})
}

fn shown(topology: &Topology) -> Value {
    let queues: Vec<Value> = topology
        .queues
        .iter()
        .map(|queue| {
            let arguments = queue.arguments.iter().map(|(name, value)| {
                let value = match value {
                    Argument::Text(text) => json!(text),
                    Argument::Number(number) => json!(number),
                };
                ((*name).to_owned(), value)
            });
            let arguments: serde_json::Map<String, Value> = arguments.collect();
            json!({"name": queue.name, "type": "quorum", "arguments": arguments})
        })
        .collect();
    json!({"exchange": {"name": topology.exchange, "type": "topic"},
           "binding": {"routing_key": topology.routing_key, "queue": topology.work_queue()},
           "queues": queues})
}

fn table(topology: &Topology) -> String {
    let Topology { exchange, routing_key, queues, .. } = topology;
    let mut lines = vec![
        format!("exchange {exchange} (topic, durable)"),
        format!("  {routing_key} --> {}", topology.work_queue()),
    ];
    for queue in queues {
        lines.push(format!("queue {} (quorum, durable)", queue.name));
        lines.extend(queue.arguments.iter().map(|(name, value)| format!("  {name} = {value}")));
    }
    lines.join("\n")
}
