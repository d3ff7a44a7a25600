//! What there is to record of ends, committed. What a ledger does not take, [`Settlement`] gives another
//! end.
//!
//! [`Settlement`]: crate::domain::settlement::Settlement

use super::Worker;
use crate::domain::settlement::{Committed, Record};
use crate::ledger::{Change, Note};

impl Worker {
    /// Commits what has been gathered; what is left in `change` is what a next commit has to begin
    /// with.
    pub(super) async fn record(&self, record: Record, change: &mut Change) -> Committed {
        if change.is_empty() || self.ledger.about().is_none() {
            return Committed::Done;
        }
        match record {
            Record::Ends => self.record_ends(change).await,
            Record::Letters => {
                let committed = self.ledger.commit(change.clone()).await;
                change.lease = None;
                committed
            }
            Record::Copies | Record::Index => {
                let committed = self.ledger.commit(std::mem::take(change)).await;
                if committed == Committed::Refused {
                    tracing::error!(
                        "the index misses dead letters; `customer-relay dead reindex` adds them"
                    );
                }
                committed
            }
        }
    }

    async fn record_ends(&self, change: &mut Change) -> Committed {
        let Change { customer, lease, at, .. } = *change;
        let says_no_end = |note: &&Note| !matches!(note, Note::Settled { .. } | Note::Replayed(_));
        // Only a lease can be lost.
        let spare = lease.map(|_| change.notes.iter().filter(says_no_end).cloned().collect());
        let committed = self.ledger.commit(std::mem::take(change)).await;
        match committed {
            Committed::Done => {}
            Committed::LeaseLost => {
                tracing::warn!("a lease ran out during a call; its events are tried again");
                let notes = spare.expect("only a lease can be lost");
                *change = Change { customer, at, notes, ..Change::default() };
            }
            Committed::Refused => {
                *change = Change { customer, lease, at, ..Change::default() };
            }
        }
        committed
    }
}
