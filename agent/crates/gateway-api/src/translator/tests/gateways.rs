//! What the conformance suite's `gateway-*` and `httproute-invalid-*` tests ask of conditions, kinds and counts.

use super::*;

fn gateway(listeners: &str) -> String {
    with_spec(&format!("listeners: [{listeners}]"))
}

fn with_spec(spec: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: gw, namespace: infra, generation: 7}}\n\
         spec:\n  gatewayClassName: public\n  {spec}"
    )
}

fn route(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, namespace: infra, generation: 4}}\n\
         spec:\n  parentRefs: [{{name: gw{spec}\n  rules: [{{backendRefs: [{{name: products-v1, namespace: shop, port: 8080}}]}}]"
    )
}

const GW: Place<'static> = (Kind::Gateway, "infra", "gw", "");

fn listener(name: &str) -> Place<'_> {
    (Kind::Gateway, "infra", "gw", name)
}

fn kinds(world: &World, index: usize) -> Vec<&'static str> {
    world.status(Kind::Gateway, "infra", "gw").listeners[index].supported_kinds.clone()
}

fn attached(world: &World) -> Vec<(String, u32)> {
    let listeners = &world.status(Kind::Gateway, "infra", "gw").listeners;
    listeners.iter().map(|listener| (listener.name.to_string(), listener.attached_routes)).collect()
}

/// Every condition of a Gateway and of its listeners is of this generation.
#[track_caller]
fn assert_generation(world: &World, generation: i64) {
    let status = world.status(Kind::Gateway, "infra", "gw");
    let of_listeners = status.listeners.iter().flat_map(|listener| &listener.conditions);
    for condition in status.conditions.iter().chain(of_listeners) {
        assert_eq!(condition.observed_generation, Some(generation), "{condition:?}");
    }
}

#[test]
fn kinds_that_cannot_attach_are_left_out_of_the_supported_ones() {
    let mut world = World::example();
    for (listed, expected) in [
        ("{kind: InvalidRoute}", vec![]),
        ("{kind: InvalidRoute}, {kind: HTTPRoute}", vec!["HTTPRoute"]),
        ("{kind: HTTPRoute, group: example.com}", vec![]),
        ("{kind: GRPCRoute}, {kind: HTTPRoute}, {kind: GRPCRoute}, {kind: X}", vec!["GRPCRoute", "HTTPRoute"]),
    ] {
        world.put(&gateway(&format!("{{name: l, protocol: HTTP, port: 80, allowedRoutes: {{kinds: [{listed}]}}}}")));
        world.assert_condition(listener("l"), "ResolvedRefs=false InvalidRouteKinds", "allowedRoutes.kinds");
        world.assert_condition(listener("l"), "Accepted=true Accepted", "");
        assert_eq!(kinds(&world, 0), expected, "{listed}");
        assert_eq!(attached(&world), [("l".to_owned(), 0)]);
    }
    world.put(&gateway("{name: l, protocol: HTTP, port: 80, allowedRoutes: {kinds: [{kind: HTTPRoute}]}}"));
    world.assert_condition(listener("l"), "ResolvedRefs=true ResolvedRefs", "");
    world.put(&gateway("{name: l, protocol: HTTP, port: 80}"));
    assert_eq!(kinds(&world, 0), ["HTTPRoute", "GRPCRoute"]);
}

#[test]
fn an_unknown_protocol_is_refused_and_the_other_listener_served() {
    let mut world = World::example();
    let invalid = "{name: invalid, protocol: INVALID, port: 1111}";
    world.put(&gateway(invalid));
    world.assert_condition(GW, "Accepted=false ListenersNotValid", "invalid");
    world.assert_condition(listener("invalid"), "Accepted=false UnsupportedProtocol", "INVALID");
    assert!(kinds(&world, 0).is_empty());
    world.put(&gateway(&format!("{{name: http, protocol: HTTP, port: 80}}, {invalid}")));
    world.assert_condition(GW, "Accepted=true ListenersNotValid", "invalid");
    world.assert_condition(listener("http"), "Accepted=true Accepted", "");
    world.assert_condition(listener("http"), "Programmed=true Programmed", "");
    world.assert_condition(listener("invalid"), "Accepted=false UnsupportedProtocol", "INVALID");
    assert!(kinds(&world, 1).is_empty());
}

#[test]
fn certificates_that_cannot_be_used_are_told_apart() {
    let mut world = World::example();
    world.put(
        "apiVersion: v1\nkind: Secret\nmetadata: {name: malformed, namespace: infra}\ntype: kubernetes.io/tls\n\
         stringData: {tls.crt: Hello world, tls.key: Hello world}",
    );
    world.put_all([tls_secret("infra", "good")]);
    for (reference, message) in [
        ("{name: nothing}", "Secret/infra/nothing does not exist"),
        ("{name: good, group: wrong.example.com}", "Secret of group \"wrong.example.com\""),
        ("{name: good, kind: WrongKind}", "WrongKind of group \"\""),
        ("{name: malformed}", "Secret/infra/malformed"),
    ] {
        world.put(&gateway(&format!(
            "{{name: l, protocol: HTTPS, port: 443, tls: {{certificateRefs: [{reference}]}}}}"
        )));
        world.assert_condition(listener("l"), "ResolvedRefs=false InvalidCertificateRef", message);
        world.assert_condition(listener("l"), "Programmed=false Invalid", message);
        assert_eq!(kinds(&world, 0), ["HTTPRoute", "GRPCRoute"]);
    }
    world.put(&gateway(
        "{name: l, protocol: HTTPS, port: 443, tls: {certificateRefs: [{name: good, group: \"\", kind: Secret}]}}",
    ));
    world.assert_condition(listener("l"), "Programmed=true Programmed", "");
}

#[test]
fn only_a_grant_of_the_right_kind_namespace_and_name_counts() {
    let mut world = World::example();
    world.put_all([tls_secret("certs", "shared")]);
    world.put(&gateway(
        "{name: l, protocol: HTTPS, port: 443, tls: {certificateRefs: [{name: shared, namespace: certs}]}}, \
         {name: m, protocol: HTTPS, port: 443, hostname: m.example.com, tls: {certificateRefs: [{name: nothing, namespace: certs}]}}",
    ));
    let grant = |namespace: &str, from: &str, to: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\nmetadata: {{name: g, namespace: {namespace}}}\n\
             spec:\n  from: [{{group: {from}}}]\n  to: [{{{to}}}]"
        )
    };
    let (own, secret) = ("gateway.networking.k8s.io, kind: Gateway, namespace: infra", "group: \"\", kind: Secret");
    for (namespace, from, to, is_granted) in [
        ("infra", own, secret, false),
        ("certs", "gateway.networking.k8s.io, kind: Gateway, namespace: shop", secret, false),
        ("certs", "gateway.networking.k8s.io, kind: HTTPRoute, namespace: infra", secret, false),
        ("certs", "example.com, kind: Gateway, namespace: infra", secret, false),
        ("certs", own, "group: \"\", kind: Service", false),
        ("certs", own, "group: \"\", kind: Secret, name: other", false),
        ("certs", own, "group: \"\", kind: Secret, name: shared", true),
        ("certs", own, secret, true),
    ] {
        world.put(&grant(namespace, from, to));
        let expected = if is_granted { "true ResolvedRefs" } else { "false RefNotPermitted" };
        world.assert_condition(listener("l"), &format!("ResolvedRefs={expected}"), "");
        assert_eq!(kinds(&world, 0), ["HTTPRoute", "GRPCRoute"]);
        // Whether a Secret exists is not told to those who may not refer to it.
        let expected =
            if is_granted && !to.contains("name") { "false InvalidCertificateRef" } else { "false RefNotPermitted" };
        world.assert_condition(listener("m"), &format!("ResolvedRefs={expected}"), "");
        world.delete(Kind::ReferenceGrant, namespace, "g");
    }
}

#[test]
fn listeners_come_and_go_with_their_routes_and_generations() {
    let mut world = World::example();
    world.put(&grant_services());
    world.put(&route("r", "}]"));
    let (a, b) =
        ("{name: a, protocol: HTTP, port: 80, hostname: a.example.com}", "{name: b, protocol: HTTP, port: 80}");
    world.put(&gateway(a));
    assert_generation(&world, 7);
    assert_eq!(attached(&world), [("a".to_owned(), 1)]);
    world.put(&gateway(&format!("{b}, {a}")).replace("generation: 7", "generation: 8"));
    assert_generation(&world, 8);
    assert_eq!(attached(&world), [("b".to_owned(), 1), ("a".to_owned(), 1)], "in the order of the object");
    world.assert_condition(listener("b"), "Programmed=true Programmed", "");
    world.put(&gateway(b).replace("generation: 7", "generation: 9"));
    assert_generation(&world, 9);
    assert_eq!(attached(&world), [("b".to_owned(), 1)]);
    let listeners: Vec<_> = world.listeners("public").into_iter().filter(|name| name.starts_with("infra/")).collect();
    assert_eq!(listeners, ["infra/gw/b"]);
    assert_eq!(world.rule("public", "infra", "r", 0).unwrap().attachments.len(), 1);
}

/// Lets routes of `infra` refer to Services of `shop`.
fn grant_services() -> String {
    "apiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\nmetadata: {name: services, namespace: shop}\n\
     spec:\n  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: infra}]\n  to: [{group: \"\", kind: Service}]"
        .to_owned()
}

#[test]
fn a_change_of_anything_that_matters_leaves_the_newest_generation_everywhere() {
    let mut world = World::example();
    world.put(&grant_services());
    world.put(&gateway("{name: l, protocol: HTTPS, port: 443, tls: {certificateRefs: [{name: late}]}}"));
    world.put(&route("r", "}]"));
    world.put(
        &gateway("{name: l, protocol: HTTPS, port: 443, tls: {certificateRefs: [{name: late}]}}")
            .replace("n: 7", "n: 8"),
    );
    world.put_all([tls_secret("infra", "late")]);
    world.assert_condition(listener("l"), "Programmed=true Programmed", "");
    assert_generation(&world, 8);
    world.delete(Kind::HTTPRoute, "infra", "r");
    assert_generation(&world, 8);
    // A generation that moves for fields that nothing is made of is noted all the same.
    world.put(&with_spec("listeners: [{name: l, protocol: HTTPS, port: 443, tls: {certificateRefs: [{name: late}]}}]\n  infrastructure: {labels: {a: b}}").replace("n: 7", "n: 9"));
    assert_generation(&world, 9);
}

#[test]
fn only_accepted_routes_are_counted_and_broken_references_do_not_matter() {
    let mut world = World::example();
    world.put(&gateway(
        "{name: http, protocol: HTTP, port: 80, hostname: foo.example.com, allowedRoutes: {kinds: [{kind: HTTPRoute}], \
          namespaces: {from: Selector, selector: {matchLabels: {kubernetes.io/metadata.name: infra}}}}}, \
         {name: tls, protocol: HTTPS, port: 443, tls: {certificateRefs: [{name: nothing}]}}",
    ));
    world.put(&route("one", ", sectionName: http}]"));
    world.put(&route("two", ", sectionName: http}]"));
    world.put(&route("other", ", sectionName: http}]\n  hostnames: [not-accepted.example.net]"));
    world.put(&route("unresolved", ", sectionName: tls}]"));
    let of = |name| (Kind::HTTPRoute, "infra", name, "");
    world.assert_condition(of("other"), "Accepted=false NoMatchingListenerHostname", "spec.hostnames");
    world.assert_condition(of("unresolved"), "Accepted=true Accepted", "");
    world.assert_condition(of("unresolved"), "ResolvedRefs=false RefNotPermitted", "");
    world.assert_condition(listener("tls"), "Programmed=false Invalid", "");
    assert_eq!(attached(&world), [("http".to_owned(), 2), ("tls".to_owned(), 1)]);
    world.put(&grant_services());
    assert_eq!(attached(&world), [("http".to_owned(), 2), ("tls".to_owned(), 1)]);
}

#[test]
fn a_parent_that_does_not_take_a_route_counts_it_nowhere() {
    let mut world = World::example();
    world.put(&grant_services());
    world.put(&gateway(
        "{name: http, protocol: HTTP, port: 80}, {name: grpc, protocol: HTTP, port: 81, allowedRoutes: {kinds: [{kind: GRPCRoute}]}}",
    ));
    for (spec, reason) in [
        (", sectionName: http1, port: 80}]", "NoMatchingParent"),
        (", port: 82}]", "NoMatchingParent"),
        (", sectionName: http, port: 81}]", "NoMatchingParent"),
        (", sectionName: grpc}]", "NotAllowedByListeners"),
    ] {
        world.put(&route("r", spec));
        world.assert_condition((Kind::HTTPRoute, "infra", "r", ""), &format!("Accepted=false {reason}"), "");
        world.assert_condition((Kind::HTTPRoute, "infra", "r", ""), "ResolvedRefs=true ResolvedRefs", "");
        assert_eq!(attached(&world), [("http".to_owned(), 0), ("grpc".to_owned(), 0)], "{spec}");
        assert!(world.rule("public", "infra", "r", 0).is_none());
    }
    world.put(
        &route("r", "}]")
            .replace("namespace: infra", "namespace: shop")
            .replace("name: gw", "name: gw, namespace: infra"),
    );
    world.assert_condition(
        (Kind::HTTPRoute, "shop", "r", ""),
        "Accepted=false NotAllowedByListeners",
        "namespace shop",
    );
    assert_eq!(attached(&world), [("http".to_owned(), 0), ("grpc".to_owned(), 0)]);
}

#[test]
fn a_port_as_parent_means_every_listener_of_that_port() {
    let mut world = World::example();
    let at =
        |name: &str, port: u16, host: &str| format!("{{name: {name}, protocol: HTTP, port: {port}, hostname: {host}}}");
    world.put(&gateway(
        &[at("a", 80, "foo.com"), at("b", 8080, "foo.com"), at("c", 8080, "bar.com"), at("d", 8090, "foo.com")]
            .join(", "),
    ));
    world.put(&route("r", ", port: 8080}]"));
    let rule = world.rule("public", "infra", "r", 0).unwrap();
    let listeners: Vec<_> = rule.attachments.iter().map(|attachment| &*attachment.listener.name).collect();
    assert_eq!(listeners, ["b", "c"]);
}

#[test]
fn static_addresses_are_judged_by_type_then_by_use() {
    let mut world = World::example();
    let addresses = |list: &str| {
        with_spec(&format!("addresses: [{list}]\n  listeners: [{{name: http, protocol: HTTP, port: 8080}}]"))
    };
    let (fake, unusable, usable) =
        ("{type: test/fake-invalid-type, value: \"fake address\"}", "{value: 198.51.100.77}", "{value: 203.0.113.9}");
    world.put(&addresses(&[fake, unusable, usable].join(", ")));
    world.assert_condition(GW, "Accepted=false UnsupportedAddress", "spec.addresses[0].type: test/fake-invalid-type");
    assert!(world.status(GW.0, GW.1, GW.2).addresses.is_empty());
    world.put(&addresses(&[unusable, usable].join(", ")));
    world.assert_condition(GW, "Accepted=true Accepted", "");
    world.assert_condition(GW, "Programmed=false AddressNotUsable", "198.51.100.77");
    assert!(world.status(GW.0, GW.1, GW.2).addresses.is_empty());
    world.put(&addresses(usable));
    world.assert_condition(GW, "Accepted=true Accepted", "");
    world.assert_condition(GW, "Programmed=true Programmed", "");
    world.assert_condition(listener("http"), "Accepted=true Accepted", "");
    world.assert_condition(listener("http"), "ResolvedRefs=true ResolvedRefs", "");
    assert_eq!(world.status(GW.0, GW.1, GW.2).addresses, ["203.0.113.9".parse::<IpAddr>().unwrap()]);
    world.put(&addresses("{type: IPAddress}"));
    world.assert_condition(GW, "Programmed=true Programmed", "");
    assert_eq!(world.status(GW.0, GW.1, GW.2).addresses.len(), 1);
}

#[test]
fn an_address_of_a_routability_that_there_is_none_of_is_not_replaced_by_another() {
    let mut world = World::example();
    let asking = |address: &str| {
        with_spec(&format!("addresses: [{address}]\n  listeners: [{{name: http, protocol: HTTP, port: 8080}}]"))
    };
    for (address, reason) in [
        ("{routability: Cluster}", "\"Cluster\" cannot be had: it would be the ClusterIP of a Service"),
        (
            "{value: 203.0.113.9, routability: example.com/Wan}",
            "\"example.com/Wan\" cannot be had: no address is known by it",
        ),
    ] {
        world.put(&asking(address));
        world.assert_condition(GW, "Accepted=true Accepted", "");
        world.assert_condition(GW, "Programmed=false AddressNotAssigned", "spec.addresses[0].routability");
        world.assert_condition(GW, "Programmed=false AddressNotAssigned", reason);
        assert!(world.status(GW.0, GW.1, GW.2).addresses.is_empty());
        assert!(world.listener("public", "infra", "gw", "http").is_none());
    }
    world.put(&asking("{routability: \"\"}"));
    world.assert_condition(GW, "Programmed=true Programmed", "");
}

#[test]
fn infrastructure_is_told_of_accepted_gateways_only() {
    let mut world = World::example();
    let infrastructure = |more: &str| {
        with_spec(&format!(
            "infrastructure: {{labels: {{key2: value2}}, annotations: {{key1: value1}}{more}}}\n  listeners: [{{name: http, protocol: HTTP, port: 8080}}]"
        ))
        .replace("generation: 7", "generation: 7, uid: 1-2-3")
    };
    let find = |world: &World| world.translator.find_infrastructure(&ObjectName::new("infra", "gw"));
    assert_eq!(find(&world), None);
    world.put(&infrastructure(""));
    world.assert_condition(GW, "Accepted=true Accepted", "");
    let found = find(&world).unwrap();
    assert_eq!(found.uid.as_deref(), Some("1-2-3"));
    assert_eq!((&*found.labels["key2"], &*found.annotations["key1"]), ("value2", "value1"));
    world.put(&infrastructure(", parametersRef: {group: \"\", kind: ConfigMap, name: nothing}"));
    world.assert_condition(GW, "Accepted=false InvalidParameters", "spec.infrastructure.parametersRef");
    assert_eq!(find(&world), None);
}

#[test]
fn names_as_long_as_may_be_are_judged() {
    let mut world = World::example();
    let name = "a".repeat(253);
    world.put(&gateway("{name: http, protocol: HTTP, port: 80}").replace("name: gw", &format!("name: {name}")));
    world.assert_condition((Kind::Gateway, "infra", &name, ""), "Programmed=true Programmed", "");
}

#[test]
fn a_routes_own_host_names_decide_its_place_not_what_is_left_of_them() {
    let mut world = World::example();
    world.put(&grant_services());
    world.put(&gateway(
        "{name: exact, protocol: HTTP, port: 80, hostname: abc.example.com}, {name: any, protocol: HTTP, port: 81}",
    ));
    world.put(&route("r", "}]\n  hostnames: [\"*.example.com\", \"*.com\", abc.example.com, other.example.net]"));
    let rule = world.rule("public", "infra", "r", 0).unwrap();
    let hostnames =
        |index: usize| -> Vec<String> { rule.attachments[index].hostnames.iter().map(ToString::to_string).collect() };
    let names = [hostnames(0), hostnames(1)];
    let exact = names.iter().find(|names| names.len() == 3).unwrap();
    assert_eq!(*exact, ["abc.example.com", "*.com", "*.example.com"], "those that have a name in common, as written");
    assert!(names.iter().any(|names| names.len() == 4), "{names:?}");
}
