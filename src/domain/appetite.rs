//! How many deliveries a session asks for. What ended the last session, or the process, may have been
//! one of those in hand, and each of them counts as delivered once more: at the delivery limit the
//! broker makes dead letters of them. So a session begins with one. If that is no redelivery, all is
//! well; otherwise the session takes more only as what it took comes to its end, or as it lives on.

/// Each time as many as were asked for have ended, so many times as many follow.
const GROWTH: u16 = 4;

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

    /// The first delivery has come. True if more are to be asked for now.
    pub fn begin(&mut self, is_redelivery: bool) -> bool {
        let is_first = self.goal.is_none() && self.limit < self.most;
        if is_first && is_redelivery {
            self.goal = Some(1);
        } else if is_first {
            self.limit = self.most;
        }
        is_first && !is_redelivery
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
    fn a_session_that_begins_with_something_new_takes_all_at_once() {
        let mut appetite = Appetite::new(100);
        assert_eq!((appetite.limit(), appetite.goal()), (1, None));
        assert!(appetite.begin(false));
        assert_eq!((appetite.limit(), appetite.goal()), (100, None));
        assert!(!appetite.begin(false) && !appetite.begin(true));
        assert_eq!(appetite.limit(), 100);
    }

    #[test]
    fn one_that_begins_with_a_redelivery_takes_more_as_they_end() {
        let (mut appetite, mut ended, mut limits) = (Appetite::new(100), 0, Vec::new());
        assert!(!appetite.begin(true));
        while let Some(goal) = appetite.goal() {
            assert!(!appetite.begin(false), "only the first one tells");
            (limits, ended) = ([limits, vec![appetite.limit()]].concat(), goal);
            appetite.grow(ended);
        }
        assert_eq!((limits, appetite.limit(), ended), (vec![1, 4, 16, 64], 100, 85));
    }

    #[test]
    fn one_at_a_time_stays_one_at_a_time() {
        let mut appetite = Appetite::new(1);
        assert!(!appetite.begin(true) && !appetite.begin(false));
        assert_eq!((appetite.limit(), appetite.goal()), (1, None));
    }
}
