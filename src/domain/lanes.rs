//! Lanes: one customer's events go one at a time, in order of arrival; customers go in parallel.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// What waits behind what is being handled, by key.
#[derive(Debug)]
pub struct Lanes<T> {
    /// A key stands here while its lane is busy.
    busy: HashMap<Arc<str>, VecDeque<T>>,
    /// So many wait in one lane, at most: one customer must not fill all there is room for.
    most: usize,
}

/// What becomes of an item that comes to its lane.
#[derive(Debug, PartialEq, Eq)]
pub enum Arrival<T> {
    /// The lane is free: it is to be handled now, and ended by [`finish`](Lanes::finish).
    Starts(T),
    /// It waits for its turn.
    Waits,
    /// The lane has no room for it.
    Full(T),
}

impl<T> Lanes<T> {
    /// Lanes in which so many wait at most.
    pub fn new(most: usize) -> Self {
        Lanes { busy: HashMap::new(), most }
    }

    /// An item comes to its lane.
    pub fn arrive(&mut self, key: &Arc<str>, item: T) -> Arrival<T> {
        match self.busy.get_mut(key) {
            Some(waiting) if waiting.len() >= self.most => Arrival::Full(item),
            Some(waiting) => {
                waiting.push_back(item);
                Arrival::Waits
            }
            None => {
                self.busy.insert(Arc::clone(key), VecDeque::new());
                Arrival::Starts(item)
            }
        }
    }

    /// Takes a lane for something that is no item, if it is free. Ended like an item.
    pub fn reserve(&mut self, key: &Arc<str>) -> bool {
        let is_free = !self.busy.contains_key(key);
        if is_free {
            self.busy.insert(Arc::clone(key), VecDeque::new());
        }
        is_free
    }

    /// Ends the item being handled; gives the next one of its lane, to be handled now.
    pub fn finish(&mut self, key: &str) -> Option<T> {
        let next = self.busy.get_mut(key)?.pop_front();
        if next.is_none() {
            self.busy.remove(key);
        }
        next
    }

    /// Takes those next in a lane that may go along with the item being handled: up to the first
    /// that may not.
    pub fn take_along(&mut self, key: &str, may: impl Fn(&T) -> bool) -> Vec<T> {
        let Some(waiting) = self.busy.get_mut(key) else { return Vec::new() };
        let along = waiting.iter().take_while(|item| may(item)).count();
        waiting.drain(..along).collect()
    }

    /// Puts items back to where they were taken from: before all that wait.
    pub fn put_back(&mut self, key: &str, items: Vec<T>) {
        if let Some(waiting) = self.busy.get_mut(key) {
            for item in items.into_iter().rev() {
                waiting.push_front(item);
            }
        }
    }

    /// Empties a lane behind the item being handled.
    pub fn take_waiting(&mut self, key: &str) -> VecDeque<T> {
        self.busy.get_mut(key).map(std::mem::take).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Arrival, Lanes};

    #[test]
    fn a_lane_goes_in_order_of_arrival_beside_others() {
        let (a, b) = ("a".into(), "b".into());
        let mut lanes = Lanes::new(9);
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
        let mut lanes = Lanes::new(2);
        for item in 1..=3 {
            lanes.arrive(&a, item);
        }
        assert_eq!(lanes.arrive(&a, 4), Arrival::Full(4));
        assert_eq!(lanes.arrive(&b, 5), Arrival::Starts(5));
        assert_eq!(lanes.finish("a"), Some(2));
        assert_eq!(lanes.arrive(&a, 6), Arrival::Waits);
    }

    #[test]
    fn those_that_go_along_are_the_next_ones_and_can_be_put_back() {
        let a = "a".into();
        let mut lanes = Lanes::new(9);
        for item in 1..=5 {
            lanes.arrive(&a, item);
        }
        let along = lanes.take_along("a", |item| *item != 4);
        assert_eq!(along, [2, 3]);
        lanes.put_back("a", along);
        assert_eq!(lanes.take_waiting("a"), [2, 3, 4, 5]);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_doubled_overtaken_or_handled_twice_at_once(
            steps in proptest::collection::vec((0_u8..4, any::<bool>()), 0..300),
        ) {
            let mut lanes = Lanes::new(300);
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
