//! How far a ledger at a server has come, and which events were in doubt since an older copy was put in
//! place.

use deadpool_postgres::GenericClient;
use jiff::Timestamp;
use tokio_postgres::Row as Columns;

use super::super::change::DoubtNote;
use super::super::model::{Doubted, Numbered};
use super::super::tables::DOUBTS;
use super::Postgres;
use super::fault::Fault;
use super::rows::{get, key, number, readable, time};
use crate::domain::doubt::Gap;
use crate::domain::version::EventRef;

const SELECT: &str =
    "SELECT number, nullif(numbered_at, 0) AS numbered_at, gap_from, gap_until FROM about";

pub(super) async fn load(postgres: &Postgres) -> Result<Numbered, Fault> {
    let client = postgres.client().await?;
    let found = select(&client).await?;
    Ok(Numbered { timeline: timeline(&client).await?, ..found })
}

/// Raises the number, and joins a gap with the one there is. Relays that raise it together take
/// their turn.
pub(super) async fn raise(
    postgres: &Postgres,
    gap: Option<Gap>,
    at_least: u64,
    at: Timestamp,
) -> Result<Numbered, Fault> {
    let mut client = postgres.client().await?;
    let timeline = timeline(&client).await?;
    let transaction = client.transaction().await?;
    let at_least = i64::try_from(at_least).expect("it grows by one a minute");
    let raise = "UPDATE about SET number = greatest(number, $1) + 1,
                                  numbered_at = greatest(numbered_at, $2)";
    transaction.execute(raise, &[&at_least, &at.as_microsecond()]).await?;
    if let Some(gap) = gap {
        let Gap { from, until } = gap.join(select(&transaction).await?.gap);
        let update = "UPDATE about SET gap_from = $1, gap_until = $2";
        transaction.execute(update, &[&from.as_microsecond(), &until.as_microsecond()]).await?;
    }
    let raised = select(&transaction).await?;
    transaction.commit().await?;
    Ok(Numbered { timeline, ..raised })
}

pub(super) async fn close_gap(postgres: &Postgres) -> Result<(), Fault> {
    let update = "UPDATE about SET gap_from = NULL, gap_until = NULL";
    Ok(postgres.client().await?.batch_execute(update).await?)
}

pub(super) async fn load_doubts(postgres: &Postgres) -> Result<Vec<Doubted>, Fault> {
    let select = DOUBTS.select("ORDER BY at");
    Ok(readable("doubts", &postgres.client().await?.query(&select, &[]).await?, doubt))
}

async fn select(client: &impl GenericClient) -> Result<Numbered, Fault> {
    let found = client.query_opt(SELECT, &[]).await?;
    let found = found.ok_or_else(|| Fault::Other("it has no id: it is no ledger yet".into()))?;
    let (from, until) = (optional_time(&found, 2)?, optional_time(&found, 3)?);
    let gap = from.zip(until).map(|(from, until)| Gap { from, until });
    Ok(Numbered { number: number(&found, 0)?, at: optional_time(&found, 1)?, gap, timeline: None })
}

/// Where in its own history the server is: the first 8 digits of its current WAL file's name. Not
/// every server tells: a standby cannot, a managed one may not let us ask.
async fn timeline(client: &impl GenericClient) -> Result<Option<String>, Fault> {
    let select = "SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)";
    match client.query_one(select, &[]).await {
        Ok(found) => Ok(get::<Option<String>>(&found, 0)?),
        // The server has answered; it only does not tell.
        Err(error) if error.as_db_error().is_some() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn optional_time(columns: &Columns, index: usize) -> Result<Option<Timestamp>, Fault> {
    match get::<Option<i64>>(columns, index)? {
        Some(_) => time(columns, index).map(Some),
        None => Ok(None),
    }
}

fn doubt(columns: &Columns) -> Result<Doubted, Fault> {
    let event = EventRef {
        id: get(columns, 1)?,
        source: number(columns, 2)?,
        revision: number(columns, 3)?,
    };
    let note = DoubtNote { event, at: time(columns, 4)?, ended: get(columns, 5)?, is_past: false };
    Ok((key(columns, 0)?, note))
}
