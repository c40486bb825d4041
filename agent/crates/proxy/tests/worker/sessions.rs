//! Session persistence of a rule (GEP-1619) over real connections.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use tidegate_model::{BackendProtocol, Change, Retry, SessionCarrier, SessionPersistence};

use crate::support::{
    Worker,
    backend::{self, read_head, respond},
    client::{Client, Response},
    model::{self, RuleSpec},
};

/// An endpoint that says its name.
fn named(name: &'static str) -> SocketAddr {
    backend::scripted(move |_, mut stream| {
        while !read_head(&mut stream).0.is_empty() {
            respond(&mut stream, name);
        }
    })
}

fn cookie(timeout: Option<Duration>) -> SessionPersistence {
    let carrier = SessionCarrier::Cookie { name: "sid".into(), path: "/".into(), is_permanent: timeout.is_some() };
    SessionPersistence { carrier, absolute_timeout: timeout, secret: "secret".into() }
}

fn header() -> SessionPersistence {
    SessionPersistence { carrier: SessionCarrier::Header("x-session".into()), ..cookie(None) }
}

fn ask(addr: SocketAddr, fields: &str) -> Response {
    let mut client = Client::connect(addr);
    client.send(format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{fields}\r\n"));
    client.receive()
}

/// The field with which a client comes back.
fn returning(response: &Response) -> String {
    let set = response.field("set-cookie").expect("a session begins with a cookie");
    format!("Cookie: {}\r\n", set.split(';').next().unwrap())
}

fn serve(endpoints: &[SocketAddr], session: SessionPersistence, retry: Option<Retry>) -> (Worker, SocketAddr) {
    // Several shards: whichever takes the connection knows the token.
    let mut worker = Worker::start(3);
    let addr = worker.listen();
    let mut changes = model::backend("backend", BackendProtocol::Http1, endpoints);
    let rule = RuleSpec { session: Some(session), retry, ..RuleSpec::default() };
    changes.extend([model::http_listener(addr), rule.into_change()]);
    assert!(worker.apply(changes).is_empty());
    (worker, addr)
}

#[test]
fn a_cookie_keeps_a_client_at_its_endpoint() {
    let endpoints = [named("a"), named("b"), named("c")];
    let (_worker, addr) = serve(&endpoints, cookie(Some(Duration::from_secs(300))), None);
    let mut seen = BTreeSet::new();
    for _ in 0..6 {
        let first = ask(addr, "");
        let set = first.field("set-cookie").unwrap();
        assert!(set.starts_with("sid=") && set.ends_with("; Path=/; HttpOnly; SameSite=Strict; Max-Age=300"), "{set}");
        seen.insert(first.text());
        for _ in 0..10 {
            let again = ask(addr, &returning(&first));
            assert_eq!(again.text(), first.text());
            assert_eq!(again.field("set-cookie"), None, "nothing has changed");
        }
    }
    assert!(seen.len() > 1, "without a session endpoints take turns: {seen:?}");
}

#[test]
fn a_header_keeps_a_client_at_its_endpoint() {
    let (_worker, addr) = serve(&[named("a"), named("b")], header(), None);
    let first = ask(addr, "");
    let token = first.field("x-session").unwrap();
    for _ in 0..10 {
        assert_eq!(ask(addr, &format!("X-Session: {token}\r\n")).text(), first.text());
    }
}

#[test]
fn an_endpoint_that_is_gone_is_replaced_and_the_client_told() {
    let (a, b) = (named("a"), named("b"));
    let (mut worker, addr) = serve(&[a], cookie(None), None);
    let first = ask(addr, "");
    assert_eq!(first.text(), "a");
    worker.apply(model::backend("backend", BackendProtocol::Http1, &[b]));
    let second = ask(addr, &returning(&first));
    assert_eq!(second.text(), "b");
    worker.apply(model::backend("backend", BackendProtocol::Http1, &[a, b]));
    for _ in 0..5 {
        assert_eq!(ask(addr, &returning(&second)).text(), "b");
    }
}

#[test]
fn a_retry_elsewhere_moves_the_session() {
    let refusing = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr_of_refusing = refusing.local_addr().unwrap();
    let handle = std::thread::spawn(move || {
        // Serves one request, then nobody listens any more.
        let (mut stream, _) = refusing.accept().unwrap();
        read_head(&mut stream);
        respond(&mut stream, "a");
    });
    let (mut worker, addr) = serve(&[addr_of_refusing], cookie(None), None);
    let first = ask(addr, "");
    assert_eq!(first.text(), "a");
    handle.join().unwrap();
    worker.apply(model::backend("backend", BackendProtocol::Http1, &[addr_of_refusing, named("b")]));
    let moved = ask(addr, &returning(&first));
    assert_eq!(moved.text(), "b");
    assert_ne!(returning(&moved), returning(&first));
}

#[test]
fn what_a_client_makes_up_leads_nowhere_but_to_the_rules_endpoints() {
    let stranger = named("stranger");
    let (_worker, addr) = serve(&[named("a")], cookie(None), None);
    for token in [stranger.to_string(), "A".repeat(80), "%".repeat(80), "=".to_owned(), "x".repeat(20_000)] {
        let response = ask(addr, &format!("Cookie: sid={token}; sid=\r\nCookie: sid={token}\r\n"));
        assert_eq!((response.status, response.text().as_str()), (200, "a"));
    }
}

/// A rule at a path of its own with weighted backends and a session of its own.
fn weighted(name: &str, path: &str, backends: &[(&str, u32)], secret: &str) -> Change {
    model::weighted_rule(name, path, backends, Some(SessionPersistence { secret: secret.into(), ..cookie(None) }))
}

fn ask_at(addr: SocketAddr, path: &str, fields: &str) -> Response {
    let mut client = Client::connect(addr);
    client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{fields}\r\n"));
    client.receive()
}

#[test]
fn sessions_go_before_weights_and_new_ones_keep_to_them() {
    let mut worker = Worker::start(1);
    let addr = worker.listen();
    let mut changes = model::backend("one", BackendProtocol::Http1, &[named("one")]);
    changes.extend(model::backend("two", BackendProtocol::Http1, &[named("two")]));
    changes.extend([model::http_listener(addr), weighted("r", "/", &[("one", 7), ("two", 3)], "s")]);
    worker.apply(changes);
    let firsts: Vec<_> = (0..20).map(|_| ask(addr, "")).collect();
    assert_eq!(firsts.iter().filter(|response| response.text() == "one").count(), 14);
    // Even a weight of zero ends no session (GEP-1619, traffic splitting).
    worker.apply(vec![weighted("r", "/", &[("one", 1), ("two", 0)], "s")]);
    for first in &firsts {
        assert_eq!(ask(addr, &returning(first)).text(), first.text());
    }
    assert!((0..10).all(|_| ask(addr, "").text() == "one"));
}

#[test]
fn rules_share_no_session() {
    let mut worker = Worker::start(1);
    let addr = worker.listen();
    let mut changes = model::backend("one", BackendProtocol::Http1, &[named("a"), named("b")]);
    let rules = [weighted("r", "/r", &[("one", 1)], "r"), weighted("s", "/s", &[("one", 1)], "s")];
    changes.push(model::http_listener(addr));
    changes.extend(rules);
    worker.apply(changes);
    let first = ask_at(addr, "/r", "");
    let other: BTreeSet<_> = (0..4).map(|_| ask_at(addr, "/s", &returning(&first)).text()).collect();
    assert_eq!(other.len(), 2, "the other rule balances as if there were no cookie");
    assert!((0..4).all(|_| ask_at(addr, "/r", &returning(&first)).text() == first.text()));
}
