//! Connections to endpoints that wait for their next request. One pool for each shard: no lock, no hop between threads.

use std::{
    cell::RefCell,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    task::{Context, Waker},
    time::Instant,
};

use hashbrown::HashMap;

use super::http2::Http2Connection;
use crate::{
    balance::EndpointState,
    certificates::UpstreamTls,
    net::{buffer::Buffer, stream::Stream},
    timeouts,
};

/// Idle connections kept for one endpoint; more are closed. Above the concurrency that one shard serves an endpoint with.
const MAX_IDLE: usize = 256;

/// What connections must have in common to be used for one another. A backend whose TLS settings change has new ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PoolKey {
    addr: SocketAddr,
    /// Address of the TLS settings, which the connections themselves keep alive; 0 is clear text.
    tls: usize,
}

impl PoolKey {
    /// Key of connections to that endpoint.
    pub fn new(endpoint: &EndpointState, tls: Option<&UpstreamTls>) -> Self {
        Self { addr: endpoint.addr, tls: tls.map_or(0, |tls| Arc::as_ptr(&tls.config) as usize) }
    }
}

/// An HTTP/1.1 connection to an endpoint.
#[derive(Debug)]
pub struct Connection {
    /// The stream.
    pub stream: Stream,
    /// Bytes that were read and not consumed.
    pub buffer: Buffer,
    /// Whether it has served a request before: then the endpoint may have closed it meanwhile.
    pub is_reused: bool,
    endpoint: Rc<EndpointState>,
    key: PoolKey,
    idle_since: Instant,
    /// Keeps the address in `key` from being used again.
    _tls: Option<Arc<rustls::ClientConfig>>,
}

impl Connection {
    /// A fresh connection.
    pub fn new(stream: Stream, endpoint: Rc<EndpointState>, tls: Option<&UpstreamTls>) -> Box<Self> {
        Box::new(Self {
            stream,
            buffer: Buffer::default(),
            is_reused: false,
            key: PoolKey::new(&endpoint, tls),
            endpoint,
            idle_since: Instant::now(),
            _tls: tls.map(|tls| tls.config.clone()),
        })
    }

    /// Whether the endpoint has neither closed the connection nor sent what nobody asked for. Costs a system call only
    /// when the runtime has seen an event on the socket.
    fn is_quiet(&mut self) -> bool {
        let polled = self.buffer.poll_fill(&mut self.stream, 1, &mut Context::from_waker(Waker::noop()));
        polled.is_pending()
    }

    fn has_expired(&self, now: Instant) -> bool {
        self.endpoint.is_removed() || now.duration_since(self.idle_since) >= timeouts::UPSTREAM_IDLE
    }
}

/// Idle HTTP/1.1 connections and all HTTP/2 connections of a shard.
#[derive(Debug, Default)]
pub struct Pool {
    #[expect(clippy::vec_box, reason = "a connection moves in and out for each request, as a pointer")]
    idle: RefCell<HashMap<PoolKey, Vec<Box<Connection>>>>,
    http2: RefCell<HashMap<PoolKey, Rc<Http2Connections>>>,
}

/// HTTP/2 connections to one endpoint.
#[derive(Debug, Default)]
pub struct Http2Connections {
    /// Those open.
    pub open: RefCell<Vec<Rc<Http2Connection>>>,
    /// Held while one is dialled, so that a burst of requests dials one.
    pub dialling: tokio::sync::Mutex<Option<Instant>>,
}

impl Pool {
    /// The connection that was used last (its buffers are warm), if one is still good.
    pub fn take(&self, key: PoolKey) -> Option<Box<Connection>> {
        let mut idle = self.idle.borrow_mut();
        let connections = idle.get_mut(&key)?;
        while let Some(mut connection) = connections.pop() {
            if connection.is_quiet() {
                connection.is_reused = true;
                return Some(connection);
            }
        }
        None
    }

    /// Keeps a connection whose exchange has ended cleanly.
    pub fn put(&self, mut connection: Box<Connection>) {
        if connection.endpoint.is_removed() {
            return;
        }
        connection.buffer.release();
        connection.idle_since = Instant::now();
        let mut idle = self.idle.borrow_mut();
        let connections = idle.entry(connection.key).or_default();
        if connections.len() < MAX_IDLE {
            connections.push(connection);
        }
    }

    /// HTTP/2 connections to that endpoint.
    pub fn http2(&self, key: PoolKey) -> Rc<Http2Connections> {
        self.http2.borrow_mut().entry(key).or_default().clone()
    }

    /// Closes idle connections that have expired, were closed by their endpoints or lead to endpoints that are gone.
    pub fn sweep(&self) {
        let now = Instant::now();
        self.idle.borrow_mut().retain(|_, connections| {
            connections.retain_mut(|connection| !connection.has_expired(now) && connection.is_quiet());
            connections.shrink_to(8);
            !connections.is_empty()
        });
        self.http2.borrow_mut().retain(|_, connections| {
            connections.open.borrow_mut().retain(|connection| !connection.has_expired(now));
            !connections.open.borrow().is_empty() || Rc::strong_count(connections) > 1
        });
    }

    /// Closes everything that is idle.
    pub fn clear(&self) {
        self.idle.borrow_mut().clear();
        self.http2.borrow_mut().clear();
    }

    /// Number of idle HTTP/1.1 connections and of HTTP/2 connections.
    pub fn len(&self) -> (usize, usize) {
        let idle = self.idle.borrow().values().map(Vec::len).sum();
        let http2 = self.http2.borrow().values().map(|connections| connections.open.borrow().len()).sum();
        (idle, http2)
    }
}
