-- Events are named by source and revision too, and wait in a tier; dead letters have a group, a
-- generation, and what they would set; the ledger is counted, so that an older copy of it is noticed.
-- Plans, relays, timeline and claims: tables for what operators ask for next.
ALTER TABLE pending ADD COLUMN source BIGINT NOT NULL DEFAULT 0;
ALTER TABLE pending ADD COLUMN revision BIGINT NOT NULL DEFAULT 0;
ALTER TABLE pending ADD COLUMN tier_ms BIGINT;
ALTER TABLE pending ALTER COLUMN since DROP DEFAULT;
ALTER TABLE pending DROP CONSTRAINT pending_pkey;
ALTER TABLE pending ADD PRIMARY KEY (customer, event, source, revision);

ALTER TABLE dead ADD COLUMN fingerprint TEXT;
ALTER TABLE dead ADD COLUMN source BIGINT NOT NULL DEFAULT 0;
ALTER TABLE dead ADD COLUMN generation BIGINT NOT NULL DEFAULT 0;
ALTER TABLE dead ADD COLUMN version BYTEA;
ALTER TABLE dead ADD COLUMN fields BIGINT;
CREATE INDEX dead_by_fingerprint ON dead (fingerprint);

ALTER TABLE about ADD COLUMN number BIGINT NOT NULL DEFAULT 0;
ALTER TABLE about ADD COLUMN numbered_at BIGINT NOT NULL DEFAULT 0;
ALTER TABLE about ADD COLUMN gap_from BIGINT;
ALTER TABLE about ADD COLUMN gap_until BIGINT;

CREATE TABLE doubts (
    customer BYTEA NOT NULL,
    event TEXT NOT NULL,
    source BIGINT NOT NULL,
    revision BIGINT NOT NULL,
    at BIGINT NOT NULL,
    ended TEXT NOT NULL,
    PRIMARY KEY (customer, event, source, revision)
);
CREATE TABLE plans (
    plan_id TEXT PRIMARY KEY,
    made_at BIGINT NOT NULL,
    operator TEXT NOT NULL,
    state TEXT NOT NULL,
    changed_at BIGINT NOT NULL,
    plan TEXT NOT NULL
);
CREATE TABLE relays (
    relay_id TEXT PRIMARY KEY,
    host TEXT NOT NULL,
    version TEXT NOT NULL,
    started_at BIGINT NOT NULL,
    seen_at BIGINT NOT NULL,
    state TEXT NOT NULL
);
CREATE TABLE timeline (
    number BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at BIGINT NOT NULL,
    relay_id TEXT,
    kind TEXT NOT NULL,
    detail TEXT
);
CREATE TABLE claims (
    subject TEXT PRIMARY KEY,
    who TEXT NOT NULL,
    at BIGINT NOT NULL,
    note TEXT
);

-- A change of the audit log fails, instead of doing nothing.
DROP RULE audit_is_not_changed ON audit;
DROP RULE audit_is_not_erased ON audit;
CREATE FUNCTION customer_relay_refuse_change() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN RAISE EXCEPTION ''the audit log is only added to''; END';
CREATE TRIGGER audit_is_not_changed BEFORE UPDATE OR DELETE OR TRUNCATE ON audit
    FOR EACH STATEMENT EXECUTE FUNCTION customer_relay_refuse_change();
