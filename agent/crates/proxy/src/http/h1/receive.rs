//! The receiving direction of a client's HTTP/1.1 connection: heads, and bodies lent to whoever sends them upstream.

use std::{
    cell::Cell,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use tokio::{io::AsyncWrite, time::Instant};

use super::{chunked::Step, decoder::Decoder, framing::BodyLength, parse, refusal::Refusal};
use crate::{
    error::{Error, ErrorKind},
    http::{
        body::{Piece, Source},
        head::Headers,
    },
    net::{
        buffer::{Buffer, LARGE_BUFFER},
        stream::SharedStream,
        timer::Timer,
    },
    timeouts,
};

/// RFC 9110 section 15.2.1.
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// What a client's connection has for its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// A head of this many bytes at the start of the window.
    Head(usize),
    /// The client has closed.
    Closed,
}

/// The receiving direction.
#[derive(Debug)]
pub struct Receiver {
    stream: SharedStream,
    /// Bytes that no request has taken yet.
    pub buffer: Buffer,
    scanner: parse::Scanner,
    has_ended: bool,
}

impl Receiver {
    /// Receives from `stream`; `buffer` holds what was read before.
    pub fn new(stream: SharedStream, buffer: Buffer) -> Self {
        Self { stream, buffer, scanner: parse::Scanner::default(), has_ended: false }
    }

    /// Waits for the next head. Cancel-safe. Holds no memory while nothing has arrived.
    ///
    /// # Errors
    /// What the head's lines break, or the stream's error.
    pub fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Incoming, Error>> {
        loop {
            if self.scanner_is_fresh() {
                self.buffer.consume(parse::leading_empty_lines(self.buffer.window()));
            }
            // A lone CR may be the first half of an empty line.
            if self.buffer.window() != b"\r" {
                let found = self.scanner.find_end(self.buffer.window());
                if let Some(len) = found.map_err(refused)? {
                    self.scanner = parse::Scanner::default();
                    return Poll::Ready(Ok(Incoming::Head(len)));
                }
            }
            if self.has_ended || ready!(self.poll_fill(parse::MAX_HEAD, cx))? == 0 {
                return Poll::Ready(Ok(Incoming::Closed));
            }
        }
    }

    /// Reads ahead while a request is under way, to learn that the client has gone. Ready when its side has ended.
    pub fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.has_ended {
            // Pipelined requests wait in the socket once a buffer is full.
            if self.buffer.len() >= crate::net::buffer::BUFFER {
                return Poll::Pending;
            }
            if ready!(self.poll_fill(crate::net::buffer::BUFFER, cx)).is_err() {
                self.has_ended = true;
            }
        }
        Poll::Ready(())
    }

    /// Whether the client has closed its side.
    pub fn has_ended(&self) -> bool {
        self.has_ended
    }

    fn scanner_is_fresh(&self) -> bool {
        self.scanner.is_fresh()
    }

    fn poll_fill(&mut self, limit: usize, cx: &mut Context<'_>) -> Poll<Result<usize, Error>> {
        let filled = ready!(self.buffer.poll_fill(&mut *self.stream.borrow_mut(), limit, cx));
        if !matches!(filled, Ok(count) if count > 0) {
            self.has_ended = true;
        }
        Poll::Ready(filled.map_err(closed))
    }
}

/// Where a lent receiver comes back to, and what the body must know of the response.
#[derive(Default)]
pub struct Loan {
    returned: Cell<Option<Box<Receiver>>>,
    is_complete: Cell<bool>,
    response_began: Cell<bool>,
    received: Cell<u64>,
}

impl std::fmt::Debug for Loan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loan").field("is_complete", &self.is_complete).finish_non_exhaustive()
    }
}

impl Loan {
    /// The receiver, once the body has ended or has been dropped, and whether it was read to its end.
    pub fn take(&self) -> Option<(Box<Receiver>, bool)> {
        self.returned.take().map(|receiver| (receiver, self.is_complete.get()))
    }

    /// Says that the final response has begun: a `100 (Continue)` would come too late.
    pub fn set_response_began(&self) {
        self.response_began.set(true);
    }

    /// Whether the body was read to its end.
    pub fn is_complete(&self) -> bool {
        self.is_complete.get()
    }

    /// Bytes of the body received so far.
    pub fn received(&self) -> u64 {
        self.received.get()
    }
}

/// A request body on its way from the client.
#[derive(Debug)]
pub struct ReceivedBody {
    receiver: Option<Box<Receiver>>,
    decoder: Decoder,
    length: Option<u64>,
    available: usize,
    trailers: Headers,
    has_ended: bool,
    /// Bytes of `100 (Continue)` that the client still waits for.
    owed: &'static [u8],
    timer: Timer,
    loan: Rc<Loan>,
}

impl ReceivedBody {
    /// Lends a receiver to a body of that length.
    pub fn new(receiver: Box<Receiver>, length: BodyLength, expects_continue: bool, loan: Rc<Loan>) -> Self {
        Self {
            receiver: Some(receiver),
            decoder: Decoder::new(length),
            length: match length {
                BodyLength::Known(length) => Some(length),
                _ => None,
            },
            available: 0,
            trailers: Headers::default(),
            has_ended: false,
            owed: if expects_continue { CONTINUE } else { &[] },
            timer: Timer::default(),
            loan,
        }
    }

    /// The body is complete: its connection can go on, whoever still holds the body.
    fn end(&mut self) {
        self.has_ended = true;
        self.loan.is_complete.set(true);
        self.loan.returned.set(self.receiver.take());
    }

    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, Error>> {
        let Some(receiver) = self.receiver.as_mut() else { return Poll::Ready(Ok(Piece::End)) };
        loop {
            match self.decoder.step(receiver.buffer.window(), &mut self.trailers).map_err(refused)? {
                Step::Skip(count) => receiver.buffer.consume(count),
                Step::Data(count) => {
                    self.available = count;
                    return Poll::Ready(Ok(Piece::Data));
                }
                Step::End => {
                    self.end();
                    return Poll::Ready(Ok(Piece::End));
                }
                Step::More => {
                    if !self.owed.is_empty() && !self.loan.response_began.get() {
                        ready!(poll_owed(&mut self.owed, receiver, cx))?;
                    }
                    if receiver.has_ended || ready!(receiver.poll_fill(LARGE_BUFFER, cx))? == 0 {
                        return Poll::Ready(Err(Error::downstream(ErrorKind::Closed)));
                    }
                    self.owed = &[];
                    self.timer.set(None);
                }
            }
        }
    }
}

/// The body is wanted and the client waits for leave to send it.
fn poll_owed(owed: &mut &'static [u8], receiver: &Receiver, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
    let mut stream = receiver.stream.borrow_mut();
    while !owed.is_empty() {
        let count = ready!(Pin::new(&mut *stream).poll_write(cx, owed)).map_err(closed)?;
        if count == 0 {
            return Poll::Ready(Err(Error::downstream(ErrorKind::Closed)));
        }
        *owed = &owed[count..];
    }
    Pin::new(&mut *stream).poll_flush(cx).map_err(closed)
}

impl Source for ReceivedBody {
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, Error>> {
        if self.available > 0 {
            return Poll::Ready(Ok(Piece::Data));
        }
        if self.has_ended {
            return Poll::Ready(Ok(Piece::End));
        }
        let polled = self.poll_step(cx);
        if polled.is_pending() {
            if self.timer.deadline().is_none() {
                self.timer.set(Some(Instant::now() + timeouts::BODY_PROGRESS));
            }
            ready!(self.timer.poll_expired(cx));
            return Poll::Ready(Err(Error::downstream(ErrorKind::BodyTimeout)));
        }
        polled
    }

    fn data(&self) -> &[u8] {
        self.receiver.as_ref().map_or(&[], |receiver| &receiver.buffer.window()[..self.available])
    }

    fn consume(&mut self, count: usize) {
        let count = count.min(self.available);
        if let Some(receiver) = &mut self.receiver {
            receiver.buffer.consume(count);
            self.decoder.consumed(count);
            self.available -= count;
            self.loan.received.set(self.loan.received.get() + count as u64);
        }
        if matches!(self.decoder, Decoder::Length(0)) && !self.has_ended {
            self.end();
        }
    }

    fn take_trailers(&mut self) -> Option<Headers> {
        (!self.trailers.is_empty()).then(|| std::mem::take(&mut self.trailers))
    }

    fn set_unwanted(&mut self) {
        self.owed = &[];
    }

    fn length(&self) -> Option<u64> {
        self.length
    }
}

impl Drop for ReceivedBody {
    fn drop(&mut self) {
        if let Some(receiver) = self.receiver.take() {
            self.loan.returned.set(Some(receiver));
        }
    }
}

fn refused(refusal: Refusal) -> Error {
    Error::downstream(ErrorKind::Refused(refusal))
}

fn closed(source: io::Error) -> Error {
    Error::downstream(ErrorKind::Closed).because(source)
}
