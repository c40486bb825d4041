//! A backend that terminates TLS itself, and may demand certificates of whoever connects.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::Context;
use rustls::ServerConfig;
use tokio::{net::TcpListener, sync::watch};
use tokio_rustls::TlsAcceptor;

use super::{Counts, Phase, listen, serve};
use crate::island::Island;

/// A server like [`Backend`](super::Backend) over TLS, whose settings can be replaced while it runs.
#[derive(Debug)]
pub struct SecureBackend {
    /// What it has seen.
    pub counts: Arc<Counts>,
    failures: Arc<AtomicU64>,
    settings: watch::Sender<Arc<ServerConfig>>,
    phase: watch::Sender<Phase>,
}

impl SecureBackend {
    /// Starts a server on an island.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn start(island: &Island, name: &str, addr: SocketAddr, settings: Arc<ServerConfig>) -> anyhow::Result<Self> {
        let listener = island.run(listen(addr)).with_context(|| format!("backend {name} on {addr}"))?;
        let (counts, failures) = (Arc::new(Counts::default()), Arc::new(AtomicU64::new(0)));
        let (settings, current) = watch::channel(settings);
        let (phase, follow) = watch::channel(Phase::Serving);
        let acceptor = Acceptor { name: Arc::from(name), counts: counts.clone(), failures: failures.clone(), current };
        island.spawn(acceptor.run(listener, follow));
        Ok(Self { counts, failures, settings, phase })
    }

    /// Other settings for connections to come.
    pub fn replace(&self, settings: Arc<ServerConfig>) {
        self.settings.send_replace(settings);
    }

    /// Requests begun so far.
    pub fn requests(&self) -> u64 {
        self.counts.requests.load(Ordering::Relaxed)
    }

    /// Handshakes that came to nothing.
    pub fn failed_handshakes(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }
}

impl Drop for SecureBackend {
    fn drop(&mut self) {
        self.phase.send_replace(Phase::Gone);
    }
}

struct Acceptor {
    name: Arc<str>,
    counts: Arc<Counts>,
    failures: Arc<AtomicU64>,
    current: watch::Receiver<Arc<ServerConfig>>,
}

impl Acceptor {
    async fn run(self, listener: TcpListener, mut phase: watch::Receiver<Phase>) {
        loop {
            let (stream, peer) = tokio::select! {
                _ = phase.changed() => return,
                Ok(accepted) = listener.accept() => accepted,
            };
            self.counts.connections.fetch_add(1, Ordering::Relaxed);
            let acceptor = TlsAcceptor::from(self.current.borrow().clone());
            let (name, counts, failures) = (self.name.clone(), self.counts.clone(), self.failures.clone());
            let phase = phase.clone();
            tokio::spawn(async move {
                match acceptor.accept(stream).await {
                    Ok(stream) => serve(stream, peer, name, counts, phase).await,
                    Err(_) => {
                        failures.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    }
}
