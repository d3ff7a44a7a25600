//! `pause` and `resume`: an operator's orders to every relay on the work queue. The broker keeps
//! them, so they hold over restarts and need no way to the relay itself.

use std::time::Duration;

use anyhow::bail;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use super::{Exit, Usage, block_on, output};
use crate::amqp::orders::{self, Order};
use crate::clock;
use crate::config::Config;

/// What the broker can count in milliseconds.
const LONGEST: Duration = Duration::from_hours(24 * 49);

#[derive(Debug, clap::Args)]
pub(super) struct PauseArgs {
    /// Until when, such as 2026-11-22T18:00:00Z; it then ends by itself. Otherwise `resume` does.
    #[arg(long, value_name = "TIME")]
    until: Option<Timestamp>,
    /// Why, for whoever looks at the queue.
    #[arg(long, value_name = "TEXT", default_value = "")]
    because: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct ResumeArgs {
    /// For a while, rejections are the events' own fault: dead-letter them without a witness. For a
    /// CRM release that publishes nothing but bad events.
    #[arg(long)]
    accept_rejections: bool,
    /// How long that holds.
    #[arg(
        long = "for",
        value_name = "DURATION",
        default_value = "10m",
        requires = "accept_rejections"
    )]
    lasts: SignedDuration,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn pause(args: &PauseArgs, config: &Config) -> anyhow::Result<Exit> {
    let now = clock::now();
    let lasts = args.until.map(|until| span(until.duration_since(now), "--until")).transpose()?;
    let note = json!({"order": "pause", "at": now.to_string(), "because": args.because,
                      "until": args.until.map(|until| until.to_string())});
    give(config, Order::Pause, &note.to_string(), lasts)?;
    let until = args.until.map_or("`customer-relay resume`".to_owned(), |until| until.to_string());
    let text = format!("paused until {until}; relays obey within two seconds");
    tell(args.json, &json!({"paused": true, "until": args.until.map(|t| t.to_string())}), &text)
}

pub(super) fn resume(args: &ResumeArgs, config: &Config) -> anyhow::Result<Exit> {
    if args.accept_rejections {
        let lasts = span(args.lasts, "--for")?;
        let note = json!({"order": "accept-rejections", "at": clock::now().to_string()});
        give(config, Order::AcceptRejections, &note.to_string(), Some(lasts))?;
    }
    let was_paused = block_on(config, async {
        let link = config.broker.broker.connect("resume").await?;
        let topology = &config.broker.topology;
        let withdrawn = orders::withdraw(&link, topology, Order::Pause).await;
        link.close().await;
        Ok(withdrawn?)
    })?;
    let resumed = if was_paused {
        "resumed; relays obey within two seconds"
    } else {
        "there was no pause (an outage ends by itself when a probe succeeds)"
    };
    let accepted = if args.accept_rejections {
        format!("; rejections are dead-lettered without a witness for {:#}", args.lasts)
    } else {
        String::new()
    };
    let text = format!("{resumed}{accepted}");
    let accepts = args.accept_rejections;
    tell(args.json, &json!({"was_paused": was_paused, "accepts_rejections": accepts}), &text)
}

fn give(config: &Config, order: Order, note: &str, lasts: Option<Duration>) -> anyhow::Result<()> {
    block_on(config, async {
        let link = config.broker.broker.connect("orders").await?;
        let given = orders::give(&link, &config.broker.topology, order, note, lasts).await;
        link.close().await;
        Ok(given?)
    })
}

fn span(span: SignedDuration, option: &str) -> anyhow::Result<Duration> {
    match Duration::try_from(span) {
        Ok(span) if !span.is_zero() && span <= LONGEST => Ok(span),
        _ => bail!(Usage(format!("{option} must end in the future, within 49 days"))),
    }
}

fn tell(as_json: bool, json: &serde_json::Value, text: &str) -> anyhow::Result<Exit> {
    if as_json { output::print_json(json) } else { output::print(text) }?;
    Ok(Exit::Done)
}
