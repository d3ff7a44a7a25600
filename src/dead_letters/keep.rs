//! Dead letters kept elsewhere: in the archive, in a file, or not at all.

use std::collections::{HashMap, HashSet};
use std::io::BufRead;

use anyhow::Context as _;
use uuid::Uuid;

use super::inspect::customer_of;
use super::office::Office;
use crate::amqp::{Exported, Message, Publisher};
use crate::domain::letter::{Filter, Letter};
use crate::ledger::Note;

/// Where dead letters are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Waiting for a person.
    Dead,
    /// Done with, and kept.
    Archive,
}

impl Office<'_> {
    /// The queue of a place.
    pub fn queue_of(&self, place: Place) -> String {
        match place {
            Place::Dead => self.queue(),
            Place::Archive => self.config.broker.topology.archive_queue(),
        }
    }

    /// The archived letters that meet the filter, oldest first.
    pub async fn list_archive(&self, filter: &Filter) -> anyhow::Result<Vec<Letter>> {
        let queue = self.queue_of(Place::Archive);
        let mut letters = Vec::new();
        let mut scan = self.scan(&queue).await?;
        while let Some(message) = scan.next().await? {
            let letter = message.letter();
            if filter.is_met_by(&letter) {
                letters.push(letter);
            }
        }
        scan.end().await?;
        Ok(letters)
    }

    /// Takes letters out of a place, for good or once `to` has them; which, and their revisions.
    async fn take(
        &self,
        from: Place,
        ids: &HashSet<Uuid>,
        to: Option<Place>,
        says: impl Fn(u64),
    ) -> anyhow::Result<HashMap<Uuid, u32>> {
        let (queue, target) = (self.queue_of(from), to.map(|place| self.queue_of(place)));
        let publisher = Publisher::new(self.config.broker.broker.clone(), 1);
        let mut taken = HashMap::new();
        let mut finding = self.find(&queue, ids).await?;
        let walk = async {
            while let Some((letter, message)) = finding.next().await? {
                if let Some(target) = &target {
                    let copy = message.relaid(&letter);
                    publisher.publish("", target, copy, message.body()).await?;
                }
                let (id, revision) = (letter.id, letter.revision);
                let note = match to {
                    Some(Place::Dead) => Note::Dead(Box::new(letter)),
                    Some(Place::Archive) | None => Note::Gone { dead_id: id },
                };
                self.note(from, &message, note).await?;
                finding.erase(message).await?;
                taken.insert(id, revision);
                says(taken.len() as u64);
            }
            anyhow::Ok(())
        };
        let walked = walk.await;
        finding.end().await?;
        publisher.close().await;
        walked.map(|()| taken)
    }

    async fn note(&self, from: Place, message: &Message, note: Note) -> anyhow::Result<()> {
        let Some((store, about)) = self.ledger() else { return Ok(()) };
        if from == Place::Archive && matches!(note, Note::Gone { .. }) {
            // The index knows the dead-letter queue alone.
            return Ok(());
        }
        let customer = customer_of(message, &self.config.rules.mapping);
        let key = customer.map(|customer| about.key(&customer));
        Ok(store.note(vec![(key, note)]).await?)
    }

    /// Lays letters into the archive; how many.
    pub async fn archive(&self, ids: &HashSet<Uuid>, says: impl Fn(u64)) -> anyhow::Result<u64> {
        Ok(self.take(Place::Dead, ids, Some(Place::Archive), says).await?.len() as u64)
    }

    /// Lays archived letters back; how many. The original of an edited letter takes its place.
    pub async fn restore(&self, ids: &HashSet<Uuid>, says: impl Fn(u64)) -> anyhow::Result<u64> {
        let restored = self.take(Place::Archive, ids, Some(Place::Dead), says).await?;
        let queue = self.queue();
        let mut scan = self.scan(&queue).await?;
        while let Some(message) = scan.next().await? {
            let letter = message.letter();
            if restored.get(&letter.id).is_some_and(|revision| letter.revision > *revision) {
                scan.erase(message).await?;
            }
        }
        scan.end().await?;
        Ok(restored.len() as u64)
    }

    /// Deletes letters for good; how many.
    pub async fn purge(
        &self,
        from: Place,
        ids: &HashSet<Uuid>,
        says: impl Fn(u64),
    ) -> anyhow::Result<u64> {
        Ok(self.take(from, ids, None, says).await?.len() as u64)
    }

    /// Each of these letters as a line of JSON, whole: nothing is taken.
    pub async fn export(
        &self,
        ids: &HashSet<Uuid>,
        mut write: impl FnMut(&str) -> std::io::Result<()>,
    ) -> anyhow::Result<u64> {
        let queue = self.queue();
        let mut count = 0;
        let mut finding = self.find(&queue, ids).await?;
        while let Some((_, message)) = finding.next().await? {
            write(&serde_json::to_string(&message.export()?)?)?;
            count += 1;
        }
        finding.end().await?;
        Ok(count)
    }

    /// Lays exported letters into the queue; how many. Those that are there already are left out.
    pub async fn import(&self, letters: Vec<Exported>, says: impl Fn(u64)) -> anyhow::Result<u64> {
        let queue = self.queue();
        let mut known = HashSet::new();
        let mut scan = self.scan(&queue).await?;
        while let Some(message) = scan.next().await? {
            known.insert(message.letter().id);
        }
        scan.end().await?;
        let publisher = Publisher::new(self.config.broker.broker.clone(), 1);
        let mut imported = 0;
        for letter in letters {
            let (message, body) = letter.import()?;
            if message.letter_id().is_some_and(|id| known.contains(&id)) {
                continue;
            }
            publisher.publish("", &queue, message, &body).await?;
            imported += 1;
            says(imported);
        }
        publisher.close().await;
        Ok(imported)
    }
}

/// Every line of an export, read before any of it is laid down.
pub fn read_exported(lines: impl BufRead) -> anyhow::Result<Vec<Exported>> {
    let mut letters = Vec::new();
    for (number, line) in (1_u64..).zip(lines.lines()) {
        let line = line?;
        if !line.trim().is_empty() {
            let letter = serde_json::from_str(&line);
            letters.push(letter.with_context(|| format!("line {number} is no exported letter"))?);
        }
    }
    Ok(letters)
}
