//! Each way in which a route of any kind, a policy or a grant can be wrong: it is named by field with its mend, and nothing but
//! the object's own resources changes.

use serde_json::Value;

use super::{
    mutation::{differences, resources},
    *,
};

/// One object of each kind, each beside another of its kind that must not notice.
const OBJECTS: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: streams, namespace: gw-external}
spec:
  gatewayClassName: public
  listeners:
  - {name: tls, protocol: TLS, port: 8443, hostname: "*.example.com", tls: {mode: Passthrough}, allowedRoutes: {namespaces: {from: All}}}
  - {name: tcp, protocol: TCP, port: 5432, allowedRoutes: {namespaces: {from: All}}}
  - {name: tcp2, protocol: TCP, port: 5433, allowedRoutes: {namespaces: {from: All}}}
  - {name: udp, protocol: UDP, port: 5432, allowedRoutes: {namespaces: {from: All}}}
  - {name: udp2, protocol: UDP, port: 5433, allowedRoutes: {namespaces: {from: All}}}
  - {name: http, protocol: HTTP, port: 8080, allowedRoutes: {namespaces: {from: All}}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: own, namespace: shop}
spec: {parentRefs: [{name: streams, namespace: gw-external, sectionName: tls}], hostnames: [own.example.com], rules: [{backendRefs: [{name: own, port: 8080}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: beside, namespace: shop}
spec: {parentRefs: [{name: streams, namespace: gw-external, sectionName: tls}], hostnames: [beside.example.com], rules: [{backendRefs: [{name: beside, port: 8080}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {name: own, namespace: shop}
spec: {parentRefs: [{name: streams, namespace: gw-external, sectionName: tcp}], rules: [{backendRefs: [{name: own, port: 8080}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {name: beside, namespace: shop}
spec: {parentRefs: [{name: streams, namespace: gw-external, sectionName: tcp2}], rules: [{backendRefs: [{name: beside, port: 8080}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: UDPRoute
metadata: {name: own, namespace: shop}
spec: {parentRefs: [{name: streams, namespace: gw-external, sectionName: udp}], rules: [{backendRefs: [{name: own, port: 53}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: UDPRoute
metadata: {name: beside, namespace: shop}
spec: {parentRefs: [{name: streams, namespace: gw-external, sectionName: udp2}], rules: [{backendRefs: [{name: beside, port: 53}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: own, namespace: shop}
spec: {parentRefs: [{name: streams, namespace: gw-external, sectionName: http}], hostnames: [grpc.example.com], rules: [{matches: [{method: {service: a.B, method: C}}], backendRefs: [{name: own, port: 8080}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: beside, namespace: shop}
spec: {parentRefs: [{name: streams, namespace: gw-external, sectionName: http}], rules: [{backendRefs: [{name: beside, port: 8080}, {name: secured, port: 8080}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {name: own, namespace: shop}
spec:
  targetRefs: [{group: "", kind: Service, name: secured}]
  validation: {hostname: secured.example.com, caCertificateRefs: [{group: "", kind: ConfigMap, name: authorities}]}
---
apiVersion: v1
kind: Service
metadata: {name: own, namespace: shop}
spec: {ports: [{name: http, port: 8080}, {name: dns, port: 53, protocol: UDP}]}
---
apiVersion: v1
kind: Service
metadata: {name: beside, namespace: shop}
spec: {ports: [{name: http, port: 8080}, {name: dns, port: 53, protocol: UDP}]}
---
apiVersion: v1
kind: Service
metadata: {name: secured, namespace: shop}
spec: {ports: [{name: http, port: 8080}]}
"#;

fn world() -> World {
    let mut world = World::example();
    let authorities = serde_json::json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "authorities", "namespace": "shop"},
        "data": {"ca.crt": certificate().0},
    });
    world.put_all([parse(authorities).unwrap().object]);
    world.put(OBJECTS);
    world
}

/// A way to be wrong: what is put at which place, what is said of it then, and words of the message that name the place. What
/// says nothing in a condition is refused before, with the words in the error.
type Way = (&'static str, &'static str, &'static str, &'static str);

/// Ways in which a reference to a backend can be wrong.
const BACKEND_REFS: &[Way] = &[
    ("/spec/rules/0/backendRefs/0/name", "gone", "ResolvedRefs=false BackendNotFound", "backendRefs[0]"),
    ("/spec/rules/0/backendRefs/0/port", "9", "ResolvedRefs=false BackendNotFound", "has no "),
    ("/spec/rules/0/backendRefs/0/port", "0", "ResolvedRefs=false BackendNotFound", "backendRefs[0].port"),
    ("/spec/rules/0/backendRefs/0/port", "70000", "ResolvedRefs=false BackendNotFound", "backendRefs[0].port"),
    ("/spec/rules/0/backendRefs/0/port", "null", "ResolvedRefs=false BackendNotFound", "backendRefs[0].port"),
    ("/spec/rules/0/backendRefs/0/port", "http", "", "spec.rules[0].backendRefs[0].port"),
    ("/spec/rules/0/backendRefs/0/kind", "Pod", "ResolvedRefs=false InvalidKind", "backendRefs[0]: kind Pod"),
    ("/spec/rules/0/backendRefs/0/group", "a.example", "ResolvedRefs=false InvalidKind", "of a.example"),
    ("/spec/rules/0/backendRefs/0/namespace", "admin", "ResolvedRefs=false RefNotPermitted", "ReferenceGrant in admin"),
    ("/spec/rules/0/backendRefs/0/weight", "heavy", "", "spec.rules[0].backendRefs[0].weight"),
];

/// Ways in which a reference to a parent can be wrong.
const PARENT_REFS: &[Way] = &[
    ("/spec/parentRefs/0/sectionName", "gone", "Accepted=false NoMatchingParent", "gone"),
    ("/spec/parentRefs/0/port", "9", "Accepted=false NoMatchingParent", "9"),
    ("/spec/parentRefs/0/port", "high", "", "spec.parentRefs[0].port"),
];

/// Weights that are none.
const WEIGHTS: &[Way] = &[
    ("/spec/rules/0/backendRefs/0/weight", "-1", "PartiallyInvalid=true UnsupportedValue", "backendRefs[0].weight"),
    (
        "/spec/rules/0/backendRefs/0/weight",
        "1000001",
        "PartiallyInvalid=true UnsupportedValue",
        "backendRefs[0].weight",
    ),
];

const OF_TLS: &[Way] =
    &[("/spec/hostnames", "[other.example.org]", "Accepted=false NoMatchingListenerHostname", "hostname")];

const HOSTNAMES: &[Way] = &[
    ("/spec/hostnames/0", "a b", "Accepted=false UnsupportedValue", "spec.hostnames[0]"),
    ("/spec/hostnames/0", "10.0.0.1", "Accepted=false UnsupportedValue", "spec.hostnames[0]"),
    ("/spec/hostnames/0", "a.*.example.com", "Accepted=false UnsupportedValue", "spec.hostnames[0]"),
    ("/spec/hostnames", "name", "", "spec.hostnames"),
];

const OF_GRPC: &[Way] = &[
    ("/spec/rules/0/matches/0/method/type", "Fuzzy", "", "spec.rules[0].matches[0].method.type"),
    ("/spec/rules/0/matches/0/method/service", "a/b", "Accepted=false UnsupportedValue", "matches[0].method"),
    (
        "/spec/rules/0/matches/0/headers",
        "[{name: \"a b\", value: c}]",
        "Accepted=false UnsupportedValue",
        "matches[0].headers[0]",
    ),
    (
        "/spec/rules/0/matches/0/headers",
        "[{name: a, type: RegularExpression, value: \"(\"}]",
        "Accepted=false UnsupportedValue",
        "matches[0].headers[0]",
    ),
    ("/spec/rules/0/filters", "[{type: Unknown}]", "", "spec.rules[0].filters[0].type"),
    ("/spec/rules/0/filters", "[{type: RequestMirror}]", "Accepted=false UnsupportedValue", "filters[0].requestMirror"),
    (
        "/spec/rules/0/filters",
        "[{type: ExtensionRef, extensionRef: {group: a, kind: B, name: c}}]",
        "Accepted=false UnsupportedValue",
        "filters[0]",
    ),
];

const OF_POLICIES: &[Way] = &[
    ("/spec/validation/hostname", "a b", "Accepted=false Invalid", "spec.validation.hostname"),
    (
        "/spec/validation/caCertificateRefs/0/name",
        "gone",
        "ResolvedRefs=false InvalidCACertificateRef",
        "caCertificateRefs[0]",
    ),
    ("/spec/validation/caCertificateRefs/0/kind", "Pod", "ResolvedRefs=false InvalidKind", "caCertificateRefs[0]"),
    ("/spec/validation/caCertificateRefs", "[]", "Accepted=false Invalid", "spec.validation"),
    ("/spec/validation/wellKnownCACertificates", "System", "Accepted=false Invalid", "spec.validation"),
    ("/spec/validation/wellKnownCACertificates", "Mine", "Accepted=false Invalid", "spec.validation"),
    ("/spec/validation/subjectAltNames", "[{type: Hostname}]", "Accepted=false Invalid", "subjectAltNames[0]"),
    (
        "/spec/validation/subjectAltNames",
        "[{type: URI, uri: \"no uri\"}]",
        "Accepted=false Invalid",
        "subjectAltNames[0]",
    ),
    ("/spec/validation/subjectAltNames", "[{type: Age}]", "", "spec.validation.subjectAltNames[0].type"),
    ("/spec/targetRefs/0/sectionName", "gone", "Accepted=false TargetNotFound", "sectionName"),
];

/// What an object calls its own in the models, so that it may change with it.
fn own_resources(object: &ObjectRef) -> Vec<String> {
    if object.kind == Kind::BackendTLSPolicy {
        return vec![
            "backend Service/shop/secured:8080".to_owned(),
            "authorities ConfigMap/shop/authorities".to_owned(),
        ];
    }
    let (kind, name) = (object.kind, &object.name);
    let mut own = vec![format!("forward {kind}/{name} rule 0"), format!("rule {kind}/{name} rule 0")];
    // Backends that others have, too, stay.
    let key = match kind {
        Kind::UDPRoute => "Service/shop/own:53/UDP",
        Kind::GRPCRoute => "Service/shop/own:8080/gRPC",
        _ => return own,
    };
    own.extend([format!("backend {key}"), format!("endpoints {key}")]);
    own
}

/// Puts a value at a place, which need not be there yet.
fn set(document: &mut Value, place: &str, value: Value) {
    let (parent, last) = place.rsplit_once('/').unwrap();
    match document.pointer_mut(parent) {
        Some(Value::Object(fields)) => drop(fields.insert(last.to_owned(), value)),
        Some(Value::Array(items)) => items[last.parse::<usize>().unwrap()] = value,
        other => panic!("{place}: {other:?}"),
    }
}

/// What is wrong with the way in which a wrong object is taken; nothing when all is as it must be.
fn try_way(document: &Value, (place, junk, condition, words): Way) -> Result<(), String> {
    let mut world = world();
    let before = resources(&world);
    let original = parse(document.clone()).unwrap().object;
    let object = original.reference();
    let at = (object.kind, "shop", "own", "");
    let mut wrong = document.clone();
    set(&mut wrong, place, serde_saphyr::from_str(junk).unwrap());
    let context = format!("{object} with {junk} at {place}");
    let parsed = match parse(wrong) {
        Ok(parsed) => parsed.object,
        Err(error) if condition.is_empty() => {
            let said = error.to_string();
            return if said.contains(words) && said.contains("shop/own") {
                Ok(())
            } else {
                Err(format!("{context}: {said}"))
            };
        }
        Err(error) => return Err(format!("{context}: cannot be read: {error}")),
    };
    if condition.is_empty() {
        return Err(format!("{context}: is read"));
    }
    world.put_all([parsed]);
    let (said, message) = world.condition(at, condition.split('=').next().unwrap());
    if said != condition || !message.contains(words) {
        return Err(format!("{context}: {said}: {message}"));
    }
    let own = own_resources(&object);
    let changed = differences(&before, &resources(&world));
    let others: Vec<_> = changed.iter().filter(|key| !own.iter().any(|own| key.ends_with(own))).collect();
    if !others.is_empty() {
        return Err(format!("{context}: changes {others:?}"));
    }
    world.put_all([original]);
    match differences(&before, &resources(&world)) {
        left if left.is_empty() => Ok(()),
        left => Err(format!("{context}: mended, and {left:?} is left")),
    }
}

#[test]
fn each_way_to_be_wrong_is_named_by_its_field_and_changes_nothing_of_others() {
    let documents: Vec<Value> =
        OBJECTS.split("\n---").map(|document| serde_saphyr::from_str(document).unwrap()).collect();
    let find =
        |kind: &str| documents.iter().find(|one| one["kind"] == kind && one["metadata"]["name"] == "own").unwrap();
    let mut faults = Vec::new();
    let mut tried = 0;
    for (kind, lists) in [
        ("TLSRoute", &[BACKEND_REFS, PARENT_REFS, WEIGHTS, HOSTNAMES, OF_TLS][..]),
        ("TCPRoute", &[BACKEND_REFS, PARENT_REFS, WEIGHTS]),
        ("UDPRoute", &[BACKEND_REFS, PARENT_REFS, WEIGHTS]),
        ("GRPCRoute", &[BACKEND_REFS, PARENT_REFS, HOSTNAMES, OF_GRPC]),
        ("BackendTLSPolicy", &[OF_POLICIES]),
    ] {
        for way in lists.iter().copied().flatten() {
            tried += 1;
            faults.extend(try_way(find(kind), *way).err());
        }
    }
    assert!(faults.is_empty(), "{} of {tried}:\n{}", faults.len(), faults.join("\n"));
}
