-- The first tables.
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
