//! Log lines on their way to standard error: gathered, and written many at once. A system call a
//! line, or a thread to wake for each, would cost a busy relay a tenth of its time.

use std::borrow::Cow;
use std::io::{self, BufWriter, Stderr, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

/// So much is gathered before whoever adds a line must write it.
const ROOM: usize = 64 * 1024;
/// A lone line waits so long for others.
const GATHER: Duration = Duration::from_millis(5);

/// How lines of one format are made fit for a terminal.
pub(super) type Escape = fn(&str) -> Cow<'_, str>;

/// Where lines are gathered. None is dropped: where there is no room, callers wait for the reader.
#[derive(Debug)]
pub(super) struct Lines {
    out: Mutex<BufWriter<Stderr>>,
    /// Makes a line fit for a terminal, whatever texts it holds.
    escape: Escape,
    /// Told of the first line of each write.
    news: SyncSender<()>,
}

impl Lines {
    /// Begins; a thread of its own writes.
    pub(super) fn start(escape: Escape) -> io::Result<Arc<Lines>> {
        let (news, told) = sync_channel(1);
        let out = Mutex::new(BufWriter::with_capacity(ROOM, io::stderr()));
        let lines = Arc::new(Lines { out, escape, news });
        let gathered = Arc::clone(&lines);
        std::thread::Builder::new().name("log".into()).spawn(move || gathered.serve(&told))?;
        Ok(lines)
    }

    /// As long as the process lives.
    fn serve(&self, told: &Receiver<()>) {
        for () in told {
            std::thread::sleep(GATHER);
            write_out(&mut self.out());
        }
    }

    fn out(&self) -> MutexGuard<'_, BufWriter<Stderr>> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Each call brings whole lines.
impl Write for &Lines {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        let mut out = self.out();
        if out.buffer().is_empty() {
            // An error means that it was told already.
            self.news.try_send(()).unwrap_or(());
        }
        // What is no text is none of ours, and is shown as far as it is one.
        let text = String::from_utf8_lossy(lines);
        out.write_all((self.escape)(&text).as_bytes())?;
        Ok(lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out().flush()
    }
}

fn write_out(out: &mut BufWriter<Stderr>) {
    // Nothing is left to tell if standard error cannot be written.
    drop(out.flush());
}

/// Sees to it that what is gathered is written: when it is dropped, and when it is asked to.
#[derive(Clone, Debug)]
#[must_use = "the last lines are written when it is dropped"]
pub struct Written(pub(super) Arc<Lines>);

impl Written {
    /// Writes all lines there are, unless somebody is about to.
    pub fn now(&self) {
        match self.0.out.try_lock() {
            Ok(mut out) => write_out(&mut out),
            Err(TryLockError::Poisoned(out)) => write_out(&mut out.into_inner()),
            Err(TryLockError::WouldBlock) => {}
        }
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        write_out(&mut self.0.out());
    }
}
