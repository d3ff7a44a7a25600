//! One storm: hostile messages and a stream of plain events at once, while the relay's health is
//! watched; then what there is at all ends.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::case::{Case, End, Via};
use crate::support::bed::Bed;
use crate::support::eventually;
use crate::support::process::Process;
use crate::support::queues::{Queues, Taken, holds_events};
use crate::support::relay;
use crate::support::traffic;
use crate::telemetry::{get, serve};

/// Between two hostile messages, and between two plain ones.
const HOSTILE_PAUSE: Duration = Duration::from_millis(12);
const PLAIN_PAUSE: Duration = Duration::from_millis(20);
const WATCH_PAUSE: Duration = Duration::from_millis(200);
/// How long the last ones may take.
const SETTLES_WITHIN: Duration = Duration::from_secs(40);

/// What there is at the ends.
pub struct Evidence {
    pub letters: Vec<Taken>,
    pub waiting: Vec<Taken>,
    /// The portal's customers.
    pub customers: HashMap<String, Value>,
    /// The event ids that the relay's log says to be applied.
    pub said_applied: HashSet<String>,
    /// Milliseconds from publishing to the portal, of each plain event that came through.
    pub plain: Vec<Option<i64>>,
    /// What the ports said that they should not.
    pub complaints: Vec<String>,
    pub peak_memory_kib: u64,
    pub calls: usize,
    pub output: String,
}

/// Sends all and waits for the ends. The relay is stopped then.
pub async fn storm(bed: &mut Bed, cases: &[Case]) -> Result<Evidence> {
    for rule in cases.iter().filter_map(|case| case.answer.clone()) {
        bed.simulator.fault(rule).await?;
    }
    let (relay, port) = serve(bed).await?;
    let url = bed.broker_url().to_owned();
    // The exchange is declared when the relay consumes.
    eventually("a relay that consumes", Duration::from_secs(30), || async {
        Ok(bed.output().contains("\"consuming\"").then_some(()))
    })
    .await?;
    let done = CancellationToken::new();
    let queues = Queues::connect(&url).await?;
    let hostile = async {
        let sent = send(&Queues::connect(&url).await?, bed, cases).await;
        let settled = match sent {
            Ok(()) => settle(bed, &port, cases).await,
            Err(error) => Err(error),
        };
        done.cancel();
        settled
    };
    let (settled, plain, complaints) =
        tokio::join!(hostile, send_plain(&queues, bed, &done), watch(&port, &done));
    let plain = plain?;
    if let Err(error) = settled {
        return Err(error.context(format!("the ports: {complaints:?}")));
    }
    let mut evidence = collect(bed, relay, &plain).await?;
    evidence.complaints = complaints;
    Ok(evidence)
}

async fn send(queues: &Queues, bed: &Bed, cases: &[Case]) -> Result<()> {
    let (exchange, work) = (bed.exchange(), bed.queue("work"));
    for case in cases {
        for _ in 0..case.copies {
            let (to, key) = match case.via {
                Via::Exchange => (exchange.as_str(), "customer.updated"),
                Via::WorkQueue => ("", work.as_str()),
            };
            let sent = queues.publish(to, key, case.properties.clone(), &case.body).await;
            sent.with_context(|| format!("the broker does not take {case}"))?;
        }
        tokio::time::sleep(HOSTILE_PAUSE).await;
    }
    Ok(())
}

/// Plain events of customers H0, H1, …, until all is done; when each was published.
async fn send_plain(queues: &Queues, bed: &Bed, done: &CancellationToken) -> Result<Vec<i64>> {
    let mut published = Vec::new();
    while !done.is_cancelled() {
        let number = published.len();
        let event =
            bed.event(&format!("h{number}"), &format!("H{number}"), &json!({"city": "Kochi"}));
        published.push(jiff::Timestamp::now().as_millisecond());
        queues.publish_events(&bed.exchange(), &[event]).await?;
        tokio::time::sleep(PLAIN_PAUSE).await;
    }
    Ok(published)
}

/// Looks at the ports until all is done; what is not as it should be.
async fn watch(port: &str, done: &CancellationToken) -> Vec<String> {
    let mut complaints = Vec::new();
    let began = Instant::now();
    while !done.is_cancelled() {
        for path in ["livez", "readyz"] {
            let said = get(&format!("{port}/{path}")).await;
            if !matches!(said, Ok((200, _))) {
                complaints.push(format!("{:?} {path}: {said:?}", began.elapsed()));
            }
        }
        match figures(port).await {
            Ok(figures) if figures.get("customer_relay_ledger_healthy") == Some(&1.0) => {}
            other => complaints.push(format!("{:?} the ledger: {other:?}", began.elapsed())),
        }
        tokio::time::sleep(WATCH_PAUSE).await;
    }
    complaints
}

/// The metrics without labels.
async fn figures(port: &str) -> Result<BTreeMap<String, f64>> {
    let (_, text) = get(&format!("{port}/metrics")).await?;
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    Ok(pairs.filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?))).collect())
}

/// Waits until nothing moves but what is not due.
async fn settle(bed: &Bed, port: &str, cases: &[Case]) -> Result<()> {
    let waits = cases.iter().filter(|case| case.may(&End::Waits)).count();
    let letters = |cases: &[Case]| {
        let must = |case: &&Case| !case.may(&End::Applied) && !case.may(&End::Waits);
        u32::try_from(cases.iter().filter(must).count()).unwrap_or(u32::MAX)
    };
    let (expected, mut quiet) = (letters(cases), 0);
    let moving = queues(bed).await?.into_iter().filter(|queue| !is_dead(queue));
    let moving: Vec<String> = moving.collect();
    let settled = eventually("all events at their ends", SETTLES_WITHIN, || {
        quiet += 1;
        let looks = quiet;
        let moving = &moving;
        async move {
            let mut left = 0;
            for queue in moving {
                left += bed.queues.depth(queue).await? as usize;
            }
            let in_hand = figures(port).await?.get("customer_relay_deliveries_in_hand").copied();
            let dead = bed.queues.depth(&bed.queue("dead")).await?;
            let is_settled = left <= waits && in_hand.is_some_and(|n| n <= 3.0) && dead >= expected;
            tokio::time::sleep(Duration::from_millis(300)).await;
            Ok((is_settled && looks > 3).then_some(()))
        }
    })
    .await;
    // What is missing is told by name at the account.
    drop(settled);
    Ok(())
}

async fn queues(bed: &Bed) -> Result<Vec<String>> {
    let (code, out, err) = bed.settings.command(&["topology", "show", "--json"], b"").await?;
    ensure!(code == 0, "topology show: exit {code}\n{err}");
    let topology: Value = serde_json::from_str(&out)?;
    let queues = topology["queues"].as_array().context("no queues")?;
    let names = queues.iter().filter_map(|queue| queue["name"].as_str().map(str::to_owned));
    Ok(names.filter(|name| holds_events(name)).collect())
}

async fn collect(bed: &Bed, relay: Process, plain: &[i64]) -> Result<Evidence> {
    let peak_memory_kib = relay.peak_memory_kib()?;
    relay::stop(relay).await?;
    let calls = traffic::calls(bed).await?;
    let mut first: HashMap<&str, i64> = HashMap::new();
    for call in calls.iter().filter(|call| call["applied"] == json!(true)) {
        let customer = call["entity_id"].as_str().unwrap_or_default();
        first.entry(customer).or_insert_with(|| traffic::began(call));
    }
    let came = |(number, published): (usize, &i64)| {
        first.get(format!("H{number}").as_str()).map(|began| began - published)
    };
    let plain = plain.iter().enumerate().map(came).collect();
    let output = bed.output();
    let applied = traffic::lines(&output, "\"applied\"").into_iter();
    let said_applied =
        applied.filter_map(|line| Some(line["event_id"].as_str()?.to_owned())).collect();
    let customers = bed.simulator.customers().await?.into_iter();
    let customers = customers
        .map(|customer| {
            let id = customer["fields"]["entity_id"].as_str().unwrap_or_default();
            (id.to_owned(), customer)
        })
        .collect();
    let letters = bed.queues.look_at_all(&bed.queue("dead")).await?;
    let waiting = take_waiting(bed).await?;
    let complaints = Vec::new();
    let calls = calls.len();
    Ok(Evidence {
        letters,
        waiting,
        customers,
        said_applied,
        plain,
        complaints,
        peak_memory_kib,
        calls,
        output,
    })
}

/// Takes what waits, also what comes back from a tier meanwhile.
async fn take_waiting(bed: &Bed) -> Result<Vec<Taken>> {
    let mut waiting = Vec::new();
    let end = Instant::now() + Duration::from_secs(2);
    let moving = queues(bed).await?;
    while Instant::now() < end {
        for queue in moving.iter().filter(|queue| !is_dead(queue)) {
            waiting.extend(bed.queues.take_all(queue).await?);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(waiting)
}

#[expect(clippy::case_sensitive_file_extension_comparisons, reason = "the name of a queue")]
fn is_dead(queue: &str) -> bool {
    queue.ends_with(".dead")
}
