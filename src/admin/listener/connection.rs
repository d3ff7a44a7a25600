//! One connection: what it waits for, and until when. A connection that waits for its client may be
//! closed for another one; while a request of it is in work, it may not.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::Limits;
use super::registry::{Place, Registry};
use crate::clock;
use crate::telemetry::Refusal;

/// Where the conversation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// A request has begun, or the first one is awaited.
    Head,
    /// The rest of a request.
    Body,
    /// Its answer is being made.
    Work,
    /// Parts of the answer are still to come from us.
    Answer,
    /// The last of the answer is on its way.
    Sent,
    /// Between two requests.
    Idle,
}

#[derive(Debug)]
pub(super) struct Connection {
    registry: Arc<Registry>,
    limits: Limits,
    displaced: CancellationToken,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// When the phase must be over, if the client has to end it.
    deadline: Option<Instant>,
    /// When the client must have read what is written, if it does not at the moment.
    unread_until: Option<Instant>,
    place: Option<Place>,
}

impl Connection {
    /// A connection of which nothing is known.
    pub(super) fn open(registry: &Arc<Registry>, limits: Limits) -> Arc<Connection> {
        registry.opened();
        let (phase, deadline, unread_until, place) = (Phase::Head, None, None, None);
        let connection = Connection {
            registry: Arc::clone(registry),
            limits,
            displaced: CancellationToken::new(),
            state: Mutex::new(State { phase, deadline, unread_until, place }),
        };
        connection.enter(Phase::Head);
        Arc::new(connection)
    }

    /// The client has sent something.
    pub(super) fn heard(&self) {
        if self.state().phase == Phase::Idle {
            self.enter(Phase::Head);
        }
    }

    /// A request's head is complete.
    pub(super) fn reads_body(&self) {
        self.enter(Phase::Body);
    }

    /// The request is complete.
    pub(super) fn works(&self) {
        self.enter(Phase::Work);
    }

    /// The answer's head is made.
    pub(super) fn answers(&self) {
        self.enter(Phase::Answer);
    }

    /// The client does not take what is to be written.
    pub(super) fn is_unread(&self) {
        let mut state = self.state();
        let limit = self.limits.answer_timeout;
        state.unread_until.get_or_insert_with(|| now() + limit);
        self.take_place(&mut state);
    }

    /// All that was to be written is written.
    pub(super) fn is_read(&self) {
        let is_sent = {
            let mut state = self.state();
            state.unread_until = None;
            self.take_place(&mut state);
            state.phase == Phase::Sent
        };
        if is_sent {
            self.enter(Phase::Idle);
        }
    }

    /// A newer connection has taken its place.
    pub(super) async fn displaced(&self) {
        self.displaced.cancelled().await;
    }

    /// Waits until the client has used up its time; `None` if it was merely idle. To be polled whenever
    /// the connection was.
    pub(super) async fn out_of_time(&self) -> Option<Refusal> {
        let mut sleep = pin!(sleep_until(now()));
        poll_fn(|context| {
            let Some((deadline, refusal)) = self.state().limit() else {
                return std::task::Poll::Pending;
            };
            if sleep.deadline() != deadline {
                sleep.as_mut().reset(deadline);
            }
            sleep.as_mut().poll(context).map(|()| refusal)
        })
        .await
    }

    fn enter(&self, phase: Phase) {
        let mut state = self.state();
        let limit = match phase {
            Phase::Head | Phase::Body => Some(self.limits.request_timeout),
            Phase::Idle => Some(self.limits.idle_timeout),
            Phase::Work | Phase::Answer | Phase::Sent => None,
        };
        state.phase = phase;
        state.deadline = limit.map(|limit| now() + limit);
        self.take_place(&mut state);
    }

    /// Its place among those that may be closed: it keeps the one it has as long as that is right.
    fn take_place(&self, state: &mut State) {
        let has_request = match state.phase {
            Phase::Head | Phase::Idle => Some(false),
            Phase::Body => Some(true),
            Phase::Work | Phase::Answer | Phase::Sent => state.unread_until.map(|_| true),
        };
        if state.place.map(|place| place.has_request) == has_request {
            return;
        }
        if let Some(place) = state.place.take() {
            self.registry.keep(place);
        }
        state.place = has_request.map(|has| self.registry.wait(has, &self.displaced));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(place) = self.state().place.take() {
            self.registry.keep(place);
        }
        self.registry.closed();
    }
}

impl State {
    fn limit(&self) -> Option<(Instant, Option<Refusal>)> {
        let of_phase = self.deadline.map(|deadline| {
            let refusal = match self.phase {
                Phase::Head => Some(Refusal::SlowHead),
                Phase::Body => Some(Refusal::SlowBody),
                Phase::Work | Phase::Answer | Phase::Sent | Phase::Idle => None,
            };
            (deadline, refusal)
        });
        let unread = self.unread_until.map(|until| (until, Some(Refusal::SlowReader)));
        of_phase.into_iter().chain(unread).min_by_key(|(deadline, _)| *deadline)
    }
}

/// Lives as long as parts of an answer are to come.
pub(super) struct Sent(pub(super) Arc<Connection>);

impl Drop for Sent {
    fn drop(&mut self) {
        if self.0.state().phase == Phase::Answer {
            self.0.enter(Phase::Sent);
        }
    }
}

fn now() -> Instant {
    Instant::from_std(clock::instant())
}
