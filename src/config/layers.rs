//! The layers of settings, later over earlier: defaults, file, environment, flags.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::reader::{Mistake, Mistakes};

/// The reference: every setting with its default.
pub const DEFAULTS: &str = include_str!("defaults.toml");

const ENVIRONMENT_PREFIX: &str = "CUSTOMER_RELAY__";

/// Where settings may come from besides the defaults.
#[derive(Debug, Default)]
pub struct Sources {
    /// A TOML file.
    pub file: Option<PathBuf>,
    /// The environment's variables; only those with our prefix are looked at.
    pub environment: Vec<(String, String)>,
    /// `KEY=VALUE` flags.
    pub flags: Vec<String>,
}

/// Which layer a value comes from; later wins.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    Default,
    File(PathBuf),
    Environment(String),
    Flag,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Default => f.write_str("default"),
            Source::File(path) => write!(f, "{}", path.display()),
            Source::Environment(name) => write!(f, "environment {name}"),
            Source::Flag => f.write_str("--set"),
        }
    }
}

impl Source {
    /// The layer alone, for telling which of two values is the later one.
    pub(super) fn rank(&self) -> u8 {
        match self {
            Source::Default => 0,
            Source::File(_) => 1,
            Source::Environment(_) => 2,
            Source::Flag => 3,
        }
    }
}

/// Every setting's value and where it comes from, not checked yet.
#[derive(Debug)]
pub struct Layers {
    values: BTreeMap<String, (Value, Source)>,
    mistakes: Vec<Mistake>,
}

impl Layers {
    /// Lays the sources over the defaults. A file that cannot be read is a mistake by itself;
    /// unknown keys are reported with all other mistakes.
    pub fn new(sources: &Sources) -> Result<Layers, Mistakes> {
        let defaults = flatten(DEFAULTS.parse().expect("the compiled-in defaults are TOML"));
        let values = defaults.into_iter().map(|(key, value)| (key, (value, Source::Default)));
        let mut layers = Layers { values: values.collect(), mistakes: Vec::new() };
        if let Some(path) = &sources.file {
            let table = read_file(path).map_err(|mistake| Mistakes(vec![mistake]))?;
            for (key, value) in flatten(table) {
                layers.lay(&key, value, Source::File(path.clone()));
            }
        }
        for (name, value) in &sources.environment {
            if let Some(key) = name.strip_prefix(ENVIRONMENT_PREFIX) {
                let key = key.to_ascii_lowercase().replace("__", ".");
                layers.lay(&key, Value::String(value.clone()), Source::Environment(name.clone()));
            }
        }
        for flag in &sources.flags {
            match flag.split_once('=') {
                Some((key, value)) => layers.lay(key, Value::String(value.into()), Source::Flag),
                None => layers.mistakes.push(Mistake {
                    key: "--set".into(),
                    source: None,
                    problem: "expected KEY=VALUE, for example --set worker.in_flight=8".into(),
                }),
            }
        }
        Ok(layers)
    }

    fn lay(&mut self, key: &str, value: Value, source: Source) {
        if let Some(slot) = self.values.get_mut(key) {
            *slot = (value, source);
            return;
        }
        let section = key.split('.').next().expect("a split has a first piece");
        let siblings: Vec<&str> = self
            .values
            .keys()
            .filter_map(|known| known.strip_prefix(section)?.strip_prefix('.'))
            .collect();
        let known = if siblings.is_empty() {
            "see `customer-relay config --defaults`".to_owned()
        } else {
            format!("[{section}] has {}", siblings.join(", "))
        };
        let problem = format!("unknown setting; {known}");
        self.mistakes.push(Mistake {
            key: key.to_owned(),
            source: Some(source.to_string()),
            problem,
        });
    }

    pub(super) fn get(&self, key: &str) -> Option<&(Value, Source)> {
        self.values.get(key)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Value, &Source)> {
        self.values.iter().map(|(key, (value, source))| (key.as_str(), value, source))
    }

    pub(super) fn mistakes(&self) -> &[Mistake] {
        &self.mistakes
    }
}

fn read_file(path: &Path) -> Result<Table, Mistake> {
    let mistake = |problem| Mistake { key: path.display().to_string(), source: None, problem };
    let text = std::fs::read_to_string(path).map_err(|error| mistake(error.to_string()))?;
    text.parse::<Table>().map_err(|error| {
        // The message alone: the whole error quotes the line, which may hold a secret.
        let before = &text[..error.span().map_or(0, |span| span.start.min(text.len()))];
        let line = before.matches('\n').count() + 1;
        mistake(format!("line {line}: not TOML: {}", error.message().replace('\n', " ")))
    })
}

/// `[a] b = 1` as `a.b`.
fn flatten(table: Table) -> Vec<(String, Value)> {
    let mut flat = Vec::new();
    for (key, value) in table {
        match value {
            Value::Table(inner) => {
                flat.extend(
                    flatten(inner)
                        .into_iter()
                        .map(|(rest, value)| (format!("{key}.{rest}"), value)),
                );
            }
            value => flat.push((key, value)),
        }
    }
    flat
}
