//! All that a seed decides, before anything runs. Pure.

use std::time::Duration;

use anyhow::{Context, Result};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::events::Events;
use super::faults::{self, Fault, Kind, Lane};

/// How large a storm is.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    pub events: usize,
    pub lasts: Duration,
}

impl Scale {
    /// `make chaos`.
    pub const FULL: Scale = Scale { events: 4200, lasts: Duration::from_secs(35) };
    /// Among the other promises.
    pub const SHORT: Scale = Scale { events: 1500, lasts: Duration::from_secs(10) };
}

/// One seed's storm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub seed: u64,
    pub lasts: Duration,
    pub events: Events,
    pub faults: Vec<Fault>,
    /// Does the portal say why it refuses, or just `fail`?
    pub is_portal_chatty: bool,
    /// With a ledger the account is of what the portal holds in the end; without, of every event by
    /// name.
    pub has_ledger: bool,
}

impl Plan {
    /// Draws a plan: the same for the same seed and scale.
    pub fn draw(seed: u64, scale: Scale) -> Plan {
        let mut dice = StdRng::seed_from_u64(seed);
        let is_portal_chatty = dice.random_bool(0.5);
        let faults = faults::draw(&mut dice, scale.lasts);
        let events = Events::draw(&mut dice, scale.events);
        let has_ledger = seed.is_multiple_of(2);
        Plan { seed, lasts: scale.lasts, events, faults, is_portal_chatty, has_ledger }
    }

    /// Leaves out kinds of faults that a comma-separated list does not name.
    pub fn only(mut self, kinds: &str) -> Result<Plan> {
        let parse = |name: &str| {
            let kind = Kind::ALL.into_iter().find(|kind| kind.name() == name.trim());
            kind.with_context(|| format!("CHAOS_FAULTS: there is no fault {name:?}"))
        };
        let names = kinds.split(',').filter(|name| !name.trim().is_empty());
        let kinds = names.map(parse).collect::<Result<Vec<Kind>>>()?;
        self.faults.retain(|fault| kinds.contains(&fault.kind));
        Ok(self)
    }

    /// A lane's faults in order.
    pub fn lane(&self, lane: Lane) -> impl Iterator<Item = &Fault> {
        self.faults.iter().filter(move |fault| fault.kind.lane() == lane)
    }

    /// What the portal simulator is started with.
    pub fn simulator_args(&self) -> [&'static str; 6] {
        let messages = if self.is_portal_chatty { "detailed" } else { "plain" };
        ["--latency", "20ms", "--log-requests", "0", "--messages", messages]
    }
}
