//! A portal that is out, comes and goes, throttles one customer, or never took our credentials: how soon
//! it is noticed, what it costs, and whom it holds up.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use customer_relay::domain::controls::ControlCalls;
use customer_relay::domain::outcome::Outcome;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt, SeedableRng};

use super::script::Event;
use super::storms::{FAULTS, TROUBLES};
use super::world::{PROBE, Setting, World};

const SEEDS: u64 = 100;
const CUSTOMERS: usize = 40;
/// An event this often.
const EVERY: Duration = Duration::from_millis(500);
/// From the first failed call to the outage: three customers' events, and two control calls.
const NOTICED_WITHIN: Duration = Duration::from_secs(8);
/// Events that fail before an outage is noticed, beside those that were called at once.
const FAILS_BEFORE: usize = 5;
const CALLS_AN_ATTEMPT: usize = 3;
/// Nobody waits longer than this for a throttled customer.
const MAX_LAG: Duration = Duration::from_secs(5);

fn setting(dice: &mut StdRng) -> Setting {
    let (applied, off) = (ControlCalls::Applied, ControlCalls::Off);
    let settings = [(applied, false), (ControlCalls::ProbeCustomer, true), (off, false)];
    let (control_calls, has_probe) = *settings.choose(dice).unwrap_or(&(off, false));
    Setting {
        relays: 1,
        has_ledger: true,
        merges: dice.random_bool(0.5),
        control_calls,
        has_probe,
        prefetch: 20,
        in_flight: *[1, 4].choose(dice).unwrap_or(&4),
        max_attempts: 4,
        bad: Vec::new(),
        refusal: Outcome::Rejected,
        same_time: 0.15,
    }
}

fn trouble(dice: &mut StdRng) -> Outcome {
    let others = TROUBLES.into_iter().filter(|outcome| *outcome != Outcome::Throttled);
    *others.collect::<Vec<_>>().choose(dice).unwrap_or(&Outcome::Failed)
}

/// Events of one customer after the other, for so long.
fn publish_for(world: &mut World, span: Duration) -> Result<()> {
    let end = world.now + span;
    while world.now < end {
        world.publish(world.published.len() % CUSTOMERS)?;
        world.run_until((world.now + EVERY).min(end))?;
    }
    Ok(())
}

fn each_seed(test: impl Fn(u64, &mut StdRng) -> Result<()>) -> Result<()> {
    let one = |seed| test(seed, &mut StdRng::seed_from_u64(seed));
    let each = (0..SEEDS).try_for_each(|seed| one(seed).with_context(|| format!("seed {seed}")));
    crate::end(each)
}

#[test]
fn an_outage_is_noticed_soon_and_costs_few_calls() -> Result<()> {
    each_seed(|seed, dice| {
        let (setting, trouble) = (setting(dice), trouble(dice));
        let mut world = World::new(seed, setting.clone())?;
        publish_for(&mut world, Duration::from_secs(30))?;
        let (since, calls) = (world.now, world.portal.ended.len());
        let lasts = Duration::from_secs(dice.random_range(30..120));
        world.happen(&Event::Trouble(trouble))?;
        publish_for(&mut world, lasts)?;
        let told = format!("{}, {setting:?}", trouble.name());
        let noticed = world.openings.first().copied().unwrap_or(Duration::MAX);
        ensure!(noticed < since + NOTICED_WITHIN, "an outage is noticed late: {noticed:?}, {told}");
        let probes = usize::try_from(lasts.as_secs() / 10)? + 6;
        let most = (setting.in_flight + FAILS_BEFORE) * CALLS_AN_ATTEMPT + probes;
        let calls = world.portal.ended.len() - calls;
        ensure!(calls <= most, "an outage of {lasts:?} costs {calls} calls, not {most}: {told}");
        world.end()
    })
}

/// It is well until the outage is over, and fails again.
#[test]
fn a_portal_that_comes_and_goes_is_asked_ever_more_rarely() -> Result<()> {
    each_seed(|seed, dice| {
        let (setting, trouble) = (setting(dice), trouble(dice));
        let mut world = World::new(seed, setting.clone())?;
        publish_for(&mut world, Duration::from_secs(10))?;
        let end = world.now + Duration::from_mins(10);
        while world.now < end {
            world.happen(&Event::Trouble(trouble))?;
            publish_for(&mut world, Duration::from_secs(5))?;
            world.happen(&Event::Heal)?;
            publish_for(&mut world, Duration::from_secs(5))?;
        }
        let outages = world.openings.len();
        ensure!(outages <= 30, "{outages} outages: {}, {setting:?}", trouble.name());
        world.end()
    })
}

#[test]
fn a_throttled_customer_holds_up_no_other() -> Result<()> {
    each_seed(|seed, dice| {
        let bad = vec![(CUSTOMERS, Outcome::Throttled)];
        let setting = Setting { bad, ..setting(dice) };
        let mut world = World::new(seed, setting.clone())?;
        for number in 0..240 {
            world.publish(number % CUSTOMERS)?;
            if number % 6 == 5 {
                world.publish(CUSTOMERS)?;
            }
            world.run_until(world.now + EVERY)?;
        }
        let is_good =
            |number: &usize| !world.portal.is_bad(&world.published[*number].customer, *number);
        let lags = (0..world.published.len()).filter(is_good).map(|number| world.lag(number));
        let longest = lags.max().unwrap_or_default();
        ensure!(longest <= MAX_LAG, "an event waits {longest:?} for a throttled one: {setting:?}");
        world.end()
    })
}

#[test]
fn credentials_that_never_went_well_are_an_outage_at_the_first_refusal() -> Result<()> {
    each_seed(|seed, dice| {
        let refusal =
            *[Outcome::Rejected, Outcome::Unauthorized].choose(dice).unwrap_or(&Outcome::Rejected);
        let setting = Setting { refusal, ..setting(dice) };
        let mut world = World::new(seed, setting)?;
        world.happen(&Event::Change)?;
        world.publish(1)?;
        world.run_until(world.now + Duration::from_secs(20))?;
        ensure!(
            world.openings.len() == 1,
            "{} outages of {}",
            world.openings.len(),
            refusal.name()
        );
        publish_for(&mut world, Duration::from_mins(2))?;
        let calls = world.portal.ended.len();
        ensure!(calls <= 15, "{calls} calls with credentials that never went well");
        world.end()
    })
}

#[test]
fn a_lone_fault_on_a_quiet_queue_is_no_dead_letter() -> Result<()> {
    each_seed(|seed, dice| {
        let setting =
            Setting { control_calls: ControlCalls::Off, has_probe: false, ..setting(dice) };
        let mut world = World::new(seed, setting)?;
        world.publish(0)?;
        world.run_until(world.now + Duration::from_secs(20))?;
        world.happen(&Event::Trouble(Outcome::Rejected))?;
        world.publish(1)?;
        world.run_until(world.now + Duration::from_mins(1))?;
        world.happen(&Event::Heal)?;
        world.end()
    })
}

/// However well a call ends that began before a fault had ended: the portal may have been out between.
#[test]
fn a_call_from_before_a_fault_proves_nothing() -> Result<()> {
    const STEP: Duration = Duration::from_millis(5);
    each_seed(|seed, dice| {
        let (control_calls, has_probe) = (ControlCalls::Off, false);
        let setting = Setting { control_calls, has_probe, in_flight: 4, ..setting(dice) };
        let mut world = World::new(seed, setting.clone())?;
        publish_for(&mut world, Duration::from_secs(10))?;
        world.run_until(world.now + Duration::from_secs(30))?;
        let (calls, trouble) = (world.portal.ended.len(), trouble(dice));
        world.happen(&Event::Trouble(trouble))?;
        for number in 0..4 {
            world.publish(number)?;
        }
        while world.portal.ended.len() == calls {
            world.run_until(world.now + STEP)?;
        }
        world.happen(&Event::Heal)?;
        for _ in 0..1000 {
            world.run_until(world.now + STEP)?;
            let histories = world.broker.queued().filter_map(|message| message.history.as_ref());
            let attempts: u32 = histories.map(|history| history.attempts).sum();
            ensure!(attempts == 0, "an attempt is counted: {}, {setting:?}", trouble.name());
        }
        world.end()
    })
}

/// A probe customer that never goes well is found out: then a lone bad customer is no outage.
#[test]
fn a_bad_probe_customer_is_found_out() -> Result<()> {
    each_seed(|seed, dice| {
        let fault = |dice: &mut StdRng| *FAULTS.choose(dice).unwrap_or(&Outcome::Rejected);
        let bad = vec![(PROBE, fault(dice)), (CUSTOMERS, fault(dice))];
        let control_calls = ControlCalls::ProbeCustomer;
        let setting = Setting { control_calls, has_probe: true, bad, ..setting(dice) };
        let mut world = World::new(seed, setting.clone())?;
        for number in 0..36 {
            world.publish(number)?;
            world.run_until(world.now + Duration::from_secs(15))?;
            if number % 4 == 1 {
                world.publish(CUSTOMERS)?;
                world.run_until(world.now + Duration::from_secs(15))?;
            }
        }
        let (_, controls, outages) = world.most();
        ensure!(outages <= 4, "{outages} outages in ten minutes: {setting:?}");
        ensure!(controls <= 15, "{controls} control calls a minute: {setting:?}");
        world.end()
    })
}

/// The events of a bad customer are the latest that came, and the first to be probes.
#[test]
fn a_bad_customer_holds_no_outage_open() -> Result<()> {
    each_seed(|seed, dice| {
        let fault = *[Outcome::Rejected, Outcome::Failed].choose(dice).unwrap_or(&Outcome::Failed);
        let bad = vec![(CUSTOMERS, fault)];
        let (control_calls, has_probe) = (ControlCalls::Off, false);
        let setting = Setting { control_calls, has_probe, bad, ..setting(dice) };
        let mut world = World::new(seed, setting)?;
        publish_for(&mut world, Duration::from_secs(5))?;
        world.run_until(world.now + Duration::from_secs(10))?;
        world.happen(&Event::Trouble(Outcome::Unauthorized))?;
        for customer in [0, 1, 2, CUSTOMERS] {
            world.publish(customer)?;
            world.run_until(world.now + Duration::from_millis(5))?;
        }
        world.run_until(world.now + Duration::from_secs(20))?;
        ensure!(!world.openings.is_empty(), "no outage");
        world.happen(&Event::Heal)?;
        let applied = world.portal.applied.len();
        world.run_until(world.now + Duration::from_secs(70))?;
        ensure!(world.portal.applied.len() > applied, "nothing was applied in two probes' time");
        world.end()
    })
}

/// What failed with other credentials than those that went well is no event's fault.
#[test]
fn a_refusal_of_old_credentials_is_no_events_fault() -> Result<()> {
    each_seed(|seed, dice| {
        let setting = Setting { refusal: Outcome::Rejected, same_time: 0.15, ..setting(dice) };
        let mut world = World::new(seed, setting)?;
        for customer in 0..3 {
            world.publish(customer)?;
            world.run_until(world.now + Duration::from_millis(200))?;
        }
        world.happen(&Event::Change)?;
        world.publish(3)?;
        world.run_until(world.now + Duration::from_millis(200))?;
        world.happen(&Event::Mend)?;
        for customer in 4..7 {
            world.publish(customer)?;
            world.run_until(world.now + Duration::from_millis(200))?;
        }
        world.end()?;
        let dead = world.broker.dead.len();
        ensure!(dead == 0, "{dead} dead letters by credentials that had changed");
        Ok(())
    })
}
