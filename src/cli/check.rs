//! `check`: is everything in place? Each finding says how to mend it.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::check_ledger::{self, Looked};
use super::{Exit, block_on, output, sample, topology::finding_json};
use crate::admin::listener::MAX_CONNECTION_KIB;
use crate::amqp::topology::{self, Finding, State};
use crate::config::{Config, Layers, Needs};
use crate::descriptors::{self, Budget};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Judge a file of sample events (JSON lines) by the rules for fields instead, offline; exit 1
    /// if any would be a dead letter.
    #[arg(long, value_name = "FILE")]
    sample: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn check(args: &Args, layers: &Layers) -> anyhow::Result<Exit> {
    if let Some(file) = &args.sample {
        return sample::check(file, &Config::load(layers, Needs::Broker)?, args.json);
    }
    let config = Config::load(layers, Needs::Portal)?;
    let (address, findings, depths, ledger) = look(&config)?;
    let files = Budget::new(&config, descriptors::limit_of_run());
    let files_fault = files.problem();
    let is_faulty = findings.iter().any(Finding::is_fault) || ledger.is_faulty();
    let faulty = is_faulty || files_fault.is_some();
    let notes = notes(&config, files);
    if args.json {
        let findings: Vec<Value> = findings.iter().map(finding_json).collect();
        output::print_json(&json!({"ok": !faulty, "broker": address, "findings": findings,
            "depths": depths.iter().cloned().collect::<serde_json::Map<_, _>>(),
            "ledger": ledger.to_json(&config), "open_files": files_json(files, files_fault.as_deref()),
            "notes": notes}))?;
    } else {
        let mut lines = vec!["ok     configuration".to_owned(), format!("ok     broker {address}")];
        lines.extend(topology_lines(&findings));
        lines.extend(ledger.to_lines(&config));
        lines.extend(files_fault.map(|fault| format!("FAULT  admin.max_connections: {fault}")));
        lines.extend(depths.iter().map(|(queue, depth)| format!("note   {queue}: {depth} ready")));
        lines.extend(notes.iter().map(|note| format!("note   {note}")));
        output::print(&lines.join("\n"))?;
    }
    Ok(if faulty { Exit::Failed } else { Exit::Done })
}

/// One line for all parts that are as they should be, one for each of the others.
fn topology_lines(findings: &[Finding]) -> Vec<String> {
    let (present, others): (Vec<_>, Vec<_>) =
        findings.iter().partition(|finding| finding.state == State::Present);
    let mut lines = vec![format!("ok     topology: {} parts are as needed", present.len())];
    lines.extend(others.iter().map(|finding| {
        let mark = if finding.is_fault() { "FAULT" } else { "note " };
        format!("{mark}  {finding}")
    }));
    lines
}

type Seen = (String, Vec<Finding>, Vec<(String, Value)>, Looked);

fn look(config: &Config) -> anyhow::Result<Seen> {
    block_on(config, async {
        let link = config.broker.broker.connect("check").await?;
        let topology = &config.broker.topology;
        let looked = async {
            let findings = topology::check(&link, topology).await?;
            let mut depths = Vec::new();
            let orders = [topology.paused_queue(), topology.accepts_rejections_queue()];
            for queue in [topology.work_queue(), topology.dead_queue()].into_iter().chain(orders) {
                if let Some(depth) = topology::depth(&link, &queue).await? {
                    depths.push((queue, json!(depth)));
                }
            }
            let ledger = check_ledger::look(&link, config).await?;
            Ok((link.address().to_owned(), findings, depths, ledger))
        }
        .await;
        link.close().await;
        looked
    })
}

fn files_json(files: Budget, fault: Option<&str>) -> Value {
    let Budget { limit, reserve, visitors } = files;
    json!({"limit": limit, "reserve": reserve, "visitors": visitors, "fault": fault})
}

fn notes(config: &Config, files: Budget) -> Vec<String> {
    const LARGEST_MESSAGE_MIB: usize = 16;
    let in_hand = config.in_hand_at_most();
    let fields = &config.rules.fields;
    let mut notes = vec![
        format!(
            "memory: at most {in_hand} deliveries (broker.prefetch, worker.in_flight) at once, of \
             event.max_bytes {} MiB; larger messages are refused as they come: with RabbitMQ 4's \
             limit of {LARGEST_MESSAGE_MIB} MiB all of them are {} MiB; visitors of the admin port take \
             {} MiB at worst",
            in_hand.saturating_mul(config.rules.max_bytes) / (1 << 20),
            in_hand * LARGEST_MESSAGE_MIB,
            config.admin.max_connections * MAX_CONNECTION_KIB / 1024
        ),
        format!("{}, if run is started as this was", files.to_text()),
        format!(
            "field policies: address {:?}, city_spaces {:?}, state_spaces {:?}; what they refuse \
             becomes a dead letter that names its setting",
            fields.address, fields.city_spaces, fields.state_spaces
        ),
    ];
    if usize::from(config.broker.prefetch) < config.worker.in_flight {
        notes.push(format!(
            "broker.prefetch ({}) is below worker.in_flight ({}): calls cannot use their \
             limit",
            config.broker.prefetch, config.worker.in_flight
        ));
    }
    notes
}
