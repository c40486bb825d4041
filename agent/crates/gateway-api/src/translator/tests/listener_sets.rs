//! ListenerSets: the rules of GEP-1713 and what the conformance suite's `listenerset-*` tests ask, one test a rule.

use super::*;

/// Host name of a Gateway's listener, of the first set's, and so on.
fn listener(name: &str, host: &str) -> String {
    format!(
        "{{name: {name}, protocol: HTTP, port: 80, hostname: {host}, allowedRoutes: {{namespaces: {{from: All}}}}}}"
    )
}

fn gateway(allowed: &str, listeners: &[String]) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: edge, namespace: infra, generation: 2}}\n\
         spec:\n  gatewayClassName: public\n{allowed}  listeners: [{}]",
        listeners.join(", ")
    )
}

fn allowing(from: &str) -> String {
    let allowed = format!("  allowedListeners: {{namespaces: {{from: {from}}}}}\n");
    gateway(&allowed, &[listener("own", "own.example.com")])
}

fn set_in(namespace: &str, name: &str, second: u32, listeners: &[String]) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: ListenerSet\n\
         metadata: {{name: {name}, namespace: {namespace}, generation: 5, creationTimestamp: \"2026-01-01T00:00:{second:02}Z\"}}\n\
         spec:\n  parentRef: {{name: edge, namespace: infra}}\n  listeners: [{}]",
        listeners.join(", ")
    )
}

fn set(name: &str, listeners: &[String]) -> String {
    set_in("infra", name, 1, listeners)
}

fn route(name: &str, parents: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec:\n  parentRefs: [{parents}]\n  rules: [{{backendRefs: [{{name: products-v1, port: 8080}}]}}]"
    )
}

const EDGE: Place<'static> = (Kind::Gateway, "infra", "edge", "");

fn of_set<'a>(name: &'a str, part: &'a str) -> Place<'a> {
    (Kind::ListenerSet, "infra", name, part)
}

fn attached_sets(world: &World) -> Option<u32> {
    world.status(Kind::Gateway, "infra", "edge").attached_listener_sets
}

/// Routes attached to each listener of an object.
fn attached_routes(world: &World, kind: Kind, namespace: &str, name: &str) -> Vec<u32> {
    world.status(kind, namespace, name).listeners.iter().map(|listener| listener.attached_routes).collect()
}

/// Parents of a route as `Kind/name reason`.
fn parents(world: &World, name: &str) -> Vec<String> {
    let parents = &world.status(Kind::HTTPRoute, "shop", name).parents;
    let shown = parents.iter().map(|parent| {
        let accepted = parent.conditions.iter().find(|condition| condition.type_ == "Accepted").unwrap();
        let kind = parent.parent.kind.as_deref().unwrap_or("Gateway");
        format!("{kind}/{} {}", parent.parent.name, accepted.reason)
    });
    shown.collect()
}

/// Listeners that a route's rule is attached to.
fn attachments(world: &World, name: &str) -> Vec<String> {
    let rule = world.rule("public", "shop", name, 0);
    rule.iter().flat_map(|rule| &rule.attachments).map(|attachment| attachment.listener.to_string()).collect()
}

fn of_edge(world: &World) -> Vec<String> {
    world.listeners("public").into_iter().filter(|listener| listener.starts_with("infra/edge/")).collect()
}

#[test]
fn a_gateway_takes_no_sets_unless_it_says_whose() {
    let sets = [
        set("here", &[listener("a", "here.example.com")]),
        set_in("shop", "there", 1, &[listener("a", "there.example.com")]),
    ];
    let selector = "Selector, selector: {matchLabels: {gw-access: external}}";
    for (allowed, expected) in [
        (String::new(), [false, false]),
        ("  allowedListeners: {}\n".to_owned(), [false, false]),
        ("  allowedListeners: {namespaces: {from: None}}\n".to_owned(), [false, false]),
        ("  allowedListeners: {namespaces: {from: Same}}\n".to_owned(), [true, false]),
        ("  allowedListeners: {namespaces: {from: All}}\n".to_owned(), [true, true]),
        (format!("  allowedListeners: {{namespaces: {{from: {selector}}}}}\n"), [false, true]),
    ] {
        let mut world = World::example();
        world.put(&gateway(&allowed, &[listener("own", "own.example.com")]));
        world.put(&sets[0]);
        world.put(&sets[1]);
        world.assert_condition(EDGE, "Accepted=true Accepted", "");
        assert_eq!(attached_sets(&world), Some(expected.iter().filter(|is| **is).count() as u32), "{allowed}");
        let mut served = vec!["infra/edge/own".to_owned()];
        for ((namespace, name), is_allowed) in [("infra", "here"), ("shop", "there")].into_iter().zip(expected) {
            let place = (Kind::ListenerSet, namespace, name, "");
            if is_allowed {
                world.assert_condition(place, "Accepted=true Accepted", "");
                world.assert_condition(place, "Programmed=true Programmed", "");
                world.assert_condition((place.0, place.1, place.2, "a"), "Programmed=true Programmed", "");
                served.push(format!("infra/edge/ListenerSet/{namespace}/{name}/a"));
            } else {
                world.assert_condition(place, "Accepted=false NotAllowed", "spec.allowedListeners.namespaces");
                world.assert_condition(place, "Programmed=false NotAllowed", "takes no ListenerSets of namespace");
                assert!(world.status(place.0, place.1, place.2).listeners.is_empty());
            }
        }
        assert_eq!(of_edge(&world), served, "{allowed}");
    }
}

#[test]
fn every_condition_has_the_generation_of_its_own_object() {
    let mut world = World::example();
    world.put(&allowing("Same"));
    world.put(&set("more", &[listener("a", "a.example.com")]));
    for (place, generation) in [(EDGE, 2), (of_set("more", ""), 5), (of_set("more", "a"), 5)] {
        let conditions = world.conditions(place.0, place.1, place.2, place.3);
        assert!(conditions.iter().all(|condition| condition.observed_generation == Some(generation)), "{conditions:?}");
    }
    world.put(&set("more", &[listener("a", "a.example.com")]).replace("generation: 5", "generation: 6"));
    let conditions = world.conditions(Kind::ListenerSet, "infra", "more", "a");
    assert!(conditions.iter().all(|condition| condition.observed_generation == Some(6)), "{conditions:?}");
}

#[test]
fn of_equal_host_names_the_gateways_is_served_then_the_older_sets() {
    let mut world = World::example();
    world.put(&gateway(
        "  allowedListeners: {namespaces: {from: All}}\n",
        &[listener("own", "own.example.com"), listener("clash", "gateway.example.com")],
    ));
    world.put(&set_in(
        "infra",
        "b-older",
        1,
        &[
            listener("fine", "one.example.com"),
            listener("clash", "gateway.example.com"),
            listener("first", "set.example.com"),
        ],
    ));
    world.put(&set_in("infra", "gateways", 2, &[listener("clash", "gateway.example.com")]));
    world.put(&set_in(
        "infra",
        "a-younger",
        3,
        &[listener("fine", "two.example.com"), listener("first", "set.example.com")],
    ));
    world.put(&set_in("shop", "sets", 4, &[listener("first", "set.example.com")]));
    for part in ["own", "clash"] {
        world.assert_condition((EDGE.0, EDGE.1, EDGE.2, part), "Programmed=true Programmed", "");
        world.assert_condition((EDGE.0, EDGE.1, EDGE.2, part), "Conflicted=false NoConflicts", "");
    }
    world.assert_condition(EDGE, "Accepted=true Accepted", "");
    assert_eq!(attached_sets(&world), Some(2));
    for (set, part, holder) in [
        ("b-older", "clash", "the Gateway itself"),
        ("gateways", "clash", "the Gateway itself"),
        ("a-younger", "first", "ListenerSet/infra/b-older"),
    ] {
        world.assert_condition(of_set(set, part), "Accepted=false HostnameConflict", holder);
        world.assert_condition(of_set(set, part), "Programmed=false HostnameConflict", holder);
        world.assert_condition(of_set(set, part), "Conflicted=true HostnameConflict", holder);
    }
    let other = (Kind::ListenerSet, "shop", "sets", "first");
    world.assert_condition(other, "Conflicted=true HostnameConflict", "a ListenerSet of another namespace");
    for (set, part) in [("b-older", "fine"), ("b-older", "first"), ("a-younger", "fine")] {
        world.assert_condition(of_set(set, part), "Accepted=true Accepted", "");
        world.assert_condition(of_set(set, part), "Programmed=true Programmed", "");
    }
    for set in ["b-older", "a-younger"] {
        world.assert_condition(of_set(set, ""), "Accepted=true ListenersNotValid", "listeners with faults");
        world.assert_condition(of_set(set, ""), "Programmed=true Programmed", "");
    }
    for place in [of_set("gateways", ""), (Kind::ListenerSet, "shop", "sets", "")] {
        world.assert_condition(place, "Accepted=false ListenersNotValid", "no listener is valid");
        world.assert_condition(place, "Programmed=false ListenersNotValid", "");
    }
    world.delete(Kind::ListenerSet, "infra", "b-older");
    world.assert_condition(of_set("a-younger", "first"), "Programmed=true Programmed", "");
    world.assert_condition(of_set("a-younger", ""), "Accepted=true Accepted", "");
    assert_eq!(attached_sets(&world), Some(1));
}

#[test]
fn of_equal_age_the_first_by_name_is_served() {
    let mut world = World::example();
    world.put(&allowing("All"));
    for (namespace, name) in [("shop", "a"), ("infra", "z"), ("infra", "b")] {
        world.put(&set_in(namespace, name, 1, &[listener("l", "one.example.com")]));
    }
    assert_eq!(of_edge(&world), ["infra/edge/own", "infra/edge/ListenerSet/infra/b/l"]);
}

#[test]
fn of_two_protocols_on_a_port_the_first_is_served() {
    let mut world = World::example();
    world.put(&allowing("Same"));
    let tcp = "{name: clash, protocol: TCP, port: 80}".to_owned();
    world.put(&set_in("infra", "mixed", 1, &[listener("fine", "one.example.com"), tcp.clone()]));
    world.put(&set_in("infra", "only", 2, &[tcp]));
    for set in ["mixed", "only"] {
        world.assert_condition(of_set(set, "clash"), "Accepted=false ProtocolConflict", "with another protocol");
        world.assert_condition(of_set(set, "clash"), "Programmed=false ProtocolConflict", "");
        world.assert_condition(of_set(set, "clash"), "Conflicted=true ProtocolConflict", "");
    }
    world.assert_condition(of_set("mixed", "fine"), "Programmed=true Programmed", "");
    world.assert_condition(of_set("mixed", ""), "Accepted=true ListenersNotValid", "clash");
    world.assert_condition(of_set("only", ""), "Accepted=false ListenersNotValid", "");
    assert_eq!(attached_sets(&world), Some(1));
}

#[test]
fn what_is_wrong_with_a_listener_takes_no_host_name_from_a_younger_set() {
    let mut world = World::example();
    world.put(&allowing("Same"));
    let odd =
        "{name: a, protocol: HTTP, port: 80, hostname: one.example.com, allowedRoutes: {namespaces: {from: Selector}}}";
    world.put(&set_in("infra", "older", 1, &[odd.to_owned(), listener("b", "\"not a host\"")]));
    world.put(&set_in(
        "infra",
        "younger",
        2,
        &[listener("a", "one.example.com"), "{name: b, protocol: HTTP, port: 80}".to_owned()],
    ));
    world.assert_condition(of_set("older", ""), "Accepted=false ListenersNotValid", "a, b");
    world.assert_condition(of_set("older", "a"), "Accepted=false UnsupportedValue", "selector is missing");
    world.assert_condition(of_set("older", "b"), "Accepted=false UnsupportedValue", "not a host");
    world.assert_condition(of_set("younger", ""), "Accepted=true Accepted", "");
    // A name that stands in the Gateway is the Gateway's, whatever is wrong with the listener.
    world.put(&gateway(
        "  allowedListeners: {namespaces: {from: Same}}\n",
        &[odd.to_owned(), listener("own", "own.example.com")],
    ));
    world.assert_condition(of_set("younger", "a"), "Conflicted=true HostnameConflict", "the Gateway itself");
}

#[test]
fn names_are_unique_within_an_object_only() {
    let mut world = World::example();
    world.put(&allowing("Same"));
    world.put(&set_in("infra", "one", 1, &[listener("own", "one.example.com"), listener("own", "again.example.com")]));
    world.put(&set_in("infra", "two", 2, &[listener("own", "two.example.com")]));
    world.put(&route("r", "{name: one, namespace: infra, kind: ListenerSet, sectionName: own}"));
    assert_eq!(
        of_edge(&world),
        ["infra/edge/own", "infra/edge/ListenerSet/infra/one/own", "infra/edge/ListenerSet/infra/two/own"]
    );
    assert_eq!(attachments(&world, "r"), ["infra/edge/ListenerSet/infra/one/own"]);
    let statuses = &world.status(Kind::ListenerSet, "infra", "one").listeners;
    let accepted: Vec<_> = statuses.iter().map(|listener| &*listener.conditions[0].reason).collect();
    assert_eq!(accepted, ["Accepted", "Invalid"]);
}

#[test]
fn a_route_attaches_to_the_listeners_of_the_parent_that_it_names_and_of_no_other() {
    let mut world = World::example();
    world.put(&allowing("All"));
    world.put(&set("more", &[listener("a", "a.example.com"), listener("b", "b.example.com").replace("80", "81")]));
    let own = "infra/edge/own";
    let (a, b) = ("infra/edge/ListenerSet/infra/more/a", "infra/edge/ListenerSet/infra/more/b");
    let at_set = "name: more, namespace: infra, kind: ListenerSet";
    for (parents, expected) in [
        ("{name: edge, namespace: infra}".to_owned(), vec![own]),
        (format!("{{{at_set}}}"), vec![a, b]),
        (format!("{{{at_set}, sectionName: b}}"), vec![b]),
        (format!("{{{at_set}, port: 80}}"), vec![a]),
        (format!("{{{at_set}, port: 80, sectionName: b}}"), vec![]),
        (format!("{{{at_set}, sectionName: own}}"), vec![]),
        ("{name: edge, namespace: infra, sectionName: a}".to_owned(), vec![]),
        ("{name: edge, namespace: infra, port: 81}".to_owned(), vec![]),
    ] {
        world.put(&route("r", &parents));
        assert_eq!(attachments(&world, "r"), expected, "{parents}");
        let reason = if expected.is_empty() { "NoMatchingParent" } else { "Accepted" };
        assert!(self::parents(&world, "r")[0].ends_with(reason), "{parents}: {:?}", self::parents(&world, "r"));
    }
}

#[test]
fn each_parent_is_judged_on_its_own_and_none_is_told_of_another() {
    let mut world = World::example();
    world.put(&allowing("Same"));
    world.put(&set("more", &[listener("a", "a.example.com")]));
    let at_set = "{name: more, namespace: infra, kind: ListenerSet}";
    world.put(&route("both", &format!("{{name: edge, namespace: infra}}, {at_set}")));
    world.put(&route("one", &format!("{{name: edge, namespace: infra, sectionName: nothing}}, {at_set}")));
    world.put(&route("gateway", "{name: edge, namespace: infra}"));
    world.put(&route("set", at_set));
    assert_eq!(parents(&world, "both"), ["Gateway/edge Accepted", "ListenerSet/more Accepted"]);
    assert_eq!(parents(&world, "one"), ["Gateway/edge NoMatchingParent", "ListenerSet/more Accepted"]);
    assert_eq!(parents(&world, "gateway"), ["Gateway/edge Accepted"]);
    assert_eq!(parents(&world, "set"), ["ListenerSet/more Accepted"]);
    assert_eq!(attached_routes(&world, Kind::Gateway, "infra", "edge"), [2]);
    assert_eq!(attached_routes(&world, Kind::ListenerSet, "infra", "more"), [3]);
    world.delete(Kind::HTTPRoute, "shop", "both");
    assert_eq!(attached_routes(&world, Kind::Gateway, "infra", "edge"), [1]);
    assert_eq!(attached_routes(&world, Kind::ListenerSet, "infra", "more"), [2]);
}

#[test]
fn routes_are_allowed_by_namespace_relative_to_the_set() {
    let mut world = World::example();
    world.put(&allowing("All"));
    let with = |namespaces: &str, host: &str| listener("a", host).replace("{namespaces: {from: All}}", namespaces);
    world.put(&set_in("shop", "shops", 1, &[with("{}", "a.example.com")]));
    world.put(&set_in("infra", "infras", 2, &[with("{}", "b.example.com")]));
    world.put(&set_in(
        "infra",
        "labels",
        3,
        &[with("{namespaces: {from: Selector, selector: {matchLabels: {gw-access: external}}}}", "c.example.com")],
    ));
    let parents_of =
        |namespace: &str, name: &str| format!("{{kind: ListenerSet, name: {name}, namespace: {namespace}}}");
    world.put(&route(
        "r",
        &[parents_of("shop", "shops"), parents_of("infra", "infras"), parents_of("infra", "labels")].join(", "),
    ));
    assert_eq!(
        parents(&world, "r"),
        ["ListenerSet/shops Accepted", "ListenerSet/infras NotAllowedByListeners", "ListenerSet/labels Accepted"]
    );
    world.put("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}");
    assert_eq!(parents(&world, "r")[2], "ListenerSet/labels NotAllowedByListeners", "the label is gone");
}

#[test]
fn labels_of_a_namespace_let_its_sets_in_and_out_at_once() {
    let mut world = World::example();
    world.put(&allowing("Selector, selector: {matchLabels: {gw-access: external}}"));
    world.put(&set_in("shop", "shops", 1, &[listener("a", "a.example.com")]));
    world.put(&route("r", "{kind: ListenerSet, name: shops}"));
    assert_eq!(attachments(&world, "r"), ["infra/edge/ListenerSet/shop/shops/a"]);
    world.put("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}");
    assert_eq!(of_edge(&world), ["infra/edge/own"]);
    assert_eq!(attachments(&world, "r"), Vec::<String>::new());
    assert_eq!(parents(&world, "r"), ["ListenerSet/shops Pending"]);
    assert_eq!(attached_sets(&world), Some(0));
    world.put("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {gw-access: external}}");
    assert_eq!(attachments(&world, "r"), ["infra/edge/ListenerSet/shop/shops/a"]);
}

#[test]
fn certificates_are_the_sets_own_matter() {
    let https = |secret: &str, host: &str| {
        format!("{{name: l, protocol: HTTPS, port: 443, hostname: {host}, tls: {{certificateRefs: [{secret}]}}}}")
    };
    let grant = |kind: &str, namespace: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\nmetadata: {{name: for-{namespace}-{}, namespace: certs}}\n\
             spec:\n  from: [{{group: gateway.networking.k8s.io, kind: {kind}, namespace: {namespace}}}]\n  to: [{{group: \"\", kind: Secret}}]",
            kind.to_lowercase()
        )
    };
    let far = "{name: shared, namespace: certs}";
    let mut world = World::example();
    world.put_all([tls_secret("certs", "shared"), tls_secret("shop", "near")]);
    world.put(&gateway("  allowedListeners: {namespaces: {from: All}}\n", &[https(far, "own.example.com")]));
    world.put(&grant("Gateway", "infra"));
    world.put(&set_in("infra", "far", 1, &[https(far, "far.example.com")]));
    world.put(&set_in("shop", "near", 2, &[https("{name: near}", "near.example.com")]));
    world.assert_condition((EDGE.0, EDGE.1, EDGE.2, "l"), "ResolvedRefs=true ResolvedRefs", "");
    world.assert_condition((Kind::ListenerSet, "shop", "near", "l"), "Programmed=true Programmed", "");
    world.assert_condition(of_set("far", "l"), "ResolvedRefs=false RefNotPermitted", "from ListenerSet of infra");
    world.assert_condition(of_set("far", ""), "Accepted=false ListenersNotValid", "no listener is valid (l)");
    world.assert_condition(of_set("far", ""), "Programmed=false ListenersNotValid", "");
    assert_eq!(attached_sets(&world), Some(1));
    world.put(&grant("ListenerSet", "infra"));
    world.assert_condition(of_set("far", "l"), "Programmed=true Programmed", "");
    world.assert_condition(of_set("far", ""), "Accepted=true Accepted", "");
    world.delete(Kind::ReferenceGrant, "certs", "for-infra-gateway");
    world.assert_condition(
        (EDGE.0, EDGE.1, EDGE.2, "l"),
        "ResolvedRefs=false RefNotPermitted",
        "from Gateway of infra",
    );
    world.assert_condition(of_set("far", "l"), "Programmed=true Programmed", "");
    world.assert_condition(EDGE, "Programmed=true Programmed", "");
    world.delete(Kind::Secret, "shop", "near");
    world.assert_condition(
        (Kind::ListenerSet, "shop", "near", "l"),
        "ResolvedRefs=false InvalidCertificateRef",
        "Secret/shop/near",
    );
    world.delete(Kind::ListenerSet, "infra", "far");
    assert!(
        !world
            .model("public")
            .resources()
            .any(|resource| matches!(&resource, Resource::Certificate(key, _) if *key.0.name == *"shared"))
    );
}

#[test]
fn kinds_of_routes_are_those_of_the_sets_listener() {
    let mut world = World::example();
    world.put(&allowing("Same"));
    let kinds = |list: &str| listener("a", "a.example.com").replace("namespaces: {from: All}", list);
    world.put(&set("more", &[kinds("namespaces: {from: All}")]));
    let supported =
        |world: &World| world.status(Kind::ListenerSet, "infra", "more").listeners[0].supported_kinds.clone();
    assert_eq!(supported(&world), ["HTTPRoute", "GRPCRoute"]);
    world.put(&set("more", &[kinds("kinds: [{kind: GRPCRoute}, {kind: UDPRoute}], namespaces: {from: All}")]));
    assert_eq!(supported(&world), ["GRPCRoute"]);
    world.assert_condition(of_set("more", "a"), "ResolvedRefs=false InvalidRouteKinds", "UDPRoute cannot attach");
    world.put(&route("r", "{kind: ListenerSet, name: more, namespace: infra}"));
    assert_eq!(parents(&world, "r"), ["ListenerSet/more NotAllowedByListeners"]);
}

#[test]
fn a_set_shares_the_fate_of_its_gateway() {
    let mut world = World::example();
    world.put(&set("more", &[listener("a", "a.example.com")]));
    world.put(&route("r", "{kind: ListenerSet, name: more, namespace: infra}"));
    world.assert_condition(of_set("more", ""), "Accepted=false ParentNotAccepted", "Gateway/infra/edge does not exist");
    assert_eq!(parents(&world, "r"), ["ListenerSet/more NoMatchingParent"]);
    world.put(&allowing("Same"));
    world.assert_condition(of_set("more", ""), "Programmed=true Programmed", "");
    assert_eq!(parents(&world, "r"), ["ListenerSet/more Accepted"]);
    world.put(&allowing("Same").replace("listeners:", "addresses: [{type: Hostname, value: a.b}]\n  listeners:"));
    world.assert_condition(of_set("more", ""), "Accepted=false ParentNotAccepted", "Hostname is not served");
    world.assert_condition(of_set("more", ""), "Programmed=false ParentNotProgrammed", "");
    world.assert_condition(of_set("more", "a"), "Programmed=false Invalid", "");
    assert_eq!(attached_sets(&world), Some(0));
    world.put(&allowing("Same").replace("listeners:", "addresses: [{value: 192.0.2.99}]\n  listeners:"));
    world.assert_condition(of_set("more", ""), "Accepted=true Accepted", "");
    world.assert_condition(
        of_set("more", ""),
        "Programmed=false ParentNotProgrammed",
        "192.0.2.99 is not a usable address",
    );
    world.put(&allowing("Same"));
    assert_eq!(attachments(&world, "r"), ["infra/edge/ListenerSet/infra/more/a"]);
    world.put(&allowing("Same").replace("public", "private"));
    assert!(of_edge(&world).is_empty(), "it is another domain's now");
    assert_eq!(world.rule("private", "shop", "r", 0).unwrap().attachments.len(), 1);
    world.delete(Kind::Gateway, "infra", "edge");
    world.assert_condition(of_set("more", ""), "Accepted=false ParentNotAccepted", "does not exist");
    assert!(world.rule("private", "shop", "r", 0).is_none());
}

#[test]
fn of_a_gateway_without_a_valid_listener_the_sets_are_served() {
    let mut world = World::example();
    let odd = "{name: odd, protocol: NONSENSE, port: 80}".to_owned();
    world.put(&gateway("  allowedListeners: {namespaces: {from: Same}}\n", &[odd]));
    world.assert_condition(EDGE, "Accepted=false ListenersNotValid", "odd");
    world.put(&set("more", &[listener("a", "a.example.com")]));
    world.assert_condition(EDGE, "Accepted=true ListenersNotValid", "odd");
    world.assert_condition(EDGE, "Programmed=true Programmed", "");
    assert_eq!(of_edge(&world), ["infra/edge/ListenerSet/infra/more/a"]);
}

#[test]
fn a_set_that_names_another_gateway_leaves_the_first() {
    let mut world = World::example();
    world.put(&allowing("Same"));
    world.put(&allowing("Same").replace("name: edge", "name: other"));
    let more = set("more", &[listener("a", "a.example.com")]);
    world.put(&more);
    world.put(&route("r", "{kind: ListenerSet, name: more, namespace: infra}"));
    world.put(&more.replace("name: edge", "name: other"));
    assert_eq!(of_edge(&world), ["infra/edge/own"]);
    assert_eq!(attached_sets(&world), Some(0));
    assert_eq!(attachments(&world, "r"), ["infra/other/ListenerSet/infra/more/a"]);
    world.put(&more.replace("{name: edge", "{kind: Service, name: edge"));
    world.assert_condition(of_set("more", ""), "Accepted=false ParentNotAccepted", "a Service as parent is not served");
    assert_eq!(parents(&world, "r"), ["ListenerSet/more NoMatchingParent"]);
    assert!(world.rule("public", "shop", "r", 0).is_none());
}

#[test]
fn a_bad_selector_lets_no_set_in_and_the_gateway_says_so() {
    let mut world = World::example();
    world.put(&allowing("Selector"));
    world.put(&set("more", &[listener("a", "a.example.com")]));
    world.assert_condition(EDGE, "Enforced=false NotEnforced", "spec.allowedListeners.namespaces.selector is missing");
    world.assert_condition(EDGE, "Accepted=true Accepted", "");
    world.assert_condition(of_set("more", ""), "Accepted=false NotAllowed", "");
}

#[test]
fn sets_of_nobodys_gateway_are_not_spoken_about_where_others_may_own_it() {
    let mut world = World::empty();
    world.translator.set_settings(Settings { reports_missing_parents: false, ..settings() });
    world.put_all(read(EXAMPLE));
    world.put(&set("more", &[listener("a", "a.example.com")]));
    let status = |world: &World| world.translator.find_status(&reference(Kind::ListenerSet, "infra", "more")).cloned();
    assert_eq!(status(&world), None);
    world.put(&allowing("Same"));
    assert!(status(&world).is_some());
    world.put(&allowing("Same").replace("public", "nothing"));
    assert_eq!(status(&world), None);
}

#[test]
fn a_change_of_one_set_of_many_reads_that_one_and_its_gateway_only() {
    let mut world = World::example();
    world.put(&allowing("Same"));
    for index in 0..200 {
        world.put(&set(&format!("s{index}"), &[listener("a", &format!("s{index}.example.com"))]));
        world.put(&route(&format!("r{index}"), &format!("{{kind: ListenerSet, name: s{index}, namespace: infra}}")));
    }
    assert_eq!(attached_sets(&world), Some(200));
    let changes = world.put(&set("s7", &[listener("a", "new.example.com")]));
    assert_eq!(changes.translated, 3, "the set, its Gateway, and the set's route");
    let delta = changes.domains[&DomainName::new("public")].delta.as_ref().unwrap();
    assert_eq!(delta.changes.len(), 1, "{delta:?}");
    assert!(changes.statuses.is_empty(), "nothing else is said: {:?}", changes.statuses);
}
