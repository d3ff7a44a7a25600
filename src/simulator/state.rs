//! All that the simulator holds while it runs, shared by every connection.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Deserialize;

use crate::cli::{Messages, Options};
use crate::faults::Faults;
use crate::fields::FieldOrder;
use crate::portal::Portal;
use crate::request_log::RequestLog;
use crate::stats::Stats;

/// The running simulator.
#[derive(Debug)]
pub(crate) struct Simulator {
    pub(crate) manners: Manners,
    pub(crate) credentials: Mutex<Credentials>,
    pub(crate) portal: Portal,
    pub(crate) faults: Faults,
    pub(crate) log: RequestLog,
    pub(crate) stats: Stats,
}

/// How the portal behaves towards every call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manners {
    pub(crate) order: FieldOrder,
    pub(crate) latency: Duration,
    pub(crate) detailed: bool,
    pub(crate) http_errors: bool,
}

/// What a caller must know.
#[derive(Clone)]
pub(crate) struct Credentials {
    pub(crate) token: String,
    pub(crate) secret_key: String,
}

/// New credentials; what is absent stays as it is.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CredentialsChange {
    token: Option<String>,
    secret_key: Option<String>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Credentials")
    }
}

impl Simulator {
    /// A simulator that behaves as `options` say.
    pub(crate) fn new(options: Options) -> Self {
        let manners = Manners {
            order: options.field_order,
            latency: options.latency,
            detailed: options.messages == Messages::Detailed,
            http_errors: options.http_errors,
        };
        Self {
            manners,
            credentials: Mutex::new(Credentials {
                token: options.token,
                secret_key: options.secret_key,
            }),
            portal: Portal::new(!options.strict_customers, options.seed_customers),
            faults: Faults::default(),
            log: RequestLog::new(options.log_requests),
            stats: Stats::default(),
        }
    }

    /// Forgets customers, log and totals; fault rules and credentials stay.
    pub(crate) fn reset(&self) {
        self.portal.reset();
        self.log.clear();
        self.stats.reset();
    }
}

impl Credentials {
    /// Takes over what `change` names.
    pub(crate) fn change(&mut self, change: CredentialsChange) {
        if let Some(token) = change.token {
            self.token = token;
        }
        if let Some(secret_key) = change.secret_key {
            self.secret_key = secret_key;
        }
    }
}

/// Locks `mutex`; what a panicking holder left behind is still used.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
