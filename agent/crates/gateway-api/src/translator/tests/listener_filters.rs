//! Listeners that ask others about requests before a rule is looked for.

use tidegate_model::{BackendKey, BackendProtocol, ExternalAuth, ExternalAuthProtocol};

use super::*;

/// Gateway `asking` of the private domain: a listener with these filters beside one without.
fn gateway(filters: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: asking, namespace: gw-internal}}\n\
         spec:\n  gatewayClassName: private\n  listeners:\n  - {{name: plain, protocol: HTTP, port: 8080}}\n\
         \x20 - name: asks\n    protocol: HTTP\n    port: 8081\n    filters: {{requests: [{filters}]}}\n"
    )
}

const AUTH: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: auth, namespace: gw-internal}\nspec: {ports: [{port: 9000}]}\n---\n\
    apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: auth-a, namespace: gw-internal, labels: {kubernetes.io/service-name: auth}}\n\
    addressType: IPv4\nports: [{name: \"\", port: 9000}]\nendpoints: [{addresses: [10.30.0.41]}]";

fn asks(reference: &str) -> String {
    format!("{{type: ExternalAuth, externalAuth: {{protocol: HTTP, backendRef: {reference}}}}}")
}

fn auth(world: &World) -> Option<Vec<ExternalAuth>> {
    world.listener("private", "gw-internal", "asking", "asks").map(|listener| listener.auth)
}

fn key() -> BackendKey {
    BackendKey::Service { name: ObjectName::new("gw-internal", "auth"), port: 9000 }
}

/// The listener beside is served whatever becomes of the other, and so is everything else.
fn assert_undisturbed(world: &World) {
    let plain = world.listener("private", "gw-internal", "asking", "plain").expect("it has no filters");
    assert_eq!(plain.auth, []);
    assert!(world.listener("private", "gw-internal", "internal", "http").is_some());
}

#[test]
fn servers_are_asked_in_their_order_and_live_in_the_model_as_long_as_they_are_named() {
    let mut world = World::example();
    world.put(AUTH);
    let grpc = "{type: ExternalAuth, externalAuth: {protocol: GRPC, backendRef: {name: auth, port: 9000}}}";
    world.put(&gateway(&format!("{}, {grpc}", asks("{name: auth, port: 9000}"))));
    let found = auth(&world).expect("the listener is served");
    let grpc_key = BackendKey::GrpcService { name: ObjectName::new("gw-internal", "auth"), port: 9000 };
    assert_eq!(
        found.iter().map(|auth| auth.backend.clone()).collect::<Vec<_>>(),
        [Some(key()), Some(grpc_key.clone())]
    );
    assert!(matches!(found[1].protocol, ExternalAuthProtocol::Grpc { .. }));
    let protocol = |world: &World, key: &BackendKey| match world.find("private", &Key::Backend(key.clone())) {
        Some(Resource::Backend(_, backend)) => Some(backend.protocol),
        _ => None,
    };
    assert_eq!(protocol(&world, &key()), Some(BackendProtocol::Http1));
    assert_eq!(protocol(&world, &grpc_key), Some(BackendProtocol::Http2));
    for part in ["plain", "asks"] {
        world.assert_condition((Kind::Gateway, "gw-internal", "asking", part), "ResolvedRefs=true ResolvedRefs", "");
    }
    // Endpoints come and go without the Gateway being read again.
    world.delete(Kind::EndpointSlice, "gw-internal", "auth-a");
    let endpoints = world.find("private", &Key::Endpoints(key()));
    assert!(matches!(&endpoints, Some(Resource::Endpoints(_, list)) if list.endpoints.is_empty()), "{endpoints:?}");
    world.put(&gateway(""));
    assert_eq!(auth(&world), Some(Vec::new()));
    assert_eq!((protocol(&world, &key()), protocol(&world, &grpc_key)), (None, None));
    assert_eq!(world.find("private", &Key::Endpoints(key())), None);
    world.put(&gateway(&asks("{name: auth, port: 9000}")));
    world.delete(Kind::Gateway, "gw-internal", "asking");
    assert_eq!(protocol(&world, &key()), None);
}

#[test]
fn a_reference_that_leads_nowhere_refuses_every_request_until_it_leads_somewhere() {
    let mut world = World::example();
    world.put(&gateway(&asks("{name: auth, port: 9000}")));
    let asking = (Kind::Gateway, "gw-internal", "asking", "asks");
    assert_eq!(auth(&world).expect("it is served")[0].backend, None);
    world.assert_condition(
        asking,
        "ResolvedRefs=false InvalidListenerFilterRef",
        "spec.listeners[1].filters.requests[0].externalAuth.backendRef",
    );
    assert_undisturbed(&world);
    world.put(AUTH);
    assert_eq!(auth(&world).expect("it is served")[0].backend, Some(key()));
    world.assert_condition(asking, "ResolvedRefs=true ResolvedRefs", "");
    world.delete(Kind::Service, "gw-internal", "auth");
    assert_eq!(auth(&world).expect("it is served")[0].backend, None);
    assert_eq!(world.find("private", &Key::Backend(key())), None);
    assert_undisturbed(&world);
}

#[test]
fn every_reference_that_leads_nowhere_is_named() {
    let mut world = World::example();
    let route = "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: a, port: 80}";
    world.put(&gateway(&[asks("{name: gone, port: 1}"), asks(route)].join(", ")));
    let asking = (Kind::Gateway, "gw-internal", "asking", "asks");
    for named in ["requests[0].externalAuth.backendRef: Service", "requests[1].externalAuth.backendRef: kind HTTPRoute"]
    {
        world.assert_condition(asking, "ResolvedRefs=false InvalidListenerFilterRef", named);
    }
    assert!(auth(&world).expect("it is served").iter().all(|auth| auth.backend.is_none()));
    assert_undisturbed(&world);
}

#[test]
fn a_server_in_another_namespace_needs_a_grant_from_gateways() {
    let mut world = World::example();
    let grant = |kind: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\nmetadata: {{name: g, namespace: admin}}\n\
             spec: {{from: [{{group: gateway.networking.k8s.io, kind: {kind}, namespace: gw-internal}}], to: [{{group: \"\", kind: Service}}]}}"
        )
    };
    let asking = (Kind::Gateway, "gw-internal", "asking", "asks");
    world.put(&gateway(&asks("{name: console, namespace: admin, port: 8080}")));
    world.assert_condition(asking, "ResolvedRefs=false RefNotPermitted", "ReferenceGrant in admin from Gateway");
    assert_eq!(auth(&world).expect("it is served")[0].backend, None);
    world.put(&grant("HTTPRoute"));
    assert_eq!(auth(&world).expect("it is served")[0].backend, None);
    world.put(&grant("Gateway"));
    assert!(auth(&world).expect("it is served")[0].backend.is_some());
    world.assert_condition(asking, "ResolvedRefs=true ResolvedRefs", "");
    world.delete(Kind::ReferenceGrant, "admin", "g");
    assert_eq!(auth(&world).expect("it is served")[0].backend, None);
    assert_undisturbed(&world);
}

#[test]
fn a_filter_that_cannot_be_carried_out_keeps_its_listener_from_being_served() {
    let mut world = World::example();
    world.put(AUTH);
    for (filter, reason, named) in [
        (
            "{type: ExtensionRef, extensionRef: {group: a.example, kind: A, name: a}}",
            "UnsupportedValue",
            "filters.requests[0].extensionRef",
        ),
        ("{type: ExternalAuth}", "InvalidListenerFilter", "filters.requests[0].externalAuth is missing"),
        (
            "{type: ExternalAuth, externalAuth: {protocol: HTTP, http: {path: a}, backendRef: {name: auth, port: 9000}}}",
            "InvalidListenerFilter",
            "filters.requests[0].externalAuth.http.path",
        ),
    ] {
        world.put(&gateway(filter));
        assert_eq!(auth(&world), None, "{filter}");
        world.assert_condition(
            (Kind::Gateway, "gw-internal", "asking", "asks"),
            &format!("Accepted=false {reason}"),
            &format!("spec.listeners[1].{named}"),
        );
        assert_undisturbed(&world);
    }
    let tcp = gateway(&asks("{name: auth, port: 9000}")).replace("protocol: HTTP\n", "protocol: TCP\n");
    world.put(&tcp);
    world.assert_condition(
        (Kind::Gateway, "gw-internal", "asking", "asks"),
        "Accepted=false InvalidListenerFilter",
        "spec.listeners[1].filters: connections of protocol TCP have no requests",
    );
}

#[test]
fn a_listener_of_a_set_asks_by_the_grants_of_the_set() {
    let mut world = World::example();
    world.put(&gateway("").replace("  listeners:", "  allowedListeners: {namespaces: {from: All}}\n  listeners:"));
    let set = "apiVersion: gateway.networking.k8s.io/v1\nkind: ListenerSet\nmetadata: {name: extra, namespace: admin}\n\
        spec:\n  parentRef: {name: asking, namespace: gw-internal}\n  listeners:\n  - name: more\n    protocol: HTTP\n    port: 8090\n\
        \x20   filters: {requests: [{type: ExternalAuth, externalAuth: {protocol: HTTP, backendRef: {name: console, port: 8080}}}]}\n";
    world.put(set);
    let key = ListenerKey::of_set(ObjectName::new("gw-internal", "asking"), ObjectName::new("admin", "extra"), "more");
    let find = |world: &World| match world.find("private", &Key::Listener(key.clone())) {
        Some(Resource::Listener(_, listener)) => listener.auth[0].backend.clone(),
        other => panic!("{other:?}"),
    };
    let console = BackendKey::Service { name: ObjectName::new("admin", "console"), port: 8080 };
    assert_eq!(find(&world), Some(console));
    world.delete(Kind::Service, "admin", "console");
    assert_eq!(find(&world), None);
    world.assert_condition(
        (Kind::ListenerSet, "admin", "extra", "more"),
        "ResolvedRefs=false InvalidListenerFilterRef",
        "spec.listeners[0].filters.requests[0].externalAuth.backendRef",
    );
}
