-- Dead letters in full, ended replays, the audit log.
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
