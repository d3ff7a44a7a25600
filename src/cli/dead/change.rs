//! Moving: archive, restore, export, import, purge. Each asks first and is written down.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{BufReader, BufWriter, Write as _, stdin};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use uuid::Uuid;

use super::select::Selection;
use super::{Exit, Usage, output, unchanged};
use crate::dead_letters::{Office, Place, read_exported};
use crate::domain::letter::Letter;

/// What every change can be told.
#[derive(Debug, clap::Args)]
pub(super) struct How {
    /// Why, for the operators' log.
    #[arg(long, value_name = "TEXT")]
    pub(super) why: Option<String>,
    /// Do not ask.
    #[arg(long)]
    pub(super) yes: bool,
    /// Change nothing, tell what would be.
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Print JSON.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct MoveArgs {
    #[command(flatten)]
    selection: Selection,
    /// Every letter there.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    how: How,
}

pub(super) async fn archive(args: &MoveArgs, office: &Office<'_>) -> anyhow::Result<Exit> {
    let ids = args.selection.ids(office, args.all).await?;
    let act =
        Deed { act: "archive", done: "archived", question: "Lay {} letters into the archive?" };
    act.carry_out(&ids, &args.selection, &args.how, office, async |ids, says| {
        office.archive(ids, says).await
    })
    .await
}

pub(super) async fn restore(args: &MoveArgs, office: &Office<'_>) -> anyhow::Result<Exit> {
    args.selection.refuse_unless_said(args.all)?;
    let letters = office.list_archive(&args.selection.filter()).await?;
    let act = Deed { act: "restore", done: "restored", question: "Lay {} letters back?" };
    act.carry_out(&ids_of(&letters), &args.selection, &args.how, office, async |ids, says| {
        office.restore(ids, says).await
    })
    .await
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct PurgeArgs {
    #[command(flatten)]
    selection: Selection,
    /// Every letter there.
    #[arg(long)]
    all: bool,
    /// From the archive instead of the dead-letter queue.
    #[arg(long)]
    archive: bool,
    #[command(flatten)]
    how: How,
}

pub(super) async fn purge(args: &PurgeArgs, office: &Office<'_>) -> anyhow::Result<Exit> {
    let How { why, yes, dry_run, .. } = &args.how;
    if why.is_none() && !dry_run {
        bail!(Usage("what is purged is gone for good: that needs a reason, --why".into()));
    }
    let (place, ids) = if args.archive {
        args.selection.refuse_unless_said(args.all)?;
        let letters = office.list_archive(&args.selection.filter()).await?;
        (Place::Archive, ids_of(&letters))
    } else {
        (Place::Dead, args.selection.ids(office, args.all).await?)
    };
    let queue = office.queue_of(place);
    let question = format!("{} letters will be deleted from {queue} for good.", ids.len());
    if !dry_run && !ids.is_empty() && !output::is_typed(&question, &ids.len().to_string(), *yes)? {
        return Ok(unchanged("nothing was deleted"));
    }
    let act = Deed { act: "purge", done: "deleted", question: "" };
    let sure = How { why: why.clone(), yes: true, dry_run: *dry_run, json: args.how.json };
    act.carry_out(&ids, &args.selection, &sure, office, async |ids, says| {
        office.purge(place, ids, says).await
    })
    .await
}

fn ids_of(letters: &[Letter]) -> HashSet<Uuid> {
    letters.iter().map(|letter| letter.id).collect()
}

/// One kind of change.
struct Deed {
    act: &'static str,
    done: &'static str,
    question: &'static str,
}

impl Deed {
    async fn carry_out(
        &self,
        ids: &HashSet<Uuid>,
        selection: &Selection,
        how: &How,
        office: &Office<'_>,
        act: impl AsyncFnOnce(&HashSet<Uuid>, &dyn Fn(u64)) -> anyhow::Result<u64>,
    ) -> anyhow::Result<Exit> {
        let count = ids.len();
        if how.dry_run {
            let told = json!({"dry_run": true, self.done: count});
            return tell(how.json, &told, &format!("{count} letters would be {}", self.done));
        }
        if count == 0 {
            return Ok(unchanged("no such letters: nothing was changed"));
        }
        let question = self.question.replace("{}", &count.to_string());
        if !output::is_wanted(&question, how.yes)? {
            return Ok(unchanged("nothing was changed"));
        }
        let what = selection.described();
        office.write_down(self.act, &what, how.why.as_deref(), count as u64).await?;
        let done = with_bar(count, async |says| act(ids, &says).await).await?;
        tell(how.json, &json!({ self.done: done }), &format!("{done} letters {}", self.done))
    }
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct ExportArgs {
    #[command(flatten)]
    selection: Selection,
    /// Every dead letter.
    #[arg(long)]
    all: bool,
    /// Where to; a new file, for nobody else to read.
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// Why, for the operators' log.
    #[arg(long, value_name = "TEXT")]
    why: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn export(args: &ExportArgs, office: &Office<'_>) -> anyhow::Result<Exit> {
    let ids = args.selection.ids(office, args.all).await?;
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(&args.to);
    let file = file.with_context(|| format!("cannot make {}", args.to.display()))?;
    let what = format!("{} to a file", args.selection.described());
    office.write_down("export", &what, args.why.as_deref(), ids.len() as u64).await?;
    let mut lines = BufWriter::new(file);
    let count = office.export(&ids, |line| writeln!(lines, "{line}")).await?;
    lines.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
    let text = format!("{count} letters, with all personal data, are in {}", args.to.display());
    tell(args.json, &json!({"exported": count, "file": args.to.display().to_string()}), &text)
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct ImportArgs {
    /// A file that `dead export` has written; - is standard input.
    file: PathBuf,
    #[command(flatten)]
    how: How,
}

pub(super) async fn import(args: &ImportArgs, office: &Office<'_>) -> anyhow::Result<Exit> {
    let letters = if args.file == Path::new("-") {
        read_exported(stdin().lock())?
    } else {
        let file = File::open(&args.file);
        let file = file.with_context(|| format!("cannot read {}", args.file.display()))?;
        read_exported(BufReader::new(file))?
    };
    let (count, How { why, yes, dry_run, json: as_json }) = (letters.len(), &args.how);
    if *dry_run {
        return tell(
            *as_json,
            &json!({"dry_run": true, "read": count}),
            &format!("{count} letters read"),
        );
    }
    let question = format!("Lay {count} letters into {}?", office.queue());
    if !output::is_wanted(&question, *yes)? {
        return Ok(unchanged("nothing was changed"));
    }
    office.write_down("import", "from a file", why.as_deref(), count as u64).await?;
    let imported = with_bar(count, async |says| office.import(letters, says).await).await?;
    if office.lacks_ledger().is_none() {
        office.reindex(|_| {}).await?;
    }
    let left_out = count as u64 - imported;
    let text = format!("{imported} letters imported, {left_out} were there already");
    tell(*as_json, &json!({"imported": imported, "left_out": left_out}), &text)
}

pub(super) async fn with_bar<T>(
    length: usize,
    act: impl AsyncFnOnce(&dyn Fn(u64)) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let bar =
        output::bar(length as u64, "{wide_bar} {human_pos}/{human_len}, {per_sec}, {eta} left");
    let done = act(&|count| bar.set_position(count)).await;
    bar.finish_and_clear();
    done
}

pub(super) fn tell(as_json: bool, told: &Value, text: &str) -> anyhow::Result<Exit> {
    if as_json { output::print_json(told) } else { output::print(text) }?;
    Ok(Exit::Done)
}
