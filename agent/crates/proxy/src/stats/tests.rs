//! Counting, adding up, and a page that a Prometheus server can read: checked by a parser of the format written from its
//! description.

use std::collections::{BTreeMap, BTreeSet};

use tidegate_model::{BackendKey, ObjectName, RuleKey, RuleKind, codec};

use super::*;

fn rule(name: &str) -> RequestLabels {
    let key = RuleKey { kind: RuleKind::HTTPRoute, route: ObjectName::new("shop", name), index: 2 };
    RequestLabels { gateway: Some(ObjectName::new("infra", "edge")), rule: Some(key) }
}

fn snapshot() -> Snapshot {
    let stats = RuleStats::default();
    stats.record(200, Duration::from_micros(400), 10, 1000);
    stats.record(204, Duration::from_millis(3), 0, 0);
    stats.record(503, Duration::from_secs(100), 0, 5);
    let shard = ShardStats::default();
    shard.connections.opened.add(3);
    shard.connections.active.increment();
    shard.connections.refused.increment("not_a_frontend");
    shard.local_responses.increment("no_route");
    shard.local_responses.increment("no_route");
    let upstream = UpstreamStats::default();
    upstream.requests.add(7);
    upstream.failures.increment("reset");
    let forward = ForwardStats::default();
    forward.opened.add(4);
    forward.active.increment();
    forward.failures.increment("no_backend");
    forward.received_bytes.add(11);
    forward.received_datagrams.add(2);
    shard.datagrams.dropped.increment("no_endpoint");
    shard.datagrams.ended.increment("idle");
    let backend = BackendKey::Service { name: ObjectName::new("shop", "b\"\\\n"), port: 80 };
    Snapshot {
        requests: [(rule("a"), (&stats).into()), (rule("quiet"), RequestCounts::default())].into(),
        forwards: [(rule("f"), (&forward).into())].into(),
        upstreams: [(backend, UpstreamCounts { ready_endpoints: 2, ..(&upstream).into() })].into(),
        connections: (&shard.connections).into(),
        datagrams: (&shard.datagrams).into(),
        local_responses: snapshot::reason_counts(&shard.local_responses),
        log_lines_dropped: 0,
        rules: 5,
    }
}

/// The page of a snapshot, with its pieces put together.
fn page(snapshot: &Snapshot, labels: &BTreeMap<String, String>) -> String {
    let mut page = String::new();
    snapshot.render(labels, &mut |piece, _| page.push_str(&piece));
    page
}

/// Series of a page: name and labels to value. Panics where the format is broken.
fn parse(page: &str) -> BTreeMap<(String, BTreeMap<String, String>), f64> {
    let is_name = |text: &str| {
        !text.is_empty()
            && !text.starts_with(|c: char| c.is_ascii_digit())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    let mut series = BTreeMap::new();
    let mut families = BTreeSet::new();
    let (mut family, mut kind) = (String::new(), String::new());
    for line in page.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            family = help.split_once(' ').expect("help text follows the name").0.to_owned();
            assert!(families.insert(family.clone()), "family {family} twice");
            continue;
        }
        if let Some(meta) = line.strip_prefix("# TYPE ") {
            let (name, type_name) = meta.split_once(' ').expect("type follows the name");
            assert_eq!(name, family, "TYPE follows HELP");
            assert_eq!(type_name == "counter", name.ends_with("_total"), "{name} is a {type_name}");
            kind = type_name.to_owned();
            continue;
        }
        let (head, value) = line.rsplit_once(' ').expect("value after a space");
        let (name, mut rest) = head.split_once('{').unwrap_or((head, "}"));
        let base = if kind == "histogram" {
            ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix)).expect("histogram suffix")
        } else {
            name
        };
        assert_eq!(base, family, "series stand below their own HELP");
        assert!(is_name(name));
        let mut labels = BTreeMap::new();
        while rest != "}" {
            let (label, after) = rest.split_once("=\"").expect("label has a quoted value");
            assert!(is_name(label), "{label}");
            let mut text = String::new();
            let mut characters = after.char_indices();
            let end = loop {
                match characters.next().expect("value is closed") {
                    (_, '\\') => match characters.next().expect("escape is whole").1 {
                        'n' => text.push('\n'),
                        escaped => {
                            assert!(matches!(escaped, '\\' | '"'));
                            text.push(escaped);
                        }
                    },
                    (at, '"') => break at,
                    (_, plain) => text.push(plain),
                }
            };
            assert!(labels.insert(label.to_owned(), text).is_none(), "label {label} twice");
            rest = &after[end + 1..];
            rest = rest.strip_prefix(',').unwrap_or(rest);
        }
        let value = value.parse().expect("value is a number");
        assert!(series.insert((name.to_owned(), labels), value).is_none(), "series twice: {line}");
    }
    series
}

fn find(
    series: &BTreeMap<(String, BTreeMap<String, String>), f64>,
    name: &str,
    wanted: &[(&str, &str)],
) -> Option<f64> {
    let has = |labels: &BTreeMap<String, String>| {
        wanted.iter().all(|(label, value)| labels.get(*label).is_some_and(|actual| actual == value))
    };
    series.iter().find(|((series, labels), _)| series == name && has(labels)).map(|(_, value)| *value)
}

#[test]
fn the_page_is_valid_and_says_what_was_counted() {
    let labels = [("traffic.domain".to_owned(), "pub\"lic".to_owned()), ("route".to_owned(), "x".to_owned())].into();
    let series = parse(&page(&snapshot(), &labels));
    let route = [("route", "shop/a"), ("gateway", "infra/edge"), ("rule", "2"), ("traffic_domain", "pub\"lic")];
    let with = |extra: (&'static str, &'static str)| [&route[..], &[extra, ("domain_route", "x")]].concat();
    assert_eq!(find(&series, "tidegate_requests_total", &with(("status", "2xx"))), Some(2.0));
    assert_eq!(find(&series, "tidegate_requests_total", &with(("status", "5xx"))), Some(1.0));
    let bucket = |bound| find(&series, "tidegate_request_duration_seconds_bucket", &with(("le", bound)));
    assert_eq!(
        [bucket("0.0005"), bucket("0.0025"), bucket("0.005"), bucket("60")],
        [Some(1.0), Some(1.0), Some(2.0), Some(2.0)]
    );
    assert_eq!(bucket("+Inf"), Some(3.0));
    assert_eq!(find(&series, "tidegate_request_duration_seconds_count", &route), Some(3.0));
    assert_eq!(find(&series, "tidegate_request_duration_seconds_sum", &route), Some(100.0034));
    assert_eq!(find(&series, "tidegate_response_body_bytes_total", &route), Some(1005.0));
    assert_eq!(find(&series, "tidegate_local_responses_total", &[("reason", "no_route")]), Some(2.0));
    assert_eq!(find(&series, "tidegate_connections_active", &[]), Some(1.0));
    let forward = [("route", "shop/f"), ("gateway", "infra/edge")];
    assert_eq!(find(&series, "tidegate_forwards_total", &forward), Some(4.0));
    assert_eq!(find(&series, "tidegate_forwards_active", &forward), Some(1.0));
    assert_eq!(find(&series, "tidegate_forward_failures_total", &[forward[0], ("reason", "no_backend")]), Some(1.0));
    let direction = |name| find(&series, "tidegate_forward_datagrams_total", &[forward[0], ("direction", name)]);
    assert_eq!([direction("received"), direction("sent")], [Some(2.0), Some(0.0)]);
    assert_eq!(find(&series, "tidegate_datagrams_dropped_total", &[("reason", "no_endpoint")]), Some(1.0));
    assert_eq!(find(&series, "tidegate_datagram_sessions_ended_total", &[("reason", "idle")]), Some(1.0));
    let backend = ("backend", "Service/shop/b\"\\\n:80");
    assert_eq!(find(&series, "tidegate_upstream_requests_total", &[backend]), Some(7.0));
    assert_eq!(find(&series, "tidegate_upstream_failures_total", &[backend, ("reason", "reset")]), Some(1.0));
    assert_eq!(find(&series, "tidegate_upstream_endpoints", &[backend, ("state", "ready")]), Some(2.0));
    assert_eq!(find(&series, "tidegate_requests_total", &[("route", "shop/quiet")]), None);
}

#[test]
fn shards_add_up() {
    let mut sum = Snapshot::default();
    sum.add(snapshot());
    sum.add(snapshot());
    let requests = &sum.requests[&rule("a")];
    assert_eq!((requests.responses[2], requests.durations.buckets[0], requests.sent_bytes), (4, 2, 2010));
    assert_eq!((sum.connections.opened, sum.connections.refused["not_a_frontend"], sum.rules), (6, 2, 5));
    assert_eq!((sum.datagrams.dropped["no_endpoint"], sum.datagrams.ended["idle"]), (2, 2));
    assert_eq!(sum.forwards.values().next().unwrap().received_datagrams, 4);
    let upstream = sum.upstreams.values().next().unwrap();
    assert_eq!((upstream.requests, upstream.ready_endpoints), (14, 2));
    parse(&page(&sum, &BTreeMap::new()));
}

#[test]
fn a_long_page_comes_in_pieces_of_whole_lines_that_fit_a_packet() {
    let stats = RuleStats::default();
    stats.record(200, Duration::from_millis(1), 1, 1);
    let requests = (0..1000).map(|index| (rule(&format!("route-{index}")), (&stats).into())).collect();
    let mut pieces = Vec::new();
    Snapshot { requests, ..snapshot() }.render(&BTreeMap::new(), &mut |piece, is_last| pieces.push((piece, is_last)));
    let (last, others) = pieces.split_last().expect("a page has a piece");
    assert!(last.1 && others.len() > 10 && others.iter().all(|(_, is_last)| !is_last));
    assert!(pieces.iter().all(|(piece, _)| piece.ends_with('\n') && piece.len() < codec::MAX_PACKET - 64));
    let text: String = pieces.into_iter().map(|(piece, _)| piece).collect();
    let series = parse(&text);
    let of_last = [("route", "shop/route-999"), ("status", "2xx")];
    assert_eq!(find(&series, "tidegate_requests_total", &of_last), Some(1.0));
}

#[test]
fn label_names_of_a_domain_never_collide() {
    let names = ["a.b", "a_b", "9x", "__name__", "", "le"];
    let labels = names.iter().map(|name| ((*name).to_owned(), (*name).to_owned())).collect();
    let series = parse(&page(&snapshot(), &labels));
    let (_, labels) = series.keys().find(|(name, _)| name == "tidegate_connections_total").unwrap();
    let expected = ["a_b", "domain_", "domain_9x", "domain___name__", "domain_le"];
    assert_eq!(labels.keys().map(String::as_str).collect::<Vec<_>>(), expected);
}

#[test]
fn unusual_statuses_are_counted_apart() {
    let stats = RuleStats::default();
    for status in [0, 99, 600, 999] {
        stats.record(status, Duration::MAX, 0, 0);
    }
    let counts = RequestCounts::from(&stats);
    assert_eq!(counts.responses[0], 4);
    assert_eq!(counts.durations.buckets.last(), Some(&4));
}
