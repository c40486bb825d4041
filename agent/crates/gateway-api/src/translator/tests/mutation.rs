//! One bad object never stops another.

use proptest::prelude::*;
use serde_json::Value;

use super::*;

/// A second route, Gateway and Service beside the example's, and two ListenerSets, so that there is something to leave alone of each kind.
const BESIDE: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: beside, namespace: gw-external}
spec:
  gatewayClassName: public
  allowedListeners: {namespaces: {from: Selector, selector: {matchLabels: {gw-access: external}}}}
  listeners:
  - {name: http, protocol: HTTP, port: 80, allowedRoutes: {namespaces: {from: All}}}
  - name: asks
    protocol: HTTP
    port: 81
    filters:
      requests:
      - {type: ExternalAuth, externalAuth: {protocol: HTTP, backendRef: {name: beside, namespace: elsewhere, port: 80}}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: ListenerSet
metadata: {name: beside, namespace: shop}
spec:
  parentRef: {name: beside, namespace: gw-external}
  listeners:
  - {name: http, protocol: HTTP, port: 80, hostname: set.example.com, allowedRoutes: {namespaces: {from: All}}}
  - {name: https, protocol: HTTPS, port: 443, hostname: "*.example.com", tls: {certificateRefs: [{name: example-com, namespace: gw-external}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: ListenerSet
metadata: {name: second, namespace: shop}
spec:
  parentRef: {name: beside, namespace: gw-external}
  listeners:
  - name: http
    protocol: HTTP
    port: 80
    hostname: second.example.com
    filters: {requests: [{type: ExternalAuth, externalAuth: {protocol: GRPC, backendRef: {name: products-v1, port: 8080}}}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: sets, namespace: shop}
spec:
  parentRefs: [{kind: ListenerSet, name: beside}, {kind: ListenerSet, name: second, sectionName: http}]
  rules: [{backendRefs: [{name: products-v1, port: 8080}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: ReferenceGrant
metadata: {name: sets, namespace: gw-external}
spec:
  from: [{group: gateway.networking.k8s.io, kind: ListenerSet, namespace: shop}]
  to: [{group: "", kind: Secret}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: ReferenceGrant
metadata: {name: asks, namespace: elsewhere}
spec:
  from: [{group: gateway.networking.k8s.io, kind: Gateway, namespace: gw-external}]
  to: [{group: "", kind: Service}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: beside, namespace: elsewhere}
spec:
  parentRefs: [{name: beside, namespace: gw-external}]
  rules: [{backendRefs: [{name: beside, port: 80}]}]
---
apiVersion: v1
kind: Service
metadata: {name: beside, namespace: elsewhere}
spec: {ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: beside, namespace: elsewhere, labels: {kubernetes.io/service-name: beside}}
addressType: IPv4
ports: [{port: 80}]
endpoints: [{addresses: [10.30.0.99]}]
"#;

fn world() -> World {
    let mut world = World::example();
    world.put(BESIDE);
    world
}

/// Resources of all models, by domain and key.
pub(super) fn resources(world: &World) -> BTreeMap<(DomainName, Key), Resource> {
    let models = snapshot(&world.translator).into_iter();
    models
        .flat_map(|(domain, (_, resources))| {
            resources.into_iter().map(move |resource| ((domain.clone(), resource.key()), resource))
        })
        .collect()
}

/// Keys of resources that differ, as text.
pub(super) fn differences(
    before: &BTreeMap<(DomainName, Key), Resource>,
    after: &BTreeMap<(DomainName, Key), Resource>,
) -> Vec<String> {
    let keys: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let differ = keys.into_iter().filter(|key| before.get(*key) != after.get(*key));
    differ
        .map(|(domain, key)| {
            let key = match key {
                Key::Certificate(key) => format!("certificate {key}"),
                Key::CaBundle(key) => format!("authorities {key}"),
                Key::Backend(key) => format!("backend {key}"),
                Key::Endpoints(key) => format!("endpoints {key}"),
                Key::Listener(key) => format!("listener {key}"),
                Key::Rule(key) => format!("rule {key}"),
                Key::Forward(key) => format!("forward {key}"),
            };
            format!("{domain}: {key}")
        })
        .collect()
}

#[test]
fn an_invalid_object_of_each_kind_changes_its_own_resources_only() {
    let cases: &[(&str, &str, &[&str])] = &[
        (
            "a Secret that is no certificate",
            "apiVersion: v1\nkind: Secret\nmetadata: {name: example-com, namespace: gw-external}\ntype: kubernetes.io/tls\nstringData: {tls.crt: nonsense, tls.key: nonsense}",
            &[
                "public: certificate gw-external/example-com",
                "public: listener gw-external/beside/ListenerSet/shop/beside/https",
                "public: listener gw-external/external/https",
            ],
        ),
        (
            "a Service without ports",
            "apiVersion: v1\nkind: Service\nmetadata: {name: products-v2, namespace: shop}\nspec: {}",
            &[
                "public: backend Service/shop/products-v2:8080",
                "public: endpoints Service/shop/products-v2:8080",
                "public: rule HTTPRoute/shop/products rule 0",
            ],
        ),
        (
            "an EndpointSlice of nonsense",
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: products-v2-a, namespace: shop, labels: {kubernetes.io/service-name: products-v2}}\naddressType: IPv4\nports: [{name: http, port: 99999}]\nendpoints: [{addresses: [nonsense]}]",
            &["public: endpoints Service/shop/products-v2:8080"],
        ),
        (
            "an HTTPRoute of nonsense",
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: console, namespace: admin}\nspec: {parentRefs: [{name: internal, namespace: gw-internal}], hostnames: [\"a b\"]}",
            &[
                "private: backend Service/admin/console:8080",
                "private: endpoints Service/admin/console:8080",
                "private: rule HTTPRoute/admin/console rule 0",
            ],
        ),
        (
            "a Gateway with impossible listeners",
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: external, namespace: gw-external}\nspec: {gatewayClassName: public, listeners: [{name: https, protocol: HTTP, port: 0, allowedRoutes: {namespaces: {from: All}}}, {name: http, protocol: NONSENSE, port: 80, allowedRoutes: {namespaces: {from: All}}}]}",
            &[
                "public: listener gw-external/external/http",
                "public: listener gw-external/external/https",
                "public: rule HTTPRoute/shop/products rule 0",
            ],
        ),
        (
            "a GatewayClass without parameters",
            "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {name: private}\nspec: {controllerName: tidegate.dev/gateway-controller}",
            &[
                "private: backend Service/admin/console:8080",
                "private: endpoints Service/admin/console:8080",
                "private: listener gw-internal/internal/http",
                "private: rule HTTPRoute/admin/console rule 0",
            ],
        ),
        (
            "a TrafficDomain without NICs",
            "apiVersion: tidegate.dev/v1alpha1\nkind: TrafficDomain\nmetadata: {name: private}\nspec: {interfaces: [], addresses: {}}",
            &[
                "private: backend Service/admin/console:8080",
                "private: endpoints Service/admin/console:8080",
                "private: listener gw-internal/internal/http",
                "private: rule HTTPRoute/admin/console rule 0",
            ],
        ),
        (
            "a TrafficDomain with the pools of another",
            "apiVersion: tidegate.dev/v1alpha1\nkind: TrafficDomain\nmetadata: {name: zz}\nspec: {interfaces: [lan1], addresses: {pool: [0.0.0.0/0]}}",
            &[],
        ),
        (
            "a ListenerSet with impossible listeners",
            "apiVersion: gateway.networking.k8s.io/v1\nkind: ListenerSet\nmetadata: {name: beside, namespace: shop}\nspec: {parentRef: {name: beside, namespace: gw-external}, listeners: [{name: http, protocol: HTTP, port: 0}, {name: https, protocol: NONSENSE, port: 80}, {name: http, protocol: HTTP, port: 80, hostname: second.example.com}]}",
            &[
                "public: listener gw-external/beside/ListenerSet/shop/beside/http",
                "public: listener gw-external/beside/ListenerSet/shop/beside/https",
                "public: rule HTTPRoute/shop/sets rule 0",
            ],
        ),
        (
            "a ListenerSet that takes what others have",
            "apiVersion: gateway.networking.k8s.io/v1\nkind: ListenerSet\nmetadata: {name: zz, namespace: shop}\nspec: {parentRef: {name: beside, namespace: gw-external}, listeners: [{name: a, protocol: HTTP, port: 80}, {name: b, protocol: HTTPS, port: 80}, {name: c, protocol: HTTP, port: 80, hostname: second.example.com}, {name: d, protocol: UDP, port: 70000}]}",
            &[],
        ),
        (
            "a ListenerSet of no Gateway",
            "apiVersion: gateway.networking.k8s.io/v1\nkind: ListenerSet\nmetadata: {name: second, namespace: shop}\nspec: {parentRef: {group: a, kind: B, name: c}, listeners: []}",
            &[
                "public: backend Service/shop/products-v1:8080/gRPC",
                "public: endpoints Service/shop/products-v1:8080/gRPC",
                "public: listener gw-external/beside/ListenerSet/shop/second/http",
                "public: rule HTTPRoute/shop/sets rule 0",
            ],
        ),
        (
            "a Gateway that takes no sets",
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: beside, namespace: gw-external}\nspec: {gatewayClassName: public, allowedListeners: {namespaces: {from: Selector, selector: {matchExpressions: [{key: a, operator: Like}]}}}, listeners: [{name: http, protocol: HTTP, port: 80, allowedRoutes: {namespaces: {from: All}}}]}",
            &[
                "public: backend Service/shop/products-v1:8080/gRPC",
                "public: endpoints Service/shop/products-v1:8080/gRPC",
                "public: listener gw-external/beside/asks",
                "public: listener gw-external/beside/ListenerSet/shop/beside/http",
                "public: listener gw-external/beside/ListenerSet/shop/beside/https",
                "public: listener gw-external/beside/ListenerSet/shop/second/http",
                "public: rule HTTPRoute/shop/sets rule 0",
            ],
        ),
        (
            "a listener with a filter that nobody serves",
            "apiVersion: gateway.networking.k8s.io/v1\nkind: ListenerSet\nmetadata: {name: second, namespace: shop}\nspec: {parentRef: {name: beside, namespace: gw-external}, listeners: [{name: http, protocol: HTTP, port: 80, hostname: second.example.com, filters: {requests: [{type: ExtensionRef}]}}]}",
            &[
                "public: backend Service/shop/products-v1:8080/gRPC",
                "public: endpoints Service/shop/products-v1:8080/gRPC",
                "public: listener gw-external/beside/ListenerSet/shop/second/http",
            ],
        ),
        (
            "a Service without ports that a listener asks, and a route sends to",
            "apiVersion: v1\nkind: Service\nmetadata: {name: beside, namespace: elsewhere}\nspec: {}",
            &[
                "public: backend Service/elsewhere/beside:80",
                "public: endpoints Service/elsewhere/beside:80",
                "public: listener gw-external/beside/asks",
                "public: rule HTTPRoute/elsewhere/beside rule 0",
            ],
        ),
        (
            "a grant to Gateways that is taken back",
            "apiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\nmetadata: {name: asks, namespace: elsewhere}\nspec: {from: [], to: []}",
            &["public: listener gw-external/beside/asks"],
        ),
        (
            "a grant to ListenerSets that is taken back",
            "apiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\nmetadata: {name: sets, namespace: gw-external}\nspec: {from: [], to: []}",
            &["public: listener gw-external/beside/ListenerSet/shop/beside/https"],
        ),
        (
            "a Namespace without labels",
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: elsewhere, labels: {a: b}}",
            &[],
        ),
        (
            "a ReferenceGrant of nonsense",
            "apiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\nmetadata: {name: g, namespace: shop}\nspec: {from: [{group: a, kind: B, namespace: c}], to: []}",
            &[],
        ),
        (
            "a ConfigMap of nobody",
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: b}\ndata: {a: nonsense}",
            &[],
        ),
        (
            "a Backend of nonsense",
            "apiVersion: tidegate.dev/v1alpha1\nkind: Backend\nmetadata: {name: a, namespace: shop}\nspec: {endpoints: [{}, {ip: {address: nonsense, port: 0}}]}",
            &[],
        ),
        (
            "a UDPRoute",
            "apiVersion: gateway.networking.k8s.io/v1\nkind: UDPRoute\nmetadata: {name: a, namespace: shop}\nspec: {parentRefs: [{name: external, namespace: gw-external}], rules: []}",
            &[],
        ),
    ];
    for (what, yaml, expected) in cases {
        let mut world = world();
        let before = resources(&world);
        let original = read(yaml).into_iter().map(|object| world.translator.store.find(&object.reference()).cloned());
        let original: Vec<_> = original.flatten().collect();
        world.put(yaml);
        assert_eq!(differences(&before, &resources(&world)), *expected, "{what}");
        world.put_all(original);
        if !expected.is_empty() {
            assert_eq!(differences(&before, &resources(&world)), Vec::<String>::new(), "{what}, mended");
        }
    }
}

/// Every place in a value, as JSON pointers.
fn places(value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let at = format!("{at}/{}", key.replace('~', "~0").replace('/', "~1"));
                found.push(at.clone());
                places(value, &at, found);
            }
        }
        Value::Array(items) => {
            for (index, value) in items.iter().enumerate() {
                let at = format!("{at}/{index}");
                found.push(at.clone());
                places(value, &at, found);
            }
        }
        _ => {}
    }
}

fn junk() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        Just(Value::from("")),
        Just(Value::from("*")),
        Just(Value::from("a b\r\n")),
        Just(Value::from("10.20.1.0/28")),
        Just(Value::from("\u{10ffff}../%00")),
        Just(Value::from(-1)),
        Just(Value::from(0)),
        Just(Value::from(65_536)),
        Just(Value::from(u64::MAX)),
        Just(Value::Array(Vec::new())),
        Just(Value::Object(serde_json::Map::new())),
        "\\PC{0,12}".prop_map(Value::from),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn junk_anywhere_never_panics_and_leaves_nothing_behind_once_mended(
        document in any::<prop::sample::Index>(),
        place in any::<prop::sample::Index>(),
        junk in junk(),
    ) {
        let all = format!("{EXAMPLE}\n---{BESIDE}");
        let documents: Vec<&str> = all.split("\n---").collect();
        let mut value: Value = serde_saphyr::from_str(documents[document.index(documents.len())]).unwrap();
        let original = parse(value.clone()).unwrap().object;
        let mut found = Vec::new();
        places(&value, "", &mut found);
        found.retain(|place| !place.starts_with("/metadata/name") && place != "/kind" && place != "/apiVersion");
        let place = &found[place.index(found.len())];
        *value.pointer_mut(place).unwrap() = junk;

        thread_local!(static WORLD: std::cell::RefCell<World> = std::cell::RefCell::new(world()));
        WORLD.with(|world| {
            let mut world = world.borrow_mut();
            let before = snapshot(&world.translator);
            if let Ok(parsed) = parse(value) {
                let reference = parsed.object.reference();
                let is_same = reference == original.reference();
                world.put_all([parsed.object]);
                if !is_same {
                    world.translator.apply([Event::Delete(reference)]);
                }
            }
            world.put_all([original]);
            assert_eq!(snapshot(&world.translator), before);
        });
    }
}
