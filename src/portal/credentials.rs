//! Token and secret key in force. Those that come from files are read again when they change, so
//! that a rotation needs no restart.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use anyhow::Context;
use reqwest::header::HeaderValue;
use secrecy::{ExposeSecret, SecretString};

use crate::config::{PortalConfig, read_secret};

/// One pair of credentials: what signs a call and what goes with it.
#[derive(Debug)]
pub struct Credentials {
    /// Counts the pairs that were in force, from 0.
    pub number: u64,
    /// Signs.
    pub secret_key: SecretString,
    pub(super) token: HeaderValue,
}

/// The credentials in force and the files they come from.
#[derive(Debug)]
pub struct Keyring {
    token_file: Option<PathBuf>,
    secret_key_file: Option<PathBuf>,
    current: RwLock<Arc<Credentials>>,
}

impl Keyring {
    /// Begins with the credentials that the configuration was read with.
    pub fn try_new(config: &PortalConfig) -> anyhow::Result<Keyring> {
        let (token, secret_key) = (&config.token, &config.secret_key);
        let credentials = Credentials {
            number: 0,
            secret_key: secret_key.value.clone(),
            token: header(token.value.expose_secret())?,
        };
        Ok(Keyring {
            token_file: token.file.clone(),
            secret_key_file: secret_key.file.clone(),
            current: RwLock::new(Arc::new(credentials)),
        })
    }

    /// The credentials in force.
    pub fn current(&self) -> Arc<Credentials> {
        // A writer replaces the whole pair or nothing.
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// When the files last changed; `None` if no secret comes from a file. Cheap enough to ask
    /// every few seconds, and it follows the symbolic links that Kubernetes swaps.
    pub fn changed_at(&self) -> Option<Vec<Option<SystemTime>>> {
        let files: Vec<&PathBuf> =
            [&self.token_file, &self.secret_key_file].into_iter().flatten().collect();
        let modified = |path: &PathBuf| fs::metadata(path).and_then(|file| file.modified()).ok();
        (!files.is_empty()).then(|| files.into_iter().map(modified).collect())
    }

    /// Reads the files again and returns the credentials that are in force now. What cannot be read
    /// stays as it was: a rotation under way must not stop the relay.
    pub fn reread(&self) -> Arc<Credentials> {
        let before = self.current();
        match self.read(&before) {
            Ok(after) if after != *before => {
                let after = Arc::new(after);
                let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
                *current = Arc::clone(&after);
                tracing::info!("the portal's credentials have changed and were read again");
                after
            }
            Ok(_) => before,
            Err(error) => {
                tracing::warn!("the portal's credentials stay as they were: {error:#}");
                before
            }
        }
    }

    fn read(&self, before: &Credentials) -> anyhow::Result<Credentials> {
        let read = |path: &PathBuf| read_secret(path).map_err(anyhow::Error::msg);
        let token = match &self.token_file {
            Some(path) => header(&read(path)?)?,
            None => before.token.clone(),
        };
        let secret_key = match &self.secret_key_file {
            Some(path) => read(path)?.into(),
            None => before.secret_key.clone(),
        };
        Ok(Credentials { number: before.number + 1, secret_key, token })
    }
}

impl PartialEq for Credentials {
    fn eq(&self, other: &Credentials) -> bool {
        self.token == other.token
            && self.secret_key.expose_secret() == other.secret_key.expose_secret()
    }
}

fn header(token: &str) -> anyhow::Result<HeaderValue> {
    let mut token = HeaderValue::from_str(token).context("the token is no header value")?;
    token.set_sensitive(true);
    Ok(token)
}
