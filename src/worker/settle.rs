//! Carries verdicts out: publish and wait for the confirm, record, then ack. Never the other way
//! round: a crash between any two leaves what the redelivery repairs.

use uuid::Uuid;

use super::Worker;
use crate::amqp::{Delivery, Message, NewMessage, PublishError, topology};
use crate::clock;
use crate::config::Declare;
use crate::domain::dead_letter::{DeadLetter, Reason};
use crate::domain::field::Field;
use crate::domain::group::Doubt;
use crate::domain::history::History;
use crate::domain::letter::Letter;
use crate::domain::retry::{Tier, after};
use crate::domain::settlement::{Action, End, Input, Publication, Settlement};
use crate::domain::text::escape;
use crate::domain::verdict::Verdict;
use crate::domain::version::{EventRef, MAX_EVENT_BYTES};
use crate::ledger::{Change, DoubtNote, Note, PendingNote, ReplayEnd};
use crate::pauses::Pauses;
use crate::telemetry::trace;

impl Worker {
    /// Ends deliveries of one customer.
    pub(super) async fn settle(&self, ends: Vec<End<Delivery>>, mut change: Change) {
        let count = ends.len();
        let shortest = self.config.retry.tiers.shortest();
        let (mut settlement, mut action) = Settlement::begin(ends, shortest);
        let ends = loop {
            let fact = match action {
                Action::Publish(index) => {
                    self.publish_end(settlement.end(index), &mut change).await
                }
                Action::Record(record) => Input::Recorded(self.record(record, &mut change).await),
                Action::Ack => break settlement.into_ends(),
            };
            action = settlement.step(fact);
        };
        (ends.len()..count).for_each(|_| self.tally.forgotten());
        for end in ends {
            self.ack(end).await;
        }
    }

    async fn ack(&self, end: End<Delivery>) {
        let End { carrier: delivery, verdict, doubt, .. } = end;
        let (came, context, receipt) =
            (delivery.came(), delivery.context().clone(), delivery.receipt());
        match delivery.ack().await {
            Ok(()) => {
                if let Some(receipt) = receipt {
                    let now = clock::instant();
                    self.with_receipts(|receipts| receipts.acked(receipt, &verdict, now));
                }
                if doubt == Some(Doubt::Now) {
                    self.metrics().in_doubt(&verdict);
                }
                self.tally.settled(&verdict, came.elapsed());
                self.telemetry.tracing.settled(&context, &verdict);
            }
            Err(forgotten) => {
                self.tally.doubled();
                tracing::warn!(verdict = verdict.name(), "{forgotten}");
            }
        }
    }

    /// Makes an end durable at the broker, as far as it has anything to do with it, and notes it. The
    /// rare ends are boxed: an event that is applied should not carry their size along.
    async fn publish_end(&self, end: &End<Delivery>, change: &mut Change) -> Input {
        let End { carrier: delivery, event, .. } = end;
        let notes = &mut change.notes;
        let settled = || event.clone().filter(|_| delivery.message().is_ours());
        match end.publication() {
            Publication::None => notes.extend(settled().map(|event| Note::Settled { event })),
            Publication::Resend(tier, history) => {
                Box::pin(self.send_again_later(delivery, tier, history)).await;
                notes.extend(event.as_ref().map(|it| pending(it, tier, history)));
            }
            Publication::Retry(tier, history) => {
                if !Box::pin(self.postpone(delivery, tier, history)).await {
                    return Input::Forgotten;
                }
                let known = event.as_ref().filter(|_| change.customer.is_some());
                notes.extend(known.map(|event| pending(event, tier, history)));
            }
            Publication::DeadLetter(dead) => {
                let Some(letter) = Box::pin(self.bury(delivery, dead, event.as_ref())).await else {
                    return Input::Forgotten;
                };
                notes.push(Note::Dead(Box::new(letter)));
                notes.extend(settled().map(|event| Note::Settled { event }));
            }
        }
        notes.extend(delivery.message().dead_id().map(|dead_id| Note::Gone { dead_id }));
        notes.extend(doubt_note(end));
        notes.extend(replay_end(delivery.message(), &end.verdict).map(Note::Replayed));
        Input::Published
    }

    async fn postpone(&self, delivery: &Delivery, tier: Tier, history: &History) -> bool {
        let queue = self.config.broker.topology.retry_queue(tier);
        self.publish(delivery, &queue, || delivery.message().onward(history)).await
    }

    /// Like [`postpone`](Self::postpone), but not given up when the delivery is forgotten.
    async fn send_again_later(&self, delivery: &Delivery, tier: Tier, history: &History) {
        let queue = self.config.broker.topology.retry_queue(tier);
        let never = std::future::pending();
        let message = || delivery.message().onward(history);
        self.publish_until(never, delivery, &queue, message).await;
    }

    async fn bury(
        &self,
        delivery: &Delivery,
        dead: &DeadLetter,
        event: Option<&EventRef>,
    ) -> Option<Letter> {
        let queue = self.config.broker.topology.dead_queue();
        let (dead_id, died) = (Uuid::now_v7(), clock::now());
        let message = delivery.message();
        let id = event.map(|event| event.id.as_str()).or(message.id());
        let event = id.map(|id| escape(id, MAX_EVENT_BYTES));
        let buried = || message.buried(dead, event.as_deref(), dead_id, died);
        if !self.publish(delivery, &queue, buried).await {
            return None;
        }
        let _trace = delivery.context().clone().attach();
        tracing::warn!(
            message_id = message.shown_id().as_deref(),
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
            event: event.as_ref().map(ToString::to_string),
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

    /// Publishes until the broker has the message, however long that takes, or until the delivery
    /// is forgotten and will come again: then it is no longer ours to settle.
    async fn publish(
        &self,
        delivery: &Delivery,
        queue: &str,
        message: impl Fn() -> NewMessage,
    ) -> bool {
        self.publish_until(delivery.forgotten(), delivery, queue, message).await
    }

    /// Publishes until the broker has the message; false if it was given up before.
    async fn publish_until(
        &self,
        given_up: impl Future<Output = ()>,
        delivery: &Delivery,
        queue: &str,
        message: impl Fn() -> NewMessage,
    ) -> bool {
        let mut given_up = std::pin::pin!(given_up);
        let mut pauses = Pauses::endless(self.config.broker.max_reconnect_pause);
        let tracing = &self.telemetry.tracing;
        loop {
            let (body, id) = (delivery.message().body(), delivery.message().shown_id());
            let context = tracing.sending(delivery.context(), queue, id.as_deref());
            let message = message();
            let message = if tracing.is_on() { message.in_trace(&context) } else { message };
            let published = tokio::select! {
                biased;
                () = &mut given_up => return false,
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
                () = &mut given_up => return false,
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

fn doubt_note(end: &End<Delivery>) -> Option<Note> {
    let (doubt, event) = (end.doubt?, end.event.clone()?);
    let ended = end.verdict.reason().map_or(end.verdict.name(), Reason::name).to_owned();
    let (at, is_past) = (clock::now(), doubt == Doubt::Past);
    Some(Note::Doubted(DoubtNote { event, at, ended, is_past }))
}

/// How a replay ended, if the message is one and has.
fn replay_end(message: &Message, verdict: &Verdict) -> Option<ReplayEnd> {
    let is_end = verdict.tier().is_none();
    let replay_id = message.replay_id().filter(|_| is_end)?;
    let reason = verdict.reason().map(|reason| reason.name().to_owned());
    Some(ReplayEnd { replay_id, ended: verdict.name().to_owned(), reason, at: clock::now() })
}

fn pending(event: &EventRef, tier: Tier, history: &History) -> Note {
    let now = clock::now();
    let due = after(now, tier.delay());
    Note::Pending(PendingNote {
        event: event.clone(),
        tier_ms: Some(tier.millis()),
        attempts: history.attempts,
        since: now,
        due: history.not_before.map_or(due, |not_before| not_before.at.max(due)),
        reason: history.last_reason.clone().unwrap_or_else(|| "handed-back".to_owned()),
    })
}
