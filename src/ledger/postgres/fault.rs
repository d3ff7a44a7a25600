//! What the server, or the way to it, says is wrong. The server's own words are told without their
//! details: those may hold values.

use std::time::Duration;

use deadpool_postgres::{PoolError, TimeoutType};
use tokio_postgres::error::SqlState;

use super::super::error::{LedgerError, Refusal};

/// What is wrong.
pub(super) enum Fault {
    Server(tokio_postgres::Error),
    Pool(PoolError),
    /// No answer for so long.
    Silent(Duration),
    /// Others have rows of these changes locked.
    Locked(Vec<usize>),
    Other(String),
}

impl From<tokio_postgres::Error> for Fault {
    fn from(error: tokio_postgres::Error) -> Fault {
        Fault::Server(error)
    }
}

impl From<PoolError> for Fault {
    fn from(error: PoolError) -> Fault {
        Fault::Pool(error)
    }
}

impl Fault {
    pub(super) fn is_missing_table(&self) -> bool {
        match self {
            Fault::Server(error) => error.code() == Some(&SqlState::UNDEFINED_TABLE),
            Fault::Pool(_) | Fault::Silent(_) | Fault::Locked(_) | Fault::Other(_) => false,
        }
    }

    /// All connections were in use for too long: that says nothing against any of them.
    pub(super) fn is_full_pool(&self) -> bool {
        matches!(self, Fault::Pool(PoolError::Timeout(TimeoutType::Wait)))
    }
}

impl From<Fault> for LedgerError {
    fn from(fault: Fault) -> LedgerError {
        match fault {
            Fault::Server(error) | Fault::Pool(PoolError::Backend(error)) => explained(&error),
            fault if fault.is_full_pool() => {
                LedgerError::Unreachable("all of the relay's connections to it are in use".into())
            }
            Fault::Pool(error) => LedgerError::Unreachable(error.to_string()),
            Fault::Silent(limit) => LedgerError::Unreachable(format!(
                "no answer within {limit:?}: does the server hang, or the network?"
            )),
            Fault::Locked(changes) => LedgerError::Locked(changes),
            Fault::Other(text) => LedgerError::Broken(text),
        }
    }
}

fn explained(error: &tokio_postgres::Error) -> LedgerError {
    let Some(said) = error.as_db_error() else {
        let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
        let text =
            format!("{error}{}; is it running, is ledger.url right?", cause.unwrap_or_default());
        return LedgerError::Unreachable(text);
    };
    let text = format!("{} ({})", said.message(), said.code().code());
    match said.code() {
        &SqlState::INVALID_PASSWORD | &SqlState::INVALID_AUTHORIZATION_SPECIFICATION => {
            LedgerError::Unreachable(format!("{text}: check user and password in ledger.url"))
        }
        &SqlState::INVALID_CATALOG_NAME => {
            LedgerError::Unreachable(format!("{text}: create it, or mend ledger.url"))
        }
        &SqlState::INSUFFICIENT_PRIVILEGE => LedgerError::Broken(format!(
            "{text}: the relay's user needs CREATE on the schema once, then to read and write its \
             tables"
        )),
        code => match refusal(code) {
            Some(is_about_value) => LedgerError::Refused(Refusal { text, is_about_value }),
            None => LedgerError::Broken(text),
        },
    }
}

/// Whether a code speaks of the data: classes 22 (data exception), 23 (integrity constraint) and 54
/// (program limit), and what a trigger of somebody's raises. `Some(true)` if it can only be the value
/// itself.
fn refusal(code: &SqlState) -> Option<bool> {
    if code == &SqlState::RAISE_EXCEPTION {
        return Some(false);
    }
    match code.code().get(..2) {
        Some("22") => Some(
            code == &SqlState::CHARACTER_NOT_IN_REPERTOIRE
                || code == &SqlState::UNTRANSLATABLE_CHARACTER,
        ),
        Some("23") => Some(false),
        Some("54") => Some(code == &SqlState::PROGRAM_LIMIT_EXCEEDED),
        _ => None,
    }
}
