//! One request and its response over an HTTP/1.1 connection to an endpoint.
//!
//! The exchange sends the request's body while it reads the response: whoever polls for the response drives both, so no
//! task and no channel is needed and an endpoint may answer early. It is itself the response's body, and gives the
//! connection back to the pool when both messages ended cleanly.

use std::{
    io,
    rc::Rc,
    task::{Context, Poll, ready},
};

use http::Method;
use tokio::time::Instant;

use super::{
    attempt::AttemptGuard,
    pool::{Connection, Pool},
};
use crate::{
    error::{Error, ErrorKind, Retry},
    http::{
        body::{Body, Piece, Source},
        h1::{
            chunked::Step,
            decoder::Decoder,
            framing::{self, BodyLength},
            parse,
            refusal::Refusal,
            write::{Announce, SendError, Writer, push_request},
        },
        head::{Headers, RequestHead, ResponseHead},
        hop::HopRequest,
        known::Known,
    },
    net::{buffer::LARGE_BUFFER, timer::Timer},
    timeouts,
};

/// Interim responses taken for one request: a few hints are usual, an endless stream of them is an attack.
const MAX_INTERIMS: u8 = 16;

/// What the endpoint has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// An interim response other than `100 (Continue)`: pass it on, then wait again.
    Interim,
    /// The final response; its body is the exchange.
    Final,
    /// `101 (Switching Protocols)` to a request that asked for it.
    Upgraded,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sending {
    /// The head is sent; the body waits for leave (RFC 9110 section 10.1.1).
    AwaitContinue,
    Running,
    Done,
    /// The endpoint takes no more; it may still have answered.
    Broken,
}

/// An exchange.
pub struct Exchange {
    connection: Option<Box<Connection>>,
    pool: Rc<Pool>,
    guard: Option<AttemptGuard>,
    writer: Writer,
    request: Body,
    sending: Sending,
    is_upgrade: bool,
    method: Method,
    scanner: parse::Scanner,
    received: u64,
    interims: u8,
    decoder: Decoder,
    length: Option<u64>,
    keep_alive: bool,
    available: usize,
    trailers: Headers,
    failure: Option<Error>,
    timer: Timer,
}

impl Exchange {
    /// Prepares to send a request; nothing is sent before the first poll.
    pub fn new(
        connection: Box<Connection>,
        pool: Rc<Pool>,
        guard: AttemptGuard,
        (head, hop, request): (&RequestHead, &HopRequest, Body),
    ) -> Self {
        let mut writer = Writer::default();
        let announce = match request.length() {
            Some(0) if head.headers.find_known(Known::ContentLength).is_none() => Announce::Nothing,
            Some(length) => Announce::Length(length),
            None => Announce::Chunked,
        };
        push_request(writer.begin(announce), head, announce, hop.upgrade.as_deref());
        let waits = !request.is_empty() && head.headers.find_known(Known::Expect).is_some();
        let mut timer = Timer::default();
        if waits {
            timer.set(Some(Instant::now() + timeouts::AWAIT_CONTINUE));
        }
        Self {
            connection: Some(connection),
            pool,
            guard: Some(guard),
            writer,
            request,
            sending: if waits { Sending::AwaitContinue } else { Sending::Running },
            is_upgrade: hop.upgrade.is_some(),
            method: head.method.clone(),
            scanner: parse::Scanner::default(),
            received: 0,
            interims: 0,
            decoder: Decoder::Length(0),
            length: None,
            keep_alive: false,
            available: 0,
            trailers: Headers::default(),
            failure: None,
            timer,
        }
    }

    /// Waits for the response's head. Cancel-safe.
    ///
    /// # Errors
    /// Of either side. Its `retry` says whether the request may be sent again, see [`Exchange::into_request`].
    pub fn poll_answer(&mut self, head: &mut ResponseHead, cx: &mut Context<'_>) -> Poll<Result<Answer, Error>> {
        self.poll_request(cx)?;
        loop {
            let Some(connection) = self.connection.as_mut() else { return Poll::Ready(Err(closed(None))) };
            let found = self.scanner.find_end(connection.buffer.window());
            if let Some(len) = found.map_err(|refusal| Error::upstream(ErrorKind::Refused(refusal)))? {
                self.scanner = parse::Scanner::default();
                head.clear();
                let parsed = parse::parse_response(&connection.buffer.window()[..len], head);
                connection.buffer.consume(len);
                parsed.map_err(|refusal| Error::upstream(ErrorKind::Refused(refusal)))?;
                match self.take_head(head)? {
                    Some(answer) => return Poll::Ready(Ok(answer)),
                    None => self.poll_request(cx)?,
                }
                continue;
            }
            match ready!(connection.buffer.poll_fill(&mut connection.stream, parse::MAX_HEAD, cx)) {
                Ok(count) if count > 0 => self.received += count as u64,
                result => return Poll::Ready(Err(self.lost(result.err()))),
            }
        }
    }

    /// The request's body after a failure, unless some of it was taken; `None` also stands for a body that was sent.
    pub fn into_request(mut self) -> Option<Body> {
        let is_untouched = self.writer.body_bytes() == 0;
        is_untouched.then(|| std::mem::take(&mut self.request))
    }

    /// Bytes moved in either direction so far.
    pub fn progress(&self) -> u64 {
        self.writer.written() + self.received
    }

    /// The connection after [`Answer::Upgraded`], with what the endpoint has sent behind its head.
    pub fn into_connection(mut self) -> Option<Box<Connection>> {
        self.connection.take()
    }

    fn take_head(&mut self, head: &ResponseHead) -> Result<Option<Answer>, Error> {
        match head.status {
            100 => {
                if self.sending == Sending::AwaitContinue {
                    self.sending = Sending::Running;
                }
                Ok(None)
            }
            101 if self.is_upgrade => Ok(Some(Answer::Upgraded)),
            101 => Err(Error::upstream(ErrorKind::Refused(Refusal::StatusLine))),
            102..=199 => {
                self.interims += 1;
                if self.interims > MAX_INTERIMS {
                    return Err(Error::upstream(ErrorKind::Refused(Refusal::StatusLine)));
                }
                Ok(Some(Answer::Interim))
            }
            _ => {
                let framing = framing::response(&self.method, head)
                    .map_err(|refusal| Error::upstream(ErrorKind::Refused(refusal)))?;
                self.decoder = Decoder::new(framing.body);
                self.length = match framing.body {
                    BodyLength::Empty => Some(0),
                    BodyLength::Known(length) => Some(length),
                    BodyLength::Chunked | BodyLength::UntilClose => None,
                };
                self.keep_alive = framing.keep_alive;
                if self.sending == Sending::AwaitContinue {
                    // A final answer instead of leave to send: the body is not wanted.
                    self.sending = Sending::Broken;
                }
                Ok(Some(Answer::Final))
            }
        }
    }

    /// Sends what can be sent of the request.
    fn poll_request(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        let Some(connection) = self.connection.as_mut() else { return Ok(()) };
        if self.sending == Sending::AwaitContinue {
            match self.writer.poll_flush(&mut connection.stream, cx) {
                Poll::Ready(Err(error)) => self.break_off(error),
                _ if self.timer.poll_expired(cx).is_ready() => self.sending = Sending::Running,
                _ => {}
            }
        }
        let Some(connection) = self.connection.as_mut() else { return Ok(()) };
        if self.sending == Sending::Running {
            match self.writer.poll_send(&mut connection.stream, &mut self.request, cx) {
                Poll::Pending => {}
                Poll::Ready(Ok(())) => self.sending = Sending::Done,
                Poll::Ready(Err(SendError::Body(error))) => return Err(error),
                Poll::Ready(Err(SendError::Stream(error))) => self.break_off(error),
            }
        }
        Ok(())
    }

    /// The endpoint takes no more, but its answer may be on the way: reading goes on.
    fn break_off(&mut self, error: io::Error) {
        self.sending = Sending::Broken;
        self.failure.get_or_insert_with(|| closed(Some(error)));
    }

    /// The connection ended before a response's head did.
    fn lost(&mut self, error: Option<io::Error>) -> Error {
        let is_reused = self.connection.as_ref().is_some_and(|connection| connection.is_reused);
        let failure = match (self.failure.take(), error) {
            (Some(failure), _) => failure,
            (None, error) => closed(error),
        };
        if self.received > 0 {
            return failure;
        }
        failure.retry(match (self.writer.written(), is_reused) {
            (0, _) => Retry::Always,
            (_, true) => Retry::Idempotent,
            (_, false) => Retry::Never,
        })
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, Error>> {
        loop {
            let Some(connection) = self.connection.as_mut() else { return Poll::Ready(Ok(Piece::End)) };
            let step = self.decoder.step(connection.buffer.window(), &mut self.trailers);
            match step.map_err(|refusal| Error::upstream(ErrorKind::Refused(refusal)))? {
                Step::Skip(count) => connection.buffer.consume(count),
                Step::Data(count) => {
                    self.available = count;
                    return Poll::Ready(Ok(Piece::Data));
                }
                Step::End => {
                    self.end();
                    return Poll::Ready(Ok(Piece::End));
                }
                Step::More => {
                    let filled = ready!(connection.buffer.poll_fill(&mut connection.stream, LARGE_BUFFER, cx));
                    if !matches!(filled, Ok(count) if count > 0) {
                        let is_clean = filled.is_ok() && self.decoder.end_of_stream().is_ok();
                        self.connection = None;
                        return Poll::Ready(if is_clean { Ok(Piece::End) } else { Err(closed(filled.err())) });
                    }
                }
            }
        }
    }

    fn end(&mut self) {
        self.guard = None;
        let Some(connection) = self.connection.take() else { return };
        if self.keep_alive && self.sending == Sending::Done && connection.buffer.is_empty() {
            self.pool.put(connection);
        }
    }
}

impl Source for Exchange {
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, Error>> {
        if self.available > 0 {
            return Poll::Ready(Ok(Piece::Data));
        }
        if self.sending != Sending::Done {
            self.poll_request(cx)?;
        }
        self.poll_body(cx)
    }

    fn data(&self) -> &[u8] {
        self.connection.as_ref().map_or(&[], |connection| &connection.buffer.window()[..self.available])
    }

    fn consume(&mut self, count: usize) {
        let count = count.min(self.available);
        if let Some(connection) = &mut self.connection {
            connection.buffer.consume(count);
            self.decoder.consumed(count);
            self.available -= count;
        }
    }

    fn take_trailers(&mut self) -> Option<Headers> {
        (!self.trailers.is_empty()).then(|| std::mem::take(&mut self.trailers))
    }

    fn poll_background(&mut self, cx: &mut Context<'_>) {
        if let Err(error) = self.poll_request(cx) {
            // The client's body failed; the response ends as far as it has come.
            self.sending = Sending::Broken;
            self.failure = Some(error);
        }
    }

    fn length(&self) -> Option<u64> {
        self.length
    }
}

fn closed(error: Option<io::Error>) -> Error {
    let failure = Error::upstream(ErrorKind::Closed);
    match error {
        Some(error) => failure.because(error),
        None => failure,
    }
}
