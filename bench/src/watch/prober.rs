//! One client that asks for a host name a thousand times a second until it is served. Blocking, on a thread of its own: the
//! timers of a runtime are as coarse as the interval.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};

/// Between two requests, unless an answer takes longer.
pub(super) const INTERVAL: Duration = Duration::from_millis(1);
/// A route that is not served after this has been lost.
const LOST: Duration = Duration::from_secs(10);

/// The end of a probe.
#[derive(Clone, Copy, Debug)]
pub(super) struct Served {
    /// When the first answer with status 200 was read.
    pub(super) at: Instant,
    /// Requests sent.
    pub(super) asked: u64,
    /// How long that took.
    pub(super) took: Duration,
}

/// Asks for a host name on one connection; calls `ready` once the first answer has said that there is no such host.
///
/// # Errors
/// The name is served before, or never, or something other than 404 comes first.
pub(super) fn probe(address: SocketAddr, host: &str, ready: impl FnOnce()) -> anyhow::Result<Served> {
    let stream = TcpStream::connect_timeout(&address, LOST).context("connect to the Gateway")?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LOST))?;
    let mut connection = BufReader::new(stream);
    let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let status = ask(&mut connection, &request)?;
    ensure!(status == 404, "{host} was answered with {status} before its route was made");
    ready();
    let begun = Instant::now();
    let (mut next, mut asked) = (begun, 0);
    loop {
        let status = ask(&mut connection, &request)?;
        let at = Instant::now();
        asked += 1;
        match status {
            200 => return Ok(Served { at, asked, took: at - begun }),
            404 => ensure!(at - begun < LOST, "{host} was not served within {LOST:?}"),
            other => bail!("{host} was answered with {other}"),
        }
        // What came late is not caught up on.
        next = (next + INTERVAL).max(at);
        thread::sleep(next - at);
    }
}

/// Sends a request and reads the whole answer; returns its status.
fn ask(connection: &mut BufReader<TcpStream>, request: &str) -> io::Result<u16> {
    connection.get_mut().write_all(request.as_bytes())?;
    let mut line = String::new();
    connection.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|word| word.parse().ok());
    let status = status.ok_or_else(|| io::Error::other(format!("no answer but {line:?}")))?;
    let mut length = 0;
    loop {
        line.clear();
        connection.read_line(&mut line)?;
        let Some((name, value)) = line.split_once(':') else { break };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().map_err(io::Error::other)?;
        }
    }
    io::copy(&mut connection.take(length), &mut io::sink())?;
    Ok(status)
}
