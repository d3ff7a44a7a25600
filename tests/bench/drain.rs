//! One candidate drains one full queue.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::bed::{Bed, Load};
use crate::candidate::Candidate;

/// Long enough for what follows the last call, the acks.
const SETTLE: Duration = Duration::from_millis(250);
const LIMIT: Duration = Duration::from_mins(5);

/// What one drain came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Drain {
    /// From the first chance to work until the portal had applied everything.
    pub(crate) elapsed: Duration,
    /// The process's user and system time for it, as the kernel counts it.
    pub(crate) cpu: Duration,
    /// The process's peak resident memory, its start included.
    pub(crate) peak_kib: u64,
}

/// The drains of one candidate, in the order of the runs.
pub(crate) struct Series {
    pub(crate) candidate: Candidate,
    pub(crate) load: Load,
    pub(crate) drains: Vec<Drain>,
}

impl Series {
    /// None yet.
    pub(crate) fn new(candidate: Candidate, load: &Load) -> Series {
        Series { candidate, load: *load, drains: Vec::new() }
    }

    /// Events a second, by run.
    pub(crate) fn rates(&self) -> Vec<f64> {
        let events = f64::from(self.load.events);
        self.drains.iter().map(|drain| events / drain.elapsed.as_secs_f64()).collect()
    }

    /// CPU time of an event in microseconds, by run.
    pub(crate) fn cpu_us(&self) -> Vec<f64> {
        let events = f64::from(self.load.events);
        self.drains.iter().map(|drain| drain.cpu.as_secs_f64() * 1e6 / events).collect()
    }

    /// Peak memory in MiB, by run.
    pub(crate) fn peak_mib(&self) -> Vec<f64> {
        let mib = |kib| f64::from(u32::try_from(kib).unwrap_or(u32::MAX)) / 1024.0;
        self.drains.iter().map(|drain| mib(drain.peak_kib)).collect()
    }
}

/// The candidate consumes an empty queue and is stopped by SIGSTOP; its CPU time is read; the queue
/// is filled; SIGCONT starts the clock. So neither its start nor the filling is in the figures.
pub(crate) async fn drain(bed: &Bed, candidate: Candidate, load: &Load) -> Result<Drain> {
    let stage = bed.stage(load).await?;
    let mut process = candidate.start(&stage, stage.simulator.url())?;
    stage.consumed().await.with_context(|| process.output())?;
    tokio::time::sleep(SETTLE).await;
    process.signal("STOP").await?;
    let cpu_at_ready = process.cpu_time()?;
    stage.publish(0..load.events).await?;
    let began = Instant::now();
    process.signal("CONT").await?;
    stage.applied(LIMIT).await?;
    let elapsed = began.elapsed();
    tokio::time::sleep(SETTLE).await;
    let cpu = process.cpu_time()?.saturating_sub(cpu_at_ready);
    let peak_kib = process.peak_memory_kib()?;
    process.signal("TERM").await?;
    process.ended(LIMIT).await?;
    stage.delete().await?;
    Ok(Drain { elapsed, cpu, peak_kib })
}
