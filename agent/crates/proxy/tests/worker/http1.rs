//! HTTP/1.1 on both sides over real sockets.

use std::{
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tidegate_model::BackendProtocol;

use crate::support::{
    Worker,
    backend::{self, Echo, read_head, read_rest, respond},
    client::{Client, fetch},
    model::{self, RuleSpec},
};

fn serve(endpoints: &[std::net::SocketAddr]) -> (Worker, std::net::SocketAddr) {
    let mut worker = Worker::start(1);
    let addr = worker.listen();
    let mut changes = model::backend("backend", BackendProtocol::Http1, endpoints);
    changes.push(model::http_listener(addr));
    changes.push(RuleSpec::default().into_change());
    assert!(worker.apply(changes).is_empty());
    (worker, addr)
}

#[test]
fn connections_are_kept_on_both_sides() {
    let echo = Echo::start();
    let (mut worker, addr) = serve(&[echo.addr]);
    let mut client = Client::connect(addr);
    for index in 0..10 {
        client.send(format!("GET /{index}?a=b HTTP/1.1\r\nHost: Test.Example\r\nX-Own: yes\r\n\r\n"));
        let response = client.receive();
        assert_eq!(response.status, 200);
        assert_eq!(response.field("x-backend"), Some("echo"));
        assert!(response.text().starts_with(&format!("GET /{index}?a=b HTTP/1.1\n")), "{}", response.text());
        assert!(response.text().contains("\nhost: Test.Example\n"), "{}", response.text());
        assert!(response.text().contains("\nx-own: yes\n"));
    }
    assert_eq!(echo.connections(), 1);
    assert_eq!(worker.metric("tidegate_requests_total", &["status=\"2xx\""]), 10.0);
}

#[test]
fn pipelined_and_split_requests_are_answered_in_order() {
    let echo = Echo::start();
    let (_worker, addr) = serve(&[echo.addr]);
    let mut client = Client::connect(addr);
    let requests: String = (0..20).map(|index| format!("GET /{index} HTTP/1.1\r\nHost: a\r\n\r\n")).collect();
    client.send(&requests);
    for index in 0..20 {
        assert!(client.receive().text().starts_with(&format!("GET /{index} ")));
    }
    client.send_bytewise(
        "\r\nPOST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n",
    );
    assert!(client.receive().text().ends_with("\n\nabcde"));
}

#[test]
fn bodies_stream_both_ways() {
    let echo = Echo::start();
    let (_worker, addr) = serve(&[echo.addr]);
    let mut client = Client::connect(addr);
    let body: String = (0..300_000).map(|index| char::from(b'a' + (index % 26) as u8)).collect();
    client.send(format!("POST /long HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len()));
    client.send(&body);
    let response = client.receive();
    assert!(response.text().contains("\ncontent-length: 300000\n"));
    assert!(response.text().ends_with(&body));
    client.send("POST /chunks HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    for piece in body.as_bytes().chunks(10_001) {
        client.send(format!("{:x}\r\n", piece.len()));
        client.send(piece);
        client.send("\r\n");
    }
    client.send("0\r\nX-Sum: 7\r\n\r\n");
    let response = client.receive();
    assert!(response.text().contains("\ntransfer-encoding: chunked\n"));
    assert!(response.text().ends_with(&format!("{body}\ntrailer x-sum: 7")));
}

#[test]
fn fields_of_the_hop_end_here_and_the_real_peer_is_told() {
    let echo = Echo::start();
    let (_worker, addr) = serve(&[echo.addr]);
    let mut client = Client::connect(addr);
    client.send(
        "GET / HTTP/1.1\r\nHost: a:81\r\nConnection: x-own, keep-alive\r\nX-Own: 1\r\nKeep-Alive: x\r\nTE: trailers\r\n\
         X-Forwarded-For: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\nX-Forwarded-Proto: https\r\nProxy-Connection: x\r\n\r\n",
    );
    let text = client.receive().text();
    for gone in ["x-own", "keep-alive", "\nte:", "6.6.6.6", "https", "proxy-connection"] {
        assert!(!text.contains(gone), "{gone} in {text}");
    }
    let port = addr.port();
    for told in [
        "\nx-forwarded-for: 127.0.0.1\n",
        "\nx-forwarded-proto: http\n",
        "\nx-forwarded-host: a:81\n",
        &format!("\nx-forwarded-port: {port}\n"),
        "\nforwarded: for=127.0.0.1;host=\"a:81\";proto=http\n",
    ] {
        assert!(text.contains(told), "{told} not in {text}");
    }
}

#[test]
fn head_and_bodiless_statuses_keep_their_length_and_the_connection() {
    let addr = backend::scripted(|_, mut stream| {
        loop {
            let (head, _) = read_head(&mut stream);
            let response = match head.split(' ').nth(1) {
                Some("/head") => "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
                Some("/304") => "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",
                Some("/204") => "HTTP/1.1 204 No Content\r\n\r\n",
                Some("/close") => "HTTP/1.0 200 OK\r\n\r\nuntil the end",
                _ => return,
            };
            stream.write_all(response.as_bytes()).unwrap();
            if head.starts_with("GET /close") {
                return;
            }
        }
    });
    let (_worker, front) = serve(&[addr]);
    let mut client = Client::connect(front);
    client.send("HEAD /head HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.receive_to("HEAD").field("content-length"), Some("5"));
    client.send("GET /304 HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.receive().field("content-length"), Some("9"));
    client.send("GET /204 HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.receive().field("content-length"), None);
    client.send("GET /close HTTP/1.1\r\nHost: a\r\n\r\n");
    let response = client.receive();
    assert_eq!((response.text().as_str(), response.field("transfer-encoding")), ("until the end", Some("chunked")));
    client.send("GET /close HTTP/1.0\r\n\r\n");
    let response = client.receive();
    assert_eq!((response.text().as_str(), response.field("connection")), ("until the end", Some("close")));
    assert!(client.is_closed());
}

#[test]
fn leave_to_send_comes_from_the_endpoint() {
    let addr = backend::scripted(|_, mut stream| {
        let (head, rest) = read_head(&mut stream);
        assert!(head.contains("Expect: 100-continue"));
        assert!(rest.is_empty(), "the body came without leave");
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").unwrap();
        let body = read_rest(&mut stream, Vec::new(), 5);
        respond(&mut stream, &String::from_utf8(body).unwrap());
    });
    let (_worker, front) = serve(&[addr]);
    let mut client = Client::connect(front);
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(client.receive().status, 100);
    client.send("hello");
    assert_eq!(client.receive().text(), "hello");
}

#[test]
fn a_final_answer_in_place_of_leave_ends_the_request() {
    let addr = backend::scripted(|_, mut stream| {
        read_head(&mut stream);
        stream.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno").unwrap();
        assert!(read_head(&mut stream).0.is_empty());
    });
    let (_worker, front) = serve(&[addr]);
    let mut client = Client::connect(front);
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
    let response = client.receive();
    assert_eq!((response.status, response.text().as_str()), (403, "no"));
    assert_eq!(response.field("connection"), Some("close"));
    client.close_sending();
    assert!(client.is_closed());
}

#[test]
fn interim_responses_are_passed_on_to_http11_only() {
    let addr = backend::scripted(|_, mut stream| {
        while !read_head(&mut stream).0.is_empty() {
            stream.write_all(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n").unwrap();
            respond(&mut stream, "done");
        }
    });
    let (_worker, front) = serve(&[addr]);
    let mut client = Client::connect(front);
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let hint = client.receive();
    assert_eq!((hint.status, hint.field("link")), (103, Some("</a>")));
    assert_eq!(client.receive().text(), "done");
    client.send("GET / HTTP/1.0\r\n\r\n");
    assert_eq!(client.receive().status, 200);
}

#[test]
fn an_endpoint_may_answer_before_the_body_has_been_sent() {
    let addr = backend::scripted(|_, mut stream| {
        read_head(&mut stream);
        stream
            .write_all(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig")
            .unwrap();
        // Closing with unread data would reset the connection before the answer was read.
        let mut sink = [0; 4096];
        while std::io::Read::read(&mut stream, &mut sink).is_ok_and(|count| count > 0) {}
    });
    let (_worker, front) = serve(&[addr]);
    let mut client = Client::connect(front);
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nsome");
    let response = client.receive();
    assert_eq!((response.status, response.text().as_str()), (413, "big"));
    assert_eq!(response.field("connection"), Some("close"));
}

#[test]
fn upgrades_become_tunnels_with_half_close() {
    let addr = backend::scripted(|_, mut stream| {
        let (head, _) = read_head(&mut stream);
        assert!(head.contains("Connection: upgrade\r\n") && head.contains("Upgrade: websocket\r\n"), "{head}");
        assert!(head.to_ascii_lowercase().contains("sec-websocket-key: abc\r\n"));
        let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nearly";
        stream.write_all(answer.as_bytes()).unwrap();
        let mut buffer = [0; 1024];
        while let Ok(count @ 1..) = std::io::Read::read(&mut stream, &mut buffer) {
            stream.write_all(&buffer[..count]).unwrap();
        }
        stream.write_all(b"bye").unwrap();
    });
    let (mut worker, front) = serve(&[addr]);
    let mut client = Client::connect(front);
    client.send("GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: abc\r\n\r\nfirst");
    let response = client.receive();
    assert_eq!((response.status, response.field("upgrade")), (101, Some("websocket")));
    assert_eq!(client.take(10), b"earlyfirst");
    client.send("second");
    assert_eq!(client.take(6), b"second");
    client.close_sending();
    assert_eq!(client.rest(), b"bye");
    worker.wait_for_metric("tidegate_requests_total", &["status=\"1xx\""], 1.0);
}

#[test]
fn a_bad_answer_is_a_502_and_the_connection_is_not_used_again() {
    let count = Arc::new(AtomicUsize::new(0));
    let connections = count.clone();
    let addr = backend::scripted(move |_, mut stream| {
        connections.fetch_add(1, Ordering::Relaxed);
        read_head(&mut stream);
        let answer = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
        stream.write_all(answer.as_bytes()).unwrap();
        read_head(&mut stream);
    });
    let (mut worker, front) = serve(&[addr]);
    let mut client = Client::connect(front);
    for _ in 0..2 {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.receive().status, 502);
    }
    assert_eq!(count.load(Ordering::Relaxed), 2);
    assert_eq!(worker.metric("tidegate_upstream_failures_total", &["upstream_malformed"]), 2.0);
}

#[test]
fn an_unknown_host_path_or_socket_is_named() {
    let echo = Echo::start();
    let mut worker = Worker::start(1);
    let addr = worker.listen();
    let nowhere = worker.listen();
    let mut changes = model::backend("backend", BackendProtocol::Http1, &[echo.addr]);
    changes.push(model::listener("http", addr, Some("a.example"), None));
    changes.push(RuleSpec { prefix: "/here", ..RuleSpec::default() }.into_change());
    worker.apply(changes);
    let mut client = Client::connect(addr);
    for (host, path, status) in [("a.example", "/here", 200), ("a.example", "/there", 404), ("b.example", "/here", 404)]
    {
        client.send(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        assert_eq!(client.receive().status, status, "{host}{path}");
    }
    // A body that nobody wanted does not cost the connection.
    client.send("POST /there HTTP/1.1\r\nHost: a.example\r\nContent-Length: 3\r\n\r\nabc");
    assert_eq!(client.receive().status, 404);
    client.send("GET /here HTTP/1.1\r\nHost: a.example\r\n\r\n");
    assert_eq!(client.receive().status, 200);
    assert!(Client::connect(nowhere).is_closed());
    worker.wait_for_metric("tidegate_connections_refused_total", &["not_a_frontend"], 1.0);
    assert_eq!(fetch(addr, "/here").status, 404);
}
