//! `check --sample`: what the rules would say to a sample of the CRM's events, before the first
//! start, offline.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use serde_json::{Value, json};

use super::explain::admit;
use super::{Exit, output};
use crate::config::Config;
use crate::domain::admission::Admission;
use crate::domain::field::Field;
use crate::domain::verdict::Verdict;

/// Why events were refused: reason, field, rule, setting.
type Group = (String, Option<String>, Option<String>, Option<String>);

/// Judges a file of JSON lines; exit 1 if any of them would be a dead letter.
pub(super) fn check(file: &Path, config: &Config, as_json: bool) -> anyhow::Result<Exit> {
    let text = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let (mut events, mut unordered) = (0, 0);
    let mut refused = BTreeMap::<Group, (u64, usize)>::new();
    for (number, line) in (1_usize..).zip(text.split(|byte| *byte == b'\n')) {
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        events += 1;
        let admitted = admit(config, line);
        let lacks = |one: &Admission| config.rules.required.lacked_by(&one.place).is_some();
        unordered += u64::from(admitted.as_ref().is_ok_and(lacks));
        if let Err(Verdict::DeadLetter(dead)) = admitted.map_err(|verdict| *verdict) {
            let text = |text: Option<&str>| text.map(str::to_owned);
            let group = (
                dead.reason.name().to_owned(),
                text(dead.field.map(Field::name)),
                text(dead.rule),
                text(dead.setting),
            );
            refused.entry(group).or_insert((0, number)).0 += 1;
        }
    }
    let count: u64 = refused.values().map(|(count, _)| count).sum();
    if as_json {
        output::print_json(&json!({"events": events, "refused": count, "unordered": unordered,
            "groups": refused.iter().map(group_json).collect::<Vec<_>>()}))?;
    } else {
        let mut lines = vec![format!("{events} events, {count} would be dead letters")];
        lines.extend(refused.iter().map(group_line));
        if unordered > 0 {
            lines.push(format!(
                "{unordered:>8}  lack what order.require asks for: their messages need it, such as a \
                 timestamp (or order.missing)"
            ));
        }
        output::print(&lines.join("\n"))?;
    }
    Ok(if count == 0 { Exit::Done } else { Exit::Failed })
}

fn group_json((group, (count, line)): (&Group, &(u64, usize))) -> Value {
    let (reason, field, rule, setting) = group;
    json!({"reason": reason, "field": field, "rule": rule, "setting": setting, "count": count,
           "first_line": line})
}

fn group_line((group, (count, line)): (&Group, &(u64, usize))) -> String {
    let (reason, field, rule, setting) = group;
    let part = |name: &str, value: &Option<String>| {
        value.as_ref().map_or_else(String::new, |value| format!(", {name} {value}"))
    };
    let (field, rule) = (part("field", field), part("rule", rule));
    let setting = part("setting", setting);
    format!("{count:>8}  {reason}{field}{rule}{setting}; first in line {line}")
}
