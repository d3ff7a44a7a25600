//! `ledger mend`: customers whose rows cannot be read get another one, from a backup or empty.

use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use jiff::Timestamp;
use serde_json::json;

use super::{Exit, Usage, block_on, output};
use crate::clock;
use crate::config::Config;
use crate::domain::packed::Unreadable;
use crate::domain::row::Row;
use crate::ledger::{About, AuditEntry, CustomerKey, Store, Target};

#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "one flag each")]
pub(super) struct Args {
    /// The entity id of the customer whose row cannot be read.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    id: Option<String>,
    /// Every customer whose row cannot be read.
    #[arg(long)]
    all: bool,
    /// Take the row from this backup of the ledger: a file, or written as `ledger.url` is.
    #[arg(
        long,
        value_name = "BACKUP",
        required_unless_present = "empty",
        conflicts_with = "empty"
    )]
    from: Option<String>,
    /// Begin with an empty row: what was applied is forgotten, the events that wait and that come
    /// fill it again.
    #[arg(long)]
    empty: bool,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// How many customers came to which end.
#[derive(Default)]
struct Mended {
    from_backup: usize,
    emptied: usize,
    /// Their rows are not in the backup, or cannot be read there either.
    left: usize,
    /// Their rows can be read.
    sound: usize,
}

pub(super) fn mend(args: &Args, config: &Config, who: &str) -> anyhow::Result<Exit> {
    block_on(config, async {
        let ledger = Store::visit(&config.ledger.target).await?;
        let (store, about) = ledger.context(super::ledger::NONE)?;
        let keys = match &args.id {
            Some(id) => vec![about.key(id)],
            None => store.inspect().await?.unreadable,
        };
        let backup = match &args.from {
            Some(backup) => Some(Backup::read(backup, &about, &keys).await?),
            None => None,
        };
        let question =
            format!("{}{}", question(backup.as_ref(), keys.len()), newer(&store, &keys).await?);
        if !keys.is_empty() && !output::is_wanted(&question, args.yes)? {
            output::print("nothing was changed")?;
            return Ok(Exit::Failed);
        }
        write_down(&store, backup.as_ref(), who, keys.len()).await?;
        let known_until = backup.as_ref().map(|backup| backup.known_until);
        let rows = backup.map(|backup| backup.rows);
        let mended = replace(&store, &keys, rows, clock::now()).await?;
        mended.tell(known_until, args.json)
    })
}

fn question(backup: Option<&Backup>, customers: usize) -> String {
    match backup {
        None => format!(
            "Forget what the portal is known to have of {customers} customers? A late or replayed update \
             from before now can then overwrite a newer one; the events that wait are sent."
        ),
        Some(Backup { name, known_until, .. }) => format!(
            "Take the rows of {customers} customers from {name}, as of {known_until}? What the portal has \
             got of them since then is not known in it: a late or replayed update from before now can \
             then overwrite a newer one; the events that wait are sent."
        ),
    }
}

/// Rows that may only need another version of the relay.
async fn newer(store: &Store, keys: &[CustomerKey]) -> anyhow::Result<String> {
    let rows = store.load_rows(keys.to_vec()).await?;
    let newer = rows.iter().filter(|row| matches!(row, Err(Unreadable::Newer(_)))).count();
    Ok(if newer == 0 {
        String::new()
    } else {
        format!(
            "\n{newer} of the rows begin as those of a newer version do: if one has worked on this \
             ledger, run that one instead."
        )
    })
}

/// Where rows are taken from.
struct Backup {
    /// Without a password.
    name: String,
    /// Up to here it knows what was applied.
    known_until: Timestamp,
    /// Each customer's row, if it is there and can be read.
    rows: Vec<Option<Row>>,
}

impl Backup {
    async fn read(backup: &str, about: &About, keys: &[CustomerKey]) -> anyhow::Result<Backup> {
        let target = match Target::parse(backup) {
            Ok(Target::None) => bail!(Usage("--from none: nothing is kept there".into())),
            Ok(target) => target,
            Err(_) if Path::new(backup).is_file() => Target::Sqlite(backup.into()),
            Err(error) => bail!(Usage(format!("--from: no such file, and {error}"))),
        };
        let (store, from) = Store::visit(&target).await?.context("nothing is kept there")?;
        ensure!(
            from.salt == about.salt,
            "{target} is a backup of another ledger ({}): its customers' keys are not those of {}",
            from.id,
            about.id
        );
        let known_until = store.load_number().await?.at.unwrap_or(from.created);
        let found = store.load_rows(keys.to_vec()).await?.into_iter();
        let rows = found.map(|row| row.ok().filter(|row| *row != Row::default())).collect();
        Ok(Backup { name: target.to_string(), known_until, rows })
    }
}

async fn write_down(
    store: &Store,
    backup: Option<&Backup>,
    who: &str,
    count: usize,
) -> anyhow::Result<()> {
    let what = match backup {
        Some(Backup { name, known_until, .. }) => {
            format!("rows that cannot be read, from {name} as of {known_until}")
        }
        None => "rows that cannot be read, emptied".to_owned(),
    };
    let entry = AuditEntry {
        at: clock::now(),
        who: who.to_owned(),
        act: "mend".to_owned(),
        what,
        why: None,
        count: count as u64,
    };
    Ok(store.append_audit(entry).await?)
}

/// `rows` from a backup, or else empty ones.
async fn replace(
    store: &Store,
    keys: &[CustomerKey],
    rows: Option<Vec<Option<Row>>>,
    at: Timestamp,
) -> anyhow::Result<Mended> {
    let mut mended = Mended::default();
    for (index, key) in keys.iter().enumerate() {
        let found = rows.as_ref().map(|rows| rows[index].clone());
        let (row, count) = match found {
            None => (Row::default(), &mut mended.emptied),
            Some(Some(row)) => (row, &mut mended.from_backup),
            Some(None) => {
                mended.left += 1;
                continue;
            }
        };
        if store.replace_unreadable(*key, row, at).await? {
            *count += 1;
        } else {
            mended.sound += 1;
        }
    }
    Ok(mended)
}

impl Mended {
    /// `known_until` is when the backup was made, if the rows are from one.
    fn tell(&self, known_until: Option<Timestamp>, as_json: bool) -> anyhow::Result<Exit> {
        let Mended { from_backup, emptied, left, sound } = self;
        if as_json {
            let told = json!({"from_backup": from_backup, "emptied": emptied, "left": left,
                              "sound": sound, "known_until": known_until.map(|at| at.to_string())});
            output::print_json(&told)?;
        } else {
            output::print(&format!(
                "{from_backup} rows taken from the backup, {emptied} emptied, {left} not in the backup \
                 and left as they are, {sound} readable and left as they are.\nEvents that wait for a \
                 mended row come back within retry.max_uncounted_delay."
            ))?;
            if let Some(known_until) = known_until.filter(|_| *from_backup > 0) {
                output::print(&format!(
                    "What these customers' rows do not know since {known_until}: have the CRM publish a \
                     snapshot of them; or `customer-relay ledger doubts --open {known_until}`, which \
                     puts every customer's late events in doubt."
                ))?;
            }
        }
        Ok(if *left > 0 { Exit::Failed } else { Exit::Done })
    }
}
