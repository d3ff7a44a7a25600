//! Whether the ledger's files are still in their place: SQLite goes on writing to files that somebody has
//! deleted, and with the process all of that would be gone.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use super::backup::with_suffix;
use super::fault::broken;
use crate::ledger::LedgerError;

/// Device and number of a file.
type Identity = (u64, u64);

/// The ledger's file, and its log of changes, as they were first seen.
#[derive(Debug, Default)]
pub(super) struct Place(Mutex<[Option<Identity>; 2]>);

impl Place {
    /// Compares them with what is there now.
    pub(super) fn check(&self, path: &Path) -> Result<(), LedgerError> {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (seen, file) in seen.iter_mut().zip([path, &with_suffix(path, "-wal")]) {
            let now = fs::metadata(file).ok().map(|found| (found.dev(), found.ino()));
            if seen.is_some() && *seen != now {
                return Err(broken(
                    file,
                    "somebody has deleted it, or put another file in its place: stop the relay, put the \
                     ledger back (`customer-relay ledger restore`), and start the relay again",
                ));
            }
            *seen = now;
        }
        Ok(())
    }
}
