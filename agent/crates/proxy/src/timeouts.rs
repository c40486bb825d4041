//! Every time limit of the request path, with its reason. A rule's own limits (Gateway API `timeouts`) come on top.

use std::time::Duration;

/// From accept to the end of the TLS handshake: two round trips of a bad mobile link, with retransmissions.
pub const TLS_HANDSHAKE: Duration = Duration::from_secs(10);

/// From the first byte of a request to the end of its head. A head that takes longer is an attack that holds sockets.
pub const REQUEST_HEAD: Duration = Duration::from_secs(15);

/// A client connection without a request under way. Above the 60 s for which browsers and load balancers reuse one.
pub const CLIENT_IDLE: Duration = Duration::from_secs(75);

/// From one byte of a request body to the next, while the proxy waits for it.
pub const BODY_PROGRESS: Duration = Duration::from_secs(60);

/// No byte moved in either direction of a request: the default limit of long polls, server-sent events and gRPC streams.
pub const STREAM_IDLE: Duration = Duration::from_secs(300);

/// A client that takes no byte of a response that is there for it.
pub const RESPONSE_WRITE_STALL: Duration = Duration::from_secs(60);

/// A client that closed its sending side still gets its response for so long.
pub const HALF_CLOSED: Duration = Duration::from_secs(30);

/// How long a closing connection reads on, so that a reset does not destroy the response on its way (RFC 9112 section 9.6).
pub const LINGER: Duration = Duration::from_secs(2);

/// TCP connection to an endpoint: a cluster network answers in milliseconds, one lost SYN costs one second.
pub const UPSTREAM_CONNECT: Duration = Duration::from_secs(5);

/// A client's idle connection to a worker that drains: long enough for the next request of a busy client, which is served
/// and told that the connection ends; closing at once would lose requests that are on their way.
pub const DRAIN_IDLE: Duration = Duration::from_secs(5);

/// TLS and HTTP/2 handshakes with an endpoint.
pub const UPSTREAM_HANDSHAKE: Duration = Duration::from_secs(5);

/// A UDP session without a datagram in either direction. Twice what common resolvers and games wait for; QUIC's usual idle
/// timeout of 30 s fits in (RFC 9000 section 10.1.2 tells of NATs that forget sooner).
pub const DATAGRAM_IDLE: Duration = Duration::from_secs(60);

/// How often idle UDP sessions are looked for.
pub const DATAGRAM_SWEEP: Duration = Duration::from_secs(1);

/// An upstream connection without a request: below the 60 to 75 s after which common servers close theirs.
pub const UPSTREAM_IDLE: Duration = Duration::from_secs(55);

/// How often idle upstream connections are looked through.
pub const UPSTREAM_SWEEP: Duration = Duration::from_secs(5);

/// How long a body waits for the upstream's `100 (Continue)` before it is sent anyway (RFC 9110 section 10.1.1).
pub const AWAIT_CONTINUE: Duration = Duration::from_secs(1);

/// A connection that was upgraded (WebSocket) without a byte in either direction.
pub const TUNNEL_IDLE: Duration = Duration::from_secs(3600);

/// An HTTP/2 peer with open streams that has been silent for so long is asked for a sign of life …
pub const HTTP2_PING: Duration = Duration::from_secs(30);

/// … and has so long to give it.
pub const HTTP2_PING_ANSWER: Duration = Duration::from_secs(20);

/// An HTTP/2 client with open streams that takes nothing of any of them. Longer than [`STREAM_IDLE`], which ends streams
/// whose endpoint is silent.
pub const HTTP2_STALL: Duration = Duration::from_secs(360);

/// The answer to a mirrored request is thrown away, but not waited for longer than this.
pub const MIRROR: Duration = Duration::from_secs(30);

/// An authorization server's answer. A person waits for it: longer than a look-up in a database, shorter than their patience.
pub const EXTERNAL_AUTH: Duration = Duration::from_secs(10);

/// Pause of an accept loop whose process has no file descriptor left: short, since each closed connection frees one.
pub const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);
