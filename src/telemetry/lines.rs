//! Log lines on their way to standard error: gathered, and written many at once by a thread of their
//! own. A system call a line, or a thread to wake for each, would cost a busy relay a tenth of its
//! time. Nobody ever waits for whoever reads standard error: what it is too far behind for is dropped
//! and counted.

use std::borrow::Cow;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// So much is gathered, in bytes, for a reader that is behind: some thousand lines.
const ROOM: usize = 1024 * 1024;
/// A lone line waits so long for others.
const GATHER: Duration = Duration::from_millis(5);
/// At the end of the process the last lines get so long to be written.
const PATIENCE: Duration = Duration::from_secs(1);

/// How lines of one format are made fit for a terminal.
pub(super) type Escape = fn(&str) -> Cow<'_, str>;

/// Lines that this process has dropped.
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// How many log lines were dropped since the start, because standard error was not read in time.
pub(super) fn dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// Where lines are gathered.
#[derive(Debug)]
pub(super) struct Lines {
    gathered: Mutex<Gathered>,
    changed: Condvar,
    /// Makes a line fit for a terminal, whatever texts it holds.
    escape: Escape,
}

#[derive(Debug, Default)]
struct Gathered {
    text: String,
    /// What was taken of it is being written.
    is_writing: bool,
    /// Lines dropped that nothing was said of yet.
    dropped: u64,
}

impl Gathered {
    fn is_written(&self) -> bool {
        self.text.is_empty() && !self.is_writing
    }
}

impl Lines {
    /// Begins; a thread of its own writes.
    pub(super) fn start(escape: Escape) -> io::Result<Arc<Lines>> {
        let lines = Arc::new(Lines { gathered: Mutex::default(), changed: Condvar::new(), escape });
        let gathered = Arc::clone(&lines);
        std::thread::Builder::new().name("log".into()).spawn(move || gathered.serve())?;
        Ok(lines)
    }

    /// As long as the process lives.
    fn serve(&self) {
        let mut text = String::new();
        loop {
            let waiting = self.changed.wait_while(self.gathered(), |lines| lines.text.is_empty());
            drop(waiting.unwrap_or_else(PoisonError::into_inner));
            std::thread::sleep(GATHER);
            let dropped = {
                let mut lines = self.gathered();
                std::mem::swap(&mut lines.text, &mut text);
                lines.is_writing = true;
                std::mem::take(&mut lines.dropped)
            };
            // Nothing is left to tell if standard error cannot be written.
            drop(io::stderr().write_all(text.as_bytes()));
            text.clear();
            if dropped > 0 {
                tracing::warn!(lines = dropped, "log lines were dropped: nobody read them in time");
            }
            self.gathered().is_writing = false;
            self.changed.notify_all();
        }
    }

    fn gathered(&self) -> MutexGuard<'_, Gathered> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Each call brings whole lines.
impl Write for &Lines {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        // What is no text is none of ours, and is shown as far as it is one.
        let text = match str::from_utf8(lines) {
            Ok(text) => text.into(),
            Err(_) => String::from_utf8_lossy(lines),
        };
        let text = (self.escape)(&text);
        let mut gathered = self.gathered();
        if gathered.text.len() + text.len() > ROOM {
            gathered.dropped += 1;
            DROPPED.fetch_add(1, Ordering::Relaxed);
            return Ok(lines.len());
        }
        if gathered.text.is_empty() {
            self.changed.notify_all();
        }
        gathered.text.push_str(&text);
        Ok(lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Sees to it that what is gathered is written: when it is dropped, and when it is asked to.
#[derive(Clone, Debug)]
#[must_use = "the last lines are written when it is dropped"]
pub struct Written(pub(super) Arc<Lines>);

impl Written {
    /// Waits until all lines there are have been written, or a second where nobody reads them.
    pub fn now(&self) {
        let Lines { changed, .. } = &*self.0;
        let waited =
            changed.wait_timeout_while(self.0.gathered(), PATIENCE, |lines| !lines.is_written());
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        self.now();
    }
}
