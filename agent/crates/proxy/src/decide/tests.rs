//! Whole decisions over tables filled from a model.

use tidegate_model::{
    Attachment, Backend, BackendKey, BackendProtocol, BackendTarget, BackendTls, Certificate, CertificateKey, Change,
    CorsOrigin, Delta, Endpoint, EndpointState, Endpoints, Filter, Fraction, FrontendKey, Generation, HeaderEdits, Key,
    Listener, ListenerKey, ListenerTls, Match, Mirror, ObjectName, PathMatch, PathRewrite, Protocol, Resource, Rewrite,
    Rule, RuleKey, RuleKind, TlsMode, Transport, Trust, WeightedBackend,
};

use super::*;
use crate::certificates::TlsContext;

const PORTS: [u16; 2] = [80, 443];

fn listener_key(name: &str) -> ListenerKey {
    ListenerKey::of_gateway(ObjectName::new("g", "edge"), name)
}

fn listener(name: &str, hostname: Option<&str>, is_tls: bool) -> Change {
    let listener = Listener {
        frontends: vec![FrontendKey {
            addr: [127, 0, 0, 1].into(),
            port: PORTS[usize::from(is_tls)],
            transport: Transport::Tcp,
        }],
        owns_addresses: true,
        protocol: if is_tls { Protocol::Https } else { Protocol::Http },
        hostname: hostname.map(|name| name.parse().unwrap()),
        tls: is_tls.then(|| ListenerTls {
            mode: TlsMode::Terminate,
            certificates: vec![certificate_key()],
            clients: None,
        }),
        backend_identity: Default::default(),
        auth: Vec::new(),
    };
    Change::Put(Resource::Listener(listener_key(name), listener.into()))
}

fn certificate_key() -> CertificateKey {
    CertificateKey(ObjectName::new("g", "cert"))
}

fn backend_key(name: &str) -> BackendKey {
    BackendKey::Service { name: ObjectName::new("ns", name), port: 80 }
}

fn endpoints(name: &str, count: u8) -> Change {
    let endpoint = |last| Endpoint { addr: SocketAddr::from(([10, 0, 0, last], 80)), state: EndpointState::Ready };
    let endpoints = Endpoints { endpoints: (1..=count).map(endpoint).collect() };
    Change::Put(Resource::Endpoints(backend_key(name), endpoints.into()))
}

fn to(name: &str, weight: u32) -> WeightedBackend {
    WeightedBackend { target: BackendTarget::Backend(backend_key(name)), weight, filters: vec![] }
}

fn rule(listener: &str, path: &str) -> Rule {
    Rule {
        name: None,
        created: 0,
        attachments: vec![Attachment { listener: listener_key(listener), hostnames: vec![] }],
        matches: vec![Match { path: PathMatch::Prefix(path.into()), method: None, headers: vec![], query: vec![] }],
        filters: vec![],
        backends: vec![to("s", 1)],
        timeouts: Timeouts::default(),
        retry: None,
        session: None,
    }
}

fn put(name: &str, rule: Rule) -> Change {
    let key = RuleKey { kind: RuleKind::HTTPRoute, route: ObjectName::new("ns", name), index: 0 };
    Change::Put(Resource::Rule(key, rule.into()))
}

fn tables(changes: Vec<Change>) -> Tables {
    let mut tables = Tables::new(TlsContext::new().unwrap());
    let failures = tables.apply(&Delta { generation: Generation(1), is_full: false, changes });
    assert!(failures.is_empty(), "{failures:?}");
    tables
}

/// Tables with one plain listener, one backend with an endpoint and this rule.
fn tables_of(rule: Rule) -> Tables {
    tables(vec![listener("http", None, false), endpoints("s", 1), put("r", rule)])
}

fn request(target: &str) -> RequestHead {
    let mut head = RequestHead::default();
    head.fill_host("a.example", None);
    head.headers.append("Host", "a.example");
    head.fill_target(target);
    head
}

fn connection(sni: Option<&str>) -> ConnectionFacts {
    let is_tls = sni.is_some();
    ConnectionFacts {
        local: SocketAddr::from(([127, 0, 0, 1], PORTS[usize::from(is_tls)])),
        peer: SocketAddr::from(([192, 0, 2, 1], 5555)),
        is_tls,
        sni: sni.filter(|name| !name.is_empty()).map(Into::into),
    }
}

fn decide(tables: &Tables, connection: &ConnectionFacts, head: &RequestHead) -> Decision {
    let listener = find_listener(tables, connection, head);
    super::decide(tables, listener, connection, head, &mut Prng::from_seed(1))
}

fn plan(tables: &Tables, head: &RequestHead) -> Plan {
    match decide(tables, &connection(None), head) {
        Decision::Forward(plan) => plan,
        Decision::Respond(response) => panic!("{response:?}"),
    }
}

fn response(tables: &Tables, head: &RequestHead) -> LocalResponse {
    match decide(tables, &connection(None), head) {
        Decision::Forward(plan) => panic!("{plan:?}"),
        Decision::Respond(response) => response,
    }
}

fn header<'a>(response: &'a LocalResponse, name: &str) -> Option<&'a str> {
    response.headers.iter().find(|(field, _)| *field == name).map(|(_, value)| value.as_str())
}

#[test]
fn what_cannot_be_served_is_answered_with_its_own_status_and_reason() {
    let invalid = WeightedBackend { target: BackendTarget::Invalid("no such Service".into()), ..to("s", 1) };
    let tables = tables(vec![
        listener("http", Some("a.example"), false),
        endpoints("s", 1),
        put("invalid", Rule { backends: vec![invalid], ..rule("http", "/invalid") }),
        put("none", Rule { backends: vec![], ..rule("http", "/none") }),
        put("zero", Rule { backends: vec![to("s", 0)], ..rule("http", "/zero") }),
        put("empty", Rule { backends: vec![to("gone", 1)], ..rule("http", "/empty") }),
    ]);
    for (target, status, reason) in [
        ("/invalid", 500, "invalid_backend"),
        ("/none", 500, "no_backend"),
        ("/zero", 500, "no_backend"),
        ("/empty", 503, "no_endpoints"),
        ("/other", 404, "no_route"),
    ] {
        let response = response(&tables, &request(target));
        assert_eq!((response.status, response.reason), (status, reason), "{target}");
        assert!(response.listener.is_some());
    }
    let mut head = request("/invalid");
    assert_eq!(response(&tables, &head).detail.as_deref(), Some("no such Service"));
    head.fill_host("b.example", None);
    assert_eq!((response(&tables, &head).status, response(&tables, &head).reason), (404, "no_listener"));
    assert_eq!(tables.snapshot().local_responses["no_backend"], 2);
}

#[test]
fn weights_are_kept_over_five_hundred_requests_and_zero_takes_none() {
    let backends = vec![to("s", 70), to("t", 30), to("u", 0)];
    let tables = tables(vec![
        listener("http", None, false),
        endpoints("s", 1),
        endpoints("t", 1),
        endpoints("u", 1),
        put("r", Rule { backends, ..rule("http", "/") }),
    ]);
    let count = |name| (0..500).filter(|_| plan(&tables, &request("/")).backend.key == backend_key(name)).count();
    assert_eq!([count("s"), count("t"), count("u")], [350, 150, 0]);
}

#[test]
fn path_and_host_are_rewritten_and_the_rest_edited_backend_last() {
    let edits = |value: &str| HeaderEdits { set: vec![("x-via".into(), value.into())], ..HeaderEdits::default() };
    let prefix = Rewrite { host: Some("b.example".into()), path: Some(PathRewrite::Prefix("/new".into())) };
    let backend = WeightedBackend {
        filters: vec![Filter::RequestHeaders(edits("backend")), Filter::ResponseHeaders(edits("backend"))],
        ..to("s", 1)
    };
    let tables = tables_of(Rule {
        filters: vec![
            Filter::RequestHeaders(edits("rule")),
            Filter::ResponseHeaders(edits("rule")),
            Filter::Rewrite(prefix),
            Filter::Mirror(Mirror {
                backend: Some(backend_key("m")),
                fraction: Fraction { numerator: 1, denominator: 1 },
            }),
            Filter::Mirror(Mirror {
                backend: Some(backend_key("n")),
                fraction: Fraction { numerator: 0, denominator: 9 },
            }),
        ],
        backends: vec![backend],
        ..rule("http", "/old")
    });
    let mut head = request("/old/x?q=1");
    let mut copy = head.clone();
    let plan = plan(&tables, &head);
    plan.edit_request(&mut head);
    assert_eq!((head.target(), head.host()), ("/new/x?q=1", "b.example"));
    assert_eq!(head.headers.find("x-via"), Some(&b"backend"[..]));
    plan.edit_mirrored(&mut copy);
    assert_eq!((copy.target(), copy.headers.find("x-via")), ("/new/x?q=1", Some(&b"rule"[..])));
    assert_eq!(plan.mirrors.iter().map(|mirror| mirror.key.clone()).collect::<Vec<_>>(), [backend_key("m")]);
    let mut answer = ResponseHead::default();
    plan.edit_response(&mut answer);
    assert_eq!(answer.headers.find("x-via"), Some(&b"rule"[..]));
}

#[test]
fn a_backend_ref_rewrites_alone_and_over_its_rule() {
    let rewrite = |path| Filter::Rewrite(Rewrite { host: None, path: Some(path) });
    let backends = |path| vec![WeightedBackend { filters: vec![rewrite(path)], ..to("s", 1) }];
    let prefix = || PathRewrite::Prefix("/rewritten-prefix".into());
    let tables = tables(vec![
        listener("http", None, false),
        endpoints("s", 1),
        put("full", Rule { backends: backends(PathRewrite::Full("/rewritten-full".into())), ..rule("http", "/full") }),
        put("prefix", Rule { backends: backends(prefix()), ..rule("http", "/prefix") }),
        put(
            "both",
            Rule {
                filters: vec![rewrite(PathRewrite::Full("/of-the-rule".into()))],
                backends: backends(prefix()),
                ..rule("http", "/both")
            },
        ),
    ]);
    for (path, expected) in [
        ("/full/original?q", "/rewritten-full?q"),
        ("/prefix/original", "/rewritten-prefix/original"),
        ("/prefix", "/rewritten-prefix"),
        ("/both/x", "/rewritten-prefix/x"),
    ] {
        let mut head = request(path);
        plan(&tables, &head).edit_request(&mut head);
        assert_eq!(head.target(), expected);
    }
}

#[test]
fn of_rules_with_the_same_matches_the_first_answers_also_when_it_cannot() {
    let header = |name: &str| tidegate_model::HeaderMatch {
        name: name.into(),
        value: tidegate_model::ValueMatch::Exact("1".into()),
    };
    let matching = |index: u16, path: &str, names: [&str; 2], backends| {
        let key = RuleKey { kind: RuleKind::HTTPRoute, route: ObjectName::new("ns", "order"), index };
        let headers = names.map(header).to_vec();
        let matches = vec![Match { path: PathMatch::Exact(path.into()), method: None, headers, query: vec![] }];
        Change::Put(Resource::Rule(key, Rule { matches, backends, ..rule("http", "/") }.into()))
    };
    let invalid = vec![WeightedBackend { target: BackendTarget::Invalid("gone".into()), ..to("s", 1) }];
    // The same conditions in another order, and given in the wrong order.
    let tables = tables(vec![
        listener("http", None, false),
        endpoints("s", 1),
        endpoints("t", 1),
        matching(3, "/broken", ["a", "b"], vec![to("t", 1)]),
        matching(2, "/broken", ["a", "b"], invalid),
        matching(1, "/order", ["b", "a"], vec![to("t", 1)]),
        matching(0, "/order", ["a", "b"], vec![to("s", 1)]),
    ]);
    let mut head = request("/order");
    head.headers.append("A", "1");
    head.headers.append("B", "1");
    assert_eq!(plan(&tables, &head).backend.key, backend_key("s"));
    head.fill_target("/broken");
    assert_eq!(response(&tables, &head).status, 500);
}

#[test]
fn the_route_whose_host_name_says_more_goes_first_whatever_its_age_and_path() {
    for (of_listener, less, more) in
        [("a.example.com", "*.example.com", "a.example.com"), ("*.example.com", "*.com", "*.example.com")]
    {
        let of_route = |name: &str, backend: &str, path: &str, header: &str, created| {
            let headers = vec![tidegate_model::HeaderMatch {
                name: header.into(),
                value: tidegate_model::ValueMatch::Exact("1".into()),
            }];
            let attachment = Attachment { listener: listener_key("http"), hostnames: vec![name.parse().unwrap()] };
            Rule {
                created,
                attachments: vec![attachment],
                matches: vec![Match { path: PathMatch::Prefix(path.into()), method: None, headers, query: vec![] }],
                backends: vec![to(backend, 1)],
                ..rule("http", "/")
            }
        };
        let tables = tables(vec![
            listener("http", Some(of_listener), false),
            endpoints("s", 1),
            endpoints("t", 1),
            put("older", of_route(less, "s", "/path/prefix", "b", 1)),
            put("newer", of_route(more, "t", "/path", "a", 2)),
        ]);
        let mut head = request("/path/prefix/longer");
        head.fill_host("a.example.com", None);
        head.headers.append("b", "1");
        assert_eq!(plan(&tables, &head).backend.key, backend_key("s"), "what the newer one does not take");
        head.headers.append("a", "1");
        assert_eq!(plan(&tables, &head).backend.key, backend_key("t"));
    }
}

#[test]
fn whoever_must_allow_a_request_is_named_with_every_answer_but_a_preflights() {
    let auth = |name: &str| {
        Filter::ExternalAuth(tidegate_model::ExternalAuth {
            backend: Some(backend_key(name)),
            protocol: tidegate_model::ExternalAuthProtocol::Grpc { request_headers: vec![] },
            max_body: None,
        })
    };
    let with = |backends| Rule { filters: vec![auth("auth")], backends, ..rule("http", "/") };
    let of_backend = WeightedBackend { filters: vec![auth("second")], ..to("s", 1) };
    assert_eq!(plan(&tables_of(with(vec![of_backend.clone()])), &request("/")).auth.len(), 2);
    assert_eq!(plan(&tables_of(with(vec![to("s", 1)])), &request("/")).auth.len(), 1);
    assert_eq!(response(&tables_of(with(vec![])), &request("/")).auth.len(), 1);
    assert_eq!(response(&tables_of(with(vec![to("gone", 1)])), &request("/")).auth.len(), 1);
    let redirect = tidegate_model::Redirect { scheme: None, host: None, path: None, port: None, status: 302 };
    let of_backend = WeightedBackend { filters: vec![auth("second"), Filter::Redirect(redirect)], ..to("s", 1) };
    assert_eq!(response(&tables_of(with(vec![of_backend])), &request("/")).auth.len(), 2);
}

#[test]
fn a_path_with_dot_segments_is_judged_and_forwarded_resolved() {
    let tables = tables(vec![
        listener("http", None, false),
        endpoints("s", 1),
        put("open", rule("http", "/open")),
        put("admin", Rule { backends: vec![], ..rule("http", "/admin") }),
    ]);
    for target in ["/open/../admin", "/open/%2e%2e/admin", "/open/..%2f../admin/../admin/x", "/%61dmin"] {
        let outcome = decide(&tables, &connection(None), &request(target));
        let rule = match &outcome {
            Decision::Forward(plan) => Some(&plan.rule),
            Decision::Respond(response) => response.rule.as_ref(),
        };
        // "..%2f.." is one segment with an escaped slash in it, not a dot segment.
        let expected = if target.contains("%2f") { "open" } else { "admin" };
        assert_eq!(rule.map(|rule| &*rule.key.route.name), Some(expected), "{target}");
    }
    let mut head = request("/admin/.%2E/open/a%2Fb?x=../y");
    plan(&tables, &head).edit_request(&mut head);
    assert_eq!(head.target(), "/open/a%2Fb?x=../y");
    let mut head = request("/open/%7Euser");
    plan(&tables, &head).edit_request(&mut head);
    assert_eq!(head.target(), "/open/%7Euser", "what needs no change is forwarded as sent");
}

#[test]
fn redirects_answer_for_rules_and_for_backends() {
    let redirect = tidegate_model::Redirect {
        scheme: Some("https".into()),
        host: None,
        path: Some(PathRewrite::Prefix("/new".into())),
        port: None,
        status: 301,
    };
    let tables = tables(vec![
        listener("http", None, false),
        endpoints("s", 1),
        put("rule", Rule { filters: vec![Filter::Redirect(redirect.clone())], ..rule("http", "/rule") }),
        put(
            "ref",
            Rule {
                backends: vec![WeightedBackend { filters: vec![Filter::Redirect(redirect)], ..to("s", 1) }],
                ..rule("http", "/ref")
            },
        ),
    ]);
    for target in ["/rule/x?q", "/ref/x?q"] {
        let response = response(&tables, &request(target));
        assert_eq!((response.status, header(&response, "location")), (301, Some("https://a.example/new/x?q")));
    }
    let mut nameless = request("/rule");
    nameless.fill_host("", None);
    assert_eq!(header(&response(&tables, &nameless), "location"), Some("https://127.0.0.1/new"));
}

#[test]
fn a_filter_that_cannot_be_honoured_fails_its_requests() {
    let mut tables = tables_of(rule("http", "/"));
    let bad = Filter::Rewrite(Rewrite { host: None, path: Some(PathRewrite::Full("/a b".into())) });
    let change = put("r", Rule { filters: vec![bad], ..rule("http", "/") });
    let failures = tables.apply(&Delta { generation: Generation(2), is_full: false, changes: vec![change] });
    assert_eq!(failures.len(), 1);
    let response = response(&tables, &request("/"));
    assert_eq!((response.status, response.reason), (500, "invalid_filter"));
}

#[test]
fn a_backend_whose_tls_cannot_be_used_never_gets_clear_text() {
    let mut tables = tables_of(rule("http", "/"));
    let tls = Some(BackendTls {
        server_name: "s.example".to_owned(),
        subject_alt_names: vec![],
        trust: Trust::Bundles(vec![]),
    });
    let backend = Backend { protocol: BackendProtocol::Http1, tls };
    let change = Change::Put(Resource::Backend(backend_key("s"), backend.into()));
    let delta = Delta { generation: Generation(2), is_full: false, changes: vec![change] };
    assert_eq!(tables.apply(&delta)[0].0, Key::Backend(backend_key("s")));
    assert_eq!(tables.apply(&delta).len(), 1, "said again when it comes again");
    assert_eq!(response(&tables, &request("/")).reason, "invalid_backend_tls");
    let removed = Change::Remove(Key::Backend(backend_key("s")));
    tables.apply(&Delta { generation: Generation(3), is_full: false, changes: vec![removed] });
    plan(&tables, &request("/"));
}

#[test]
fn preflights_are_answered_here_and_actual_requests_carry_the_grant() {
    let cors = tidegate_model::Cors {
        allow_origins: vec![CorsOrigin::Exact("https://app.example".into())],
        allow_methods: vec!["PUT".into()],
        allow_headers: vec![],
        expose_headers: vec![],
        allow_credentials: false,
        max_age: 5,
    };
    let tables = tables_of(Rule { filters: vec![Filter::Cors(cors)], ..rule("http", "/") });
    let mut head = request("/");
    head.headers.append("Origin", "https://app.example");
    let forwarded = plan(&tables, &head);
    let mut answer = ResponseHead::default();
    forwarded.edit_response(&mut answer);
    assert_eq!(answer.headers.find("access-control-allow-origin"), Some(&b"https://app.example"[..]));
    assert_eq!(forwarded.local_fields()[0].1, "https://app.example");
    head.method = http::Method::OPTIONS;
    plan(&tables, &head);
    head.headers.append("Access-Control-Request-Method", "PUT");
    let allowed = response(&tables, &head);
    assert_eq!((allowed.status, header(&allowed, "access-control-allow-methods")), (200, Some("PUT")));
    head.headers.set("origin", "https://evil.example");
    let denied = response(&tables, &head);
    assert_eq!((denied.status, denied.headers.len(), denied.reason), (403, 0, "cors_origin_denied"));
}

fn certificate() -> Change {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["x.example".to_owned()]).unwrap();
    let certificate = Certificate {
        chain: vec![cert.der().to_vec()],
        private_key: signing_key.serialize_der(),
        names: vec!["x.example".to_owned()],
        not_after: i64::MAX,
    };
    Change::Put(Resource::Certificate(certificate_key(), certificate.into()))
}

#[test]
fn a_request_over_a_connection_made_for_another_listener_is_misdirected() {
    let tables = tables(vec![
        certificate(),
        listener("any", None, true),
        listener("second", Some("second.org"), true),
        listener("wild", Some("*.wild.org"), true),
        listener("fourth", Some("fourth.wild.org"), true),
        endpoints("s", 1),
        put("any", rule("any", "/known")),
        put("second", rule("second", "/")),
        put("wild", rule("wild", "/")),
        put("fourth", rule("fourth", "/")),
    ]);
    for (sni, host, status) in [
        ("second.org", "second.org", 200),
        ("second.org", "example.org", 421),
        ("example.org", "second.org", 421),
        ("example.org", "other.org", 404),
        ("third.wild.org", "fifth.wild.org", 200),
        ("third.wild.org", "fourth.wild.org", 421),
        ("fourth.wild.org", "third.wild.org", 421),
        ("", "example.org", 404),
        ("", "second.org", 421),
    ] {
        let mut head = request("/");
        head.fill_host(host, None);
        let status_of = match decide(&tables, &connection(Some(sni)), &head) {
            Decision::Forward(_) => 200,
            Decision::Respond(response) => response.status,
        };
        assert_eq!(status_of, status, "{sni} {host}");
    }
}

#[test]
fn certificates_are_replaced_under_a_listener_and_a_bad_one_leaves_the_old() {
    let mut tables = tables(vec![certificate(), listener("https", None, true), listener("http", None, false)]);
    let config = |tables: &Tables| {
        let frontend = tables.find_frontend(connection(Some("")).local).expect("443 is a frontend");
        assert!(frontend.is_tls());
        frontend.find_tls_listener(None).ok_or("unrecognized_name")?.server_config().ok_or("no_certificate")
    };
    let before = config(&tables).unwrap();
    let apply = |tables: &mut Tables, change| {
        tables.apply(&Delta { generation: Generation(2), is_full: false, changes: vec![change] })
    };
    assert!(apply(&mut tables, certificate()).is_empty());
    let after = config(&tables).unwrap();
    assert!(!Arc::ptr_eq(&before, &after));
    let bad = Certificate { chain: vec![], private_key: vec![], names: vec![], not_after: 0 };
    let failures = apply(&mut tables, Change::Put(Resource::Certificate(certificate_key(), bad.into())));
    assert!(failures[0].1.contains("stays in use"), "{failures:?}");
    assert!(Arc::ptr_eq(&after, &config(&tables).unwrap()));
    apply(&mut tables, Change::Remove(Key::Certificate(certificate_key())));
    assert_eq!(config(&tables).unwrap_err(), "no_certificate");
    apply(&mut tables, listener("https", Some("x.example"), true));
    assert_eq!(config(&tables).unwrap_err(), "unrecognized_name");
}
