//! How many deliveries a session asks for. What ended the last session, or the process, may have been
//! one of those in hand, and each of them counts as delivered once more: at the delivery limit the
//! broker makes dead letters of them. So a session begins with one. If that has come back again and
//! again, the session takes more only as what it took comes to its end, or as it lives on. Not sooner: the
//! broker puts what comes back behind all that came back before, so one that is taken alone loses its
//! place.

/// Each time as many as were asked for have ended, so many times as many follow.
const GROWTH: u16 = 4;
/// A message that has come back so often shows that sessions, or relays, end again and again.
const RETURNS_OF_A_LOOP: u32 = 3;

/// What a session asks for at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appetite {
    limit: u16,
    most: u16,
    /// It grows when so many deliveries of the session have ended.
    goal: Option<usize>,
}

impl Appetite {
    /// Of a session that begins, and asks for `most` at last.
    pub fn new(most: u16) -> Appetite {
        Appetite { limit: 1, most, goal: None }
    }

    /// How many deliveries it asks for now.
    pub fn limit(&self) -> u16 {
        self.limit.min(self.most)
    }

    /// The first delivery has come, after so many returns. True if more are to be asked for now.
    pub fn begin(&mut self, returns: u32) -> bool {
        let is_first = self.goal.is_none() && self.limit < self.most;
        let is_loop = returns >= RETURNS_OF_A_LOOP;
        if is_first && is_loop {
            self.goal = Some(1);
        } else if is_first {
            self.limit = self.most;
        }
        is_first && !is_loop
    }

    /// When it grows: as soon as so many deliveries of the session have ended.
    pub fn goal(&self) -> Option<usize> {
        self.goal.filter(|_| self.limit < self.most)
    }

    /// The goal is reached, or the session has lived on without that: so many have ended.
    pub fn grow(&mut self, ended: usize) {
        self.limit = self.limit.saturating_mul(GROWTH).min(self.most);
        self.goal = Some(ended + usize::from(self.limit));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_that_begins_with_something_harmless_takes_all_at_once() {
        let mut appetite = Appetite::new(100);
        assert_eq!((appetite.limit(), appetite.goal()), (1, None));
        assert!(appetite.begin(RETURNS_OF_A_LOOP - 1));
        assert_eq!((appetite.limit(), appetite.goal()), (100, None));
        assert!(!appetite.begin(0) && !appetite.begin(RETURNS_OF_A_LOOP));
        assert_eq!(appetite.limit(), 100);
    }

    #[test]
    fn one_that_begins_with_a_frequent_return_takes_more_as_they_end() {
        let (mut appetite, mut ended, mut limits) = (Appetite::new(100), 0, Vec::new());
        assert!(!appetite.begin(RETURNS_OF_A_LOOP));
        while let Some(goal) = appetite.goal() {
            assert!(!appetite.begin(0), "only the first one tells");
            (limits, ended) = ([limits, vec![appetite.limit()]].concat(), goal);
            appetite.grow(ended);
        }
        assert_eq!((limits, appetite.limit(), ended), (vec![1, 4, 16, 64], 100, 85));
    }

    #[test]
    fn one_at_a_time_stays_one_at_a_time() {
        let mut appetite = Appetite::new(1);
        assert!(!appetite.begin(9) && !appetite.begin(0));
        assert_eq!((appetite.limit(), appetite.goal()), (1, None));
    }
}
