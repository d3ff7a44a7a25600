//! What operators did is only ever added to.

use anyhow::Result;
use customer_relay::ledger::{AuditEntry, Note};

use super::ground::{Ground, at, doubt, letter, note, waiting};

fn entry(number: i64) -> AuditEntry {
    AuditEntry {
        at: at(number),
        who: format!("operator-{number}@host"),
        act: "archive".into(),
        what: "3 dead letters".into(),
        why: (number % 2 == 0).then(|| "a test".to_owned()),
        count: i64::MAX.unsigned_abs(),
    }
}

pub async fn the_audit_log_can_be_neither_changed_nor_erased(ground: Ground) -> Result<()> {
    let (store, _) = ground.open().await?;
    for number in 1..=3 {
        store.append_audit(entry(number)).await?;
    }
    let mut acts = vec![
        "UPDATE audit SET why = 'another reason'",
        "UPDATE audit SET count = 0 WHERE who LIKE '%-2@host'",
        "DELETE FROM audit",
        "DELETE FROM audit WHERE act = 'archive'",
    ];
    acts.extend((!ground.is_sqlite()).then_some("TRUNCATE audit"));
    for act in acts {
        let error = format!("{:#}", ground.by_hand(act).await.expect_err(act));
        assert!(error.contains("only added to") || error.contains("db error"), "{act}: {error}");
    }
    assert_eq!(store.load_audit(2).await?, [entry(2), entry(3)], "the last ones, oldest first");
    assert_eq!(store.load_audit(9).await?.len(), 3);
    Ok(())
}

pub async fn clearing_keeps_the_audit_log(ground: Ground) -> Result<()> {
    let (store, about) = ground.open().await?;
    store.append_audit(entry(1)).await?;
    let notes = vec![
        Note::Pending(waiting("e1")),
        Note::Dead(Box::new(letter(1))),
        Note::Doubted(doubt("e1")),
    ];
    note(&store, about.key("C1"), notes).await?;
    ground.add_customers(3, &[], 1).await?;
    store.clear().await?;
    let counts = store.count().await?;
    assert_eq!((counts.customers, counts.pending, counts.dead), (0, 0, 0));
    assert_eq!((ground.count("replays").await?, ground.count("doubts").await?), (0, 0));
    assert_eq!(store.load_audit(9).await?, [entry(1)]);
    Ok(())
}
