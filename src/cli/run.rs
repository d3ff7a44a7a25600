//! `run`: the worker, from start to drained.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::Exit;
use crate::config::Config;
use crate::descriptors::{self, Budget};
use crate::telemetry::{Exporters, Signals, Written, log, panic};
use crate::worker;

/// Between the hand-back after the grace period and the end: closing connections, the last telemetry.
const FAREWELL: Duration = Duration::from_secs(10);

pub(super) fn run(config: Config, environment: &[(String, String)]) -> anyhow::Result<Exit> {
    let signals = Signals::parse(environment)?;
    let exporters = Exporters::start(signals, environment, config.admin.listen.is_some())?;
    let (filter, format) = (log::parse_filter(&config.log.filter)?, config.log.format);
    let lines = log::start(filter, format, Some(&exporters))?;
    // A bug must not leave a lane stuck behind a dead task: the process ends, the broker gives its
    // deliveries out again and counts them, and a message that does this every time is stopped by
    // the work queue's delivery limit.
    let last_lines = lines.clone();
    panic::report_by_place(move || {
        last_lines.now();
        std::process::abort();
    });
    let files = Budget::new(&config, descriptors::raise_limit()).accept()?;
    let work_queue = config.broker.topology.work_queue();
    let telemetry = exporters.telemetry(&work_queue, config.publisher_trace);
    // One thread: what there is to compute takes far less than the portal does, and of several each
    // would wake the others all the time. What waits for the disk has threads of its own.
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build()?;
    let longest = config.worker.grace_period + config.broker.operation_timeout + FAREWELL;
    let last_resort = end_at_last(longest, lines.clone());
    let ended = runtime.block_on(async {
        let (stop, cut) = (CancellationToken::new(), CancellationToken::new());
        tokio::spawn(stop_on_signals(stop.clone(), cut.clone(), last_resort)?);
        tracing::info!(version = env!("CARGO_PKG_VERSION"), "starting");
        tracing::info!("{}", files.to_text());
        let report = Box::pin(worker::run(config, telemetry, stop, cut)).await?;
        tracing::info!("stopped: {report}");
        Ok(Exit::Done)
    });
    exporters.shut_down();
    ended
}

/// Ends the process so long after it was told to stop, whatever still keeps it: a thread of its own,
/// for whom nobody has to wait. What is not acked by then is delivered again.
#[expect(clippy::exit, reason = "what keeps the main thread is what this is for")]
fn end_at_last(longest: Duration, lines: Written) -> impl FnOnce() + Send {
    move || {
        let waiting = std::thread::Builder::new().name("last-resort".into()).spawn(move || {
            std::thread::sleep(longest);
            tracing::error!(
                ?longest,
                "stopping took too long: what is not acked is delivered again"
            );
            lines.now();
            std::process::exit(Exit::Failed as i32);
        });
        if let Err(error) = waiting {
            tracing::warn!(%error, "nothing ends the process if stopping takes too long");
        }
    }
}

/// The first signal stops, a second one cuts the grace period short.
fn stop_on_signals(
    stop: CancellationToken,
    cut: CancellationToken,
    last_resort: impl FnOnce() + Send + 'static,
) -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut last_resort = Some(last_resort);
    Ok(async move {
        for token in [stop, cut] {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            tracing::info!(signal = name, "stopping");
            if let Some(last_resort) = last_resort.take() {
                last_resort();
            }
            token.cancel();
        }
    })
}
