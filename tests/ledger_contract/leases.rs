//! Whose a customer is, where several relays share a ledger; where only one works on it, nobody
//! needs to know.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use customer_relay::domain::row::Row;
use customer_relay::ledger::{About, Change, Committed, Loaded, LoadedCustomer, Note, Store};

use super::ground::{Ground, LEASE, at, lease, letter, row};

/// Two relays' stores; of SQLite, the same one twice.
async fn two(ground: &Ground) -> Result<(Store, Store, About)> {
    let (one, about) = ground.open().await?;
    let other = if ground.is_sqlite() { one.clone() } else { ground.open().await?.0 };
    Ok((one, other, about))
}

pub async fn a_customer_belongs_to_one_relay_at_a_time(ground: Ground) -> Result<()> {
    let (one, other, about) = two(&ground).await?;
    let key = about.key("C1");
    let mine = lease(&one, key).await?.context("it is free")?;
    let theirs = lease(&other, key).await?;
    if ground.is_sqlite() {
        assert!(mine.lease.is_none() && theirs.is_some_and(|loaded| loaded.lease.is_none()));
        return Ok(());
    }
    assert!(theirs.is_none(), "it is the other relay's");
    let again = lease(&one, key).await?.context("it is ours")?;
    assert!(!again.was_taken_over && again.lease != mine.lease, "a fence of its own");
    let change = Change { customer: Some(key), lease: mine.lease, ..Change::default() };
    let ends = one.commit_changes(Arc::new(vec![change])).await?;
    assert_eq!(ends, [Committed::LeaseLost], "under the older fence");
    Ok(())
}

pub async fn under_a_lost_lease_nothing_is_recorded(ground: Ground) -> Result<()> {
    let (one, other, about) = two(&ground).await?;
    let (key, sound) = (about.key("C1"), about.key("C2"));
    let brief = Duration::from_millis(50);
    let loaded = one.lease_customers(Arc::new(vec![key]), brief).await?.pop();
    let Some(Loaded::Ours(mine)) = loaded else { panic!("{loaded:?}") };
    tokio::time::sleep(2 * brief).await;
    let taken = lease(&other, key).await?.context("the lease has run out")?;
    assert_eq!(taken.was_taken_over, !ground.is_sqlite());
    let change = |key, lease, id| Change {
        customer: Some(key),
        row: Some(row("e1", at(1)).pack()),
        lease,
        notes: vec![Note::Dead(Box::new(letter(id)))],
        ..Change::default()
    };
    let kept = lease(&one, sound).await?.context("it is free")?.lease;
    let batch = vec![change(key, mine.lease, 1), change(sound, kept, 2)];
    let ends = one.commit_changes(Arc::new(batch)).await?;
    if ground.is_sqlite() {
        assert_eq!(ends, [Committed::Done, Committed::Done], "no lease, none to lose");
        return Ok(());
    }
    assert_eq!(ends, [Committed::LeaseLost, Committed::Done], "of that one alone");
    assert_eq!(one.load_rows(vec![key]).await?, [Ok(Row::default())]);
    assert_eq!(one.count_dead_letters().await?, 1);
    let ends = other.commit_changes(Arc::new(vec![change(key, taken.lease, 3)])).await?;
    assert_eq!(ends, [Committed::Done]);
    let LoadedCustomer { row: found, was_taken_over, .. } =
        lease(&one, key).await?.context("it was given back")?;
    assert_eq!((found, was_taken_over), (row("e1", at(1)), false));
    Ok(())
}

/// A call of whoever had it before may be under way: whoever has it next must know, until a row says so.
pub async fn a_takeover_is_known_until_a_row_is_written(ground: Ground) -> Result<()> {
    let (one, other, about) = two(&ground).await?;
    let key = about.key("C1");
    let brief = Duration::from_millis(50);
    one.lease_customers(Arc::new(vec![key]), brief).await?;
    tokio::time::sleep(2 * brief).await;
    let is_known = !ground.is_sqlite();
    let end = |lease, row| Change { customer: Some(key), lease, row, ..Change::default() };
    for _ in 0..2 {
        let taken = lease(&other, key).await?.context("the lease has run out")?;
        assert_eq!(taken.was_taken_over, is_known);
        let again = lease(&other, key).await?.context("it is ours")?;
        assert_eq!(again.was_taken_over, is_known, "its answer may have been lost");
        other.commit_changes(Arc::new(vec![end(again.lease, None)])).await?;
    }
    let taken = lease(&other, key).await?.context("it is free")?;
    let row = row("e1", at(1)).pack();
    other.commit_changes(Arc::new(vec![end(taken.lease, Some(row))])).await?;
    assert!(!lease(&one, key).await?.context("it is free")?.was_taken_over);
    Ok(())
}

pub async fn a_lease_ends_with_its_commit_unless_it_is_kept(ground: Ground) -> Result<()> {
    let (one, other, about) = two(&ground).await?;
    let key = about.key("C1");
    let mine = lease(&one, key).await?.context("it is free")?.lease;
    for keeps_lease in [true, false] {
        let change = Change { customer: Some(key), lease: mine, keeps_lease, ..Change::default() };
        assert_eq!(one.commit_changes(Arc::new(vec![change])).await?, [Committed::Done]);
        let is_free = lease(&other, key).await?.is_some();
        assert_eq!(is_free, ground.is_sqlite() || !keeps_lease);
    }
    Ok(())
}

pub async fn one_customer_may_be_asked_for_twice_at_once(ground: Ground) -> Result<()> {
    let (one, other, about) = two(&ground).await?;
    let (key, held) = (about.key("C1"), about.key("C2"));
    lease(&other, held).await?.context("it is free")?;
    let found = one.lease_customers(Arc::new(vec![key, held, key]), LEASE).await?;
    let is_ours = |loaded: &Loaded| matches!(loaded, Loaded::Ours(_));
    assert!(is_ours(&found[0]) && is_ours(&found[2]), "{found:?}");
    assert_eq!(matches!(found[1], Loaded::Held), !ground.is_sqlite(), "{found:?}");
    assert!(one.lease_customers(Arc::new(vec![]), LEASE).await?.is_empty());
    assert!(one.commit_changes(Arc::new(vec![])).await?.is_empty());
    Ok(())
}
