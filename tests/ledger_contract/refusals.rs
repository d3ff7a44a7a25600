//! What a ledger refuses for what is in it is told from what is the ledger's own fault, and of a
//! batch with such a change nothing is recorded.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use customer_relay::domain::row::Row;
use customer_relay::ledger::{About, Change, Committed, LedgerError, Note, ReplayEnd, Store};
use uuid::Uuid;

use super::ground::{Ground, at, lease, letter, row, waiting};

const TABLES: [&str; 4] = ["customers", "pending", "dead", "replays"];

/// What of a table names the change that is to be refused.
fn condition(ground: &Ground, table: &str, about: &About) -> String {
    match table {
        "customers" => {
            format!("NEW.key = {} AND length(NEW.row) > 0", ground.key(about.key("C2")))
        }
        "pending" => "NEW.event = 'e2'".to_owned(),
        "dead" => format!("NEW.dead_id = '{}'", Uuid::from_u128(2)),
        _ => format!("NEW.replay_id = '{}'", Uuid::from_u128(2)),
    }
}

/// Three customers' changes; each writes to every table.
async fn batch(store: &Store, about: &About) -> Result<Arc<Vec<Change>>> {
    let mut changes = Vec::new();
    for number in 1..=3 {
        let key = about.key(&format!("C{number}"));
        let replay_id = Uuid::from_u128(number);
        let end = ReplayEnd { replay_id, ended: "applied".into(), reason: None, at: at(1) };
        changes.push(Change {
            customer: Some(key),
            row: Some(row(&format!("e{number}"), at(1)).pack()),
            lease: lease(store, key).await?.context("it is free")?.lease,
            notes: vec![
                Note::Pending(waiting(&format!("e{number}"))),
                Note::Dead(Box::new(letter(number))),
                Note::Replayed(end),
            ],
            ..Change::default()
        });
    }
    Ok(Arc::new(changes))
}

/// For each table: refused as a whole while `refuse` holds, and taken as a whole after `allow`.
async fn refused_with_its_batch(
    ground: Ground,
    refuse: impl Fn(&str, &str) -> String,
    allow: impl Fn(&str) -> String,
) -> Result<()> {
    for table in TABLES {
        let ground = ground.another().await?;
        let (store, about) = ground.open().await?;
        ground.by_hand(&refuse(table, &condition(&ground, table, &about))).await?;
        let changes = batch(&store, &about).await?;
        let refused = store.commit_changes(Arc::clone(&changes)).await;
        ensure!(matches!(refused, Err(LedgerError::Refused(_))), "{table}: {refused:?}");
        let counts = store.count().await?;
        assert_eq!((counts.pending, counts.dead), (0, 0), "{table}");
        assert_eq!(ground.count("replays").await?, 0, "{table}");
        let keys = ["C1", "C2", "C3"].map(|id| about.key(id)).to_vec();
        let nothing = Ok(Row::default());
        assert_eq!(store.load_rows(keys).await?, vec![nothing; 3], "{table}");
        // By itself each of the others is taken.
        let one = Arc::new(vec![changes[0].clone()]);
        assert_eq!(store.commit_changes(one).await?, [Committed::Done], "{table}");
        ground.by_hand(&allow(table)).await?;
        let others = Arc::new(changes[1..].to_vec());
        assert_eq!(store.commit_changes(others).await?, [Committed::Done, Committed::Done]);
        assert_eq!(store.count().await?.pending, 3, "{table}");
    }
    Ok(())
}

pub async fn a_change_that_a_rule_refuses_is_refused_with_its_batch(ground: Ground) -> Result<()> {
    let is_sqlite = ground.is_sqlite();
    let refuse = |table: &str, condition: &str| {
        let condition = condition.replace("NEW.", "");
        if is_sqlite {
            // SQLite adds no rule to a table but with a column.
            format!("ALTER TABLE {table} ADD COLUMN by_hand INTEGER CHECK (NOT ({condition}))")
        } else {
            format!("ALTER TABLE {table} ADD CONSTRAINT by_hand CHECK (NOT ({condition}))")
        }
    };
    let allow = |table: &str| {
        let kind = if is_sqlite { "COLUMN" } else { "CONSTRAINT" };
        format!("ALTER TABLE {table} DROP {kind} by_hand")
    };
    refused_with_its_batch(ground, refuse, allow).await
}

pub async fn a_change_that_a_trigger_refuses_is_refused_with_its_batch(
    ground: Ground,
) -> Result<()> {
    let is_sqlite = ground.is_sqlite();
    let refuse = |table: &str, condition: &str| {
        if is_sqlite {
            ["INSERT", "UPDATE"]
                .map(|act| {
                    format!(
                        "CREATE TRIGGER by_hand_{act} BEFORE {act} ON {table} WHEN {condition}
                         BEGIN SELECT RAISE (ABORT, 'not this one'); END;"
                    )
                })
                .concat()
        } else {
            format!(
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
                     'BEGIN RAISE EXCEPTION ''not this one''; END';
                 CREATE TRIGGER by_hand BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW
                     WHEN ({condition}) EXECUTE FUNCTION refuse()"
            )
        }
    };
    let allow = |table: &str| {
        if is_sqlite {
            "DROP TRIGGER by_hand_INSERT; DROP TRIGGER by_hand_UPDATE".to_owned()
        } else {
            format!("DROP TRIGGER by_hand ON {table}")
        }
    };
    refused_with_its_batch(ground, refuse, allow).await
}

pub async fn a_missing_table_or_column_is_the_ledgers_own_fault(ground: Ground) -> Result<()> {
    for table in TABLES {
        let column = if table == "customers" { "seen" } else { "reason" };
        for (harm, mend) in [
            (
                format!("ALTER TABLE {table} RENAME TO elsewhere"),
                format!("ALTER TABLE elsewhere RENAME TO {table}"),
            ),
            (
                format!("ALTER TABLE {table} RENAME COLUMN {column} TO elsewhere"),
                format!("ALTER TABLE {table} RENAME COLUMN elsewhere TO {column}"),
            ),
        ] {
            let ground = ground.another().await?;
            let (store, about) = ground.open().await?;
            let changes = batch(&store, &about).await?;
            ground.by_hand(&harm).await?;
            for _ in 0..2 {
                let failed = store.commit_changes(Arc::clone(&changes)).await;
                ensure!(matches!(failed, Err(LedgerError::Broken(_))), "{harm}: {failed:?}");
            }
            ground.by_hand(&mend).await?;
            let ends = store.commit_changes(changes).await?;
            assert_eq!(ends, [const { Committed::Done }; 3], "{mend}");
            assert_eq!(store.count().await?.pending, 3);
        }
    }
    Ok(())
}
