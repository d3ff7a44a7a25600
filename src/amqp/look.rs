//! Dead letters, looked at: none is taken, and the queue keeps its order.

use lapin::types::AMQPValue;

use super::connection::{AmqpError, Link};
use super::delivery::Message;
use super::headers::{ATTEMPTS, DEAD_AT, DEAD_ID, DETAIL, FIELD, REASON};
use super::scan::Scan;
use crate::domain::dead_letter::Reason;

/// What a dead letter says about itself, without its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetterHead {
    /// Ours, if we made it one.
    pub dead_id: Option<String>,
    /// The CRM's id of the message.
    pub message_id: Option<String>,
    /// Why.
    pub reason: String,
    /// In words.
    pub detail: Option<String>,
    /// The field at fault.
    pub field: Option<String>,
    /// Attempts made.
    pub attempts: Option<String>,
    /// When it became one.
    pub dead_at: Option<String>,
}

/// Looks at up to `max` dead letters, oldest first. Each look counts as a delivery: the queue
/// allows 100,000 of them. `None` if there is no such queue.
pub async fn look(
    link: &Link,
    queue: &str,
    max: usize,
) -> Result<Option<Vec<DeadLetterHead>>, AmqpError> {
    let mut heads = Vec::new();
    let Some(mut scan) = Scan::begin(link, queue, Some(max)).await? else { return Ok(None) };
    while heads.len() < max
        && let Some(message) = scan.next().await?
    {
        heads.push(message.head());
    }
    scan.end().await?;
    Ok(Some(heads))
}

impl Message {
    fn head(&self) -> DeadLetterHead {
        DeadLetterHead {
            dead_id: self.shown(DEAD_ID),
            message_id: self.id().map(str::to_owned),
            reason: self.dead_reason(),
            detail: self.shown(DETAIL),
            field: self.shown(FIELD),
            attempts: self.shown(ATTEMPTS),
            dead_at: self.shown(DEAD_AT),
        }
    }

    /// The broker's own history counts first: a message that we once dead-lettered, and that was
    /// put back and then killed us, is there for the broker's reason.
    fn dead_reason(&self) -> String {
        if self.has_exceeded_deliveries() {
            return Reason::DeliveryLimit.name().to_owned();
        }
        self.shown(REASON).unwrap_or_else(|| Reason::Foreign.name().to_owned())
    }

    fn has_exceeded_deliveries(&self) -> bool {
        let deaths = self.headers().find(|(name, _)| name.as_str() == "x-death");
        let Some((_, AMQPValue::FieldArray(deaths))) = deaths else { return false };
        deaths.as_slice().iter().any(|death| match death {
            AMQPValue::FieldTable(death) => {
                let reason = death.inner().get("reason");
                matches!(reason, Some(AMQPValue::LongString(reason))
                    if reason.as_bytes() == b"delivery_limit")
            }
            _ => false,
        })
    }
}
