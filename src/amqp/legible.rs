//! What the broker sends, made legible for lapin on its way to it.
//!
//! RabbitMQ takes any bytes in the short strings of AMQP (a message's id, a header's name, a routing
//! key), and nests headers as deep as a frame allows. lapin gives the whole connection up over a short
//! string that is not UTF-8, with all that is in hand, and reads nested headers by recursion. So what it
//! cannot read is replaced in place, byte for byte: no length changes.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use async_rs::traits::Reactor;
use async_rs::util::RuntimeParts;
use async_rs::{Runtime, Tokio};
use futures_util::Stream;
use futures_util::io::{AsyncRead, AsyncWrite};
use lapin::tcp::{AMQPUriTcpExt, AsyncTcpStream};
use lapin::uri::AMQPUri;
use lapin::{Connection, ConnectionProperties};

/// Stands for a byte that is not UTF-8: ASCII's character for this (SUB). No id may contain it.
const SUBSTITUTE: u8 = 0x1A;
/// A table or an array deeper than this is read as the bytes that it is on the wire.
const MAX_DEPTH: u8 = 16;
/// Read at once.
const CHUNK: usize = 64 * 1024;
/// A frame that claims to be larger is passed on as it is, for lapin to refuse.
const LARGEST_FRAME: usize = 16 * 1024 * 1024;

/// Type, channel and size.
const HEAD: usize = 7;
const METHOD: u8 = 1;
const HEADER: u8 = 2;

/// Opens a connection on which everything can be read.
pub(super) async fn connect(
    address: AMQPUri,
    properties: ConnectionProperties,
) -> lapin::Result<Connection> {
    let tokio = Tokio::current();
    let runtime = Runtime::new(RuntimeParts::new(tokio.clone(), Legibly(tokio.clone())));
    let tokio = Runtime::new(tokio);
    let connect = async move |address: AMQPUri, _| {
        let stream = address.connect_async(&tokio).await?;
        Ok(AsyncTcpStream::Plain(Legible::new(stream)))
    };
    Connection::connector(address, runtime, connect, properties).await
}

/// Tokio, for connections that are [`Legible`]. lapin takes the type of its connections from here.
#[derive(Clone, Debug)]
struct Legibly(Tokio);

impl Reactor for Legibly {
    type TcpStream = Legible<AsyncTcpStream<<Tokio as Reactor>::TcpStream>>;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H: io::Read + io::Write + AsFd + AsRawFd + Send + 'static>(
        &self,
        socket: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        self.0.register(socket)
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(duration)
    }

    fn tcp_connect_addr(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        let stream = self.0.tcp_connect_addr(address);
        async move { Ok(Legible::new(AsyncTcpStream::Plain(stream.await?))) }
    }
}

/// A connection to the broker.
pub(super) struct Legible<S> {
    stream: S,
    /// Up to `given` handed on, up to `mended` to be handed on, up to `read` not looked at.
    bytes: Vec<u8>,
    given: usize,
    mended: usize,
    read: usize,
    /// So many more bytes are not looked at.
    passing: usize,
}

impl<S> Legible<S> {
    pub(super) fn new(stream: S) -> Self {
        Legible { stream, bytes: vec![0; CHUNK], given: 0, mended: 0, read: 0, passing: 0 }
    }

    /// Makes room behind what has been read.
    fn make_room(&mut self) {
        self.bytes.copy_within(self.given..self.read, 0);
        (self.mended, self.read) = (self.mended - self.given, self.read - self.given);
        self.given = 0;
        if self.read == self.bytes.len() {
            self.bytes.resize(self.read + CHUNK, 0);
        }
    }

    /// Looks at what has been read, as far as it is whole.
    fn mend(&mut self) {
        loop {
            let passed = self.passing.min(self.read - self.mended);
            (self.mended, self.passing) = (self.mended + passed, self.passing - passed);
            let rest = &mut self.bytes[self.mended..self.read];
            let Some((&mut [kind, _, _, a, b, c, d], rest)) = rest.split_first_chunk_mut::<HEAD>()
            else {
                return;
            };
            let size = u32::from_be_bytes([a, b, c, d]) as usize;
            if matches!(kind, METHOD | HEADER) && size <= LARGEST_FRAME {
                let Some(payload) = rest.get_mut(..size) else { return };
                let payload = Payload(payload);
                // What is no such frame is left as it is.
                let _ = if kind == METHOD { payload.method() } else { payload.header() };
            }
            // And the octet that ends a frame.
            self.passing = HEAD + size + 1;
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Legible<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        to: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        while this.given == this.mended {
            this.make_room();
            let room = &mut this.bytes[this.read..];
            match ready!(Pin::new(&mut this.stream).poll_read(context, room))? {
                // Half a frame at the end.
                0 => this.mended = this.read,
                count => {
                    this.read += count;
                    this.mend();
                    continue;
                }
            }
            break;
        }
        let count = to.len().min(this.mended - this.given);
        to[..count].copy_from_slice(&this.bytes[this.given..][..count]);
        this.given += count;
        Poll::Ready(Ok(count))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Legible<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(context)
    }
}

/// What is left of a frame's payload. `None`: it ends before its time.
struct Payload<'a>(&'a mut [u8]);

impl<'a> Payload<'a> {
    /// The methods that bring others' words.
    fn method(mut self) -> Option<()> {
        let &mut [_, class, _, method] = self.take(4)?.first_chunk_mut()?;
        match (class, method) {
            // connection.close, channel.close
            (10, 50) | (20, 40) => {
                self.take(2)?;
                self.short_string()
            }
            // basic.return
            (60, 50) => {
                self.take(2)?;
                self.short_string()?;
                self.place()
            }
            // basic.deliver
            (60, 60) => {
                self.short_string()?;
                self.take(9)?;
                self.place()
            }
            // basic.get-ok
            (60, 71) => {
                self.take(9)?;
                self.place()
            }
            _ => Some(()),
        }
    }

    /// An exchange and a routing key.
    fn place(&mut self) -> Option<()> {
        self.short_string()?;
        self.short_string()
    }

    /// A message's properties, those that are there, in their order.
    fn header(mut self) -> Option<()> {
        self.take(12)?;
        let flags = u16::from_be_bytes(*self.take(2)?.first_chunk()?);
        for bit in (2..16).rev().filter(|bit| flags & (1 << bit) != 0) {
            match bit {
                13 => self.table(0)?,
                // Delivery mode, priority.
                12 | 11 => self.skip(1)?,
                // Timestamp.
                6 => self.skip(8)?,
                _ => self.short_string()?,
            }
        }
        Some(())
    }

    fn table(&mut self, depth: u8) -> Option<()> {
        let mut entries = Payload(self.long_string()?);
        while !entries.0.is_empty() {
            entries.short_string()?;
            entries.value(depth)?;
        }
        Some(())
    }

    fn array(&mut self, depth: u8) -> Option<()> {
        let mut values = Payload(self.long_string()?);
        while !values.0.is_empty() {
            values.value(depth)?;
        }
        Some(())
    }

    fn value(&mut self, depth: u8) -> Option<()> {
        let kind = self.take(1)?.first_mut()?;
        match *kind {
            b'A' | b'F' if depth == MAX_DEPTH => {
                *kind = b'x';
                self.long_string().map(drop)
            }
            b'A' => self.array(depth + 1),
            b'F' => self.table(depth + 1),
            b'S' | b'x' => self.long_string().map(drop),
            b'V' => Some(()),
            b't' | b'b' | b'B' => self.skip(1),
            b's' | b'U' | b'u' => self.skip(2),
            b'I' | b'i' | b'f' => self.skip(4),
            b'D' => self.skip(5),
            b'L' | b'l' | b'd' | b'T' => self.skip(8),
            _ => None,
        }
    }

    fn short_string(&mut self) -> Option<()> {
        let length = *self.take(1)?.first()?;
        substitute(self.take(length.into())?);
        Some(())
    }

    fn long_string(&mut self) -> Option<&'a mut [u8]> {
        let length = u32::from_be_bytes(*self.take(4)?.first_chunk()?);
        self.take(length as usize)
    }

    fn skip(&mut self, count: usize) -> Option<()> {
        self.take(count).map(drop)
    }

    fn take(&mut self, count: usize) -> Option<&'a mut [u8]> {
        let (taken, rest) = std::mem::take(&mut self.0).split_at_mut_checked(count)?;
        self.0 = rest;
        Some(taken)
    }
}

/// Replaces what is not UTF-8.
fn substitute(text: &mut [u8]) {
    let mut from = 0;
    while let Err(error) = str::from_utf8(&text[from..]) {
        let at = from + error.valid_up_to();
        from = error.error_len().map_or(text.len(), |length| at + length);
        text[at..from].fill(SUBSTITUTE);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{AsyncReadExt, FutureExt, TryStreamExt, stream};
    use proptest::prelude::*;

    use super::{HEADER, Legible, MAX_DEPTH, METHOD};

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let size = u32::try_from(payload.len()).expect("a short one").to_be_bytes();
        [&[kind, 0, 1][..], &size, payload, &[0xCE]].concat()
    }

    fn short(text: &[u8]) -> Vec<u8> {
        [&[u8::try_from(text.len()).expect("a short one")], text].concat()
    }

    fn long(bytes: &[u8]) -> Vec<u8> {
        [&u32::try_from(bytes.len()).expect("a short one").to_be_bytes(), bytes].concat()
    }

    fn deliver(routing_key: &[u8]) -> Vec<u8> {
        let parts =
            [&[0, 60, 0, 60][..], &short(b"tag"), &[0; 9], &short(b""), &short(routing_key)];
        frame(METHOD, &parts.concat())
    }

    /// A header frame with these headers and this message id.
    fn header(headers: &[u8], message_id: &[u8]) -> Vec<u8> {
        let flags = (1_u16 << 13 | 1 << 12 | 1 << 7).to_be_bytes();
        let parts = [&[0, 60, 0, 0][..], &[0; 8], &flags, &long(headers), &[2], &short(message_id)];
        frame(HEADER, &parts.concat())
    }

    /// What lapin reads, where the bytes come in such pieces.
    fn read(bytes: &[u8], piece: usize) -> Vec<u8> {
        let pieces: Vec<_> = bytes.chunks(piece).map(|piece| Ok(piece.to_vec())).collect();
        let mut stream = Legible::new(stream::iter(pieces).into_async_read());
        let mut read = Vec::new();
        let end = stream.read_to_end(&mut read).now_or_never();
        end.expect("all is there").expect("it does not fail");
        read
    }

    #[test]
    fn texts_that_are_not_utf_8_are_substituted_and_nothing_else() {
        let is = |name: &[u8]| [&short(name)[..], b"S", &long(b"\xFC\xFF")].concat();
        let deep = |name: &[u8]| [&short(b"table")[..], b"F", &long(&is(name))].concat();
        let body = frame(3, b"\x02\xFC\xFF\xFE");
        let all = |id: &[u8]| {
            let headers = [is(id), deep(id)].concat();
            [deliver(id), header(&headers, id), body.clone(), frame(8, b"")].concat()
        };
        let legible = "m\u{FC}ller \u{1F600}".as_bytes();
        for piece in [1, 2, 7, 1000] {
            assert_eq!(read(&all(legible), piece), all(legible));
            assert_eq!(read(&all(b"m\xFCller\xE2\x82"), piece), all(b"m\x1Aller\x1A\x1A"));
        }
    }

    #[test]
    fn what_is_nested_deeper_than_we_read_arrives_as_bytes() {
        let nested = |depth: u8, innermost: u8| {
            let mut value = [&[innermost][..], &long(b"V")].concat();
            for _ in 1..depth {
                value = [b"A", &long(&value)[..]].concat();
            }
            header(&[short(b"deep"), value].concat(), b"m")
        };
        let depth = MAX_DEPTH;
        assert_eq!(read(&nested(depth, b'A'), 1000), nested(depth, b'A'));
        assert_eq!(read(&nested(depth + 1, b'A'), 1000), nested(depth + 1, b'x'));
        assert_eq!(read(&nested(200, b'A'), 9).len(), nested(200, b'A').len());
    }

    #[test]
    fn what_is_no_frame_is_passed_on() {
        for bytes in
            [&b"AMQP\x00\x00\x09\x01"[..], &[METHOD, 0], &[HEADER, 0, 1, 0xFF, 0xFF, 0xFF, 0xFF, 9]]
        {
            assert_eq!(read(bytes, 3), bytes);
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_has_its_length_and_bodies_are_left_alone(
            frames in proptest::collection::vec(
                (1_u8..=3, proptest::collection::vec(any::<u8>(), 0..200)), 0..20,
            ),
            piece in 1_usize..300,
        ) {
            let sent: Vec<Vec<u8>> = frames.iter().map(|(kind, payload)| frame(*kind, payload)).collect();
            let came = read(&sent.concat(), piece);
            let mut rest = &came[..];
            for ((kind, _), sent) in frames.iter().zip(&sent) {
                let (came, after) = rest.split_at(sent.len());
                rest = after;
                prop_assert!(*kind != 3 || came == sent);
                prop_assert_eq!(came.last(), Some(&0xCE));
            }
            prop_assert!(rest.is_empty());
        }
    }
}
