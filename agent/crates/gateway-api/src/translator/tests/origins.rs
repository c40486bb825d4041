//! Back from what is in force to the field that asked for it.

use tidegate_model::{FrontendKey, Transport};

use super::*;

fn explain(world: &World, domain: &str, subject: Subject) -> String {
    let origin = world.translator.find_origin(&DomainName::new(domain), &subject);
    origin.map(|origin| origin.to_string()).unwrap_or_default()
}

#[test]
fn every_verdict_leads_to_a_field() {
    let world = World::example();
    let denied = |address: &str| explain(&world, "public", Subject::SourceDenied(address.parse().unwrap()));
    assert_eq!(denied("192.0.2.7"), "TrafficDomain/public spec.sources.deny[0]");
    assert_eq!(denied("::ffff:192.0.2.7"), "TrafficDomain/public spec.sources.deny[0]");
    assert_eq!(denied("2001:db8:bad::1"), "TrafficDomain/public spec.sources.deny[1]");
    assert_eq!(denied("198.51.100.10"), "");
    assert_eq!(explain(&world, "private", Subject::SourceNotAllowed), "TrafficDomain/private spec.sources.allow");
    let allowed = |address: &str| explain(&world, "private", Subject::SourceAllowed(address.parse().unwrap()));
    assert_eq!(allowed("10.20.3.4"), "TrafficDomain/private spec.sources.allow[0]");
    assert_eq!(allowed("192.0.2.7"), "");
    let address = |address: &str| explain(&world, "public", Subject::Address(address.parse().unwrap()));
    assert_eq!(address("203.0.113.1"), "TrafficDomain/public spec.addresses.pool[0]");
    assert_eq!(address("10.20.1.1"), "");
    let interface = |name: &str| explain(&world, "public", Subject::Interface(name.to_owned()));
    assert_eq!(interface("wan0"), "TrafficDomain/public spec.interfaces[0]");
    assert_eq!(interface("lan0"), "");
    assert_eq!(explain(&world, "public", Subject::WrongInterface), "TrafficDomain/public spec.interfaces");
    assert_eq!(
        explain(&world, "public", Subject::RateOfSource),
        "TrafficDomain/public spec.admission.newConnections.perSource"
    );
}

#[test]
fn every_resource_leads_to_a_field() {
    let world = World::example();
    let addr = world.status(Kind::Gateway, "gw-external", "external").addresses[0];
    let frontend = FrontendKey { addr, port: 443, transport: Transport::Tcp };
    assert_eq!(
        explain(&world, "public", Subject::Frontend(frontend)),
        "Gateway/gw-external/external spec.listeners[0] (https)"
    );
    let other = FrontendKey { port: 8443, ..frontend };
    assert_eq!(explain(&world, "public", Subject::Frontend(other)), "");
    let rule = Subject::Resource(rule_key("shop", "products", 0));
    assert_eq!(explain(&world, "public", rule.clone()), "HTTPRoute/shop/products spec.rules[0]");
    assert_eq!(explain(&world, "private", rule), "", "it is no resource of that domain");
    for resource in world.model("public").resources() {
        let origin = explain(&world, "public", Subject::Resource(resource.key()));
        assert!(!origin.is_empty(), "{:?}", resource.key());
    }
}

#[test]
fn a_denied_source_leads_to_the_line_of_a_config_map() {
    let mut world = World::example();
    world.put(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: spam, namespace: lists}\n\
         data:\n  v4: |\n    # known bad\n\n    198.51.100.0/24 # a network\n    198.51.100.64/26\n    nonsense\n\
         ---\napiVersion: tidegate.dev/v1alpha1\nkind: TrafficDomain\nmetadata: {name: public}\n\
         spec: {interfaces: [wan0], addresses: {pool: [203.0.113.0/28]}, sources: {denyFrom: [{namespace: lists, name: spam}]}}",
    );
    let denied = |address: &str| explain(&world, "public", Subject::SourceDenied(address.parse().unwrap()));
    assert_eq!(denied("198.51.100.1"), "ConfigMap/lists/spam data[\"v4\"] line 3");
    assert_eq!(denied("198.51.100.70"), "ConfigMap/lists/spam data[\"v4\"] line 4", "the longest prefix");
    assert_eq!(world.model("public").domain.admission.deny.len(), 2);
    let place = (Kind::TrafficDomain, "", "public", "");
    world.assert_condition(place, "PartiallyInvalid=true UnsupportedValue", "line 5: \"nonsense\"");
    world.delete(Kind::ConfigMap, "lists", "spam");
    assert!(world.model("public").domain.admission.deny.is_empty());
    world.assert_condition(place, "PartiallyInvalid=true UnsupportedValue", "ConfigMap/lists/spam does not exist");
}
