//! A port's visitors cannot hurt: whatever they do, the others are answered, the relay keeps the
//! descriptors that it needs, and every connection ends.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use customer_relay::descriptors;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{Context, suite};
use crate::support::bed::LIMIT;
use crate::support::eventually;
use crate::support::process::{self, Process};
use crate::support::queues::Queues;
use crate::support::relay::{self, PROGRAM, Settings};
use crate::support::simulator::Simulator;
use crate::support::visitors::{
    Crowd, GoodClient, HALF_A_HEAD, NO_BODY, admin_port, ask, closed, connect, request,
};

suite!(NoBroker:
    half_a_head_is_closed_after_five_seconds,
    a_head_that_drips_gets_no_more_time,
    a_later_request_has_the_same_limit_from_its_first_byte,
    an_idle_connection_is_closed,
    a_body_that_never_comes_is_not_waited_for,
    what_is_too_large_is_refused,
    a_client_that_does_not_read_is_given_up,
    pipelined_requests_are_answered_in_order,
    at_the_cap_the_oldest_without_a_request_makes_room,
    a_good_client_beside_all_others_is_answered_within_a_second,
    neither_page_starves_the_other,
    a_port_without_descriptors_neither_ends_nor_spins,
    a_setting_that_leaves_no_reserve_is_refused;
OwnBroker:
    five_thousand_half_open_connections_keep_no_relay_from_its_broker;
Broker:
    check_says_how_many_files_may_be_open,
);

const SECOND: Duration = Duration::from_secs(1);

/// A relay with an admin port, and nothing else that works.
struct Visited {
    relay: Process,
    port: SocketAddr,
    _simulator: Simulator,
    _state: tempfile::TempDir,
}

async fn settings(more: &[(&str, &str)]) -> Result<(Settings, Simulator, tempfile::TempDir)> {
    let (simulator, state) = (Simulator::start(&[]).await?, tempfile::tempdir()?);
    let mut settings = Settings::new("amqp://guest:guest@127.0.0.1:1/%2f", "ports", &simulator);
    settings.keep_ledger_in(state.path()).set("log.filter", "info,lapin=off");
    settings.set("admin.listen", "127.0.0.1:0").set("admin.token", "token-for-operators");
    for (key, value) in more {
        settings.set(key, value);
    }
    Ok((settings, simulator, state))
}

impl Visited {
    async fn start(more: &[(&str, &str)]) -> Result<Visited> {
        let (settings, simulator, state) = settings(more).await?;
        let mut relay = settings.launch_relay()?;
        let port = admin_port(&mut relay).await?;
        Ok(Visited { relay, port, _simulator: simulator, _state: state })
    }

    async fn end(self) -> Result<String> {
        relay::stop(self.relay).await
    }
}

/// A relay that may open no more than so many files.
fn launch_with_few_files(settings: &Settings, files: u64) -> Result<Process> {
    let script = format!("ulimit -n {files} && exec \"$0\" run");
    let args = ["-c".to_owned(), script, PROGRAM.to_owned()];
    Process::start("/bin/sh", &args, settings.environment())
}

/// The value of a metric's series.
async fn figure(port: SocketAddr, series: &str) -> Result<u64> {
    let (text, _) = ask(port, "/metrics").await?;
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    Ok(line.with_context(|| format!("{series} is not in\n{text}"))?.trim().parse()?)
}

async fn refused(port: SocketAddr, reason: &str) -> Result<u64> {
    let name = "customer_relay_admin_connections_refused_total";
    figure(port, &format!("{name}{{reason=\"{reason}\"}}")).await
}

/// Waits until nobody is left but who asks.
async fn all_are_gone(port: SocketAddr, limit: Duration) -> Result<()> {
    eventually("the last connection to end", limit, || async {
        // What is read may be a tenth of a second old.
        tokio::time::sleep(Duration::from_millis(110)).await;
        Ok((figure(port, "customer_relay_admin_connections").await? <= 1).then_some(()))
    })
    .await
}

/// Descriptors that a process has open.
fn open_files(relay: &Process) -> Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{}/fd", relay.pid()))?.count())
}

async fn half_a_head_is_closed_after_five_seconds(_: Context) -> Result<()> {
    let visited = Visited::start(&[]).await?;
    let mut silent = connect(visited.port, b"").await?;
    let mut half = connect(visited.port, HALF_A_HEAD).await?;
    for stream in [&mut silent, &mut half] {
        let (answer, _) = closed(stream, 7 * SECOND).await?;
        assert_eq!(answer, "");
    }
    assert_eq!(refused(visited.port, "slow-head").await?, 2);
    visited.end().await.map(drop)
}

async fn a_head_that_drips_gets_no_more_time(_: Context) -> Result<()> {
    let visited = Visited::start(&[]).await?;
    let begun = Instant::now();
    let mut stream = connect(visited.port, b"").await?;
    for byte in HALF_A_HEAD {
        if stream.write_all(&[*byte]).await.is_err() {
            break;
        }
        tokio::time::sleep(SECOND).await;
    }
    let lasted = begun.elapsed();
    assert!(lasted > 4 * SECOND && lasted < 9 * SECOND, "{lasted:?}");
    assert_eq!(refused(visited.port, "slow-head").await?, 1);
    visited.end().await.map(drop)
}

/// Reads one answer of a connection that stays open.
async fn answered(stream: &mut tokio::net::TcpStream, end: &str) -> Result<String> {
    let mut answer = Vec::new();
    let read = async {
        while !answer.ends_with(end.as_bytes()) {
            ensure!(stream.read_buf(&mut answer).await? > 0, "ended before {end:?}");
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(LIMIT, read).await??;
    Ok(String::from_utf8(answer)?)
}

async fn a_later_request_has_the_same_limit_from_its_first_byte(_: Context) -> Result<()> {
    let visited = Visited::start(&[]).await?;
    let mut stream = connect(visited.port, &request("/livez")).await?;
    answered(&mut stream, "alive\n").await?;
    // Longer than a head may take: between two requests there is more time.
    tokio::time::sleep(6 * SECOND).await;
    stream.write_all(HALF_A_HEAD).await?;
    let (answer, lasted) = closed(&mut stream, 7 * SECOND).await?;
    assert_eq!(answer, "");
    assert!(lasted > 4 * SECOND, "{lasted:?}");
    assert_eq!(refused(visited.port, "slow-head").await?, 1);
    visited.end().await.map(drop)
}

async fn an_idle_connection_is_closed(_: Context) -> Result<()> {
    let visited = Visited::start(&[("admin.idle_timeout", "2s")]).await?;
    let mut stream = connect(visited.port, &request("/livez")).await?;
    answered(&mut stream, "alive\n").await?;
    tokio::time::sleep(SECOND).await;
    stream.write_all(&request("/livez")).await?;
    answered(&mut stream, "alive\n").await?;
    let (answer, lasted) = closed(&mut stream, 4 * SECOND).await?;
    assert_eq!(answer, "");
    assert!(lasted > SECOND, "{lasted:?}");
    for reason in ["slow-head", "displaced"] {
        assert_eq!(refused(visited.port, reason).await?, 0, "{reason}");
    }
    visited.end().await.map(drop)
}

async fn a_body_that_never_comes_is_not_waited_for(_: Context) -> Result<()> {
    let visited = Visited::start(&[]).await?;
    let mut stream = connect(visited.port, NO_BODY).await?;
    let (answer, lasted) = closed(&mut stream, 7 * SECOND).await?;
    assert_eq!(answer, "");
    assert!(lasted > 4 * SECOND, "{lasted:?}");
    assert_eq!(refused(visited.port, "slow-body").await?, 1);
    visited.end().await.map(drop)
}

async fn what_is_too_large_is_refused(_: Context) -> Result<()> {
    let visited = Visited::start(&[]).await?;
    let long = format!("GET /livez HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(9000));
    let many = format!("GET /livez HTTP/1.1\r\nHost: x\r\n{}\r\n", "X: x\r\n".repeat(100));
    let announced = "POST /customer/show HTTP/1.1\r\nHost: x\r\nContent-Length: 16385\r\n\r\n";
    let chunks = format!("{:x}\r\n{}\r\n", 10_000, "x".repeat(10_000)).repeat(2);
    let head = "POST /customer/show HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    let came = format!("{head}{chunks}");
    for (bytes, status) in [(&*long, 431), (&many, 431), (announced, 413), (&came, 413)] {
        let mut stream = connect(visited.port, bytes.as_bytes()).await?;
        let (text, _) = closed(&mut stream, SECOND).await?;
        ensure!(text.starts_with(&format!("HTTP/1.1 {status}")), "{status}, not {text:?}");
    }
    assert_eq!(refused(visited.port, "too-large").await?, 4);
    visited.end().await.map(drop)
}

async fn a_client_that_does_not_read_is_given_up(_: Context) -> Result<()> {
    let visited = Visited::start(&[("admin.answer_timeout", "2s")]).await?;
    let mut stream = connect(visited.port, &request("/metrics").repeat(200)).await?;
    eventually("the end of its connection", 10 * SECOND, || async {
        Ok((refused(visited.port, "slow-reader").await? == 1).then_some(()))
    })
    .await?;
    let (answers, _) = closed(&mut stream, SECOND).await?;
    let count = answers.matches("HTTP/1.1 200 OK").count();
    ensure!((1..200).contains(&count), "{count} answers were written");
    all_are_gone(visited.port, SECOND).await?;
    visited.end().await.map(drop)
}

async fn pipelined_requests_are_answered_in_order(_: Context) -> Result<()> {
    let visited = Visited::start(&[]).await?;
    eventually("a relay that is not ready", LIMIT, || async {
        Ok(ask(visited.port, "/readyz").await?.0.starts_with("HTTP/1.1 503").then_some(()))
    })
    .await?;
    let pages = ["/livez", "/readyz", "/metrics", "/nowhere"];
    let all: Vec<u8> = pages.iter().cycle().take(100).flat_map(|page| request(page)).collect();
    let mut stream = connect(visited.port, &all).await?;
    stream.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await?;
    let (answers, _) = closed(&mut stream, 5 * SECOND).await?;
    let statuses: Vec<&str> =
        answers.match_indices("HTTP/1.1 ").map(|(at, _)| &answers[at + 9..at + 12]).collect();
    assert_eq!(statuses.len(), 101);
    for (number, found) in statuses[..100].chunks(4).enumerate() {
        assert_eq!(found, ["200", "503", "200", "404"], "{number}");
    }
    visited.end().await.map(drop)
}

async fn at_the_cap_the_oldest_without_a_request_makes_room(_: Context) -> Result<()> {
    let visited = Visited::start(&[("admin.max_connections", "8")]).await?;
    // Complete heads: they wait for their bodies.
    let mut with_heads = Vec::new();
    for _ in 0..4 {
        with_heads.push(connect(visited.port, NO_BODY).await?);
    }
    let mut halves = Vec::new();
    for _ in 0..10 {
        halves.push(connect(visited.port, HALF_A_HEAD).await?);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for half in &mut halves[..6] {
        closed(half, SECOND).await?;
    }
    // Each one who asks displaces one more, and is gone again.
    for _ in 0..2 {
        ensure!(ask(visited.port, "/livez").await?.0.ends_with("alive\n"));
    }
    assert_eq!(refused(visited.port, "displaced").await?, 7);
    for (number, stream) in with_heads.iter_mut().chain(&mut halves[7..]).enumerate() {
        let still_open = closed(stream, Duration::from_millis(50)).await.is_err();
        ensure!(still_open, "{number} is closed");
    }
    visited.end().await.map(drop)
}

/// The longest that a good client may wait: a second, or more on a machine where even alone it waits.
async fn longest_wait(port: SocketAddr) -> Result<Duration> {
    let client = GoodClient::start(port, "/livez");
    tokio::time::sleep(3 * SECOND).await;
    Ok(SECOND.max(20 * client.stop().await?.1))
}

async fn a_good_client_beside_all_others_is_answered_within_a_second(_: Context) -> Result<()> {
    descriptors::raise_limit();
    let visited = Visited::start(&[]).await?;
    let limit = longest_wait(visited.port).await?;
    let clients = ["/livez", "/metrics"].map(|path| GoodClient::start(visited.port, path));
    let unread: &'static [u8] = request("/metrics").repeat(200).leak();
    let crowds = [(&b""[..], 100), (HALF_A_HEAD, 300), (NO_BODY, 100)]
        .map(|(bytes, count)| Crowd::start(visited.port, count, bytes, 2 * SECOND));
    let mut never_read = Vec::new();
    for _ in 0..20 {
        never_read.push(connect(visited.port, unread).await);
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    let files = open_files(&visited.relay)?;
    ensure!(files < 256 + 30, "{files} descriptors are open");
    drop(crowds);
    for client in clients {
        let (count, longest) = client.stop().await?;
        ensure!(count > 10 && longest < limit, "{count} answers, the slowest in {longest:?}");
    }
    // Who does not read has ten seconds; his connection is still open at his end.
    all_are_gone(visited.port, 20 * SECOND).await?;
    drop(never_read);
    visited.end().await.map(drop)
}

async fn neither_page_starves_the_other(_: Context) -> Result<()> {
    const HAMMERING: u32 = 30;
    let visited = Visited::start(&[]).await?;
    for (hammered, watched) in [("/metrics", "/livez"), ("/livez", "/metrics")] {
        let hammering: Vec<GoodClient> =
            (0..HAMMERING).map(|_| GoodClient::start(visited.port, hammered)).collect();
        let client = GoodClient::start(visited.port, watched);
        tokio::time::sleep(4 * SECOND).await;
        let (count, longest) = client.stop().await?;
        let mut others = 0;
        for client in hammering {
            others += client.stop().await?.0;
        }
        // A share like everybody's, however busy the machine is.
        let share = others / HAMMERING / 3;
        ensure!(count > share, "{watched}: {count} answers, the slowest in {longest:?}; {others}");
    }
    visited.end().await.map(drop)
}

async fn a_port_without_descriptors_neither_ends_nor_spins(_: Context) -> Result<()> {
    let mut visited = Visited::start(&[]).await?;
    // Its ledger is open by then.
    visited.relay.line_with("no session with the broker", LIMIT).await?;
    let pid = Pid::from_raw(i32::try_from(visited.relay.pid())?).context("no process")?;
    let limit = |current| Rlimit { current: Some(current), maximum: Some(1024) };
    prlimit(Some(pid), Resource::Nofile, limit(3))?;
    let mut waiting = Vec::new();
    for _ in 0..10 {
        waiting.push(connect(visited.port, &request("/livez")).await?);
    }
    let before = visited.relay.cpu_time()?;
    tokio::time::sleep(3 * SECOND).await;
    let used = visited.relay.cpu_time()?.saturating_sub(before);
    ensure!(used < SECOND, "{used:?} of CPU time in three seconds");
    ensure!(visited.relay.output().contains("cannot accept a connection to the admin port"));
    prlimit(Some(pid), Resource::Nofile, limit(1024))?;
    for stream in &mut waiting {
        answered(stream, "alive\n").await?;
    }
    visited.end().await.map(drop)
}

async fn a_setting_that_leaves_no_reserve_is_refused(_: Context) -> Result<()> {
    let (mut settings, _simulator, _state) = settings(&[]).await?;
    settings.set("admin.max_connections", "1000");
    let script = "ulimit -n 1024 && exec \"$0\" run";
    let ended =
        process::run("/bin/sh", &["-c", script, PROGRAM], settings.environment(), b"").await?;
    let (code, _, err) = ended;
    assert_eq!(code, 64, "{err}");
    for part in ["admin.max_connections: 1000 leaves no reserve", "832 at most", "LimitNOFILE"] {
        ensure!(err.contains(part), "{part} is not in {err}");
    }
    // As many as may be; and a limit that is only soft is raised.
    for (files, visitors) in [("-n 1024", "832"), ("-S -n 300", "1000")] {
        settings.set("admin.max_connections", visitors);
        let script = format!("ulimit {files} && exec \"$0\" run");
        let args = ["-c".to_owned(), script, PROGRAM.to_owned()];
        let mut relay = Process::start("/bin/sh", &args, settings.environment())?;
        let line = relay.line_with("open files: at most", LIMIT).await?;
        ensure!(
            line.contains(&format!("visitors of the admin port get at most {visitors}")),
            "{line}"
        );
        admin_port(&mut relay).await?;
        relay::stop(relay).await?;
    }
    Ok(())
}

async fn check_says_how_many_files_may_be_open(context: Context) -> Result<()> {
    let mut bed = context.bed().await?;
    bed.declare().await?;
    bed.settings.set("admin.listen", "127.0.0.1:0").set("admin.token", "t");
    for (visitors, expected) in [("200", 0), ("300", 1)] {
        bed.settings.set("admin.max_connections", visitors);
        let script = "ulimit -n 400 && exec \"$0\" check";
        let args = ["-c", script, PROGRAM];
        let (code, out, err) =
            process::run("/bin/sh", &args, bed.settings.environment(), b"").await?;
        assert_eq!(code, expected, "{out}{err}");
        let figures = format!(
            "note   open files: at most 400; 192 are kept for broker, portal and ledger, visitors of the \
             admin port get at most {visitors}"
        );
        ensure!(out.contains(&figures), "{out}");
        let fault = "FAULT  admin.max_connections: 300 leaves no reserve";
        assert_eq!(out.contains(fault), code == 1, "{out}");
    }
    bed.finish().await
}

async fn five_thousand_half_open_connections_keep_no_relay_from_its_broker(
    context: Context,
) -> Result<()> {
    const VISITORS: u32 = 5000;
    let files = descriptors::raise_limit();
    ensure!(files > u64::from(VISITORS) + 500, "the tests themselves may open {files} files only");
    let mut broker = context.own_broker().await?;
    let mut bed = context.bed_on(&broker, &[]).await?;
    bed.settings.set("admin.listen", "127.0.0.1:0").set("admin.token", "t");
    let mut relay = launch_with_few_files(&bed.settings, 1024)?;
    let port = admin_port(&mut relay).await?;
    relay.line_with("\"consuming\"", LIMIT).await?;
    let before = (resident(&relay)?, open_files(&relay)?);
    let client = GoodClient::start(port, "/livez");
    let crowd = Crowd::start(port, VISITORS, HALF_A_HEAD, 15 * SECOND);
    let made = async |count| {
        let what = format!("{count} half-open connections");
        eventually(&what, LIMIT, || async { Ok((crowd.made() >= count).then_some(())) }).await
    };
    made(VISITORS / 5).await?;
    broker.kill().await?;
    broker.start_again().await?;
    let back = Instant::now();
    consumes_again(&relay).await?;
    let took = back.elapsed();
    ensure!(took < 5 * SECOND, "consuming {took:?} after the broker was back");
    bed.queues = Queues::connect(&broker.url()).await?;
    bed.publish(&bed.event("e1", "C1", &json!({"city": "Kochi"}))).await?;
    bed.applied("C1", 1).await?;
    made(VISITORS).await?;
    let at = (resident(&relay)?, open_files(&relay)?);
    ensure!(at.1 < 256 + 100, "{} descriptors are open", at.1);
    let (answers, longest) = client.stop().await?;
    // A broker that starts takes all of the processors; a probe waits for so long.
    ensure!(answers > 20 && longest < 5 * SECOND, "{answers} answers, the slowest in {longest:?}");
    let made = crowd.made();
    drop(crowd);
    all_are_gone(port, 10 * SECOND).await?;
    let after = (resident(&relay)?, open_files(&relay)?);
    println!(
        "KiB resident and descriptors: before {before:?}, with {VISITORS} half-open connections {at:?}, \
         after {after:?}; {made} connections made, {answers} of /livez answered, the slowest in \
         {longest:?}; consuming {took:?} after the broker was back"
    );
    bed.end(relay).await?;
    broker.stop().await
}

async fn consumes_again(relay: &Process) -> Result<()> {
    eventually("the relay to consume again", LIMIT, || async {
        let count = relay.output().matches("\"message\":\"consuming\"").count();
        Ok((count >= 2).then_some(()))
    })
    .await
}

/// Resident memory in KiB.
fn resident(relay: &Process) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", relay.pid()))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
    Ok(line.split_whitespace().nth(1).context("no figure")?.parse()?)
}
