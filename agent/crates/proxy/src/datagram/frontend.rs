//! The socket of a UDP frontend on one shard: reads what clients send, and is what their answers go out of.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    rc::Rc,
};

use tidegate_model::FrontendKey;
use tokio::net::UdpSocket;

use super::sys;
use crate::shard::Shard;

/// Datagrams taken in one go, between which the shard's other work is done.
const BATCH: usize = 32;

/// A UDP frontend.
#[derive(Debug)]
pub struct FrontendSocket {
    /// The frontend. What its socket is bound to may be a wildcard (`--kernel=off`).
    pub key: FrontendKey,
    /// Its socket.
    pub socket: UdpSocket,
}

impl FrontendSocket {
    /// Takes a socket that the agent has bound.
    ///
    /// # Errors
    /// The system's, when it cannot be waited for.
    pub fn new(key: FrontendKey, socket: OwnedFd) -> io::Result<Rc<Self>> {
        let socket = std::net::UdpSocket::from(socket);
        socket.set_nonblocking(true)?;
        Ok(Rc::new(Self { key, socket: UdpSocket::from_std(socket)? }))
    }

    /// Datagrams that found no room in its queue since it was made, whoever read from it then.
    pub(super) fn count_overrun(&self) -> u64 {
        sys::count_drops(self.socket.as_fd())
    }
}

/// Receives until the task is aborted.
pub async fn run(shard: Rc<Shard>, frontend: Rc<FrontendSocket>) {
    while frontend.socket.readable().await.is_ok() {
        for _ in 0..BATCH {
            let mut buffer = shard.datagrams.buffer.borrow_mut();
            match frontend.socket.try_recv_from(&mut buffer) {
                Ok((length, client)) => {
                    let client = SocketAddr::new(client.ip().to_canonical(), client.port());
                    shard.datagrams.take(&shard, &frontend, client, &buffer[..length]);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // Of an earlier answer, or for lack of memory: the socket goes on.
                Err(_) => shard.stats.datagrams.dropped.increment("receive"),
            }
        }
        tokio::task::yield_now().await;
    }
    tracing::error!(frontend = %frontend.key, "the socket of the frontend can no longer be waited for");
}
