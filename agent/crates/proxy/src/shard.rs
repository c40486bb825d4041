//! What the connections of one shard share. It never leaves its thread, so nothing in it is locked.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    task::{Context, Poll, Waker},
};

use crate::{
    access_log::LogBuffer,
    balance::Prng,
    datagram::Datagrams,
    http::{
        h1::write::Writer,
        head::{RequestHead, ResponseHead},
    },
    stats::ShardStats,
    tables::Tables,
    upstream::pool::Pool,
};

/// Working memory of requests kept for the next ones.
const KEPT_SCRATCH: usize = 256;

/// Memory of a head that is kept, in bytes and fields: more than a usual head, far less than the largest.
const KEPT_HEAD: (usize, usize) = (4096, 64);

/// Working memory of one request.
#[derive(Debug, Default)]
pub struct Scratch {
    /// Its head, as received and then as edited.
    pub request: RequestHead,
    /// The response's head.
    pub response: ResponseHead,
    /// Writes the response to an HTTP/1.1 client.
    pub writer: Writer,
}

/// How much a shard serves at once.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Clients: connections, and sessions of UDP.
    pub clients: usize,
    /// Sessions of UDP.
    pub sessions: usize,
}

/// A shard.
#[derive(Debug)]
pub struct Shard {
    /// Routing state.
    pub tables: RefCell<Tables>,
    /// Counters.
    pub stats: Rc<ShardStats>,
    /// Upstream connections.
    pub pool: Rc<Pool>,
    /// For choices that need no secrecy.
    pub random: RefCell<Prng>,
    /// Access log.
    pub log: LogBuffer,
    /// Connections of clients.
    pub connections: Connections,
    /// UDP.
    pub datagrams: Datagrams,
    #[expect(clippy::vec_box, reason = "it moves between tasks for each request, as a pointer")]
    scratch: RefCell<Vec<Box<Scratch>>>,
}

impl Shard {
    /// A shard that serves nothing yet and at most so many clients at once.
    pub fn new(tables: Tables, log: LogBuffer, limits: Limits) -> Rc<Self> {
        Rc::new(Self {
            stats: tables.stats.clone(),
            tables: RefCell::new(tables),
            pool: Rc::default(),
            random: RefCell::new(Prng::from_entropy()),
            log,
            connections: Connections { limit: limits.clients, ..Connections::default() },
            datagrams: Datagrams::new(limits.sessions),
            scratch: RefCell::default(),
        })
    }

    /// Working memory for a request, with cleared heads.
    pub fn take_scratch(&self) -> Box<Scratch> {
        let mut scratch = self.scratch.borrow_mut().pop().unwrap_or_default();
        scratch.request.clear();
        scratch.response.clear();
        // What a broken connection has left unsent is its client's alone.
        scratch.writer.discard();
        scratch
    }

    /// Keeps working memory for another request.
    pub fn put_scratch(&self, mut scratch: Box<Scratch>) {
        let mut kept = self.scratch.borrow_mut();
        if kept.len() < KEPT_SCRATCH {
            scratch.request.headers.shrink(KEPT_HEAD.0, KEPT_HEAD.1);
            scratch.response.headers.shrink(KEPT_HEAD.0, KEPT_HEAD.1);
            kept.push(scratch);
        }
    }
}

/// Connections of clients, and whether they are to end.
#[derive(Debug, Default)]
pub struct Connections {
    limit: usize,
    count: Cell<usize>,
    is_draining: Cell<bool>,
    /// Wakers of the connections' tasks, which wait for their clients and must hear of a drain.
    wakers: RefCell<Wakers>,
}

#[derive(Debug, Default)]
struct Wakers {
    slots: Vec<Option<Waker>>,
    free: Vec<usize>,
    drained: Option<Waker>,
}

impl Connections {
    /// Counts a connection until the guard is dropped; `None` when there are too many.
    pub fn enter(shard: &Rc<Shard>) -> Option<ConnectionGuard> {
        let connections = &shard.connections;
        if connections.count.get() >= connections.limit {
            return None;
        }
        connections.count.set(connections.count.get() + 1);
        shard.stats.connections.opened.increment();
        shard.stats.connections.active.increment();
        let mut wakers = connections.wakers.borrow_mut();
        let slot = wakers.free.pop().unwrap_or_else(|| {
            wakers.slots.push(None);
            wakers.slots.len() - 1
        });
        Some(ConnectionGuard { shard: shard.clone(), slot })
    }

    /// Takes the place of a connection for something else that serves a client, until it is dropped; `None` when there are
    /// too many.
    pub fn hold(shard: &Rc<Shard>) -> Option<Place> {
        let connections = &shard.connections;
        if connections.count.get() >= connections.limit {
            return None;
        }
        connections.count.set(connections.count.get() + 1);
        Some(Place(shard.clone()))
    }

    /// Gives a place back; who waits for the last one hears of it.
    fn leave(&self) {
        self.count.set(self.count.get() - 1);
        let drained = if self.is_empty() { self.wakers.borrow_mut().drained.take() } else { None };
        if let Some(waker) = drained {
            waker.wake();
        }
    }

    /// Number of connections open, and of places held.
    pub fn len(&self) -> usize {
        self.count.get()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether connections are to end after the request under way.
    pub fn is_draining(&self) -> bool {
        self.is_draining.get()
    }

    /// Tells every connection to end after the request under way.
    pub fn drain(&self) {
        self.is_draining.set(true);
        let wakers: Vec<Waker> = self.wakers.borrow().slots.iter().flatten().cloned().collect();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Ready once no connection is open.
    pub fn poll_empty(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_empty() {
            return Poll::Ready(());
        }
        self.wakers.borrow_mut().drained = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// A connection that counts as open.
#[derive(Debug)]
pub struct ConnectionGuard {
    shard: Rc<Shard>,
    slot: usize,
}

impl ConnectionGuard {
    /// Takes the waker of the connection's task; once, when the task runs first.
    pub fn set_waker(&self, waker: &Waker) {
        self.shard.connections.wakers.borrow_mut().slots[self.slot] = Some(waker.clone());
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        let connections = &self.shard.connections;
        if std::thread::panicking() {
            // The panic ends this connection's task alone; the runtime catches it.
            self.shard.stats.connections.refused.increment("panic");
        }
        self.shard.stats.connections.active.decrement();
        let mut wakers = connections.wakers.borrow_mut();
        wakers.slots[self.slot] = None;
        wakers.free.push(self.slot);
        drop(wakers);
        connections.leave();
    }
}

/// A place among the connections that no connection has.
#[derive(Debug)]
pub struct Place(Rc<Shard>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.connections.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{access_log, certificates::TlsContext};

    #[test]
    fn a_panic_ends_its_own_connection_and_is_counted() {
        let (log, _) = access_log::start_writer(std::io::sink()).unwrap();
        let shard = Shard::new(
            Tables::new(TlsContext::new().unwrap()),
            LogBuffer::new(log),
            Limits { clients: 1, sessions: 1 },
        );
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let guard = Connections::enter(&shard).unwrap();
            assert!(Connections::enter(&shard).is_none(), "the limit is one");
            let task = tokio::task::spawn_local(async move {
                let _guard = guard;
                panic!("on purpose");
            });
            assert!(task.await.unwrap_err().is_panic());
        });
        assert!(shard.connections.is_empty());
        assert_eq!(shard.stats.connections.active.count(), 0);
        assert_eq!(shard.stats.connections.refused.counts(), [("panic", 1)]);
        assert!(Connections::enter(&shard).is_some(), "its place is free again");
    }
}
