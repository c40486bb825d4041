//! Dialling a backend for a connection that is forwarded: endpoint after endpoint until one takes it.

use std::{net::SocketAddr, rc::Rc};

use smallvec::SmallVec;
use tidegate_model::BackendProtocol;

use super::{attempt::AttemptGuard, connect, retry::Cause};
use crate::{
    balance::BackendState,
    error::{Error, ErrorKind, Retry},
    net::stream::Stream,
    tables::Identity,
};

/// Endpoints tried for one connection. More would turn one slow backend into many slow connections.
const MAX_ENDPOINTS: usize = 3;

/// How dialling went, whatever came of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Dialled {
    /// Endpoint tried last.
    pub endpoint: Option<SocketAddr>,
    /// Endpoints tried.
    pub attempts: u32,
}

/// Connects to one of a backend's endpoints; another is tried while one refuses. With TLS where the backend has it, unless
/// what is forwarded is TLS itself (`is_opaque`); `identity` is shown to a backend with TLS that asks. The connection counts as running while the guard lives. Cancel-safe.
///
/// # Errors
/// The failure of the last attempt.
pub async fn dial(
    backend: &Rc<BackendState>,
    is_opaque: bool,
    identity: &Identity,
    dialled: &mut Dialled,
) -> Result<(Stream, AttemptGuard), Error> {
    // Protocols over TCP are not HTTP's to name: the server speaks what it speaks without ALPN.
    let shown = match identity {
        Identity::Certificate(identity) => Some(identity),
        Identity::Missing if !is_opaque && backend.has_tls() => {
            return Err(Error::internal(ErrorKind::BackendUnusable));
        }
        Identity::Anonymous | Identity::Missing => None,
    };
    let tls = if is_opaque { None } else { backend.tls(shown)?.map(|tls| tls.without_alpn()) };
    let mut tried = SmallVec::<[SocketAddr; MAX_ENDPOINTS]>::new();
    let mut last = None;
    while tried.len() < MAX_ENDPOINTS {
        let Some(endpoint) = backend.pick(&tried) else { break };
        dialled.attempts += 1;
        dialled.endpoint = Some(endpoint.addr);
        if dialled.attempts > 1 {
            backend.stats.retries.increment(Cause::Connect.as_str());
        }
        let guard = AttemptGuard::new(backend, &endpoint);
        match connect::connect(&endpoint, tls.as_ref(), BackendProtocol::Http1).await {
            Ok(stream) => {
                backend.stats.connects.increment();
                endpoint.report_success();
                return Ok((stream, guard));
            }
            Err(error) => {
                backend.stats.connect_errors.increment();
                endpoint.report_failure();
                tried.push(endpoint.addr);
                if error.retry != Retry::Always {
                    return Err(error);
                }
                last = Some(error);
            }
        }
    }
    Err(last.unwrap_or_else(|| Error::internal(ErrorKind::NoEndpoint)))
}
