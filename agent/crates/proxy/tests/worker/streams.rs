//! Connections that are forwarded as they are: by TCP port, and by the server name of a TLS handshake.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::mpsc,
};

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use tidegate_model::{
    BackendProtocol, BackendTarget, BackendTls, CaBundle, CaBundleKey, Change, Key, ObjectName, Resource, TlsMode,
    Trust,
};

use crate::{
    support::{
        PATIENCE, Worker,
        backend::{self, Echo},
        model::{self, ForwardSpec, backend_key, forward_key},
    },
    tls,
};

/// A server that says its name first, then sends back what it gets, and ends when its client has.
fn named(name: &'static str) -> SocketAddr {
    backend::scripted(move |_, mut stream| {
        let mut bytes = [0; 4096];
        let _ = stream.write_all(name.as_bytes());
        while let Ok(count @ 1..) = stream.read(&mut bytes) {
            if stream.write_all(&bytes[..count]).is_err() {
                return;
            }
        }
        let _ = stream.write_all(b"end");
    })
}

fn connect(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Reads to the end of what is sent; `Err` is a reset.
fn read_all(stream: &mut impl Read) -> Result<String, ErrorKind> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).map_err(|error| error.kind())?;
    Ok(String::from_utf8(bytes).unwrap())
}

/// Name of the server that a connection of its own reaches.
fn reached(addr: SocketAddr) -> Result<String, ErrorKind> {
    let mut stream = connect(addr);
    // A server that has reset the connection already does not mind.
    let _ = stream.shutdown(Shutdown::Write);
    read_all(&mut stream).map(|text| text.trim_end_matches("end").to_owned())
}

fn backend(name: &str, addr: SocketAddr) -> Vec<Change> {
    model::backend(name, BackendProtocol::Http1, &[addr])
}

/// An address where nobody listens.
fn nowhere() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[test]
fn bytes_go_both_ways_and_each_side_ends_by_itself() {
    let mut worker = Worker::start(1);
    let addr = worker.listen();
    let mut changes = backend("a", named("a:"));
    changes.extend([model::tcp_listener(addr), ForwardSpec::tcp("f", &[("a", 1)]).into_change()]);
    assert!(worker.apply(changes).is_empty());
    let mut stream = connect(addr);
    let mut hello = [0; 2];
    stream.read_exact(&mut hello).unwrap();
    assert_eq!(&hello, b"a:", "the server is first to speak");
    let sent: Vec<u8> = (0..3_000_000u32).map(|index| (index % 251) as u8).collect();
    let mut writer = stream.try_clone().unwrap();
    let to_send = sent.clone();
    let writing = std::thread::spawn(move || {
        writer.write_all(&to_send).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    writing.join().unwrap();
    assert!(back.ends_with(b"end"), "the server speaks on after its client's end");
    assert_eq!(back[..back.len() - 3], sent);
    let labels = ["kind=\"TCPRoute\"", "route=\"test/f\"", "gateway=\"test/gateway\""];
    worker.wait_for_metric("tidegate_forward_received_bytes_total", &labels, 3_000_000.0);
    assert_eq!(worker.metric("tidegate_forward_sent_bytes_total", &labels), 3_000_005.0);
    assert_eq!(worker.metric("tidegate_forwards_total", &labels), 1.0);
    assert_eq!(worker.metric("tidegate_upstream_connects_total", &[]), 1.0);
}

#[test]
fn weights_are_exact_over_few_connections_and_zero_takes_none() {
    let mut worker = Worker::start(1);
    let addr = worker.listen();
    let mut changes = vec![model::tcp_listener(addr)];
    for name in ["a", "b", "c"] {
        changes.extend(backend(name, named(name)));
    }
    changes.push(ForwardSpec::tcp("f", &[("a", 7), ("b", 3), ("c", 0)]).into_change());
    worker.apply(changes);
    let names: Vec<_> = (0..20).map(|_| reached(addr).unwrap()).collect();
    let count = |wanted: &str| names.iter().filter(|name| *name == wanted).count();
    assert_eq!([count("a"), count("b"), count("c")], [14, 6, 0]);
}

#[test]
fn the_oldest_route_takes_a_listener_and_open_connections_stay_when_it_goes() {
    let mut worker = Worker::start(1);
    let addr = worker.listen();
    let mut changes = vec![model::tcp_listener(addr)];
    for name in ["old", "new"] {
        changes.extend(backend(name, named(name)));
    }
    changes.push(ForwardSpec { created: 2, ..ForwardSpec::tcp("a", &[("new", 1)]) }.into_change());
    changes.push(ForwardSpec { created: 1, ..ForwardSpec::tcp("b", &[("old", 1)]) }.into_change());
    worker.apply(changes);
    assert_eq!(reached(addr).unwrap(), "old");
    let mut open = connect(addr);
    let mut name = [0; 3];
    open.read_exact(&mut name).unwrap();
    worker.apply(vec![
        Change::Remove(Key::Forward(forward_key(tidegate_model::RuleKind::TCPRoute, "b"))),
        Change::Remove(Key::Endpoints(backend_key("old"))),
        Change::Remove(Key::Backend(backend_key("old"))),
    ]);
    assert_eq!(reached(addr).unwrap(), "new");
    worker.apply(vec![Change::Remove(Key::Listener(model::listener_key("tcp")))]);
    open.write_all(b"still here").unwrap();
    open.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&mut open).unwrap(), "still hereend");
}

#[test]
fn an_endpoint_that_refuses_is_passed_over() {
    let mut worker = Worker::start(1);
    let addr = worker.listen();
    let mut changes = vec![model::tcp_listener(addr), ForwardSpec::tcp("f", &[("a", 1)]).into_change()];
    changes.extend(model::backend("a", BackendProtocol::Http1, &[nowhere(), named("a")]));
    worker.apply(changes);
    for _ in 0..4 {
        assert_eq!(reached(addr).unwrap(), "a");
    }
    assert!(worker.metric("tidegate_upstream_connect_errors_total", &[]) >= 1.0);
    worker.apply(model::backend("a", BackendProtocol::Http1, &[nowhere()]));
    assert_eq!(reached(addr), Err(ErrorKind::ConnectionReset));
    worker.wait_for_metric("tidegate_forward_failures_total", &["upstream_connect"], 1.0);
}

#[test]
fn what_cannot_be_forwarded_is_reset_and_counted() {
    let mut worker = Worker::start(1);
    let addr = worker.listen();
    worker.apply(vec![model::tcp_listener(addr)]);
    assert_eq!(reached(addr), Err(ErrorKind::ConnectionReset));
    worker.wait_for_metric("tidegate_connections_refused_total", &["no_route"], 1.0);
    let forward = |backends: &[(&'static str, u32)]| ForwardSpec::tcp("f", backends);
    let invalid = BackendTarget::Invalid("Service/test/x does not exist".into());
    for (spec, reason) in [
        (forward(&[]), "no_backend"),
        (forward(&[("a", 0)]), "no_backend"),
        (forward(&[("a", 1)]), "no_endpoints"),
        (ForwardSpec { targets: vec![(invalid, 1)], ..forward(&[]) }, "invalid_backend"),
    ] {
        let before = worker.metric("tidegate_forward_failures_total", &[reason]);
        worker.apply(vec![spec.into_change()]);
        assert_eq!(reached(addr), Err(ErrorKind::ConnectionReset), "{reason}");
        worker.wait_for_metric("tidegate_forward_failures_total", &[reason], before + 1.0);
    }
}

#[test]
fn a_reset_of_one_side_reaches_the_other() {
    let (reset, wait) = mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let server = backend::scripted(move |_, mut stream| {
        stream.write_all(b"x").unwrap();
        wait.lock().unwrap().recv().unwrap();
        socket2::SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    });
    let mut worker = Worker::start(1);
    let addr = worker.listen();
    let mut changes = backend("a", server);
    changes.extend([model::tcp_listener(addr), ForwardSpec::tcp("f", &[("a", 1)]).into_change()]);
    worker.apply(changes);
    let mut stream = connect(addr);
    stream.read_exact(&mut [0]).unwrap();
    reset.send(()).unwrap();
    assert_eq!(read_all(&mut stream), Err(ErrorKind::ConnectionReset));
    worker.wait_for_metric("tidegate_forward_failures_total", &["tunnel_closed"], 1.0);
}

/// A server with TLS of its own that tells the name it was asked for, then echoes; its certificate too.
fn tls_server(name: &'static str) -> (SocketAddr, Vec<u8>) {
    let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
    let der = made.cert.der().to_vec();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(rustls::crypto::aws_lc_rs::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![der.clone().into()], key)
        .unwrap();
    let config = std::sync::Arc::new(config);
    let addr = backend::scripted(move |_, stream| {
        let mut stream = StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), stream);
        let mut bytes = [0; 64];
        while let Ok(count @ 1..) = stream.read(&mut bytes) {
            let asked = stream.conn.server_name().unwrap_or_default().to_owned();
            if stream.write_all(&[asked.as_bytes(), b":", &bytes[..count]].concat()).is_err() {
                return;
            }
        }
    });
    (addr, der)
}

fn ask(addr: SocketAddr, name: &'static str, root: &[u8]) -> std::io::Result<String> {
    let mut stream = tls::connect(addr, name, tls::config(&[root], &[]))?;
    stream.write_all(b"hi")?;
    let mut bytes = [0; 64];
    let count = stream.read(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes[..count]).into_owned())
}

#[test]
fn tls_ends_here_or_at_the_backend_by_server_name_beside_https_on_one_port() {
    let mut worker = Worker::start(1);
    let addr = worker.listen();
    let (passed, passed_root) = tls_server("pass.example.com");
    let plain = backend::scripted(|_, mut stream| {
        let mut bytes = [0; 64];
        while let Ok(count @ 1..) = stream.read(&mut bytes) {
            stream.write_all(&[b"plain:", &bytes[..count]].concat()).unwrap();
        }
    });
    let (root, put) = model::certificate("a", "term.example.com");
    let (https_root, put_https) = model::certificate("b", "www.example.org");
    let mut changes = vec![put, put_https];
    changes.extend(backend("passed", passed));
    changes.extend(backend("plain", plain));
    changes.extend(backend("echo", Echo::start().addr));
    changes.extend([
        model::tls_listener("pass", addr, Some("pass.example.com"), TlsMode::Passthrough, None),
        model::tls_listener("term", addr, Some("*.example.com"), TlsMode::Terminate, Some("a")),
        model::listener("http", addr, None, Some("b")),
        ForwardSpec::tls("p", "pass", &[], &[("passed", 1)]).into_change(),
        ForwardSpec::tls("t", "term", &["term.example.com"], &[("plain", 1)]).into_change(),
        model::RuleSpec { backend: "echo", ..model::RuleSpec::default() }.into_change(),
    ]);
    assert!(worker.apply(changes).is_empty());
    assert_eq!(ask(addr, "pass.example.com", &passed_root).unwrap(), "pass.example.com:hi");
    assert_eq!(ask(addr, "term.example.com", &root).unwrap(), "plain:hi");
    let mut https = tls::connect(addr, "www.example.org", tls::config(&[&https_root], &["http/1.1"])).unwrap();
    assert!(tls::get(&mut https, "www.example.org").starts_with("HTTP/1.1 200"));
    // The terminating listener has no route for this name, and that of HTTPS is not asked in its place.
    let error = ask(addr, "other.example.com", &root).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    worker.wait_for_metric("tidegate_tls_handshake_failures_total", &["no_route"], 1.0);
    // Requests for a name of TLS forwards are no business of the HTTPS listener's connections.
    assert!(tls::get(&mut https, "pass.example.com").starts_with("HTTP/1.1 421"));
    let labels = ["kind=\"TLSRoute\""];
    assert_eq!(worker.metric("tidegate_forwards_total", &labels), 2.0);
    assert_eq!(worker.metric("tidegate_tls_handshakes_total", &[]), 2.0, "the passed one was not ours to count");
}

#[test]
fn a_terminated_stream_is_encrypted_again_where_the_backend_wants_it() {
    let mut worker = Worker::start(1);
    let addr = worker.listen();
    let (inner, inner_root) = tls_server("inner.example");
    let (root, put) = model::certificate("a", "term.example");
    let key = CaBundleKey::ConfigMap(ObjectName::new("test", "inner"));
    let put_backend = |authority: &[u8]| {
        let bundle = CaBundle { authorities: vec![authority.to_vec()] };
        let trust = Trust::Bundles(vec![key.clone()]);
        let tls = BackendTls { server_name: "inner.example".into(), subject_alt_names: vec![], trust };
        let mut changes = vec![Change::Put(Resource::CaBundle(key.clone(), bundle.into()))];
        changes.extend(model::backend_with("in", BackendProtocol::Http1, Some(tls), &[inner]));
        changes
    };
    let mut changes = vec![
        put,
        model::tls_listener("term", addr, None, TlsMode::Terminate, Some("a")),
        ForwardSpec::tls("t", "term", &[], &[("in", 1)]).into_change(),
    ];
    changes.extend(put_backend(&inner_root));
    worker.apply(changes);
    assert_eq!(ask(addr, "term.example", &root).unwrap(), "inner.example:hi");
    // One that cannot prove who it is gets nothing.
    worker.apply(put_backend(&root));
    assert!(ask(addr, "term.example", &root).is_err());
    worker.wait_for_metric("tidegate_forward_failures_total", &["upstream_tls"], 1.0);
}

#[test]
fn hostile_greetings_end_alone() {
    let mut worker = Worker::start(1);
    let addr = worker.listen();
    let (passed, root) = tls_server("pass.example.com");
    let mut changes = backend("passed", passed);
    changes.extend([
        model::tls_listener("pass", addr, Some("pass.example.com"), TlsMode::Passthrough, None),
        ForwardSpec::tls("p", "pass", &[], &[("passed", 1)]).into_change(),
    ]);
    worker.apply(changes);
    let failures =
        |worker: &mut Worker, reason: &str| worker.metric("tidegate_tls_handshake_failures_total", &[reason]);
    // Slow ones wait beside all others.
    let mut slow = connect(addr);
    slow.write_all(&[22, 3]).unwrap();
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[22, 3, 1, 0, 0], &[22, 3, 1, 0xff, 0xff], &[0; 64]] {
        let before = failures(&mut worker, "client_hello");
        let mut stream = connect(addr);
        stream.write_all(garbage).unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
        worker.wait_for_metric("tidegate_tls_handshake_failures_total", &["client_hello"], before + 1.0);
    }
    drop(connect(addr));
    worker.wait_for_metric("tidegate_tls_handshake_failures_total", &["client_closed"], 1.0);
    // An address is no name, and no listener is for those without one.
    assert!(ask(addr, "127.0.0.1", &root).is_err());
    worker.wait_for_metric("tidegate_tls_handshake_failures_total", &["unrecognized_name"], 1.0);
    assert_eq!(ask(addr, "pass.example.com", &root).unwrap(), "pass.example.com:hi");
    drop(slow);
    worker.wait_for_metric("tidegate_tls_handshake_failures_total", &["client_closed"], 2.0);
}
