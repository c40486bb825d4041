//! TLS of clients by SNI, certificates that change under open connections, and TLS to endpoints.

use std::{net::SocketAddr, sync::Arc};

use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, ServerName},
};
use tidegate_model::{BackendProtocol, BackendTls, CaBundle, CaBundleKey, Change, ObjectName, Resource, Trust};

use crate::support::{
    PATIENCE, Worker,
    backend::Echo,
    client::Client,
    model::{self, RuleSpec},
};

pub(crate) type TlsClient = StreamOwned<ClientConnection, std::net::TcpStream>;

pub(crate) fn config(roots: &[&[u8]], alpn: &[&str]) -> Arc<ClientConfig> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(CertificateDer::from(root.to_vec())).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    Arc::new(config)
}

pub(crate) fn connect(addr: SocketAddr, name: &'static str, config: Arc<ClientConfig>) -> std::io::Result<TlsClient> {
    let tcp = std::net::TcpStream::connect(addr)?;
    tcp.set_read_timeout(Some(PATIENCE))?;
    let connection =
        ClientConnection::new(config, ServerName::try_from(name).unwrap()).map_err(std::io::Error::other)?;
    let mut stream = StreamOwned::new(connection, tcp);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(stream)
}

pub(crate) fn get(stream: &mut TlsClient, host: &str) -> String {
    use std::io::{Read, Write};
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).unwrap();
    let mut text = String::new();
    let mut buffer = [0; 4096];
    let is_whole = |text: &str| text.contains("\r\n0\r\n\r\n") || (text.contains("ontent-") && text.ends_with('\n'));
    while !is_whole(&text) {
        let count = stream.read(&mut buffer).unwrap();
        assert!(count > 0, "closed: {text}");
        text.push_str(str::from_utf8(&buffer[..count]).unwrap());
    }
    text
}

fn peer(stream: &TlsClient) -> Vec<u8> {
    stream.conn.peer_certificates().unwrap()[0].to_vec()
}

#[test]
fn certificates_are_chosen_by_name_and_replaced_live() {
    let echo = Echo::start();
    let mut worker = Worker::start(1);
    let addr = worker.listen();
    let (a, put_a) = model::certificate("a", "a.example");
    let (b, put_b) = model::certificate("b", "b.example");
    let mut changes = vec![put_a, put_b];
    changes.extend(model::backend("backend", BackendProtocol::Http1, &[echo.addr]));
    changes.push(model::listener("a", addr, Some("a.example"), Some("a")));
    changes.push(model::listener("b", addr, Some("b.example"), Some("b")));
    for listener in ["a", "b"] {
        changes.push(RuleSpec { name: listener, listener, ..RuleSpec::default() }.into_change());
    }
    assert!(worker.apply(changes).is_empty());

    let both = config(&[&a, &b], &["http/1.1"]);
    let mut to_a = connect(addr, "a.example", both.clone()).unwrap();
    assert_eq!(peer(&to_a), a);
    assert!(get(&mut to_a, "a.example").starts_with("HTTP/1.1 200"));
    assert!(get(&mut to_a, "a.example").contains("x-forwarded-proto: https"));
    assert!(get(&mut to_a, "b.example").starts_with("HTTP/1.1 421"), "b's requests over a's connection");
    assert_eq!(peer(&connect(addr, "b.example", both.clone()).unwrap()), b);
    let error = connect(addr, "c.example", both.clone()).unwrap_err();
    assert!(
        error.to_string().to_lowercase().contains("unrecognised") || error.to_string().contains("UnrecognizedName"),
        "{error}"
    );

    let (new_a, put_a) = model::certificate("a", "a.example");
    worker.apply(vec![put_a]);
    assert_eq!(peer(&connect(addr, "a.example", config(&[&new_a], &[])).unwrap()), new_a);
    assert!(get(&mut to_a, "a.example").starts_with("HTTP/1.1 200"), "the connection made before goes on");
    assert!(worker.metric("tidegate_tls_handshakes_total", &[]) >= 3.0);
}

#[test]
fn http2_is_chosen_by_alpn() {
    let echo = Echo::start();
    let mut worker = Worker::start(1);
    let addr = worker.listen();
    let (root, put) = model::certificate("a", "a.example");
    let mut changes = vec![put, model::listener("http", addr, None, Some("a")), RuleSpec::default().into_change()];
    changes.extend(model::backend("backend", BackendProtocol::Http1, &[echo.addr]));
    worker.apply(changes);
    let stream = connect(addr, "a.example", config(&[&root], &["h2", "http/1.1"])).unwrap();
    assert_eq!(stream.conn.alpn_protocol(), Some(&b"h2"[..]));
    let connector = tokio_rustls::TlsConnector::from(config(&[&root], &["h2"]));
    crate::http2::block_on(async {
        let tcp = tokio::net::TcpStream::connect(addr).await.unwrap();
        let stream = connector.connect(ServerName::try_from("a.example").unwrap(), tcp).await.unwrap();
        let io = hyper_util::rt::TokioIo::new(stream);
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(hyper_util::rt::TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        let request = crate::http2::request("GET", "https://a.example/x", crate::http2::full(""));
        let (status, text, _) = crate::http2::read(sender.send_request(request).await.unwrap()).await;
        assert_eq!(status, 200);
        assert!(text.contains("x-forwarded-proto: https"), "{text}");
    });
}

#[test]
fn a_frontend_without_a_usable_certificate_refuses_and_says_why() {
    let mut worker = Worker::start(1);
    let addr = worker.listen();
    worker.apply(vec![model::listener("a", addr, None, Some("missing"))]);
    assert!(connect(addr, "a.example", config(&[], &[])).is_err());
    worker.wait_for_metric("tidegate_tls_handshake_failures_total", &["no_certificate"], 1.0);
    // Clear text on a TLS frontend.
    let mut client = Client::connect(addr);
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    client.close_sending();
    client.rest();
    worker.wait_for_metric("tidegate_tls_handshake_failures_total", &["client_hello"], 1.0);
}

#[test]
fn endpoints_are_asked_for_their_certificate() {
    // A second worker with TLS stands in for the endpoint.
    let echo = Echo::start();
    let mut inner = Worker::start(1);
    let inner_addr = inner.listen();
    let (root, put) = model::certificate("a", "backend.example");
    let mut changes =
        vec![put, model::listener("http", inner_addr, None, Some("a")), RuleSpec::default().into_change()];
    changes.extend(model::backend("backend", BackendProtocol::Http1, &[echo.addr]));
    inner.apply(changes);

    let mut worker = Worker::start(1);
    let addr = worker.listen();
    worker.apply(vec![model::http_listener(addr), RuleSpec::default().into_change()]);
    let (stranger, _) = model::certificate("x", "backend.example");
    for protocol in [BackendProtocol::Http1, BackendProtocol::Http2] {
        for (name, authority, status) in
            [("backend.example", &root, 200), ("other.example", &root, 502), ("backend.example", &stranger, 502)]
        {
            let key = CaBundleKey::ConfigMap(ObjectName::new("test", "ca"));
            let tls = BackendTls {
                server_name: name.to_owned(),
                subject_alt_names: Vec::new(),
                trust: Trust::Bundles(vec![key.clone()]),
            };
            let bundle = CaBundle { authorities: vec![authority.clone()] };
            worker.apply(vec![Change::Put(Resource::CaBundle(key, bundle.into()))]);
            worker.apply(model::backend_with("backend", protocol, Some(tls), &[inner_addr]));
            // The inner worker wants the name of its listener's connection in `Host`.
            let mut client = Client::connect(addr);
            client.send("GET / HTTP/1.1\r\nHost: backend.example\r\nConnection: close\r\n\r\n");
            assert_eq!(client.receive().status, status, "{name} {protocol:?}");
        }
    }
    assert!(worker.metric("tidegate_upstream_connect_errors_total", &[]) >= 4.0);
}
