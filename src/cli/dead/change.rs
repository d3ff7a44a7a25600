//! Changing: edit, archive, restore, export, import, purge. Each asks first and is written down.

use std::collections::{BTreeMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{BufReader, BufWriter, Write as _, stdin};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::select::Selection;
use super::{Exit, Usage, output, unchanged};
use crate::dead_letters::{Edited, Office, Place, Wish, read_exported};
use crate::domain::edit::Change;
use crate::domain::field::Field;
use crate::domain::letter::Letter;
use crate::domain::redact::mask;

/// What every change can be told.
#[derive(Debug, clap::Args)]
pub(super) struct How {
    /// Why, for the operators' log.
    #[arg(long, value_name = "TEXT")]
    why: Option<String>,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    /// Change nothing, tell what would be.
    #[arg(long)]
    dry_run: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// `--set FIELD=VALUE` gives a field its new value; without it and --unset, $EDITOR opens one letter.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct EditArgs {
    #[command(flatten)]
    selection: Selection,
    /// Take a field out.
    #[arg(long, value_name = "FIELD", value_parser = field)]
    unset: Vec<Field>,
    /// Show values as they are in the preview; this is written down.
    #[arg(long)]
    reveal: bool,
    #[command(flatten)]
    how: How,
}

fn field(name: &str) -> Result<Field, String> {
    let known = Field::ALL.map(Field::name).join(", ");
    Field::parse(name).ok_or_else(|| format!("no such field; there are {known}"))
}

/// Fields' new values, as `--set` names them.
pub(super) fn settings(fields: &[String]) -> anyhow::Result<Vec<Change>> {
    let change = |text: &String| {
        let (name, value) = text.split_once('=').ok_or("expected --set FIELD=VALUE")?;
        Ok((field(name)?, Some(value.to_owned())))
    };
    let changes = fields.iter().map(change).collect::<Result<_, String>>();
    changes.map_err(|problem| Usage(problem).into())
}

pub(super) async fn edit(
    args: &EditArgs,
    office: &Office<'_>,
    set: &[Change],
    editor: Option<&str>,
) -> anyhow::Result<Exit> {
    let How { why, yes, dry_run, json: as_json } = &args.how;
    if why.is_none() && !dry_run {
        bail!(Usage("an edit needs a reason: --why".into()));
    }
    let ids = args.selection.ids(office, false).await?;
    let changes = match changes(args, set) {
        changes if !changes.is_empty() => changes,
        _ => in_editor(&ids, office, editor, why.as_deref()).await?,
    };
    let wish = Wish { ids, changes };
    if args.reveal {
        let what = args.selection.described();
        office.write_down("reveal", &what, why.as_deref(), wish.ids.len() as u64).await?;
    }
    let preview = office.preview(&wish).await?;
    let accepted: HashSet<Uuid> =
        preview.iter().filter(|one| one.refused.is_none()).map(|one| one.letter.id).collect();
    let say = |value: &str| if args.reveal { value.to_owned() } else { mask(value) };
    let table = preview_text(&preview, &wish, accepted.len(), say);
    if *dry_run {
        let told = preview_json(&preview, &wish, say);
        if *as_json { output::print_json(&told) } else { output::print(&table) }?;
        return Ok(Exit::Done);
    }
    if !as_json {
        output::print(&table)?;
    }
    if accepted.is_empty() {
        return Ok(unchanged("no letter can be edited like this: nothing was changed"));
    }
    if !output::is_wanted(&format!("Edit {} letters?", accepted.len()), *yes)? {
        return Ok(unchanged("nothing was changed"));
    }
    let names: Vec<&str> = wish.changes.iter().map(|(field, _)| field.name()).collect();
    let what = format!("{}: {}", args.selection.described(), names.join(", "));
    office.write_down("edit", &what, why.as_deref(), accepted.len() as u64).await?;
    let refused = preview.len() - accepted.len();
    let wish = Wish { ids: accepted, ..wish };
    let edited = with_bar(wish.ids.len(), async |says| office.edit(&wish, says).await).await?;
    let told =
        json!({"edited": edited, "refused": refused, "originals": office.queue_of(Place::Archive)});
    tell(
        *as_json,
        &told,
        &format!("{edited} edited, {refused} refused; the originals are in the archive"),
    )
}

fn changes(args: &EditArgs, set: &[Change]) -> Vec<Change> {
    set.iter().cloned().chain(args.unset.iter().map(|field| (*field, None))).collect()
}

fn preview_text(
    preview: &[Edited],
    wish: &Wish,
    accepted: usize,
    say: impl Fn(&str) -> String,
) -> String {
    let found = preview.len();
    let mut lines = vec![format!("{found} found, {accepted} can be edited")];
    for Edited { letter, before, refused } in preview {
        let changes = before.iter().zip(&wish.changes).map(|((field, old), (_, new))| {
            let shown = |value: &Option<String>| value.as_deref().map_or("-".to_owned(), &say);
            format!("{field}: {} -> {}", shown(old), shown(new))
        });
        let changes = changes.collect::<Vec<_>>().join(", ");
        let refused = refused.as_ref().map(|why| format!("  REFUSED: {why}")).unwrap_or_default();
        lines.push(format!("{}  {changes}{refused}", letter.id));
    }
    lines.join("\n")
}

fn preview_json(preview: &[Edited], wish: &Wish, say: impl Fn(&str) -> String) -> Value {
    let values = |values: &[Change]| -> Map<String, Value> {
        let shown = |value: &Option<String>| value.as_deref().map(&say);
        values.iter().map(|(field, value)| (field.name().to_owned(), json!(shown(value)))).collect()
    };
    let letters = preview.iter().map(|Edited { letter, before, refused }| {
        json!({"dead_id": letter.id.to_string(), "before": values(before),
               "after": values(&wish.changes), "refused": refused})
    });
    json!({"dry_run": true, "letters": letters.collect::<Vec<_>>()})
}

/// One letter's fields as a JSON object, changed by a person in an editor of his own.
async fn in_editor(
    ids: &HashSet<Uuid>,
    office: &Office<'_>,
    editor: Option<&str>,
    why: Option<&str>,
) -> anyhow::Result<Vec<Change>> {
    let (Some(id), 1) = (ids.iter().next(), ids.len()) else {
        bail!(Usage(format!(
            "{} letters are meant: name the change with --set or --unset",
            ids.len()
        )));
    };
    let Some(editor) = editor else {
        bail!(Usage("no $EDITOR is set: name the change with --set or --unset".into()));
    };
    let before = office.values_of(*id).await?.context("there is no such dead letter")?;
    office.write_down("reveal", &id.to_string(), why, 1).await?;
    let known = before
        .iter()
        .filter_map(|(field, value)| Some((field.name().to_owned(), json!(value.as_deref()?))));
    let text = format!("{:#}\n", Value::Object(known.collect()));
    let editor = editor.to_owned();
    let edited = tokio::task::spawn_blocking(move || let_edit(&editor, &text)).await??;
    let edited: BTreeMap<String, String> =
        serde_json::from_str(&edited).context("what the editor left is no JSON object of texts")?;
    if let Some(name) = edited.keys().find(|name| Field::parse(name).is_none()) {
        bail!("there is no field {name:?}");
    }
    let differing = before.iter().filter_map(|(field, old)| {
        let new = edited.get(field.name());
        (new != old.as_ref()).then(|| (*field, new.cloned()))
    });
    let changes: Vec<Change> = differing.collect();
    if changes.is_empty() {
        bail!("nothing was changed in the editor");
    }
    Ok(changes)
}

/// In a file that nobody else can read, and that is gone afterwards.
fn let_edit(editor: &str, text: &str) -> anyhow::Result<String> {
    let folder = std::env::temp_dir();
    let file = folder.join(format!("customer-relay-{}.json", Uuid::new_v4()));
    let edit = || -> anyhow::Result<String> {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        options.open(&file)?.write_all(text.as_bytes())?;
        // As git does it: the variable may hold arguments.
        let mut shell = std::process::Command::new("sh");
        let status =
            shell.arg("-c").arg(format!("{editor} \"$1\"")).arg("editor").arg(&file).status()?;
        if !status.success() {
            bail!("the editor ended with {status}: nothing was changed");
        }
        Ok(std::fs::read_to_string(&file)?)
    };
    let edited = edit();
    if let Err(error) = std::fs::remove_file(&file) {
        output::complain(&format!("{} is left behind: {error}", file.display()));
    }
    edited
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

async fn with_bar<T>(
    length: usize,
    act: impl AsyncFnOnce(&dyn Fn(u64)) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let bar =
        output::bar(length as u64, "{wide_bar} {human_pos}/{human_len}, {per_sec}, {eta} left");
    let done = act(&|count| bar.set_position(count)).await;
    bar.finish_and_clear();
    done
}

fn tell(as_json: bool, told: &Value, text: &str) -> anyhow::Result<Exit> {
    if as_json { output::print_json(told) } else { output::print(text) }?;
    Ok(Exit::Done)
}
