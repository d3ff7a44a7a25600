//! What SQLite says is wrong, in words that name the file and a way out.

use std::path::Path;

use rusqlite::ErrorCode;

use super::super::error::{LedgerError, Refusal};

/// What is wrong.
#[derive(Debug, thiserror::Error)]
pub(in crate::ledger) enum Fault {
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    #[error("{0}")]
    Other(String),
}

impl Fault {
    pub(super) fn explained(&self, path: &Path) -> LedgerError {
        let file = path.display();
        let Fault::Sqlite(error) = self else { return broken(path, &self.to_string()) };
        let text = match error.sqlite_error_code() {
            Some(
                code @ (ErrorCode::ConstraintViolation
                | ErrorCode::TooBig
                | ErrorCode::TypeMismatch),
            ) => {
                let is_about_value = code == ErrorCode::TooBig;
                return LedgerError::Refused(Refusal { text: error.to_string(), is_about_value });
            }
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => format!(
                "{file} is damaged or no ledger ({error}): put a backup in its place, or move it \
                 away and start anew (deploy/RUNBOOK.md, \"The ledger\")"
            ),
            Some(ErrorCode::DiskFull) => {
                format!("the disk of {file} is full: make room, the relay then goes on by itself")
            }
            Some(ErrorCode::ReadOnly) => {
                format!("{file} cannot be written: mend its permissions or remount its disk")
            }
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => format!(
                "{file} is locked by another process for more than {} s: end that one",
                super::open::BUSY_LIMIT.as_secs()
            ),
            Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => format!(
                "{file} cannot be opened ({error}): does its directory exist, and may this user \
                 write there? Or set ledger.url"
            ),
            _ => format!("{file}: {error}"),
        };
        LedgerError::Broken(text)
    }
}

pub(super) fn broken(path: &Path, problem: &str) -> LedgerError {
    LedgerError::Broken(format!("{}: {problem}", path.display()))
}
