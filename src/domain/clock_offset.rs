//! How far our wall clock is from other clocks. A reading of another clock is carried forward by our
//! monotonic clock, which no jump touches: after the first one a jump of ours shows at once.
//!
//! An *offset* is ours minus theirs: negative while our clock is behind.

use std::collections::VecDeque;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};

use super::retry::after;

/// A larger offset is told. A kept clock is exact to milliseconds and an HTTP date to a second or two,
/// so this is never noise; and it is a tenth of what `event.future_tolerance` allows by default, so it is
/// told before any event waits for it.
pub const BOUND: Duration = Duration::from_secs(30);
/// An offset lasts for so long before it is told: a machine that was asleep, whose monotonic clock
/// stood still meanwhile, reads another clock again first.
const SETTLE: Duration = Duration::from_secs(5);
/// A jump of ours by more asks for a reading.
const JUMP: Duration = Duration::from_secs(5);
/// Between two requests for nothing but the portal's clock.
const ASK_EVERY: Duration = Duration::from_mins(1);
/// A request for the portal's clock that is not answered within so long is in vain.
const ANSWERED_WITHIN: Duration = Duration::from_secs(15);
/// A clock that is kept runs at most one part in so many too fast or too slow: what a kernel corrects it by.
const DRIFT: u32 = 2000;
/// Events are heard for so long, each customer once, the latest so many customers.
const EVENTS_KEPT: Duration = Duration::from_mins(10);
const MAX_EVENTS: usize = 9;
/// The middle one of so many messages or customers is heard, of one alone nothing: it may be wrong itself.
const MIN_READINGS: usize = 3;
const MAX_MESSAGES: usize = 5;

/// Whose clock ours is held against; the first is believed the most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The portal's, by the `Date` of its answers.
    Portal,
    /// PostgreSQL's.
    Database,
    /// The broker's, where it stamps messages.
    Broker,
    /// The CRM's, by its events: they tell of a clock that is behind; old events tell nothing.
    Events,
}

impl Source {
    /// All of them, the most believed first.
    pub const ALL: [Source; 4] = [Source::Portal, Source::Database, Source::Broker, Source::Events];

    /// A stable name, for metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Source::Portal => "portal",
            Source::Database => "database",
            Source::Broker => "broker",
            Source::Events => "events",
        }
    }
}

/// One moment on both of our clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time {
    /// On the wall clock, which may be set.
    pub wall: Timestamp,
    /// On the monotonic clock.
    pub now: Instant,
}

/// Another clock, read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// What it said.
    pub theirs: Timestamp,
    /// What it may be wrong by, either way.
    pub uncertainty: Duration,
    /// When it said so, on ours.
    pub at: Time,
}

impl Reading {
    /// Of a clock that said `theirs`, cut to steps of `resolution`, during a call from `began` to `at`.
    pub fn during(theirs: Timestamp, resolution: Duration, began: Instant, at: Time) -> Reading {
        let uncertainty = (resolution + at.now.saturating_duration_since(began)) / 2;
        Reading { theirs: after(theirs, uncertainty), uncertainty, at }
    }

    /// Ours minus theirs by now.
    fn offset(&self, time: Time) -> SignedDuration {
        let age = signed(self.age(time));
        time.wall.duration_since(self.theirs).saturating_sub(age)
    }

    fn uncertainty(&self, time: Time) -> Duration {
        self.uncertainty + self.age(time) / DRIFT
    }

    fn age(&self, time: Time) -> Duration {
        time.now.saturating_duration_since(self.at.now)
    }

    /// How far our clock was set since then.
    fn jump(&self, time: Time) -> Duration {
        let passed = time.wall.duration_since(self.at.wall);
        passed.saturating_sub(signed(self.age(time))).unsigned_abs()
    }
}

/// How far ours is from another clock, and what that may be wrong by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Offset {
    offset: SignedDuration,
    uncertainty: Duration,
}

impl Offset {
    fn exceeds(self, bound: Duration) -> bool {
        self.offset.unsigned_abs() > bound.saturating_add(self.uncertainty)
    }

    fn is_within(self, bound: Duration) -> bool {
        self.offset.unsigned_abs().saturating_add(self.uncertainty) <= bound
    }
}

/// What other clocks say to ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// At least one agrees, and none differs.
    Confirmed,
    /// None is known.
    Unknown,
    /// One differs by more than `event.future_tolerance` allows. Another one may agree: it may be on our
    /// own machine.
    Contradicted,
}

/// A change that people should know of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// Our clock differs from this one by so much.
    Off(Source, SignedDuration),
    /// It differs from none any more.
    Right,
}

/// An event's time, and whose event it is.
#[derive(Clone, Copy, Debug)]
struct Dated {
    customer: u64,
    reading: Reading,
}

/// What is known of other clocks.
#[derive(Debug)]
pub struct ClockOffset {
    /// What events may be ahead of our clock by.
    tolerance: Duration,
    portal: Option<Reading>,
    database: Option<Reading>,
    /// Of the latest messages.
    broker: VecDeque<Reading>,
    /// Of the latest customers.
    events: VecDeque<Dated>,
    /// An event was ahead, and no clock could tell whether it is ours that is behind.
    missed_at: Option<Instant>,
    asked_at: Option<Instant>,
    off_since: Option<Instant>,
    told: Option<SignedDuration>,
}

impl ClockOffset {
    /// Nothing is known yet. `tolerance`: `event.future_tolerance`.
    pub fn new(tolerance: Duration) -> ClockOffset {
        ClockOffset {
            tolerance: tolerance.max(BOUND),
            portal: None,
            database: None,
            broker: VecDeque::with_capacity(MAX_MESSAGES),
            events: VecDeque::with_capacity(MAX_EVENTS),
            missed_at: None,
            asked_at: None,
            off_since: None,
            told: None,
        }
    }

    /// The portal's clock was read.
    pub fn note_portal(&mut self, reading: Reading) {
        self.portal = Some(reading);
    }

    /// The database's clock was read.
    pub fn note_database(&mut self, reading: Reading) {
        self.database = Some(reading);
    }

    /// The broker has stamped a message that came at once.
    pub fn note_broker(&mut self, reading: Reading) {
        self.broker.truncate(MAX_MESSAGES - 1);
        self.broker.push_front(reading);
    }

    /// An event came. Of a customer's events within a while the one that is furthest ahead counts: the
    /// others have waited.
    pub fn note_event(&mut self, customer: &str, time: Timestamp, at: Time) {
        self.forget_events(at.now);
        let reading = Reading { theirs: time, uncertainty: Duration::ZERO, at };
        let customer = hash(customer);
        if let Some(index) = self.events.iter().position(|known| known.customer == customer) {
            if self.events[index].reading.offset(at) <= reading.offset(at) {
                return;
            }
            self.events.remove(index);
        }
        self.events.truncate(MAX_EVENTS - 1);
        self.events.push_front(Dated { customer, reading });
    }

    fn forget_events(&mut self, now: Instant) {
        self.events.retain(|known| known.reading.at.now + EVENTS_KEPT > now);
    }

    /// Whether the portal's clock was last read so long ago that it is worth the trouble.
    pub fn wants_portal(&self, now: Instant) -> bool {
        let second = Duration::from_secs(1);
        self.portal.is_none_or(|reading| reading.at.now + second <= now)
    }

    /// How far our clock is from this one, in seconds; `None` if that is not known.
    pub fn seconds(&self, source: Source, time: Time) -> Option<f64> {
        self.offset(source, time).map(|found| found.offset.as_secs_f64())
    }

    /// As far as it is known well enough.
    fn offset(&self, source: Source, time: Time) -> Option<Offset> {
        let found = match source {
            Source::Portal => middle(self.portal.iter(), time),
            Source::Database => middle(self.database.iter(), time),
            Source::Broker if self.broker.len() >= MIN_READINGS => middle(self.broker.iter(), time),
            Source::Events if self.events.len() >= MIN_READINGS => self.offset_of_events(time),
            Source::Broker | Source::Events => None,
        }?;
        (found.uncertainty <= BOUND).then_some(found)
    }

    /// Nothing but what is beyond the tolerance, and ahead of us: old events may have waited.
    fn offset_of_events(&self, time: Time) -> Option<Offset> {
        let found = middle(self.events.iter().map(|known| &known.reading), time)?;
        let is_ahead = found.offset.is_negative() && found.exceeds(self.tolerance);
        Some(if is_ahead { found } else { Offset { offset: SignedDuration::ZERO, ..found } })
    }

    fn clocks(&self, time: Time) -> impl Iterator<Item = (Source, Offset)> {
        Source::ALL.into_iter().filter_map(move |source| Some((source, self.offset(source, time)?)))
    }

    /// Whether our clock is believed when it says that this customer's event lies ahead. Where no other
    /// clock is known, other customers' events tell: if the middle one's time is about now.
    pub fn trust(&mut self, customer: &str, time: Time) -> Trust {
        let trust = self.trust_of_clocks(time);
        if trust == Trust::Confirmed && !self.has_asked_portal(time) {
            // What agrees may be on our own machine, and as wrong.
            self.missed_at = Some(time.now);
            return Trust::Unknown;
        }
        if trust != Trust::Unknown {
            return trust;
        }
        self.forget_events(time.now);
        let customer = hash(customer);
        let others = self.events.iter().filter(|known| known.customer != customer);
        match middle(others.map(|known| &known.reading), time) {
            Some(found) if found.is_within(self.tolerance) => Trust::Confirmed,
            Some(_) | None => {
                self.missed_at = Some(time.now);
                Trust::Unknown
            }
        }
    }

    /// Whether the portal's clock is known, or was asked for in vain.
    fn has_asked_portal(&self, time: Time) -> bool {
        let in_vain = self.asked_at.is_some_and(|at| at + ANSWERED_WITHIN <= time.now);
        in_vain || self.offset(Source::Portal, time).is_some()
    }

    /// What clocks alone say, whatever events are dated.
    pub fn trust_of_clocks(&self, time: Time) -> Trust {
        let clocks = || self.clocks(time).filter(|(source, _)| *source != Source::Events);
        if clocks().any(|(_, found)| found.exceeds(self.tolerance)) {
            Trust::Contradicted
        } else if clocks().any(|(_, found)| found.is_within(self.tolerance)) {
            Trust::Confirmed
        } else {
            Trust::Unknown
        }
    }

    /// Whether the portal's clock should be asked for by a request of its own: events are ahead and no
    /// clock is known, ours was set, or it is off and the portal was not heard of lately.
    pub fn asks_portal(&mut self, time: Time) -> bool {
        let lately = |at: Instant| at + ASK_EVERY > time.now;
        if self.asked_at.is_some_and(lately) {
            return false;
        }
        let is_missed = self.missed_at.is_some_and(lately);
        let asks = match &self.portal {
            None => is_missed || self.told.is_some(),
            Some(reading) => {
                let is_off = is_missed || self.told.is_some();
                reading.jump(time) > JUMP || is_off && !lately(reading.at.now)
            }
        };
        if asks {
            self.asked_at = Some(time.now);
        }
        asks
    }

    /// Whether the database's clock should be read: after a jump of ours, and now and then.
    pub fn asks_database(&self, time: Time) -> bool {
        self.database.is_none_or(|reading| {
            reading.jump(time) > JUMP || reading.at.now + ASK_EVERY <= time.now
        })
    }

    /// Looks whether there is something to tell: once when our clock is off or its offset changes, once
    /// when it is right again.
    pub fn look(&mut self, time: Time) -> Option<News> {
        self.forget_events(time.now);
        let off = self.clocks(time).find(|(_, found)| found.exceeds(BOUND));
        let Some((source, Offset { offset, .. })) = off else {
            self.off_since = None;
            return self.look_whether_right(time);
        };
        let since = *self.off_since.get_or_insert(time.now);
        let is_news = |told: SignedDuration| {
            let change = offset.saturating_sub(told).unsigned_abs();
            change > (2 * BOUND).max(told.unsigned_abs() / 2)
        };
        if since + SETTLE > time.now || !self.told.is_none_or(is_news) {
            return None;
        }
        self.told = Some(offset);
        Some(News::Off(source, offset))
    }

    /// By half the bound: an offset about as large as the bound is not told again and again.
    fn look_whether_right(&mut self, time: Time) -> Option<News> {
        let mut is_known = false;
        for (_, found) in self.clocks(time) {
            if found.exceeds(BOUND / 2) {
                return None;
            }
            is_known = true;
        }
        if is_known { self.told.take().map(|_| News::Right) } else { None }
    }
}

/// The middle one of some readings, by the offset that each tells.
fn middle<'a>(readings: impl Iterator<Item = &'a Reading>, time: Time) -> Option<Offset> {
    let mut found: Vec<Offset> = readings
        .map(|reading| Offset {
            offset: reading.offset(time),
            uncertainty: reading.uncertainty(time),
        })
        .collect();
    found.sort_by_key(|found| found.offset);
    found.get(found.len().checked_sub(1)? / 2).copied()
}

fn hash(customer: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    customer.hash(&mut hasher);
    hasher.finish()
}

fn signed(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration).expect("no process is so old")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: SignedDuration = SignedDuration::from_hours(1);
    const TOLERANCE: Duration = Duration::from_mins(5);

    /// Our clocks, and the true time.
    #[derive(Clone, Copy)]
    struct World {
        base: Instant,
        now: Duration,
        /// While the monotonic clock stood still.
        asleep: Duration,
        off: SignedDuration,
    }

    impl World {
        fn new(off: SignedDuration) -> World {
            let (base, zero) = (crate::clock::instant(), Duration::ZERO);
            World { base, now: zero, asleep: zero, off }
        }

        fn true_time(self) -> Timestamp {
            let start: Timestamp = "2026-11-28T09:30:00Z".parse().expect("a time");
            start + self.now + self.asleep
        }

        fn time(self) -> Time {
            Time { wall: self.true_time() + self.off, now: self.base + self.now }
        }

        fn pass(&mut self, seconds: u64) {
            self.now += Duration::from_secs(seconds);
        }

        fn read(self) -> Reading {
            let second = Duration::from_secs(1);
            Reading::during(self.true_time(), second, self.base + self.now, self.time())
        }
    }

    fn new() -> ClockOffset {
        ClockOffset::new(TOLERANCE)
    }

    #[test]
    fn one_reading_shows_every_later_jump_at_once() {
        let mut world = World::new(SignedDuration::ZERO);
        let mut clock = new();
        clock.note_portal(world.read());
        for hours in [-2, 26, -26, 2] {
            world.pass(3600);
            world.off = HOUR * hours;
            let seconds = clock.seconds(Source::Portal, world.time()).expect("known");
            let expected = f64::from(hours) * 3600.0;
            assert!((seconds - expected).abs() <= 1.0, "{seconds} instead of {expected}");
            assert_eq!(clock.trust("C1", world.time()), Trust::Contradicted);
        }
        world.off = SignedDuration::ZERO;
        assert_eq!(clock.trust("C1", world.time()), Trust::Confirmed);
    }

    #[test]
    fn a_reading_says_less_with_time_and_nothing_at_last() {
        let mut world = World::new(SignedDuration::ZERO);
        let mut clock = new();
        clock.note_portal(world.read());
        world.pass(16 * 3600);
        assert_eq!(clock.trust("C1", world.time()), Trust::Confirmed);
        world.pass(3600);
        assert_eq!(clock.seconds(Source::Portal, world.time()), None);
        assert_eq!(clock.trust("C1", world.time()), Trust::Unknown);
    }

    #[test]
    fn it_is_told_once_that_it_is_off_and_once_that_it_is_right_again() {
        let mut world = World::new(-HOUR * 2);
        let mut clock = new();
        clock.note_portal(world.read());
        assert_eq!(clock.look(world.time()), None, "it may have been asleep");
        world.pass(5);
        let Some(News::Off(Source::Portal, told)) = clock.look(world.time()) else {
            panic!("not told");
        };
        assert!((told - -HOUR * 2).unsigned_abs() <= Duration::from_secs(1), "{told}");
        for _ in 0..600 {
            world.pass(1);
            clock.note_portal(world.read());
            assert_eq!(clock.look(world.time()), None, "told already");
        }
        world.off = -HOUR * 26;
        assert!(matches!(clock.look(world.time()), Some(News::Off(Source::Portal, _))));
        world.off = SignedDuration::from_secs(20);
        assert_eq!(clock.look(world.time()), None, "not quite right");
        world.off = SignedDuration::ZERO;
        assert_eq!(clock.look(world.time()), Some(News::Right));
        assert_eq!(clock.look(world.time()), None);
    }

    #[test]
    fn a_machine_that_was_asleep_reads_the_portal_again_before_it_says_anything() {
        let mut world = World::new(SignedDuration::ZERO);
        let mut clock = new();
        clock.note_portal(world.read());
        assert!(!clock.asks_portal(world.time()));
        world.asleep = Duration::from_hours(2);
        assert!(clock.seconds(Source::Portal, world.time()) > Some(7000.0));
        assert_eq!(clock.look(world.time()), None);
        assert!(clock.asks_portal(world.time()) && clock.asks_database(world.time()));
        clock.note_portal(world.read());
        world.pass(10);
        assert_eq!(clock.look(world.time()), None);
        assert!(!clock.asks_portal(world.time()));
    }

    #[test]
    fn the_portal_is_asked_once_a_minute_while_events_are_ahead_and_no_clock_is_known() {
        let mut world = World::new(-HOUR);
        let mut clock = new();
        assert!(!clock.asks_portal(world.time()), "no event is ahead");
        let mut asked = 0;
        for _ in 0..600 {
            world.pass(1);
            assert_eq!(clock.trust("C1", world.time()), Trust::Unknown);
            asked += u32::from(clock.asks_portal(world.time()));
        }
        assert_eq!(asked, 10);
        clock.note_portal(world.read());
        world.pass(59);
        assert!(!clock.asks_portal(world.time()));
    }

    #[test]
    fn one_clock_that_differs_outweighs_another_that_agrees() {
        let mut world = World::new(-HOUR * 26);
        let mut clock = new();
        let own = World { off: SignedDuration::ZERO, ..world };
        clock.note_database(Reading { theirs: world.time().wall, ..own.read() });
        assert_eq!(clock.trust("C1", world.time()), Trust::Unknown, "it may be on our own machine");
        assert!(clock.asks_portal(world.time()), "that is not");
        world.pass(ANSWERED_WITHIN.as_secs());
        assert_eq!(clock.trust("C1", world.time()), Trust::Confirmed, "the portal does not answer");
        clock.note_portal(world.read());
        assert_eq!(clock.trust("C1", world.time()), Trust::Contradicted);
    }

    #[test]
    fn without_a_clock_the_events_of_other_customers_tell() {
        let world = World::new(SignedDuration::ZERO);
        let (mut clock, time) = (new(), world.time());
        clock.note_event("C1", time.wall, time);
        assert_eq!(clock.trust("C1", time), Trust::Unknown, "it is its own");
        assert_eq!(clock.trust("C2", time), Trust::Confirmed);
        clock.note_event("C3", time.wall + HOUR * 26, time);
        assert_eq!(clock.trust("C2", time), Trust::Unknown, "one says this, one that");
        clock.note_event("C4", time.wall, time);
        assert_eq!(clock.trust("C2", time), Trust::Confirmed, "two of three");
    }

    #[test]
    fn events_tell_of_a_clock_that_is_behind_but_old_ones_of_nothing() {
        for (hours, expected) in [(-2, -7200.0), (2, 0.0)] {
            let mut world = World::new(HOUR * hours);
            let mut clock = new();
            for number in 0..20 {
                let customer = format!("C{number}");
                clock.note_event(&customer, world.true_time(), world.time());
                world.pass(1);
                clock.note_event(&customer, world.true_time() - HOUR, world.time());
            }
            assert_eq!(clock.seconds(Source::Events, world.time()), Some(expected));
            assert_eq!(clock.look(world.time()), None);
            world.pass(5);
            assert_eq!(clock.look(world.time()).is_some(), hours < 0);
            world.pass(600);
            assert_eq!(clock.look(world.time()), None, "nothing is known");
            assert_eq!(clock.seconds(Source::Events, world.time()), None, "too old");
        }
    }

    #[test]
    fn messages_that_the_broker_stamped_are_heard_from_three_on() {
        let world = World::new(HOUR);
        let mut clock = new();
        for number in 1..10 {
            let late = Duration::from_hours(u64::from(number % 3 == 0));
            let theirs = world.true_time() - late;
            clock.note_broker(Reading { theirs, ..world.read() });
            let seconds = clock.seconds(Source::Broker, world.time());
            assert_eq!(seconds, (number > 2).then_some(3600.0), "{number}");
        }
    }
}
