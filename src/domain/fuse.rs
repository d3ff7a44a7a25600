//! The fuse: one of our own rules that refuses most customers is a wrong rule, or a CRM release
//! gone wrong, and somebody should know before the dead-letter queue tells.

use std::collections::hash_map::DefaultHasher;
use std::collections::{HashMap, VecDeque};
use std::hash::{Hash, Hasher};
use std::time::{Duration, Instant};

use super::field::Field;

/// What refused an event: field and rule.
pub type Refusal = (Option<Field>, Option<&'static str>);

const SPAN: Duration = Duration::from_mins(5);
const MIN_CUSTOMERS: usize = 100;
/// The latest so many customers stand for all.
const MAX_CUSTOMERS: usize = 1000;

/// The latest word on each of the latest customers.
#[derive(Debug, Default)]
pub struct Fuse {
    latest: HashMap<u64, (Instant, Option<Refusal>)>,
    arrivals: VecDeque<(u64, Instant)>,
    refused: HashMap<Refusal, usize>,
    blown: Option<Refusal>,
}

/// A rule refuses more than half of the latest customers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blown {
    /// Which.
    pub refusal: Refusal,
    /// How many customers it refused.
    pub refused: usize,
    /// Of how many.
    pub customers: usize,
}

impl Fuse {
    /// Notes what our rules said to a customer's event. Tells once when the fuse blows; it can blow
    /// again after the rule's share has fallen below half.
    pub fn note(
        &mut self,
        customer: &str,
        refusal: Option<Refusal>,
        now: Instant,
    ) -> Option<Blown> {
        let mut hasher = DefaultHasher::new();
        customer.hash(&mut hasher);
        let key = hasher.finish();
        let before = self.latest.insert(key, (now, refusal));
        match before {
            Some((_, before)) => self.uncount(before),
            None => self.arrivals.push_back((key, now)),
        }
        if let Some(refusal) = refusal {
            *self.refused.entry(refusal).or_default() += 1;
        }
        self.forget(now);
        self.judge(refusal?)
    }

    fn judge(&mut self, refusal: Refusal) -> Option<Blown> {
        let customers = self.latest.len();
        let is_most = |refusal| {
            let refused = self.refused.get(&refusal).copied().unwrap_or(0);
            (customers >= MIN_CUSTOMERS && refused * 2 > customers).then_some(refused)
        };
        if let Some(blown) = self.blown
            && is_most(blown).is_none()
        {
            self.blown = None;
        }
        let refused = is_most(refusal).filter(|_| self.blown != Some(refusal))?;
        self.blown = Some(refusal);
        Some(Blown { refusal, refused, customers })
    }

    /// Whether a rule refuses most customers now.
    pub fn is_blown(&self) -> bool {
        let refused = |blown| self.refused.get(&blown).copied().unwrap_or(0);
        self.blown.is_some_and(|blown| refused(blown) * 2 > self.latest.len())
    }

    /// Forgets the eldest, those not heard of within the span, and what is too many.
    fn forget(&mut self, now: Instant) {
        while let Some((key, at)) = self.arrivals.front().copied() {
            let is_old = now.duration_since(at) > SPAN;
            if !is_old && self.arrivals.len() <= MAX_CUSTOMERS {
                return;
            }
            self.arrivals.pop_front();
            match self.latest.get(&key).copied() {
                Some((heard, _)) if heard > at && now.duration_since(heard) <= SPAN && is_old => {
                    self.arrivals.push_back((key, heard));
                }
                Some((_, refusal)) => {
                    self.latest.remove(&key);
                    self.uncount(refusal);
                }
                None => {}
            }
        }
    }

    fn uncount(&mut self, refusal: Option<Refusal>) {
        if let Some(refusal) = refusal
            && let Some(count) = self.refused.get_mut(&refusal)
        {
            *count -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    const RULE: Refusal = (Some(Field::City), Some("letters"));

    #[test]
    fn it_blows_once_when_a_rule_refuses_more_than_half_of_a_hundred_customers() {
        let (mut fuse, now) = (Fuse::default(), clock::instant());
        let blown: Vec<(usize, Blown)> = (0..300)
            .filter_map(|n| {
                let refusal = (n % 3 != 0).then_some(RULE);
                fuse.note(&format!("C{n}"), refusal, now).map(|blown| (n, blown))
            })
            .collect();
        let [(n, blown)] = blown[..] else { panic!("{blown:?}") };
        assert_eq!((n, blown.customers, blown.refusal), (100, 101, RULE));
    }

    #[test]
    fn one_customer_or_few_or_old_ones_do_not_blow_it() {
        let (mut fuse, now) = (Fuse::default(), clock::instant());
        for _ in 0..1000 {
            assert_eq!(fuse.note("C1", Some(RULE), now), None);
        }
        for n in 0..98 {
            assert_eq!(fuse.note(&format!("C{n}"), Some(RULE), now), None);
        }
        let later = now + SPAN * 2;
        for n in 0..99 {
            assert_eq!(fuse.note(&format!("D{n}"), Some(RULE), later), None);
        }
        assert_eq!(fuse.latest.len(), 99);
        assert_eq!(fuse.refused[&RULE], 99);
    }

    #[test]
    fn it_is_bounded_and_its_counts_stay_true() {
        let (mut fuse, start) = (Fuse::default(), clock::instant());
        for n in 0..20_000_u32 {
            let refusal = n.is_multiple_of(7).then_some(RULE);
            let now = start + Duration::from_millis(200) * n;
            fuse.note(&format!("C{}", n * 31 % 1777), refusal, now);
            assert!(fuse.latest.len() <= MAX_CUSTOMERS);
            assert_eq!(fuse.latest.len(), fuse.arrivals.len());
        }
        let counted = fuse.latest.values().filter(|(_, refusal)| refusal.is_some()).count();
        assert_eq!(fuse.refused[&RULE], counted);
    }
}
