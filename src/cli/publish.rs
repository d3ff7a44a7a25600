//! `publish`: events from JSON lines to the CRM's exchange, in order, each confirmed.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, stdin};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use indicatif::ProgressBar;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Exit, block_on, output};
use crate::amqp::{Feed, NewMessage};
use crate::clock;
use crate::config::Config;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// One event a line: a structured CloudEvent, or bare data; - is standard input.
    file: PathBuf,
    /// Publish lines that are no JSON objects too (a test of the dead-letter queue).
    #[arg(long)]
    raw: bool,
    /// Leave out the first lines: goes on after an interruption.
    #[arg(long, default_value_t = 0, value_name = "LINES")]
    skip: u64,
    /// Events a second, at most.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: Option<u32>,
    /// Print the account as JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn publish(args: &Args, config: &Config) -> anyhow::Result<Exit> {
    if !args.raw && args.file != Path::new("-") {
        check_lines(&args.file)?;
    }
    let published = block_on(config, publish_lines(args, config))?;
    if args.json {
        output::print_json(&json!({ "published": published }))?;
    } else {
        output::print(&format!("{published} events published and confirmed"))?;
    }
    Ok(Exit::Done)
}

/// Before the first event goes out, every line is looked at.
fn check_lines(file: &Path) -> anyhow::Result<()> {
    for (number, line) in (1_u64..).zip(open(file)?.split(b'\n')) {
        let line = line.with_context(|| format!("cannot read {}", file.display()))?;
        check_line(number, &line)?;
    }
    Ok(())
}

fn check_line(number: u64, line: &[u8]) -> anyhow::Result<()> {
    if is_blank(line) || matches!(serde_json::from_slice(line), Ok(Value::Object(_))) {
        return Ok(());
    }
    bail!("line {number} is not a JSON object; mend it, or --raw publishes it as it is")
}

fn open(file: &Path) -> anyhow::Result<Box<dyn BufRead>> {
    if file == Path::new("-") {
        return Ok(Box::new(stdin().lock()));
    }
    let opened = File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(Box::new(BufReader::new(opened)))
}

async fn publish_lines(args: &Args, config: &Config) -> anyhow::Result<u64> {
    let topology = &config.broker.topology;
    let (exchange, key) = (&topology.exchange, &topology.routing_key);
    let mut feed = Feed::open(&config.broker.broker, exchange, key).await?;
    let mut progress =
        Progress { bar: output::spinner(PROGRESS), confirmed: 0, lines: VecDeque::new() };
    let published = publish_all(args, &mut feed, &mut progress).await;
    progress.bar.finish_and_clear();
    feed.close().await;
    published.with_context(|| progress.where_to_go_on(args.skip))?;
    Ok(progress.confirmed)
}

async fn publish_all(args: &Args, feed: &mut Feed, progress: &mut Progress) -> anyhow::Result<()> {
    let mut pace = args.rate.map(|rate| tokio::time::interval(Duration::from_secs(1) / rate));
    for (number, line) in (1_u64..).zip(open(&args.file)?.split(b'\n')) {
        let line = line.with_context(|| format!("cannot read {}", args.file.display()))?;
        if number <= args.skip || is_blank(&line) {
            continue;
        }
        if !args.raw {
            check_line(number, &line)?;
        }
        if let Some(pace) = &mut pace {
            pace.tick().await;
        }
        progress.lines.push_back(number);
        progress.note(feed.send(message(&line), &line).await?);
    }
    loop {
        match feed.confirm_next().await? {
            0 => return Ok(()),
            confirmed => progress.note(confirmed),
        }
    }
}

const PROGRESS: &str = "{spinner} {human_pos} confirmed, {per_sec}, {elapsed}";

/// What is confirmed so far; confirms come in the order of the lines.
struct Progress {
    bar: ProgressBar,
    confirmed: u64,
    /// The lines sent and not confirmed.
    lines: VecDeque<u64>,
}

impl Progress {
    fn note(&mut self, confirmed: u64) {
        self.confirmed += confirmed;
        self.bar.inc(confirmed);
        for _ in 0..confirmed {
            self.lines.pop_front();
        }
    }

    fn where_to_go_on(&self, skipped: u64) -> String {
        let first = self.lines.front().copied().unwrap_or(skipped + 1);
        format!(
            "stopped at line {first}: {} events are confirmed. Go on with --skip {} (an event \
             published twice does no harm)",
            self.confirmed,
            first - 1
        )
    }
}

fn is_blank(line: &[u8]) -> bool {
    line.iter().all(u8::is_ascii_whitespace)
}

/// A structured event names itself; bare data gets an id.
fn message(line: &[u8]) -> NewMessage {
    let event: Option<Value> = serde_json::from_slice(line).ok();
    let structured = event.as_ref().is_some_and(|event| event.get("specversion").is_some());
    let content_type = if structured { "application/cloudevents+json" } else { "application/json" };
    let id = event.as_ref().filter(|_| structured).and_then(|event| event.get("id")?.as_str());
    let id =
        id.filter(|id| id.len() <= 255).map_or_else(|| Uuid::now_v7().to_string(), str::to_owned);
    NewMessage::event(content_type, &id, clock::now())
}
