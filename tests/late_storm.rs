//! Everything that can make a late call win, at once and by dice: calls that are applied long after
//! anybody waits for them, relays that are killed or stopped for longer than a lease, links that are
//! cut, outages, two sources whose events have the same ids, messages that come twice, and dead
//! letters that are edited and put back meanwhile. The portal ends with the newest of every field.
//!
//! `TEST_LONG=1 TEST_RUNS=50` draws fifty storms of each kind at each broker; `TEST_SEED` draws one again.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

use crate::dead_commands::{put_all_back, told};
use crate::harness::{Context, Needs, Run, Suite};
use crate::support::bed::Bed;
use crate::support::chaos::{ChaosProxy, Fault};
use crate::support::crm::{Fields, History};
use crate::support::process::Process;
use crate::support::traffic::is_long;
use crate::support::{held, relay, seed};

/// That of three relays is for `TEST_LONG=1`: about one of thirty still ends wrong.
pub fn suite() -> Suite {
    let sqlite: Run = |context| {
        Box::pin(active_and_standby_with_sqlite_end_right_in_a_storm_of_late_calls(context))
    };
    let postgres: Run =
        |context| Box::pin(three_relays_with_postgres_end_right_in_a_storm_of_late_calls(context));
    let mut all: Suite = vec![("active_and_standby_with_sqlite", Needs::Broker, sqlite)];
    if is_long() {
        all.push(("three_relays_with_postgres", Needs::Postgres, postgres));
    }
    all
}

const EVENTS: usize = 160;
const CUSTOMERS: usize = 16;
/// So many events are published at once, in any order.
const BATCH: usize = 8;
/// How long all that is left may take, with retries, what is sent again, and letters put back.
const CALM: Duration = Duration::from_mins(3);
/// The latest that a call lands after it began; `portal.settle_after` is longer.
const LATEST: u64 = 5000;
/// A lease of these settings outlasts its attempt by 5 s, and an attempt takes 2.4 s at most.
const LONGER_THAN_A_LEASE: std::ops::Range<u64> = 8000..11_000;

/// A relay, or where one will be.
struct Seat {
    relay: Option<Process>,
    /// When it goes on, or is started again.
    due: Option<Instant>,
    broker: ChaosProxy,
}

/// One storm under way.
struct Storm {
    bed: Bed,
    dice: StdRng,
    history: History,
    seats: Vec<Seat>,
    /// How to reach a database that the relays share.
    database: Option<(ChaosProxy, String)>,
    /// The newest edit of an event: how often it was edited, and its city then.
    edits: BTreeMap<String, (u64, String)>,
    did: BTreeMap<&'static str, usize>,
}

async fn active_and_standby_with_sqlite_end_right_in_a_storm_of_late_calls(
    context: Context,
) -> Result<()> {
    weather(&context, 2, None).await
}

async fn three_relays_with_postgres_end_right_in_a_storm_of_late_calls(
    context: Context,
) -> Result<()> {
    let url = context.postgres().await?.database().await?;
    let address = url.split(['@', '/']).nth(3).context("a database's address")?;
    let proxy = ChaosProxy::start(address).await?;
    weather(&context, 3, Some((proxy, url.clone()))).await
}

async fn weather(
    context: &Context,
    relays: usize,
    database: Option<(ChaosProxy, String)>,
) -> Result<()> {
    let seed = seed()?;
    let mut storm = Storm::gather(context, relays, database, seed).await?;
    storm.rage().await?;
    storm.calm_down(context).await.with_context(|| format!("TEST_SEED={seed}"))?;
    let wrong = storm.wrong_fields().await?;
    println!("TEST_SEED={seed}: {:?}, {} edited", storm.did, storm.edits.len());
    if !wrong.is_empty() {
        let log = storm.keep_log(seed).await?;
        bail!(
            "TEST_SEED={seed}: {} wrong: {wrong:?}; the relays' log: {}",
            wrong.len(),
            log.display()
        );
    }
    storm.end().await
}

/// Two sources that count their events alike: each id is two events'.
fn two_sources(history: &mut History) {
    for (number, event) in history.events.iter_mut().enumerate() {
        event["id"] = json!(format!("e{}", number / 2));
        event["source"] = json!(["crm.one", "crm.two"][number % 2]);
    }
}

/// An event, or its letter: ids are not unique here.
fn number(event: &Value) -> String {
    event["sequence"].as_str().unwrap_or_default().to_owned()
}

impl Storm {
    async fn gather(
        context: &Context,
        relays: usize,
        database: Option<(ChaosProxy, String)>,
        seed: u64,
    ) -> Result<Storm> {
        let mut dice = StdRng::seed_from_u64(seed);
        let mut bed = context.bed_with(&["--latency", "30ms", "--log-requests", "100000"]).await?;
        for (key, value) in [
            ("portal.timeout", "700ms"),
            ("portal.settle_after", "6s"),
            ("retry.immediate_retries", if dice.random() { "0" } else { "1" }),
            ("retry.immediate_budget", "1s"),
            ("retry.max_attempts", "2"),
            ("broker.operation_timeout", "5s"),
            ("broker.prefetch", "20"),
            ("worker.grace_period", "3s"),
        ] {
            bed.settings.set(key, value);
        }
        if dice.random() {
            // Control calls are customers' own updates then.
            bed.settings.set("portal.probe_customer", "");
        }
        if let Some((_, url)) = &database {
            bed.settings.set("ledger.url", url);
        }
        bed.declare().await?;
        // Of some customers every second call, and a third of the others is refused: many of their
        // events become dead letters while a call of them is under way.
        let of_some = json!({"entity_prefix": "C1", "every": 2});
        let late = json!({"kind": "late", "ms": 2500});
        bed.simulator.fault(json!({"match": of_some, "fault": late})).await?;
        let of_some =
            json!({"entity_prefix": "C1", "probability": 0.3, "seed": dice.random::<u32>()});
        let refused = json!({"kind": "body_status", "status": 400});
        bed.simulator.fault(json!({"match": of_some, "fault": refused})).await?;
        for (share, fault) in [
            (0.1, json!({"kind": "late", "ms": LATEST})),
            (0.08, json!({"kind": "late", "ms": 2500})),
            (0.08, json!({"kind": "late", "ms": 900})),
            (0.04, json!({"kind": "reset", "apply": true})),
            (0.08, json!({"kind": "status", "code": 503})),
        ] {
            let rule = json!({"match": {"probability": share, "seed": dice.random::<u32>()},
                              "fault": fault});
            bed.simulator.fault(rule).await?;
        }
        let mut history = History::draw("crm", EVENTS, CUSTOMERS, &mut dice);
        two_sources(&mut history);
        let mut seats = Vec::new();
        for _ in 0..relays {
            let broker = ChaosProxy::start(context.broker().await?.address()).await?;
            seats.push(Seat { relay: None, due: Some(Instant::now()), broker });
        }
        let (edits, did) = (BTreeMap::new(), BTreeMap::new());
        Ok(Storm { bed, dice, history, seats, database, edits, did })
    }

    /// Publishes it all in batches, and does something bad between any two.
    async fn rage(&mut self) -> Result<()> {
        let mut events = self.history.events.clone();
        for batch in events.chunks_mut(BATCH) {
            batch.shuffle(&mut self.dice);
            let twice = batch.choose(&mut self.dice).cloned();
            let exchange = self.bed.exchange();
            self.bed.queues.publish_events(&exchange, batch).await?;
            self.bed.queues.publish_events(&exchange, twice.as_slice()).await?;
            self.wake_who_is_due().await?;
            self.strike().await?;
            self.sleep(100..800).await;
        }
        Ok(())
    }

    async fn strike(&mut self) -> Result<()> {
        let seat = self.dice.random_range(0..self.seats.len());
        match self.dice.random_range(0..8) {
            0 => self.kill(seat).await,
            1 => self.stop(seat, 500..4000).await,
            2 => self.stop(seat, LONGER_THAN_A_LEASE).await,
            3 => self.cut(seat).await,
            4 => self.cut_from_the_database().await,
            5 => self.fail_all().await,
            _ => self.put_back().await,
        }
    }

    fn noted(&mut self, what: &'static str) {
        *self.did.entry(what).or_default() += 1;
    }

    async fn sleep(&mut self, milliseconds: std::ops::Range<u64>) {
        let pause = self.dice.random_range(milliseconds);
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }

    fn later(&mut self, milliseconds: std::ops::Range<u64>) -> Instant {
        Instant::now() + Duration::from_millis(self.dice.random_range(milliseconds))
    }

    async fn kill(&mut self, seat: usize) -> Result<()> {
        let Some(relay) = self.seats[seat].relay.take() else { return Ok(()) };
        self.noted("killed");
        self.seats[seat].due = Some(self.later(0..3000));
        relay.kill().await
    }

    async fn stop(&mut self, seat: usize, milliseconds: std::ops::Range<u64>) -> Result<()> {
        if self.seats[seat].due.is_some() {
            return Ok(());
        }
        self.noted("stopped");
        self.seats[seat].due = Some(self.later(milliseconds));
        match &self.seats[seat].relay {
            Some(relay) => relay.signal("STOP").await,
            None => Ok(()),
        }
    }

    async fn wake_who_is_due(&mut self) -> Result<()> {
        for seat in &mut self.seats {
            // A relay that finds no ledger at its start ends, and whoever runs it starts it again.
            if let Some(relay) = &mut seat.relay
                && relay.has_ended()?
            {
                (seat.relay, seat.due) = (None, Some(Instant::now()));
            }
            if seat.due.is_none_or(|due| due > Instant::now()) {
                continue;
            }
            seat.due = None;
            if let Some(relay) = &seat.relay {
                relay.signal("CONT").await?;
                continue;
            }
            // What relays alone are told: operators are near the broker.
            let operators = self.bed.settings.clone();
            let url = seat.broker.through(self.bed.broker_url());
            self.bed.settings.set("broker.url", &url).set("broker.heartbeat", "1s");
            if let Some((proxy, url)) = &self.database {
                self.bed.settings.set("ledger.url", &proxy.through(url));
            }
            seat.relay = Some(self.bed.launch_relay()?);
            self.bed.settings = operators;
        }
        Ok(())
    }

    async fn cut(&mut self, seat: usize) -> Result<()> {
        self.noted("cut from the broker");
        self.seats[seat].broker.set(Fault::Refuse).await;
        self.sleep(0..1500).await;
        self.seats[seat].broker.set(Fault::None).await;
        Ok(())
    }

    async fn cut_from_the_database(&mut self) -> Result<()> {
        let pause = Duration::from_millis(self.dice.random_range(0..1000));
        let Some((proxy, _)) = &self.database else { return Ok(()) };
        proxy.set(Fault::Refuse).await;
        tokio::time::sleep(pause).await;
        proxy.set(Fault::None).await;
        self.noted("cut from the database");
        Ok(())
    }

    /// Long enough for an outage, and for leases to be opened again after it.
    async fn fail_all(&mut self) -> Result<()> {
        self.noted("all failed");
        let fails = json!({"kind": "status", "code": 503});
        let id = self.bed.simulator.add_fault(json!({"fault": fails})).await?;
        self.sleep(300..2000).await;
        self.bed.simulator.remove_fault(id).await
    }

    /// Edits half of the dead letters, and puts all back.
    async fn put_back(&mut self) -> Result<()> {
        let listed = told(&self.bed, &["dead", "list"]).await?;
        let letters = listed["dead_letters"].as_array().cloned().unwrap_or_default();
        for letter in &letters {
            if self.dice.random() {
                self.edit(letter).await?;
            }
        }
        if !letters.is_empty() {
            self.noted("put back");
            put_all_back(&self.bed).await?;
        }
        Ok(())
    }

    async fn edit(&mut self, letter: &Value) -> Result<()> {
        let id = letter["dead_id"].as_str().context("a letter's id")?;
        let revision = letter["revision"].as_u64().context("a letter's revision")? + 1;
        let event = number(&told(&self.bed, &["dead", "show", id]).await?);
        ensure!(!event.is_empty(), "a letter without its sequence: {letter}");
        // One event's edits differ by their number alone: copies of it are edited alike.
        let city = "X".repeat(usize::try_from(revision)?);
        let set = format!("city={city}");
        let args = ["dead", "edit", id, "--set", &set, "--why", "a storm", "--yes"];
        let done = told(&self.bed, &args).await?;
        ensure!(done["edited"] == 1, "{done}");
        let newest = self.edits.entry(event).or_default();
        if newest.0 < revision {
            *newest = (revision, city);
        }
        Ok(())
    }

    /// All is well again; everything comes to its end, dead letters too.
    async fn calm_down(&mut self, context: &Context) -> Result<()> {
        self.bed.simulator.heal().await?;
        let end = Instant::now() + CALM;
        while self.seats.iter().any(|seat| seat.due.is_some()) {
            self.wake_who_is_due().await?;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        loop {
            held::until_all_ended(&self.bed, context.broker().await?, CALM).await?;
            if self.bed.queues.depth(&self.bed.queue("dead")).await? == 0 {
                return Ok(());
            }
            ensure!(Instant::now() < end, "still dead letters after {CALM:?}");
            self.put_back().await?;
        }
    }

    /// In the CRM's order, each event as it was last edited.
    fn expected(&self) -> BTreeMap<String, Fields> {
        let mut expected: BTreeMap<String, Fields> = BTreeMap::new();
        for event in &self.history.events {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let data = event["data"].as_object().into_iter().flatten();
            let mut fields: Fields =
                data.map(|(field, value)| (field.clone(), text(value))).collect();
            if let Some((_, city)) = self.edits.get(&number(event)) {
                fields.insert("city".to_owned(), city.clone());
            }
            let customer = fields.remove("entity_id").unwrap_or_default();
            expected.entry(customer).or_default().extend(fields);
        }
        expected
    }

    async fn wrong_fields(&mut self) -> Result<Vec<String>> {
        self.history.expected = self.expected();
        self.history.wrong_fields(&self.bed).await
    }

    /// What the relays wrote, and what the portal saw of each customer.
    async fn keep_log(&self, seed: u64) -> Result<PathBuf> {
        let mut log = self.bed.output();
        for customer in self.bed.simulator.customers().await? {
            let id = customer["fields"]["entity_id"].as_str().context("a customer's id")?;
            writeln!(log, "{}", self.bed.simulator.customer(id).await?)?;
            for request in self.bed.simulator.requests(id).await? {
                writeln!(log, "{request}")?;
            }
        }
        for event in &self.history.events {
            writeln!(log, "{event}")?;
        }
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("late-storm-{seed}.log"));
        std::fs::write(&path, log)?;
        Ok(path)
    }

    async fn end(self) -> Result<()> {
        for relay in self.seats.into_iter().filter_map(|seat| seat.relay) {
            relay::stop(relay).await?;
        }
        self.bed.queues.take_all(&self.bed.queue("archive")).await?;
        self.bed.finish().await
    }
}
