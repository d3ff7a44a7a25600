//! The effective configuration for people: every setting and its source, secrets masked.

use std::fmt::Write;

use serde_json::json;
use toml::Value;

use super::layers::{Layers, Source};

const WRITE: &str = "writing to a String cannot fail";

impl Layers {
    /// TOML, with a comment on each line that is not the default.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        let mut section = "";
        for (key, value, source) in self.iter() {
            let (table, name) = key.split_once('.').unwrap_or(("", key));
            if table != section {
                write!(text, "\n[{table}]\n").expect(WRITE);
                section = table;
            }
            write!(text, "{name} = {}", masked(key, value)).expect(WRITE);
            if *source != Source::Default {
                write!(text, "  # {source}").expect(WRITE);
            }
            text.push('\n');
        }
        text.trim_start().to_owned()
    }

    /// `{"a.b": {"value": …, "source": …}}`.
    pub fn to_json(&self) -> serde_json::Value {
        let settings = self.iter().map(|(key, value, source)| {
            let value = json!({"value": masked(key, value), "source": source.to_string()});
            (key.to_owned(), value)
        });
        serde_json::Value::Object(settings.collect())
    }
}

fn masked(key: &str, value: &Value) -> Value {
    match (key, value) {
        ("portal.token" | "portal.secret_key" | "admin.token", Value::String(text))
            if !text.is_empty() =>
        {
            Value::String("***".into())
        }
        ("ledger.url", Value::String(url)) if !url.contains("://") => Value::String(url.clone()),
        ("broker.url" | "ledger.url", Value::String(urls)) => {
            Value::String(urls.split(',').map(without_password).collect::<Vec<_>>().join(","))
        }
        _ => value.clone(),
    }
}

/// `amqp://user:***@host`, and `***` for what has no such shape.
fn without_password(url: &str) -> String {
    let Ok(mut url) = url.trim().parse::<url::Url>() else { return "***".into() };
    if url.password().is_some() && url.set_password(Some("***")).is_err() {
        return "***".into();
    }
    url.into()
}
