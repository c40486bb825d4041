//! HTTP/2 connections of clients: hyper speaks the protocol, each stream is served like any other request.

use std::{
    cell::Cell,
    convert::Infallible,
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::Response;
use http_body::{Frame, SizeHint};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::time::Instant;

use super::{
    client::Client,
    record::Record,
    request::{self, Outcome, Request},
};
use crate::{
    error::{Error, ErrorKind, Side},
    http::{
        body::{Body, Piece},
        h1::{framing, parse},
        h2::{
            body::{IncomingBody, trailers_frame},
            head,
        },
    },
    net::{stream::Stream, timer::Timer},
    shard::{ConnectionGuard, Scratch, Shard},
    timeouts,
    upstream::http2::LocalExecutor,
};

/// Streams at once on one connection: as common servers allow.
const MAX_STREAMS: u32 = 128;

/// Flow-control windows in bytes: what one stream and one connection may have buffered here.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// Bytes of responses buffered for one stream.
const SEND_BUFFER: usize = 64 * 1024;

/// What the streams of a connection share.
struct Shared {
    shard: Rc<Shard>,
    client: Client,
    active: Cell<u32>,
    /// When a stream was last opened, closed or asked for more of its response.
    moved: Cell<Instant>,
}

/// A stream that is open.
struct OpenStream(Rc<Shared>);

impl OpenStream {
    fn new(shared: &Rc<Shared>) -> Self {
        shared.active.set(shared.active.get() + 1);
        shared.moved.set(Instant::now());
        Self(shared.clone())
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.active.set(self.0.active.get() - 1);
        self.0.moved.set(Instant::now());
    }
}

/// Serves a connection until it ends. `prefix` has been read of it before.
pub async fn run(shard: Rc<Shard>, client: Client, stream: Stream, prefix: Bytes, guard: &ConnectionGuard) {
    let shared = Rc::new(Shared { shard, client, active: Cell::new(0), moved: Cell::new(Instant::now()) });
    let mut builder = http2::Builder::new(LocalExecutor);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(parse::MAX_HEAD as u32)
        .keep_alive_interval(timeouts::HTTP2_PING)
        .keep_alive_timeout(timeouts::HTTP2_PING_ANSWER);
    let serve = |request| {
        let open = OpenStream::new(&shared);
        async move { Ok::<_, Infallible>(serve(open, request).await) }
    };
    let mut connection = pin!(builder.serve_connection(TokioIo::new(Rewound { prefix, stream }), service_fn(serve)));
    let mut timer = Timer::default();
    let mut is_ending = false;
    let mut is_registered = false;
    let ended = poll_fn(|cx| {
        if !is_registered {
            guard.set_waker(cx.waker());
            is_registered = true;
        }
        if let Poll::Ready(result) = connection.as_mut().poll(cx) {
            return Poll::Ready(result);
        }
        if shared.shard.connections.is_draining() && !is_ending {
            is_ending = true;
            connection.as_mut().graceful_shutdown();
            return connection.as_mut().poll(cx);
        }
        let limit = if shared.active.get() == 0 { timeouts::CLIENT_IDLE } else { timeouts::HTTP2_STALL };
        timer.set(Some(shared.moved.get() + limit));
        ready!(timer.poll_expired(cx));
        if is_ending || shared.active.get() > 0 {
            return Poll::Ready(Ok(()));
        }
        is_ending = true;
        shared.moved.set(Instant::now());
        connection.as_mut().graceful_shutdown();
        connection.as_mut().poll(cx)
    });
    if let Err(error) = ended.await {
        shared.shard.stats.connections.protocol_errors.increment("http2");
        tracing::debug!(%error, "HTTP/2 connection of a client ended");
    }
}

async fn serve(open: OpenStream, request: http::Request<Incoming>) -> Response<ResponseBody> {
    let shared = open.0.clone();
    let shard = &shared.shard;
    let received = Rc::new(Cell::new(0));
    // Made first: a client that resets the stream meanwhile drops this future, and the request is counted all the same.
    let mut ending = Ending {
        scratch: Some(shard.take_scratch()),
        record: Record::new(shard),
        open,
        received: received.clone(),
        sent: 0,
    };
    let mut timer = Timer::default();
    let record = &mut ending.record;
    let scratch = ending.scratch.as_mut().expect("taken only when dropped");
    let Scratch { request: head, response, .. } = &mut **scratch;
    let filled = head::fill_request(&request, head);
    let body = IncomingBody::new(request.into_body(), Side::Downstream).into_body();
    let body = count_bytes(body, &received);
    let (outcome, deadline) = match filled {
        Ok(()) => {
            let request = Request {
                shard,
                client: &shared.client,
                head,
                response,
                record,
                timer: &mut timer,
                may_upgrade: false,
            };
            request.serve(body, &mut |_| {}).await
        }
        Err(refusal) => {
            let error = Error::downstream(ErrorKind::Refused(refusal));
            (request::fail(shard, record, response, &error), None)
        }
    };
    let mut body = match outcome {
        Outcome::Respond(body) => body,
        // Nobody reads what is said on a stream that is gone.
        Outcome::Abort | Outcome::Upgrade(_) => {
            response.clear();
            response.status = 400;
            Body::Empty
        }
    };
    if !framing::may_have_body(&scratch.request.method, scratch.response.status)
        && let Body::Bytes(_) = body
    {
        body = Body::Empty;
    }
    let made = head::make_response(&scratch.response, ());
    let has_ended = body.is_empty();
    made.map(|()| ResponseBody { body, ending, timer, deadline, is_waiting: false, has_ended })
}

/// Counts and logs the request when its response has ended, however it ended.
struct Ending {
    open: OpenStream,
    scratch: Option<Box<Scratch>>,
    record: Record,
    received: Rc<Cell<u64>>,
    sent: u64,
}

impl Drop for Ending {
    fn drop(&mut self) {
        if let Some(scratch) = self.scratch.take() {
            let shared = &self.open.0;
            if self.record.status == 0 {
                self.record.fail(&shared.shard, &Error::downstream(ErrorKind::Closed));
                self.record.status = 499;
            }
            self.record.finish(&shared.shard, &shared.client, &scratch.request, self.received.get(), self.sent);
            shared.shard.put_scratch(scratch);
        }
    }
}

/// A response's body on its way into hyper.
struct ResponseBody {
    body: Body,
    ending: Ending,
    timer: Timer,
    deadline: Option<Instant>,
    is_waiting: bool,
    has_ended: bool,
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        if this.has_ended {
            return Poll::Ready(None);
        }
        let polled = match this.body.poll_piece(cx) {
            Poll::Ready(polled) => {
                this.is_waiting = false;
                this.ending.open.0.moved.set(Instant::now());
                polled
            }
            Poll::Pending => {
                if !this.is_waiting {
                    this.is_waiting = true;
                    let idle = Instant::now() + timeouts::STREAM_IDLE;
                    this.timer.set(Some(this.deadline.map_or(idle, |deadline| deadline.min(idle))));
                }
                ready!(this.timer.poll_expired(cx));
                let is_over = this.deadline.is_some_and(|deadline| deadline <= Instant::now());
                Err(Error::upstream(if is_over { ErrorKind::RequestTimeout } else { ErrorKind::Idle }))
            }
        };
        match polled {
            Ok(Piece::Data) => {
                let data = this.body.take_data();
                this.ending.sent += data.len() as u64;
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Ok(Piece::End) => {
                this.has_ended = true;
                let trailers = this.body.take_trailers();
                this.body = Body::Empty;
                Poll::Ready(trailers.map(|trailers| Ok(trailers_frame(&trailers))))
            }
            Err(error) => {
                this.has_ended = true;
                this.ending.record.fail(&this.ending.open.0.shard, &error);
                Poll::Ready(Some(Err(error)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.has_ended
    }

    fn size_hint(&self) -> SizeHint {
        self.body.length().map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

fn count_bytes(body: Body, count: &Rc<Cell<u64>>) -> Body {
    match body {
        Body::Stream(inner) => Body::Stream(Box::new(Counted { inner, count: count.clone() })),
        body => body,
    }
}

/// A request body whose bytes are counted.
struct Counted {
    inner: Box<dyn crate::http::body::Source>,
    count: Rc<Cell<u64>>,
}

impl crate::http::body::Source for Counted {
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, Error>> {
        self.inner.poll_piece(cx)
    }

    fn data(&self) -> &[u8] {
        self.inner.data()
    }

    fn consume(&mut self, count: usize) {
        self.count.set(self.count.get() + count as u64);
        self.inner.consume(count);
    }

    fn take_data(&mut self) -> Bytes {
        let data = self.inner.take_data();
        self.count.set(self.count.get() + data.len() as u64);
        data
    }

    fn take_trailers(&mut self) -> Option<crate::http::head::Headers> {
        self.inner.take_trailers()
    }

    fn length(&self) -> Option<u64> {
        self.inner.length()
    }
}

/// A stream of which something was read already.
struct Rewound {
    prefix: Bytes,
    stream: Stream,
}

impl tokio::io::AsyncRead for Rewound {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.prefix.is_empty() {
            let count = self.prefix.len().min(buf.remaining());
            buf.put_slice(&self.prefix.split_to(count));
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl tokio::io::AsyncWrite for Rewound {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
