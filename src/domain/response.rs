//! What the portal's answer, or the lack of one, means: a pure reading of the answer table.
//!
//! The page promises that "fail" looks like success but for a number in the body, so success has
//! to prove itself: whatever is not known is never success.

use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::rfc2822;

use super::json::{self, Json};
use super::outcome::Outcome;

/// An answer as it came over HTTP.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// HTTP status code.
    pub status: u16,
    /// The `Retry-After` header, uninterpreted.
    pub retry_after: Option<String>,
    /// The `Date` header, uninterpreted.
    pub date: Option<String>,
    /// The body, cut at the configured length.
    pub body: Vec<u8>,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoAnswer {
    /// The call never reached the portal: refused, DNS, TLS, connect timeout.
    Unreachable,
    /// The time limit ended first: the portal may or may not have applied it.
    TimedOut,
    /// The connection ended before the answer did: the portal may or may not have applied it.
    Interrupted,
}

/// An answer, judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// What it means.
    pub outcome: Outcome,
    /// HTTP status code, if there was an answer.
    pub http_status: Option<u16>,
    /// The `status` of the portal's form, if the answer had one.
    pub portal_status: Option<i64>,
    /// The `message` of the portal's form. It may echo personal data: redact before use.
    pub message: Option<String>,
    /// How long the portal asks us to wait.
    pub retry_after: Option<Duration>,
}

/// Judges one call. `sets_email` tells whether the update sends an e-mail address.
pub fn judge(call: &Result<Answer, NoAnswer>, sets_email: bool, now: Timestamp) -> Judgement {
    match call {
        Ok(answer) => judge_answer(answer, sets_email, now),
        Err(none) => Judgement {
            outcome: match none {
                NoAnswer::Unreachable => Outcome::Unreachable,
                NoAnswer::TimedOut => Outcome::TimedOut,
                NoAnswer::Interrupted => Outcome::Interrupted,
            },
            http_status: None,
            portal_status: None,
            message: None,
            retry_after: None,
        },
    }
}

fn judge_answer(answer: &Answer, sets_email: bool, now: Timestamp) -> Judgement {
    let form = Form::read(&answer.body);
    let outcome = outcome_of(answer.status, form.as_ref(), sets_email);
    let (portal_status, message) = form.map_or((None, None), |form| (form.status, form.message));
    Judgement {
        outcome,
        http_status: Some(answer.status),
        portal_status,
        message,
        retry_after: answer.retry_after.as_deref().and_then(|text| {
            // Both dates are of one clock; ours may be another one.
            retry_after(text, || answer.date.as_deref().and_then(http_date).unwrap_or(now))
        }),
    }
}

/// A JSON object, as the portal's own answers are: those have a status, too.
struct Form {
    status: Option<i64>,
    message: Option<String>,
    denies_success: bool,
}

impl Form {
    fn read(body: &[u8]) -> Option<Form> {
        let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
        // A key that stands twice says nothing for sure.
        let Json::Object(mut object) = json::parse(body).ok()? else { return None };
        let status = match object.get("status") {
            Some(Json::Number(number)) => number.as_i64(),
            Some(Json::Text(text)) => text.trim().parse().ok(),
            _ => None,
        };
        let message = match object.remove("message") {
            Some(Json::Text(text)) => Some(text.into_owned()),
            _ => None,
        };
        let success = match object.get("data") {
            Some(Json::Object(data)) => data.get("success"),
            _ => None,
        };
        let denies_success = matches!(success, Some(Json::Bool(false)));
        Some(Form { status, message, denies_success })
    }

    fn is_success(&self) -> bool {
        const FAIL_WORDS: [&str; 4] = ["fail", "failed", "failure", "error"];
        let says_fail = self.message.as_deref().is_none_or(|message| {
            let message = message.trim().trim_end_matches(['.', '!']);
            FAIL_WORDS.iter().any(|word| message.eq_ignore_ascii_case(word))
        });
        self.status == Some(200) && !says_fail && !self.denies_success
    }

    fn speaks_of(&self, words: &[&str]) -> bool {
        let message = self.message.as_deref().unwrap_or("").to_ascii_lowercase();
        words.iter().any(|word| message.contains(word))
    }
}

const CREDENTIAL_WORDS: [&str; 5] = ["checksum", "token", "authentic", "authoriz", "credential"];
const DUPLICATE_WORDS: [&str; 5] = ["already", "taken", "exist", "duplicate", "unique"];
/// Without it, "already processed" and "does not exist" may be said to everybody.
const EMAIL_WORDS: [&str; 1] = ["mail"];

/// The answer table, top to bottom.
fn outcome_of(http: u16, form: Option<&Form>, sets_email: bool) -> Outcome {
    let says = |status| form.and_then(|form| form.status) == Some(status);
    let speaks_of = |words| form.is_some_and(|form| form.speaks_of(words));
    let is_2xx = (200..300).contains(&http);

    if matches!(http, 401 | 403) || says(401) || says(403) {
        return Outcome::Unauthorized;
    }
    if (http == 400 || (is_2xx && says(400))) && speaks_of(&CREDENTIAL_WORDS) {
        return Outcome::Unauthorized;
    }
    let status = if is_2xx {
        match form {
            Some(form) if form.is_success() => return Outcome::Applied,
            Some(Form { status: Some(status @ (400..=404 | 406..=414 | 416..=599)), .. }) => {
                *status
            }
            Some(_) | None => return Outcome::ContractViolation,
        }
    } else {
        i64::from(http)
    };
    // Gateways answer in JSON too, but not in the portal's form.
    let is_portals = form.is_some_and(|form| form.status.is_some());
    match status {
        404 if is_portals => Outcome::UnknownEntity,
        300..=399 | 404 | 405 | 415 => Outcome::Misrouted,
        429 => Outcome::Throttled,
        408 | 425 => Outcome::Failed,
        400..=499 if sets_email && speaks_of(&DUPLICATE_WORDS) && speaks_of(&EMAIL_WORDS) => {
            Outcome::DuplicateEmail
        }
        400..=499 => Outcome::Rejected,
        // Whoever says it, it gave up on a call that may go on behind it.
        504 => Outcome::GatewayFailed,
        502 | 503 | 520..=524 if !is_portals => Outcome::GatewayFailed,
        500..=599 => Outcome::Failed,
        _ => Outcome::ContractViolation,
    }
}

/// Seconds or an HTTP date; anything else is as if it were absent.
fn retry_after(text: &str, now: impl Fn() -> Timestamp) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = http_date(text)?;
    // In the past: at once.
    Some(Duration::try_from(at.duration_since(now())).unwrap_or(Duration::ZERO))
}

/// A date as HTTP writes it, exact to a second.
pub fn http_date(text: &str) -> Option<Timestamp> {
    rfc2822::DateTimeParser::new().parse_timestamp(text).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn outcome(status: u16, body: &str) -> Outcome {
        let answer = Answer { status, body: body.into(), ..Answer::default() };
        judge(&Ok(answer), true, Timestamp::UNIX_EPOCH).outcome
    }

    #[test]
    fn success_has_to_prove_itself() {
        for body in [
            r#"{"status":200,"message":"success","data":[]}"#,
            r#"{"status":"200","message":"Success","data":{}}"#,
            "\u{feff}{\"status\":200,\"message\":\"updated\",\"data\":null}",
            r#"{"status":200,"message":"ok"}"#,
        ] {
            assert_eq!(outcome(200, body), Outcome::Applied, "{body}");
            assert_eq!(outcome(201, body), Outcome::Applied, "{body}");
            assert_eq!(outcome(400, body), Outcome::Rejected, "{body}");
        }
        for body in [
            r#"{"status":200,"message":"FAILED"}"#,
            r#"{"status":200,"message":"fail."}"#,
            r#"{"status":200}"#,
            r#"{"status":200,"message":"success","data":{"success":false}}"#,
            r#"{"status":211,"message":"success"}"#,
            r#"{"status":200.5,"message":"success"}"#,
            r#"{"message":"success"}"#,
            r#"[{"status":200,"message":"success"}]"#,
            "<html>success</html>",
            "",
        ] {
            assert_eq!(outcome(200, body), Outcome::ContractViolation, "{body}");
        }
    }

    #[test]
    fn the_answer_table_is_read_as_written() {
        let fail = r#"{"status":400,"message":"fail"}"#;
        for (status, body, expected) in [
            (200, fail, Outcome::Rejected),
            (400, "", Outcome::Rejected),
            (409, fail, Outcome::Rejected),
            (413, "<html>", Outcome::Rejected),
            (422, fail, Outcome::Rejected),
            (418, fail, Outcome::Rejected),
            (400, r#"{"status":400,"message":"E-mail already taken"}"#, Outcome::DuplicateEmail),
            (400, r#"{"status":400,"message":"merchant does not exist"}"#, Outcome::Rejected),
            (200, r#"{"status":400,"message":"Invalid checksum"}"#, Outcome::Unauthorized),
            (400, r#"{"status":400,"message":"bad token"}"#, Outcome::Unauthorized),
            (401, "", Outcome::Unauthorized),
            (403, "<html>", Outcome::Unauthorized),
            (200, r#"{"status":401,"message":"fail"}"#, Outcome::Unauthorized),
            (301, "", Outcome::Misrouted),
            (405, "", Outcome::Misrouted),
            (415, fail, Outcome::Misrouted),
            (404, "<html>", Outcome::Misrouted),
            (404, fail, Outcome::UnknownEntity),
            (200, r#"{"status":404,"message":"fail"}"#, Outcome::UnknownEntity),
            (429, "", Outcome::Throttled),
            (200, r#"{"status":429,"message":"fail"}"#, Outcome::Throttled),
            (408, "", Outcome::Failed),
            (425, "", Outcome::Failed),
            (500, "<html>", Outcome::Failed),
            (503, r#"{"status":503,"message":"fail"}"#, Outcome::Failed),
            (200, r#"{"status":"503","message":"fail"}"#, Outcome::Failed),
            (502, "<html>", Outcome::GatewayFailed),
            (503, "", Outcome::GatewayFailed),
            (504, "upstream", Outcome::GatewayFailed),
            (504, r#"{"message":"Endpoint request timed out"}"#, Outcome::GatewayFailed),
            (200, r#"{"status":504,"message":"fail"}"#, Outcome::GatewayFailed),
            (503, r#"{"message":"no upstream"}"#, Outcome::GatewayFailed),
            (524, "<html>", Outcome::GatewayFailed),
            (404, r#"{"message":"no Route matched"}"#, Outcome::Misrouted),
        ] {
            assert_eq!(outcome(status, body), expected, "{status} {body}");
        }
    }

    #[test]
    fn a_duplicate_is_one_of_the_email_only_if_the_update_sets_it() {
        let body = r#"{"status":400,"message":"email already exists"}"#;
        let answer = Answer { status: 200, body: body.into(), ..Answer::default() };
        let judgement = judge(&Ok(answer), false, Timestamp::UNIX_EPOCH);
        assert_eq!(judgement.outcome, Outcome::Rejected);
        assert_eq!(judgement.portal_status, Some(400));
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now: Timestamp = "2026-11-22T09:30:00Z".parse().expect("a time");
        assert_eq!(retry_after("120", || now), Some(Duration::from_mins(2)));
        let date = "Sun, 22 Nov 2026 09:31:30 GMT";
        assert_eq!(retry_after(date, || now), Some(Duration::from_secs(90)));
        let past = "Sun, 22 Nov 2026 09:00:00 GMT";
        assert_eq!(retry_after(past, || now), Some(Duration::ZERO));
        assert_eq!(retry_after("soon", || now), None);
    }

    #[test]
    fn a_retry_after_date_is_held_against_the_date_of_its_answer() {
        let our_clock: Timestamp = "2026-11-22T07:30:00Z".parse().expect("a time");
        let answer = Answer {
            status: 429,
            retry_after: Some("Sun, 22 Nov 2026 09:31:30 GMT".into()),
            date: Some("Sun, 22 Nov 2026 09:30:00 GMT".into()),
            body: Vec::new(),
        };
        let judgement = judge(&Ok(answer), false, our_clock);
        assert_eq!(judgement.retry_after, Some(Duration::from_secs(90)));
    }

    proptest! {
        #[test]
        fn the_judgement_is_total_and_only_a_proven_success_is_applied(
            status in 0_u16..1000,
            body_status in any::<i64>(),
            message in "\\PC{0,30}",
            noise in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let form = serde_json::json!({"status": body_status, "message": message}).to_string();
            for body in [noise, form.into_bytes()] {
                let answer = Answer { status, body, ..Answer::default() };
                let judgement = judge(&Ok(answer), true, Timestamp::UNIX_EPOCH);
                if judgement.outcome == Outcome::Applied {
                    prop_assert!((200..300).contains(&status));
                    prop_assert_eq!(judgement.portal_status, Some(200));
                }
            }
        }
    }
}
