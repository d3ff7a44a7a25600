//! The `customer-relay` command: parse, act, exit code.

use std::process::ExitCode;

use clap::Parser;
use customer_relay::cli::{self, Cli, Exit};
use customer_relay::telemetry::panic;

/// With glibc's, an event takes 7 % more CPU time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    panic::report_by_place(|| ());
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let exit = if error.use_stderr() { Exit::Usage } else { Exit::Done };
            // Nothing is left to tell if not even this can be written.
            return error.print().map_or(Exit::Failed, |()| exit).into();
        }
    };
    cli::execute(cli).into()
}
