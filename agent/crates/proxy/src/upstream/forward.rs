//! The attempts of one request: which endpoint, over which connection, and whether a failure leaves another try.
//!
//! A request is sent again only when the endpoint cannot have seen it, or when it is idempotent and died with a connection
//! that was idle before (RFC 9110 section 9.2.2).

use std::{
    future::{Future, poll_fn},
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use smallvec::SmallVec;
use tidegate_model::{BackendProtocol, Timeouts};
use tokio::time::Instant;

use super::{
    connect,
    exchange::{Answer, Exchange},
    http2,
    pool::{Connection, Pool, PoolKey},
    replay::Replay,
};
use crate::{
    balance::{BackendState, EndpointState, InFlight},
    error::{Error, ErrorKind, Retry, Side},
    http::{
        body::Body,
        h2::{body::OutgoingBody, head},
        head::{RequestHead, ResponseHead},
        hop::HopRequest,
    },
    net::timer::Timer,
    respond, timeouts,
};

/// Endpoints tried for one request. More would turn one slow backend into many slow requests.
const MAX_ENDPOINTS: usize = 3;

/// Attempts in all, with those over connections that turned out to be dead.
const MAX_ATTEMPTS: u32 = 5;

/// A request to be forwarded.
pub struct Forward<'a> {
    /// Connections of the shard.
    pub pool: &'a Rc<Pool>,
    /// Where to.
    pub backend: &'a Rc<BackendState>,
    /// Limits of the rule.
    pub timeouts: Timeouts,
    /// Its head as it is to be sent.
    pub head: &'a RequestHead,
    /// What it wants of the hop.
    pub hop: &'a HopRequest,
    /// When its head had been read.
    pub started: Instant,
}

/// How it went, whatever came of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trace {
    /// Endpoint of the last attempt.
    pub endpoint: Option<SocketAddr>,
    /// Attempts made.
    pub attempts: u32,
    /// When the endpoint's response began.
    pub answered: Option<Instant>,
    /// When the attempt that was answered must be over.
    pub deadline: Option<Instant>,
}

/// What the endpoint gave.
#[derive(Debug)]
pub enum Reply {
    /// A response's body.
    Body(Body),
    /// A connection that is no longer HTTP.
    Upgraded(Box<Connection>),
}

/// An attempt under way, as counters and the balance see it.
#[derive(Debug)]
pub struct AttemptGuard {
    in_flight: InFlight,
    backend: Rc<BackendState>,
}

impl AttemptGuard {
    fn new(backend: &Rc<BackendState>, endpoint: &Rc<EndpointState>) -> Self {
        backend.stats.requests.increment();
        backend.stats.active.increment();
        Self { in_flight: endpoint.enter(), backend: backend.clone() }
    }

    fn endpoint(&self) -> &Rc<EndpointState> {
        self.in_flight.endpoint()
    }
}

impl Drop for AttemptGuard {
    fn drop(&mut self) {
        self.backend.stats.active.decrement();
    }
}

/// An attempt that failed.
struct Failed {
    error: Error,
    /// The whole body, when the request may be sent again.
    body: Option<Body>,
    /// The connection was idle before: its end says nothing of the endpoint.
    was_reused: bool,
}

impl Forward<'_> {
    /// Forwards the request; fills `response`.
    ///
    /// # Errors
    /// The failure of the last attempt.
    pub async fn run(
        &self,
        mut body: Body,
        response: &mut ResponseHead,
        timer: &mut Timer,
        trace: &mut Trace,
        on_interim: &mut dyn FnMut(&ResponseHead),
    ) -> Result<Reply, Error> {
        let mut tried = SmallVec::<[SocketAddr; MAX_ENDPOINTS]>::new();
        let mut again = None::<Rc<EndpointState>>;
        let mut last = None::<Error>;
        loop {
            let use_fresh = again.is_some();
            let Some(endpoint) = again.take().or_else(|| self.backend.pick(&tried)) else {
                return Err(last.unwrap_or_else(|| Error::internal(ErrorKind::NoEndpoint)));
            };
            trace.attempts += 1;
            trace.endpoint = Some(endpoint.addr);
            if trace.attempts > 1 {
                self.backend.stats.retries.increment();
            }
            let limits = Limits::new(self);
            let guard = AttemptGuard::new(self.backend, &endpoint);
            let attempt = Attempt { forward: self, guard, limits, use_fresh };
            let result = match self.backend.protocol() {
                BackendProtocol::Http1 => attempt.run_http1(body, response, timer, on_interim).await,
                // Boxed: HTTP/2 state must not make every connection's task large.
                BackendProtocol::Http2 => Box::pin(attempt.run_http2(body, response, timer)).await,
            };
            let failed = match result {
                Ok(reply) => {
                    trace.deadline = [limits.request, limits.attempt].into_iter().flatten().min();
                    trace.answered = Some(Instant::now());
                    return Ok(reply);
                }
                Err(failed) => failed,
            };
            self.count_failure(&failed);
            if !failed.was_reused && failed.error.side == Side::Upstream {
                endpoint.report_failure();
            }
            let may_retry = trace.attempts < MAX_ATTEMPTS && tried.len() + 1 < MAX_ENDPOINTS;
            let Some(whole) = failed.body.filter(|_| may_retry) else { return Err(failed.error) };
            body = whole;
            if failed.was_reused {
                again = Some(endpoint);
            } else {
                tried.push(endpoint.addr);
            }
            last = Some(failed.error);
        }
    }

    fn count_failure(&self, failed: &Failed) {
        let stats = &self.backend.stats;
        if matches!(failed.error.kind, ErrorKind::Connect | ErrorKind::ConnectTimeout | ErrorKind::Tls) {
            stats.connect_errors.increment();
        } else if failed.error.side == Side::Upstream {
            let reason = if failed.was_reused { "stale_connection" } else { respond::verdict(&failed.error).reason };
            stats.failures.increment(reason);
        }
    }

    /// The body for another attempt, if the request may have one: what came back untouched, or what was kept.
    fn body_for_retry(&self, error: &Error, untouched: Option<Body>, replay: Option<&Replay>) -> Option<Body> {
        let is_idempotent = self.head.method.is_idempotent() && self.hop.upgrade.is_none();
        match error.retry {
            Retry::Never => None,
            Retry::Idempotent if !is_idempotent => None,
            Retry::Idempotent | Retry::Always => match replay {
                Some(replay) => replay.start(),
                None => untouched.or(Some(Body::Empty)),
            },
        }
    }
}

/// Moments at which an attempt ends, whatever has come of it.
#[derive(Clone, Copy)]
struct Limits {
    request: Option<Instant>,
    attempt: Option<Instant>,
}

impl Limits {
    fn new(forward: &Forward<'_>) -> Self {
        Self {
            request: find_limit(forward.timeouts.request).map(|limit| forward.started + limit),
            attempt: find_limit(forward.timeouts.backend_request).map(|limit| Instant::now() + limit),
        }
    }

    /// The next moment at which something must be judged, when nothing else happens.
    fn next(&self, idle: Instant) -> Instant {
        [self.request, self.attempt].into_iter().flatten().fold(idle, Instant::min)
    }

    fn expired(&self) -> ErrorKind {
        let now = Instant::now();
        match (self.request, self.attempt) {
            (Some(request), _) if request <= now => ErrorKind::RequestTimeout,
            (_, Some(attempt)) if attempt <= now => ErrorKind::BackendTimeout,
            _ => ErrorKind::Idle,
        }
    }
}

/// GEP-1742: zero is no limit; so is none, since long polls and streams are nothing unusual.
fn find_limit(limit: Option<std::time::Duration>) -> Option<std::time::Duration> {
    limit.filter(|limit| !limit.is_zero())
}

struct Attempt<'a> {
    forward: &'a Forward<'a>,
    guard: AttemptGuard,
    limits: Limits,
    use_fresh: bool,
}

impl Attempt<'_> {
    async fn run_http1(
        self,
        body: Body,
        response: &mut ResponseHead,
        timer: &mut Timer,
        on_interim: &mut dyn FnMut(&ResponseHead),
    ) -> Result<Reply, Failed> {
        let (forward, limits) = (self.forward, self.limits);
        let endpoint = self.guard.endpoint().clone();
        let tls = forward.backend.tls();
        let kept = if self.use_fresh { None } else { forward.pool.take(PoolKey::new(&endpoint, tls.as_ref())) };
        let was_reused = kept.is_some();
        let connection = match kept {
            Some(connection) => connection,
            None => {
                // Boxed: dialling is rare and its state large.
                let dial = Box::pin(connect::connect(&endpoint, tls.as_ref(), BackendProtocol::Http1));
                match within(dial, &limits, timer).await {
                    Ok(stream) => {
                        forward.backend.stats.connects.increment();
                        endpoint.report_success();
                        Connection::new(stream, endpoint, tls.as_ref())
                    }
                    Err(error) => return Err(Failed::before_sending(error, body)),
                }
            }
        };
        let (body, replay) = if was_reused { with_replay(body) } else { (body, None) };
        let parts = (forward.head, forward.hop, body);
        let mut exchange = Box::new(Exchange::new(connection, forward.pool.clone(), self.guard, parts));
        loop {
            let answer = wait_for(&limits, timer, |cx| {
                let polled = exchange.poll_answer(response, cx);
                (polled, exchange.progress())
            });
            match answer.await {
                Ok(Answer::Interim) => on_interim(response),
                Ok(Answer::Final) => return Ok(Reply::Body(Body::Stream(exchange))),
                Ok(Answer::Upgraded) => {
                    return exchange.into_connection().map(Reply::Upgraded).ok_or_else(|| Failed {
                        error: Error::upstream(ErrorKind::Closed),
                        body: None,
                        was_reused,
                    });
                }
                Err(error) => {
                    let untouched = exchange.into_request();
                    let body = forward.body_for_retry(&error, untouched, replay.as_ref());
                    return Err(Failed { error, body, was_reused });
                }
            }
        }
    }

    async fn run_http2(self, body: Body, response: &mut ResponseHead, timer: &mut Timer) -> Result<Reply, Failed> {
        let (forward, limits) = (self.forward, self.limits);
        let endpoint = self.guard.endpoint().clone();
        let tls = forward.backend.tls();
        let acquired = within(Box::pin(http2::acquire(forward.pool, &endpoint, tls.as_ref())), &limits, timer).await;
        let (slot, was_reused) = match acquired {
            Ok(acquired) => acquired,
            Err(error) => return Err(Failed::before_sending(error, body)),
        };
        if !was_reused {
            forward.backend.stats.connects.increment();
            endpoint.report_success();
        }
        // The body is hyper's until its stream ends: only what is kept of it can be sent again.
        let (body, replay) = with_replay(body);
        let request = head::make_request(forward.head, forward.hop, tls.is_some(), OutgoingBody::new(body));
        let request = request.map_err(|refusal| Failed {
            error: Error::downstream(ErrorKind::Refused(refusal)),
            body: None,
            was_reused,
        })?;
        let mut sent = Box::pin(slot.sender().try_send_request(request));
        let answered = wait_for(&limits, timer, |cx| {
            let polled = sent.as_mut().poll(cx).map_err(http2::failure);
            (polled, replay.as_ref().map_or(0, Replay::progress))
        });
        let answered = answered.await;
        drop(sent);
        let incoming = answered.map_err(|error| {
            if error.kind == ErrorKind::Http2 {
                slot.retire();
            }
            let error = if was_reused || error.retry == Retry::Always { error } else { error.retry(Retry::Never) };
            let body = forward.body_for_retry(&error, None, replay.as_ref());
            Failed { error, body, was_reused }
        })?;
        response.clear();
        head::fill_response(&incoming, response).map_err(|refusal| Failed {
            error: Error::upstream(ErrorKind::Refused(refusal)),
            body: None,
            was_reused,
        })?;
        Ok(Reply::Body(http2::into_body(incoming.into_body(), slot, self.guard)))
    }
}

impl Failed {
    fn before_sending(error: Error, body: Body) -> Self {
        let body = (error.retry == Retry::Always).then_some(body);
        Self { error, body, was_reused: false }
    }
}

fn with_replay(body: Body) -> (Body, Option<Replay>) {
    if body.is_empty() {
        return (Body::Empty, None);
    }
    let replay = Replay::new(body);
    (replay.start().expect("nothing of it was read"), Some(replay))
}

/// Waits for `future` within the limits.
async fn within<T>(
    mut future: Pin<Box<dyn Future<Output = Result<T, Error>> + '_>>,
    limits: &Limits,
    timer: &mut Timer,
) -> Result<T, Error> {
    wait_for(limits, timer, |cx| (future.as_mut().poll(cx), 0)).await
}

/// Polls until ready, within the limits. `poll` also says how far things have come: while that grows, nothing is idle.
async fn wait_for<T>(
    limits: &Limits,
    timer: &mut Timer,
    mut poll: impl FnMut(&mut Context<'_>) -> (Poll<Result<T, Error>>, u64),
) -> Result<T, Error> {
    let mut seen = None;
    poll_fn(|cx| {
        let (polled, progress) = poll(cx);
        if polled.is_ready() {
            return polled;
        }
        if seen != Some(progress) {
            seen = Some(progress);
            timer.set(Some(limits.next(Instant::now() + timeouts::STREAM_IDLE)));
        }
        ready!(timer.poll_expired(cx));
        Poll::Ready(Err(Error::upstream(limits.expired())))
    })
    .await
}
