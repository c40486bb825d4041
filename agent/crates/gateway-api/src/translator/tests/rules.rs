//! What rules of HTTPRoutes and GRPCRoutes come to beyond matches and backends: retries, sessions, authorization.

use tidegate_model::{BackendKey, BackendProtocol, Filter, SessionCarrier};

use super::{
    conditions::{PARENT, PRODUCTS, products, with_rules},
    *,
};

#[test]
fn retries_sessions_and_authorization_servers_are_read() {
    let mut world = World::example();
    world.put(&with_rules(
        "- backendRefs: [{name: products-v1, port: 8080}]\n  retry: {attempts: 3, codes: [503, 500], backoff: 10ms}\n\
         \x20 sessionPersistence: {type: Cookie, cookie: {name: sid}, absoluteTimeout: 1h}\n  filters:\n\
         \x20 - {type: ExternalAuth, externalAuth: {protocol: GRPC, backendRef: {name: products-v2, port: 8080}}}",
    ));
    world.assert_condition(PRODUCTS, "Accepted=true Accepted", "");
    world.assert_condition(PRODUCTS, "ResolvedRefs=true ResolvedRefs", "");
    let rule = world.rule("public", "shop", "products", 0).unwrap();
    let retry = rule.retry.unwrap();
    assert_eq!((retry.codes, retry.attempts, retry.backoff.unwrap().as_millis()), (vec![500, 503], 3, 10));
    assert!(matches!(rule.session.unwrap().carrier, SessionCarrier::Cookie { name, .. } if *name == *"sid"));
    let backend = BackendKey::GrpcService { name: ObjectName::new("shop", "products-v2"), port: 8080 };
    let Filter::ExternalAuth(auth) = &rule.filters[0] else { panic!("{:?}", rule.filters) };
    assert_eq!(auth.backend.as_ref(), Some(&backend));
    // Whoever is asked in gRPC is spoken to in HTTP/2.
    let Some(Resource::Backend(_, asked)) = world.find("public", &Key::Backend(backend)) else { panic!() };
    assert_eq!(asked.protocol, BackendProtocol::Http2);
}

#[test]
fn rules_of_one_name_share_no_sessions_and_the_second_is_told() {
    let mut world = World::example();
    let rule = |path: &str| {
        format!(
            "- name: twice\n  matches: [{{path: {{value: {path}}}}}]\n  sessionPersistence: {{}}\n\
             \x20 backendRefs: [{{name: products-v1, port: 8080}}]"
        )
    };
    world.put(&with_rules(&format!("{}\n{}", rule("/a"), rule("/b"))));
    world.assert_condition(PRODUCTS, "PartiallyInvalid=true UnsupportedValue", "spec.rules[1].name is left out");
    let [first, second] = [0, 1].map(|index| world.rule("public", "shop", "products", index).unwrap());
    assert_ne!(first.session.unwrap().secret, second.session.unwrap().secret);
    assert_eq!((first.name.as_deref(), second.name.as_deref()), (Some("twice"), None));
}

#[test]
fn an_authorization_server_that_is_not_there_refuses_and_is_named() {
    let mut world = World::example();
    for reference in ["{name: nothing, port: 8080}", "{name: console, namespace: admin, port: 8080}"] {
        world.put(&with_rules(&format!(
            "- backendRefs: [{{name: products-v1, port: 8080}}]\n  filters: [{{type: ExternalAuth, externalAuth: {{protocol: HTTP, backendRef: {reference}}}}}]"
        )));
        let reason = if reference.contains("admin") { "RefNotPermitted" } else { "BackendNotFound" };
        let place = "spec.rules[0].filters[0].externalAuth.backendRef";
        world.assert_condition(PRODUCTS, &format!("ResolvedRefs=false {reason}"), place);
        world.assert_condition(PRODUCTS, "Accepted=true Accepted", "");
        let rule = world.rule("public", "shop", "products", 0).unwrap();
        assert!(matches!(&rule.filters[0], Filter::ExternalAuth(auth) if auth.backend.is_none()));
    }
}

#[test]
fn grpc_routes_persist_sessions_and_edit_fields() {
    let mut world = World::example();
    world.put(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {name: calls, namespace: shop}\nspec:\n\
         \x20 parentRefs: [{name: external, namespace: gw-external}]\n  rules:\n\
         \x20 - matches: [{method: {service: a.B, method: C}}]\n    sessionPersistence: {type: Header, header: {name: X-S}}\n\
         \x20   filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Set, value: a}]}}]\n\
         \x20   backendRefs: [{name: products-v1, port: 8080}]",
    );
    let key = RuleKey { kind: RuleKind::GRPCRoute, route: ObjectName::new("shop", "calls"), index: 0 };
    let Some(Resource::Rule(_, rule)) = world.find("public", &Key::Rule(key)) else { panic!() };
    assert_eq!(rule.session.as_ref().unwrap().carrier, SessionCarrier::Header("x-s".into()));
    assert!(matches!(&rule.filters[0], Filter::RequestHeaders(edits) if *edits.set[0].0 == *"x-set"));
}

#[test]
fn a_route_keeps_its_own_host_names_at_a_listener_that_says_less_or_more() {
    let mut world = World::example();
    let route = |names: &str| {
        let spec = format!("{PARENT}hostnames: [{names}]\nrules:\n- backendRefs: [{{name: products-v1, port: 8080}}]");
        products(&spec)
    };
    for (names, kept) in [
        ("\"*.example.com\", other.org", &["*.example.com"][..]),
        ("\"*.com\"", &["*.com"]),
        ("a.example.com, \"*.b.example.com\"", &["a.example.com", "*.b.example.com"]),
    ] {
        world.put(&route(names));
        let rule = world.rule("public", "shop", "products", 0).unwrap();
        let of_https = rule.attachments.iter().find(|attachment| &*attachment.listener.name == "https").unwrap();
        let shown: Vec<_> = of_https.hostnames.iter().map(ToString::to_string).collect();
        assert_eq!(shown, kept, "the listener is for *.example.com");
    }
}

/// Services whose EndpointSlices somebody writes by hand, as the suite's HTTPRouteServiceTypes does.
#[test]
fn endpoints_come_from_every_slice_of_the_service_by_the_name_of_the_port() {
    let mut world = World::example();
    world.put(&with_rules("- backendRefs: [{name: manual, port: 8080}]"));
    world.put(
        "apiVersion: v1\nkind: Service\nmetadata: {name: manual, namespace: shop}\n\
         spec: {clusterIP: None, ports: [{name: first-port, protocol: TCP, port: 8080, targetPort: 3000}]}",
    );
    let slice = |family: &str, ports: &str, rest: &str| {
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: manual-{family}, namespace: shop, labels: {{kubernetes.io/service-name: manual}}}}\n\
             addressType: {family}\nports: [{ports}]\n{rest}"
        )
    };
    let first = "{name: first-port, port: 3000, protocol: TCP}";
    let endpoints = |world: &World| {
        let key = Key::Endpoints(BackendKey::Service { name: ObjectName::new("shop", "manual"), port: 8080 });
        let Some(Resource::Endpoints(_, endpoints)) = world.find("public", &key) else { panic!("the Service is used") };
        endpoints.endpoints.iter().map(|endpoint| endpoint.addr.to_string()).collect::<Vec<_>>()
    };
    // Slices without endpoints, as they are before pods are known.
    world.put(&slice("IPv4", first, ""));
    world.put(&slice("IPv6", first, ""));
    world.assert_condition(PRODUCTS, "ResolvedRefs=true ResolvedRefs", "");
    assert!(endpoints(&world).is_empty());
    let ready = "conditions: {ready: true, serving: true, terminating: false}";
    let others =
        format!("{{name: other, port: 1, protocol: TCP}}, {{name: first-port, port: 2, protocol: UDP}}, {first}");
    world.put(&slice("IPv4", &others, &format!("endpoints: [{{addresses: [10.0.0.1], {ready}}}]")));
    world.put(&slice("IPv6", first, &format!("endpoints: [{{addresses: [\"2001:db8::1\"], {ready}}}]")));
    assert_eq!(endpoints(&world), ["10.0.0.1:3000", "[2001:db8::1]:3000"]);
    // A port of another name is none of the Service's.
    world.put(&slice(
        "IPv4",
        "{name: third-port, port: 3000, protocol: TCP}",
        &format!("endpoints: [{{addresses: [10.0.0.1], {ready}}}]"),
    ));
    assert_eq!(endpoints(&world), ["[2001:db8::1]:3000"]);
}
