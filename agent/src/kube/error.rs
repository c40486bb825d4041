//! What can go wrong with a request, as far as callers act differently.

use std::time::Duration;

use kube::core::Status;
use tokio::time::error::Elapsed;

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The version to go on from is too old (410): list again.
    #[error("the API server no longer knows the version to go on from")]
    Expired,
    /// The service account may not do this (403).
    #[error("not permitted: {0}")]
    Forbidden(String),
    /// There is no such object or kind (404).
    #[error("not found: {0}")]
    NotFound(String),
    /// Somebody else has changed the object meanwhile (409).
    #[error("conflict: {0}")]
    Conflict(String),
    /// The API server will never take this (400, 422).
    #[error("refused: {0}")]
    Invalid(String),
    /// The API server asks for patience (429, or 503 with a time).
    #[error("the API server asks to wait {} s: {message}", after.as_secs())]
    Throttled {
        /// How long to wait.
        after: Duration,
        /// What it says.
        message: String,
    },
    /// Anything else: worth another try.
    #[error("{0}")]
    Other(String),
}

impl From<&Status> for Failure {
    fn from(status: &Status) -> Self {
        let message = status.message.clone();
        let seconds = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
        match status.code {
            410 => Self::Expired,
            403 => Self::Forbidden(message),
            404 => Self::NotFound(message),
            409 => Self::Conflict(message),
            400 | 422 => Self::Invalid(message),
            429 => Self::Throttled { after: Duration::from_secs(u64::from(seconds).max(1)), message },
            _ if seconds > 0 => Self::Throttled { after: Duration::from_secs(u64::from(seconds)), message },
            // A proxy in front of the API server may answer with a page.
            code if message.is_empty() => Self::Other(format!("HTTP status {code}")),
            _ => Self::Other(message),
        }
    }
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        match &error {
            kube::Error::Api(status) => Self::from(&**status),
            _ => Self::Other(describe(&error)),
        }
    }
}

impl From<Elapsed> for Failure {
    fn from(_: Elapsed) -> Self {
        Self::Other("the API server does not answer".to_owned())
    }
}

/// An error with its causes, each once: "client error (Connect)" alone says nothing.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}
