//! Retries that a rule asks for (GEP-1731), in the cases of the official suite of Gateway API v1.7.0 and beyond them.

use std::{
    io::Write,
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tidegate_model::{BackendProtocol, Retry, Timeouts};

use crate::support::{
    Worker,
    backend::{self, Echo, read_head, read_rest, respond},
    client::{Client, Response, fetch},
    model::{self, RuleSpec},
};

const SHORT: Option<Duration> = Some(Duration::from_millis(1));

fn retry(codes: &[u16], attempts: u32) -> Option<Retry> {
    Some(Retry { codes: codes.to_vec(), attempts, backoff: SHORT })
}

fn serve(endpoints: &[SocketAddr], rule: RuleSpec) -> (Worker, SocketAddr) {
    let mut worker = Worker::start(1);
    let addr = worker.listen();
    let mut changes = model::backend("backend", BackendProtocol::Http1, endpoints);
    changes.extend([model::http_listener(addr), rule.into_change()]);
    worker.apply(changes);
    (worker, addr)
}

fn refusing() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// An endpoint whose first `failures` requests, whatever their connection, get `fail` and the others their body back.
/// Returns the count of requests too.
fn failing(
    failures: usize,
    fail: impl Fn(&mut std::net::TcpStream) + Send + Sync + 'static,
) -> (SocketAddr, Arc<AtomicUsize>) {
    let seen = Arc::new(AtomicUsize::new(0));
    let count = seen.clone();
    let addr = backend::scripted(move |_, mut stream| {
        loop {
            let (head, rest) = read_head(&mut stream);
            if head.is_empty() {
                return;
            }
            let body = read_rest(&mut stream, rest, backend::content_length(&head));
            if count.fetch_add(1, Ordering::Relaxed) < failures {
                fail(&mut stream);
            } else {
                respond(&mut stream, &String::from_utf8(body).unwrap());
            }
        }
    });
    (addr, seen)
}

fn answer(status: u16) -> impl Fn(&mut std::net::TcpStream) + Send + Sync + 'static {
    move |stream| {
        let text = format!("HTTP/1.1 {status} Failed\r\nContent-Length: 6\r\n\r\nfailed");
        let _ = stream.write_all(text.as_bytes());
    }
}

fn send(addr: SocketAddr, method: &str, body: &str) -> Response {
    let mut client = Client::connect(addr);
    client.send(format!("{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    client.receive()
}

#[test]
fn statuses_are_retried_as_often_as_the_rule_says() {
    let all = &[500, 502, 503, 504][..];
    for (codes, attempts, status, failures, expected, requests) in [
        (&[500][..], 3, 500, 2, 200, 3),
        (&[500], 3, 500, 4, 500, 4),
        (&[500], 3, 503, 2, 503, 1),
        (all, 2, 502, 1, 200, 2),
        (all, 2, 503, 3, 503, 3),
        (all, 2, 504, 2, 200, 3),
        (all, 0, 500, 1, 500, 1),
        (all, 0, 504, 1, 504, 1),
        (&[404, 429], 1, 429, 1, 200, 2),
    ] {
        let (endpoint, seen) = failing(failures, answer(status));
        let (_worker, addr) = serve(&[endpoint], RuleSpec { retry: retry(codes, attempts), ..RuleSpec::default() });
        let response = fetch(addr, "/");
        let case = format!("{codes:?} {attempts} {status} {failures}");
        assert_eq!(response.status, expected, "{case}");
        // What the client gets in the end is the endpoint's own answer.
        assert_eq!(response.text(), if expected == 200 { "" } else { "failed" }, "{case}");
        assert_eq!(seen.load(Ordering::Relaxed), requests, "{case}");
    }
}

#[test]
fn bodies_of_any_method_come_again_and_connections_are_kept() {
    let (endpoint, seen) = failing(2, answer(500));
    let (mut worker, addr) = serve(&[endpoint], RuleSpec { retry: retry(&[500], 3), ..RuleSpec::default() });
    let body = "0123456789".repeat(2_000);
    let response = send(addr, "POST", &body);
    assert_eq!((response.status, response.text() == body), (200, true));
    assert_eq!(seen.load(Ordering::Relaxed), 3);
    assert_eq!(worker.metric("tidegate_upstream_connects_total", &[]), 1.0);
    assert_eq!(worker.metric("tidegate_upstream_retries_total", &["reason=\"status\""]), 2.0);
}

#[test]
fn a_body_too_long_to_be_kept_is_sent_once() {
    let (endpoint, seen) = failing(1, answer(500));
    let (mut worker, addr) = serve(&[endpoint], RuleSpec { retry: retry(&[500], 3), ..RuleSpec::default() });
    let response = send(addr, "PUT", &"x".repeat(64 * 1024 + 1));
    assert_eq!((response.status, response.text().as_str()), (500, "failed"));
    assert_eq!(seen.load(Ordering::Relaxed), 1);
    assert_eq!(worker.metric("tidegate_upstream_retries_denied_total", &["body_too_long"]), 1.0);
}

#[test]
fn a_hundred_attempts_reach_the_one_endpoint_that_listens() {
    let echo = Echo::start();
    let endpoints = [refusing(), refusing(), refusing(), refusing(), echo.addr];
    let (mut worker, addr) = serve(&endpoints, RuleSpec { retry: retry(&[], 100), ..RuleSpec::default() });
    for _ in 0..5 {
        assert_eq!(send(addr, "POST", "x").status, 200);
    }
    assert!(worker.metric("tidegate_upstream_retries_total", &["reason=\"connect\""]) >= 4.0);
}

#[test]
fn without_retries_not_even_a_refused_connection_is_tried_elsewhere() {
    // The first may be either.
    let (mut worker, addr) =
        serve(&[refusing(), refusing()], RuleSpec { retry: retry(&[500], 0), ..RuleSpec::default() });
    assert_eq!(fetch(addr, "/").status, 502);
    assert_eq!(worker.metric("tidegate_upstream_connect_errors_total", &[]), 1.0);
    assert_eq!(worker.metric("tidegate_upstream_retries_total", &[]), 0.0);
}

#[test]
fn a_reset_before_the_response_is_retried_for_idempotent_methods_only() {
    let close = |stream: &mut std::net::TcpStream| drop(stream.shutdown(std::net::Shutdown::Both));
    for (method, expected, requests) in [("PUT", 200, 3), ("POST", 502, 1)] {
        let (endpoint, seen) = failing(2, close);
        let (mut worker, addr) = serve(&[endpoint], RuleSpec { retry: retry(&[], 3), ..RuleSpec::default() });
        let response = send(addr, method, "body");
        assert_eq!(response.status, expected, "{method}");
        assert_eq!(seen.load(Ordering::Relaxed), requests, "{method}");
        let denied = worker.metric("tidegate_upstream_retries_denied_total", &["not_idempotent"]);
        assert_eq!(denied, if method == "POST" { 1.0 } else { 0.0 });
    }
}

#[test]
fn an_attempt_out_of_time_is_followed_by_another_and_the_last_is_504() {
    for (failures, expected, requests) in [(2, 200, 3), (3, 504, 3)] {
        // Never answers on that connection.
        let (endpoint, seen) = failing(failures, |stream| drop(std::io::Read::read(stream, &mut [0])));
        let timeouts = Timeouts { request: None, backend_request: Some(Duration::from_millis(100)) };
        let rule = RuleSpec { retry: retry(&[], 2), timeouts, ..RuleSpec::default() };
        let (mut worker, addr) = serve(&[endpoint], rule);
        assert_eq!(fetch(addr, "/").status, expected);
        assert_eq!(seen.load(Ordering::Relaxed), requests);
        assert_eq!(worker.metric("tidegate_upstream_retries_total", &["reason=\"backend_timeout\""]), 2.0);
    }
}

#[test]
fn the_requests_own_limit_ends_all_attempts_and_their_pauses() {
    let request = Some(Duration::from_millis(200));
    // Endless failures: only the limit ends them.
    let (endpoint, _) = failing(usize::MAX, answer(500));
    let timeouts = Timeouts { request, backend_request: None };
    let rule = RuleSpec { retry: retry(&[500], u32::MAX), timeouts, ..RuleSpec::default() };
    let (_worker, addr) = serve(&[endpoint], rule);
    assert_eq!(fetch(addr, "/").status, 504);
    // A pause beyond the limit is not begun.
    let rule = RuleSpec {
        retry: Some(Retry { codes: vec![500], attempts: 5, backoff: Some(Duration::from_secs(3600)) }),
        timeouts,
        ..RuleSpec::default()
    };
    let (endpoint, seen) = failing(usize::MAX, answer(500));
    let (_worker, addr) = serve(&[endpoint], rule);
    assert_eq!(fetch(addr, "/").status, 504);
    assert_eq!(seen.load(Ordering::Relaxed), 1);
}

#[test]
fn a_retry_waits_as_long_as_the_rule_says() {
    let (endpoint, _) = failing(2, answer(500));
    let backoff = Some(Duration::from_millis(100));
    let rule = RuleSpec { retry: Some(Retry { codes: vec![500], attempts: 2, backoff }), ..RuleSpec::default() };
    let (_worker, addr) = serve(&[endpoint], rule);
    let started = Instant::now();
    assert_eq!(fetch(addr, "/").status, 200);
    // At least 100 ms and then 200 ms: a lower bound holds on a slow machine too.
    assert!(started.elapsed() >= Duration::from_millis(300), "{:?}", started.elapsed());
}

#[test]
fn another_endpoint_is_preferred_and_the_same_taken_when_there_is_none() {
    let (bad, bad_seen) = failing(usize::MAX, answer(503));
    let (good, _) = failing(0, answer(503));
    let (_worker, addr) = serve(&[bad, good], RuleSpec { retry: retry(&[503], 1), ..RuleSpec::default() });
    for _ in 0..10 {
        assert_eq!(fetch(addr, "/").status, 200);
    }
    assert!(bad_seen.load(Ordering::Relaxed) >= 1);
}

#[test]
fn attempts_over_http2_are_retried_too() {
    let echo = Echo::start();
    let mut worker = Worker::start(1);
    let addr = worker.listen();
    let mut changes = model::backend("backend", BackendProtocol::Http2, &[refusing(), echo.addr]);
    let rule = RuleSpec { retry: retry(&[404], 2), ..RuleSpec::default() };
    changes.extend([model::http_listener(addr), rule.into_change()]);
    worker.apply(changes);
    for _ in 0..4 {
        let response = send(addr, "POST", "hello");
        assert_eq!(response.status, 200);
        assert!(response.text().ends_with("\n\nhello"), "{}", response.text());
    }
    assert!(worker.metric("tidegate_upstream_retries_total", &["reason=\"connect\""]) >= 1.0);
}

#[test]
fn a_last_response_that_comes_early_leaves_its_request_on_the_way() {
    let (sender, received) = std::sync::mpsc::channel();
    let addr = backend::scripted(move |_, mut stream| {
        let (head, rest) = read_head(&mut stream);
        let _ = stream.write_all(b"HTTP/1.1 500 Early\r\nContent-Length: 6\r\n\r\nfai");
        let body = read_rest(&mut stream, rest, backend::content_length(&head));
        let _ = stream.write_all(b"led");
        let _ = sender.send(body.len());
    });
    let rule = RuleSpec { retry: retry(&[500], 1), ..RuleSpec::default() };
    let (_worker, front) = serve(&[addr], rule);
    let mut client = Client::connect(front);
    client.send("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n");
    // The head of the last attempt's response comes before a byte of the body is sent.
    let first = client.take("HTTP/1.1 500".len());
    assert_eq!(first, b"HTTP/1.1 500");
    client.send("0123456789");
    assert!(client.rest_until(b"failed"));
    // The first attempt was given up; the second got the whole body.
    assert_eq!(received.recv_timeout(crate::support::PATIENCE).unwrap(), 10);
}
