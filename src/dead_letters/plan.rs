//! A frozen selection: what was seen is what is put back, whatever the queue holds by then.

use std::collections::HashSet;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::Context as _;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// Letters that are to be put back, as one replay however often it is interrupted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Tells it from other plans: what the ids of its replays begin with.
    pub id: String,
    /// The queue that it is about.
    pub queue: String,
    /// When the selection was made.
    pub made: Timestamp,
    /// The operator's reason.
    pub why: Option<String>,
    /// Whether newer values are overwritten.
    pub forces: bool,
    /// Which letters.
    pub letters: Vec<Uuid>,
}

/// A plan that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct InvalidPlan(String);

/// Replays are remembered for 30 days, and a week on top.
const LONGEST_LIFE_H: i64 = 30 * 24;

impl Plan {
    /// A new one.
    pub fn new(queue: &str, now: Timestamp, letters: Vec<Uuid>) -> Plan {
        let random = *Uuid::new_v4().as_bytes();
        let beginning = Uuid::new_v8(random).to_string();
        Plan {
            id: beginning[..PLAN_ID].to_owned(),
            queue: queue.to_owned(),
            made: now,
            why: None,
            forces: false,
            letters,
        }
    }

    /// The id of one letter's replay: the same whenever the plan is gone on with.
    pub fn replay_id(&self, letter: Uuid) -> Uuid {
        self.try_replay_id(letter).expect("a plan's id was checked when it was read")
    }

    fn try_replay_id(&self, letter: Uuid) -> Result<Uuid, uuid::Error> {
        let hash = Sha256::new().chain_update(&self.id).chain_update(letter).finalize();
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hash[..16]);
        let own = Uuid::new_v8(bytes).to_string();
        format!("{}{}", self.id, &own[PLAN_ID..]).parse()
    }

    /// Which letters, to be looked up.
    pub fn set(&self) -> HashSet<Uuid> {
        self.letters.iter().copied().collect()
    }

    /// Writes it into a file of its own, for nobody else to read.
    pub fn save(&self, file: &Path) -> anyhow::Result<()> {
        let save = || -> std::io::Result<()> {
            let mut options = OpenOptions::new();
            let mut file = options.write(true).create_new(true).mode(0o600).open(file)?;
            file.write_all(serde_json::to_string_pretty(self)?.as_bytes())?;
            file.sync_all()
        };
        save().with_context(|| format!("cannot write the plan {}", file.display()))
    }

    /// Reads one, and looks whether it is for this queue and not too old.
    pub fn load(file: &Path, queue: &str, now: Timestamp) -> anyhow::Result<Plan> {
        let text = std::fs::read(file)
            .with_context(|| format!("cannot read the plan {}", file.display()))?;
        let plan: Plan = serde_json::from_slice(&text)
            .map_err(|error| InvalidPlan(format!("{}: {error}", file.display())))?;
        let invalid = |problem: String| Err(InvalidPlan(problem).into());
        if plan.id.len() != PLAN_ID || plan.try_replay_id(Uuid::nil()).is_err() {
            return invalid(format!("{}: {:?} is no plan's id", file.display(), plan.id));
        }
        if plan.queue != queue {
            return invalid(format!("the plan is for {}, not for {queue}", plan.queue));
        }
        if now.duration_since(plan.made).as_hours() > LONGEST_LIFE_H {
            return invalid(
                "the plan is more than 30 days old: nobody remembers what of it was done; make a \
                 new one"
                    .into(),
            );
        }
        Ok(plan)
    }
}

/// Hexadecimal digits, with a hyphen.
const PLAN_ID: usize = 13;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replay_ids_are_the_same_again_and_tell_their_plan() {
        let letter = Uuid::now_v7();
        let made: Timestamp = "2026-11-22T09:30:00Z".parse().expect("a time");
        let (one, two) = (Plan::new("q", made, vec![letter]), Plan::new("q", made, vec![letter]));
        assert_eq!(one.replay_id(letter), one.replay_id(letter));
        assert_ne!(one.replay_id(letter), two.replay_id(letter));
        assert_ne!(one.replay_id(letter), one.replay_id(Uuid::nil()));
        assert!(one.replay_id(letter).to_string().starts_with(&one.id));
    }

    #[test]
    fn a_plan_is_read_back_unless_it_is_another_queues_or_too_old() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("plan.json");
        let made: Timestamp = "2026-11-22T09:30:00Z".parse().expect("a time");
        let plan = Plan::new("q", made, vec![Uuid::now_v7()]);
        plan.save(&file).expect("saved");
        assert_eq!(Plan::load(&file, "q", made).expect("read"), plan);
        assert!(Plan::load(&file, "other", made).is_err());
        let late = "2026-12-23T09:30:00Z".parse().expect("a time");
        assert!(Plan::load(&file, "q", late).is_err());
        assert!(plan.save(&file).is_err(), "a plan is never written over");
        // With ids that are none, all its letters would share one replay.
        for id in ["", "0123456-89ab", "01234567-89abc", "zzzzzzzz-89ab", "01234567-89äb"] {
            let file = folder.path().join(format!("plan-{}.json", id.len()));
            Plan { id: id.to_owned(), ..plan.clone() }.save(&file).expect("saved");
            let refused = Plan::load(&file, "q", made).expect_err("no plan's id").to_string();
            assert!(refused.contains("no plan's id"), "{refused}");
            std::fs::remove_file(&file).expect("removed");
        }
    }
}
