//! UDP through a whole worker: several shards, sockets that come and go, and a drain.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use tidegate_model::{
    Attachment, BackendProtocol, BackendTarget, Change, Forward, FrontendKey, Listener, ObjectName, Protocol, Resource,
    RuleKey, RuleKind, Transport, WeightedBackend,
    control::{Listening, SocketRole, ToWorker},
};

use crate::support::{PATIENCE, Worker, model};

/// Longest payload over IPv4.
const LONGEST: usize = 65_507;

/// An endpoint that sends everything back.
fn start_echo() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], peer);
        }
    });
    addr
}

fn key(addr: SocketAddr) -> FrontendKey {
    FrontendKey { addr: addr.ip(), port: addr.port(), transport: Transport::Udp }
}

/// A listener at an address with a route to one endpoint.
fn route(addr: SocketAddr, endpoint: SocketAddr) -> Vec<Change> {
    let listener = Listener {
        frontends: vec![key(addr)],
        owns_addresses: true,
        protocol: Protocol::Udp,
        hostname: None,
        tls: None,
        backend_identity: Default::default(),
        auth: Vec::new(),
    };
    let forward = Forward {
        created: 0,
        attachments: vec![Attachment { listener: model::listener_key("udp"), hostnames: Vec::new() }],
        backends: vec![WeightedBackend {
            target: BackendTarget::Backend(model::backend_key("echo")),
            weight: 1,
            filters: Vec::new(),
        }],
    };
    let route = RuleKey { kind: RuleKind::UDPRoute, route: ObjectName::new("test", "udp"), index: 0 };
    let mut changes = model::backend("echo", BackendProtocol::Http1, &[endpoint]);
    changes.push(Change::Put(Resource::Listener(model::listener_key("udp"), Arc::new(listener))));
    changes.push(Change::Put(Resource::Forward(route, Arc::new(forward))));
    changes
}

fn connect(addr: SocketAddr) -> UdpSocket {
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.connect(addr).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client
}

fn assert_echoed(client: &UdpSocket, length: usize) {
    let payload: Vec<u8> = (0..length).map(|at| (at % 249) as u8).collect();
    client.send(&payload).unwrap();
    let mut buffer = vec![0; 1 << 16];
    let received = client.recv(&mut buffer).unwrap();
    assert!(buffer[..received] == payload, "{received} bytes came back for {length}");
}

#[test]
fn every_shard_passes_datagrams_of_any_size_both_ways() {
    let mut worker = Worker::start(3);
    let addr = worker.listen_udp();
    worker.apply(route(addr, start_echo()));
    let clients: Vec<UdpSocket> = (0..24).map(|_| connect(addr)).collect();
    for length in [0, 1, 1_500, LONGEST] {
        clients.iter().for_each(|client| assert_echoed(client, length));
    }
    let ours = ["kind=\"UDPRoute\"", "route=\"test/udp\""];
    assert_eq!(worker.metric("tidegate_forwards_total", &ours), 24.0);
    assert_eq!(worker.metric("tidegate_forwards_active", &ours), 24.0);
    assert_eq!(worker.metric("tidegate_forward_datagrams_total", &ours), 2.0 * 4.0 * 24.0);
    assert_eq!(worker.metric("tidegate_forward_sent_bytes_total", &ours), 24.0 * (1 + 1_500 + LONGEST) as f64);
    assert_eq!(worker.metric("tidegate_datagrams_dropped_total", &[]), 0.0);
    // TCP connections and UDP sessions are counted apart.
    assert_eq!(worker.metric("tidegate_connections_active", &[]), 0.0);
}

#[test]
fn a_frontend_that_goes_takes_its_sessions_with_it_and_no_others() {
    let mut worker = Worker::start(2);
    let (gone, stays) = (worker.listen_udp(), worker.listen_udp());
    let echo = start_echo();
    let mut changes = route(gone, echo);
    if let Some(Change::Put(Resource::Listener(_, listener))) =
        changes.iter_mut().find(|change| matches!(change, Change::Put(Resource::Listener(..))))
    {
        Arc::make_mut(listener).frontends.push(key(stays));
    }
    worker.apply(changes);
    let (first, second) = (connect(gone), connect(stays));
    assert_echoed(&first, 10);
    assert_echoed(&second, 10);
    let sockets = (0..worker.shards).map(|shard| Listening { shard, role: SocketRole::Bound(key(gone)) }).collect();
    worker.send(&ToWorker::Unlisten { sockets }, &[]);
    worker.wait_for_metric("tidegate_datagram_sessions_ended_total", &["listener_removed"], 1.0);
    assert_eq!(worker.metric("tidegate_forwards_active", &[]), 1.0);
    assert_echoed(&second, 10);
    // Its sockets are closed once the tasks of its sessions have gone.
    let deadline = std::time::Instant::now() + PATIENCE;
    while UdpSocket::bind(gone).is_err() {
        assert!(std::time::Instant::now() < deadline, "a socket stays open");
        std::thread::yield_now();
    }
    drop(first);
}

#[test]
fn a_drain_reads_no_more_from_clients_and_ends_sessions_at_its_limit() {
    let mut worker = Worker::start(1);
    let addr = worker.listen_udp();
    worker.apply(route(addr, start_echo()));
    let client = connect(addr);
    assert_echoed(&client, 10);
    worker.begin_drain(Duration::from_millis(100));
    worker.wait_drained();
    client.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let _ = client.send(b"?");
    client.recv(&mut [0; 8]).unwrap_err();
}
