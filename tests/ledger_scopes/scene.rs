//! A relay at work on a ledger that can be changed by hand.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use customer_relay::ledger::{CustomerKey, Migration, Store, Target};
use serde_json::{Value, json};

use crate::harness::Context;
use crate::ledger_contract::hand::Hand;
use crate::support::bed::{Bed, LIMIT};
use crate::support::eventually;
use crate::support::process::Process;
use crate::telemetry::{get, serve};

pub struct Scene {
    pub bed: Bed,
    pub hand: Hand,
    sent: u32,
}

impl Scene {
    pub async fn with_file(context: Context) -> Result<Scene> {
        let bed = context.bed().await?;
        let hand = Hand::File(bed.state().join("ledger.db"));
        Ok(Scene { bed, hand, sent: 0 })
    }

    pub async fn with_server(context: Context) -> Result<Scene> {
        let mut bed = context.bed().await?;
        let url = context.postgres().await?.database().await?;
        bed.settings.set("ledger.url", &url);
        Ok(Scene { bed, hand: Hand::Server(url), sent: 0 })
    }

    /// A relay that consumes, and where its admin port is.
    pub async fn serve(&mut self) -> Result<(Process, String)> {
        let (mut relay, port) = serve(&mut self.bed).await?;
        relay.line_with("\"consuming\"", LIMIT).await?;
        Ok((relay, port))
    }

    pub async fn key(&self, entity_id: &str) -> Result<CustomerKey> {
        let (_, about) = Store::visit(&self.hand.target()?).await?.context("a ledger")?;
        Ok(about.key(entity_id))
    }

    /// Publishes an event of this customer with a city of its own.
    pub async fn send(&mut self, entity_id: &str) -> Result<()> {
        self.sent += 1;
        // As letters: a city has no digits.
        let letter = |digit: u32| char::from(b'a' + u8::try_from(digit % 10).expect("a digit"));
        let city = format!("Kochi{}{}", letter(self.sent / 10), letter(self.sent));
        let city = json!({ "city": city });
        let event = self.bed.event(&format!("e{}-{entity_id}", self.sent), entity_id, &city);
        self.bed.publish(&event).await
    }

    /// Publishes an event of this customer, and waits until it is applied: how long that took.
    pub async fn apply(&mut self, entity_id: &str) -> Result<Duration> {
        let before = self.bed.simulator.customer(entity_id).await?["applied"].as_u64().unwrap_or(0);
        let start = Instant::now();
        self.send(entity_id).await?;
        self.bed.applied(entity_id, before + 1).await?;
        Ok(start.elapsed())
    }

    /// Applies an event of this customer and waits until its row is written; its key, as SQL has it.
    pub async fn record(&mut self, entity_id: &str) -> Result<String> {
        self.apply(entity_id).await?;
        let key = self.hand.key(self.key(entity_id).await?);
        let written = format!("SELECT count(*) FROM customers WHERE key = {key} AND seen > 0");
        eventually("a row", LIMIT, || async {
            Ok((self.hand.number(&written).await? == 1).then_some(()))
        })
        .await?;
        Ok(key)
    }

    /// Waits until the relay has let go of all customers but this one.
    pub async fn nobody_is_leased_but(&self, key: &str) -> Result<()> {
        if self.hand.is_sqlite() {
            return Ok(());
        }
        let leased = format!(
            "SELECT count(*) FROM customers
             WHERE owner IS NOT NULL AND leased_until > clock_timestamp() AND key <> {key}"
        );
        eventually("the last leases to end", LIMIT, || async {
            Ok((self.hand.number(&leased).await? == 0).then_some(()))
        })
        .await
    }

    /// Others' events are applied within a second: of ten, most at least. A loaded machine may hold
    /// up one or another.
    pub async fn others_go_on(&mut self) -> Result<()> {
        let mut took = Vec::new();
        for number in 0..10 {
            took.push(self.apply(&format!("OTHER-{number}")).await?);
        }
        took.sort_unstable();
        ensure!(took[5] < Duration::from_secs(1), "others wait: {took:?}");
        Ok(())
    }

    /// Copies the ledger to a file; no relay may be at work.
    pub async fn back_up(&self) -> Result<String> {
        let url = format!("sqlite:{}", self.bed.state().join("backup.db").display());
        let migration = Migration::prepare(&self.hand.target()?, &Target::parse(&url)?).await?;
        migration.copy(|_| {}).await?;
        Ok(url)
    }

    pub async fn calls(&self, entity_id: &str) -> Result<usize> {
        Ok(self.bed.simulator.requests(entity_id).await?.len())
    }

    pub async fn dead(&self) -> Result<u32> {
        self.bed.queues.depth(&self.bed.queue("dead")).await
    }

    pub async fn command(&self, args: &[&str]) -> Result<(i32, String)> {
        let (code, out, err) = self.bed.settings.command(args, b"").await?;
        Ok((code, out + &err))
    }
}

pub async fn gauge(port: &str) -> Result<String> {
    let (_, text) = get(&format!("{port}/metrics")).await?;
    let name = "customer_relay_ledger_unreadable_rows";
    let line = text.lines().find(|line| line.starts_with(name)).context("no such gauge")?;
    Ok(line.split_whitespace().last().context("a value")?.to_owned())
}

pub async fn gauge_reads(port: &str, value: &str) -> Result<()> {
    eventually(&format!("{value} unreadable rows"), LIMIT, || async {
        Ok((gauge(port).await? == value).then_some(()))
    })
    .await
}

/// Whether the ledger works, as `/readyz` says.
pub async fn works(port: &str) -> Result<bool> {
    let (_, text) = get(&format!("{port}/readyz")).await?;
    Ok(serde_json::from_str::<Value>(&text)?["ledger"] == "works")
}
