-- The first tables.
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
