//! Writing to people and pipes: results to standard output, complaints to standard error.

use std::io::{self, IsTerminal, Write};

use serde_json::Value;

/// Writes a result. A pipe that was closed early is no failure.
pub(super) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let written = out
        .write_all(text.as_bytes())
        .and_then(|()| if text.ends_with('\n') { Ok(()) } else { out.write_all(b"\n") });
    match written.and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// Writes a result as indented JSON.
pub(super) fn print_json(value: &Value) -> io::Result<()> {
    print(&format!("{value:#}"))
}

/// Writes a complaint.
pub(super) fn complain(text: &str) {
    // Nobody is left to tell if standard error is closed.
    drop(writeln!(io::stderr().lock(), "customer-relay: {text}"));
}

/// Whether a person looks at standard error.
pub(super) fn is_watched() -> bool {
    io::stderr().is_terminal()
}
