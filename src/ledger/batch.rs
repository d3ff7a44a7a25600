//! Requests are answered together: while one round is under way, the next one gathers.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use super::{Health, LedgerError};
use crate::pauses::Pauses;

/// Requests answered in one round, at most.
const MOST: usize = 256;
/// Where requests come thick and fast, a round that ends in a commit waits so long for more of them:
/// it costs nearly the same for thirty as for one. A lone request never waits.
const GATHER: Duration = Duration::from_millis(5);
/// Longest pause before a round that failed is tried again.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What a desk is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Reading,
    /// Reading that takes a lease.
    Leasing,
    Writing,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Reading | Kind::Leasing => "reading",
            Kind::Writing => "writing",
        }
    }

    fn commits(self) -> bool {
        self != Kind::Reading
    }
}

/// Where requests are handed in.
pub(super) struct Desk<Q, A> {
    requests: mpsc::Sender<(Q, oneshot::Sender<A>)>,
}

impl<Q, A> fmt::Debug for Desk<Q, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Desk")
    }
}

impl<Q: Send + Sync + 'static, A: Send + 'static> Desk<Q, A> {
    /// Answers requests by rounds of `act` until the desk is dropped.
    pub(super) fn open<F, R>(act: F, kind: Kind, health: watch::Sender<Health>) -> Desk<Q, A>
    where
        F: Fn(Arc<Vec<Q>>) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Vec<A>, LedgerError>> + Send + 'static,
    {
        let (requests, inbox) = mpsc::channel(MOST);
        tokio::spawn(serve(inbox, act, kind, health));
        Desk { requests }
    }

    /// Hands a request in and waits for its answer, however long that takes.
    pub(super) async fn ask(&self, question: Q) -> A {
        let (answer, answered) = oneshot::channel();
        if self.requests.send((question, answer)).await.is_ok()
            && let Ok(answer) = answered.await
        {
            return answer;
        }
        // Its task ends with the desk, or with the process.
        std::future::pending().await
    }
}

async fn serve<Q, A, F, R>(
    mut inbox: mpsc::Receiver<(Q, oneshot::Sender<A>)>,
    act: F,
    kind: Kind,
    health: watch::Sender<Health>,
) where
    F: Fn(Arc<Vec<Q>>) -> R,
    R: Future<Output = Result<Vec<A>, LedgerError>>,
{
    let mut round = Vec::with_capacity(MOST);
    let mut is_busy = false;
    while inbox.recv_many(&mut round, MOST).await > 0 {
        if kind.commits() && (is_busy || round.len() > 1) {
            tokio::time::sleep(GATHER).await;
            while round.len() < MOST
                && let Ok(request) = inbox.try_recv()
            {
                round.push(request);
            }
        }
        is_busy = round.len() > 1;
        let (questions, askers): (Vec<Q>, Vec<_>) = round.drain(..).unzip();
        let answers = until_done(&act, Arc::new(questions), kind, &health).await;
        for (asker, answer) in askers.into_iter().zip(answers) {
            // Whoever gave up waiting needs no answer.
            drop(asker.send(answer));
        }
    }
}

async fn until_done<Q, A, F, R>(
    act: &F,
    questions: Arc<Vec<Q>>,
    kind: Kind,
    health: &watch::Sender<Health>,
) -> Vec<A>
where
    F: Fn(Arc<Vec<Q>>) -> R,
    R: Future<Output = Result<Vec<A>, LedgerError>>,
{
    let mut pauses = Pauses::endless(LONGEST_PAUSE);
    loop {
        let error = match act(Arc::clone(&questions)).await {
            Ok(answers) => {
                if set(health, kind, None) {
                    tracing::info!(what = kind.name(), "the ledger works again");
                }
                return answers;
            }
            Err(error) => error.to_string(),
        };
        tracing::error!(
            what = kind.name(),
            error,
            "the ledger fails: no calls are made and nothing is acked until this is mended"
        );
        set(health, kind, Some(error));
        tokio::time::sleep(pauses.next_pause().unwrap_or(LONGEST_PAUSE)).await;
    }
}

/// Notes how a desk fares; whether that is news.
fn set(health: &watch::Sender<Health>, kind: Kind, fault: Option<String>) -> bool {
    health.send_if_modified(|health| {
        let known = match kind {
            Kind::Reading | Kind::Leasing => &mut health.reading,
            Kind::Writing => &mut health.writing,
        };
        let is_news = *known != fault;
        *known = fault;
        is_news
    })
}
