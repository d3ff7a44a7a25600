//! Every order there is, in a world small enough for that: two relays, one customer, a few events, and a few
//! things that go wrong: a kill, a sleep longer than a lease, leases that run out, a lost session, a call
//! without an answer; the call that was under way takes effect soon, late or never.
//!
//! The relays are those of the storms. What is drawn there is chosen here, each choice in turn. Worlds that
//! are alike go on alike: they are followed once.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use customer_relay::domain::controls::ControlCalls;
use customer_relay::domain::outcome::Outcome;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::relay::Step;
use super::script::Event;
use super::world::{Setting, World};

/// Longer than a lease and a call, and than `portal.settle_after`.
const NAP: u64 = 100;
/// So often, in seconds, and for so long, something may happen from outside.
const EVERY: u64 = 20;
const SPAN: u64 = 2;
/// Nothing goes on for so long.
const END: Duration = Duration::from_mins(20);

/// How large a world is, and how many there are at most.
#[derive(Clone, Copy, Debug)]
struct Size {
    relays: usize,
    events: usize,
    /// So many things go wrong.
    faults: usize,
    worlds: usize,
}

/// What becomes of a call that nobody sees the end of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Never,
    Soon,
    Late,
}

#[derive(Clone, Copy, Debug)]
enum Choice {
    /// A relay's step, by its place among those that it can do.
    Step(usize, usize),
    /// The same; it is the end of a call, and no answer comes.
    NoAnswer(usize, usize, Fate),
    /// Nothing can be done: time passes.
    Wait,
    Happens(Happening, Fate),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Happening {
    Publish,
    Crash(usize),
    Sleep(usize),
    LoseSession(usize),
    ExpireLeases,
}

impl Happening {
    fn event(self) -> Event {
        match self {
            Happening::Publish => Event::Publish(1),
            Happening::Crash(relay) => Event::Crash(relay),
            Happening::Sleep(relay) => Event::Sleep(relay, NAP),
            Happening::LoseSession(relay) => Event::LoseSession(relay),
            Happening::ExpireLeases => Event::ExpireLeases,
        }
    }
}

/// Dice that fall as they should: the first draws decide the fate of a call.
struct Dice {
    /// A call that the portal gives no answer to: see `Portal::answer`.
    unanswered: [u64; 3],
    /// A call whose caller is gone: see `Portal::abandon`.
    abandoned: [u64; 3],
}

impl Dice {
    fn new() -> Dice {
        let find = |is_fit: &dyn Fn(&mut StdRng) -> bool| {
            let is_fit = |seed: &u64| is_fit(&mut StdRng::seed_from_u64(*seed));
            (0..10_000_u64).find(is_fit).expect("one seed of very many")
        };
        let unanswered = |span: std::ops::Range<u64>| {
            find(&|dice| {
                let is_late = dice.random_bool(0.3) && dice.random_bool(0.5);
                is_late && span.contains(&dice.random_range(1..=59))
            })
        };
        let abandoned = |span: std::ops::Range<u64>| {
            find(&|dice| !dice.random_bool(0.5) && span.contains(&dice.random_range(0..=59)))
        };
        Dice {
            unanswered: [
                find(&|dice| !dice.random_bool(0.3)),
                unanswered(1..4),
                unanswered(56..60),
            ],
            abandoned: [find(&|dice| dice.random_bool(0.5)), abandoned(1..4), abandoned(56..60)],
        }
    }

    fn fall(&self, fate: Fate, is_answered: bool) -> StdRng {
        let dice = if is_answered { &self.unanswered } else { &self.abandoned };
        StdRng::seed_from_u64(dice[fate as usize])
    }
}

struct Model {
    size: Size,
    dice: Dice,
    base: Instant,
}

impl Model {
    fn setting(&self) -> Setting {
        Setting {
            relays: self.size.relays,
            has_ledger: true,
            merges: false,
            control_calls: ControlCalls::Off,
            has_probe: false,
            prefetch: 4,
            in_flight: 2,
            max_attempts: 4,
            bad: Vec::new(),
            refusal: Outcome::Rejected,
            same_time: 0.0,
        }
    }

    /// The world after these choices.
    fn replay(&self, path: &[Choice]) -> Result<World> {
        let mut world = World::new(0, self.setting())?;
        world.base = self.base;
        for choice in path {
            self.choose(&mut world, *choice)?;
        }
        Ok(world)
    }

    fn choose(&self, world: &mut World, choice: Choice) -> Result<()> {
        match choice {
            Choice::Step(relay, place) => self.step(world, (relay, place), Fate::Never),
            Choice::NoAnswer(relay, place, fate) => {
                world.portal.trouble = Some(Outcome::TimedOut);
                self.step(world, (relay, place), fate)?;
                world.portal.trouble = None;
                Ok(())
            }
            Choice::Wait => world.wait(),
            Choice::Happens(happening, fate) => {
                world.dice = self.dice.fall(fate, false);
                world.happen(&happening.event())
            }
        }
    }

    fn step(&self, world: &mut World, (relay, place): (usize, usize), fate: Fate) -> Result<()> {
        world.dice = self.dice.fall(fate, true);
        let step = world.steps(relay)[place];
        world.take_step(relay, step)?;
        world.check()
    }

    fn choices(&self, world: &World, path: &[Choice]) -> Vec<Choice> {
        let steps: Vec<(usize, Vec<Step>)> =
            (0..self.size.relays).map(|relay| (relay, world.steps(relay))).collect();
        // What nobody else sees is no choice.
        for (relay, steps) in &steps {
            if let Some(place) = steps.iter().position(|step| world.is_private(*relay, *step)) {
                return vec![Choice::Step(*relay, place)];
            }
        }
        let may_fail = faults(path) < self.size.faults;
        let mut choices = Vec::new();
        for (relay, steps) in &steps {
            for (place, step) in steps.iter().enumerate() {
                choices.push(Choice::Step(*relay, place));
                if may_fail && world.ends_call(*relay, *step) {
                    let no_answer = |fate: &Fate| Choice::NoAnswer(*relay, place, *fate);
                    choices.extend(FATES.iter().map(no_answer));
                }
            }
        }
        if choices.is_empty() && world.next_time().is_some() {
            choices.push(Choice::Wait);
        }
        // A relay that looks again and again whether another's lease is over changes nothing.
        if world.now.as_secs() % EVERY < SPAN || choices.is_empty() {
            choices.extend(self.happenings(world, may_fail));
        }
        choices
    }

    fn happenings(&self, world: &World, may_fail: bool) -> Vec<Choice> {
        let mut happenings = Vec::new();
        if world.published.len() < self.size.events {
            happenings.push(Choice::Happens(Happening::Publish, Fate::Never));
        }
        if !may_fail {
            return happenings;
        }
        for relay in 0..self.size.relays {
            let is_calling = world.relays[relay].calling().next().is_some();
            let fates = if is_calling { &FATES[..] } else { &FATES[..1] };
            for fate in fates {
                if world.broker.unacked(relay) > 0 {
                    happenings.push(Choice::Happens(Happening::Crash(relay), *fate));
                    happenings.push(Choice::Happens(Happening::Sleep(relay), *fate));
                }
            }
            if world.broker.unacked(relay) > 0 {
                happenings.push(Choice::Happens(Happening::LoseSession(relay), Fate::Never));
            }
        }
        if world.broker.unacked(0) > 0 {
            happenings.push(Choice::Happens(Happening::ExpireLeases, Fate::Never));
        }
        happenings
    }

    /// All worlds that there are, or the way to one that breaks a promise: how many, and how many of them
    /// are an end.
    fn explore(&self) -> Result<(usize, usize)> {
        let mut known = HashSet::new();
        let mut open: Vec<Vec<Choice>> = vec![Vec::new()];
        let mut last: Option<(usize, World)> = None;
        let mut ends = 0;
        while let Some(path) = open.pop() {
            // What was opened last follows the world that was looked at last.
            let world = match (last.take(), path.split_last()) {
                (Some((length, mut world)), Some((choice, before))) if before.len() == length => {
                    self.choose(&mut world, *choice).map(|()| world)
                }
                _ => self.replay(&path),
            };
            let world = world.map_err(|error| self.story(&path, &error))?;
            if !known.insert(fingerprint(&world, faults(&path))) {
                continue;
            }
            ensure!(known.len() <= self.size.worlds, "more than {} worlds", self.size.worlds);
            let is_over = world.published.len() == self.size.events
                && world.broker.queued().next().is_none()
                && world.portal.under_way().next().is_none();
            if is_over || world.now > END {
                ends += 1;
                self.finish(&path, is_over)?;
                continue;
            }
            let choices = self.choices(&world, &path);
            if choices.is_empty() {
                return Err(self.story(&path, &anyhow!("nothing ever happens again")));
            }
            for choice in choices {
                open.push([&path[..], &[choice]].concat());
            }
            last = Some((path.len(), world));
        }
        Ok((known.len(), ends))
    }

    fn finish(&self, path: &[Choice], is_over: bool) -> Result<()> {
        let mut world = self.replay(path)?;
        let ended = if is_over { world.check_ends() } else { world.end() };
        ended.map_err(|error| self.story(path, &error))
    }

    fn story(&self, path: &[Choice], error: &anyhow::Error) -> anyhow::Error {
        let told: Vec<String> = path.iter().map(|choice| format!("  {choice:?}")).collect();
        anyhow!("{error:#}\n{:?}\n{}", self.size, told.join("\n"))
    }
}

const FATES: [Fate; 3] = [Fate::Never, Fate::Soon, Fate::Late];

/// How many things went wrong.
fn faults(path: &[Choice]) -> usize {
    let is_fault = |choice: &&Choice| match choice {
        Choice::NoAnswer(..) => true,
        Choice::Happens(happening, _) => *happening != Happening::Publish,
        Choice::Step(..) | Choice::Wait => false,
    };
    path.iter().filter(is_fault).count()
}

fn fingerprint(world: &World, faults: usize) -> u64 {
    let mut hasher = DefaultHasher::new();
    (world.state(), faults).hash(&mut hasher);
    hasher.finish()
}

fn explored(size: Size) -> Result<()> {
    let start = Instant::now();
    let model = Model { size, dice: Dice::new(), base: customer_relay::clock::instant() };
    let (worlds, ends) = model.explore()?;
    let took = start.elapsed().as_secs_f64();
    println!("model: {size:?}: {worlds} worlds, {ends} ends, {took:.1} s");
    ensure!(ends > 0, "no end was reached");
    Ok(())
}

#[test]
fn no_order_of_one_relay_leaves_an_older_value() -> Result<()> {
    crate::end(explored(Size { relays: 1, events: 2, faults: 2, worlds: 1_000_000 }))
}

/// `TEST_LONG=1`: three events.
#[test]
fn no_order_of_two_relays_leaves_an_older_value() -> Result<()> {
    let events = if std::env::var_os("TEST_LONG").is_some() { 3 } else { 2 };
    crate::end(explored(Size { relays: 2, events, faults: 1, worlds: 100_000_000 }))
}
