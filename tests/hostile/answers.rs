//! Answers of the portal of every kind, each to the calls of one customer, whose event is plain. What
//! concerns everybody by the contract (429, a redirect, a gateway's page) is not among them: a portal
//! that says so is believed.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use super::case::{Case, End};
use super::draft::{Draft, Form};
use super::texts;

/// One customer's event, and what the portal answers to it each time.
pub fn case(number: usize, dice: &mut StdRng) -> Case {
    let mut draft = Draft::plain(number, Form::Structured, dice);
    draft.data["entity_id"] = json!(format!("A{number}"));
    let kinds = [success, rejected, outside_the_page, broken, failing, headers];
    let Answer { label, code, body, headers, ends } =
        kinds[dice.random_range(0..kinds.len())](dice);
    draft.label(label);
    draft.ends(&ends);
    let body = BASE64_STANDARD.encode(body);
    let fault = json!({"kind": "raw", "code": code, "body_base64": body, "headers": headers});
    let answer = json!({"match": {"entity_id": format!("A{number}")}, "fault": fault});
    Case { answer: Some(answer), ..draft.finished(dice) }
}

struct Answer {
    label: &'static str,
    code: u16,
    body: Vec<u8>,
    headers: Value,
    ends: Vec<End>,
}

fn answer(label: &'static str, code: u16, body: impl Into<Vec<u8>>, ends: &[End]) -> Answer {
    let headers = json!({"content-type": "application/json"});
    Answer { label, code, body: body.into(), headers, ends: ends.to_vec() }
}

/// A text that speaks neither of a duplicate nor of credentials, and is no fail word.
fn message(dice: &mut StdRng) -> String {
    let most = [200, 60_000][dice.random_range(0..2)];
    format!("said: {}", texts::any(dice, most))
}

fn success(dice: &mut StdRng) -> Answer {
    let data = [json!([]), json!({}), json!(null), json!("x"), json!({"success": true})];
    let data = &data[dice.random_range(0..data.len())];
    let status = [json!(200), json!("200")][dice.random_range(0..2)].clone();
    let body = json!({"status": status, "message": message(dice), "data": data}).to_string();
    match dice.random_range(0..5) {
        0 => {
            let body = [b"\xef\xbb\xbf", body.as_bytes()].concat();
            answer("success behind a byte order mark", 200, body, &[End::Applied, End::dead()])
        }
        1 => {
            let body = body.replacen('{', "{\"status\":400,", 1);
            answer("success with a key twice", 200, body, &[End::Applied, End::dead()])
        }
        2 => answer("success with an odd code", 299, body, &[End::Applied]),
        _ => answer("success in strange words", 200, body, &[End::Applied]),
    }
}

fn rejected(dice: &mut StdRng) -> Answer {
    let ends = [End::dead_of("rejected")];
    let said = json!({"status": 400, "message": message(dice), "data": []}).to_string();
    match dice.random_range(0..4) {
        0 => answer("rejected in strange words", 200, said, &ends),
        1 => answer("rejected with a code", [400, 409, 422][dice.random_range(0..3)], said, &ends),
        2 => {
            let code = [409, 413, 422, 418, 451][dice.random_range(0..5)];
            answer("rejected by a code alone", code, texts::bytes(dice, 3000), &ends)
        }
        _ => {
            let said = json!({"status": "400", "message": [message(dice)]}).to_string();
            answer("rejected by a status that is text", 200, said, &ends)
        }
    }
}

const OUTSIDE: [&str; 24] = [
    "",
    "null",
    "true",
    "[]",
    "{}",
    "\"success\"",
    "success",
    "<html>success</html>",
    r#"{"status":200}"#,
    r#"{"status":200,"message":null}"#,
    r#"{"status":200,"message":7}"#,
    r#"{"status":200,"message":["success"]}"#,
    r#"{"status":200,"message":"fail"}"#,
    r#"{"status":true,"message":"success"}"#,
    r#"{"status":null,"message":"success"}"#,
    r#"{"status":[200],"message":"success"}"#,
    r#"{"status":{"code":200},"message":"success"}"#,
    r#"{"status":200.0,"message":"success"}"#,
    r#"{"status":2e2,"message":"success"}"#,
    r#"{"status":99999999999999999999,"message":"success"}"#,
    r#"{"status":-200,"message":"success"}"#,
    r#"{"status":9223372036854775807,"message":"success"}"#,
    r#"{"status":" 2 0 0","message":"success"}"#,
    r#"{"message":"success"}"#,
];

fn outside_the_page(dice: &mut StdRng) -> Answer {
    let body = OUTSIDE[dice.random_range(0..OUTSIDE.len())];
    let code = [200, 200, 201, 202][dice.random_range(0..4)];
    answer("no answer of the page", code, body, &[End::dead_of("contract-violation")])
}

fn broken(dice: &mut StdRng) -> Answer {
    let begin = br#"{"status":200,"message":""#;
    let body = match dice.random_range(0..7) {
        0 => [&begin[..], b"\xff\xfe\"}"].concat(),
        1 => [&begin[..], b"\0\"}"].concat(),
        2 => [&begin[..], b"cut off"].concat(),
        3 => vec![0; 65_536],
        4 => [&begin[..], "x".repeat(70_000).as_bytes(), b"\"}"].concat(),
        5 => [&begin[..], b"ok\",\"data\":", "[".repeat(30_000).as_bytes()].concat(),
        _ => [&begin[..], br#"ok","data":1e999}"#].concat(),
    };
    let ends = [End::dead_of("contract-violation")];
    match dice.random_range(0..4) {
        0 => {
            let levels = dice.random_range(130..15_000);
            let deep = [&b"[".repeat(levels)[..], &b"]".repeat(levels)[..]].concat();
            let body = [&begin[..], b"ok\",\"data\":", &deep, b"}"].concat();
            answer("success with very deep data", 200, body, &[End::Applied, End::dead()])
        }
        _ => answer("no valid JSON", 200, body, &ends),
    }
}

/// For one customer alone. A share of few, or it would be everybody's outage.
fn failing(dice: &mut StdRng) -> Answer {
    let retried = [End::dead_of("retries-exhausted")];
    match dice.random_range(0..8) {
        0 => {
            let body = json!({"status": 500, "message": message(dice)}).to_string();
            answer("a failure in strange words", 500, body, &retried)
        }
        1 => answer("a failure without words", 500, texts::bytes(dice, 5000), &retried),
        2 => {
            let body = json!({"status": 404, "message": message(dice)}).to_string();
            answer("an unknown customer", 200, body, &[End::dead_of("unknown-entity")])
        }
        _ => rejected(dice),
    }
}

fn headers(dice: &mut StdRng) -> Answer {
    let odd = [
        "-1",
        "1.5",
        "1e3",
        "99999999999999999999999",
        "18446744073709551615",
        "soon",
        "",
        "Wed, 21 Oct 2015 07:28:00 GMT",
        "Fri, 31 Dec 9999 23:59:59 GMT",
        "é",
        "0, 0",
    ];
    let after = odd[dice.random_range(0..odd.len())];
    let success = r#"{"status":200,"message":"success","data":[]}"#;
    let mut found = match dice.random_range(0..4) {
        0 => answer("an odd Retry-After", 500, "", &[End::dead_of("retries-exhausted")]),
        1 => answer("an odd Retry-After of a success", 200, success, &[End::Applied]),
        2 => answer("headers of strange texts", 200, success, &[End::Applied]),
        _ => {
            let ends = [End::Applied, End::dead()];
            let mut found = answer("huge headers", 200, success, &ends);
            for number in 0..dice.random_range(1..150) {
                found.headers[format!("x-{number}")] =
                    json!("x".repeat(dice.random_range(0..8000)));
            }
            found
        }
    };
    if found.label.contains("Retry-After") {
        found.headers["retry-after"] = json!(after);
    } else {
        let types = ["", "text/html", "application/json; charset=utf-16", "é/ü", "a/b; c=d; c=e"];
        found.headers["content-type"] = json!(types[dice.random_range(0..types.len())]);
        found.headers["content-encoding"] =
            json!(["gzip", "x", "identity"][dice.random_range(0..3)]);
        found.headers["set-cookie"] = json!("a=b; Domain=é");
    }
    found
}
