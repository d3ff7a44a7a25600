//! `run`: the worker, from start to drained.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::Exit;
use crate::config::Config;
use crate::telemetry::log;
use crate::worker;

pub(super) fn run(config: Config) -> anyhow::Result<Exit> {
    let _lines = log::start(log::parse_filter(&config.log.filter)?, config.log.format);
    abort_on_panic();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let (stop, cut) = (CancellationToken::new(), CancellationToken::new());
        tokio::spawn(stop_on_signals(stop.clone(), cut.clone())?);
        tracing::info!(version = env!("CARGO_PKG_VERSION"), "starting");
        // On a worker thread: from the main one, each task would take the long way in.
        let report = tokio::spawn(worker::run(config, stop, cut)).await??;
        tracing::info!("stopped: {report}");
        Ok(Exit::Done)
    })
}

/// A bug must not leave a lane stuck behind a dead task: the process ends, the broker gives its
/// deliveries out again and counts them, and a message that does this every time is stopped by
/// the work queue's delivery limit.
fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}

/// The first signal stops, a second one cuts the grace period short.
fn stop_on_signals(
    stop: CancellationToken,
    cut: CancellationToken,
) -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        for token in [stop, cut] {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            tracing::info!(signal = name, "stopping");
            token.cancel();
        }
    })
}
