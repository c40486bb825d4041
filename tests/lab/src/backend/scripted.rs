//! A backend below HTTP: it reads request heads and does what no well-behaved server does.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Context;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
};

use super::listen;
use crate::island::Island;

/// What happens to the requests of each connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Script {
    /// Closes after the head of the first request, without an answer.
    CloseAtOnce,
    /// Resets after the head of the first request.
    ResetAtOnce,
    /// Answers the first request and promises to keep the connection; closes on the head of the second: the race of an
    /// idle connection closed by the server while a request is on its way.
    CloseOnReuse,
    /// As [`Script::CloseOnReuse`] with RST.
    ResetOnReuse,
    /// Answers each request with these bytes.
    Bytes(Vec<u8>),
    /// Reads and never answers.
    Silence,
}

/// A server that follows a script.
#[derive(Debug)]
pub struct ScriptedBackend {
    /// Where it listens.
    pub addr: SocketAddr,
    requests: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl ScriptedBackend {
    /// Starts the server on an island.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn start(island: &Island, addr: SocketAddr, script: Script) -> anyhow::Result<Self> {
        let listener = island.run(listen(addr)).with_context(|| format!("scripted backend on {addr}"))?;
        let requests = Arc::new(AtomicU64::new(0));
        let counted = requests.clone();
        let task = island.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (script, counted) = (script.clone(), counted.clone());
                tokio::spawn(async move { drop(follow(stream, script, &counted).await) });
            }
        });
        Ok(Self { addr, requests, task })
    }

    /// Request heads read so far.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}

impl Drop for ScriptedBackend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn follow(mut stream: TcpStream, script: Script, requests: &AtomicU64) -> std::io::Result<()> {
    let _ = stream.set_nodelay(true);
    let mut unread = Vec::new();
    for count in 0.. {
        if !read_head(&mut stream, &mut unread).await? {
            return Ok(());
        }
        requests.fetch_add(1, Ordering::Relaxed);
        let is_reused = count > 0;
        match &script {
            Script::CloseAtOnce => return Ok(()),
            Script::CloseOnReuse if is_reused => return Ok(()),
            Script::ResetOnReuse if is_reused => return reset(&stream),
            Script::ResetAtOnce => return reset(&stream),
            Script::CloseOnReuse | Script::ResetOnReuse => {
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\nx-lab-backend: reuse\r\n\r\nfirst\n")
                    .await?;
            }
            Script::Bytes(bytes) => stream.write_all(bytes).await?,
            Script::Silence => tokio::time::sleep(Duration::from_secs(3600)).await,
        }
    }
    Ok(())
}

/// Closing with a linger of zero sends RST.
fn reset(stream: &TcpStream) -> std::io::Result<()> {
    socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO))
}

/// Reads to the end of a request head; whether there was one. Requests of these tests have no body.
async fn read_head(stream: &mut TcpStream, unread: &mut Vec<u8>) -> std::io::Result<bool> {
    let mut buffer = [0; 4096];
    loop {
        if let Some(end) = unread.windows(4).position(|window| window == b"\r\n\r\n") {
            unread.drain(..end + 4);
            return Ok(true);
        }
        match stream.read(&mut buffer).await? {
            0 => return Ok(false),
            read => unread.extend_from_slice(&buffer[..read]),
        }
    }
}
