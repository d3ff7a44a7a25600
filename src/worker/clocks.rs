//! Our clock held against others at work: the portal's, the database's, the broker's, the events'. What
//! follows is [`ClockOffset`]'s; this only reads clocks and tells.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use tokio::sync::Notify;

use super::Worker;
use crate::amqp::Message;
use crate::clock;
use crate::domain::clock_offset::{ClockOffset, News, Reading, Source, Time, Trust};
use crate::domain::gate::Gate;
use crate::domain::response::http_date;

/// Between two looks at our clock.
const LOOK: Duration = Duration::from_secs(1);
/// An HTTP date is cut to this.
const HTTP_RESOLUTION: Duration = Duration::from_secs(1);
/// PostgreSQL's times are cut to this.
const DATABASE_RESOLUTION: Duration = Duration::from_micros(1);
/// A slower answer says too little.
const MAX_ANSWER: Duration = Duration::from_secs(10);
/// A message that comes while the work queue is seen to be empty has waited for less.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// Other clocks, as far as they are known.
pub(super) struct Clocks {
    offset: Mutex<ClockOffset>,
    /// An event is ahead, and no clock tells whether it is ours that is behind.
    missed: Notify,
    /// Nothing waited in the work queue when it was last looked at.
    is_queue_empty: AtomicBool,
}

impl Clocks {
    /// `tolerance`: `event.future_tolerance`.
    pub(super) fn new(tolerance: Duration) -> Clocks {
        let offset = Mutex::new(ClockOffset::new(tolerance));
        Clocks { offset, missed: Notify::new(), is_queue_empty: AtomicBool::new(false) }
    }

    /// Whether our clock is believed when it said at that time that this customer's event lies ahead. By
    /// now it may have been set.
    pub(super) fn trust(&self, customer: &str, time: Time) -> Trust {
        let trust = self.offset().trust(customer, time);
        if trust == Trust::Unknown {
            self.missed.notify_one();
        }
        trust
    }

    /// What clocks alone say, whatever events are dated.
    pub(super) fn is_contradicted(&self) -> bool {
        self.offset().trust_of_clocks(clock::time()) == Trust::Contradicted
    }

    /// How far our clock is from each source's, in seconds.
    pub(super) fn seconds(&self) -> [Option<f64>; Source::ALL.len()] {
        let (offset, time) = (self.offset(), clock::time());
        Source::ALL.map(|source| offset.seconds(source, time))
    }

    /// An event came.
    pub(super) fn note_event(&self, customer: &str, time: Timestamp) {
        self.offset().note_event(customer, time, clock::time());
    }

    /// A message came: where the broker stamps messages, it says what time it was there.
    pub(super) fn note_message(&self, message: &Message) {
        if let Some(theirs) = message.stamped_at()
            && self.is_queue_empty.load(Ordering::Relaxed)
        {
            let reading = Reading { theirs, uncertainty: MAX_WAIT, at: clock::time() };
            self.offset().note_broker(reading);
        }
    }

    /// The portal answered a call that began then.
    pub(super) fn note_answer(&self, date: Option<&str>, began: Instant) {
        let at = clock::time();
        let is_quick = at.now.saturating_duration_since(began) <= MAX_ANSWER;
        if let Some(date) = date
            && is_quick
            && self.offset().wants_portal(at.now)
            && let Some(theirs) = http_date(date)
        {
            self.offset().note_portal(Reading::during(theirs, HTTP_RESOLUTION, began, at));
        }
    }

    /// The work queue was looked at.
    pub(super) fn note_queue(&self, is_empty: bool) {
        self.is_queue_empty.store(is_empty, Ordering::Relaxed);
    }

    fn offset(&self) -> MutexGuard<'_, ClockOffset> {
        // Nothing in it can be half done.
        self.offset.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says when our clock is off, and when it is right again. Never ends.
pub(super) async fn watch(worker: &Worker) {
    loop {
        tokio::time::sleep(LOOK).await;
        let news = worker.clocks.offset().look(clock::time());
        news.inspect(|news| log(*news));
    }
}

/// Asks the portal for nothing but its clock, when that is needed. Never ends.
pub(super) async fn ask_portal(worker: &Worker) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = worker.clocks.missed.notified() => {}
        }
        let is_paused = worker.gate.look(Gate::is_paused);
        if is_paused || !worker.clocks.offset().asks_portal(clock::time()) {
            continue;
        }
        let began = clock::instant();
        match worker.portal.read_clock(MAX_ANSWER).await {
            Ok(date) => worker.clocks.note_answer(date.as_deref(), began),
            Err(error) => tracing::debug!(%error, "the portal's clock cannot be read"),
        }
    }
}

/// Reads the database's clock now and then, if it has one. Never ends.
pub(super) async fn ask_database(worker: &Worker) {
    let Some(store) = worker.ledger.store() else { return std::future::pending().await };
    loop {
        if worker.clocks.offset().asks_database(clock::time()) {
            let began = clock::instant();
            match store.read_clock().await {
                Ok(Some(theirs)) => {
                    let at = clock::time();
                    let reading = Reading::during(theirs, DATABASE_RESOLUTION, began, at);
                    worker.clocks.offset().note_database(reading);
                }
                Ok(None) => return std::future::pending().await,
                Err(error) => tracing::debug!(%error, "the database's clock cannot be read"),
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn log(news: News) {
    match news {
        News::Off(source, offset) => tracing::warn!(
            source = source.name(),
            direction = if offset.is_negative() { "behind" } else { "ahead" },
            offset_seconds = offset.as_secs(),
            "our clock is {} {} {}: {}",
            rounded(offset),
            if offset.is_negative() { "behind" } else { "ahead of" },
            whose(source),
            consequence(source, offset)
        ),
        News::Right => tracing::info!("our clock is right again"),
    }
}

fn whose(source: Source) -> &'static str {
    match source {
        Source::Portal => "the portal's",
        Source::Database => "the database's",
        Source::Broker => "the broker's",
        Source::Events => "the events' times",
    }
}

fn consequence(source: Source, offset: SignedDuration) -> &'static str {
    match (source, offset.is_negative()) {
        (Source::Events, _) => "events wait, uncounted; set this machine's clock, or the CRM's",
        (_, true) => "events that look ahead of it wait, uncounted; set this machine's clock",
        (_, false) => "set this machine's clock",
    }
}

/// In whole minutes, where it is some.
fn rounded(offset: SignedDuration) -> String {
    let seconds = offset.unsigned_abs().as_secs();
    match (seconds, (seconds + 30) / 60) {
        (..120, _) => format!("{seconds} s"),
        (_, minutes @ ..120) => format!("{minutes} min"),
        (_, minutes) => format!("{} h {} min", minutes / 60, minutes % 60),
    }
}
