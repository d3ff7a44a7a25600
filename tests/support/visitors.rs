//! Visitors of a port, good and bad ones, over bare TCP.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

use super::process::Process;

/// Half of a request's head.
pub const HALF_A_HEAD: &[u8] = b"GET /livez HTTP/1.1\r\nHost: ";
/// A head whose body never comes.
pub const NO_BODY: &[u8] =
    b"POST /customer/show HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{";

/// Where a relay's admin port is, once it is open.
pub async fn admin_port(relay: &mut Process) -> Result<SocketAddr> {
    let line = relay.line_with("the admin port is open", Duration::from_secs(30)).await?;
    let line: Value = serde_json::from_str(&line)?;
    Ok(line["address"].as_str().context("no address")?.parse()?)
}

/// A whole request.
pub fn request(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").into_bytes()
}

/// A connection that has sent this.
pub async fn connect(port: SocketAddr, bytes: &[u8]) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(port).await?;
    stream.write_all(bytes).await?;
    Ok(stream)
}

/// Reads until the other end closes; what came, and after how long it ended.
pub async fn closed(stream: &mut TcpStream, limit: Duration) -> Result<(String, Duration)> {
    let begun = Instant::now();
    let mut came = Vec::new();
    let ended = tokio::time::timeout(limit, stream.read_to_end(&mut came)).await;
    // Whether it is reset or ended: it is over.
    drop(ended.with_context(|| format!("still open after {limit:?}"))?);
    Ok((String::from_utf8_lossy(&came).into_owned(), begun.elapsed()))
}

/// Asks for a page with a connection of its own; the answer, and how long it took.
pub async fn ask(port: SocketAddr, path: &str) -> Result<(String, Duration)> {
    let begun = Instant::now();
    let head = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let asked = async {
        let mut stream = connect(port, head.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        io::Result::Ok(answer)
    };
    let answer = tokio::time::timeout(Duration::from_secs(10), asked).await;
    let answer = answer.with_context(|| format!("{path}: no answer within 10 s"))??;
    Ok((answer, begun.elapsed()))
}

/// A good client, who asks for a page again and again, and keeps the longest time it took.
pub struct GoodClient(AbortOnDropHandle<Result<()>>, Arc<Mutex<(u32, Duration)>>);

impl GoodClient {
    /// Begins to ask.
    pub fn start(port: SocketAddr, path: &'static str) -> GoodClient {
        let seen = Arc::<Mutex<(u32, Duration)>>::default();
        let keep = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            loop {
                let (answer, took) = ask(port, path).await?;
                ensure!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
                {
                    let mut seen = keep.lock().unwrap_or_else(PoisonError::into_inner);
                    *seen = (seen.0 + 1, seen.1.max(took));
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        GoodClient(AbortOnDropHandle::new(task), seen)
    }

    /// How often it was answered, and the longest time that took; an error if it was not once.
    pub async fn stop(self) -> Result<(u32, Duration)> {
        if self.0.is_finished() {
            match self.0.await? {
                Ok(()) => bail!("a good client never ends by itself"),
                Err(error) => return Err(error),
            }
        }
        Ok(*self.1.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Visitors who each hold a connection that has sent this; when it is closed they come back.
pub struct Crowd {
    _tasks: Vec<AbortOnDropHandle<()>>,
    made: Arc<AtomicU32>,
}

impl Crowd {
    /// So many, who come within `pause`, and each back after `pause` when its connection is closed.
    pub fn start(port: SocketAddr, count: u32, bytes: &'static [u8], pause: Duration) -> Crowd {
        let made = Arc::<AtomicU32>::default();
        let visitor = |number: u32| {
            let first_pause = pause * number / count;
            let made = Arc::clone(&made);
            AbortOnDropHandle::new(tokio::spawn(async move {
                tokio::time::sleep(first_pause).await;
                loop {
                    if let Ok(mut stream) = connect(port, bytes).await {
                        made.fetch_add(1, Ordering::Relaxed);
                        // It is of no interest how it ends.
                        drop(stream.read_to_end(&mut Vec::new()).await);
                    }
                    tokio::time::sleep(pause).await;
                }
            }))
        };
        let tasks = (0..count).map(visitor).collect();
        Crowd { _tasks: tasks, made }
    }

    /// Connections that were ever made.
    pub fn made(&self) -> u32 {
        self.made.load(Ordering::Relaxed)
    }
}
