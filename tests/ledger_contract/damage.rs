//! A row that cannot be read is its customer's fault alone, and can be replaced.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use customer_relay::domain::packed::Unreadable;
use customer_relay::domain::row::Row;
use customer_relay::ledger::{About, CustomerKey, Loaded, Migration, Store};

use super::ground::{Ground, LEASE, at, once_free, row};

/// Rows that no relay writes, as SQL writes them.
fn garbage(ground: &Ground) -> Vec<String> {
    let sound = row("e1", at(1)).pack();
    let mut flipped = sound.clone();
    flipped[sound.len() / 2] ^= 1;
    let mut newer = sound.clone();
    newer[0] = 3;
    let mut garbage: Vec<String> = [
        &b"\0"[..],
        b" ",
        b"\x01",
        b"\x02",
        b"\x01\xff\xff\xff\xff",
        b"overwritten by hand",
        &[0xff; 5000],
        &sound[..sound.len() - 1],
        &[&sound[..], b"\0"].concat(),
        &flipped,
        &newer,
    ]
    .iter()
    .map(|bytes| ground.bytes(bytes))
    .collect();
    if ground.is_sqlite() {
        garbage.extend(["'a text'", "''", "17", "-1.5"].map(str::to_owned));
    }
    garbage
}

struct Damaged {
    store: Store,
    sound: [CustomerKey; 2],
    bad: CustomerKey,
}

async fn damaged(ground: &Ground) -> Result<Damaged> {
    let (store, about) = ground.open().await?;
    let About { .. } = about;
    let sound = [about.key("C1"), about.key("C3")];
    let bad = about.key("C2");
    let row = ground.bytes(&row("e1", at(1)).pack());
    for key in [sound[0], bad, sound[1]] {
        let key = ground.key(key);
        let insert = format!("INSERT INTO customers (key, row, seen) VALUES ({key}, {row}, 5)");
        ground.by_hand(&insert).await?;
    }
    Ok(Damaged { store, sound, bad })
}

async fn overwrite(ground: &Ground, key: CustomerKey, row: &str) -> Result<()> {
    let key = ground.key(key);
    ground.by_hand(&format!("UPDATE customers SET row = {row} WHERE key = {key}")).await
}

pub async fn an_unreadable_row_is_found_and_concerns_no_other_customer(
    ground: Ground,
) -> Result<()> {
    let Damaged { store, sound: [one, three], bad } = damaged(&ground).await?;
    assert!(store.inspect().await?.unreadable.is_empty());
    let good = row("e1", at(1));
    for garbage in garbage(&ground) {
        overwrite(&ground, bad, &garbage).await?;
        let found = store.lease_customers(Arc::new(vec![one, bad, three]), LEASE).await?;
        let [Loaded::Ours(first), Loaded::Unreadable(error), Loaded::Ours(third)] = &found[..]
        else {
            panic!("{garbage}: {found:?}")
        };
        assert!(first.row == good && third.row == good && !error.is_empty(), "{garbage}");
        let found = store.load_rows(vec![one, bad, three]).await?;
        assert!(found[0] == Ok(good.clone()) && found[1].is_err(), "{garbage}: {found:?}");
        assert_eq!(found[2], Ok(good.clone()));
        let (row, _) = store.load_account(bad).await?.row.context("a row")?;
        assert!(row.is_err(), "{garbage}: {row:?}");
        assert!(!store.load_account(bad).await?.is_empty());
        assert_eq!(store.inspect().await?.unreadable, [bad], "{garbage}");
    }
    // No call is made for it: it is left to whoever mends it.
    if !ground.is_sqlite() {
        let key = ground.key(bad);
        let held = format!("SELECT count(owner) FROM customers WHERE key = {key}");
        assert_eq!(ground.number(&held).await?, 0);
    }
    overwrite(&ground, bad, &ground.bytes(&[9, 1])).await?;
    assert_eq!(store.load_rows(vec![bad]).await?, [Err(Unreadable::Newer(9))]);
    // When it was written, no relay asks before a call.
    let never = format!("UPDATE customers SET seen = {}", i64::MAX);
    ground.by_hand(&never).await?;
    let found = store.lease_customers(Arc::new(vec![one]), LEASE).await?;
    assert!(matches!(&found[..], [Loaded::Ours(_)]), "{found:?}");
    let (found, _) = store.load_account(one).await?.row.context("a row")?;
    assert_eq!(found, Ok(good));
    Ok(())
}

pub async fn an_unreadable_row_is_replaced_and_a_sound_one_never(ground: Ground) -> Result<()> {
    let Damaged { store, sound: [one, three], bad } = damaged(&ground).await?;
    let (old, new) = (row("e1", at(1)), row("e2", at(2)));
    for garbage in garbage(&ground) {
        overwrite(&ground, bad, &garbage).await?;
        assert!(store.replace_unreadable(bad, new.clone(), at(3)).await?, "{garbage}");
        assert_eq!(store.load_rows(vec![bad]).await?, [Ok(new.clone())]);
        assert!(!store.replace_unreadable(bad, old.clone(), at(3)).await?, "it is sound");
        assert_eq!(store.load_rows(vec![bad]).await?, [Ok(new.clone())]);
        overwrite(&ground, bad, &garbage).await?;
        assert!(store.replace_unreadable(bad, Row::default(), at(3)).await?);
        assert_eq!(store.load_rows(vec![bad]).await?, [Ok(Row::default())]);
    }
    for key in [one, three] {
        assert!(!store.replace_unreadable(key, Row::default(), at(3)).await?);
    }
    assert_eq!(store.load_rows(vec![one, three]).await?, [Ok(old.clone()), Ok(old)]);
    assert!(store.inspect().await?.unreadable.is_empty());
    Ok(())
}

pub async fn rows_that_no_relay_writes_stop_no_sweep_and_no_copy(ground: Ground) -> Result<()> {
    let Damaged { store, sound: [one, three], bad } = damaged(&ground).await?;
    let (row, short) = (ground.bytes(&row("e1", at(1)).pack()), ground.bytes(&[7; 15]));
    let mut strange = vec![short, ground.bytes(&[7; 17])];
    if ground.is_sqlite() {
        strange.extend(["'sixteen letters.'", "17"].map(str::to_owned));
        let key = ground.key(bad);
        ground.by_hand(&format!("UPDATE customers SET seen = 'now' WHERE key = {key}")).await?;
        assert_eq!(store.inspect().await?.unreadable, [bad]);
        let damaged = Some((Err(Unreadable::Damaged), at(0)));
        assert_eq!(store.load_account(bad).await?.row, damaged);
    } else {
        overwrite(&ground, bad, &ground.bytes(b"overwritten by hand")).await?;
    }
    for key in &strange {
        let insert = format!("INSERT INTO customers (key, row, seen) VALUES ({key}, {row}, 99)");
        ground.by_hand(&insert).await?;
    }
    store.sweep(Some(at(0)), at(0)).await?;
    drop(store);
    let (from, to) = (ground.target()?, ground.beside()?);
    assert_eq!(once_free(|| Migration::prepare(&from, &to)).await?.copy(|_| ()).await?, 3);
    let (copy, _) = Store::visit(&to).await?.context("a ledger")?;
    assert!(copy.load_rows(vec![one, three]).await?.iter().all(Result::is_ok));
    // Only when it was written could not be read.
    assert_eq!(copy.load_rows(vec![bad]).await?[0].is_ok(), ground.is_sqlite());
    drop(copy);
    let (store, _) = ground.open_again().await?;
    if ground.is_sqlite() {
        assert!(store.replace_unreadable(bad, Row::default(), at(3)).await?);
    }
    let forgotten = store.sweep(Some(at(1_000_000)), at(0)).await?;
    ensure!(forgotten >= 3, "{forgotten}");
    Ok(())
}

pub async fn a_damaged_doubt_is_left_out(ground: Ground) -> Result<()> {
    let Damaged { store, sound: [one, _], .. } = damaged(&ground).await?;
    let key = ground.key(one);
    let mut rows = vec!["7, 0, 5", "-1, 0, 5", "7, 4294967296, 5", "8, 0, 9223372036854775807"];
    rows.extend(ground.is_sqlite().then_some("9, 0, 'now'"));
    for row in rows {
        let columns = "customer, event, source, revision, at, ended";
        let values = format!("{key}, 'e1', {row}, 'in-doubt'");
        ground.by_hand(&format!("INSERT INTO doubts ({columns}) VALUES ({values})")).await?;
    }
    let found = store.load_doubts().await?;
    assert!(
        matches!(&found[..], [(key, note)] if *key == one && note.event.source == 7),
        "{found:?}"
    );
    Ok(())
}
