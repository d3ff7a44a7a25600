//! Growing, jittered pauses: between immediate retries and between tries to reach the broker.
//!
//! The one file that knows the `backoff` crate. It is unmaintained but sound, small and asked for;
//! what it draws is bounded here.

use std::time::Duration;

use backoff::backoff::Backoff;
use backoff::{ExponentialBackoff, ExponentialBackoffBuilder};

/// How immediate retries are spaced.
#[derive(Clone, Copy, Debug)]
pub struct ImmediatePolicy {
    /// At most so many.
    pub retries: u32,
    /// None begins later than this after the first call began.
    pub budget: Duration,
    /// About the first pause; each further one is twice as long.
    pub first_pause: Duration,
}

/// A series of pauses.
#[derive(Debug)]
pub struct Pauses {
    backoff: ExponentialBackoff,
    left: u32,
}

impl Pauses {
    /// Between immediate retries of one call. The budget begins now.
    pub fn immediate(policy: ImmediatePolicy) -> Pauses {
        let backoff = ExponentialBackoffBuilder::new()
            .with_initial_interval(policy.first_pause)
            .with_multiplier(2.0)
            .with_randomization_factor(0.5)
            .with_max_interval(policy.budget)
            .with_max_elapsed_time(Some(policy.budget))
            .build();
        Pauses { backoff, left: policy.retries }
    }

    /// Between tries of something that must work in the end: no limit but the longest pause.
    pub fn endless(longest: Duration) -> Pauses {
        let backoff = ExponentialBackoffBuilder::new()
            .with_initial_interval(Duration::from_millis(100).min(longest))
            .with_multiplier(2.0)
            .with_randomization_factor(0.5)
            .with_max_interval(longest)
            .with_max_elapsed_time(None)
            .build();
        Pauses { backoff, left: u32::MAX }
    }

    /// The next pause; `None` once number or budget are used up.
    pub fn next_pause(&mut self) -> Option<Duration> {
        self.left = self.left.checked_sub(1)?;
        self.backoff.next_backoff()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn immediate_retries_end_with_their_number_or_budget() {
        let second = Duration::from_secs(1);
        let policy = ImmediatePolicy { retries: 2, budget: second, first_pause: second / 10 };
        let mut pauses = Pauses::immediate(policy);
        for longest in [150, 300] {
            assert!(pauses.next_pause().expect("a pause") <= Duration::from_millis(longest));
        }
        assert_eq!(pauses.next_pause(), None, "two retries are used up");
        let spent = ImmediatePolicy { budget: second / 1000, ..policy };
        let mut pauses = Pauses::immediate(spent);
        std::thread::sleep(second / 100);
        assert_eq!(pauses.next_pause(), None, "the budget is used up");
    }

    #[test]
    fn endless_pauses_stay_below_their_longest() {
        let longest = Duration::from_secs(1);
        let mut pauses = Pauses::endless(longest);
        for _ in 0..100 {
            assert!(pauses.next_pause().expect("endless") <= longest * 3 / 2);
        }
    }
}
