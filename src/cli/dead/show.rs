//! `dead show`: one letter, its past, and what would become of it now. Personal data is masked unless
//! somebody asks, which is written down.

use secrecy::ExposeSecret as _;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{Exit, output, unchanged};
use crate::admin::describe_letter;
use crate::dead_letters::{Inspected, Office, advice};
use crate::domain::dead_letter::Reason;
use crate::domain::field::Field;
use crate::domain::outlook::Outlook;
use crate::domain::request::sign;
use crate::domain::text::mask;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct ShowArgs {
    /// A dead id, as `dead list` shows it.
    #[arg(value_name = "ID")]
    id: Uuid,
    /// Show personal data as it is; this is written down.
    #[arg(long)]
    reveal: bool,
    /// Why, for the operators' log.
    #[arg(long, value_name = "TEXT", requires = "reveal")]
    why: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn show(args: &ShowArgs, office: &Office<'_>) -> anyhow::Result<Exit> {
    if args.reveal {
        office.write_down("reveal", &args.id.to_string(), args.why.as_deref(), 1).await?;
    }
    let Some(found) = office.inspect(args.id, false).await? else {
        return Ok(unchanged(&format!(
            "there is no dead letter {} in {}",
            args.id,
            office.queue()
        )));
    };
    let told = describe(&found, office, args.reveal);
    if args.json {
        output::print_json(&told)
    } else {
        output::print(&page(&told, found.letter.reason))
    }?;
    Ok(Exit::Done)
}

fn describe(found: &Inspected, office: &Office<'_>, reveals: bool) -> Value {
    let say = |value: &str| if reveals { value.to_owned() } else { mask(value) };
    let mut told = describe_letter(&found.letter);
    told["customer"] = json!(found.customer.as_deref().map(say));
    let history = found.headers.iter().map(|(name, value)| (name.clone(), json!(value)));
    told["history"] = Value::Object(history.collect());
    if reveals {
        told["body"] = json!(String::from_utf8_lossy(&found.body));
    }
    told["outlook"] = outlook(&found.outlook);
    told["outlook"]["unfenced"] = json!(found.is_unfenced);
    told["outlook"]["without_ledger"] = json!(office.lacks_ledger());
    if let Some(admission) = &found.admission {
        let event = &admission.event;
        told["time"] = json!(event.time.map(|time| time.to_string()));
        told["sequence"] = json!(event.sequence);
        let values = admission.update.values();
        let fields = values.map(|(field, value)| (field.name().to_owned(), json!(say(value))));
        told["fields"] = Value::Object(fields.collect::<Map<_, _>>());
        told["call"] = call(found, office, reveals);
    }
    told["advice"] = json!(advice(found.letter.reason));
    told
}

fn outlook(outlook: &Outlook) -> Value {
    let mut told = json!({"verdict": outlook.name()});
    match outlook {
        Outlook::Partly { withheld } => told["withheld"] = json!(withheld.names()),
        Outlook::Refused(dead) => {
            told["reason"] = json!(dead.reason.name());
            told["field"] = json!(dead.field.map(Field::name));
            told["setting"] = json!(dead.setting);
            told["detail"] = json!(dead.detail);
        }
        Outlook::Sent | Outlook::Superseded | Outlook::Waits | Outlook::Ignored => {}
    }
    told
}

/// The call that a replay would make now, as far as it can be shown.
fn call(found: &Inspected, office: &Office<'_>, reveals: bool) -> Value {
    let (Some(admission), portal) = (&found.admission, &office.config().portal) else {
        return Value::Null;
    };
    let withheld = match found.outlook {
        Outlook::Sent => None,
        Outlook::Partly { withheld } => Some(withheld),
        _ => return Value::Null,
    };
    let is_sent = |field| withheld.is_none_or(|withheld| !withheld.contains(field));
    let values = admission.update.values().filter(|(field, _)| is_sent(*field));
    let sent = values.map(|(field, _)| field.name()).collect::<Vec<_>>();
    let mut told = json!({"url": portal.url.as_ref().map(ToString::to_string), "sends": sent});
    // A part of it would be signed anew; the whole can be shown as it is.
    if reveals && withheld.is_none() && !portal.secret_key.value.expose_secret().is_empty() {
        let request = sign(&admission.update, portal.field_order, &portal.secret_key.value);
        told["form"] = json!(request.form);
        told["checksum"] = json!(request.checksum);
    }
    told
}

fn page(told: &Value, reason: Reason) -> String {
    let text = |value: &Value| match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => output::part(text).into_owned(),
        other => output::part(&other.to_string()).into_owned(),
    };
    let mut lines = Vec::new();
    for name in [
        "dead_id", "event", "customer", "time", "sequence", "died", "group", "detail", "attempts",
        "flags", "replays", "revision",
    ] {
        lines.push(format!("{name:<10} {}", text(&told[name])));
    }
    for (title, part) in [("event", "fields"), ("history", "history")] {
        lines.push(title.to_owned());
        let entries = told[part].as_object().into_iter().flatten();
        lines.extend(
            entries.map(|(name, value)| format!("  {:<18} {}", output::part(name), text(value))),
        );
    }
    if let Some(body) = told["body"].as_str() {
        lines.push("body".to_owned());
        lines.extend(body.lines().map(|line| format!("  {line}")));
    }
    let now = &told["outlook"];
    lines.push(format!("now        {}", text(&now["verdict"])));
    for name in ["withheld", "field", "setting", "detail", "without_ledger"] {
        if !now[name].is_null() {
            lines.push(format!("  {name:<18} {}", text(&now[name])));
        }
    }
    if now["unfenced"] == json!(true) && now["without_ledger"].is_null() {
        lines.push("  older than the ledger: nobody knows what was applied since".to_owned());
    }
    for name in ["url", "sends", "form", "checksum"] {
        if !told["call"][name].is_null() {
            lines.push(format!("  {name:<18} {}", text(&told["call"][name])));
        }
    }
    lines.push(format!("what to do ({}, from the runbook)", reason.name()));
    lines.extend(advice(reason).lines().map(|line| format!("  {line}")));
    lines.join("\n")
}
