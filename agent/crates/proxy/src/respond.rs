//! The one place where a failure becomes a status and a reason. Reasons are a fixed set: they are labels of metrics.

use crate::error::{Error, ErrorKind, Side};

/// How a failure is answered and named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Status to answer with while no response has begun.
    pub status: u16,
    /// Name in counters and the access log.
    pub reason: &'static str,
}

/// Status and reason of a failure.
pub fn verdict(error: &Error) -> Verdict {
    let (status, reason) = match (error.kind, error.side) {
        (ErrorKind::Refused(refusal), Side::Downstream | Side::Internal) => (refusal.status(), refusal.name()),
        (ErrorKind::Refused(_), Side::Upstream) => (502, "upstream_malformed"),
        // Nobody is there to read the status; 499 is what access logs commonly say.
        (ErrorKind::Closed, Side::Downstream | Side::Internal) => (499, "client_closed"),
        (ErrorKind::Closed, Side::Upstream) => (502, "upstream_closed"),
        (ErrorKind::Connect, _) => (502, "upstream_connect"),
        (ErrorKind::ConnectTimeout, _) => (504, "upstream_connect_timeout"),
        (ErrorKind::Tls, Side::Upstream) => (502, "upstream_tls"),
        (ErrorKind::Tls, _) => (400, "tls"),
        (ErrorKind::Http2, Side::Upstream) => (502, "upstream_http2"),
        (ErrorKind::Http2, _) => (499, "client_http2"),
        (ErrorKind::NoEndpoint, _) => (503, "no_endpoint"),
        (ErrorKind::BackendUnusable, _) => (500, "backend_unusable"),
        (ErrorKind::ExternalAuth, _) => (503, "external_auth_malformed"),
        (ErrorKind::BackendTimeout, _) => (504, "backend_timeout"),
        (ErrorKind::RequestTimeout, _) => (504, "request_timeout"),
        (ErrorKind::Idle, _) => (504, "upstream_idle"),
        (ErrorKind::HeadTimeout, _) => (408, "client_head_timeout"),
        (ErrorKind::BodyTimeout, _) => (408, "client_body_timeout"),
        (ErrorKind::WriteStall, _) => (499, "client_write_stall"),
        (ErrorKind::Drained, _) => (503, "drained"),
    };
    Verdict { status, reason }
}

/// Text of a body that says what the status means, for people; it tells nothing about the inside.
pub fn body_text(status: u16) -> String {
    let phrase = http::StatusCode::from_u16(status).ok().and_then(|code| code.canonical_reason()).unwrap_or("Error");
    format!("{status} {phrase}\n")
}
