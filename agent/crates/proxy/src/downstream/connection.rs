//! A connection of a client from accept to the loop of its protocol: which frontend, TLS by SNI, HTTP/1.1, HTTP/2, or a
//! forward that reads nothing of it.

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    rc::Rc,
    sync::Arc,
    task::{Poll, ready},
};

use bytes::Bytes;
use rustls::{ProtocolVersion, ServerConfig, server::Acceptor};
use tidegate_model::{Protocol, TlsMode};
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    time::{Instant, timeout_at},
};
use tokio_rustls::{StartHandshake, TlsStream};

use super::{
    client::Client,
    forward::{self, Incoming},
    h1::Http1,
    h2,
    hello::{HelloScanner, MAX_HELLO},
};
use crate::{
    certificates::UNRECOGNIZED_NAME,
    decide::ConnectionFacts,
    net::{
        buffer::{BUFFER, Buffer},
        stream::Stream,
        timer::Timer,
    },
    shard::{ConnectionGuard, Shard},
    tables::{FoundForward, Frontend, ListenerState, Opening},
    timeouts,
};

/// First bytes of an HTTP/2 connection (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Serves a connection until it ends.
pub async fn run(shard: Rc<Shard>, tcp: TcpStream, facts: ConnectionFacts, opening: Opening, guard: ConnectionGuard) {
    match opening {
        Opening::Http => {
            // Boxed: what only the start needs must not stay in the task while the connection idles.
            let Some((tcp, buffer)) = Box::pin(sniff(&shard, tcp, &guard)).await else { return };
            serve(shard, Client::new(facts, None), Stream::Tcp(tcp), buffer, &guard).await;
        }
        Opening::Tcp => Box::pin(run_tcp(shard, tcp, facts)).await,
        Opening::Tls => match Box::pin(accept_tls(&shard, tcp, facts)).await {
            Ok(Accepted::Http1(client, stream)) => serve(shard, client, stream, Buffer::default(), &guard).await,
            Ok(Accepted::Http2(client, stream)) => {
                Box::pin(h2::run(shard, client, stream, Bytes::new(), &guard)).await;
            }
            Ok(Accepted::Forward(incoming, found, stream, buffer)) => {
                Box::pin(forward::run(&shard, incoming, found, stream, buffer)).await;
            }
            Err(reason) => shard.stats.connections.handshake_failures.increment(reason),
        },
    }
}

/// Forwards a connection to a frontend of protocol TCP.
async fn run_tcp(shard: Rc<Shard>, tcp: TcpStream, facts: ConnectionFacts) {
    let listener = shard.tables.borrow().find_frontend(facts.local).and_then(Frontend::find_tcp_listener).cloned();
    // Gone since it was accepted.
    let Some(listener) = listener else { return shard.stats.connections.refused.increment("not_a_frontend") };
    let incoming = Incoming { facts, listener, tls: None, started: Instant::now() };
    match incoming.find_forward() {
        Some(found) => forward::run(&shard, incoming, found, Stream::Tcp(tcp), Buffer::default()).await,
        None => {
            forward::reset(&tcp);
            incoming.refuse(&shard);
        }
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

type TlsServer = tokio_rustls::server::TlsStream<TcpStream>;

/// What a TLS connection turned out to be.
enum Accepted {
    /// Requests over TLS that ends here, in the version that ALPN says.
    Http1(Client, Stream),
    Http2(Client, Stream),
    /// Bytes for a forward, with what was read of them.
    Forward(Incoming, FoundForward, Stream, Buffer),
}

/// Reads the client's greeting, and ends TLS where the listener that is meant wants it. An error is the reason in the counter
/// of failed handshakes.
async fn accept_tls(shard: &Shard, mut tcp: TcpStream, facts: ConnectionFacts) -> Result<Accepted, &'static str> {
    let started = Instant::now();
    let deadline = started + timeouts::TLS_HANDSHAKE;
    let mut buffer = Buffer::default();
    let greeted = timeout_at(deadline, read_hello(&mut tcp, &mut buffer)).await;
    let facts = ConnectionFacts { sni: greeted.map_err(|_| "timeout")??, ..facts };
    let (listener, forwards) = {
        let tables = shard.tables.borrow();
        let frontend = tables.find_frontend(facts.local).ok_or("not_a_frontend")?;
        (frontend.find_tls_listener(facts.sni.as_deref()).cloned(), frontend.forwards_tls())
    };
    let Some(listener) = listener else {
        if !forwards {
            return refuse_name(tcp, deadline, UNKNOWN_NAME).await;
        }
        // The conformance suite of the Gateway API takes nothing else as a refusal by a listener of protocol TLS.
        forward::reset(&tcp);
        return Err(UNKNOWN_NAME);
    };
    if listener.source.protocol == Protocol::Https {
        let stream = terminate(shard, tcp, buffer, &listener, deadline).await?;
        let client = Client::new(facts, Some(version_of(&stream)));
        let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let stream = Stream::Tls(Box::new(TlsStream::Server(stream)));
        return Ok(if is_h2 { Accepted::Http2(client, stream) } else { Accepted::Http1(client, stream) });
    }
    let mut incoming = Incoming { facts, listener, tls: None, started };
    let Some(found) = incoming.find_forward() else {
        forward::reset(&tcp);
        incoming.refuse(shard);
        return Err("no_route");
    };
    if incoming.listener.source.tls.as_ref().is_some_and(|tls| tls.mode == TlsMode::Passthrough) {
        return Ok(Accepted::Forward(incoming, found, Stream::Tcp(tcp), buffer));
    }
    let stream = terminate(shard, tcp, buffer, &incoming.listener, deadline).await?;
    incoming.tls = Some(version_of(&stream));
    let stream = Stream::Tls(Box::new(TlsStream::Server(stream)));
    Ok(Accepted::Forward(incoming, found, stream, Buffer::default()))
}

/// Reads until the ClientHello is whole; it stays in the buffer. Returns the name of the server that is meant.
async fn read_hello(tcp: &mut TcpStream, buffer: &mut Buffer) -> Result<Option<Arc<str>>, &'static str> {
    let mut scanner = HelloScanner::default();
    poll_fn(|cx| {
        loop {
            match ready!(buffer.poll_fill(tcp, MAX_HELLO, cx)) {
                Ok(count) if count > 0 => {}
                Ok(_) => return Poll::Ready(Err("client_closed")),
                Err(error) => return Poll::Ready(Err(failure_reason(&error, "client_hello"))),
            }
            match scanner.find(buffer.window()) {
                Ok(None) => {}
                Ok(Some(hello)) => return Poll::Ready(Ok(hello.server_name)),
                Err(_) => return Poll::Ready(Err("client_hello")),
            }
        }
    })
    .await
}

/// No listener is for the name that a client sent, or for a client that sent none.
const UNKNOWN_NAME: &str = "unrecognized_name";

/// Tells a client that nobody has the name that it asked for.
async fn refuse_name<T>(mut tcp: TcpStream, deadline: Instant, reason: &'static str) -> Result<T, &'static str> {
    // Whether the client learns why is its own business.
    let _ = timeout_at(deadline, tcp.write_all(&UNRECOGNIZED_NAME)).await;
    let _ = tcp.shutdown().await;
    Err(reason)
}

/// Ends TLS here with the listener's certificate.
async fn terminate(
    shard: &Shard,
    tcp: TcpStream,
    buffer: Buffer,
    listener: &ListenerState,
    deadline: Instant,
) -> Result<TlsServer, &'static str> {
    let Some(config) = listener.server_config() else { return refuse_name(tcp, deadline, "no_certificate").await };
    let accepted = timeout_at(deadline, handshake(tcp, buffer, config)).await;
    let stream = accepted.map_err(|_| "timeout")?.map_err(|error| failure_reason(&error, "handshake"))?;
    shard.stats.connections.handshakes.increment();
    Ok(stream)
}

/// Shakes hands with a client whose ClientHello has been read.
async fn handshake(mut tcp: TcpStream, buffer: Buffer, config: Arc<ServerConfig>) -> io::Result<TlsServer> {
    let mut acceptor = Acceptor::default();
    let mut rest = buffer.window();
    let accepted = loop {
        if acceptor.read_tls(&mut rest)? == 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => break accepted,
            Ok(None) => {}
            Err((error, mut alert)) => {
                let mut bytes = Vec::new();
                alert.write(&mut bytes)?;
                tcp.write_all(&bytes).await?;
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
    };
    let start = StartHandshake::from_parts(accepted, tcp);
    // What came behind the ClientHello (early data) is the connection's.
    let feed = |connection: &mut rustls::ServerConnection| {
        while !rest.is_empty() && connection.read_tls(&mut rest).is_ok_and(|count| count > 0) {}
    };
    let stream = start.into_stream_with(config, feed);
    drop(buffer);
    stream.await
}

fn version_of(stream: &TlsServer) -> &'static str {
    match stream.get_ref().1.protocol_version() {
        Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
        _ => "TLSv1.3",
    }
}

fn failure_reason(error: &io::Error, otherwise: &'static str) -> &'static str {
    match error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::NoCertificatesPresented) => return "no_client_certificate",
        Some(rustls::Error::InvalidCertificate(_)) => return "invalid_client_certificate",
        _ => {}
    }
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => "client_closed",
        _ => otherwise,
    }
}
