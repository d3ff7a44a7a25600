//! Lanes: one customer's events go one at a time, in order of arrival; customers go in parallel.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// What waits behind what is being handled, by key.
#[derive(Debug)]
pub struct Lanes<T> {
    /// A key stands here while its lane is busy.
    busy: HashMap<Arc<str>, VecDeque<T>>,
}

impl<T> Default for Lanes<T> {
    fn default() -> Self {
        Lanes { busy: HashMap::new() }
    }
}

impl<T> Lanes<T> {
    /// Gives the item back to be handled at once if its lane is free; else it waits. Each item
    /// that is handled must be ended by [`finish`](Self::finish).
    pub fn arrive(&mut self, key: &Arc<str>, item: T) -> Option<T> {
        if let Some(waiting) = self.busy.get_mut(key) {
            waiting.push_back(item);
            return None;
        }
        self.busy.insert(Arc::clone(key), VecDeque::new());
        Some(item)
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

    /// Empties a lane behind the item being handled.
    pub fn take_waiting(&mut self, key: &str) -> VecDeque<T> {
        self.busy.get_mut(key).map(std::mem::take).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Lanes;

    #[test]
    fn a_lane_goes_in_order_of_arrival_beside_others() {
        let (a, b) = ("a".into(), "b".into());
        let mut lanes = Lanes::default();
        assert_eq!(lanes.arrive(&a, 1), Some(1));
        assert_eq!(lanes.arrive(&a, 2), None);
        assert_eq!(lanes.arrive(&b, 3), Some(3));
        assert_eq!(lanes.arrive(&a, 4), None);
        assert_eq!(lanes.finish("a"), Some(2));
        assert_eq!(lanes.take_waiting("a"), [4]);
        assert_eq!(lanes.finish("a"), None);
        assert_eq!(lanes.arrive(&a, 5), Some(5));
    }

    proptest! {
        #[test]
        fn nothing_is_lost_doubled_overtaken_or_handled_twice_at_once(
            steps in proptest::collection::vec((0_u8..4, any::<bool>()), 0..300),
        ) {
            let mut lanes = Lanes::default();
            let mut handling = [None; 4];
            let (mut arrived, mut ended) = ([0; 4], [0; 4]);
            for (lane, arrives) in steps {
                let (key, lane) = (lane.to_string().into(), usize::from(lane));
                if arrives {
                    if let Some(item) = lanes.arrive(&key, arrived[lane]) {
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
