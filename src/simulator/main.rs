//! Stands in for the prepaid-card portal: reads the command line, listens, serves until a signal.
//! Written from the portal operator's page alone; shares no code with the relay.

mod answer;
mod book;
mod call;
mod cli;
mod clock;
mod control;
mod endpoint;
mod fault;
mod faults;
mod fields;
mod http;
mod page;
mod portal;
mod rate;
mod request_log;
mod script;
mod server;
mod state;
mod stats;

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use clap::Parser;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

/// One thread: a call is some microseconds of work, and a wake-up of another thread costs more.
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let options = cli::Options::parse();
    start_log();
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let address = options.listen;
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}; see --listen"))?;
    announce(listener.local_addr()?).context("cannot write to stdout")?;
    tokio::select! {
        () = server::serve(listener, Arc::new(state::Simulator::new(options))) => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// Tells scripts, in the first line on stdout, where to call.
fn announce(address: SocketAddr) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "portal-simulator listening on http://{address}")?;
    stdout.flush()
}

fn start_log() {
    let filter = EnvFilter::builder().with_default_directive(LevelFilter::WARN.into());
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(filter.from_env_lossy())
        .init();
}
