-- When an event first went to a retry tier.
ALTER TABLE pending ADD COLUMN since INTEGER NOT NULL DEFAULT 0;
UPDATE pending SET since = CAST(unixepoch('subsec') * 1000000 AS INTEGER);
