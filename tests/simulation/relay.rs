//! A relay: carries out what its turns say, as the worker does, one thing at a time.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use customer_relay::config::Config;
use customer_relay::domain::admission;
use customer_relay::domain::breaker::State;
use customer_relay::domain::controls::Candidate;
use customer_relay::domain::dead_letter::{DeadLetter, Reason};
use customer_relay::domain::faults::{Call, Finding, Proof};
use customer_relay::domain::gate::{Control, Gate, Intake, News, Pass, Ticket};
use customer_relay::domain::group::{Carrier, Conclusion, Event};
use customer_relay::domain::history::History;
use customer_relay::domain::lanes::{Arrival, Lanes, Waiting};
use customer_relay::domain::outcome::Outcome;
use customer_relay::domain::receipts::{ReceiptKey, Receipts};
use customer_relay::domain::response::Judgement;
use customer_relay::domain::retry::after;
use customer_relay::domain::row::Row;
use customer_relay::domain::settlement::{self, Committed, End, Publication, Record, Settlement};
use customer_relay::domain::turn::{Action, Ending, Input, Moment, Read, Turn};
use customer_relay::domain::update::Update;
use customer_relay::domain::verdict::Verdict;
use rand::RngExt;
use rand::seq::IndexedRandom as _;

use super::broker::{Letter, Message};
use super::ledger::Ledger;
use super::rules::{check_pass, check_uncounted};
use super::world::{IMMEDIATE_RETRIES, LONGEST_CALL, World};

/// After such a silence the broker gives up a connection.
const SILENCE: Duration = Duration::from_secs(20);

/// What a relay knows of a call that it slept through.
fn timed_out() -> Judgement {
    let outcome = Outcome::TimedOut;
    let (http_status, portal_status, message, retry_after) = (None, None, None, None);
    Judgement { outcome, http_status, portal_status, message, retry_after }
}

/// A delivery in hand.
pub(super) struct Item {
    pub(super) tag: u64,
    pub(super) number: usize,
    receipt: Option<ReceiptKey>,
    session: u64,
    /// The relay's session, as it goes on.
    now: Rc<Cell<u64>>,
    event: Event,
}

/// What is alike looks alike: not by the numbers that it was given.
impl fmt::Debug for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {:?}", self.number, self.is_gone(), self.event)
    }
}

impl Carrier for Item {
    fn event(&self) -> &Event {
        &self.event
    }

    fn event_mut(&mut self) -> &mut Event {
        &mut self.event
    }
}

impl Waiting for Item {
    fn moment(&self) -> Option<u64> {
        self.event.moment()
    }

    fn is_gone(&self) -> bool {
        self.session != self.now.get()
    }
}

/// Items of a customer that are being handed back side by side.
#[derive(Debug)]
struct HandingBack {
    customer: Arc<str>,
    items: Vec<Item>,
}

impl HandingBack {
    fn of(customer: Arc<str>) -> HandingBack {
        HandingBack { customer, items: Vec::new() }
    }
}

/// What a turn is at.
#[derive(Debug)]
enum Doing {
    /// To be carried out next.
    Act(Action<Item>),
    Until(Duration),
    /// The same, but a stop ends it.
    Asleep(Duration),
    Passing(Ticket),
    Permitted(Pass),
    Calling {
        update: Arc<Update>,
        started: Duration,
        ends: Duration,
        /// Nothing is known of it: the relay slept.
        is_lost: bool,
    },
    Settling(Settling),
    /// For a moment, between two of these.
    Nothing,
}

/// The ends of a turn on their way.
#[derive(Debug)]
struct Settling {
    settlement: Settlement<Item>,
    next: settlement::Action,
    /// To be committed with them.
    row: Option<Row>,
}

#[derive(Debug)]
struct Visit {
    turn: Option<Turn<Item>>,
    customer: Arc<str>,
    began: Duration,
    lease: u64,
    doing: Doing,
    pauses: u32,
    /// Since when it has waited while no calls were made.
    held_since: Option<Duration>,
    /// It waits until more is known of a fault.
    is_untold: bool,
    /// An outage was declared meanwhile: the fault is not the event's own.
    is_excused: bool,
}

#[derive(Debug)]
struct ControlCall {
    candidate: Candidate,
    pass: Pass,
    /// As it was read.
    row: Row,
    lease: u64,
    started: Duration,
    ends: Duration,
    /// As of an event's call.
    is_lost: bool,
}

pub(super) struct Relay {
    /// Another one after each crash.
    pub(super) identity: usize,
    pub(super) gate: Gate,
    lanes: Lanes<Item>,
    receipts: Receipts,
    /// Whose events a lane had no room for are handed back.
    hands_back: Vec<HandingBack>,
    visits: BTreeMap<u64, Visit>,
    tickets: HashMap<Ticket, u64>,
    control: Option<ControlCall>,
    control_again_at: Duration,
    /// The number of the credentials that it signs with.
    pub(super) credentials: u64,
    session: Rc<Cell<u64>>,
    /// It takes no more, and calls that last longer than this are cut.
    cut_at: Option<Duration>,
    /// Until then it does nothing.
    sleeps_until: Duration,
}

/// One thing that a relay can do now.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    Take,
    Admit,
    Visit(u64),
    Forget(u64),
    BeginControl,
    EndControl,
    Restart,
    /// Of such a one, such an item.
    HandBack(usize, usize),
}

impl Relay {
    pub(super) fn new(identity: usize, gate: Gate, credentials: u64, lanes: Lanes<Item>) -> Relay {
        Relay {
            identity,
            gate,
            lanes,
            receipts: Receipts::default(),
            hands_back: Vec::new(),
            visits: BTreeMap::new(),
            tickets: HashMap::new(),
            control: None,
            control_again_at: Duration::ZERO,
            credentials,
            session: Rc::default(),
            cut_at: None,
            sleeps_until: Duration::ZERO,
        }
    }

    /// Calls under way, by customer.
    pub(super) fn calling(&self) -> impl Iterator<Item = &Arc<str>> {
        let is_calling =
            |visit: &&Visit| matches!(visit.doing, Doing::Calling { is_lost: false, .. });
        let visits = self.visits.values().filter(is_calling).map(|visit| &visit.customer);
        let control = self.control.iter().filter(|control| !control.is_lost);
        visits.chain(control.map(|control| &control.candidate.customer))
    }

    /// Updates of calls under way.
    fn calls(&self) -> Vec<(Arc<str>, Arc<Update>)> {
        let visits = self.visits.values().filter_map(|visit| match &visit.doing {
            Doing::Calling { update, is_lost: false, .. } => {
                Some((Arc::clone(&visit.customer), Arc::clone(update)))
            }
            _ => None,
        });
        let control = self.control.iter().filter(|control| !control.is_lost).map(|control| {
            let Candidate { customer, update, .. } = &control.candidate;
            (Arc::clone(customer), Arc::clone(update))
        });
        visits.chain(control).collect()
    }

    /// What a step is about, for a trace.
    pub(super) fn at(&self, step: Step) -> String {
        match step {
            Step::Visit(id) | Step::Forget(id) => {
                self.visits.get(&id).map_or_else(String::new, |visit| {
                    format!("{} {:?}", visit.customer, visit.doing).chars().take(60).collect()
                })
            }
            Step::Take
            | Step::Admit
            | Step::BeginControl
            | Step::EndControl
            | Step::Restart
            | Step::HandBack(..) => String::new(),
        }
    }

    /// Whether calls are kept back until a proof, and how many are under way.
    fn asking(&self) -> (bool, usize) {
        (self.gate.is_suspended(), self.gate.under_way())
    }

    /// All that its future hangs on, but for the receipts of events of one moment.
    pub(super) fn state(&self, ledger: &Ledger) -> String {
        let Relay { gate, lanes, hands_back, control, .. } = self;
        let visits = self.visits.values().map(|visit| {
            let Visit { turn, customer, doing, pauses, held_since, .. } = visit;
            let lease = ledger.is_in_force(customer, visit.lease);
            format!("{turn:?} {lease} {doing:?} {pauses} {held_since:?}")
        });
        let visits: Vec<String> = visits.collect();
        let times = (self.cut_at, self.sleeps_until);
        let leases = ledger.leases_of(self.identity);
        format!("{gate:?} {lanes:?} {hands_back:?} {visits:?} {control:?} {times:?} {leases}")
    }

    pub(super) fn describe(&self) -> String {
        let visits: Vec<String> = self
            .visits
            .values()
            .map(|visit| format!("{}: {:?}", visit.customer, visit.doing))
            .collect();
        format!("{:?}, {} in hand: {visits:#?}", self.gate.state(), visits.len())
    }
}

impl World {
    /// What a relay can do now.
    pub(super) fn steps(&self, index: usize) -> Vec<Step> {
        let relay = &self.relays[index];
        let now = self.instant();
        let mut steps = Vec::new();
        if relay.sleeps_until > self.now {
            return steps;
        }
        let is_stopping = relay.cut_at.is_some();
        for (place, back) in relay.hands_back.iter().enumerate() {
            steps.extend((0..back.items.len().max(1)).map(|item| Step::HandBack(place, item)));
        }
        let is_at_rest = relay.visits.is_empty() && relay.hands_back.is_empty();
        if is_stopping && is_at_rest && relay.control.is_none() {
            steps.push(Step::Restart);
        }
        let allowed = match relay.gate.intake() {
            _ if is_stopping => 0,
            Intake::Full => self.prefetch,
            Intake::One => 1,
            Intake::Nothing => 0,
        };
        if self.broker.has_ready() && self.broker.unacked(index) < allowed {
            steps.push(Step::Take);
        }
        if !is_stopping && relay.gate.has_waiting() && relay.gate.is_ready(now) {
            steps.push(Step::Admit);
        }
        if !is_stopping
            && relay.gate.wants_control(now)
            && relay.control.is_none()
            && relay.control_again_at <= self.now
        {
            steps.push(Step::BeginControl);
        }
        if relay.control.as_ref().is_some_and(|control| control.ends <= self.now) {
            steps.push(Step::EndControl);
        }
        for (id, visit) in &relay.visits {
            if self.can_go_on(relay, visit) {
                steps.push(Step::Visit(*id));
            }
            let is_waiting =
                matches!(&visit.doing, Doing::Passing(_) | Doing::Act(Action::Wait(_)));
            if is_waiting
                && visit
                    .turn
                    .as_ref()
                    .is_some_and(|turn| turn.first().session != relay.session.get())
            {
                steps.push(Step::Forget(*id));
            }
        }
        steps
    }

    /// Whether a step is of no effect on anybody else.
    pub(super) fn is_private(&self, index: usize, step: Step) -> bool {
        let is_own = |doing: &Doing| {
            matches!(
                doing,
                Doing::Permitted(_) | Doing::Act(Action::Pause | Action::End(Ending::Verdicts(_)))
            )
        };
        match step {
            Step::Admit => true,
            Step::Visit(id) => {
                self.relays[index].visits.get(&id).is_some_and(|visit| is_own(&visit.doing))
            }
            _ => false,
        }
    }

    /// Whether a step is the end of a call.
    pub(super) fn ends_call(&self, index: usize, step: Step) -> bool {
        let Step::Visit(id) = step else { return false };
        let visit = self.relays[index].visits.get(&id);
        visit.is_some_and(|visit| matches!(visit.doing, Doing::Calling { is_lost: false, .. }))
    }

    fn can_go_on(&self, relay: &Relay, visit: &Visit) -> bool {
        let is_stopping = relay.cut_at.is_some();
        match &visit.doing {
            Doing::Act(Action::Wait(_)) | Doing::Passing(_) | Doing::Asleep(_) if is_stopping => {
                true
            }
            Doing::Act(Action::Wait(fault)) => {
                let now = self.instant();
                relay.gate.finding(*fault, now) != Finding::Open
                    || relay.gate.gives_up_at(*fault).is_some_and(|at| at <= now)
            }
            Doing::Act(_) | Doing::Permitted(_) | Doing::Settling(_) => true,
            Doing::Until(at) | Doing::Asleep(at) => *at <= self.now,
            Doing::Passing(_) => self.hold_is_over(visit),
            Doing::Calling { ends, .. } => *ends <= self.now || self.is_cut(relay),
            Doing::Nothing => false,
        }
    }

    fn is_cut(&self, relay: &Relay) -> bool {
        relay.cut_at.is_some_and(|at| at <= self.now)
    }

    fn hold_is_over(&self, visit: &Visit) -> bool {
        visit.held_since.is_some_and(|since| since + self.config.outage.hold <= self.now)
    }

    /// When a relay can do something by the passing of time.
    pub(super) fn next_time_of(&self, index: usize) -> Option<Duration> {
        let relay = &self.relays[index];
        if relay.sleeps_until > self.now {
            return Some(relay.sleeps_until);
        }
        let mut times: Vec<Duration> = Vec::new();
        for visit in relay.visits.values() {
            match &visit.doing {
                Doing::Until(at) | Doing::Asleep(at) => times.push(*at),
                Doing::Calling { ends, .. } => times.push(*ends),
                Doing::Passing(_) => {
                    times.extend(visit.held_since.map(|since| since + self.config.outage.hold));
                }
                Doing::Act(Action::Wait(fault)) => {
                    let at = relay.gate.gives_up_at(*fault);
                    times.extend(at.map(|at| at.duration_since(self.base)));
                }
                _ => {}
            }
        }
        times.extend(relay.cut_at);
        times.extend(relay.control.iter().map(|control| control.ends));
        if relay.control.is_none() && relay.gate.wants_control(self.instant()) {
            times.push(relay.control_again_at);
        }
        times.extend(relay.gate.next_change(self.instant()).map(|at| at.duration_since(self.base)));
        times.into_iter().filter(|at| *at > self.now).min()
    }

    pub(super) fn take_step(&mut self, index: usize, step: Step) -> Result<()> {
        let openings = self.openings.len();
        match step {
            Step::Take => self.take(index)?,
            Step::Admit => self.admit(index)?,
            Step::Visit(id) => self.go_on(index, id)?,
            Step::Forget(id) => {
                self.stop_passing(index, id);
                self.step(index, id, Input::Forgotten)?;
            }
            Step::BeginControl => self.begin_control(index)?,
            Step::EndControl => self.end_control(index)?,
            Step::Restart => self.restart(index)?,
            Step::HandBack(place, item) => self.hand_back_next(index, place, item)?,
        }
        let (now, instant) = (self.now, self.instant());
        let relay = &mut self.relays[index];
        let is_full = relay.gate.intake() == Intake::Full;
        let is_opened = openings < self.openings.len();
        for visit in relay.visits.values_mut() {
            let finding = match &visit.doing {
                Doing::Act(Action::Wait(fault)) => Some(relay.gate.finding(*fault, instant)),
                _ => None,
            };
            // Unless a proof between two of its failures has told of it at that moment.
            let is_told = finding == Some(Finding::Refuted(Proof::Between));
            visit.is_excused |= visit.is_untold && is_opened && !is_told;
            visit.is_untold = finding == Some(Finding::Open);
            let begins = matches!(visit.doing, Doing::Passing(_)).then_some(now);
            visit.held_since = if is_full { None } else { visit.held_since.or(begins) };
        }
        Ok(())
    }

    fn take(&mut self, index: usize) -> Result<()> {
        let (tag, message) = self.broker.deliver(index).context("nothing to deliver")?;
        let wall = self.wall_of(index)?;
        let Message { event: number, customer, history, returns, .. } = message;
        let published = &mut self.published[number];
        published.received.get_or_insert(self.now);
        let mut history = history.unwrap_or_else(|| History::new(wall));
        history.returns += returns;
        let Config { rules, retry, .. } = &*self.config;
        let returned = Verdict::returned(&history, returns, &retry.tiers);
        match returned.or_else(|| admission::early(&history, rules, retry, wall)) {
            Some(Verdict::Wait { tier, history }) => {
                let history = Some(History { is_new: false, ..history });
                let message = Message { event: number, customer, history, returns, is_late: false };
                self.broker.postpone(message, self.now + tier.delay());
                self.broker.ack(tag);
                return Ok(());
            }
            Some(verdict) => bail!("event {number} is given up: {verdict:?}"),
            None => {}
        }
        let mut event = Event {
            customer: Arc::clone(&customer),
            place: published.place.clone(),
            update: Arc::clone(&published.update),
            history,
            goes_alone: false,
        };
        let now = self.instant();
        let relay = &mut self.relays[index];
        let receipt =
            event.history.is_new.then(|| relay.receipts.receive(&mut event, now)).flatten();
        let item = Item {
            tag,
            number,
            receipt,
            session: relay.session.get(),
            now: Rc::clone(&relay.session),
            event,
        };
        match relay.lanes.arrive(&customer, item) {
            Arrival::Starts(item) => self.start(index, item),
            Arrival::Waits => {}
            Arrival::Full => relay.hands_back.push(HandingBack::of(customer)),
        }
        Ok(())
    }

    fn start(&mut self, index: usize, item: Item) {
        let customer = Arc::clone(&item.event.customer);
        let (turn, action) = Turn::begin(item);
        self.numbers += 1;
        let doing = Doing::Act(action);
        let visit = Visit {
            turn: Some(turn),
            customer,
            began: self.now,
            lease: 0,
            doing,
            pauses: 0,
            held_since: None,
            is_untold: false,
            is_excused: false,
        };
        self.relays[index].visits.insert(self.numbers, visit);
    }

    fn admit(&mut self, index: usize) -> Result<()> {
        let now = self.instant();
        let relay = &mut self.relays[index];
        let before = relay.asking();
        let (ticket, pass) = relay.gate.admit(now).context("ready, but nobody admitted")?;
        check_pass(&relay.gate, pass, before)?;
        let id = relay.tickets.remove(&ticket).context("an unknown ticket")?;
        let visit = relay.visits.get_mut(&id).context("an unknown turn")?;
        visit.doing = Doing::Permitted(pass);
        Ok(())
    }

    fn stop_passing(&mut self, index: usize, id: u64) {
        let relay = &mut self.relays[index];
        if let Some(Visit { doing: Doing::Passing(ticket), .. }) = relay.visits.get(&id) {
            relay.tickets.remove(ticket);
            relay.gate.withdraw(*ticket);
        }
    }

    /// The machine takes a fact; what it says is done next.
    fn step(&mut self, index: usize, id: u64, input: Input<Item>) -> Result<()> {
        let dice = self.dice.random();
        let moment = Moment { now: self.instant(), wall: self.wall_of(index)?, dice, lost: None };
        let policy = self.config.turn_policy();
        let relay = &mut self.relays[index];
        let is_stopping = relay.cut_at.is_some();
        let before = relay.asking();
        let visit = relay.visits.get_mut(&id).context("an unknown turn")?;
        let turn = visit.turn.as_mut().context("it has ended")?;
        let is_own = matches!(&input, Input::Answered(_, judgement)
            if judgement.outcome == Outcome::DuplicateEmail);
        let is_answer = matches!(&input, Input::Answered(..) | Input::Paused(_)) && !is_own;
        let (action, news) = turn.step(&mut relay.gate, input, &moment, &policy);
        let is_outage = is_answer && relay.gate.state() != State::Closed;
        if std::mem::take(&mut visit.is_excused) || is_outage {
            check_uncounted(turn, &action)?;
        }
        if !matches!(action, Action::Pause | Action::Secure { .. } | Action::Call(_)) {
            visit.pauses = 0;
        }
        let started = self.now;
        visit.doing = match action {
            Action::Pass => {
                let pass = relay.gate.admit_at_once(moment.now).filter(|_| !is_stopping);
                if let Some(pass) = pass {
                    check_pass(&relay.gate, pass, before)?;
                    Doing::Permitted(pass)
                } else {
                    let ticket = relay.gate.ask(&visit.customer);
                    relay.tickets.insert(ticket, id);
                    Doing::Passing(ticket)
                }
            }
            Action::Call(update) => {
                let ends = self.now + Duration::from_millis(self.dice.random_range(1..60));
                Doing::Calling { update, started, ends, is_lost: false }
            }
            Action::Sleep(pause) => Doing::Until(self.now + pause),
            Action::SleepUntil(at) => Doing::Asleep(at.duration_since(self.base)),
            Action::Pause if visit.pauses < IMMEDIATE_RETRIES && !is_stopping => {
                visit.pauses += 1;
                Doing::Until(self.now + Duration::from_millis(200))
            }
            action => Doing::Act(action),
        };
        self.note(news);
        Ok(())
    }

    fn note(&mut self, news: Option<News>) {
        if let Some(News::Opened(_)) = news {
            self.tally.outages += 1;
            self.openings.push(self.now);
        }
    }

    /// The next thing of one turn.
    fn go_on(&mut self, index: usize, id: u64) -> Result<()> {
        let now = self.now;
        let relay = &mut self.relays[index];
        let visit = relay.visits.get_mut(&id).context("an unknown turn")?;
        let customer = Arc::clone(&visit.customer);
        let doing = std::mem::replace(&mut visit.doing, Doing::Nothing);
        let (is_stopping, is_cut) =
            (relay.cut_at.is_some(), relay.cut_at.is_some_and(|at| at <= now));
        let input = match doing {
            Doing::Passing(ticket) if is_stopping => {
                relay.tickets.remove(&ticket);
                relay.gate.withdraw(ticket);
                Input::Stopped
            }
            Doing::Act(Action::Wait(_)) | Doing::Asleep(_) if is_stopping => Input::Stopped,
            Doing::Calling { update, ends, .. } if is_cut && ends > now => {
                self.portal.abandon((&customer, &update), now, &mut self.dice);
                Input::Cut
            }
            Doing::Act(Action::Read) => {
                let (read, lease) = self.ledger.read(&customer, relay.identity, now);
                visit.lease = lease;
                Input::Read(read)
            }
            Doing::Act(Action::Secure { joins }) => {
                let mut read = None;
                if !self.ledger.lasts(&customer, visit.lease, LONGEST_CALL, now) {
                    let (again, lease) = self.ledger.read(&customer, relay.identity, now);
                    if matches!(again, Read::Ours { .. }) {
                        visit.lease = lease;
                    }
                    read = Some(again);
                }
                let session = relay.session.get();
                let may = |item: &Item| item.event.may_merge() && item.session == session;
                let joined =
                    if joins { relay.lanes.take_along(&customer, may) } else { Vec::new() };
                Input::Secured { read, joined }
            }
            Doing::Act(Action::Announce) => {
                let group = visit.turn.as_ref().and_then(Turn::group).context("no group")?;
                let row = group.changed_row().cloned();
                Input::Announced(self.ledger.commit(&customer, row, visit.lease, true))
            }
            Doing::Act(Action::PutBack(items)) => {
                relay.lanes.put_back(&customer, items);
                Input::Done
            }
            Doing::Act(Action::Pause) => Input::Paused(false),
            Doing::Until(_) if visit.pauses > 0 => Input::Paused(true),
            Doing::Act(Action::Wait(_)) | Doing::Until(_) | Doing::Asleep(_) => Input::Done,
            Doing::Permitted(pass) => Input::Permitted(pass),
            Doing::Passing(ticket) => {
                relay.tickets.remove(&ticket);
                relay.gate.withdraw(ticket);
                Input::HeldForLong
            }
            Doing::Calling { update, started, is_lost, .. } => {
                let credentials = relay.credentials;
                let whose = (&customer, &*update);
                let judgement = if is_lost {
                    timed_out()
                } else {
                    self.portal.answer(whose, credentials, false, now, &mut self.dice)
                };
                let started = self.base + started;
                Input::Answered(Call::new(customer, started, credentials), judgement)
            }
            Doing::Act(Action::End(ending)) => return self.end_turn(index, id, ending),
            Doing::Settling(settling) => return self.settle(index, id, settling),
            doing => bail!("cannot go on with {doing:?}"),
        };
        self.step(index, id, input)
    }

    fn end_turn(&mut self, index: usize, id: u64, ending: Ending) -> Result<()> {
        let wall = self.wall_of(index)?;
        let is_fenced = !self.ledger.is_none;
        let relay = &mut self.relays[index];
        let visit = relay.visits.get_mut(&id).context("an unknown turn")?;
        let turn = visit.turn.take().context("it has ended")?;
        let customer = Arc::clone(&visit.customer);
        match (turn.into_parts(), ending) {
            (Ok(group), Ending::Verdicts(verdicts)) => {
                let fence = (&self.config.retry.tiers, is_fenced);
                let Conclusion { row, mut ends, follow } =
                    group.conclude(verdicts, fence, None, wall);
                if let Some(tier) = follow {
                    for item in relay.lanes.take_waiting(&customer) {
                        let verdict = Verdict::Wait { tier, history: item.event.history.clone() };
                        let event = Some(item.event.place.event.clone());
                        ends.push(End::unsent(item, verdict, event));
                    }
                }
                let shortest = self.config.retry.tiers.shortest();
                let (settlement, next) = Settlement::begin(ends, shortest);
                visit.doing = Doing::Settling(Settling { settlement, next, row });
                return Ok(());
            }
            (Ok(group), _) => {
                let session = relay.session.get();
                let row = group.changed_row().cloned();
                let members = group.members.into_iter().map(|member| member.carrier);
                let others = members.filter(|item| item.session == session).collect();
                relay.lanes.put_back(&customer, others);
                self.ledger.commit(&customer, row, visit.lease, false);
            }
            (Err(head), Ending::HandBackLane) => {
                let mut items = vec![head];
                items.extend(relay.lanes.take_waiting(&customer));
                for item in items {
                    self.end_unseen(item)?;
                }
            }
            (Err(_), Ending::GiveUp) => {}
            (Err(_), ending) => bail!("cannot end so: {ending:?}"),
        }
        self.leave(index, id)
    }

    /// One of those that a lane has no room for: they go side by side, in any order.
    fn hand_back_next(&mut self, index: usize, place: usize, item: usize) -> Result<()> {
        let (now, relay) = (self.instant(), &mut self.relays[index]);
        let HandingBack { customer, items } = &mut relay.hands_back[place];
        if items.is_empty() {
            *items = relay.lanes.next_back(customer);
            if items.is_empty() {
                relay.hands_back.remove(place);
            }
            return Ok(());
        }
        let item = items.remove(item);
        let wait = relay.lanes.wait(customer, now);
        let history = item.event.history.clone();
        let verdict = Verdict::hand_back_for(&self.config.retry.tiers, history, wait);
        self.end_without_turn(item, verdict)
    }

    fn leave(&mut self, index: usize, id: u64) -> Result<()> {
        let relay = &mut self.relays[index];
        let visit = relay.visits.remove(&id).context("an unknown turn")?;
        if relay.lanes.overflow(&visit.customer, self.now.saturating_sub(visit.began)) {
            relay.hands_back.push(HandingBack::of(Arc::clone(&visit.customer)));
        }
        if let Some(next) = relay.lanes.finish(&visit.customer) {
            self.start(index, next);
        }
        Ok(())
    }

    /// One step towards the end: a crash may come between any two.
    fn settle(&mut self, index: usize, id: u64, mut settling: Settling) -> Result<()> {
        let visit = self.relays[index].visits.get(&id).context("an unknown turn")?;
        let (customer, lease) = (Arc::clone(&visit.customer), visit.lease);
        let fact = match settling.next {
            settlement::Action::Publish(end) => {
                if self.carry_out(settling.settlement.end(end))? {
                    settlement::Input::Published
                } else {
                    settlement::Input::Forgotten
                }
            }
            settlement::Action::Record(record) => {
                let row = settling.row.take();
                if record == Record::Letters {
                    self.ledger.end_turn(&customer);
                }
                settlement::Input::Recorded(match record {
                    Record::Ends | Record::Letters => {
                        self.ledger.commit(&customer, row, lease, false)
                    }
                    Record::Copies | Record::Index => Committed::Done,
                })
            }
            settlement::Action::Ack => {
                for end in settling.settlement.into_ends() {
                    self.ack(&end);
                }
                return self.leave(index, id);
            }
        };
        settling.next = settling.settlement.step(fact);
        let visit = self.relays[index].visits.get_mut(&id).context("an unknown turn")?;
        visit.doing = Doing::Settling(settling);
        Ok(())
    }

    fn postpone(&mut self, item: &Item, history: History, delay: Duration) {
        let customer = Arc::clone(&item.event.customer);
        let history = Some(History { is_new: false, waits: None, ..history });
        let message = Message { event: item.number, customer, history, returns: 0, is_late: false };
        self.broker.postpone(message, self.now + delay);
    }

    /// Publishes what an end asks for; false if the delivery was forgotten before.
    fn carry_out(&mut self, end: &End<Item>) -> Result<bool> {
        let item = &end.carrier;
        let is_forgotten = item.is_gone();
        match end.publication() {
            Publication::None => {}
            Publication::Retry(..) | Publication::DeadLetter(_) if is_forgotten => {
                return Ok(false);
            }
            Publication::Resend(tier, history) | Publication::Retry(tier, history) => {
                let delay = history.waits.map_or(tier.delay(), |waits| waits.min(tier.delay()));
                self.postpone(item, history.clone(), delay);
            }
            Publication::DeadLetter(dead) => self.bury(item, dead)?,
        }
        Ok(true)
    }

    fn bury(&mut self, item: &Item, dead: &DeadLetter) -> Result<()> {
        self.tally.dead += 1;
        let (customer, reason) = (&item.event.customer, dead.reason.name());
        let may_die = if dead.reason == Reason::Unrecordable {
            self.ledger.refuses(customer)
        } else {
            self.portal.is_bad(customer, item.number)
        };
        ensure!(
            may_die,
            "event {} of {customer}, which the portal takes, is a dead letter: {reason}",
            item.number
        );
        self.broker.dead.push(Letter { event: item.number, reason });
        Ok(())
    }

    /// Ends an event without its turn.
    fn end_unseen(&mut self, item: Item) -> Result<()> {
        let verdict = Verdict::hand_back(&self.config.retry.tiers, item.event.history.clone());
        self.end_without_turn(item, verdict)
    }

    fn end_without_turn(&mut self, item: Item, verdict: Verdict) -> Result<()> {
        let end = End::unsent(item, verdict, None);
        if self.carry_out(&end)? {
            self.ack(&end);
        }
        Ok(())
    }

    fn ack(&mut self, end: &End<Item>) {
        let now = self.instant();
        let item = &end.carrier;
        if item.is_gone() {
            return;
        }
        if let (Some(index), Some(receipt)) = (self.broker.ack(item.tag), item.receipt) {
            self.relays[index].receipts.acked(receipt, &end.verdict, now);
        }
    }

    fn begin_control(&mut self, index: usize) -> Result<()> {
        let (now, wall, dice) = (self.instant(), self.wall_of(index)?, self.dice.random());
        let relay = &mut self.relays[index];
        let lanes = std::cell::RefCell::new(&mut relay.lanes);
        let is_free = |customer: &Arc<str>| lanes.borrow_mut().reserve(customer);
        let (control, news) = relay.gate.control((now, wall), dice, is_free);
        relay.control_again_at = self.now + Duration::from_millis(100);
        if let Control::Call(candidate, pass) = control {
            let customer = Arc::clone(&candidate.customer);
            let (read, lease) = self.ledger.read(&customer, relay.identity, self.now);
            let wall = self.wall_of(index)?;
            let settled_at = after(wall, self.config.portal.settle_after);
            let relay = &mut self.relays[index];
            let row = match read {
                Read::Ours { mut row, was_taken_over }
                    if self.ledger.is_none || candidate.is_newest(&row) =>
                {
                    if was_taken_over && row != Row::default() {
                        row.mark(None, settled_at, wall);
                    }
                    row
                }
                read => {
                    if matches!(read, Read::Ours { .. }) {
                        relay.gate.give_up(&customer, now);
                        self.ledger.commit(&customer, None, lease, false);
                    }
                    self.give_control_back(index, &customer, pass);
                    self.note(news);
                    return Ok(());
                }
            };
            let marked = self.mark_control(index, &customer, &row, (lease, true))?;
            if marked == Committed::Refused {
                self.relays[index].gate.give_up(&customer, now);
            }
            match marked {
                Committed::Done => {
                    self.tally.controls += 1;
                    let (started, ends) = (self.now, self.now + Duration::from_millis(30));
                    let is_lost = false;
                    let call = ControlCall { candidate, pass, row, lease, started, ends, is_lost };
                    self.relays[index].control = Some(call);
                }
                Committed::LeaseLost | Committed::Refused => {
                    self.ledger.commit(&customer, None, lease, false);
                    self.give_control_back(index, &customer, pass);
                }
            }
        }
        self.note(news);
        Ok(())
    }

    fn give_control_back(&mut self, index: usize, customer: &Arc<str>, pass: Pass) {
        let now = self.instant();
        self.relays[index].gate.give_back(pass, now);
        self.leave_lane(index, customer);
    }

    /// What a control call may undo is in the ledger before it begins. Where nothing was applied,
    /// nothing can be undone.
    fn mark_control(
        &mut self,
        index: usize,
        customer: &Arc<str>,
        row: &Row,
        (lease, keeps_lease): (u64, bool),
    ) -> Result<Committed> {
        let wall = self.wall_of(index)?;
        let mut marked = row.clone();
        marked.mark(None, after(wall, self.config.portal.settle_after), wall);
        let marked = (*row != Row::default()).then_some(marked);
        Ok(self.ledger.commit(customer, marked, lease, keeps_lease))
    }

    fn end_control(&mut self, index: usize) -> Result<()> {
        let (now, wall, dice) = (self.instant(), self.wall_of(index)?, self.dice.random());
        let relay = &mut self.relays[index];
        let control = relay.control.take().context("no control call")?;
        let ControlCall { candidate, pass, row, lease, started, is_lost, .. } = control;
        let Candidate { customer, update, .. } = candidate;
        let credentials = relay.credentials;
        let judgement = if is_lost {
            timed_out()
        } else {
            self.portal.answer((&customer, &update), credentials, true, self.now, &mut self.dice)
        };
        let judgement = self.config.retry.believe(judgement);
        let started = self.base + started;
        let call = Call::new(Arc::clone(&customer), started, credentials);
        let (_, news) = relay.gate.end(&call, pass, &judgement, (now, wall), dice);
        if judgement.outcome.may_be_under_way() {
            self.mark_control(index, &customer, &row, (lease, false))?;
        } else {
            let row = (row != Row::default()).then_some(row);
            self.ledger.commit(&customer, row, lease, false);
        }
        self.leave_lane(index, &customer);
        self.note(news);
        Ok(())
    }

    fn leave_lane(&mut self, index: usize, customer: &Arc<str>) {
        if let Some(next) = self.relays[index].lanes.finish(customer) {
            self.start(index, next);
        }
    }

    /// The connection to the broker is lost: what is in hand is forgotten as soon as it can be.
    pub(super) fn lose_session(&mut self, index: usize) {
        let session = &self.relays[index].session;
        session.set(session.get() + 1);
        self.forget_deliveries(index);
    }

    fn forget_deliveries(&mut self, index: usize) {
        let noticed = [0, 0, 5, 300, 4000].choose(&mut self.dice).copied().unwrap_or(0);
        let noticed = self.now + Duration::from_millis(noticed);
        let now = self.instant();
        self.relays[index].receipts.lose_session(now);
        for event in self.broker.lose_session(index, (self.now, noticed)) {
            self.published[event].is_receipt_lost = true;
        }
    }

    /// It does nothing for so long. Calls under way end without it, and in a longer one the broker gives
    /// up the connection.
    pub(super) fn sleep(&mut self, index: usize, span: Duration) {
        for (customer, update) in self.relays[index].calls() {
            self.portal.abandon((&customer, &update), self.now, &mut self.dice);
        }
        let until = self.now + span;
        let relay = &mut self.relays[index];
        relay.sleeps_until = until;
        for visit in relay.visits.values_mut() {
            if let Doing::Calling { ends, is_lost, .. } = &mut visit.doing {
                (*ends, *is_lost) = (until, true);
            }
        }
        if let Some(control) = &mut relay.control {
            (control.ends, control.is_lost) = (until, true);
        }
        if span > SILENCE {
            self.lose_session(index);
        }
    }

    /// SIGTERM: what waits is handed back, calls have a moment to end.
    pub(super) fn stop(&mut self, index: usize) {
        let grace_period = Duration::from_millis(self.dice.random_range(0..60));
        self.relays[index].cut_at.get_or_insert(self.now + grace_period);
    }

    /// A stopped relay is done, and another one begins.
    fn restart(&mut self, index: usize) -> Result<()> {
        let left = self.broker.unacked(index);
        ensure!(left == 0, "{left} deliveries in hand of a relay that has stopped");
        self.begin_anew(index);
        Ok(())
    }

    fn begin_anew(&mut self, index: usize) {
        for event in self.broker.notice(index) {
            self.published[event].is_receipt_forgotten = true;
        }
        self.identities += 1;
        let relay = self.relay(self.identities);
        self.relays[index] = relay;
    }

    /// kill -9: all that is in memory is gone, calls under way may take effect.
    pub(super) fn crash(&mut self, index: usize) {
        self.tally.crashes += 1;
        let calls = self.relays[index].calls();
        for (customer, update) in calls {
            self.portal.abandon((&customer, &update), self.now, &mut self.dice);
        }
        self.begin_anew(index);
        self.forget_deliveries(index);
        self.broker.notice(index);
    }
}
