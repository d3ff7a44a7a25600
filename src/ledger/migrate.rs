//! A ledger carried over into another one, so that no fence is lost. The copy has an id of its own,
//! written last: until then it is no ledger, and the copy can begin anew. The keys' salt goes along.

use std::time::Duration;

use uuid::Uuid;

use super::{About, LedgerError, Store, Target};
use crate::clock;
use crate::domain::ledger_mark::LedgerMark;

/// Two ledgers, both held: nothing else works on them.
#[derive(Debug)]
pub struct Migration {
    source: Store,
    from: About,
    target: Store,
    to: About,
}

/// A relay that was just stopped may take so long to give its connections up.
const PATIENCE: Duration = Duration::from_secs(2);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

impl Migration {
    /// Holds both; refuses a source that a relay works on, and a target that is a ledger already.
    pub async fn prepare(from: &Target, to: &Target) -> Result<Migration, LedgerError> {
        if from == to {
            return Err(broken("source and target are the same".into()));
        }
        // Looked at first: opened to work on, it would be made.
        let nothing = || broken("none is nothing to be copied, nor a place to copy to".into());
        let (visited, _) = Store::visit(from).await?.ok_or_else(nothing)?;
        drop(visited);
        let (source, from) = Store::open_to_work(from).await?.ok_or_else(nothing)?;
        refuse_in_use(&source).await?;
        let target = Store::open_empty(to).await?.ok_or_else(nothing)?;
        let to = About { id: Uuid::now_v7(), ..from.clone() };
        Ok(Migration { source, from, target, to })
    }

    /// The source, as the broker should know it.
    pub async fn mark(&self) -> Result<LedgerMark, LedgerError> {
        Ok(self.source.load_number().await?.mark(&self.from))
    }

    /// What tells the source from others.
    pub fn from(&self) -> &About {
        &self.from
    }

    /// What will tell the copy from others.
    pub fn to(&self) -> &About {
        &self.to
    }

    /// How many customers are to be copied, about.
    pub async fn customers(&self) -> Result<u64, LedgerError> {
        Ok(self.source.count().await?.customers)
    }

    /// Copies all there is, and makes the copy a ledger; how many customers. `progress` is told how
    /// many more are done.
    pub async fn copy(&self, mut progress: impl FnMut(u64)) -> Result<u64, LedgerError> {
        self.target.clear().await?;
        let (mut copied, mut behind) = (0, None);
        loop {
            let mut part = self.source.load_part(behind).await?;
            let last = part.customers.last().map(|stored| stored.key);
            // Leases are not copied, nor rows that hold nothing else.
            part.customers.retain(|stored| !stored.row.is_empty());
            let count = part.customers.len() as u64;
            self.target.store_part(part).await?;
            copied += count;
            progress(count);
            match last {
                Some(_) => behind = last,
                None => break,
            }
        }
        self.finish(copied).await?;
        Ok(copied)
    }

    async fn finish(&self, copied: u64) -> Result<(), LedgerError> {
        let arrived = self.target.count().await?.customers;
        if arrived != copied {
            let text =
                format!("{copied} customers were copied, but {arrived} are there; run again");
            return Err(broken(text));
        }
        let made = self.target.create_ledger(self.to.clone()).await?;
        if made != self.to {
            let text = "somebody else has just made the target a ledger: name another";
            return Err(broken(text.into()));
        }
        // What the source does not know, the copy does not know either.
        if let Some(gap) = self.source.load_number().await?.gap {
            self.target.open_gap(gap, 0, clock::now()).await?;
        }
        Ok(())
    }
}

impl Store {
    /// A place for a copy: whatever is there, it is no ledger.
    async fn open_empty(target: &Target) -> Result<Option<Store>, LedgerError> {
        let Some(store) = Store::reach(target).await? else { return Ok(None) };
        match store.create_tables().await? {
            None => Ok(Some(store)),
            Some(about) => Err(broken(format!(
                "{target} is a ledger already (id {}, of {}): name an empty one",
                about.id, about.created
            ))),
        }
    }
}

async fn refuse_in_use(source: &Store) -> Result<(), LedgerError> {
    let mut patience = PATIENCE;
    loop {
        match source.find_other_users().await? {
            None => return Ok(()),
            Some(by) if patience.is_zero() => return Err(LedgerError::InUse(by)),
            Some(_) => {}
        }
        tokio::time::sleep(POLL_INTERVAL).await;
        patience = patience.saturating_sub(POLL_INTERVAL);
    }
}

fn broken(problem: String) -> LedgerError {
    LedgerError::Broken(problem)
}
