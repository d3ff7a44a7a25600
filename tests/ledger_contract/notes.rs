//! What became of events: those that wait, dead letters, ended replays.

use std::time::Duration;

use anyhow::{Context as _, Result};
use customer_relay::domain::dead_letter::Reason;
use customer_relay::domain::letter::Letter;
use customer_relay::domain::text::escape;
use customer_relay::domain::version::EventRef;
use customer_relay::ledger::{Change, Committed, Ledger, Note, PendingNote, ReplayEnd};
use jiff::Timestamp;
use uuid::Uuid;

use super::ground::{Ground, LEASE, at, event, letter, note, waiting};

/// No text in a ledger is longer.
const MAX_TEXT_BYTES: usize = 2048;

fn hostile_texts() -> Vec<String> {
    let mut texts: Vec<String> = [
        "",
        "\0",
        "a\0b",
        "\u{80}\u{85}\u{9f}",
        "\x1b[31mred\x1b[0m\r\n",
        "\u{202e}right to left\u{2066}",
        "\u{1f600}\u{1f469}\u{200d}\u{1f4bb}",
        "\u{ffff}\u{10ffff}\u{fffd}",
        "'; DROP TABLE customers; --",
        "\\x00 $1 ?1 %s {}",
    ]
    .map(str::to_owned)
    .to_vec();
    texts.push("x".repeat(64 * 1024));
    texts.push("\u{1f600}".repeat(16 * 1024));
    texts.push("\0".repeat(64 * 1024));
    texts
}

pub async fn hostile_texts_are_kept_alike(ground: Ground) -> Result<()> {
    let (store, about) = ground.open().await?;
    let ledger = Ledger::serve(store.clone(), about.clone(), LEASE, |_, _| {});
    for (number, text) in (1..).zip(hostile_texts()) {
        let key = about.key(&text);
        let some = || Some(text.clone());
        let waits = PendingNote {
            event: EventRef { id: text.clone(), source: u32::MAX, revision: u32::MAX },
            reason: text.clone(),
            ..waiting("")
        };
        let dead = Letter {
            event: some(),
            detail: some(),
            field: some(),
            rule: some(),
            flags: some(),
            ..letter(number)
        };
        let replay_id = Uuid::from_u128(number);
        let end = ReplayEnd { replay_id, ended: "dead".into(), reason: some(), at: at(1) };
        let notes = vec![Note::Pending(waits), Note::Dead(Box::new(dead)), Note::Replayed(end)];
        let change = Change { customer: Some(key), at: at(1), notes, ..Change::default() };
        let committed =
            tokio::time::timeout(Duration::from_secs(20), ledger.commit(change)).await?;
        assert_eq!(committed, Committed::Done, "{text:?}");

        let kept = escape(&text, MAX_TEXT_BYTES).into_owned();
        let account = store.load_account(key).await?;
        let [waits] = &account.pending[..] else { panic!("{:?}", account.pending) };
        assert_eq!((&waits.event.id, &waits.reason), (&kept, &kept));
        assert_eq!((waits.event.source, waits.event.revision), (u32::MAX, u32::MAX));
        let [dead] = &account.dead[..] else { panic!("{:?}", account.dead) };
        for told in [&dead.event, &dead.detail, &dead.field, &dead.rule, &dead.flags] {
            assert_eq!(told.as_ref(), Some(&kept));
        }
        // What is named as the event names itself is found again.
        let settled = Note::Settled {
            event: EventRef { id: text.clone(), source: u32::MAX, revision: u32::MAX },
        };
        let notes = vec![settled];
        let change = Change { customer: Some(key), at: at(1), notes, ..Change::default() };
        assert_eq!(ledger.commit(change).await, Committed::Done);
        assert!(store.load_account(key).await?.pending.is_empty(), "{text:?}");
    }
    assert!(ledger.health().borrow().is_good());
    Ok(())
}

pub async fn times_of_notes_may_lie_at_either_end(ground: Ground) -> Result<()> {
    let (store, about) = ground.open().await?;
    let key = about.key("C1");
    let waits = PendingNote { since: Timestamp::MIN, due: Timestamp::MAX, ..waiting("e1") };
    let dead = Letter { died: Some(Timestamp::MAX), ..letter(1) };
    let undated = Letter { died: None, ..letter(2) };
    let notes = vec![
        Note::Pending(waits),
        Note::Dead(Box::new(dead)),
        Note::Dead(Box::new(undated.clone())),
    ];
    note(&store, key, notes).await?;
    let account = store.load_account(key).await?;
    let microsecond = Timestamp::as_microsecond;
    assert_eq!(microsecond(account.pending[0].since), Timestamp::MIN.as_microsecond());
    assert_eq!(microsecond(account.pending[0].due), Timestamp::MAX.as_microsecond());
    assert_eq!(account.dead[0], undated, "what has no date is the oldest");
    assert_eq!(account.dead[1].died.map(microsecond), Some(Timestamp::MAX.as_microsecond()));
    assert_eq!(store.count_out_of_step().await?.0, 1);
    Ok(())
}

pub async fn a_dead_letter_written_again_replaces_every_column(ground: Ground) -> Result<()> {
    let (store, about) = ground.open().await?;
    note(&store, about.key("C1"), vec![Note::Dead(Box::new(letter(1)))]).await?;
    let bare = Letter {
        id: Uuid::from_u128(1),
        event: None,
        reason: Reason::Unrecordable,
        detail: None,
        field: None,
        rule: None,
        http_status: None,
        portal_status: None,
        attempts: 0,
        died: None,
        flags: None,
        replays: 0,
        revision: 0,
    };
    let other = Letter {
        event: Some("e-other".into()),
        reason: Reason::Rejected,
        detail: Some("other".into()),
        field: Some("city".into()),
        rule: Some("other".into()),
        http_status: Some(u16::MAX),
        portal_status: Some(i64::MIN),
        attempts: u32::MAX,
        died: Some(at(9)),
        flags: Some("unwitnessed".into()),
        replays: u32::MAX,
        revision: u32::MAX,
        ..bare.clone()
    };
    for again in [bare, other] {
        note(&store, about.key("C2"), vec![Note::Dead(Box::new(again.clone()))]).await?;
        let found = store.load_dead_letters().await?;
        assert_eq!(found, [(Some(about.key("C2")), again.clone())]);
        let same =
            format!("SELECT count(*) FROM dead WHERE fingerprint = '{}'", again.fingerprint());
        assert_eq!(ground.number(&same).await?, 1);
    }
    assert_eq!(store.count_dead_letters().await?, 1);
    assert!(store.load_account(about.key("C1")).await?.is_empty());
    Ok(())
}

pub async fn an_event_that_waits_again_keeps_its_since(ground: Ground) -> Result<()> {
    let (store, about) = ground.open().await?;
    let key = about.key("C1");
    note(&store, key, vec![Note::Pending(waiting("e1"))]).await?;
    let again = PendingNote {
        attempts: u32::MAX,
        since: at(7),
        due: at(8),
        reason: "rejected".into(),
        tier_ms: None,
        ..waiting("e1")
    };
    note(&store, key, vec![Note::Pending(again.clone())]).await?;
    let kept = PendingNote { since: waiting("e1").since, ..again };
    assert_eq!(store.load_account(key).await?.pending, [kept]);
    Ok(())
}

pub async fn only_the_event_that_is_settled_waits_no_more(ground: Ground) -> Result<()> {
    let (store, about) = ground.open().await?;
    let (key, other) = (about.key("C1"), about.key("C2"));
    let named = |source, revision| EventRef { source, revision, ..event("e1") };
    let refs = [named(7, 0), named(7, 1), named(8, 0)];
    let waits = |event: &EventRef| PendingNote { event: event.clone(), ..waiting("") };
    note(&store, key, refs.iter().map(|event| Note::Pending(waits(event))).collect()).await?;
    note(&store, other, vec![Note::Pending(waits(&refs[0]))]).await?;
    let settled = refs[0].clone();
    note(&store, key, vec![Note::Settled { event: settled.clone() }]).await?;
    let left = store.load_account(key).await?.pending;
    assert_eq!(left.len(), 2);
    assert!(left.iter().all(|waits| waits.event != settled));
    assert_eq!(store.load_account(other).await?.pending.len(), 1);
    let dead = vec![Note::Dead(Box::new(letter(1))), Note::Dead(Box::new(letter(2)))];
    note(&store, key, dead).await?;
    note(&store, key, vec![Note::Gone { dead_id: Uuid::from_u128(1) }]).await?;
    let (_, left) = store.load_dead_letters().await?.pop().context("a dead letter")?;
    assert_eq!((left, store.count_dead_letters().await?), (letter(2), 1));
    Ok(())
}

pub async fn how_a_replay_ended_first_stands(ground: Ground) -> Result<()> {
    let (store, about) = ground.open().await?;
    let end = |id: u128, ended: &str, reason: Option<&str>| {
        Note::Replayed(ReplayEnd {
            replay_id: Uuid::from_u128(id),
            ended: ended.into(),
            reason: reason.map(str::to_owned),
            at: at(1),
        })
    };
    let of_one_plan = 0x0123_4567_89ab_7000_8000_0000_0000_0000;
    let notes = vec![
        end(of_one_plan, "applied", None),
        end(of_one_plan + 1, "dead", Some("rejected")),
        end(of_one_plan + 2, "dead", Some("rejected")),
        end(of_one_plan, "dead", Some("rejected")),
        end(u128::MAX, "applied", None),
    ];
    note(&store, about.key("C1"), notes).await?;
    note(&store, about.key("C1"), vec![end(of_one_plan + 1, "applied", None)]).await?;
    let counts = store.count_replays("01234567-89ab-7000-8000".into()).await?;
    let rejected = Some("rejected".to_owned());
    assert_eq!(counts, [("applied".to_owned(), None, 1), ("dead".to_owned(), rejected, 2)]);
    assert_eq!(store.count_replays("ffffffff".into()).await?.len(), 1);
    assert!(store.count_replays("00000000".into()).await?.is_empty());
    assert!(store.has_replay_ended(Uuid::from_u128(u128::MAX)).await?);
    assert!(!store.has_replay_ended(Uuid::nil()).await?);
    Ok(())
}

pub async fn customers_out_of_step_are_counted(ground: Ground) -> Result<()> {
    let (store, about) = ground.open().await?;
    assert_eq!(store.count_out_of_step().await?, (0, None));
    let undated = Letter { died: None, ..letter(1) };
    note(&store, about.key("C0"), vec![Note::Dead(Box::new(undated))]).await?;
    assert_eq!(store.count_out_of_step().await?, (1, None), "nothing says since when");
    let waits = vec![Note::Pending(waiting("e1")), Note::Pending(waiting("e2"))];
    note(&store, about.key("C1"), waits).await?;
    note(&store, about.key("C2"), vec![Note::Dead(Box::new(letter(2)))]).await?;
    store.note(vec![(None, Note::Dead(Box::new(letter(3))))]).await?;
    assert_eq!(store.count_out_of_step().await?, (3, Some(waiting("e1").since)));
    Ok(())
}

pub async fn the_index_is_made_anew_but_for_what_came_since(ground: Ground) -> Result<()> {
    let (store, about) = ground.open().await?;
    let died = |id, second| Letter { died: Some(at(second)), ..letter(id) };
    let notes = [died(1, 10), died(2, 20), died(3, 30)].map(|it| Note::Dead(Box::new(it)));
    note(&store, about.key("C1"), notes.to_vec()).await?;
    let found = vec![(Some(about.key("C2")), died(2, 20)), (None, died(4, 5))];
    store.replace_dead_letters(found, at(30)).await?;
    let index = store.load_dead_letters().await?;
    let ids: Vec<u128> = index.iter().map(|(_, letter)| letter.id.as_u128()).collect();
    assert_eq!(ids, [4, 2, 3], "oldest first");
    let owners: Vec<_> = index.iter().map(|(key, _)| *key).collect();
    assert_eq!(owners, [None, Some(about.key("C2")), Some(about.key("C1"))]);
    Ok(())
}

pub async fn of_an_account_with_very_many_rows_the_newest_are_read(ground: Ground) -> Result<()> {
    const ROWS: i64 = 1200;
    let (store, about) = ground.open().await?;
    let key = about.key("C1");
    let (mut notes, mut died) = (Vec::new(), at(0));
    for number in 1..=ROWS {
        // Who came last is due first.
        let (since, due) = (at(number), at(1_000_000 - number));
        notes.push(Note::Pending(PendingNote { since, due, ..waiting(&format!("e{number}")) }));
        died = at(number);
        let id = u128::from(number.unsigned_abs());
        notes.push(Note::Dead(Box::new(Letter { died: Some(died), ..letter(id) })));
    }
    note(&store, key, notes).await?;
    let account = store.load_account(key).await?;
    assert_eq!((account.pending_in_all, account.dead_in_all), (1200, 1200));
    assert_eq!((account.pending.len(), account.dead.len()), (1000, 1000));
    assert_eq!((account.dead[0].died, account.dead[999].died), (Some(at(201)), Some(died)));
    assert_eq!((&*account.pending[0].event.id, &*account.pending[999].event.id), ("e1200", "e201"));
    let other = store.load_account(about.key("C2")).await?;
    assert_eq!((other.pending_in_all, other.dead_in_all), (0, 0));
    Ok(())
}
