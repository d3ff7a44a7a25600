//! Storms: publications, outages, crashes, changed secrets and operators at random.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use customer_relay::domain::controls::ControlCalls;
use customer_relay::domain::outcome::Outcome;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt, SeedableRng};

use super::script::{self, Event, Script};
use super::world::{PROBE, Setting, Tally, World};

const SEEDS: u64 = 2000;
const CUSTOMERS: usize = 12;
/// Trouble that comes and goes faster can be taken for an event's own fault.
const SHORTEST_TROUBLE: Duration = Duration::from_millis(2100);

/// How far a clock is set off, in seconds.
const JUMPS: [i64; 7] = [0, 7200, -7200, 93_600, -93_600, 3, -3];

/// How long a relay sleeps, in seconds: for less than a call, for longer than a lease, and for longer than
/// a lease and `portal.settle_after`.
const NAPS: [u64; 5] = [1, 10, 40, 100, 200];

/// What can be wrong with everybody.
pub(super) const TROUBLES: [Outcome; 11] = [
    Outcome::Failed,
    Outcome::TimedOut,
    Outcome::Interrupted,
    Outcome::GatewayFailed,
    Outcome::Unreachable,
    Outcome::Misrouted,
    Outcome::Unauthorized,
    Outcome::Rejected,
    Outcome::UnknownEntity,
    Outcome::ContractViolation,
    Outcome::Throttled,
];

/// What can be wrong with one customer.
pub(super) const FAULTS: [Outcome; 11] = [
    Outcome::Rejected,
    Outcome::Failed,
    Outcome::UnknownEntity,
    Outcome::ContractViolation,
    Outcome::Unauthorized,
    Outcome::GatewayFailed,
    Outcome::Misrouted,
    Outcome::Interrupted,
    Outcome::TimedOut,
    Outcome::DuplicateEmail,
    Outcome::Throttled,
];

/// What can be wrong with one event.
const EVENT_FAULTS: [Outcome; 4] = [
    Outcome::Rejected,
    Outcome::UnknownEntity,
    Outcome::ContractViolation,
    Outcome::DuplicateEmail,
];

fn setting(dice: &mut StdRng) -> Setting {
    let has_ledger = dice.random_bool(0.8);
    let relays = if has_ledger { *[1, 1, 2, 3].choose(dice).unwrap_or(&1) } else { 1 };
    let mut bad = Vec::new();
    // The first one is always well.
    for customer in 1..CUSTOMERS {
        if dice.random_bool(0.25) {
            bad.extend(FAULTS.choose(dice).map(|fault| (customer, *fault)));
        }
    }
    let settings = [ControlCalls::Applied, ControlCalls::ProbeCustomer, ControlCalls::Off];
    let control_calls = *settings.choose(dice).unwrap_or(&ControlCalls::Off);
    let has_probe = dice.random_bool(0.5);
    if has_probe && dice.random_bool(0.25) {
        bad.extend(FAULTS.choose(dice).map(|fault| (PROBE, *fault)));
    }
    let refusal = if dice.random_bool(0.5) { Outcome::Rejected } else { Outcome::Unauthorized };
    Setting {
        relays,
        has_ledger,
        merges: has_ledger && dice.random_bool(0.5),
        control_calls,
        has_probe,
        prefetch: dice.random_range(4..20),
        in_flight: dice.random_range(1..6),
        max_attempts: 4,
        bad,
        refusal,
        same_time: 0.15,
    }
}

fn storm(dice: &mut StdRng) -> Script {
    let mut now = Duration::from_secs(2);
    let mut script = Script::new();
    let (mut is_troubled, mut is_changed, mut is_paused) = (false, false, false);
    for _ in 0..dice.random_range(20..120) {
        now += Duration::from_millis(*[0, 3, 20, 150, 1000, 4000].choose(dice).unwrap_or(&0));
        let event = match dice.random_range(0..100) {
            0..70 => Event::Publish(dice.random_range(0..CUSTOMERS)),
            70..72 => {
                let seconds = NAPS.choose(dice).copied().unwrap_or_default();
                Event::Sleep(dice.random_range(0..3), seconds)
            }
            72..74 => Event::SetClock(
                dice.random_range(0..3),
                JUMPS.choose(dice).copied().unwrap_or_default(),
            ),
            74..78 => {
                let fault = EVENT_FAULTS.choose(dice).copied().unwrap_or(Outcome::Rejected);
                Event::PublishBad(dice.random_range(1..CUSTOMERS), fault)
            }
            78..80 => Event::Stop(dice.random_range(0..3)),
            80..88 => {
                now += SHORTEST_TROUBLE;
                is_troubled = !is_troubled;
                match TROUBLES.choose(dice) {
                    Some(outcome) if is_troubled => Event::Trouble(*outcome),
                    _ => Event::Heal,
                }
            }
            88..91 => Event::Crash(dice.random_range(0..3)),
            91..94 => Event::LoseSession(dice.random_range(0..3)),
            94..97 => {
                now += SHORTEST_TROUBLE;
                is_changed = !is_changed;
                if is_changed { Event::Change } else { Event::Mend }
            }
            97 => Event::ExpireLeases,
            98 => Event::Refuse(dice.random_range(1..CUSTOMERS)),
            _ => {
                is_paused = !is_paused;
                if is_paused { Event::Pause } else { Event::Resume }
            }
        };
        script.push((now, event));
        if matches!(
            script.last(),
            Some((_, Event::Trouble(_) | Event::Heal | Event::Change | Event::Mend))
        ) {
            now += SHORTEST_TROUBLE;
        }
    }
    script
}

fn run(seed: u64, setting: &Setting, script: &Script) -> Result<Tally> {
    let mut world = World::new(seed, setting.clone())?;
    world.run(script)?;
    Ok(world.tally)
}

#[test]
fn no_order_of_events_breaks_a_promise() -> Result<()> {
    crate::end(storms())
}

fn storms() -> Result<()> {
    let seeds = match std::env::var("TEST_SEED") {
        Ok(seed) => seed.parse::<u64>()?..seed.parse::<u64>()? + 1,
        Err(_) => 0..SEEDS,
    };
    let start = std::time::Instant::now();
    let mut sum = Tally::default();
    for seed in seeds.clone() {
        let mut dice = StdRng::seed_from_u64(seed);
        let (setting, script) = (setting(&mut dice), storm(&mut dice));
        if let Ok(tally) = run(seed, &setting, &script) {
            sum += tally;
            continue;
        }
        let fails = |shorter: &Script| run(seed, &setting, shorter).is_err();
        let short = if crate::is_quick() { script } else { script::shrink(&script, fails) };
        let error = run(seed, &setting, &short).expect_err("it failed a moment ago");
        bail!("TEST_SEED={seed}: {error:#}\n{setting:?}\n{}", script::print(&short));
    }
    println!("simulation: {} seeds, {sum}, {:.1} s", seeds.count(), start.elapsed().as_secs_f64());
    ensure!(sum.outages > 0 && sum.dead > 0 && sum.crashes > 0 && sum.controls > 0, "too tame");
    Ok(())
}

/// Scripts that failed once.
#[test]
fn kept_scripts_pass() -> Result<()> {
    let text = "2000 publish 1\n2003 trouble rejected\n";
    let script = script::parse(text)?;
    ensure!(script::print(&script) == text, "a script does not come out as it went in");
    for seed in 0..20 {
        let setting = setting(&mut StdRng::seed_from_u64(seed));
        run(seed, &setting, &script)?;
    }
    Ok(())
}
