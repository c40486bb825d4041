//! Who is believed on both sides: certificates of endpoints by name and authority, certificates of clients, and the
//! certificates that the worker itself shows.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
};

use rcgen::ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
use rustls::{ClientConfig, ClientConnection, StreamOwned, pki_types::ServerName};
use tidegate_model::{
    BackendIdentity, BackendProtocol, BackendTls, Change, ClientValidation, ClientValidationMode, Listener, Resource,
    SubjectAltName, Trust,
};

use crate::support::{
    PATIENCE, Worker,
    backend::Echo,
    client::Client,
    model::{self, RuleSpec},
    pki::{self, Authority, Issued, Leaf},
};

const NAME: &str = "backend.example";

/// A worker that terminates TLS with a certificate of its own and, if `clients` says so, looks at those of clients.
fn endpoint(
    echo: &Echo,
    served: &Issued,
    clients: Option<ClientValidation>,
    bundles: Vec<Change>,
) -> (Worker, SocketAddr) {
    let mut worker = Worker::start(1);
    let addr = worker.listen();
    let mut changes = bundles;
    changes.push(served.as_certificate("served"));
    changes.push(listener("http", addr, Some("served"), |listener| {
        listener.tls.as_mut().unwrap().clients = clients;
    }));
    changes.push(RuleSpec::default().into_change());
    changes.extend(model::backend("backend", BackendProtocol::Http1, &[echo.addr]));
    assert!(worker.apply(changes).is_empty());
    (worker, addr)
}

fn listener(name: &str, addr: SocketAddr, certificate: Option<&str>, edit: impl FnOnce(&mut Listener)) -> Change {
    let Change::Put(Resource::Listener(key, made)) = model::listener(name, addr, None, certificate) else {
        panic!("not a listener");
    };
    let mut made = (*made).clone();
    edit(&mut made);
    Change::Put(Resource::Listener(key, Arc::new(made)))
}

fn tls(names: &[SubjectAltName], trust: Trust) -> Option<BackendTls> {
    Some(BackendTls { server_name: NAME.to_owned(), subject_alt_names: names.to_vec(), trust })
}

fn trust(bundle: &str) -> Trust {
    Trust::Bundles(vec![pki::bundle_key(bundle)])
}

/// Status of a request in clear text, with the endpoint's name as its host.
fn fetch(addr: SocketAddr) -> u16 {
    let mut client = Client::connect(addr);
    client.send(format!("GET / HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n"));
    client.receive().status
}

/// Status of a request over TLS; an error when there is no TLS, at whatever moment that shows.
fn fetch_tls(addr: SocketAddr, config: &Arc<ClientConfig>) -> std::io::Result<u16> {
    let tcp = TcpStream::connect(addr)?;
    tcp.set_read_timeout(Some(PATIENCE))?;
    let name = ServerName::try_from(NAME).unwrap();
    let connection = ClientConnection::new(config.clone(), name).map_err(std::io::Error::other)?;
    let mut stream = StreamOwned::new(connection, tcp);
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut text = Vec::new();
    stream.read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text);
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
    status.ok_or_else(|| std::io::Error::other(format!("no response: {text:?}")))
}

#[test]
fn an_endpoint_is_believed_by_the_names_that_are_listed_and_never_without_its_authority() {
    let (authority, stranger) = (Authority::new("authority"), Authority::new("stranger"));
    let echo = Echo::start();
    let host = |name: &str| SubjectAltName::Hostname(name.to_owned());
    let uri = |uri: &str| SubjectAltName::Uri(uri.to_owned());
    let spiffe = "spiffe://cluster.example/ns/shop/sa/web";
    let good = Leaf { hosts: &[NAME, "*.wild.example"], uris: &[spiffe], ..Leaf::default() };
    let served = authority.issue(&good);
    let (mut inner, inner_addr) = endpoint(&echo, &served, None, Vec::new());
    let mut worker = Worker::start(1);
    let addr = worker.listen();
    worker.apply(vec![
        model::http_listener(addr),
        RuleSpec::default().into_change(),
        authority.as_bundle("authority"),
        stranger.as_bundle("stranger"),
        pki::bundle("both", &[&stranger, &authority]),
    ]);
    let mut judge = |names: &[SubjectAltName], bundle: &str| {
        let changes = model::backend_with("backend", BackendProtocol::Http1, tls(names, trust(bundle)), &[inner_addr]);
        assert!(worker.apply(changes).is_empty());
        fetch(addr)
    };
    for (names, status) in [
        (vec![], 200),
        (vec![host(NAME)], 200),
        (vec![uri(spiffe)], 200),
        (vec![host("other.example"), uri(spiffe)], 200),
        (vec![host("a.wild.example")], 200),
        (vec![host("*.wild.example")], 200),
        (vec![host("other.example")], 502),
        (vec![host("*.example")], 502),
        (vec![host("a.b.wild.example")], 502),
        (vec![uri("spiffe://cluster.example/ns/shop/sa/other")], 502),
        (vec![uri("spiffe://cluster.example/ns/shop/sa/we")], 502),
        // A URI is no host name, and a host name no URI.
        (vec![uri(NAME)], 502),
    ] {
        assert_eq!(judge(&names, "authority"), status, "{names:?}");
        assert_eq!(judge(&names, "both"), status, "{names:?}");
        assert_eq!(judge(&names, "stranger"), 502, "{names:?}: no name makes up for an authority");
    }
    for (leaf, status) in [
        (Leaf { usages: &[ServerAuth], ..good }, 200),
        (Leaf { is_expired: true, ..good }, 502),
        (Leaf { usages: &[ClientAuth], ..good }, 502),
    ] {
        inner.apply(vec![authority.issue(&leaf).as_certificate("served")]);
        for names in [vec![], vec![uri(spiffe)]] {
            assert_eq!(judge(&names, "authority"), status, "expired {}, {:?}", leaf.is_expired, leaf.usages);
        }
    }
    // The server name plays no part when names are listed.
    inner.apply(vec![authority.issue(&Leaf { uris: &[spiffe], ..Leaf::default() }).as_certificate("served")]);
    assert_eq!(judge(&[uri(spiffe)], "authority"), 200);
    assert_eq!(judge(&[], "authority"), 502);
}

#[test]
fn nothing_is_sent_to_a_backend_whose_authority_cannot_be_had() {
    let authority = Authority::new("authority");
    let echo = Echo::start();
    let served = authority.issue(&Leaf { hosts: &[NAME], ..Leaf::default() });
    let (_inner, inner_addr) = endpoint(&echo, &served, None, Vec::new());
    let mut worker = Worker::start(1);
    let addr = worker.listen();
    worker.apply(vec![model::http_listener(addr), RuleSpec::default().into_change()]);
    // The clear-text echo would answer, and must not be asked.
    for endpoint in [inner_addr, echo.addr] {
        let before = echo.connections();
        let backend = |trust| model::backend_with("backend", BackendProtocol::Http1, tls(&[], trust), &[endpoint]);
        assert!(worker.apply(backend(Trust::Nobody)).is_empty(), "a policy's fault is said by the policy");
        assert_eq!(fetch(addr), 500);
        let failures = worker.apply(backend(trust("authority")));
        assert!(failures[0].1.contains("no certificate authority"), "{failures:?}");
        assert_eq!(fetch(addr), 500);
        assert_eq!(echo.connections(), before);
    }
    worker.apply(model::backend_with("backend", BackendProtocol::Http1, tls(&[], trust("authority")), &[inner_addr]));
    worker.apply(vec![authority.as_bundle("authority")]);
    assert_eq!(fetch(addr), 200, "the authority reaches the backend that waits for it");
    worker.apply(vec![Authority::new("next").as_bundle("authority")]);
    assert_eq!(fetch(addr), 502, "an authority that is replaced is not believed any more");
}

#[test]
fn clients_are_let_in_by_their_certificates() {
    let (authority, stranger) = (Authority::new("clients"), Authority::new("stranger"));
    let servers = Authority::new("servers");
    let echo = Echo::start();
    let served = servers.issue(&Leaf { hosts: &[NAME], ..Leaf::default() });
    let validation = |mode| Some(ClientValidation { mode, bundles: vec![pki::bundle_key("clients")] });
    let strict = validation(ClientValidationMode::ValidOnly);
    let (mut worker, addr) = endpoint(&echo, &served, strict, vec![authority.as_bundle("clients")]);
    let good = authority.issue(&Leaf { usages: &[ClientAuth], ..Leaf::default() });
    let cases = [
        ("good", Some(good.clone()), true),
        ("no usages", Some(authority.issue(&Leaf::default())), true),
        ("none", None, false),
        ("stranger's", Some(stranger.issue(&Leaf { usages: &[ClientAuth], ..Leaf::default() })), false),
        ("expired", Some(authority.issue(&Leaf { is_expired: true, ..Leaf::default() })), false),
        ("a server's", Some(authority.issue(&Leaf { usages: &[ServerAuth], ..Leaf::default() })), false),
    ];
    for (what, shown, is_good) in &cases {
        let config = pki::client(&servers, shown.as_ref());
        let fetched = fetch_tls(addr, &config);
        assert_eq!(fetched.is_ok(), *is_good, "{what}: {fetched:?}");
    }
    worker.wait_for_metric("tidegate_tls_handshake_failures_total", &["\"no_client_certificate\""], 1.0);
    worker.wait_for_metric("tidegate_tls_handshake_failures_total", &["invalid_client_certificate"], 3.0);

    // Without the right to be strict, everybody gets in.
    let fallback = |listener: &mut Listener| {
        listener.tls.as_mut().unwrap().clients = validation(ClientValidationMode::InsecureFallback);
    };
    worker.apply(vec![listener("http", addr, Some("served"), fallback)]);
    for (what, shown, _) in &cases {
        assert_eq!(fetch_tls(addr, &pki::client(&servers, shown.as_ref())).ok(), Some(200), "{what}");
    }

    // Nobody to vouch for clients: nobody gets in.
    let nobody = |listener: &mut Listener| {
        let bundles = vec![pki::bundle_key("nobody")];
        listener.tls.as_mut().unwrap().clients =
            Some(ClientValidation { mode: ClientValidationMode::InsecureFallback, bundles });
    };
    worker.apply(vec![listener("http", addr, Some("served"), nobody)]);
    assert!(fetch_tls(addr, &pki::client(&servers, Some(&good))).is_err());
}

#[test]
fn a_client_whose_authority_is_taken_away_is_not_let_in_by_an_earlier_session() {
    let (old, new, servers) = (Authority::new("old"), Authority::new("new"), Authority::new("servers"));
    let echo = Echo::start();
    let served = servers.issue(&Leaf { hosts: &[NAME], ..Leaf::default() });
    let strict =
        Some(ClientValidation { mode: ClientValidationMode::ValidOnly, bundles: vec![pki::bundle_key("clients")] });
    let both = pki::bundle("clients", &[&old, &new]);
    let (mut worker, addr) = endpoint(&echo, &served, strict.clone(), vec![both]);
    // A second frontend of the same worker, with the same name and certificate, that asks for nothing.
    let open = worker.listen();
    worker.apply(vec![
        model::listener("open", open, None, Some("served")),
        RuleSpec { name: "open", listener: "open", ..RuleSpec::default() }.into_change(),
    ]);
    let of = |authority: &Authority| {
        pki::client(&servers, Some(&authority.issue(&Leaf { usages: &[ClientAuth], ..Leaf::default() })))
    };
    let (of_old, of_new, anonymous) = (of(&old), of(&new), pki::client(&servers, None));
    for config in [&of_old, &of_new, &anonymous] {
        assert_eq!(fetch_tls(open, config).ok(), Some(200));
        assert_eq!(fetch_tls(open, config).ok(), Some(200), "with a ticket");
    }
    for _ in 0..2 {
        assert_eq!(fetch_tls(addr, &of_old).ok(), Some(200));
        assert_eq!(fetch_tls(addr, &of_new).ok(), Some(200));
        assert!(fetch_tls(addr, &anonymous).is_err(), "a ticket of the open frontend opens no other");
    }
    worker.apply(vec![new.as_bundle("clients")]);
    assert!(fetch_tls(addr, &of_old).is_err());
    assert_eq!(fetch_tls(addr, &of_new).ok(), Some(200));
    assert_eq!(fetch_tls(open, &of_old).ok(), Some(200));
}

#[test]
fn each_listener_shows_its_own_certificate_and_no_connection_is_shared() {
    let (clients, servers) = (Authority::new("clients"), Authority::new("servers"));
    let echo = Echo::start();
    let served = servers.issue(&Leaf { hosts: &[NAME], ..Leaf::default() });
    let strict =
        Some(ClientValidation { mode: ClientValidationMode::ValidOnly, bundles: vec![pki::bundle_key("clients")] });
    let (mut inner, inner_addr) = endpoint(&echo, &served, strict, vec![clients.as_bundle("clients")]);
    let mut worker = Worker::start(1);
    let shown = |name: &'static str| BackendIdentity::Certificate(pki::certificate_key(name));
    let cases = [
        ("known", shown("known"), 200),
        ("unknown", shown("unknown"), 502),
        ("anonymous", BackendIdentity::Anonymous, 502),
        ("missing", BackendIdentity::Missing, 500),
        ("absent", shown("absent"), 500),
    ];
    let leaf = Leaf { usages: &[ClientAuth], ..Leaf::default() };
    let mut changes = vec![
        servers.as_bundle("servers"),
        clients.issue(&leaf).as_certificate("known"),
        Authority::new("unknown").issue(&leaf).as_certificate("unknown"),
    ];
    let mut addresses = Vec::new();
    for (name, identity, _) in &cases {
        let addr = worker.listen();
        addresses.push(addr);
        changes.push(listener(name, addr, None, |listener| listener.backend_identity = identity.clone()));
        changes.push(RuleSpec { name, listener: name, ..RuleSpec::default() }.into_change());
    }
    for protocol in [BackendProtocol::Http1, BackendProtocol::Http2] {
        let mut changes = changes.clone();
        changes.extend(model::backend_with("backend", protocol, tls(&[], trust("servers")), &[inner_addr]));
        worker.apply(changes);
        // Twice: what one listener has left in the pool must not serve another.
        for _ in 0..2 {
            for (addr, (name, _, status)) in addresses.iter().zip(&cases) {
                assert_eq!(fetch(*addr), *status, "{name} {protocol:?}");
            }
        }
    }
    inner.wait_for_metric("tidegate_tls_handshake_failures_total", &["client_certificate"], 4.0);
    assert!(worker.metric("tidegate_local_responses_total", &["no_client_certificate"]) >= 4.0);

    // A new certificate is shown by new connections; the endpoint does not know the authority of the next one.
    worker.apply(vec![Authority::new("next").issue(&leaf).as_certificate("known")]);
    assert_eq!(fetch(addresses[0]), 502);
    worker.apply(vec![clients.issue(&leaf).as_certificate("known")]);
    assert_eq!(fetch(addresses[0]), 200);

    // A backend in clear text asks for nothing.
    worker.apply(model::backend("backend", BackendProtocol::Http1, &[echo.addr]));
    for (addr, (name, _, _)) in addresses.iter().zip(&cases) {
        assert_eq!(fetch(*addr), 200, "{name}");
    }
}
