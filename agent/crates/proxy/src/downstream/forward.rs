//! Connections that are forwarded as they are (TCPRoute, TLSRoute): to the backend whose turn it is, then bytes both ways.
//!
//! A connection stays with the forward and the endpoint it began with, whatever becomes of them. What cannot be forwarded, or
//! breaks off, ends with a reset: to a protocol that is not known an orderly end could look like the end of a message.

use std::{cell::RefCell, rc::Rc, sync::Arc};

use tokio::{net::TcpStream, time::Instant};

use super::tunnel::{self, Ends};
use crate::{
    access_log::ForwardLine,
    balance::BackendState,
    decide::ConnectionFacts,
    net::{buffer::Buffer, stream::Stream, timer::Timer},
    respond,
    shard::Shard,
    tables::{FoundForward, ListenerState, Target},
    upstream::dial::{Dialled, dial},
};

/// A client's connection for a listener of protocol TCP or TLS.
#[derive(Debug)]
pub struct Incoming {
    /// What is known of it.
    pub facts: ConnectionFacts,
    /// Listener that took it.
    pub listener: Rc<ListenerState>,
    /// Version of TLS, where that ends here.
    pub tls: Option<&'static str>,
    /// When it was accepted.
    pub started: Instant,
}

impl Incoming {
    /// Whether the client's TLS ends at the backend.
    fn is_opaque(&self) -> bool {
        self.facts.is_tls && self.tls.is_none()
    }

    /// The forward that is to take it.
    pub fn find_forward(&self) -> Option<FoundForward> {
        self.listener.find_forward(self.facts.sni.as_deref())
    }

    /// Counts and logs that no forward takes it, and it was reset.
    pub fn refuse(&self, shard: &Shard) {
        shard.stats.connections.refused.increment(NO_ROUTE);
        self.log(shard, None, &Ended { reason: Some(NO_ROUTE), ..Ended::default() });
    }

    fn log(&self, shard: &Shard, found: Option<&FoundForward>, ended: &Ended) {
        if !shard.log.is_on() {
            return;
        }
        shard.log.push_forward(&ForwardLine {
            listener: &self.listener.key,
            route: found.map(|found| &found.forward.key),
            peer: self.facts.peer,
            local: self.facts.local,
            server_name: self.facts.sni.as_deref(),
            tls: self.tls,
            reason: ended.reason,
            detail: ended.detail.as_deref(),
            endpoint: ended.dialled.endpoint,
            attempts: ended.dialled.attempts,
            received: ended.received,
            sent: ended.sent,
            duration: self.started.elapsed(),
        });
    }
}

/// Why a connection to a listener without a forward for it is closed.
const NO_ROUTE: &str = "no_route";

/// What became of a connection.
#[derive(Debug, Default)]
struct Ended {
    dialled: Dialled,
    received: u64,
    sent: u64,
    /// Why it was not forwarded or broke off.
    reason: Option<&'static str>,
    detail: Option<Arc<str>>,
}

/// Forwards a connection until it ends. `buffer` has what was read of the client before. Not cancel-safe: it is a task's
/// last act.
pub async fn run(shard: &Rc<Shard>, incoming: Incoming, found: FoundForward, client: Stream, buffer: Buffer) {
    let stats = found.stats.clone();
    stats.opened.increment();
    stats.active.increment();
    // Counted down even if the task panics.
    let _active = Active(&found);
    let mut ended = Ended::default();
    carry(&incoming, &found, client, buffer, &mut ended).await;
    if let Some(reason) = ended.reason {
        stats.failures.increment(reason);
    }
    incoming.log(shard, Some(&found), &ended);
}

/// Closes a connection with a reset.
pub fn reset(tcp: &TcpStream) {
    // On a socket that is closed already there is nothing to reset.
    let _ = tcp.set_zero_linger();
}

struct Active<'a>(&'a FoundForward);

impl Drop for Active<'_> {
    fn drop(&mut self) {
        self.0.stats.active.decrement();
    }
}

async fn carry(incoming: &Incoming, found: &FoundForward, client: Stream, mut buffer: Buffer, ended: &mut Ended) {
    let backend = match choose_backend(incoming, found) {
        Ok(backend) => backend,
        Err((reason, detail)) => {
            (ended.reason, ended.detail) = (Some(reason), detail);
            return reset(client.tcp());
        }
    };
    // Boxed: TLS towards the endpoint is large, and short-lived beside the connection.
    let identity = incoming.listener.identity();
    let (mut endpoint, _running) =
        match Box::pin(dial(&backend, incoming.is_opaque(), &identity, &mut ended.dialled)).await {
            Ok(dialled) => dialled,
            Err(error) => {
                ended.reason = Some(respond::verdict(&error).reason);
                ended.detail = error.source.map(|source| source.to_string().into());
                return reset(client.tcp());
            }
        };
    let client = RefCell::new(client);
    let mut from_endpoint = Buffer::default();
    let ends =
        Ends { client: &client, from_client: &mut buffer, endpoint: &mut endpoint, from_endpoint: &mut from_endpoint };
    let count = &mut |received, sent| {
        found.stats.received_bytes.add(received);
        found.stats.sent_bytes.add(sent);
    };
    let moved = tunnel::run(ends, &mut Timer::default(), count).await;
    (ended.received, ended.sent, ended.reason) = (moved.from_client, moved.from_endpoint, moved.reason);
    if ended.reason.is_some() {
        backend.stats.failures.increment("tunnel");
        reset(client.borrow().tcp());
        reset(endpoint.tcp());
    }
}

/// The backend whose turn it is, or why there is none, by the names that requests have for it.
fn choose_backend(
    incoming: &Incoming,
    found: &FoundForward,
) -> Result<Rc<BackendState>, (&'static str, Option<Arc<str>>)> {
    match found.forward.choose() {
        None => Err(("no_backend", None)),
        Some(Target::Invalid(why)) => Err(("invalid_backend", Some(why.clone()))),
        Some(Target::Backend(backend)) if !incoming.is_opaque() && !backend.is_usable() => {
            Err(("invalid_backend_tls", None))
        }
        Some(Target::Backend(backend)) if !backend.has_endpoints() => Err(("no_endpoints", None)),
        Some(Target::Backend(backend)) => Ok(backend.clone()),
    }
}
