//! Dead letters with other values: held to the same rules as an event's, the original kept in the
//! archive.

use std::collections::HashSet;

use anyhow::Context as _;
use uuid::Uuid;

use super::inspect::customer_of;
use super::keep::Place;
use super::office::Office;
use crate::amqp::{Message, Publisher};
use crate::clock;
use crate::config::Config;
use crate::domain::admission::{Moment, admit};
use crate::domain::edit::{Change, edit};
use crate::domain::event::{Decoded, Envelope, decode};
use crate::domain::field::Field;
use crate::domain::history::History;
use crate::domain::letter::Letter;
use crate::domain::verdict::Verdict;
use crate::ledger::Note;

/// What is to be changed, in which letters.
#[derive(Clone, Debug)]
pub struct Wish {
    /// Which letters.
    pub ids: HashSet<Uuid>,
    /// Which fields.
    pub changes: Vec<Change>,
}

/// One letter, as it would be.
#[derive(Debug)]
pub struct Edited {
    /// The letter.
    pub letter: Letter,
    /// The values before, of the fields that change.
    pub before: Vec<(Field, Option<String>)>,
    /// Why it is refused: with these values it would be a dead letter again, or it cannot be edited.
    pub refused: Option<String>,
}

impl Office<'_> {
    /// What the letters would be, without changing any.
    pub async fn preview(&self, wish: &Wish) -> anyhow::Result<Vec<Edited>> {
        let (queue, config) = (self.queue(), self.config);
        let mut all = Vec::new();
        let mut finding = self.find(&queue, &wish.ids).await?;
        while let Some((letter, message)) = finding.next().await? {
            let body = changed(config, &message, &wish.changes);
            let before = values(config, &message, wish.changes.iter().map(|(field, _)| *field));
            all.push(Edited { letter, before, refused: body.err() });
        }
        finding.end().await?;
        Ok(all)
    }

    /// Edits the letters that the rules accept with their new values; how many. Each original goes to
    /// the archive first, then the edited one to the queue, then the original out of it.
    pub async fn edit(&self, wish: &Wish, says: impl Fn(u64)) -> anyhow::Result<u64> {
        let (queue, archive) = (self.queue(), self.queue_of(Place::Archive));
        let publisher = Publisher::new(self.config.broker.broker.clone(), 1);
        let mut edited = 0;
        let mut finding = self.find(&queue, &wish.ids).await?;
        let walk = async {
            while let Some((letter, message)) = finding.next().await? {
                let Ok(body) = changed(self.config, &message, &wish.changes) else { continue };
                let revision = letter.revision.checked_add(1).context(
                    "a letter's revision is as high as it can be: no relay wrote that; export it, correct \
                     x-relay-revision, import it",
                )?;
                let new = Letter { revision, ..letter.clone() };
                publisher.publish("", &archive, message.relaid(&letter), message.body()).await?;
                publisher.publish("", &queue, message.relaid(&new), &body).await?;
                if let Some((store, about)) = self.ledger() {
                    let customer = customer_of(&message, &self.config.rules.mapping);
                    let key = customer.map(|customer| about.key(&customer));
                    store.note(vec![(key, Note::Dead(Box::new(new)))]).await?;
                }
                finding.erase(message).await?;
                edited += 1;
                says(edited);
            }
            anyhow::Ok(())
        };
        let walked = walk.await;
        finding.end().await?;
        publisher.close().await;
        walked.map(|()| edited)
    }

    /// The values that a letter sets now, for an editor.
    pub async fn values_of(
        &self,
        id: Uuid,
    ) -> anyhow::Result<Option<Vec<(Field, Option<String>)>>> {
        let (queue, config) = (self.queue(), self.config);
        let mut finding = self.find(&queue, &HashSet::from([id])).await?;
        let found = finding.next().await?;
        let values = found.map(|(_, message)| values(config, &message, Field::ALL.into_iter()));
        finding.end().await?;
        Ok(values)
    }
}

fn envelope<'a>(config: &'a Config, message: &'a Message) -> Envelope<'a> {
    let mut envelope = message.envelope();
    envelope.kind = envelope.kind.or(config.rules.mapping.default_type());
    envelope
}

/// The body with the changes, if all rules accept it.
fn changed(config: &Config, message: &Message, changes: &[Change]) -> Result<Vec<u8>, String> {
    let envelope = envelope(config, message);
    let body = edit(&envelope, &config.rules.mapping.pointers, changes)?;
    let edited = Envelope { body: &body, ..envelope };
    let now = clock::now();
    let (history, moment) = (History::new(now), Moment::certain(now));
    let refused = admit(&edited, &history, &config.rules, &config.retry, &moment).err();
    match refused.map(|refused| refused.verdict) {
        Some(Verdict::DeadLetter(dead)) => Err(dead.detail),
        Some(Verdict::Ignored { .. }) => Err("its type is ignored (broker.other_types)".into()),
        // A time that lies ahead is waited for.
        Some(_) | None => Ok(body),
    }
}

fn values(
    config: &Config,
    message: &Message,
    fields: impl Iterator<Item = Field>,
) -> Vec<(Field, Option<String>)> {
    let decoded = decode(&envelope(config, message), &config.rules.mapping);
    let Ok(Decoded::CustomerUpdated(event)) = decoded else {
        return fields.map(|field| (field, None)).collect();
    };
    let text = |field: Field| {
        let value = event.fields[field].as_ref()?;
        Some(value.as_str().map_or_else(|| value.to_string(), str::to_owned))
    };
    fields.map(|field| (field, text(field))).collect()
}
