//! Which messages of the work queue, the retry tiers and the dead-letter queue are in doubt: read, and
//! put back in their places.

use anyhow::Context as _;

use crate::amqp::{Link, Message, Scan, lock_scans};
use crate::clock;
use crate::config::Config;
use crate::domain::admission::{self, Moment};
use crate::domain::doubt::Lost;
use crate::domain::history::History;
use crate::domain::row::{Receipt, Seen};
use crate::domain::version::EventRef;
use crate::ledger::{About, CustomerKey, Store};

/// Customers that are looked up at once.
const BATCH: usize = 256;

/// Where an event waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Work,
    Retry,
    Dead,
}

impl Place {
    pub(super) fn name(self) -> &'static str {
        match self {
            Place::Work => "in the work queue",
            Place::Retry => "in a retry tier",
            Place::Dead => "dead letter",
        }
    }
}

/// An event in doubt that waits.
pub(super) struct Waiting {
    pub(super) customer: CustomerKey,
    pub(super) event: EventRef,
    pub(super) place: Place,
}

/// An event that leads to a call, not held against its customer's row yet.
struct Opened {
    customer: CustomerKey,
    admission: admission::Admission,
    history: History,
    place: Place,
}

pub(super) async fn look_through(
    config: &Config,
    store: &Store,
    about: &About,
    lost: Lost,
) -> anyhow::Result<Vec<Waiting>> {
    let broker = &config.broker;
    let link = broker.broker.connect("doubts").await?;
    let found = async {
        let scans = broker.topology.scan_queue();
        let _lock = lock_scans(&link, &scans, "customer-relay ledger doubts").await?;
        let tiers = config.retry.tiers.iter();
        let tiers = tiers.map(|tier| (Place::Retry, broker.topology.retry_queue(tier)));
        let mut queues = vec![(Place::Work, broker.topology.work_queue())];
        queues.extend(tiers);
        queues.push((Place::Dead, broker.topology.dead_queue()));
        let mut found = Vec::new();
        for (place, queue) in queues {
            found.extend(look(&link, (place, &queue), config, store, about, lost).await?);
        }
        Ok(found)
    };
    let found = found.await;
    link.close().await;
    found
}

async fn look(
    link: &Link,
    (place, queue): (Place, &str),
    config: &Config,
    store: &Store,
    about: &About,
    lost: Lost,
) -> anyhow::Result<Vec<Waiting>> {
    let (mut found, mut opened) = (Vec::new(), Vec::new());
    let scan = Scan::begin(link, queue, None).await?;
    let mut scan = scan.with_context(|| {
        format!("queue {queue} is missing; run `customer-relay topology apply`")
    })?;
    while let Some(message) = scan.next().await? {
        opened.extend(open(config, &message, about, place));
        if opened.len() == BATCH {
            found.extend(judge(config, store, lost, std::mem::take(&mut opened)).await?);
        }
    }
    scan.end().await?;
    found.extend(judge(config, store, lost, opened).await?);
    Ok(found)
}

/// Reads a message as the worker would, once its time has come. What leads to no call overwrites
/// nothing.
fn open(config: &Config, message: &Message, about: &About, place: Place) -> Option<Opened> {
    let now = clock::now();
    let history = History { not_before: None, ..message.history(now).ok()? };
    let mut envelope = message.envelope();
    envelope.kind = envelope.kind.or(config.rules.mapping.default_type());
    let moment = Moment::certain(now);
    let admission =
        admission::admit(&envelope, &history, &config.rules, &config.retry, &moment).ok()?;
    let customer = about.key(admission.update.entity_id());
    Some(Opened { customer, admission, history, place })
}

async fn judge(
    config: &Config,
    store: &Store,
    lost: Lost,
    opened: Vec<Opened>,
) -> anyhow::Result<Vec<Waiting>> {
    let rows = store.load_rows(opened.iter().map(|one| one.customer).collect()).await?;
    let doubted = opened.into_iter().zip(rows).filter_map(|(one, row)| {
        let Opened { customer, admission, history, place } = one;
        let receipt = Receipt { told: history.receipt, is_redelivery: false };
        // Events of a row that cannot be read wait until that is mended.
        let is_in_doubt = row.is_ok_and(|row| {
            let seen = Seen { first: history.first_seen, now: clock::now() };
            let version = row.version(&admission.place, receipt, seen, config.order_by);
            let sent = (admission.update.fields(), history.passage());
            lost.would_doubt(&version, sent, &row, config.order_by)
        });
        let event = admission.place.event;
        is_in_doubt.then_some(Waiting { customer, event, place })
    });
    Ok(doubted.collect())
}
