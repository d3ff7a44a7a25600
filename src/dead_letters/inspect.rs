//! A letter, opened: whose it is, what it says, and what would become of it now.

use std::collections::HashSet;

use jiff::Timestamp;
use uuid::Uuid;

use super::office::Office;
use crate::amqp::Message;
use crate::clock;
use crate::config::Config;
use crate::domain::admission::{self, Admission, Moment};
use crate::domain::event::{Decoded, Mapping, decode};
use crate::domain::field::Field;
use crate::domain::history::History;
use crate::domain::letter::Letter;
use crate::domain::outlook::Outlook;
use crate::domain::row::Row;
use crate::domain::verdict::Verdict;

/// Letters whose customers are looked up at once.
const BATCH: usize = 256;

/// A letter, and what would become of it.
#[derive(Debug)]
pub struct Inspected {
    /// What it says about itself.
    pub letter: Letter,
    /// The body, as it is.
    pub body: Vec<u8>,
    /// Our headers on it.
    pub headers: Vec<(String, String)>,
    /// Whose it is, as far as it can be read.
    pub customer: Option<String>,
    /// The call that it would lead to.
    pub admission: Option<Admission>,
    /// The verdict now.
    pub outlook: Outlook,
    /// Whether nothing tells what was applied before it died.
    pub is_unfenced: bool,
}

/// A letter whose customer is not looked up yet.
struct Opened {
    letter: Letter,
    history: History,
    admitted: Result<Admission, Outlook>,
}

impl Office<'_> {
    /// Opens one letter; `None` if it is not there.
    pub async fn inspect(&self, id: Uuid, forces: bool) -> anyhow::Result<Option<Inspected>> {
        let (queue, config) = (self.queue(), self.config);
        let mut finding = self.find(&queue, &HashSet::from([id])).await?;
        let found = finding.next().await?.map(|(letter, message)| {
            let customer = customer_of(&message, &config.rules.mapping);
            let parts = (message.body().to_vec(), message.own_headers(), customer);
            (open(config, &message, letter, forces), parts)
        });
        finding.end().await?;
        let Some((opened, (body, headers, customer))) = found else { return Ok(None) };
        let outlook = self.outlooks(std::slice::from_ref(&opened)).await?.remove(0);
        let is_unfenced = self.is_unfenced(&opened.letter);
        let Opened { letter, admitted, .. } = opened;
        let admission = admitted.ok();
        Ok(Some(Inspected { letter, body, headers, customer, admission, outlook, is_unfenced }))
    }

    /// What would become of each of these letters, in the queue's order.
    pub async fn foresee(
        &self,
        ids: &HashSet<Uuid>,
        forces: bool,
        progress: impl Fn(u64),
    ) -> anyhow::Result<Vec<(Letter, Outlook)>> {
        let (queue, config) = (self.queue(), self.config);
        let mut opened = Vec::new();
        let mut finding = self.find(&queue, ids).await?;
        while let Some((letter, message)) = finding.next().await? {
            opened.push(open(config, &message, letter, forces));
            progress(opened.len() as u64);
        }
        finding.end().await?;
        let mut foreseen = Vec::with_capacity(opened.len());
        while !opened.is_empty() {
            let rest = opened.split_off(opened.len().min(BATCH));
            let outlooks = self.outlooks(&opened).await?;
            let letters = opened.into_iter().map(|opened| opened.letter);
            foreseen.extend(letters.zip(outlooks));
            opened = rest;
        }
        Ok(foreseen)
    }

    /// Holds letters against what the portal has.
    async fn outlooks(&self, opened: &[Opened]) -> anyhow::Result<Vec<Outlook>> {
        let by = self.config.order_by;
        let mut rows = None;
        if let Some((store, about)) = self.ledger() {
            let admitted = opened.iter().filter_map(|opened| opened.admitted.as_ref().ok());
            let keys = admitted.map(|admission| about.key(admission.update.entity_id()));
            rows = Some(store.load_rows(keys.collect()).await?.into_iter());
        }
        // Without a ledger nothing is known of anybody.
        let mut row = || match &mut rows {
            Some(rows) => {
                rows.next().expect("the ledger answers for each customer it was asked for")
            }
            None => Ok(Row::default()),
        };
        let outlook = |Opened { admitted, history, .. }: &Opened| match admitted {
            Ok(admission) => match row() {
                Ok(row) => Outlook::of(admission, history, &row, by, clock::now()),
                Err(_) => Outlook::Waits,
            },
            Err(outlook) => outlook.clone(),
        };
        Ok(opened.iter().map(outlook).collect())
    }
}

/// Reads a letter as the worker would, if it were put back.
fn open(config: &Config, message: &Message, letter: Letter, forces: bool) -> Opened {
    let now = clock::now();
    let history = match message.history(now) {
        Ok(history) => as_replayed(&history, forces, now),
        Err(fault) => {
            let history = History::new(now);
            let outlook = Verdict::invalid_header(&fault.to_string(), &history).into();
            return Opened { letter, history, admitted: Err(outlook) };
        }
    };
    let mut envelope = message.envelope();
    envelope.kind = envelope.kind.or(config.rules.mapping.default_type());
    let moment = Moment::certain(now);
    let admitted = admission::admit(&envelope, &history, &config.rules, &config.retry, &moment);
    let admitted = admitted.map_err(|refused| refused.verdict.into());
    Opened { letter, history, admitted }
}

/// The past of a message that an operator puts back: its attempts begin anew.
pub(super) fn as_replayed(history: &History, forces: bool, now: Timestamp) -> History {
    History {
        receipt: history.receipt,
        ambiguous: history.ambiguous,
        revision: history.revision,
        doubt_accepted: history.doubt_accepted,
        // It was applied, and undone: the ledger takes it for a repetition otherwise.
        is_resend: history.is_resend,
        forced_at: (forces || history.forced_at.is_some()).then_some(now),
        ..History::new(history.first_seen)
    }
}

/// Whose message it is, whatever became of it: also of a type that is not read, or of bad fields.
pub fn customer_of(message: &Message, mapping: &Mapping) -> Option<String> {
    let mut envelope = message.envelope();
    envelope.kind = envelope.kind.or(mapping.default_type());
    let decoded = match decode(&envelope, mapping).ok()? {
        Decoded::OtherType(kind) => {
            let mapping = Mapping { types: vec![kind], ..mapping.clone() };
            decode(&envelope, &mapping).ok()?
        }
        decoded @ Decoded::CustomerUpdated(_) => decoded,
    };
    let Decoded::CustomerUpdated(event) = decoded else { return None };
    let id = event.fields[Field::EntityId].as_ref()?;
    Some(id.as_str().map_or_else(|| id.to_string(), |id| id.trim().to_owned()))
}
