//! The pure core under a seeded scheduler: lanes, gate, breaker, witnesses, verdicts and the order
//! of settling, without a broker, a clock or a thread. Each step does one thing that could happen
//! next; after each the promises must hold. A failing seed fails again.

mod broker;
mod journey;
mod portal;
mod world;

use anyhow::{Result, ensure};

use crate::harness::{Context, suite};
use world::World;

suite!(NoBroker:
    no_order_of_events_breaks_a_promise,
);

/// Seeds, and steps of storm for each; the calm after it is as long as it takes.
const SEEDS: u64 = 3000;
const STEPS: usize = 400;

async fn no_order_of_events_breaks_a_promise(_: Context) -> Result<()> {
    let seeds = match std::env::var("TEST_SEED") {
        Ok(seed) => seed.parse::<u64>()?..seed.parse::<u64>()? + 1,
        Err(_) => 0..SEEDS,
    };
    let start = std::time::Instant::now();
    let mut sum = world::Tally::default();
    for seed in seeds.clone() {
        let mut world = World::new(seed)?;
        let ran = (0..STEPS).try_for_each(|_| world.step()).and_then(|()| world.calm_down());
        match ran {
            Ok(()) => sum += world.tally,
            Err(error) => {
                anyhow::bail!("TEST_SEED={seed}, step {}: {error:#}", world.tally.steps);
            }
        }
    }
    println!("simulation: {} seeds, {sum}, {:.1} s", seeds.count(), start.elapsed().as_secs_f64());
    ensure!(sum.outages > 0 && sum.dead > 0 && sum.crashes > 0 && sum.controls > 0, "too tame");
    Ok(())
}
