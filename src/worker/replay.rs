//! Replays that come twice: an operator's command that was killed leaves a copy behind, which has no
//! effect of its own.

use super::Worker;
use super::admit::Admitted;
use crate::amqp::Delivery;
use crate::clock;
use crate::domain::settlement::End;
use crate::domain::verdict::Verdict;
use crate::ledger::{Change, CustomerKey, Lease, LedgerError};

impl Worker {
    /// Whether the replay that a delivery belongs to has come to its end already.
    pub(super) async fn ended_before(&self, delivery: &Delivery) -> Result<bool, LedgerError> {
        let Some(replay_id) = delivery.message().replay_id() else { return Ok(false) };
        let ended = self.ledger.has_ended(replay_id).await;
        match &ended {
            Ok(true) => tracing::info!(%replay_id, "this replay has come to its end before"),
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(%replay_id, %error, "handed back: nobody can say whether it ended");
            }
        }
        ended
    }

    /// Acks an event of such a replay, unseen. The customer's lease ends with it.
    pub(super) async fn end_repeated(
        &self,
        admitted: Box<Admitted>,
        key: CustomerKey,
        lease: Option<Lease>,
    ) {
        let change = Change { customer: Some(key), lease, at: clock::now(), ..Change::default() };
        self.settle(vec![End::unsent(admitted.delivery, Verdict::Superseded, None)], change).await;
    }

    /// The verdict on an event that leads to no call, unless its replay had its end before.
    pub(super) async fn unless_ended_before(
        &self,
        delivery: &Delivery,
        verdict: Verdict,
    ) -> Verdict {
        match self.ended_before(delivery).await {
            Ok(false) => verdict,
            Ok(true) => Verdict::Superseded,
            Err(_) => match delivery.message().history(clock::now()) {
                Ok(history) => Verdict::hand_back(&self.config.retry.tiers, history),
                Err(_) => verdict,
            },
        }
    }
}
