//! The tables, step by step: a ledger of an older relay is brought up to date, one of a newer relay
//! is refused. Both backends have the same tables.

/// To whoever only looks.
pub(super) const ANOTHER_VERSION: &str = "its tables are not those of this version; \
    `customer-relay run` brings an older ledger up to date";

/// Steps for SQLite; `user_version` counts those that were taken.
pub(super) const SQLITE: [&str; 3] = [
    "
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
",
    "
    ALTER TABLE dead ADD COLUMN detail TEXT;
    ALTER TABLE dead ADD COLUMN flags TEXT;
    ALTER TABLE dead ADD COLUMN replays INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE dead ADD COLUMN revision INTEGER NOT NULL DEFAULT 0;
    CREATE TABLE replays (
        replay_id TEXT PRIMARY KEY,
        ended TEXT NOT NULL,
        reason TEXT,
        at INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE audit (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        at INTEGER NOT NULL,
        who TEXT NOT NULL,
        act TEXT NOT NULL,
        what TEXT NOT NULL,
        why TEXT,
        count INTEGER NOT NULL
    );
    CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit
        BEGIN SELECT RAISE (ABORT, 'the audit log is only added to'); END;
    CREATE TRIGGER audit_is_not_erased BEFORE DELETE ON audit
        BEGIN SELECT RAISE (ABORT, 'the audit log is only added to'); END;
",
    // When the event first went to a retry tier.
    "
    ALTER TABLE pending ADD COLUMN since INTEGER NOT NULL DEFAULT 0;
    UPDATE pending SET since = CAST(unixepoch('subsec') * 1000000 AS INTEGER);
",
];

/// Steps for PostgreSQL; `relay_schema` counts those that were taken. Times are microseconds since
/// 1970, as in SQLite; leases alone go by the server's clock.
pub(super) const POSTGRES: [&str; 3] = [
    "
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
",
    "
    ALTER TABLE dead ADD COLUMN detail TEXT;
    ALTER TABLE dead ADD COLUMN flags TEXT;
    ALTER TABLE dead ADD COLUMN replays BIGINT NOT NULL DEFAULT 0;
    ALTER TABLE dead ADD COLUMN revision BIGINT NOT NULL DEFAULT 0;
    CREATE TABLE replays (
        replay_id TEXT PRIMARY KEY,
        ended TEXT NOT NULL,
        reason TEXT,
        at BIGINT NOT NULL
    );
    CREATE TABLE audit (
        number BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        at BIGINT NOT NULL,
        who TEXT NOT NULL,
        act TEXT NOT NULL,
        what TEXT NOT NULL,
        why TEXT,
        count BIGINT NOT NULL
    );
    CREATE RULE audit_is_not_changed AS ON UPDATE TO audit DO INSTEAD NOTHING;
    CREATE RULE audit_is_not_erased AS ON DELETE TO audit DO INSTEAD NOTHING;
",
    // When the event first went to a retry tier.
    "
    ALTER TABLE pending ADD COLUMN since BIGINT NOT NULL
        DEFAULT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint;
",
];

/// Customers with an event that waits for a retry or is a dead letter, and since when the first of
/// them has one. For both backends.
pub(super) const OUT_OF_STEP: &str = "
    SELECT count(*), min(since) FROM (
        SELECT customer, min(since) AS since FROM (
            SELECT customer, since FROM pending
            UNION ALL
            SELECT customer, nullif(died, 0) AS since FROM dead WHERE customer IS NOT NULL
        ) AS events GROUP BY customer
    ) AS customers";
