//! Writing to people and pipes: results to standard output, complaints to standard error.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};

use anyhow::bail;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

use super::Usage;
use crate::domain::text::{escape, escape_json, escape_page};
use crate::telemetry::panic;

/// Writes a result: whatever a text in it holds, a terminal sees lines of printable characters.
pub(super) fn print(text: &str) -> io::Result<()> {
    write_out(&escape_page(text))
}

/// Writes a result as indented JSON.
pub(super) fn print_json(value: &Value) -> io::Result<()> {
    write_out(&escape_json(&format!("{value:#}")))
}

/// Writes a result as a line of JSON.
pub(super) fn print_json_line(value: &Value) -> io::Result<()> {
    write_out(&escape_json(&value.to_string()))
}

/// Writes a text of our own as it is.
pub(super) fn print_as_is(text: &str) -> io::Result<()> {
    write_out(text)
}

/// A pipe that was closed early is no failure.
fn write_out(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let written = out
        .write_all(text.as_bytes())
        .and_then(|()| if text.ends_with('\n') { Ok(()) } else { out.write_all(b"\n") });
    match written.and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// Takes what was written off the terminal, if standard output is one.
pub(super) fn clear() -> io::Result<()> {
    if !io::stdout().is_terminal() {
        return Ok(());
    }
    io::stdout().lock().write_all(b"\x1b[2J\x1b[H")
}

/// A text from outside as a part of a line.
pub(super) fn part(text: &str) -> Cow<'_, str> {
    escape(text, usize::MAX)
}

/// Writes a complaint, to whoever reads standard error in time.
pub(super) fn complain(text: &str) {
    panic::tell(format!("customer-relay: {}", escape_page(text)));
}

/// Whether a person looks at standard error.
pub(super) fn is_watched() -> bool {
    io::stderr().is_terminal()
}

/// Asks a person to type what is about to be lost.
pub(super) fn is_typed(warning: &str, wanted: &str, is_sure: bool) -> anyhow::Result<bool> {
    Ok(is_sure || ask(&format!("{warning} Type {wanted} to go on: "))? == wanted)
}

/// Asks a person before something is done that cannot be undone. Where nobody can be asked, it must
/// have been said before.
pub(super) fn is_wanted(question: &str, is_sure: bool) -> anyhow::Result<bool> {
    if is_sure {
        return Ok(true);
    }
    Ok(matches!(ask(&format!("{question} [y/N] "))?.as_str(), "y" | "Y" | "yes"))
}

fn ask(question: &str) -> anyhow::Result<String> {
    if !io::stdin().is_terminal() || !is_watched() {
        bail!(Usage("nobody can be asked here: --yes says that it is wanted".into()));
    }
    write!(io::stderr().lock(), "{}", escape_page(question))?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(answer.trim().to_owned())
}

/// Shows a person how far something is that has a known end.
pub(super) fn bar(length: u64, template: &str) -> ProgressBar {
    progress(ProgressBar::new(length), template)
}

/// Shows a person how far something is whose end is not known.
pub(super) fn spinner(template: &str) -> ProgressBar {
    progress(ProgressBar::new_spinner(), template)
}

fn progress(bar: ProgressBar, template: &str) -> ProgressBar {
    if !is_watched() {
        return ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
    }
    let style = ProgressStyle::with_template(template);
    bar.with_style(style.expect("templates are our own"))
}
