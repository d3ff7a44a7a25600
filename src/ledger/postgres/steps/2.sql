-- Dead letters in full, ended replays, the audit log.
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
