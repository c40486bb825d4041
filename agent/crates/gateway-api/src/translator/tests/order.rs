//! The outcome depends on the objects, not on the order or the batches in which they came.

use proptest::prelude::*;

use super::*;

/// Objects that depend on each other in every way there is, several versions of each. Addresses are asked for by value,
/// or come from pools so large that none is wanted twice: an address once given is kept, which depends on the order.
fn versions() -> Vec<Vec<Object>> {
    let domain = |created: u32, spec: &str| {
        format!(
            "apiVersion: tidegate.dev/v1alpha1\nkind: TrafficDomain\nmetadata: {{name: a, creationTimestamp: \"2026-01-01T00:00:{created:02}Z\"}}\nspec: {spec}"
        )
    };
    let gateway = |name: &str, created: u32, spec: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: gws, creationTimestamp: \"2026-01-01T00:00:{created:02}Z\"}}\nspec: {spec}"
        )
    };
    let set = |name: &str, created: u32, spec: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: ListenerSet\nmetadata: {{name: {name}, namespace: shop, creationTimestamp: \"2026-01-01T00:00:{created:02}Z\"}}\nspec: {spec}"
        )
    };
    let route = |name: &str, spec: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}"
        )
    };
    let class = |domain: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {{name: c}}\n\
             spec: {{controllerName: tidegate.dev/gateway-controller, parametersRef: {{group: tidegate.dev, kind: TrafficDomain, name: {domain}}}}}"
        )
    };
    let service = |name: &str, port: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{ports: [{port}]}}",
            namespace = if name == "far" { "admin" } else { "shop" }
        )
    };
    let slice = |name: &str, service: &str, addresses: &str| {
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, namespace: shop, labels: {{kubernetes.io/service-name: {service}}}}}\n\
             addressType: IPv4\nports: [{{name: \"\", port: 8080}}]\nendpoints: [{addresses}]"
        )
    };
    let static_a = "addresses: [{value: 10.1.0.5}], ";
    let texts: Vec<Vec<String>> = vec![
        vec![
            domain(1, "{interfaces: [n0], addresses: {pool: [10.1.0.0/16]}}"),
            domain(9, "{interfaces: [n0, n1], addresses: {pool: [10.1.0.0/16]}, sources: {denyFrom: [{namespace: x, name: list}]}}"),
            domain(1, "{interfaces: [], addresses: {pool: [10.1.0.0/16]}}"),
            domain(1, "{interfaces: [n0], addresses: {pool: [10.1.0.0/16]}, nodeSelector: {role: other}}"),
        ],
        vec![
            domain(5, "{interfaces: [n2], addresses: {pool: [10.1.128.0/17]}}").replace("name: a", "name: b"),
            domain(5, "{interfaces: [n2], addresses: {node: InternalIP}}").replace("name: a", "name: b"),
        ],
        vec![class("a"), class("b"), class("nothing")],
        vec![
            gateway("g", 1, &format!("{{gatewayClassName: c, {static_a}listeners: [{{name: http, protocol: HTTP, port: 80, allowedRoutes: {{namespaces: {{from: Selector, selector: {{matchLabels: {{access: open}}}}}}}}}}, {{name: https, protocol: HTTPS, port: 443, tls: {{certificateRefs: [{{name: cert}}, {{name: far, namespace: admin}}]}}, allowedRoutes: {{namespaces: {{from: All}}}}}}]}}")),
            gateway("g", 1, "{gatewayClassName: c, allowedListeners: {namespaces: {from: All}}, listeners: [{name: http, protocol: HTTP, port: 80, hostname: \"*.example.com\", allowedRoutes: {namespaces: {from: All}}}]}"),
            gateway("g", 1, "{gatewayClassName: c, allowedListeners: {namespaces: {from: Selector, selector: {matchLabels: {access: open}}}}, listeners: [{name: http, protocol: HTTP, port: 81}]}"),
            gateway("g", 1, "{gatewayClassName: other, listeners: [{name: http, protocol: HTTP, port: 80}]}"),
        ],
        vec![
            gateway("h", 2, &format!("{{gatewayClassName: c, {static_a}listeners: [{{name: http, protocol: HTTP, port: 80, allowedRoutes: {{namespaces: {{from: All}}}}}}]}}")),
            gateway("h", 0, &format!("{{gatewayClassName: c, {static_a}listeners: [{{name: http, protocol: HTTP, port: 80, allowedRoutes: {{namespaces: {{from: All}}}}}}]}}")),
            gateway("h", 2, &format!("{{gatewayClassName: c, {static_a}listeners: [{{name: http, protocol: HTTP, port: 80, hostname: h.example.com, filters: {{requests: [{{type: ExternalAuth, externalAuth: {{protocol: HTTP, backendRef: {{name: far, namespace: admin, port: 80}}}}}}]}}}}]}}")),
        ],
        vec![
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {access: open}}".to_owned(),
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}".to_owned(),
        ],
        vec![
            route("r", "{parentRefs: [{name: g, namespace: gws}], rules: [{backendRefs: [{name: one, port: 80}]}, {matches: [{path: {value: /x}}], backendRefs: [{name: far, namespace: admin, port: 80}]}]}"),
            route("r", "{parentRefs: [{name: g, namespace: gws, sectionName: http}, {name: h, namespace: gws}], hostnames: [a.example.com], rules: [{backendRefs: [{name: two, port: 80, weight: 3}, {name: b, group: tidegate.dev, kind: Backend}]}]}"),
            route("r", "{parentRefs: [{name: g, namespace: gws}], rules: [{filters: [{type: ExtensionRef}]}, {matches: [{path: {type: RegularExpression, value: \"(\"}}]}, {}]}"),
        ],
        vec![
            set("l", 4, "{parentRef: {name: g, namespace: gws}, listeners: [{name: http, protocol: HTTP, port: 80}, {name: tls, protocol: HTTPS, port: 444, tls: {certificateRefs: [{name: far, namespace: admin}]}}]}"),
            set("l", 9, "{parentRef: {name: g, namespace: gws}, listeners: [{name: http, protocol: HTTP, port: 80, hostname: a.example.com}, {name: odd, protocol: TCP, port: 81}, {name: http, protocol: HTTP, port: 82}]}"),
            set("l", 4, "{parentRef: {name: h, namespace: gws}, listeners: [{name: http, protocol: HTTP, port: 80, filters: {requests: [{type: ExternalAuth, externalAuth: {protocol: GRPC, backendRef: {name: one, port: 80}}}, {type: ExternalAuth, externalAuth: {protocol: HTTP, backendRef: {name: two, port: 80}}}]}}]}"),
            set("l", 4, "{parentRef: {name: nothing}, listeners: []}"),
        ],
        vec![
            set("m", 4, "{parentRef: {name: g, namespace: gws}, listeners: [{name: http, protocol: HTTP, port: 80, hostname: a.example.com, allowedRoutes: {namespaces: {from: All}}, filters: {requests: [{type: ExternalAuth, externalAuth: {protocol: GRPC, backendRef: {name: far, namespace: admin, port: 80}}}]}}]}"),
            set("m", 4, "{parentRef: {kind: Service, name: g, namespace: gws}, listeners: [{name: http, protocol: HTTP, port: 80}]}"),
        ],
        vec![
            route("v", "{parentRefs: [{kind: ListenerSet, name: l}, {kind: ListenerSet, name: m, sectionName: http}, {name: g, namespace: gws}], rules: [{backendRefs: [{name: one, port: 80}]}]}"),
            route("v", "{parentRefs: [{kind: ListenerSet, name: l, port: 82}], rules: [{backendRefs: [{name: one, port: 80}]}]}"),
        ],
        vec![
            route("s", "{parentRefs: [{name: h, namespace: gws}], rules: [{backendRefs: [{name: one, port: 80}], filters: [{type: RequestMirror, requestMirror: {backendRef: {name: two, port: 80}}}]}]}"),
            route("s", "{parentRefs: [{name: h, namespace: gws, port: 443}]}"),
        ],
        vec![
            route("t", "{parentRefs: [{name: g, namespace: gws}], rules: [{matches: [{method: {service: s}}], backendRefs: [{name: one, port: 80}]}]}").replace("HTTPRoute", "GRPCRoute"),
        ],
        vec![service("one", "{port: 80}"), service("one", "{port: 81}"), service("one", "{port: 80, appProtocol: kubernetes.io/h2c}"), service("one", "{port: 80, appProtocol: odd}")],
        vec![service("two", "{port: 80}")],
        vec![service("far", "{port: 80}")],
        vec![slice("one-a", "one", "{addresses: [10.9.0.1]}"), slice("one-a", "one", "{addresses: [10.9.0.1]}, {addresses: [10.9.0.2]}"), slice("one-a", "two", "{addresses: [10.9.0.3]}")],
        vec![slice("one-b", "one", "{addresses: [10.9.0.1], conditions: {ready: false, serving: true, terminating: true}}")],
        vec![
            "apiVersion: tidegate.dev/v1alpha1\nkind: Backend\nmetadata: {name: b, namespace: shop}\nspec: {endpoints: [{ip: {address: 10.9.1.1, port: 80}}]}".to_owned(),
            "apiVersion: tidegate.dev/v1alpha1\nkind: Backend\nmetadata: {name: b, namespace: shop}\nspec: {tls: {}, endpoints: [{fqdn: {hostname: a.example.net, port: 80}}]}".to_owned(),
        ],
        vec![
            "apiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\nmetadata: {name: grant, namespace: admin}\nspec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}, {group: gateway.networking.k8s.io, kind: Gateway, namespace: gws}, {group: gateway.networking.k8s.io, kind: ListenerSet, namespace: shop}], to: [{group: \"\", kind: Service}, {group: \"\", kind: Secret}]}".to_owned(),
            "apiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\nmetadata: {name: grant, namespace: admin}\nspec: {from: [], to: []}".to_owned(),
        ],
        vec!["apiVersion: v1\nkind: Secret\nmetadata: {name: cert, namespace: gws}\ntype: kubernetes.io/tls".to_owned()],
        vec![
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: list, namespace: x}\ndata: {a: 192.0.2.0/24}".to_owned(),
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: list, namespace: x}\ndata: {a: nonsense}".to_owned(),
        ],
        vec!["apiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {name: p, namespace: shop}\nspec: {targetRefs: [{group: \"\", kind: Service, name: two}], validation: {hostname: a}}".to_owned()],
        vec!["apiVersion: gateway.networking.k8s.io/v1\nkind: TCPRoute\nmetadata: {name: u, namespace: shop}\nspec: {parentRefs: [{name: g, namespace: gws}], rules: []}".to_owned(),
            "apiVersion: gateway.networking.k8s.io/v1\nkind: TCPRoute\nmetadata: {name: u, namespace: shop}\nspec: {parentRefs: [{name: i, namespace: gws}], rules: [{backendRefs: [{name: one, port: 80}, {name: far, namespace: admin, port: 80}]}]}".to_owned()],
        vec!["apiVersion: gateway.networking.k8s.io/v1\nkind: TLSRoute\nmetadata: {name: v, namespace: shop}\nspec: {parentRefs: [{name: i, namespace: gws}], hostnames: [a.example.com], rules: [{backendRefs: [{name: one, port: 80}]}]}".to_owned(),
            "apiVersion: gateway.networking.k8s.io/v1\nkind: TLSRoute\nmetadata: {name: v, namespace: shop}\nspec: {parentRefs: [{name: i, namespace: gws, sectionName: pass}], hostnames: [b.example.org], rules: [{backendRefs: [{name: two, port: 80}]}]}".to_owned()],
        vec![
            gateway("i", 3, &format!("{{gatewayClassName: c, {static_a}listeners: [{{name: tcp, protocol: TCP, port: 80, allowedRoutes: {{namespaces: {{from: All}}}}}}, {{name: pass, protocol: TLS, port: 443, hostname: \"*.example.com\", tls: {{mode: Passthrough}}, allowedRoutes: {{namespaces: {{from: All}}}}}}]}}")),
            gateway("i", 3, &format!("{{gatewayClassName: c, {static_a}listeners: [{{name: tcp, protocol: TCP, port: 81, allowedRoutes: {{namespaces: {{from: All}}}}}}, {{name: pass, protocol: TLS, port: 444, tls: {{certificateRefs: [{{name: cert}}]}}, allowedRoutes: {{namespaces: {{from: All}}}}}}]}}")),
        ],
    ];
    let mut versions: Vec<Vec<Object>> =
        texts.into_iter().map(|texts| texts.iter().flat_map(|text| read(text)).collect()).collect();
    for (namespace, name) in [("gws", "cert"), ("admin", "far")] {
        let secret = tls_secret(namespace, name);
        match versions.iter_mut().find(|versions| versions[0].reference() == secret.reference()) {
            Some(versions) => versions.push(secret),
            None => versions.push(vec![secret]),
        }
    }
    versions
}

/// A step: which object, and which of its versions; beyond the last version it is deleted.
type Step = (usize, usize);

fn outcome(translator: &Translator) -> (Snapshot, Vec<(ObjectRef, ObjectStatus)>) {
    // An empty status is left behind only where something was said before.
    let statuses = translator.statuses().filter(|(_, status)| **status != ObjectStatus::default());
    (snapshot(translator), statuses.map(|(reference, status)| (reference.clone(), status.clone())).collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn one_by_one_in_any_order_comes_to_the_same_as_all_at_once(
        steps in proptest::collection::vec((0usize..27, 0usize..5), 1..80),
        batches in proptest::collection::vec(1usize..5, 80),
    ) {
        thread_local!(static VERSIONS: Vec<Vec<Object>> = versions());
        let steps: Vec<Step> = steps;
        let (one_by_one, last) = VERSIONS.with(|versions| {
            let event = |&(object, version): &Step| {
                let versions = &versions[object % versions.len()];
                match versions.get(version) {
                    Some(object) => Event::Put(object.clone()),
                    None => Event::Delete(versions[0].reference()),
                }
            };
            let mut translator = Translator::new(settings());
            let mut mirror: BTreeMap<DomainName, Model> = BTreeMap::new();
            let mut rest = steps.as_slice();
            for batch in batches {
                let (now, later) = rest.split_at(batch.min(rest.len()));
                rest = later;
                let changes = translator.apply(now.iter().map(event));
                for (name, change) in changes.domains {
                    match change.event {
                        DomainEvent::New(domain) => {
                            let mut model = Model::new(domain);
                            if let Some(delta) = &change.delta {
                                model.generation = tidegate_model::Generation(delta.generation.0 - 1);
                            }
                            mirror.insert(name.clone(), model);
                        }
                        DomainEvent::Updated(domain) => mirror.get_mut(&name).unwrap().domain = domain,
                        DomainEvent::Same => {}
                        DomainEvent::Removed => {
                            mirror.remove(&name);
                        }
                    }
                    if let Some(delta) = change.delta {
                        mirror.get_mut(&name).unwrap().apply(&delta);
                    }
                }
            }
            for (name, model) in &mirror {
                let whole: Vec<_> = translator.model(name).unwrap().resources().collect();
                assert_eq!(model.resources().collect::<Vec<_>>(), whole);
            }
            let last: BTreeMap<ObjectRef, Object> = steps.iter().fold(BTreeMap::new(), |mut last, step| {
                match event(step) {
                    Event::Put(object) => last.insert(object.reference(), object),
                    Event::Delete(reference) => last.remove(&reference),
                };
                last
            });
            (translator, last)
        });
        let mut at_once = Translator::new(settings());
        at_once.apply(last.into_values().map(Event::Put));
        prop_assert_eq!(outcome(&one_by_one), outcome(&at_once));
    }
}
