//! `dead replay`: freeze the selection, look what would become of it, ask, and put it back.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use jiff::SignedDuration;
use serde_json::{Value, json};
use uuid::Uuid;

use super::select::Selection;
use super::{Exit, Usage, output, unchanged};
use crate::clock;
use crate::dead_letters::{Limits, Office, Plan, Replayed};
use crate::domain::letter::Letter;
use crate::domain::outlook::Outlook;

#[expect(clippy::struct_excessive_bools, reason = "one flag each")]
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    selection: Selection,
    /// Every dead letter.
    #[arg(long)]
    all: bool,
    /// Go on with a plan that was interrupted, or made by --dry-run --save.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["all", "ids", "force", "only_fixable"])]
    plan: Option<PathBuf>,
    /// Write the plan here [default: replay-ID.json in this directory].
    #[arg(long, value_name = "FILE", conflicts_with = "plan")]
    save: Option<PathBuf>,
    /// Put nothing back: show what would become of each.
    #[arg(long)]
    dry_run: bool,
    /// Leave out what would fail again.
    #[arg(long)]
    only_fixable: bool,
    /// Send all values, also where the portal has newer ones. Needs --why.
    #[arg(long, requires = "why")]
    force: bool,
    /// Why, for the operators' log.
    #[arg(long, value_name = "TEXT")]
    why: Option<String>,
    /// Letters a second, at most; the first seconds are slower.
    #[arg(long, default_value_t = 50, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rate: u32,
    /// Do not try one, then ten, before the others.
    #[arg(long)]
    no_canary: bool,
    /// How long those have to come to their end.
    #[arg(long, default_value = "1m", value_name = "DURATION")]
    canary_wait: SignedDuration,
    /// Stop when more than this part of those that have ended are dead again.
    #[arg(long, default_value_t = 0.1, value_name = "PART")]
    max_failure_rate: f64,
    /// Wait until each has ended, so long at most [default: 10m].
    #[arg(long, value_name = "DURATION", num_args = 0..=1, default_missing_value = "10m")]
    wait: Option<SignedDuration>,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn replay(args: &Args, office: &Office<'_>) -> anyhow::Result<Exit> {
    let limits = limits(args)?;
    if let Some(why) = office.lacks_ledger().filter(|_| limits.has_canary && !args.dry_run) {
        bail!(
            "nobody can say how the first ones end: {why}. Run this where the ledger is reached, or \
             add --no-canary, and look with `dead groups` how they fare"
        );
    }
    let (plan, file) = match &args.plan {
        Some(file) => {
            let plan = Plan::load(file, &office.queue(), clock::now())?;
            if args.dry_run {
                return preview(args, office, &plan).await;
            }
            (plan, file.clone())
        }
        None => match prepare(args, office).await? {
            Prepared::Go(plan, file) => (plan, file),
            Prepared::Over(exit) => return Ok(exit),
        },
    };
    let what = format!("plan {}, {}", plan.id, args.selection.described());
    office.write_down("replay", &what, plan.why.as_deref(), plan.letters.len() as u64).await?;
    carry_out(args, office, &plan, &file, limits).await
}

fn limits(args: &Args) -> anyhow::Result<Limits> {
    if !(0.0..=1.0).contains(&args.max_failure_rate) {
        bail!(Usage("--max-failure-rate is a part: from 0 to 1".into()));
    }
    Ok(Limits {
        rate: args.rate,
        has_canary: !args.no_canary,
        canary_wait: span(args.canary_wait, "--canary-wait")?,
        max_failure_rate: args.max_failure_rate,
    })
}

fn span(span: SignedDuration, what: &str) -> anyhow::Result<Duration> {
    Duration::try_from(span).map_err(|_| Usage(format!("{what} must not be negative")).into())
}

enum Prepared {
    Go(Plan, PathBuf),
    Over(Exit),
}

type Foreseen = Vec<(Letter, Outlook)>;

async fn foresee(
    office: &Office<'_>,
    ids: &HashSet<Uuid>,
    forces: bool,
) -> anyhow::Result<Foreseen> {
    let bar = output::bar(ids.len() as u64, "{wide_bar} {human_pos}/{human_len} letters read");
    let foreseen = office.foresee(ids, forces, |count| bar.set_position(count)).await;
    bar.finish_and_clear();
    foreseen
}

/// What would become of a plan that was made before.
async fn preview(args: &Args, office: &Office<'_>, plan: &Plan) -> anyhow::Result<Exit> {
    let foreseen = foresee(office, &plan.set(), plan.forces).await?;
    let preview = Preview::of(&foreseen, plan.letters.len(), plan, office);
    preview.tell(&foreseen, args.json)?;
    Ok(Exit::Done)
}

async fn prepare(args: &Args, office: &Office<'_>) -> anyhow::Result<Prepared> {
    let ids = args.selection.ids(office, args.all).await?;
    let foreseen = foresee(office, &ids, args.force).await?;
    let chosen =
        foreseen.iter().filter(|(_, outlook)| !(args.only_fixable && outlook.is_hopeless()));
    let letters: Vec<Uuid> = chosen.map(|(letter, _)| letter.id).collect();
    let mut plan = Plan::new(&office.queue(), clock::now(), letters);
    (plan.why, plan.forces) = (args.why.clone(), args.force);
    let preview = Preview::of(&foreseen, ids.len(), &plan, office);
    let file = args.save.clone();
    if args.dry_run {
        if let Some(file) = &file {
            plan.save(file)?;
        }
        preview.tell(&foreseen, args.json)?;
        return Ok(Prepared::Over(Exit::Done));
    }
    if plan.letters.is_empty() {
        return Ok(Prepared::Over(unchanged("no such letters: nothing was put back")));
    }
    if !args.json {
        output::print(&preview.to_text(&[]))?;
    }
    let question = format!("Put {} dead letters back?", plan.letters.len());
    if !output::is_wanted(&question, args.yes)? {
        return Ok(Prepared::Over(unchanged("nothing was put back")));
    }
    let file = file.unwrap_or_else(|| PathBuf::from(format!("replay-{}.json", plan.id)));
    plan.save(&file).context("nothing was put back; --save names another file")?;
    Ok(Prepared::Go(plan, file))
}

/// What a replay would do.
struct Preview {
    asked: usize,
    chosen: usize,
    verdicts: BTreeMap<&'static str, usize>,
    unfenced: usize,
    lacks_ledger: Option<String>,
}

impl Preview {
    fn of(
        foreseen: &[(Letter, Outlook)],
        asked: usize,
        plan: &Plan,
        office: &Office<'_>,
    ) -> Preview {
        let mut verdicts = BTreeMap::new();
        for (_, outlook) in foreseen {
            *verdicts.entry(outlook.name()).or_default() += 1;
        }
        let unfenced = foreseen.iter().filter(|(letter, _)| office.is_unfenced(letter)).count();
        let lacks_ledger = office.lacks_ledger().map(str::to_owned);
        Preview { asked, chosen: plan.letters.len(), verdicts, unfenced, lacks_ledger }
    }

    fn tell(&self, foreseen: &[(Letter, Outlook)], as_json: bool) -> std::io::Result<()> {
        if as_json {
            output::print_json(&self.to_json(foreseen))
        } else {
            output::print(&self.to_text(foreseen))
        }
    }

    fn to_json(&self, foreseen: &[(Letter, Outlook)]) -> Value {
        let letters = foreseen.iter().map(|(letter, outlook)| {
            let withheld = match outlook {
                Outlook::Partly { withheld } => withheld.names(),
                _ => None,
            };
            json!({"dead_id": letter.id.to_string(), "event": letter.event,
                   "verdict": outlook.name(), "withheld": withheld})
        });
        json!({"dry_run": true, "selected": self.asked, "would_be_put_back": self.chosen,
               "verdicts": self.verdicts, "unfenced": self.unfenced,
               "without_ledger": self.lacks_ledger, "letters": letters.collect::<Vec<_>>()})
    }

    fn to_text(&self, foreseen: &[(Letter, Outlook)]) -> String {
        let Preview { asked, chosen, verdicts, unfenced, lacks_ledger } = self;
        let found: usize = verdicts.values().sum();
        let mut lines = vec![format!("{asked} selected, {found} found, {chosen} to be put back")];
        lines.extend(verdicts.iter().map(|(verdict, count)| format!("  {count:>7} {verdict}")));
        if let Some(why) = lacks_ledger {
            lines.push(format!("not held against what the portal has: {why}"));
        } else if *unfenced > 0 {
            lines.push(format!(
                "{unfenced} are older than the ledger: they may overwrite newer values"
            ));
        }
        lines.extend(foreseen.iter().map(|(letter, outlook)| {
            let event = output::part(letter.event.as_deref().unwrap_or("-"));
            format!("{}  {:<18} {event}", letter.id, outlook.name())
        }));
        lines.join("\n")
    }
}

async fn carry_out(
    args: &Args,
    office: &Office<'_>,
    plan: &Plan,
    file: &std::path::Path,
    limits: Limits,
) -> anyhow::Result<Exit> {
    let bar = output::bar(plan.letters.len() as u64, BAR);
    let replayed = office.replay(plan, limits, |count| bar.set_position(count)).await;
    bar.finish_and_clear();
    let go_on = format!("go on with `customer-relay dead replay --plan {}`", file.display());
    let mut replayed = replayed.with_context(|| go_on.clone())?;
    if let (Some(wait), None) = (args.wait, &replayed.stopped) {
        let bar =
            output::bar(plan.letters.len() as u64, "{wide_bar} {human_pos}/{human_len} ended");
        let limit = span(wait, "--wait")?;
        let waited =
            office.wait_for_ends(plan, replayed, limit, |ended| bar.set_position(ended)).await;
        bar.finish_and_clear();
        replayed = waited?;
    }
    if let Some(stopped) = &replayed.stopped {
        let what = format!("plan {}: {stopped}", plan.id);
        office.write_down("replay-stopped", &what, None, replayed.put_back).await?;
    }
    if args.json {
        output::print_json(&to_json(plan, file, &replayed))?;
    } else {
        output::print(&to_text(&replayed))?;
    }
    match &replayed.stopped {
        None => Ok(Exit::Done),
        Some(stopped) => {
            output::complain(&format!("{stopped}; look with `dead groups`, then {go_on}"));
            Ok(Exit::Stopped)
        }
    }
}

const BAR: &str = "{wide_bar} {human_pos}/{human_len} put back, {per_sec}, {eta} left";

fn to_json(plan: &Plan, file: &std::path::Path, replayed: &Replayed) -> Value {
    let count = |wanted: &str| -> u64 {
        let ended = replayed.ended.iter().filter(|(ended, ..)| ended == wanted);
        ended.map(|(.., count)| count).sum()
    };
    let dead =
        replayed.ended.iter().filter_map(|(_, reason, count)| Some((reason.clone()?, *count)));
    json!({"plan": plan.id, "file": file.display().to_string(), "letters": plan.letters.len(),
           "put_back": replayed.put_back, "left": replayed.left, "pending": replayed.pending,
           "applied": count("applied"), "superseded": count("superseded"),
           "ignored": count("ignored"), "dead_again": dead.collect::<BTreeMap<_, _>>(),
           "stopped": replayed.stopped.as_ref().map(ToString::to_string)})
}

fn to_text(replayed: &Replayed) -> String {
    let Replayed { put_back, left, ended, pending, .. } = replayed;
    let mut lines = vec![format!("{put_back} put back, {left} still in the dead-letter queue")];
    lines.extend(ended.iter().map(|(ended, reason, count)| {
        let reason = reason
            .as_ref()
            .map_or_else(String::new, |reason| format!(": {}", output::part(reason)));
        format!("  {count:>7} {ended}{reason}")
    }));
    if *pending > 0 {
        lines.push(format!("  {pending:>7} not ended yet"));
    }
    lines.join("\n")
}
