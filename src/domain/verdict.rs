//! What is done with a message. Whether a fault is its own, rules over several deliveries have said
//! before: [`Gate`](super::gate::Gate).

use std::time::Duration;

use jiff::Timestamp;

use super::dead_letter::{DeadLetter, Reason, dead_letter};
use super::doubt::Gap;
use super::event::Undecodable;
use super::history::{History, NotBefore};
use super::outcome::{Limit, Outcome};
use super::response::Judgement;
use super::retry::{RetryPolicy, Tier, Tiers};
use super::text::redact;
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

/// A message that has come back so often in a row waits for a while.
const SUSPICIOUS_RETURNS: u32 = 5;
/// One that has come back so often in all is given up: as often as the broker would do it.
pub const MAX_RETURNS: u32 = 20;
const HOURS_OF_A_CENTURY: u64 = 24 * 36_525;

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

    /// Whether nothing could tell whose fault it was.
    pub fn is_unwitnessed(&self) -> bool {
        match self {
            Verdict::Wait { history, .. } => history.unwitnessed,
            Verdict::DeadLetter(dead) => dead.unwitnessed,
            Verdict::Applied
            | Verdict::Superseded
            | Verdict::Ignored { .. }
            | Verdict::Retry { .. } => false,
        }
    }

    /// Unprocessed, to come again soon as if it had not come at all.
    pub fn hand_back(tiers: &Tiers, history: History) -> Verdict {
        let history = History { unwitnessed: false, returns: history.returns.min(1), ..history };
        Verdict::Wait { tier: tiers.shortest(), history }
    }

    /// The same, to come again only after a while: until then there is no room for it.
    pub fn hand_back_for(tiers: &Tiers, history: History, wait: Duration) -> Verdict {
        let tier = tiers.at_least(wait);
        let waits = (wait < tier.delay()).then_some(wait);
        let returns = history.returns.min(1);
        Verdict::Wait { tier, history: History { unwitnessed: false, waits, returns, ..history } }
    }

    /// A delivery that comes before its time.
    pub fn early(history: History, remaining: Duration, tiers: &Tiers, now: Timestamp) -> Verdict {
        let not_before = Some(NotBefore::after(now, remaining));
        Verdict::Wait {
            tier: tiers.at_least(remaining),
            history: History { not_before, returns: history.returns.min(1), ..history },
        }
    }

    /// A delivery that has come back again and again from whoever had it in hand: it may be what ends them.
    /// It waits, so that others go first and it is found out without them; in the end it is given up.
    /// `lately`: how often since it last waited.
    pub fn returned(history: &History, lately: u32, tiers: &Tiers) -> Option<Verdict> {
        let returns = history.returns;
        if returns >= MAX_RETURNS {
            let detail = format!(
                "{returns} times whoever had it in hand died, or lost its connection, before an end"
            );
            let dead = DeadLetter::unsent(Reason::DeliveryLimit, &detail, history);
            return Some(DeadLetter { needs_review: true, ..dead }.into());
        }
        if lately < SUSPICIOUS_RETURNS {
            return None;
        }
        let tier = tiers.at_least(Duration::from_secs(returns.into()));
        let last_reason = Some("returned".to_owned());
        Some(Verdict::Wait { tier, history: History { last_reason, ..history.clone() } })
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
            "events of type \"{kind}\" are not read; event.types lists those that are, \
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
    pub fn unordered(lacked: &str, history: &History) -> Verdict {
        let detail = format!(
            "the event lacks {lacked}, which order.require asks for; its message's timestamp counts as a \
             time (rule order, setting order.require, or order.missing)"
        );
        let dead = DeadLetter::unsent(Reason::InvalidEvent, &detail, history);
        DeadLetter { rule: Some("order"), setting: Some("order.require"), ..dead }.into()
    }

    /// An id that no ledger, header or terminal can take as it is.
    pub fn unprintable_id(name: &str, character: char, history: &History) -> Verdict {
        let detail = format!(
            "the event's {name} holds the control character U+{:04X} (rule id)",
            u32::from(character)
        );
        let dead = DeadLetter::unsent(Reason::InvalidEvent, &detail, history);
        DeadLetter { rule: Some("id"), ..dead }.into()
    }

    /// A time that nobody has set: the first day of a calendar or an epoch, or a day near it.
    pub fn unset_time(time: Timestamp, earliest: Timestamp, history: &History) -> Verdict {
        let detail = format!(
            "the event's time (or its message's timestamp) {time} looks like an unset date: it lies \
             before {earliest} (rule time, setting event.earliest_time)"
        );
        let dead = DeadLetter::unsent(Reason::InvalidEvent, &detail, history);
        DeadLetter { rule: Some("time"), setting: Some("event.earliest_time"), ..dead }.into()
    }

    /// An event whose customer's row in the ledger cannot be read: it waits, ever longer, until
    /// somebody mends that.
    pub fn wait_for_row(
        history: &History,
        policy: &RetryPolicy,
        now: Timestamp,
        dice: f64,
    ) -> Verdict {
        let waited = waited(history, now);
        let last_reason = Some("ledger-row".to_owned());
        let history = History { last_reason, same_reason: 0, ..history.clone() };
        Verdict::Wait { tier: policy.uncounted_tier(waited, None, dice), history }
    }

    /// An event that the ledger does not take, though it takes others. `history` says whether the
    /// portal has it already.
    pub fn unrecordable(history: &History) -> Verdict {
        let detail = "the ledger refuses what there is to record of the event, though it takes what \
                      others leave; the relay's log has the ledger's words";
        let dead = DeadLetter::unsent(Reason::Unrecordable, detail, history);
        DeadLetter { needs_review: history.ambiguous, ..dead }.into()
    }

    /// An event that may be older than what was applied in the gap, where such events are held.
    pub fn in_doubt(history: &History, gap: Gap) -> Verdict {
        let Gap { from, until } = gap;
        let detail = format!(
            "the event may be older than what was applied between {from} and {until}, which the ledger \
             does not know: an older copy of it was put in place then (setting ledger.in_doubt)"
        );
        let dead = DeadLetter::unsent(Reason::InDoubt, &detail, history);
        let needs_review = history.ambiguous;
        DeadLetter { setting: Some("ledger.in_doubt"), needs_review, ..dead }.into()
    }

    /// A sequence that is too long to be kept.
    pub fn sequence_too_long(history: &History) -> Verdict {
        let detail = format!(
            "the event's sequence has more than {MAX_SEQUENCE_BYTES} bytes (rule sequence-length)"
        );
        let dead = DeadLetter::unsent(Reason::InvalidEvent, &detail, history);
        DeadLetter { rule: Some("sequence-length"), ..dead }.into()
    }

    /// A sequence that is no number, where numbers are expected.
    pub fn sequence_of_text(history: &History) -> Verdict {
        let detail = "the event's sequence is not all digits; order.sequence = \"text\" orders any text, byte \
                      by byte (rule sequence, setting order.sequence)";
        let dead = DeadLetter::unsent(Reason::InvalidEvent, detail, history);
        DeadLetter { rule: Some("sequence"), setting: Some("order.sequence"), ..dead }.into()
    }

    /// One more attempt is counted, and follows after the delay that its number asks for.
    pub fn retry(
        judgement: &Judgement,
        history: &History,
        policy: &RetryPolicy,
        dice: f64,
    ) -> Verdict {
        let history = history.counted(judgement.outcome);
        let tier = policy.counted_tier(history.attempts, judgement.retry_after, dice);
        Verdict::Retry { tier, history }
    }

    /// Throttled: nothing is counted, and it comes back no sooner than the portal asks.
    pub fn throttled(
        judgement: &Judgement,
        history: &History,
        policy: &RetryPolicy,
        now: Timestamp,
        dice: f64,
    ) -> Verdict {
        let history = history.uncounted(judgement.outcome);
        wait_uncounted(judgement.retry_after, history, policy, now, dice)
    }

    /// A fault of which nothing can tell whether it is the event's own: it waits, ever longer, nothing
    /// counted.
    pub fn unwitnessed(
        judgement: &Judgement,
        history: &History,
        policy: &RetryPolicy,
        now: Timestamp,
        dice: f64,
    ) -> Verdict {
        let outcome = judgement.outcome;
        // Attempts in a row that were counted stay in a row.
        let same_reason = history.run_of(outcome) - 1;
        let mut history = History { same_reason, ..history.uncounted(outcome) };
        history.unwitnessed = true;
        history.note_unproven(outcome, now);
        wait_uncounted(judgement.retry_after, history, policy, now, dice)
    }

    /// An event whose time lies further ahead than is allowed.
    pub fn too_far_ahead(ahead: Duration, history: &History) -> Verdict {
        let hours = ahead.as_secs() / 3600;
        let guess = if hours > HOURS_OF_A_CENTURY {
            "; a timestamp in milliseconds? AMQP's are seconds"
        } else {
            ""
        };
        let detail = format!(
            "the event's time lies {hours} h ahead{guess} (rule future, setting event.future_limit)"
        );
        let dead = DeadLetter::unsent(Reason::InvalidEvent, &detail, history);
        let (rule, setting) = (Some("future"), Some("event.future_limit"));
        DeadLetter { rule, setting, ..dead }.into()
    }

    /// An event whose time lies ahead: it waits until it is due.
    pub fn wait_until_due(
        remaining: Duration,
        history: &History,
        tiers: &Tiers,
        now: Timestamp,
    ) -> Verdict {
        let last_reason = Some("future".to_owned());
        Verdict::early(History { last_reason, ..history.clone() }, remaining, tiers, now)
    }

    /// An event whose time lies ahead of our clock, which may be the cause: it comes back soon, ever
    /// later, to be judged again.
    pub fn wait_for_clock(
        remaining: Duration,
        history: &History,
        policy: &RetryPolicy,
        now: Timestamp,
        dice: f64,
    ) -> Verdict {
        let tier = policy.uncounted_tier(waited(history, now), None, dice);
        let last_reason = Some("our-clock".to_owned());
        let history = History { last_reason, same_reason: 0, not_before: None, ..history.clone() };
        Verdict::Wait { tier: tier.min(policy.tiers.at_least(remaining)), history }
    }
}

/// Decides what is done after a fault that is the event's own: one attempt is counted. `dice` in
/// [0, 1) draws the retry tier.
pub fn decide(
    judgement: &Judgement,
    update: &Update,
    history: &History,
    policy: &RetryPolicy,
    now: Timestamp,
    dice: f64,
) -> Verdict {
    let outcome = judgement.outcome;
    let Some(facts) = outcome.facts() else { return Verdict::Applied };
    let asked = judgement.retry_after;
    if is_last_attempt(outcome, facts.limit, history, policy) {
        return dead_letter(judgement, update, history).into();
    }
    let history = history.counted(outcome);
    let tier = match facts.limit {
        Limit::Rejected | Limit::DuplicateEmail => policy.rejected_tier(asked, dice),
        Limit::Attempts | Limit::ContractViolation => {
            policy.counted_tier(history.attempts, asked, dice)
        }
    };
    let not_before = asked.map(|asked| NotBefore::after(now, asked));
    Verdict::Retry { tier, history: History { not_before, ..history } }
}

/// In a tier, the longer the longer it has waited, and no sooner than the portal asks.
fn wait_uncounted(
    asked: Option<Duration>,
    history: History,
    policy: &RetryPolicy,
    now: Timestamp,
    dice: f64,
) -> Verdict {
    let tier = policy.uncounted_tier(waited(&history, now), asked, dice);
    let not_before = asked.map(|asked| NotBefore::after(now, asked));
    Verdict::Wait { tier, history: History { not_before, ..history } }
}

/// Since the message was first seen. If our clock was set back meanwhile, about by how much: that is no
/// reason to come again at once.
fn waited(history: &History, now: Timestamp) -> Duration {
    now.duration_since(history.first_seen).unsigned_abs()
}

/// Whether the attempt just made was the last this outcome gets.
fn is_last_attempt(
    outcome: Outcome,
    limit: Limit,
    history: &History,
    policy: &RetryPolicy,
) -> bool {
    let run = history.run_of(outcome);
    let last_of_its_kind = match limit {
        Limit::Rejected => run > policy.rejected_retries,
        Limit::DuplicateEmail => run > policy.duplicate_email_retries,
        Limit::ContractViolation => run >= policy.contract_violation_attempts,
        Limit::Attempts => false,
    };
    last_of_its_kind || history.attempts.saturating_add(1) >= policy.max_attempts
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
        decide(&judgement(outcome), &update(), history, &default_policy(), now(), 0.5)
    }

    fn past(attempts: u32, last: Outcome, run: u32) -> History {
        let last_reason = Some(last.name().to_owned());
        History { attempts, last_reason, same_reason: run, ..History::new(now()) }
    }

    #[test]
    fn what_comes_back_too_often_waits_and_is_given_up_in_the_end() {
        let tiers = Tiers::try_new(Duration::from_secs(1), Duration::from_mins(1)).expect("tiers");
        let mut history = History { attempts: 2, ..History::new(now()) };
        assert_eq!(Verdict::returned(&history, SUSPICIOUS_RETURNS - 1, &tiers), None);
        for round in 1..MAX_RETURNS / SUSPICIOUS_RETURNS {
            history.returns += SUSPICIOUS_RETURNS;
            let verdict = Verdict::returned(&history, SUSPICIOUS_RETURNS, &tiers);
            let Some(Verdict::Wait { tier, history: after }) = verdict else {
                panic!("{verdict:?}");
            };
            assert!(tier.delay() >= Duration::from_secs((SUSPICIOUS_RETURNS * round).into()));
            assert_eq!((after.returns, after.attempts), (SUSPICIOUS_RETURNS * round, 2));
            history = after;
        }
        history.returns += SUSPICIOUS_RETURNS;
        let verdict = Verdict::returned(&history, SUSPICIOUS_RETURNS, &tiers);
        assert_eq!(verdict.and_then(|verdict| verdict.reason()), Some(Reason::DeliveryLimit));
        // An attempt that came to its end has ended nobody.
        let history = history.uncounted(Outcome::TimedOut);
        assert_eq!((history.returns, Verdict::returned(&history, 1, &tiers)), (0, None));
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
    fn throttling_and_what_cannot_be_told_count_no_attempt_however_long_they_last() {
        let long = History { attempts: 3, ..History::new(now() - Duration::from_hours(90)) };
        let policy = default_policy();
        let throttled = judgement(Outcome::Throttled);
        let failed = judgement(Outcome::Failed);
        for verdict in [
            Verdict::throttled(&throttled, &long, &policy, now(), 0.5),
            Verdict::unwitnessed(&failed, &long, &policy, now(), 0.5),
        ] {
            let Verdict::Wait { tier, history } = verdict else { panic!("{verdict:?}") };
            assert_eq!(history.attempts, 3);
            assert!(tier.delay() <= Duration::from_secs(256));
            assert!(tier.delay() >= Duration::from_secs(128), "waits grow with the time waited");
        }
    }

    #[test]
    fn an_unwitnessed_fault_remembers_the_first_of_its_row() {
        let (failed, policy) = (judgement(Outcome::Failed), default_policy());
        let wait = |history: &History, at| match Verdict::unwitnessed(
            &failed, history, &policy, at, 0.5,
        ) {
            Verdict::Wait { history, .. } => history,
            verdict => panic!("{verdict:?}"),
        };
        let first = wait(&History::new(now()), now());
        assert_eq!((first.unwitnessed, first.unproven_since), (true, Some(now())));
        let later = now() + Duration::from_hours(1);
        assert_eq!(wait(&first, later).unproven_since, Some(now()));
        let counted = first.counted(Outcome::Failed);
        assert!(!counted.unwitnessed);
        assert_eq!(wait(&counted, later).unproven_since, Some(later));
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
            let policy = default_policy();
            let judgement =
                policy.believe(Judgement { retry_after, ..judgement(Outcome::Throttled) });
            match Verdict::throttled(&judgement, &History::new(now()), &policy, now(), 0.0) {
                Verdict::Wait { tier, history } => (tier, history),
                other => panic!("{other:?}"),
            }
        };
        let (tier, history) = asked(100);
        assert_eq!(tier.millis(), 128_000);
        assert_eq!(history.until_due(now(), Duration::MAX), Some(Duration::from_secs(100)));
        let (tier, history) = asked(u64::MAX);
        assert_eq!(tier, default_policy().tiers.longest());
        assert_eq!(history.until_due(now(), Duration::MAX), Some(Duration::from_hours(24)));
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
                match decide(&judgement, &update(), &history, &policy, now(), dice) {
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
