//! A TCP proxy on 127.0.0.1 whose faults break the link between the relay and its broker on demand.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::{mpsc, watch},
    time::{Sleep, sleep},
};

const CHUNK_BYTES: usize = 16 * 1024;
const CHUNKS_IN_FLIGHT: usize = 1024;
const REBIND_PAUSE: Duration = Duration::from_millis(10);

/// What is wrong with the link, for open and new connections alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing: bytes pass at once.
    None,
    /// Every byte arrives this much later; as many as before pass per second.
    Delay(Duration),
    /// No byte passes, no connection ends, new ones are accepted: a cut cable, a frozen host. What
    /// was sent meanwhile arrives when the fault is over.
    Stall,
    /// Connections are reset, new ones as soon as they are accepted.
    Reset,
    /// Connections are reset, new ones are refused: nobody listens.
    Refuse,
}

impl Fault {
    fn breaks_connections(self) -> bool {
        matches!(self, Fault::Reset | Fault::Refuse)
    }
}

/// The fault, and how often connections were broken so far: a break that is over before a
/// connection's task runs is one all the same.
#[derive(Clone, Copy, Debug)]
struct State {
    fault: Fault,
    breaks: u64,
}

/// A proxy in front of one address. Dropping it resets what passes through it.
pub struct ChaosProxy {
    upstream: String,
    addr: SocketAddr,
    state: watch::Sender<State>,
    applied: watch::Receiver<Fault>,
}

impl ChaosProxy {
    /// Forwards to `upstream`, a `host:port`, without a fault.
    pub async fn start(upstream: impl Into<String>) -> io::Result<ChaosProxy> {
        let upstream = upstream.into();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let addr = listener.local_addr()?;
        let (state, seen) = watch::channel(State { fault: Fault::None, breaks: 0 });
        let (done, applied) = watch::channel(Fault::None);
        tokio::spawn(listen(listener, addr, upstream.clone(), seen, done));
        Ok(ChaosProxy { upstream, addr, state, applied })
    }

    /// Where the proxy listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// A URL of the upstream, led through the proxy.
    pub fn through(&self, url: &str) -> String {
        url.replacen(&self.upstream, &self.addr.to_string(), 1)
    }

    /// Returns when new connections meet the fault; open ones do too, however soon it is over.
    pub async fn set(&self, fault: Fault) {
        self.state.send_modify(|state| {
            state.fault = fault;
            state.breaks += u64::from(fault.breaks_connections());
        });
        self.applied.clone().wait_for(|now| *now == fault).await.ok();
    }
}

async fn listen(
    listener: TcpListener,
    addr: SocketAddr,
    upstream: String,
    mut state: watch::Receiver<State>,
    applied: watch::Sender<Fault>,
) {
    let mut listening = Some(listener);
    loop {
        let State { fault: now, breaks } = *state.borrow_and_update();
        if now == Fault::Refuse {
            listening = None;
        } else if listening.is_none() {
            listening = Some(bind_again(addr).await);
        }
        applied.send_replace(now);
        tokio::select! {
            changed = state.changed() => if changed.is_err() {
                return;
            },
            Some(client) = accept(listening.as_ref()) => {
                tokio::spawn(carry(client, upstream.clone(), state.clone(), breaks));
            }
        }
    }
}

async fn bind_again(addr: SocketAddr) -> TcpListener {
    loop {
        match TcpListener::bind(addr).await {
            Ok(listener) => return listener,
            Err(_) => sleep(REBIND_PAUSE).await,
        }
    }
}

async fn accept(listener: Option<&TcpListener>) -> Option<TcpStream> {
    Some(listener?.accept().await.ok()?.0)
}

/// One connection, accepted after so many breaks, until either end closes it or a fault resets it at
/// both.
async fn carry(
    mut client: TcpStream,
    upstream: String,
    mut state: watch::Receiver<State>,
    breaks: u64,
) -> io::Result<()> {
    let is_broken = move |now: &State| now.fault.breaks_connections() || now.breaks != breaks;
    let mut broken = state.clone();
    if unstalled(&mut state, breaks).await.is_err() {
        return client.set_zero_linger();
    }
    let mut server = match TcpStream::connect(upstream).await {
        Ok(server) if !is_broken(&state.borrow()) => server,
        _ => return client.set_zero_linger(),
    };
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let ended = tokio::select! {
        // An error means that the proxy is dropped.
        _ = broken.wait_for(is_broken) => false,
        ended = async { tokio::try_join!(
            pump(from_client, to_server, state.clone(), breaks),
            pump(from_server, to_client, state.clone(), breaks),
        ) } => ended.is_ok(),
    };
    if !ended {
        client.set_zero_linger()?;
        server.set_zero_linger()?;
    }
    Ok(())
}

/// One direction of a connection. Chunks queue with their delay running, so that a delay adds
/// latency and takes no throughput.
async fn pump(
    from: ReadHalf<'_>,
    to: WriteHalf<'_>,
    state: watch::Receiver<State>,
    breaks: u64,
) -> io::Result<()> {
    let (queue, queued) = mpsc::channel(CHUNKS_IN_FLIGHT);
    tokio::try_join!(read(from, queue, state.clone(), breaks), write(queued, to, state, breaks))?;
    Ok(())
}

async fn read(
    mut from: ReadHalf<'_>,
    queue: mpsc::Sender<(Sleep, Vec<u8>)>,
    mut state: watch::Receiver<State>,
    breaks: u64,
) -> io::Result<()> {
    loop {
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        if from.read_buf(&mut chunk).await? == 0 {
            return Ok(());
        }
        let delay = unstalled(&mut state, breaks).await?;
        queue.send((sleep(delay), chunk)).await.map_err(io::Error::other)?;
    }
}

async fn write(
    mut queued: mpsc::Receiver<(Sleep, Vec<u8>)>,
    mut to: WriteHalf<'_>,
    mut state: watch::Receiver<State>,
    breaks: u64,
) -> io::Result<()> {
    while let Some((due, chunk)) = queued.recv().await {
        due.await;
        unstalled(&mut state, breaks).await?;
        to.write_all(&chunk).await?;
    }
    to.shutdown().await
}

/// Waits out a stall and returns the delay that holds then. Fails if a break has ended it, however
/// short: what a stall held back must not slip through behind the break.
async fn unstalled(state: &mut watch::Receiver<State>, breaks: u64) -> io::Result<Duration> {
    let now = state.wait_for(|now| now.fault != Fault::Stall).await.map_err(io::Error::other)?;
    if now.breaks != breaks {
        return Err(io::ErrorKind::ConnectionReset.into());
    }
    Ok(match now.fault {
        Fault::Delay(delay) => delay,
        Fault::None | Fault::Stall | Fault::Reset | Fault::Refuse => Duration::ZERO,
    })
}
