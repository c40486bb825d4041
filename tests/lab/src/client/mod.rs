//! HTTP as a client of the gateway sees it: what was answered, or in which way nothing was.

mod connect;
mod failure;
pub mod grpc;
pub mod raw;
mod session;
pub mod websocket;

use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;

pub use self::{
    connect::{Stream, Target},
    failure::Failure,
    session::Session,
};

/// Longest wait for a TCP and TLS handshake, and for an answer, unless a test says otherwise: far above what a loaded
/// machine needs, so that it means "nothing came".
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A request to send.
#[derive(Clone, Debug)]
pub struct Request {
    /// Method.
    pub method: http::Method,
    /// `Host`, or `:authority`.
    pub host: String,
    /// Path and query.
    pub path: String,
    /// Further header fields.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: Bytes,
}

impl Request {
    /// A GET.
    pub fn get(host: &str, path: &str) -> Self {
        Self {
            method: http::Method::GET,
            host: host.to_owned(),
            path: path.to_owned(),
            headers: Vec::new(),
            body: Bytes::new(),
        }
    }

    /// A POST with a body.
    pub fn post(host: &str, path: &str, body: impl Into<Bytes>) -> Self {
        Self { method: http::Method::POST, body: body.into(), ..Self::get(host, path) }
    }

    /// Adds a header field.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Status code.
    pub status: u16,
    /// Version of HTTP that it came over.
    pub version: http::Version,
    /// Header fields.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
    /// Trailer fields.
    pub trailers: Option<HeaderMap>,
}

impl Reply {
    /// Name of the lab's backend that answered.
    pub fn backend(&self) -> Option<&str> {
        self.header(crate::backend::NAME_HEADER)
    }

    /// A header field as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The body as JSON, as the lab's backends answer. `Null` when it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// One request on a connection of its own.
///
/// # Errors
/// The way in which no answer came.
pub async fn send(target: &Target, request: Request) -> Result<Reply, Failure> {
    let mut session = Session::connect(target).await?;
    session.send(request).await
}
