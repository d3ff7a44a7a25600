//! What is done about the end of a call that is the event's own matter.
//!
//! Whether it is, rules over several deliveries have said before: [`Gate::end`]. A dead letter for
//! what the portal answered needs a witness on top: [`Witnesses`].
//!
//! [`Gate::end`]: super::gate::Gate::end
//! [`Witnesses`]: super::witness::Witnesses

use std::time::Duration;

use jiff::Timestamp;

use super::dead_letter::{DeadLetter, Reason, dead_letter};
use super::event::Undecodable;
use super::history::History;
use super::redact::redact;
use super::response::{Judgement, Outcome, Scope};
use super::retry::{RetryPolicy, Tier, Tiers, after};
use super::update::{FieldFault, Update};
use super::version::MAX_SEQUENCE_BYTES;

/// What is done with a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The portal has it: ack.
    Applied,
    /// The portal has newer values for all its fields, or these very ones: ack.
    Superseded,
    /// Not for us, by rule: ack.
    Ignored {
        /// The event's type.
        kind: String,
    },
    /// To a retry tier, one more attempt counted.
    Retry {
        /// How long.
        tier: Tier,
        /// What travels with it.
        history: History,
    },
    /// To a retry tier, no attempt counted: not due yet, throttled, the endpoint at fault, or
    /// handed back.
    Wait {
        /// How long.
        tier: Tier,
        /// What travels with it.
        history: History,
    },
    /// To the dead-letter queue.
    DeadLetter(Box<DeadLetter>),
}

impl From<DeadLetter> for Verdict {
    fn from(dead: DeadLetter) -> Verdict {
        Verdict::DeadLetter(Box::new(dead))
    }
}

impl Verdict {
    /// A stable name, for logs.
    pub fn name(&self) -> &'static str {
        match self {
            Verdict::Applied => "applied",
            Verdict::Superseded => "superseded",
            Verdict::Ignored { .. } => "ignored",
            Verdict::Retry { .. } => "retry",
            Verdict::Wait { .. } => "wait",
            Verdict::DeadLetter(_) => "dead-letter",
        }
    }

    /// The retry tier, if that is where the message goes.
    pub fn tier(&self) -> Option<Tier> {
        match self {
            Verdict::Retry { tier, .. } | Verdict::Wait { tier, .. } => Some(*tier),
            Verdict::Applied
            | Verdict::Superseded
            | Verdict::Ignored { .. }
            | Verdict::DeadLetter(_) => None,
        }
    }

    /// Why the message is a dead letter, if it is.
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Verdict::DeadLetter(dead) => Some(dead.reason),
            Verdict::Applied
            | Verdict::Superseded
            | Verdict::Ignored { .. }
            | Verdict::Retry { .. }
            | Verdict::Wait { .. } => None,
        }
    }

    /// Unprocessed, to come again soon as if it had not come at all.
    pub fn hand_back(tiers: &Tiers, history: History) -> Verdict {
        Verdict::Wait { tier: tiers.shortest(), history }
    }

    /// A delivery that comes before its time.
    pub fn early(history: History, remaining: Duration, tiers: &Tiers) -> Verdict {
        Verdict::Wait { tier: tiers.at_least(remaining), history }
    }

    /// A body larger than allowed.
    pub fn too_large(bytes: usize, max_bytes: usize, history: &History) -> Verdict {
        let detail = format!("the body has {bytes} bytes; event.max_bytes allows {max_bytes}");
        let dead = DeadLetter::unsent(Reason::TooLarge, &detail, history);
        DeadLetter { setting: Some("event.max_bytes"), ..dead }.into()
    }

    /// A body that is no event.
    pub fn undecodable(fault: &Undecodable, history: &History) -> Verdict {
        DeadLetter::unsent(Reason::Undecodable, &fault.to_string(), history).into()
    }

    /// One of our own headers that does not hold what we write there.
    pub fn invalid_header(fault: &str, history: &History) -> Verdict {
        DeadLetter::unsent(Reason::Undecodable, fault, history).into()
    }

    /// An event of another type, where those are not ignored.
    pub fn unsupported_type(kind: &str, history: &History) -> Verdict {
        let kind = redact(kind, [], 100);
        let detail = format!(
            "events of type {kind:?} are not read; event.types lists those that are, \
             broker.other_types = \"ignore\" drops the others"
        );
        let dead = DeadLetter::unsent(Reason::UnsupportedType, &detail, history);
        DeadLetter { setting: Some("event.types"), ..dead }.into()
    }

    /// Field faults, all of them told, the first one named.
    pub fn invalid(faults: &[FieldFault], history: &History) -> Verdict {
        let detail = faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        let dead = DeadLetter::unsent(Reason::InvalidEvent, &detail, history);
        let first = faults.first();
        DeadLetter {
            field: first.map(|fault| fault.field),
            rule: first.map(|fault| fault.rule),
            setting: first.and_then(|fault| fault.setting),
            ..dead
        }
        .into()
    }

    /// An event whose place among its customer's nobody can tell.
    pub fn unordered(history: &History) -> Verdict {
        let detail = "the event has neither time nor sequence, nor the message a timestamp (rule \
                      order, setting order.missing)";
        let dead = DeadLetter::unsent(Reason::InvalidEvent, detail, history);
        DeadLetter { rule: Some("order"), setting: Some("order.missing"), ..dead }.into()
    }

    /// A sequence that is too long to be kept.
    pub fn sequence_too_long(history: &History) -> Verdict {
        let detail = format!(
            "the event's sequence has more than {MAX_SEQUENCE_BYTES} bytes (rule sequence-length)"
        );
        let dead = DeadLetter::unsent(Reason::InvalidEvent, &detail, history);
        DeadLetter { rule: Some("sequence-length"), ..dead }.into()
    }

    /// No dead letter without a witness: an event that has used up its attempts while no other
    /// customer's call went well waits in the longest tier, and costs nothing more.
    pub fn unwitnessed(history: &History, outcome: Outcome, tiers: &Tiers) -> Verdict {
        let same_reason = history.run_of(outcome) - 1;
        let history = History { unwitnessed: true, same_reason, ..history.uncounted(outcome) };
        Verdict::Wait { tier: tiers.longest(), history }
    }

    /// An event from the future: invalid beyond `limit`, waiting beyond `tolerance`.
    pub fn from_the_future(
        time: Timestamp,
        now: Timestamp,
        (tolerance, limit): (Duration, Duration),
        history: &History,
        tiers: &Tiers,
    ) -> Option<Verdict> {
        let ahead = Duration::try_from(time.duration_since(now)).unwrap_or_default();
        if ahead <= tolerance {
            return None;
        }
        if ahead > limit {
            let detail = format!(
                "the event's time lies {} h ahead (rule future, setting event.future_limit)",
                ahead.as_secs() / 3600
            );
            let dead = DeadLetter::unsent(Reason::InvalidEvent, &detail, history);
            let (rule, setting) = (Some("future"), Some("event.future_limit"));
            return Some(DeadLetter { rule, setting, ..dead }.into());
        }
        let remaining = ahead.saturating_sub(tolerance);
        let not_before = Some(after(now, remaining));
        let last_reason = Some("future".to_owned());
        let history = History { not_before, last_reason, ..history.clone() };
        Some(Verdict::early(history, remaining, tiers))
    }
}

/// Decides what is done after a call whose end is the event's own matter, of this scope (`None`: it
/// went well). `dice` in [0, 1) draws the retry tier.
pub fn decide(
    judgement: &Judgement,
    scope: Option<Scope>,
    update: &Update,
    history: &History,
    policy: &RetryPolicy,
    now: Timestamp,
    dice: f64,
) -> Verdict {
    let outcome = judgement.outcome;
    let Some(scope) = scope else { return Verdict::Applied };
    let asked = policy.believed(judgement.retry_after);
    let not_before = asked.map(|asked| after(now, asked));

    if matches!(scope, Scope::Endpoint | Scope::Throttle) {
        let waited = Duration::try_from(now.duration_since(history.first_seen)).unwrap_or_default();
        let tier = policy.uncounted_tier(waited, asked, dice);
        return Verdict::Wait {
            tier,
            history: History { not_before, ..history.uncounted(outcome) },
        };
    }
    if is_last_attempt(outcome, history, policy) {
        return dead_letter(judgement, update, history, now).into();
    }
    let history = history.counted(outcome, now);
    let tier = match outcome {
        Outcome::Rejected | Outcome::DuplicateEmail => policy.rejected_tier(asked, dice),
        _ => policy.counted_tier(history.attempts, asked, dice),
    };
    Verdict::Retry { tier, history: History { not_before, ..history } }
}

/// Whether the attempt just made was the last this outcome gets.
fn is_last_attempt(outcome: Outcome, history: &History, policy: &RetryPolicy) -> bool {
    let run = history.run_of(outcome);
    let last_of_its_kind = match outcome {
        Outcome::Rejected => run > policy.rejected_retries,
        Outcome::DuplicateEmail => run > policy.duplicate_email_retries,
        Outcome::ContractViolation => run >= policy.contract_violation_attempts,
        Outcome::Applied
        | Outcome::Unauthorized
        | Outcome::UnknownEntity
        | Outcome::Throttled
        | Outcome::Failed
        | Outcome::GatewayFailed
        | Outcome::Misrouted
        | Outcome::Unreachable
        | Outcome::TimedOut
        | Outcome::Interrupted => false,
    };
    last_of_its_kind || history.attempts + 1 >= policy.max_attempts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::domain::field::Field;
    use crate::domain::retry::tests::default_policy;
    use crate::domain::update::tests::{default_policies, raw};

    fn update() -> Update {
        let values = raw(&json!({"entity_id": "C1", "email": "asha@example.com"}));
        default_policies().validate(&values).expect("valid")
    }

    fn now() -> Timestamp {
        "2026-11-22T09:30:00Z".parse().expect("a time")
    }

    fn judgement(outcome: Outcome) -> Judgement {
        Judgement {
            outcome,
            http_status: Some(200),
            portal_status: Some(400),
            message: Some("asha@example.com is taken".into()),
            retry_after: None,
        }
    }

    fn decided(outcome: Outcome, history: &History) -> Verdict {
        let (judgement, scope) = (judgement(outcome), outcome.scope());
        decide(&judgement, scope, &update(), history, &default_policy(), now(), 0.5)
    }

    fn past(attempts: u32, last: Outcome, run: u32) -> History {
        let last_reason = Some(last.name().to_owned());
        History { attempts, last_reason, same_reason: run, ..History::new(now()) }
    }

    #[test]
    fn a_rejection_is_a_dead_letter_on_the_first_attempt() {
        let Verdict::DeadLetter(dead) = decided(Outcome::Rejected, &History::new(now())) else {
            panic!("not a dead letter");
        };
        assert_eq!((dead.reason, dead.history.attempts), (Reason::Rejected, 1));
        assert_eq!((dead.http_status, dead.portal_status), (Some(200), Some(400)));
        assert_eq!(dead.detail, "rejected: HTTP 200, status 400, message \"*** is taken\"");
    }

    #[test]
    fn the_attempts_are_counted_as_in_the_example() {
        let Verdict::Retry { tier, history } = decided(Outcome::Failed, &History::new(now()))
        else {
            panic!("not a retry");
        };
        assert_eq!(history.attempts, 1);
        assert!((2000..=4000).contains(&tier.millis()), "within [c/2, c] of c = 4 s");
        let Verdict::Retry { tier, history } = decided(Outcome::Failed, &history) else {
            panic!("not a retry");
        };
        assert_eq!(history.attempts, 2);
        assert!((4000..=8000).contains(&tier.millis()), "within [c/2, c] of c = 8 s");
    }

    #[test]
    fn the_last_attempt_ends_in_a_dead_letter_named_for_its_fault() {
        for (outcome, reason) in [
            (Outcome::Failed, Reason::RetriesExhausted),
            (Outcome::TimedOut, Reason::RetriesExhausted),
            (Outcome::Unauthorized, Reason::UnauthorizedCustomer),
            (Outcome::UnknownEntity, Reason::UnknownEntity),
        ] {
            let Verdict::DeadLetter(dead) = decided(outcome, &past(20, Outcome::Failed, 9)) else {
                panic!("{outcome:?} goes on after 21 attempts");
            };
            assert_eq!((dead.reason, dead.history.attempts), (reason, 21));
        }
    }

    #[test]
    fn endpoint_faults_and_throttling_count_no_attempt_however_long_they_last() {
        let long = History { attempts: 3, ..History::new(now() - Duration::from_hours(90)) };
        for outcome in
            [Outcome::Throttled, Outcome::GatewayFailed, Outcome::Misrouted, Outcome::Unreachable]
        {
            let Verdict::Wait { tier, history } = decided(outcome, &long) else {
                panic!("{outcome:?} counts");
            };
            assert_eq!(history.attempts, 3);
            assert!(tier.delay() <= Duration::from_secs(256));
            assert!(tier.delay() >= Duration::from_secs(128), "waits grow with the time waited");
        }
    }

    #[test]
    fn a_duplicate_email_gets_two_more_tries_within_a_minute() {
        let mut history = History::new(now());
        let mut waited = Duration::ZERO;
        for _ in 0..2 {
            let Verdict::Retry { tier, history: next } = decided(Outcome::DuplicateEmail, &history)
            else {
                panic!("no further try");
            };
            (history, waited) = (next, waited + tier.delay());
        }
        assert!(waited < Duration::from_mins(1), "{waited:?}");
        let Verdict::DeadLetter(dead) = decided(Outcome::DuplicateEmail, &history) else {
            panic!("a third try");
        };
        assert_eq!((dead.reason, dead.field), (Reason::DuplicateEmail, Some(Field::Email)));
        assert!(!dead.needs_review);
        let after_timeout = History { ambiguous: true, ..history };
        let Verdict::DeadLetter(dead) = decided(Outcome::DuplicateEmail, &after_timeout) else {
            panic!("a third try");
        };
        assert!(dead.needs_review, "it may be our own first write");
    }

    #[test]
    fn contract_violations_are_bounded_in_a_row_only() {
        let unknown = Outcome::ContractViolation;
        assert!(matches!(decided(unknown, &past(8, unknown, 2)), Verdict::DeadLetter(_)));
        assert!(matches!(decided(unknown, &past(8, Outcome::Failed, 8)), Verdict::Retry { .. }));
    }

    #[test]
    fn retry_after_is_kept_and_clamped() {
        let asked = |seconds| {
            let retry_after = Some(Duration::from_secs(seconds));
            let judgement = Judgement { retry_after, ..judgement(Outcome::Throttled) };
            let history = History::new(now());
            match decide(
                &judgement,
                judgement.outcome.scope(),
                &update(),
                &history,
                &default_policy(),
                now(),
                0.0,
            ) {
                Verdict::Wait { tier, history } => (tier, history),
                other => panic!("{other:?}"),
            }
        };
        let (tier, history) = asked(100);
        assert_eq!(tier.millis(), 128_000);
        assert_eq!(history.until_due(now()), Some(Duration::from_secs(100)));
        let (tier, history) = asked(u64::MAX);
        assert_eq!(tier, default_policy().tiers.longest());
        assert_eq!(history.until_due(now()), Some(Duration::from_hours(24)));
    }

    #[test]
    fn an_event_from_the_future_waits_or_is_invalid() {
        let limits = (Duration::from_mins(5), Duration::from_hours(24));
        let tiers = default_policy().tiers;
        let history = History::new(now());
        let judge =
            |ahead| Verdict::from_the_future(now() + ahead, now(), limits, &history, &tiers);
        assert_eq!(judge(Duration::from_mins(5)), None);
        let Some(Verdict::Wait { history: waiting, .. }) = judge(Duration::from_mins(65)) else {
            panic!("does not wait");
        };
        assert_eq!(waiting.until_due(now()), Some(Duration::from_hours(1)));
        assert!(matches!(judge(Duration::from_hours(25)), Some(Verdict::DeadLetter(_))));
    }

    proptest! {
        #[test]
        fn the_verdict_is_total_and_every_event_ends(
            outcomes in proptest::collection::vec(0_usize..13, 60..80), dice in 0.0..1.0_f64,
        ) {
            let policy = default_policy();
            let mut history = History::new(now());
            let mut counted = 0;
            for outcome in outcomes {
                let judgement = judgement(Outcome::ALL[outcome]);
                match decide(&judgement, judgement.outcome.scope(), &update(), &history, &policy, now(), dice) {
                    Verdict::Retry { history: next, .. } => {
                        counted += 1;
                        prop_assert_eq!(next.attempts, counted);
                        history = next;
                    }
                    Verdict::Wait { history: next, .. } => {
                        prop_assert_eq!(next.attempts, counted);
                        history = next;
                    }
                    Verdict::DeadLetter(dead) => {
                        prop_assert_eq!(dead.history.attempts, counted + 1);
                        return Ok(());
                    }
                    Verdict::Applied => return Ok(()),
                    Verdict::Superseded | Verdict::Ignored { .. } => {
                        prop_assert!(false, "no call leads here");
                    }
                }
            }
            prop_assert!(counted < policy.max_attempts);
        }
    }
}
