//! A ledger's store, of either kind: opened to work on, or for a visit.

use std::ops::Deref;
use std::sync::Arc;

use jiff::Timestamp;

use super::backend::Backend;
use super::change::{AuditEntry, Change, Note, ReplayEnd, make_letter_plain};
use super::error::LedgerError;
use super::model::{About, CustomerKey, Indexed, Part};
use super::postgres::Postgres;
use super::sqlite::Sqlite;
use super::target::Target;
use crate::clock;

/// Where the ledger is kept. What is written through it is first made [plain](crate::domain::text).
#[derive(Clone, Debug)]
pub struct Store(Arc<dyn Backend>);

impl Deref for Store {
    type Target = dyn Backend;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

impl Store {
    /// The worker's own: made if it is not there, and held against other relays where only one may
    /// work on it.
    pub async fn open_to_work(target: &Target) -> Result<Option<(Store, About)>, LedgerError> {
        let Some(store) = Store::reach(target).await? else { return Ok(None) };
        let about = match store.create_tables().await? {
            Some(about) => about,
            None => store.create_ledger(About::new(clock::now())).await?,
        };
        Ok(Some((store, about)))
    }

    /// Opened to work on; whatever is in it is not looked at yet.
    pub(super) async fn reach(target: &Target) -> Result<Option<Store>, LedgerError> {
        Ok(match target {
            Target::None => None,
            Target::Sqlite(path) => Some(Store(Arc::new(Sqlite::open_to_work(path).await?))),
            Target::Postgres(config) => Some(Store(Arc::new(Postgres::connect(config).await?))),
        })
    }

    /// To read, or for an operator's change beside a relay at work. Nothing is made.
    pub async fn visit(target: &Target) -> Result<Option<(Store, About)>, LedgerError> {
        let store = match target {
            Target::None => return Ok(None),
            Target::Sqlite(path) => Store(Arc::new(Sqlite::visit(path).await?)),
            Target::Postgres(config) => Store(Arc::new(Postgres::connect(config).await?)),
        };
        let about = store.load_about().await?.ok_or_else(|| {
            LedgerError::Missing(format!("none in {target}; `customer-relay run` makes it"))
        })?;
        Ok(Some((store, about)))
    }

    /// Notes what became of dead letters, all or none.
    pub async fn note(&self, notes: Vec<(Option<CustomerKey>, Note)>) -> Result<(), LedgerError> {
        let at = clock::now();
        let change = |(customer, note)| {
            Change { customer, at, notes: vec![note], ..Change::default() }.plain()
        };
        self.commit_changes(Arc::new(notes.into_iter().map(change).collect())).await.map(drop)
    }

    /// See [`Backend::append_audit`].
    pub async fn append_audit(&self, mut entry: AuditEntry) -> Result<(), LedgerError> {
        entry.make_plain();
        self.0.append_audit(entry).await
    }

    /// See [`Backend::store_part`]. A ledger that an older relay wrote may hold any text.
    pub async fn store_part(&self, mut part: Part) -> Result<(), LedgerError> {
        for (_, note) in &mut part.pending {
            note.make_plain();
        }
        for (_, letter) in &mut part.dead {
            make_letter_plain(letter);
        }
        part.replays.iter_mut().for_each(ReplayEnd::make_plain);
        part.audit.iter_mut().for_each(AuditEntry::make_plain);
        part.doubts.iter_mut().for_each(|(_, note)| note.make_plain());
        self.0.store_part(part).await
    }

    /// See [`Backend::replace_dead_letters`].
    pub async fn replace_dead_letters(
        &self,
        mut found: Vec<Indexed>,
        began: Timestamp,
    ) -> Result<(), LedgerError> {
        for (_, letter) in &mut found {
            make_letter_plain(letter);
        }
        self.0.replace_dead_letters(found, began).await
    }
}
