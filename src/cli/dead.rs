//! `dead`: what is in the dead-letter queue, looked at without harm.

use anyhow::Context as _;
use serde_json::{Value, json};

use super::{Exit, block_on, output};
use crate::amqp::{DeadLetterHead, look};
use crate::config::Config;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Args {
    /// List dead letters, oldest first: reason, field, attempts, detail. Nothing is taken.
    List {
        /// At most so many.
        #[arg(long, default_value_t = 100, value_name = "N")]
        limit: usize,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn dead(args: &Args, config: &Config) -> anyhow::Result<Exit> {
    let Args::List { limit, json: as_json } = args;
    let queue = config.broker.topology.dead_queue();
    let heads = block_on(config, async {
        let link = config.broker.broker.connect("dead").await?;
        let heads = look(&link, &queue, *limit).await;
        link.close().await;
        heads?.with_context(|| {
            format!("queue {queue} is missing; run `customer-relay topology apply`")
        })
    })?;
    if *as_json {
        let letters: Vec<Value> = heads.iter().map(to_json).collect();
        output::print_json(&json!({"queue": queue, "dead_letters": letters}))?;
    } else {
        let mut lines = vec![format!("{} dead letters looked at in {queue}", heads.len())];
        lines.extend(heads.iter().map(to_line));
        output::print(&lines.join("\n"))?;
    }
    Ok(Exit::Done)
}

fn to_json(head: &DeadLetterHead) -> Value {
    let DeadLetterHead { dead_id, message_id, reason, detail, field, attempts, dead_at } = head;
    json!({"dead_id": dead_id, "message_id": message_id, "reason": reason, "detail": detail,
           "field": field, "attempts": attempts, "dead_at": dead_at})
}

fn to_line(head: &DeadLetterHead) -> String {
    let part = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    format!(
        "{}  {:<22} {:<11} {:>3}  {}  {}",
        part(&head.dead_at),
        head.reason,
        part(&head.field),
        part(&head.attempts),
        part(&head.message_id),
        part(&head.detail)
    )
}
