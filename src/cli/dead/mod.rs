//! `dead`: dead letters, for whoever is woken at night. Looking takes nothing; what changes anything
//! asks first, is written down, and can be tried out.

mod change;
mod edit;
mod look;
mod replay;
mod select;
mod show;

use super::{Exit, Usage, block_on, output};
use crate::config::Config;
use crate::dead_letters::Office;
use crate::domain::edit::Change;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Verb {
    /// What they died of: one line a group, the largest first, and what to do.
    Groups(look::GroupsArgs),
    /// List dead letters, oldest first.
    List(look::ListArgs),
    /// Show one dead letter: its event, its past, and what would become of it now.
    Show(show::ShowArgs),
    /// Live view: how many there are, of which groups.
    Watch(look::WatchArgs),
    /// Put dead letters back into the work queue, a few first, then more and more.
    Replay(replay::Args),
    /// Give dead letters other values; the originals go to the archive.
    Edit(edit::EditArgs),
    /// Lay dead letters aside, into the archive: nothing is deleted.
    Archive(change::MoveArgs),
    /// Lay archived letters back; the original of an edited letter takes its place.
    Restore(change::MoveArgs),
    /// Write dead letters to a file of JSON lines, whole: personal data too.
    Export(change::ExportArgs),
    /// Lay exported letters into the queue; those that are there already are left out.
    Import(change::ImportArgs),
    /// Delete dead letters for good.
    Purge(change::PurgeArgs),
    /// Who did what, when and why.
    Audit(look::AuditArgs),
    /// Make the ledger's index of dead letters anew, from the queue alone.
    Reindex(look::ReindexArgs),
}

/// Who gives the command, and what he has for an editor.
pub(super) struct Operator {
    pub(super) name: String,
    pub(super) editor: Option<String>,
}

impl Verb {
    /// Whether `--set` names fields of letters.
    pub(super) fn sets_fields(&self) -> bool {
        matches!(self, Verb::Edit(_))
    }
}

pub(super) fn dead(
    verb: &Verb,
    config: &Config,
    operator: &Operator,
    fields: &[String],
) -> anyhow::Result<Exit> {
    let set = edit::settings(fields)?;
    block_on(config, async {
        let office = Office::open(config, &operator.name).await?;
        let done = act(verb, &office, operator, &set).await;
        office.close().await;
        done
    })
}

async fn act(
    verb: &Verb,
    office: &Office<'_>,
    operator: &Operator,
    set: &[Change],
) -> anyhow::Result<Exit> {
    match verb {
        Verb::Groups(args) => look::groups(args, office).await,
        Verb::List(args) => look::list(args, office).await,
        Verb::Show(args) => show::show(args, office).await,
        Verb::Watch(args) => look::watch(args, office).await,
        Verb::Replay(args) => replay::replay(args, office).await,
        Verb::Edit(args) => edit::edit(args, office, set, operator.editor.as_deref()).await,
        Verb::Archive(args) => change::archive(args, office).await,
        Verb::Restore(args) => change::restore(args, office).await,
        Verb::Export(args) => change::export(args, office).await,
        Verb::Import(args) => change::import(args, office).await,
        Verb::Purge(args) => change::purge(args, office).await,
        Verb::Audit(args) => look::audit(args, office).await,
        Verb::Reindex(args) => look::reindex(args, office).await,
    }
}

/// Nothing was found, or nothing was wanted: nothing was changed.
fn unchanged(text: &str) -> Exit {
    output::complain(text);
    Exit::Failed
}
