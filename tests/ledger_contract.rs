//! One contract for both backends of the ledger: each case runs on SQLite and on PostgreSQL.

mod audit;
mod damage;
mod ground;
pub mod hand;
mod leases;
mod notes;
mod parts;
mod refusals;
mod rows;
mod tables;

use anyhow::Result;

use crate::harness::{Context, Needs, Run, Suite};
use ground::Ground;

/// Lists the cases by file, and makes of each a trial for either backend.
macro_rules! contract {
    ($($file:ident: $($case:ident),+ $(,)?);+ $(;)?) => {
        fn cases() -> Suite {
            vec![$($(
                (
                    concat!("sqlite_", stringify!($case)),
                    Needs::NoBroker,
                    (|context| Box::pin(async move {
                        $file::$case(Ground::sqlite(context)?).await
                    })) as Run,
                ),
                (
                    concat!("postgres_", stringify!($case)),
                    Needs::PostgresAlone,
                    (|context| Box::pin(async move {
                        $file::$case(Ground::postgres(context).await?).await
                    })) as Run,
                ),
            )+)+]
        }
    };
}

contract!(
    tables:
        what_was_created_is_found_again,
        what_is_not_there_is_missing_to_a_visitor_and_nothing_is_made,
        a_second_relay_is_kept_out_or_works_along,
        tables_of_a_newer_version_are_refused,
        tables_of_every_older_version_are_brought_up_to_date,
        a_step_that_cannot_be_taken_changes_nothing;
    rows:
        a_row_comes_back_as_it_was,
        the_time_of_writing_may_lie_at_either_end,
        an_erased_customer_is_gone_and_others_stay,
        what_was_not_seen_for_long_is_swept_in_pages,
        a_slow_query_holds_up_no_commit;
    notes:
        hostile_texts_are_kept_alike,
        times_of_notes_may_lie_at_either_end,
        a_dead_letter_written_again_replaces_every_column,
        an_event_that_waits_again_keeps_its_since,
        only_the_event_that_is_settled_waits_no_more,
        how_a_replay_ended_first_stands,
        customers_out_of_step_are_counted,
        the_index_is_made_anew_but_for_what_came_since,
        of_an_account_with_very_many_rows_the_newest_are_read;
    audit:
        the_audit_log_can_be_neither_changed_nor_erased,
        clearing_keeps_the_audit_log;
    parts:
        a_ledger_is_carried_over_with_everything_in_it;
    leases:
        a_customer_belongs_to_one_relay_at_a_time,
        under_a_lost_lease_nothing_is_recorded,
        a_lease_ends_with_its_commit_unless_it_is_kept,
        a_takeover_is_known_until_a_row_is_written,
        one_customer_may_be_asked_for_twice_at_once;
    damage:
        an_unreadable_row_is_found_and_concerns_no_other_customer,
        an_unreadable_row_is_replaced_and_a_sound_one_never,
        rows_that_no_relay_writes_stop_no_sweep_and_no_copy,
        a_damaged_doubt_is_left_out;
    refusals:
        a_change_that_a_rule_refuses_is_refused_with_its_batch,
        a_change_that_a_trigger_refuses_is_refused_with_its_batch,
        a_missing_table_or_column_is_the_ledgers_own_fault;
);

pub fn suite() -> Suite {
    let mut suite = cases();
    let counted = (|context| Box::pin(both_backends_have_the_same_cases(context))) as Run;
    suite.push(("both_backends_have_the_same_cases", Needs::NoBroker, counted));
    suite
}

async fn both_backends_have_the_same_cases(_: Context) -> Result<()> {
    let cases = cases();
    let of = |backend: &str| -> Vec<&str> {
        cases.iter().filter_map(|(name, _, _)| name.strip_prefix(backend)).collect()
    };
    let (sqlite, postgres) = (of("sqlite_"), of("postgres_"));
    println!("the ledger's contract: {} on SQLite, {} on PostgreSQL", sqlite.len(), postgres.len());
    assert_eq!(sqlite, postgres);
    assert_eq!(sqlite.len() + postgres.len(), cases.len());
    Ok(())
}
