//! Publishes one message as bytes of our own: what a client library would not write.

use anyhow::{Context as _, Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use url::Url;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const CONTENT_TYPE: u16 = 0x8000;
const HEADERS: u16 = 0x2000;
const CORRELATION_ID: u16 = 0x0400;
const REPLY_TO: u16 = 0x0200;
const MESSAGE_ID: u16 = 0x0080;
const TIMESTAMP: u16 = 0x0040;
const TYPE: u16 = 0x0020;
const APP_ID: u16 = 0x0008;

/// Where a message goes: an exchange, and a routing key.
pub type To<'a> = (&'a str, &'a str);

/// Publishes a structured event with a header that is an array in an array, so many times; waits for
/// the broker's confirm.
pub async fn publish_nested(broker: &str, to: To<'_>, levels: usize, body: &[u8]) -> Result<()> {
    let table = [short(b"nested"), nested(levels)].concat();
    let structured = (CONTENT_TYPE, short(STRUCTURED));
    publish(broker, to, &[structured, (HEADERS, long(&table))], body).await
}

/// Publishes a structured event whose headers leave no byte free in a frame of the size that the broker
/// agrees to.
pub async fn publish_filled(broker: &str, to: To<'_>, body: &[u8]) -> Result<()> {
    const FRAME_MAX: usize = 131_072;
    const FRAME: usize = 7 + 1;
    const BEFORE_TABLE: usize = 12 + 2 + 1 + STRUCTURED.len();
    let name = short(b"large");
    let length = FRAME_MAX - FRAME - BEFORE_TABLE - 4 - name.len() - 5;
    let table = [&name[..], b"S", &long(&vec![b'a'; length])].concat();
    let structured = (CONTENT_TYPE, short(STRUCTURED));
    publish(broker, to, &[structured, (HEADERS, long(&table))], body).await
}

/// Publishes a structured event whose `message_id` is these bytes, text or not.
pub async fn publish_with_id(broker: &str, to: To<'_>, id: &[u8], body: &[u8]) -> Result<()> {
    let structured = (CONTENT_TYPE, short(STRUCTURED));
    publish(broker, to, &[structured, (MESSAGE_ID, short(id))], body).await
}

/// Publishes a message that has these bytes, text or not, wherever the broker takes a short text: in its
/// properties, as its header's names, and within them.
pub async fn publish_with_all(broker: &str, to: To<'_>, text: &[u8], body: &[u8]) -> Result<()> {
    let header = |value: &[u8]| [&short(text)[..], value].concat();
    let words = header(&[b"S", &long(text)[..]].concat());
    let array = header(&[b"A", &long(&[b"F", &long(&words)[..]].concat())[..]].concat());
    let table = [header(b"V"), array].concat();
    let properties = [
        (HEADERS, long(&table)),
        (CORRELATION_ID, short(text)),
        (REPLY_TO, short(text)),
        (MESSAGE_ID, short(text)),
        (TIMESTAMP, jiff::Timestamp::now().as_second().to_be_bytes().to_vec()),
        (TYPE, short(text)),
        (APP_ID, short(text)),
    ];
    publish(broker, to, &properties, body).await
}

const STRUCTURED: &[u8] = b"application/cloudevents+json";

/// With properties in the order of their flags.
async fn publish(
    broker: &str,
    (exchange, key): To<'_>,
    properties: &[(u16, Vec<u8>)],
    body: &[u8],
) -> Result<()> {
    let broker: Url = broker.parse()?;
    let host = broker.host_str().context("no host")?;
    let mut wire = Wire(TcpStream::connect((host, broker.port().unwrap_or(5672))).await?);
    wire.open(&broker).await?;
    let (exchange, key) = (short(exchange.as_bytes()), short(key.as_bytes()));
    let publish = [&[0, 60, 0, 40, 0, 0][..], &exchange, &key, &[1]];
    wire.write(METHOD, 1, &publish.concat()).await?;
    let size = (body.len() as u64).to_be_bytes();
    let flags = properties.iter().fold(0, |flags, (flag, _)| flags | flag).to_be_bytes();
    let mut header = [&[0, 60, 0, 0][..], &size, &flags].concat();
    for (_, bytes) in properties {
        header.extend(bytes);
    }
    wire.write(HEADER, 1, &header).await?;
    wire.write(BODY, 1, body).await?;
    wire.answer([0, 60, 0, 80]).await.map(drop)
}

fn nested(levels: usize) -> Vec<u8> {
    let innermost = vec![b'V'];
    // Written from the inside: what is outside begins earlier.
    let mut outside = Vec::with_capacity(levels);
    let mut size = innermost.len();
    for _ in 0..levels {
        outside.push(size);
        size += 5;
    }
    let mut value = Vec::with_capacity(size);
    for inner in outside.iter().rev() {
        value.push(b'A');
        value.extend(u32::try_from(*inner).expect("it fits a frame").to_be_bytes());
    }
    value.extend(innermost);
    value
}

fn short(text: &[u8]) -> Vec<u8> {
    let length = u8::try_from(text.len()).expect("a short text");
    [&[length][..], text].concat()
}

fn long(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).expect("it fits a frame");
    [&length.to_be_bytes()[..], bytes].concat()
}

struct Wire(TcpStream);

impl Wire {
    async fn open(&mut self, broker: &Url) -> Result<()> {
        self.0.write_all(b"AMQP\0\0\x09\x01").await?;
        self.answer([0, 10, 0, 10]).await?;
        let password = broker.password().unwrap_or("guest");
        let response = [b"\0", broker.username().as_bytes(), b"\0", password.as_bytes()].concat();
        let start_ok =
            [&[0, 10, 0, 11][..], &long(b""), &short(b"PLAIN"), &long(&response), &short(b"en_US")];
        self.write(METHOD, 0, &start_ok.concat()).await?;
        let tune = self.answer([0, 10, 0, 30]).await?;
        // The broker's own limits, and no heartbeats.
        let limits = tune.get(4..10).context("limits")?;
        self.write(METHOD, 0, &[&[0, 10, 0, 31][..], limits, &[0, 0]].concat()).await?;
        self.write(METHOD, 0, &[&[0, 10, 0, 40][..], &short(b"/"), &[0, 0]].concat()).await?;
        self.answer([0, 10, 0, 41]).await?;
        self.write(METHOD, 1, &[0, 20, 0, 10, 0]).await?;
        self.answer([0, 20, 0, 11]).await?;
        self.write(METHOD, 1, &[0, 85, 0, 10, 0]).await?;
        self.answer([0, 85, 0, 11]).await.map(drop)
    }

    async fn write(&mut self, kind: u8, channel: u16, payload: &[u8]) -> Result<()> {
        let [high, low] = channel.to_be_bytes();
        let frame = [&[kind, high, low][..], &long(payload), &[0xce]].concat();
        Ok(self.0.write_all(&frame).await?)
    }

    async fn answer(&mut self, expected: [u8; 4]) -> Result<Vec<u8>> {
        let mut head = [0; 7];
        self.0.read_exact(&mut head).await.context("the broker closes the connection")?;
        let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]);
        let mut payload = vec![0; usize::try_from(size)? + 1];
        self.0.read_exact(&mut payload).await?;
        ensure!(payload.starts_with(&expected), "the broker answers {payload:?}");
        Ok(payload)
    }
}
