//! The promises, one suite each, on real parts: a real broker (each release there is), PostgreSQL,
//! the portal simulator, relays as processes. `cargo test --test promises -- retry` runs one suite.
//! `TEST_RUNS=50` runs each test 50 times, to find a failure that is rare.
#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure like any other")]
#![allow(clippy::print_stderr, clippy::print_stdout, reason = "seeds and versions are for people")]
#![allow(unreachable_pub, reason = "a test binary is reached by nobody")]
#![allow(clippy::disallowed_methods, reason = "tests measure, and are told by the environment")]
#![allow(clippy::unused_async, reason = "all tests have one shape")]
#![allow(missing_docs, reason = "the names are sentences")]

mod harness;
mod repeat;
mod support;

mod broker_faults;
mod chaos;
mod cli;
mod clock;
mod config;
mod contract;
mod converge;
mod crash;
mod credentials;
mod dashboard;
mod dead_commands;
mod dead_letter;
mod delivery;
mod door;
mod held;
mod hostile;
mod house;
mod in_hand;
mod lanes;
mod late_calls;
mod late_storm;
mod ledger;
mod ledger_backup;
mod ledger_commands;
mod ledger_contract;
mod ledger_scopes;
mod mixtures;
mod older_ledger;
mod order;
mod orders;
mod outage;
mod poison;
mod ports;
mod postgres;
mod privacy;
mod questions;
mod replay;
mod retry;
mod scope;
mod shutdown;
mod telemetry;
mod throttle;
mod topology;
mod trace;
mod unread;
mod upgrade;
mod vectors;
mod witness;

use std::process::ExitCode;

fn main() -> ExitCode {
    privacy::end_by_a_bug_if_asked();
    harness::run(&[
        ("vectors", vectors::suite()),
        ("delivery", delivery::suite()),
        ("poison", poison::suite()),
        ("door", door::suite()),
        ("dead_letter", dead_letter::suite()),
        ("dead_commands", dead_commands::suite()),
        ("replay", replay::suite()),
        ("retry", retry::suite()),
        ("lanes", lanes::suite()),
        ("ledger", ledger::suite()),
        ("ledger_contract", ledger_contract::suite()),
        ("ledger_scopes", ledger_scopes::suite()),
        ("late_calls", late_calls::suite()),
        ("late_storm", late_storm::suite()),
        ("credentials", credentials::suite()),
        ("trace", trace::suite()),
        ("telemetry", telemetry::suite()),
        ("unread", unread::suite()),
        ("privacy", privacy::suite()),
        ("scope", scope::suite()),
        ("outage", outage::suite()),
        ("witness", witness::suite()),
        ("mixtures", mixtures::suite()),
        ("throttle", throttle::suite()),
        ("clock", clock::suite()),
        ("order", order::suite()),
        ("orders", orders::suite()),
        ("held", held::suite()),
        ("converge", converge::suite()),
        ("crash", crash::suite()),
        ("broker_faults", broker_faults::suite()),
        ("in_hand", in_hand::suite()),
        ("chaos", chaos::suite()),
        ("shutdown", shutdown::suite()),
        ("ports", ports::suite()),
        ("questions", questions::suite()),
        ("topology", topology::suite()),
        ("postgres", postgres::suite()),
        ("ledger_commands", ledger_commands::suite()),
        ("ledger_backup", ledger_backup::suite()),
        ("older_ledger", older_ledger::suite()),
        ("upgrade", upgrade::suite()),
        ("contract", contract::suite()),
        ("config", config::suite()),
        ("dashboard", dashboard::suite()),
        ("cli", cli::suite()),
        ("hostile", hostile::suite()),
        ("house", house::suite()),
    ])
}
