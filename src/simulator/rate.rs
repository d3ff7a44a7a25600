//! A limit of so many calls a second, as a bucket of tokens: a call takes one, time brings new ones.

use tokio::time::Instant;

/// How many calls pass.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    per_second: f64,
    /// Calls that pass at once after a rest.
    burst: u32,
}

/// What is left of a rate.
#[derive(Debug)]
pub(crate) struct Bucket {
    rate: Rate,
    tokens: f64,
    filled: Option<Instant>,
}

impl Rate {
    /// A rate that lets calls pass; the error says what to mend.
    pub(crate) fn try_new(per_second: f64, burst: u32) -> Result<Self, String> {
        if !per_second.is_finite() || per_second <= 0.0 {
            return Err("`per_second` is a number above 0".to_owned());
        }
        if burst == 0 {
            return Err("`burst` is at least 1".to_owned());
        }
        Ok(Self { per_second, burst })
    }

    /// A full bucket.
    pub(crate) fn bucket(self) -> Bucket {
        Bucket { rate: self, tokens: f64::from(self.burst), filled: None }
    }
}

impl Bucket {
    /// Whether a call at `now` passes.
    pub(crate) fn passes(&mut self, now: Instant) -> bool {
        let rest = now.saturating_duration_since(self.filled.unwrap_or(now)).as_secs_f64();
        let tokens = self.tokens + rest * self.rate.per_second;
        self.tokens = tokens.min(f64::from(self.rate.burst));
        self.filled = Some(now);
        let passes = self.tokens >= 1.0;
        if passes {
            self.tokens -= 1.0;
        }
        passes
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock;

    fn passed(bucket: &mut Bucket, at: Instant, calls: usize) -> usize {
        (0..calls).filter(|_| bucket.passes(at)).count()
    }

    #[test]
    fn a_burst_passes_at_once_and_then_so_many_a_second() {
        let mut bucket = Rate::try_new(4.0, 10).expect("valid").bucket();
        let start = clock::now();
        assert_eq!(passed(&mut bucket, start, 20), 10);
        assert_eq!(passed(&mut bucket, start + Duration::from_millis(200), 20), 0);
        assert_eq!(passed(&mut bucket, start + Duration::from_millis(250), 20), 1);
        assert_eq!(passed(&mut bucket, start + Duration::from_millis(1250), 20), 4);
    }

    #[test]
    fn a_long_rest_brings_no_more_than_a_burst() {
        let mut bucket = Rate::try_new(50.0, 5).expect("valid").bucket();
        let start = clock::now();
        assert_eq!(passed(&mut bucket, start, 5), 5);
        assert_eq!(passed(&mut bucket, start + Duration::from_mins(1), 20), 5);
    }

    #[test]
    fn a_rate_that_lets_nothing_pass_is_refused() {
        assert!(Rate::try_new(0.0, 1).is_err() && Rate::try_new(f64::NAN, 1).is_err());
        assert!(Rate::try_new(1.0, 0).is_err());
    }
}
