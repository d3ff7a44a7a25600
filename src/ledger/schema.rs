//! The tables, step by step: a ledger of an older relay is brought up to date, one of a newer relay
//! is refused. Both backends have the same tables.

/// Steps for SQLite; `user_version` counts those that were taken.
pub(super) const SQLITE: [&str; 1] = ["
    CREATE TABLE about (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        id TEXT NOT NULL,
        salt BLOB NOT NULL,
        created INTEGER NOT NULL
    );
    CREATE TABLE customers (
        key BLOB PRIMARY KEY,
        row BLOB NOT NULL,
        seen INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE pending (
        customer BLOB NOT NULL,
        event TEXT NOT NULL,
        attempts INTEGER NOT NULL,
        due INTEGER NOT NULL,
        reason TEXT NOT NULL,
        PRIMARY KEY (customer, event)
    ) WITHOUT ROWID;
    CREATE TABLE dead (
        dead_id TEXT PRIMARY KEY,
        customer BLOB,
        event TEXT,
        reason TEXT NOT NULL,
        field TEXT,
        rule TEXT,
        http_status INTEGER,
        portal_status INTEGER,
        attempts INTEGER NOT NULL,
        died INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX dead_by_customer ON dead (customer);
"];

/// Steps for PostgreSQL; `relay_schema` counts those that were taken. Times are microseconds since
/// 1970, as in SQLite; leases alone go by the server's clock.
pub(super) const POSTGRES: [&str; 1] = ["
    CREATE TABLE about (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        id TEXT NOT NULL,
        salt BYTEA NOT NULL,
        created BIGINT NOT NULL
    );
    CREATE TABLE customers (
        key BYTEA PRIMARY KEY,
        row BYTEA NOT NULL,
        seen BIGINT NOT NULL,
        owner TEXT,
        fence BIGINT NOT NULL DEFAULT 0,
        leased_until TIMESTAMPTZ,
        was_taken_over BOOLEAN NOT NULL DEFAULT FALSE
    );
    CREATE TABLE pending (
        customer BYTEA NOT NULL,
        event TEXT NOT NULL,
        attempts BIGINT NOT NULL,
        due BIGINT NOT NULL,
        reason TEXT NOT NULL,
        PRIMARY KEY (customer, event)
    );
    CREATE TABLE dead (
        dead_id TEXT PRIMARY KEY,
        customer BYTEA,
        event TEXT,
        reason TEXT NOT NULL,
        field TEXT,
        rule TEXT,
        http_status BIGINT,
        portal_status BIGINT,
        attempts BIGINT NOT NULL,
        died BIGINT NOT NULL
    );
    CREATE INDEX dead_by_customer ON dead (customer);
"];
