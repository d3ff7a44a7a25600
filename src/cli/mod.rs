//! The command line: what can be asked, and the exit codes scripts rely on.

mod check;
mod check_ledger;
mod completions;
mod config;
mod customer;
mod dead;
mod doubts;
mod doubts_queue;
mod explain;
mod healthy;
mod ledger;
mod ledger_backup;
mod mend;
mod orders;
mod output;
mod publish;
mod run;
mod sample;
mod topology;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::admin::AskError;
use crate::amqp::{AmqpError, LockError, PublishError};
use crate::config::{Config, Layers, Mistakes, Needs, Sources};
use crate::dead_letters::InvalidPlan;
use crate::ledger::LedgerError;
use crate::telemetry::{InvalidVariable, log};
use crate::worker::StartError;

/// Keeps a prepaid-card portal in step with a CRM.
///
/// Consumes customer.updated events from RabbitMQ, sends each as a signed update-customer call,
/// retries with exponential backoff through the broker, and routes poison messages to a
/// dead-letter queue. A message is acked only once its end is durable.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, after_help = EXIT_CODES)]
pub struct Cli {
    /// Settings file (TOML). `customer-relay config --defaults` prints every setting.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// One setting, over file and environment. Repeatable: `--set worker.in_flight=8`
    #[arg(long, global = true, value_name = "KEY=VALUE")]
    set: Vec<String>,
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "\
Settings: defaults < --config FILE (or CUSTOMER_RELAY_CONFIG) < environment < --set.
The environment name of broker.url is CUSTOMER_RELAY__BROKER__URL.

Exit codes: 0 done; 1 failed, or check found a fault; 64 bad configuration or usage;
69 broker, ledger or admin port not reached; 75 stopped by an operator's limit.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Relay events until SIGTERM or SIGINT, then finish what is under way and exit with 0.
    Run,
    /// Pause every relay on the work queue: no calls, nothing counted; survives restarts.
    Pause(orders::PauseArgs),
    /// End a pause; or say that rejections are the events' own fault.
    Resume(orders::ResumeArgs),
    /// Check configuration, broker and ledger; each finding says how to mend it.
    Check(check::Args),
    /// Show one event's whole way, offline: call, checksum, what each answer would cause, retries.
    Explain(explain::Args),

    /// Dead letters: understand them, mend them, put them back safely.
    #[command(subcommand)]
    Dead(Box<dead::Verb>),
    /// Show what the ledger knows of a customer, or erase him.
    #[command(subcommand)]
    Customer(customer::Args),
    /// Show the ledger, back it up, restore it, accept another one, or carry it over.
    #[command(subcommand)]
    Ledger(ledger::Args),
    /// Show, declare, compare or export the broker's queues.
    #[command(subcommand)]
    Topology(topology::Args),
    /// Publish events from a file of JSON lines, each confirmed by the broker.
    Publish(publish::Args),
    /// Print the effective configuration, secrets masked.
    Config(config::Args),
    /// Ask whether a relay is alive, as health checks do: exit 0 if its admin port says so.
    Healthy(healthy::Args),
    /// Print the completions for a shell.
    Completions(completions::CompletionsArgs),
    /// Write the manual pages.
    Man(completions::ManArgs),
}

/// How a command ends. The numbers are part of the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Failed, or `check` found a fault.
    Failed = 1,
    /// Bad configuration or usage.
    Usage = 64,
    /// The broker, the ledger or the admin port was not reached.
    Unavailable = 69,
    /// Stopped by a limit that the operator has set.
    Stopped = 75,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// Carries a command out; errors go to standard error.
pub fn execute(cli: Cli) -> Exit {
    // Two TLS stacks are in the graph's reach: say which one. An error means it was said before.
    drop(rustls::crypto::ring::default_provider().install_default());
    let (fields, flags) = match &cli.command {
        Command::Dead(verb) if verb.sets_fields() => split_settings(cli.set),
        _ => (Vec::new(), cli.set),
    };
    let sources = Sources {
        file: cli.config.or_else(config_file_from_environment),
        environment: environment(),
        flags,
    };
    match dispatch(cli.command, &sources, &fields) {
        Ok(exit) => exit,
        Err(error) => {
            output::complain(&format!("{error:#}"));
            exit_of(&error)
        }
    }
}

/// `--set` names fields of letters, or settings of ours, which have a dot.
fn split_settings(all: Vec<String>) -> (Vec<String>, Vec<String>) {
    all.into_iter().partition(|set| !set.split('=').next().is_some_and(|key| key.contains('.')))
}

/// `fields` are the values that letters are given.
fn dispatch(command: Command, sources: &Sources, fields: &[String]) -> anyhow::Result<Exit> {
    let layers = Layers::new(sources)?;
    match command {
        Command::Run => run::run(load(&layers, Needs::Portal)?, &sources.environment),
        Command::Pause(args) => orders::pause(&args, &load(&layers, Needs::Broker)?),
        Command::Resume(args) => orders::resume(&args, &load(&layers, Needs::Broker)?),
        Command::Check(args) => check::check(&args, &layers),
        Command::Explain(args) => explain::explain(&args, &load(&layers, Needs::SecretKey)?),

        Command::Dead(verb) => {
            let operator = operator(sources);
            dead::dead(&verb, &load(&layers, Needs::Broker)?, &operator, fields)
        }
        Command::Customer(args) => customer::customer(&args, &layers, &operator(sources).name),
        Command::Ledger(args) => {
            let config = load(&layers, Needs::Broker)?;
            ledger::ledger(&args, &config, &operator(sources).name)
        }
        Command::Topology(args) => topology::topology(&args, &load(&layers, Needs::Broker)?),
        Command::Publish(args) => publish::publish(&args, &load(&layers, Needs::Broker)?),
        Command::Config(args) => config::config(&args, &layers),
        Command::Healthy(args) => healthy::healthy(&args, &layers),
        Command::Completions(args) => completions::completions(&args),
        Command::Man(args) => completions::man(&args),
    }
}

/// Who gives the command.
fn operator(sources: &Sources) -> dead::Operator {
    let named = |wanted: &str| {
        let mut known = sources.environment.iter();
        let found = known.find(|(name, value)| name == wanted && !value.is_empty());
        found.map(|(_, value)| value.clone())
    };
    let user = ["SUDO_USER", "USER", "LOGNAME"].into_iter().find_map(named);
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname");
    let host = host.unwrap_or_else(|_| "unknown".to_owned());
    dead::Operator {
        name: format!("{}@{}", user.as_deref().unwrap_or("unknown"), host.trim()),
        editor: ["VISUAL", "EDITOR"].into_iter().find_map(named),
    }
}

fn load(layers: &Layers, needs: Needs) -> anyhow::Result<Config> {
    Ok(Config::load(layers, needs)?)
}

/// An argument that makes no sense.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

fn exit_of(error: &anyhow::Error) -> Exit {
    let is_ours = error.is::<Mistakes>() || error.is::<Usage>();
    if is_ours || error.is::<InvalidPlan>() || error.is::<InvalidVariable>() {
        Exit::Usage
    } else if error.chain().any(|cause| is_of_the_broker(cause) || is_of_the_ledger(cause)) {
        Exit::Unavailable
    } else {
        Exit::Failed
    }
}

fn is_of_the_broker(cause: &(dyn std::error::Error + 'static)) -> bool {
    let published = cause.downcast_ref::<PublishError>();
    cause.is::<AmqpError>()
        || cause.is::<LockError>()
        || matches!(published, Some(PublishError::Broker(_) | PublishError::Blocked))
}

fn is_of_the_ledger(cause: &(dyn std::error::Error + 'static)) -> bool {
    if let Some(StartError::Ledger(error)) = cause.downcast_ref() {
        return error.is_out_of_reach();
    }
    let asked = cause.downcast_ref::<AskError>();
    matches!(asked, Some(AskError::Unreachable(..) | AskError::Unavailable(..)))
        || cause.downcast_ref::<LedgerError>().is_some_and(LedgerError::is_out_of_reach)
}

#[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
fn environment() -> Vec<(String, String)> {
    // A variable that is not text cannot be one of ours.
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    std::env::vars_os().filter_map(text).collect()
}

#[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
fn config_file_from_environment() -> Option<PathBuf> {
    std::env::var_os("CUSTOMER_RELAY_CONFIG").filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// Runs a command that talks to the broker, its troubles logged.
fn block_on<T>(
    config: &Config,
    command: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    let _lines = log::start(log::parse_filter("warn,lapin=off")?, config.log.format, None)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(command)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_defined() {
        super::Cli::command().debug_assert();
    }
}
