//! The fault rules that are in force: which call each of them strikes, and how often it has.

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::clock;
use crate::fault::Fault;
use crate::rate::{Bucket, Rate};
use crate::state::lock;

/// All rules, in the order in which they were added; the first that strikes a call wins.
#[derive(Debug, Default)]
pub(crate) struct Faults(Mutex<Rules>);

#[derive(Debug, Default)]
struct Rules {
    last_id: u64,
    active: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    id: u64,
    given: Value,
    script: Script,
    fault: Arc<Fault>,
    random: StdRng,
    /// Of a fault that spares calls.
    bucket: Option<Bucket>,
    /// Calls that the rule was asked about and that its entity fits.
    matched: u64,
    hits: u64,
    hits_by_customer: HashMap<String, u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Script {
    #[serde(default, rename = "match")]
    matcher: Matcher,
    times: Option<u64>,
    times_per_customer: Option<u64>,
    fault: Value,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Matcher {
    entity_id: Option<String>,
    entity_prefix: Option<String>,
    every: Option<NonZeroU64>,
    probability: Option<f64>,
    #[serde(default)]
    seed: u64,
}

impl Faults {
    /// Adds a rule from its JSON form and returns its id; the error says what to mend.
    pub(crate) fn add(&self, given: Value) -> Result<u64, String> {
        let mut rules = lock(&self.0);
        let rule = Rule::parse(rules.last_id + 1, given)?;
        rules.last_id = rule.id;
        rules.active.push(rule);
        Ok(rules.last_id)
    }

    /// The fault that strikes this call, if any; counts the hit.
    pub(crate) fn strike(&self, entity_id: &str) -> Option<Arc<Fault>> {
        let now = clock::now();
        let mut rules = lock(&self.0);
        let mut active = rules.active.iter_mut();
        let rule = active.find_map(|rule| rule.strikes(entity_id, now).then_some(rule));
        rule.map(|rule| Arc::clone(&rule.fault))
    }

    /// Every rule with how often it matched and hit.
    pub(crate) fn list(&self) -> Vec<Value> {
        lock(&self.0).active.iter().map(Rule::view).collect()
    }

    /// Removes one rule; false when there is none with this id.
    pub(crate) fn remove(&self, id: u64) -> bool {
        let active = &mut lock(&self.0).active;
        let before = active.len();
        active.retain(|rule| rule.id != id);
        active.len() < before
    }

    /// Removes all rules.
    pub(crate) fn clear(&self) {
        lock(&self.0).active.clear();
    }
}

impl Rule {
    fn parse(id: u64, given: Value) -> Result<Self, String> {
        let script = Script::deserialize(&given).map_err(|error| error.to_string())?;
        if script.matcher.probability.is_some_and(|share| !(0.0..=1.0).contains(&share)) {
            return Err("`probability` is a number from 0 to 1".to_owned());
        }
        let fault = Arc::new(Fault::parse(script.fault.clone())?);
        let random = StdRng::seed_from_u64(script.matcher.seed);
        Ok(Self {
            id,
            given,
            script,
            random,
            bucket: fault.spared.map(Rate::bucket),
            fault,
            matched: 0,
            hits: 0,
            hits_by_customer: HashMap::new(),
        })
    }

    fn view(&self) -> Value {
        let (id, hits, matched) = (self.id, self.hits, self.matched);
        json!({ "id": id, "hits": hits, "matched": matched, "rule": self.given })
    }

    fn strikes(&mut self, entity_id: &str, now: Instant) -> bool {
        if !self.script.matcher.names(entity_id) || self.is_spent(entity_id) {
            return false;
        }
        self.matched += 1;
        let matcher = &self.script.matcher;
        let has_turn = matcher.every.is_none_or(|every| self.matched.is_multiple_of(every.get()));
        if !has_turn || matcher.probability.is_some_and(|share| !self.random.random_bool(share)) {
            return false;
        }
        if self.bucket.as_mut().is_some_and(|bucket| bucket.passes(now)) {
            return false;
        }
        self.hits += 1;
        if self.script.times_per_customer.is_some() {
            *self.hits_by_customer.entry(entity_id.to_owned()).or_default() += 1;
        }
        true
    }

    fn is_spent(&self, entity_id: &str) -> bool {
        let by_customer = self.hits_by_customer.get(entity_id).copied().unwrap_or_default();
        self.script.times.is_some_and(|times| self.hits >= times)
            || self.script.times_per_customer.is_some_and(|times| by_customer >= times)
    }
}

impl Matcher {
    fn names(&self, entity_id: &str) -> bool {
        self.entity_id.as_deref().is_none_or(|wanted| wanted == entity_id)
            && self.entity_prefix.as_deref().is_none_or(|prefix| entity_id.starts_with(prefix))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(rules: &[Value]) -> Faults {
        let faults = Faults::default();
        for rule in rules {
            faults.add(rule.clone()).expect("a valid rule");
        }
        faults
    }

    fn hits(faults: &Faults, entity_ids: &[&str]) -> Vec<bool> {
        entity_ids.iter().map(|entity_id| faults.strike(entity_id).is_some()).collect()
    }

    #[test]
    fn a_rule_names_a_customer_or_a_prefix() {
        let one =
            faults(&[json!({ "match": { "entity_id": "C1" }, "fault": { "kind": "reset" } })]);
        assert_eq!(hits(&one, &["C1", "C11", ""]), [true, false, false]);
        let rule = json!({ "match": { "entity_prefix": "P-" }, "fault": { "kind": "reset" } });
        assert_eq!(hits(&faults(&[rule]), &["P-1", "C1", "P-2"]), [true, false, true]);
    }

    #[test]
    fn times_limits_a_rule_and_times_per_customer_each_customer() {
        let rule = json!({ "times": 2, "fault": { "kind": "reset" } });
        assert_eq!(hits(&faults(&[rule]), &["C1", "C2", "C3"]), [true, true, false]);
        let rule = json!({ "times_per_customer": 1, "fault": { "kind": "reset" } });
        assert_eq!(hits(&faults(&[rule]), &["C1", "C1", "C2"]), [true, false, true]);
    }

    #[test]
    fn every_counts_matching_calls_only() {
        let matcher = json!({ "entity_prefix": "C", "every": 2 });
        let rule = json!({ "match": matcher, "fault": { "kind": "reset" } });
        let faults = faults(&[rule]);
        assert_eq!(
            hits(&faults, &["C1", "P1", "C2", "C3", "C4"]),
            [false, false, true, false, true]
        );
        let listed = faults.list();
        assert_eq!((&listed[0]["hits"], &listed[0]["matched"]), (&json!(2), &json!(4)));
    }

    #[test]
    fn a_probability_is_repeatable_by_its_seed() {
        let run = |seed| {
            let matcher = json!({ "probability": 0.5, "seed": seed });
            hits(&faults(&[json!({ "match": matcher, "fault": { "kind": "reset" } })]), &["C"; 64])
        };
        assert_eq!(run(7), run(7));
        assert_ne!(run(7), run(8));
        assert!((16..48).contains(&run(7).into_iter().filter(|&hit| hit).count()));
    }

    #[test]
    fn the_first_rule_that_strikes_wins_until_it_is_spent_or_removed() {
        let rules = faults(&[
            json!({ "times": 1, "fault": { "kind": "reset" } }),
            json!({ "fault": { "kind": "html" } }),
        ]);
        let kind = || rules.strike("C1").map(|fault| fault.kind.clone());
        assert_eq!((kind().as_deref(), kind().as_deref()), (Some("reset"), Some("html")));
        assert!(rules.remove(2) && !rules.remove(2));
        assert_eq!(kind(), None);
    }

    #[test]
    fn calls_within_a_rate_go_on_to_later_rules() {
        let rules = faults(&[
            json!({ "fault": { "kind": "rate", "per_second": 0.001, "burst": 2 } }),
            json!({ "times": 1, "fault": { "kind": "reset" } }),
        ]);
        let kind = || rules.strike("C1").map(|fault| fault.kind.clone());
        assert_eq!([kind(), kind()], [Some("reset".to_owned()), None]);
        assert_eq!([kind(), kind()].map(Option::unwrap_or_default), ["rate", "rate"]);
        let listed = rules.list();
        assert_eq!((&listed[0]["hits"], &listed[0]["matched"]), (&json!(2), &json!(4)));
    }

    #[test]
    fn a_mistaken_rule_is_refused() {
        let fault = json!({ "kind": "reset" });
        for rule in [
            json!({}),
            json!({ "match": { "entity": "C1" }, "fault": fault }),
            json!({ "match": { "every": 0 }, "fault": fault }),
            json!({ "match": { "probability": 1.5 }, "fault": fault }),
            json!({ "time": 1, "fault": fault }),
        ] {
            assert!(Faults::default().add(rule.clone()).is_err(), "{rule}");
        }
    }
}
