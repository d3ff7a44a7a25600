//! Carries a verdict out: publish, wait for the confirm, then ack. Never the other way round.

use uuid::Uuid;

use super::Worker;
use crate::amqp::{Delivery, NewMessage, PublishError, topology};
use crate::clock;
use crate::config::Declare;
use crate::domain::dead_letter::DeadLetter;
use crate::domain::field::Field;
use crate::domain::history::History;
use crate::domain::retry::Tier;
use crate::domain::verdict::Verdict;
use crate::pauses::Pauses;

impl Worker {
    /// Ends a delivery.
    pub(super) async fn settle(&self, delivery: Delivery, verdict: Verdict) {
        // The rare ends are boxed: an event that is applied should not carry their size along.
        let is_durable = match &verdict {
            Verdict::Applied => true,
            Verdict::Ignored { kind } => {
                tracing::debug!(kind, "ignored by broker.other_types");
                true
            }
            Verdict::Retry { tier, history } | Verdict::Wait { tier, history } => {
                Box::pin(self.postpone(&delivery, *tier, history)).await
            }
            Verdict::DeadLetter(dead) => Box::pin(self.bury(&delivery, dead)).await,
        };
        if !is_durable {
            self.tally.forgotten();
            return;
        }
        match delivery.ack().await {
            Ok(()) => self.tally.settled(&verdict),
            Err(forgotten) => {
                self.tally.doubled();
                tracing::warn!(verdict = verdict.name(), "{forgotten}");
            }
        }
    }

    async fn postpone(&self, delivery: &Delivery, tier: Tier, history: &History) -> bool {
        let queue = self.config.broker.topology.retry_queue(tier);
        self.publish(delivery, &queue, || delivery.message().onward(history)).await
    }

    async fn bury(&self, delivery: &Delivery, dead: &DeadLetter) -> bool {
        let queue = self.config.broker.topology.dead_queue();
        let (id, now) = (Uuid::now_v7(), clock::now());
        let message = delivery.message();
        let published = self.publish(delivery, &queue, || message.buried(dead, id, now)).await;
        if published {
            tracing::warn!(
                message_id = message.id(),
                dead_id = %id,
                reason = dead.reason.name(),
                field = dead.field.map(Field::name),
                rule = dead.rule,
                setting = dead.setting,
                detail = dead.detail,
                "dead letter"
            );
        }
        published
    }

    /// Publishes until the broker has the message, however long that takes, or until the delivery
    /// is forgotten and will come again: then it is no longer ours to settle.
    async fn publish(
        &self,
        delivery: &Delivery,
        queue: &str,
        message: impl Fn() -> NewMessage,
    ) -> bool {
        let mut pauses = Pauses::endless(self.config.broker.max_reconnect_pause);
        loop {
            let body = delivery.message().body();
            let published = tokio::select! {
                biased;
                () = delivery.forgotten() => return false,
                published = self.publisher.publish("", queue, message(), body) => published,
            };
            let Err(error) = published else { return true };
            tracing::warn!(queue, %error, "not published yet; the delivery is kept unacked");
            if let PublishError::Returned(..) = error {
                self.repair_topology().await;
            }
            let pause = pauses.next_pause().unwrap_or(self.config.broker.max_reconnect_pause);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = delivery.forgotten() => return false,
            }
        }
    }

    /// A queue of ours is gone: declares it anew, if that is ours to do.
    async fn repair_topology(&self) {
        let broker = &self.config.broker;
        if broker.declare != Declare::Apply {
            return;
        }
        let repaired = async {
            let link = broker.broker.connect("topology").await?;
            let findings = topology::apply(&link, &broker.topology).await;
            link.close().await;
            findings
        };
        match repaired.await {
            Ok(findings) => {
                for finding in findings.iter().filter(|finding| finding.is_fault()) {
                    tracing::error!("{finding}");
                }
            }
            Err(error) => tracing::warn!(%error, "the topology could not be repaired"),
        }
    }
}
