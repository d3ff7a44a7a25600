//! How a ledger comes to be, is found again, and grows with the releases.

use anyhow::{Context as _, Result};
use customer_relay::ledger::LedgerError;

use super::ground::Ground;

const SQLITE_STEPS: [&str; 3] = [
    include_str!("../../src/ledger/sqlite/steps/1.sql"),
    include_str!("../../src/ledger/sqlite/steps/2.sql"),
    include_str!("../../src/ledger/sqlite/steps/3.sql"),
];
const POSTGRES_STEPS: [&str; 3] = [
    include_str!("../../src/ledger/postgres/steps/1.sql"),
    include_str!("../../src/ledger/postgres/steps/2.sql"),
    include_str!("../../src/ledger/postgres/steps/3.sql"),
];

pub async fn what_was_created_is_found_again(ground: Ground) -> Result<()> {
    let (store, about) = ground.open().await?;
    assert_eq!(store.load_about().await?, Some(about.clone()));
    assert_eq!(store.is_shared(), !ground.is_sqlite());
    let (visitor, seen) = ground.visit().await?.context("a ledger")?;
    assert_eq!(seen, about);
    drop((store, visitor));
    let (_store, again) = ground.open_again().await?;
    // Times of a ledger are whole microseconds.
    assert_eq!((again.id, again.salt), (about.id, about.salt));
    assert_eq!(again.created.as_microsecond(), about.created.as_microsecond());
    Ok(())
}

pub async fn what_is_not_there_is_missing_to_a_visitor_and_nothing_is_made(
    ground: Ground,
) -> Result<()> {
    let error = ground.visit().await.err().context("there is none")?;
    assert!(matches!(error, LedgerError::Missing(_)), "{error}");
    assert!(error.is_out_of_reach() && error.to_string().contains("customer-relay run"), "{error}");
    assert!(ground.visit().await.is_err(), "the first visit made it");
    Ok(())
}

pub async fn a_second_relay_is_kept_out_or_works_along(ground: Ground) -> Result<()> {
    let (first, about) = ground.open().await?;
    let second = ground.try_open().await;
    if ground.is_sqlite() {
        assert!(matches!(second, Err(LedgerError::InUse(_))), "{second:?}");
        assert_eq!(first.find_other_users().await?, None);
        return Ok(());
    }
    let (second, same) = second?.context("a ledger")?;
    assert_eq!(same.id, about.id);
    let users = first.find_other_users().await?.context("another user")?;
    assert!(users.contains("other connections"), "{users}");
    // Of two that make it at once, one is quicker, and both know which.
    let other = customer_relay::ledger::About { id: uuid::Uuid::now_v7(), ..about.clone() };
    assert_eq!(second.create_ledger(other).await?.id, about.id);
    Ok(())
}

fn set_steps_taken(ground: &Ground, taken: usize) -> String {
    if ground.is_sqlite() {
        format!("PRAGMA user_version = {taken}")
    } else {
        format!(
            "CREATE TABLE IF NOT EXISTS relay_schema (taken BIGINT NOT NULL);
             DELETE FROM relay_schema; INSERT INTO relay_schema VALUES ({taken})"
        )
    }
}

async fn steps_taken(ground: &Ground) -> Result<i64> {
    let query = if ground.is_sqlite() {
        "SELECT user_version FROM pragma_user_version"
    } else {
        "SELECT taken FROM relay_schema"
    };
    ground.number(query).await
}

pub async fn tables_of_a_newer_version_are_refused(ground: Ground) -> Result<()> {
    drop(ground.open().await?);
    ground.by_hand(&set_steps_taken(&ground, 99)).await?;
    let error = ground.try_open().await.err().context("a newer ledger was opened")?;
    assert!(matches!(error, LedgerError::Broken(_)), "{error}");
    assert!(error.to_string().contains("newer version: run that version"), "{error}");
    let error = ground.visit().await.err().context("a newer ledger was visited")?;
    assert!(error.to_string().contains("of another version"), "{error}");
    assert_eq!(steps_taken(&ground).await?, 99, "it was changed");
    Ok(())
}

/// A ledger as it was after so many steps, with one customer of form 1's time, one event that waits,
/// and one dead letter.
async fn make_older(ground: &Ground, steps: usize) -> Result<()> {
    let all = if ground.is_sqlite() { &SQLITE_STEPS } else { &POSTGRES_STEPS };
    for step in &all[..steps] {
        ground.by_hand(step).await?;
    }
    ground.by_hand(&set_steps_taken(ground, steps)).await?;
    let key = ground.bytes(&[7; 16]);
    let salt = ground.bytes(&[1; 16]);
    ground
        .by_hand(&format!(
            "INSERT INTO about (one, id, salt, created)
                 VALUES (1, '019a0000-0000-7000-8000-000000000000', {salt}, 5);
             INSERT INTO customers (key, row, seen) VALUES ({key}, {row}, 6);
             INSERT INTO pending (customer, event, attempts, due, reason)
                 VALUES ({key}, 'e-waits', 2, 7, 'failed');
             INSERT INTO dead (dead_id, customer, event, reason, attempts, died)
                 VALUES ('019a0000-0000-7000-8000-000000000001', {key}, 'e-dead', 'rejected', 9, 8)",
            row = ground.bytes(&[]),
        ))
        .await
}

pub async fn tables_of_every_older_version_are_brought_up_to_date(ground: Ground) -> Result<()> {
    for steps in 1..=SQLITE_STEPS.len() {
        let ground = ground.another().await?;
        make_older(&ground, steps).await?;
        let error = ground.visit().await.err().context("an older ledger was visited")?;
        assert!(error.to_string().contains("older ledger up to date"), "{error}");
        let (store, about) = ground.open().await?;
        assert_eq!(about.id.to_string(), "019a0000-0000-7000-8000-000000000000");
        assert_eq!(steps_taken(&ground).await?, 4);
        let counts = store.count().await?;
        assert_eq!((counts.customers, counts.pending, counts.dead), (1, 1, 1), "step {steps}");
        let (_, letter) = store.load_dead_letters().await?.pop().context("a dead letter")?;
        assert_eq!((letter.event.as_deref(), letter.attempts), (Some("e-dead"), 9));
        assert_eq!((letter.replays, letter.revision, letter.flags), (0, 0, None));
        let (customers, since) = store.count_out_of_step().await?;
        assert!(customers == 1 && since.is_some(), "{since:?}");
        assert!(store.load_audit(9).await?.is_empty());
        // What was older is what would have been made today.
        assert_eq!(ground.count("plans").await?, 0);
    }
    Ok(())
}

pub async fn a_step_that_cannot_be_taken_changes_nothing(ground: Ground) -> Result<()> {
    make_older(&ground, 3).await?;
    // Somebody's own table stands where the last step makes one of its last.
    ground.by_hand("CREATE TABLE claims (mine INTEGER)").await?;
    for _ in 0..2 {
        let error = ground.try_open().await.err().context("the step was taken")?;
        assert!(matches!(error, LedgerError::Broken(_)), "{error:?}");
        assert!(error.to_string().contains("claims"), "{error}");
        assert_eq!(steps_taken(&ground).await?, 3);
        assert!(ground.count("timeline").await.is_err(), "half of the step was taken");
        assert!(ground.number("SELECT tier_ms FROM pending").await.is_err());
        assert_eq!(ground.count("pending").await?, 1);
    }
    ground.by_hand("DROP TABLE claims").await?;
    let (store, _) = ground.open().await?;
    assert_eq!(store.count().await?.pending, 1);
    Ok(())
}
