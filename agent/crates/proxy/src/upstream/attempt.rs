//! One attempt at an endpoint, and what a failure leaves of the request.

use std::{
    future::{Future, poll_fn},
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use smallvec::SmallVec;
use tidegate_model::BackendProtocol;
use tokio::time::Instant;

use super::{
    connect,
    exchange::{Answer, Exchange},
    forward::{Forward, Reply},
    http2,
    pool::{Connection, PoolKey},
    replay::{self, Replay},
    retry::{Budget, Cause},
};
use crate::{
    balance::{BackendState, EndpointState, InFlight},
    error::{Error, ErrorKind, Retry},
    http::{
        body::Body,
        h2::{body::OutgoingBody, head},
        head::ResponseHead,
    },
    net::timer::Timer,
    timeouts,
};

/// An attempt under way, as counters and the balance see it.
#[derive(Debug)]
pub struct AttemptGuard {
    in_flight: InFlight,
    backend: Rc<BackendState>,
}

impl AttemptGuard {
    pub(super) fn new(backend: &Rc<BackendState>, endpoint: &Rc<EndpointState>) -> Self {
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
pub(super) struct Failed {
    pub(super) error: Error,
    /// The whole body, when the request may be sent again.
    pub(super) body: Option<Body>,
    pub(super) cause: Cause,
}

/// What a request has gone through so far.
pub(super) struct Progress<'a> {
    pub(super) budget: Budget<'a>,
    /// Endpoints that were tried.
    pub(super) tried: SmallVec<[SocketAddr; 3]>,
    /// The endpoint whose connection was dead: it gets a fresh one.
    pub(super) again: Option<Rc<EndpointState>>,
    /// What is kept of the body for attempts after a response.
    pub(super) kept: Option<Replay>,
}

/// Moments at which an attempt ends, whatever has come of it.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    pub(super) request: Option<Instant>,
    pub(super) attempt: Option<Instant>,
}

impl Limits {
    pub(super) fn new(forward: &Forward<'_>) -> Self {
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
fn find_limit(limit: Option<Duration>) -> Option<Duration> {
    limit.filter(|limit| !limit.is_zero())
}

/// An attempt to be made.
pub(super) struct Attempt<'a> {
    pub(super) forward: &'a Forward<'a>,
    pub(super) progress: &'a Progress<'a>,
    pub(super) guard: AttemptGuard,
    pub(super) limits: Limits,
    /// Whether a kept connection will not do.
    pub(super) use_fresh: bool,
}

impl Attempt<'_> {
    pub(super) async fn run_http1(
        self,
        body: Body,
        response: &mut ResponseHead,
        timer: &mut Timer,
        on_interim: &mut dyn FnMut(&ResponseHead),
    ) -> Result<Reply, Failed> {
        let (forward, progress, limits) = (self.forward, self.progress, self.limits);
        let endpoint = self.guard.endpoint().clone();
        let tls = forward.backend.tls(forward.identity).map_err(Failed::unusable)?;
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
        let (body, replay) = self.keep(body, was_reused);
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
                    let upgraded = exchange.into_connection().map(Reply::Upgraded);
                    return upgraded.ok_or_else(|| Failed::finally(Error::upstream(ErrorKind::Closed)));
                }
                Err(error) => {
                    let untouched = exchange.into_request();
                    return Err(progress.judge(forward, error, was_reused, untouched, replay.as_ref()));
                }
            }
        }
    }

    pub(super) async fn run_http2(
        self,
        body: Body,
        response: &mut ResponseHead,
        timer: &mut Timer,
    ) -> Result<Reply, Failed> {
        let (forward, progress, limits) = (self.forward, self.progress, self.limits);
        let endpoint = self.guard.endpoint().clone();
        let tls = forward.backend.tls(forward.identity).map_err(Failed::unusable)?;
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
        let (body, replay) = self.keep(body, true);
        let request = head::make_request(forward.head, forward.hop, tls.is_some(), OutgoingBody::new(body));
        let request = request.map_err(|refusal| Failed::finally(Error::downstream(ErrorKind::Refused(refusal))))?;
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
            progress.judge(forward, error, was_reused, None, replay.as_ref())
        })?;
        response.clear();
        let filled = head::fill_response(&incoming, response);
        filled.map_err(|refusal| Failed::finally(Error::upstream(ErrorKind::Refused(refusal))))?;
        Ok(Reply::Body(http2::into_body(incoming.into_body(), slot, self.guard)))
    }
}

impl Attempt<'_> {
    /// The body to send, and what is kept of it: for all attempts, or (`is_wanted`) for one more after this one.
    fn keep(&self, body: Body, is_wanted: bool) -> (Body, Option<Replay>) {
        match &self.progress.kept {
            Some(kept) => (body, Some(kept.clone())),
            None if is_wanted => with_replay(body, replay::KEPT),
            None => (body, None),
        }
    }
}

impl Progress<'_> {
    /// What a failure after the connection was made leaves of the request. The body for another attempt is what came back
    /// untouched, or what was kept.
    fn judge(
        &self,
        forward: &Forward<'_>,
        error: Error,
        was_reused: bool,
        untouched: Option<Body>,
        replay: Option<&Replay>,
    ) -> Failed {
        let is_idempotent =
            forward.may_repeat || (forward.head.method.is_idempotent() && forward.hop.upgrade.is_none());
        let is_permitted = match self.budget.permits(&error) {
            Retry::Never => false,
            Retry::Idempotent => is_idempotent,
            Retry::Always => true,
        };
        let denied = &forward.backend.stats.retries_denied;
        let whole = || match replay {
            Some(replay) => replay.start(),
            None => untouched.or(Some(Body::Empty)),
        };
        let body = if is_permitted { whole() } else { None };
        if is_permitted && body.is_none() {
            denied.increment("body_too_long");
        } else if !is_permitted && self.budget.permits(&error) == Retry::Idempotent {
            denied.increment("not_idempotent");
        }
        Failed { cause: Cause::of(&error, was_reused), error, body }
    }
}

impl Failed {
    fn unusable(error: Error) -> Self {
        Self { error, body: None, cause: Cause::Connect }
    }

    fn before_sending(error: Error, body: Body) -> Self {
        let body = (error.retry == Retry::Always).then_some(body);
        Self { cause: Cause::of(&error, false), error, body }
    }

    /// A failure that leaves nothing to send.
    fn finally(error: Error) -> Self {
        Self { cause: Cause::of(&error, false), error, body: None }
    }
}

/// The body to send, and what is kept of it.
pub(super) fn with_replay(body: Body, limit: u64) -> (Body, Option<Replay>) {
    if body.is_empty() {
        return (Body::Empty, None);
    }
    let replay = Replay::new(body, limit);
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
