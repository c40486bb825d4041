//! A worker that is changed, drained, starved of descriptors and talked to by several agents in turn.

use std::time::Duration;

use tidegate_model::{
    BackendProtocol, Change, Generation, Key,
    control::{FromWorker, PROTOCOL, ToWorker},
};

use crate::support::{
    Worker,
    backend::{self, Echo, read_head, respond},
    client::{Client, fetch},
    model::{self, RuleSpec},
};

fn rules(worker: &mut Worker, addr: std::net::SocketAddr, endpoint: std::net::SocketAddr) {
    let mut changes = model::backend("backend", BackendProtocol::Http1, &[endpoint]);
    changes.extend([model::http_listener(addr), RuleSpec::default().into_change()]);
    worker.apply(changes);
}

#[test]
fn every_shard_serves_and_a_change_is_in_force_when_it_is_answered() {
    let (first, second) = (Echo::start(), Echo::start());
    let mut worker = Worker::start(3);
    let addr = worker.listen();
    rules(&mut worker, addr, first.addr);
    let mut clients: Vec<Client> = (0..24).map(|_| Client::connect(addr)).collect();
    let ask = |clients: &mut Vec<Client>, status| {
        for client in clients.iter_mut() {
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        }
        for client in clients.iter_mut() {
            assert_eq!(client.receive().status, status);
        }
    };
    ask(&mut clients, 200);
    assert_eq!(second.connections(), 0);
    worker.apply(model::backend("backend", BackendProtocol::Http1, &[second.addr]));
    let before = first.connections();
    ask(&mut clients, 200);
    assert_eq!(first.connections(), before);
    assert!(second.connections() > 0);
    worker.apply(vec![Change::Remove(Key::Listener(model::listener_key("http")))]);
    ask(&mut clients, 404);
}

#[test]
fn a_sign_of_life_is_of_every_shard() {
    let mut worker = Worker::start(3);
    for _ in 0..3 {
        worker.send(&ToWorker::Ping, &[]);
        assert_eq!(worker.receive(), FromWorker::Pong);
    }
}

#[test]
fn the_next_agent_finds_what_is_served() {
    let echo = Echo::start();
    let mut worker = Worker::start(1);
    let addr = worker.listen();
    rules(&mut worker, addr, echo.addr);
    // What a dead agent left unfinished, and what nobody understands, changes nothing.
    worker.send(&ToWorker::Listen { sockets: Vec::new() }, &[]);
    worker.send(&ToWorker::Hello { protocol: PROTOCOL + 1 }, &[]);
    match worker.receive() {
        FromWorker::Hello { protocol, generation, listening, pid, .. } => {
            assert_eq!((protocol, generation, pid), (PROTOCOL, Generation(1), std::process::id()));
            assert_eq!(listening.len(), 1);
            worker.send(&ToWorker::Unlisten { sockets: listening }, &[]);
        }
        other => panic!("{other:?}"),
    }
    worker.scrape();
    assert!(std::net::TcpStream::connect(addr).is_err(), "nobody listens any more");
}

#[test]
fn a_drain_finishes_what_runs_and_loses_nothing() {
    let (started, has_started) = std::sync::mpsc::channel();
    let (go, may_answer) = std::sync::mpsc::channel::<()>();
    let may_answer = std::sync::Mutex::new(may_answer);
    let slow = backend::scripted(move |_, mut stream| {
        while !read_head(&mut stream).0.is_empty() {
            started.send(()).unwrap();
            may_answer.lock().unwrap().recv().unwrap();
            respond(&mut stream, "late");
        }
    });
    // One shard: that it accepts no more says that it drains.
    let mut worker = Worker::start(1);
    let addr = worker.listen();
    rules(&mut worker, addr, slow);
    let mut idle = Client::connect(addr);
    let mut busy = Client::connect(addr);
    busy.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    has_started.recv_timeout(crate::support::PATIENCE).unwrap();
    worker.begin_drain(Duration::from_secs(30));
    let deadline = std::time::Instant::now() + crate::support::PATIENCE;
    while std::net::TcpStream::connect(addr).is_ok() {
        assert!(std::time::Instant::now() < deadline, "still accepting");
    }
    // Its next request was on the way when the drain began.
    idle.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    go.send(()).unwrap();
    go.send(()).unwrap();
    for client in [&mut busy, &mut idle] {
        let response = client.receive();
        assert_eq!((response.status, response.text().as_str()), (200, "late"));
        assert_eq!(response.field("connection"), Some("close"));
        client.close_sending();
        assert!(client.is_closed());
    }
    worker.wait_drained();
    assert!(std::net::TcpStream::connect(addr).is_err());
}

#[test]
fn a_drain_ends_at_its_limit() {
    let stuck = backend::scripted(|_, mut stream| {
        read_head(&mut stream);
        read_head(&mut stream);
    });
    let mut worker = Worker::start(1);
    let addr = worker.listen();
    rules(&mut worker, addr, stuck);
    let mut client = Client::connect(addr);
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    worker.wait_for_metric("tidegate_upstream_requests_total", &[], 1.0);
    worker.begin_drain(Duration::from_millis(100));
    worker.wait_drained();
    assert!(client.is_closed());
}

#[test]
fn a_drain_tells_http2_clients_and_finishes_their_streams() {
    let echo = Echo::start();
    let mut worker = Worker::start(1);
    let addr = worker.listen();
    rules(&mut worker, addr, echo.addr);
    crate::http2::block_on(async {
        let mut sender = crate::http2::connect(addr).await;
        let request = crate::http2::request("GET", "http://a.example/", crate::http2::full(""));
        let (status, _, _) = crate::http2::read(sender.send_request(request).await.unwrap()).await;
        assert_eq!(status, 200);
        worker.begin_drain(Duration::from_secs(30));
        while sender.ready().await.is_ok() {
            tokio::task::yield_now().await;
        }
    });
    worker.wait_drained();
}

#[test]
fn a_bad_certificate_fails_by_its_key_and_the_rest_is_served() {
    let echo = Echo::start();
    let mut worker = Worker::start(1);
    let addr = worker.listen();
    rules(&mut worker, addr, echo.addr);
    let (_, put) = model::certificate("bad", "bad.example");
    let Change::Put(tidegate_model::Resource::Certificate(key, certificate)) = put else { unreachable!() };
    let mut broken = (*certificate).clone();
    broken.private_key.truncate(10);
    let broken = tidegate_model::Resource::Certificate(key.clone(), std::sync::Arc::new(broken));
    let failures = worker.apply(vec![Change::Put(broken)]);
    assert_eq!(failures.len(), 1);
    assert_eq!(failures[0].0, Key::Certificate(key));
    assert_eq!(fetch(addr, "/").status, 200);
}
