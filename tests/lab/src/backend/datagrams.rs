//! A UDP server whose answers tell what reached it.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::Context;
use tokio::{net::UdpSocket, task::JoinHandle};

use crate::island::Island;

/// Longest payload over IPv4: 65,535 bytes less the headers of IP and UDP.
pub const LONGEST_DATAGRAM: usize = 65_507;

/// Answers every datagram with `NAME:` and the datagram, or with the datagram alone when that would be too long for one.
#[derive(Debug)]
pub struct DatagramBackend {
    /// Its name.
    pub name: String,
    /// Where it listens.
    pub addr: SocketAddr,
    received: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl DatagramBackend {
    /// Starts a server on an island.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn start(island: &Island, name: &str, addr: SocketAddr) -> anyhow::Result<Self> {
        let socket = island.run(UdpSocket::bind(addr)).with_context(|| format!("backend {name} on {addr}"))?;
        let addr = socket.local_addr()?;
        let received = Arc::new(AtomicU64::new(0));
        let task = island.spawn(answer(socket, format!("{name}:"), received.clone()));
        Ok(Self { name: name.to_owned(), addr, received, task })
    }

    /// Datagrams received so far.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

impl Drop for DatagramBackend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(socket: UdpSocket, name: String, received: Arc<AtomicU64>) {
    let mut buffer = vec![0; LONGEST_DATAGRAM + name.len() + 1];
    buffer[..name.len()].copy_from_slice(name.as_bytes());
    loop {
        // An error is what a client's host said about an answer.
        let Ok((length, peer)) = socket.recv_from(&mut buffer[name.len()..]).await else { continue };
        received.fetch_add(1, Ordering::Relaxed);
        let whole = name.len() + length;
        let answer = if whole <= LONGEST_DATAGRAM { &buffer[..whole] } else { &buffer[name.len()..whole] };
        let _ = socket.send_to(answer, peer).await;
    }
}
