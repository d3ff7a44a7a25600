//! What a person does to a ledger with the right tool, past any relay.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use customer_relay::ledger::{CustomerKey, Target};

use crate::postgres::connect;

/// A ledger's place, to be changed by hand.
#[derive(Clone)]
pub enum Hand {
    File(PathBuf),
    Server(String),
}

impl Hand {
    pub fn is_sqlite(&self) -> bool {
        matches!(self, Hand::File(_))
    }

    pub fn target(&self) -> Result<Target> {
        Ok(match self {
            Hand::File(path) => Target::Sqlite(path.clone()),
            Hand::Server(url) => Target::parse(url)?,
        })
    }

    pub async fn act(&self, sql: &str) -> Result<()> {
        match self {
            Hand::File(path) => {
                let file = rusqlite::Connection::open(path)?;
                file.busy_timeout(Duration::from_secs(10))?;
                Ok(file.execute_batch(sql)?)
            }
            Hand::Server(url) => Ok(connect(url).await?.batch_execute(sql).await?),
        }
    }

    /// A session that has done this and not said the end of it: what it has locked stays so while it
    /// lives.
    pub async fn begin(&self, sql: &str) -> Result<tokio_postgres::Client> {
        let Hand::Server(url) = self else { bail!("a file has one writer") };
        let session = connect(url).await?;
        session.batch_execute(&format!("BEGIN; {sql}")).await?;
        Ok(session)
    }

    /// The one number that a query finds.
    pub async fn number(&self, query: &str) -> Result<i64> {
        match self {
            Hand::File(path) => {
                Ok(rusqlite::Connection::open(path)?.query_row(query, [], |row| row.get(0))?)
            }
            Hand::Server(url) => Ok(connect(url).await?.query_one(query, &[]).await?.try_get(0)?),
        }
    }

    /// Bytes as SQL writes them.
    pub fn bytes(&self, bytes: &[u8]) -> String {
        let digits: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        self.hex(&digits.concat())
    }

    pub fn key(&self, key: CustomerKey) -> String {
        self.hex(&key.to_string())
    }

    fn hex(&self, hex: &str) -> String {
        if self.is_sqlite() { format!("x'{hex}'") } else { format!("'\\x{hex}'::bytea") }
    }

    /// A rule that refuses rows of a table for which this holds; columns are written `NEW.event`.
    pub async fn add_rule(&self, table: &str, condition: &str) -> Result<()> {
        let sql = if self.is_sqlite() {
            let trigger = |act| {
                format!(
                    "CREATE TRIGGER by_hand_{act} BEFORE {act} ON {table} WHEN {condition}
                     BEGIN SELECT RAISE (ABORT, 'a rule made by hand'); END;"
                )
            };
            ["INSERT", "UPDATE"].map(trigger).concat()
        } else {
            let condition = condition.replace("NEW.", "");
            format!(
                "ALTER TABLE {table} ADD CONSTRAINT by_hand CHECK (NOT ({condition})) NOT VALID"
            )
        };
        self.act(&sql).await
    }

    /// Refuses rows that change, and takes new ones.
    pub async fn add_rule_on_changes(&self, table: &str) -> Result<()> {
        let sql = if self.is_sqlite() {
            format!(
                "CREATE TRIGGER by_hand_changes BEFORE UPDATE ON {table}
                 BEGIN SELECT RAISE (ABORT, 'a rule made by hand'); END;"
            )
        } else {
            format!(
                "CREATE FUNCTION by_hand() RETURNS trigger LANGUAGE plpgsql AS $$
                 BEGIN RAISE check_violation USING MESSAGE = 'a rule made by hand'; END $$;
                 CREATE TRIGGER by_hand_changes BEFORE UPDATE ON {table}
                 FOR EACH ROW EXECUTE FUNCTION by_hand()"
            )
        };
        self.act(&sql).await
    }

    pub async fn remove_rule_on_changes(&self, table: &str) -> Result<()> {
        let on = if self.is_sqlite() { String::new() } else { format!(" ON {table}") };
        self.act(&format!("DROP TRIGGER by_hand_changes{on}")).await
    }

    pub async fn remove_rule(&self, table: &str) -> Result<()> {
        let sql = if self.is_sqlite() {
            "DROP TRIGGER by_hand_INSERT; DROP TRIGGER by_hand_UPDATE".to_owned()
        } else {
            format!("ALTER TABLE {table} DROP CONSTRAINT by_hand")
        };
        self.act(&sql).await
    }
}
