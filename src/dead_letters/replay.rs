//! Dead letters put back: a canary first, then more and more of them, until all are on their way or
//! too many have failed. Publish, confirm, then ack, one at a time: a kill leaves one copy at most,
//! and its replay id keeps that from having an effect.

use std::time::Duration;

use uuid::Uuid;

use super::office::Office;
use super::plan::Plan;
use super::run::Run;
use crate::amqp::{Publisher, Scan};
use crate::clock;
use crate::ledger::{Note, ReplayCount};

/// How fast, and how far.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Letters a second, at most.
    pub rate: u32,
    /// Whether a few go first, and the others only once those have ended well.
    pub has_canary: bool,
    /// How long the canary has to come to its end.
    pub canary_wait: Duration,
    /// Of those that have ended, so many may be dead again.
    pub max_failure_rate: f64,
}

/// Why a replay stopped before its end.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Stopped {
    /// One of the first ones is dead again.
    #[error("stopped by the canary: of the first {of}, {failed} are dead again")]
    CanaryDied {
        /// How many were tried.
        of: usize,
        /// How many of them.
        failed: u64,
    },
    /// The first ones have not ended.
    #[error(
        "stopped by the canary: {0} of the first have not come to an end in time (does a relay \
         consume? do they wait for a retry?)"
    )]
    CanaryWaits(usize),
    /// Too many are dead again.
    #[error("stopped by the failure rate: of {ended} that have ended, {failed} are dead again")]
    TooManyDied {
        /// How many have ended.
        ended: u64,
        /// How many of them failed.
        failed: u64,
    },
}

/// What a replay came to.
#[derive(Clone, Debug, Default)]
pub struct Replayed {
    /// Put back by this command.
    pub put_back: u64,
    /// Of the plan, still in the dead-letter queue.
    pub left: u64,
    /// How those of the whole plan ended.
    pub ended: Vec<ReplayCount>,
    /// Of the whole plan, in the dead-letter queue no more, and not ended.
    pub pending: u64,
    /// Why it stopped.
    pub stopped: Option<Stopped>,
}

impl Replayed {
    /// How many of the plan have ended.
    pub fn ended(&self) -> u64 {
        self.ended.iter().map(|(.., count)| count).sum()
    }
}

/// Between two looks at what has ended.
pub(super) const LOOK: Duration = Duration::from_millis(250);
/// So many must have ended before their failures say anything.
const ENOUGH: u64 = 10;
/// While more messages than this wait for a relay, no more are put back.
const MOST_WAITING: u32 = 1000;
/// What is looked at is unacked: long before the broker's consumer timeout it goes back.
const ROUND: Duration = Duration::from_mins(5);
/// Letters whose index rows go together.
const GONE_AT_ONCE: usize = 100;

impl Office<'_> {
    /// Puts the plan's letters back, as far as they are there. `says` is told how many.
    pub async fn replay(
        &self,
        plan: &Plan,
        limits: Limits,
        says: impl Fn(u64),
    ) -> anyhow::Result<Replayed> {
        let mut run = Run::new(plan, limits, self.ends(plan).await?);
        let publisher = Publisher::new(self.config.broker.broker.clone(), 1);
        let carried = loop {
            match self.carry(&mut run, &publisher, &says).await {
                Ok(Round::Over) => break Ok(()),
                Ok(Round::Again) => {}
                Err(error) => break Err(error),
            }
        };
        publisher.close().await;
        self.index_forgets(&mut run.gone).await?;
        carried?;
        let replayed = self.account(plan, run.remaining.len()).await?;
        Ok(Replayed { put_back: run.put_back, stopped: run.stopped, ..replayed })
    }

    /// How a plan stands, of which so many are still in the queue.
    async fn account(&self, plan: &Plan, left: usize) -> anyhow::Result<Replayed> {
        let ended = match self.ledger() {
            Some((store, _)) => store.count_replays(plan.id.clone()).await?,
            None => Vec::new(),
        };
        let replayed = Replayed { left: left as u64, ended, ..Replayed::default() };
        let gone = plan.letters.len() as u64 - replayed.left;
        let pending = gone.saturating_sub(replayed.ended());
        Ok(Replayed { pending, ..replayed })
    }

    /// Waits until nothing of the plan is pending, or the time is over. `says` is told how many have
    /// ended.
    pub async fn wait_for_ends(
        &self,
        plan: &Plan,
        before: Replayed,
        limit: Duration,
        says: impl Fn(u64),
    ) -> anyhow::Result<Replayed> {
        let left = usize::try_from(before.left).unwrap_or(usize::MAX);
        let began = clock::instant();
        loop {
            let now = self.account(plan, left).await?;
            says(now.ended());
            if now.pending == 0 || began.elapsed() > limit {
                let Replayed { put_back, stopped, .. } = before;
                return Ok(Replayed { put_back, stopped, ..now });
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// One walk through the queue, no longer than [`ROUND`].
    async fn carry(
        &self,
        run: &mut Run<'_>,
        publisher: &Publisher,
        says: &impl Fn(u64),
    ) -> anyhow::Result<Round> {
        let queue = self.queue();
        let mut scan = self.scan(&queue).await?;
        let over = self.carry_on(run, &mut scan, publisher, says).await;
        // What was acked stays so, whatever happened.
        scan.end().await?;
        over
    }

    async fn carry_on(
        &self,
        run: &mut Run<'_>,
        scan: &mut Scan<'_>,
        publisher: &Publisher,
        says: &impl Fn(u64),
    ) -> anyhow::Result<Round> {
        let work = self.config.broker.topology.work_queue();
        let began = clock::instant();
        while !run.remaining.is_empty() {
            if began.elapsed() > ROUND {
                return Ok(Round::Again);
            }
            let Some(message) = scan.next().await? else {
                // What is not there was put back before, or taken away.
                run.remaining.clear();
                break;
            };
            let letter = message.letter();
            if !run.remaining.contains(&letter.id) {
                continue;
            }
            run.keep_pace().await;
            if run.is_time_to_look() && !self.may_go_on(run).await? {
                break;
            }
            let history = run.history(&message, letter.id);
            let copy = message.replayed(&letter, &history);
            publisher.publish("", &work, copy, message.body()).await?;
            scan.erase(message).await?;
            run.note_sent(letter.id);
            says(run.put_back);
            if run.gone.len() >= GONE_AT_ONCE {
                self.index_forgets(&mut run.gone).await?;
            }
            if run.canary_is_out() && !self.canary_lives(run).await? {
                break;
            }
        }
        Ok(Round::Over)
    }

    /// Waits while enough messages wait for a relay; false if too many have failed.
    async fn may_go_on(&self, run: &mut Run<'_>) -> anyhow::Result<bool> {
        let work = self.config.broker.topology.work_queue();
        while self.depth(&work).await? > MOST_WAITING {
            tokio::time::sleep(LOOK).await;
        }
        let (ended, failed) = run.own_ends(self.ends(run.plan).await?);
        if ended >= ENOUGH && exceeds(failed, ended, run.limits.max_failure_rate) {
            run.stopped = Some(Stopped::TooManyDied { ended, failed });
        }
        Ok(run.stopped.is_none())
    }

    /// Waits for the ends of the first ones; false if they did not end well, or not in time.
    async fn canary_lives(&self, run: &mut Run<'_>) -> anyhow::Result<bool> {
        let store = self.store()?;
        let began = clock::instant();
        let of = run.canary.len();
        while let Some(first) = run.canary.last() {
            if store.has_replay_ended(*first).await? {
                run.canary.pop();
            } else if began.elapsed() > run.limits.canary_wait {
                run.stopped = Some(Stopped::CanaryWaits(run.canary.len()));
                return Ok(false);
            } else {
                tokio::time::sleep(LOOK).await;
            }
        }
        let (ended, failed) = run.own_ends(self.ends(run.plan).await?);
        if exceeds(failed, ended, run.limits.max_failure_rate) {
            run.stopped = Some(Stopped::CanaryDied { of, failed });
        }
        Ok(run.stopped.is_none())
    }

    /// How many of a plan have ended, and how many of those are dead again.
    async fn ends(&self, plan: &Plan) -> anyhow::Result<(u64, u64)> {
        let Some((store, _)) = self.ledger() else { return Ok((0, 0)) };
        let ended = store.count_replays(plan.id.clone()).await?;
        let dead = ended.iter().filter(|(_, reason, _)| reason.is_some());
        Ok((ended.iter().map(|(.., count)| count).sum(), dead.map(|(.., count)| count).sum()))
    }

    async fn index_forgets(&self, gone: &mut Vec<Uuid>) -> anyhow::Result<()> {
        let gone = std::mem::take(gone);
        if let Some((store, _)) = self.ledger().filter(|_| !gone.is_empty()) {
            let notes = gone.into_iter().map(|dead_id| (None, Note::Gone { dead_id }));
            store.note(notes.collect()).await?;
        }
        Ok(())
    }
}

/// A few failures more or less: counts are far below what floats can tell apart.
#[expect(clippy::cast_precision_loss, reason = "see above")]
fn exceeds(failed: u64, ended: u64, rate: f64) -> bool {
    failed as f64 > rate * ended as f64
}

enum Round {
    Over,
    /// There is more, but what was looked at has to go back first.
    Again,
}
