//! Carries verdicts out: publish and wait for the confirm, record, then ack. Never the other way
//! round: a crash between any two leaves what the redelivery repairs.

use uuid::Uuid;

use super::Worker;
use crate::amqp::{Delivery, Message, NewMessage, PublishError, topology};
use crate::clock;
use crate::config::Declare;
use crate::domain::dead_letter::DeadLetter;
use crate::domain::field::Field;
use crate::domain::history::History;
use crate::domain::letter::Letter;
use crate::domain::redact::cut;
use crate::domain::retry::{Tier, after};
use crate::domain::verdict::Verdict;
use crate::domain::version::MAX_EVENT_BYTES;
use crate::ledger::{Change, Committed, Note, PendingNote, ReplayEnd};
use crate::pauses::Pauses;
use crate::telemetry::trace;

/// How one delivery ends.
pub(super) struct End {
    pub(super) delivery: Delivery,
    pub(super) verdict: Verdict,
    /// Which event it is, in the ledger's words; `None` if the message is none.
    pub(super) event: Option<String>,
    /// It was applied, and goes to this tier to be applied again: an older call may undo it.
    pub(super) resend: Option<(Tier, History)>,
}

impl End {
    pub(super) fn new(delivery: Delivery, verdict: Verdict, event: Option<String>) -> End {
        End { delivery, verdict, event, resend: None }
    }
}

impl Worker {
    /// Ends deliveries of one customer: what the broker must have is confirmed, then one commit of
    /// the ledger, then the acks.
    pub(super) async fn settle(&self, ends: Vec<End>, mut change: Change) {
        let mut durable = Vec::with_capacity(ends.len());
        for end in ends {
            if self.take_effect(&end, &mut change).await {
                durable.push(end);
            } else {
                self.tally.forgotten();
            }
        }
        if !change.is_empty() && self.ledger.about().is_some() {
            // Only a lease can be lost.
            let spare = change.lease.map(|_| Change { row: None, lease: None, ..change.clone() });
            let committed = self.ledger.commit(change).await;
            if let (Committed::LeaseLost, Some(spare)) = (committed, spare) {
                Box::pin(self.after_lost_lease(&mut durable, spare)).await;
            }
        }
        for end in durable {
            let (came, context) = (end.delivery.came(), end.delivery.context().clone());
            match end.delivery.ack().await {
                Ok(()) => {
                    self.tally.settled(&end.verdict, came.elapsed());
                    self.telemetry.tracing.settled(&context, &end.verdict);
                }
                Err(forgotten) => {
                    self.tally.doubled();
                    tracing::warn!(verdict = end.verdict.name(), "{forgotten}");
                }
            }
        }
    }

    /// Makes an end durable at the broker, as far as it has anything to do with it; false if the
    /// delivery was forgotten before. The rare ends are boxed: an event that is applied should not
    /// carry their size along.
    async fn take_effect(&self, end: &End, change: &mut Change) -> bool {
        let End { delivery, verdict, event, resend } = end;
        let message = delivery.message();
        change.notes.extend(message.dead_id().map(|dead_id| Note::Gone { dead_id }));
        let tier = match verdict {
            Verdict::Applied => resend.as_ref().map(|(tier, history)| (*tier, history)),
            Verdict::Superseded => None,
            Verdict::Ignored { kind } => {
                tracing::debug!(kind, "ignored by broker.other_types");
                None
            }
            Verdict::Retry { tier, history } | Verdict::Wait { tier, history } => {
                Some((*tier, history))
            }
            Verdict::DeadLetter(dead) => {
                let note = Box::pin(self.bury(delivery, dead, event.as_deref())).await;
                let is_durable = note.is_some();
                change.notes.extend(note.map(|letter| Note::Dead(Box::new(letter))));
                if !is_durable {
                    return false;
                }
                None
            }
        };
        if let Some((tier, history)) = tier {
            if !Box::pin(self.postpone(delivery, tier, history)).await {
                return false;
            }
            if let (Some(event), Some(_)) = (event, change.customer) {
                change.notes.push(pending(event, tier, history));
            }
        } else if let Some(event) = event.as_ref().filter(|_| message.is_ours()) {
            change.notes.push(Note::Settled { event: event.clone() });
        }
        change.notes.extend(replay_end(message, verdict).map(Note::Replayed));
        true
    }

    async fn postpone(&self, delivery: &Delivery, tier: Tier, history: &History) -> bool {
        let queue = self.config.broker.topology.retry_queue(tier);
        self.publish(delivery, &queue, || delivery.message().onward(history)).await
    }

    async fn bury(
        &self,
        delivery: &Delivery,
        dead: &DeadLetter,
        event: Option<&str>,
    ) -> Option<Letter> {
        let queue = self.config.broker.topology.dead_queue();
        let (dead_id, died) = (Uuid::now_v7(), clock::now());
        let message = delivery.message();
        let event = event.or(message.id()).map(|id| cut(id, MAX_EVENT_BYTES));
        let buried = || message.buried(dead, event, dead_id, died);
        if !self.publish(delivery, &queue, buried).await {
            return None;
        }
        let _trace = delivery.context().clone().attach();
        tracing::warn!(
            message_id = message.id(),
            %dead_id,
            trace_id = trace::id(delivery.context()),
            reason = dead.reason.name(),
            field = dead.field.map(Field::name),
            rule = dead.rule,
            setting = dead.setting,
            detail = dead.detail,
            "dead letter"
        );
        let flags = [("needs-review", dead.needs_review), ("unwitnessed", dead.unwitnessed)];
        let flags: Vec<&str> = flags.iter().filter(|flag| flag.1).map(|flag| flag.0).collect();
        Some(Letter {
            id: dead_id,
            event: event.map(str::to_owned),
            reason: dead.reason,
            detail: Some(dead.detail.clone()),
            field: dead.field.map(|field| field.name().to_owned()),
            rule: dead.rule.map(str::to_owned),
            http_status: dead.http_status,
            portal_status: dead.portal_status,
            attempts: dead.history.attempts,
            died: Some(died),
            flags: (!flags.is_empty()).then(|| flags.join(",")),
            replays: message.replays(),
            revision: dead.history.revision,
        })
    }

    /// The customer was another relay's before the commit: what was applied here is judged again,
    /// against what that one has recorded. What the broker has taken stands.
    async fn after_lost_lease(&self, durable: &mut Vec<End>, mut change: Change) {
        tracing::warn!("a lease ran out during a call; its events are tried again");
        change.notes.retain(|note| !matches!(note, Note::Settled { .. } | Note::Replayed(_)));
        let mut handed_back = Vec::with_capacity(durable.len());
        for mut end in durable.drain(..) {
            let history = match (&end.verdict, &end.resend) {
                (Verdict::Applied, None) => end.delivery.message().history(clock::now()).ok(),
                _ => None,
            };
            if let Some(history) = history {
                let history = History { ambiguous: true, ..history };
                let tier = self.config.retry.tiers.shortest();
                if !self.postpone(&end.delivery, tier, &history).await {
                    self.tally.forgotten();
                    continue;
                }
                end.verdict = Verdict::Wait { tier, history };
            }
            handed_back.push(end);
        }
        *durable = handed_back;
        if !change.is_empty() {
            self.ledger.commit(change).await;
        }
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
        let tracing = &self.telemetry.tracing;
        loop {
            let body = delivery.message().body();
            let context = tracing.sending(delivery.context(), queue, delivery.message().id());
            let message = message();
            let message = if tracing.is_on() { message.in_trace(&context) } else { message };
            let published = tokio::select! {
                biased;
                () = delivery.forgotten() => return false,
                published = self.publisher.publish("", queue, message, body) => published,
            };
            let fault = published.as_ref().err().map(PublishError::name);
            self.metrics().sent(queue, fault);
            tracing.sent(&context, fault);
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

/// How a replay ended, if the message is one and has.
fn replay_end(message: &Message, verdict: &Verdict) -> Option<ReplayEnd> {
    let is_end = verdict.tier().is_none();
    let replay_id = message.replay_id().filter(|_| is_end)?;
    let reason = verdict.reason().map(|reason| reason.name().to_owned());
    Some(ReplayEnd { replay_id, ended: verdict.name().to_owned(), reason, at: clock::now() })
}

fn pending(event: &str, tier: Tier, history: &History) -> Note {
    let now = clock::now();
    let due = after(now, tier.delay());
    Note::Pending(PendingNote {
        event: event.to_owned(),
        attempts: history.attempts,
        since: now,
        due: history.not_before.map_or(due, |not_before| not_before.max(due)),
        reason: history.last_reason.clone().unwrap_or_else(|| "handed-back".to_owned()),
    })
}
