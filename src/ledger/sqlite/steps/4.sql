-- Events are named by source and revision too, and wait in a tier; dead letters have a group, a
-- generation, and what they would set; the ledger is counted, so that an older copy of it is noticed.
-- Plans, relays, timeline and claims: tables for what operators ask for next.
CREATE TABLE waiting (
    customer BLOB NOT NULL,
    event TEXT NOT NULL,
    source INTEGER NOT NULL DEFAULT 0,
    revision INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL,
    since INTEGER NOT NULL,
    due INTEGER NOT NULL,
    tier_ms INTEGER,
    reason TEXT NOT NULL,
    PRIMARY KEY (customer, event, source, revision)
) WITHOUT ROWID;
INSERT INTO waiting (customer, event, attempts, since, due, reason)
    SELECT customer, event, attempts, since, due, reason FROM pending;
DROP TABLE pending;
ALTER TABLE waiting RENAME TO pending;

ALTER TABLE dead ADD COLUMN fingerprint TEXT;
ALTER TABLE dead ADD COLUMN source INTEGER NOT NULL DEFAULT 0;
ALTER TABLE dead ADD COLUMN generation INTEGER NOT NULL DEFAULT 0;
ALTER TABLE dead ADD COLUMN version BLOB;
ALTER TABLE dead ADD COLUMN fields INTEGER;
CREATE INDEX dead_by_fingerprint ON dead (fingerprint);

ALTER TABLE about ADD COLUMN number INTEGER NOT NULL DEFAULT 0;
ALTER TABLE about ADD COLUMN numbered_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE about ADD COLUMN gap_from INTEGER;
ALTER TABLE about ADD COLUMN gap_until INTEGER;

CREATE TABLE doubts (
    customer BLOB NOT NULL,
    event TEXT NOT NULL,
    source INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    at INTEGER NOT NULL,
    ended TEXT NOT NULL,
    PRIMARY KEY (customer, event, source, revision)
) WITHOUT ROWID;
CREATE TABLE plans (
    plan_id TEXT PRIMARY KEY,
    made_at INTEGER NOT NULL,
    operator TEXT NOT NULL,
    state TEXT NOT NULL,
    changed_at INTEGER NOT NULL,
    plan TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE relays (
    relay_id TEXT PRIMARY KEY,
    host TEXT NOT NULL,
    version TEXT NOT NULL,
    started_at INTEGER NOT NULL,
    seen_at INTEGER NOT NULL,
    state TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE timeline (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    at INTEGER NOT NULL,
    relay_id TEXT,
    kind TEXT NOT NULL,
    detail TEXT
);
CREATE TABLE claims (
    subject TEXT PRIMARY KEY,
    who TEXT NOT NULL,
    at INTEGER NOT NULL,
    note TEXT
) WITHOUT ROWID;
