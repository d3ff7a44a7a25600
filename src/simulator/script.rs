//! A fault as the control API takes it: the JSON form, checked and made ready to be played. Pure;
//! carrying a fault out is the endpoint's work.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use hyper::StatusCode;
use hyper::body::Bytes;
use hyper::header::{LOCATION, RETRY_AFTER};
use serde::Deserialize;
use serde_json::Value;

use crate::answer::envelope;
use crate::fault::{Action, Canned, Fault, Instead, checked, gateway_page};
use crate::rate::Rate;

const JSON: &str = "application/json";
const HTML: &str = "text/html; charset=UTF-8";

/// A fault as it is written.
#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
enum Script {
    Latency { ms: u64 },
    Late { ms: u64 },
    Reset {},
    Hang { ms: Option<u64> },
    Truncated {},
    Echo {},
    Html {},
    Empty {},
    Status(StatusScript),
    Rate { per_second: f64, burst: u32, retry_after: Option<Value> },
    BodyStatus { status: Value, message: Option<String> },
    Raw(RawScript),
    Redirect { location: String, code: Option<u16> },
}

/// An answer byte for byte, as no JSON text could hold it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawScript {
    code: u16,
    body: Option<Value>,
    body_base64: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct StatusScript {
    code: u16,
    body: Option<Value>,
    retry_after: Option<Value>,
    content_type: Option<String>,
    envelope: Option<bool>,
}

impl Fault {
    /// Reads a fault from its JSON form; the error says what to mend.
    pub(crate) fn parse(mut given: Value) -> Result<Self, String> {
        let object = given.as_object_mut().ok_or("a fault is an object with a `kind`")?;
        let applies = match object.remove("apply") {
            None => false,
            Some(Value::Bool(applies)) => applies,
            Some(_) => return Err("`apply` is true or false".to_owned()),
        };
        let kind = object.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
        let script = Script::deserialize(given).map_err(|error| error.to_string())?;
        let spared = script.spared()?;
        let action = script.action()?;
        if applies && !matches!(action, Action::Instead(_)) {
            return Err(format!("`{kind}` updates anyway and takes no `apply`"));
        }
        Ok(Self { kind, applies, spared, action })
    }
}

impl Script {
    fn spared(&self) -> Result<Option<Rate>, String> {
        match self {
            Self::Rate { per_second, burst, .. } => Rate::try_new(*per_second, *burst).map(Some),
            _ => Ok(None),
        }
    }

    fn action(self) -> Result<Action, String> {
        let instead = match self {
            Self::Latency { ms } => return Ok(Action::Latency(Duration::from_millis(ms))),
            Self::Late { ms } => return Ok(Action::Late(Duration::from_millis(ms))),
            Self::Hang { ms } => Instead::Hang(ms.map(Duration::from_millis)),
            Self::Reset {} => Instead::Reset,
            Self::Truncated {} => Instead::Truncated,
            Self::Echo {} => Instead::Echo,
            Self::Html {} => Canned::typed(200, HTML, gateway_page(StatusCode::OK))?.into(),
            Self::Empty {} => Canned::typed(200, JSON, Bytes::new())?.into(),
            Self::Status(script) => script.answer()?.into(),
            Self::Rate { retry_after, .. } => {
                StatusScript { code: 429, retry_after, ..StatusScript::default() }.answer()?.into()
            }
            Self::BodyStatus { status, message } => {
                let message = message.as_deref().unwrap_or("fail");
                Canned::typed(200, JSON, envelope(&status, message))?.into()
            }
            Self::Raw(script) => script.answer()?.into(),
            Self::Redirect { location, code } => {
                let answer = Canned::new(code.unwrap_or(307), Bytes::new())?;
                answer.with(LOCATION, &location)?.into()
            }
        };
        Ok(Action::Instead(instead))
    }
}

impl StatusScript {
    fn answer(self) -> Result<Canned, String> {
        let status = checked(self.code)?;
        let has_envelope = self.envelope.unwrap_or(true);
        let body = match self.body {
            Some(body) => bytes(&body),
            None if has_envelope => envelope(self.code, "fail"),
            None => gateway_page(status),
        };
        let usual = if has_envelope { JSON } else { HTML };
        let content_type = self.content_type.as_deref().unwrap_or(usual);
        let answer = Canned::typed(self.code, content_type, body)?;
        match self.retry_after {
            None => Ok(answer),
            Some(Value::String(date)) => answer.with(RETRY_AFTER, &date),
            Some(seconds) => answer.with(RETRY_AFTER, &seconds.to_string()),
        }
    }
}

impl RawScript {
    fn answer(self) -> Result<Canned, String> {
        let mut answer = Canned::new(self.code, self.bytes()?)?;
        for (name, value) in self.headers {
            let name = name.parse().map_err(|_| format!("`{name}` is not a header name"))?;
            answer = answer.with(name, &value)?;
        }
        Ok(answer)
    }

    fn bytes(&self) -> Result<Bytes, String> {
        match (&self.body, &self.body_base64) {
            (Some(body), None) => Ok(bytes(body)),
            (None, Some(text)) => {
                let decoded = BASE64.decode(text).map(Bytes::from);
                decoded.map_err(|error| format!("`body_base64` is not base64: {error}"))
            }
            _ => Err("`raw` takes either `body` or `body_base64`".to_owned()),
        }
    }
}

/// A string stands for itself, anything else for its JSON text.
fn bytes(body: &Value) -> Bytes {
    match body {
        Value::String(text) => text.clone().into(),
        other => other.to_string().into(),
    }
}

#[cfg(test)]
mod tests {
    use hyper::header::{CONTENT_TYPE, HeaderValue};
    use serde_json::json;

    use super::*;

    fn canned(script: Value) -> Canned {
        match Fault::parse(script).expect("a valid fault").action {
            Action::Instead(Instead::Answer(canned)) => canned,
            other => panic!("not a canned answer: {other:?}"),
        }
    }

    #[test]
    fn a_status_has_the_pages_error_shape_unless_told_otherwise() {
        let answer = canned(json!({ "kind": "status", "code": 503, "retry_after": 7 }));
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer.body, r#"{"status":503,"message":"fail"}"#);
        assert!(answer.headers.contains(&(RETRY_AFTER, HeaderValue::from_static("7"))));
        let answer = canned(json!({ "kind": "status", "code": 502, "envelope": false }));
        assert!(answer.body.starts_with(b"<html>"));
        assert!(answer.headers.contains(&(CONTENT_TYPE, HeaderValue::from_static(HTML))));
    }

    #[test]
    fn a_retry_after_date_is_passed_as_it_is() {
        let date = "Wed, 21 Oct 2026 07:28:00 GMT";
        let answer = canned(json!({ "kind": "status", "code": 429, "retry_after": date }));
        assert!(answer.headers.contains(&(RETRY_AFTER, HeaderValue::from_static(date))));
    }

    #[test]
    fn a_rate_spares_some_calls_and_answers_429_to_the_rest() {
        let script = json!({ "kind": "rate", "per_second": 0.5, "burst": 3, "retry_after": 2 });
        assert!(Fault::parse(script.clone()).expect("valid").spared.is_some());
        let answer = canned(script);
        assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
        assert!(answer.headers.contains(&(RETRY_AFTER, HeaderValue::from_static("2"))));
        assert!(Fault::parse(json!({ "kind": "reset" })).expect("valid").spared.is_none());
    }

    #[test]
    fn raw_sends_text_as_it_is_and_json_as_its_text() {
        let answer = canned(json!({ "kind": "raw", "code": 200, "body": "{not json" }));
        assert_eq!(answer.body, "{not json");
        let answer = canned(json!({ "kind": "raw", "code": 211, "body": { "status": 211 } }));
        assert_eq!((answer.status.as_u16(), &answer.body[..]), (211, &br#"{"status":211}"#[..]));
        let answer = canned(json!({ "kind": "raw", "code": 200, "body_base64": "AP9c" }));
        assert_eq!(answer.body, &[0, 0xff, b'\\'][..]);
    }

    #[test]
    fn apply_is_said_beside_the_kind() {
        let fault = Fault::parse(json!({ "kind": "reset", "apply": true })).expect("valid");
        assert!(fault.applies && fault.kind == "reset");
        assert!(matches!(fault.action, Action::Instead(Instead::Reset)));
    }

    #[test]
    fn a_mistaken_script_is_refused_with_a_reason() {
        for (script, hint) in [
            (json!("reset"), "object"),
            (json!({ "kind": "explode" }), "unknown variant"),
            (json!({ "kind": "latency" }), "ms"),
            (json!({ "kind": "late", "ms": 1, "apply": true }), "apply"),
            (json!({ "kind": "reset", "aply": true }), "aply"),
            (json!({ "kind": "status", "code": 503, "retry-after": 1 }), "retry-after"),
            (json!({ "kind": "status", "code": 99 }), "from 200 to 599"),
            (json!({ "kind": "rate", "per_second": 0, "burst": 1 }), "per_second"),
            (json!({ "kind": "rate", "per_second": 9, "burst": 0 }), "burst"),
            (json!({ "kind": "redirect", "location": "a\nb" }), "location"),
            (json!({ "kind": "raw", "code": 200 }), "body"),
            (json!({ "kind": "raw", "code": 200, "body": "", "body_base64": "" }), "either"),
            (json!({ "kind": "raw", "code": 200, "body_base64": "*" }), "base64"),
            (json!({ "kind": "reset", "apply": 1 }), "apply"),
        ] {
            let error = Fault::parse(script.clone()).expect_err("a mistake");
            assert!(error.contains(hint), "{script}: {error}");
        }
    }
}
