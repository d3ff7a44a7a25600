//! Room on the stack for what a message may bring.
//!
//! lapin reads a message's headers by recursion, in a thread of its own whose stack it leaves to the
//! standard library: 2 MiB. A header that is nested some thousand levels deep, which one frame holds
//! with ease, would end the process, and every process that reads the message again. The standard
//! library takes the size from the environment alone, before its first thread.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// The variable of the standard library.
const VARIABLE: &str = "RUST_MIN_STACK";
/// For as many levels as fit in a frame of 128 KiB, about 26,000. Only what is used is ever taken
/// from the system.
const BYTES: &str = "268435456";

/// Of threads that read no message, in bytes.
pub const SMALL: usize = 2 * 1024 * 1024;

/// Begins the program anew with room enough, unless it has it or was given another size. Returns where
/// that cannot be done.
pub fn make_room() {
    #[expect(clippy::disallowed_methods, reason = "read before there are settings")]
    if std::env::var_os(VARIABLE).is_some() {
        return;
    }
    // By its own name, which tools show. It may have been replaced or removed meanwhile; this one is
    // still there as long as it runs.
    for program in std::env::current_exe().into_iter().chain(["/proc/self/exe".into()]) {
        let mut again = Command::new(program);
        again.args(std::env::args_os().skip(1)).env(VARIABLE, BYTES);
        if let Some(name) = std::env::args_os().next() {
            again.arg0(name);
        }
        // Without /proc it goes on with what there is: an ordinary message needs no more.
        drop(again.exec());
    }
}
