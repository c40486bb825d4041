//! TLS policy: whom backends and clients must be vouched for by, and what is said when that cannot be had.

use tidegate_model::{
    Backend, BackendIdentity, BackendKey, BackendTarget, BackendTls, CaBundleKey, ClientValidationMode, Listener,
    SubjectAltName, Trust,
};

use super::*;

const PRODUCTS: Place<'static> = (Kind::HTTPRoute, "shop", "products", "");
const POLICY: Place<'static> = (Kind::BackendTLSPolicy, "shop", "p", "");
const EXTERNAL: Place<'static> = (Kind::Gateway, "gw-external", "external", "");
const HTTPS: Place<'static> = (Kind::Gateway, "gw-external", "external", "https");
const HTTP: Place<'static> = (Kind::Gateway, "gw-external", "external", "http");

/// A policy for the Service `products-v1`, which has one port, `http`.
fn policy(name: &str, rest: &str, validation: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\n\
         metadata: {{name: {name}, namespace: shop, generation: 4{rest}}}\nspec:\n  \
         targetRefs: [{{group: \"\", kind: Service, name: products-v1}}]\n  validation: {validation}"
    )
}

fn validation(refs: &str) -> String {
    format!("{{hostname: v1.example.com, caCertificateRefs: [{refs}]}}")
}

const CA: &str = "{group: \"\", kind: ConfigMap, name: ca}";

fn with_ca(name: &str) -> String {
    policy(name, "", &validation(CA))
}

fn authorities(kind: &str, namespace: &str, name: &str, pem: &str) -> Object {
    let mut value = serde_json::json!({
        "apiVersion": "v1", "kind": kind, "metadata": {"namespace": namespace, "name": name},
    });
    let field = if kind == "Secret" { "stringData" } else { "data" };
    value[field] = serde_json::json!({"ca.crt": pem});
    parse(value).unwrap().object
}

fn ca(namespace: &str) -> Object {
    authorities("ConfigMap", namespace, "ca", &certificate().0)
}

fn trust_bundle(name: &str, version: &str) -> Object {
    let value = serde_json::json!({
        "apiVersion": format!("certificates.k8s.io/{version}"), "kind": "ClusterTrustBundle",
        "metadata": {"name": name},
        "spec": {"signerName": "example.com/signer", "trustBundle": certificate().0},
    });
    let parsed = parse(value).unwrap();
    assert!(parsed.unknown_fields.is_empty(), "{:?}", parsed.unknown_fields);
    parsed.object
}

fn config_map(namespace: &str) -> CaBundleKey {
    CaBundleKey::ConfigMap(ObjectName::new(namespace, "ca"))
}

fn backend(world: &World, name: &str) -> Option<Backend> {
    let key = BackendKey::Service { name: ObjectName::new("shop", name), port: 8080 };
    match world.find("public", &Key::Backend(key))? {
        Resource::Backend(_, backend) => Some((*backend).clone()),
        other => panic!("{other:?}"),
    }
}

fn tls(world: &World, name: &str) -> Option<BackendTls> {
    backend(world, name).expect("the backend is in the model").tls
}

fn bundles(world: &World) -> Vec<String> {
    let of = |resource: &Resource| match resource {
        Resource::CaBundle(key, bundle) => Some(format!("{key} {}", bundle.authorities.len())),
        _ => None,
    };
    world.model("public").resources().filter_map(of).collect()
}

/// The example's Gateway with a field `spec.tls`.
fn gateway(tls: &str) -> String {
    let gateway = EXAMPLE.split("\n---").find(|document| document.contains("name: external, namespace")).unwrap();
    format!("{}\n  tls: {tls}", gateway.trim_end())
}

fn frontend(validation: &str) -> String {
    gateway(&format!("{{frontend: {{default: {{validation: {validation}}}}}}}"))
}

fn https(world: &World) -> Option<Listener> {
    world.listener("public", "gw-external", "external", "https")
}

#[test]
fn a_policy_makes_its_service_tls_and_no_other() {
    let mut world = World::example();
    world.put_all([ca("shop")]);
    world.put(&with_ca("p"));
    let expected = BackendTls {
        server_name: "v1.example.com".to_owned(),
        subject_alt_names: vec![],
        trust: Trust::Bundles(vec![config_map("shop")]),
    };
    assert_eq!(tls(&world, "products-v1"), Some(expected));
    assert_eq!(tls(&world, "products-v2"), None);
    assert_eq!(bundles(&world), ["ConfigMap/shop/ca 1"]);
    world.assert_condition(POLICY, "Accepted=true Accepted", "");
    world.assert_condition(POLICY, "ResolvedRefs=true ResolvedRefs", "");
    world.assert_condition(PRODUCTS, "ResolvedRefs=true ResolvedRefs", "");
    let status = world.status(Kind::BackendTLSPolicy, "shop", "p");
    let [ancestor] = status.parents.as_slice() else { panic!("{status:?}") };
    assert_eq!(
        (ancestor.parent.namespace.as_deref(), ancestor.parent.name.as_str()),
        (Some("gw-external"), "external")
    );
    assert_eq!(&*ancestor.controller, "tidegate.dev/gateway-controller");
    assert!(ancestor.conditions.iter().all(|condition| condition.observed_generation == Some(4)));
    // The rule is not touched, the bundle goes with its last user.
    let rule = world.rule("public", "shop", "products", 0);
    world.delete(Kind::BackendTLSPolicy, "shop", "p");
    assert_eq!(world.rule("public", "shop", "products", 0), rule);
    assert_eq!(tls(&world, "products-v1"), None);
    assert!(bundles(&world).is_empty());
}

#[test]
fn authorities_that_cannot_be_had_close_the_backend_and_open_it_when_they_come() {
    let mut world = World::example();
    let closed = |world: &World| matches!(tls(world, "products-v1"), Some(BackendTls { trust: Trust::Nobody, .. }));
    for (refs, reason, message) in [
        (CA, "InvalidCACertificateRef", "caCertificateRefs[0]: ConfigMap/shop/ca does not exist"),
        ("{group: \"\", kind: Secret, name: ca}", "InvalidCACertificateRef", "Secret/shop/ca does not exist"),
        ("{group: x.io, kind: Vault, name: ca}", "InvalidKind", "Vault of x.io holds no certificate authorities"),
        ("{group: \"\", kind: Service, name: ca}", "InvalidKind", "Service of the core group"),
        ("{group: \"\", kind: ClusterTrustBundle, name: ca}", "InvalidKind", "ClusterTrustBundle of the core group"),
        (
            "{group: certificates.k8s.io, kind: ClusterTrustBundle, name: ca}",
            "InvalidCACertificateRef",
            "ClusterTrustBundle/ca does not exist",
        ),
    ] {
        world.put(&policy("p", "", &validation(refs)));
        world.assert_condition(POLICY, &format!("ResolvedRefs=false {reason}"), message);
        world.assert_condition(POLICY, "Accepted=false NoValidCACertificate", message);
        assert!(closed(&world), "{refs}");
        world.assert_condition(PRODUCTS, "ResolvedRefs=true ResolvedRefs", "");
        assert!(bundles(&world).is_empty());
    }
    world.put(&with_ca("p"));
    for (object, message) in [
        (authorities("ConfigMap", "shop", "ca", ""), "ca.crt holds no certificate"),
        (authorities("ConfigMap", "shop", "ca", &certificate().1), "ca.crt holds no certificate"),
        (read("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: ca, namespace: shop}").remove(0), "has no key ca.crt"),
    ] {
        world.put_all([object]);
        world.assert_condition(POLICY, "ResolvedRefs=false InvalidCACertificateRef", message);
        world.assert_condition(POLICY, "Accepted=false NoValidCACertificate", message);
        assert!(closed(&world));
        world.put_all([ca("shop")]);
        world.assert_condition(POLICY, "Accepted=true Accepted", "");
        world.assert_condition(POLICY, "ResolvedRefs=true ResolvedRefs", "");
        assert!(!closed(&world));
    }
    world.delete(Kind::ConfigMap, "shop", "ca");
    assert!(closed(&world) && bundles(&world).is_empty());
}

#[test]
fn one_good_authority_of_several_is_enough_and_the_bad_one_is_named() {
    let mut world = World::example();
    world.put_all([
        ca("shop"),
        trust_bundle("example.com", "v1beta1"),
        authorities("Secret", "shop", "s", &certificate().0),
    ]);
    let cluster = "{group: certificates.k8s.io, kind: ClusterTrustBundle, name: example.com}";
    world.put(&policy(
        "p",
        "",
        &validation(&format!(
            "{{group: a, kind: B, name: c}}, {CA}, {cluster}, {{group: \"\", kind: Secret, name: s}}"
        )),
    ));
    world.assert_condition(POLICY, "ResolvedRefs=false InvalidKind", "caCertificateRefs[0]: B of a");
    world.assert_condition(POLICY, "Accepted=true Accepted", "");
    let trust = Trust::Bundles(vec![
        config_map("shop"),
        CaBundleKey::ClusterTrustBundle("example.com".into()),
        CaBundleKey::Secret(ObjectName::new("shop", "s")),
    ]);
    assert_eq!(tls(&world, "products-v1").unwrap().trust, trust);
    assert_eq!(bundles(&world).len(), 3);
}

#[test]
fn a_rotated_authority_is_one_resource() {
    let mut world = World::example();
    world.put_all([ca("shop")]);
    world.put(&with_ca("p"));
    let next = rcgen::generate_simple_self_signed(vec!["next".to_owned()]).unwrap().cert.pem();
    let both = format!("{}{next}", certificate().0);
    let changes = world.put_all([authorities("ConfigMap", "shop", "ca", &both)]);
    let delta = changes.domains[&DomainName::new("public")].delta.as_ref().unwrap();
    let [tidegate_model::Change::Put(Resource::CaBundle(_, bundle))] = delta.changes.as_slice() else {
        panic!("{delta:?}");
    };
    assert_eq!(bundle.authorities.len(), 2);
    assert!(changes.statuses.is_empty(), "{:?}", changes.statuses);
    assert_eq!(changes.translated, 1);
}

#[test]
fn what_a_policy_says_of_names_and_well_known_authorities_is_taken_or_named() {
    let mut world = World::example();
    world.put(&policy("p", "", "{hostname: v1.example.com, wellKnownCACertificates: System}"));
    assert_eq!(tls(&world, "products-v1").unwrap().trust, Trust::System);
    world.assert_condition(POLICY, "Accepted=true Accepted", "");
    world.put_all([ca("shop")]);
    let with = |rest: &str| format!("{{hostname: v1.example.com, caCertificateRefs: [{CA}]{rest}}}");
    world.put(&policy(
        "p",
        "",
        &with(", subjectAltNames: [{type: Hostname, hostname: A.example.com}, {type: URI, uri: \"spiffe://a/b\"}]"),
    ));
    let names = [SubjectAltName::Hostname("a.example.com".into()), SubjectAltName::Uri("spiffe://a/b".into())];
    assert_eq!(tls(&world, "products-v1").unwrap().subject_alt_names, names);
    for (validation, message) in [
        ("{hostname: v1.example.com}".to_owned(), "names no authorities"),
        ("{hostname: v1.example.com, wellKnownCACertificates: Mine}".to_owned(), "\"Mine\" is not known"),
        (with(", wellKnownCACertificates: System"), "has both"),
        (validation(CA).replace("v1.example.com", "\"*.example.com\""), "is no host name"),
        (validation(CA).replace("v1.example.com", "10.0.0.1"), "is no host name"),
        (with(", subjectAltNames: [{type: Hostname}]"), "subjectAltNames[0].hostname is missing"),
        (with(", subjectAltNames: [{type: Hostname, hostname: a..b}]"), "subjectAltNames[0].hostname"),
        (with(", subjectAltNames: [{type: URI}]"), "subjectAltNames[0].uri is missing"),
    ] {
        world.put(&policy("p", "", &validation));
        world.assert_condition(POLICY, "Accepted=false Invalid", message);
        assert_eq!(tls(&world, "products-v1").unwrap().trust, Trust::Nobody, "{validation}");
        assert!(bundles(&world).is_empty(), "{validation}");
    }
    let options = policy("p", "", &with("")).replace("spec:\n", "spec:\n  options: {example.com/a: b}\n");
    world.put(&options);
    world.assert_condition(POLICY, "Enforced=false NotEnforced", "spec.options[example.com/a] is not known");
    assert_ne!(tls(&world, "products-v1").unwrap().trust, Trust::Nobody);
}

#[test]
fn of_two_policies_the_older_decides_then_the_name() {
    let mut world = World::example();
    world.put_all([ca("shop")]);
    let named = |name: &str, rest: &str| policy(name, rest, &validation(CA).replace("v1.", &format!("{name}.")));
    let decides = |world: &World| tls(world, "products-v1").unwrap().server_name;
    let place = |name: &'static str| (Kind::BackendTLSPolicy, "shop", name, "");
    world.put(&named("b", ""));
    world.put(&named("a", ", creationTimestamp: \"2026-01-01T00:00:00Z\""));
    assert_eq!(decides(&world), "b.example.com");
    world.assert_condition(place("a"), "Accepted=false Conflicted", "BackendTLSPolicy/shop/b");
    world.assert_condition(place("b"), "Accepted=true Accepted", "");
    world.put(&named("b", ", creationTimestamp: \"2026-01-01T00:00:00Z\""));
    assert_eq!(decides(&world), "a.example.com");
    world.assert_condition(place("b"), "Accepted=false Conflicted", "BackendTLSPolicy/shop/a");
    world.assert_condition(place("a"), "Accepted=true Accepted", "");
    // A policy that decides and cannot be honoured does not make way for the next.
    world.put(&named("a", ", creationTimestamp: \"2026-01-01T00:00:00Z\"").replace("name: ca}", "name: gone}"));
    assert_eq!(tls(&world, "products-v1").unwrap().trust, Trust::Nobody);
    world.delete(Kind::BackendTLSPolicy, "shop", "a");
    assert_eq!(decides(&world), "b.example.com");
    world.assert_condition(place("b"), "Accepted=true Accepted", "");
}

#[test]
fn a_policy_for_a_port_comes_before_one_for_the_service() {
    let mut world = World::example();
    world.put_all([ca("shop")]);
    world.put(
        "apiVersion: v1\nkind: Service\nmetadata: {name: two, namespace: shop}\nspec: {ports: [{name: one, port: 8080}, {name: two, port: 8081}]}",
    );
    world.put(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: two, namespace: shop}\nspec: {parentRefs: [{name: external, namespace: gw-external}], rules: [{backendRefs: [{name: two, port: 8080}, {name: two, port: 8081}]}]}",
    );
    let of = |name: &str, section: &str| {
        policy(name, "", &validation(CA).replace("v1.", &format!("{name}.")))
            .replace("name: products-v1}", &format!("name: two{section}}}"))
    };
    let server = |world: &World, port| {
        let key = BackendKey::Service { name: ObjectName::new("shop", "two"), port };
        match world.find("public", &Key::Backend(key)) {
            Some(Resource::Backend(_, backend)) => backend.tls.as_ref().map(|tls| tls.server_name.clone()),
            other => panic!("{other:?}"),
        }
    };
    let place = |name: &'static str| (Kind::BackendTLSPolicy, "shop", name, "");
    world.put(&of("a", ""));
    world.put(&of("z", ", sectionName: one"));
    assert_eq!(server(&world, 8080).as_deref(), Some("z.example.com"));
    assert_eq!(server(&world, 8081).as_deref(), Some("a.example.com"));
    world.assert_condition(place("a"), "Accepted=true Accepted", "");
    world.assert_condition(place("z"), "Accepted=true Accepted", "");
    world.put(&of("zz", ", sectionName: one"));
    world.assert_condition(place("zz"), "Accepted=false Conflicted", "Service/shop/two port one");
    // A section that is no port is for nothing.
    world.put(&of("z", ", sectionName: three"));
    world.assert_condition(place("z"), "Accepted=false TargetNotFound", "no port of name \"three\"");
    assert_eq!(server(&world, 8080).as_deref(), Some("zz.example.com"));
    world.assert_condition(place("zz"), "Accepted=true Accepted", "");
    world.put("apiVersion: v1\nkind: Service\nmetadata: {name: two, namespace: shop}\nspec: {ports: [{name: three, port: 8080}, {name: two, port: 8081}]}");
    assert_eq!(server(&world, 8080).as_deref(), Some("z.example.com"));
    world.assert_condition(place("z"), "Accepted=true Accepted", "");
    world.assert_condition(place("zz"), "Accepted=false TargetNotFound", "no port of name \"one\"");
}

#[test]
fn ancestors_are_the_gateways_whose_routes_use_the_backend() {
    let mut world = World::example();
    world.translator.set_settings(Settings { reports_missing_parents: false, ..settings() });
    world.put_all([ca("shop")]);
    world.put(&with_ca("p"));
    let ancestors = |world: &World| -> Vec<String> {
        let status = world.translator.find_status(&reference(Kind::BackendTLSPolicy, "shop", "p"));
        status.iter().flat_map(|status| &status.parents).map(|parent| parent.parent.name.clone()).collect()
    };
    assert_eq!(ancestors(&world), ["external"]);
    let beside = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: beside, namespace: gw-external}\nspec:\n  gatewayClassName: public\n  listeners: [{name: http, protocol: HTTP, port: 80, allowedRoutes: {namespaces: {from: All}}}]";
    world.put(beside);
    let route = "apiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {name: beside, namespace: shop}\nspec: {parentRefs: [{name: beside, namespace: gw-external}], rules: [{backendRefs: [{name: products-v1, port: 8080}]}]}";
    world.put(route);
    assert_eq!(ancestors(&world), ["beside", "external"]);
    world.put(&route.replace("products-v1", "products-v2"));
    assert_eq!(ancestors(&world), ["external"]);
    world.put(route);
    world.put(&beside.replace("from: All", "from: Same"));
    assert_eq!(ancestors(&world), ["external"], "a route that is not attached uses nothing");
    world.delete(Kind::HTTPRoute, "shop", "products");
    assert!(ancestors(&world).is_empty());
    let status = world.translator.find_status(&reference(Kind::BackendTLSPolicy, "shop", "p"));
    assert_eq!(status, Some(&ObjectStatus::default()), "what was written is taken back");
    // Nobody uses the backend of another policy, of which nothing is said.
    world.put(&with_ca("unused").replace("products-v1", "unused"));
    assert!(world.translator.find_status(&reference(Kind::BackendTLSPolicy, "shop", "unused")).is_none());
}

#[test]
fn a_backend_object_can_have_a_policy() {
    let mut world = World::example();
    world.put_all([ca("shop")]);
    world.put("apiVersion: tidegate.dev/v1alpha1\nkind: Backend\nmetadata: {name: far, namespace: shop}\nspec: {endpoints: [{ip: {address: 10.9.1.1, port: 443}}]}");
    world.put("apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: far, namespace: shop}\nspec: {parentRefs: [{name: external, namespace: gw-external}], rules: [{backendRefs: [{group: tidegate.dev, kind: Backend, name: far}]}]}");
    let far = with_ca("p")
        .replace("group: \"\", kind: Service, name: products-v1", "group: tidegate.dev, kind: Backend, name: far");
    world.put(&far);
    world.assert_condition(POLICY, "Accepted=true Accepted", "");
    let key = Key::Backend(BackendKey::Backend { name: ObjectName::new("shop", "far") });
    let Some(Resource::Backend(_, backend)) = world.find("public", &key) else { panic!("no backend") };
    assert_eq!(backend.tls.as_ref().unwrap().trust, Trust::Bundles(vec![config_map("shop")]));
    world.put(&far.replace("name: far}", "name: far, sectionName: a}"));
    world.assert_condition(POLICY, "Accepted=false TargetNotFound", "has no sections");
    world.put(&far.replace("kind: Backend, name: far}", "kind: Pod, name: far}"));
    world.assert_condition(POLICY, "Accepted=false Invalid", "spec.targetRefs[0]: Pod");
}

#[test]
fn an_https_port_needs_a_policy_and_is_never_clear_text() {
    let mut world = World::example();
    world.put_all([ca("shop")]);
    for (protocol, is_http1) in [("https", false), ("HTTPS", false), ("kubernetes.io/wss", true)] {
        world.put(&format!("apiVersion: v1\nkind: Service\nmetadata: {{name: products-v1, namespace: shop}}\nspec: {{ports: [{{name: http, port: 8080, appProtocol: {protocol}}}]}}"));
        world.assert_condition(
            PRODUCTS,
            "ResolvedRefs=false UnsupportedProtocol",
            "no BackendTLSPolicy says whom to trust",
        );
        let target = world.rule("public", "shop", "products", 0).unwrap().backends[0].target.clone();
        assert!(matches!(target, BackendTarget::Invalid(_)));
        world.put(&with_ca("p"));
        world.assert_condition(PRODUCTS, "ResolvedRefs=true ResolvedRefs", "");
        let backend = backend(&world, "products-v1").unwrap();
        assert!(backend.tls.is_some());
        assert_eq!(backend.protocol, tidegate_model::BackendProtocol::Http1, "{is_http1}");
        world.delete(Kind::BackendTLSPolicy, "shop", "p");
    }
}

#[test]
fn client_certificates_are_demanded_of_https_listeners_only() {
    let mut world = World::example();
    world.put_all([ca("gw-external")]);
    world.put(&frontend(&format!("{{caCertificateRefs: [{CA}]}}")));
    let clients = https(&world).unwrap().tls.unwrap().clients.unwrap();
    assert_eq!((clients.mode, clients.bundles), (ClientValidationMode::ValidOnly, vec![config_map("gw-external")]));
    world.assert_condition(HTTPS, "ResolvedRefs=true ResolvedRefs", "");
    world.assert_condition(EXTERNAL, "ResolvedRefs=true ResolvedRefs", "");
    assert_eq!(bundles(&world), ["ConfigMap/gw-external/ca 1"]);
    let insecure = |world: &World| {
        let status = world.status(Kind::Gateway, "gw-external", "external");
        status.find("InsecureFrontendValidationMode").map(|condition| (condition.status, condition.reason.to_string()))
    };
    assert_eq!(insecure(&world), None);
    world.put(&frontend(&format!("{{mode: AllowInsecureFallback, caCertificateRefs: [{CA}]}}")));
    assert_eq!(https(&world).unwrap().tls.unwrap().clients.unwrap().mode, ClientValidationMode::InsecureFallback);
    assert_eq!(insecure(&world), Some((true, "ConfigurationChanged".to_owned())));
    world.put(&frontend("null"));
    assert_eq!(https(&world).unwrap().tls.unwrap().clients, None);
    assert_eq!(insecure(&world), None);
    assert!(bundles(&world).is_empty());
}

#[test]
fn a_port_of_its_own_validation_is_not_under_the_default() {
    let mut world = World::example();
    world.put_all([ca("gw-external")]);
    let with = |port: u16, own: &str| {
        gateway(&format!(
            "{{frontend: {{default: {{validation: {{caCertificateRefs: [{{group: \"\", kind: ConfigMap, name: gone}}]}}}}, perPort: [{{port: {port}, tls: {own}}}]}}}}"
        ))
    };
    let own = format!("{{validation: {{caCertificateRefs: [{CA}]}}}}");
    world.put(&with(443, &own));
    world.assert_condition(HTTPS, "Accepted=true Accepted", "");
    assert!(https(&world).unwrap().tls.unwrap().clients.is_some());
    world.put(&with(443, "{}"));
    assert!(https(&world).unwrap().tls.unwrap().clients.is_none(), "the port asks for nothing");
    world.put(&with(80, &own));
    world.assert_condition(HTTPS, "Accepted=false NoValidCACertificate", "ConfigMap/gw-external/gone does not exist");
    world.assert_condition(
        HTTPS,
        "ResolvedRefs=false InvalidCACertificateRef",
        "default.validation.caCertificateRefs[0]",
    );
    world.assert_condition(HTTPS, "Programmed=false Invalid", "");
    for expected in ["Accepted=true Accepted", "ResolvedRefs=true ResolvedRefs", "Programmed=true Programmed"] {
        world.assert_condition(HTTP, expected, "");
    }
    assert!(https(&world).is_none());
    assert!(world.listener("public", "gw-external", "external", "http").is_some());
    world.assert_condition(EXTERNAL, "Accepted=true ListenersNotValid", "https");
    world.assert_condition(EXTERNAL, "ResolvedRefs=false ListenersNotResolved", "https");
}

#[test]
fn authorities_of_clients_that_cannot_be_had_close_the_listener() {
    let mut world = World::example();
    world.put_all([ca("certs"), trust_bundle("example.com", "v1")]);
    let far = "{group: \"\", kind: ConfigMap, name: ca, namespace: certs}";
    for (reference, reason, message) in [
        (CA, "InvalidCACertificateRef", "ConfigMap/gw-external/ca does not exist"),
        ("{group: \"\", kind: Service, name: ca}", "InvalidCACertificateKind", "Service of the core group"),
        (far, "RefNotPermitted", "make a ReferenceGrant in certs from Gateway of gw-external"),
        (
            "{group: certificates.k8s.io, kind: ClusterTrustBundle, name: example.com, namespace: certs}",
            "InvalidCACertificateRef",
            "is in no namespace",
        ),
    ] {
        world.put(&frontend(&format!("{{caCertificateRefs: [{reference}]}}")));
        world.assert_condition(HTTPS, &format!("ResolvedRefs=false {reason}"), message);
        world.assert_condition(HTTPS, "Accepted=false NoValidCACertificate", message);
        assert!(https(&world).is_none(), "{reference}");
        assert!(bundles(&world).is_empty());
    }
    world.put(&frontend(
        "{caCertificateRefs: [{group: certificates.k8s.io, kind: ClusterTrustBundle, name: example.com}]}",
    ));
    world.assert_condition(HTTPS, "Accepted=true Accepted", "");
    assert_eq!(bundles(&world), ["ClusterTrustBundle/example.com 1"]);
    world.delete(Kind::ClusterTrustBundle, "", "example.com");
    world.assert_condition(
        HTTPS,
        "Accepted=false NoValidCACertificate",
        "ClusterTrustBundle/example.com does not exist",
    );
    // A grant opens the listener, its end closes it.
    world.put(&frontend(&format!("{{caCertificateRefs: [{far}]}}")));
    world.put("apiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\nmetadata: {name: g, namespace: certs}\nspec: {from: [{group: gateway.networking.k8s.io, kind: Gateway, namespace: gw-external}], to: [{group: \"\", kind: ConfigMap}]}");
    world.assert_condition(HTTPS, "Accepted=true Accepted", "");
    assert!(https(&world).is_some());
    world.delete(Kind::ReferenceGrant, "certs", "g");
    world.assert_condition(HTTPS, "ResolvedRefs=false RefNotPermitted", "");
    assert!(https(&world).is_none());
    // One that is good is enough.
    world.put_all([ca("gw-external")]);
    world.put(&frontend(&format!("{{caCertificateRefs: [{far}, {CA}]}}")));
    world.assert_condition(HTTPS, "ResolvedRefs=false RefNotPermitted", "");
    world.assert_condition(HTTPS, "Accepted=true Accepted", "");
    assert_eq!(https(&world).unwrap().tls.unwrap().clients.unwrap().bundles, [config_map("gw-external")]);
}

#[test]
fn listeners_of_a_set_obey_what_their_gateway_asks_of_clients() {
    let mut world = World::example();
    let with =
        |tls: &str| gateway(tls).replace("  listeners:", "  allowedListeners: {namespaces: {from: All}}\n  listeners:");
    let validation = format!("{{frontend: {{default: {{validation: {{caCertificateRefs: [{CA}]}}}}}}}}");
    world.put_all([tls_secret("shop", "own")]);
    world.put(&with(&validation));
    world.put("apiVersion: gateway.networking.k8s.io/v1\nkind: ListenerSet\nmetadata: {name: more, namespace: shop}\nspec: {parentRef: {name: external, namespace: gw-external}, listeners: [{name: https, protocol: HTTPS, port: 8443, hostname: set.example.com, tls: {certificateRefs: [{name: own}]}}]}");
    let set = (Kind::ListenerSet, "shop", "more", "https");
    let key = Key::Listener(ListenerKey::of_set(
        ObjectName::new("gw-external", "external"),
        ObjectName::new("shop", "more"),
        "https",
    ));
    world.assert_condition(set, "Accepted=false NoValidCACertificate", "ConfigMap/gw-external/ca does not exist");
    world.assert_condition(set, "ResolvedRefs=false InvalidCACertificateRef", "");
    assert!(world.find("public", &key).is_none());
    // Of the Gateway's namespace, not of the set's.
    world.put_all([ca("shop")]);
    assert!(world.find("public", &key).is_none());
    world.put_all([ca("gw-external")]);
    world.assert_condition(set, "Accepted=true Accepted", "");
    let Some(Resource::Listener(_, listener)) = world.find("public", &key) else { panic!("not served") };
    assert_eq!(listener.tls.as_ref().unwrap().clients.as_ref().unwrap().bundles, [config_map("gw-external")]);
    world.put(&with("{backend: {clientCertificateRef: {name: example-com}}}"));
    let Some(Resource::Listener(_, listener)) = world.find("public", &key) else { panic!("not served") };
    assert!(matches!(listener.backend_identity, BackendIdentity::Certificate(_)));
    assert_eq!(listener.tls.as_ref().unwrap().clients, None);
}

#[test]
fn a_gateway_shows_its_certificate_or_speaks_to_no_backend_with_tls() {
    let mut world = World::example();
    let with = |reference: &str| gateway(&format!("{{backend: {{clientCertificateRef: {reference}}}}}"));
    let identity = |world: &World| {
        let listener = |name: &str| world.listener("public", "gw-external", "external", name).unwrap().backend_identity;
        assert_eq!(listener("http"), listener("https"));
        listener("http")
    };
    assert_eq!(identity(&world), BackendIdentity::Anonymous);
    world.put_all([tls_secret("certs", "client")]);
    world.put("apiVersion: v1\nkind: Secret\nmetadata: {name: malformed, namespace: gw-external}\ntype: Opaque");
    for (reference, reason, message) in [
        ("{name: gone}", "InvalidClientCertificateRef", "Secret/gw-external/gone does not exist"),
        ("{name: a, group: wrong.io, kind: Secret}", "InvalidClientCertificateRef", "Secret of group \"wrong.io\""),
        ("{name: a, group: \"\", kind: Wrong}", "InvalidClientCertificateRef", "Wrong of group"),
        ("{name: malformed}", "InvalidClientCertificateRef", "data.tls.crt is missing"),
        ("{name: client, namespace: certs}", "RefNotPermitted", "make a ReferenceGrant in certs"),
    ] {
        world.put(&with(reference));
        world.assert_condition(EXTERNAL, &format!("ResolvedRefs=false {reason}"), message);
        world.assert_condition(EXTERNAL, "Accepted=true Accepted", "");
        world.assert_condition(HTTPS, "ResolvedRefs=true ResolvedRefs", "");
        assert_eq!(identity(&world), BackendIdentity::Missing, "{reference}");
    }
    world.put_all([tls_secret("gw-external", "client")]);
    let changes = world.put(&with("{name: client}"));
    world.assert_condition(EXTERNAL, "ResolvedRefs=true ResolvedRefs", "");
    let key = tidegate_model::CertificateKey(ObjectName::new("gw-external", "client"));
    assert_eq!(identity(&world), BackendIdentity::Certificate(key.clone()));
    let delta = changes.domains[&DomainName::new("public")].delta.as_ref().unwrap();
    let first = delta.changes.first();
    assert!(
        matches!(first, Some(tidegate_model::Change::Put(Resource::Certificate(found, _))) if *found == key),
        "a certificate comes before what shows it: {delta:?}"
    );
    world.delete(Kind::Secret, "gw-external", "client");
    assert_eq!(identity(&world), BackendIdentity::Missing);
    assert!(world.find("public", &Key::Certificate(key)).is_none());
}
