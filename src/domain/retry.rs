//! The timetable of delayed retries: tiers of fixed delays, an exponential ceiling, a random tier
//! below it, and the number of attempts.

use std::time::Duration;

use jiff::Timestamp;

use super::response::Judgement;

/// One fixed delay, kept by one broker queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tier(u32);

impl Tier {
    /// How long a message stays in it.
    pub fn delay(self) -> Duration {
        Duration::from_millis(self.0.into())
    }

    /// The delay in milliseconds, as the queue's name and TTL have it.
    pub fn millis(self) -> u32 {
        self.0
    }
}

/// A retry setting that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {problem}")]
pub struct InvalidRetry {
    /// The setting's key.
    pub key: &'static str,
    /// What is wrong and what is allowed.
    pub problem: String,
}

fn invalid<T>(key: &'static str, problem: impl Into<String>) -> Result<T, InvalidRetry> {
    Err(InvalidRetry { key, problem: problem.into() })
}

/// The tiers there are: two an octave, ascending, never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tiers(Vec<Tier>);

impl Tiers {
    /// The tiers from `shortest` (50 ms or more) that do not exceed `longest` (7 days or less).
    pub fn try_new(shortest: Duration, longest: Duration) -> Result<Tiers, InvalidRetry> {
        const WEEK: Duration = Duration::from_hours(7 * 24);
        if shortest < Duration::from_millis(50) {
            return invalid("retry.shortest_delay", "must be at least 50ms");
        }
        if longest < shortest || longest > WEEK {
            return invalid("retry.max_delay", "must lie between retry.shortest_delay and 7 days");
        }
        let octaves = std::iter::successors(Some(shortest), |octave| Some(*octave * 2));
        let delays = octaves.flat_map(|octave| [octave, octave * 3 / 2]);
        let tiers = delays
            .take_while(|delay| *delay <= longest)
            .map(|delay| Tier(u32::try_from(delay.as_millis()).expect("a week fits")));
        Ok(Tiers(tiers.collect()))
    }

    /// All tiers, ascending.
    pub fn iter(&self) -> impl Iterator<Item = Tier> {
        self.0.iter().copied()
    }

    /// The first tier: where a message goes that is only handed back.
    pub fn shortest(&self) -> Tier {
        self.0[0]
    }

    /// The last tier.
    pub fn longest(&self) -> Tier {
        self.0[self.0.len() - 1]
    }

    /// The shortest tier that is no shorter than `delay`, or the longest there is.
    pub fn at_least(&self, delay: Duration) -> Tier {
        self.iter().find(|tier| tier.delay() >= delay).unwrap_or(self.longest())
    }

    /// One of the tiers within half of `ceiling` and `ceiling`, drawn by `dice` in [0, 1).
    pub fn draw(&self, ceiling: Duration, dice: f64) -> Tier {
        let candidates: Vec<Tier> = self.drawn_from(ceiling).collect();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_precision_loss,
            clippy::cast_sign_loss,
            reason = "a handful of tiers; the index is clamped below"
        )]
        let index = (dice.clamp(0.0, 1.0) * candidates.len() as f64) as usize;
        match candidates.len() {
            0 => self.at_least(ceiling / 2),
            count => candidates[index.min(count - 1)],
        }
    }

    fn drawn_from(&self, ceiling: Duration) -> impl Iterator<Item = Tier> {
        let half = ceiling / 2;
        self.iter().filter(move |tier| (half..=ceiling).contains(&tier.delay()))
    }
}

/// How often and how late a fault is tried again.
#[derive(Clone, Debug)]
pub struct RetryPolicy {
    /// The delays there are.
    pub tiers: Tiers,
    /// Attempts in all before an event is given up.
    pub max_attempts: u32,
    /// The ceiling of the first delay.
    pub first_delay: Duration,
    /// What each ceiling is multiplied by for the next.
    pub multiplier: f64,
    /// The ceiling of waits that count no attempt.
    pub max_uncounted_delay: Duration,
    /// The longest `Retry-After` that is believed.
    pub max_retry_after: Duration,
    /// Attempts in a row for answers that the portal's page does not describe.
    pub contract_violation_attempts: u32,
    /// Further tries for a plain rejection.
    pub rejected_retries: u32,
    /// Further tries for a rejection that speaks of a duplicate e-mail.
    pub duplicate_email_retries: u32,
    /// The ceiling of the delay before each of those tries.
    pub rejected_delay: Duration,
}

impl RetryPolicy {
    /// Refuses what makes no timetable.
    pub fn try_new(self) -> Result<RetryPolicy, InvalidRetry> {
        let (shortest, longest) = (self.tiers.shortest().delay(), self.tiers.longest().delay());
        let within_tiers = |delay| (shortest..=longest).contains(&delay);
        if !within_tiers(self.first_delay) {
            let problem = "must lie between retry.shortest_delay and the longest tier";
            return invalid("retry.first_delay", problem);
        }
        if !within_tiers(self.max_uncounted_delay) {
            let problem = "must lie between retry.shortest_delay and the longest tier";
            return invalid("retry.max_uncounted_delay", problem);
        }
        if !(1.0..=10.0).contains(&self.multiplier) {
            return invalid("retry.multiplier", "must lie between 1 and 10");
        }
        if !(1..=1000).contains(&self.max_attempts) {
            return invalid("retry.max_attempts", "must lie between 1 and 1000");
        }
        if self.contract_violation_attempts == 0 {
            return invalid("retry.contract_violation_attempts", "must be at least 1");
        }
        Ok(self)
    }

    /// The longest delay after this many attempts (counted from 1).
    pub fn ceiling(&self, attempts: u32) -> Duration {
        let longest = self.tiers.longest().delay();
        let exponent = i32::try_from(attempts.saturating_sub(1)).unwrap_or(i32::MAX);
        let seconds = self.first_delay.as_secs_f64() * self.multiplier.powi(exponent);
        Duration::try_from_secs_f64(seconds).unwrap_or(longest).min(longest)
    }

    /// The tier after an attempt that failed: jittered, and never shorter than what was asked for.
    pub(super) fn counted_tier(&self, attempts: u32, asked: Option<Duration>, dice: f64) -> Tier {
        self.tier_below(self.ceiling(attempts), asked, dice)
    }

    /// The tier of a wait that counts no attempt: it grows with the time already waited.
    pub(super) fn uncounted_tier(
        &self,
        waited: Duration,
        asked: Option<Duration>,
        dice: f64,
    ) -> Tier {
        let ceiling = waited.max(self.first_delay).min(self.max_uncounted_delay);
        self.tier_below(ceiling, asked, dice)
    }

    /// The tier before one of the few tries that a rejection may get.
    pub(super) fn rejected_tier(&self, asked: Option<Duration>, dice: f64) -> Tier {
        self.tier_below(self.rejected_delay, asked, dice)
    }

    fn tier_below(&self, ceiling: Duration, asked: Option<Duration>, dice: f64) -> Tier {
        let drawn = self.tiers.draw(ceiling, dice);
        let asked = asked.map(|asked| self.tiers.at_least(asked));
        asked.map_or(drawn, |asked| asked.max(drawn))
    }

    /// An answer with its `Retry-After` as far as it is believed.
    #[must_use]
    pub fn believe(&self, judgement: Judgement) -> Judgement {
        let retry_after = judgement.retry_after.map(|asked| asked.min(self.max_retry_after));
        Judgement { retry_after, ..judgement }
    }

    /// For each attempt the earliest and latest time since the first, waits not counted.
    pub fn timetable(&self) -> Vec<Slot> {
        let first = Slot { attempt: 1, earliest: Duration::ZERO, latest: Duration::ZERO };
        let next = |slot: &Slot| {
            let ceiling = self.ceiling(slot.attempt);
            let (shortest, longest) =
                (self.tiers.draw(ceiling, 0.0), self.tiers.draw(ceiling, 1.0));
            Some(Slot {
                attempt: slot.attempt + 1,
                earliest: slot.earliest + shortest.delay(),
                latest: slot.latest + longest.delay(),
            })
        };
        let slots = std::iter::successors(Some(first), next);
        slots.take(self.max_attempts as usize).collect()
    }
}

/// When an attempt falls due, counted from the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Number of the attempt, from 1.
    pub attempt: u32,
    /// If each draw took the shortest tier it could.
    pub earliest: Duration,
    /// If each draw took the longest.
    pub latest: Duration,
}

/// The end of a delay, or the latest time there is.
pub fn after(now: Timestamp, delay: Duration) -> Timestamp {
    now.checked_add(delay).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(in crate::domain) fn default_policy() -> RetryPolicy {
        let seconds = Duration::from_secs;
        RetryPolicy {
            tiers: Tiers::try_new(seconds(1), seconds(12_288)).expect("tiers"),
            max_attempts: 21,
            first_delay: seconds(4),
            multiplier: 2.0,
            max_uncounted_delay: seconds(256),
            max_retry_after: seconds(86_400),
            contract_violation_attempts: 3,
            rejected_retries: 0,
            duplicate_email_retries: 2,
            rejected_delay: seconds(20),
        }
        .try_new()
        .expect("a policy")
    }

    #[test]
    fn tiers_are_two_an_octave() {
        let tiers = default_policy().tiers;
        let millis: Vec<u32> = tiers.iter().map(Tier::millis).collect();
        assert_eq!(millis[..6], [1000, 1500, 2000, 3000, 4000, 6000]);
        assert_eq!((millis.len(), millis[27]), (28, 12_288_000));
        assert_eq!(tiers.at_least(Duration::from_millis(4001)).millis(), 6000);
        assert_eq!(tiers.at_least(Duration::from_hours(24)), tiers.longest());
    }

    #[test]
    fn the_default_timetable_adds_up_to_about_a_day() {
        let slots = default_policy().timetable();
        let last = slots[slots.len() - 1];
        let mean = (last.earliest + last.latest) / 2;
        assert_eq!(last.attempt, 21);
        assert!((20..=28).contains(&(mean.as_secs() / 3600)), "{mean:?}");
        assert_eq!(slots[1].earliest, Duration::from_secs(2), "half of the first ceiling");
        assert_eq!(slots[1].latest, Duration::from_secs(4));
    }

    #[test]
    fn nonsense_is_refused_by_key() {
        let seconds = Duration::from_secs;
        let key = |policy: RetryPolicy| policy.try_new().expect_err("refused").key;
        let policy = default_policy;
        assert_eq!(key(RetryPolicy { multiplier: 0.5, ..policy() }), "retry.multiplier");
        assert_eq!(key(RetryPolicy { multiplier: f64::NAN, ..policy() }), "retry.multiplier");
        assert_eq!(key(RetryPolicy { max_attempts: 0, ..policy() }), "retry.max_attempts");
        let too_long = RetryPolicy { first_delay: seconds(100_000), ..policy() };
        assert_eq!(key(too_long), "retry.first_delay");
        assert!(Tiers::try_new(seconds(0), seconds(1)).is_err());
        assert!(Tiers::try_new(seconds(2), seconds(1)).is_err());
    }

    proptest! {
        #[test]
        fn a_delay_lies_between_half_and_the_whole_of_its_ceiling(
            attempts in 1_u32..2000, dice in 0.0..1.0_f64,
        ) {
            let policy = default_policy();
            let ceiling = policy.ceiling(attempts);
            let delay = policy.counted_tier(attempts, None, dice).delay();
            prop_assert!(delay >= ceiling / 2 && delay <= ceiling);
            prop_assert!(ceiling <= policy.tiers.longest().delay());
        }

        #[test]
        fn a_delay_is_never_shorter_than_asked_for_up_to_the_longest_tier(
            attempts in 1_u32..40, asked in 0_u64..100_000, dice in 0.0..1.0_f64,
        ) {
            let policy = default_policy();
            let asked = Duration::from_secs(asked);
            let delay = policy.counted_tier(attempts, Some(asked), dice).delay();
            prop_assert!(delay >= asked.min(policy.tiers.longest().delay()));
        }

        #[test]
        fn any_schedule_that_is_accepted_makes_a_timetable(
            shortest in 50_u64..5_000, longest in 50_u64..100_000_000, first in 50_u64..100_000,
            multiplier in 1.0..10.0_f64,
        ) {
            let millis = Duration::from_millis;
            if let Ok(tiers) = Tiers::try_new(millis(shortest), millis(longest)) {
                let first_delay = millis(first);
                let policy =
                    RetryPolicy { tiers, first_delay, multiplier, ..default_policy() }.try_new();
                if let Ok(policy) = policy {
                    prop_assert_eq!(policy.timetable().len(), 21);
                }
            }
        }
    }
}
