//! One walk through the dead letters at a time: whoever walks has them in hand, and a second one
//! would see a part. The lock is an exclusive queue, which goes with its connection; its holder
//! answers whoever asks through it for a name.

use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Consumer};

use super::active::is_locked;
use super::connection::{AmqpError, Link, within};
use crate::domain::text::escape;

/// RabbitMQ's own way to answer without a queue.
const REPLY_TO: &str = "amq.rabbitmq.reply-to";
/// For the holder's name.
const PATIENCE: Duration = Duration::from_secs(1);
/// Longest name of a holder that is shown.
const MAX_HOLDER_BYTES: usize = 255;
/// So often whoever does not answer is asked again.
const LOOKS: u32 = 5;

/// Why nobody may walk now.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// The broker or the network said no.
    #[error(transparent)]
    Broker(#[from] AmqpError),
    /// Somebody else does.
    #[error(
        "{} is looking through the dead letters just now, and has them in hand: try again when that is \
         over", .0.as_deref().unwrap_or("somebody else")
    )]
    Taken(Option<String>),
}

/// The right to walk, held as long as the link lives.
pub struct ScanLock {
    _answers: tokio::task::JoinHandle<()>,
}

/// Takes the lock, in this name.
pub async fn lock_scans(link: &Link, queue: &str, holder: &str) -> Result<ScanLock, LockError> {
    let mut looks = 0;
    loop {
        match try_lock(link, queue, holder).await {
            // Nobody answers any more: the broker is about to take the lock from who had it.
            Err(LockError::Taken(None)) if looks < LOOKS => looks += 1,
            ended => return ended,
        }
    }
}

async fn try_lock(link: &Link, queue: &str, holder: &str) -> Result<ScanLock, LockError> {
    let channel = link.channel().await?;
    let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    let declare = channel.queue_declare(queue.into(), options, FieldTable::default());
    match within(link.limit, "take the lock of the dead letters", declare).await {
        Ok(_) => {}
        Err(AmqpError::Failed(_, error)) if is_locked(&error) => {
            return Err(LockError::Taken(ask_for_holder(link, queue).await?));
        }
        Err(error) => return Err(error.into()),
    }
    let questions = consume(link, &channel, queue).await?;
    Ok(ScanLock { _answers: tokio::spawn(answer(channel, questions, holder.to_owned())) })
}

async fn consume(link: &Link, channel: &Channel, queue: &str) -> Result<Consumer, AmqpError> {
    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let consume = channel.basic_consume(queue.into(), "".into(), options, FieldTable::default());
    within(link.limit, "listen at a queue", consume).await
}

async fn answer(channel: Channel, mut questions: Consumer, holder: String) {
    while let Some(Ok(question)) = questions.next().await {
        let Some(asker) = question.properties.reply_to().clone() else { continue };
        let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
        let sent = channel.basic_publish("".into(), asker, options, holder.as_bytes(), properties);
        if let Err(error) = sent.await {
            tracing::debug!(%error, "whoever asked for the lock's holder is gone");
        }
    }
}

/// Who holds the lock; `None` if nobody answers.
async fn ask_for_holder(link: &Link, queue: &str) -> Result<Option<String>, AmqpError> {
    let channel = link.channel().await?;
    let mut answers = consume(link, &channel, REPLY_TO).await?;
    let properties = BasicProperties::default().with_reply_to(REPLY_TO.into());
    let options = BasicPublishOptions::default();
    let ask = channel.basic_publish("".into(), queue.into(), options, b"who?", properties);
    within(link.limit, "ask for the lock's holder", ask).await?;
    let answer = tokio::time::timeout(PATIENCE, answers.next()).await;
    let answer = answer.ok().flatten().and_then(Result::ok);
    let holder =
        |data: &[u8]| escape(&String::from_utf8_lossy(data), MAX_HOLDER_BYTES).into_owned();
    Ok(answer.map(|answer| holder(&answer.data)))
}
