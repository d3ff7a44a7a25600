//! Every message by its end, and what a storm may cost: a checker that knows how each message was
//! made, and nothing of how the relay reads it.

use std::collections::HashMap;

use lapin::BasicProperties;
use lapin::types::AMQPValue;
use serde_json::{Value, json};

use super::case::{Case, End, number_of};
use super::storm::Evidence;
use crate::support::queues::Taken;

/// The 99th percentile of plain events, from publishing to the portal.
const PLAIN_WITHIN_MS: i64 = 5_000;
/// Calls of one customer's event: three attempts of three calls each, and control calls.
const MOST_CALLS: u64 = 20;
/// Of the relay, with 100 messages in hand, in a build without optimisation.
const MOST_MEMORY_KIB: u64 = 400 * 1024;
const MOST_LINE_BYTES: usize = 8_192;
/// What an event may log, retries and waiting included, on average.
const MOST_LOG_BYTES_AN_EVENT: usize = 6_000;

/// What is not as the contract says.
pub fn findings(cases: &[Case], evidence: &Evidence) -> Vec<String> {
    let mut findings = Vec::new();
    let letters = by_number(&evidence.letters);
    let waiting = by_number(&evidence.waiting);
    for case in cases {
        let dead = letters.get(&case.number).map_or(&[][..], Vec::as_slice);
        let waits = waiting.get(&case.number).map_or(0, Vec::len);
        if let Some(problem) = end_of(case, evidence, dead, waits) {
            findings.push(format!("{problem}: case {} {:?}\n    {case}", case.number, case.labels));
        }
    }
    let known = |taken: &&Taken| number_of(&taken.properties).is_none_or(|n| n >= cases.len());
    let strangers = evidence.letters.iter().chain(&evidence.waiting).filter(known).count();
    if strangers > 0 {
        findings.push(format!("{strangers} messages in the queues that were not published"));
    }
    findings.extend(plain(evidence));
    findings.extend(evidence.complaints.iter().take(5).map(|said| format!("ports: {said}")));
    findings.extend(costs(cases, evidence));
    findings.extend(log(cases, evidence));
    findings
}

fn by_number(messages: &[Taken]) -> HashMap<usize, Vec<&Taken>> {
    let mut found: HashMap<usize, Vec<&Taken>> = HashMap::new();
    for message in messages {
        if let Some(number) = number_of(&message.properties) {
            found.entry(number).or_default().push(message);
        }
    }
    found
}

/// What is wrong with a case's end.
fn end_of(case: &Case, evidence: &Evidence, dead: &[&Taken], waits: usize) -> Option<String> {
    let copies = case.copies as usize;
    let is_applied = is_applied(case, evidence);
    match (is_applied, dead.len(), waits) {
        (true, 0, 0) if case.may(&End::Applied) => None,
        (true, 0, 0) => Some("applied".to_owned()),
        (false, 0, 0) if case.may(&End::Superseded) => None,
        (false, 0, 0) => Some("LOST".to_owned()),
        (false, 0, n) if n == copies && case.may(&End::Waits) => None,
        (false, 0, n) => Some(format!("{n} times in a tier")),
        (false, n, 0) if n == copies => dead.iter().find_map(|letter| wrong_letter(case, letter)),
        (_, dead, waits) => {
            Some(format!("more than one end: applied {is_applied}, dead {dead}, waiting {waits}"))
        }
    }
}

fn is_applied(case: &Case, evidence: &Evidence) -> bool {
    if case.answer.is_some() {
        return evidence.said_applied.contains(&format!("e{}", case.number));
    }
    let customer = case.customer.as_ref().and_then(|id| evidence.customers.get(id));
    customer.is_some_and(|customer| customer["fields"]["address"] == json!(case.address))
}

fn wrong_letter(case: &Case, letter: &Taken) -> Option<String> {
    let header = |name: &str| letter.header(&format!("x-relay-{name}")).unwrap_or_default();
    if !case.may_be(letter) {
        let [reason, field, rule] = ["reason", "field", "rule"].map(header);
        return Some(format!("dead as {reason} {field} {rule} ({})", header("detail")));
    }
    if letter.body != case.body {
        return Some("the body was changed".to_owned());
    }
    let detail = header("detail");
    if detail.chars().any(char::is_control) || detail.len() > 1024 {
        return Some(format!("a detail that is not fit to be shown: {detail:?}"));
    }
    changed_property(&case.properties, &letter.properties)
        .or_else(|| lost_header(&case.properties, letter))
}

fn changed_property(sent: &BasicProperties, found: &BasicProperties) -> Option<String> {
    let texts = |properties: &BasicProperties| {
        [
            properties.content_type().clone(),
            properties.content_encoding().clone(),
            properties.correlation_id().clone(),
            properties.reply_to().clone(),
            properties.message_id().clone(),
            properties.kind().clone(),
            properties.app_id().clone(),
            properties.cluster_id().clone(),
        ]
    };
    let is_same = texts(sent) == texts(found)
        && sent.timestamp() == found.timestamp()
        && sent.priority() == found.priority();
    (!is_same).then(|| "a property was changed".to_owned())
}

/// What the relay and the broker keep for themselves does not travel on.
fn lost_header(sent: &BasicProperties, letter: &Taken) -> Option<String> {
    let own = ["x-relay-", "x-death", "x-first-death-", "x-last-death-"];
    let counts = ["CC", "BCC", "x-delivery-count", "x-acquired-count", "traceparent", "tracestate"];
    let moved = letter.header("x-relay-dropped-headers").unwrap_or_default();
    let kept = letter.properties.headers().clone().unwrap_or_default();
    let sent = sent.headers().clone().unwrap_or_default();
    let lost = sent.inner().iter().find(|(name, value)| {
        let name = name.as_str();
        let is_own = own.iter().any(|own| name.starts_with(own)) || counts.contains(&name);
        let same = |found: &AMQPValue| format!("{found:?}") == format!("{value:?}");
        !is_own && moved.is_empty() && !kept.inner().get(name).is_some_and(same)
    });
    lost.map(|(name, _)| format!("header {name:?} was lost or changed"))
}

fn plain(evidence: &Evidence) -> Vec<String> {
    let mut findings = Vec::new();
    let missing = evidence.plain.iter().filter(|came| came.is_none()).count();
    if missing > 0 {
        findings.push(format!("{missing} of {} plain events not applied", evidence.plain.len()));
    }
    if let Some((_, p99, _)) = percentiles(&evidence.plain)
        && p99 > PLAIN_WITHIN_MS
    {
        findings.push(format!("plain events: {p99} ms at the 99th percentile"));
    }
    findings
}

/// Median, 99th percentile and longest, in milliseconds.
pub fn percentiles(plain: &[Option<i64>]) -> Option<(i64, i64, i64)> {
    let mut came: Vec<i64> = plain.iter().flatten().copied().collect();
    came.sort_unstable();
    let at = |percent: usize| came.get((came.len() - 1) * percent / 100).copied();
    Some((at(50)?, at(99)?, at(100)?)).filter(|_| !came.is_empty())
}

fn costs(cases: &[Case], evidence: &Evidence) -> Vec<String> {
    let mut findings = Vec::new();
    for (id, customer) in &evidence.customers {
        let calls = customer["calls"].as_u64().unwrap_or(u64::MAX);
        if calls > MOST_CALLS {
            findings.push(format!("{calls} calls for customer {id:?}"));
        }
        let at_once = customer["max_in_flight"].as_u64().unwrap_or(u64::MAX);
        if at_once > 1 {
            findings.push(format!("{at_once} calls at once for customer {id:?}"));
        }
    }
    let events = cases.len() + evidence.plain.len();
    if evidence.calls > events * 4 {
        findings.push(format!("{} calls for {events} events", evidence.calls));
    }
    if evidence.peak_memory_kib > MOST_MEMORY_KIB {
        findings.push(format!("{} KiB of memory", evidence.peak_memory_kib));
    }
    findings
}

fn log(cases: &[Case], evidence: &Evidence) -> Vec<String> {
    let mut findings = Vec::new();
    for line in evidence.output.lines() {
        let is_json = serde_json::from_str::<Value>(line).is_ok_and(|line| line.is_object());
        let problem = if !is_json {
            "no JSON"
        } else if line.chars().any(char::is_control) {
            "a raw control character"
        } else if line.len() > MOST_LINE_BYTES {
            "too long"
        } else {
            continue;
        };
        let shown: String = line.chars().take(600).collect();
        findings.push(format!("a log line: {problem}: {shown:?}"));
    }
    findings.truncate(5);
    let events = cases.len() + evidence.plain.len();
    if evidence.output.len() > events * MOST_LOG_BYTES_AN_EVENT {
        findings.push(format!("{} bytes of log for {events} events", evidence.output.len()));
    }
    findings
}
