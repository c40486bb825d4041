//! Listeners that other namespaces add to a Gateway: taken, refused, and told apart from its own.

use tidegate_lab::{Agent, Lab, Target, objects, wait_until};

use crate::world::{PUBLIC, PUBLIC6, SHOP, SOON, World, at, get, public, wait_status};

fn gateway(allowed: &str) -> String {
    let http =
        "{name: http, protocol: HTTP, port: 80, hostname: shop.example.com, allowedRoutes: {namespaces: {from: All}}}";
    let gateway = objects::gateway("gw", "public", "public", &[PUBLIC, PUBLIC6], &[http]);
    format!("{gateway}  allowedListeners: {{namespaces: {{from: {allowed}}}}}\n")
}

fn set(namespace: &str, name: &str, listeners: &[&str]) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: ListenerSet\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec:\n  parentRef: {{name: public, namespace: gw}}\n  listeners: [{}]\n",
        listeners.join(", ")
    )
}

fn route(namespace: &str, name: &str, service: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec:\n  parentRefs: [{{kind: ListenerSet, name: {name}}}]\n  rules: [{}]\n",
        objects::to_service(service)
    )
}

#[test]
fn a_set_adds_hosts_ports_and_certificates_of_its_own() {
    let lab = Lab::create().unwrap();
    let world = World::build(&lab);
    let leaf = world.authority.issue(&["more.example.net"]).unwrap();
    let https = objects::https_listener("http", 9443, "more.example.net", "own");
    let http = "{name: plain, protocol: HTTP, port: 80, hostname: more.example.net}";
    lab.write("gateways.yaml", &gateway("All")).unwrap();
    let sets = [leaf.to_secret("ops", "own"), set("ops", "more", &[&https, http]), route("ops", "more", "console")];
    lab.write("sets.yaml", &objects::join(sets)).unwrap();
    let agent = Agent::start(&lab).unwrap();
    let tls = Target::https(at(PUBLIC, 9443), "more.example.net", &world.authority);
    wait_status(&lab.internet, &tls, "more.example.net", "/", 200);
    assert_eq!(get(&lab.internet, &public(), "more.example.net", "/").unwrap().status, 200);
    assert_eq!(world.console.requests(), 2);
    assert_eq!(get(&lab.internet, &public(), SHOP, "/").unwrap().status, 200);
    assert_eq!(world.console.requests(), 2, "the Gateway's own listener has its own routes");
    let status = agent.cli(&["status", "-o", "json"]).unwrap().json().unwrap();
    let reported = &status["listenerSets"][0];
    assert_eq!((&reported["name"], &reported["domain"]), (&"ops/more".into(), &"public".into()), "{status}");
    assert_eq!(reported["listeners"][0]["attachedRoutes"], 1);

    // The Gateway takes sets of its own namespace only: what the other has added ends, and nothing else.
    lab.write("gateways.yaml", &gateway("Same")).unwrap();
    wait_status(&lab.internet, &public(), "more.example.net", "/", 404);
    let silent = tls.within(tidegate_lab::island::SILENCE);
    wait_until("the port to close", SOON, || get(&lab.internet, &silent, "more.example.net", "/").err()).unwrap();
    assert_eq!(get(&lab.internet, &public(), SHOP, "/").unwrap().status, 200);
    let seen = agent.cli(&["status"]).unwrap().out;
    assert!(seen.contains("NotAllowed"), "{seen}");
}

#[test]
fn of_two_sets_with_one_host_name_the_first_serves_until_it_goes() {
    let lab = Lab::create().unwrap();
    let world = World::build(&lab);
    let host = "{name: l, protocol: HTTP, port: 80, hostname: both.example.net}";
    let taken = "{name: l, protocol: HTTP, port: 80, hostname: shop.example.com}";
    lab.write("gateways.yaml", &gateway("All")).unwrap();
    lab.write("first.yaml", &objects::join([set("ops", "a", &[host]), route("ops", "a", "console")])).unwrap();
    let second = [
        set("shop", "b", &[host]),
        route("shop", "b", "shop"),
        set("ops", "thief", &[taken]),
        route("ops", "thief", "console"),
    ];
    lab.write("second.yaml", &objects::join(second)).unwrap();
    let _agent = Agent::start(&lab).unwrap();
    wait_status(&lab.internet, &public(), "both.example.net", "/", 200);
    assert_eq!(world.console.requests(), 1);
    assert_eq!(get(&lab.internet, &public(), SHOP, "/").unwrap().status, 200);
    assert_eq!(world.console.requests(), 1, "a set took what the Gateway has");
    lab.delete("first.yaml").unwrap();
    let shop = || world.shop.iter().map(|backend| backend.requests()).sum::<u64>();
    let before = shop();
    wait_until("the second set", SOON, || {
        let reply = get(&lab.internet, &public(), "both.example.net", "/").ok()?;
        (reply.status == 200 && shop() > before).then_some(())
    })
    .unwrap();
    let seen = world.console.requests();
    assert_eq!(get(&lab.internet, &public(), "both.example.net", "/").unwrap().status, 200);
    assert_eq!(world.console.requests(), seen, "the set that is gone still serves");
}
