//! Forwards: which one takes a connection, and what changes leave alone.

use tidegate_model::{ListenerTls, TlsMode};

use super::*;

fn tcp_listener() -> Listener {
    Listener { protocol: Protocol::Tcp, ..listener(None) }
}

fn tls_listener(hostname: Option<&str>) -> Listener {
    let tls = ListenerTls { mode: TlsMode::Passthrough, certificates: vec![], clients: None };
    Listener { protocol: Protocol::Tls, tls: Some(tls), ..listener(hostname) }
}

fn key(name: &str) -> RuleKey {
    RuleKey { kind: RuleKind::TLSRoute, route: ObjectName::new("ns", name), index: 0 }
}

fn put_forward(name: &str, created: i64, listener: usize, hostnames: &[&str]) -> Change {
    let hostnames = hostnames.iter().map(|name| name.parse().unwrap()).collect();
    let attachments = vec![Attachment { listener: listener_key(listener), hostnames }];
    Change::Put(Resource::Forward(key(name), Arc::new(Forward { created, attachments, backends: vec![] })))
}

fn remove(name: &str) -> Change {
    Change::Remove(Key::Forward(key(name)))
}

fn found(tables: &Tables, sni: Option<&str>) -> Option<String> {
    let frontend = tables.find_frontend(SocketAddr::new(FRONTEND.addr, FRONTEND.port))?;
    let listener = match frontend.opening() {
        Opening::Tls => frontend.find_tls_listener(sni)?,
        _ => frontend.find_tcp_listener()?,
    };
    Some(listener.find_forward(sni)?.forward.key.route.name.to_string())
}

#[test]
fn the_oldest_forward_of_a_listener_takes_everything_until_it_goes() {
    let mut tables = tables();
    tables.apply(&delta(vec![put_forward("b", 2, 0, &[]), put_forward("c", 2, 0, &[]), put_forward("d", 1, 0, &[])]));
    assert_eq!(found(&tables, None), None, "there is no listener yet");
    tables.apply(&delta(vec![put_listener(0, tcp_listener())]));
    assert_eq!(found(&tables, None).as_deref(), Some("d"));
    tables.apply(&delta(vec![remove("d")]));
    assert_eq!(found(&tables, None).as_deref(), Some("b"), "of the same age: by name");
    tables.apply(&delta(vec![put_forward("b", 3, 0, &[])]));
    assert_eq!(found(&tables, None).as_deref(), Some("c"));
    tables.apply(&delta(vec![remove("b"), remove("c"), Change::Remove(Key::Listener(listener_key(0)))]));
    assert!(tables.routes.is_empty() && tables.frontends.is_empty() && tables.forwards.is_empty());
}

#[test]
fn forwards_are_found_by_server_name_the_most_specific_first() {
    let mut tables = tables();
    tables.apply(&delta(vec![
        put_listener(0, tls_listener(Some("*.example.com"))),
        put_listener(1, tls_listener(None)),
        put_forward("wild", 1, 0, &["*.example.com"]),
        put_forward("exact", 2, 0, &["a.example.com"]),
        put_forward("any", 1, 1, &[]),
        put_forward("other", 1, 1, &["a.example.org"]),
    ]));
    assert_eq!(found(&tables, Some("a.example.com")).as_deref(), Some("exact"));
    assert_eq!(found(&tables, Some("b.example.com")).as_deref(), Some("wild"));
    assert_eq!(found(&tables, Some("a.example.org")).as_deref(), Some("other"));
    assert_eq!(found(&tables, Some("b.example.org")).as_deref(), Some("any"));
    assert_eq!(found(&tables, None).as_deref(), Some("any"));
    tables.apply(&delta(vec![remove("any"), remove("wild")]));
    assert_eq!(found(&tables, None), None, "a name is asked for, and none came");
    assert_eq!(found(&tables, Some("b.example.com")), None, "the other listener's forwards are not asked");
}

#[test]
fn what_a_full_delta_leaves_out_goes_and_what_it_repeats_stays_as_it_was() {
    let mut tables = tables();
    let kept = put_forward("kept", 1, 0, &[]);
    tables.apply(&delta(vec![put_listener(0, tcp_listener()), kept.clone(), put_forward("gone", 2, 0, &[])]));
    let before = tables.forwards[&key("kept")].forward.clone();
    tables.forwards[&key("kept")].stats[0].1.opened.increment();
    let full = Delta { is_full: true, ..delta(vec![put_listener(0, tcp_listener()), kept]) };
    tables.apply(&full);
    assert!(Rc::ptr_eq(&before, &tables.forwards[&key("kept")].forward));
    assert!(!tables.forwards.contains_key(&key("gone")));
    let counts = tables.snapshot().forwards;
    assert_eq!(counts.values().map(|counts| counts.opened).collect::<Vec<_>>(), [1]);
}

#[test]
fn backends_live_as_long_as_a_forward_refers_to_them() {
    let mut tables = tables();
    let backend = BackendKey::Service { name: ObjectName::new("ns", "s"), port: 80 };
    let weighted =
        |weight| WeightedBackend { target: BackendTarget::Backend(backend.clone()), weight, filters: vec![] };
    let invalid = WeightedBackend { target: BackendTarget::Invalid("why".into()), weight: 1, filters: vec![] };
    let put = |backends| {
        let attachments = vec![Attachment { listener: listener_key(0), hostnames: vec![] }];
        Change::Put(Resource::Forward(key("f"), Arc::new(Forward { created: 0, attachments, backends })))
    };
    tables.apply(&delta(vec![put_listener(0, tcp_listener()), put(vec![weighted(3), invalid])]));
    let forward = tables.forwards[&key("f")].forward.clone();
    let chosen = (0..8).filter(|_| matches!(forward.choose(), Some(Target::Backend(_)))).count();
    assert_eq!(chosen, 6, "the share of what is not valid is not given to others");
    assert!(tables.backends.contains_key(&backend));
    tables.apply(&delta(vec![put(vec![weighted(0)])]));
    assert!(tables.forwards[&key("f")].forward.choose().is_none());
    tables.apply(&delta(vec![remove("f")]));
    assert!(tables.backends.is_empty());
}
