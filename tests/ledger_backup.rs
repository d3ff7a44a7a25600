//! A ledger is backed up beside a working relay and restored; an older copy that was put in place by
//! other means is noticed; the events that may then overwrite something newer are known.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use customer_relay::ledger::{Store, Target};
use jiff::{SignedDuration, Timestamp};
use rusqlite::Connection;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::harness::{Context, suite};
use crate::support::bed::{Bed, LIMIT, structured};
use crate::support::eventually;
use crate::support::local_postgres::LocalPostgres;
use crate::support::process::{self, Process};
use crate::support::relay::{self, PROGRAM};

suite!(Broker:
    a_backup_is_made_beside_a_working_relay_and_restored,
    after_a_restore_the_list_holds_all_that_overwrote_something_newer,
    after_a_restore_events_in_doubt_are_held_until_somebody_has_judged_them,
    after_a_restore_an_event_older_than_one_dated_ahead_is_held,
    an_older_copy_of_the_file_is_noticed_at_start,
    a_restore_that_is_killed_leaves_one_whole_ledger,
    what_is_no_fit_backup_is_refused,
    a_customer_without_a_time_stops_no_backup,
    neither_a_backup_nor_a_restore_deletes_a_file_of_somebody_elses,
    the_number_grows_with_each_start_and_stop_and_is_never_lowered,
    the_message_of_an_older_relay_is_accepted;
Postgres:
    an_older_copy_at_a_server_is_noticed_at_start,
);

const CUSTOMERS: usize = 30;
/// Of those, as many had an update in the lost time.
const LOST: usize = 20;

fn ledger_file(bed: &Bed) -> PathBuf {
    bed.state().join("ledger.db")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a temporary path is UTF-8")
}

async fn told(bed: &Bed, args: &[&str]) -> Result<Value> {
    let (code, out, err) = bed.settings.command(&[args, &["--json"]].concat(), b"").await?;
    ensure!(code == 0, "{args:?}: exit {code}\n{out}{err}");
    Ok(serde_json::from_str(&out)?)
}

async fn fails(bed: &Bed, args: &[&str]) -> Result<String> {
    let (code, out, err) = bed.settings.command(args, b"").await?;
    ensure!(code != 0, "{args:?}: exit {code}\n{out}{err}");
    Ok(err)
}

async fn refused(bed: &Bed) -> Result<String> {
    let mut relay = bed.launch_relay()?;
    let status = relay.ended(LIMIT).await?;
    ensure!(status.code() == Some(1), "{status}:\n{}", relay.output());
    Ok(relay.output())
}

/// A city is a word of letters: which event it is from, and whose.
fn city(kind: &str, number: usize) -> String {
    let letter = |n: usize| char::from(b'a' + u8::try_from(n).expect("a letter"));
    format!("{kind}{}{}", letter(number / 26), letter(number % 26))
}

fn event(bed: &Bed, kind: &str, number: usize, time: Timestamp) -> Value {
    let (id, customer) = (format!("{kind}-{number}"), format!("C{number}"));
    let mut event = bed.event(&id, &customer, &json!({"city": city(kind, number)}));
    event["time"] = json!(time.to_string());
    event
}

/// Until the ledger has it: a backup is of what was committed.
async fn apply(bed: &Bed, kind: &str, customers: usize, count: u64) -> Result<()> {
    let now = Timestamp::now();
    for number in 0..customers {
        bed.publish(&event(bed, kind, number, now)).await?;
    }
    for number in 0..customers {
        let (customer, last) = (format!("C{number}"), format!("{kind}-{number}"));
        bed.applied(&customer, count).await?;
        eventually("the commit", LIMIT, || async {
            Ok((newest_of(bed, &customer).await.ok().as_ref() == Some(&last)).then_some(()))
        })
        .await?;
    }
    Ok(())
}

async fn backed_up(bed: &Bed, name: &str) -> Result<PathBuf> {
    let file = bed.state().join(name);
    let made = told(bed, &["ledger", "backup", text(&file)]).await?;
    ensure!(made["number"].as_u64() >= Some(1), "{made}");
    Ok(file)
}

/// What the portal has of a customer's city.
async fn city_of(bed: &Bed, number: usize) -> Result<String> {
    let customer = bed.simulator.customer(&format!("C{number}")).await?;
    Ok(customer["fields"]["city"].as_str().context("no city")?.to_owned())
}

async fn number(bed: &Bed) -> Result<(u64, u64)> {
    let shown = told(bed, &["ledger", "show"]).await?;
    let number = |name: &str| shown[name].as_u64().with_context(|| format!("{name}: {shown}"));
    Ok((number("number")?, number("number_at_broker")?))
}

/// The ledger is numbered once the first renewal is through.
async fn start(bed: &Bed) -> Result<Process> {
    let relay = bed.start_relay().await?;
    eventually("a number at the broker", LIMIT, || async {
        let shown = told(bed, &["ledger", "show"]).await?;
        Ok((shown["number_at_broker"].as_u64() >= Some(1)).then_some(()))
    })
    .await?;
    Ok(relay)
}

async fn a_backup_is_made_beside_a_working_relay_and_restored(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    let relay = start(&bed).await?;
    apply(&bed, "Old", 2, 1).await?;
    let file = backed_up(&bed, "backup.db").await?;
    assert_eq!(fs::metadata(&file)?.permissions().mode() & 0o777, 0o600);
    let said = fails(&bed, &["ledger", "backup", text(&file)]).await?;
    assert!(said.contains("is there already"), "{said}");
    apply(&bed, "New", 2, 2).await?;
    let said = fails(&bed, &["ledger", "restore", text(&file), "--yes"]).await?;
    assert!(said.contains("stop the relay first"), "{said}");
    relay::stop(relay).await?;

    let said = fails(&bed, &["ledger", "restore", text(&file)]).await?;
    assert!(said.contains("--yes"), "{said}");
    let restored = told(&bed, &["ledger", "restore", text(&file), "--yes"]).await?;
    assert_eq!((&restored["customers"], &restored["doubts"]["waiting"]), (&json!(2), &json!([])));
    let kept = restored["replaced"].as_str().context("nothing is kept")?;
    let versions = "SELECT count(*) FROM customers";
    let kept: u32 = Connection::open(kept)?.query_row(versions, [], |row| row.get(0))?;
    assert_eq!(kept, 2);
    for entry in fs::read_dir(bed.state())? {
        let name = entry?.file_name().into_string().map_err(|_| anyhow!("no text"))?;
        let is_left =
            ["-wal", "-shm", ".restoring", ".part"].iter().any(|part| name.contains(part));
        ensure!(!is_left, "{name} is left");
    }
    let known = told(&bed, &["customer", "show", "C0"]).await?;
    assert_eq!(known["fields"]["city"]["event"], "Old-0");
    let (own, at_broker) = number(&bed).await?;
    ensure!(own > at_broker, "{own} is not above {at_broker}");
    let relay = start(&bed).await?;
    apply(&bed, "Next", 2, 3).await?;
    let audit = told(&bed, &["dead", "audit"]).await?;
    ensure!(audit.to_string().contains("restore"), "{audit}");
    bed.end(relay).await.map(drop)
}

/// Ninety events wait in the work queue while an hour of the ledger is lost: two of each customer that
/// are newer than the backup, the first of them older than what was applied in the lost time; and one
/// that is older than the backup. Also what `ledger restore` says.
async fn lose_an_hour(bed: &Bed) -> Result<Value> {
    let relay = start(bed).await?;
    let ancient = Timestamp::now() - SignedDuration::from_hours(1);
    apply(bed, "Old", CUSTOMERS, 1).await?;
    let file = backed_up(bed, "backup.db").await?;
    let between = Timestamp::now();
    tokio::time::sleep(Duration::from_millis(5)).await;
    apply(bed, "Lost", LOST, 2).await?;
    relay::stop(relay).await?;
    let last = Timestamp::now();
    for number in 0..CUSTOMERS {
        bed.publish(&event(bed, "Ancient", number, ancient)).await?;
        bed.publish(&event(bed, "Late", number, between)).await?;
    }
    for number in 0..CUSTOMERS {
        bed.publish(&event(bed, "Last", number, last)).await?;
    }
    bed.queues.holds(&bed.queue("work"), 90, LIMIT).await?;
    let restored = told(bed, &["ledger", "restore", text(&file), "--yes"]).await?;
    bed.queues.holds(&bed.queue("work"), 90, LIMIT).await?;
    Ok(restored["doubts"].clone())
}

fn ids(list: &Value) -> Result<BTreeSet<String>> {
    let list = list.as_array().with_context(|| format!("no list: {list}"))?;
    list.iter().map(|one| Ok(one["event"].as_str().context("no event")?.to_owned())).collect()
}

fn of_each(kinds: &[&str]) -> BTreeSet<String> {
    let all = |kind: &&str| (0..CUSTOMERS).map(|n| format!("{kind}-{n}")).collect::<Vec<_>>();
    kinds.iter().flat_map(all).collect()
}

async fn until_worked_off(bed: &Bed, doubts: usize) -> Result<Value> {
    eventually("all doubts at their end", LIMIT, || async {
        let told = told(bed, &["ledger", "doubts"]).await?;
        // What a late call of another event might undo is sent once more.
        let waits = told["pending_at_most"].as_u64().context("no figure")?;
        let is_over = waits == 0 && bed.queues.depth(&bed.queue("work")).await? == 0;
        Ok((is_over && ids(&told["so_far"])?.len() == doubts).then_some(told))
    })
    .await
}

async fn after_a_restore_the_list_holds_all_that_overwrote_something_newer(
    context: Context,
) -> Result<()> {
    let mut bed = context.bed().await?;
    bed.settings.set("ledger.in_doubt", "send").set("admin.listen", "127.0.0.1:0");
    // Each is to reach the portal by itself, whoever comes meanwhile.
    bed.settings.set("admin.token", "token-of-operators").set("worker.merge", "false");
    let told_at_restore = lose_an_hour(&bed).await?;
    let expected = of_each(&["Late", "Last"]);
    assert_eq!(ids(&told_at_restore["waiting"])?, expected);
    let seen = told(&bed, &["ledger", "doubts", "--queue"]).await?;
    assert_eq!(
        (ids(&seen["waiting"])?, ids(&seen["so_far"])?),
        (expected.clone(), BTreeSet::new())
    );
    let asked = ["ledger", "doubts", "--queue", "--customers", "-"];
    let (code, out, err) = bed.settings.command(&asked, b"C0\nC29\nC30\n").await?;
    ensure!(code == 0 && out.lines().count() == 2, "exit {code}: {out}{err}");
    assert!(out.contains("C0  Last-0 Late-0") && !out.contains("C30"), "{out}");

    let relay = bed.start_relay().await?;
    let listed = ids(&until_worked_off(&bed, 60).await?["so_far"])?;
    // What really happened: a call with an older value than one that the portal had already.
    let mut wrong = BTreeSet::new();
    for number in 0..CUSTOMERS {
        let rank = |value: &str| {
            ["Ancient", "Old", "Late", "Lost", "Last"]
                .iter()
                .position(|kind| value == city(kind, number))
        };
        let mut newest = None;
        for call in bed.simulator.requests(&format!("C{number}")).await? {
            let value = call["values"]["city"].as_str().context("no city")?.to_owned();
            let this = rank(&value);
            if this < newest {
                wrong.insert(value);
            }
            newest = newest.max(this);
        }
        assert_eq!(city_of(&bed, number).await?, city("Last", number));
    }
    let late: BTreeSet<String> = (0..LOST).map(|number| city("Late", number)).collect();
    assert_eq!(wrong, late, "the lost updates were overwritten for a moment");
    ensure!((0..LOST).all(|number| listed.contains(&format!("Late-{number}"))), "{listed:?}");
    assert_eq!(listed, expected);
    let line = relay
        .output()
        .lines()
        .find(|line| line.contains("the admin port is open"))
        .map(str::to_owned);
    let line: Value = serde_json::from_str(&line.context("no port")?)?;
    let url = format!("http://{}/metrics", line["address"].as_str().context("no address")?);
    let metrics =
        reqwest::Client::builder().no_proxy().build()?.get(url).send().await?.text().await?;
    let sent = metrics
        .lines()
        .find(|line| line.starts_with("customer_relay_ledger_in_doubt_total{end=\"sent\""));
    assert!(sent.context("no such metric")?.ends_with(" 60"), "{sent:?}");
    bed.end(relay).await.map(drop)
}

async fn after_a_restore_events_in_doubt_are_held_until_somebody_has_judged_them(
    context: Context,
) -> Result<()> {
    let bed = context.bed().await?;
    // What comes after the restore is in no doubt.
    lose_an_hour(&bed).await?;
    let relay = bed.start_relay().await?;
    let listed = until_worked_off(&bed, 60).await?;
    assert_eq!(ids(&listed["so_far"])?, of_each(&["Late", "Last"]));
    for one in listed["so_far"].as_array().context("no list")? {
        assert_eq!(one["ended"], "in-doubt");
    }
    bed.queues.holds(&bed.queue("dead"), 60, LIMIT).await?;
    for number in 0..CUSTOMERS {
        let right = if number < LOST { "Lost" } else { "Old" };
        assert_eq!(city_of(&bed, number).await?, city(right, number), "nothing was overwritten");
    }
    // A later event is in no doubt, and ends that of its customer.
    bed.publish(&event(&bed, "Next", 0, Timestamp::now())).await?;
    eventually("C0's later event", LIMIT, || async {
        Ok((city_of(&bed, 0).await? == city("Next", 0)).then_some(()))
    })
    .await?;
    // What a person has judged is sent, through the fence.
    told(&bed, &["dead", "replay", "--reason", "in-doubt", "--yes", "--wait"]).await?;
    for number in 0..CUSTOMERS {
        let right = if number == 0 { "Next" } else { "Last" };
        assert_eq!(city_of(&bed, number).await?, city(right, number));
    }
    told(&bed, &["ledger", "doubts", "--close", "--yes"]).await?;
    let shown = told(&bed, &["ledger", "show"]).await?;
    assert_eq!(shown["gap"], Value::Null);
    bed.end(relay).await.map(drop)
}

/// As far ahead as a relay accepts an event, what was applied in the lost time may be dated.
async fn after_a_restore_an_event_older_than_one_dated_ahead_is_held(
    context: Context,
) -> Result<()> {
    let mut bed = context.bed().await?;
    for delay in ["shortest_delay", "first_delay", "max_delay", "max_uncounted_delay"] {
        bed.settings.set(&format!("retry.{delay}"), "60s");
    }
    bed.settings.set("retry.rejected_delay", "60s").set("retry.immediate_retries", "0");
    let relay = start(&bed).await?;
    let file = backed_up(&bed, "backup.db").await?;
    let ahead = Timestamp::now() + SignedDuration::from_secs(200);
    let fault = json!({"times": 1, "fault": {"kind": "status", "code": 503}});
    bed.simulator.fault(fault).await?;
    bed.publish(&event(&bed, "Late", 0, ahead - SignedDuration::from_secs(100))).await?;
    let late = bed.queues.take(&bed.queue("retry.60000ms"), LIMIT).await?;
    bed.publish(&event(&bed, "Ahead", 0, ahead)).await?;
    bed.applied("C0", 1).await?;
    relay::stop(relay).await?;
    let restored = told(&bed, &["ledger", "restore", text(&file), "--yes"]).await?;
    let (until, dated) = (&restored["doubts"]["gap"]["until"], &restored["doubts"]["dated_until"]);
    let time =
        |value: &Value| -> Result<Timestamp> { Ok(value.as_str().context("no time")?.parse()?) };
    assert_eq!(time(dated)?.duration_since(time(until)?), SignedDuration::from_mins(5));
    let relay = bed.start_relay().await?;
    bed.put_back(late.properties, &late.body).await?;
    let held = bed.dead_letter().await?;
    assert_eq!(held.header("x-relay-reason").as_deref(), Some("in-doubt"));
    assert_eq!(city_of(&bed, 0).await?, city("Ahead", 0));
    // What comes only now goes on, though it is dated no later.
    bed.publish(&event(&bed, "Next", 1, ahead - SignedDuration::from_secs(100))).await?;
    bed.applied("C1", 1).await?;
    bed.end(relay).await.map(drop)
}

async fn an_older_copy_of_the_file_is_noticed_at_start(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    relay::stop(start(&bed).await?).await?;
    let snapshot = tempfile::tempdir()?;
    let copy = |from: &Path, to: &Path| -> Result<()> {
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
        Ok(())
    };
    copy(bed.state(), snapshot.path())?;
    let relay = start(&bed).await?;
    apply(&bed, "Lost", 1, 1).await?;
    relay::stop(relay).await?;
    copy(snapshot.path(), bed.state())?;
    is_noticed_and_adopted(&bed).await?;
    bed.finish().await
}

/// Each place that looks at the ledger says that it is an older copy, and names the ways out.
async fn is_noticed_and_adopted(bed: &Bed) -> Result<()> {
    let ways = ["older copy", "ledger restore FILE", "ledger adopt", "in ledger.url"];
    let (_, checked, _) = bed.settings.command(&["check"], b"").await?;
    let (_, shown, _) = bed.settings.command(&["ledger", "show"], b"").await?;
    for said in [refused(bed).await?, checked, shown] {
        for way in ways {
            assert!(said.contains(way), "{way} is not in {said}");
        }
    }
    assert_eq!(told(bed, &["ledger", "show"]).await?["matches"], false);
    let adopted = told(bed, &["ledger", "adopt", "--yes"]).await?;
    assert_eq!(adopted["adopted"], true);
    ensure!(adopted["gap"]["from"].is_string(), "{adopted}");
    let (own, at_broker) = number(bed).await?;
    assert_eq!(own, at_broker);
    assert_eq!(told(bed, &["ledger", "adopt"]).await?["adopted"], false);
    let relay = bed.start_relay().await?;
    let late = event(bed, "Late", 0, Timestamp::now() - SignedDuration::from_hours(1));
    bed.publish(&late).await?;
    let held = bed.dead_letter().await?;
    assert_eq!(held.header("x-relay-reason").as_deref(), Some("in-doubt"));
    bed.publish(&event(bed, "Next", 0, Timestamp::now())).await?;
    eventually("the later event", LIMIT, || async {
        Ok((city_of(bed, 0).await? == city("Next", 0)).then_some(()))
    })
    .await?;
    relay::stop(relay).await.map(drop)
}

/// With the commands that `ledger backup` prints.
async fn an_older_copy_at_a_server_is_noticed_at_start(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    let url = context.postgres().await?.database().await?;
    bed.settings.set("ledger.url", &url);
    relay::stop(start(&bed).await?).await?;
    let dump = bed.state().join("ledger.dump");
    let commands = told(&bed, &["ledger", "backup", text(&dump)]).await?;
    ensure!(!commands.to_string().contains(crate::support::postgres::PASSWORD), "{commands}");
    shell(&commands["dump"]).await?;
    let relay = start(&bed).await?;
    apply(&bed, "Lost", 1, 1).await?;
    relay::stop(relay).await?;
    let said = fails(&bed, &["ledger", "restore", text(&dump)]).await?;
    assert!(said.contains("pg_restore") && said.contains("ledger adopt"), "{said}");
    shell(&commands["restore"]).await?;
    is_noticed_and_adopted(&bed).await?;
    let shown = told(&bed, &["ledger", "show"]).await?;
    assert_eq!(shown["timeline"].as_str().map(str::len), Some(8), "{shown}");
    bed.finish().await
}

async fn shell(command: &Value) -> Result<()> {
    let programs = LocalPostgres::installed()?;
    let path = std::env::var("PATH")?;
    let environment = [
        ("PATH".to_owned(), format!("{}:{path}", programs.display())),
        ("PGPASSWORD".to_owned(), crate::support::postgres::PASSWORD.to_owned()),
    ];
    let command = command.as_str().context("no command")?;
    let (code, out, err) = process::run("sh", &["-c", command], &environment, b"").await?;
    ensure!(code == 0, "{command}: exit {code}\n{out}{err}");
    Ok(())
}

/// The event that the ledger has of a customer's city.
async fn newest_of(bed: &Bed, customer: &str) -> Result<String> {
    let known = told(bed, &["customer", "show", customer]).await?;
    Ok(known["fields"]["city"]["event"].as_str().context("no event")?.to_owned())
}

async fn a_restore_that_is_killed_leaves_one_whole_ledger(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    let relay = start(&bed).await?;
    apply(&bed, "Old", 3, 1).await?;
    let file = backed_up(&bed, "backup.db").await?;
    apply(&bed, "Lost", 3, 2).await?;
    relay.kill().await?;
    let args = ["ledger", "restore", text(&file), "--yes"].map(str::to_owned);
    let mut seen = BTreeSet::new();
    for wait in (0..40).map(|step| Duration::from_millis(6 * step)) {
        // With nothing beside it that takes time: the first ones are to be killed before they begin.
        let mut restore = Command::new(PROGRAM);
        let environment = bed.settings.environment().iter().cloned();
        restore.args(&args).envs(environment).stderr(Stdio::null()).stdout(Stdio::null());
        let mut restore = restore.kill_on_drop(true).spawn()?;
        tokio::time::sleep(wait).await;
        restore.kill().await?;
        let said: String = Connection::open(ledger_file(&bed))?.query_row(
            "PRAGMA integrity_check",
            [],
            |row| row.get(0),
        )?;
        assert_eq!(said, "ok");
        seen.insert(newest_of(&bed, "C2").await?);
    }
    ensure!(seen.contains("Lost-2"), "no kill was quick enough: {seen:?}");
    told(&bed, &["ledger", "restore", text(&file), "--yes"]).await?;
    assert_eq!(newest_of(&bed, "C2").await?, "Old-2");
    let relay = bed.start_relay().await?;
    bed.end(relay).await.map(drop)
}

async fn what_is_no_fit_backup_is_refused(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    let relay = start(&bed).await?;
    apply(&bed, "Old", 1, 1).await?;
    let file = backed_up(&bed, "backup.db").await?;
    relay::stop(relay).await?;
    let bad = |name: &str, spoil: &dyn Fn(&Path) -> Result<()>| -> Result<PathBuf> {
        let copy = bed.state().join(name);
        fs::copy(&file, &copy)?;
        spoil(&copy)?;
        Ok(copy)
    };
    let run = |sql: &'static str| {
        move |path: &Path| -> Result<()> { Ok(Connection::open(path)?.execute_batch(sql)?) }
    };
    let foreign =
        bad("foreign.db", &run("UPDATE about SET id = '018f0000-0000-7000-8000-000000000000'"))?;
    let open =
        bad("open.db", &|path| Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o644))?))?;
    let damaged = bad("damaged.db", &|path| {
        let mut bytes = fs::read(path)?;
        bytes[3000..6000].fill(0xff);
        Ok(fs::write(path, bytes)?)
    })?;
    let text_file = bad("text.db", &|path| Ok(fs::write(path, "no database at all\n")?))?;
    let empty = bad("empty.db", &|path| Ok(fs::write(path, "")?))?;
    let newer = bad("newer.db", &run("PRAGMA user_version = 99"))?;
    let missing = bed.state().join("missing.db");
    let own = told(&bed, &["ledger", "show"]).await?;
    let own = own["id"].as_str().context("no id")?.to_owned();
    let ledger = ledger_file(&bed);
    let before = fs::read(&ledger)?;
    for (file, expected) in [
        (&foreign, vec!["018f0000-0000-7000-8000-000000000000", &own, "backup of"]),
        (&open, vec!["open to other users", "chmod 600"]),
        (&damaged, vec!["damaged"]),
        (&text_file, vec!["no ledger"]),
        (&empty, vec!["no ledger"]),
        (&newer, vec!["newer version"]),
        (&missing, vec!["cannot be read"]),
        (&ledger, vec!["the ledger itself"]),
    ] {
        let said = fails(&bed, &["ledger", "restore", text(file), "--yes"]).await?;
        for words in expected {
            assert!(said.contains(words), "{words} is not in {said}");
        }
    }
    ensure!(fs::read(&ledger)? == before, "the ledger was touched");
    ensure!(!bed.state().join("ledger.db.restoring").exists(), "a copy is left");
    let said = {
        let mut lost = bed.settings.clone();
        lost.set("ledger.url", "none");
        lost.command(&["ledger", "backup", "x"], b"").await?.2
    };
    assert!(said.contains("there is no ledger"), "{said}");
    bed.finish().await
}

async fn a_customer_without_a_time_stops_no_backup(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    let relay = start(&bed).await?;
    apply(&bed, "Old", 2, 1).await?;
    relay::stop(relay).await?;
    // Nothing but the rows says how old a copy is.
    let spoil =
        "UPDATE customers SET seen = 'yesterday' WHERE key = (SELECT min(key) FROM customers);
                 UPDATE about SET numbered_at = 0";
    Connection::open(ledger_file(&bed))?.execute_batch(spoil)?;
    let file = backed_up(&bed, "backup.db").await?;
    told(&bed, &["ledger", "restore", text(&file), "--yes"]).await?;
    let (_, checked, _) = bed.settings.command(&["check"], b"").await?;
    assert!(checked.contains("1 customers' rows cannot be read"), "{checked}");
    told(&bed, &["ledger", "mend", "--all", "--empty", "--yes"]).await?;
    let (_, checked, _) = bed.settings.command(&["check"], b"").await?;
    assert!(!checked.contains("cannot be read"), "{checked}");
    bed.finish().await
}

async fn neither_a_backup_nor_a_restore_deletes_a_file_of_somebody_elses(
    context: Context,
) -> Result<()> {
    let bed = context.bed().await?;
    let relay = start(&bed).await?;
    let part = bed.state().join("backup.db.part");
    fs::write(&part, "mine")?;
    let file = backed_up(&bed, "backup.db").await?;
    assert_eq!(fs::read_to_string(&part)?, "mine");
    relay::stop(relay).await?;
    // Left by a restore that was killed, or put there by hand; also under another name.
    let prepared = bed.state().join("ledger.db.restoring");
    fs::copy(&file, &prepared)?;
    let link = bed.state().join("a-link.db");
    std::os::unix::fs::symlink(&prepared, &link)?;
    for name in [&prepared, &link] {
        let said = fails(&bed, &["ledger", "restore", text(name), "--yes"]).await?;
        assert!(said.contains("give it another one first"), "{said}");
        assert_eq!(fs::read(&prepared)?, fs::read(&file)?);
    }
    told(&bed, &["ledger", "restore", text(&file), "--yes"]).await?;
    ensure!(!prepared.exists(), "what a restore leaves is in the way of none");
    bed.finish().await
}

async fn the_number_grows_with_each_start_and_stop_and_is_never_lowered(
    context: Context,
) -> Result<()> {
    let bed = context.bed().await?;
    relay::stop(start(&bed).await?).await?;
    let (first, at_broker) = number(&bed).await?;
    assert_eq!(first, at_broker);
    ensure!(first >= 2, "one at the start, one at the end: {first}");
    let target = Target::parse(&format!("sqlite:{}", ledger_file(&bed).display()))?;
    let (store, _) = Store::visit(&target).await?.context("no ledger")?;
    let before = store.load_number().await?;
    let now = Timestamp::now();
    let raised = store.raise_number(0, now).await?;
    assert_eq!((raised.number, raised.gap), (before.number + 1, None));
    ensure!(raised.at > before.at, "{raised:?} {before:?}");
    assert_eq!(store.raise_number(100, now).await?.number, 101);
    assert_eq!(store.raise_number(7, now).await?.number, 102);
    drop(store);
    relay::stop(start(&bed).await?).await?;
    let (own, at_broker) = number(&bed).await?;
    ensure!(own >= 104 && at_broker == own, "{own} {at_broker}");
    bed.finish().await
}

async fn the_message_of_an_older_relay_is_accepted(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    relay::stop(start(&bed).await?).await?;
    let (own, _) = number(&bed).await?;
    let id = bed.forget_number().await?;
    let shown = told(&bed, &["ledger", "show"]).await?;
    assert_eq!(shown["id"], id);
    assert_eq!((&shown["matches"], &shown["number_at_broker"]), (&json!(true), &Value::Null));
    let relay = start(&bed).await?;
    bed.publish_as(structured(), event(&bed, "Next", 0, Timestamp::now()).to_string().as_bytes())
        .await?;
    bed.applied("C0", 1).await?;
    relay::stop(relay).await?;
    let (after, at_broker) = number(&bed).await?;
    ensure!(after > own && at_broker == after, "{after} {at_broker}");
    bed.finish().await
}
