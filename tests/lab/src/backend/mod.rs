//! Backends: real servers whose answers tell what reached them, and scripted ones that misbehave on purpose.

mod datagrams;
mod echo;
mod scripted;
mod secure;
mod tls;

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Context;
use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::watch,
};

pub use self::{
    datagrams::{DatagramBackend, LONGEST_DATAGRAM},
    scripted::{Script, ScriptedBackend},
    secure::SecureBackend,
    tls::TlsEcho,
};
use crate::island::Island;

/// Response header field with the name of the backend.
pub const NAME_HEADER: &str = "x-lab-backend";

/// What a backend has seen.
#[derive(Debug, Default)]
pub struct Counts {
    /// Connections accepted.
    pub connections: AtomicU64,
    /// Requests begun.
    pub requests: AtomicU64,
    /// Requests being answered now.
    pub active: AtomicU64,
    /// Paths of the last requests, at most [`PATHS`].
    paths: Mutex<VecDeque<String>>,
}

/// Paths that a backend remembers.
const PATHS: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Serving,
    /// Accepts nothing, ends connections when they are idle.
    Draining,
    /// Drops everything.
    Gone,
}

/// An HTTP/1.1 and h2c server that answers with a description of the request. See `echo` for what a request can ask for.
#[derive(Debug)]
pub struct Backend {
    /// Its name, in every answer.
    pub name: String,
    /// Where it listens.
    pub addr: SocketAddr,
    /// What it has seen.
    pub counts: Arc<Counts>,
    phase: watch::Sender<Phase>,
}

impl Backend {
    /// Starts a server on an island.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn start(island: &Island, name: &str, addr: SocketAddr) -> anyhow::Result<Self> {
        let counts = Arc::new(Counts::default());
        let (phase, follow) = watch::channel(Phase::Serving);
        let listener = island.run(listen(addr)).with_context(|| format!("backend {name} on {addr}"))?;
        let addr = listener.local_addr()?;
        island.spawn(accept(listener, Arc::from(name), counts.clone(), follow));
        Ok(Self { name: name.to_owned(), addr, counts, phase })
    }

    /// Requests begun so far.
    pub fn requests(&self) -> u64 {
        self.counts.requests.load(Ordering::Relaxed)
    }

    /// Paths of the last requests in their order.
    pub fn paths(&self) -> Vec<String> {
        self.counts.paths.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> u64 {
        self.counts.connections.load(Ordering::Relaxed)
    }

    /// Stops accepting (new connections are refused) and ends the others once they are idle, as a server does on SIGTERM.
    pub fn drain(&self) {
        self.phase.send_replace(Phase::Draining);
    }

    /// Drops the listener and every connection at once.
    pub fn stop(&self) {
        self.phase.send_replace(Phase::Gone);
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Binds with `SO_REUSEADDR`, so that a backend can come back at once.
pub(crate) async fn listen(addr: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if addr.is_ipv6() { tokio::net::TcpSocket::new_v6() } else { tokio::net::TcpSocket::new_v4() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(1024)
}

async fn accept(listener: TcpListener, name: Arc<str>, counts: Arc<Counts>, mut phase: watch::Receiver<Phase>) {
    loop {
        tokio::select! {
            _ = phase.changed() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    let _ = stream.set_nodelay(true);
                    counts.connections.fetch_add(1, Ordering::Relaxed);
                    tokio::spawn(serve(stream, peer, name.clone(), counts.clone(), phase.clone()));
                }
                // Out of descriptors: the next round may have one.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }
}

async fn serve<S>(stream: S, peer: SocketAddr, name: Arc<str>, counts: Arc<Counts>, mut phase: watch::Receiver<Phase>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let builder = auto::Builder::new(TokioExecutor::new());
    let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let (name, counts) = (name.clone(), counts.clone());
        {
            let mut paths = counts.paths.lock().unwrap_or_else(PoisonError::into_inner);
            paths.push_back(request.uri().path().to_owned());
            let surplus = paths.len().saturating_sub(PATHS);
            paths.drain(..surplus);
        }
        async move {
            counts.requests.fetch_add(1, Ordering::Relaxed);
            counts.active.fetch_add(1, Ordering::Relaxed);
            let answer = echo::answer(request, peer, &name).await;
            counts.active.fetch_sub(1, Ordering::Relaxed);
            answer
        }
    });
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = phase.wait_for(|phase| *phase != Phase::Serving) => {}
    }
    if *phase.borrow() == Phase::Gone {
        return;
    }
    connection.as_mut().graceful_shutdown();
    tokio::select! {
        _ = connection.as_mut() => {}
        _ = phase.wait_for(|phase| *phase == Phase::Gone) => {}
    }
}
