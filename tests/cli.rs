//! The commands: what they print, what they refuse, their exit codes.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lapin::BasicProperties;
use serde_json::{Value, json};

use crate::harness::{Context, suite};
use crate::support::bed::Bed;
use crate::support::process;
use crate::support::relay::PROGRAM;

suite!(Broker:
    publish_confirms_every_line_and_the_relay_takes_them,
    publish_reads_standard_input,
    publish_names_a_bad_line_before_anything_is_published,
    publish_sends_bad_lines_only_with_raw,
    publish_leaves_out_the_first_lines_and_keeps_to_a_rate,
    publish_keeps_the_order_of_the_lines,
    publish_that_no_queue_takes_fails_and_says_where_to_go_on,
    check_is_exit_0_when_all_is_in_place,
    healthy_tells_a_relay_that_lives_from_one_that_is_gone;
NoBroker:
    publish_without_a_broker_is_exit_69_and_names_the_address,
    check_judges_a_sample_of_events_offline,
    explain_tells_why_an_event_is_refused,
    explain_shows_the_whole_way_of_an_event,
    completions_and_manual_pages_name_every_command,
    help_is_exit_0_for_every_command,
    what_is_not_understood_is_exit_64,
);

fn line(n: usize) -> String {
    json!({"entity_id": format!("C{n}"), "city": "Kochi"}).to_string()
}

async fn publish(bed: &Bed, lines: &str, args: &[&str]) -> Result<(i32, String, String)> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("events.jsonl");
    std::fs::write(&file, lines)?;
    let args = [&["publish", file.to_str().unwrap()], args].concat();
    bed.settings.command(&args, b"").await
}

async fn depth(bed: &Bed) -> Result<u32> {
    bed.queues.depth(&bed.queue("work")).await
}

async fn publish_confirms_every_line_and_the_relay_takes_them(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    let structured = bed.event("e-structured", "C0", &json!({"city": "Kochi"}));
    let bare: Vec<String> = (1..200).map(line).collect();
    let lines = format!("{structured}\n\n{}\n", bare.join("\n"));
    let (code, out, err) = publish(&bed, &lines, &["--json"]).await?;
    assert_eq!(code, 0, "{err}");
    assert_eq!(serde_json::from_str::<Value>(&out)?, json!({"published": 200}));
    for n in 0..200 {
        bed.applied(&format!("C{n}"), 1).await?;
    }
    let output = bed.end(relay).await?;
    assert!(output.contains("\"event_id\":\"e-structured\""), "{output}");
    Ok(())
}

async fn publish_reads_standard_input(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    let (code, out, err) = bed.settings.command(&["publish", "-"], line(1).as_bytes()).await?;
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("1 events published and confirmed"), "{out}");
    bed.applied("C1", 1).await?;
    bed.end(relay).await.map(drop)
}

async fn publish_names_a_bad_line_before_anything_is_published(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    bed.declare().await?;
    let lines = format!("{}\n{}\n[1, 2]\n", line(1), line(2));
    let (code, out, err) = publish(&bed, &lines, &[]).await?;
    assert_eq!((code, out.as_str()), (1, ""), "{err}");
    assert!(err.contains("line 3") && err.contains("--raw"), "{err}");
    assert_eq!(depth(&bed).await?, 0);
    bed.finish().await
}

async fn publish_sends_bad_lines_only_with_raw(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    let relay = bed.start_relay().await?;
    let lines = format!("{}\nnot JSON\n", line(1));
    let (code, _, err) = publish(&bed, &lines, &["--raw"]).await?;
    assert_eq!(code, 0, "{err}");
    bed.applied("C1", 1).await?;
    let dead = bed.dead_letter().await?;
    assert_eq!(dead.body, b"not JSON");
    assert_eq!(dead.header("x-relay-reason").as_deref(), Some("undecodable"));
    bed.end(relay).await.map(drop)
}

async fn publish_leaves_out_the_first_lines_and_keeps_to_a_rate(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    bed.declare().await?;
    let lines = (0..50).map(line).collect::<Vec<_>>().join("\n");
    let start = Instant::now();
    let (code, out, err) = publish(&bed, &lines, &["--skip", "30", "--rate", "20"]).await?;
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("20 events"), "{out}");
    // 20 events at 20 a second: 19 pauses of 50 ms.
    ensure!(start.elapsed() >= Duration::from_millis(900), "{:?}", start.elapsed());
    let published = bed.queues.take_all(&bed.queue("work")).await?;
    assert_eq!(published.len(), 20);
    assert_eq!(published[0].body, line(30).as_bytes());
    assert_eq!(published[0].properties.delivery_mode(), &Some(2));
    bed.finish().await
}

async fn publish_keeps_the_order_of_the_lines(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    bed.declare().await?;
    let lines: Vec<String> = (0..600).map(line).collect();
    let (code, _, err) = publish(&bed, &lines.join("\n"), &[]).await?;
    assert_eq!(code, 0, "{err}");
    let published = bed.queues.take_all(&bed.queue("work")).await?;
    let bodies: Vec<&[u8]> = published.iter().map(|taken| &taken.body[..]).collect();
    assert_eq!(bodies, lines.iter().map(String::as_bytes).collect::<Vec<_>>());
    bed.finish().await
}

async fn publish_that_no_queue_takes_fails_and_says_where_to_go_on(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    bed.declare().await?;
    let taken = bed.settings.clone();
    bed.settings.set("broker.routing_key", "nobody.listens");
    let (code, out, err) = publish(&bed, &format!("\n{}", line(1)), &[]).await?;
    assert_eq!((code, out.as_str()), (1, ""), "{err}");
    assert!(err.contains("stopped at line 2: 0 events are confirmed"), "{err}");
    assert!(err.contains("--skip 1") && err.contains("returned"), "{err}");
    bed.settings = taken;
    bed.finish().await
}

async fn publish_without_a_broker_is_exit_69_and_names_the_address(_: Context) -> Result<()> {
    let settings = vec![(
        "CUSTOMER_RELAY__BROKER__URL".to_owned(),
        "amqp://guest:guest@127.0.0.1:1/%2f".to_owned(),
    )];
    let (code, out, err) =
        process::run(PROGRAM, &["publish", "-"], &settings, line(1).as_bytes()).await?;
    assert_eq!((code, out.as_str()), (69, ""), "{err}");
    assert!(err.contains("127.0.0.1:1"), "{err}");
    Ok(())
}

async fn check_is_exit_0_when_all_is_in_place(context: Context) -> Result<()> {
    let bed = context.bed().await?;
    bed.declare().await?;
    bed.queues.publish("", &bed.queue("dead"), BasicProperties::default(), b"x").await?;
    let (code, out, err) = bed.settings.command(&["check", "--json"], b"").await?;
    assert_eq!(code, 0, "{err}");
    let answer: Value = serde_json::from_str(&out)?;
    assert_eq!(answer["ok"], true);
    assert_eq!(answer["depths"][bed.queue("dead")], 1);
    assert!(answer["notes"].to_string().contains("memory: at most 132 deliveries"), "{answer}");
    let (code, out, _) = bed.settings.command(&["check"], b"").await?;
    assert_eq!(code, 0);
    assert!(out.contains("ok     configuration") && !out.contains("FAULT"), "{out}");
    bed.queues.take_all(&bed.queue("dead")).await?;
    bed.finish().await
}

const SECRET: (&str, &str) = ("CUSTOMER_RELAY__PORTAL__SECRET_KEY", "hunter2");

async fn explain(body: &str, args: &[&str]) -> Result<(i32, String, String)> {
    let settings = [(SECRET.0.to_owned(), SECRET.1.to_owned())];
    process::run(PROGRAM, &[&["explain"], args].concat(), &settings, body.as_bytes()).await
}

async fn explain_tells_why_an_event_is_refused(_: Context) -> Result<()> {
    for (body, reason, field, rule, setting) in [
        ("nonsense", json!("undecodable"), json!(null), json!(null), json!(null)),
        (
            r#"{"entity_id":"C1","city":"New Delhi"}"#,
            json!("invalid-event"),
            json!("city"),
            json!("spaces"),
            json!("fields.city_spaces"),
        ),
        (
            r#"{"specversion":"1.0","id":"e","source":"crm","type":"customer.merged","data":{}}"#,
            json!("unsupported-type"),
            json!(null),
            json!(null),
            json!("event.types"),
        ),
    ] {
        let (code, out, err) = explain(body, &["--json"]).await?;
        assert_eq!(code, 0, "{err}");
        let refused = &serde_json::from_str::<Value>(&out)?["refused"];
        assert_eq!(refused["reason"], reason);
        assert_eq!(refused["field"], field);
        assert_eq!(refused["rule"], rule);
        assert_eq!(refused["setting"], setting);
        let (_, text, _) = explain(body, &[]).await?;
        assert!(
            text.contains("no call is made") && text.contains(reason.as_str().unwrap()),
            "{text}"
        );
    }
    Ok(())
}

async fn explain_shows_the_whole_way_of_an_event(_: Context) -> Result<()> {
    let (code, out, err) = explain(&line(1), &["--json"]).await?;
    assert_eq!(code, 0, "{err}");
    let explained: Value = serde_json::from_str(&out)?;
    assert_eq!(explained["fields"], json!({"entity_id": "C1", "city": "Kochi"}));
    assert_eq!(explained["canonical"], "C1Kochi***");
    assert_eq!(explained["timetable"].as_array().map(Vec::len), Some(21));
    let verdicts = explained["verdicts"].as_array().unwrap();
    let verdict = |answer: &str| {
        verdicts.iter().find(|verdict| verdict["answer"] == answer).unwrap_or(&Value::Null)
    };
    assert_eq!(verdict("HTTP 200, status 200, success")["verdict"], "applied");
    assert_eq!(verdict("HTTP 200, status 400, fail")["reason"], "rejected");
    assert_eq!(verdict("HTTP 429")["counts_an_attempt"], false);
    let failed = verdict("HTTP 503 with the portal's form");
    assert_eq!((&failed["verdict"], &failed["delay_ms"]), (&json!("retry"), &json!([2000, 4000])));
    let (code, text, _) = explain(&line(1), &[]).await?;
    assert_eq!(code, 0);
    for part in ["C1Kochi***", "entity_id=C1&city=Kochi", "curl ", "no attempt counted"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert!(!out.contains("hunter2") && !text.contains("hunter2"), "the secret is shown");
    Ok(())
}

async fn healthy_tells_a_relay_that_lives_from_one_that_is_gone(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    bed.settings.set("admin.listen", "127.0.0.1:0").set("admin.token", "t");
    let mut relay = bed.launch_relay()?;
    let line = relay.line_with("the admin port is open", Duration::from_secs(10)).await?;
    let line: Value = serde_json::from_str(&line)?;
    let address = line["address"].as_str().context("no address")?.to_owned();
    let asked = ["--set", &format!("admin.listen={address}"), "healthy"];
    let (code, out, err) = bed.settings.command(&asked, b"").await?;
    assert_eq!((code, out.as_str()), (0, "alive\n"), "{err}");
    let nowhere = format!("http://{address}/nowhere");
    let (code, _, err) = bed.settings.command(&["healthy", &nowhere], b"").await?;
    assert!(code == 1 && err.contains("404"), "{code}: {err}");
    let settings = bed.settings.clone();
    relay.line_with("\"consuming\"", Duration::from_secs(30)).await?;
    bed.end(relay).await?;
    let (code, _, err) = settings.command(&asked, b"").await?;
    assert!(code == 69 && err.contains("not reached"), "{code}: {err}");
    let (code, _, err) = process::run(PROGRAM, &["healthy"], &[], b"").await?;
    assert!(code == 64 && err.contains("admin.listen"), "{code}: {err}");
    Ok(())
}

async fn completions_and_manual_pages_name_every_command(_: Context) -> Result<()> {
    let (_, help, _) = process::run(PROGRAM, &["--help"], &[], b"").await?;
    let listed = help.split("Commands:").nth(1).and_then(|rest| rest.split("Options:").next());
    let listed = listed.context("no list of commands")?.lines();
    let commands: Vec<&str> = listed
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|&command| command != "help")
        .collect();
    ensure!(commands.contains(&"run") && commands.len() > 10, "{commands:?}");
    for shell in ["bash", "zsh", "fish"] {
        let (code, script, err) = process::run(PROGRAM, &["completions", shell], &[], b"").await?;
        assert_eq!((code, err.as_str()), (0, ""));
        for command in &commands {
            ensure!(script.contains(command), "{shell} completes no {command}");
        }
    }
    let folder = tempfile::tempdir()?;
    let pages = folder.path().join("man1");
    let (code, _, err) = process::run(PROGRAM, &["man", pages.to_str().unwrap()], &[], b"").await?;
    assert_eq!((code, err.as_str()), (0, ""));
    let page = fs::read_to_string(pages.join("customer-relay.1"))?;
    ensure!(page.contains("Exit codes: 0 done"), "{page}");
    for command in &commands {
        let page = fs::read_to_string(pages.join(format!("customer-relay-{command}.1")))?;
        ensure!(page.contains(".TH"), "{command}: {page}");
    }
    Ok(())
}

async fn help_is_exit_0_for_every_command(_: Context) -> Result<()> {
    for command in [
        &[][..],
        &["run"],
        &["check"],
        &["explain"],
        &["topology"],
        &["topology", "apply"],
        &["publish"],
        &["customer", "forget"],
        &["ledger", "migrate"],
        &["config"],
        &["healthy"],
        &["completions"],
        &["man"],
    ] {
        let (code, out, err) =
            process::run(PROGRAM, &[command, &["--help"]].concat(), &[], b"").await?;
        assert_eq!((code, err.as_str()), (0, ""), "{command:?}");
        assert!(out.contains("Usage: customer-relay"), "{out}");
    }
    let (code, out, _) = process::run(PROGRAM, &["--version"], &[], b"").await?;
    assert_eq!((code, out.trim()), (0, concat!("customer-relay ", env!("CARGO_PKG_VERSION"))));
    let simulator = env!("CARGO_BIN_EXE_portal-simulator");
    let (code, out, _) = process::run(simulator, &["--help"], &[], b"").await?;
    assert_eq!(code, 0);
    assert!(out.contains("/control/faults"), "{out}");
    Ok(())
}

async fn what_is_not_understood_is_exit_64(_: Context) -> Result<()> {
    for args in [
        &[][..],
        &["rnu"],
        &["run", "--fast"],
        &["publish"],
        &["publish", "-", "--rate", "0"],
        &["topology"],
        &["config", "--json", "--defaults"],
    ] {
        let (code, out, err) = process::run(PROGRAM, args, &[], b"").await?;
        assert_eq!((code, out.as_str()), (64, ""), "{args:?}: {err}");
        assert!(err.contains("Usage") || err.contains("--help"), "{args:?}: {err}");
    }
    Ok(())
}

async fn check_judges_a_sample_of_events_offline(_: Context) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("sample.jsonl");
    let bad = |n: usize| json!({"entity_id": format!("B{n}"), "city": "New Delhi"}).to_string();
    let lines = [line(1), bad(1), String::new(), bad(2), "no event".into(), line(2)];
    fs::write(&file, lines.join("\n"))?;
    let file = file.to_str().unwrap();
    let (code, out, err) =
        process::run(PROGRAM, &["check", "--json", "--sample", file], &[], b"").await?;
    let told: Value = serde_json::from_str(&out)?;
    assert_eq!((code, &told["events"], &told["refused"]), (1, &json!(5), &json!(3)), "{err}");
    let groups = told["groups"].as_array().unwrap();
    let city = groups.iter().find(|group| group["field"] == "city").unwrap();
    assert_eq!((&city["count"], &city["first_line"]), (&json!(2), &json!(2)));
    assert_eq!(city["setting"], "fields.city_spaces");
    fs::write(file, line(1))?;
    let (code, out, _) = process::run(PROGRAM, &["check", "--sample", file], &[], b"").await?;
    assert!(code == 0 && out.starts_with("1 events, 0 would be dead letters"), "{code}: {out}");
    assert!(out.contains("1  lack what order.require asks for"), "{out}");
    Ok(())
}
