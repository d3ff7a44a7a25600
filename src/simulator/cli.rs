//! The command line.

use std::net::SocketAddr;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use crate::fields::FieldOrder;

const CONTROL: &str = "\
Control API (JSON):
  POST   /control/faults        add a rule; the first that strikes a call wins
  GET    /control/faults        all rules with their hits
  DELETE /control/faults[/ID]   remove all rules, or one
  GET    /control/requests      the newest calls: ?limit=N&entity_id=X
  GET    /control/stats         totals
  DELETE /control/state         forget customers, calls and totals
  PUT    /control/credentials   {\"token\": …, \"secret_key\": …}
  GET    /customers[/ID]        read-back: ?after=ID&limit=N
  GET    /healthz

Example: every fifth call for a customer P-… is answered 503, thrice in all:
  curl http://127.0.0.1:8080/control/faults -d '{\"times\": 3,
    \"match\": {\"entity_prefix\": \"P-\", \"every\": 5},
    \"fault\": {\"kind\": \"status\", \"code\": 503, \"retry_after\": 2}}'

Kinds: latency {ms}, late {ms}, hang {ms?}, reset, truncated, echo, html, empty, redirect {location,
code?}, body_status {status, message?}, raw {code, body | body_base64, headers?}, status {code, body?,
retry_after?, content_type?, envelope?}, rate {per_second, burst, retry_after?}: calls beyond it are
answered 429, the others go on to later rules. With \"apply\": true the update is applied first.

RUST_LOG=debug logs every call to stderr.";

/// Stands in for the prepaid-card portal in tests, demos and benchmarks.
///
/// Answers POST /airpay/ms/cards/api/update-customer by the rules of the portal operator's page,
/// keeps the customers in memory (GET /customers), and plays faults that are scripted over HTTP
/// (POST /control/faults). Its first line on stdout names the address it listens on.
#[derive(Clone, Parser)]
#[command(name = "portal-simulator", version, after_long_help = CONTROL)]
pub(crate) struct Options {
    /// Address to listen on; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    pub(crate) listen: SocketAddr,

    /// Secret key that callers must append to the values before they hash them
    #[arg(long, value_name = "KEY", default_value = "demo-secret")]
    pub(crate) secret_key: String,

    /// Token that callers must send in the `token` header
    #[arg(long, default_value = "demo-token")]
    pub(crate) token: String,

    /// Order in which the values are hashed, all eight names [default: the page's table]
    ///
    /// The default is `entity_id,email,mobile_no,address,country,city,state,pincode`. The page's
    /// curl example has `country` after `state`. The order of the parameters in a call's body
    /// plays no part.
    #[arg(long, value_name = "NAMES", default_value = "", hide_default_value = true,
          value_parser = field_order)]
    pub(crate) field_order: FieldOrder,

    /// Answer errors with a real HTTP status (400, 401, 404, 409, 415) instead of 200
    #[arg(long)]
    pub(crate) http_errors: bool,

    /// What an error's message says
    #[arg(long, value_enum, default_value_t = Messages::Plain)]
    pub(crate) messages: Messages,

    /// Refuse customers that were not seeded, instead of creating them on their first update
    #[arg(long)]
    pub(crate) strict_customers: bool,

    /// Start with customers C1 to CN, whose e-mails are c1@seed.example and so on
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed_customers: u32,

    /// Time that every call takes at least, such as 20ms or 1s
    #[arg(long, value_name = "DURATION", default_value = "0ms", value_parser = duration)]
    pub(crate) latency: Duration,

    /// Calls kept for GET /control/requests; 0 keeps none
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub(crate) log_requests: usize,
}

/// How much an error tells the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Messages {
    /// The page's bare `fail`
    Plain,
    /// The reason, such as `checksum mismatch` or `email already exists`
    Detailed,
}

fn field_order(text: &str) -> Result<FieldOrder, String> {
    if text.is_empty() { Ok(FieldOrder::default()) } else { text.parse() }
}

fn duration(text: &str) -> Result<Duration, String> {
    let span: jiff::SignedDuration = text.parse().map_err(|error| format!("{error}"))?;
    Duration::try_from(span).map_err(|_| "a duration cannot be negative".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Options::command().debug_assert();
    }

    #[test]
    fn the_defaults_need_no_argument() {
        let options = Options::try_parse_from(["portal-simulator"]).expect("defaults");
        assert_eq!(options.field_order, FieldOrder::default());
        assert_eq!(options.latency, Duration::ZERO);
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("20ms"), Ok(Duration::from_millis(20)));
        assert_eq!(duration("1s"), Ok(Duration::from_secs(1)));
        assert!(duration("20").is_err() && duration("-1s").is_err());
    }
}
