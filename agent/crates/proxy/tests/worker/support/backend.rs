//! Backends: one that speaks raw bytes by a script, and an HTTP server that tells what it got.

use std::{
    convert::Infallible,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};

/// A server that runs `script` on each connection, with its number.
pub(crate) fn scripted(script: impl Fn(usize, TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let script = Arc::new(script);
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let (script, stream) = (script.clone(), stream.unwrap());
            stream.set_nodelay(true).unwrap();
            std::thread::spawn(move || script(number, stream));
        }
    });
    addr
}

/// Reads up to the end of a head; returns it with what was read behind it. Empty at the end of the stream.
pub(crate) fn read_head(stream: &mut TcpStream) -> (String, Vec<u8>) {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let rest = bytes.split_off(end + 4);
            return (String::from_utf8(bytes).unwrap(), rest);
        }
        match stream.read(&mut chunk) {
            Ok(0) | Err(_) => return (String::new(), Vec::new()),
            Ok(count) => bytes.extend_from_slice(&chunk[..count]),
        }
    }
}

/// What a head says of its body's length.
pub(crate) fn content_length(head: &str) -> usize {
    let lower = head.to_ascii_lowercase();
    let value = lower.lines().find_map(|line| line.strip_prefix("content-length:"));
    value.map_or(0, |value| value.trim().parse().unwrap())
}

/// Reads exactly `count` bytes, of which `bytes` are there.
pub(crate) fn read_rest(stream: &mut TcpStream, mut bytes: Vec<u8>, count: usize) -> Vec<u8> {
    let mut chunk = [0; 4096];
    while bytes.len() < count {
        let read = stream.read(&mut chunk).unwrap();
        assert!(read > 0, "closed within a body");
        bytes.extend_from_slice(&chunk[..read]);
    }
    bytes
}

pub(crate) fn respond(stream: &mut TcpStream, body: &str) {
    let text = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let _ = stream.write_all(text.as_bytes());
}

/// A server for HTTP/1.1 and HTTP/2 that answers with the request's line, fields, body and trailers as text, the body's
/// first bytes at once, and a trailer `x-sum` when the path ends with `trailers`.
pub(crate) struct Echo {
    pub(crate) addr: SocketAddr,
    /// Connections accepted.
    pub(crate) connections: Arc<AtomicUsize>,
}

impl Echo {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let addr = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = connections.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        std::thread::spawn(move || runtime.block_on(accept(listener, count)));
        Self { addr, connections }
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

async fn accept(listener: TcpListener, count: Arc<AtomicUsize>) {
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        count.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            let server = auto::Builder::new(TokioExecutor::new());
            let _ = server.serve_connection(TokioIo::new(stream), service_fn(echo)).await;
        });
    }
}

async fn echo(request: Request<Incoming>) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
    let (parts, body) = request.into_parts();
    let mut text = format!("{} {} {:?}\n", parts.method, parts.uri, parts.version);
    for (name, value) in &parts.headers {
        text.push_str(&format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes())));
    }
    text.push('\n');
    let has_trailers = parts.uri.path().ends_with("trailers");
    let collected = body.collect().await;
    let mut frames = Vec::new();
    if let Ok(collected) = collected {
        let trailers = collected.trailers().cloned();
        text.push_str(&String::from_utf8_lossy(&collected.to_bytes()));
        for (name, value) in trailers.iter().flatten() {
            text.push_str(&format!("\ntrailer {name}: {}", String::from_utf8_lossy(value.as_bytes())));
        }
    }
    frames.push(Ok(Frame::data(Bytes::from(text))));
    if has_trailers {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", "42".parse().unwrap());
        frames.push(Ok(Frame::trailers(trailers)));
    }
    let body = StreamBody::new(futures_util::stream::iter(frames));
    let mut response = Response::new(BodyExt::boxed(body));
    response.headers_mut().insert("x-backend", "echo".parse().unwrap());
    if has_trailers {
        response.headers_mut().insert("trailer", "x-sum".parse().unwrap());
    }
    Ok(response)
}
