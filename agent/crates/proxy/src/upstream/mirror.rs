//! Copies of requests to a second backend. The request itself never waits for them: what a mirror cannot take in time is
//! dropped, and its answer is thrown away.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::poll_fn,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use bytes::{Buf, Bytes};
use smallvec::SmallVec;
use tidegate_model::Timeouts;
use tokio::time::{Instant, timeout};

use super::{
    forward::{Forward, Reply, Trace},
    pool::Pool,
};
use crate::{
    balance::BackendState,
    certificates::ClientIdentity,
    error::{Error, ErrorKind},
    http::{
        body::{Body, Piece, Source},
        head::{Headers, RequestHead, ResponseHead},
        hop::HopRequest,
    },
    net::timer::Timer,
    timeouts,
};

/// Bytes of a body that one mirror may lag behind before its copy is dropped.
const MAX_LAG: usize = 64 * 1024;

/// Mirrored requests at once on one shard; more are not mirrored.
const MAX_MIRRORS: usize = 256;

thread_local! {
    /// Mirrored requests under way on this shard.
    static RUNNING: Cell<usize> = const { Cell::new(0) };
}

/// A mirrored request under way.
struct Running;

impl Running {
    fn enter() -> Option<Self> {
        let count = RUNNING.get();
        (count < MAX_MIRRORS).then(|| {
            RUNNING.set(count + 1);
            Self
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        RUNNING.set(RUNNING.get() - 1);
    }
}

/// A request to copy.
pub struct Mirrored {
    /// Its head as the mirror gets it.
    pub head: RequestHead,
    /// What it wants of the hop; an upgrade is never mirrored.
    pub hop: HopRequest,
    /// Where to.
    pub backends: SmallVec<[Rc<BackendState>; 1]>,
    /// Certificate to show to backends that ask for one.
    pub identity: Option<Rc<ClientIdentity>>,
}

/// Sends copies; returns the body for the request itself, which feeds them.
pub fn start(pool: &Rc<Pool>, mirrored: Mirrored, body: Body) -> Body {
    let mut feeds = Vec::new();
    let length = body.length();
    for backend in mirrored.backends {
        let Some(running) = Running::enter() else {
            backend.stats.failures.increment("mirror_limit");
            continue;
        };
        let copy = if body.is_empty() {
            Body::Empty
        } else {
            let feed = Rc::new(RefCell::new(Feed::default()));
            feeds.push(feed.clone());
            Body::Stream(Box::new(Copy { feed, current: Bytes::new(), length }))
        };
        let (pool, head, hop) = (pool.clone(), mirrored.head.clone(), mirrored.hop.clone());
        let identity = mirrored.identity.clone();
        tokio::task::spawn_local(async move {
            let _running = running;
            // Over or failed: neither is anybody's concern but the backend's counters'.
            let _ = timeout(timeouts::MIRROR, send(&pool, (&backend, identity.as_ref()), &head, &hop, copy)).await;
        });
    }
    if feeds.is_empty() { body } else { Body::Stream(Box::new(Tee { inner: body, feeds, has_ended: false })) }
}

async fn send(
    pool: &Rc<Pool>,
    (backend, identity): (&Rc<BackendState>, Option<&Rc<ClientIdentity>>),
    head: &RequestHead,
    hop: &HopRequest,
    body: Body,
) -> Result<(), Error> {
    let forward = Forward {
        pool,
        backend,
        identity,
        timeouts: Timeouts::default(),
        retry: None,
        preferred: None,
        may_repeat: false,
        head,
        hop,
        started: Instant::now(),
    };
    let (mut response, mut timer, mut trace) = (ResponseHead::default(), Timer::default(), Trace::default());
    let Reply::Body(mut body) = forward.run(body, &mut response, &mut timer, &mut trace, &mut |_| {}).await? else {
        return Ok(());
    };
    loop {
        match poll_fn(|cx| body.poll_piece(cx)).await? {
            Piece::Data => body.consume(body.data().len()),
            Piece::End => return Ok(()),
        }
    }
}

/// Pieces on their way to one mirror.
#[derive(Default)]
struct Feed {
    pieces: VecDeque<Bytes>,
    bytes: usize,
    end: Option<End>,
    waker: Option<Waker>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Complete,
    /// The mirror was too slow, or the request's own body failed.
    Broken,
}

impl Feed {
    fn push(&mut self, piece: &Bytes) {
        if self.end.is_some() {
            return;
        }
        self.bytes += piece.len();
        if self.bytes > MAX_LAG {
            self.finish(End::Broken);
            return;
        }
        self.pieces.push_back(piece.clone());
        self.wake();
    }

    fn finish(&mut self, end: End) {
        if self.end.is_none() {
            self.end = Some(end);
            if end == End::Broken {
                self.pieces.clear();
            }
        }
        self.wake();
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// The request's own body, whose pieces are copied as they are taken.
struct Tee {
    inner: Body,
    feeds: Vec<Rc<RefCell<Feed>>>,
    has_ended: bool,
}

impl Tee {
    fn copy(&self, piece: &Bytes) {
        self.feeds.iter().for_each(|feed| feed.borrow_mut().push(piece));
    }
}

impl Source for Tee {
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, Error>> {
        let polled = self.inner.poll_piece(cx);
        if let Poll::Ready(Ok(Piece::End)) = polled
            && !self.has_ended
        {
            self.has_ended = true;
            self.feeds.iter().for_each(|feed| feed.borrow_mut().finish(End::Complete));
        }
        polled
    }

    fn data(&self) -> &[u8] {
        self.inner.data()
    }

    fn consume(&mut self, count: usize) {
        self.copy(&Bytes::copy_from_slice(&self.inner.data()[..count]));
        self.inner.consume(count);
    }

    fn take_data(&mut self) -> Bytes {
        let data = self.inner.take_data();
        self.copy(&data);
        data
    }

    fn take_trailers(&mut self) -> Option<Headers> {
        self.inner.take_trailers()
    }

    fn length(&self) -> Option<u64> {
        self.inner.length()
    }
}

impl Drop for Tee {
    fn drop(&mut self) {
        let end = if self.has_ended { End::Complete } else { End::Broken };
        self.feeds.iter().for_each(|feed| feed.borrow_mut().finish(end));
    }
}

/// A mirror's body.
struct Copy {
    feed: Rc<RefCell<Feed>>,
    current: Bytes,
    length: Option<u64>,
}

impl Source for Copy {
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, Error>> {
        if !self.current.is_empty() {
            return Poll::Ready(Ok(Piece::Data));
        }
        let mut feed = self.feed.borrow_mut();
        if let Some(piece) = feed.pieces.pop_front() {
            feed.bytes -= piece.len();
            self.current = piece;
            return Poll::Ready(Ok(Piece::Data));
        }
        match feed.end {
            Some(End::Complete) => Poll::Ready(Ok(Piece::End)),
            Some(End::Broken) => Poll::Ready(Err(Error::internal(ErrorKind::Closed))),
            None => {
                feed.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
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

    fn length(&self) -> Option<u64> {
        self.length
    }
}
