//! What is recorded about a customer at the end of a turn, all of it in one commit.

use jiff::Timestamp;
use uuid::Uuid;

use super::model::{CustomerKey, Lease};
use crate::domain::letter::Letter;
use crate::domain::row::Row;
pub use crate::domain::settlement::Committed;
use crate::domain::text::escape;
use crate::domain::version::EventRef;

/// No text in a ledger is longer, in bytes.
const MAX_TEXT_BYTES: usize = 2048;

/// What there is to record about one customer.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// Whose; `None` if the message does not say.
    pub customer: Option<CustomerKey>,
    /// The customer's new row, packed.
    pub row: Option<Vec<u8>>,
    /// Under which it was made.
    pub lease: Option<Lease>,
    /// The lease goes on.
    pub keeps_lease: bool,
    /// When.
    pub at: Timestamp,
    /// What operators will ask for.
    pub notes: Vec<Note>,
}

impl Change {
    /// Whether there is anything to write.
    pub fn is_empty(&self) -> bool {
        self.row.is_none() && self.lease.is_none() && self.notes.is_empty()
    }

    /// With texts that no store refuses: whatever an event calls itself, a ledger can keep it.
    pub(super) fn plain(mut self) -> Change {
        self.notes.iter_mut().for_each(Note::make_plain);
        self
    }

    /// The same of another customer and other events, none of which there is: what a ledger refuses of
    /// this as well, it does not refuse for whose it is.
    pub(super) fn disguised(mut self) -> Change {
        self.customer = Some(CustomerKey::random());
        let mut notes = Vec::with_capacity(self.notes.len() + 1);
        for note in self.notes {
            note.disguise(self.at, &mut notes);
        }
        self.notes = notes;
        self
    }

    /// What a customer leaves behind that is only leased.
    pub(super) fn lease_alone(at: Timestamp) -> Change {
        let (customer, row) = (Some(CustomerKey::random()), Some(Row::default().pack()));
        Change { customer, row, at, ..Change::default() }
    }
}

/// What became of one event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// It waits for a retry no more.
    Settled {
        /// Which event.
        event: EventRef,
    },
    /// It waits in a retry tier.
    Pending(PendingNote),
    /// It is a dead letter.
    Dead(Box<Letter>),
    /// A dead letter is in the dead-letter queue no more.
    Gone {
        /// Which one.
        dead_id: Uuid,
    },
    /// What an operator put back has come to an end.
    Replayed(ReplayEnd),
    /// It was in doubt, and ended like this, or was sent on its way.
    Doubted(DoubtNote),
}

impl Note {
    fn make_plain(&mut self) {
        match self {
            Note::Settled { event } => make_plain(&mut event.id),
            Note::Pending(note) => note.make_plain(),
            Note::Dead(letter) => make_letter_plain(letter),
            Note::Gone { .. } => {}
            Note::Replayed(end) => end.make_plain(),
            Note::Doubted(note) => note.make_plain(),
        }
    }

    /// With other ids of the same length. What is deleted is written before, so that there is
    /// something to delete.
    fn disguise(self, at: Timestamp, notes: &mut Vec<Note>) {
        match self {
            Note::Settled { event } => {
                let event = disguise(&event);
                let (reason, tier_ms) = ("handed-back".to_owned(), Some(1000));
                let waiting = PendingNote {
                    event: event.clone(),
                    attempts: 0,
                    since: at,
                    due: at,
                    reason,
                    tier_ms,
                };
                notes.extend([Note::Pending(waiting), Note::Settled { event }]);
            }
            Note::Pending(note) => {
                let event = disguise(&note.event);
                notes.push(Note::Pending(PendingNote { event, ..note }));
            }
            Note::Dead(letter) => {
                let event = letter.event.as_deref().map(random_text);
                notes.push(Note::Dead(Box::new(Letter { id: Uuid::now_v7(), event, ..*letter })));
            }
            Note::Gone { .. } => {
                let letter = Letter::sample(at);
                let dead_id = letter.id;
                notes.extend([Note::Dead(Box::new(letter)), Note::Gone { dead_id }]);
            }
            Note::Replayed(end) => {
                notes.push(Note::Replayed(ReplayEnd { replay_id: Uuid::now_v7(), ..end }));
            }
            Note::Doubted(note) => {
                let event = disguise(&note.event);
                notes.push(Note::Doubted(DoubtNote { event, ..note }));
            }
        }
    }
}

fn disguise(event: &EventRef) -> EventRef {
    EventRef { id: random_text(&event.id), ..event.clone() }
}

fn random_text(text: &str) -> String {
    let mut random = Uuid::new_v4().simple().to_string();
    while random.len() < text.len() {
        random.push_str(&Uuid::new_v4().simple().to_string());
    }
    random.truncate(text.len());
    random
}

/// A letter of the index: its texts may be anybody's.
pub(super) fn make_letter_plain(letter: &mut Letter) {
    let Letter { event, detail, field, rule, flags, .. } = letter;
    [event, detail, field, rule, flags].into_iter().flatten().for_each(make_plain);
}

fn make_plain(text: &mut String) {
    let escaped = escape(text, MAX_TEXT_BYTES);
    if *text != escaped {
        *text = escaped.into_owned();
    }
}

/// How a replay of a dead letter ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplayEnd {
    /// Which replay.
    pub replay_id: Uuid,
    /// The verdict.
    pub ended: String,
    /// Why it is a dead letter again, if it is.
    pub reason: Option<String>,
    /// When.
    pub at: Timestamp,
}

impl ReplayEnd {
    pub(super) fn make_plain(&mut self) {
        self.reason.iter_mut().for_each(make_plain);
    }
}

/// An event in doubt: it may overwrite what was applied before an older copy of the ledger was put in
/// place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DoubtNote {
    /// Which event.
    pub event: EventRef,
    /// When.
    pub at: Timestamp,
    /// The verdict; of a dead letter its reason.
    pub ended: String,
    /// It was in doubt before, if at all: what is recorded of that is brought up to date.
    pub is_past: bool,
}

impl DoubtNote {
    pub(super) fn make_plain(&mut self) {
        make_plain(&mut self.event.id);
        make_plain(&mut self.ended);
    }
}

/// An event that waits in a retry tier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingNote {
    /// Which event.
    pub event: EventRef,
    /// Attempts so far.
    pub attempts: u32,
    /// When it first went there: kept, however often it goes.
    pub since: Timestamp,
    /// When it comes back.
    pub due: Timestamp,
    /// Why it waits.
    pub reason: String,
    /// Which tier it waits in, by its delay in milliseconds; `None` if a relay of version 0.1 wrote
    /// the note.
    pub tier_ms: Option<u32>,
}

impl PendingNote {
    pub(super) fn make_plain(&mut self) {
        make_plain(&mut self.event.id);
        make_plain(&mut self.reason);
    }
}

/// One act of an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEntry {
    /// When.
    pub at: Timestamp,
    /// Who, and on which host.
    pub who: String,
    /// The verb.
    pub act: String,
    /// On what, without anything personal.
    pub what: String,
    /// The operator's reason.
    pub why: Option<String>,
    /// How many dead letters.
    pub count: u64,
}

impl AuditEntry {
    pub(super) fn make_plain(&mut self) {
        let AuditEntry { who, act, what, why, .. } = self;
        [who, act, what].into_iter().chain(why).for_each(make_plain);
    }
}
