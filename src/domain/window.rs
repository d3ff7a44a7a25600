//! How many calls may be under way at once: it ramps up after an outage (1, 2, 4, …), is halved
//! when the portal throttles, and grows again by one a round trip.

use std::time::Instant;

/// The limit of calls under way, between 1 and the configured maximum.
#[derive(Debug)]
pub struct Window {
    limit: usize,
    max: usize,
    growth: Growth,
    /// When it was last halved, and what it was before.
    halved_at: Option<Instant>,
    before: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Growth {
    /// By one with each call that goes well: doubles each round trip.
    Ramp,
    /// By one for as many calls as the limit: one each round trip.
    Additive { successes: usize },
}

impl Window {
    pub(super) fn new(max: usize) -> Window {
        let max = max.max(1);
        Window { limit: max, max, growth: Growth::Ramp, halved_at: None, before: max }
    }

    /// Calls that may be under way now.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Begins a ramp: one call.
    pub(super) fn restart(&mut self) {
        (self.limit, self.growth) = (1, Growth::Ramp);
    }

    /// A call went well. Tells the new limit at each step of the ramp (a power of two, or all).
    pub(super) fn grow(&mut self) -> Option<usize> {
        if self.limit == self.max {
            return None;
        }
        match &mut self.growth {
            Growth::Ramp => {
                self.limit += 1;
                let is_step = self.limit.is_power_of_two() || self.limit == self.max;
                return is_step.then_some(self.limit);
            }
            Growth::Additive { successes } => {
                *successes += 1;
                if *successes >= self.limit {
                    *successes = 0;
                    self.limit += 1;
                }
            }
        }
        None
    }

    /// The last halving was for nothing.
    pub(super) fn restore(&mut self) {
        self.limit = self.limit.max(self.before);
    }

    /// A call that began at `started` was one too many. Calls begun before the last halving say
    /// nothing new.
    pub(super) fn halve(&mut self, started: Instant, now: Instant) {
        if self.halved_at.is_some_and(|halved| started <= halved) {
            return;
        }
        self.before = self.limit;
        self.limit = (self.limit / 2).max(1);
        self.growth = Growth::Additive { successes: 0 };
        self.halved_at = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock;

    #[test]
    fn a_ramp_doubles_each_round_and_tells_its_steps() {
        let mut window = Window::new(10);
        window.restart();
        let mut steps = Vec::new();
        while window.limit() < 10 {
            steps.extend((0..window.limit()).filter_map(|_| window.grow()));
        }
        assert_eq!(steps, [2, 4, 8, 10]);
        assert_eq!(window.grow(), None);
    }

    #[test]
    fn it_is_halved_once_for_calls_that_were_under_way_together_and_grows_by_one_a_round() {
        let mut window = Window::new(32);
        let start = clock::instant();
        let second = Duration::from_secs(1);
        window.halve(start, start + second);
        window.halve(start + second / 2, start + second);
        assert_eq!(window.limit(), 16);
        for _ in 0..16 {
            window.grow();
        }
        assert_eq!(window.limit(), 17);
        for n in 2..9 {
            window.halve(start + second * n, start + second * n);
        }
        assert_eq!(window.limit(), 1);
    }
}
