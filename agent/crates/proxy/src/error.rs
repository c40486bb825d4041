//! Why a request or a connection failed: what happened, on whose side, and whether another attempt may help.

use std::io;

use crate::http::h1::refusal::Refusal;

/// Whose side a failure is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The client's.
    Downstream,
    /// The endpoint's.
    Upstream,
    /// The proxy's own.
    Internal,
}

/// Which requests may be sent again after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// None.
    Never,
    /// Idempotent ones (RFC 9110 section 9.2.2): the endpoint may have acted on the request before the connection died.
    Idempotent,
    /// All: the endpoint cannot have seen the request.
    Always,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The message broke a rule of HTTP.
    Refused(Refusal),
    /// The stream failed or ended too early.
    Closed,
    /// No connection to the endpoint.
    Connect,
    /// No connection to the endpoint in time.
    ConnectTimeout,
    /// No TLS with the endpoint.
    Tls,
    /// The HTTP/2 connection or stream failed.
    Http2,
    /// No endpoint is left to try.
    NoEndpoint,
    /// The backend's TLS settings cannot be used.
    BackendUnusable,
    /// An authorization server's answer that is none.
    ExternalAuth,
    /// The rule's `backendRequest` limit.
    BackendTimeout,
    /// The rule's `request` limit.
    RequestTimeout,
    /// Nothing moved for [`crate::timeouts::STREAM_IDLE`].
    Idle,
    /// The client sent its head too slowly.
    HeadTimeout,
    /// The client sent its body too slowly.
    BodyTimeout,
    /// The client took its response too slowly.
    WriteStall,
    /// The worker ends.
    Drained,
}

/// A failure.
#[derive(Debug, thiserror::Error)]
#[error("{kind:?} on the {side:?} side")]
pub struct Error {
    /// What happened.
    pub kind: ErrorKind,
    /// On whose side.
    pub side: Side,
    /// Which requests may be tried again.
    pub retry: Retry,
    /// What the system or a library said.
    pub source: Option<io::Error>,
}

impl Error {
    /// A failure on the client's side.
    pub fn downstream(kind: ErrorKind) -> Self {
        Self { kind, side: Side::Downstream, retry: Retry::Never, source: None }
    }

    /// A failure on the endpoint's side that allows no other attempt.
    pub fn upstream(kind: ErrorKind) -> Self {
        Self { kind, side: Side::Upstream, retry: Retry::Never, source: None }
    }

    /// A failure of the proxy itself.
    pub fn internal(kind: ErrorKind) -> Self {
        Self { kind, side: Side::Internal, retry: Retry::Never, source: None }
    }

    /// With a cause.
    #[must_use]
    pub fn because(mut self, source: io::Error) -> Self {
        self.source = Some(source);
        self
    }

    /// With leave to try again.
    #[must_use]
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }
}
