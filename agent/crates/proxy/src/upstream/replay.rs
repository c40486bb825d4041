//! A request body that can be sent again while little of it has been read.
//!
//! Needed where a connection is used again: the endpoint may close it at the moment at which the request is sent, which is
//! no failure of the request (RFC 9112 section 9.3.1).

use std::{
    cell::RefCell,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};

use crate::{
    error::{Error, ErrorKind},
    http::{
        body::{Body, Piece, Source},
        head::Headers,
    },
};

/// Bytes kept of a body for the case of a dead connection; a longer one is not sent again.
pub const KEPT: u64 = 16 * 1024;

/// Bytes kept of a body whose rule asks for retries: forms and calls of an API fit, and a shard that serves a thousand of
/// them at once needs 64 MiB.
pub const KEPT_FOR_RULE: u64 = 64 * 1024;

/// What was read of a body and the rest of it, shared between the attempts of a request.
#[derive(Clone, Debug)]
pub struct Replay(Rc<RefCell<State>>);

#[derive(Debug)]
struct State {
    inner: Body,
    kept: Vec<Bytes>,
    limit: u64,
    read_bytes: u64,
    is_overrun: bool,
    has_ended: bool,
    trailers: Option<Headers>,
    length: Option<u64>,
    /// Attempts begun. Only the last one reads on: an HTTP/2 connection may hold on to the body of one that was given up.
    attempts: u32,
}

impl Replay {
    /// Keeps what is read of `inner`, up to `limit` bytes.
    pub fn new(inner: Body, limit: u64) -> Self {
        Self(Rc::new(RefCell::new(State {
            length: inner.length(),
            inner,
            kept: Vec::new(),
            limit,
            read_bytes: 0,
            is_overrun: false,
            has_ended: false,
            trailers: None,
            attempts: 0,
        })))
    }

    /// Bytes read of it so far.
    pub fn progress(&self) -> u64 {
        self.0.borrow().read_bytes
    }

    /// Whether all that was read is kept.
    pub fn is_whole(&self) -> bool {
        !self.0.borrow().is_overrun
    }

    /// The body from its first byte, for one more attempt, which ends the one before; `None` when too much of it was read.
    pub fn start(&self) -> Option<Body> {
        let mut state = self.0.borrow_mut();
        if state.is_overrun {
            return None;
        }
        state.attempts += 1;
        let attempt = Attempt { replay: self.clone(), number: state.attempts, position: 0, current: Bytes::new() };
        Some(Body::Stream(Box::new(attempt)))
    }
}

/// The body as one attempt reads it.
struct Attempt {
    replay: Replay,
    number: u32,
    /// Kept pieces that this attempt has read.
    position: usize,
    current: Bytes,
}

impl Source for Attempt {
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, Error>> {
        if !self.current.is_empty() {
            return Poll::Ready(Ok(Piece::Data));
        }
        let mut state = self.replay.0.borrow_mut();
        let state = &mut *state;
        if self.number != state.attempts {
            return Poll::Ready(Err(Error::internal(ErrorKind::Closed)));
        }
        if let Some(piece) = state.kept.get(self.position) {
            self.current = piece.clone();
            self.position += 1;
            return Poll::Ready(Ok(Piece::Data));
        }
        if state.has_ended {
            return Poll::Ready(Ok(Piece::End));
        }
        let piece = ready!(state.inner.poll_piece(cx))?;
        if piece == Piece::End {
            state.has_ended = true;
            state.trailers = state.inner.take_trailers();
            return Poll::Ready(Ok(piece));
        }
        self.current = state.inner.take_data();
        state.read_bytes += self.current.len() as u64;
        if state.read_bytes <= state.limit {
            state.kept.push(self.current.clone());
            self.position = state.kept.len();
        } else {
            state.is_overrun = true;
            state.kept = Vec::new();
            self.position = 0;
        }
        Poll::Ready(Ok(piece))
    }

    fn data(&self) -> &[u8] {
        &self.current
    }

    fn consume(&mut self, count: usize) {
        self.current.advance(count.min(self.current.len()));
    }

    fn take_data(&mut self) -> Bytes {
        std::mem::take(&mut self.current)
    }

    fn take_trailers(&mut self) -> Option<Headers> {
        let state = self.replay.0.borrow();
        state.trailers.clone().filter(|_| self.number == state.attempts)
    }

    fn length(&self) -> Option<u64> {
        self.replay.0.borrow().length
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    fn read(body: &mut Body, limit: usize) -> Vec<u8> {
        let mut data = Vec::new();
        let cx = &mut Context::from_waker(Waker::noop());
        while data.len() < limit && matches!(body.poll_piece(cx), Poll::Ready(Ok(Piece::Data))) {
            data.extend_from_slice(&body.take_data());
        }
        data
    }

    #[test]
    fn a_short_body_is_read_again_from_its_start() {
        let replay = Replay::new(Body::Bytes(Bytes::from_static(b"hello")), KEPT);
        let mut first = replay.start().unwrap();
        assert_eq!(first.length(), Some(5));
        assert_eq!(read(&mut first, 1), b"hello");
        drop(first);
        assert_eq!(read(&mut replay.start().unwrap(), 100), b"hello");
    }

    #[test]
    fn a_long_body_is_not_offered_twice() {
        let replay = Replay::new(Body::Bytes(Bytes::from(vec![1; KEPT as usize + 1])), KEPT);
        assert_eq!(read(&mut replay.start().unwrap(), usize::MAX).len(), KEPT as usize + 1);
        assert!(replay.start().is_none());
    }

    #[test]
    fn an_attempt_that_was_given_up_takes_nothing_from_the_next() {
        let replay = Replay::new(Body::Bytes(Bytes::from_static(b"hello")), KEPT);
        let mut given_up = replay.start().unwrap();
        let mut next = replay.start().unwrap();
        let cx = &mut Context::from_waker(Waker::noop());
        assert!(matches!(given_up.poll_piece(cx), Poll::Ready(Err(_))));
        assert_eq!(read(&mut next, 100), b"hello");
    }
}
