//! Lanes: one customer's events go one at a time, in order of arrival; customers go in parallel.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What goes in a lane.
pub trait Waiting {
    /// Where nothing but our memory tells when it was first received: what all have in common that go by
    /// that alone, events of one moment.
    fn moment(&self) -> Option<u64>;
}

/// What waits behind what is being handled, by key.
///
/// What is handed back has its first receipt written on it. So nothing is handed back past what was
/// received before it, and has its place from its receipt, and nowhere but here: after a crash that
/// would look like the later one.
#[derive(Debug)]
pub struct Lanes<T> {
    /// A key stands here while its lane is busy.
    busy: HashMap<Arc<str>, Lane<T>>,
    /// So many wait in one lane: one customer must not fill all there is room for.
    most: usize,
    /// What waits goes along with the next one.
    merges: bool,
    /// What is handed back comes again after so long at the latest.
    longest_wait: Duration,
    /// Of keys of which more came than their lane holds: when what is handed back is to come again.
    paces: HashMap<Arc<str>, Pace>,
}

/// How fast a lane goes, and up to when what was handed back will keep it busy.
#[derive(Debug)]
struct Pace {
    each: Duration,
    busy_until: Instant,
}

/// Before the pace of a lane is known: nothing comes again sooner.
const SHORTEST_WAIT: Duration = Duration::from_secs(1);
/// Paces of keys that are not busy any more are forgotten when there are more than so many.
const MAX_PACES: usize = 100;

#[derive(Debug)]
struct Lane<T> {
    waiting: VecDeque<T>,
    /// The moments of what is being handled.
    handled: Vec<u64>,
}

impl<T: Waiting> Lane<T> {
    fn handling(item: &T) -> Lane<T> {
        Lane { waiting: VecDeque::new(), handled: item.moment().into_iter().collect() }
    }
}

/// What becomes of an item that comes to its lane.
#[derive(Debug, PartialEq, Eq)]
pub enum Arrival<T> {
    /// The lane is free: it is to be handled now, and ended by [`finish`](Lanes::finish).
    Starts(T),
    /// It waits for its turn.
    Waits,
    /// The lane has no room for it: these are handed back, in this order. It is the last.
    Full(Vec<T>),
}

impl<T: Waiting> Lanes<T> {
    /// Lanes in which so many wait. `merges`: those that wait go along with the next one.
    pub fn new(most: usize, merges: bool, longest_wait: Duration) -> Self {
        Lanes { busy: HashMap::new(), most, merges, longest_wait, paces: HashMap::new() }
    }

    /// An item comes to its lane.
    pub fn arrive(&mut self, key: &Arc<str>, item: T) -> Arrival<T> {
        let Some(lane) = self.busy.get_mut(key) else {
            self.busy.insert(Arc::clone(key), Lane::handling(&item));
            return Arrival::Starts(item);
        };
        let moment = item.moment();
        let follows_handled = moment.is_some_and(|moment| lane.handled.contains(&moment));
        if lane.waiting.len() < self.most || follows_handled {
            lane.waiting.push_back(item);
            return Arrival::Waits;
        }
        let goes = |other: &T| moment.is_some() && other.moment() == moment;
        let (mut back, stay): (Vec<T>, Vec<T>) =
            std::mem::take(&mut lane.waiting).into_iter().partition(goes);
        lane.waiting = stay.into();
        back.push(item);
        Arrival::Full(back)
    }

    /// Takes a lane for something that is no item, if it is free. Ended like an item.
    pub fn reserve(&mut self, key: &Arc<str>) -> bool {
        let is_free = !self.busy.contains_key(key);
        if is_free {
            let lane = Lane { waiting: VecDeque::new(), handled: Vec::new() };
            self.busy.insert(Arc::clone(key), lane);
        }
        is_free
    }

    fn most(&self) -> u32 {
        u32::try_from(self.most).expect("a lane holds less than the prefetch")
    }

    /// When one is handed back for lack of room: how long it is to wait until it comes again. Each comes
    /// when those before it are done, at the pace that the lane has shown.
    pub fn wait(&mut self, key: &Arc<str>, now: Instant) -> Duration {
        if self.paces.len() >= MAX_PACES {
            self.paces.retain(|_, pace| pace.busy_until > now);
        }
        let guess = SHORTEST_WAIT / self.most();
        let pace = self.paces.entry(Arc::clone(key));
        let pace = pace.or_insert(Pace { each: guess, busy_until: now });
        let then = pace.busy_until.max(now + SHORTEST_WAIT) + pace.each;
        pace.busy_until = then.min(now + self.longest_wait);
        pace.busy_until.duration_since(now)
    }

    /// What was handled is at its end, and told of, after so long: what is to be handed back, in this
    /// order, because more waits than there is room for.
    pub fn overflow(&mut self, key: &str, took: Duration) -> VecDeque<T> {
        let most = self.most();
        let Some(lane) = self.busy.get_mut(key) else { return VecDeque::new() };
        lane.handled.clear();
        if !self.paces.is_empty()
            && let Some(pace) = self.paces.get_mut(key)
        {
            pace.each = took / if self.merges { most } else { 1 };
        }
        if self.merges || lane.waiting.len() <= self.most {
            return VecDeque::new();
        }
        std::mem::take(&mut lane.waiting)
    }

    /// Ends the item being handled; gives the next one of its lane, to be handled now.
    pub fn finish(&mut self, key: &str) -> Option<T> {
        let lane = self.busy.get_mut(key)?;
        let next = lane.waiting.pop_front();
        lane.handled.clear();
        match &next {
            Some(next) => lane.handled.extend(next.moment()),
            None => drop(self.busy.remove(key)),
        }
        next
    }

    /// Takes those next in a lane that may go along with the item being handled: up to the first
    /// that may not.
    pub fn take_along(&mut self, key: &str, may: impl Fn(&T) -> bool) -> Vec<T> {
        let Some(lane) = self.busy.get_mut(key) else { return Vec::new() };
        let count = lane.waiting.iter().take_while(|item| may(item)).count();
        let along: Vec<T> = lane.waiting.drain(..count).collect();
        lane.handled.extend(along.iter().filter_map(T::moment));
        along
    }

    /// Puts items back to where they were taken from: before all that wait.
    pub fn put_back(&mut self, key: &str, items: Vec<T>) {
        if let Some(lane) = self.busy.get_mut(key) {
            for item in items.into_iter().rev() {
                lane.waiting.push_front(item);
            }
        }
    }

    /// Empties a lane behind the item being handled.
    pub fn take_waiting(&mut self, key: &str) -> VecDeque<T> {
        self.busy.get_mut(key).map(|lane| std::mem::take(&mut lane.waiting)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use std::time::{Duration, Instant};

    use super::{Arrival, Lanes, SHORTEST_WAIT, Waiting};

    /// Of a hundred, all are of one moment; from a thousand on, all are told of.
    impl Waiting for i32 {
        fn moment(&self) -> Option<u64> {
            (*self < 1000).then(|| u64::try_from(*self / 100).expect("a number of ours"))
        }
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
        assert_eq!(lanes.arrive(&a, 400), Arrival::Full(vec![400]));
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
        assert_eq!(lanes.arrive(&a, 202), Arrival::Full(vec![200, 201, 202]));
        assert_eq!(lanes.arrive(&a, 1102), Arrival::Waits);
        assert_eq!(lanes.arrive(&a, 1103), Arrival::Full(vec![1103]), "its receipt is told");
        assert_eq!(lanes.take_along("a", |_| true), [101, 1102]);
        assert!(lanes.overflow("a", Duration::ZERO).is_empty());
        for item in [300, 301, 302] {
            lanes.arrive(&a, item);
        }
        assert!(lanes.take_waiting("a").is_empty(), "302 took the others of its moment with it");
        assert_eq!(lanes.finish("a"), None);
    }

    #[test]
    fn what_had_to_stay_is_handed_back_when_nothing_of_its_moment_is_handled() {
        let a = "a".into();
        for merges in [false, true] {
            let mut lanes = lanes(2, merges);
            for item in 100..105 {
                assert!(!matches!(lanes.arrive(&a, item), Arrival::Full(_)));
            }
            let over = lanes.overflow("a", Duration::ZERO);
            assert_eq!(over.len(), if merges { 0 } else { 4 });
            assert_eq!(lanes.finish("a").is_some(), merges);
        }
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
    fn what_is_handed_back_comes_again_at_the_pace_of_its_lane() {
        let (a, now) = ("a".into(), Instant::now());
        let mut lanes = lanes(25, true);
        let each = Duration::from_millis(40);
        assert_eq!(lanes.wait(&a, now), SHORTEST_WAIT + each);
        assert_eq!(lanes.wait(&a, now), SHORTEST_WAIT + 2 * each);
        lanes.arrive(&a, 1);
        lanes.overflow("a", Duration::from_secs(2));
        let each_now = Duration::from_millis(80);
        assert_eq!(lanes.wait(&a, now), SHORTEST_WAIT + 2 * each + each_now);
        lanes.overflow("a", Duration::from_hours(2));
        assert_eq!(lanes.wait(&a, now), Duration::from_mins(5), "however long it took");
        lanes.overflow("a", Duration::from_secs(2));
        let later = now + Duration::from_mins(6);
        assert_eq!(lanes.wait(&a, later), SHORTEST_WAIT + each_now, "they have all come");
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
            prop_assert!(lanes.busy.is_empty());
        }
    }
}
