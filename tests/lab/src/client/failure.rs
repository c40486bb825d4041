//! The ways in which no answer comes, each told apart: a test that expects silence must not be satisfied by a reset.

use std::{error::Error, io};

/// Why a request got no whole answer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Failure {
    /// The connection was refused (RST to the SYN).
    #[error("connection refused")]
    Refused,
    /// An ICMP error or no route.
    #[error("unreachable")]
    Unreachable,
    /// Nothing came back to the SYN.
    #[error("no answer to the connection attempt")]
    Silent,
    /// RST on an open connection.
    #[error("connection reset")]
    Reset,
    /// The connection ended before the whole answer was there.
    #[error("connection closed before the answer was complete")]
    Closed,
    /// Connected, but no whole answer in time.
    #[error("no answer in time")]
    Stalled,
    /// TLS failed.
    #[error("TLS: {0}")]
    Tls(String),
    /// The answer is not HTTP.
    #[error("protocol: {0}")]
    Protocol(String),
    /// The client's own fault: no port, no descriptor.
    #[error("client: {0}")]
    Local(String),
}

impl Failure {
    /// Short name for counting.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::Silent => "silent",
            Self::Reset => "reset",
            Self::Closed => "closed",
            Self::Stalled => "stalled",
            Self::Tls(_) => "tls",
            Self::Protocol(_) => "protocol",
            Self::Local(_) => "local",
        }
    }

    /// Tells an error of a connection attempt.
    pub(crate) fn from_connect(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Self::Unreachable,
            io::ErrorKind::TimedOut => Self::Silent,
            _ => Self::from_io(error),
        }
    }

    /// Tells an error of an open connection.
    pub(crate) fn from_io(error: &io::Error) -> Self {
        if error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) {
            return Self::Tls(error.to_string());
        }
        match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted => Self::Reset,
            io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::NotConnected => Self::Closed,
            io::ErrorKind::TimedOut => Self::Stalled,
            _ => Self::Local(error.to_string()),
        }
    }
}

impl From<hyper::Error> for Failure {
    fn from(error: hyper::Error) -> Self {
        let mut source: Option<&dyn Error> = Some(&error);
        while let Some(cause) = source {
            if let Some(io) = cause.downcast_ref::<io::Error>() {
                return Self::from_io(io);
            }
            source = cause.source();
        }
        if error.is_incomplete_message() || error.is_canceled() || error.is_closed() || error.is_body_write_aborted() {
            return Self::Closed;
        }
        let mut text = error.to_string();
        let mut source = Error::source(&error);
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        Self::Protocol(text)
    }
}
