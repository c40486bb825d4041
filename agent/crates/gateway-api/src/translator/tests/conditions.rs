//! Conditions and reasons, one test a rule of Gateway API.

use tidegate_model::{
    BackendKey, BackendProtocol, BackendTarget, EndpointState, Filter, Fraction, PathMatch, RateLimit, SourceBits,
};

use super::*;

pub(super) const PRODUCTS: Place<'static> = (Kind::HTTPRoute, "shop", "products", "");

/// The example's route of the public domain with another spec.
pub(super) fn products(spec: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
         metadata: {{name: products, namespace: shop, generation: 3}}\nspec:\n  {}",
        spec.replace('\n', "\n  ")
    )
}

pub(super) const PARENT: &str = "parentRefs: [{name: external, namespace: gw-external}]\n";

pub(super) fn with_rules(rules: &str) -> String {
    products(&format!("{PARENT}rules:\n{rules}"))
}

/// The example's Gateway of the public domain with other listeners.
fn external(listeners: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\n\
         metadata: {{name: external, namespace: gw-external, generation: 2}}\n\
         spec:\n  gatewayClassName: public\n  listeners:\n  {}",
        listeners.replace('\n', "\n  ")
    )
}

const EXTERNAL: Place<'static> = (Kind::Gateway, "gw-external", "external", "");

fn listener(name: &'static str) -> Place<'static> {
    (Kind::Gateway, "gw-external", "external", name)
}

fn target(world: &World, index: usize) -> BackendTarget {
    world.rule("public", "shop", "products", 0).unwrap().backends[index].target.clone()
}

#[track_caller]
fn assert_invalid(world: &World, message: &str) {
    match target(world, 0) {
        BackendTarget::Invalid(text) => assert!(text.contains(message), "{text:?} does not say {message:?}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_condition_has_the_generation_that_was_judged() {
    let mut world = World::example();
    world.put(&with_rules("- backendRefs: [{name: nothing, port: 1}]"));
    world.put(&external("- {name: http, protocol: HTTP, port: 80}"));
    let of = |place: Place<'_>| world.conditions(place.0, place.1, place.2, place.3);
    assert!(of(PRODUCTS).iter().all(|condition| condition.observed_generation == Some(3)));
    assert!(of(EXTERNAL).iter().all(|condition| condition.observed_generation == Some(2)));
    assert!(of(listener("http")).iter().all(|condition| condition.observed_generation == Some(2)));
}

#[test]
fn a_missing_service_is_not_resolved_but_accepted() {
    let mut world = World::example();
    world.put(&with_rules("- backendRefs: [{name: nothing, port: 8080}]"));
    world.assert_condition(PRODUCTS, "Accepted=true Accepted", "");
    world.assert_condition(
        PRODUCTS,
        "ResolvedRefs=false BackendNotFound",
        "spec.rules[0].backendRefs[0]: Service/shop/nothing",
    );
    assert_invalid(&world, "Service/shop/nothing does not exist");
    world.put(
        "apiVersion: v1\nkind: Service\nmetadata: {name: nothing, namespace: shop}\nspec: {ports: [{port: 8080}]}",
    );
    world.assert_condition(PRODUCTS, "ResolvedRefs=true ResolvedRefs", "");
    assert!(matches!(target(&world, 0), BackendTarget::Backend(_)));
}

#[test]
fn ports_kinds_and_types_of_backends_are_checked() {
    let mut world = World::example();
    for (reference, reason, message) in [
        ("{name: products-v1}", "BackendNotFound", "backendRefs[0].port is missing"),
        ("{name: products-v1, port: 9}", "BackendNotFound", "has no port 9: change it to one of those there: 8080"),
        ("{name: products-v1, port: 8080, kind: Pod}", "InvalidKind", "kind Pod of the core group"),
        ("{name: a, group: example.com, kind: Thing}", "InvalidKind", "kind Thing of example.com"),
        ("{name: a, group: tidegate.dev, kind: Backend}", "BackendNotFound", "Backend/shop/a does not exist"),
        ("{name: console, namespace: admin, port: 8080}", "RefNotPermitted", "make a ReferenceGrant in admin"),
    ] {
        world.put(&with_rules(&format!("- backendRefs: [{reference}]")));
        world.assert_condition(PRODUCTS, &format!("ResolvedRefs=false {reason}"), message);
        world.assert_condition(PRODUCTS, "Accepted=true Accepted", "");
        assert_invalid(&world, message);
    }
}

#[test]
fn services_that_cannot_be_backends_are_named() {
    let mut world = World::example();
    world.put(&with_rules("- backendRefs: [{name: odd, port: 80}]"));
    for (spec, reason, message) in [
        ("{type: ExternalName, externalName: a.example.com}", "InvalidKind", "ExternalName"),
        ("{ports: [{port: 80, protocol: UDP}]}", "UnsupportedProtocol", "port 80 is UDP"),
        ("{ports: [{port: 80, appProtocol: kafka}]}", "UnsupportedProtocol", "appProtocol \"kafka\""),
    ] {
        world.put(&format!("apiVersion: v1\nkind: Service\nmetadata: {{name: odd, namespace: shop}}\nspec: {spec}"));
        world.assert_condition(PRODUCTS, &format!("ResolvedRefs=false {reason}"), message);
    }
}

#[test]
fn a_grant_permits_and_its_end_takes_effect_at_once() {
    let mut world = World::example();
    world.put(&with_rules("- backendRefs: [{name: console, namespace: admin, port: 8080}]"));
    let grant = |kind: &str, name: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\nmetadata: {{name: g, namespace: admin}}\n\
             spec:\n  from: [{{group: gateway.networking.k8s.io, kind: {kind}, namespace: shop}}]\n  to: [{{group: \"\", kind: Service{name}}}]"
        )
    };
    for (kind, name, is_granted) in [
        ("HTTPRoute", "", true),
        ("HTTPRoute", ", name: console", true),
        ("HTTPRoute", ", name: other", false),
        ("GRPCRoute", "", false),
    ] {
        world.put(&grant(kind, name));
        let reason = if is_granted { "true ResolvedRefs" } else { "false RefNotPermitted" };
        world.assert_condition(PRODUCTS, &format!("ResolvedRefs={reason}"), "");
        assert_eq!(matches!(target(&world, 0), BackendTarget::Backend(_)), is_granted);
    }
    world.put(&grant("HTTPRoute", ""));
    assert!(world.model("public").dialled().contains(&"10.30.0.31:8080".parse().unwrap()));
    world.delete(Kind::ReferenceGrant, "admin", "g");
    assert!(!world.model("public").dialled().contains(&"10.30.0.31:8080".parse().unwrap()));
}

#[test]
fn parents_are_matched_by_section_port_namespace_and_host_name() {
    let mut world = World::example();
    for (parent, more, expected, message) in [
        (
            "{name: external, namespace: gw-external, sectionName: nope}",
            "",
            "false NoMatchingParent",
            "of name \"nope\"",
        ),
        ("{name: external, namespace: gw-external, port: 81}", "", "false NoMatchingParent", "on port 81"),
        (
            "{name: external, namespace: gw-external, sectionName: http, port: 443}",
            "",
            "false NoMatchingParent",
            "on port 443",
        ),
        (
            "{name: nope, namespace: gw-external}",
            "",
            "false NoMatchingParent",
            "Gateway/gw-external/nope does not exist",
        ),
        ("{name: internal, namespace: gw-internal}", "", "false NotAllowedByListeners", "namespace shop"),
        (
            "{name: external, namespace: gw-external, sectionName: https}",
            "hostnames: [shop.example.org]\n",
            "false NoMatchingListenerHostname",
            "spec.hostnames",
        ),
        ("{name: external, namespace: gw-external, sectionName: https, port: 443}", "", "true Accepted", ""),
    ] {
        world.put(&products(&format!(
            "parentRefs: [{parent}]\n{more}rules: [{{backendRefs: [{{name: products-v1, port: 8080}}]}}]"
        )));
        world.assert_condition(PRODUCTS, &format!("Accepted={expected}"), message);
        world.assert_condition(PRODUCTS, "ResolvedRefs=true ResolvedRefs", "");
        assert_eq!(world.rule("public", "shop", "products", 0).is_some(), expected.starts_with("true"));
    }
}

#[test]
fn a_route_of_two_domains_is_in_both_models_with_its_own_listeners() {
    let mut world = World::example();
    world.put("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {gw-access: external}}");
    world.put(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: internal, namespace: gw-internal}\n\
         spec: {gatewayClassName: private, listeners: [{name: http, protocol: HTTP, port: 80, allowedRoutes: {namespaces: {from: All}}}]}",
    );
    world.put(&products(
        "parentRefs: [{name: external, namespace: gw-external, sectionName: http}, {name: internal, namespace: gw-internal}]\n\
         rules: [{backendRefs: [{name: products-v1, port: 8080}]}]",
    ));
    for (domain, gateway) in [("public", "gw-external/external/http"), ("private", "gw-internal/internal/http")] {
        let rule = world.rule(domain, "shop", "products", 0).unwrap();
        let listeners: Vec<_> = rule.attachments.iter().map(|attachment| attachment.listener.to_string()).collect();
        assert_eq!(listeners, [gateway]);
    }
    assert_eq!(world.status(Kind::HTTPRoute, "shop", "products").parents.len(), 2);
}

#[test]
fn attached_routes_are_counted_at_each_listener() {
    let mut world = World::example();
    let counts = |world: &World| -> Vec<u32> {
        let listeners = &world.status(Kind::Gateway, "gw-external", "external").listeners;
        listeners.iter().map(|listener| listener.attached_routes).collect()
    };
    assert_eq!(counts(&world), [1, 1]);
    world.put(&products("parentRefs: [{name: external, namespace: gw-external, sectionName: http}]"));
    assert_eq!(counts(&world), [0, 1]);
    world.delete(Kind::Secret, "gw-external", "example-com");
    world.put(&with_rules("- backendRefs: []"));
    assert_eq!(counts(&world), [1, 1], "a listener that cannot be served still has its routes");
    world.delete(Kind::HTTPRoute, "shop", "products");
    assert_eq!(counts(&world), [0, 0]);
}

#[test]
fn an_invalid_match_is_left_out_and_the_rest_served() {
    let mut world = World::example();
    world.put(&with_rules(
        "- matches: [{path: {type: RegularExpression, value: \"/a(b\"}}, {path: {value: /ok}}]\n  backendRefs: [{name: products-v1, port: 8080}]",
    ));
    world.assert_condition(PRODUCTS, "Accepted=true Accepted", "");
    world.assert_condition(PRODUCTS, "PartiallyInvalid=true UnsupportedValue", "spec.rules[0].matches[0].path.value");
    let rule = world.rule("public", "shop", "products", 0).unwrap();
    assert_eq!(rule.matches.len(), 1);
    assert_eq!(rule.matches[0].path, PathMatch::Prefix(Arc::from("/ok")));
    world.put(&with_rules("- matches: [{path: {type: RegularExpression, value: \"/a(b\"}}]"));
    world.assert_condition(PRODUCTS, "Accepted=false UnsupportedValue", "no rule can be served");
    assert!(world.rule("public", "shop", "products", 0).is_none());
}

#[test]
fn a_rule_whose_filters_cannot_be_carried_out_answers_500() {
    let mut world = World::example();
    let good = "\n- matches: [{path: {value: /good}}]\n  backendRefs: [{name: products-v1, port: 8080}]";
    for (filter, message) in [
        ("{type: ExtensionRef, extensionRef: {group: a, kind: B, name: c}}", "ExtensionRef B c is not served yet"),
        (
            "{type: ExternalAuth, externalAuth: {protocol: HTTP, http: {path: a}, backendRef: {name: products-v1, port: 8080}}}",
            "filters[0].externalAuth.http.path",
        ),
        ("{type: RequestMirror}", "filters[0].requestMirror is missing"),
        ("{type: URLRewrite, urlRewrite: {hostname: \"*.example.com\"}}", "urlRewrite.hostname"),
        ("{type: RequestRedirect, requestRedirect: {statusCode: 200}}", "requestRedirect.statusCode"),
        ("{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: \"a b\", value: c}]}}", "set[0].name"),
    ] {
        world.put(&with_rules(&format!(
            "- filters: [{filter}]\n  backendRefs: [{{name: products-v1, port: 8080}}]{good}"
        )));
        world.assert_condition(PRODUCTS, "Accepted=true Accepted", "");
        world.assert_condition(PRODUCTS, "PartiallyInvalid=true UnsupportedValue", message);
        assert_invalid(&world, message);
        assert!(world.rule("public", "shop", "products", 1).is_some());
    }
}

#[test]
fn fields_that_are_not_enforced_are_named_and_the_rule_is_served() {
    let mut world = World::example();
    world.put(&products(&format!(
        "{PARENT}useDefaultGateways: All\nrules:\n- backendRefs: [{{name: products-v1, port: 8080}}]"
    )));
    world.assert_condition(PRODUCTS, "Enforced=false NotEnforced", "spec.useDefaultGateways is not enforced yet");
    assert!(matches!(target(&world, 0), BackendTarget::Backend(_)));
}

#[test]
fn filters_timeouts_and_mirrors_are_read() {
    let mut world = World::example();
    world.put(&with_rules(
        "- name: main\n  timeouts: {request: 10s, backendRequest: 500ms}\n  filters:\n\
         \x20 - {type: RequestMirror, requestMirror: {percent: 20, backendRef: {name: products-v2, port: 8080}}}\n\
         \x20 - {type: RequestMirror, requestMirror: {backendRef: {name: nothing, port: 8080}}}\n\
         \x20 - {type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}\n\
         \x20 - {type: CORS, cors: {allowOrigins: [\"https://*.example.com\"], allowMethods: [GET]}}\n\
         \x20 backendRefs:\n  - name: products-v1\n    port: 8080\n    filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {remove: [Server]}}]",
    ));
    world.assert_condition(
        PRODUCTS,
        "ResolvedRefs=false BackendNotFound",
        "spec.rules[0].filters[1].requestMirror.backendRef",
    );
    let rule = world.rule("public", "shop", "products", 0).unwrap();
    assert_eq!(rule.name.as_deref(), Some("main"));
    assert_eq!(rule.timeouts.request.unwrap().as_secs(), 10);
    assert_eq!(rule.timeouts.backend_request.unwrap().as_millis(), 500);
    let Filter::Mirror(mirror) = &rule.filters[0] else { panic!() };
    assert_eq!(mirror.fraction, Fraction { numerator: 20, denominator: 100 });
    assert!(mirror.backend.is_some());
    assert!(matches!(&rule.filters[1], Filter::Mirror(mirror) if mirror.backend.is_none()));
    assert_eq!(rule.filters.len(), 4);
    assert!(matches!(&rule.backends[0].filters[0], Filter::ResponseHeaders(edits) if *edits.remove[0] == *"server"));
    let mirrored = Key::Endpoints(BackendKey::Service { name: ObjectName::new("shop", "products-v2"), port: 8080 });
    assert!(world.find("public", &mirrored).is_some());
}

#[test]
fn protocols_conflict_and_names_conflict_within_a_gateway() {
    let mut world = World::example();
    world.put(&external(
        "- {name: a, protocol: HTTP, port: 80, hostname: a.example.com}\n- {name: b, protocol: HTTP, port: 80, hostname: A.example.com}\n\
         - {name: c, protocol: HTTP, port: 80, hostname: c.example.com}\n- {name: d, protocol: HTTP, port: 81}\n- {name: e, protocol: HTTPS, port: 81}",
    ));
    for (name, expected) in [
        ("a", "true HostnameConflict"),
        ("b", "true HostnameConflict"),
        ("c", "false NoConflicts"),
        ("d", "true ProtocolConflict"),
        ("e", "true ProtocolConflict"),
    ] {
        world.assert_condition(listener(name), &format!("Conflicted={expected}"), "");
        assert_eq!(world.listener("public", "gw-external", "external", name).is_some(), name == "c", "{name}");
    }
    world.assert_condition(EXTERNAL, "Accepted=true ListenersNotValid", "a, b, d, e");
    world.assert_condition(EXTERNAL, "Programmed=true Programmed", "");
}

#[test]
fn listeners_that_are_not_served_say_why() {
    let mut world = World::example();
    world.put(&external(
        "- {name: good, protocol: HTTP, port: 80}\n- {name: sctp, protocol: SCTP, port: 90}\n- {name: tls, protocol: TLS, port: 91}\n\
         - {name: port, protocol: HTTP, port: 70000}\n- {name: host, protocol: HTTP, port: 92, hostname: \"a b\"}\n\
         - {name: kinds, protocol: HTTP, port: 93, allowedRoutes: {kinds: [{kind: HTTPRoute}, {kind: TCPRoute}]}}\n\
         - {name: selector, protocol: HTTP, port: 94, allowedRoutes: {namespaces: {from: Selector}}}\n\
         - {name: nocert, protocol: HTTPS, port: 95}\n- {name: pass, protocol: HTTPS, port: 96, tls: {mode: Passthrough}}\n\
         - {name: good, protocol: HTTP, port: 97}",
    ));
    for (name, expected, message) in [
        ("sctp", "Accepted=false UnsupportedProtocol", "spec.listeners[1].protocol: SCTP"),
        ("tls", "ResolvedRefs=false InvalidCertificateRef", "spec.listeners[2].tls.certificateRefs is empty"),
        ("tls", "Programmed=false Invalid", ""),
        ("port", "Accepted=false PortUnavailable", "spec.listeners[3].port"),
        ("host", "Accepted=false UnsupportedValue", "spec.listeners[4].hostname"),
        ("kinds", "ResolvedRefs=false InvalidRouteKinds", "kinds[1]: TCPRoute"),
        ("kinds", "Programmed=true Programmed", ""),
        ("selector", "Accepted=false UnsupportedValue", "selector is missing"),
        ("nocert", "ResolvedRefs=false InvalidCertificateRef", "certificateRefs is empty"),
        ("pass", "Accepted=false UnsupportedValue", "Passthrough"),
        ("good", "Programmed=true Programmed", ""),
    ] {
        world.assert_condition(listener(name), expected, message);
    }
    let listeners = &world.status(Kind::Gateway, "gw-external", "external").listeners;
    assert_eq!(listeners[5].supported_kinds, ["HTTPRoute"]);
    assert!(listeners[1].supported_kinds.is_empty());
    let twin = listeners[9].conditions.iter().find(|condition| condition.type_ == "Accepted").unwrap();
    assert!(twin.message.contains("name of an earlier listener"), "{twin:?}");
    world.put(&external("- {name: sctp, protocol: SCTP, port: 90}"));
    world.assert_condition(EXTERNAL, "Accepted=false ListenersNotValid", "sctp");
    world.assert_condition(EXTERNAL, "Programmed=false Invalid", "no listener is served");
}

#[test]
fn a_certificate_of_another_namespace_needs_a_grant() {
    let mut world = World::example();
    world.put_all([tls_secret("certs", "shared")]);
    world.put(&external(
        "- {name: https, protocol: HTTPS, port: 443, tls: {certificateRefs: [{name: shared, namespace: certs}]}}",
    ));
    world.assert_condition(listener("https"), "ResolvedRefs=false RefNotPermitted", "make a ReferenceGrant in certs");
    world.put(
        "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: g, namespace: certs}\n\
         spec:\n  from: [{group: gateway.networking.k8s.io, kind: Gateway, namespace: gw-external}]\n  to: [{group: \"\", kind: Secret}]",
    );
    world.assert_condition(listener("https"), "Programmed=true Programmed", "");
    world.delete(Kind::ReferenceGrant, "certs", "g");
    world.assert_condition(listener("https"), "Programmed=false Invalid", "ReferenceGrant");
    assert!(!world.model("public").resources().any(|resource| matches!(resource, Resource::Certificate(..))));
}

#[test]
fn one_bad_certificate_of_two_leaves_the_other() {
    let mut world = World::example();
    world.put(&external(
        "- {name: https, protocol: HTTPS, port: 443, tls: {certificateRefs: [{name: nothing}, {name: example-com}]}}",
    ));
    world.assert_condition(listener("https"), "ResolvedRefs=false InvalidCertificateRef", "certificateRefs[0]");
    world.assert_condition(listener("https"), "Programmed=true Programmed", "");
    let tls = world.listener("public", "gw-external", "external", "https").unwrap().tls.unwrap();
    assert_eq!(tls.certificates.len(), 1);
}

#[test]
fn classes_and_parameters_are_judged() {
    let mut world = World::example();
    let class = |parameters: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {{name: public}}\n\
             spec: {{controllerName: tidegate.dev/gateway-controller{parameters}}}"
        )
    };
    let place = (Kind::GatewayClass, "", "public", "");
    world.assert_condition(place, "SupportedVersion=true SupportedVersion", "");
    world.put(&class(""));
    world.assert_condition(place, "Accepted=false InvalidParameters", "spec.parametersRef is missing");
    world.put(&class(", parametersRef: {group: a, kind: B, name: c}"));
    world.assert_condition(place, "Accepted=false InvalidParameters", "B of group a is not read");
    world.assert_condition(EXTERNAL, "Accepted=false Pending", "GatewayClass/public is not accepted");
    world.put(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {name: public}\nspec: {controllerName: example.com/other}",
    );
    assert!(world.translator.find_status(&reference(Kind::GatewayClass, "", "public")).is_none());
    assert!(world.translator.find_status(&reference(Kind::Gateway, "gw-external", "external")).is_none());
    world.put(&class(", parametersRef: {group: tidegate.dev, kind: TrafficDomain, name: public}"));
    world.assert_condition(EXTERNAL, "Accepted=true Accepted", "");
    let gateway = EXAMPLE.split("\n---").find(|document| document.contains("name: external, namespace")).unwrap();
    world.put(&format!("{gateway}\n  infrastructure: {{parametersRef: {{group: \"\", kind: ConfigMap, name: a}}}}"));
    world.assert_condition(EXTERNAL, "Accepted=false InvalidParameters", "spec.infrastructure.parametersRef");
}

#[test]
fn limits_that_cannot_be_meant_are_named_and_the_rest_kept() {
    let mut world = World::example();
    world.put(
        "apiVersion: tidegate.dev/v1alpha1\nkind: TrafficDomain\nmetadata: {name: public, generation: 4}\nspec:\n  \
         interfaces: [wan0]\n  addresses: {pool: [203.0.113.0/28]}\n  admission:\n    newConnections:\n      \
         perSource: {rate: 0}\n      total: {rate: 1000, burst: 0}\n    openConnections: {perSource: 0, total: 20000}\n    sourcePrefixLength: {v4: 33, v6: 56}",
    );
    for said in [
        "spec.admission.newConnections.perSource.rate: 0 is no rate that can be kept, there is no limit",
        "spec.admission.newConnections.total.burst: with 0 nobody could connect, the rate is used",
        "spec.admission.openConnections.perSource: 0 lets nobody connect, there is no limit: write 1 to 4294967295",
        "spec.admission.sourcePrefixLength.v4: 33 is no length of a source's prefix, 32 is used",
    ] {
        world.assert_condition((Kind::TrafficDomain, "", "public", ""), "PartiallyInvalid=true UnsupportedValue", said);
    }
    let admission = &world.model("public").domain.admission;
    assert_eq!(admission.per_source, None);
    assert_eq!(admission.total, Some(RateLimit { rate: 1000, burst: 1000 }));
    assert_eq!((admission.open_per_source, admission.open_total), (None, Some(20_000)));
    assert_eq!(admission.source_bits, SourceBits { v4: 32, v6: 56 });
}

#[test]
fn a_domain_without_nics_or_addresses_is_refused_and_a_faulty_entry_left_out() {
    let mut world = World::example();
    let place = (Kind::TrafficDomain, "", "public", "");
    for (spec, message) in [
        ("{interfaces: [], addresses: {pool: [203.0.113.0/28]}}", "spec.interfaces"),
        ("{interfaces: [wan0], addresses: {}}", "spec.addresses is empty"),
        ("{interfaces: [wan0], addresses: {pool: [nonsense]}}", "spec.addresses.pool holds no prefix"),
        ("{interfaces: [wan0], addresses: {pool: [203.0.113.0/28], node: InternalIP}}", "both pool and node"),
    ] {
        world.put(&format!(
            "apiVersion: tidegate.dev/v1alpha1\nkind: TrafficDomain\nmetadata: {{name: public}}\nspec: {spec}"
        ));
        world.assert_condition(place, "Accepted=false Invalid", message);
        assert!(world.translator.model(&DomainName::new("public")).is_none());
    }
    world.put(
        "apiVersion: tidegate.dev/v1alpha1\nkind: TrafficDomain\nmetadata: {name: public}\n\
         spec: {interfaces: [wan0, a/b], addresses: {pool: [203.0.113.0/28]}, sources: {allow: [nonsense]}, resources: {cpu: much}, egress: {allow: [10.0.0.0/8]}}",
    );
    world.assert_condition(place, "Accepted=true Accepted", "");
    for message in ["spec.interfaces[1]", "spec.sources.allow[0]", "spec.resources.cpu"] {
        world.assert_condition(place, "PartiallyInvalid=true UnsupportedValue", message);
    }
    world.assert_condition(place, "Enforced=false NotEnforced", "spec.egress is not enforced yet");
    assert_eq!(
        world.model("public").domain.admission.allow,
        Some(tidegate_model::SourceList::default()),
        "a faulty list stays closed"
    );
}

#[test]
fn kinds_that_are_not_served_are_refused_by_name() {
    let mut world = World::example();
    world.put(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: f, namespace: shop}\naddressType: FQDN\nendpoints: []",
    );
    world.assert_condition((Kind::EndpointSlice, "shop", "f", ""), "Accepted=false UnsupportedValue", "FQDN");
}

#[test]
fn backends_are_resolved_by_address_and_by_name() {
    let mut world = World::example();
    world.put(
        "apiVersion: gateway.envoyproxy.io/v1alpha1\nkind: Backend\nmetadata: {name: b, namespace: shop}\n\
         spec: {appProtocols: [gateway.envoyproxy.io/h2c], endpoints: [{ip: {address: 10.30.0.9, port: 80}}, {fqdn: {hostname: API.example.net., port: 81}}, {ip: {address: nonsense, port: 1}}]}",
    );
    world.put(&with_rules("- backendRefs: [{name: b, group: gateway.envoyproxy.io, kind: Backend}]"));
    assert_eq!(world.translator.hostnames_wanted(), BTreeSet::from(["api.example.net".to_owned()]));
    world.assert_condition(
        (Kind::Backend, "shop", "b", ""),
        "PartiallyInvalid=true UnsupportedValue",
        "spec.endpoints[2].ip.address",
    );
    let dialled = |world: &World| world.model("public").dialled().iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(dialled(&world), ["10.30.0.9:80"]);
    let changes = world.translator.set_resolved("api.example.net", vec!["10.30.0.8".parse().unwrap()]);
    assert_eq!(changes.translated, 1);
    assert_eq!(dialled(&world), ["10.30.0.8:81", "10.30.0.9:80"]);
    let same = world.translator.set_resolved("api.example.net", vec!["10.30.0.8".parse().unwrap()]);
    assert_eq!(same, Changes::default());
    assert_eq!(world.translator.set_resolved("other.example.net", Vec::new()), Changes::default());
    let key = BackendKey::Backend { name: ObjectName::new("shop", "b") };
    let Some(Resource::Backend(_, backend)) = world.find("public", &Key::Backend(key)) else { panic!() };
    assert_eq!(backend.protocol, BackendProtocol::Http2);
}

#[test]
fn a_grpc_route_speaks_http2_to_a_port_that_others_go_on_speaking_http1_to() {
    let mut world = World::example();
    let name = || ObjectName::new("shop", "products-v1");
    let plain = Key::Backend(BackendKey::Service { name: name(), port: 8080 });
    let grpc = BackendKey::GrpcService { name: name(), port: 8080 };
    let protocol = |world: &World, key: &Key| match world.find("public", key) {
        Some(Resource::Backend(_, backend)) => Some(backend.protocol),
        None => None,
        other => panic!("{other:?}"),
    };
    let grpc_key = Key::Backend(grpc.clone());
    assert_eq!((protocol(&world, &plain), protocol(&world, &grpc_key)), (Some(BackendProtocol::Http1), None));
    world.put(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {name: g, namespace: shop}\n\
         spec: {parentRefs: [{name: external, namespace: gw-external}], rules: [{matches: [{method: {service: a.B, method: C}}], backendRefs: [{name: products-v1, port: 8080}]}]}",
    );
    world.assert_condition((Kind::GRPCRoute, "shop", "g", ""), "Accepted=true Accepted", "");
    let both = (Some(BackendProtocol::Http1), Some(BackendProtocol::Http2));
    assert_eq!((protocol(&world, &plain), protocol(&world, &grpc_key)), both);
    let rule = Key::Rule(RuleKey { kind: RuleKind::GRPCRoute, route: ObjectName::new("shop", "g"), index: 0 });
    let Some(Resource::Rule(_, rule)) = world.find("public", &rule) else { panic!() };
    assert_eq!(rule.matches[0].path, PathMatch::Exact(Arc::from("/a.B/C")));
    assert_eq!(rule.backends[0].target, BackendTarget::Backend(grpc.clone()));
    let endpoints = |world: &World, key: &BackendKey| match world.find("public", &Key::Endpoints(key.clone())) {
        Some(Resource::Endpoints(_, endpoints)) => endpoints.endpoints.len(),
        other => panic!("{other:?}"),
    };
    // Both follow what becomes of the Service and its endpoints.
    let before = endpoints(&world, &grpc);
    world.put(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: products-v1-more, namespace: shop, labels: {kubernetes.io/service-name: products-v1}}\n\
         addressType: IPv4\nports: [{name: \"\", port: 3000}, {name: http, port: 3000}]\nendpoints: [{addresses: [10.30.9.9]}]",
    );
    assert_eq!(endpoints(&world, &grpc), before + 1);
    assert_eq!(endpoints(&world, &BackendKey::Service { name: name(), port: 8080 }), before + 1);
    world.delete(Kind::GRPCRoute, "shop", "g");
    assert_eq!((protocol(&world, &plain), protocol(&world, &grpc_key)), (Some(BackendProtocol::Http1), None));
}

#[test]
fn endpoints_follow_readiness_port_names_and_families() {
    let mut world = World::example();
    world.put(
        "apiVersion: v1\nkind: Service\nmetadata: {name: products-v1, namespace: shop}\nspec: {ports: [{name: admin, port: 9090}, {name: http, port: 8080, targetPort: web}]}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: products-v1-a, namespace: shop, labels: {kubernetes.io/service-name: products-v1}}\n\
         addressType: IPv4\nports: [{name: admin, port: 1}, {name: http, port: 3000}]\nendpoints:\n\
         - {addresses: [10.30.0.1], conditions: {ready: true}}\n- {addresses: [10.30.0.2], conditions: {ready: false, serving: true, terminating: true}}\n\
         - {addresses: [10.30.0.3], conditions: {ready: false}}\n- {addresses: [10.30.0.4]}\n- {addresses: [10.30.0.2], conditions: {}}\n- {addresses: [nonsense]}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: products-v1-b, namespace: shop, labels: {kubernetes.io/service-name: products-v1}}\n\
         addressType: IPv6\nports: [{name: http, port: 3000}]\nendpoints:\n- {addresses: [\"2001:db8::1\"], conditions: {ready: false, serving: true, terminating: true}}\n- {addresses: [\"::ffff:10.30.0.1\"]}",
    );
    let key = Key::Endpoints(BackendKey::Service { name: ObjectName::new("shop", "products-v1"), port: 8080 });
    let Some(Resource::Endpoints(_, endpoints)) = world.find("public", &key) else { panic!() };
    let found: Vec<_> =
        endpoints.endpoints.iter().map(|endpoint| (endpoint.addr.to_string(), endpoint.state)).collect();
    let expected = [
        ("10.30.0.1:3000", EndpointState::Ready),
        ("10.30.0.2:3000", EndpointState::Ready),
        ("10.30.0.4:3000", EndpointState::Ready),
        ("[2001:db8::1]:3000", EndpointState::Terminating),
    ];
    assert_eq!(found, expected.map(|(addr, state)| (addr.to_owned(), state)));
}

#[test]
fn a_gateway_of_nobody_is_not_spoken_about_where_others_may_own_it() {
    let mut world = World::empty();
    world.translator.set_settings(Settings { reports_missing_parents: false, ..settings() });
    world.put_all(read(EXAMPLE));
    world.delete(Kind::Gateway, "gw-external", "external");
    assert!(world.status(Kind::HTTPRoute, "shop", "products").parents.is_empty(), "what was said is taken back");
    world.put(&products("parentRefs: [{name: nobodys}]").replace("name: products", "name: other"));
    assert!(world.translator.find_status(&reference(Kind::HTTPRoute, "shop", "other")).is_none());
}
