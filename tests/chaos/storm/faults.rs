//! The faults of one storm, drawn from the seed: what, when, for how long. Pure.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, RngExt};

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// kill -9 of the relay.
    Kill,
    /// SIGTERM to the relay.
    Term,
    /// kill -9 of the broker.
    Broker,
    /// The broker blocks publishers: a memory alarm.
    Block,
    /// The link is cut.
    Cut,
    /// The link carries nothing, and says nothing.
    Stall,
    /// The link is slow.
    Slow,
    /// The portal answers errors or resets, all calls or some.
    Flap,
    /// The portal does not answer in time.
    Hang,
    /// The portal answers 429.
    Throttle,
    /// The portal's secret is not ours.
    Secret,
}

/// Faults of one lane come one after another; lanes overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    Relay,
    Broker,
    Link,
    Portal,
}

/// One fault of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    pub kind: Kind,
    /// When it begins, from the storm's beginning on.
    pub at: Duration,
    /// How long it holds before it is undone.
    pub lasts: Duration,
    /// For whatever else is to be drawn.
    pub dice: u64,
}

impl Kind {
    /// All of them, in the order of a report.
    pub const ALL: [Kind; 11] = [
        Kind::Kill,
        Kind::Term,
        Kind::Broker,
        Kind::Block,
        Kind::Cut,
        Kind::Stall,
        Kind::Slow,
        Kind::Flap,
        Kind::Hang,
        Kind::Throttle,
        Kind::Secret,
    ];

    /// Its name in `CHAOS_FAULTS` and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Kill => "kill",
            Kind::Term => "term",
            Kind::Broker => "broker",
            Kind::Block => "block",
            Kind::Cut => "cut",
            Kind::Stall => "stall",
            Kind::Slow => "slow",
            Kind::Flap => "flap",
            Kind::Hang => "hang",
            Kind::Throttle => "throttle",
            Kind::Secret => "secret",
        }
    }

    /// The lane that its faults go in.
    pub fn lane(self) -> Lane {
        match self {
            Kind::Kill | Kind::Term => Lane::Relay,
            Kind::Broker | Kind::Block => Lane::Broker,
            Kind::Cut | Kind::Stall | Kind::Slow => Lane::Link,
            Kind::Flap | Kind::Hang | Kind::Throttle | Kind::Secret => Lane::Portal,
        }
    }

    /// May deliveries or confirms be lost in it? Each is then a call or a message more.
    pub fn loses_confirms(self) -> bool {
        match self {
            Kind::Kill | Kind::Broker | Kind::Block | Kind::Cut | Kind::Stall => true,
            Kind::Term | Kind::Slow | Kind::Flap | Kind::Hang | Kind::Throttle | Kind::Secret => {
                false
            }
        }
    }

    /// For how many milliseconds it may hold.
    fn lasts(self) -> std::ops::Range<u64> {
        match self {
            Kind::Kill | Kind::Term => 0..1500,
            Kind::Broker => 0..2000,
            Kind::Block | Kind::Slow | Kind::Throttle => 1000..4000,
            Kind::Cut => 200..3000,
            Kind::Stall => 500..6000,
            Kind::Flap | Kind::Secret => 1000..5000,
            Kind::Hang => 2000..5000,
        }
    }
}

impl Lane {
    const ALL: [Lane; 4] = [Lane::Relay, Lane::Broker, Lane::Link, Lane::Portal];

    /// Milliseconds of peace before its first fault, and between two. RabbitMQ 4.0.5 loses queues
    /// that are younger than 3 s when it is killed.
    fn peace(self) -> [std::ops::Range<u64>; 2] {
        match self {
            Lane::Relay => [1500..3000, 1500..5000],
            Lane::Broker => [4000..6000, 3000..6000],
            Lane::Link => [500..2500, 1000..4000],
            Lane::Portal => [300..1500, 300..2500],
        }
    }
}

/// Draws each lane's faults: every kind in turn, in an order of the dice's.
pub fn draw(dice: &mut StdRng, storm: Duration) -> Vec<Fault> {
    let mut faults = Vec::new();
    for lane in Lane::ALL {
        let [first, between] = lane.peace();
        let mut at = Duration::from_millis(dice.random_range(first));
        let mut kinds = Vec::new();
        while at < storm {
            if kinds.is_empty() {
                kinds = Kind::ALL.into_iter().filter(|kind| kind.lane() == lane).collect();
                kinds.shuffle(dice);
            }
            let Some(kind) = kinds.pop() else { break };
            let lasts = Duration::from_millis(dice.random_range(kind.lasts()));
            faults.push(Fault { kind, at, lasts, dice: dice.next_u64() });
            at += lasts + Duration::from_millis(dice.random_range(between.clone()));
        }
    }
    faults
}
