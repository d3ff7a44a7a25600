//! Whose fault it is when the ledger cannot give or take what it should: one customer's, whose row
//! cannot be read; one event's, whose record is refused; or the ledger's, and all wait.

mod events;
mod rows;
mod rules;
mod scene;
mod several;

use crate::harness::{Needs, Run, Suite};
use scene::Scene;

/// Lists the cases by file, and makes of each a trial for either backend.
macro_rules! scopes {
    ($($file:ident: $($case:ident),+ $(,)?);+ $(;)?) => {
        fn cases() -> Suite {
            vec![$($(
                (
                    concat!("sqlite_", stringify!($case)),
                    Needs::Broker,
                    (|context| Box::pin(async move {
                        $file::$case(Scene::with_file(context).await?).await
                    })) as Run,
                ),
                (
                    concat!("postgres_", stringify!($case)),
                    Needs::Postgres,
                    (|context| Box::pin(async move {
                        $file::$case(Scene::with_server(context).await?).await
                    })) as Run,
                ),
            )+)+]
        }
    };
}

scopes!(
    rows:
        unreadable_rows_stop_their_customers_alone_and_are_mended,
        waiting_at_an_unreadable_row_survives_a_kill;
    rules:
        a_rule_that_refuses_all_customers_pauses_until_it_is_gone,
        a_rule_on_changes_alone_pauses_until_it_is_gone,
        a_rule_that_refuses_all_that_waits_pauses_until_it_is_gone,
        a_rule_that_refuses_the_index_pauses_until_it_is_gone,
        a_rule_that_refuses_ended_replays_pauses_until_it_is_gone,
        a_table_or_a_column_that_is_gone_pauses_until_it_is_back,
        a_step_that_cannot_be_taken_stops_the_start_and_changes_nothing;
    events:
        an_event_whose_row_is_refused_is_one_dead_letter_and_others_go_on,
        a_customer_that_is_refused_altogether_stops_no_other,
        many_events_at_fault_stop_no_other,
        an_event_that_may_not_wait_in_the_ledger_still_ends,
        one_refusal_without_other_traffic_is_found_out,
        a_stop_and_a_kill_while_a_change_is_set_aside_lose_nothing;
);

pub fn suite() -> Suite {
    let mut suite = cases();
    suite.extend(several::suite());
    suite
}
