//! The way to the dead letters: a connection, the ledger beside it, and the lock of whoever walks.

use std::borrow::Cow;
use std::collections::HashSet;

use anyhow::{Context as _, bail};
use jiff::Timestamp;
use tokio::sync::OnceCell;
use uuid::Uuid;

use super::inspect::customer_of;
use crate::amqp::{AmqpError, Link, Message, Scan, ScanLock, lock_scans, topology};
use crate::clock;
use crate::config::Config;
use crate::domain::letter::{Filter, Letter};
use crate::domain::text::escape;
use crate::ledger::{About, AuditEntry, CustomerKey, Indexed, Store};

/// Longest reason, and longest description of an act, that are written down, in bytes.
const MAX_NOTE_BYTES: usize = 2000;
/// Longest operator's name, in bytes.
const MAX_NAME_BYTES: usize = 255;

/// An operator's place of work.
pub struct Office<'a> {
    pub(super) config: &'a Config,
    pub(super) link: Link,
    ledger: Option<(Store, About)>,
    /// Why there is no ledger.
    lacks_ledger: Option<String>,
    lock: OnceCell<ScanLock>,
    who: String,
}

impl<'a> Office<'a> {
    /// Connects. A ledger that cannot be had is done without, as far as that goes.
    pub async fn open(config: &'a Config, who: &str) -> anyhow::Result<Office<'a>> {
        let (ledger, lacks_ledger) = match Store::visit(&config.ledger.target).await {
            Ok(Some(ledger)) => (Some(ledger), None),
            Ok(None) => (None, Some("ledger.url is \"none\"".to_owned())),
            Err(error) => (None, Some(error.to_string())),
        };
        let link = config.broker.broker.connect("dead").await?;
        Ok(Office {
            config,
            link,
            ledger,
            lacks_ledger,
            lock: OnceCell::new(),
            who: escape(who, MAX_NAME_BYTES).into_owned(),
        })
    }

    /// Closes the connection; with it goes the lock.
    pub async fn close(self) {
        self.link.close().await;
    }

    /// The settings.
    pub fn config(&self) -> &Config {
        self.config
    }

    /// Why verdicts are not held against what the portal has, if they are not.
    pub fn lacks_ledger(&self) -> Option<&str> {
        self.lacks_ledger.as_deref()
    }

    pub(super) fn ledger(&self) -> Option<&(Store, About)> {
        self.ledger.as_ref()
    }

    /// The ledger's store, for what cannot be done without.
    pub(super) fn store(&self) -> anyhow::Result<&Store> {
        let Some((store, _)) = &self.ledger else {
            let why = self.lacks_ledger().expect("a ledger that cannot be had is given a reason");
            bail!("this needs the ledger: {why}");
        };
        Ok(store)
    }

    /// The queue of dead letters.
    pub fn queue(&self) -> String {
        self.config.broker.topology.dead_queue()
    }

    /// Messages in a queue, those that somebody looks at not counted.
    pub async fn depth(&self, queue: &str) -> anyhow::Result<u32> {
        topology::depth(&self.link, queue).await?.with_context(|| missing(queue))
    }

    /// Begins a walk, as the only one who walks.
    pub(super) async fn scan<'s>(&'s self, queue: &'s str) -> anyhow::Result<Scan<'s>> {
        let lock = self.config.broker.topology.scan_queue();
        self.lock.get_or_try_init(|| lock_scans(&self.link, &lock, &self.who)).await?;
        Scan::begin(&self.link, queue, None).await?.with_context(|| missing(queue))
    }

    /// Begins a walk for certain letters.
    pub(super) async fn find<'s>(
        &'s self,
        queue: &'s str,
        ids: &HashSet<Uuid>,
    ) -> anyhow::Result<Finding<'s>> {
        Ok(Finding { scan: self.scan(queue).await?, left: ids.clone() })
    }

    /// The dead letters that meet the filter, oldest first, of this customer if one is named.
    pub async fn list(
        &self,
        filter: &Filter,
        customer: Option<&str>,
    ) -> anyhow::Result<Vec<Letter>> {
        if let Some(indexed) = self.indexed().await? {
            let key = self.ledger.as_ref().zip(customer).map(|((_, about), id)| about.key(id));
            let is_meant = |(owner, letter): &Indexed| {
                (key.is_none() || *owner == key) && filter.is_met_by(letter)
            };
            return Ok(indexed.into_iter().filter(is_meant).map(|(_, letter)| letter).collect());
        }
        let mapping = &self.config.rules.mapping;
        let is_his = |message: &Message| {
            customer.is_none_or(|id| customer_of(message, mapping).as_deref() == Some(id))
        };
        let mut letters = Vec::new();
        let queue = self.queue();
        let mut scan = self.scan(&queue).await?;
        while let Some(message) = scan.next().await? {
            let letter = message.letter();
            if filter.is_met_by(&letter) && is_his(&message) {
                letters.push(letter);
            }
        }
        scan.end().await?;
        Ok(letters)
    }

    /// The index, if it knows as many letters as there are in the queue.
    async fn indexed(&self) -> anyhow::Result<Option<Vec<Indexed>>> {
        let Some((store, _)) = &self.ledger else { return Ok(None) };
        let depth = self.depth(&self.queue()).await?;
        if store.count_dead_letters().await? != u64::from(depth) {
            return Ok(None);
        }
        let indexed = store.load_dead_letters().await?;
        // One that is damaged is left out.
        Ok((indexed.len() as u64 == u64::from(depth)).then_some(indexed))
    }

    /// Makes the index anew from the queue alone; how many letters there are.
    pub async fn reindex(&self, progress: impl Fn(u64)) -> anyhow::Result<u64> {
        let began = clock::now();
        self.store()?;
        let about = self.ledger.as_ref().map(|(_, about)| about.clone());
        let mapping = &self.config.rules.mapping;
        let key = |message: &Message| -> Option<CustomerKey> {
            Some(about.as_ref()?.key(&customer_of(message, mapping)?))
        };
        let (mut found, queue) = (Vec::new(), self.queue());
        let mut scan = self.scan(&queue).await?;
        while let Some(message) = scan.next().await? {
            found.push((key(&message), message.letter()));
            progress(found.len() as u64);
        }
        scan.end().await?;
        let count = found.len() as u64;
        self.store()?.replace_dead_letters(found, began).await?;
        Ok(count)
    }

    /// Writes an act down before it is done; without a ledger only the log has it.
    pub async fn write_down(
        &self,
        act: &str,
        what: &str,
        why: Option<&str>,
        count: u64,
    ) -> anyhow::Result<()> {
        let what = escape(what, MAX_NOTE_BYTES);
        let why = why.map(|why| escape(why, MAX_NOTE_BYTES));
        tracing::warn!(who = self.who, act, %what, why = why.as_deref(), count, "an operator's act");
        let Some((store, _)) = &self.ledger else { return Ok(()) };
        let entry = AuditEntry {
            at: clock::now(),
            who: self.who.clone(),
            act: act.to_owned(),
            what: what.into_owned(),
            why: why.map(Cow::into_owned),
            count,
        };
        Ok(store.append_audit(entry).await?)
    }

    /// The last acts that were written down, oldest first.
    pub async fn acts(&self, last: u32) -> anyhow::Result<Vec<AuditEntry>> {
        Ok(self.store()?.load_audit(last).await?)
    }

    /// Whether a letter is from before the ledger: what was applied by then is not known.
    pub fn is_unfenced(&self, letter: &Letter) -> bool {
        let created = self.ledger.as_ref().map(|(_, about)| about.created);
        created.is_none_or(|created| letter.died.is_none_or(|died: Timestamp| died < created))
    }
}

/// A walk for certain letters.
pub(super) struct Finding<'a> {
    scan: Scan<'a>,
    left: HashSet<Uuid>,
}

impl Finding<'_> {
    /// The next one of them; `None` when all were found, or the others are not there. Of several with
    /// one id (the archive has those of an edited letter) the first, which is the original.
    pub(super) async fn next(&mut self) -> Result<Option<(Letter, Message)>, AmqpError> {
        while !self.left.is_empty()
            && let Some(message) = self.scan.next().await?
        {
            let letter = message.letter();
            if self.left.remove(&letter.id) {
                return Ok(Some((letter, message)));
            }
        }
        Ok(None)
    }

    /// Erases one that was found.
    pub(super) async fn erase(&mut self, message: Message) -> Result<(), AmqpError> {
        self.scan.erase(message).await
    }

    /// Lets go of all that was not erased, in its place.
    pub(super) async fn end(self) -> Result<(), AmqpError> {
        self.scan.end().await
    }
}

fn missing(queue: &str) -> String {
    format!("queue {queue} is missing; run `customer-relay topology apply`")
}
