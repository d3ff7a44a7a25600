//! Lanes: one customer's events go one at a time, in order of arrival; customers go in parallel.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What goes in a lane.
pub trait Waiting {
    /// Where nothing but our memory tells when it was first received: what all have in common that go by
    /// that alone, events of one moment.
    fn moment(&self) -> Option<u64>;
    /// It has come once more meanwhile, or will: there is nothing to be done for it here.
    fn is_gone(&self) -> bool;
}

/// What waits behind what is being handled, by key.
///
/// What is handed back has its first receipt written on it. So nothing is handed back past what was
/// received before it, and has its place from its receipt, and nowhere but here: after a crash that
/// would look like the later one.
#[derive(Debug)]
pub struct Lanes<T> {
    /// A key stands here while its lane is busy, or something of it is handed back.
    by_key: HashMap<Arc<str>, Lane<T>>,
    /// So many wait in one lane: one customer must not fill all there is room for.
    most: usize,
    /// What waits goes along with the next one.
    merges: bool,
    /// What is handed back comes again after so long at the latest.
    longest_wait: Duration,
    /// Of keys of which more came than their lane holds: when what is handed back is to come again.
    paces: HashMap<Arc<str>, Pace>,
    /// Paces of keys that are not busy any more are forgotten when there are so many.
    prune_at: usize,
}

/// How fast a lane goes, and up to when what was handed back will keep it busy.
#[derive(Debug)]
struct Pace {
    each: Duration,
    /// So many turns, at most [`TURNS`], have shown it; without any it is a guess.
    turns: u32,
    busy_until: Instant,
}

/// Nothing comes again sooner.
const SHORTEST_WAIT: Duration = Duration::from_secs(1);
/// As long as nothing is known of a lane, it is taken to be emptied so often in a second.
const GUESS: u32 = 4;
const FEW_PACES: usize = 100;
/// The pace is that of about so many turns, the last ones.
const TURNS: u32 = 8;

#[derive(Debug)]
struct Lane<T> {
    is_busy: bool,
    waiting: VecDeque<T>,
    /// The moments of what is being handled.
    handled: Vec<u64>,
    /// How many are being handled.
    size: usize,
    /// To be handed back, in this order.
    back: VecDeque<T>,
    /// The moments of those, and of the ones that are on their way.
    on_the_way: Vec<u64>,
    /// Somebody takes them.
    is_handing_back: bool,
}

impl<T> Default for Lane<T> {
    fn default() -> Self {
        Lane {
            is_busy: false,
            waiting: VecDeque::new(),
            handled: Vec::new(),
            size: 0,
            back: VecDeque::new(),
            on_the_way: Vec::new(),
            is_handing_back: false,
        }
    }
}

impl<T: Waiting> Lane<T> {
    fn begin(&mut self, moment: Option<u64>) {
        self.handled.clear();
        self.handled.extend(moment);
        (self.is_busy, self.size) = (true, 1);
    }

    /// Takes some of those that wait.
    fn extract(&mut self, which: impl Fn(&T) -> bool) -> Vec<T> {
        let (out, stay): (Vec<T>, Vec<T>) =
            std::mem::take(&mut self.waiting).into_iter().partition(which);
        self.waiting = stay.into();
        out
    }

    /// Whether somebody has to begin to take what is handed back.
    fn hand_back(&mut self, items: impl IntoIterator<Item = T>) -> bool {
        for item in items {
            self.on_the_way.extend(on_the_way(&item));
            self.back.push_back(item);
        }
        !self.back.is_empty() && !std::mem::replace(&mut self.is_handing_back, true)
    }
}

/// What nothing of its moment may overtake.
fn on_the_way<T: Waiting>(item: &T) -> Option<u64> {
    item.moment().filter(|_| !item.is_gone())
}

/// What becomes of an item that comes to its lane.
#[derive(Debug, PartialEq, Eq)]
pub enum Arrival<T> {
    /// The lane is free: it is to be handled now, and ended by [`finish`](Lanes::finish).
    Starts(T),
    /// It waits for its turn, or to be handed back.
    Waits,
    /// The same, and what is to be handed back is to be [taken](Lanes::next_back): there was no room.
    Full,
}

impl<T: Waiting> Lanes<T> {
    /// Lanes in which so many wait. `merges`: those that wait go along with the next one.
    pub fn new(most: usize, merges: bool, longest_wait: Duration) -> Self {
        Lanes {
            by_key: HashMap::new(),
            most,
            merges,
            longest_wait,
            paces: HashMap::new(),
            prune_at: FEW_PACES,
        }
    }

    /// An item comes to its lane.
    pub fn arrive(&mut self, key: &Arc<str>, item: T) -> Arrival<T> {
        let moment = item.moment();
        let lane = match self.by_key.get_mut(key) {
            Some(lane) => lane,
            None => self.by_key.entry(Arc::clone(key)).or_default(),
        };
        let among = |moments: &[u64]| moment.is_some_and(|moment| moments.contains(&moment));
        if among(&lane.on_the_way) {
            lane.hand_back([item]);
            return Arrival::Waits;
        }
        if !lane.is_busy {
            lane.begin(moment);
            return Arrival::Starts(item);
        }
        // One customer may have half of all there is room for, where its order hangs on that.
        let room = if among(&lane.handled) { 2 * self.most } else { self.most };
        let mut begins = false;
        if lane.waiting.len() >= room {
            let gone = lane.extract(T::is_gone);
            begins = lane.hand_back(gone);
        }
        if lane.waiting.len() < room {
            lane.waiting.push_back(item);
            return if begins { Arrival::Full } else { Arrival::Waits };
        }
        let goes = |other: &T| moment.is_some() && other.moment() == moment;
        let mut back = lane.extract(goes);
        back.push(item);
        begins |= lane.hand_back(back);
        if begins { Arrival::Full } else { Arrival::Waits }
    }

    /// Takes a lane for something that is no item, if it is free. Ended like an item.
    pub fn reserve(&mut self, key: &Arc<str>) -> bool {
        let lane = self.by_key.entry(Arc::clone(key)).or_default();
        let is_free = !lane.is_busy;
        if is_free {
            lane.begin(None);
        }
        is_free
    }

    /// The next ones that are to be handed back, side by side, now that those before are: no two of one
    /// moment. Nobody takes them any more once there are none.
    pub fn next_back(&mut self, key: &str) -> Vec<T> {
        let Some(lane) = self.by_key.get_mut(key) else { return Vec::new() };
        let mut moments = Vec::new();
        let is_first = |item: &&T| match item.moment() {
            Some(moment) if moments.contains(&moment) => false,
            moment => {
                moments.extend(moment);
                true
            }
        };
        let count = lane.back.iter().take_while(is_first).count();
        lane.on_the_way.clear();
        lane.on_the_way.extend(lane.back.iter().filter_map(on_the_way));
        let next: Vec<T> = lane.back.drain(..count).collect();
        if next.is_empty() {
            lane.is_handing_back = false;
            if !lane.is_busy {
                self.by_key.remove(key);
            }
        }
        next
    }

    /// When one is handed back for lack of room: how long it is to wait until it comes again. Each comes
    /// when those before it are done, at the pace that the lane has shown.
    pub fn wait(&mut self, key: &Arc<str>, now: Instant) -> Duration {
        if self.paces.len() >= self.prune_at {
            self.paces.retain(|_, pace| pace.busy_until > now);
            self.prune_at = FEW_PACES.max(2 * self.paces.len());
        }
        let each = Duration::from_secs(1) / (GUESS * self.most());
        let pace = self.paces.entry(Arc::clone(key));
        let pace = pace.or_insert(Pace { each, turns: 0, busy_until: now });
        let then = pace.busy_until.max(now + SHORTEST_WAIT) + pace.each;
        pace.busy_until = then.min(now + self.longest_wait);
        pace.busy_until.duration_since(now)
    }

    fn most(&self) -> u32 {
        u32::try_from(self.most).expect("a lane holds less than the prefetch")
    }

    /// What was handled is at its end, and told of, after so long. True if somebody has to begin to take
    /// what is to be handed back, because more waits than there is room for.
    pub fn overflow(&mut self, key: &str, took: Duration) -> bool {
        let most = self.most();
        let Some(lane) = self.by_key.get_mut(key) else { return false };
        lane.handled.clear();
        if !self.paces.is_empty()
            && let Some(pace) = self.paces.get_mut(key)
        {
            let size = u32::try_from(lane.size.max(1)).unwrap_or(u32::MAX);
            // As many as wait might have gone along, had they been there.
            let is_idle = self.merges && lane.waiting.is_empty();
            let each = took / if is_idle { size.max(most) } else { size };
            pace.turns = TURNS.min(pace.turns + 1);
            pace.each = (pace.each * (pace.turns - 1) + each) / pace.turns;
        }
        if self.merges || lane.waiting.len() <= self.most {
            return false;
        }
        let waiting = std::mem::take(&mut lane.waiting);
        lane.hand_back(waiting)
    }

    /// Ends the item being handled; gives the next one of its lane, to be handled now.
    pub fn finish(&mut self, key: &str) -> Option<T> {
        let lane = self.by_key.get_mut(key)?;
        if let Some(next) = lane.waiting.pop_front() {
            lane.begin(next.moment());
            return Some(next);
        }
        lane.handled.clear();
        lane.is_busy = false;
        if !lane.is_handing_back {
            self.by_key.remove(key);
        }
        // There is room: nothing has to wait for what was handed back before.
        if !self.paces.is_empty() {
            self.paces.remove(key);
        }
        None
    }

    /// Takes those next in a lane that may go along with the item being handled: up to the first
    /// that may not.
    pub fn take_along(&mut self, key: &str, may: impl Fn(&T) -> bool) -> Vec<T> {
        let Some(lane) = self.by_key.get_mut(key) else { return Vec::new() };
        let count = lane.waiting.iter().take_while(|item| may(item)).count();
        let along: Vec<T> = lane.waiting.drain(..count).collect();
        lane.handled.extend(along.iter().filter_map(T::moment));
        lane.size += count;
        along
    }

    /// Puts items back to where they were taken from: before all that wait.
    pub fn put_back(&mut self, key: &str, items: Vec<T>) {
        if let Some(lane) = self.by_key.get_mut(key) {
            lane.size = lane.size.saturating_sub(items.len());
            for item in items.into_iter().rev() {
                lane.waiting.push_front(item);
            }
        }
    }

    /// Empties a lane behind the item being handled.
    pub fn take_waiting(&mut self, key: &str) -> VecDeque<T> {
        self.by_key.get_mut(key).map(|lane| std::mem::take(&mut lane.waiting)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use std::time::Duration;

    use super::{Arrival, Lanes, SHORTEST_WAIT, Waiting};

    /// Of a hundred, all are of one moment; from a thousand on, all are told of.
    impl Waiting for i32 {
        fn moment(&self) -> Option<u64> {
            (*self < 1000).then(|| u64::try_from(*self / 100).expect("a number of ours"))
        }

        fn is_gone(&self) -> bool {
            *self >= 9000
        }
    }

    fn back(lanes: &mut Lanes<i32>) -> Vec<i32> {
        std::iter::repeat_with(|| lanes.next_back("a"))
            .take_while(|next| !next.is_empty())
            .flatten()
            .collect()
    }

    fn lanes(most: usize, merges: bool) -> Lanes<i32> {
        Lanes::new(most, merges, Duration::from_mins(5))
    }

    #[test]
    fn a_lane_goes_in_order_of_arrival_beside_others() {
        let (a, b) = ("a".into(), "b".into());
        let mut lanes = lanes(9, false);
        assert_eq!(lanes.arrive(&a, 1), Arrival::Starts(1));
        assert_eq!(lanes.arrive(&a, 2), Arrival::Waits);
        assert_eq!(lanes.arrive(&b, 3), Arrival::Starts(3));
        assert_eq!(lanes.arrive(&a, 4), Arrival::Waits);
        assert_eq!(lanes.finish("a"), Some(2));
        assert_eq!(lanes.take_waiting("a"), [4]);
        assert_eq!(lanes.finish("a"), None);
        assert_eq!(lanes.arrive(&a, 5), Arrival::Starts(5));
    }

    #[test]
    fn a_full_lane_takes_no_more_and_others_are_not_kept_out() {
        let (a, b) = ("a".into(), "b".into());
        let mut lanes = lanes(2, false);
        for item in [100, 200, 300] {
            lanes.arrive(&a, item);
        }
        assert_eq!(lanes.arrive(&a, 400), Arrival::Full);
        assert_eq!(back(&mut lanes), [400]);
        assert_eq!(lanes.arrive(&b, 500), Arrival::Starts(500));
        assert_eq!(lanes.finish("a"), Some(200));
        assert_eq!(lanes.arrive(&a, 600), Arrival::Waits);
    }

    #[test]
    fn nothing_is_handed_back_past_an_earlier_one_of_its_moment() {
        let a = "a".into();
        let mut lanes = lanes(2, false);
        for item in [100, 200, 201] {
            lanes.arrive(&a, item);
        }
        assert_eq!(lanes.arrive(&a, 101), Arrival::Waits, "100 is being handled");
        assert_eq!(lanes.arrive(&a, 202), Arrival::Full, "and 200 and 201 with it");
        assert_eq!(lanes.next_back("a"), [200]);
        assert_eq!(lanes.arrive(&a, 203), Arrival::Waits, "behind those on their way");
        assert_eq!(back(&mut lanes), [201, 202, 203]);
        assert_eq!(lanes.arrive(&a, 1102), Arrival::Waits);
        assert_eq!(lanes.arrive(&a, 1103), Arrival::Full, "its receipt is told");
        assert_eq!(back(&mut lanes), [1103]);
        assert_eq!(lanes.take_along("a", |_| true), [101, 1102]);
        assert!(!lanes.overflow("a", Duration::ZERO));
        assert_eq!(lanes.finish("a"), None);
        assert!(lanes.by_key.is_empty());
    }

    #[test]
    fn those_that_go_along_are_the_next_ones_and_can_be_put_back() {
        let a = "a".into();
        let mut lanes = lanes(9, false);
        for item in 1..=5 {
            lanes.arrive(&a, item);
        }
        let along = lanes.take_along("a", |item| *item != 4);
        assert_eq!(along, [2, 3]);
        lanes.put_back("a", along);
        assert_eq!(lanes.take_waiting("a"), [2, 3, 4, 5]);
    }

    #[test]
    fn what_is_gone_takes_no_room() {
        let a = "a".into();
        let mut lanes = lanes(2, false);
        for item in [100, 9001, 9002] {
            lanes.arrive(&a, item);
        }
        assert_eq!(lanes.arrive(&a, 200), Arrival::Full);
        assert_eq!(back(&mut lanes), [9001, 9002]);
        assert_eq!(lanes.arrive(&a, 201), Arrival::Waits);
        assert_eq!(lanes.take_waiting("a"), [200, 201]);
        assert_eq!(lanes.finish("a"), None);
    }

    #[test]
    fn one_moment_has_half_of_all_there_is_room_for() {
        let a = "a".into();
        let mut lanes = lanes(2, true);
        for item in 100..105 {
            assert_ne!(lanes.arrive(&a, item), Arrival::Full);
        }
        assert_eq!(lanes.arrive(&a, 105), Arrival::Full);
        assert_eq!(back(&mut lanes), [101, 102, 103, 104, 105]);
        assert_eq!(lanes.finish("a"), None);
    }

    #[test]
    fn what_had_to_stay_is_handed_back_when_nothing_of_its_moment_is_handled() {
        let a = "a".into();
        for merges in [false, true] {
            let mut lanes = lanes(2, merges);
            for item in 100..105 {
                assert_ne!(lanes.arrive(&a, item), Arrival::Full);
            }
            assert_eq!(lanes.overflow("a", Duration::ZERO), !merges);
            assert_eq!(lanes.finish("a").is_some(), merges);
            if !merges {
                assert_eq!(lanes.next_back("a"), [101]);
                assert_eq!(lanes.arrive(&a, 200), Arrival::Starts(200), "its order is its own");
                assert_eq!(lanes.arrive(&a, 105), Arrival::Waits);
                assert_eq!(back(&mut lanes), [102, 103, 104, 105]);
                assert_eq!(lanes.finish("a"), None);
                assert!(lanes.by_key.is_empty());
            }
        }
    }

    #[test]
    fn what_is_handed_back_comes_again_at_the_pace_of_its_lane() {
        let (a, now) = ("a".into(), crate::clock::instant());
        let mut lanes = lanes(25, true);
        let each = Duration::from_millis(10);
        assert_eq!(lanes.wait(&a, now), SHORTEST_WAIT + each);
        assert_eq!(lanes.wait(&a, now), SHORTEST_WAIT + 2 * each);
        lanes.arrive(&a, 1);
        // 25 in two seconds, had they been there; then in one.
        lanes.overflow("a", Duration::from_secs(2));
        let mut then = SHORTEST_WAIT + 2 * each + Duration::from_millis(80);
        assert_eq!(lanes.wait(&a, now), then);
        lanes.overflow("a", Duration::from_secs(1));
        then += Duration::from_millis(60);
        assert_eq!(lanes.wait(&a, now), then);
        for _ in 0..20 {
            lanes.overflow("a", Duration::from_secs(1));
        }
        lanes.overflow("a", Duration::from_secs(9));
        let shortest = then + Duration::from_millis(80);
        let last = lanes.wait(&a, now);
        assert!(last > shortest && last < shortest + each, "{last:?}");
        lanes.overflow("a", Duration::from_hours(20));
        assert_eq!(lanes.wait(&a, now), Duration::from_mins(5), "however long it took");
        assert_eq!(lanes.finish("a"), None);
        assert_eq!(lanes.wait(&a, now), SHORTEST_WAIT + each, "there is room again");
    }

    proptest! {
        #[test]
        fn nothing_is_lost_doubled_overtaken_or_handled_twice_at_once(
            steps in proptest::collection::vec((0_u8..4, any::<bool>()), 0..300),
        ) {
            let mut lanes = lanes(300, false);
            let mut handling = [None; 4];
            let (mut arrived, mut ended) = ([0; 4], [0; 4]);
            for (lane, arrives) in steps {
                let (key, lane) = (lane.to_string().into(), usize::from(lane));
                if arrives {
                    if let Arrival::Starts(item) = lanes.arrive(&key, arrived[lane]) {
                        prop_assert!(handling[lane].replace(item).is_none());
                    }
                    arrived[lane] += 1;
                } else if let Some(item) = handling[lane] {
                    prop_assert_eq!(item, ended[lane]);
                    ended[lane] += 1;
                    handling[lane] = lanes.finish(&key);
                }
            }
            for lane in 0..4 {
                while let Some(item) = handling[lane] {
                    prop_assert_eq!(item, ended[lane]);
                    ended[lane] += 1;
                    handling[lane] = lanes.finish(&lane.to_string());
                }
            }
            prop_assert_eq!(arrived, ended);
            prop_assert!(lanes.by_key.is_empty());
        }
    }
}
