//! A ledger copied, and a copy put back. Files only: a server has its own ways, and we say which.

use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::change::AuditEntry;
use super::error::LedgerError;
use super::sqlite::backup as sqlite;
pub use super::sqlite::backup::Copied;
use super::target::Target;
use crate::domain::doubt::Gap;

/// Copies a ledger file, beside a relay at work, into one that is not there yet.
pub async fn backup(ledger: &Path, to: &Path) -> Result<Copied, LedgerError> {
    sqlite::backup(ledger, to).await
}

/// A backup that was looked over and is about to be put in the ledger's place. No relay can work on
/// the ledger meanwhile.
#[derive(Debug)]
pub struct Restore(sqlite::Restore);

impl Restore {
    /// Looks a backup over, beside the ledger, which is not touched.
    pub async fn prepare(ledger: &Path, file: &Path) -> Result<Restore, LedgerError> {
        sqlite::Restore::prepare(ledger, file).await.map(Restore)
    }

    /// What it is.
    pub fn copied(&self) -> &Copied {
        self.0.copied()
    }

    /// Puts it in the ledger's place, its number above `at_least`. What was applied since it was made
    /// is not known: the events that may be older than that are in doubt. The replaced file's new
    /// name, if there was one.
    pub async fn complete(
        self,
        at_least: u64,
        now: Timestamp,
        audit: AuditEntry,
    ) -> Result<Option<PathBuf>, LedgerError> {
        let gap = Gap { from: self.copied().known_until(), until: now };
        self.0.complete((gap, at_least, now), audit).await
    }
}

/// How a PostgreSQL ledger is dumped and restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DumpCommands {
    /// `pg_dump …`
    pub dump: String,
    /// `pg_restore …`
    pub restore: String,
}

impl Target {
    /// The commands for a ledger at a PostgreSQL server; without its password, for which they ask.
    pub fn dump_commands(&self, file: &Path) -> Option<DumpCommands> {
        let Target::Postgres(config) = self else { return None };
        let hosts: Vec<String> = config.get_hosts().iter().map(super::target::host).collect();
        let ports: Vec<String> = config.get_ports().iter().map(ToString::to_string).collect();
        let pairs = [
            ("host", Some(hosts.join(","))),
            ("port", Some(ports.join(",")).filter(|ports| !ports.is_empty())),
            ("user", config.get_user().map(str::to_owned)),
            ("dbname", config.get_dbname().map(str::to_owned)),
        ];
        let pairs = pairs.into_iter().filter_map(|(name, value)| Some((name, value?)));
        let words: Vec<String> =
            pairs.map(|(name, value)| format!("{name}={}", conninfo(&value))).collect();
        let (server, file) = (quoted(&words.join(" ")), quoted(&file.display().to_string()));
        Some(DumpCommands {
            dump: format!("pg_dump --format=custom --no-owner --file={file} --dbname={server}"),
            restore: format!(
                "pg_restore --clean --if-exists --no-owner --single-transaction --dbname={server} \
                 {file}"
            ),
        })
    }
}

/// A value of a connection string.
fn conninfo(value: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-/,:".contains(c);
    if !value.is_empty() && value.chars().all(is_plain) {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// A word of a shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_for_a_server_hold_no_password() {
        let target = Target::parse("postgres://me:hidden@db.example:5433/re'lay").expect("a URL");
        let commands = target.dump_commands(Path::new("it's.dump")).expect("a server");
        assert_eq!(
            commands.dump,
            "pg_dump --format=custom --no-owner --file='it'\\''s.dump' --dbname='host=db.example \
             port=5433 user=me dbname='\\''re\\'\\''lay'\\'''"
        );
        assert!(!commands.restore.contains("hidden") && commands.restore.starts_with("pg_restore"));
        assert_eq!(Target::parse("none").expect("none").dump_commands(Path::new("x")), None);
    }
}
