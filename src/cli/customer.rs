//! `customer`: where a customer stands, and how he is forgotten.

use anyhow::{Context as _, bail, ensure};
use jiff::{SignedDuration, Timestamp};
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use url::Url;

use super::{Exit, block_on, load, output};
use crate::admin;
use crate::amqp::{Erased, Link, Message, erase, lock_scans};
use crate::clock;
use crate::config::{Config, Layers, Needs, safe_url};
use crate::dead_letters;
use crate::domain::field::Field;
use crate::ledger::{About, Account, Store};

/// A retry that is overdue by so much is lost, or its note is.
const OVERDUE: SignedDuration = SignedDuration::from_hours(1);

#[derive(Debug, clap::Subcommand)]
pub(super) enum Args {
    /// Show what the ledger knows of a customer: field versions, pending retries, dead letters.
    Show {
        /// The entity id.
        id: String,
        /// Ask a relay's admin port instead of the ledger itself (admin.token).
        #[arg(long, value_name = "URL", value_parser = safe_url)]
        via: Option<Url>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Erase a customer from the ledger, and his messages from the dead-letter queue and the archive.
    Forget {
        /// The entity id.
        id: String,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
        /// Erase also while events wait for a retry: they are sent when due, and can overwrite newer ones.
        #[arg(long)]
        leave_waiting: bool,
        /// Change nothing, tell what there is.
        #[arg(long)]
        dry_run: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn customer(args: &Args, layers: &Layers, who: &str) -> anyhow::Result<Exit> {
    match args {
        Args::Show { id, via: Some(base), json } => {
            let config = load(layers, Needs::AdminToken)?;
            let token = config.admin.token.value.expose_secret();
            let asked = async { Ok(admin::ask_for_customer(base, token, id).await?) };
            tell(&block_on(&config, asked)?, *json)
        }
        Args::Show { id, via: None, json } => show(id, *json, &load(layers, Needs::Broker)?),
        Args::Forget { id, yes, leave_waiting, dry_run, json } => {
            let (is_sure, leaves_waiting) = (*yes, *leave_waiting);
            let (counts_only, as_json) = (*dry_run, *json);
            let wish = Wish { id, is_sure, leaves_waiting, counts_only, as_json };
            forget(&wish, &load(layers, Needs::Broker)?, who)
        }
    }
}

fn show(id: &str, as_json: bool, config: &Config) -> anyhow::Result<Exit> {
    let known = block_on(config, async {
        let Some((_, account)) = look_up(config, id).await? else {
            bail!("ledger.url is \"none\": nothing is kept of any customer; set it to a ledger")
        };
        Ok(admin::describe(id, &account, clock::now()))
    })?;
    let known = known.with_context(|| {
        format!("the ledger ({}) knows nothing of this customer", config.ledger.target)
    })?;
    tell(&known, as_json)
}

type Ledger = (Store, About);

async fn look_up(config: &Config, id: &str) -> anyhow::Result<Option<(Ledger, Account)>> {
    let Some((store, about)) = Store::visit(&config.ledger.target).await? else { return Ok(None) };
    let account = store.load_account(about.key(id)).await?;
    Ok(Some(((store, about), account)))
}

fn tell(known: &Value, as_json: bool) -> anyhow::Result<Exit> {
    if as_json { output::print_json(known) } else { output::print(&table(known)) }?;
    Ok(Exit::Done)
}

fn table(known: &Value) -> String {
    let mut lines = vec![
        format!("customer      {}", text(&known["entity_id"])),
        format!("last written  {}", text(&known["last_written"])),
        format!("superseded    {} events found nothing left to send", known["superseded"]),
    ];
    if let Some(error) = known["unreadable"].as_str() {
        lines.push(format!(
            "ROW           {error}; its events wait: customer-relay ledger mend ID --from BACKUP, or --empty"
        ));
    }
    if let Some(call) = known["call_under_way"].as_object() {
        let (until, event) = (text(&call["until"]), text(&call["event"]));
        lines.push(format!("under way     a call may be, until {until} (event {event})"));
    }
    for (field, version) in known["fields"].as_object().into_iter().flatten() {
        let [event, time, sequence, received] =
            ["event", "time", "sequence", "received"].map(|part| text(&version[part]));
        lines.push(format!(
            "{:<13} {event}  time {time}  sequence {sequence}  received {received}",
            output::part(field)
        ));
    }
    lines.extend(more(known, "pending"));
    for waits in known["pending"].as_array().into_iter().flatten() {
        let [event, attempts, since, due, due_in, reason] =
            ["event", "attempts", "since", "due", "due_in_s", "reason"]
                .map(|part| text(&waits[part]));
        lines.push(format!(
            "pending       {event}  {attempts} attempts since {since}  due {due} (in {due_in} s)  \
             {reason}"
        ));
    }
    lines.extend(more(known, "dead_letters"));
    for dead in known["dead_letters"].as_array().into_iter().flatten() {
        let [id, event, reason, field, died] =
            ["dead_id", "event", "reason", "field", "died"].map(|part| text(&dead[part]));
        lines.push(format!("dead letter   {id}  {event}  {reason}  {field}  died {died}"));
    }
    lines.join("\n")
}

/// Says that not all of a list is shown.
fn more(known: &Value, list: &str) -> Option<String> {
    let shown = known[list].as_array().map_or(0, Vec::len);
    let in_all =
        known[format!("{list}_in_all")].as_u64().filter(|in_all| *in_all > shown as u64)?;
    let what = list.replace('_', " ");
    Some(format!("{what:<13} {in_all} in all; the newest {shown} of them:"))
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => output::part(text).into_owned(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            output::part(&value.to_string()).into_owned()
        }
    }
}

#[expect(clippy::struct_excessive_bools, reason = "one flag each")]
struct Wish<'a> {
    id: &'a str,
    is_sure: bool,
    leaves_waiting: bool,
    counts_only: bool,
    as_json: bool,
}

impl Wish<'_> {
    /// Nothing is erased while an event waits that is due after this time. One that should have come long
    /// ago does not come.
    fn spares(&self) -> Option<Timestamp> {
        (!self.leaves_waiting).then(|| clock::now() - OVERDUE)
    }
}

fn forget(wish: &Wish<'_>, config: &Config, who: &str) -> anyhow::Result<Exit> {
    let question = format!(
        "Erase {:?} from the ledger ({}), {} and the archive? What was applied is then not known, and \
         cannot be restored.",
        wish.id,
        config.ledger.target,
        config.broker.topology.dead_queue()
    );
    if !wish.counts_only && !output::is_wanted(&question, wish.is_sure)? {
        return output::print("nothing was changed").map(|()| Exit::Failed).map_err(Into::into);
    }
    let forgotten = block_on(config, async {
        // Both are reached before either is changed.
        let known = look_up(config, wish.id).await?;
        if let Some((_, account)) = known.as_ref().filter(|_| !wish.counts_only) {
            refuse_waiting(wish, account)?;
        }
        let link = config.broker.broker.connect("forget").await?;
        let lock = lock_scans(&link, &config.broker.topology.scan_queue(), who).await;
        let _lock = match lock {
            Ok(lock) => lock,
            Err(error) => {
                link.close().await;
                return Err(error.into());
            }
        };
        let erased = erase_messages(&link, wish, config).await;
        link.close().await;
        let forgotten = Forgotten::of(known.as_ref().map(|(_, account)| account), erased?);
        if let Some(((store, about), _)) = known.filter(|_| !wish.counts_only) {
            let is_erased = store.erase_customer(about.key(wish.id), wish.spares()).await?;
            ensure!(
                is_erased,
                "an event of {:?} has gone to a retry meanwhile: try again",
                wish.id
            );
        }
        Ok(forgotten)
    })?;
    let told = forgotten.to_json(wish);
    if wish.as_json { output::print_json(&told) } else { output::print(&forgotten.to_text(wish)) }?;
    Ok(Exit::Done)
}

/// What waits would be sent when due, and nothing would be known any more of what is newer.
fn refuse_waiting(wish: &Wish<'_>, account: &Account) -> anyhow::Result<()> {
    let dues = account.pending.iter().map(|note| note.due);
    let Some(last) = dues.max().filter(|due| wish.spares().is_some_and(|after| *due > after))
    else {
        return Ok(());
    };
    bail!(
        "{} events of {:?} wait for a retry, the last one until {last}: sent when due, they would \
         overwrite what is newer, of which nothing would be known any more. Wait until they have ended \
         (customer-relay customer show), or say --leave-waiting",
        account.pending_in_all,
        wish.id
    )
}

/// From each queue that may hold his messages: the queue, and what was found there.
async fn erase_messages(
    link: &Link,
    wish: &Wish<'_>,
    config: &Config,
) -> anyhow::Result<Vec<(String, Erased)>> {
    let topology = &config.broker.topology;
    let is_his = |message: &Message| {
        dead_letters::customer_of(message, &config.rules.mapping).as_deref() == Some(wish.id)
    };
    let mut all = Vec::new();
    for queue in [topology.dead_queue(), topology.archive_queue()] {
        let bar = output::spinner("{spinner} {human_pos} messages looked at, {elapsed}");
        let tick = |erased: Erased| bar.set_position(erased.seen);
        let erased = erase(link, &queue, wish.counts_only, is_his, tick).await;
        bar.finish_and_clear();
        all.extend(erased?.map(|erased| (queue, erased)));
    }
    Ok(all)
}

/// What was known of him, and where.
struct Forgotten {
    fields: usize,
    pending: u64,
    dead: u64,
    erased: Vec<(String, Erased)>,
}

impl Forgotten {
    fn of(account: Option<&Account>, erased: Vec<(String, Erased)>) -> Forgotten {
        let row = account.and_then(|account| account.row.as_ref());
        let row = row.and_then(|(row, _)| row.as_ref().ok());
        let fields = row.map_or(0, |row| {
            Field::ALL.into_iter().filter(|field| row.newest(*field).is_some()).count()
        });
        Forgotten {
            fields,
            pending: account.map_or(0, |account| account.pending_in_all),
            dead: account.map_or(0, |account| account.dead_in_all),
            erased,
        }
    }

    fn to_json(&self, wish: &Wish<'_>) -> Value {
        let queues = self.erased.iter().map(|(queue, erased)| (queue.clone(), json!(erased.meant)));
        json!({"entity_id": wish.id, "dry_run": wish.counts_only,
               "ledger": {"fields": self.fields, "pending": self.pending, "dead_letters": self.dead},
               "messages": queues.collect::<serde_json::Map<_, _>>(),
               "still_waiting": self.pending})
    }

    fn to_text(&self, wish: &Wish<'_>) -> String {
        let done = if wish.counts_only { "would be erased" } else { "erased" };
        let Forgotten { fields, pending, dead, erased } = self;
        let mut lines = vec![format!(
            "{done} from the ledger: {fields} field versions, {dead} dead letters, {pending} retries"
        )];
        lines.extend(erased.iter().map(|(queue, Erased { seen, meant })| {
            format!("{done} from {queue}: {meant} of {seen} messages")
        }));
        if *pending > 0 {
            lines.push(format!(
                "{pending} messages still wait in retry tiers: they cannot be taken out, will be sent \
                 when due, and the customer then appears again. Forget him again after that"
            ));
        }
        lines.join("\n")
    }
}
