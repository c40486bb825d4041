//! Idle connections, thousands of them, in a process of their own because descriptors are counted by process.
//!
//! Each connection sends one request first and reads its answer, so that it is a connection that the proxy knows. Lines
//! on standard output: `holding N`; on `check` on standard input: `open N` (still open), then again at its end.

use std::{
    io::{self, BufRead, Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

/// Opens the connections and serves standard input until it ends.
///
/// # Errors
/// When not all connections could be opened within `limit`; says how many were.
pub fn run(addr: SocketAddr, count: usize, limit: Duration) -> anyhow::Result<()> {
    let start = Instant::now();
    let mut held = Vec::with_capacity(count);
    while held.len() < count {
        anyhow::ensure!(start.elapsed() < limit, "only {} of {count} connections after {limit:?}", held.len());
        match open(addr) {
            Ok(stream) => held.push(stream),
            Err(error) => anyhow::bail!("connection {} of {count}: {error}", held.len() + 1),
        }
    }
    println!("holding {}", held.len());
    io::stdout().flush()?;
    for line in io::stdin().lock().lines() {
        if line?.trim() == "check" {
            held.iter_mut().for_each(|stream| drop(stream.set_nonblocking(true)));
            let open = held.iter_mut().filter_map(is_open).count();
            println!("open {open}");
            io::stdout().flush()?;
        }
    }
    Ok(())
}

fn open(addr: SocketAddr) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&addr, Duration::from_secs(10))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET /hold HTTP/1.1\r\nhost: hold.example.com\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed before the answer"));
        }
        answer.extend_from_slice(&buffer[..read]);
        if is_complete(&answer) {
            return Ok(stream);
        }
    }
}

fn is_complete(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    body.len() >= length.unwrap_or(0)
}

/// An idle connection has nothing to read and has not ended.
fn is_open(stream: &mut TcpStream) -> Option<()> {
    match stream.read(&mut [0; 1]) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Some(()),
        _ => None,
    }
}
