//! A shard with its UDP half alone, over real sockets on loopback, and time as an argument.

use std::{
    future::Future,
    net::{SocketAddr, UdpSocket as StdUdpSocket},
    sync::Arc,
    time::Duration,
};

use tidegate_model::{
    Attachment, BackendKey, BackendTarget, Change, Delta, Endpoint, EndpointState, Endpoints, Forward, Generation,
    Listener, ListenerKey, ObjectName, Protocol, Resource, RuleKey, RuleKind, Transport, WeightedBackend,
};
use tokio::{net::UdpSocket, task::LocalSet, time::timeout};

use super::*;
use crate::{
    access_log::{self, LogBuffer},
    certificates::TlsContext,
    shard::{Connections, Limits},
    tables::{Tables, Target},
};

/// How long anything may take before a test fails.
const PATIENCE: Duration = Duration::from_secs(10);

/// A shard with one UDP frontend.
struct Bed {
    shard: Rc<Shard>,
    frontend: SocketAddr,
    generation: u64,
}

/// Runs a test with a frontend and room for so many sessions and clients.
fn on_bed<F: Future<Output = ()>>(limits: Limits, test: impl FnOnce(Bed) -> F) {
    let (log, _) = access_log::start_writer(std::io::sink()).unwrap();
    let shard = Shard::new(Tables::new(TlsContext::new().unwrap()), LogBuffer::new(log), limits);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let socket = StdUdpSocket::bind("127.0.0.1:0").unwrap();
        let frontend = socket.local_addr().unwrap();
        let key = FrontendKey { addr: frontend.ip(), port: frontend.port(), transport: Transport::Udp };
        let socket = FrontendSocket::new(key, socket.into()).unwrap();
        shard.datagrams.open(socket.clone());
        tokio::task::spawn_local(frontend::run(shard.clone(), socket));
        let mut bed = Bed { shard, frontend, generation: 0 };
        let listener = Listener {
            frontends: vec![key],
            owns_addresses: true,
            protocol: Protocol::Udp,
            hostname: None,
            tls: None,
            backend_identity: Default::default(),
            auth: Vec::new(),
        };
        bed.apply(vec![Change::Put(Resource::Listener(listener_key(), Arc::new(listener)))]);
        test(bed).await;
    });
}

fn listener_key() -> ListenerKey {
    ListenerKey::of_gateway(ObjectName::new("gw", "edge"), "dns")
}

fn backend_key(name: &str) -> BackendKey {
    BackendKey::UdpService { name: ObjectName::new("dns", name), port: 53 }
}

fn endpoints(name: &str, addrs: &[SocketAddr]) -> Change {
    let endpoint = |addr: &SocketAddr| Endpoint { addr: *addr, state: EndpointState::Ready };
    let list = Endpoints { endpoints: addrs.iter().map(endpoint).collect() };
    Change::Put(Resource::Endpoints(backend_key(name), Arc::new(list)))
}

fn to(name: &str, weight: u32) -> WeightedBackend {
    WeightedBackend { target: BackendTarget::Backend(backend_key(name)), weight, filters: Vec::new() }
}

fn invalid(weight: u32) -> WeightedBackend {
    WeightedBackend { target: BackendTarget::Invalid("no such Service".into()), weight, filters: Vec::new() }
}

fn route_key(name: &str) -> RuleKey {
    RuleKey { kind: RuleKind::UDPRoute, route: ObjectName::new("dns", name), index: 0 }
}

fn route(name: &str, created: i64, backends: Vec<WeightedBackend>) -> Change {
    let attachments = vec![Attachment { listener: listener_key(), hostnames: Vec::new() }];
    Change::Put(Resource::Forward(route_key(name), Arc::new(Forward { created, attachments, backends })))
}

impl Bed {
    fn apply(&mut self, changes: Vec<Change>) {
        self.generation += 1;
        let delta = Delta { generation: Generation(self.generation), is_full: false, changes };
        let failures = self.shard.tables.borrow_mut().apply(&delta);
        assert_eq!(failures, Vec::new());
    }

    fn key(&self) -> FrontendKey {
        FrontendKey { addr: self.frontend.ip(), port: self.frontend.port(), transport: Transport::Udp }
    }

    fn dropped(&self, reason: &str) -> u64 {
        count(&self.shard.stats.datagrams.dropped.counts(), reason)
    }

    fn ended(&self, reason: &str) -> u64 {
        count(&self.shard.stats.datagrams.ended.counts(), reason)
    }

    fn sweep_after(&self, idle: Duration) {
        self.shard.datagrams.sweep(&self.shard, Instant::now() + idle);
    }

    async fn until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let wait = async {
            while !is_so() {
                tokio::task::yield_now().await;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("waited in vain for {what}"));
    }

    async fn client(&self) -> UdpSocket {
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.connect(self.frontend).await.unwrap();
        client
    }
}

fn count(counts: &[(&'static str, u64)], reason: &str) -> u64 {
    counts.iter().find(|(known, _)| *known == reason).map_or(0, |(_, count)| *count)
}

/// An endpoint that answers with its name.
async fn endpoint(name: &'static str) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let addr = socket.local_addr().unwrap();
    tokio::task::spawn_local(async move {
        let mut buffer = vec![0; MAX_DATAGRAM];
        while let Ok((_, peer)) = socket.recv_from(&mut buffer).await {
            socket.send_to(name.as_bytes(), peer).await.unwrap();
        }
    });
    addr
}

async fn ask(client: &UdpSocket) -> String {
    client.send(b"?").await.unwrap();
    let mut buffer = [0; 64];
    let length = timeout(PATIENCE, client.recv(&mut buffer)).await.expect("an answer in time").unwrap();
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

const ROOMY: Limits = Limits { clients: 100, sessions: 100 };

#[test]
fn a_session_ends_when_it_has_been_idle_and_not_before() {
    on_bed(ROOMY, async |mut bed| {
        let addr = endpoint("a").await;
        bed.apply(vec![endpoints("a", &[addr]), route("r", 0, vec![to("a", 1)])]);
        let client = bed.client().await;
        assert_eq!(ask(&client).await, "a");
        assert_eq!((bed.shard.datagrams.len(), bed.shard.connections.len()), (1, 1));
        bed.sweep_after(timeouts::DATAGRAM_IDLE - Duration::from_secs(5));
        assert_eq!(bed.shard.datagrams.len(), 1);
        bed.sweep_after(timeouts::DATAGRAM_IDLE);
        assert_eq!((bed.shard.datagrams.len(), bed.ended("idle")), (0, 1));
        // Its place and its socket are free once its task has gone.
        bed.until("the place", || bed.shard.connections.is_empty()).await;
        assert_eq!(ask(&client).await, "a", "the next datagram begins anew");
        bed.shard.datagrams.drain();
        bed.sweep_after(timeouts::DRAIN_IDLE);
        assert_eq!(bed.ended("drained"), 1);
    });
}

#[test]
fn a_full_shard_gives_the_place_of_a_newcomer_to_the_next_and_then_refuses() {
    on_bed(Limits { clients: 100, sessions: 2 }, async |mut bed| {
        let addr = endpoint("a").await;
        bed.apply(vec![endpoints("a", &[addr]), route("r", 0, vec![to("a", 1)])]);
        let (first, second, third) = (bed.client().await, bed.client().await, bed.client().await);
        for client in [&first, &second, &third] {
            assert_eq!(ask(client).await, "a");
        }
        assert_eq!((bed.shard.datagrams.len(), bed.ended("evicted")), (2, 1));
        // Those that go on have proven themselves.
        ask(&second).await;
        ask(&third).await;
        first.send(b"?").await.unwrap();
        bed.until("a refusal", || bed.dropped("session_limit") == 1).await;
        assert_eq!((bed.shard.datagrams.len(), bed.ended("evicted")), (2, 1));
        assert_eq!(ask(&second).await, "a");
    });
}

#[test]
fn sessions_and_connections_share_the_places_of_a_shard() {
    on_bed(Limits { clients: 1, sessions: 100 }, async |mut bed| {
        let addr = endpoint("a").await;
        bed.apply(vec![endpoints("a", &[addr]), route("r", 0, vec![to("a", 1)])]);
        let connection = Connections::enter(&bed.shard).unwrap();
        let client = bed.client().await;
        client.send(b"?").await.unwrap();
        bed.until("a refusal", || bed.dropped("connection_limit") == 1).await;
        drop(connection);
        assert_eq!(ask(&client).await, "a");
        assert!(Connections::enter(&bed.shard).is_none());
    });
}

#[test]
fn weights_are_exact_over_sessions_and_an_invalid_share_is_dropped() {
    on_bed(ROOMY, async |mut bed| {
        let (a, b) = (endpoint("a").await, endpoint("b").await);
        let backends = vec![to("a", 3), invalid(1), to("b", 1), to("none", 0)];
        bed.apply(vec![endpoints("a", &[a]), endpoints("b", &[b]), route("r", 0, backends)]);
        let mut clients = Vec::new();
        for _ in 0..20 {
            let client = bed.client().await;
            client.send(b"?").await.unwrap();
            clients.push(client);
        }
        bed.until("all sessions", || bed.shard.datagrams.len() == 20).await;
        assert_eq!(bed.dropped("invalid_backend"), 4);
        let mut answers = std::collections::BTreeMap::<String, usize>::new();
        let mut silent = None;
        for client in clients {
            let mut buffer = [0; 8];
            match timeout(Duration::from_millis(200), client.recv(&mut buffer)).await {
                Ok(length) => {
                    *answers.entry(String::from_utf8_lossy(&buffer[..length.unwrap()]).into_owned()).or_default() += 1
                }
                Err(_) => silent = Some(client),
            }
        }
        assert_eq!(answers, [("a".to_owned(), 12), ("b".to_owned(), 4)].into());
        // A client of the invalid share stays there, however often it asks, until the route is mended.
        let silent = silent.expect("four have no answer");
        for _ in 0..3 {
            silent.send(b"?").await.unwrap();
        }
        bed.until("drops", || bed.dropped("invalid_backend") == 7).await;
        bed.apply(vec![route("r", 0, vec![to("b", 1)])]);
        assert_eq!(ask(&silent).await, "b");
    });
}

#[test]
fn a_session_stays_with_its_backend_when_weights_change_and_leaves_it_at_weight_zero() {
    on_bed(ROOMY, async |mut bed| {
        let (a, b) = (endpoint("a").await, endpoint("b").await);
        bed.apply(vec![endpoints("a", &[a]), endpoints("b", &[b]), route("r", 0, vec![to("a", 9), to("b", 1)])]);
        let client = bed.client().await;
        assert_eq!(ask(&client).await, "a");
        bed.apply(vec![route("r", 0, vec![to("b", 9), to("a", 1)])]);
        assert_eq!(ask(&client).await, "a");
        bed.apply(vec![route("r", 0, vec![to("b", 9), to("a", 0)])]);
        assert_eq!(ask(&client).await, "b");
        assert_eq!(bed.shard.datagrams.len(), 1);
        let (_, found) = bed.shard.tables.borrow().find_datagram_forward(&bed.key()).unwrap();
        assert_eq!((found.stats.opened.count(), found.stats.active.count()), (1, 1));
    });
}

#[test]
fn the_oldest_route_gets_everything_and_the_next_one_follows_it() {
    on_bed(ROOMY, async |mut bed| {
        let (a, b) = (endpoint("a").await, endpoint("b").await);
        bed.apply(vec![endpoints("a", &[a]), endpoints("b", &[b])]);
        let client = bed.client().await;
        client.send(b"?").await.unwrap();
        bed.until("no route", || bed.dropped("no_route") == 1).await;
        assert!(bed.shard.datagrams.is_empty(), "nothing is kept of a client without a route");
        bed.apply(vec![route("young", 20, vec![to("b", 1)]), route("b-old", 10, vec![to("b", 1)])]);
        assert_eq!(ask(&client).await, "b");
        // As old, and before it by name.
        bed.apply(vec![route("a-old", 10, vec![to("a", 1)])]);
        assert_eq!(ask(&client).await, "a", "an open session follows, too");
        assert_eq!(ask(&bed.client().await).await, "a");
        bed.apply(["a-old", "b-old"].map(|name| Change::Remove(tidegate_model::Key::Forward(route_key(name)))).into());
        assert_eq!(ask(&client).await, "b");
        bed.apply(vec![Change::Remove(tidegate_model::Key::Listener(listener_key()))]);
        client.send(b"?").await.unwrap();
        bed.until("no listener", || bed.dropped("no_route") == 2).await;
        bed.shard.datagrams.close(&bed.shard, bed.key());
        assert_eq!((bed.shard.datagrams.len(), bed.ended("listener_removed")), (0, 2));
    });
}

#[test]
fn an_endpoint_that_goes_or_refuses_gives_its_sessions_to_another() {
    on_bed(ROOMY, async |mut bed| {
        let (a, b) = (endpoint("a").await, endpoint("b").await);
        bed.apply(vec![endpoints("s", &[a]), route("r", 0, vec![to("s", 1)])]);
        let client = bed.client().await;
        assert_eq!(ask(&client).await, "a");
        bed.apply(vec![endpoints("s", &[a, b])]);
        assert_eq!(ask(&client).await, "a", "it stays where it is");
        bed.apply(vec![endpoints("s", &[b])]);
        assert_eq!(ask(&client).await, "b");
        // Nobody at this port: the host says so, and the next datagram goes elsewhere.
        let nobody = StdUdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        bed.apply(vec![endpoints("s", &[nobody])]);
        client.send(b"?").await.unwrap();
        let (_, found) = bed.shard.tables.borrow().find_datagram_forward(&bed.key()).unwrap();
        let Some(Target::Backend(backend)) = found.forward.choose() else { panic!("it is valid") };
        bed.until("a refusal", || count(&backend.stats.failures.counts(), "port_unreachable") > 0).await;
        bed.apply(vec![endpoints("s", &[nobody, a])]);
        assert_eq!(ask(&client).await, "a");
        bed.apply(vec![endpoints("s", &[])]);
        client.send(b"?").await.unwrap();
        bed.until("no endpoint", || bed.dropped("no_endpoint") == 1).await;
        bed.apply(vec![endpoints("s", &[b])]);
        assert_eq!(ask(&client).await, "b");
        assert_eq!(bed.shard.datagrams.len(), 1);
    });
}

#[test]
fn the_range_of_ports_is_read_as_the_kernel_writes_it() {
    assert_eq!(count_ports("32768\t60999\n"), Some(28_232));
    assert_eq!(count_ports("60999 32768"), None);
    assert_eq!(count_ports("many"), None);
    assert!(session_limit(20_000, 2) <= 5_000);
    assert_eq!(session_limit(0, 2), 1);
}
