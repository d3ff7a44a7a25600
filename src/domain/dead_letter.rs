//! A dead letter: why an event ended for us, in words a person can act on.

use std::fmt::Write;

use super::field::Field;
use super::history::History;
use super::response::Judgement;
use super::text::{escape, redact};
use super::update::Update;

/// Why an event ended for us. The names are stable: operators, metrics and the runbook use them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The body is no event.
    Undecodable,
    /// The body is larger than `event.max_bytes`.
    TooLarge,
    /// An event of another type.
    UnsupportedType,
    /// A field breaks a rule.
    InvalidEvent,
    /// The portal refuses the update.
    Rejected,
    /// The portal refuses the e-mail because another customer has it.
    DuplicateEmail,
    /// The portal refused our credentials for this customer, to the last attempt.
    UnauthorizedCustomer,
    /// The portal did not know the customer, to the last attempt.
    UnknownEntity,
    /// The portal answered outside its page, to the last attempt.
    ContractViolation,
    /// A transient fault lasted to the last attempt.
    RetriesExhausted,
    /// The broker gave it up: whoever consumed it died, or lost its connection, too often.
    DeliveryLimit,
    /// The ledger refuses what there is to record of it.
    Unrecordable,
    /// It may be older than what an older copy of the ledger does not know.
    InDoubt,
    /// Somebody else put it there.
    Foreign,
}

impl Reason {
    /// Every reason; the runbook has an entry for each.
    pub const ALL: [Reason; 14] = [
        Reason::Undecodable,
        Reason::TooLarge,
        Reason::UnsupportedType,
        Reason::InvalidEvent,
        Reason::Rejected,
        Reason::DuplicateEmail,
        Reason::UnauthorizedCustomer,
        Reason::UnknownEntity,
        Reason::ContractViolation,
        Reason::RetriesExhausted,
        Reason::DeliveryLimit,
        Reason::Unrecordable,
        Reason::InDoubt,
        Reason::Foreign,
    ];

    /// The reason of that name.
    pub fn parse(name: &str) -> Option<Reason> {
        Reason::ALL.into_iter().find(|reason| reason.name() == name)
    }

    /// The name in headers, logs and the runbook.
    pub fn name(self) -> &'static str {
        match self {
            Reason::Undecodable => "undecodable",
            Reason::TooLarge => "too-large",
            Reason::UnsupportedType => "unsupported-type",
            Reason::InvalidEvent => "invalid-event",
            Reason::Rejected => "rejected",
            Reason::DuplicateEmail => "duplicate-email",
            Reason::UnauthorizedCustomer => "unauthorized-customer",
            Reason::UnknownEntity => "unknown-entity",
            Reason::ContractViolation => "contract-violation",
            Reason::RetriesExhausted => "retries-exhausted",
            Reason::DeliveryLimit => "delivery-limit",
            Reason::Unrecordable => "unrecordable",
            Reason::InDoubt => "in-doubt",
            Reason::Foreign => "foreign",
        }
    }
}

/// What a person needs to act on an event that ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// Why.
    pub reason: Reason,
    /// In words, without personal data, at most [`MAX_DETAIL_BYTES`].
    pub detail: String,
    /// The field at fault.
    pub field: Option<Field>,
    /// The rule it breaks.
    pub rule: Option<&'static str>,
    /// The setting that rules there.
    pub setting: Option<&'static str>,
    /// HTTP status of the last answer.
    pub http_status: Option<u16>,
    /// Status in the body of the last answer.
    pub portal_status: Option<i64>,
    /// An earlier call may have been applied: look before you replay.
    pub needs_review: bool,
    /// No other call proved that the portal was healthy and our credentials right.
    pub unwitnessed: bool,
    /// What the message went through, its last attempt counted.
    pub history: History,
}

/// Longest detail text, in bytes.
pub const MAX_DETAIL_BYTES: usize = 1024;

impl DeadLetter {
    /// One that never led to a call on this delivery.
    pub(super) fn unsent(reason: Reason, detail: &str, history: &History) -> DeadLetter {
        DeadLetter {
            reason,
            detail: escape(detail, MAX_DETAIL_BYTES).into_owned(),
            field: None,
            rule: None,
            setting: None,
            http_status: None,
            portal_status: None,
            needs_review: false,
            unwitnessed: false,
            history: History { not_before: None, replay_id: None, ..history.clone() },
        }
    }
}

/// One whose call was its last.
pub(super) fn dead_letter(judgement: &Judgement, update: &Update, history: &History) -> DeadLetter {
    let reason = judgement.outcome.facts().map_or(Reason::RetriesExhausted, |facts| facts.reason);
    DeadLetter {
        reason,
        detail: describe(judgement, update),
        field: (reason == Reason::DuplicateEmail).then_some(Field::Email),
        rule: None,
        setting: None,
        http_status: judgement.http_status,
        portal_status: judgement.portal_status,
        needs_review: history.ambiguous || judgement.outcome.is_ambiguous(),
        unwitnessed: false,
        history: History { replay_id: None, ..history.counted(judgement.outcome) },
    }
}

/// The answer in words, without what the update sent.
pub fn describe(judgement: &Judgement, update: &Update) -> String {
    let mut text = match judgement.http_status {
        Some(status) => format!("{}: HTTP {status}", judgement.outcome.name()),
        None => format!("{}: no answer", judgement.outcome.name()),
    };
    if let Some(status) = judgement.portal_status {
        write!(text, ", status {status}").expect("writing to a String cannot fail");
    }
    if let Some(message) = &judgement.message {
        let values = update.values().map(|(_, value)| value);
        let message = redact(message, values, 200);
        write!(text, ", message \"{message}\"").expect("writing to a String cannot fail");
    }
    text
}
