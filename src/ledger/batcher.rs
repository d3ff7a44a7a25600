//! Requests are answered together: while one batch is under way, the next one gathers. A batch that
//! is refused for what is in it is split, until the one that is at fault is alone.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot, watch};

use super::error::{LedgerError, Refusal};
use super::health::{Health, Side};
use crate::pauses::Pauses;

/// Requests answered in one batch, at most.
const MAX_BATCH: usize = 256;
/// Where requests come thick and fast, a batch that ends in a commit waits so long for more of them:
/// it costs nearly the same for thirty as for one. A lone request never waits.
const BATCH_DELAY: Duration = Duration::from_millis(5);
/// Before what somebody has locked is tried again.
const LOCKED_PAUSE: Duration = Duration::from_millis(500);
/// Longest pause before a batch that failed is tried again.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What a batcher does with requests.
pub(super) trait Work: Send + Sync + 'static {
    type Request: Clone + Send + Sync + 'static;
    type Reply: Send + 'static;

    /// Whether it reads or writes.
    fn side(&self) -> Side;

    /// Whether a batch ends in a commit.
    fn commits(&self) -> bool;

    /// Answers all requests or none.
    fn answer(
        &self,
        requests: Arc<Vec<Self::Request>>,
    ) -> BoxFuture<'_, Result<Vec<Self::Reply>, LedgerError>>;

    /// Takes over a request that was refused by itself.
    fn refused(self: Arc<Self>, asked: Asked<Self::Request, Self::Reply>, refusal: Refusal);
}

/// A request, and where its reply is waited for.
pub(super) struct Asked<Q, A> {
    pub(super) request: Q,
    pub(super) reply: oneshot::Sender<A>,
}

/// Where requests are handed in.
#[derive(Debug)]
pub(super) struct Batcher<Q, A> {
    requests: mpsc::Sender<Asked<Q, A>>,
}

impl<Q, A> std::fmt::Debug for Asked<Q, A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Asked")
    }
}

impl<Q: Send + Sync + 'static, A: Send + 'static> Batcher<Q, A> {
    /// Answers requests by batches of `work` until the batcher is dropped.
    pub(super) fn open<W>(work: Arc<W>, health: watch::Sender<Health>) -> Batcher<Q, A>
    where
        W: Work<Request = Q, Reply = A>,
    {
        let (requests, inbox) = mpsc::channel(MAX_BATCH);
        tokio::spawn(serve(inbox, requests.downgrade(), work, health));
        Batcher { requests }
    }

    /// Hands a request in and waits for its reply, however long that takes.
    pub(super) async fn ask(&self, request: Q) -> A {
        let (reply, replied) = oneshot::channel();
        if self.requests.send(Asked { request, reply }).await.is_ok()
            && let Ok(reply) = replied.await
        {
            return reply;
        }
        // Its task ends with the batcher, or with the process.
        std::future::pending().await
    }
}

async fn serve<W: Work>(
    mut inbox: mpsc::Receiver<Asked<W::Request, W::Reply>>,
    again: Again<W>,
    work: Arc<W>,
    health: watch::Sender<Health>,
) {
    let mut batch = Vec::with_capacity(MAX_BATCH);
    let mut is_busy = false;
    while inbox.recv_many(&mut batch, MAX_BATCH).await > 0 {
        if work.commits() && (is_busy || batch.len() > 1) {
            tokio::time::sleep(BATCH_DELAY).await;
            while batch.len() < MAX_BATCH
                && let Ok(asked) = inbox.try_recv()
            {
                batch.push(asked);
            }
        }
        is_busy = batch.len() > 1;
        answer(&work, std::mem::take(&mut batch), &again, &health).await;
    }
}

/// Answers a batch, in as many parts as it takes.
async fn answer<W: Work>(
    work: &Arc<W>,
    batch: Vec<Asked<W::Request, W::Reply>>,
    again: &Again<W>,
    health: &watch::Sender<Health>,
) {
    let mut parts = vec![split(batch)];
    while let Some((requests, mut replies)) = parts.pop() {
        let requests = Arc::new(requests);
        match until_it_works(&**work, &requests, health).await {
            Ok(answers) => {
                for (reply, answer) in replies.into_iter().zip(answers) {
                    // Whoever gave up waiting needs no answer.
                    drop(reply.send(answer));
                }
            }
            Err(Trouble::Locked(which)) => {
                let asked = requests.iter().cloned().zip(replies).enumerate();
                let (locked, rest): (Vec<_>, Vec<_>) =
                    asked.partition(|(index, _)| which.contains(index));
                tracing::warn!(
                    customers = locked.len(),
                    "another session of the database has locked rows of the ledger: their customers \
                     wait for it"
                );
                let asked = |(_, (request, reply))| Asked { request, reply };
                tokio::spawn(ask_later(locked.into_iter().map(asked).collect(), again.clone()));
                if !rest.is_empty() {
                    parts.push(split(rest.into_iter().map(asked).collect()));
                }
            }
            Err(Trouble::Refused(refusal)) if requests.len() == 1 => {
                let request = requests[0].clone();
                let reply = replies.pop().expect("one reply is waited for by each request");
                Arc::clone(work).refused(Asked { request, reply }, refusal);
            }
            Err(Trouble::Refused(_)) => {
                let (first, second) = requests.split_at(requests.len() / 2);
                let rest = replies.split_off(first.len());
                parts.push((second.to_vec(), rest));
                parts.push((first.to_vec(), replies));
            }
        }
    }
}

/// Hands requests in again, after a while.
async fn ask_later<Q, A>(locked: Vec<Asked<Q, A>>, again: mpsc::WeakSender<Asked<Q, A>>) {
    tokio::time::sleep(LOCKED_PAUSE).await;
    for asked in locked {
        // Without an inbox the process ends.
        let Some(inbox) = again.upgrade() else { return };
        drop(inbox.send(asked).await);
    }
}

fn split<Q, A>(batch: Vec<Asked<Q, A>>) -> (Vec<Q>, Vec<oneshot::Sender<A>>) {
    batch.into_iter().map(|Asked { request, reply }| (request, reply)).unzip()
}

/// Where what could not be answered is handed in again.
type Again<W> = mpsc::WeakSender<Asked<<W as Work>::Request, <W as Work>::Reply>>;

/// What is not everybody's.
enum Trouble {
    Refused(Refusal),
    /// These ones.
    Locked(Vec<usize>),
}

/// What is the ledger's own fault is waited out; what it refuses is not tried again here.
async fn until_it_works<W: Work>(
    work: &W,
    requests: &Arc<Vec<W::Request>>,
    health: &watch::Sender<Health>,
) -> Result<Vec<W::Reply>, Trouble> {
    let mut pauses = Pauses::endless(LONGEST_PAUSE);
    loop {
        let error = match work.answer(Arc::clone(requests)).await {
            Ok(answers) => {
                Health::set(health, work.side(), None);
                return Ok(answers);
            }
            Err(LedgerError::Refused(refusal)) => return Err(Trouble::Refused(refusal)),
            Err(LedgerError::Locked(which)) => return Err(Trouble::Locked(which)),
            Err(error) => error.to_string(),
        };
        Health::set(health, work.side(), Some(error));
        let pause = pauses.next_pause().expect("these pauses have no end");
        tokio::time::sleep(pause).await;
    }
}
