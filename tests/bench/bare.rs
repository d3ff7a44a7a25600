//! The bare loop: consume, parse, sign, POST, ack, and nothing else. It retries nothing, validates
//! nothing, keeps no order and ends at the first surprise: the floor that the relay is held against.

use std::fmt::Write;

use anyhow::{Context, Result, ensure};
use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::clients::{Client, Kind};

const FIELDS: [&str; 8] =
    ["entity_id", "email", "mobile_no", "address", "country", "city", "state", "pincode"];

/// What the loop needs to know.
#[derive(clap::Args, Clone)]
pub(crate) struct Options {
    #[arg(long, value_enum)]
    client: Kind,
    #[arg(long)]
    amqp_url: String,
    #[arg(long)]
    queue: String,
    #[arg(long)]
    prefetch: u16,
    #[arg(long)]
    in_flight: usize,
    #[arg(long)]
    pub(crate) url: String,
    #[arg(long)]
    pub(crate) token: String,
    #[arg(long)]
    secret_key: String,
}

/// Consumes until it is killed.
pub(crate) async fn run(options: Options) -> Result<()> {
    let client = Client::try_new(options.client, &options)?;
    // On a worker thread: the main thread's tasks wake up dearly.
    tokio::spawn(consume(options, client)).await?
}

async fn consume(options: Options, client: Client) -> Result<()> {
    let properties = ConnectionProperties::default();
    let connection = Connection::connect(&options.amqp_url, properties).await?;
    let channel = connection.create_channel().await?;
    channel.basic_qos(options.prefetch, BasicQosOptions::default()).await?;
    let (queue, tag) = (options.queue.as_str().into(), "bare".into());
    let consume = BasicConsumeOptions::default();
    let deliveries = channel.basic_consume(queue, tag, consume, FieldTable::default()).await?;
    let mut ends = deliveries
        .map(|delivery| async { handle(delivery?, &client, &options.secret_key).await })
        .buffer_unordered(options.in_flight);
    while let Some(end) = ends.next().await {
        end?;
    }
    Ok(())
}

async fn handle(delivery: Delivery, client: &Client, secret_key: &str) -> Result<()> {
    let event: Value = serde_json::from_slice(&delivery.data)?;
    let (form, checksum) = sign(&event["data"], secret_key);
    let answer: Value = serde_json::from_slice(&client.post(form, &checksum).await?)?;
    ensure!(answer["status"] == 200, "the portal says {answer}");
    delivery.ack(BasicAckOptions::default()).await.context("ack")?;
    Ok(())
}

fn sign(data: &Value, secret_key: &str) -> (String, String) {
    let mut form = form_urlencoded::Serializer::new(String::with_capacity(256));
    let mut hash = Sha256::new();
    for field in FIELDS {
        if let Some(value) = data[field].as_str() {
            form.append_pair(field, value);
            hash.update(value);
        }
    }
    hash.update(secret_key);
    let mut checksum = String::with_capacity(64);
    for byte in hash.finalize() {
        // Writing to a String cannot fail.
        write!(checksum, "{byte:02x}").unwrap_or_default();
    }
    (form.finish(), checksum)
}
