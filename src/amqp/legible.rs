//! What the broker sends, made legible for lapin on its way to it.
//!
//! RabbitMQ takes any bytes in the short strings of AMQP (a message's id, a header's name, a routing
//! key), nests headers as deep as a frame allows, and takes a hundred thousand values in one. Where it
//! adds headers of its own, to a message that comes again, the frame may become larger than was agreed.
//! lapin gives the whole connection up over a short string that is not UTF-8, or such a frame, with all
//! that is in hand; it reads nested headers by recursion, and takes up to a hundred times their size for
//! them. So what it cannot read is replaced in place, byte for byte, and too large a frame loses the
//! largest headers of others.

use std::cmp::Reverse;
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

use super::frame;

/// Stands for a byte that is not UTF-8: ASCII's character for this (SUB). No id may contain it.
const SUBSTITUTE: u8 = 0x1A;
/// A table or an array deeper than this is read as the bytes that it is on the wire.
const MAX_DEPTH: u8 = 100;
/// So many values of a message's headers are read; those that follow are bytes too.
const MAX_VALUES: u32 = 4000;
/// Read at once.
const CHUNK: usize = 64 * 1024;
/// A header of the broker's own is smaller.
const LARGEST_OF_BROKER: usize = 16 * 1024;
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
    let wanted = address.query.frame_max;
    let connect = async move |address: AMQPUri, _| {
        let stream = address.connect_async(&tokio).await?;
        Ok(AsyncTcpStream::Plain(Legible::new(stream, wanted)))
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
        async move { Ok(Legible::new(AsyncTcpStream::Plain(stream.await?), None)) }
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
    /// The largest frame that we want, and what was agreed: no frame of the broker may be larger.
    wanted: Option<u32>,
    frame_max: Option<usize>,
}

impl<S> Legible<S> {
    pub(super) fn new(stream: S, wanted: Option<u32>) -> Self {
        let bytes = vec![0; CHUNK];
        let (given, mended, read, passing) = (0, 0, 0, 0);
        Legible { stream, bytes, given, mended, read, passing, wanted, frame_max: None }
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
            // And the octet that ends a frame.
            let mut whole = HEAD + size + 1;
            if matches!(kind, METHOD | HEADER) && size <= LARGEST_FRAME {
                let Some(payload) = rest.get_mut(..size) else { return };
                if kind == METHOD {
                    if let Some(offered) = offered_frame_max(payload) {
                        let limits = [offered, self.wanted.unwrap_or(0)].into_iter();
                        let smallest = limits.filter(|limit| *limit > 0).min();
                        self.frame_max = smallest.map(|limit| limit as usize);
                    }
                    Payload::new(payload).method();
                } else {
                    Payload::new(payload).header();
                    if let Some(frame_max) = self.frame_max.filter(|most| whole > *most) {
                        whole -= self.shorten(size, whole - frame_max);
                    }
                }
            }
            self.passing = whole;
        }
    }

    /// Takes so many bytes or more out of the header frame that begins here; tells how many it took.
    fn shorten(&mut self, size: usize, excess: usize) -> usize {
        let begin = self.mended + HEAD;
        let Some(shorter) = without_largest(&self.bytes[begin..][..size], excess) else { return 0 };
        let length = u32::try_from(shorter.len()).expect("shorter than a length of 32 bits");
        self.bytes[begin - 4..begin].copy_from_slice(&length.to_be_bytes());
        let taken = size - shorter.len();
        self.bytes.splice(begin..begin + size, shorter);
        self.read -= taken;
        taken
    }
}

/// What connection.tune says of frames; 0: as large as one likes.
fn offered_frame_max(method: &[u8]) -> Option<u32> {
    let limits = method.strip_prefix(&[0, 10, 0, 30])?;
    let frame_max = limits.get(2..6)?.first_chunk()?;
    Some(u32::from_be_bytes(*frame_max))
}

/// The payload of a header frame, so many bytes shorter or more: without the largest headers, and last of
/// all those of names that the broker or we write, or that the event is told by. `None` if there is not so
/// much.
fn without_largest(payload: &[u8], excess: usize) -> Option<Vec<u8>> {
    const FLAGS: usize = 12;
    let flags = u16::from_be_bytes(*payload.get(FLAGS..)?.first_chunk()?);
    let mut table = FLAGS + 2;
    for _ in (14..16).filter(|bit| flags & (1 << bit) != 0) {
        table += 1 + usize::from(*payload.get(table)?);
    }
    let mut copy = payload.to_vec();
    let mut entries = Payload::new(copy.get_mut(table..).filter(|_| flags & (1 << 13) != 0)?);
    entries.0 = entries.long_string()?;
    let end = table + 4 + entries.0.len();
    let mut headers = Vec::new();
    while !entries.0.is_empty() {
        let begin = end - entries.0.len();
        let name = str::from_utf8(entries.take_short_string()?).ok()?;
        entries.value(0)?;
        let entry = begin..end - entries.0.len();
        let is_brokers = is_brokers(name) && entry.len() <= LARGEST_OF_BROKER;
        headers.push((is_brokers || frame::is_needed(name, entry.len()), entry));
    }
    headers.sort_by_key(|(is_needed, entry)| (*is_needed, Reverse(entry.len())));
    let (count, taken) = frame::enough(headers.iter().map(|(_, entry)| entry.len()), excess);
    if taken < excess {
        return None;
    }
    tracing::warn!(
        headers = count,
        bytes = taken,
        "the broker has made a message's headers larger than a frame may be; the largest are left out"
    );
    headers.truncate(count);
    // From the end, so that those before keep their places.
    headers.sort_by_key(|(_, entry)| Reverse(entry.start));
    for (_, entry) in headers {
        copy.drain(entry);
    }
    let length = u32::try_from(end - table - 4 - taken).expect("a part of a frame");
    copy[table..table + 4].copy_from_slice(&length.to_be_bytes());
    Some(copy)
}

/// Whether the broker writes headers of this name.
fn is_brokers(header: &str) -> bool {
    const NAMES: [&str; 5] =
        ["x-death", "x-first-death", "x-last-death", "x-delivery-", "x-acquired-"];
    NAMES.iter().any(|name| header.starts_with(name))
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

/// What is left of a frame's payload, and how many more values of it are read. `None`: it ends before
/// its time, is no such frame, and stays as it is from there on.
struct Payload<'a>(&'a mut [u8], u32);

impl<'a> Payload<'a> {
    fn new(payload: &'a mut [u8]) -> Payload<'a> {
        Payload(payload, MAX_VALUES)
    }

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
        let mut entries = Payload(self.long_string()?, self.1);
        while !entries.0.is_empty() {
            // A name of no length.
            if entries.1 == 0 && entries.rest_as_bytes(b"\0x") {
                break;
            }
            entries.short_string()?;
            entries.value(depth)?;
        }
        self.1 = entries.1;
        Some(())
    }

    fn array(&mut self, depth: u8) -> Option<()> {
        let mut values = Payload(self.long_string()?, self.1);
        while !values.0.is_empty() {
            if values.1 == 0 && values.rest_as_bytes(b"x") {
                break;
            }
            values.value(depth)?;
        }
        self.1 = values.1;
        Some(())
    }

    /// All that is left becomes one value, if it has room for its beginning and its length.
    fn rest_as_bytes(&mut self, begin: &[u8]) -> bool {
        let Some(length) = self.0.len().checked_sub(begin.len() + 4) else { return false };
        let length = u32::try_from(length).expect("a part of a frame").to_be_bytes();
        let head = [begin, &length].concat();
        self.0[..head.len()].copy_from_slice(&head);
        true
    }

    fn value(&mut self, depth: u8) -> Option<()> {
        self.1 = self.1.saturating_sub(1);
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
        self.take_short_string().map(substitute)
    }

    fn take_short_string(&mut self) -> Option<&'a mut [u8]> {
        let length = *self.take(1)?.first()?;
        self.take(length.into())
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

    use super::{HEAD, HEADER, Legible, MAX_DEPTH, MAX_VALUES, METHOD, without_largest};

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
        let mut stream = Legible::new(stream::iter(pieces).into_async_read(), None);
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
    fn of_very_many_values_the_last_ones_are_bytes() {
        let many = MAX_VALUES as usize + 500;
        let array = header(&[&short(b"a")[..], b"A", &long(&vec![b'V'; many])].concat(), b"m");
        let came = read(&array, 1000);
        assert_eq!(came.len(), array.len());
        // The array is one of the values.
        let rest =
            [&vec![b'V'; MAX_VALUES as usize - 1][..], b"x", &long(&vec![b'V'; 496])].concat();
        let expected = header(&[&short(b"a")[..], b"A", &long(&rest)].concat(), b"m");
        assert!(came == expected);
        let entries = [&short(b"n")[..], b"V"].concat().repeat(many);
        let came = read(&header(&entries, b"m\xFC"), 1000);
        let kept = [&short(b"n")[..], b"V"].concat().repeat(MAX_VALUES as usize);
        let rest = &entries[kept.len() + 6..];
        let expected = header(&[&kept[..], b"\0x", &long(rest)].concat(), b"m\x1A");
        assert!(came == expected);
    }

    #[test]
    fn a_frame_that_the_broker_made_too_large_loses_the_largest_headers_of_others() {
        let text =
            |name: &[u8], length| [&short(name)[..], b"S", &long(&vec![b'a'; length])].concat();
        let tune = [&[0, 10, 0, 30, 0, 0][..], &1000_u32.to_be_bytes(), &[0, 0]].concat();
        let tune = frame(METHOD, &tune);
        let ours = text(b"x-death", 400);
        let headers =
            |a: &[u8], b: &[u8]| header(&[&text(b"small", 50)[..], a, &ours, b].concat(), b"m");
        let sent = headers(&text(b"large", 600), &text(b"larger", 700));
        let shorter = headers(&[], &[]);
        let time = text(b"ce-time", 800);
        assert_eq!(
            without_largest(&header(&[&time[..], &text(b"small", 50)].concat(), b"m")[HEAD..], 30),
            Some(header(&time, b"m")[HEAD..].to_vec()),
            "an event is told by its time"
        );
        let late = header(&[&text(b"x-relay-b", 900)[..], &time].concat(), b"m");
        assert_eq!(
            without_largest(&late[HEAD..], 30),
            Some(header(&time, b"m")[HEAD..].to_vec()),
            "where nothing else is left, what seems to be needed goes too"
        );
        assert!(headers(&text(b"large", 600), &[]).len() > 1000 && shorter.len() < 1000);
        let body = frame(3, b"after it");
        for piece in [1, 99, 5000] {
            let came = read(&[&tune[..], &sent, &body].concat(), piece);
            assert!(came == [&tune[..], &shorter, &body].concat());
            assert!(read(&[&sent[..], &body].concat(), piece) == [&sent[..], &body].concat());
        }
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
