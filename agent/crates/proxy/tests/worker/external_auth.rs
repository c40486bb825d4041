//! Authorization servers that allow, deny, lie, stall or are not there.

use std::{
    convert::Infallible,
    io::Write,
    net::{SocketAddr, TcpListener},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tidegate_model::{
    BackendProtocol, Cors, CorsOrigin, ExternalAuth, ExternalAuthProtocol, Filter, Redirect, Timeouts,
};

use crate::support::{
    Worker,
    backend::{self, Echo, content_length, read_head, read_rest},
    client::{Client, Response as Answer},
    model::{self, RuleSpec},
};

fn http(request: &[&str], response: &[&str], max_body: Option<u32>) -> Filter {
    let names = |list: &[&str]| list.iter().map(|&name| name.into()).collect();
    Filter::ExternalAuth(ExternalAuth {
        backend: Some(model::backend_key("auth")),
        protocol: ExternalAuthProtocol::Http {
            path_prefix: "/check".into(),
            request_headers: names(request),
            response_headers: names(response),
        },
        max_body,
    })
}

/// What a listener asks: the same in another place.
fn of_listener(filter: Filter, backend: &str) -> ExternalAuth {
    let Filter::ExternalAuth(auth) = filter else { unreachable!("it is one") };
    ExternalAuth { backend: Some(model::backend_key(backend)), ..auth }
}

fn grpc(max_body: Option<u32>) -> Filter {
    Filter::ExternalAuth(ExternalAuth {
        backend: Some(model::backend_key("auth")),
        protocol: ExternalAuthProtocol::Grpc { request_headers: vec![] },
        max_body,
    })
}

/// A worker whose only rule has these filters, the echo behind it, and the authorization server at `auth`.
fn serve(filters: Vec<Filter>, protocol: BackendProtocol, auth: &[SocketAddr]) -> (Worker, SocketAddr, Echo) {
    serve_within(filters, protocol, auth, Timeouts::default())
}

fn serve_within(
    filters: Vec<Filter>,
    protocol: BackendProtocol,
    auth: &[SocketAddr],
    timeouts: Timeouts,
) -> (Worker, SocketAddr, Echo) {
    let echo = Echo::start();
    let mut worker = Worker::start(1);
    let addr = worker.listen();
    let mut changes = model::backend("backend", BackendProtocol::Http1, &[echo.addr]);
    changes.extend(model::backend("auth", protocol, auth));
    let rule = RuleSpec { filters, timeouts, ..RuleSpec::default() };
    changes.extend([model::http_listener(addr), rule.into_change()]);
    assert!(worker.apply(changes).is_empty());
    (worker, addr, echo)
}

/// A server over HTTP that gives each request the same answer, and what it was asked.
fn answering(answer: &'static str) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let record = asked.clone();
    let addr = backend::scripted(move |_, mut stream| {
        loop {
            let (head, rest) = read_head(&mut stream);
            if head.is_empty() {
                return;
            }
            let body = read_rest(&mut stream, rest, content_length(&head));
            record.lock().unwrap().push(head + &String::from_utf8(body).unwrap());
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    (addr, asked)
}

const ALLOW: &str = "HTTP/1.1 200 OK\r\nX-User: ann\r\nX-Other: 1\r\nContent-Length: 2\r\n\r\nok";

fn send(addr: SocketAddr, text: &str) -> Answer {
    let mut client = Client::connect(addr);
    client.send(text);
    client.receive()
}

fn refusing() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[test]
fn an_allowed_request_goes_on_with_the_servers_fields() {
    let (auth, asked) = answering(ALLOW);
    let filters = vec![http(&["x-asked"], &["x-user"], None)];
    let (mut worker, addr, _echo) = serve(filters, BackendProtocol::Http1, &[auth]);
    let text = "POST /a?b=c HTTP/1.1\r\nHost: shop.example\r\nAuthorization: t\r\nX-Asked: 1\r\nX-Not: 2\r\n\
                X-User: forged\r\nContent-Length: 5\r\n\r\nhello";
    let response = send(addr, text);
    assert_eq!(response.status, 200);
    let seen = response.text().to_ascii_lowercase();
    assert!(seen.starts_with("post /a?b=c ") && seen.ends_with("\n\nhello"), "{seen}");
    assert!(seen.contains("\nx-user: ann\n") && !seen.contains("forged") && !seen.contains("x-other"), "{seen}");
    let question = asked.lock().unwrap()[0].to_ascii_lowercase();
    assert!(question.starts_with("post /check/a?b=c http/1.1\r\n"), "{question}");
    for field in ["host: shop.example\r\n", "authorization: t\r\n", "x-asked: 1\r\n", "content-length: 0\r\n"] {
        assert!(question.contains(field), "{field} in {question}");
    }
    assert!(!question.contains("x-not") && !question.contains("x-user") && question.ends_with("\r\n\r\n"));
    // Its connection serves the next question.
    send(addr, "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(worker.metric("tidegate_upstream_connects_total", &["auth"]), 1.0);
}

#[test]
fn a_field_that_the_answer_does_not_set_goes_on_as_the_client_sent_it() {
    let (auth, _) = answering("HTTP/1.1 200 OK\r\nX-Scope:\r\nContent-Length: 0\r\n\r\n");
    let (_worker, addr, _echo) = serve(vec![http(&[], &["x-user", "x-scope"], None)], BackendProtocol::Http1, &[auth]);
    let response = send(addr, "GET / HTTP/1.1\r\nHost: a\r\nX-User: forged\r\nX-Scope: forged\r\n\r\n");
    let seen = response.text().to_ascii_lowercase();
    assert!(seen.contains("\nx-user: forged\n") && !seen.contains("x-scope: forged"), "{seen}");
}

#[test]
fn a_denial_is_passed_on_and_nothing_reaches_the_backend() {
    let denial = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic\r\nConnection: keep-alive\r\n\
                  Content-Length: 4\r\n\r\nwho?";
    let (auth, _) = answering(denial);
    let (mut worker, addr, echo) = serve(vec![http(&[], &[], None)], BackendProtocol::Http1, &[auth]);
    let mut client = Client::connect(addr);
    for _ in 0..2 {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        let response = client.receive();
        assert_eq!((response.status, response.text().as_str()), (401, "who?"));
        assert_eq!(response.field("www-authenticate"), Some("Basic"));
    }
    assert_eq!(echo.connections(), 0);
    assert_eq!(worker.metric("tidegate_local_responses_total", &["external_auth_denied"]), 2.0);
}

#[test]
fn only_200_allows() {
    for (answer, expected) in [
        ("HTTP/1.1 204 No Content\r\n\r\n", 403),
        ("HTTP/1.1 201 Created\r\nContent-Length: 1\r\n\r\nx", 403),
        ("HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n", 302),
        ("HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", 500),
        ("nonsense\r\n\r\n", 503),
    ] {
        let (auth, _) = answering(answer);
        let (_worker, addr, echo) = serve(vec![http(&[], &[], None)], BackendProtocol::Http1, &[auth]);
        assert_eq!(send(addr, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").status, expected, "{answer}");
        assert_eq!(echo.connections(), 0, "{answer}");
    }
}

#[test]
fn without_a_server_no_request_goes_on() {
    for (auth, backend, expected) in [(vec![], true, 503), (vec![refusing()], true, 503), (vec![], false, 500)] {
        let mut filter = http(&[], &[], None);
        if let (Filter::ExternalAuth(auth), false) = (&mut filter, backend) {
            auth.backend = None;
        }
        let (_worker, addr, echo) = serve(vec![filter], BackendProtocol::Http1, &auth);
        assert_eq!(send(addr, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").status, expected);
        assert_eq!(echo.connections(), 0);
    }
}

#[test]
fn a_server_that_stalls_ends_with_the_requests_own_limit() {
    let silent = backend::scripted(|_, mut stream| {
        read_head(&mut stream);
        let _ = std::io::Read::read(&mut stream, &mut [0]);
    });
    let timeouts = Timeouts { request: Some(Duration::from_millis(100)), backend_request: None };
    let (_worker, addr, echo) = serve_within(vec![http(&[], &[], None)], BackendProtocol::Http1, &[silent], timeouts);
    assert_eq!(send(addr, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").status, 504);
    assert_eq!(echo.connections(), 0);
}

#[test]
fn a_body_is_judged_and_sent_on_or_refused_when_too_long() {
    let (auth, asked) = answering(ALLOW);
    let (_worker, addr, echo) = serve(vec![http(&[], &[], Some(5))], BackendProtocol::Http1, &[auth]);
    let head = "POST / HTTP/1.1\r\nHost: a\r\n";
    for body in ["Content-Length: 5\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"]
    {
        let response = send(addr, &format!("{head}{body}"));
        assert!(response.status == 200 && response.text().ends_with("\n\nhello"), "{}", response.text());
        let question = asked.lock().unwrap().pop().unwrap();
        assert!(question.to_ascii_lowercase().contains("content-length: 5\r\n"), "{question}");
        assert!(question.ends_with("\r\n\r\nhello"), "{question}");
    }
    let connections = echo.connections();
    for body in ["Content-Length: 6\r\n\r\nhello!", "Transfer-Encoding: chunked\r\n\r\n6\r\nhello!\r\n0\r\n\r\n"] {
        assert_eq!(send(addr, &format!("{head}{body}")).status, 413);
    }
    assert!(asked.lock().unwrap().is_empty());
    assert_eq!(echo.connections(), connections);
}

#[test]
fn preflights_are_answered_before_and_redirects_after_the_server_is_asked() {
    let (auth, asked) = answering("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n");
    let cors = Filter::Cors(Cors {
        allow_origins: vec![CorsOrigin::Exact("https://a.example".into())],
        allow_methods: vec!["GET".into()],
        allow_headers: vec![],
        expose_headers: vec![],
        allow_credentials: false,
        max_age: 5,
    });
    let to = Redirect { scheme: None, host: None, path: None, port: None, status: 302 };
    let filters = vec![cors, http(&[], &[], None), Filter::Redirect(to)];
    let (_worker, addr, _echo) = serve(filters, BackendProtocol::Http1, &[auth]);
    let origin = "Host: a\r\nOrigin: https://a.example\r\n";
    let preflight = format!("OPTIONS / HTTP/1.1\r\n{origin}Access-Control-Request-Method: GET\r\n\r\n");
    let response = send(addr, &preflight);
    assert_eq!(response.status, 200);
    assert!(asked.lock().unwrap().is_empty());
    let response = send(addr, &format!("GET / HTTP/1.1\r\n{origin}\r\n"));
    assert_eq!((response.status, response.field("location")), (403, None));
    // A script may read why it was refused.
    assert_eq!(response.field("access-control-allow-origin"), Some("https://a.example"));
}

/// What a server was sent: head and body of each call.
type Calls = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

/// A server that answers each call with this message and status, and what it was sent.
fn grpc_server(message: &'static [u8], status: &'static str) -> (SocketAddr, Calls) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let addr = listener.local_addr().unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let record = asked.clone();
    let answer = move |request: Request<Incoming>| {
        let record = record.clone();
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes().to_vec();
            let head = format!("{} {} {:?}", parts.method, parts.uri.path(), parts.headers);
            record.lock().unwrap().push((head, body));
            let mut frame = vec![0];
            frame.extend_from_slice(&(message.len() as u32).to_be_bytes());
            frame.extend_from_slice(message);
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", status.parse().unwrap());
            let frames = [Frame::data(Bytes::from(frame)), Frame::trailers(trailers)].map(Ok::<_, Infallible>);
            let mut response = Response::new(StreamBody::new(futures_util::stream::iter(frames)));
            response.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
            Ok::<_, Infallible>(response)
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    std::thread::spawn(move || {
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let server = http2::Builder::new(TokioExecutor::new());
                tokio::spawn(server.serve_connection(TokioIo::new(stream), service_fn(answer.clone())));
            }
        });
    });
    (addr, asked)
}

/// `OK` with a field for the backend, one to remove and one for the client.
const GRPC_ALLOW: &[u8] =
    b"\x0a\x00\x1a\x32\x12\x0f\x0a\x0d\x0a\x06x-user\x12\x03ann*\x0dAuthorization2\x10\x0a\x0e\x0a\x06x-seen\x12\x04yes!";
/// `PERMISSION_DENIED` with status 401, a field and a body.
const GRPC_DENY: &[u8] =
    b"\x0a\x06\x08\x07\x12\x02no\x12(\x0a\x03\x08\x91\x03\x12\x1b\x0a\x19\x0a\x10WWW-Authenticate\x12\x05Basic\x1a\x04who?";

#[test]
fn a_server_in_grpc_allows_with_fields_for_both_directions() {
    let (auth, asked) = grpc_server(GRPC_ALLOW, "0");
    let (_worker, addr, _echo) = serve(vec![grpc(Some(100))], BackendProtocol::Http2, &[auth]);
    let text = "POST /a?b HTTP/1.1\r\nHost: shop.example\r\nAuthorization: t\r\nX-User: forged\r\n\
                Content-Length: 5\r\n\r\nhello";
    let response = send(addr, text);
    assert_eq!((response.status, response.field("x-seen")), (200, Some("yes!")));
    let seen = response.text().to_ascii_lowercase();
    assert!(seen.contains("\nx-user: ann\n") && seen.ends_with("\n\nhello"), "{seen}");
    assert!(!seen.contains("authorization") && !seen.contains("forged"), "{seen}");
    let (head, body) = asked.lock().unwrap().pop().unwrap();
    assert!(head.starts_with("POST /envoy.service.auth.v3.Authorization/Check "), "{head}");
    assert!(head.contains("\"application/grpc\"") && head.contains("\"trailers\""), "{head}");
    let length = u32::from_be_bytes(body[1..5].try_into().unwrap()) as usize;
    assert_eq!((body[0], length), (0, body.len() - 5));
    let text = String::from_utf8_lossy(&body);
    for part in ["POST", "/a?b", "shop.example", "authorization", "127.0.0.1", "HTTP/1.1", "hello"] {
        assert!(text.contains(part), "{part} in {text:?}");
    }
}

#[test]
fn a_server_in_grpc_denies_with_its_own_answer() {
    let (auth, _) = grpc_server(GRPC_DENY, "0");
    let (_worker, addr, echo) = serve(vec![grpc(None)], BackendProtocol::Http2, &[auth]);
    let response = send(addr, "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!((response.status, response.text().as_str()), (401, "who?"));
    assert_eq!(response.field("www-authenticate"), Some("Basic"));
    assert_eq!(echo.connections(), 0);
}

#[test]
fn a_call_that_fails_or_makes_no_sense_allows_nothing() {
    for (message, status) in [(GRPC_ALLOW, "14"), (b"\x1a\x05", "0"), (b"\x1a\x03B\x01q", "0")] {
        let (auth, _) = grpc_server(message, status);
        let (_worker, addr, echo) = serve(vec![grpc(None)], BackendProtocol::Http2, &[auth]);
        assert_eq!(send(addr, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").status, 503, "{status}");
        assert_eq!(echo.connections(), 0);
    }
    // A server of another protocol.
    let (auth, _) = answering(ALLOW);
    let (_worker, addr, echo) = serve(vec![grpc(None)], BackendProtocol::Http1, &[auth]);
    assert_eq!(send(addr, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").status, 503);
    assert_eq!(echo.connections(), 0);
}

#[test]
fn a_question_over_a_dead_connection_is_asked_again() {
    let count = Arc::new(AtomicUsize::new(0));
    let seen = count.clone();
    // Each connection serves one question, and is closed when the next arrives.
    let auth = backend::scripted(move |_, mut stream| {
        read_head(&mut stream);
        seen.fetch_add(1, Ordering::Relaxed);
        stream.write_all(ALLOW.as_bytes()).unwrap();
        let _ = std::io::Read::read(&mut stream, &mut [0]);
    });
    let (_worker, addr, _echo) = serve(vec![http(&[], &[], None)], BackendProtocol::Http1, &[auth]);
    for _ in 0..3 {
        assert_eq!(send(addr, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").status, 200);
    }
    assert_eq!(count.load(Ordering::Relaxed), 3);
}

/// A worker whose listener asks `auths` one after the other, with an echo behind every request and another behind those whose
/// `X-User` is `ann`.
fn serve_asking(auths: &[(&str, SocketAddr, ExternalAuth)]) -> (Worker, SocketAddr, [Echo; 2]) {
    let echoes = [Echo::start(), Echo::start()];
    let mut worker = Worker::start(1);
    let addr = worker.listen();
    let mut changes = model::backend("backend", BackendProtocol::Http1, &[echoes[0].addr]);
    changes.extend(model::backend("anns", BackendProtocol::Http1, &[echoes[1].addr]));
    for (name, auth, _) in auths {
        changes.extend(model::backend(name, BackendProtocol::Http1, &[*auth]));
    }
    changes.push(model::asking_listener(addr, auths.iter().map(|(_, _, auth)| auth.clone()).collect()));
    changes.push(RuleSpec { prefix: "/api", ..RuleSpec::default() }.into_change());
    let anns = RuleSpec {
        name: "anns",
        prefix: "/api",
        backend: "anns",
        headers: &[("x-user", "ann")],
        ..RuleSpec::default()
    };
    changes.push(anns.into_change());
    assert!(worker.apply(changes).is_empty());
    (worker, addr, echoes)
}

#[test]
fn a_listener_asks_before_a_rule_is_looked_for_and_rules_match_what_comes_of_it() {
    let (first, asked_first) = answering(ALLOW);
    let (second, asked_second) =
        answering("HTTP/1.1 200 OK\r\nX-Scope: all\r\nHost: evil.example\r\nContent-Length: 0\r\n\r\n");
    let (mut worker, addr, [echo, anns]) = serve_asking(&[
        ("first", first, of_listener(http(&[], &["x-user"], Some(16)), "first")),
        ("second", second, of_listener(http(&["x-user"], &[], None), "second")),
    ]);
    // What the client says of itself is replaced before anybody believes it.
    let response =
        send(addr, "POST /api/a HTTP/1.1\r\nHost: shop.example\r\nX-User: bob\r\nContent-Length: 5\r\n\r\nhello");
    assert_eq!(response.status, 200);
    let seen = response.text().to_ascii_lowercase();
    assert!(seen.contains("\nx-user: ann\n") && seen.contains("\nx-scope: all\n") && !seen.contains("bob"), "{seen}");
    assert!(seen.contains("\nhost: shop.example\n") && seen.ends_with("\n\nhello"), "{seen}");
    assert_eq!((echo.connections(), anns.connections()), (0, 1));
    assert!(asked_first.lock().unwrap()[0].ends_with("\r\n\r\nhello"), "the body was asked for");
    let question = asked_second.lock().unwrap()[0].to_ascii_lowercase();
    assert!(question.contains("x-user: ann\r\n"), "the second sees what the first has made of it: {question}");
    // Requests that no rule takes are asked about, too.
    assert_eq!(send(addr, "GET /other HTTP/1.1\r\nHost: a\r\n\r\n").status, 404);
    assert_eq!((asked_first.lock().unwrap().len(), asked_second.lock().unwrap().len()), (2, 2));
    // One that asks nobody any more forgets its servers.
    let gone = ["first", "second"].map(|name| tidegate_model::Key::Backend(model::backend_key(name)));
    let endpoints = ["first", "second"].map(|name| tidegate_model::Key::Endpoints(model::backend_key(name)));
    let mut changes = vec![model::http_listener(addr)];
    changes.extend(gone.into_iter().chain(endpoints).map(tidegate_model::Change::Remove));
    assert!(worker.apply(changes).is_empty());
    assert_eq!(send(addr, "GET /api HTTP/1.1\r\nHost: a\r\nX-User: bob\r\n\r\n").status, 200);
    assert_eq!((echo.connections(), asked_first.lock().unwrap().len()), (1, 2));
    assert!(!worker.scrape().contains("test/first"), "counters of a server that is gone");
}

#[test]
fn what_a_listeners_server_denies_or_leaves_undecided_reaches_no_rule() {
    let denial = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic\r\nContent-Length: 4\r\n\r\nwho?";
    let (auth, _) = answering(denial);
    let (mut worker, addr, [echo, anns]) = serve_asking(&[("auth", auth, of_listener(http(&[], &[], None), "auth"))]);
    for path in ["/api", "/other"] {
        let response = send(addr, &format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!((response.status, response.text().as_str()), (401, "who?"), "{path}");
    }
    assert_eq!(worker.metric("tidegate_local_responses_total", &["external_auth_denied"]), 2.0);
    // A server that is away, and a reference that leads nowhere.
    let nobody = ExternalAuth { backend: None, ..of_listener(http(&[], &[], None), "auth") };
    let away = of_listener(http(&[], &[], None), "away");
    let mut changes = model::backend("away", BackendProtocol::Http1, &[refusing()]);
    changes.push(model::asking_listener(addr, vec![away]));
    assert!(worker.apply(changes).is_empty());
    assert_eq!(send(addr, "GET /api HTTP/1.1\r\nHost: a\r\n\r\n").status, 503);
    assert!(worker.apply(vec![model::asking_listener(addr, vec![nobody])]).is_empty());
    assert_eq!(send(addr, "GET /api HTTP/1.1\r\nHost: a\r\n\r\n").status, 500);
    assert_eq!((echo.connections(), anns.connections()), (0, 0));
}
