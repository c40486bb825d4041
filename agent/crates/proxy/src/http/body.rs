//! Bodies as they pass through: a source that is asked for bytes, one piece at a time, never more than one buffer ahead.

use std::task::{Context, Poll};

use bytes::Bytes;

use super::head::Headers;
use crate::error::Error;

/// What a body has next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Bytes: see [`Source::data`].
    Data,
    /// Its end; trailer fields may be taken.
    End,
}

/// A body that arrives from somewhere. Polled on one thread by one owner at a time.
pub trait Source {
    /// Waits for bytes or the end. Cancel-safe: what it found stays until it is consumed.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, Error>>;

    /// The bytes found: not empty after [`Piece::Data`].
    fn data(&self) -> &[u8];

    /// Drops the first `count` bytes of [`Source::data`].
    fn consume(&mut self, count: usize);

    /// Takes all of [`Source::data`].
    fn take_data(&mut self) -> Bytes {
        let data = Bytes::copy_from_slice(self.data());
        self.consume(data.len());
        data
    }

    /// Trailer fields, once after [`Piece::End`].
    fn take_trailers(&mut self) -> Option<Headers> {
        None
    }

    /// Drives what must go on while nobody can take bytes: the request's body while the response is stuck.
    fn poll_background(&mut self, _cx: &mut Context<'_>) {}

    /// Says that nobody wants the body: its sender is not asked for what it has not sent yet.
    fn set_unwanted(&mut self) {}

    /// Length of the whole body, if its sender said it; does not change while the body is read.
    fn length(&self) -> Option<u64> {
        None
    }
}

/// A body.
#[derive(Default)]
pub enum Body {
    /// None.
    #[default]
    Empty,
    /// All there.
    Bytes(Bytes),
    /// Arriving.
    Stream(Box<dyn Source>),
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Empty => "Empty",
            Self::Bytes(_) => "Bytes",
            Self::Stream(_) => "Stream",
        })
    }
}

impl Body {
    /// Whether it has ended before it began.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Bytes(bytes) => bytes.is_empty(),
            Self::Stream(_) => false,
        }
    }

    /// See [`Source::poll_piece`].
    pub fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, Error>> {
        match self {
            Self::Empty => Poll::Ready(Ok(Piece::End)),
            Self::Bytes(bytes) => Poll::Ready(Ok(if bytes.is_empty() { Piece::End } else { Piece::Data })),
            Self::Stream(source) => source.poll_piece(cx),
        }
    }

    /// See [`Source::data`].
    pub fn data(&self) -> &[u8] {
        match self {
            Self::Empty => &[],
            Self::Bytes(bytes) => bytes,
            Self::Stream(source) => source.data(),
        }
    }

    /// See [`Source::consume`].
    pub fn consume(&mut self, count: usize) {
        match self {
            Self::Empty => {}
            Self::Bytes(bytes) => drop(bytes.split_to(count.min(bytes.len()))),
            Self::Stream(source) => source.consume(count),
        }
    }

    /// See [`Source::take_data`].
    pub fn take_data(&mut self) -> Bytes {
        match self {
            Self::Empty => Bytes::new(),
            Self::Bytes(bytes) => std::mem::take(bytes),
            Self::Stream(source) => source.take_data(),
        }
    }

    /// See [`Source::take_trailers`].
    pub fn take_trailers(&mut self) -> Option<Headers> {
        match self {
            Self::Stream(source) => source.take_trailers(),
            _ => None,
        }
    }

    /// See [`Source::poll_background`].
    pub fn poll_background(&mut self, cx: &mut Context<'_>) {
        if let Self::Stream(source) = self {
            source.poll_background(cx);
        }
    }

    /// See [`Source::set_unwanted`].
    pub fn set_unwanted(&mut self) {
        if let Self::Stream(source) = self {
            source.set_unwanted();
        }
    }

    /// See [`Source::length`].
    pub fn length(&self) -> Option<u64> {
        match self {
            Self::Empty => Some(0),
            Self::Bytes(bytes) => Some(bytes.len() as u64),
            Self::Stream(source) => source.length(),
        }
    }
}
