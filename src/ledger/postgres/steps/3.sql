-- When an event first went to a retry tier.
ALTER TABLE pending ADD COLUMN since BIGINT NOT NULL
    DEFAULT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint;
