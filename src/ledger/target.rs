//! `ledger.url`, read: where the ledger is.

use std::fmt;
use std::path::PathBuf;

/// Where the ledger is.
#[derive(Clone, PartialEq, Eq)]
pub enum Target {
    /// Nowhere.
    None,
    /// In this file.
    Sqlite(PathBuf),
    /// At this PostgreSQL server; the URL may hold a password.
    Postgres(Box<tokio_postgres::Config>),
}

/// A URL that is none of a ledger. The URL itself is not repeated: it may hold a password.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}; expected sqlite:/path/to/ledger.db, postgres://user:password@host/database or none")]
pub struct InvalidTarget(String);

impl Target {
    /// Reads a URL.
    pub fn parse(url: &str) -> Result<Target, InvalidTarget> {
        if url == "none" {
            return Ok(Target::None);
        }
        if let Some(path) = url.strip_prefix("sqlite:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            if path.is_empty() || path.ends_with('/') {
                return Err(InvalidTarget("no file is named".into()));
            }
            return Ok(Target::Sqlite(path.into()));
        }
        if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
            return Err(InvalidTarget("not the URL of a ledger".into()));
        }
        let config: tokio_postgres::Config =
            url.parse().map_err(|_| InvalidTarget("not a PostgreSQL URL".into()))?;
        if config.get_hosts().is_empty() {
            return Err(InvalidTarget("no host is named".into()));
        }
        Ok(Target::Postgres(Box::new(config)))
    }

    /// Which kind it is.
    pub fn kind(&self) -> &'static str {
        match self {
            Target::None => "none",
            Target::Sqlite(_) => "sqlite",
            Target::Postgres(_) => "postgres",
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::None => f.write_str("none"),
            Target::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            Target::Postgres(config) => {
                let hosts: Vec<String> = config.get_hosts().iter().map(host).collect();
                let name = config.get_dbname().unwrap_or("?");
                write!(f, "postgres at {} database {name:?}", hosts.join(","))
            }
        }
    }
}

pub(super) fn host(host: &tokio_postgres::config::Host) -> String {
    match host {
        tokio_postgres::config::Host::Tcp(name) => name.clone(),
        tokio_postgres::config::Host::Unix(path) => path.display().to_string(),
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_a_file_a_server_or_nothing() {
        let shown = |url| Target::parse(url).map(|target| target.to_string()).unwrap();
        assert_eq!(shown("none"), "none");
        assert_eq!(shown("sqlite:/var/lib/x/ledger.db"), "sqlite:/var/lib/x/ledger.db");
        assert_eq!(shown("sqlite:///var/ledger.db"), "sqlite:/var/ledger.db");
        let server = shown("postgres://me:hidden@db.example:5433/relay");
        assert_eq!(server, "postgres at db.example database \"relay\"");
    }

    #[test]
    fn a_url_that_is_none_is_refused_without_being_repeated() {
        for url in ["", "sqlite:", "sqlite:/var/", "mysql://me:hidden@x/y", "postgres://"] {
            let error = Target::parse(url).expect_err(url).to_string();
            assert!(!error.contains("hidden") && error.contains("expected sqlite:"), "{error}");
        }
    }
}
