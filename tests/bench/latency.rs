//! How long an event takes through an idle relay, and how long the relay takes to start.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::bed::{Bed, Load};
use crate::candidate::Candidate;
use crate::portal::Portal;

const LIMIT: Duration = Duration::from_secs(20);
/// Between two events.
const PACE: Duration = Duration::from_millis(10);
/// Not counted: connections and caches are still cold.
const WARM_UP: u32 = 20;

/// What was measured of one candidate, all runs together.
pub(crate) struct Durations {
    pub(crate) candidate: Candidate,
    pub(crate) all: Vec<Duration>,
}

/// From the publish of a lone event to its arrival at the portal.
pub(crate) async fn measure(bed: &Bed, runs: u32, events: u32) -> Result<Vec<Durations>> {
    let mut all = none_yet();
    for run in 0..runs as usize {
        for turn in 0..all.len() {
            let count = all.len();
            let one = &mut all[(turn + run) % count];
            eprintln!("lone events, run {} of {runs}: {}", run + 1, one.candidate.name());
            one.all.extend(lone_events(bed, one.candidate, events).await?);
        }
    }
    Ok(all)
}

/// From the start of the process to its first call, with events waiting and queues declared.
pub(crate) async fn starts(bed: &Bed, runs: u32) -> Result<Vec<Durations>> {
    let mut all = none_yet();
    for _ in 0..runs {
        for one in &mut all {
            one.all.push(start(bed, one.candidate).await?);
        }
    }
    Ok(all)
}

fn none_yet() -> Vec<Durations> {
    Candidate::LOOPS.map(|candidate| Durations { candidate, all: Vec::new() }).into()
}

async fn lone_events(bed: &Bed, candidate: Candidate, events: u32) -> Result<Vec<Duration>> {
    let stage = bed.stage(&Load::fast(events)).await?;
    let mut portal = Portal::start().await?;
    let mut process = candidate.start(&stage, portal.url())?;
    stage.consumed().await?;
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut durations = Vec::new();
    for customer in 0..WARM_UP + events {
        pace.tick().await;
        let published = Instant::now();
        stage.publish(customer..customer + 1).await?;
        let call = timeout(LIMIT, portal.next_call()).await?.context("the portal is gone")?;
        ensure!(call.customer == customer, "customer {} was called twice", call.customer);
        if customer >= WARM_UP {
            durations.push(call.arrived - published);
        }
    }
    sleep(PACE * 10).await;
    process.signal("TERM").await?;
    process.ended(LIMIT).await?;
    stage.delete().await?;
    Ok(durations)
}

async fn start(bed: &Bed, candidate: Candidate) -> Result<Duration> {
    let stage = bed.stage(&Load::fast(1)).await?;
    let mut portal = Portal::start().await?;
    stage.publish(0..1).await?;
    let began = Instant::now();
    let mut process = candidate.start(&stage, portal.url())?;
    let call = timeout(LIMIT, portal.next_call()).await?.context("the portal is gone")?;
    sleep(PACE * 10).await;
    process.signal("TERM").await?;
    process.ended(LIMIT).await?;
    stage.delete().await?;
    Ok(call.arrived - began)
}
