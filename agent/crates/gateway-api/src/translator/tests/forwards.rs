//! TLSRoutes, TCPRoutes and UDPRoutes, and the listeners that they attach to.

use tidegate_model::{BackendKey, BackendTarget, Endpoints, Forward, Protocol, TlsMode, Transport, WeightedBackend};

use super::*;

/// The example's Gateway of the public domain with other listeners, open to all namespaces.
fn external(listeners: &[&str]) -> String {
    let listeners: Vec<_> = listeners
        .iter()
        .map(|listener| format!("{{{listener}, allowedRoutes: {{namespaces: {{from: All}}}}}}"))
        .collect();
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: external, namespace: gw-external}}\n\
         spec: {{gatewayClassName: public, listeners: [{}]}}",
        listeners.join(", ")
    )
}

fn listener(name: &'static str) -> Place<'static> {
    (Kind::Gateway, "gw-external", "external", name)
}

fn route(kind: &str, name: &str, spec: &str) -> String {
    let parent = "parentRefs: [{name: external, namespace: gw-external}]";
    let parent = if spec.contains("parentRefs") { String::new() } else { format!("{parent}, ") };
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: shop, generation: 4}}\n\
         spec: {{{parent}{spec}}}"
    )
}

fn service(name: &str, ports: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{ports: [{ports}]}}")
}

fn slice(service: &str, ports: &str, address: &str) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: {service}-a, namespace: shop, labels: {{kubernetes.io/service-name: {service}}}}}\n\
         addressType: IPv4\nports: [{ports}]\nendpoints: [{{addresses: [{address}]}}]"
    )
}

fn find(world: &World, kind: RuleKind, name: &str) -> Option<Forward> {
    let key = RuleKey { kind, route: ObjectName::new("shop", name), index: 0 };
    match world.find("public", &Key::Forward(key))? {
        Resource::Forward(_, forward) => Some((*forward).clone()),
        other => panic!("{other:?}"),
    }
}

/// A forward's attachments as `listener hostname,hostname`.
fn attachments(forward: &Forward) -> Vec<String> {
    let shown = forward.attachments.iter().map(|attachment| {
        let names: Vec<_> = attachment.hostnames.iter().map(ToString::to_string).collect();
        format!("{} {}", attachment.listener.name, names.join(","))
    });
    shown.collect()
}

fn attached(world: &World, name: &str) -> u32 {
    let status = world.status(Kind::Gateway, "gw-external", "external");
    status.listeners.iter().find(|listener| &*listener.name == name).unwrap().attached_routes
}

const TCP: &str = "name: tcp, protocol: TCP, port: 5432";
const UDP: &str = "name: udp, protocol: UDP, port: 5432";
const PASS: &str = "name: pass, protocol: TLS, port: 8443, hostname: a.example.com, tls: {mode: Passthrough}";
const TERM: &str = "name: term, protocol: TLS, port: 8443, hostname: \"*.example.com\", \
    tls: {mode: Terminate, certificateRefs: [{name: example-com}]}";
const HTTPS: &str = "name: https, protocol: HTTPS, port: 8443, tls: {certificateRefs: [{name: example-com}]}";

#[test]
fn listeners_of_every_protocol_are_served_and_name_the_routes_they_take() {
    let mut world = World::example();
    world.put(&external(&[TCP, UDP, PASS, TERM, HTTPS]));
    for (name, protocol, mode, kinds) in [
        ("tcp", Protocol::Tcp, None, &["TCPRoute"][..]),
        ("udp", Protocol::Udp, None, &["UDPRoute"]),
        ("pass", Protocol::Tls, Some(TlsMode::Passthrough), &["TLSRoute"]),
        ("term", Protocol::Tls, Some(TlsMode::Terminate), &["TLSRoute"]),
        ("https", Protocol::Https, Some(TlsMode::Terminate), &["HTTPRoute", "GRPCRoute"]),
    ] {
        world.assert_condition(listener(name), "Accepted=true Accepted", "");
        world.assert_condition(listener(name), "Programmed=true Programmed", "");
        let status = world.status(Kind::Gateway, "gw-external", "external");
        let status = status.listeners.iter().find(|listener| &*listener.name == name).unwrap();
        assert_eq!(status.supported_kinds, kinds, "{name}");
        let found = world.listener("public", "gw-external", "external", name).unwrap();
        assert_eq!(found.protocol, protocol);
        assert_eq!(found.tls.as_ref().map(|tls| tls.mode), mode, "{name}");
        assert_eq!(found.tls.is_some_and(|tls| !tls.certificates.is_empty()), mode == Some(TlsMode::Terminate));
        let transport = if protocol == Protocol::Udp { Transport::Udp } else { Transport::Tcp };
        assert!(found.frontends.iter().all(|frontend| frontend.transport == transport));
    }
}

#[test]
fn a_listener_takes_no_kind_that_its_protocol_does_not_know() {
    let mut world = World::example();
    let gateway = external(&[PASS])
        .replace("namespaces: {from: All}", "namespaces: {from: All}, kinds: [{kind: TCPRoute}, {kind: TLSRoute}]");
    world.put(&gateway);
    world.assert_condition(listener("pass"), "ResolvedRefs=false InvalidRouteKinds", "kinds[0]: TCPRoute");
    assert_eq!(world.status(Kind::Gateway, "gw-external", "external").listeners[0].supported_kinds, ["TLSRoute"]);
    world.put(&external(&["name: http, protocol: HTTP, port: 80"]));
    for kind in ["TLSRoute", "TCPRoute", "UDPRoute"] {
        let hostnames = if kind == "TLSRoute" { "hostnames: [a.example.com], " } else { "" };
        world.put(&route(
            kind,
            "r",
            &format!("{hostnames}rules: [{{backendRefs: [{{name: products-v1, port: 8080}}]}}]"),
        ));
        let kind = Kind::find("gateway.networking.k8s.io", "v1", kind).unwrap();
        world.assert_condition((kind, "shop", "r", ""), "Accepted=false NotAllowedByListeners", kind.as_str());
    }
    assert_eq!(world.model("public").forwards().count(), 0);
    world.put(&external(&[TCP]));
    world.assert_condition((Kind::HTTPRoute, "shop", "products", ""), "Accepted=false NotAllowedByListeners", "");
}

#[test]
fn what_cannot_share_a_port_is_conflicted() {
    let mut world = World::example();
    world.put(&external(&[
        TCP,
        UDP,
        "name: other, protocol: TCP, port: 5432",
        "name: plain, protocol: HTTP, port: 8443",
        PASS,
        "name: twin, protocol: HTTPS, port: 9443, hostname: b.example.com, tls: {certificateRefs: [{name: example-com}]}",
        "name: same, protocol: TLS, port: 9443, hostname: b.example.com, tls: {mode: Passthrough}",
        "name: more, protocol: TLS, port: 9443, hostname: c.example.com, tls: {mode: Passthrough}",
    ]));
    for (name, expected) in [
        ("tcp", "true HostnameConflict"),
        ("other", "true HostnameConflict"),
        ("udp", "false NoConflicts"),
        ("plain", "true ProtocolConflict"),
        ("pass", "true ProtocolConflict"),
        ("twin", "true HostnameConflict"),
        ("same", "true HostnameConflict"),
        ("more", "false NoConflicts"),
    ] {
        world.assert_condition(listener(name), &format!("Conflicted={expected}"), "");
        let is_served = world.listener("public", "gw-external", "external", name).is_some();
        assert_eq!(is_served, expected.starts_with("false"), "{name}");
    }
}

#[test]
fn the_listeners_of_a_later_gateway_must_fit_in() {
    let mut world = World::example();
    let at = |name: &str, created: &str, listeners: &[&str]| {
        let gateway = external(listeners).replace(
            "metadata: {name: external",
            &format!("metadata: {{name: {name}, creationTimestamp: \"{created}\""),
        );
        gateway.replace("spec: {", "spec: {addresses: [{value: 203.0.113.5}], ")
    };
    world.put(&at("one", "2026-01-01T00:00:00Z", &[TCP, PASS]));
    world.put(&at("two", "2026-01-02T00:00:00Z", &[TCP, UDP, HTTPS]));
    let of = |name| (Kind::Gateway, "gw-external", "two", name);
    world.assert_condition(of("tcp"), "Conflicted=true HostnameConflict", "Gateway/gw-external/one");
    world.assert_condition(of("udp"), "Programmed=true Programmed", "");
    world.assert_condition(of("https"), "Programmed=true Programmed", "");
    world.delete(Kind::Gateway, "gw-external", "one");
    world.assert_condition(of("tcp"), "Programmed=true Programmed", "");
}

#[test]
fn fields_without_a_meaning_are_named() {
    let mut world = World::example();
    world.put(&external(&[
        "name: tcp, protocol: TCP, port: 5432, hostname: a.example.com, tls: {mode: Passthrough}",
        "name: pass, protocol: TLS, port: 8443, tls: {mode: Passthrough, certificateRefs: [{name: example-com}]}",
    ]));
    let place = (Kind::Gateway, "gw-external", "external", "");
    for message in [
        "spec.listeners[0].hostname has no meaning with protocol TCP",
        "spec.listeners[0].tls has no meaning",
        "spec.listeners[1].tls.certificateRefs have no meaning with mode Passthrough",
    ] {
        world.assert_condition(place, "Enforced=false NotEnforced", message);
    }
    assert_eq!(world.listener("public", "gw-external", "external", "tcp").unwrap().hostname, None);
    assert_eq!(world.listener("public", "gw-external", "external", "pass").unwrap().tls.unwrap().certificates, []);
}

#[test]
fn tls_routes_attach_by_the_names_they_have_in_common_with_listeners() {
    let mut world = World::example();
    world.put(&external(&[PASS, TERM, "name: any, protocol: TLS, port: 7443, tls: {mode: Passthrough}"]));
    let rules = "rules: [{backendRefs: [{name: products-v1, port: 8080}]}]";
    let put = |world: &mut World, spec: &str| world.put(&route("TLSRoute", "t", &format!("{spec}, {rules}")));
    let of = |world: &World| find(world, RuleKind::TLSRoute, "t").map(|forward| attachments(&forward));
    put(&mut world, "hostnames: [\"*.com\"]");
    let expected = ["any *.com", "pass *.com", "term *.com"];
    assert_eq!(of(&world).unwrap(), expected);
    assert_eq!(["any", "pass", "term"].map(|name| attached(&world, name)), [1, 1, 1]);
    put(&mut world, "hostnames: [b.example.com, b.example.org]");
    assert_eq!(of(&world).unwrap(), ["any b.example.com,b.example.org", "term b.example.com"]);
    put(
        &mut world,
        "parentRefs: [{name: external, namespace: gw-external, sectionName: pass}], hostnames: [b.example.com]",
    );
    let place = (Kind::TLSRoute, "shop", "t", "");
    world.assert_condition(place, "Accepted=false NoMatchingListenerHostname", "spec.hostnames");
    assert_eq!(of(&world), None);
    assert_eq!(["any", "pass", "term"].map(|name| attached(&world, name)), [0, 0, 0]);
    for (parent, reason) in
        [("sectionName: none", "NoMatchingParent"), ("port: 1", "NoMatchingParent"), ("port: 8443", "Accepted")]
    {
        put(
            &mut world,
            &format!("parentRefs: [{{name: external, namespace: gw-external, {parent}}}], hostnames: [a.example.com]"),
        );
        world.assert_condition(place, &format!("Accepted={} {reason}", reason == "Accepted"), "");
    }
    put(&mut world, "hostnames: [\"a b\"]");
    world.assert_condition(place, "Accepted=false UnsupportedValue", "spec.hostnames[0] is left out");
}

#[test]
fn references_that_lead_nowhere_keep_their_share_and_are_told() {
    let mut world = World::example();
    world.put(&external(&[TCP]));
    let place = (Kind::TCPRoute, "shop", "t", "");
    for (reference, reason, message) in [
        ("name: none, port: 1", "BackendNotFound", "Service/shop/none does not exist"),
        ("name: products-v1", "BackendNotFound", "backendRefs[0].port is missing"),
        ("name: products-v1, port: 1", "BackendNotFound", "has no port 1"),
        ("name: a, group: example.com, kind: Thing", "InvalidKind", "kind Thing of example.com"),
        ("name: console, namespace: admin, port: 8080", "RefNotPermitted", "from TCPRoute of shop"),
    ] {
        world.put(&route(
            "TCPRoute",
            "t",
            &format!("rules: [{{backendRefs: [{{{reference}, weight: 3}}, {{name: products-v1, port: 8080}}]}}]"),
        ));
        world.assert_condition(place, &format!("ResolvedRefs=false {reason}"), message);
        world.assert_condition(place, "Accepted=true Accepted", "");
        let forward = find(&world, RuleKind::TCPRoute, "t").unwrap();
        assert!(matches!(&forward.backends[0], WeightedBackend { target: BackendTarget::Invalid(_), weight: 3, .. }));
        assert!(matches!(&forward.backends[1], WeightedBackend { target: BackendTarget::Backend(_), weight: 1, .. }));
    }
    let grant = |kind: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {{name: g, namespace: admin}}\n\
             spec: {{from: [{{group: gateway.networking.k8s.io, kind: {kind}, namespace: shop}}], to: [{{group: \"\", kind: Service}}]}}"
        )
    };
    world.put(&grant("TLSRoute"));
    world.assert_condition(place, "ResolvedRefs=false RefNotPermitted", "");
    world.put(&grant("TCPRoute"));
    world.assert_condition(place, "ResolvedRefs=true ResolvedRefs", "");
    world.delete(Kind::ReferenceGrant, "admin", "g");
    world.assert_condition(place, "ResolvedRefs=false RefNotPermitted", "");
}

#[test]
fn what_a_service_speaks_does_not_matter_to_routes_that_read_nothing() {
    let mut world = World::example();
    world.put(&external(&[TCP]));
    world.put(&service("db", "{port: 1, appProtocol: example.com/db}"));
    world.put(&slice("db", "{port: 7}", "10.30.0.1"));
    let key = BackendKey::Service { name: ObjectName::new("shop", "db"), port: 1 };
    let place = (Kind::TCPRoute, "shop", "t", "");
    world.put(&route("TCPRoute", "t", "rules: [{backendRefs: [{name: db, port: 1}]}]"));
    world.assert_condition(place, "ResolvedRefs=true ResolvedRefs", "");
    assert!(world.find("public", &Key::Backend(key.clone())).is_some());
    assert!(world.model("public").dialled().contains(&"10.30.0.1:7".parse().unwrap()));
    world.put(&service("db", "{port: 1, protocol: UDP}"));
    world.assert_condition(place, "ResolvedRefs=false UnsupportedProtocol", "the route needs a TCP port");
    assert!(world.find("public", &Key::Backend(key)).is_none());
}

#[test]
fn datagrams_go_to_the_udp_port_of_a_number() {
    let mut world = World::example();
    world.put(&external(&[TCP, UDP]));
    world.put(&service("dns", "{name: tcp, port: 53, protocol: TCP}, {name: udp, port: 53, protocol: UDP}"));
    world.put(&slice("dns", "{name: tcp, port: 5301}, {name: udp, port: 5302, protocol: UDP}", "10.30.0.1"));
    for kind in ["TCPRoute", "UDPRoute"] {
        world.put(&route(kind, "r", "rules: [{backendRefs: [{name: dns, port: 53}]}]"));
    }
    let name = ObjectName::new("shop", "dns");
    let endpoints = |world: &World, key| match world.find("public", &Key::Endpoints(key)) {
        Some(Resource::Endpoints(_, endpoints)) => endpoints,
        _ => Arc::new(Endpoints::default()),
    };
    let keys = [BackendKey::Service { name: name.clone(), port: 53 }, BackendKey::UdpService { name, port: 53 }];
    let ports = |world: &World| {
        keys.clone().map(|key| endpoints(world, key).endpoints.iter().map(|endpoint| endpoint.addr.port()).next())
    };
    assert_eq!(ports(&world), [Some(5301), Some(5302)]);
    let udp = find(&world, RuleKind::UDPRoute, "r").unwrap();
    assert_eq!(attachments(&udp), ["udp "]);
    assert_eq!(udp.backends[0].target, BackendTarget::Backend(keys[1].clone()));
    assert_eq!(attachments(&find(&world, RuleKind::TCPRoute, "r").unwrap()), ["tcp "]);
    let changes =
        world.put(&slice("dns", "{name: tcp, port: 5301}, {name: udp, port: 5303, protocol: UDP}", "10.30.0.1"));
    assert_eq!(ports(&world), [Some(5301), Some(5303)]);
    assert!(changes.statuses.is_empty(), "endpoints concern no route");
}

#[test]
fn every_route_of_a_listener_counts_and_is_told_its_age() {
    let mut world = World::example();
    world.put(&external(&[TCP, UDP]));
    for kind in ["TCPRoute", "UDPRoute"] {
        for (name, created) in [("newer", "2026-01-02T00:00:00Z"), ("older", "2026-01-01T00:00:00Z")] {
            let yaml = route(kind, name, "rules: [{backendRefs: [{name: products-v1, port: 8080}]}]");
            world.put(&yaml.replace("generation: 4", &format!("creationTimestamp: \"{created}\"")));
        }
    }
    assert_eq!([attached(&world, "tcp"), attached(&world, "udp")], [2, 2]);
    for name in ["newer", "older"] {
        world.assert_condition((Kind::TCPRoute, "shop", name, ""), "Accepted=true Accepted", "");
        world.assert_condition((Kind::UDPRoute, "shop", name, ""), "Accepted=true Accepted", "");
    }
    let created = |name| find(&world, RuleKind::TCPRoute, name).unwrap().created;
    assert_eq!(created("newer") - created("older"), 24 * 60 * 60);
}

#[test]
fn faulty_rules_are_named_and_send_nothing_astray() {
    let mut world = World::example();
    world.put(&external(&[TCP]));
    let place = (Kind::TCPRoute, "shop", "t", "");
    let put = |world: &mut World, rules: &str| world.put(&route("TCPRoute", "t", &format!("rules: {rules}")));
    put(&mut world, "[]");
    world.assert_condition(place, "Accepted=false UnsupportedValue", "spec.rules is empty");
    assert_eq!(find(&world, RuleKind::TCPRoute, "t"), None);
    put(&mut world, "[{backendRefs: []}]");
    world.assert_condition(place, "PartiallyInvalid=true UnsupportedValue", "spec.rules[0].backendRefs is empty");
    assert_eq!(find(&world, RuleKind::TCPRoute, "t").unwrap().backends, []);
    put(&mut world, "[{backendRefs: [{name: products-v1, port: 8080, weight: -1}, {name: products-v2, port: 8080}]}]");
    world.assert_condition(place, "PartiallyInvalid=true UnsupportedValue", "backendRefs[0].weight: -1");
    let backends = find(&world, RuleKind::TCPRoute, "t").unwrap().backends;
    assert!(matches!(backends.as_slice(), [WeightedBackend { target: BackendTarget::Invalid(_), .. }]), "{backends:?}");
    put(
        &mut world,
        "[{backendRefs: [{name: products-v1, port: 8080}]}, {backendRefs: [{name: products-v2, port: 8080}]}]",
    );
    world.assert_condition(place, "PartiallyInvalid=true UnsupportedValue", "spec.rules[1] is left out");
    assert_eq!(find(&world, RuleKind::TCPRoute, "t").unwrap().backends.len(), 1);
    world.delete(Kind::TCPRoute, "shop", "t");
    assert_eq!(world.model("public").forwards().count(), 0);
    assert_eq!(attached(&world, "tcp"), 0);
}
