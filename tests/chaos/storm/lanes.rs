//! Carries the planned faults out, each lane's one after another.

use std::time::Duration;

use anyhow::Result;

use super::faults::{Fault, Kind, Lane};
use super::plan::Plan;
use super::portal::Portal;
use super::sky::Sky;
use crate::support::bed::Bed;
use crate::support::broker::Broker;
use crate::support::chaos::{self, ChaosProxy};
use crate::support::process::Process;

/// Between the releases' own defaults; any value that is no alarm.
const WATERMARK: &str = "0.6";
const HEARS_SIGNALS: Duration = Duration::from_millis(500);

/// Kills and restarts the relay.
pub async fn relay(plan: &Plan, sky: &Sky, bed: &Bed, relay: &mut Process) -> Result<()> {
    for fault in plan.lane(Lane::Relay) {
        if !sky.begins(fault).await {
            break;
        }
        let signal = if fault.kind == Kind::Kill { "KILL" } else { "TERM" };
        sky.end(relay, signal).await?;
        tokio::time::sleep(fault.lasts).await;
        *relay = bed.launch_relay()?;
        sky.says(&format!("relay {} started", relay.pid()));
        // An orderly end can be asked only of a program that listens to signals already.
        tokio::time::sleep(HEARS_SIGNALS).await;
    }
    Ok(())
}

/// Kills the broker, and lets it block publishers.
pub async fn broker(plan: &Plan, sky: &Sky, broker: &mut Broker) -> Result<()> {
    for fault in plan.lane(Lane::Broker) {
        if !sky.begins(fault).await {
            break;
        }
        if fault.kind == Kind::Broker {
            broker.kill().await?;
            tokio::time::sleep(fault.lasts).await;
            broker.start_again().await?;
            sky.says("the broker is back");
        } else {
            broker.ctl(&["set_vm_memory_high_watermark", "0"]).await?;
            tokio::time::sleep(fault.lasts).await;
            broker.ctl(&["set_vm_memory_high_watermark", WATERMARK]).await?;
            sky.says("publishers are free again");
        }
    }
    Ok(())
}

/// Breaks the relay's link to the broker.
pub async fn link(plan: &Plan, sky: &Sky, proxy: &ChaosProxy) -> Result<()> {
    for fault in plan.lane(Lane::Link) {
        if !sky.begins(fault).await {
            break;
        }
        proxy.set(broken(fault)).await;
        tokio::time::sleep(fault.lasts).await;
        proxy.set(chaos::Fault::None).await;
    }
    Ok(())
}

fn broken(fault: &Fault) -> chaos::Fault {
    match (fault.kind, fault.dice % 2) {
        (Kind::Cut, 0) => chaos::Fault::Reset,
        (Kind::Cut, _) => chaos::Fault::Refuse,
        (Kind::Stall, _) => chaos::Fault::Stall,
        (_, dice) => chaos::Fault::Delay(Duration::from_millis(50 + 150 * dice)),
    }
}

/// Makes the portal ill.
pub async fn portal(plan: &Plan, sky: &Sky, portal: &mut Portal<'_>) -> Result<()> {
    for fault in plan.lane(Lane::Portal) {
        if !sky.begins(fault).await {
            break;
        }
        portal.suffer(fault).await?;
    }
    Ok(())
}
