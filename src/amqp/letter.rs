//! Dead letters, read and laid down again: in the dead-letter queue, the archive, or back in the
//! work queue. Those that the broker or somebody else made count as well.

use jiff::Timestamp;
use lapin::types::{AMQPValue, FieldTable};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::delivery::Message;
use super::headers::{
    ATTEMPTS, DEAD_AT, DEAD_ID, DETAIL, EVENT, FIELD, FLAGS, HTTP_STATUS, PORTAL_STATUS, PREFIX,
    REASON, RELAY_VERSION, REPLAYS, REVISION, RULE, TRACE_ID, plain_text,
};
use super::republish::{NewMessage, write_history};
use crate::domain::dead_letter::{MAX_DETAIL_BYTES, Reason};
use crate::domain::history::History;
use crate::domain::letter::Letter;
use crate::domain::text::escape;
use crate::domain::version::MAX_EVENT_BYTES;

/// The longest name of a field, a rule, a queue or a header, in bytes: as AMQP's.
const MAX_NAME_BYTES: usize = 255;

/// What the broker notes when it dead-letters a message itself.
pub(super) struct Death<'a> {
    pub(super) reason: Option<&'a str>,
    pub(super) queue: Option<&'a str>,
    pub(super) exchange: Option<&'a str>,
    pub(super) routing_key: Option<&'a str>,
    at: Option<Timestamp>,
}

impl Message {
    /// What a message of the dead-letter queue says about itself. The broker's own history counts
    /// first: a message that was once a dead letter, was put back and then killed us, is there for
    /// the broker's reason.
    ///
    /// Anybody may have written those headers: their texts are made fit for ledger and terminal.
    pub fn letter(&self) -> Letter {
        let text = |name, max| Some(escape(self.own_text(name)?, max).into_owned());
        let number = |name| self.text_or_number(name).and_then(|number| number.parse().ok());
        let death = self.deaths().next();
        let own = self.own_text(REASON).and_then(Reason::parse);
        let reason = match (&death, own) {
            (Some(death), _) if death.reason == Some("delivery_limit") => Reason::DeliveryLimit,
            (_, Some(own)) => own,
            (_, None) => Reason::Foreign,
        };
        let is_own = own == Some(reason);
        let told = self.time(DEAD_AT).ok().flatten().filter(|_| is_own);
        Letter {
            id: self.dead_id().unwrap_or_else(|| self.content_id()),
            event: text(EVENT, MAX_EVENT_BYTES)
                .or_else(|| Some(escape(self.id()?, MAX_EVENT_BYTES).into_owned())),
            reason,
            detail: if is_own {
                text(DETAIL, MAX_DETAIL_BYTES)
            } else {
                death.as_ref().map(describe)
            },
            field: text(FIELD, MAX_NAME_BYTES).filter(|_| is_own),
            rule: text(RULE, MAX_NAME_BYTES).filter(|_| is_own),
            http_status: number(HTTP_STATUS).and_then(|status: i64| status.try_into().ok()),
            portal_status: number(PORTAL_STATUS).filter(|_| is_own),
            // A count that is none was not written by a relay: as if it were absent.
            attempts: self.count(ATTEMPTS).unwrap_or(0),
            died: told.or_else(|| death?.at).or_else(|| self.timestamp()),
            flags: text(FLAGS, MAX_NAME_BYTES).filter(|_| is_own),
            replays: self.count(REPLAYS).unwrap_or(0),
            revision: self.count(REVISION).unwrap_or(0),
        }
    }

    /// All headers of ours, for people: names without our prefix.
    pub fn own_headers(&self) -> Vec<(String, String)> {
        let own = self.headers().filter_map(|(name, _)| {
            let (name, value) = (name.as_str(), self.text_or_number(name.as_str())?);
            let name = escape(name.strip_prefix(PREFIX)?, MAX_NAME_BYTES);
            Some((name.into_owned(), escape(&value, MAX_DETAIL_BYTES).into_owned()))
        });
        own.collect()
    }

    /// The message for the work queue: its attempts begin anew.
    pub fn replayed(&self, letter: &Letter, history: &History) -> NewMessage {
        let mut headers = self.travelling_headers();
        write_history(&mut headers, history);
        headers.text(DEAD_ID, &letter.id.to_string());
        headers.number(REPLAYS, letter.replays.into());
        NewMessage { properties: self.properties_with(headers) }
    }

    /// The same dead letter, for the dead-letter queue or the archive. What only the broker's
    /// history told is told in our own words.
    pub fn relaid(&self, letter: &Letter) -> NewMessage {
        let mut headers = self.travelling_headers();
        for name in [HTTP_STATUS, RELAY_VERSION, TRACE_ID] {
            if let Some(value) = self.header(name) {
                headers.0.insert(name.into(), value.clone());
            }
        }
        headers.text(DEAD_ID, &letter.id.to_string());
        headers.text(REASON, letter.reason.name());
        let died = letter.died.map(|died| died.to_string());
        let texts = [
            (EVENT, &letter.event),
            (DEAD_AT, &died),
            (DETAIL, &letter.detail),
            (FIELD, &letter.field),
            (RULE, &letter.rule),
            (FLAGS, &letter.flags),
        ];
        for (name, text) in texts {
            headers.optional_text(name, text.as_deref());
        }
        if let Some(status) = letter.portal_status {
            headers.number(PORTAL_STATUS, status);
        }
        headers.number(REPLAYS, letter.replays.into());
        if letter.revision > 0 {
            headers.number(REVISION, letter.revision.into());
        }
        NewMessage { properties: self.properties_with(headers) }
    }

    fn timestamp(&self) -> Option<Timestamp> {
        let seconds = (*self.0.properties.timestamp())?;
        Timestamp::from_second(i64::try_from(seconds).ok()?).ok()
    }

    /// Nothing else names a letter that no relay made. Two of the same content are one.
    fn content_id(&self) -> Uuid {
        let mut hash = Sha256::new();
        for part in [self.id().unwrap_or("").as_bytes(), self.body()] {
            hash.update(part.len().to_be_bytes());
            hash.update(part);
        }
        hash.update(self.0.properties.timestamp().unwrap_or(0).to_be_bytes());
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hash.finalize()[..16]);
        Uuid::new_v8(bytes)
    }

    /// The broker's own history of the message, newest first.
    pub(super) fn deaths(&self) -> impl Iterator<Item = Death<'_>> {
        let deaths = match self.header("x-death") {
            Some(AMQPValue::FieldArray(deaths)) => deaths.as_slice(),
            _ => &[],
        };
        deaths.iter().filter_map(|death| match death {
            AMQPValue::FieldTable(death) => Some(Death::of(death)),
            _ => None,
        })
    }
}

impl Death<'_> {
    fn of(table: &FieldTable) -> Death<'_> {
        let text = |name: &str| table.inner().get(name).and_then(plain_text);
        let at = match table.inner().get("time") {
            Some(AMQPValue::Timestamp(seconds)) => i64::try_from(*seconds).ok(),
            _ => None,
        };
        let routing_key = match table.inner().get("routing-keys") {
            Some(AMQPValue::FieldArray(keys)) => keys.as_slice().first().and_then(plain_text),
            _ => None,
        };
        Death {
            reason: text("reason"),
            queue: text("queue"),
            exchange: text("exchange"),
            routing_key,
            at: at.and_then(|seconds| Timestamp::from_second(seconds).ok()),
        }
    }
}

fn describe(death: &Death<'_>) -> String {
    let [queue, reason] =
        [death.queue, death.reason].map(|text| escape(text.unwrap_or("?"), MAX_NAME_BYTES));
    format!("the broker took it out of {queue}: {reason}")
}
