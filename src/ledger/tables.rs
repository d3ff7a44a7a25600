//! What both backends say in the same words: columns in the order in which they are read and
//! written, statements that both understand.

use super::model::CustomerKey;

/// To whoever only reads.
pub(super) const ANOTHER_VERSION: &str = "its tables are of another version; `customer-relay run` \
    brings an older ledger up to date";

/// To a relay that is older than the ledger.
pub(super) const NEWER_VERSION: &str = "its tables are of a newer version: run that version, or \
    restore a backup that this one made";

/// From this step on, events that wait have plain ids.
pub(super) const PLAIN_SINCE: usize = 4;

/// Replays are remembered so much longer than retries that are overdue, in microseconds: 30 days.
pub(super) const REPLAYS_KEPT_US: i64 = 30 * 24 * 3600 * 1_000_000;

/// Of one customer, no more events that wait and no more dead letters are read: whatever an account has
/// grown to, a question about it costs little.
pub(super) const MOST_OF_ACCOUNT: u16 = 1000;

/// How many there are of a customer, whose key is the parameter `?1` or `$1`.
pub(super) fn count_of_account(parameter: char) -> String {
    format!(
        "SELECT (SELECT count(*) FROM pending WHERE customer = {parameter}1),
                (SELECT count(*) FROM dead WHERE customer = {parameter}1)"
    )
}

/// The newest events that wait of a customer.
pub(super) fn newest_pending(parameter: char) -> String {
    let rest = format!("WHERE customer = {parameter}1 ORDER BY since DESC LIMIT {MOST_OF_ACCOUNT}");
    PENDING.select(&rest)
}

/// The newest dead letters of a customer, newest first.
pub(super) fn newest_dead(parameter: char) -> String {
    let order = "ORDER BY died DESC, dead_id DESC";
    DEAD.select(&format!("WHERE customer = {parameter}1 {order} LIMIT {MOST_OF_ACCOUNT}"))
}

/// An event that waits. Since when, is kept when it goes to wait again.
pub(super) const PENDING: Table = Table {
    name: "pending",
    columns: &[
        "customer", "event", "source", "revision", "attempts", "since", "due", "tier_ms", "reason",
    ],
    key: &["customer", "event", "source", "revision"],
    kept: &["since"],
};

/// A dead letter of the index.
pub(super) const DEAD: Table = Table {
    name: "dead",
    columns: &[
        "dead_id",
        "customer",
        "event",
        "reason",
        "field",
        "rule",
        "http_status",
        "portal_status",
        "attempts",
        "died",
        "detail",
        "flags",
        "replays",
        "revision",
        "fingerprint",
    ],
    key: &["dead_id"],
    kept: &[],
};

/// An operator's act.
pub(super) const AUDIT: Table = Table {
    name: "audit",
    columns: &["at", "who", "act", "what", "why", "count"],
    key: &[],
    kept: &[],
};

/// A replay that ended. How it ended first, stands.
pub(super) const REPLAYS: Table = Table {
    name: "replays",
    columns: &["replay_id", "ended", "reason", "at"],
    key: &["replay_id"],
    kept: &["ended", "reason", "at"],
};

/// An event that was in doubt.
pub(super) const DOUBTS: Table = Table {
    name: "doubts",
    columns: &["customer", "event", "source", "revision", "at", "ended"],
    key: &["customer", "event", "source", "revision"],
    kept: &[],
};

/// Customers with an event that waits for a retry or is a dead letter, and since when the first of
/// them has one. A time that there is not, which somebody wrote by hand, is left out.
pub(super) const OUT_OF_STEP: &str = "
    SELECT count(*), min(since) FROM (
        SELECT customer, min(since) AS since FROM (
            SELECT customer, CASE WHEN since BETWEEN 1 AND 253402207200000000 THEN since END AS since
            FROM pending
            UNION ALL
            SELECT customer, CASE WHEN died BETWEEN 1 AND 253402207200000000 THEN died END AS since
            FROM dead WHERE customer IS NOT NULL
        ) AS events GROUP BY customer
    ) AS customers";

/// Says that a row was left out.
pub(super) fn warn_of_damage(table: &'static str, error: &dyn std::fmt::Display) {
    tracing::warn!(
        table,
        %error,
        "a damaged row of the ledger is left out; `customer-relay dead reindex` makes the index of dead \
         letters anew"
    );
}

/// Says that a customer is carried over with what is damaged of his row.
pub(super) fn warn_of_damaged_customer(key: CustomerKey) {
    tracing::warn!(
        customer = %key,
        "a customer's row holds what no relay writes; it is carried over as far as it can be read; \
         `customer-relay check` says whether it must be mended"
    );
}

/// Customers whose keys no relay makes.
pub(super) const COUNT_STRANGE_KEYS: &str =
    "SELECT count(*) FROM customers WHERE length(key) <> 16";

/// Says that rows are left alone that no event asks for.
pub(super) fn warn_of_strange_keys(count: u64) {
    if count > 0 {
        tracing::warn!(
            rows = count,
            "rows of the ledger's table customers whose keys are no customers' are left out: no relay \
             makes such keys; delete them (length(key) <> 16)"
        );
    }
}

/// A table, as it is read and written.
pub(super) struct Table {
    name: &'static str,
    columns: &'static [&'static str],
    key: &'static [&'static str],
    /// What a later write leaves as it is.
    kept: &'static [&'static str],
}

impl Table {
    /// `SELECT` all its columns, and what follows.
    pub(super) fn select(&self, rest: &str) -> String {
        format!("SELECT {} FROM {} {rest}", self.columns.join(", "), self.name)
    }

    /// `INSERT` a row, or replace the one with its key. Parameters are `?1` or `$1` and so on.
    pub(super) fn upsert(&self, parameter: char) -> String {
        let columns = self.columns.join(", ");
        let values: Vec<String> =
            (1..=self.columns.len()).map(|number| format!("{parameter}{number}")).collect();
        let insert =
            format!("INSERT INTO {} ({columns}) VALUES ({})", self.name, values.join(", "));
        if self.key.is_empty() {
            return insert;
        }
        let is_replaced = |name: &&&str| !self.key.contains(*name) && !self.kept.contains(*name);
        let replaced: Vec<String> = self
            .columns
            .iter()
            .filter(is_replaced)
            .map(|name| format!("{name} = excluded.{name}"))
            .collect();
        let key = self.key.join(", ");
        if replaced.is_empty() {
            return format!("{insert} ON CONFLICT ({key}) DO NOTHING");
        }
        format!("{insert} ON CONFLICT ({key}) DO UPDATE SET {}", replaced.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_write_replaces_all_but_the_key_and_what_is_kept() {
        let upsert = PENDING.upsert('$');
        assert!(upsert.contains("VALUES ($1, $2,") && upsert.contains("due = excluded.due"));
        assert!(!upsert.contains("since = ") && !upsert.contains("event = excluded"));
        assert!(REPLAYS.upsert('?').ends_with("ON CONFLICT (replay_id) DO NOTHING"));
        assert!(!AUDIT.upsert('?').contains("CONFLICT"));
    }
}
