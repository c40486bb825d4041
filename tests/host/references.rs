//! References across namespaces: only where allowed, and no longer than that.

use tidegate_lab::{Agent, Lab, objects, wait_until};

use crate::world::{SHOP, SOON, World, get, public, wait_status};

fn foreign_route() -> String {
    objects::route(
        "shop",
        "foreign",
        "gw/public",
        &["foreign.example.com"],
        &["{backendRefs: [{name: console, namespace: ops, port: 8080}]}"],
    )
}

fn grant() -> String {
    objects::grant("ops", "shop-may", ("gateway.networking.k8s.io", "HTTPRoute"), "shop", ("", "Service"))
}

#[test]
fn a_reference_without_a_grant_answers_500_and_names_the_reason() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    lab.write("foreign.yaml", &foreign_route()).unwrap();
    let agent = Agent::start(&lab).unwrap();
    assert_eq!(get(&lab.internet, &public(), "foreign.example.com", "/").unwrap().status, 500);
    let status = agent.cli(&["status", "-o", "json"]).unwrap().out;
    assert!(status.contains("RefNotPermitted"), "{status}");
    assert_eq!(get(&lab.internet, &public(), SHOP, "/").unwrap().status, 200);
}

#[test]
fn a_grant_takes_effect_and_its_end_too() {
    let lab = Lab::create().unwrap();
    let world = World::build(&lab);
    lab.write("foreign.yaml", &foreign_route()).unwrap();
    let _agent = Agent::start(&lab).unwrap();
    assert_eq!(get(&lab.internet, &public(), "foreign.example.com", "/").unwrap().status, 500);
    lab.write("grant.yaml", &grant()).unwrap();
    wait_status(&lab.internet, &public(), "foreign.example.com", "/", 200);
    lab.delete("grant.yaml").unwrap();
    wait_status(&lab.internet, &public(), "foreign.example.com", "/", 500);
    let seen = world.console.requests();
    for _ in 0..20 {
        assert_eq!(get(&lab.internet, &public(), "foreign.example.com", "/").unwrap().status, 500);
    }
    assert_eq!(world.console.requests(), seen, "a revoked reference was still followed");
}

#[test]
fn a_secret_of_another_namespace_needs_a_grant() {
    let lab = Lab::create().unwrap();
    let world = World::build(&lab);
    let listener = "{name: https, protocol: HTTPS, port: 9443, hostname: shop.example.com, tls: {certificateRefs: \
                    [{name: elsewhere, namespace: vault}]}, allowedRoutes: {namespaces: {from: All}}}";
    let leaf = world.authority.issue(&["shop.example.com"]).unwrap();
    lab.write(
        "vault.yaml",
        &objects::join([
            leaf.to_secret("vault", "elsewhere"),
            objects::gateway("gw", "vaulted", "public", &[crate::world::PUBLIC], &[listener]),
            objects::route("shop", "vaulted", "gw/vaulted", &[], &[&objects::to_service("shop")]),
        ]),
    )
    .unwrap();
    let _agent = Agent::start(&lab).unwrap();
    let target = tidegate_lab::Target::https(crate::world::at(crate::world::PUBLIC, 9443), SHOP, &world.authority);
    assert!(get(&lab.internet, &target.clone().within(tidegate_lab::island::SILENCE), SHOP, "/").is_err());
    let grant = objects::grant("vault", "gw-may", ("gateway.networking.k8s.io", "Gateway"), "gw", ("", "Secret"));
    lab.write("grant.yaml", &grant).unwrap();
    wait_status(&lab.internet, &target, SHOP, "/", 200);
    lab.delete("grant.yaml").unwrap();
    wait_until("the listener to end", SOON, || {
        get(&lab.internet, &target.clone().within(tidegate_lab::island::SILENCE), SHOP, "/").err()
    })
    .unwrap();
}

#[test]
fn a_route_attaches_only_from_namespaces_that_the_listener_allows() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let selective = "{name: http, protocol: HTTP, port: 8080, allowedRoutes: {namespaces: {from: Selector, selector: \
                     {matchLabels: {team: shop}}}}}";
    lab.write(
        "selective.yaml",
        &objects::join([
            objects::gateway("gw", "selective", "public", &[crate::world::PUBLIC], &[selective]),
            objects::route("shop", "in", "gw/selective", &["in.example.com"], &[&objects::to_service("shop")]),
            objects::route("ops", "out", "gw/selective", &["out.example.com"], &[&objects::to_service("console")]),
        ]),
    )
    .unwrap();
    let agent = Agent::start(&lab).unwrap();
    let target = tidegate_lab::Target::http(crate::world::at(crate::world::PUBLIC, 8080));
    assert_eq!(get(&lab.internet, &target, "in.example.com", "/").unwrap().status, 200);
    assert_eq!(get(&lab.internet, &target, "out.example.com", "/").unwrap().status, 404);
    let status = agent.cli(&["status", "-o", "json"]).unwrap().out;
    assert!(status.contains("NotAllowedByListeners"), "{status}");
    lab.edit("console.yaml", "team: ops", "team: shop").unwrap();
    wait_status(&lab.internet, &target, "out.example.com", "/", 200);
}
