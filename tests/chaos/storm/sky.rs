//! The storm's clock, and what it has done so far.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::faults::{Fault, Kind};
use crate::support::process::Process;

/// Within a grace period of 5 s and some broker operations of 2 s each.
const END_LIMIT: Duration = Duration::from_secs(40);

/// A storm under way, seen by all its lanes.
pub struct Sky {
    began: Instant,
    lasts: Duration,
    noted: Mutex<Noted>,
}

/// What happened.
#[derive(Clone, Debug, Default)]
pub struct Noted {
    /// Faults that were really injected.
    pub injected: BTreeMap<Kind, usize>,
    /// Relays that ended on SIGTERM with exit code 0.
    pub orderly_ends: usize,
    /// Ends of relays that no signal explains, and orderly ends that were none.
    pub bad_ends: Vec<String>,
    /// Everything in order of time, for whoever reads of a failure.
    pub story: Vec<String>,
}

impl Sky {
    /// The storm begins now.
    pub fn new(lasts: Duration) -> Sky {
        Sky { began: Instant::now(), lasts, noted: Mutex::default() }
    }

    /// Time since the beginning.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Waits for a fault's time and notes it; false if the storm is over by then.
    pub async fn begins(&self, fault: &Fault) -> bool {
        tokio::time::sleep(fault.at.saturating_sub(self.elapsed())).await;
        if self.elapsed() > self.lasts {
            return false;
        }
        *self.noted().injected.entry(fault.kind).or_default() += 1;
        self.says(&format!("{} for {:?}", fault.kind.name(), fault.lasts));
        true
    }

    /// Ends a relay by a signal, KILL or TERM, and notes an end that is not the signal's.
    pub async fn end(&self, relay: &mut Process, signal: &str) -> Result<()> {
        relay.signal(signal).await?;
        let Ok(status) = relay.ended(END_LIMIT).await else {
            let text = format!("a relay that got SIG{signal} still ran after {END_LIMIT:?}");
            self.says(&text);
            self.noted().bad_ends.push(text);
            relay.signal("KILL").await?;
            return relay.ended(END_LIMIT).await.map(drop);
        };
        self.says(&format!("relay {} ended by {signal}: {status}", relay.pid()));
        let mut noted = self.noted();
        match signal {
            "KILL" if status.signal() == Some(9) => {}
            "TERM" if status.success() => noted.orderly_ends += 1,
            _ => noted.bad_ends.push(format!("a relay that got SIG{signal} ended with {status}")),
        }
        Ok(())
    }

    /// Adds to the story.
    pub fn says(&self, text: &str) {
        let line = format!("{:6.2} s  {text}", self.elapsed().as_secs_f64());
        self.noted().story.push(line);
    }

    /// All that was noted.
    pub fn into_noted(self) -> Noted {
        self.noted.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
