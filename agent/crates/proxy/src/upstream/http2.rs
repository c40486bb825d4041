//! HTTP/2 connections to endpoints, shared by the requests of a shard.

use std::{
    cell::Cell,
    future::Future,
    io,
    rc::Rc,
    task::{Context, Poll},
    time::Instant,
};

use bytes::Bytes;
use http::Request;
use hyper::{
    body::Incoming,
    client::conn::{
        TrySendError,
        http2::{self, SendRequest},
    },
    rt::Executor,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tidegate_model::BackendProtocol;
use tokio::time::timeout;

use super::{
    attempt::AttemptGuard,
    connect,
    pool::{Http2Connections, Pool, PoolKey},
};
use crate::{
    balance::EndpointState,
    certificates::UpstreamTls,
    error::{Error, ErrorKind, Retry, Side},
    http::{
        body::{Body, Piece, Source},
        h2::body::{IncomingBody, OutgoingBody},
        head::Headers,
    },
    timeouts,
};

/// Streams at once on one connection; another is opened beyond. Servers commonly allow 100 to 250.
const MAX_STREAMS: u32 = 100;

/// Flow-control windows in bytes: one stream may fill a 1 Gbit/s path of 8 ms, the connection several.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// Runs hyper's tasks on the shard's own thread.
#[derive(Clone, Copy, Debug)]
pub struct LocalExecutor;

impl<F> Executor<F> for LocalExecutor
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

/// A connection.
#[derive(Debug)]
pub struct Http2Connection {
    sender: SendRequest<OutgoingBody>,
    endpoint: Rc<EndpointState>,
    active: Cell<u32>,
    /// The endpoint takes no new stream on it (GOAWAY), or it failed: it ends with its last stream.
    is_retired: Cell<bool>,
    used: Cell<Instant>,
    _tls: Option<UpstreamTls>,
}

/// One stream of a connection, counted until it is dropped.
#[derive(Debug)]
pub struct Http2Slot(Rc<Http2Connection>);

impl Http2Connection {
    /// Whether it is closed, or idle for too long, or its endpoint is gone.
    pub fn has_expired(&self, now: Instant) -> bool {
        let is_idle = self.active.get() == 0;
        self.sender.is_closed()
            || (is_idle
                && (self.is_retired.get()
                    || self.endpoint.is_removed()
                    || now.duration_since(self.used.get()) >= timeouts::UPSTREAM_IDLE))
    }

    fn enter(self: &Rc<Self>) -> Http2Slot {
        self.active.set(self.active.get() + 1);
        Http2Slot(self.clone())
    }
}

impl Http2Slot {
    /// Gives no new stream on the connection to anybody.
    pub fn retire(&self) {
        self.0.is_retired.set(true);
    }

    /// Sends requests over the connection.
    pub fn sender(&self) -> SendRequest<OutgoingBody> {
        self.0.sender.clone()
    }
}

impl Drop for Http2Slot {
    fn drop(&mut self) {
        self.0.active.set(self.0.active.get() - 1);
        self.0.used.set(Instant::now());
    }
}

/// A slot on an open connection to the endpoint, or on a new one. The flag says whether the connection was there before.
///
/// # Errors
/// Those of dialling.
pub async fn acquire(
    pool: &Pool,
    endpoint: &Rc<EndpointState>,
    tls: Option<&UpstreamTls>,
) -> Result<(Http2Slot, bool), Error> {
    let connections = pool.http2(PoolKey::new(endpoint, tls));
    if let Some(slot) = find_slot(&connections) {
        return Ok((slot, true));
    }
    let asked = Instant::now();
    let mut last_failure = connections.dialling.lock().await;
    if let Some(slot) = find_slot(&connections) {
        return Ok((slot, true));
    }
    // Whoever waited while another failed to dial does not wait for a failure of its own.
    if last_failure.is_some_and(|failed| failed > asked) {
        return Err(Error::upstream(ErrorKind::Connect).retry(Retry::Always));
    }
    match dial(endpoint, tls).await {
        Ok(connection) => {
            *last_failure = None;
            let slot = connection.enter();
            connections.open.borrow_mut().push(connection);
            Ok((slot, false))
        }
        Err(error) => {
            *last_failure = Some(Instant::now());
            Err(error)
        }
    }
}

fn find_slot(connections: &Http2Connections) -> Option<Http2Slot> {
    let mut open = connections.open.borrow_mut();
    open.retain(|connection| !connection.sender.is_closed());
    let has_room =
        |connection: &&Rc<Http2Connection>| !connection.is_retired.get() && connection.active.get() < MAX_STREAMS;
    open.iter().find(has_room).map(Http2Connection::enter)
}

async fn dial(endpoint: &Rc<EndpointState>, tls: Option<&UpstreamTls>) -> Result<Rc<Http2Connection>, Error> {
    let stream = connect::connect(endpoint, tls, BackendProtocol::Http2).await?;
    let handshake = http2::Builder::new(LocalExecutor)
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(timeouts::HTTP2_PING)
        .keep_alive_timeout(timeouts::HTTP2_PING_ANSWER)
        .max_header_list_size(crate::http::h1::parse::MAX_HEAD as u32)
        .handshake(TokioIo::new(stream));
    let failed = |error: io::Error| Error::upstream(ErrorKind::Http2).because(error).retry(Retry::Always);
    let (sender, driver) = match timeout(timeouts::UPSTREAM_HANDSHAKE, handshake).await {
        Ok(Ok(parts)) => parts,
        Ok(Err(error)) => return Err(failed(io::Error::other(error))),
        Err(_) => return Err(Error::upstream(ErrorKind::ConnectTimeout).retry(Retry::Always)),
    };
    tokio::task::spawn_local(async move {
        // Each request learns of the connection's failure by itself.
        if let Err(error) = driver.await {
            tracing::debug!(%error, "HTTP/2 connection to an endpoint ended");
        }
    });
    Ok(Rc::new(Http2Connection {
        sender,
        endpoint: endpoint.clone(),
        active: Cell::new(0),
        is_retired: Cell::new(false),
        used: Cell::new(Instant::now()),
        _tls: tls.cloned(),
    }))
}

/// What hyper's failure to get a response means for another attempt.
pub fn failure(error: TrySendError<Request<OutgoingBody>>) -> Error {
    let was_sent = error.message().is_none();
    let error = error.into_error();
    let retry = if !was_sent || is_unprocessed(&error) { Retry::Always } else { Retry::Idempotent };
    Error::upstream(ErrorKind::Http2).because(io::Error::other(error)).retry(retry)
}

/// Whether the endpoint says that it has not processed the request (RFC 9113 section 8.7): it refused the stream, or its
/// GOAWAY names a stream before it (h2 fails just the streams after that).
fn is_unprocessed(error: &hyper::Error) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            let is_refused = error.reason() == Some(h2::Reason::REFUSED_STREAM);
            return error.is_remote() && (is_refused || error.is_go_away());
        }
        cause = error.source();
    }
    false
}

/// The response's body; the stream counts as open until it is dropped.
pub fn into_body(incoming: Incoming, slot: Http2Slot, guard: AttemptGuard) -> Body {
    let inner = IncomingBody::new(incoming, Side::Upstream);
    Body::Stream(Box::new(ResponseBody { inner, _slot: slot, _guard: guard }))
}

struct ResponseBody {
    inner: IncomingBody,
    _slot: Http2Slot,
    _guard: AttemptGuard,
}

impl Source for ResponseBody {
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, Error>> {
        self.inner.poll_piece(cx)
    }

    fn data(&self) -> &[u8] {
        self.inner.data()
    }

    fn consume(&mut self, count: usize) {
        self.inner.consume(count);
    }

    fn take_data(&mut self) -> Bytes {
        self.inner.take_data()
    }

    fn take_trailers(&mut self) -> Option<Headers> {
        self.inner.take_trailers()
    }

    fn length(&self) -> Option<u64> {
        self.inner.length()
    }
}
