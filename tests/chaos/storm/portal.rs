//! The portal in the storm: who is always refused, and what goes wrong for everybody for a while.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::events::{POISON, REJECTED};
use super::faults::{Fault, Kind};
use crate::support::simulator::{SECRET_KEY, Simulator};

/// Kinds of simulator faults that are used only where the update is applied and the caller is not
/// told: each hit may become one double.
const AMBIGUOUS: [&str; 3] = ["raw", "truncated", "late"];

/// A simulator with rules that stand for the whole storm.
pub struct Portal<'a> {
    simulator: &'a Simulator,
    rejects: u64,
    fails: u64,
}

/// What one fault does.
#[derive(Debug)]
enum Trouble {
    /// A rule that strikes before any other: nobody gets through.
    Everybody(Value),
    /// A rule for calls that no standing rule strikes.
    Some(Value),
    Secret,
}

impl<'a> Portal<'a> {
    /// From now on some customers are rejected, and one gets nothing but errors.
    pub async fn open(simulator: &'a Simulator) -> Result<Portal<'a>> {
        let rejects = simulator.add_fault(rejects()).await?;
        let fails = simulator.add_fault(fails()).await?;
        Ok(Portal { simulator, rejects, fails })
    }

    /// Lets a fault hold for its while.
    pub async fn suffer(&mut self, fault: &Fault) -> Result<()> {
        match trouble(fault) {
            Trouble::Secret => {
                self.simulator.expect_secret("another-secret").await?;
                tokio::time::sleep(fault.lasts).await;
                self.simulator.expect_secret(SECRET_KEY).await
            }
            Trouble::Everybody(rule) => {
                let id = self.simulator.add_fault(rule).await?;
                self.stand_behind().await?;
                tokio::time::sleep(fault.lasts).await;
                self.simulator.remove_fault(id).await
            }
            Trouble::Some(rule) => {
                let id = self.simulator.add_fault(rule).await?;
                tokio::time::sleep(fault.lasts).await;
                self.simulator.remove_fault(id).await
            }
        }
    }

    /// The first rule that strikes wins: puts the standing ones behind all others, with no moment
    /// without them.
    async fn stand_behind(&mut self) -> Result<()> {
        let (old_rejects, old_fails) = (self.rejects, self.fails);
        self.rejects = self.simulator.add_fault(rejects()).await?;
        self.fails = self.simulator.add_fault(fails()).await?;
        self.simulator.remove_fault(old_rejects).await?;
        self.simulator.remove_fault(old_fails).await
    }

    /// The storm is over for the poison customer too.
    pub async fn lift_poison(&self) -> Result<()> {
        self.simulator.remove_fault(self.fails).await
    }

    /// Calls that were applied, or may have been, without the caller's knowing.
    pub async fn ambiguous_calls(&self) -> Result<usize> {
        let stats = self.simulator.stats().await?;
        let hits = AMBIGUOUS.iter().map(|kind| stats["faults"][kind].as_u64().unwrap_or(0));
        usize::try_from(hits.sum::<u64>()).context("too many")
    }
}

fn rejects() -> Value {
    json!({"match": {"entity_prefix": REJECTED},
           "fault": {"kind": "body_status", "status": 400, "message": "fail"}})
}

fn fails() -> Value {
    json!({"match": {"entity_prefix": POISON}, "fault": {"kind": "status", "code": 500}})
}

fn trouble(fault: &Fault) -> Trouble {
    let everybody = |fault: Value| Trouble::Everybody(json!({ "fault": fault }));
    let some = |probability: f64, what: Value| {
        let matcher = json!({"probability": probability, "seed": fault.dice});
        Trouble::Some(json!({"match": matcher, "fault": what}))
    };
    let status = |code: u16| json!({"kind": "status", "code": code});
    let throttled = json!({"kind": "status", "code": 429, "retry_after": 1});
    match (fault.kind, fault.dice % 5) {
        (Kind::Flap, 0) => everybody(status(503)),
        (Kind::Flap, 1) => everybody(json!({"kind": "reset"})),
        (Kind::Flap, 2) => everybody(json!({"kind": "status", "code": 502, "envelope": false})),
        (Kind::Flap, 3) => some(0.3, json!({"kind": "truncated", "apply": true})),
        (Kind::Flap, _) => {
            let body = json!({"status": 500, "message": "fail"});
            some(0.3, json!({"kind": "raw", "code": 500, "body": body, "apply": true}))
        }
        (Kind::Hang, 0) => everybody(json!({"kind": "hang"})),
        (Kind::Hang, 1 | 2) => some(0.05, json!({"kind": "late", "ms": 2500})),
        (Kind::Hang, _) => some(0.1, json!({"kind": "hang"})),
        (Kind::Throttle, 0 | 1) => some(0.5, throttled),
        (Kind::Throttle, _) => everybody(throttled),
        (Kind::Secret, _) => Trouble::Secret,
        (other, _) => unreachable!("{other:?} is no fault of the portal's"),
    }
}
