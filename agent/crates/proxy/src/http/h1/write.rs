//! Writing HTTP/1.1 messages: heads into a buffer, bodies from their source, in as few system calls as can be.

use std::{
    cell::RefCell,
    io::{self, IoSlice, Write as _},
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::AsyncWrite;

use crate::{
    error::Error,
    http::{
        body::{Body, Piece},
        head::{RequestHead, ResponseHead},
        known::Known,
    },
    net::stream::Stream,
};

/// A piece up to this size is copied behind the head, so that both leave in one write: copying it costs a tenth of a
/// system call.
const COPY_LIMIT: usize = 8 * 1024;

/// Pieces are gathered up to this many bytes before they are written.
const GATHER_LIMIT: usize = 32 * 1024;

/// Capacity of an output buffer that is kept for the next message.
const KEPT_CAPACITY: usize = 16 * 1024;

/// How a body's end is told to the receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announce {
    /// Nothing is said: the message has no body, or the connection's end ends it.
    Nothing,
    /// `Content-Length`.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
}

/// Writes a request's head as it goes upstream. Fields of one hop are not copied; `upgrade` is passed on if given.
pub fn push_request(out: &mut Vec<u8>, head: &RequestHead, announce: Announce, upgrade: Option<&[u8]>) {
    out.extend_from_slice(head.method.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(head.target().as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    push_fields(out, head.headers.iter().map(|field| (field.known, field.name, field.value)));
    if let Some(protocol) = upgrade {
        out.extend_from_slice(b"Connection: upgrade\r\n");
        push_field(out, b"Upgrade", protocol);
    }
    push_announce(out, announce);
    out.extend_from_slice(b"\r\n");
}

/// What a response says of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persistence {
    /// HTTP/1.1 and it persists: nothing is said.
    Implied,
    /// `Connection: keep-alive`, for an HTTP/1.0 client that asked for it.
    KeepAlive,
    /// `Connection: close`.
    Close,
    /// `Connection: upgrade`.
    Upgrade,
}

/// Writes a response's head as it goes to the client.
pub fn push_response(out: &mut Vec<u8>, head: &ResponseHead, announce: Announce, persistence: Persistence) {
    push_status_line(out, head.status);
    push_fields(out, head.headers.iter().map(|field| (field.known, field.name, field.value)));
    match persistence {
        Persistence::Implied => {}
        Persistence::KeepAlive => out.extend_from_slice(b"Connection: keep-alive\r\n"),
        Persistence::Close => out.extend_from_slice(b"Connection: close\r\n"),
        Persistence::Upgrade => {
            out.extend_from_slice(b"Connection: upgrade\r\n");
            for protocol in head.headers.values_known(Known::Upgrade) {
                push_field(out, b"Upgrade", protocol);
            }
        }
    }
    push_announce(out, announce);
    out.extend_from_slice(b"\r\n");
}

fn push_status_line(out: &mut Vec<u8>, status: u16) {
    if status == 200 {
        out.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
        return;
    }
    let phrase = http::StatusCode::from_u16(status).ok().and_then(|code| code.canonical_reason()).unwrap_or_default();
    // Writing to a Vec cannot fail.
    let _ = write!(out, "HTTP/1.1 {status} {phrase}\r\n");
}

fn push_fields<'a>(out: &mut Vec<u8>, fields: impl Iterator<Item = (Known, &'a [u8], &'a [u8])>) {
    for (known, name, value) in fields {
        if !known.is_hop_by_hop() && known != Known::ContentLength {
            push_field(out, name, value);
        }
    }
}

fn push_field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn push_announce(out: &mut Vec<u8>, announce: Announce) {
    match announce {
        Announce::Nothing => {}
        Announce::Length(length) => push_field(out, b"Content-Length", itoa::Buffer::new().format(length).as_bytes()),
        Announce::Chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
    }
}

/// Why a message could not be written.
#[derive(Debug)]
pub enum SendError {
    /// Its body failed.
    Body(Error),
    /// The receiver's stream failed.
    Stream(io::Error),
}

/// A stream to write to, borrowed no longer than a write takes.
pub trait Sink {
    /// Calls `write` with the stream.
    fn with<R>(&mut self, write: impl FnOnce(&mut Stream) -> R) -> R;
}

impl Sink for &mut Stream {
    fn with<R>(&mut self, write: impl FnOnce(&mut Stream) -> R) -> R {
        write(self)
    }
}

impl Sink for &RefCell<Stream> {
    fn with<R>(&mut self, write: impl FnOnce(&mut Stream) -> R) -> R {
        write(&mut self.borrow_mut())
    }
}

/// Writes one message after another.
#[derive(Debug, Default)]
pub struct Writer {
    out: Vec<u8>,
    sent: usize,
    /// Bytes of the body's current piece that are to follow `out`.
    promised: usize,
    is_chunked: bool,
    has_ended: bool,
    /// The body's failure, told once what came before it has been written.
    failure: Option<Error>,
    written: u64,
    body_bytes: u64,
}

impl Writer {
    /// Begins a message: its head is to be written into the buffer returned.
    pub fn begin(&mut self, announce: Announce) -> &mut Vec<u8> {
        self.is_chunked = announce == Announce::Chunked;
        self.has_ended = false;
        self.failure = None;
        self.promised = 0;
        self.written = 0;
        self.body_bytes = 0;
        if self.sent == self.out.len() {
            self.out.clear();
            self.sent = 0;
        }
        &mut self.out
    }

    /// Forgets what has not been sent: the stream it was for is gone.
    pub fn discard(&mut self) {
        self.shrink();
        self.promised = 0;
        self.failure = None;
    }

    /// Bytes of this message that the stream has taken.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Bytes taken from the body.
    pub fn body_bytes(&self) -> u64 {
        self.body_bytes
    }

    /// Writes what is left of head and body. Cancel-safe.
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn poll_send(
        &mut self,
        mut sink: impl Sink,
        body: &mut Body,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), SendError>> {
        loop {
            let is_blocked = self.poll_gather(body, cx).is_pending();
            if self.has_output() {
                let count = ready!(self.poll_write(&mut sink, body, cx)).map_err(SendError::Stream)?;
                self.advance(count, body);
                continue;
            }
            if let Some(error) = self.failure.take() {
                return Poll::Ready(Err(SendError::Body(error)));
            }
            let flushed = sink.with(|stream| Pin::new(stream).poll_flush(cx)).map_err(SendError::Stream)?;
            if is_blocked {
                return Poll::Pending;
            }
            if self.has_ended {
                ready!(flushed);
                self.shrink();
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Writes what is buffered, without asking the body for more. Cancel-safe.
    ///
    /// # Errors
    /// The stream's.
    pub fn poll_flush(&mut self, mut sink: impl Sink, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.out.len() {
            let count = ready!(self.poll_write(&mut sink, &Body::Empty, cx))?;
            self.sent += count;
            self.written += count as u64;
        }
        sink.with(|stream| Pin::new(stream).poll_flush(cx))
    }

    /// Takes pieces of the body until enough is there for a write. Pending: the body has no more for now.
    fn poll_gather(&mut self, body: &mut Body, cx: &mut Context<'_>) -> Poll<()> {
        while !self.has_ended && self.promised == 0 && self.out.len() - self.sent < GATHER_LIMIT {
            match ready!(body.poll_piece(cx)) {
                Ok(Piece::Data) => self.push_piece(body),
                Ok(Piece::End) => {
                    self.push_end(body);
                    self.has_ended = true;
                }
                Err(error) => {
                    self.failure = Some(error);
                    self.has_ended = true;
                }
            }
        }
        Poll::Ready(())
    }

    fn push_piece(&mut self, body: &mut Body) {
        let len = body.data().len();
        if self.is_chunked {
            // Writing to a Vec cannot fail.
            let _ = write!(self.out, "{len:x}\r\n");
        }
        self.body_bytes += len as u64;
        if len <= COPY_LIMIT {
            self.out.extend_from_slice(body.data());
            body.consume(len);
            self.push_piece_end();
        } else {
            self.promised = len;
        }
    }

    fn push_piece_end(&mut self) {
        if self.is_chunked {
            self.out.extend_from_slice(b"\r\n");
        }
    }

    fn push_end(&mut self, body: &mut Body) {
        if !self.is_chunked {
            return;
        }
        self.out.extend_from_slice(b"0\r\n");
        if let Some(trailers) = body.take_trailers() {
            push_fields(&mut self.out, trailers.iter().map(|field| (field.known, field.name, field.value)));
        }
        self.out.extend_from_slice(b"\r\n");
    }

    /// Whether bytes wait for the stream to take them.
    pub fn has_output(&self) -> bool {
        self.sent < self.out.len() || self.promised > 0
    }

    fn poll_write(&self, sink: &mut impl Sink, body: &Body, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let head = &self.out[self.sent..];
        let polled = sink.with(|stream| {
            if self.promised == 0 {
                return Pin::new(stream).poll_write(cx, head);
            }
            let slices = [IoSlice::new(head), IoSlice::new(&body.data()[..self.promised])];
            let slices = if head.is_empty() { &slices[1..] } else { &slices[..] };
            Pin::new(stream).poll_write_vectored(cx, slices)
        });
        match ready!(polled)? {
            0 => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            count => Poll::Ready(Ok(count)),
        }
    }

    fn advance(&mut self, count: usize, body: &mut Body) {
        self.written += count as u64;
        let of_head = count.min(self.out.len() - self.sent);
        self.sent += of_head;
        if self.sent == self.out.len() {
            self.out.clear();
            self.sent = 0;
        }
        let of_body = count - of_head;
        if of_body > 0 {
            body.consume(of_body);
            self.promised -= of_body;
            if self.promised == 0 {
                self.push_piece_end();
            }
        }
    }

    fn shrink(&mut self) {
        self.out.clear();
        self.sent = 0;
        self.out.shrink_to(KEPT_CAPACITY);
    }
}
