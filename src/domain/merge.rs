//! What is sent for events of one customer that are ready together: each field's newest value, of
//! those that pass the ledger's fence.

use super::field::{Field, FieldSet, PerField};
use super::row::{Passage, Row};
use super::update::Update;
use super::version::{OrderBy, Version};

/// An event that wants to be sent.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Its version.
    pub version: &'a Version,
    /// Its values.
    pub update: &'a Update,
    /// How it passes the fence.
    pub passage: Passage,
}

impl Candidate<'_> {
    /// The fields of it that may be sent: they pass the fence, and none lacks what it is judged by. What was
    /// applied once has been judged.
    pub fn passing(&self, row: &Row, by: OrderBy) -> FieldSet {
        let fields = row.fence(self.version, self.update.fields(), self.passage, by);
        match self.passage {
            Passage::Resent => fields,
            Passage::Newer | Passage::Forced(_) => self.update.without_lone_pincode(fields),
        }
    }
}

/// One call for several events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Which fields each event contributes, in the order of the candidates.
    pub shares: Vec<FieldSet>,
}

impl Plan {
    /// Finds each field's newest value among those that may be sent.
    pub fn new(candidates: &[Candidate<'_>], row: &Row, by: OrderBy) -> Plan {
        let mut shares: Vec<FieldSet> = candidates.iter().map(|one| one.passing(row, by)).collect();
        if let [_] = shares[..] {
            return Plan { shares };
        }
        for field in Field::ALL {
            let among = (0..shares.len()).filter(|&index| shares[index].contains(field));
            let newest =
                among.max_by(|&a, &b| candidates[a].version.order(candidates[b].version, by));
            let only = FieldSet::NONE.with(field);
            for (index, share) in shares.iter_mut().enumerate() {
                if newest != Some(index) {
                    *share = share.without(only);
                }
            }
        }
        Plan { shares }
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.shares.iter().all(|share| share.is_empty())
    }

    /// The values to send; `None` if they are all of the first candidate's, and no other's.
    pub fn update(&self, candidates: &[Candidate<'_>]) -> Option<Update> {
        let first = candidates.first()?.update;
        let (share, others) = self.shares.split_first()?;
        if *share == first.fields() && others.iter().all(|share| share.is_empty()) {
            return None;
        }
        let owner = |field| self.shares.iter().position(|share| share.contains(field));
        let values = PerField::from_fn(|field| {
            let update = candidates[owner(field)?].update;
            update.value(field).map(str::to_owned)
        });
        Some(first.with_values(values))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::domain::update::tests::{default_policies, raw};
    use crate::domain::version::tests::{place, received};

    fn update(city: &str, state: Option<&str>) -> Update {
        let mut fields = json!({"entity_id": "C1", "city": city});
        if let Some(state) = state {
            fields["state"] = json!(state);
        }
        default_policies().validate(&raw(&fields)).expect("valid")
    }

    fn version(second: i64) -> Version {
        received(place(Some(second), None, &format!("e{second}")), second)
    }

    fn candidate<'a>(version: &'a Version, update: &'a Update) -> Candidate<'a> {
        Candidate { version, update, passage: Passage::Newer }
    }

    #[test]
    fn the_newest_value_of_each_field_goes_in_one_call() {
        let (old, new) = (update("Kochi", Some("Kerala")), update("Pune", None));
        let (first, second) = (version(1), version(2));
        let candidates = [candidate(&second, &new), candidate(&first, &old)];
        let plan = Plan::new(&candidates, &Row::default(), OrderBy::Time);
        let merged = plan.update(&candidates).expect("a mixture");
        assert_eq!(merged.entity_id(), "C1");
        assert_eq!(
            (merged.value(Field::City), merged.value(Field::State)),
            (Some("Pune"), Some("Kerala"))
        );
    }

    #[test]
    fn nothing_newer_is_an_empty_plan_and_a_whole_event_goes_as_it_is() {
        let (event, newer) = (update("Kochi", Some("Kerala")), version(5));
        let older = version(1);
        let mut row = Row::default();
        assert_eq!(
            Plan::new(&[candidate(&older, &event)], &row, OrderBy::Time)
                .update(&[candidate(&older, &event)]),
            None
        );
        row.record(&newer, event.fields(), OrderBy::Time);
        assert!(Plan::new(&[candidate(&older, &event)], &row, OrderBy::Time).is_empty());
    }

    proptest! {
        #[test]
        fn one_merged_call_does_what_the_events_would_do_one_by_one(
            times in proptest::collection::vec(0_i64..9, 1..6),
            has_state in proptest::collection::vec(any::<bool>(), 6),
            applied in 0_i64..9,
        ) {
            let by = OrderBy::Time;
            let names = ["Ka", "Kb", "Kc", "Kd", "Ke", "Kf"];
            let events: Vec<(Version, Update)> = times.iter().enumerate().map(|(number, time)| {
                let version = received(place(Some(*time), None, names[number]), *time);
                (version, update(names[number], has_state[number].then_some(names[number])))
            }).collect();
            let mut row = Row::default();
            row.record(&version(applied), FieldSet::NONE.with(Field::City), by);
            let candidates: Vec<Candidate<'_>> =
                events.iter().map(|(version, update)| candidate(version, update)).collect();
            let plan = Plan::new(&candidates, &row, by);
            let merged = plan.update(&candidates).unwrap_or_else(|| candidates[0].update.clone());
            let mut one_by_one = PerField::<Option<String>>::default();
            let mut after = row.clone();
            for one in &candidates {
                let sent = after.fence(one.version, one.update.fields(), one.passage, by);
                for field in sent.iter() {
                    one_by_one[field] = one.update.value(field).map(str::to_owned);
                }
                after.record(one.version, sent, by);
            }
            let sent = PerField::from_fn(|field| {
                merged.value(field).filter(|_| field != Field::EntityId && !plan.is_empty()).map(str::to_owned)
            });
            prop_assert_eq!(sent, one_by_one);
            let mut recorded = row;
            for (one, share) in candidates.iter().zip(&plan.shares) {
                recorded.record(one.version, *share, by);
            }
            for field in Field::ALL {
                prop_assert_eq!(recorded.newest(field), after.newest(field));
            }
        }
    }
}
