//! Bytes as they are: what no HTTP library would send, and what came back without interpretation.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, timeout_at},
};

use crate::client::{Failure, Stream, Target};

/// How a conversation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The peer closed its side.
    Closed,
    /// The peer reset the connection.
    Reset,
    /// The peer kept the connection open for as long as was waited.
    Open,
}

/// A connection without a protocol.
pub struct RawConnection {
    stream: Box<dyn Stream>,
    unread: Vec<u8>,
}

impl RawConnection {
    /// Opens a connection.
    ///
    /// # Errors
    /// How the attempt failed.
    pub async fn connect(target: &Target) -> Result<Self, Failure> {
        Ok(Self { stream: target.connect().await?.0, unread: Vec::new() })
    }

    /// Sends bytes.
    ///
    /// # Errors
    /// When the peer has closed or reset.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let sent = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        sent.await.map_err(|error| Failure::from_io(&error))
    }

    /// Sends bytes one packet at a time, with a pause that lets each arrive alone.
    ///
    /// # Errors
    /// When the peer has closed or reset.
    pub async fn send_in_pieces(&mut self, bytes: &[u8], size: usize) -> Result<(), Failure> {
        for piece in bytes.chunks(size) {
            self.send(piece).await?;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    /// Closes the sending side.
    pub async fn finish(&mut self) {
        let _ = self.stream.shutdown().await;
    }

    /// Reads whatever comes until the peer ends or `limit` has passed.
    pub async fn read_to_end(&mut self, limit: Duration) -> (Vec<u8>, End) {
        let deadline = Instant::now() + limit;
        let mut all = std::mem::take(&mut self.unread);
        let mut buffer = [0; 16 * 1024];
        loop {
            match timeout_at(deadline, self.stream.read(&mut buffer)).await {
                Err(_) => return (all, End::Open),
                Ok(Ok(0)) => return (all, End::Closed),
                Ok(Ok(read)) => all.extend_from_slice(&buffer[..read]),
                Ok(Err(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof => return (all, End::Closed),
                Ok(Err(_)) => return (all, End::Reset),
            }
        }
    }

    /// Reads one HTTP/1.1 answer with `Content-Length` or without a body.
    ///
    /// # Errors
    /// When the peer ends or `limit` passes before it is complete.
    pub async fn read_reply(&mut self, limit: Duration) -> Result<RawReply, Failure> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some((reply, length)) = parse_reply(&self.unread) {
                self.unread.drain(..length);
                return Ok(reply);
            }
            let mut buffer = [0; 16 * 1024];
            let read = timeout_at(deadline, self.stream.read(&mut buffer)).await.map_err(|_| Failure::Stalled)?;
            match read.map_err(|error| Failure::from_io(&error))? {
                0 => return Err(Failure::Closed),
                read => self.unread.extend_from_slice(&buffer[..read]),
            }
        }
    }
}

/// An answer as it stood on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawReply {
    /// Status code.
    pub status: u16,
    /// Header fields in order, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Body by `Content-Length`.
    pub body: Vec<u8>,
}

impl RawReply {
    /// First value of a header field (name in lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }
}

/// Status codes of all the answers in a text, in order.
pub fn statuses(bytes: &[u8]) -> Vec<u16> {
    String::from_utf8_lossy(bytes)
        .match_indices("HTTP/1.")
        .filter_map(|(at, _)| {
            let text = String::from_utf8_lossy(bytes);
            text.get(at + 9..at + 12).and_then(|code| code.parse().ok())
        })
        .collect()
}

fn parse_reply(bytes: &[u8]) -> Option<(RawReply, usize)> {
    let head_end = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&bytes[..head_end]);
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers.iter().find(|(name, _)| name == "content-length").and_then(|(_, value)| value.parse().ok());
    let end = head_end + length.unwrap_or(0);
    let body = bytes.get(head_end..end)?.to_vec();
    Some((RawReply { status, headers, body }, end))
}
