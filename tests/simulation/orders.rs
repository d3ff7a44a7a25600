//! Events of one moment, or of none, by their first receipt: more of a customer than its lane holds, while
//! sessions are lost and relays killed. With one relay the newest is always known.

use std::time::Duration;

use anyhow::{Result, anyhow};
use customer_relay::domain::controls::ControlCalls;
use customer_relay::domain::outcome::Outcome;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt, SeedableRng};

use super::script::{self, Event, Script};
use super::world::{Setting, World};

const SEEDS: u64 = 2000;

fn setting(dice: &mut StdRng) -> Setting {
    Setting {
        relays: 1,
        has_ledger: true,
        merges: dice.random_bool(0.5),
        control_calls: ControlCalls::Applied,
        has_probe: false,
        prefetch: dice.random_range(8..24),
        in_flight: dice.random_range(1..6),
        max_attempts: 4,
        bad: Vec::new(),
        refusal: Outcome::Rejected,
        same_time: *[0.5, 0.9, 1.0].choose(dice).unwrap_or(&1.0),
    }
}

/// Bursts of two customers, one of whose events have no time.
fn script(dice: &mut StdRng) -> Script {
    let mut now = Duration::from_secs(2);
    let mut script = Script::new();
    for _ in 0..dice.random_range(5..60) {
        now += Duration::from_millis(*[0, 0, 0, 3, 30, 300, 1500].choose(dice).unwrap_or(&0));
        let event = match dice.random_range(0..100) {
            0..85 => Event::Publish(dice.random_range(2..4)),
            85..92 => Event::LoseSession(0),
            92..98 => Event::Crash(0),
            _ => Event::Stop(0),
        };
        script.push((now, event));
    }
    script
}

fn run(seed: u64, setting: &Setting, script: &Script) -> Result<()> {
    World::new(seed, setting.clone())?.run(script)
}

#[test]
fn the_event_received_last_wins() -> Result<()> {
    crate::end(orders())
}

fn orders() -> Result<()> {
    for seed in 0..SEEDS {
        let mut dice = StdRng::seed_from_u64(seed);
        let (setting, script) = (setting(&mut dice), script(&mut dice));
        if run(seed, &setting, &script).is_ok() {
            continue;
        }
        let short = script::shrink(&script, |shorter| run(seed, &setting, shorter).is_err());
        let error = run(seed, &setting, &short).expect_err("it failed a moment ago");
        return Err(anyhow!("TEST_SEED={seed}: {error:#}\n{setting:?}\n{}", script::print(&short)));
    }
    println!("{SEEDS} seeds: the newest value in each");
    Ok(())
}
