//! Read buffers that a connection holds only while there are bytes in them.
//!
//! A shard keeps the empty ones, so 15,000 idle connections hold none, and a busy one allocates none.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, ReadBuf};

/// Size of a fresh buffer: a usual request head, or a TLS record (RFC 8446 section 5.2).
pub const BUFFER: usize = 16 * 1024;

/// Size of a buffer once reads fill it: fewer system calls for large bodies; more gave nothing over loopback.
pub const LARGE_BUFFER: usize = 64 * 1024;

/// Empty buffers that a shard keeps, in total 4 MiB.
const KEPT: usize = 256;

thread_local! {
    static EMPTY: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

fn take_empty() -> Vec<u8> {
    EMPTY.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; BUFFER])
}

fn give_back(bytes: Vec<u8>) {
    if bytes.len() != BUFFER {
        return;
    }
    // The thread-local is gone while a thread ends; the buffer is then simply freed.
    let _ = EMPTY.try_with(|empty| {
        let mut empty = empty.borrow_mut();
        if empty.len() < KEPT {
            empty.push(bytes);
        }
    });
}

/// Bytes read and not yet consumed.
#[derive(Debug, Default)]
pub struct Buffer {
    /// Empty when nothing is buffered, else fully initialized storage.
    storage: Vec<u8>,
    start: usize,
    end: usize,
}

impl Buffer {
    /// A buffer with these bytes in it.
    pub fn with(bytes: &[u8]) -> Self {
        let mut buffer = Self::default();
        if !bytes.is_empty() {
            buffer.storage = take_empty();
            if bytes.len() > buffer.storage.len() {
                buffer.storage.resize(bytes.len(), 0);
            }
            buffer.storage[..bytes.len()].copy_from_slice(bytes);
            buffer.end = bytes.len();
        }
        buffer
    }

    /// What can be consumed.
    pub fn window(&self) -> &[u8] {
        &self.storage[self.start..self.end]
    }

    /// Number of bytes that can be consumed.
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether nothing can be consumed.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Drops the first `count` bytes of the window.
    pub fn consume(&mut self, count: usize) {
        self.start = (self.start + count).min(self.end);
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
    }

    /// Gives the storage back when nothing is in it.
    pub fn release(&mut self) {
        if self.is_empty() && !self.storage.is_empty() {
            give_back(std::mem::take(&mut self.storage));
        }
    }

    /// Reads once, with at most `limit` bytes in the window afterwards. Returns the number of bytes read; 0 is the end of
    /// the stream, or a window that holds `limit` bytes already. Cancel-safe.
    ///
    /// # Errors
    /// Those of the stream.
    pub fn poll_fill<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        limit: usize,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if self.storage.is_empty() {
            self.storage = take_empty();
        }
        if self.end == self.storage.len() {
            self.make_room(limit);
        }
        let room = limit.saturating_sub(self.len()).min(self.storage.len() - self.end);
        if room == 0 {
            return Poll::Ready(Ok(0));
        }
        let mut free = ReadBuf::new(&mut self.storage[self.end..self.end + room]);
        let polled = Pin::new(stream).poll_read(cx, &mut free);
        let count = free.filled().len();
        if polled.is_pending() {
            self.release();
        }
        ready!(polled)?;
        self.end += count;
        Poll::Ready(Ok(count))
    }

    fn make_room(&mut self, limit: usize) {
        if self.start > 0 {
            self.storage.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == self.storage.len() && self.storage.len() < limit {
            let len = (2 * self.storage.len()).max(LARGE_BUFFER).min(limit);
            self.storage.resize(len, 0);
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if !self.storage.is_empty() {
            give_back(std::mem::take(&mut self.storage));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    fn fill(buffer: &mut Buffer, mut source: &[u8], limit: usize) -> usize {
        match buffer.poll_fill(&mut source, limit, &mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => result.unwrap(),
            Poll::Pending => panic!("a slice is always ready"),
        }
    }

    #[test]
    fn grows_up_to_the_limit_and_no_further() {
        let source = vec![7u8; 200_000];
        let mut buffer = Buffer::default();
        let mut total = 0;
        loop {
            let count = fill(&mut buffer, &source, 100_000);
            if count == 0 {
                break;
            }
            total += count;
        }
        assert_eq!((total, buffer.len()), (100_000, 100_000));
        buffer.consume(99_999);
        assert_eq!(buffer.window(), [7]);
        assert!(fill(&mut buffer, &source, 100_000) > 0);
    }

    #[test]
    fn holds_no_storage_when_released_empty() {
        let mut buffer = Buffer::with(b"abc");
        buffer.consume(2);
        buffer.release();
        assert_eq!(buffer.window(), b"c");
        buffer.consume(1);
        buffer.release();
        assert_eq!(buffer.storage.capacity(), 0);
    }
}
