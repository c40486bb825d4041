//! The echo service. A request steers its answer by header fields, so that one backend serves every test:
//!
//! | field | effect |
//! |---|---|
//! | `x-lab-delay-ms: N` | waits before the head of the answer |
//! | `x-lab-status: N` | status |
//! | `x-lab-bytes: N` | a body of N bytes instead of the description |
//! | `x-lab-stream-ms: N` | sends that body in 1 KiB pieces, N ms apart |
//! | `x-lab-abort: head` / `body` | ends the connection before the head / after half of the body |
//! | `x-lab-grpc-status: N` | `grpc-status` of a gRPC answer |
//! | `x-lab-set: name=value` | adds a header field to the answer |

use std::{collections::BTreeMap, io, net::SocketAddr, time::Duration};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, stream};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{handshake::derive_accept_key, protocol::Role},
};

use super::NAME_HEADER;

type Body = BoxBody<Bytes, io::Error>;

/// Answers one request.
pub(super) async fn answer(request: Request<Incoming>, peer: SocketAddr, name: &str) -> io::Result<Response<Body>> {
    let asked = Asked::read(request.headers());
    if let Some(delay) = asked.delay {
        tokio::time::sleep(delay).await;
    }
    if asked.abort.as_deref() == Some("head") {
        return Err(io::Error::other("asked to abort"));
    }
    let mut response = if request.headers().get("upgrade").is_some_and(|value| value == "websocket") {
        upgrade(request)
    } else if is_grpc(request.headers()) {
        grpc(request, asked.grpc_status).await?
    } else {
        describe(request, peer, name, &asked).await?
    };
    response.headers_mut().insert(NAME_HEADER, HeaderValue::from_str(name).map_err(io::Error::other)?);
    for (name, value) in &asked.set {
        let name = http::HeaderName::from_bytes(name.as_bytes()).map_err(io::Error::other)?;
        response.headers_mut().append(name, HeaderValue::from_str(value).map_err(io::Error::other)?);
    }
    Ok(response)
}

/// What the request asks for.
#[derive(Debug, Default)]
struct Asked {
    delay: Option<Duration>,
    status: Option<u16>,
    bytes: Option<usize>,
    pace: Option<Duration>,
    abort: Option<String>,
    grpc_status: i32,
    set: Vec<(String, String)>,
}

impl Asked {
    fn read(headers: &HeaderMap) -> Self {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let number = |name: &str| text(name).and_then(|value| value.parse::<u64>().ok());
        Self {
            delay: number("x-lab-delay-ms").map(Duration::from_millis),
            status: number("x-lab-status").and_then(|status| u16::try_from(status).ok()),
            bytes: number("x-lab-bytes").and_then(|bytes| usize::try_from(bytes).ok()),
            pace: number("x-lab-stream-ms").map(Duration::from_millis),
            abort: text("x-lab-abort").map(str::to_owned),
            grpc_status: number("x-lab-grpc-status").and_then(|status| i32::try_from(status).ok()).unwrap_or(0),
            set: headers
                .get_all("x-lab-set")
                .iter()
                .filter_map(|value| value.to_str().ok()?.split_once('='))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
        }
    }
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get("content-type").is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

async fn describe(
    request: Request<Incoming>,
    peer: SocketAddr,
    name: &str,
    asked: &Asked,
) -> io::Result<Response<Body>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?;
    let trailers = body.trailers().map(fields);
    let body = body.to_bytes();
    let status = asked.status.and_then(|status| StatusCode::from_u16(status).ok()).unwrap_or(StatusCode::OK);
    let response = Response::builder().status(status);
    if let Some(length) = asked.bytes {
        let is_cut = asked.abort.as_deref() == Some("body");
        let body = match asked.pace {
            None if !is_cut => Full::new(Bytes::from(vec![b'x'; length])).map_err(|never| match never {}).boxed(),
            pace => pieces(length, pace.unwrap_or_default(), is_cut),
        };
        return response.body(body).map_err(io::Error::other);
    }
    let description = json!({
        "backend": name,
        "peer": peer.to_string(),
        "method": head.method.as_str(),
        "path": head.uri.path(),
        "query": head.uri.query(),
        "authority": head.uri.authority().map(ToString::to_string),
        "version": format!("{:?}", head.version),
        "headers": fields(&head.headers),
        "trailers": trailers,
        "body": String::from_utf8_lossy(&body[..body.len().min(4096)]),
        "body_bytes": body.len(),
    });
    let text = Bytes::from(description.to_string());
    response
        .header("content-type", "application/json")
        .body(Full::new(text).map_err(|never| match never {}).boxed())
        .map_err(io::Error::other)
}

/// A body in pieces of 1 KiB; a cut one ends half way with an error, which ends the connection.
fn pieces(length: usize, pace: Duration, is_cut: bool) -> Body {
    const PIECE: usize = 1024;
    let end = if is_cut { length / 2 } else { length };
    let frames = stream::unfold(0, move |sent| async move {
        if sent >= end {
            let cut = is_cut && sent != usize::MAX;
            return cut.then(|| (Err(io::Error::other("asked to abort")), usize::MAX));
        }
        tokio::time::sleep(pace).await;
        let size = PIECE.min(end - sent);
        Some((Ok(Frame::data(Bytes::from(vec![b'x'; size]))), sent + size))
    });
    BodyExt::boxed(StreamBody::new(Box::pin(frames.fuse()) as SyncStream))
}

type SyncStream = std::pin::Pin<Box<dyn futures_util::Stream<Item = io::Result<Frame<Bytes>>> + Send + Sync>>;

/// Every message comes back; the status stands in the trailers, as gRPC wants it.
async fn grpc(request: Request<Incoming>, status: i32) -> io::Result<Response<Body>> {
    let body = request.into_body().collect().await.map_err(io::Error::other)?.to_bytes();
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from(status));
    trailers.insert("grpc-message", HeaderValue::from_static("from the lab"));
    let frames = stream::iter([Ok::<_, io::Error>(Frame::data(body)), Ok(Frame::trailers(trailers))]);
    Response::builder()
        .header("content-type", "application/grpc")
        .body(BodyExt::boxed(StreamBody::new(frames)))
        .map_err(io::Error::other)
}

fn upgrade(mut request: Request<Incoming>) -> Response<Body> {
    let accept = request.headers().get("sec-websocket-key").map(|key: &HeaderValue| derive_accept_key(key.as_bytes()));
    tokio::spawn(async move {
        let Ok(upgraded) = hyper::upgrade::on(&mut request).await else { return };
        let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
        while let Some(Ok(message)) = socket.next().await {
            if (message.is_text() || message.is_binary()) && socket.send(message).await.is_err() {
                return;
            }
        }
    });
    let mut response = Response::new(Full::new(Bytes::new()).map_err(|never| match never {}).boxed());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert("connection", HeaderValue::from_static("Upgrade"));
    headers.insert("upgrade", HeaderValue::from_static("websocket"));
    if let Some(accept) = accept.and_then(|accept: String| HeaderValue::from_str(&accept).ok()) {
        headers.insert("sec-websocket-accept", accept);
    }
    response
}

fn fields(headers: &HeaderMap) -> BTreeMap<String, Vec<String>> {
    let mut all = BTreeMap::<String, Vec<String>>::new();
    for (name, value) in headers {
        all.entry(name.to_string()).or_default().push(String::from_utf8_lossy(value.as_bytes()).into_owned());
    }
    all
}
