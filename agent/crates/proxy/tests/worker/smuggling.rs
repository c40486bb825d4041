//! Whatever could be read in two ways is refused over the wire with its name counted, and nothing of it reaches an endpoint.

use tidegate_model::BackendProtocol;

use crate::support::{
    Worker,
    backend::Echo,
    client::Client,
    model::{self, RuleSpec},
};

#[test]
fn nothing_ambiguous_reaches_an_endpoint() {
    let echo = Echo::start();
    let mut worker = Worker::start(1);
    let addr = worker.listen();
    let mut changes = model::backend("backend", BackendProtocol::Http1, &[echo.addr]);
    changes.extend([model::http_listener(addr), RuleSpec::default().into_change()]);
    worker.apply(changes);
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    let table: &[(&str, u16, &str)] = &[
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            "length_and_encoding",
        ),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 44\r\n\r\n", 400, "length_repeated"),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +0\r\n\r\n", 400, "length_invalid"),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, x\r\n\r\n0\r\n\r\n", 400, "encoding_invalid"),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: x, chunked\r\n\r\n0\r\n\r\n", 501, "encoding_unknown"),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400, "space_before_colon"),
        ("POST / HTTP/1.1\r\nHost: a\r\nX: y\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "folded_line"),
        ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "encoding_in_http10"),
        ("GET / HTTP/1.1\nHost: a\n\n", 400, "bare_lf"),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n", 400, "bare_cr"),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", 400, "field_value"),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "host_repeated"),
        ("GET / HTTP/1.1\r\n\r\n", 400, "host_missing"),
        ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400, "host_invalid"),
        ("GET / HTTP/3.0\r\nHost: a\r\n\r\n", 505, "version"),
        ("CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", 501, "connect"),
        ("GET /x y HTTP/1.1\r\nHost: a\r\n\r\n", 400, "request_line"),
    ];
    for (text, status, reason) in table {
        let mut client = Client::connect(addr);
        client.send(format!("{text}{smuggled}"));
        let response = client.receive();
        assert_eq!(response.status, *status, "{text:?}");
        assert_eq!(response.field("connection"), Some("close"), "{text:?}");
        client.close_sending();
        assert!(client.is_closed(), "{text:?} was followed by an answer to what it carried");
        let counted = worker.metric("tidegate_protocol_errors_total", &[&format!("reason=\"{reason}\"")]);
        assert_eq!(counted, 1.0, "{reason}:\n{}", worker.scrape());
    }
    assert_eq!(echo.connections(), 0);
}

#[test]
fn a_broken_body_breaks_its_own_request_only() {
    let echo = Echo::start();
    let mut worker = Worker::start(1);
    let addr = worker.listen();
    let mut changes = model::backend("backend", BackendProtocol::Http1, &[echo.addr]);
    changes.extend([model::http_listener(addr), RuleSpec::default().into_change()]);
    worker.apply(changes);
    for body in ["zz\r\n", "3\r\nabcd", "0x3\r\nabc\r\n0\r\n\r\n", "0\r\nContent-Length: 3\r\n\r\n", "3\nabc\n0\n\n"] {
        let mut client = Client::connect(addr);
        client.send(format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}"));
        assert_eq!(client.receive().status, 400, "{body:?}");
        client.close_sending();
        assert!(client.is_closed(), "{body:?}");
    }
}

#[test]
fn heads_beyond_the_limits_are_refused_while_they_arrive() {
    let mut worker = Worker::start(1);
    let addr = worker.listen();
    worker.apply(vec![model::http_listener(addr)]);
    let long = "a".repeat(70_000);
    let many: String = (0..200).map(|index| format!("X-{index}: 1\r\n")).collect();
    for (text, status) in [
        (format!("GET /{long} HTTP/1.1\r\n"), 414),
        (format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", &long[..20_000]), 414),
        (format!("GET / HTTP/1.1\r\nX: {long}\r\n"), 431),
        (format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n"), 431),
    ] {
        let mut client = Client::connect(addr);
        client.send(&text);
        assert_eq!(client.receive().status, status, "{} bytes", text.len());
    }
}
