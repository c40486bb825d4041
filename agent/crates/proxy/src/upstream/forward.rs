//! The attempts of one request: which endpoint, over which connection, and what a failure leaves of it. Whether it is sent
//! again is for [`super::retry`] to say.

use std::{future::poll_fn, net::SocketAddr, rc::Rc, task::Poll};

use smallvec::SmallVec;
use tidegate_model::{BackendProtocol, Timeouts};
use tokio::time::Instant;

use super::{
    attempt::{Attempt, AttemptGuard, Failed, Limits, Progress, with_replay},
    pool::{Connection, Pool},
    replay::{self, Replay},
    retry::{Budget, Cause},
};
use crate::{
    balance::{BackendState, EndpointState},
    certificates::ClientIdentity,
    error::{Error, ErrorKind, Side},
    http::{
        body::{Body, Piece},
        head::{RequestHead, ResponseHead},
        hop::HopRequest,
    },
    net::timer::Timer,
    respond,
};

/// Bytes read of a response that is not passed on, so that its connection can serve the next attempt; what is more, or has
/// not arrived yet, is not waited for.
const MAX_DISCARDED: usize = 64 * 1024;

/// A request to be forwarded.
pub struct Forward<'a> {
    /// Connections of the shard.
    pub pool: &'a Rc<Pool>,
    /// Where to.
    pub backend: &'a Rc<BackendState>,
    /// Certificate to show to the backend if it asks for one.
    pub identity: Option<&'a Rc<ClientIdentity>>,
    /// Limits of the rule.
    pub timeouts: Timeouts,
    /// Retries that the rule asks for.
    pub retry: Option<&'a tidegate_model::Retry>,
    /// Endpoint to try first.
    pub preferred: Option<&'a Rc<EndpointState>>,
    /// Whether it may be sent again although its method is not idempotent: what it asks changes nothing.
    pub may_repeat: bool,
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

impl Forward<'_> {
    /// Forwards the request; fills `response`.
    ///
    /// # Errors
    /// The failure of the last attempt.
    pub async fn run(
        &self,
        body: Body,
        response: &mut ResponseHead,
        timer: &mut Timer,
        trace: &mut Trace,
        on_interim: &mut dyn FnMut(&ResponseHead),
    ) -> Result<Reply, Error> {
        let budget = Budget::new(self.retry);
        let (mut body, kept) =
            if budget.keeps_bodies() { with_replay(body, replay::KEPT_FOR_RULE) } else { (body, None) };
        let mut progress = Progress { budget, tried: SmallVec::new(), again: None, kept };
        let mut last = None::<Error>;
        let mut after = None::<Cause>;
        loop {
            let use_fresh = progress.again.is_some();
            let Some(endpoint) = progress.again.take().or_else(|| self.pick(&mut progress)) else {
                return Err(last.unwrap_or_else(|| Error::internal(ErrorKind::NoEndpoint)));
            };
            trace.attempts += 1;
            trace.endpoint = Some(endpoint.addr);
            if let Some(cause) = after {
                self.backend.stats.retries.increment(cause.as_str());
            }
            let limits = Limits::new(self);
            let guard = AttemptGuard::new(self.backend, &endpoint);
            let attempt = Attempt { forward: self, progress: &progress, guard, limits, use_fresh };
            let result = match self.backend.protocol() {
                BackendProtocol::Http1 => attempt.run_http1(body, response, timer, on_interim).await,
                // Boxed: HTTP/2 state must not make every connection's task large.
                BackendProtocol::Http2 => Box::pin(attempt.run_http2(body, response, timer)).await,
            };
            let cause = match result {
                Ok(reply) => match self.body_after_response(response, &reply, &mut progress) {
                    Some(whole) => {
                        if let Reply::Body(unwanted) = reply {
                            discard(unwanted).await;
                        }
                        body = whole;
                        Cause::Status
                    }
                    None => {
                        trace.deadline = [limits.request, limits.attempt].into_iter().flatten().min();
                        trace.answered = Some(Instant::now());
                        return Ok(reply);
                    }
                },
                Err(failed) => {
                    self.count_failure(&failed);
                    if failed.cause != Cause::StaleConnection && failed.error.side == Side::Upstream {
                        endpoint.report_failure();
                    }
                    let Some(whole) = failed.body else { return Err(failed.error) };
                    if !progress.budget.take(failed.cause) {
                        self.backend.stats.retries_denied.increment("attempts");
                        return Err(failed.error);
                    }
                    body = whole;
                    last = Some(failed.error);
                    failed.cause
                }
            };
            self.prepare(cause, endpoint, &mut progress, timer).await?;
            after = Some(cause);
        }
    }

    /// The endpoint for the next attempt: the preferred one first, then those not tried, then, where a rule wants more
    /// attempts than there are endpoints, any, but not the one that failed last.
    fn pick(&self, progress: &mut Progress<'_>) -> Option<Rc<EndpointState>> {
        if let Some(preferred) = self.preferred.filter(|_| progress.tried.is_empty()) {
            return Some(preferred.clone());
        }
        if let Some(endpoint) = self.backend.pick(&progress.tried) {
            return Some(endpoint);
        }
        let last = progress.tried.last().copied().filter(|_| progress.budget.may_return())?;
        progress.tried.clear();
        self.backend.pick(&[last]).or_else(|| self.backend.pick(&[]))
    }

    /// The body for another attempt after a response whose status the rule wants retried; takes the attempt.
    fn body_after_response(&self, response: &ResponseHead, reply: &Reply, progress: &mut Progress<'_>) -> Option<Body> {
        if matches!(reply, Reply::Upgraded(_)) || !progress.budget.wants_status(response.status) {
            return None;
        }
        let denied = &self.backend.stats.retries_denied;
        if !progress.kept.as_ref().is_none_or(Replay::is_whole) {
            denied.increment("body_too_long");
            return None;
        }
        // Nothing is begun anew before that: the response that is passed on may still have its request on the way.
        if !progress.budget.take(Cause::Status) {
            denied.increment("attempts");
            return None;
        }
        progress.kept.as_ref().map_or(Some(Body::Empty), Replay::start)
    }

    /// Makes everything ready for an attempt after one at `endpoint`; waits as long as the rule wants.
    async fn prepare(
        &self,
        cause: Cause,
        endpoint: Rc<EndpointState>,
        progress: &mut Progress<'_>,
        timer: &mut Timer,
    ) -> Result<(), Error> {
        if cause == Cause::StaleConnection {
            progress.again = Some(endpoint);
        } else {
            progress.tried.push(endpoint.addr);
        }
        let has_other = self.backend.has_other(&progress.tried);
        if let Some(pause) = progress.budget.pause(cause, has_other) {
            let until = Instant::now() + pause;
            // What cannot be in time need not be waited for.
            if Limits::new(self).request.is_some_and(|limit| limit <= until) {
                return Err(Error::upstream(ErrorKind::RequestTimeout));
            }
            timer.set(Some(until));
            poll_fn(|cx| timer.poll_expired(cx)).await;
        }
        Ok(())
    }

    fn count_failure(&self, failed: &Failed) {
        let stats = &self.backend.stats;
        if matches!(failed.error.kind, ErrorKind::Connect | ErrorKind::ConnectTimeout | ErrorKind::Tls) {
            stats.connect_errors.increment();
        } else if failed.error.side == Side::Upstream {
            let is_stale = failed.cause == Cause::StaleConnection;
            let reason = if is_stale { "stale_connection" } else { respond::verdict(&failed.error).reason };
            stats.failures.increment(reason);
        }
    }
}

/// Drops a response's body, and gives its connection back if it has arrived already.
pub async fn discard(mut body: Body) {
    let mut left = MAX_DISCARDED;
    poll_fn(|cx| {
        while let Poll::Ready(Ok(Piece::Data)) = body.poll_piece(cx) {
            let len = body.data().len();
            body.consume(len);
            left = left.saturating_sub(len);
            if left == 0 {
                break;
            }
        }
        Poll::Ready(())
    })
    .await;
}
