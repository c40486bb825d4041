//! What a change costs: how many objects are looked at again, and what the delta holds.

use tidegate_model::{BackendKey, Change};

use super::*;

/// Routes of the large world; the cost of a change must not depend on it.
const ROUTES: usize = 500;

fn route(index: usize, path: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
         metadata: {{name: r{index}, namespace: shop}}\n\
         spec:\n  parentRefs: [{{name: external, namespace: gw-external}}]\n  hostnames: [h{index}.example.com]\n  \
         rules: [{{matches: [{{path: {{value: {path}}}}}], backendRefs: [{{name: products-v1, port: 8080}}]}}]\n"
    )
}

fn large() -> World {
    let mut world = World::example();
    world.put_all((0..ROUTES).flat_map(|index| read(&route(index, "/"))));
    world
}

fn keys(changes: &Changes, domain: &str) -> Vec<(bool, Key)> {
    let delta = changes.domains.get(&DomainName::new(domain)).and_then(|change| change.delta.as_ref());
    let changes = delta.map(|delta| delta.changes.as_slice()).unwrap_or_default();
    changes
        .iter()
        .map(|change| match change {
            Change::Put(resource) => (true, resource.key()),
            Change::Remove(key) => (false, key.clone()),
        })
        .collect()
}

#[test]
fn one_route_of_many_costs_one_translation_and_one_resource() {
    let mut world = large();
    let changes = world.put(&route(7, "/new"));
    assert_eq!(changes.translated, 1);
    assert_eq!(keys(&changes, "public"), [(true, rule_key("shop", "r7", 0))]);
    assert!(!changes.domains.contains_key(&DomainName::new("private")));
    assert!(changes.statuses.is_empty(), "{:?}", changes.statuses);

    let changes = world.delete(Kind::HTTPRoute, "shop", "r7");
    assert_eq!(changes.translated, 0);
    assert_eq!(keys(&changes, "public"), [(false, rule_key("shop", "r7", 0))]);
    let listeners = &world.status(Kind::Gateway, "gw-external", "external").listeners;
    assert!(listeners.iter().all(|listener| listener.attached_routes as usize == ROUTES), "{listeners:?}");
    assert_eq!(changes.statuses.len(), 2, "the Gateway's count and the route itself: {:?}", changes.statuses);
}

#[test]
fn an_endpoint_touches_endpoints_only() {
    let mut world = large();
    let changes = world.put(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {name: products-v1-a, namespace: shop, labels: {kubernetes.io/service-name: products-v1}}\n\
         addressType: IPv4\nports: [{name: http, port: 8080, protocol: TCP}]\n\
         endpoints: [{addresses: [10.30.0.11]}, {addresses: [10.30.0.12]}, {addresses: [10.30.0.13]}]",
    );
    assert_eq!(changes.translated, 1);
    let key = BackendKey::Service { name: ObjectName::new("shop", "products-v1"), port: 8080 };
    assert_eq!(keys(&changes, "public"), [(true, Key::Endpoints(key))]);
    assert!(changes.statuses.is_empty());
}

#[test]
fn a_renewed_certificate_touches_the_certificate_only() {
    let mut world = large();
    let made = rcgen::generate_simple_self_signed(vec!["*.example.com".to_owned()]).unwrap();
    let secret = serde_json::json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": {"namespace": "gw-external", "name": "example-com"},
        "stringData": {"tls.crt": made.cert.pem(), "tls.key": made.signing_key.serialize_pem()},
    });
    let changes = world.put_all([parse(secret).unwrap().object]);
    assert_eq!(changes.translated, 1);
    assert!(matches!(keys(&changes, "public").as_slice(), [(true, Key::Certificate(_))]));
    assert!(changes.statuses.is_empty());
}

#[test]
fn a_broken_certificate_touches_its_gateway_and_no_route() {
    let mut world = large();
    let changes = world.delete(Kind::Secret, "gw-external", "example-com");
    assert_eq!(changes.translated, 2, "the Secret and the Gateway");
    assert!(matches!(keys(&changes, "public").as_slice(), [(false, Key::Listener(_)), (false, Key::Certificate(_))]));
    assert_eq!(changes.statuses, [reference(Kind::Gateway, "gw-external", "external")]);
}

#[test]
fn a_service_that_goes_touches_the_routes_that_name_it() {
    let mut world = World::example();
    world.put_all((0..50).flat_map(|index| read(&route(index, "/"))));
    let changes = world.delete(Kind::Service, "shop", "products-v2");
    assert_eq!(changes.translated, 2, "the backend and the one route that names it");
    let changes = world
        .put("apiVersion: v1\nkind: Service\nmetadata: {name: other, namespace: shop}\nspec: {ports: [{port: 1}]}");
    assert_eq!(changes.translated, 0, "nobody names it");
}

#[test]
fn labels_of_a_namespace_touch_its_routes_only_where_listeners_select_by_labels() {
    let mut world = World::example();
    let all = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: internal, namespace: gw-internal}\n\
         spec: {gatewayClassName: private, listeners: [{name: http, protocol: HTTP, port: 80, allowedRoutes: {namespaces: {from: All}}}]}";
    world.put(all);
    let namespace = |name: &str, label: &str| {
        format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{gw-access: {label}}}}}")
    };
    assert_eq!(world.put(&namespace("admin", "changed")).translated, 0);
    assert_eq!(world.put(&namespace("elsewhere", "external")).translated, 0);
    let changes = world.put(&namespace("shop", "internal"));
    assert_eq!(changes.translated, 1);
    assert!(keys(&changes, "public").contains(&(false, rule_key("shop", "products", 0))));
    world.assert_condition((Kind::HTTPRoute, "shop", "products", ""), "Accepted=false NotAllowedByListeners", "labels");
}

#[test]
fn the_same_object_again_costs_nothing() {
    let mut world = World::example();
    let changes = world.put_all(read(EXAMPLE));
    assert_eq!(changes, Changes::default());
    // A status and a resource version are no part of an object.
    let value = serde_json::json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "shop", "labels": {"gw-access": "external"}, "resourceVersion": "77"},
        "status": {"phase": "Active"},
    });
    assert_eq!(world.put_all([parse(value).unwrap().object]), Changes::default());
}

#[test]
fn a_domains_own_data_touches_no_resource() {
    let mut world = large();
    let yaml = EXAMPLE.split("\n---").next().unwrap().replace("192.0.2.0/24", "192.0.3.0/24");
    let changes = world.put(&yaml);
    assert_eq!(changes.translated, 1);
    let change = &changes.domains[&DomainName::new("public")];
    assert!(matches!(change.event, DomainEvent::Updated(_)));
    assert_eq!(change.delta, None);
}

#[test]
fn removals_come_after_additions_the_other_way_round() {
    let mut world = World::example();
    let changes = world.put(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: products, namespace: shop}\n\
         spec:\n  parentRefs: [{name: external, namespace: gw-external}]\n  rules: [{backendRefs: [{name: console, port: 8080}]}]\n\
         ---\napiVersion: v1\nkind: Service\nmetadata: {name: console, namespace: shop}\nspec: {ports: [{port: 8080}]}",
    );
    let kinds: Vec<_> = keys(&changes, "public")
        .into_iter()
        .map(|(is_put, key)| {
            let kind = match key {
                Key::Certificate(_) => "certificate",
                Key::CaBundle(_) => "authorities",
                Key::Backend(_) => "backend",
                Key::Endpoints(_) => "endpoints",
                Key::Listener(_) => "listener",
                Key::Rule(_) => "rule",
                Key::Forward(_) => "forward",
            };
            (is_put, kind)
        })
        .collect();
    let expected = [
        (true, "backend"),
        (true, "endpoints"),
        (true, "rule"),
        (false, "endpoints"),
        (false, "endpoints"),
        (false, "backend"),
        (false, "backend"),
    ];
    assert_eq!(kinds, expected);
}
