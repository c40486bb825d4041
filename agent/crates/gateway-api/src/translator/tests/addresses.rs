//! Addresses of Gateways, and Gateways that share them.

use std::net::IpAddr;

use super::*;

/// A Gateway of the private domain with one HTTP listener on port 80.
fn gateway(name: &str, created: u32, extra: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\n\
         metadata: {{name: {name}, namespace: gws, creationTimestamp: \"2026-01-01T00:00:{created:02}Z\"}}\n\
         spec:\n  gatewayClassName: private\n{extra}"
    )
}

fn http(hostname: &str) -> String {
    let hostname = if hostname.is_empty() { String::new() } else { format!(", hostname: {hostname}") };
    format!("  listeners: [{{name: http, protocol: HTTP, port: 80{hostname}}}]\n")
}

fn at(address: &str) -> String {
    format!("  addresses: [{{type: IPAddress, value: {address}}}]\n")
}

fn addresses(world: &World, name: &str) -> Vec<IpAddr> {
    world.status(Kind::Gateway, "gws", name).addresses.clone()
}

fn is_served(world: &World, name: &str) -> bool {
    world.listener("private", "gws", name, "http").is_some()
}

#[test]
fn a_static_address_of_the_pool_is_given() {
    let mut world = World::example();
    world.put(&gateway("a", 1, &(at("10.20.1.5") + &http(""))));
    assert_eq!(addresses(&world, "a"), ["10.20.1.5".parse::<IpAddr>().unwrap()]);
    assert!(is_served(&world, "a"));
}

#[test]
fn a_static_address_elsewhere_is_not_usable_and_one_of_another_type_not_supported() {
    let mut world = World::example();
    world.put(&gateway("a", 1, &(at("10.99.0.1") + &http(""))));
    let place = (Kind::Gateway, "gws", "a", "");
    world.assert_condition(place, "Accepted=true Accepted", "");
    world.assert_condition(place, "Programmed=false AddressNotUsable", "10.99.0.1");
    assert!(!is_served(&world, "a"));
    world.put(&gateway("a", 1, &("  addresses: [{type: Hostname, value: a.example.com}]\n".to_owned() + &http(""))));
    world.assert_condition(place, "Accepted=false UnsupportedAddress", "spec.addresses[0].type");
    world.put(&gateway("a", 1, &("  addresses: [{type: IPAddress}]\n".to_owned() + &http(""))));
    world.assert_condition(place, "Programmed=true Programmed", "");
}

#[test]
fn an_exhausted_pool_is_said_and_an_address_given_back_is_used() {
    let mut world = World::example();
    let more: Vec<_> = (0..14).map(|index| gateway(&format!("g{index:02}"), index, &http(""))).collect();
    world.put(&more.join("---\n"));
    // 14 usable addresses, one of which the example's Gateway has.
    let without: Vec<_> = (0..14).filter(|index| addresses(&world, &format!("g{index:02}")).is_empty()).collect();
    assert_eq!(without, [13], "the youngest goes without");
    let place = (Kind::Gateway, "gws", "g13", "");
    world.assert_condition(place, "Programmed=false AddressNotAssigned", "TrafficDomain/private (10.20.1.0/28)");
    let kept = addresses(&world, "g05");
    world.delete(Kind::Gateway, "gws", "g04");
    world.assert_condition(place, "Programmed=true Programmed", "");
    assert_eq!(addresses(&world, "g05"), kept);
}

#[test]
fn gateways_of_one_address_share_a_port_by_host_name() {
    let mut world = World::example();
    world.put(&gateway("a", 1, &(at("10.20.1.5") + &http("a.example.com"))));
    world.put(&gateway("b", 2, &(at("10.20.1.5") + &http("b.example.com"))));
    assert!(is_served(&world, "a") && is_served(&world, "b"));
}

#[test]
fn of_gateways_with_one_address_port_and_name_the_older_serves() {
    let mut world = World::example();
    world.put(&gateway("young", 2, &(at("10.20.1.5") + &http(""))));
    assert!(is_served(&world, "young"));
    world.put(&gateway("old", 1, &(at("10.20.1.5") + &http(""))));
    assert!(is_served(&world, "old") && !is_served(&world, "young"));
    let place = (Kind::Gateway, "gws", "young", "http");
    world.assert_condition(place, "Conflicted=true HostnameConflict", "Gateway/gws/old");
    world.assert_condition(place, "Programmed=false HostnameConflict", "10.20.1.5:80");
    world.assert_condition(place, "Accepted=false HostnameConflict", "change the port");
    world.delete(Kind::Gateway, "gws", "old");
    assert!(is_served(&world, "young"));
    world.assert_condition(place, "Conflicted=false NoConflicts", "");
}

#[test]
fn a_broken_certificate_does_not_hand_a_name_to_a_younger_gateway() {
    let mut world = World::example();
    let https = "  listeners: [{name: http, protocol: HTTPS, port: 443, tls: {certificateRefs: [{name: cert}]}}]\n";
    world.put_all([tls_secret("gws", "cert")]);
    world.put(&gateway("old", 1, &(at("10.20.1.5") + https)));
    world.put(&gateway("young", 2, &(at("10.20.1.5") + https)));
    world.delete(Kind::Secret, "gws", "cert");
    assert!(!is_served(&world, "old") && !is_served(&world, "young"));
    world.assert_condition((Kind::Gateway, "gws", "young", "http"), "Conflicted=true HostnameConflict", "gws/old");
}

#[test]
fn gateways_of_a_domain_on_the_nodes_address_share_it() {
    let mut world = World::example();
    world.put(
        "apiVersion: tidegate.dev/v1alpha1\nkind: TrafficDomain\nmetadata: {name: private}\n\
         spec: {interfaces: [lan0], addresses: {node: InternalIP}}",
    );
    world.put(&gateway("a", 1, &http("a.example.com")));
    let listener = world.listener("private", "gws", "a", "http").unwrap();
    assert!(!listener.owns_addresses);
    assert_eq!(listener.frontends[0].addr.to_string(), "192.0.2.10");
    assert_eq!(addresses(&world, "a"), world.status(Kind::Gateway, "gw-internal", "internal").addresses);
    let mut moved = settings();
    moved.node_addresses = vec!["192.0.2.11".parse().unwrap()];
    world.translator.set_settings(moved);
    assert_eq!(addresses(&world, "a"), ["192.0.2.11".parse::<IpAddr>().unwrap()]);
}

#[test]
fn two_domains_on_the_nodes_address_do_not_share_a_port() {
    let mut world = World::example();
    for (name, nic) in [("private", "lan0"), ("public", "wan0")] {
        world.put(&format!(
            "apiVersion: tidegate.dev/v1alpha1\nkind: TrafficDomain\nmetadata: {{name: {name}}}\n\
             spec: {{interfaces: [{nic}], addresses: {{node: InternalIP}}}}"
        ));
    }
    let place = (Kind::Gateway, "gw-internal", "internal", "http");
    world.assert_condition(place, "Conflicted=true PortUnavailable", "TrafficDomain/public");
    assert!(world.listener("public", "gw-external", "external", "http").is_some());
    assert!(world.listener("private", "gw-internal", "internal", "http").is_none());
}

#[test]
fn of_two_domains_with_overlapping_pools_the_older_is_served() {
    let mut world = World::example();
    let domain = |created: &str| {
        format!(
            "apiVersion: tidegate.dev/v1alpha1\nkind: TrafficDomain\n\
             metadata: {{name: extra, creationTimestamp: \"{created}\"}}\n\
             spec: {{interfaces: [lan1], addresses: {{pool: [10.20.1.8/29]}}}}"
        )
    };
    let before = snapshot(&world.translator);
    world.put(&domain("2026-01-01T00:00:00Z"));
    let place = (Kind::TrafficDomain, "", "extra", "");
    world.assert_condition(place, "Accepted=false AddressesOverlap", "10.20.1.0/28 of TrafficDomain/private");
    assert_eq!(snapshot(&world.translator), before);

    world.put(&domain("1960-01-01T00:00:00Z"));
    world.assert_condition(place, "Accepted=true Accepted", "");
    let loser = (Kind::TrafficDomain, "", "private", "");
    world.assert_condition(loser, "Accepted=false AddressesOverlap", "10.20.1.8/29 of TrafficDomain/extra");
    assert!(world.translator.model(&DomainName::new("private")).is_none());
    world.delete(Kind::TrafficDomain, "", "extra");
    assert_eq!(snapshot(&world.translator), before);
}

#[test]
fn a_domain_of_other_nodes_is_accepted_but_not_served_here() {
    let mut world = World::example();
    let domain = |role: &str| {
        format!(
            "apiVersion: tidegate.dev/v1alpha1\nkind: TrafficDomain\nmetadata: {{name: private}}\n\
             spec: {{interfaces: [lan0], addresses: {{pool: [10.20.1.0/28]}}, nodeSelector: {{role: {role}}}, sources: {{allow: [10.20.0.0/16]}}}}"
        )
    };
    let before = world.model("private").resources().cloned().collect::<Vec<_>>();
    world.put(&domain("database"));
    assert!(world.translator.model(&DomainName::new("private")).is_none());
    world.assert_condition((Kind::TrafficDomain, "", "private", ""), "Accepted=true Accepted", "");
    world.assert_condition((Kind::HTTPRoute, "admin", "console", ""), "Accepted=true Accepted", "");
    world.put(&domain("gateway"));
    assert_eq!(world.model("private").resources().cloned().collect::<Vec<_>>(), before);
}
