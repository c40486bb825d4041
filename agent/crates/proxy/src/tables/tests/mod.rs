//! The tables against a matcher written straight from the Gateway API, and what changes must leave alone.

mod forwards;
mod naive;

use std::{sync::LazyLock, time::Duration};

use http::Method;
use proptest::prelude::*;
use tidegate_model::{
    Attachment, BackendTarget, Endpoint, EndpointState, FrontendKey, HeaderMatch, Hostname, Match, PathMatch, Protocol,
    QueryMatch, RuleKind, Timeouts, ValueMatch, WeightedBackend,
};

use self::naive::{Naive, Outcome};
use super::*;
use crate::http::head::RequestHead;

const FRONTEND: FrontendKey =
    FrontendKey { addr: IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), port: 80, transport: Transport::Tcp };

fn tables() -> Tables {
    static TLS: LazyLock<TlsContext> = LazyLock::new(|| TlsContext::new().unwrap());
    Tables::new(TLS.clone())
}

pub(crate) fn listener_key(index: usize) -> ListenerKey {
    ListenerKey::of_gateway(ObjectName::new("g", ["one", "two"][index % 2]), index.to_string())
}

pub(crate) fn listener(hostname: Option<&str>) -> Listener {
    Listener {
        frontends: vec![FRONTEND],
        owns_addresses: true,
        protocol: Protocol::Http,
        hostname: hostname.map(|name| name.parse().unwrap()),
        tls: None,
        backend_identity: Default::default(),
        auth: Vec::new(),
    }
}

pub(crate) fn any_match(path: PathMatch) -> Match {
    Match { path, method: None, headers: vec![], query: vec![] }
}

pub(crate) fn rule(matches: Vec<Match>) -> Rule {
    Rule {
        name: None,
        created: 0,
        attachments: vec![Attachment { listener: listener_key(0), hostnames: vec![] }],
        matches,
        filters: vec![],
        backends: vec![],
        timeouts: Timeouts::default(),
        retry: None,
        session: None,
    }
}

pub(crate) fn rule_key(name: &str, index: u16) -> RuleKey {
    RuleKey { kind: RuleKind::HTTPRoute, route: ObjectName::new("ns", name), index }
}

pub(crate) fn put_rule(key: &RuleKey, rule: Rule) -> Change {
    Change::Put(Resource::Rule(key.clone(), Arc::new(rule)))
}

pub(crate) fn put_listener(index: usize, listener: Listener) -> Change {
    Change::Put(Resource::Listener(listener_key(index), Arc::new(listener)))
}

pub(crate) fn delta(changes: Vec<Change>) -> Delta {
    Delta { generation: Generation(1), is_full: false, changes }
}

fn request(host: &str, target: &str) -> RequestHead {
    let mut head = RequestHead::default();
    head.fill_host(host, None);
    head.fill_target(target);
    head
}

fn outcome(tables: &Tables, head: &RequestHead) -> Outcome {
    let local = SocketAddr::new(FRONTEND.addr, FRONTEND.port);
    let listener = tables.find_frontend(local).and_then(|frontend| frontend.find_listener(false, head.host()));
    let Some(listener) = listener else { return Outcome::NoListener };
    listener
        .find_rule(head.path(), head, |found| {
            let candidate = found.candidate;
            Outcome::Rule(candidate.rule.key.clone(), candidate.match_index, found.prefix_len)
        })
        .unwrap_or(Outcome::NoRule(listener.key.clone()))
}

fn hostname() -> impl Strategy<Value = Hostname> {
    prop_oneof![
        "(a\\.)?[ab]\\.c".prop_map(|name| Hostname::Exact(name.into())),
        "([ab]\\.)?c".prop_map(|name| Hostname::Wildcard(name.into())),
    ]
}

fn path() -> impl Strategy<Value = PathMatch> {
    prop_oneof![
        2 => "(/a|/b|/){1,3}".prop_map(|path| PathMatch::Exact(path.into())),
        4 => "(/a|/b){0,3}".prop_map(|path| PathMatch::Prefix(if path.is_empty() { "/".into() } else { path.into() })),
        1 => prop::sample::select(vec!["/a+", "/[ab]/.*", "/b|/a/b", ".*b", "("])
            .prop_map(|path| PathMatch::Regex(path.into())),
    ]
}

fn value() -> impl Strategy<Value = ValueMatch> {
    prop_oneof!["[12]".prop_map(|text| ValueMatch::Exact(text.into())), Just(ValueMatch::Regex("1+".into())),]
}

/// Lists that are empty most of the time, so that rules meet often enough for their precedence to matter.
fn rarely<T: std::fmt::Debug + Clone + 'static>(
    item: impl Strategy<Value = T> + 'static,
) -> impl Strategy<Value = Vec<T>> {
    prop_oneof![3 => Just(Vec::new()), 1 => prop::collection::vec(item, 1..3)]
}

fn one_match() -> impl Strategy<Value = Match> {
    let method = prop::option::weighted(0.2, prop::sample::select(vec!["GET", "PUT"]));
    let headers = rarely(("x-[ab]", value()));
    let query = rarely(("[qr]", value()));
    (path(), method, headers, query).prop_map(|(path, method, headers, query)| Match {
        path,
        method: method.map(Into::into),
        headers: headers.into_iter().map(|(name, value)| HeaderMatch { name: name.into(), value }).collect(),
        query: query.into_iter().map(|(name, value)| QueryMatch { name: name.into(), value }).collect(),
    })
}

fn change() -> impl Strategy<Value = Change> {
    let rule_key = (prop::sample::select(vec!["a", "a-b"]), "[xy]", 0u16..3, any::<bool>()).prop_map(
        |(namespace, name, index, is_grpc)| RuleKey {
            kind: if is_grpc { RuleKind::GRPCRoute } else { RuleKind::HTTPRoute },
            route: ObjectName::new(namespace, name),
            index,
        },
    );
    let which = || prop_oneof![3 => Just(0), 1 => 1usize..4];
    let attachments = prop::collection::vec((which(), rarely(hostname())), 1..3);
    let rule =
        (0i64..2, attachments, prop::collection::vec(one_match(), 1..3)).prop_map(|(created, attachments, matches)| {
            Rule {
                created,
                attachments: attachments
                    .into_iter()
                    .map(|(index, hostnames)| Attachment { listener: listener_key(index), hostnames })
                    .collect(),
                ..rule(matches)
            }
        });
    let listener = prop::option::of(hostname()).prop_map(|hostname| Listener { hostname, ..listener(None) });
    prop_oneof![
        8 => (rule_key.clone(), rule).prop_map(|(key, rule)| put_rule(&key, rule)),
        3 => rule_key.prop_map(|key| Change::Remove(Key::Rule(key))),
        2 => (1usize..4, listener).prop_map(|(index, listener)| put_listener(index, listener)),
        1 => (1usize..4).prop_map(|index| Change::Remove(Key::Listener(listener_key(index)))),
    ]
}

fn any_request() -> impl Strategy<Value = RequestHead> {
    let headers = prop::collection::vec(("X-[AB]", "1{1,2}|2"), 0..3);
    let method = prop::sample::select(vec![Method::GET, Method::PUT, Method::POST]);
    (method, "([ab]\\.){0,2}c|d", "(/a|/b|/ab|/){1,4}(\\?([qr]=[12]&?){0,2})?", headers).prop_map(
        |(method, host, target, headers)| {
            let mut head = request(&host, &target);
            head.method = method;
            head.headers.append("Host", host);
            headers.iter().for_each(|(name, value)| head.headers.append(name.to_lowercase(), value));
            head
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 100 } else { 20_000 }))]

    #[test]
    fn any_history_routes_like_the_specification(
        deltas in prop::collection::vec(prop::collection::vec(change(), 0..10), 1..5),
        requests in prop::collection::vec(any_request(), 10..30),
    ) {
        let deltas = [vec![put_listener(0, listener(None))]].into_iter().chain(deltas);
        let mut changed = tables();
        let mut naive = Naive::default();
        for changes in deltas {
            let delta = delta(changes);
            changed.apply(&delta);
            naive.apply(&delta);
            for head in &requests {
                prop_assert_eq!(outcome(&changed, head), naive.find(head), "{:?}", head);
            }
        }
        let full = Delta { generation: Generation(9), is_full: true, changes: naive.to_changes() };
        let mut fresh = tables();
        let fresh_failures = fresh.apply(&full);
        let mut again = changed;
        prop_assert_eq!(again.apply(&full), fresh_failures, "a full delta says all failures again");
        for head in &requests {
            let expected = naive.find(head);
            prop_assert_eq!(outcome(&fresh, head), expected.clone());
            prop_assert_eq!(outcome(&again, head), expected);
        }
        again.apply(&Delta { is_full: true, ..Delta::default() });
        prop_assert!(again.frontends.is_empty() && again.routes.is_empty() && again.rules.is_empty());
        prop_assert!(again.unmatched.is_empty() && again.listeners.is_empty() && again.backends.is_empty());
    }
}

fn found(tables: &Tables, host: &str, target: &str) -> Option<String> {
    match outcome(tables, &request(host, target)) {
        Outcome::Rule(key, ..) => Some(key.route.name.to_string()),
        _ => None,
    }
}

#[test]
fn a_listener_never_sees_what_a_more_specific_one_takes() {
    let mut tables = tables();
    let at = |index| Rule {
        attachments: vec![Attachment { listener: listener_key(index), hostnames: vec![] }],
        ..rule(vec![any_match(PathMatch::Prefix(["/all", "/wild", "/exact"][index].into()))])
    };
    tables.apply(&delta(vec![
        put_listener(0, listener(None)),
        put_listener(1, listener(Some("*.example.com"))),
        put_listener(2, listener(Some("a.example.com"))),
        put_rule(&rule_key("all", 0), at(0)),
        put_rule(&rule_key("wild", 0), at(1)),
        put_rule(&rule_key("exact", 0), at(2)),
    ]));
    for (host, path, expected) in [
        ("a.example.com", "/exact", Some("exact")),
        ("a.example.com", "/wild", None),
        ("a.example.com", "/all", None),
        ("b.example.com", "/wild", Some("wild")),
        ("b.example.com", "/all", None),
        ("example.com", "/all", Some("all")),
    ] {
        assert_eq!(found(&tables, host, path).as_deref(), expected, "{host}{path}");
    }
    tables.apply(&delta(vec![Change::Remove(Key::Listener(listener_key(2)))]));
    assert_eq!(found(&tables, "a.example.com", "/wild").as_deref(), Some("wild"));
}

#[test]
fn a_bad_match_fails_alone_and_by_name() {
    let mut tables = tables();
    let bad = any_match(PathMatch::Regex("/(".into()));
    let failures = tables.apply(&delta(vec![
        put_listener(0, listener(None)),
        put_rule(&rule_key("half", 0), rule(vec![bad, any_match(PathMatch::Exact("/good".into()))])),
    ]));
    assert_eq!(failures.len(), 1);
    assert_eq!(failures[0].0, Key::Rule(rule_key("half", 0)));
    assert!(failures[0].1.contains("matches[0]"), "{}", failures[0].1);
    assert_eq!(found(&tables, "x", "/good").as_deref(), Some("half"));
}

#[test]
fn endpoints_touch_no_rule_and_may_come_before_or_after_it() {
    let mut tables = tables();
    let backend = BackendKey::Service { name: ObjectName::new("ns", "s"), port: 80 };
    let endpoints = |last| {
        let endpoint = Endpoint { addr: SocketAddr::from(([10, 0, 0, last], 80)), state: EndpointState::Ready };
        Change::Put(Resource::Endpoints(backend.clone(), Arc::new(Endpoints { endpoints: vec![endpoint] })))
    };
    let target = BackendTarget::Backend(backend.clone());
    let with_backend = Rule {
        backends: vec![WeightedBackend { target, weight: 1, filters: vec![] }],
        timeouts: Timeouts { request: Some(Duration::from_secs(3)), backend_request: None },
        ..rule(vec![any_match(PathMatch::Prefix("/".into()))])
    };
    let key = rule_key("r", 0);
    tables.apply(&delta(vec![put_listener(0, listener(None)), put_rule(&key, with_backend)]));
    let compiled = tables.rules[&key].rule.clone();
    let Target::Backend(state) = &compiled.backends[0].target else { panic!("the backend is known by name") };
    assert!(state.pick(&[]).is_none());
    tables.apply(&delta(vec![endpoints(1)]));
    assert_eq!(state.pick(&[]).unwrap().addr.port(), 80);
    tables.apply(&delta(vec![endpoints(2)]));
    assert!(Rc::ptr_eq(&compiled, &tables.rules[&key].rule));
    assert_eq!(state.pick(&[]).unwrap().addr, SocketAddr::from(([10, 0, 0, 2], 80)));
    tables.apply(&delta(vec![Change::Remove(Key::Endpoints(backend.clone()))]));
    assert!(state.pick(&[]).is_none());
    assert!(tables.backends.contains_key(&backend), "a rule refers to it");
    tables.apply(&delta(vec![Change::Remove(Key::Rule(key))]));
    assert!(tables.backends.is_empty());
}

#[test]
fn counters_survive_a_replaced_rule_and_go_with_a_removed_one() {
    let mut tables = tables();
    let key = rule_key("r", 0);
    let put = |path: &str| put_rule(&key, rule(vec![any_match(PathMatch::Prefix(path.into()))]));
    tables.apply(&delta(vec![put_listener(0, listener(None)), put("/a")]));
    tables.rules[&key].stats[0].1.record(200, Duration::from_millis(1), 0, 0);
    tables.apply(&delta(vec![put("/b")]));
    let labels = RequestLabels { gateway: Some(listener_key(0).gateway), rule: Some(key.clone()) };
    assert_eq!(tables.snapshot().requests[&labels].responses[2], 1);
    tables.apply(&delta(vec![Change::Remove(Key::Rule(key.clone()))]));
    assert!(!tables.snapshot().requests.contains_key(&labels));
    tables.apply(&delta(vec![put("/b")]));
    assert!(!tables.snapshot().requests.contains_key(&labels));
    tables.rules[&key].stats[0].1.record(404, Duration::ZERO, 0, 0);
    assert_eq!(tables.snapshot().requests[&labels].responses, [0, 0, 0, 0, 1, 0]);
}

#[test]
fn an_ipv4_mapped_local_address_is_its_ipv4_frontend() {
    let mut tables = tables();
    tables.apply(&delta(vec![put_listener(0, listener(None))]));
    assert!(tables.find_frontend("[::ffff:127.0.0.1]:80".parse().unwrap()).is_some());
    assert!(tables.find_frontend("127.0.0.1:81".parse().unwrap()).is_none());
}
