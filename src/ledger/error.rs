//! Why a ledger cannot be used, and whose fault that is.

/// Why the ledger cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// It is not there, or not reached.
    #[error("the ledger cannot be reached: {0}")]
    Unreachable(String),
    /// There is none yet; the text says how it comes to be.
    #[error("there is no ledger: {0}")]
    Missing(String),
    /// It does not work as it should; the text says what to do.
    #[error("the ledger does not work: {0}")]
    Broken(String),
    /// A file is not fit to be a backup, or to be put in the ledger's place.
    #[error("{0}")]
    Unfit(String),
    /// Another relay uses it.
    #[error("the ledger is in use by another relay ({0})")]
    InUse(String),
    /// Somebody else has rows of these changes locked, and may for long; nothing of all is recorded.
    #[error("rows of the ledger are locked by another session of the database")]
    Locked(Vec<usize>),
    /// It works, but does not take what was to be written, or does not give what was to be read.
    #[error("the ledger refuses the data: {0}")]
    Refused(Refusal),
}

/// The words of a refusal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Refusal {
    /// What the store says, without values.
    pub(super) text: String,
    /// It speaks of the value itself: too large, or in no form that the store can keep. Otherwise
    /// it may as well be a rule of the store that stops everything.
    pub(super) is_about_value: bool,
}

impl LedgerError {
    /// Whether it is only not to be had now.
    pub fn is_out_of_reach(&self) -> bool {
        match self {
            LedgerError::Unreachable(_) | LedgerError::Missing(_) | LedgerError::InUse(_) => true,
            LedgerError::Broken(_)
            | LedgerError::Unfit(_)
            | LedgerError::Locked(_)
            | LedgerError::Refused(_) => false,
        }
    }
}
