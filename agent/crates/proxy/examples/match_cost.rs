//! What a decision costs with 1 to 10,000 routes, and what one changed rule costs among them.
//!
//! `cargo run --release -p tidegate-proxy --example match_cost`. A decision's time is the best of many rounds, each shorter
//! than a scheduler's slice, and a change's time is the median, so that other work on the machine disturbs them least. The
//! request is always for the route added last.

use std::{
    hint::black_box,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tidegate_model::{
    Attachment, BackendKey, BackendTarget, Change, Delta, Endpoint, EndpointState, Endpoints, FrontendKey, Generation,
    HeaderMatch, Key, Listener, ListenerKey, Match, ObjectName, PathMatch, Protocol, Resource, Rule, RuleKey, RuleKind,
    Timeouts, Transport, ValueMatch, WeightedBackend,
};
use tidegate_proxy::{
    balance::Prng,
    certificates::TlsContext,
    decide::{ConnectionFacts, Decision, decide, find_listener},
    http::head::RequestHead,
    tables::Tables,
};

const ROUNDS: usize = 500;
const REQUESTS: u32 = 4_000;
const CHANGES: usize = 2_000;
const SIZES: [usize; 4] = [1, 100, 1_000, 10_000];

/// How routes differ from each other.
#[derive(Clone, Copy, Debug)]
enum Shape {
    /// One host, a path prefix each.
    Prefixes,
    /// One host, an exact path each.
    ExactPaths,
    /// A host each.
    Hosts,
}

fn main() {
    println!("{:<12} {:>8} {:>14} {:>14} {:>10}", "shape", "routes", "ns/decision", "ns/change", "ratio");
    for shape in [Shape::Prefixes, Shape::ExactPaths, Shape::Hosts] {
        let mut first = None;
        for size in SIZES {
            let mut tables = fill(shape, size);
            let decision = time_decision(&tables, &request(shape, size - 1));
            let change = time_change(&mut tables, shape, size);
            let ratio = decision / *first.get_or_insert(decision);
            println!("{:<12} {size:>8} {decision:>14.1} {change:>14.0} {ratio:>10.3}", format!("{shape:?}"));
        }
    }
}

fn fill(shape: Shape, size: usize) -> Tables {
    let listener = Listener {
        frontends: vec![FrontendKey { addr: local().ip(), port: local().port(), transport: Transport::Tcp }],
        owns_addresses: true,
        protocol: Protocol::Http,
        hostname: None,
        tls: None,
        backend_identity: Default::default(),
        auth: Vec::new(),
    };
    let endpoint = Endpoint { addr: local(), state: EndpointState::Ready };
    let mut changes = vec![
        Change::Put(Resource::Listener(listener_key(), Arc::new(listener))),
        Change::Put(Resource::Endpoints(backend(), Arc::new(Endpoints { endpoints: vec![endpoint] }))),
    ];
    changes.extend((0..size).map(|index| put(shape, index)));
    let mut tables = Tables::new(TlsContext::new().expect("random numbers can be had"));
    let failures = tables.apply(&Delta { generation: Generation(1), is_full: true, changes });
    assert!(failures.is_empty(), "{failures:?}");
    tables
}

fn time_decision(tables: &Tables, head: &RequestHead) -> f64 {
    let peer = SocketAddr::from(([192, 0, 2, 1], 4711));
    let connection = ConnectionFacts { local: local(), peer, is_tls: false, sni: None };
    let mut random = Prng::from_seed(7);
    let round = |_| {
        let start = Instant::now();
        for _ in 0..REQUESTS {
            let listener = find_listener(tables, &connection, black_box(head));
            let decision = decide(tables, listener, &connection, black_box(head), &mut random);
            assert!(matches!(black_box(decision), Decision::Forward(_)));
        }
        start.elapsed()
    };
    nanoseconds((0..ROUNDS).map(round).min()) / f64::from(REQUESTS)
}

/// One rule removed and put again, at a place that moves.
fn time_change(tables: &mut Tables, shape: Shape, size: usize) -> f64 {
    let mut place = 0;
    let mut one = |changes| {
        let start = Instant::now();
        tables.apply(&Delta { generation: Generation(2), is_full: false, changes });
        start.elapsed()
    };
    let mut times = Vec::with_capacity(2 * CHANGES);
    for _ in 0..CHANGES {
        place = (place + 7919) % size;
        times.push(one(vec![Change::Remove(Key::Rule(rule_key(place)))]));
        times.push(one(vec![put(shape, place)]));
    }
    times.sort();
    nanoseconds(times.get(times.len() / 2).copied())
}

fn nanoseconds(duration: Option<Duration>) -> f64 {
    duration.unwrap_or_default().as_secs_f64() * 1e9
}

fn local() -> SocketAddr {
    SocketAddr::from(([203, 0, 113, 1], 80))
}

fn listener_key() -> ListenerKey {
    ListenerKey::of_gateway(ObjectName::new("infra", "edge"), "http")
}

fn backend() -> BackendKey {
    BackendKey::Service { name: ObjectName::new("shop", "products"), port: 80 }
}

fn rule_key(index: usize) -> RuleKey {
    RuleKey { kind: RuleKind::HTTPRoute, route: ObjectName::new("shop", format!("route-{index}")), index: 0 }
}

fn put(shape: Shape, index: usize) -> Change {
    let path = match shape {
        Shape::Prefixes => PathMatch::Prefix(format!("/api/v1/service-{index}").into()),
        Shape::ExactPaths => PathMatch::Exact(format!("/api/v1/service-{index}/items/4711").into()),
        Shape::Hosts => PathMatch::Prefix("/".into()),
    };
    let hostnames = match shape {
        Shape::Prefixes | Shape::ExactPaths => vec!["shop.example.com".parse().expect("it is a host name")],
        Shape::Hosts => vec![host(shape, index).parse().expect("it is a host name")],
    };
    let plain = Match { path, method: None, headers: vec![], query: vec![] };
    let canary = HeaderMatch { name: "x-canary".into(), value: ValueMatch::Exact("yes".into()) };
    let target = BackendTarget::Backend(backend());
    let rule = Rule {
        name: None,
        created: 0,
        attachments: vec![Attachment { listener: listener_key(), hostnames }],
        matches: vec![plain.clone(), Match { headers: vec![canary], ..plain }],
        filters: vec![],
        backends: vec![WeightedBackend { target, weight: 1, filters: vec![] }],
        timeouts: Timeouts::default(),
        retry: None,
        session: None,
    };
    Change::Put(Resource::Rule(rule_key(index), Arc::new(rule)))
}

fn host(shape: Shape, index: usize) -> String {
    match shape {
        Shape::Prefixes | Shape::ExactPaths => "shop.example.com".to_owned(),
        Shape::Hosts => format!("host-{index}.example.com"),
    }
}

fn request(shape: Shape, index: usize) -> RequestHead {
    let mut head = RequestHead::default();
    let host = host(shape, index);
    head.fill_host(&host, None);
    head.fill_target(&format!("/api/v1/service-{index}/items/4711?size=20"));
    for (name, value) in [
        ("Host", host.as_str()),
        ("User-Agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
        ("Accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
        ("Accept-Language", "en-US,en;q=0.5"),
        ("Accept-Encoding", "gzip, deflate, br"),
        ("Connection", "keep-alive"),
    ] {
        head.headers.append(name, value);
    }
    head
}
