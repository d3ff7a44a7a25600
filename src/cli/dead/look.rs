//! Looking at many: groups, list, watch, the operators' log, the index.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::select::Selection;
use super::{Exit, output};
use crate::admin::describe_letter;
use crate::clock;
use crate::dead_letters::{Office, hint};
use crate::domain::letter::{Filter, Group, Letter, group};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct GroupsArgs {
    #[command(flatten)]
    selection: Selection,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn groups(args: &GroupsArgs, office: &Office<'_>) -> anyhow::Result<Exit> {
    let letters = args.selection.list(office).await?;
    let groups = group(letters.iter());
    if args.json {
        let groups = groups.iter().map(|group| group_json(group, letters.len()));
        let told = json!({"queue": office.queue(), "total": letters.len(),
                          "groups": groups.collect::<Vec<_>>()});
        output::print_json(&told)?;
    } else {
        output::print(&groups_text(&groups, letters.len(), &office.queue()))?;
    }
    Ok(Exit::Done)
}

fn group_json(group: &Group, total: usize) -> Value {
    json!({"group": group.fingerprint, "reason": group.reason.name(), "count": group.count,
           "share_percent": percent(group.count, total), "oldest": shown(group.oldest),
           "newest": shown(group.newest), "hint": hint(group.reason)})
}

fn groups_text(groups: &[Group], total: usize, queue: &str) -> String {
    let mut lines = vec![format!("{total} dead letters in {queue}")];
    if total > 0 {
        lines.push(format!(
            "{:>7} {:>4}  {:<38} {:<20}  {:<20}",
            "count", "%", "group", "oldest", "newest"
        ));
    }
    for group in groups {
        let (count, fingerprint) = (group.count, output::part(&group.fingerprint));
        let [oldest, newest] = [group.oldest, group.newest].map(to_the_second);
        let share = percent(count, total);
        lines.push(format!("{count:>7} {share:>3}%  {fingerprint:<38} {oldest:<20}  {newest:<20}"));
        lines.push(format!("{:>14}{}", "", hint(group.reason)));
    }
    lines.join("\n")
}

fn percent(count: usize, total: usize) -> usize {
    (count * 100).checked_div(total).unwrap_or(0)
}

fn shown(time: Option<Timestamp>) -> Option<String> {
    time.map(|time| time.to_string())
}

fn to_the_second(time: Option<Timestamp>) -> String {
    time.map_or_else(|| "-".to_owned(), |time| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct ListArgs {
    #[command(flatten)]
    selection: Selection,
    /// At most so many.
    #[arg(long, default_value_t = 100, value_name = "N")]
    limit: usize,
    /// What comes first.
    #[arg(long, value_enum, default_value_t = Sort::Oldest)]
    sort: Sort,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Sort {
    Oldest,
    Newest,
    Group,
    Attempts,
}

pub(super) async fn list(args: &ListArgs, office: &Office<'_>) -> anyhow::Result<Exit> {
    let mut letters = args.selection.list(office).await?;
    match args.sort {
        Sort::Oldest => {}
        Sort::Newest => letters.reverse(),
        Sort::Group => letters.sort_by_key(Letter::fingerprint),
        Sort::Attempts => letters.sort_by_key(|letter| std::cmp::Reverse(letter.attempts)),
    }
    let found = letters.len();
    letters.truncate(args.limit);
    if args.json {
        let letters: Vec<Value> = letters.iter().map(describe_letter).collect();
        let told = json!({"queue": office.queue(), "found": found, "dead_letters": letters});
        output::print_json(&told)?;
    } else {
        let mut lines = vec![format!("{found} dead letters in {}", office.queue())];
        lines.extend(letters.iter().map(line));
        if letters.len() < found {
            lines.push(format!("{} more: --limit", found - letters.len()));
        }
        output::print(&lines.join("\n"))?;
    }
    Ok(Exit::Done)
}

fn line(letter: &Letter) -> String {
    let part = |text: &Option<String>| output::part(text.as_deref().unwrap_or("-")).into_owned();
    format!(
        "{}  {}  {:<30} {:>3} attempts  {}  {}",
        letter.id,
        to_the_second(letter.died),
        output::part(&letter.fingerprint()),
        letter.attempts,
        part(&letter.event),
        part(&letter.detail)
    )
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct WatchArgs {
    /// Between two looks.
    #[arg(long, value_name = "SECONDS", default_value_t = 2,
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
    /// Ends after so many looks; without it, Ctrl-C does.
    #[arg(long, value_name = "N")]
    times: Option<u64>,
    /// Print a line of JSON each time.
    #[arg(long)]
    json: bool,
}

pub(super) async fn watch(args: &WatchArgs, office: &Office<'_>) -> anyhow::Result<Exit> {
    let topology = &office.config().broker.topology;
    let mut times = 0;
    loop {
        let letters = office.list(&Filter::default(), None).await?;
        let groups = group(letters.iter());
        let waiting = office.depth(&topology.work_queue()).await?;
        let archived = office.depth(&topology.archive_queue()).await?;
        let now = clock::now();
        if args.json {
            let groups: Vec<Value> =
                groups.iter().map(|group| group_json(group, letters.len())).collect();
            let told = json!({"at": now.to_string(), "dead": letters.len(), "work": waiting,
                              "archive": archived, "groups": groups});
            output::print_json_line(&told)?;
        } else {
            output::clear()?;
            let text = groups_text(&groups, letters.len(), &office.queue());
            output::print(&format!(
                "{now:.0}  {waiting} events wait for a relay, {archived} letters are archived\n{text}"
            ))?;
        }
        times += 1;
        if args.times.is_some_and(|wanted| times >= wanted) {
            return Ok(Exit::Done);
        }
        tokio::time::sleep(Duration::from_secs(args.interval)).await;
    }
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct AuditArgs {
    /// The last acts.
    #[arg(long, default_value_t = 100, value_name = "N")]
    limit: u32,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn audit(args: &AuditArgs, office: &Office<'_>) -> anyhow::Result<Exit> {
    let acts = office.acts(args.limit).await?;
    if args.json {
        let acts = acts.iter().map(|act| {
            json!({"at": act.at.to_string(), "who": act.who, "act": act.act, "what": act.what,
                   "why": act.why, "count": act.count})
        });
        output::print_json(&json!({"acts": acts.collect::<Vec<_>>()}))?;
    } else {
        let lines = acts.iter().map(|act| {
            let at = to_the_second(Some(act.at));
            let [who, name, what] = [&act.who, &act.act, &act.what].map(|text| output::part(text));
            let why = act
                .why
                .as_ref()
                .map_or_else(String::new, |why| format!("  because: {}", output::part(why)));
            format!("{at}  {who}  {name} {}  {what}{why}", act.count)
        });
        output::print(&lines.collect::<Vec<_>>().join("\n"))?;
    }
    Ok(Exit::Done)
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct ReindexArgs {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn reindex(args: &ReindexArgs, office: &Office<'_>) -> anyhow::Result<Exit> {
    let bar = output::spinner("{spinner} {human_pos} letters read, {per_sec}");
    let count = office.reindex(|count| bar.set_position(count)).await;
    bar.finish_and_clear();
    let count = count?;
    if args.json {
        output::print_json(&json!({ "indexed": count }))?;
    } else {
        output::print(&format!("{count} dead letters of {} are in the index", office.queue()))?;
    }
    Ok(Exit::Done)
}
