//! Endpoints that refuse, die, stall or lie, and clients that go away.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tidegate_model::{BackendProtocol, Change, Filter, Fraction, Key, Mirror, Timeouts};

use crate::support::{
    Worker,
    backend::{self, Echo, read_head, read_rest, respond},
    client::{Client, fetch},
    model::{self, RuleSpec},
};

fn serve_rule(endpoints: &[SocketAddr], rule: RuleSpec) -> (Worker, SocketAddr) {
    let mut worker = Worker::start(1);
    let addr = worker.listen();
    let mut changes = model::backend("backend", BackendProtocol::Http1, endpoints);
    changes.extend([model::http_listener(addr), rule.into_change()]);
    worker.apply(changes);
    (worker, addr)
}

fn serve(endpoints: &[SocketAddr]) -> (Worker, SocketAddr) {
    serve_rule(endpoints, RuleSpec::default())
}

/// An address on which nobody listens.
fn refusing() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[test]
fn a_refused_connection_is_tried_on_another_endpoint() {
    let echo = Echo::start();
    let (mut worker, addr) = serve(&[refusing(), echo.addr]);
    for _ in 0..6 {
        assert_eq!(fetch(addr, "/").status, 200);
    }
    let mut client = Client::connect(addr);
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello");
    assert!(client.receive().text().ends_with("hello"));
    assert!(worker.metric("tidegate_upstream_connect_errors_total", &[]) >= 1.0);
}

#[test]
fn without_an_endpoint_that_answers_it_is_502_and_without_any_503() {
    let (mut worker, addr) = serve(&[refusing(), refusing()]);
    assert_eq!(fetch(addr, "/").status, 502);
    worker.apply(model::backend("backend", BackendProtocol::Http1, &[]));
    assert_eq!(fetch(addr, "/").status, 503);
    worker.apply(vec![Change::Remove(Key::Backend(model::backend_key("backend")))]);
    assert_eq!(fetch(addr, "/").status, 503);
}

#[test]
fn a_connection_closed_while_idle_is_no_failure_of_the_next_request() {
    // Each connection serves one request and is closed at the moment at which the second arrives.
    let served = Arc::new(AtomicUsize::new(0));
    let count = served.clone();
    let addr = backend::scripted(move |_, mut stream| {
        let (head, rest) = read_head(&mut stream);
        let body = if head.starts_with("PUT") { read_rest(&mut stream, rest, 4) } else { Vec::new() };
        count.fetch_add(1, Ordering::Relaxed);
        respond(&mut stream, &String::from_utf8(body).unwrap());
        let mut byte = [0];
        let _ = stream.read(&mut byte);
    });
    let (mut worker, front) = serve(&[addr]);
    let mut client = Client::connect(front);
    for index in 0..4 {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.receive().status, 200, "GET {index}");
        client.send("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody");
        let response = client.receive();
        assert_eq!((response.status, response.text().as_str()), (200, "body"), "PUT {index}");
    }
    assert_eq!(served.load(Ordering::Relaxed), 8);
    assert_eq!(worker.metric("tidegate_upstream_failures_total", &["stale_connection"]), 7.0);
}

#[test]
fn what_is_not_idempotent_is_not_sent_twice() {
    let seen = Arc::new(AtomicUsize::new(0));
    let count = seen.clone();
    let addr = backend::scripted(move |_, mut stream| {
        read_head(&mut stream);
        respond(&mut stream, "first");
        if !read_head(&mut stream).0.is_empty() {
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    let (_worker, front) = serve(&[addr]);
    let mut client = Client::connect(front);
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.receive().status, 200);
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody");
    assert_eq!(client.receive().status, 502);
    assert_eq!(seen.load(Ordering::Relaxed), 1);
}

#[test]
fn limits_of_a_rule_end_in_504() {
    let addr = backend::scripted(|_, mut stream| {
        read_head(&mut stream);
        let _ = stream.read(&mut [0]);
    });
    let short = Some(Duration::from_millis(50));
    for timeouts in
        [Timeouts { request: short, backend_request: None }, Timeouts { request: None, backend_request: short }]
    {
        let (_worker, front) = serve_rule(&[addr], RuleSpec { timeouts, ..RuleSpec::default() });
        let mut client = Client::connect(front);
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.receive().status, 504);
    }
}

#[test]
fn the_limit_of_a_request_also_ends_its_body() {
    let addr = backend::scripted(|_, mut stream| {
        read_head(&mut stream);
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").unwrap();
        let _ = stream.read(&mut [0]);
    });
    let timeouts = Timeouts { request: Some(Duration::from_millis(50)), backend_request: None };
    let (_worker, front) = serve_rule(&[addr], RuleSpec { timeouts, ..RuleSpec::default() });
    let mut client = Client::connect(front);
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let rest = client.rest();
    assert!(rest.ends_with(b"half"), "{}", rest.escape_ascii());
}

#[test]
fn a_response_cut_short_is_cut_short_for_the_client_too() {
    let addr = backend::scripted(|_, mut stream| {
        let (head, _) = read_head(&mut stream);
        let framing = if head.starts_with("GET /c") {
            "Transfer-Encoding: chunked\r\n\r\n5\r\n"
        } else {
            "Content-Length: 9\r\n\r\n"
        };
        stream.write_all(format!("HTTP/1.1 200 OK\r\n{framing}short").as_bytes()).unwrap();
    });
    let (mut worker, front) = serve(&[addr]);
    for path in ["/length", "/chunked"] {
        let mut client = Client::connect(front);
        client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
        let rest = String::from_utf8(client.rest()).unwrap();
        assert!(
            rest.starts_with("HTTP/1.1 200 OK\r\n") && rest.contains("short") && !rest.ends_with("0\r\n\r\n"),
            "{rest}"
        );
    }
    worker.wait_for_metric("tidegate_local_responses_total", &["upstream_closed"], 2.0);
}

#[test]
fn a_client_that_goes_away_ends_its_request_upstream() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let addr = backend::scripted(move |_, mut stream| {
        read_head(&mut stream);
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        while stream.write_all(&[b'x'; 4096]).is_ok() {}
        sender.send(()).unwrap();
    });
    let (_worker, front) = serve(&[addr]);
    let mut client = Client::connect(front);
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    client.take(10_000);
    drop(client);
    receiver.recv_timeout(crate::support::PATIENCE).unwrap();
}

#[test]
fn nothing_of_a_broken_off_response_reaches_another_client() {
    let (sender, is_stuck) = std::sync::mpsc::channel();
    let addr = backend::scripted(move |_, mut stream| {
        let (head, _) = read_head(&mut stream);
        if !head.starts_with("GET /flood") {
            return respond(&mut stream, "clean");
        }
        stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
        while stream.write_all(format!("1000\r\n{}\r\n", "s".repeat(4096)).as_bytes()).is_ok() {}
        sender.send(()).unwrap();
        let _ = stream.read(&mut [0]);
    });
    let (mut worker, front) = serve(&[addr]);
    let mut flooded = Client::connect(front);
    flooded.send("GET /flood HTTP/1.1\r\nHost: a\r\n\r\n");
    // Every buffer on the way is full: the worker holds a part of a response that its client has not taken.
    is_stuck.recv_timeout(crate::support::PATIENCE).unwrap();
    drop(flooded);
    worker.wait_for_metric("tidegate_protocol_errors_total", &["client_closed"], 1.0);
    for _ in 0..3 {
        let response = fetch(front, "/small");
        assert_eq!((response.status, response.text().as_str()), (200, "clean"));
    }
}

#[test]
fn mirrors_get_a_copy_and_never_delay_the_request() {
    let echo = Echo::start();
    let (sender, copies) = std::sync::mpsc::channel();
    let mirror = backend::scripted(move |_, mut stream| {
        let (head, rest) = read_head(&mut stream);
        let body = read_rest(&mut stream, rest, 5);
        sender.send((head, body)).unwrap();
        // Never answers.
        let _ = stream.read(&mut [0]);
    });
    let all = Fraction { numerator: 1, denominator: 1 };
    let to = |name| Filter::Mirror(Mirror { backend: Some(model::backend_key(name)), fraction: all });
    let filters = vec![to("mirror"), to("dead")];
    let (mut worker, front) = serve_rule(&[echo.addr], RuleSpec { filters, ..RuleSpec::default() });
    worker.apply(model::backend("mirror", BackendProtocol::Http1, &[mirror]));
    worker.apply(model::backend("dead", BackendProtocol::Http1, &[refusing()]));
    let mut client = Client::connect(front);
    client.send("POST /m HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello");
    assert!(client.receive().text().ends_with("\n\nhello"));
    let (head, body) = copies.recv_timeout(crate::support::PATIENCE).unwrap();
    assert!(head.starts_with("POST /m HTTP/1.1\r\n"), "{head}");
    assert_eq!(body, b"hello");
}
