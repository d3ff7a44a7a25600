//! The PostgreSQL that tests are given: empty databases, and a server that can be killed.

use anyhow::Result;
use tokio_postgres::{Client, NoTls};

use crate::harness::{Context, suite};

suite!(
    Postgres: each_test_has_a_database_of_its_own;
    OwnPostgres: a_server_that_was_killed_comes_back_with_its_data
);

pub async fn connect(url: &str) -> Result<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

async fn each_test_has_a_database_of_its_own(context: Context) -> Result<()> {
    let postgres = context.postgres().await?;
    let (mine, other) = tokio::try_join!(postgres.database(), postgres.database())?;
    assert_ne!(mine, other);
    for url in [&mine, &other] {
        let client = connect(url).await?;
        client.batch_execute("CREATE TABLE of_its_own (id int)").await?;
    }
    Ok(())
}

async fn a_server_that_was_killed_comes_back_with_its_data(context: Context) -> Result<()> {
    let mut postgres = context.own_postgres().await?;
    let url = postgres.database().await?;
    let before = connect(&url).await?;
    before.batch_execute("CREATE TABLE kept (id int); INSERT INTO kept VALUES (7)").await?;
    postgres.kill().await?;
    assert!(before.batch_execute("SELECT 1").await.is_err(), "a killed server answers");
    assert!(connect(&url).await.is_err(), "a killed server accepts a connection");
    postgres.start_again().await?;
    let row = connect(&url).await?.query_one("SELECT id FROM kept", &[]).await?;
    assert_eq!(row.try_get::<_, i32>(0)?, 7);
    postgres.stop().await
}
