//! A connection of a client from accept to the loop of its protocol: which frontend, TLS by SNI, HTTP/1.1 or HTTP/2.

use std::{cell::RefCell, future::poll_fn, io, rc::Rc, sync::Arc, task::Poll};

use bytes::Bytes;
use rustls::{ProtocolVersion, server::Acceptor};
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    time::{Instant, timeout_at},
};
use tokio_rustls::{LazyConfigAcceptor, TlsStream};

use super::{client::Client, h1::Http1, h2};
use crate::{
    certificates::UNRECOGNIZED_NAME,
    decide::ConnectionFacts,
    net::{
        buffer::{BUFFER, Buffer},
        stream::Stream,
        timer::Timer,
    },
    shard::{ConnectionGuard, Shard},
    timeouts,
};

/// First bytes of an HTTP/2 connection (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Serves a connection until it ends.
pub async fn run(shard: Rc<Shard>, tcp: TcpStream, facts: ConnectionFacts, guard: ConnectionGuard) {
    if !facts.is_tls {
        // Boxed: what only the start needs must not stay in the task while the connection idles.
        let Some((tcp, buffer)) = Box::pin(sniff(&shard, tcp, &guard)).await else { return };
        let client = Client::new(facts, None);
        return serve(shard, client, Stream::Tcp(tcp), buffer, &guard).await;
    }
    let (stream, sni) = match Box::pin(handshake(&shard, tcp, &facts)).await {
        Ok(accepted) => accepted,
        Err(reason) => {
            shard.stats.connections.handshake_failures.increment(reason);
            return;
        }
    };
    shard.stats.connections.handshakes.increment();
    let version = match stream.get_ref().1.protocol_version() {
        Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
        _ => "TLSv1.3",
    };
    let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let client = Client::new(ConnectionFacts { sni, ..facts }, Some(version));
    let stream = Stream::Tls(Box::new(TlsStream::Server(stream)));
    if is_h2 {
        Box::pin(h2::run(shard, client, stream, Bytes::new(), &guard)).await;
    } else {
        serve(shard, client, stream, Buffer::default(), &guard).await;
    }
}

async fn serve(shard: Rc<Shard>, client: Client, stream: Stream, buffer: Buffer, guard: &ConnectionGuard) {
    if buffer.window().starts_with(PREFACE) {
        let prefix = Bytes::copy_from_slice(buffer.window());
        drop(buffer);
        Box::pin(h2::run(shard, client, stream, prefix, guard)).await;
    } else {
        Http1::new(shard, client, Rc::new(RefCell::new(stream)), buffer).run(guard).await;
    }
}

/// Reads until it is clear whether the client speaks HTTP/2 with prior knowledge. `None` when it has gone.
async fn sniff(shard: &Shard, mut tcp: TcpStream, guard: &ConnectionGuard) -> Option<(TcpStream, Buffer)> {
    let mut timer = Timer::default();
    timer.set(Some(Instant::now() + timeouts::CLIENT_IDLE));
    let mut buffer = Buffer::default();
    let (mut is_registered, mut is_leaving) = (false, false);
    let is_open = poll_fn(|cx| {
        if !is_registered {
            guard.set_waker(cx.waker());
            is_registered = true;
        }
        loop {
            let window = buffer.window();
            if !window.is_empty() && (window.len() >= PREFACE.len() || !PREFACE.starts_with(window)) {
                return Poll::Ready(true);
            }
            match buffer.poll_fill(&mut tcp, BUFFER, cx) {
                Poll::Ready(Ok(count)) if count > 0 => {}
                Poll::Ready(_) => return Poll::Ready(false),
                Poll::Pending if shard.connections.is_draining() && !is_leaving => {
                    is_leaving = true;
                    timer.set(Some(Instant::now() + timeouts::DRAIN_IDLE));
                }
                Poll::Pending => return timer.poll_expired(cx).map(|()| false),
            }
        }
    })
    .await;
    is_open.then_some((tcp, buffer))
}

type Accepted = (tokio_rustls::server::TlsStream<TcpStream>, Option<Arc<str>>);

async fn handshake(shard: &Shard, tcp: TcpStream, facts: &ConnectionFacts) -> Result<Accepted, &'static str> {
    let deadline = Instant::now() + timeouts::TLS_HANDSHAKE;
    let hello = timeout_at(deadline, LazyConfigAcceptor::new(Acceptor::default(), tcp)).await;
    let mut start = hello.map_err(|_| "timeout")?.map_err(|error| failure_reason(&error, "client_hello"))?;
    let sni = start.client_hello().server_name().map(normal_name);
    let config = {
        let tables = shard.tables.borrow();
        let frontend = tables.find_frontend(facts.local).ok_or("not_a_frontend")?;
        frontend.server_config(sni.as_deref())
    };
    match config {
        Ok(config) => {
            let accepted = timeout_at(deadline, start.into_stream(config)).await;
            let stream = accepted.map_err(|_| "timeout")?.map_err(|error| failure_reason(&error, "handshake"))?;
            Ok((stream, sni))
        }
        Err(reason) => {
            // The client learns why; whether it does is its own business.
            let _ = timeout_at(deadline, start.io.write_all(&UNRECOGNIZED_NAME)).await;
            let _ = start.io.shutdown().await;
            Err(reason)
        }
    }
}

fn normal_name(name: &str) -> Arc<str> {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase().into()
}

fn failure_reason(error: &io::Error, otherwise: &'static str) -> &'static str {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => "client_closed",
        _ => otherwise,
    }
}
