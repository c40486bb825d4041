//! Talking to a Kubernetes API server: connect, list, watch, retry. Knows resources by group, version and plural name and
//! objects as untyped values; what they mean is for those who ask.

mod client;
mod error;
#[cfg(test)]
pub mod fake;
mod reflector;
mod resource;
mod retry;

pub use client::{ConnectError, connect};
pub use error::Failure;
pub use reflector::{Target, Update, name_of, reflect};
pub use resource::{Resource, is_name};
pub use retry::{Backoff, jitter};

use std::time::Duration;

use http::Request;
use kube::Client;
use serde_json::Value;
use tokio::time::timeout;

/// How long a request that is no watch may take. An API server answers in milliseconds; its own limit is 60 seconds.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// Asks for one path.
///
/// # Errors
/// See [`Failure`].
pub async fn get(client: &Client, path: &str) -> Result<Value, Failure> {
    let request = Request::get(path).body(Vec::new()).map_err(|error| Failure::Other(error.to_string()))?;
    Ok(timeout(REQUEST_TIMEOUT, client.request(request)).await??)
}
