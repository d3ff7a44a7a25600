//! Reads typed settings and collects what is wrong with them. Values come from TOML with types, or
//! from the environment and flags as text. No value is ever repeated in a mistake.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use regex::Regex;
use toml::Value;

use super::layers::{Layers, Source};
use crate::clock;
use crate::domain::text::is_printable;

/// One thing that is wrong with the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The setting, or the file.
    pub key: String,
    /// Where the value comes from.
    pub source: Option<String>,
    /// What is wrong and what is expected.
    pub problem: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Some(source) => write!(f, "{} ({source}): {}", self.key, self.problem),
            None => write!(f, "{}: {}", self.key, self.problem),
        }
    }
}

/// All that is wrong with the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistakes(pub Vec<Mistake>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the configuration has mistakes:")?;
        self.0.iter().try_for_each(|mistake| write!(f, "\n  {mistake}"))
    }
}

impl std::error::Error for Mistakes {}

pub(super) struct Reader<'a> {
    layers: &'a Layers,
    mistakes: Vec<Mistake>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(layers: &'a Layers) -> Self {
        Reader { layers, mistakes: layers.mistakes().to_vec() }
    }

    /// The configuration, or all mistakes.
    pub(super) fn finish<T>(self, config: Option<T>) -> Result<T, Mistakes> {
        match config {
            Some(config) if self.mistakes.is_empty() => Ok(config),
            _ => Err(Mistakes(self.mistakes)),
        }
    }

    /// Notes what is wrong with a setting; the first thing wrong with it is enough.
    pub(super) fn mistake(&mut self, key: &str, problem: &str) {
        if self.mistakes.iter().any(|mistake| mistake.key == key) {
            return;
        }
        let source = self.source(key).filter(|source| **source != Source::Default);
        let source = source.map(ToString::to_string);
        self.mistakes.push(Mistake { key: key.to_owned(), source, problem: problem.to_owned() });
    }

    /// Notes the error, if it is one.
    pub(super) fn accept<T, E: fmt::Display>(
        &mut self,
        key: &str,
        result: Result<T, E>,
    ) -> Option<T> {
        result.map_err(|error| self.mistake(key, &error.to_string())).ok()
    }

    pub(super) fn source(&self, key: &str) -> Option<&'a Source> {
        self.layers.get(key).map(|(_, source)| source)
    }

    pub(super) fn text(&mut self, key: &str) -> String {
        if let Some((Value::String(text), _)) = self.layers.get(key) {
            return text.clone();
        }
        self.mistake(key, "expected a text");
        String::new()
    }

    /// A name for the broker: not empty, and short enough to leave room for what is appended.
    pub(super) fn name(&mut self, key: &str) -> String {
        let name = self.text(key);
        if name.is_empty() || name.len() > 200 || !is_printable(&name) {
            self.mistake(key, "expected a name of 1 to 200 bytes, without control characters");
            return String::new();
        }
        name
    }

    pub(super) fn integer<T: TryFrom<i64> + Default>(
        &mut self,
        key: &str,
        range: RangeInclusive<i64>,
    ) -> T {
        let number = match self.layers.get(key) {
            Some((Value::Integer(number), _)) => Some(*number),
            Some((Value::String(text), _)) => text.trim().parse().ok(),
            _ => None,
        };
        let number = number.filter(|number| range.contains(number));
        number.and_then(|number| T::try_from(number).ok()).unwrap_or_else(|| {
            let (low, high) = range.into_inner();
            self.mistake(key, &format!("expected an integer from {low} to {high}"));
            T::default()
        })
    }

    pub(super) fn float(&mut self, key: &str) -> f64 {
        let number = match self.layers.get(key) {
            Some((Value::Float(number), _)) => Some(*number),
            Some((Value::Integer(number), _)) => i32::try_from(*number).ok().map(f64::from),
            Some((Value::String(text), _)) => text.trim().parse().ok(),
            _ => None,
        };
        number.unwrap_or_else(|| {
            self.mistake(key, "expected a number");
            1.0
        })
    }

    pub(super) fn boolean(&mut self, key: &str) -> bool {
        let value = match self.layers.get(key) {
            Some((Value::Boolean(value), _)) => Some(*value),
            Some((Value::String(text), _)) => text.trim().parse().ok(),
            _ => None,
        };
        value.unwrap_or_else(|| {
            self.mistake(key, "expected true or false");
            false
        })
    }

    /// A duration from 1 ms to 7 days.
    pub(super) fn duration(&mut self, key: &str) -> Duration {
        self.duration_up_to(key, Duration::from_hours(7 * 24))
    }

    /// A duration from 1 ms.
    pub(super) fn duration_up_to(&mut self, key: &str, longest: Duration) -> Duration {
        let text = self.text(key);
        let duration = text.parse::<SignedDuration>().ok().and_then(|d| Duration::try_from(d).ok());
        let bounds = Duration::from_millis(1)..=longest;
        duration.filter(|duration| bounds.contains(duration)).unwrap_or_else(|| {
            let days = longest.as_secs() / (24 * 3600);
            let example = "such as \"250ms\" or \"1m 30s\"";
            self.mistake(key, &format!("expected a duration from 1ms to {days} days, {example}"));
            longest
        })
    }

    /// A moment in the past: an RFC 3339 time, or a date in UTC; a text, or TOML's own type.
    pub(super) fn past_time(&mut self, key: &str) -> Option<Timestamp> {
        let text = match self.layers.get(key) {
            Some((Value::Datetime(time), _)) => time.to_string(),
            Some((Value::String(text), _)) => text.trim().to_owned(),
            _ => String::new(),
        };
        let time = text.parse().or_else(|_| format!("{text}T00:00:00Z").parse::<Timestamp>());
        let time = time.ok().filter(|time| *time < clock::now());
        if time.is_none() {
            self.mistake(key, "expected a date or a time in the past, such as 2000-01-01");
        }
        time
    }

    pub(super) fn choice<T: Copy>(&mut self, key: &str, choices: &[(&str, T)]) -> Option<T> {
        let text = self.text(key);
        let chosen = choices.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
        if chosen.is_none() {
            let names: Vec<String> = choices.iter().map(|(name, _)| format!("{name:?}")).collect();
            self.mistake(key, &format!("expected {}", names.join(" or ")));
        }
        chosen
    }

    /// Texts: a TOML array, or comma-separated.
    pub(super) fn list(&mut self, key: &str) -> Vec<String> {
        let items: Option<Vec<String>> = match self.layers.get(key) {
            Some((Value::Array(items), _)) => {
                items.iter().map(|item| item.as_str().map(str::to_owned)).collect()
            }
            Some((Value::String(text), _)) => {
                Some(text.split(',').map(|item| item.trim().to_owned()).collect())
            }
            _ => None,
        };
        items.filter(|items| items.iter().all(|item| !item.is_empty())).unwrap_or_else(|| {
            self.mistake(key, "expected a list of texts, or one text with commas");
            Vec::new()
        })
    }

    /// A regular expression, anchored at both ends.
    pub(super) fn pattern(&mut self, key: &str) -> Option<Regex> {
        let text = self.text(key);
        let pattern = Regex::new(&format!("^(?:{text})$"));
        self.accept(key, pattern.map_err(|_| "expected a regular expression"))
    }

    pub(super) fn pointer(&mut self, key: &str) -> String {
        let pointer = self.text(key);
        if !pointer.starts_with('/') {
            self.mistake(key, "expected a JSON Pointer, such as \"/contact/email\"");
        }
        pointer
    }
}
