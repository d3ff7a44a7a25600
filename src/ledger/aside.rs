//! Whose fault it is when a ledger that works refuses something: the event's own, or the ledger's after
//! all (a rule that somebody added, a step that was not taken to its end).
//!
//! The same is written of another customer and another event, and taken back. If the ledger takes
//! that, the fault is the event's own. If it refuses that as well, the fault is the ledger's: nothing
//! can be recorded, which everybody waits out. So nobody waits for others' events, and many events at
//! fault are told from a ledger at fault as quickly as one.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use super::change::Change;
use super::error::{LedgerError, Refusal};
use super::health::{Health, Side};
use super::store::Store;

/// Between two tries.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Where refused requests wait until it is known whose fault that is.
#[derive(Debug)]
pub(super) struct Aside {
    store: Store,
    /// How many of them speak against the ledger.
    blames: AtomicUsize,
    health: watch::Sender<Health>,
}

/// Whose fault a refusal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finding {
    /// The event's own.
    Own,
    /// The ledger's: nothing can be recorded.
    Ledgers,
    /// Not known: the ledger does not even answer.
    Open,
}

impl Aside {
    pub(super) fn new(store: Store, health: watch::Sender<Health>) -> Aside {
        Aside { store, blames: AtomicUsize::new(0), health }
    }

    /// Tries a request that was refused again and again, as long as `other` is refused too. Its answer;
    /// `None` if it is at fault itself.
    pub(super) async fn settle<T, F>(
        &self,
        other: &Change,
        mut refusal: Refusal,
        again: impl Fn() -> F,
    ) -> Option<T>
    where
        F: Future<Output = Result<Vec<T>, LedgerError>>,
    {
        tracing::error!(error = %refusal, "the ledger refuses a change; it is set aside");
        let mut blame = Blame { aside: self, is_on: false };
        loop {
            let finding = self.find(other, &refusal).await;
            match finding {
                // What speaks against the event may have been mended between its try and the other's.
                Finding::Own => {}
                Finding::Ledgers => {
                    blame.set(true, &refusal);
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                // What was known before still holds.
                Finding::Open => tokio::time::sleep(RETRY_PAUSE).await,
            }
            match again().await {
                Ok(mut answers) => {
                    blame.set(false, &refusal);
                    return answers.pop();
                }
                Err(LedgerError::Refused(again)) if finding == Finding::Own => {
                    blame.set(false, &refusal);
                    tracing::error!(
                        error = %again,
                        "the ledger takes other changes: the event cannot be recorded"
                    );
                    return None;
                }
                Err(LedgerError::Refused(again)) => refusal = again,
                // Whoever reads or commits beside us says so.
                Err(error) => {
                    tracing::debug!(%error, "a change that is set aside still waits");
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
        }
    }

    async fn find(&self, other: &Change, refusal: &Refusal) -> Finding {
        if refusal.is_about_value {
            return Finding::Own;
        }
        match self.store.rehearse(other.clone()).await {
            Ok(()) => Finding::Own,
            Err(LedgerError::Refused(_)) => Finding::Ledgers,
            Err(_) => Finding::Open,
        }
    }
}

/// A change that speaks against the ledger as long as it is not taken.
struct Blame<'a> {
    aside: &'a Aside,
    is_on: bool,
}

impl Blame<'_> {
    fn set(&mut self, is_on: bool, refusal: &Refusal) {
        if is_on && !self.is_on {
            self.aside.blames.fetch_add(1, Ordering::SeqCst);
            let text = LedgerError::Refused(refusal.clone()).to_string();
            Health::set(&self.aside.health, Side::Refusing, Some(text));
        } else if !is_on && self.is_on {
            self.lift();
        }
        self.is_on = is_on;
    }

    fn lift(&self) {
        if self.aside.blames.fetch_sub(1, Ordering::SeqCst) == 1 {
            Health::set(&self.aside.health, Side::Refusing, None);
        }
    }
}
