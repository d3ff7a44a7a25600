//! What tells a ledger from others, and from older copies of itself. The broker keeps one too: a
//! ledger that is held against it and is behind was put in the place of the right one.

use jiff::Timestamp;

/// A ledger at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LedgerMark {
    /// Which ledger.
    pub id: String,
    /// Grows each minute that a relay works on it. `None` at a broker where only relays of 0.1 were.
    pub number: Option<u64>,
    /// When it last grew.
    pub at: Option<Timestamp>,
    /// The PostgreSQL server's timeline, which changes with each fail-over; `None` if it is not told.
    pub timeline: Option<String>,
}

/// What comes of holding a ledger against what the broker has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// It is the one that the work queue is fenced by.
    Same,
    /// It is, but another server keeps it by now. What was committed since the number last grew may
    /// not have come over.
    FailedOver {
        /// When it last grew.
        since: Option<Timestamp>,
    },
    /// It is an older copy.
    Older(Box<Mismatch>),
    /// It is another ledger.
    Foreign(Box<Mismatch>),
}

/// A ledger that must not be used just so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// At the broker.
    pub known: LedgerMark,
    /// The configured one.
    pub own: LedgerMark,
}

impl LedgerMark {
    /// Holds this one, the configured ledger's, against the broker's. A number that the broker has
    /// was first the ledger's: the broker's never is ahead of the right one's.
    pub fn compare(self, known: &LedgerMark) -> Comparison {
        let mismatch = |own| Box::new(Mismatch { known: known.clone(), own });
        if self.id != known.id {
            return Comparison::Foreign(mismatch(self));
        }
        if known.number.is_some_and(|known| self.number.is_none_or(|own| own < known)) {
            return Comparison::Older(mismatch(self));
        }
        match (&self.timeline, &known.timeline) {
            (Some(own), Some(before)) if own != before => Comparison::FailedOver { since: self.at },
            (Some(_) | None, Some(_) | None) => Comparison::Same,
        }
    }
}

impl Comparison {
    /// Why a relay must not work on it, and the ways out.
    pub fn fault(&self) -> Option<String> {
        match self {
            Comparison::Same | Comparison::FailedOver { .. } => None,
            Comparison::Foreign(mismatch) => Some(mismatch.foreign()),
            Comparison::Older(mismatch) => Some(mismatch.older()),
        }
    }
}

const RESTORE: &str = "customer-relay ledger restore FILE";

impl Mismatch {
    fn foreign(&self) -> String {
        format!(
            "this work queue is fenced by the ledger {}, but ledger.url names the ledger {}: name the \
             right one in ledger.url; if that is lost, put a backup of it in place with `{RESTORE}`; \
             without one, accept this ledger with `customer-relay ledger adopt` (what was applied \
             before is then not known, and dead letters older than it are unfenced)",
            self.known.id, self.own.id
        )
    }

    fn older(&self) -> String {
        format!(
            "ledger.url names an older copy of the ledger {}: its number is {} ({}), but a relay has \
             worked on it up to {} ({}). A file was copied back, a snapshot or a point in time \
             restored, or a replica promoted that lagged behind: name the right one in ledger.url; or \
             put a newer backup in place with `{RESTORE}`; or accept this copy with `customer-relay \
             ledger adopt` (updates that were applied since then are not known to it: the events in \
             doubt are sent or held, as ledger.in_doubt says)",
            self.own.id,
            number(&self.own),
            time(&self.own),
            number(&self.known),
            time(&self.known)
        )
    }
}

fn number(mark: &LedgerMark) -> u64 {
    // A ledger that was never counted has come as far as 0.
    mark.number.unwrap_or(0)
}

fn time(mark: &LedgerMark) -> String {
    mark.at.map_or_else(|| "of an unknown time".to_owned(), |at| format!("of {at}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(id: &str, number: Option<u64>, timeline: Option<&str>) -> LedgerMark {
        LedgerMark { id: id.into(), number, at: None, timeline: timeline.map(str::to_owned) }
    }

    fn compared(own: LedgerMark, known: &LedgerMark) -> &'static str {
        match own.compare(known) {
            Comparison::Same => "same",
            Comparison::FailedOver { .. } => "failed over",
            Comparison::Older(_) => "older",
            Comparison::Foreign(_) => "foreign",
        }
    }

    #[test]
    fn a_ledger_is_behind_if_its_number_is_lower_than_the_brokers() {
        let known = mark("a", Some(7), None);
        for (number, expected) in [(Some(6), "older"), (Some(7), "same"), (Some(9), "same")] {
            assert_eq!(compared(mark("a", number, None), &known), expected);
        }
        assert_eq!(compared(mark("b", Some(9), None), &known), "foreign");
        assert_eq!(compared(mark("a", Some(0), None), &mark("a", None, None)), "same");
    }

    #[test]
    fn a_fail_over_is_noticed_where_both_timelines_are_told() {
        let known = mark("a", Some(7), Some("00000001"));
        assert_eq!(compared(mark("a", Some(7), Some("00000002")), &known), "failed over");
        assert_eq!(compared(mark("a", Some(7), Some("00000001")), &known), "same");
        assert_eq!(compared(mark("a", Some(7), None), &known), "same");
        assert_eq!(compared(mark("a", Some(6), Some("00000002")), &known), "older");
    }

    #[test]
    fn each_fault_names_all_three_ways_out() {
        let known = mark("a", Some(7), None);
        for own in [mark("a", Some(6), None), mark("b", Some(9), None)] {
            let text = own.compare(&known).fault().expect("a fault");
            for way in ["in ledger.url", "ledger restore FILE", "ledger adopt"] {
                assert!(text.contains(way), "{text}");
            }
        }
        assert_eq!(mark("a", Some(7), None).compare(&known).fault(), None);
    }
}
