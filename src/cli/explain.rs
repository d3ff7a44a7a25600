//! `explain`: one event's whole way, without touching broker or portal.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use serde_json::{Map, Value, json};

use super::{Exit, output};
use crate::clock;
use crate::config::Config;
use crate::domain::admission::{self, Admission, Moment, Rules};
use crate::domain::dead_letter::Reason;
use crate::domain::event::{CustomerUpdated, Envelope};
use crate::domain::field::Field;
use crate::domain::history::History;
use crate::domain::outcome::Outcome;
use crate::domain::request::{SignedRequest, canonical, sign};
use crate::domain::response::{Answer, Judgement, NoAnswer, judge};
use crate::domain::retry::{Slot, Tier};
use crate::domain::update::Update;
use crate::domain::verdict::{Verdict, decide};
use crate::domain::version::Required;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A file with one event (structured CloudEvent or bare data); - is standard input.
    #[arg(default_value = "-")]
    file: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn explain(args: &Args, config: &Config) -> anyhow::Result<Exit> {
    let body = read(&args.file)?;
    let explained = match admit(config, &body) {
        Ok(admission) => Explained::Sent(Box::new(Sent::new(config, admission))),
        Err(verdict) => Explained::Unsent(*verdict),
    };
    if args.json {
        output::print_json(&explained.to_json())?;
    } else {
        output::print(&explained.to_text())?;
    }
    Ok(Exit::Done)
}

fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    let mut body = Vec::new();
    if file == Path::new("-") {
        std::io::stdin().lock().read_to_end(&mut body).context("cannot read standard input")?;
    } else {
        body = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    }
    Ok(body)
}

enum Explained {
    Sent(Box<Sent>),
    /// Ends without a call.
    Unsent(Verdict),
}

/// What the worker does with a message of this body, up to the call. What the body lacks of its order is no
/// fault yet: its message may have it.
pub(super) fn admit(config: &Config, body: &[u8]) -> Result<Admission, Box<Verdict>> {
    let now = clock::now();
    let envelope =
        Envelope { body, kind: config.rules.mapping.default_type(), ..Envelope::default() };
    let rules = Rules { required: Required::Any, orders_by_arrival: true, ..config.rules.clone() };
    admission::admit(&envelope, &History::new(now), &rules, &config.retry, &Moment::certain(now))
        .map_err(|refused| Box::new(refused.verdict))
}

struct Sent {
    event: CustomerUpdated,
    /// What is said of an event whose place among its customer's is not told by its body.
    unordered: Option<String>,
    update: Update,
    request: SignedRequest,
    canonical: String,
    curl: String,
    verdicts: Vec<Possible>,
    timetable: Vec<Slot>,
}

impl Sent {
    fn new(config: &Config, Admission { event, place, update }: Admission) -> Sent {
        let portal = &config.portal;
        let request = sign(&update, portal.field_order, &portal.secret_key.value);
        let url = portal.url.as_ref().map_or_else(
            || "$CUSTOMER_RELAY__PORTAL__BASE_URL/airpay/ms/cards/api/update-customer".to_owned(),
            ToString::to_string,
        );
        Sent {
            canonical: canonical(&update, portal.field_order),
            curl: curl(&url, &request),
            verdicts: possible_answers()
                .map(|(name, call)| possible(config, &update, name, &call))
                .collect(),
            timetable: config.retry.timetable(),
            unordered: config
                .rules
                .required
                .lacked_by(&place)
                .map(|lacked| unordered(lacked, config)),
            event,
            update,
            request,
        }
    }
}

fn unordered(lacked: &str, config: &Config) -> String {
    let then = if config.rules.orders_by_arrival {
        "its place is that of its first receipt (order.missing)"
    } else {
        "it is a dead letter (order.require)"
    };
    format!("lacks {lacked}: unless its message has that (a timestamp, or headers), {then}")
}

/// Double quotes where the shell fills in a variable; nothing else in these texts needs quoting.
fn curl(url: &str, request: &SignedRequest) -> String {
    format!(
        "curl --request POST \"{url}\" \
         --header \"token: $CUSTOMER_RELAY__PORTAL__TOKEN\" \
         --header 'checksum: {}' \
         --header 'Content-Type: application/x-www-form-urlencoded' \
         --data-raw '{}'",
        request.checksum, request.form
    )
}

/// What one possible answer would cause on the first attempt.
struct Possible {
    answer: &'static str,
    judgement: Judgement,
    verdict: Verdict,
    shortest: Option<Duration>,
    longest: Option<Duration>,
}

fn possible_answers() -> impl Iterator<Item = (&'static str, Result<Answer, NoAnswer>)> {
    let answer = |status, body: &str, retry_after: Option<&str>| {
        let retry_after = retry_after.map(str::to_owned);
        Ok(Answer { status, body: body.into(), retry_after, date: None })
    };
    let form =
        |status: u16, message: &str| json!({"status": status, "message": message}).to_string();
    let html = "<html></html>";
    [
        ("HTTP 200, status 200, success", answer(200, &form(200, "success"), None)),
        ("HTTP 200, status 400, fail", answer(200, &form(400, "fail"), None)),
        ("HTTP 200, status 400, e-mail exists", answer(200, &form(400, "email exists"), None)),
        ("HTTP 200, status 400, invalid checksum", answer(200, &form(400, "checksum"), None)),
        ("HTTP 400, 409, 413 or 422", answer(422, "", None)),
        ("HTTP 401 or 403", answer(401, "", None)),
        ("HTTP 404 with the portal's form", answer(404, &form(404, "fail"), None)),
        ("HTTP 404 without it", answer(404, html, None)),
        ("HTTP 3xx, 405 or 415", answer(302, "", None)),
        ("HTTP 429", answer(429, "", None)),
        ("HTTP 429, Retry-After: 60", answer(429, "", Some("60"))),
        ("HTTP 500", answer(500, html, None)),
        ("HTTP 503 with the portal's form", answer(503, &form(503, "fail"), None)),
        ("HTTP 502, 503 or 504 without it", answer(503, html, None)),
        ("HTTP 200, not the portal's form", answer(200, html, None)),
        ("refused, DNS, TLS, connect timeout", Err(NoAnswer::Unreachable)),
        ("timeout", Err(NoAnswer::TimedOut)),
        ("connection lost during the call", Err(NoAnswer::Interrupted)),
    ]
    .into_iter()
}

fn possible(
    config: &Config,
    update: &Update,
    answer: &'static str,
    call: &Result<Answer, NoAnswer>,
) -> Possible {
    let now = clock::now();
    let judgement = judge(call, true, now);
    let history = History::new(now);
    let judgement = config.retry.believe(judgement);
    let is_throttled = judgement.outcome == Outcome::Throttled;
    let decided = |dice| {
        if is_throttled {
            Verdict::throttled(&judgement, &history, &config.retry, now, dice)
        } else {
            decide(&judgement, update, &history, &config.retry, now, dice)
        }
    };
    let delay = |verdict: &Verdict| verdict.tier().map(Tier::delay);
    let (shortest, longest) = (delay(&decided(0.0)), delay(&decided(1.0)));
    let verdict = decided(0.5);
    Possible { answer, judgement, verdict, shortest, longest }
}

impl Possible {
    fn counts(&self) -> bool {
        matches!(self.verdict, Verdict::Retry { .. } | Verdict::DeadLetter(_))
    }

    fn to_json(&self) -> Value {
        json!({
            "answer": self.answer,
            "outcome": self.judgement.outcome.name(),
            "verdict": self.verdict.name(),
            "reason": self.verdict.reason().map(Reason::name),
            "counts_an_attempt": self.counts(),
            "immediate_retry": self.judgement.outcome.allows_immediate_retry(),
            "delay_ms": self.shortest.zip(self.longest)
                .map(|(shortest, longest)| json!([millis(shortest), millis(longest)])),
        })
    }

    fn to_text(&self) -> String {
        let verdict = match (self.verdict.reason(), self.shortest.zip(self.longest)) {
            (Some(reason), _) => format!("dead letter: {}", reason.name()),
            (None, Some((shortest, longest))) => {
                let counted = if self.counts() { "attempt counted" } else { "no attempt counted" };
                let immediate = if self.judgement.outcome.allows_immediate_retry() {
                    "immediate retries, then "
                } else {
                    ""
                };
                format!("{immediate}again in {} to {} ({counted})", human(shortest), human(longest))
            }
            (None, None) => self.verdict.name().to_owned(),
        };
        format!("  {:<40} {}", self.answer, verdict)
    }
}

fn slot_json(slot: &Slot) -> Value {
    json!({"attempt": slot.attempt, "earliest_ms": millis(slot.earliest),
           "latest_ms": millis(slot.latest)})
}

impl Explained {
    fn to_json(&self) -> Value {
        match self {
            Explained::Unsent(Verdict::DeadLetter(dead)) => json!({"refused": {
                "reason": dead.reason.name(),
                "field": dead.field.map(Field::name),
                "rule": dead.rule,
                "setting": dead.setting,
                "detail": dead.detail,
            }}),
            Explained::Unsent(verdict) => json!({"unsent": {
                "verdict": verdict.name(),
                "delay_ms": verdict.tier().map(Tier::millis),
            }}),
            Explained::Sent(sent) => json!({
                "event": {"id": sent.event.id, "time": sent.event.time.map(|time| time.to_string()),
                          "sequence": sent.event.sequence, "order": sent.unordered},
                "fields": sent.update.values()
                    .map(|(field, value)| (field.name().to_owned(), json!(value)))
                    .collect::<Map<String, Value>>(),
                "form": sent.request.form,
                "canonical": sent.canonical,
                "checksum": sent.request.checksum,
                "curl": sent.curl,
                "verdicts": sent.verdicts.iter().map(Possible::to_json).collect::<Vec<_>>(),
                "timetable": sent.timetable.iter().map(slot_json).collect::<Vec<_>>(),
            }),
        }
    }

    fn to_text(&self) -> String {
        match self {
            Explained::Sent(sent) => sent.to_text(),
            Explained::Unsent(Verdict::DeadLetter(dead)) => format!(
                "no call is made: a dead letter on arrival\n  reason   {}\n  detail   {}\n",
                dead.reason.name(),
                dead.detail
            ),
            Explained::Unsent(verdict) => match verdict.tier() {
                Some(tier) => {
                    format!("no call is made yet: looked at again in {}\n", human(tier.delay()))
                }
                None => format!("no call is made: {}\n", verdict.name()),
            },
        }
    }
}

impl Sent {
    fn to_text(&self) -> String {
        let mut lines = vec!["fields sent, as far as nothing newer was applied".to_owned()];
        lines.extend(
            self.update
                .values()
                .map(|(field, value)| format!("  {field:<10} {}", output::part(value))),
        );
        if let Some(unordered) = &self.unordered {
            lines.extend(["order".to_owned(), format!("  {unordered}")]);
        }
        for (title, text) in [
            ("form", &self.request.form),
            ("hashed (*** is the secret key)", &self.canonical),
            ("checksum", &self.request.checksum),
            ("the call by hand", &self.curl),
        ] {
            lines.extend([title.to_owned(), format!("  {}", output::part(text))]);
        }
        lines.push(
            "what each answer to the first attempt would cause, while others' calls go well"
                .to_owned(),
        );
        lines.extend(self.verdicts.iter().map(Possible::to_text));
        lines.push(
            "attempts that fail for this customer alone fall due, after the first".to_owned(),
        );
        lines.extend(self.timetable.iter().map(|slot| {
            let (earliest, latest) = (human(slot.earliest), human(slot.latest));
            format!("  {:>3}  {earliest} to {latest}", slot.attempt)
        }));
        lines.join("\n")
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn human(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{} ms", duration.as_millis()),
        1..120 => format!("{:.1} s", duration.as_secs_f64()),
        120..7200 => format!("{} min", seconds / 60),
        _ => format!("{:.1} h", duration.as_secs_f64() / 3600.0),
    }
}
