//! The whole world, one step at a time in any order, held to the promises at each.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use customer_relay::config::{Config, Layers, Needs, Sources};
use customer_relay::domain::breaker::{OutagePolicy, State};
use customer_relay::domain::gate::{Gate, GatePolicy, Intake, Pass, Ruling, Ticket};
use customer_relay::domain::history::History;
use customer_relay::domain::lanes::Lanes;
use customer_relay::domain::response::Judgement;
use customer_relay::domain::update::Update;
use customer_relay::domain::verdict::Verdict;
use customer_relay::domain::witness::{Call, Doubt};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::broker::{Broker, Message};
use super::portal::Portal;

const CUSTOMERS: usize = 18;
const PREFETCH: usize = 12;
const IN_FLIGHT: usize = 4;
pub(super) const WITNESS_WAIT: Duration = Duration::from_secs(10);
/// Trouble that comes and goes faster can be taken for an event's own fault.
const SHORTEST_TROUBLE: Duration = Duration::from_millis(2100);
/// Virtual time in which everything must have come to its end after the storm.
const CALM: Duration = Duration::from_hours(24 * 30);

/// Counts over all seeds, to see that they are no walk in the park.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub(super) steps: u64,
    pub(super) events: u64,
    pub(super) outages: u64,
    pub(super) controls: u64,
    pub(super) crashes: u64,
    pub(super) dead: u64,
    pub(super) unwitnessed: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.steps += other.steps;
        self.events += other.events;
        self.outages += other.outages;
        self.controls += other.controls;
        self.crashes += other.crashes;
        self.dead += other.dead;
        self.unwitnessed += other.unwitnessed;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tally { steps, events, outages, controls, crashes, dead, unwitnessed } = self;
        write!(
            f,
            "{steps} steps, {events} events, {outages} outages, {controls} control calls, \
             {crashes} crashes, {dead} dead letters ({unwitnessed} unwitnessed)"
        )
    }
}

/// Where a delivery in hand stands.
#[derive(Debug)]
pub(super) enum Stage {
    Lane,
    Waiting,
    Sleeping(Instant),
    Calling(Call, Pass),
    Ruling(Doubt, Judgement, Box<Verdict>, Duration),
    Publishing(Box<Verdict>),
    Acking,
}

#[derive(Debug)]
pub(super) struct InHand {
    pub(super) message: Message,
    pub(super) stage: Stage,
    pub(super) is_again: bool,
}

pub(super) struct World {
    pub(super) tally: Tally,
    pub(super) dice: StdRng,
    pub(super) base: Instant,
    pub(super) wall: jiff::Timestamp,
    pub(super) now: Duration,
    pub(super) config: Config,
    pub(super) update: Update,
    pub(super) broker: Broker,
    pub(super) portal: Portal,
    pub(super) published: Vec<Arc<str>>,
    pub(super) gate: Gate,
    pub(super) lanes: Lanes<u64>,
    pub(super) hand: BTreeMap<u64, InHand>,
    pub(super) tickets: HashMap<Ticket, u64>,
    /// A customer whose update was applied: what a control call sends.
    pub(super) applied: Option<Arc<str>>,
    pub(super) control: Option<(Call, Pass)>,
}

fn gate(config: &Config) -> Gate {
    let seconds = Duration::from_secs;
    let (first_probe, max_probe_interval) = (seconds(1), seconds(30));
    let outage = OutagePolicy { threshold: 3, first_probe, max_probe_interval };
    Gate::new(GatePolicy { outage, in_flight: IN_FLIGHT, ..config.outage.gate })
}

impl World {
    pub(super) fn new(seed: u64) -> Result<World> {
        let sources = Sources { file: None, environment: Vec::new(), flags: Vec::new() };
        let mut config = Config::load(&Layers::new(&sources)?, Needs::Broker)?;
        config.retry.max_attempts = 4;
        let raw = customer_relay::domain::field::PerField::from_fn(|field| {
            matches!(field.name(), "entity_id" | "city").then(|| "Kochi".into())
        });
        let update = config.rules.fields.validate(&raw);
        let update = update.map_err(|faults| anyhow::anyhow!("{faults:?}"))?;
        Ok(World {
            tally: Tally::default(),
            dice: StdRng::seed_from_u64(seed),
            base: customer_relay::clock::instant(),
            wall: "2026-11-23T00:00:00Z".parse()?,
            now: Duration::ZERO,
            gate: gate(&config),
            config,
            update,
            broker: Broker::default(),
            portal: Portal::new(),
            published: Vec::new(),
            lanes: Lanes::new(usize::MAX),
            hand: BTreeMap::new(),
            tickets: HashMap::new(),
            applied: None,
            control: None,
        })
    }

    pub(super) fn instant(&self) -> Instant {
        self.base + self.now
    }

    pub(super) fn timestamp(&self) -> Result<jiff::Timestamp> {
        Ok(self.wall.checked_add(self.now)?)
    }

    /// One thing that could happen next, in the storm.
    pub(super) fn step(&mut self) -> Result<()> {
        match self.dice.random_range(0..1000) {
            0..180 => self.publish()?,
            180..186 => {
                self.now += SHORTEST_TROUBLE;
                self.portal.change(&mut self.dice);
            }
            186..188 => self.crash(),
            188..190 => {
                let is_paused = self.gate.is_paused();
                self.gate.set_paused(!is_paused);
            }
            190..200 => self.hold_is_over()?,
            200..260 => self.pass_time(),
            _ => {
                self.work()?;
            }
        }
        self.check()
    }

    /// No more trouble: everything must come to its end.
    pub(super) fn calm_down(&mut self) -> Result<()> {
        self.portal.heal();
        self.gate.set_paused(false);
        let end = self.now + CALM;
        let mut next_witness = self.now;
        while self.broker.queued().next().is_some() {
            ensure!(self.now < end, "not at an end: {:?}", self.broker.queued().next());
            if self.now >= next_witness {
                // Somebody is always well: what has no witness yet finds one.
                next_witness = self.now + Duration::from_hours(1);
                self.publish_for("C0".into())?;
            }
            if self.work()? {
                self.check()?;
            } else {
                self.pass_time();
            }
        }
        for (event, customer) in self.published.iter().enumerate() {
            let is_dead = self.broker.dead.iter().any(|(message, _)| message.event == event);
            let is_applied = self.portal.applied.contains(&event);
            ensure!(is_dead || is_applied, "event {event} of {customer} has no end");
        }
        Ok(())
    }

    fn publish(&mut self) -> Result<()> {
        let customer = format!("C{}", self.dice.random_range(0..CUSTOMERS)).into();
        self.publish_for(customer)
    }

    fn publish_for(&mut self, customer: Arc<str>) -> Result<()> {
        let (event, history) = (self.published.len(), History::new(self.timestamp()?));
        self.published.push(Arc::clone(&customer));
        self.broker.publish(Message { event, customer, history });
        self.tally.events += 1;
        Ok(())
    }

    /// To the next moment at which something changes by itself.
    fn pass_time(&mut self) {
        let ruling = self.hand.values().filter_map(|held| match held.stage {
            Stage::Ruling(.., until) => Some(until),
            Stage::Sleeping(until) => Some(until.duration_since(self.base)),
            _ => None,
        });
        let gate = self.gate.next_change(self.instant()).map(|at| at.duration_since(self.base));
        let next = ruling.chain(gate).chain(self.broker.next_due()).min();
        let next = next.unwrap_or(self.now + Duration::from_secs(1));
        self.now = next.max(self.now + Duration::from_millis(self.dice.random_range(1..200)));
        self.broker.pass_time(self.now);
    }

    /// kill -9, or a lost session: all that is in memory is gone, all unacked comes again.
    fn crash(&mut self) {
        self.tally.crashes += 1;
        self.broker.lose_session();
        self.gate = gate(&self.config);
        self.lanes = Lanes::new(usize::MAX);
        self.hand.clear();
        self.tickets.clear();
        (self.applied, self.control) = (None, None);
    }

    /// Deliveries that were kept long enough in an outage are handed back.
    fn hold_is_over(&mut self) -> Result<()> {
        if self.gate.intake() == Intake::Full {
            return Ok(());
        }
        for (ticket, tag) in std::mem::take(&mut self.tickets) {
            self.gate.withdraw(ticket);
            let history = self.held(tag)?.message.history.clone();
            let verdict = Verdict::hand_back(&self.config.retry.tiers, history);
            self.held(tag)?.stage = Stage::Publishing(Box::new(verdict));
        }
        Ok(())
    }

    /// One thing that the worker can do next; false if there is nothing.
    fn work(&mut self) -> Result<bool> {
        self.tally.steps += 1;
        let allowed = match self.gate.intake() {
            Intake::Full => PREFETCH,
            Intake::One => 1,
            Intake::Nothing => 0,
        };
        let may_take = self.broker.has_ready() && self.broker.unacked() < allowed;
        let ready: Vec<u64> = self
            .hand
            .iter()
            .filter(|(_, held)| self.can_go_on(held))
            .map(|(tag, _)| *tag)
            .collect();
        let now = self.instant();
        let may_admit =
            self.gate.has_waiting() && (self.gate.is_ready(now) || self.gate.wants_control(now));
        let choices = usize::from(may_take)
            + usize::from(may_admit)
            + usize::from(self.control.is_some())
            + ready.len();
        if choices == 0 {
            return Ok(false);
        }
        let mut choice = self.dice.random_range(0..choices);
        for (is_possible, act) in [
            (may_take, World::take as fn(&mut World) -> Result<()>),
            (may_admit, World::admit),
            (self.control.is_some(), World::end_control),
        ] {
            if is_possible && choice == 0 {
                return act(self).map(|()| true);
            }
            choice -= usize::from(is_possible);
        }
        self.go_on(ready[choice]).map(|()| true)
    }

    fn can_go_on(&self, held: &InHand) -> bool {
        match &held.stage {
            Stage::Lane | Stage::Waiting => false,
            Stage::Sleeping(until) => *until <= self.instant(),
            Stage::Ruling(doubt, .., until) => match self.gate.ruling(doubt) {
                Some(Ruling::Final | Ruling::Hold) => true,
                Some(Ruling::Ask) => self.control.is_none(),
                None => *until <= self.now && self.control.is_none(),
            },
            Stage::Calling(..) | Stage::Publishing(_) | Stage::Acking => true,
        }
    }

    /// What must hold at any time.
    fn check(&self) -> Result<()> {
        if self.tally.steps.is_multiple_of(16) {
            let mut has_place = vec![false; self.published.len()];
            let dead = self.broker.dead.iter().map(|(message, _)| message);
            for message in self.broker.queued().chain(dead) {
                has_place[message.event] = true;
            }
            for event in &self.portal.applied {
                has_place[*event] = true;
            }
            let lost = has_place.iter().position(|has_place| !has_place);
            ensure!(lost.is_none(), "event {lost:?} is lost");
        }
        let in_hand = self.broker.unacked();
        ensure!(in_hand <= PREFETCH + 1, "{in_hand} deliveries in hand");
        let mut calling: Vec<&str> = Vec::new();
        let calls = self.hand.values().filter_map(|held| match &held.stage {
            Stage::Calling(call, _) => Some(&*call.customer),
            _ => None,
        });
        calling.extend(calls.chain(self.control.iter().map(|(call, _)| &*call.customer)));
        calling.sort_unstable();
        let twice = calling.windows(2).find(|pair| pair[0] == pair[1]);
        ensure!(twice.is_none(), "two calls at once for {twice:?}");
        ensure!(calling.len() == self.gate.under_way(), "calls are miscounted");
        if !self.portal.is_well() && matches!(self.gate.state(), State::HalfOpen { .. }) {
            let probes = self
                .hand
                .values()
                .filter(|held| matches!(held.stage, Stage::Calling(_, Pass::Probe)));
            let controls = self.control.iter().filter(|(_, pass)| *pass == Pass::Probe);
            ensure!(probes.count() + controls.count() == 1, "not one probe");
        }
        Ok(())
    }
}
