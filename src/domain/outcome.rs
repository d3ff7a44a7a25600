//! What one call meant, and the facts that follow from that alone: the table of README's "What happens
//! when" as code.

use super::breaker::Kind;
use super::dead_letter::Reason;

/// What one call meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The portal took the update.
    Applied,
    /// The portal refuses this update.
    Rejected,
    /// Refused, in words that speak of a duplicate, and the update sets an e-mail.
    DuplicateEmail,
    /// Token, checksum or permission are not accepted.
    Unauthorized,
    /// The portal does not know the customer.
    UnknownEntity,
    /// An answer that the page does not describe.
    ContractViolation,
    /// Too many calls.
    Throttled,
    /// The portal failed in its own form, or with a plain 500.
    Failed,
    /// A gateway failed before the portal: 502, 503 or 520 to 524 without the portal's form, 504 in any.
    GatewayFailed,
    /// The call goes to the wrong place: a redirect, 404 without the portal's form, 405, 415.
    Misrouted,
    /// No connection: refused, DNS, TLS, connect timeout.
    Unreachable,
    /// The time limit ended first.
    TimedOut,
    /// The connection ended before the answer did.
    Interrupted,
}

/// Whom a fault concerns, as far as one call can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// This update; another would pass.
    Message,
    /// This customer, or everybody: only other calls can tell.
    Customer,
    /// Everybody, unless other calls go well: the portal, the way to it, or our configuration.
    Endpoint,
    /// Everybody, by being too fast.
    Throttle,
}

/// Which setting limits the attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// `retry.max_attempts`
    Attempts,
    /// `retry.rejected_retries`, in a row
    Rejected,
    /// `retry.duplicate_email_retries`, in a row
    DuplicateEmail,
    /// `retry.contract_violation_attempts`, in a row
    ContractViolation,
}

/// What follows from an outcome alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Whom the fault concerns.
    pub scope: Scope,
    /// What it would be an outage of, if it were everybody's. `None`: it is never everybody's.
    pub outage: Option<Kind>,
    /// Which setting limits the attempts that end so.
    pub limit: Limit,
    /// What a dead letter is called whose last attempt ended so.
    pub reason: Reason,
    /// Whether the portal may have applied the update all the same.
    pub is_ambiguous: bool,
    /// Whether the call may still be under way behind what answered, or did not answer, us.
    pub may_be_under_way: bool,
    /// Whether another call at once may help. A timeout has already held its place for long.
    pub allows_immediate_retry: bool,
}

/// What a call that has ended says of the portal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// It went well: a proof.
    Success,
    /// Its words show that the portal looked at the update: the event's own fault, for certain.
    OwnFault,
    /// Too many calls: of everybody, or of some customers.
    TooMany,
    /// The event's own fault, or everybody's: then it is an outage of this kind.
    Fault(Kind),
}

impl Outcome {
    /// Every outcome, for tables and tests.
    pub const ALL: [Outcome; 13] = [
        Outcome::Applied,
        Outcome::Rejected,
        Outcome::DuplicateEmail,
        Outcome::Unauthorized,
        Outcome::UnknownEntity,
        Outcome::ContractViolation,
        Outcome::Throttled,
        Outcome::Failed,
        Outcome::GatewayFailed,
        Outcome::Misrouted,
        Outcome::Unreachable,
        Outcome::TimedOut,
        Outcome::Interrupted,
    ];

    /// A stable name, for logs and headers.
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Applied => "applied",
            Outcome::Rejected => "rejected",
            Outcome::DuplicateEmail => "duplicate-email",
            Outcome::Unauthorized => "unauthorized",
            Outcome::UnknownEntity => "unknown-entity",
            Outcome::ContractViolation => "contract-violation",
            Outcome::Throttled => "throttled",
            Outcome::Failed => "portal-failed",
            Outcome::GatewayFailed => "gateway-failed",
            Outcome::Misrouted => "misrouted",
            Outcome::Unreachable => "unreachable",
            Outcome::TimedOut => "timed-out",
            Outcome::Interrupted => "interrupted",
        }
    }

    /// The facts of a fault; `None` for success.
    pub const fn facts(self) -> Option<Facts> {
        Some(match self {
            Outcome::Applied => return None,
            Outcome::Rejected => Facts {
                limit: Limit::Rejected,
                ..fault(Scope::Message, Some(Kind::RejectingAll), Reason::Rejected)
            },
            Outcome::DuplicateEmail => Facts {
                limit: Limit::DuplicateEmail,
                ..fault(Scope::Message, None, Reason::DuplicateEmail)
            },
            Outcome::Unauthorized => {
                fault(Scope::Customer, Some(Kind::Credentials), Reason::UnauthorizedCustomer)
            }
            Outcome::UnknownEntity => {
                fault(Scope::Customer, Some(Kind::Configuration), Reason::UnknownEntity)
            }
            Outcome::ContractViolation => Facts {
                limit: Limit::ContractViolation,
                ..fault(Scope::Message, Some(Kind::Failing), Reason::ContractViolation)
            },
            Outcome::Throttled => {
                fault(Scope::Throttle, Some(Kind::Throttled), Reason::RetriesExhausted)
            }
            Outcome::Failed => Facts {
                is_ambiguous: true,
                allows_immediate_retry: true,
                ..fault(Scope::Customer, Some(Kind::Failing), Reason::RetriesExhausted)
            },
            Outcome::GatewayFailed => Facts {
                is_ambiguous: true,
                may_be_under_way: true,
                ..fault(Scope::Endpoint, Some(Kind::Failing), Reason::RetriesExhausted)
            },
            Outcome::Misrouted => {
                fault(Scope::Endpoint, Some(Kind::Configuration), Reason::RetriesExhausted)
            }
            Outcome::Unreachable => {
                fault(Scope::Endpoint, Some(Kind::Unreachable), Reason::RetriesExhausted)
            }
            Outcome::TimedOut => Facts {
                is_ambiguous: true,
                may_be_under_way: true,
                ..fault(Scope::Customer, Some(Kind::Failing), Reason::RetriesExhausted)
            },
            Outcome::Interrupted => Facts {
                is_ambiguous: true,
                may_be_under_way: true,
                allows_immediate_retry: true,
                ..fault(Scope::Customer, Some(Kind::Failing), Reason::RetriesExhausted)
            },
        })
    }

    /// What a call that ended so says of the portal.
    pub fn evidence(self) -> Evidence {
        match self.facts() {
            None => Evidence::Success,
            Some(Facts { outage: None, .. }) => Evidence::OwnFault,
            Some(Facts { outage: Some(Kind::Throttled), .. }) => Evidence::TooMany,
            Some(Facts { outage: Some(kind), .. }) => Evidence::Fault(kind),
        }
    }

    /// Whether the portal may have applied the update without saying so.
    pub fn is_ambiguous(self) -> bool {
        self.facts().is_some_and(|facts| facts.is_ambiguous)
    }

    /// Whether the call may still be under way at the portal.
    pub fn may_be_under_way(self) -> bool {
        self.facts().is_some_and(|facts| facts.may_be_under_way)
    }

    /// Whether another call at once may help.
    pub fn allows_immediate_retry(self) -> bool {
        self.facts().is_some_and(|facts| facts.allows_immediate_retry)
    }
}

/// A plain fault: whatever is not said of it is not so.
const fn fault(scope: Scope, outage: Option<Kind>, reason: Reason) -> Facts {
    Facts {
        scope,
        outage,
        limit: Limit::Attempts,
        reason,
        is_ambiguous: false,
        may_be_under_way: false,
        allows_immediate_retry: false,
    }
}
