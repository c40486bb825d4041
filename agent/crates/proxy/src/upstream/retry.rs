//! Whether a request is sent again, and when: as its rule asks (GEP-1731), or by the proxy's careful default.
//!
//! Without a rule's wish a request is sent again only when the endpoint cannot have seen it, or when it is idempotent and
//! died with a connection that was idle before (RFC 9110 section 9.2.2). A rule adds statuses, for any method: they say
//! that the endpoint rejected the request. Time limits and broken connections say nothing of the kind, so they are
//! retried for idempotent methods only, also by a rule.

use std::time::Duration;

use crate::{
    balance::Prng,
    error::{self, Error, ErrorKind, Side},
};

/// Endpoints tried for one request whose rule says nothing of retries. More would turn one slow backend into many slow
/// requests.
const MAX_ENDPOINTS: u32 = 3;

/// Attempts over connections that turned out to be dead, which no rule counts: each takes another connection, so more than
/// a few mean that the endpoint closes every one of them.
const MAX_STALE: u32 = 3;

/// Pause before the first retry where a rule names none: long enough for a burst to pass, short beside a request.
const DEFAULT_BACKOFF: Duration = Duration::from_millis(25);

/// Pauses grow up to so many times the first one. Beyond, a client gains nothing from waiting.
const MAX_GROWTH: u32 = 10;

/// Why an attempt is not the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// No connection, or no TLS or HTTP/2 on it.
    Connect,
    /// The connection was idle before, and dead.
    StaleConnection,
    /// The endpoint said that it did not process the request.
    Unprocessed,
    /// The connection broke before a response.
    Reset,
    /// The rule's `backendRequest` limit.
    BackendTimeout,
    /// A status that the rule names.
    Status,
}

impl Cause {
    /// What a failure means for another attempt, if it leaves room for one.
    pub fn of(error: &Error, was_reused: bool) -> Self {
        match (error.kind, error.retry) {
            (ErrorKind::BackendTimeout, _) => Self::BackendTimeout,
            (_, error::Retry::Always | error::Retry::Idempotent) if was_reused => Self::StaleConnection,
            (ErrorKind::Connect | ErrorKind::ConnectTimeout | ErrorKind::Tls, _) => Self::Connect,
            (_, error::Retry::Always) => Self::Unprocessed,
            _ => Self::Reset,
        }
    }

    /// Name in counters.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::StaleConnection => "stale_connection",
            Self::Unprocessed => "unprocessed",
            Self::Reset => "reset",
            Self::BackendTimeout => "backend_timeout",
            Self::Status => "status",
        }
    }
}

/// What is left to a request.
#[derive(Debug)]
pub struct Budget<'a> {
    rule: Option<&'a tidegate_model::Retry>,
    retries: u32,
    stale: u32,
}

impl<'a> Budget<'a> {
    /// The budget of a request that was not sent yet.
    pub fn new(rule: Option<&'a tidegate_model::Retry>) -> Self {
        Self { rule, retries: 0, stale: 0 }
    }

    /// Whether a response may have to be followed by another attempt, for which the request's body must be kept.
    pub fn keeps_bodies(&self) -> bool {
        self.rule.is_some_and(|rule| rule.attempts > 0)
    }

    /// Whether endpoints that were tried may be tried again when no other is left.
    pub fn may_return(&self) -> bool {
        self.rule.is_some()
    }

    /// Whether a response of that status is to be followed by another attempt.
    pub fn wants_status(&self, status: u16) -> bool {
        self.rule.is_some_and(|rule| rule.attempts > 0 && rule.codes.contains(&status))
    }

    /// Which requests may be sent again after a failure.
    pub fn permits(&self, error: &Error) -> error::Retry {
        let is_ambiguous = error.side == Side::Upstream
            && matches!(error.kind, ErrorKind::Closed | ErrorKind::Http2 | ErrorKind::BackendTimeout);
        match (self.rule, error.retry) {
            // What no endpoint has seen is not sent twice, only over another connection.
            (Some(rule), error::Retry::Idempotent) if rule.attempts == 0 => error::Retry::Never,
            (Some(rule), error::Retry::Never) if rule.attempts > 0 && is_ambiguous => error::Retry::Idempotent,
            (_, retry) => retry,
        }
    }

    /// Takes one more attempt; `false` when there is none.
    pub fn take(&mut self, cause: Cause) -> bool {
        let (count, limit) = match (cause, self.rule) {
            (Cause::StaleConnection, _) => (&mut self.stale, MAX_STALE),
            (_, Some(rule)) => (&mut self.retries, rule.attempts),
            (_, None) => (&mut self.retries, MAX_ENDPOINTS - 1),
        };
        let is_left = *count < limit;
        *count += u32::from(is_left);
        is_left
    }

    /// How long to wait before the attempt that was taken last. `has_other`: whether an endpoint is left that was not tried.
    pub fn pause(&self, cause: Cause, has_other: bool) -> Option<Duration> {
        let rule = self.rule.filter(|_| cause != Cause::StaleConnection)?;
        if rule.backoff.is_none() && cause == Cause::Connect && has_other {
            return None;
        }
        let base = rule.backoff.unwrap_or(DEFAULT_BACKOFF);
        let growth = 1_u32.checked_shl(self.retries.saturating_sub(1)).unwrap_or(MAX_GROWTH).clamp(1, MAX_GROWTH);
        let pause = base.saturating_mul(growth);
        // Jitter: requests that failed together must not come again together.
        let part = Prng::from_entropy().below(1 << 16);
        let jitter = pause.mul_f64(f64::from(part) / f64::from(1 << 17));
        Some(pause.saturating_add(jitter)).filter(|pause| !pause.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(attempts: u32, backoff: Option<Duration>) -> tidegate_model::Retry {
        tidegate_model::Retry { codes: vec![500], attempts, backoff }
    }

    #[test]
    fn a_rule_counts_its_own_attempts_and_none_of_dead_connections() {
        let rule = rule(2, None);
        let mut budget = Budget::new(Some(&rule));
        assert!(budget.take(Cause::StaleConnection));
        assert!(budget.take(Cause::Status));
        assert!(budget.take(Cause::Connect));
        assert!(!budget.take(Cause::Status));
        assert!((0..MAX_STALE - 1).all(|_| budget.take(Cause::StaleConnection)));
        assert!(!budget.take(Cause::StaleConnection));
    }

    #[test]
    fn without_a_rule_three_endpoints_are_tried() {
        let mut budget = Budget::new(None);
        assert_eq!((0..5).filter(|_| budget.take(Cause::Connect)).count(), 2);
        assert!(!budget.wants_status(500) && !budget.keeps_bodies());
        assert_eq!(budget.pause(Cause::Connect, false), None);
    }

    #[test]
    fn zero_attempts_send_a_request_once() {
        let rule = rule(0, None);
        let mut budget = Budget::new(Some(&rule));
        assert!(!budget.wants_status(500));
        assert!(!budget.take(Cause::Connect));
        let stale = Error::upstream(ErrorKind::Closed);
        assert_eq!(budget.permits(&stale.retry(error::Retry::Idempotent)), error::Retry::Never);
        let unsent = Error::upstream(ErrorKind::Closed).retry(error::Retry::Always);
        assert_eq!(budget.permits(&unsent), error::Retry::Always);
    }

    #[test]
    fn a_rule_retries_what_is_ambiguous_for_idempotent_methods_only() {
        let rule = rule(1, None);
        let budget = Budget::new(Some(&rule));
        for kind in [ErrorKind::Closed, ErrorKind::Http2, ErrorKind::BackendTimeout] {
            assert_eq!(budget.permits(&Error::upstream(kind)), error::Retry::Idempotent);
            assert_eq!(Budget::new(None).permits(&Error::upstream(kind)), error::Retry::Never);
        }
        for error in [Error::upstream(ErrorKind::RequestTimeout), Error::downstream(ErrorKind::Closed)] {
            assert_eq!(budget.permits(&error), error::Retry::Never);
        }
    }

    #[test]
    fn pauses_begin_at_the_base_grow_and_stay_below_their_limit() {
        let base = Duration::from_millis(100);
        let rule = rule(100, Some(base));
        let mut budget = Budget::new(Some(&rule));
        let mut longest = Duration::ZERO;
        for retry in 0..40 {
            assert!(budget.take(Cause::Status));
            let pause = budget.pause(Cause::Status, true).unwrap();
            let least = base * (1 << retry.min(3));
            assert!(pause >= least && pause <= base * 15, "{retry}: {pause:?}");
            longest = longest.max(pause);
        }
        assert!(longest >= base * 10);
        assert_eq!(budget.pause(Cause::StaleConnection, true), None);
    }

    #[test]
    fn another_endpoint_is_tried_at_once_where_no_pause_is_asked_for() {
        let rule = rule(1, None);
        let mut budget = Budget::new(Some(&rule));
        assert!(budget.take(Cause::Connect));
        assert_eq!(budget.pause(Cause::Connect, true), None);
        assert!(budget.pause(Cause::Connect, false).is_some());
    }
}
