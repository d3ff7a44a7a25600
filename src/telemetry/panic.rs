//! What is told of a bug: where it is, and no value. Text that a panic was given by the code itself is
//! told; text that was put together may repeat what an event held (a slice that ends within a
//! character names the whole string), and is withheld.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::Write as _;
use std::panic::PanicHookInfo;
use std::time::Duration;

/// Nobody who does not read standard error keeps a broken process alive.
const PATIENCE: Duration = Duration::from_secs(1);

/// From now on panics of this process are told so; what else is to happen then is done after it.
pub fn report_by_place(then: impl Fn() + Send + Sync + 'static) {
    std::panic::set_hook(Box::new(move |panic| {
        tell(told(panic, &Backtrace::capture()));
        then();
    }));
}

/// Says it, to whoever reads standard error in time.
pub fn tell(text: String) {
    let (end, ended) = std::sync::mpsc::sync_channel(1);
    let telling = std::thread::Builder::new().spawn(move || {
        // Nothing is left to tell if not even this can be written.
        drop(writeln!(std::io::stderr(), "{text}"));
        end.send(()).ok();
    });
    if telling.is_ok() {
        ended.recv_timeout(PATIENCE).ok();
    }
}

fn told(panic: &PanicHookInfo<'_>, backtrace: &Backtrace) -> String {
    let place = panic.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("without a name");
    let text = panic.payload().downcast_ref::<&'static str>();
    let text = text.copied().unwrap_or("its text is withheld, it may repeat values of an event");
    let way = match backtrace.status() {
        BacktraceStatus::Captured => backtrace.to_string(),
        _ => "RUST_BACKTRACE=1 shows the way there".to_owned(),
    };
    let version = env!("CARGO_PKG_VERSION");
    format!("a bug in customer-relay {version}: panic at {place}, thread {name}: {text}\n{way}")
}
