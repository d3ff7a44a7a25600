//! Customers' rows: written, read, erased, swept.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use customer_relay::domain::row::Row;
use customer_relay::ledger::{Change, Committed, Note, ReplayEnd};
use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

use super::ground::{Ground, at, commit, lease, letter, note, row, waiting};

pub async fn a_row_comes_back_as_it_was(ground: Ground) -> Result<()> {
    let (store, about) = ground.open().await?;
    let (one, two, unknown) = (about.key("C1"), about.key("C\u{1f600}"), about.key(""));
    let nanosecond = Timestamp::from_nanosecond(1_700_000_000_123_456_789)?;
    let rows = [row("e1", nanosecond), row("e2", Timestamp::MIN), row("e3", Timestamp::MAX)];
    for row in &rows {
        for key in [one, two] {
            let change = Change { customer: Some(key), row: Some(row.pack()), ..Change::default() };
            commit(&store, change).await?;
            assert_eq!(lease(&store, key).await?.context("a customer")?.row, *row);
        }
    }
    let found = store.load_rows(vec![two, unknown, one]).await?;
    assert_eq!(found, [Ok(rows[2].clone()), Ok(Row::default()), Ok(rows[2].clone())]);
    assert!(store.load_account(unknown).await?.is_empty());
    assert_eq!(store.count().await?.customers, 2);
    Ok(())
}

pub async fn the_time_of_writing_may_lie_at_either_end(ground: Ground) -> Result<()> {
    let (store, about) = ground.open().await?;
    for (id, time) in [("min", Timestamp::MIN), ("max", Timestamp::MAX), ("1970", at(0))] {
        let (customer, row) = (Some(about.key(id)), Some(row("e1", time).pack()));
        commit(&store, Change { customer, row, at: time, ..Change::default() }).await?;
        let (row, seen) = store.load_account(about.key(id)).await?.row.context("a row")?;
        assert_eq!(seen.as_microsecond(), time.as_microsecond(), "{id}");
        assert!(row.is_ok(), "{id}");
    }
    Ok(())
}

pub async fn an_erased_customer_is_gone_and_others_stay(ground: Ground) -> Result<()> {
    let (store, about) = ground.open().await?;
    for (number, id) in (1..).zip(["C1", "C2"]) {
        let notes = vec![Note::Pending(waiting("e1")), Note::Dead(Box::new(letter(number)))];
        let (customer, row) = (Some(about.key(id)), Some(row("e1", at(1)).pack()));
        commit(&store, Change { customer, row, at: at(2), notes, ..Change::default() }).await?;
    }
    let (key, due) = (about.key("C1"), waiting("e1").due);
    let before = due - SignedDuration::from_secs(1);
    assert!(!store.erase_customer(key, Some(before)).await?, "one waits that is due later");
    assert_eq!(store.load_account(key).await?.pending.len(), 1);
    for unless_due_after in [Some(due), None] {
        assert!(store.erase_customer(key, unless_due_after).await?);
    }
    assert!(store.load_account(about.key("C1")).await?.is_empty());
    let other = store.load_account(about.key("C2")).await?;
    assert_eq!((other.pending.len(), other.dead.len()), (1, 1));
    assert_eq!(other.row.context("a row")?.0, Ok(row("e1", at(1))));
    Ok(())
}

pub async fn what_was_not_seen_for_long_is_swept_in_pages(ground: Ground) -> Result<()> {
    let (store, about) = ground.open().await?;
    ground.add_customers(2500, &row("e1", at(1)).pack(), 99).await?;
    let key = about.key("C1");
    let (customer, row) = (Some(key), Some(row("e1", at(1)).pack()));
    commit(&store, Change { customer, row, at: at(100), ..Change::default() }).await?;
    let end = |id: u128, at: Timestamp| {
        let replay_id = Uuid::from_u128(id);
        Note::Replayed(ReplayEnd { replay_id, ended: "applied".into(), reason: None, at })
    };
    let month = 31 * 24 * 3600;
    let mut late = waiting("e-late");
    late.due = at(month * 2);
    let notes = vec![
        Note::Pending(waiting("e-overdue")),
        Note::Pending(late),
        Note::Dead(Box::new(letter(1))),
        end(1, at(1)),
        end(2, at(month * 2 - 29 * 24 * 3600)),
    ];
    note(&store, key, notes).await?;
    assert_eq!(store.sweep(None, at(0)).await?, 0, "nothing is to be forgotten");
    assert_eq!(store.count().await?.customers, 2501);
    assert_eq!(store.sweep(Some(at(50)), at(month * 2)).await?, 2500);
    let counts = store.count().await?;
    assert_eq!((counts.customers, counts.pending, counts.dead), (1, 1, 1));
    assert_eq!(store.load_account(key).await?.pending[0].event.id, "e-late");
    let ended = |id| store.has_replay_ended(Uuid::from_u128(id));
    assert!(!ended(1).await? && ended(2).await?, "a month is remembered");
    Ok(())
}

/// An operator's look over the whole ledger takes longer than many commits beside it.
pub async fn a_slow_query_holds_up_no_commit(ground: Ground) -> Result<()> {
    const CUSTOMERS: u32 = 200_000;
    let (store, about) = ground.open().await?;
    ground.add_customers(CUSTOMERS, &row("e1", at(1)).pack(), 99).await?;
    let slow = {
        let store = store.clone();
        tokio::spawn(async move {
            let start = Instant::now();
            store.inspect().await.map(|condition| (condition, start.elapsed()))
        })
    };
    let (mut commits, mut slowest) = (0, Duration::ZERO);
    while !slow.is_finished() {
        let start = Instant::now();
        let key = about.key(&format!("C{commits}"));
        let row = Some(row("e1", at(1)).pack());
        let loaded = lease(&store, key).await?.context("a customer")?;
        let change = Change { customer: Some(key), row, lease: loaded.lease, ..Change::default() };
        ensure!(store.commit_changes(Arc::new(vec![change])).await? == [Committed::Done]);
        slowest = slowest.max(start.elapsed());
        commits += 1;
    }
    let (condition, took) = slow.await??;
    println!("{took:?} for a look at all, {commits} commits beside it, {slowest:?} at most");
    assert!(condition.counts.customers >= u64::from(CUSTOMERS), "{condition:?}");
    assert!(condition.faults.is_empty() && condition.unreadable.is_empty(), "{condition:?}");
    ensure!(commits > 1, "the look took no time");
    ensure!(slowest < took, "a commit waited for the look: {slowest:?} of {took:?}");
    Ok(())
}
