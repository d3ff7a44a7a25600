//! Mixtures of good and bad customers at a portal that is well: no outage, few calls, every bad event
//! a dead letter with the right reason.

use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use customer_relay::domain::controls::ControlCalls;
use customer_relay::domain::outcome::Outcome;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt, SeedableRng};

use super::script::{Event, Script};
use super::storms::FAULTS;
use super::world::{Setting, World};

const SEEDS: u64 = 2000;
/// First calls, immediate retries and one more call each.
const MAX_ATTEMPTS: u32 = 3;
const MAX_CALLS: u32 = MAX_ATTEMPTS * 3 + 3;
const MAX_CONTROLS_A_MINUTE: usize = 61;

/// Some events at once, then as many events a second of good customers as drawn.
fn script(bad: usize, good: usize, dice: &mut StdRng) -> Script {
    let mut script = Script::new();
    let start = Duration::from_secs(2);
    script.push((start, Event::Publish(0)));
    // Something must have been applied, or nothing can be sent again.
    let first = start + Duration::from_millis(dice.random_range(100..3000));
    let spread = *[0, 10, 1000, 20_000].choose(dice).unwrap_or(&0);
    for customer in 0..bad {
        let at = first + Duration::from_millis(dice.random_range(0..=spread));
        script.push((at, Event::Publish(1000 + customer)));
    }
    let pause = *[5, 100, 2000].choose(dice).unwrap_or(&100);
    for number in 0..good {
        let at = first + Duration::from_millis(pause * number as u64);
        script.push((at, Event::Publish(number % 50)));
    }
    script.sort_by_key(|(at, _)| *at);
    script
}

#[test]
fn mixtures_of_good_and_bad_customers_end_with_few_calls() -> Result<()> {
    crate::end(mixtures())
}

fn mixtures() -> Result<()> {
    let (mut most_calls, mut most_controls) = (0, 0);
    for seed in 0..SEEDS {
        let mut dice = StdRng::seed_from_u64(seed);
        let count = *[1, 3, 10, 60, 200].choose(&mut dice).unwrap_or(&3);
        let good = *[0, 0, 10, 100].choose(&mut dice).unwrap_or(&0);
        // Three refused connections in a row are an outage without a control call.
        let no_faults = [Outcome::Throttled, Outcome::Unreachable];
        let faults: Vec<Outcome> =
            FAULTS.into_iter().filter(|fault| !no_faults.contains(fault)).collect();
        let kinds = dice.random_range(1..=faults.len());
        let bad: Vec<(usize, Outcome)> =
            (0..count).map(|n| (1000 + n, faults[(n + count) % kinds])).collect();
        let relays = *[1, 1, 2].choose(&mut dice).unwrap_or(&1);
        let has_probe = dice.random_bool(0.5);
        let setting = Setting {
            relays,
            has_ledger: true,
            merges: dice.random_bool(0.5),
            control_calls: if has_probe {
                ControlCalls::ProbeCustomer
            } else {
                ControlCalls::Applied
            },
            has_probe,
            prefetch: *[20, 100].choose(&mut dice).unwrap_or(&20),
            in_flight: *[1, 4, 32].choose(&mut dice).unwrap_or(&4),
            max_attempts: MAX_ATTEMPTS,
            bad: bad.clone(),
            refusal: Outcome::Rejected,
            same_time: 0.15,
        };
        let script = script(count, good, &mut dice);
        let mut world = World::new(seed, setting.clone())?;
        let ran = world.run(&script);
        let (calls, controls, outages) = world.most();
        ran.map_err(|error| anyhow!("TEST_SEED={seed}: {error:#}, {setting:?}"))?;
        let told =
            format!("TEST_SEED={seed}: {count} bad, {good} good, {kinds} kinds, {relays} relays");
        // A relay to which no good event came has nothing to ask with.
        ensure!(outages == 0 || (relays > 1 && !has_probe), "{told}: {outages} outages");
        ensure!(outages <= 60, "{told}: {outages} outages in an hour");
        let most = if relays == 1 { MAX_CALLS } else { MAX_CALLS + 50 };
        ensure!(calls <= most, "{told}: {calls} calls of one event");
        ensure!(controls <= MAX_CONTROLS_A_MINUTE * relays, "{told}: {controls} control calls");
        for letter in &world.broker.dead {
            let customer = &world.published[letter.event].customer;
            let fault = world.portal.bad.get(customer).and_then(|fault| fault.facts());
            let expected = fault.map(|facts| facts.reason.name());
            ensure!(Some(letter.reason) == expected, "{told}: {customer} {}", letter.reason);
        }
        (most_calls, most_controls) = (calls.max(most_calls), controls.max(most_controls));
    }
    println!(
        "{SEEDS} mixtures: at most {most_calls} calls of one event, {most_controls} control calls a \
         minute, no outage"
    );
    Ok(())
}
