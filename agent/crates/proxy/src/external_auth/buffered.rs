//! A body that was read to its end, to be read again.

use std::{
    cell::Cell,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes};

use crate::{
    error::Error,
    http::{
        body::{Body, Piece, Source},
        head::Headers,
    },
};

/// Bytes of all bodies that one shard keeps at once: a fraction of a worker's memory, and 64 of the largest.
const MAX_HELD: usize = 64 << 20;

thread_local! {
    /// Bytes kept on this shard.
    static HELD: Cell<usize> = const { Cell::new(0) };
}

/// Room for a body.
#[derive(Debug)]
pub(super) struct Held(usize);

impl Held {
    /// Room for that many bytes, if there is any.
    pub(super) fn reserve(bytes: usize) -> Option<Self> {
        let held = HELD.get() + bytes;
        (held <= MAX_HELD).then(|| {
            HELD.set(held);
            Self(bytes)
        })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        HELD.set(HELD.get() - self.0);
    }
}

/// The body.
#[derive(Debug)]
pub(super) struct Buffered {
    _held: Held,
    data: Bytes,
    trailers: Option<Headers>,
    length: Option<u64>,
}

impl Buffered {
    /// `length`: what its sender had said. Trailers can follow only a body that had none.
    pub(super) fn new(data: Bytes, trailers: Option<Headers>, length: Option<u64>, held: Held) -> Self {
        Self { data, trailers, length, _held: held }
    }

    pub(super) fn into_body(self) -> Body {
        Body::Stream(Box::new(self))
    }
}

impl Source for Buffered {
    fn poll_piece(&mut self, _cx: &mut Context<'_>) -> Poll<Result<Piece, Error>> {
        Poll::Ready(Ok(if self.data.is_empty() { Piece::End } else { Piece::Data }))
    }

    fn data(&self) -> &[u8] {
        &self.data
    }

    fn consume(&mut self, count: usize) {
        self.data.advance(count.min(self.data.len()));
    }

    fn take_data(&mut self) -> Bytes {
        std::mem::take(&mut self.data)
    }

    fn take_trailers(&mut self) -> Option<Headers> {
        self.trailers.take()
    }

    fn length(&self) -> Option<u64> {
        self.length
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_limited_and_comes_back() {
        let all = Held::reserve(MAX_HELD).unwrap();
        assert!(Held::reserve(1).is_none());
        drop(all);
        assert!(Held::reserve(MAX_HELD).is_some());
    }
}
