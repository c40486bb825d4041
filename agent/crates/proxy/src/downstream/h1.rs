//! The loop of an HTTP/1.1 connection: a head, its answer, the next head. One task drives both sides of a request.

use std::{
    future::{Future, poll_fn},
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
};

use tokio::{
    io::AsyncWrite,
    time::{Instant, sleep},
};

use super::{
    client::Client,
    record::Record,
    request::{self, Outcome, Request},
    tunnel,
};
use crate::{
    error::{Error, ErrorKind},
    http::{
        body::Body,
        h1::{
            framing::{self, BodyLength, RequestFraming},
            parse,
            receive::{Incoming, Loan, ReceivedBody, Receiver},
            refusal::Refusal,
            write::{Announce, Persistence, SendError, push_response},
        },
        head::{RequestHead, ResponseHead, Version},
        known::Known,
    },
    net::{buffer::Buffer, stream::SharedStream, timer::Timer},
    shard::{ConnectionGuard, Scratch, Shard},
    timeouts,
};

/// Bytes read and dropped of a closing connection.
const MAX_LINGERED: usize = 256 * 1024;

/// A connection.
pub struct Http1 {
    shard: Rc<Shard>,
    client: Client,
    stream: SharedStream,
    /// Lent to the body of the request under way.
    receiver: Option<Box<Receiver>>,
    timer: Timer,
}

/// What follows a request.
enum Next {
    /// Another one.
    Request,
    /// The end, with time for the client to read what it was sent.
    Linger,
    /// The end.
    Close,
}

impl Http1 {
    /// A connection on which `buffer` has been read.
    pub fn new(shard: Rc<Shard>, client: Client, stream: SharedStream, buffer: Buffer) -> Self {
        let receiver = Some(Box::new(Receiver::new(stream.clone(), buffer)));
        Self { shard, client, stream, receiver, timer: Timer::default() }
    }

    /// Serves requests until the connection ends.
    pub async fn run(mut self, guard: &ConnectionGuard) {
        poll_fn(|cx| {
            guard.set_waker(cx.waker());
            Poll::Ready(())
        })
        .await;
        loop {
            let len = match self.wait_for_head().await {
                Ok(Incoming::Head(len)) => len,
                Ok(Incoming::Closed) => return self.close(),
                Err(error) => {
                    self.refuse(&error).await;
                    return;
                }
            };
            let mut scratch = self.shard.take_scratch();
            let next = self.serve(len, &mut scratch).await;
            self.shard.put_scratch(scratch);
            match next {
                Next::Request => {}
                Next::Linger => return self.linger().await,
                Next::Close => return,
            }
        }
    }

    /// Waits for a head. An idle connection ends with the client or at the limit, which a drain shortens: a request may be
    /// on its way already, and is still served, with `Connection: close`.
    async fn wait_for_head(&mut self) -> Result<Incoming, Error> {
        let Self { shard, receiver, timer, .. } = self;
        let receiver = receiver.as_mut().expect("returned after each request");
        let mut has_begun = !receiver.buffer.is_empty();
        let mut is_leaving = false;
        let limit = if has_begun { timeouts::REQUEST_HEAD } else { timeouts::CLIENT_IDLE };
        timer.set(Some(Instant::now() + limit));
        poll_fn(|cx| {
            if let Poll::Ready(result) = receiver.poll_head(cx) {
                return Poll::Ready(result);
            }
            if receiver.buffer.is_empty() {
                if shard.connections.is_draining() && !is_leaving {
                    is_leaving = true;
                    timer.set(Some(Instant::now() + timeouts::DRAIN_IDLE));
                }
            } else if !has_begun {
                has_begun = true;
                timer.set(Some(Instant::now() + timeouts::REQUEST_HEAD));
            }
            ready!(timer.poll_expired(cx));
            if has_begun {
                return Poll::Ready(Err(Error::downstream(ErrorKind::HeadTimeout)));
            }
            Poll::Ready(Ok(Incoming::Closed))
        })
        .await
    }

    async fn serve(&mut self, len: usize, scratch: &mut Scratch) -> Next {
        let framing = match self.take_head(len, &mut scratch.request) {
            Ok(framing) => framing,
            Err(refusal) => {
                let error = Error::downstream(ErrorKind::Refused(refusal));
                return self.answer_failure(&error, scratch).await;
            }
        };
        let mut record = Record::new(&self.shard);
        let (body, loan) = self.lend_body(framing);
        let Self { shard, client, stream, timer, receiver } = self;
        let Scratch { request: head, response, writer } = scratch;
        let request = Request {
            shard,
            client,
            head,
            response,
            record: &mut record,
            timer,
            may_upgrade: framing.upgrade && framing.body == BodyLength::Empty,
        };
        let is_http11 = request.head.version == Version::Http11;
        // A client of HTTP/1.0 knows no interim response (RFC 9110 section 15.2).
        let mut on_interim = |interim: &ResponseHead| {
            if is_http11 {
                push_response(writer.begin(Announce::Nothing), interim, Announce::Nothing, Persistence::Implied);
                // What the socket does not take now goes out before the final response.
                let _ = writer.poll_flush(&**stream, &mut Context::from_waker(Waker::noop()));
            }
        };
        let served = {
            let mut serving = std::pin::pin!(request.serve(body, &mut on_interim));
            let mut half_closed = None;
            poll_fn(|cx| {
                if let Poll::Ready(served) = serving.as_mut().poll(cx) {
                    return Poll::Ready(served);
                }
                let half_closed = match &mut half_closed {
                    Some(half_closed) => half_closed,
                    None => {
                        let Some(receiver) = receiver else { return Poll::Pending };
                        ready!(receiver.poll_ended(cx));
                        half_closed.insert(Box::pin(sleep(timeouts::HALF_CLOSED)))
                    }
                };
                ready!(half_closed.as_mut().poll(cx));
                Poll::Ready((Outcome::Abort, None))
            })
            .await
        };
        let (mut body, deadline) = match served {
            (Outcome::Respond(body), deadline) => (body, deadline),
            (Outcome::Abort, _) => {
                if record.reason.is_none() {
                    record.fail(&self.shard, &Error::downstream(ErrorKind::Closed));
                    record.status = 499;
                }
                record.finish(&self.shard, &self.client, &scratch.request, received(&loan), 0);
                return Next::Close;
            }
            (Outcome::Upgrade(connection), _) => {
                return self.upgrade(connection, scratch, record).await;
            }
        };
        if let Some(loan) = &loan {
            loan.set_response_began();
        }
        let is_read = loan.as_ref().is_none_or(|loan| loan.is_complete());
        let wants_more = framing.keep_alive && is_read && !self.shard.connections.is_draining();
        let keep_alive = begin_response(scratch, &mut body, wants_more);
        let is_delimited = scratch.request.version == Version::Http11 || body.length().is_some();
        let sent = self.send_response(&mut body, scratch, deadline).await;
        let body_bytes = scratch.writer.body_bytes();
        drop(body);
        if let Err(error) = &sent {
            record.fail(&self.shard, error);
        }
        record.finish(&self.shard, &self.client, &scratch.request, received(&loan), body_bytes);
        let is_returned = self.take_back(loan);
        match sent {
            Err(_) => {
                if !is_delimited {
                    // Only a reset tells a client that this end of the connection is not the end of the body.
                    let _ = self.stream.borrow().tcp().set_zero_linger();
                }
                Next::Close
            }
            Ok(()) if keep_alive && is_returned => Next::Request,
            Ok(()) => Next::Linger,
        }
    }

    fn take_head(&mut self, len: usize, head: &mut RequestHead) -> Result<RequestFraming, Refusal> {
        let receiver = self.receiver.as_mut().expect("returned after each request");
        let parsed = parse::parse_request(&receiver.buffer.window()[..len], head);
        receiver.buffer.consume(len);
        parsed?;
        framing::request(head)
    }

    fn lend_body(&mut self, framing: RequestFraming) -> (Body, Option<Rc<Loan>>) {
        if framing.body == BodyLength::Empty {
            return (Body::Empty, None);
        }
        let receiver = self.receiver.take().expect("returned after each request");
        let loan = Rc::new(Loan::default());
        let body = ReceivedBody::new(receiver, framing.body, framing.expects_continue, loan.clone());
        (Body::Stream(Box::new(body)), Some(loan))
    }

    /// Whether the receiver is back and stands at the start of the next request.
    fn take_back(&mut self, loan: Option<Rc<Loan>>) -> bool {
        let Some(loan) = loan else { return true };
        match loan.take() {
            Some((receiver, is_complete)) => {
                self.receiver = Some(receiver);
                is_complete
            }
            // An HTTP/2 upstream holds the body still.
            None => false,
        }
    }

    async fn send_response(
        &mut self,
        body: &mut Body,
        scratch: &mut Scratch,
        deadline: Option<Instant>,
    ) -> Result<(), Error> {
        let Self { stream, timer, receiver, .. } = self;
        let writer = &mut scratch.writer;
        let mut seen = None;
        let mut half_closed = None;
        poll_fn(|cx| {
            if let Poll::Ready(result) = writer.poll_send(&**stream, body, cx) {
                return Poll::Ready(result.map_err(send_error));
            }
            body.poll_background(cx);
            let has_ended = receiver.as_mut().is_some_and(|receiver| receiver.poll_ended(cx).is_ready());
            if has_ended && half_closed.is_none() {
                half_closed = Some(Instant::now() + timeouts::HALF_CLOSED);
                seen = None;
            }
            if seen != Some(writer.written()) {
                seen = Some(writer.written());
                let limit = if writer.has_output() { timeouts::RESPONSE_WRITE_STALL } else { timeouts::STREAM_IDLE };
                let idle = Instant::now() + limit;
                timer.set([deadline, half_closed].into_iter().flatten().chain([idle]).min());
            }
            ready!(timer.poll_expired(cx));
            let now = Instant::now();
            Poll::Ready(Err(match (deadline, half_closed) {
                (Some(deadline), _) if deadline <= now => Error::upstream(ErrorKind::RequestTimeout),
                (_, Some(half_closed)) if half_closed <= now => Error::downstream(ErrorKind::Closed),
                _ if writer.has_output() => Error::downstream(ErrorKind::WriteStall),
                _ => Error::upstream(ErrorKind::Idle),
            }))
        })
        .await
    }

    async fn upgrade(
        &mut self,
        mut connection: Box<crate::upstream::pool::Connection>,
        scratch: &mut Scratch,
        mut record: Record,
    ) -> Next {
        let Scratch { request, response, writer } = scratch;
        push_response(writer.begin(Announce::Nothing), response, Announce::Nothing, Persistence::Upgrade);
        let mut receiver = self.receiver.take().expect("a request that upgrades has no body");
        let ends = tunnel::Ends {
            client: &self.stream,
            from_client: &mut receiver.buffer,
            endpoint: &mut connection.stream,
            from_endpoint: &mut connection.buffer,
        };
        let flushed = poll_fn(|cx| writer.poll_flush(&*self.stream, cx)).await;
        let moved = match flushed {
            Ok(()) => Box::pin(tunnel::run(ends, &mut self.timer, &mut |_, _| {})).await,
            Err(_) => tunnel::Moved::default(),
        };
        record.reason = moved.reason.or(record.reason);
        record.finish(&self.shard, &self.client, request, moved.from_client, moved.from_endpoint);
        Next::Close
    }

    /// Answers a request that cannot be read, and closes.
    async fn refuse(&mut self, error: &Error) {
        let mut scratch = self.shard.take_scratch();
        let next = self.answer_failure(error, &mut scratch).await;
        self.shard.put_scratch(scratch);
        if let Next::Linger = next {
            self.linger().await;
        }
    }

    async fn answer_failure(&mut self, error: &Error, scratch: &mut Scratch) -> Next {
        let mut record = Record::new(&self.shard);
        let outcome = request::fail(&self.shard, &mut record, &mut scratch.response, error);
        let next = match outcome {
            Outcome::Respond(mut body) => {
                begin_response(scratch, &mut body, false);
                match self.send_response(&mut body, scratch, None).await {
                    Ok(()) => Next::Linger,
                    Err(_) => Next::Close,
                }
            }
            _ => Next::Close,
        };
        record.finish(&self.shard, &self.client, &scratch.request, 0, scratch.writer.body_bytes());
        next
    }

    /// Says goodbye where the protocol has a word for it (TLS); whether it arrives is nobody's concern.
    fn close(&self) {
        let cx = &mut Context::from_waker(Waker::noop());
        let _ = Pin::new(&mut *self.stream.borrow_mut()).poll_shutdown(cx);
    }

    /// Closes without destroying what the client has not read yet: the sending side first, then the rest once the client
    /// has closed too or has had its time.
    async fn linger(&mut self) {
        self.timer.set(Some(Instant::now() + timeouts::LINGER));
        let Self { stream, timer, .. } = self;
        let mut buffer = Buffer::default();
        let mut left = MAX_LINGERED;
        let mut is_shut = false;
        poll_fn(|cx| {
            let stream = &mut *stream.borrow_mut();
            if !is_shut {
                is_shut = Pin::new(&mut *stream).poll_shutdown(cx).is_ready();
            }
            while let Poll::Ready(result) = buffer.poll_fill(stream, crate::net::buffer::BUFFER, cx) {
                let count = result.unwrap_or(0);
                buffer.consume(count);
                left = left.saturating_sub(count);
                if count == 0 || left == 0 {
                    return Poll::Ready(());
                }
            }
            timer.poll_expired(cx)
        })
        .await;
    }
}

/// Writes the response's head into the writer. Returns whether the connection can persist.
fn begin_response(scratch: &mut Scratch, body: &mut Body, wants_more: bool) -> bool {
    let Scratch { request, response, writer } = scratch;
    let mut keep_alive = wants_more;
    let announce = if !framing::may_have_body(&request.method, response.status) {
        if let Body::Bytes(_) = body {
            *body = Body::Empty;
        }
        // To HEAD and in a 304 the length is that of the body that GET would get (RFC 9110 section 8.6).
        let is_known = response.status >= 200 && response.status != 204;
        let length = response.headers.find_known(Known::ContentLength).filter(|_| is_known);
        length.and_then(framing::parse_length).map_or(Announce::Nothing, Announce::Length)
    } else if let Some(length) = body.length() {
        Announce::Length(length)
    } else if request.version == Version::Http11 {
        Announce::Chunked
    } else {
        keep_alive = false;
        Announce::Nothing
    };
    let persistence = match (keep_alive, request.version) {
        (false, _) => Persistence::Close,
        (true, Version::Http10) => Persistence::KeepAlive,
        (true, _) => Persistence::Implied,
    };
    push_response(writer.begin(announce), response, announce, persistence);
    keep_alive
}

fn received(loan: &Option<Rc<Loan>>) -> u64 {
    loan.as_ref().map_or(0, |loan| loan.received())
}

fn send_error(error: SendError) -> Error {
    match error {
        SendError::Body(error) => error,
        SendError::Stream(error) => closed(error),
    }
}

fn closed(error: io::Error) -> Error {
    Error::downstream(ErrorKind::Closed).because(error)
}
