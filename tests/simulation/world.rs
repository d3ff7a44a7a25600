//! The whole world, one step at a time in any order, held to the promises at each.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use customer_relay::config::{Config, Layers, Needs, Sources};
use customer_relay::domain::breaker::OutagePolicy;
use customer_relay::domain::controls::ControlCalls;
use customer_relay::domain::faults::FaultPolicy;
use customer_relay::domain::field::{Field, PerField};
use customer_relay::domain::gate::{Gate, GatePolicy};
use customer_relay::domain::lanes::Lanes;
use customer_relay::domain::outcome::Outcome;
use customer_relay::domain::update::Update;
use customer_relay::domain::version::{EventRef, Place};
use jiff::{SignedDuration, Timestamp};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::broker::{Broker, Message};
use super::ledger::Ledger;
use super::portal::{FIELDS, Portal, value};
use super::relay::{Relay, Step};
use super::script::{Event, Script};

/// The longest that a call takes, with what lies around it.
pub(super) const LONGEST_CALL: Duration = Duration::from_secs(35);
pub(super) const IMMEDIATE_RETRIES: u32 = 2;
/// The longest `Retry-After` that is believed.
pub(super) const MAX_RETRY_AFTER: Duration = Duration::from_mins(5);

/// The probe customer's number, and what its update sends: the number of no event.
pub(super) const PROBE: usize = 999_999;
const PROBE_VALUE: usize = 99_999_999;

/// What kind of world it is.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    pub(super) relays: usize,
    pub(super) has_ledger: bool,
    pub(super) merges: bool,
    pub(super) control_calls: ControlCalls,
    /// Relays are told of a probe customer: [`PROBE`], who may be one of `bad`.
    pub(super) has_probe: bool,
    pub(super) prefetch: usize,
    pub(super) in_flight: usize,
    pub(super) max_attempts: u32,
    /// What is wrong with which customers for ever.
    pub(super) bad: Vec<(usize, Outcome)>,
    /// How the portal refuses other credentials.
    pub(super) refusal: Outcome,
    /// How likely an event has the time of its customer's event before.
    pub(super) same_time: f64,
}

/// Counts over all seeds, to see that they are no walk in the park.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub(super) steps: u64,
    pub(super) events: u64,
    pub(super) outages: u64,
    pub(super) controls: u64,
    pub(super) crashes: u64,
    pub(super) dead: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.steps += other.steps;
        self.events += other.events;
        self.outages += other.outages;
        self.controls += other.controls;
        self.crashes += other.crashes;
        self.dead += other.dead;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tally { steps, events, outages, controls, crashes, dead } = self;
        write!(
            f,
            "{steps} steps, {events} events, {outages} outages, {controls} control calls, \
             {crashes} crashes, {dead} dead letters"
        )
    }
}

/// An event that was published.
pub(super) struct Published {
    pub(super) customer: Arc<str>,
    pub(super) at: Duration,
    /// When a relay first had it.
    pub(super) received: Option<Duration>,
    /// The relay that had it was killed, or lost its session, before it wrote that down.
    pub(super) is_receipt_lost: bool,
    /// The same, and it came again only after that relay's memory was gone as well.
    pub(super) is_receipt_forgotten: bool,
    pub(super) place: Place,
    pub(super) update: Arc<Update>,
}

pub(super) struct World {
    pub(super) tally: Tally,
    pub(super) dice: StdRng,
    pub(super) base: Instant,
    start: Timestamp,
    pub(super) now: Duration,
    pub(super) config: Arc<Config>,
    pub(super) prefetch: usize,
    pub(super) setting: Setting,
    pub(super) broker: Broker,
    pub(super) portal: Portal,
    pub(super) ledger: Ledger,
    pub(super) relays: Vec<Relay>,
    /// How far each relay's wall clock is off.
    offsets: Vec<SignedDuration>,
    pub(super) published: Vec<Published>,
    pub(super) openings: Vec<Duration>,
    pub(super) identities: usize,
    pub(super) numbers: u64,
    /// The number of the credentials that relays are given.
    credentials: u64,
    /// A relay's wall clock was set.
    pub(super) has_jumped: bool,
}

pub(super) fn customer(number: usize) -> Arc<str> {
    format!("C{number}").into()
}

/// It takes longer to read than many a script to run.
fn config(max_attempts: u32, merges: bool) -> Result<Arc<Config>> {
    static KNOWN: Mutex<BTreeMap<(u32, bool), Arc<Config>>> = Mutex::new(BTreeMap::new());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(config) = known.get(&(max_attempts, merges)) {
        return Ok(Arc::clone(config));
    }
    let sources = Sources { file: None, environment: Vec::new(), flags: Vec::new() };
    let mut config = Config::load(&Layers::new(&sources)?, Needs::Broker)?;
    config.retry.max_attempts = max_attempts;
    config.retry.max_retry_after = MAX_RETRY_AFTER;
    config.worker.merges = merges;
    let config = Arc::new(config);
    known.insert((max_attempts, merges), Arc::clone(&config));
    Ok(config)
}

impl World {
    pub(super) fn new(seed: u64, setting: Setting) -> Result<World> {
        let config = config(setting.max_attempts, setting.merges)?;
        let mut portal = Portal::default();
        portal.refusal = Some(setting.refusal);
        portal.bad =
            setting.bad.iter().map(|(number, outcome)| (customer(*number), *outcome)).collect();
        let ledger = Ledger::new(setting.relays > 1, setting.has_ledger);
        let mut world = World {
            tally: Tally::default(),
            dice: StdRng::seed_from_u64(seed),
            base: customer_relay::clock::instant(),
            start: "2026-11-23T00:00:00Z".parse()?,
            now: Duration::from_secs(1),
            config,
            prefetch: setting.prefetch,
            broker: Broker::default(),
            portal,
            ledger,
            relays: Vec::new(),
            offsets: vec![SignedDuration::ZERO; setting.relays],
            published: Vec::new(),
            openings: Vec::new(),
            identities: 0,
            numbers: 0,
            credentials: 0,
            has_jumped: false,
            setting,
        };
        for _ in 0..world.setting.relays {
            world.identities += 1;
            let relay = world.relay(world.identities);
            world.relays.push(relay);
        }
        Ok(world)
    }

    pub(super) fn relay(&self, identity: usize) -> Relay {
        let seconds = Duration::from_secs;
        let outage = OutagePolicy { first_probe: seconds(1), max_probe_interval: seconds(30) };
        let (patience, longest) = (seconds(10), self.config.outage.hold);
        let faults = FaultPolicy { threshold: 3, patience, longest };
        let longest = self.config.retry.max_uncounted_delay;
        let Setting { in_flight, control_calls, prefetch, has_probe, merges, .. } = self.setting;
        let probe = self.update(&customer(PROBE), PROBE_VALUE, &FIELDS);
        let probe = has_probe.then(|| Arc::new(probe.expect("fields that our rules take")));
        let gate = Gate::new(GatePolicy { outage, faults, control_calls, in_flight }, probe);
        let lanes = Lanes::new((prefetch / 4).max(1), merges, longest);
        Relay::new(identity, gate, self.credentials, lanes)
    }

    pub(super) fn instant(&self) -> Instant {
        self.base + self.now
    }

    /// The time that the events' producers have.
    fn wall(&self) -> Result<Timestamp> {
        Ok(self.start.checked_add(self.now)?)
    }

    /// What time a relay takes it for.
    pub(super) fn wall_of(&self, relay: usize) -> Result<Timestamp> {
        Ok(self.wall()?.checked_add(self.offsets[relay])?)
    }

    /// Marks of calls that were given up are by the wall clock: from now on none is needed. Nor is it set
    /// where one is, or where a row cannot be written, and keeps its own.
    fn set_clock(&mut self, relay: usize, seconds: i64) {
        if self.portal.under_way().next().is_none() && !self.ledger.refuses_any() {
            self.offsets[relay] = SignedDuration::from_secs(seconds);
            (self.has_jumped, self.portal.is_prompt) = (true, true);
        }
    }

    /// Lets a script happen, and everything come to its end.
    pub(super) fn run(&mut self, script: &Script) -> Result<()> {
        for (at, event) in script {
            self.run_until(*at)?;
            self.happen(event)?;
        }
        self.end()
    }

    pub(super) fn happen(&mut self, event: &Event) -> Result<()> {
        match event {
            Event::Publish(number) => self.publish(*number)?,
            Event::PublishBad(number, outcome) => {
                self.portal.bad_events.insert(self.published.len(), *outcome);
                self.publish(*number)?;
            }
            Event::Trouble(outcome) => self.portal.trouble = Some(*outcome),
            Event::Heal => self.portal.trouble = None,
            Event::Crash(relay) => self.crash(relay % self.setting.relays),
            Event::Stop(relay) => self.stop(relay % self.setting.relays),
            Event::LoseSession(relay) => self.lose_session(relay % self.setting.relays),
            Event::Change => self.portal.credentials = self.credentials + 1,
            Event::Mend => self.give_credentials(),
            Event::ExpireLeases => {
                // A lease lasts longer than any call, and what is left of it.
                let calling = self.relays.iter().flat_map(Relay::calling);
                let but = calling.chain(self.portal.under_way()).cloned().collect();
                self.ledger.expire_leases(&but);
            }
            Event::Refuse(number) if !self.has_jumped => self.ledger.refuse(&customer(*number)),
            Event::Refuse(_) => {}
            Event::Sleep(relay, seconds) => {
                self.sleep(relay % self.setting.relays, Duration::from_secs(*seconds));
            }
            Event::SetClock(relay, seconds) => {
                self.set_clock(relay % self.setting.relays, *seconds);
            }
            Event::Pause => self.relays.iter_mut().for_each(|relay| relay.gate.set_paused(true)),
            Event::Resume => self.relays.iter_mut().for_each(|relay| relay.gate.set_paused(false)),
        }
        Ok(())
    }

    fn give_credentials(&mut self) {
        self.credentials = self.portal.credentials;
        let (now, number) = (self.instant(), self.credentials);
        for relay in &mut self.relays {
            if relay.credentials != number {
                relay.credentials = number;
                relay.gate.credentials_changed(number, now);
            }
        }
    }

    fn update(&self, customer: &str, number: usize, fields: &[Field]) -> Result<Update> {
        let raw = PerField::from_fn(|field| match field {
            Field::EntityId => Some(customer.to_owned().into()),
            field if fields.contains(&field) => Some(value(number).into()),
            _ => None,
        });
        let update = self.config.rules.fields.validate(&raw);
        update.map_err(|faults| anyhow::anyhow!("{faults:?}"))
    }

    pub(super) fn publish(&mut self, whose: usize) -> Result<()> {
        let customer = customer(whose);
        let number = self.published.len();
        let wall = self.wall()?;
        let both = self.dice.random_bool(0.5);
        let only = FIELDS[self.dice.random_range(0..FIELDS.len())];
        let fields = if both { FIELDS.to_vec() } else { vec![only] };
        let update = self.update(&customer, number, &fields)?;
        let time = self.time_of(whose, wall.checked_add(Duration::from_nanos(number as u64))?);
        let event = EventRef { id: format!("e{number:06}"), source: 1, revision: 0 };
        let place = Place { time, sequence: None, event };
        self.published.push(Published {
            customer: Arc::clone(&customer),
            at: self.now,
            received: None,
            is_receipt_lost: false,
            is_receipt_forgotten: false,
            place,
            update: Arc::new(update),
        });
        let message =
            Message { event: number, customer, history: None, returns: 0, is_late: false };
        self.broker.publish(message);
        self.tally.events += 1;
        Ok(())
    }

    /// Some customers' events have no time; some have that of the customer's event before.
    fn time_of(&mut self, whose: usize, now: Timestamp) -> Option<Timestamp> {
        if whose % 4 == 3 {
            return None;
        }
        let (customer, is_again) = (customer(whose), self.dice.random_bool(self.setting.same_time));
        let before = self.published.iter().rev().find(|event| event.customer == customer);
        before.filter(|_| is_again).map_or(Some(now), |event| event.place.time)
    }

    /// Everything that can happen by itself until then, in any order.
    pub(super) fn run_until(&mut self, end: Duration) -> Result<()> {
        loop {
            if self.work()? {
                continue;
            }
            let next = self.next_time().unwrap_or(end).min(end);
            self.pass_time(self.now.max(next));
            if self.now >= end && !self.work()? {
                return Ok(());
            }
        }
    }

    pub(super) fn next_time(&self) -> Option<Duration> {
        let relays = (0..self.relays.len()).filter_map(|index| self.next_time_of(index));
        let others = [self.broker.next_due(), self.portal.next_effect()].into_iter().flatten();
        relays.chain(others).filter(|at| *at > self.now).min()
    }

    /// Time passes until something can be done.
    pub(super) fn wait(&mut self) -> Result<()> {
        self.pass_time(self.next_time().context("nothing ever happens again")?);
        self.check()
    }

    fn pass_time(&mut self, now: Duration) {
        self.now = now;
        self.broker.pass_time(now);
        self.portal.pass_time(now);
    }

    /// All that its future hangs on, but for the receipts of events of one moment.
    pub(super) fn state(&self) -> String {
        let World { now, published, broker, portal, ledger, relays, .. } = self;
        let mut relays: Vec<String> = relays.iter().map(|relay| relay.state(ledger)).collect();
        // It is all the same which is which, but at the broker: who has what in hand.
        if broker.is_out_of_hand() {
            relays.sort_unstable();
        }
        let (published, broker) = (published.len(), broker.state());
        let (portal, ledger) = (portal.state(), ledger.state());
        format!("{now:?} {published} {broker} {portal} {ledger} {relays:?}")
    }

    /// One thing that can be done now; false if there is none.
    fn work(&mut self) -> Result<bool> {
        let steps: Vec<(usize, Step)> = (0..self.relays.len())
            .flat_map(|index| self.steps(index).into_iter().map(move |step| (index, step)))
            .collect();
        if steps.is_empty() {
            return Ok(false);
        }
        let (index, step) = steps[self.dice.random_range(0..steps.len())];
        self.tally.steps += 1;
        ensure!(self.tally.steps < 2_000_000, "no end: {}", self.relays[index].describe());
        if std::env::var_os("TEST_TRACE").is_some() {
            let relay = &self.relays[index];
            eprintln!(
                "{:?} relay {index} {:?}: {step:?}, {}",
                self.now,
                relay.gate.state().name(),
                relay.at(step)
            );
        }
        self.take_step(index, step).with_context(|| format!("{step:?}"))?;
        self.check()?;
        Ok(true)
    }

    /// The portal is well again; now and then an event is good news. Everything must come to its end by
    /// the timetable's latest, and ten minutes.
    pub(super) fn end(&mut self) -> Result<()> {
        self.portal.trouble = None;
        self.give_credentials();
        self.relays.iter_mut().for_each(|relay| relay.gate.set_paused(false));
        let timetable = self.config.retry.timetable();
        let latest = timetable.last().map_or(Duration::ZERO, |slot| slot.latest);
        // Without control calls each attempt waits for a proof of its own; and one of several relays
        // may have applied nothing that it could send again.
        let is_possible =
            self.setting.control_calls == ControlCalls::Applied && self.setting.relays == 1;
        let (every, waits) = if is_possible {
            (Duration::from_hours(1), 1)
        } else {
            let attempts = self.setting.max_attempts * self.most_events_of_a_bad_customer();
            // A bad probe customer must be found out first, by each relay.
            let is_bad = self.portal.bad.contains_key(&customer(PROBE));
            let found_out = if is_bad { 6 } else { 0 };
            (
                Duration::from_mins(5),
                (2 * attempts + found_out) * u32::try_from(self.setting.relays)?,
            )
        };
        let asked = MAX_RETRY_AFTER * 2 * self.setting.max_attempts;
        let end = self.now + latest + asked + every * waits + Duration::from_mins(10);
        let mut next_proof = self.now;
        while self.broker.queued().next().is_some() {
            ensure!(self.now < end, "{}", self.unended());
            if self.now >= next_proof {
                next_proof += every;
                self.publish(0)?;
            }
            let until = next_proof.min(end).min(self.now + Duration::from_mins(1));
            self.run_until(until)?;
        }
        self.run_until(self.now + Duration::from_mins(2))?;
        self.check_ends()
    }

    /// They go one at a time.
    fn most_events_of_a_bad_customer(&self) -> u32 {
        let is_bad = |number: usize, event: &Published| self.portal.is_bad(&event.customer, number);
        let bad =
            self.published.iter().enumerate().filter(|(number, event)| is_bad(*number, event));
        let mut counts: HashMap<&Arc<str>, usize> = HashMap::new();
        bad.for_each(|(_, event)| *counts.entry(&event.customer).or_default() += 1);
        let most = counts.into_values().max().unwrap_or(0);
        u32::try_from(most).expect("a script is short").max(1)
    }

    fn unended(&self) -> String {
        let message = self.broker.queued().next();
        let relays: Vec<String> = self.relays.iter().map(Relay::describe).collect();
        format!("not at an end at {:?}: {message:?}\n{}", self.now, relays.join("\n"))
    }
}
