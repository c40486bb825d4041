//! HTTP/2 on either side, and on both.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    client::conn::http2,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tidegate_model::BackendProtocol;

use crate::support::{
    Worker,
    backend::{Echo, read_head, respond, scripted},
    client::Client,
    model::{self, RuleSpec},
};

type Body = BoxBody<Bytes, std::convert::Infallible>;

fn serve(protocol: BackendProtocol, endpoints: &[SocketAddr]) -> (Worker, SocketAddr) {
    let mut worker = Worker::start(1);
    let addr = worker.listen();
    let mut changes = model::backend("backend", protocol, endpoints);
    changes.extend([model::http_listener(addr), RuleSpec::default().into_change()]);
    worker.apply(changes);
    (worker, addr)
}

pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

pub(crate) async fn connect(addr: SocketAddr) -> http2::SendRequest<Body> {
    let stream = tokio::net::TcpStream::connect(addr).await.unwrap();
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

pub(crate) fn request(method: &str, uri: &str, body: Body) -> Request<Body> {
    Request::builder().method(method).uri(uri).body(body).unwrap()
}

pub(crate) fn full(text: &'static str) -> Body {
    Full::new(Bytes::from_static(text.as_bytes())).boxed()
}

pub(crate) async fn read(response: Response<Incoming>) -> (u16, String, Option<HeaderMap>) {
    let status = response.status().as_u16();
    let collected = response.into_body().collect().await.unwrap();
    let trailers = collected.trailers().cloned();
    (status, String::from_utf8(collected.to_bytes().to_vec()).unwrap(), trailers)
}

#[test]
fn streams_of_one_connection_are_served_from_http1_endpoints() {
    let echo = Echo::start();
    let (mut worker, addr) = serve(BackendProtocol::Http1, &[echo.addr]);
    block_on(async {
        let sender = connect(addr).await;
        let streams = (0..50).map(|index| {
            let mut sender = sender.clone();
            async move {
                let request = request("POST", &format!("http://a.example:80/{index}"), full("hello"));
                let (status, text, _) = read(sender.send_request(request).await.unwrap()).await;
                assert_eq!(status, 200);
                assert!(text.starts_with(&format!("POST /{index} HTTP/1.1\n")), "{text}");
                assert!(text.contains("host: a.example:80\n") && text.ends_with("\n\nhello"), "{text}");
            }
        });
        futures_util::future::join_all(streams).await;
    });
    assert_eq!(worker.metric("tidegate_requests_total", &["status=\"2xx\""]), 50.0);
}

#[test]
fn an_http1_client_reaches_an_http2_endpoint_over_one_connection() {
    let echo = Echo::start();
    let (_worker, addr) = serve(BackendProtocol::Http2, &[echo.addr]);
    let mut clients: Vec<Client> = (0..5).map(|_| Client::connect(addr)).collect();
    for _ in 0..3 {
        for client in &mut clients {
            client.send(
                "POST /x?y HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            );
        }
        for client in &mut clients {
            let text = client.receive().text();
            assert!(text.starts_with("POST http://a.example/x?y HTTP/2.0\n"), "{text}");
            assert!(text.ends_with("\n\nabc"), "{text}");
        }
    }
    assert_eq!(echo.connections(), 1);
}

#[test]
fn trailers_pass_through_both_sides_as_grpc_needs() {
    let echo = Echo::start();
    let (_worker, addr) = serve(BackendProtocol::Http2, &[echo.addr]);
    block_on(async {
        let mut sender = connect(addr).await;
        let mut trailers = HeaderMap::new();
        trailers.insert("x-end", "1".parse().unwrap());
        let frames = vec![Ok(Frame::data(Bytes::from_static(b"part"))), Ok(Frame::trailers(trailers))];
        let body = BodyExt::boxed(StreamBody::new(stream::iter(frames)));
        let mut request = request("POST", "http://a.example/grpc.trailers", body);
        request.headers_mut().insert("te", "trailers".parse().unwrap());
        request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
        let (status, text, trailers) = read(sender.send_request(request).await.unwrap()).await;
        assert_eq!(status, 200);
        assert!(text.contains("\nte: trailers\n"), "{text}");
        assert!(text.ends_with("part\ntrailer x-end: 1"), "{text}");
        assert_eq!(trailers.unwrap()["x-sum"], "42");
    });
}

#[test]
fn messages_go_both_ways_while_both_bodies_are_open() {
    let echo = Duplex::start();
    let (_worker, addr) = serve(BackendProtocol::Http2, &[echo]);
    block_on(async {
        let mut sender = connect(addr).await;
        let (to_server, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        let body = BodyExt::boxed(StreamBody::new(stream::poll_fn(move |cx| receiver.poll_recv(cx))));
        let response = sender.send_request(request("POST", "http://a.example/duplex", body));
        to_server.send(Ok(Frame::data(Bytes::from_static(b"one")))).unwrap();
        let mut body = response.await.unwrap().into_body();
        for text in ["one", "two", "three"] {
            if text != "one" {
                to_server.send(Ok(Frame::data(Bytes::from(text)))).unwrap();
            }
            let frame = body.frame().await.unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), text);
        }
        drop(to_server);
        // The end may come as an empty frame of its own.
        while let Some(frame) = body.frame().await {
            assert!(frame.unwrap().into_data().unwrap().is_empty());
        }
    });
}

/// A server that sends each piece of the body back as it comes.
struct Duplex;

impl Duplex {
    fn start() -> SocketAddr {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let addr = listener.local_addr().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        std::thread::spawn(move || {
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    let service = hyper::service::service_fn(|request: Request<Incoming>| async move {
                        Ok::<_, std::convert::Infallible>(Response::new(request.into_body()))
                    });
                    tokio::spawn(
                        hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                            .serve_connection(TokioIo::new(stream), service),
                    );
                }
            })
        });
        addr
    }
}

#[test]
fn a_stream_that_its_client_resets_ends_upstream_and_is_counted() {
    let (tell, told) = std::sync::mpsc::channel();
    let addr = scripted(move |_, mut stream| {
        let (head, _) = read_head(&mut stream);
        if head.starts_with("GET /quick") {
            return respond(&mut stream, "quick");
        }
        tell.send("asked").unwrap();
        assert!(read_head(&mut stream).0.is_empty());
        tell.send("closed").unwrap();
    });
    let (mut worker, front) = serve(BackendProtocol::Http1, &[addr]);
    block_on(async {
        let mut sender = connect(front).await;
        let mut waiting = Box::pin(sender.send_request(request("GET", "http://a.example/slow", full(""))));
        // Polls until the endpoint has the request.
        std::future::poll_fn(|cx| {
            assert!(waiting.as_mut().poll(cx).is_pending());
            if told.try_recv().is_ok() {
                return std::task::Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            std::task::Poll::Pending
        })
        .await;
        drop(waiting);
        let quick = request("GET", "http://a.example/quick", full(""));
        let (status, text, _) = read(sender.send_request(quick).await.unwrap()).await;
        assert_eq!((status, text.as_str()), (200, "quick"));
        assert_eq!(told.recv_timeout(crate::support::PATIENCE), Ok("closed"));
    });
    worker.wait_for_metric("tidegate_requests_total", &["status=\"4xx\""], 1.0);
}

#[test]
fn what_http2_cannot_mean_is_refused() {
    let echo = Echo::start();
    let (_worker, addr) = serve(BackendProtocol::Http1, &[echo.addr]);
    block_on(async {
        let mut sender = connect(addr).await;
        let mut request = request("GET", "http://a.example/", full(""));
        request.headers_mut().insert("host", "b.example".parse().unwrap());
        let (status, _, _) = read(sender.send_request(request).await.unwrap()).await;
        assert_eq!(status, 400);
    });
    assert_eq!(echo.connections(), 0);
}

#[test]
fn a_connection_that_its_endpoint_is_leaving_is_replaced_without_an_error() {
    let (addr, connections) = leaving_after_each_request();
    let (_worker, front) = serve(BackendProtocol::Http2, &[addr]);
    let mut client = Client::connect(front);
    for index in 0..5 {
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi");
        let response = client.receive();
        assert_eq!((response.status, response.text().as_str()), (200, "hi"), "request {index}");
    }
    assert!(connections.load(Ordering::Relaxed) > 1);
}

/// A server that says GOAWAY once it has taken a request, and counts its connections.
fn leaving_after_each_request() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let addr = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    std::thread::spawn(move || {
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(serve_one_request(stream));
            }
        })
    });
    (addr, connections)
}

async fn serve_one_request(stream: tokio::net::TcpStream) {
    let has_request = tokio::sync::Notify::new();
    let service = hyper::service::service_fn(|request: Request<Incoming>| {
        has_request.notify_one();
        async move { Ok::<_, std::convert::Infallible>(Response::new(request.into_body())) }
    });
    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    let mut connection = std::pin::pin!(server.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        _ = connection.as_mut() => return,
        () = has_request.notified() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}
