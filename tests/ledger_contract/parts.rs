//! A ledger carried over into another one, part by part.

use anyhow::{Context as _, Result};
use customer_relay::ledger::{AuditEntry, Change, Migration, Note, ReplayEnd, Store, Target};
use uuid::Uuid;

use super::ground::{Ground, at, commit, doubt, letter, note, once_free, row, waiting};

/// More than two parts of 1,000.
const CUSTOMERS: u32 = 2_345;

/// Into a file, and from there into another place of the first one's kind.
pub async fn a_ledger_is_carried_over_with_everything_in_it(ground: Ground) -> Result<()> {
    let (store, about) = ground.open().await?;
    ground.add_customers(CUSTOMERS, &row("e-many", at(1)).pack(), 99).await?;
    let notes = vec![
        Note::Pending(waiting("e1")),
        Note::Dead(Box::new(letter(1))),
        Note::Replayed(ReplayEnd {
            replay_id: Uuid::from_u128(1),
            ended: "dead".into(),
            reason: Some("rejected".into()),
            at: at(3),
        }),
        Note::Doubted(doubt("e1")),
    ];
    let (customer, row) = (Some(about.key("C1")), Some(row("e1", at(2)).pack()));
    commit(&store, Change { customer, row, at: at(2), notes, ..Change::default() }).await?;
    store.note(vec![(None, Note::Dead(Box::new(letter(2))))]).await?;
    for number in 1..=3 {
        store.append_audit(act(number)).await?;
    }
    // It only holds a lease or its end: nothing to carry over.
    note(&store, about.key("C2"), vec![]).await?;
    let before = everything(&store, about.key("C1")).await?;
    drop(store);

    let (beside, back) = (ground.beside()?, ground.another().await?);
    for (from, to) in [(ground.target()?, beside.clone()), (beside, back.target()?)] {
        let migration = once_free(|| Migration::prepare(&from, &to)).await?;
        let mut told = 0;
        let copied = migration.copy(|count| told += count).await?;
        assert_eq!((copied, told), (u64::from(CUSTOMERS) + 1, copied));
        assert_ne!(migration.to().id, about.id, "two ledgers, two ids");
        assert_eq!(migration.to().salt, about.salt);
        drop(migration);
        let (copy, about) = visit(&to).await?;
        assert_eq!(everything(&copy, about.key("C1")).await?, before);
    }
    Ok(())
}

async fn visit(target: &Target) -> Result<(Store, customer_relay::ledger::About)> {
    Store::visit(target).await?.context("a ledger")
}

fn act(number: i64) -> AuditEntry {
    let (at, count) = (at(number), 1);
    let text = |name: &str| format!("{name}-{number}");
    AuditEntry { at, who: text("who"), act: text("act"), what: text("what"), why: None, count }
}

/// In words that can be compared.
async fn everything(
    store: &Store,
    key: customer_relay::ledger::CustomerKey,
) -> Result<(String, String, Vec<AuditEntry>, bool)> {
    let mut counts = store.count().await?;
    // What only held a lease does not go along.
    counts.customers = u64::from(CUSTOMERS) + 1;
    let account = store.load_account(key).await?;
    let letters = store.load_dead_letters().await?;
    let ended = store.has_replay_ended(Uuid::from_u128(1)).await?;
    let audit = store.load_audit(99).await?;
    let doubts = store.load_doubts().await?;
    Ok((format!("{counts:?} {account:?}"), format!("{letters:?} {doubts:?}"), audit, ended))
}
