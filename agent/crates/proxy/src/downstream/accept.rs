//! The accept loop of one listening socket on one shard.
//!
//! Fair: a burst of new connections is taken a few at a time, between which the open ones are served. The number varies,
//! so that shards that share a queue do not run in step. It never spins: without a file descriptor it closes what waits,
//! counts it, and pauses.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    rc::Rc,
};

use tidegate_model::control::SocketRole;
use tokio::{
    net::{TcpListener, TcpStream},
    time::sleep,
};

use super::connection;
use crate::{
    decide::ConnectionFacts,
    shard::{Connections, Shard},
    tables::Opening,
    timeouts,
};

/// Connections taken in one go: at least the first, at most the sum.
const BATCH: u32 = 4;
const BATCH_JITTER: u32 = 12;

/// Accepts until the task is aborted.
pub async fn run(shard: Rc<Shard>, listener: TcpListener, role: SocketRole) {
    let mut reserve = Reserve::new(&listener);
    loop {
        let batch = BATCH + shard.random.borrow_mut().below(BATCH_JITTER + 1);
        for _ in 0..batch {
            match listener.accept().await {
                Ok((tcp, peer)) => admit(&shard, tcp, peer, role),
                Err(error) if is_exhausted(&error) => {
                    shard.stats.connections.refused.increment("file_descriptors");
                    reserve.refuse_one(&listener).await;
                    sleep(timeouts::ACCEPT_BACKOFF).await;
                    break;
                }
                // The client gave up while it waited, or the network failed for it (accept(2)): not the socket's end.
                Err(_) => shard.stats.connections.refused.increment("accept"),
            }
        }
        tokio::task::yield_now().await;
    }
}

fn admit(shard: &Rc<Shard>, tcp: TcpStream, peer: SocketAddr, role: SocketRole) {
    let refuse = |reason| shard.stats.connections.refused.increment(reason);
    let Ok(local) = tcp.local_addr() else { return refuse("accept") };
    let local = match role {
        SocketRole::Steered { .. } => SocketAddr::new(local.ip().to_canonical(), local.port()),
        // Bound to a wildcard or a laptop's port: the frontend is what the agent said.
        SocketRole::Bound(key) => SocketAddr::new(key.addr, key.port),
    };
    let Some(opening) = shard.tables.borrow().find_frontend(local).map(|frontend| frontend.opening()) else {
        // Did not come through admission, or its listener has just gone.
        return refuse("not_a_frontend");
    };
    if tcp.set_nodelay(true).is_err() {
        return refuse("accept");
    }
    let Some(guard) = Connections::enter(shard) else { return refuse("connection_limit") };
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    let facts = ConnectionFacts { local, peer, is_tls: opening == Opening::Tls, sni: None };
    tokio::task::spawn_local(connection::run(shard.clone(), tcp, facts, opening, guard));
}

fn is_exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

/// A descriptor given up when none is left, so that a waiting client is refused rather than left in the queue.
struct Reserve(Option<OwnedFd>);

impl Reserve {
    fn new(listener: &TcpListener) -> Self {
        Self(listener.as_fd().try_clone_to_owned().ok())
    }

    async fn refuse_one(&mut self, listener: &TcpListener) {
        self.0 = None;
        // Dropped at once; when somebody else took the descriptor, the client waits on.
        let refused = tokio::time::timeout(timeouts::ACCEPT_BACKOFF, listener.accept()).await;
        drop(refused);
        *self = Self::new(listener);
    }
}
