//! A clock of a relay's own that can be set while it runs: libfaketime, preloaded. Its monotonic clock
//! stays as it is, as when a machine's clock is set.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::relay::Settings;

/// Where the library may be, in a folder for the machine's kind or in none.
const FOLDERS: [&str; 2] = ["/usr/lib", "/usr/lib64"];
const LIBRARY: &str = "faketime/libfaketimeMT.so.1";

/// A clock, as far from the true one as it was last set.
pub struct FakeClock {
    library: PathBuf,
    file: PathBuf,
}

impl FakeClock {
    /// A clock that is right; `folder` keeps what it is set to.
    pub fn new(folder: &Path, name: &str) -> Result<FakeClock> {
        let library = library().context("there is no libfaketime; `make setup` gets it")?;
        let clock = FakeClock { library, file: folder.join(name) };
        clock.set(0)?;
        Ok(clock)
    }

    /// Programs with these settings have this clock.
    pub fn give_to(&self, settings: &mut Settings) {
        settings
            .set_variable("LD_PRELOAD", &self.library.to_string_lossy())
            .set_variable("FAKETIME_TIMESTAMP_FILE", &self.file.to_string_lossy())
            .set_variable("FAKETIME_NO_CACHE", "1")
            .set_variable("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    }

    /// Sets it, so many seconds ahead.
    pub fn set(&self, seconds: i64) -> Result<()> {
        // In one step: it is read at any moment.
        let next = self.file.with_extension("next");
        fs::write(&next, format!("{seconds:+}"))?;
        Ok(fs::rename(next, &self.file)?)
    }
}

fn library() -> Option<PathBuf> {
    let kinds = |folder: &str| {
        let entries = fs::read_dir(folder).into_iter().flatten();
        entries.filter_map(|entry| Some(entry.ok()?.path())).collect::<Vec<_>>()
    };
    let folders = FOLDERS
        .iter()
        .flat_map(|folder| std::iter::once(PathBuf::from(folder)).chain(kinds(folder)));
    folders.map(|folder| folder.join(LIBRARY)).find(|library| library.is_file())
}
