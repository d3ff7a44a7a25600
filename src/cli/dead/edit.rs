//! `dead edit`: other values for dead letters, named on the command line or in an editor, shown before
//! they count.

use std::collections::{BTreeMap, HashSet};
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;

use anyhow::{Context as _, bail};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::change::{How, tell, with_bar};
use super::select::Selection;
use super::{Exit, Usage, output, unchanged};
use crate::dead_letters::{Edited, Office, Place, Wish};
use crate::domain::edit::Change;
use crate::domain::field::Field;
use crate::domain::text::mask;

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
            let shown = |value: &Option<String>| {
                output::part(&value.as_deref().map_or("-".to_owned(), &say)).into_owned()
            };
            format!("{field}: {} -> {}", shown(old), shown(new))
        });
        let changes = changes.collect::<Vec<_>>().join(", ");
        let refused = refused
            .as_ref()
            .map_or_else(String::new, |why| format!("  REFUSED: {}", output::part(why)));
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
