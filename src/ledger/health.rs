//! Whether the ledger works: what is the matter with it, while something is.

use tokio::sync::watch;

/// What is the matter with the ledger, while something is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    reading: Option<String>,
    writing: Option<String>,
    refusing: Option<String>,
}

/// What of the ledger works or does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Reading,
    Writing,
    /// It writes, but refuses what it has no reason to refuse.
    Refusing,
}

impl Side {
    fn name(self) -> &'static str {
        match self {
            Side::Reading => "reading",
            Side::Writing => "writing",
            Side::Refusing => "refusing",
        }
    }
}

impl Health {
    /// Whether it can be read and written.
    pub fn is_good(&self) -> bool {
        self.reading.is_none() && self.writing.is_none() && self.refusing.is_none()
    }

    /// Notes how a side is, and logs a change to the better or the worse.
    pub(super) fn set(health: &watch::Sender<Health>, side: Side, fault: Option<String>) {
        let error = fault.clone();
        let has_changed = health.send_if_modified(|health| {
            let known = match side {
                Side::Reading => &mut health.reading,
                Side::Writing => &mut health.writing,
                Side::Refusing => &mut health.refusing,
            };
            let has_changed = *known != fault;
            *known = fault;
            has_changed
        });
        match (error, has_changed) {
            (Some(error), _) => tracing::error!(
                what = side.name(),
                error,
                "the ledger fails: no calls are made and nothing is acked until this is mended"
            ),
            (None, true) => tracing::info!(what = side.name(), "the ledger works again"),
            (None, false) => {}
        }
    }
}
