//! Bad objects: one never stops another, and each is told where it is wrong.

use tidegate_lab::{Agent, Lab, Target, agent::tidegate, objects, wait_until};

use crate::world::{CONSOLE, PUBLIC, SHOP, SOON, World, at, get, private, public, wait_status};

#[test]
fn a_broken_file_beside_good_ones_is_named_and_the_rest_is_served() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    lab.write("a-broken.yaml", "kind: [unclosed\n  nonsense: {\n").unwrap();
    lab.write("b-unknown.yaml", "apiVersion: example.org/v1\nkind: Teapot\nmetadata: {name: t}\n").unwrap();
    lab.write("c-binary.yaml", "\u{0}\u{1}\u{2}").unwrap();
    let agent = Agent::start(&lab).unwrap();
    assert_eq!(get(&lab.internet, &public(), SHOP, "/").unwrap().status, 200);
    assert_eq!(get(&lab.datacentre, &private(), CONSOLE, "/").unwrap().status, 200);
    assert!(agent.log().contains("a-broken.yaml"), "the log does not name the file:\n{}", agent.log_tail());
}

#[test]
fn a_file_that_becomes_broken_leaves_what_was_in_force_and_is_taken_again_when_mended() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let agent = Agent::start(&lab).unwrap();
    let good = std::fs::read_to_string(lab.config().join("shop.yaml")).unwrap();
    lab.write("shop.yaml", &format!("{good}\n---\nkind: [broken\n")).unwrap();
    wait_until("the log to name the file", SOON, || agent.log().contains("shop.yaml").then_some(())).unwrap();
    assert_eq!(get(&lab.internet, &public(), SHOP, "/").unwrap().status, 200, "a typing mistake took a route away");
    lab.write("shop.yaml", &good.replace(SHOP, "mended.example.com")).unwrap();
    wait_status(&lab.internet, &public(), "mended.example.com", "/", 200);
}

#[test]
fn a_route_to_a_missing_service_answers_500_and_says_so() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let route = objects::route("shop", "lost", "gw/public", &["lost.example.com"], &[&objects::to_service("nowhere")]);
    lab.write("lost.yaml", &route).unwrap();
    let agent = Agent::start(&lab).unwrap();
    assert_eq!(get(&lab.internet, &public(), "lost.example.com", "/").unwrap().status, 500);
    let status = agent.cli(&["status", "-o", "json"]).unwrap().out;
    assert!(status.contains("BackendNotFound"), "{status}");
    lab.write("nowhere.yaml", &objects::service_at("shop", "nowhere", &["10.30.0.11"])).unwrap();
    wait_status(&lab.internet, &public(), "lost.example.com", "/", 200);
}

#[test]
fn of_two_gateways_that_claim_one_frontend_the_older_keeps_it() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let agent = Agent::start(&lab).unwrap();
    // The same address and port in the other domain: it belongs to `public` and stays there.
    let thief = objects::gateway("gw", "thief", "private", &[PUBLIC], &[&objects::http_listener("http", 80)]);
    let route = objects::route("ops", "thief", "gw/thief", &[], &[&objects::to_service("console")]);
    lab.write("thief.yaml", &objects::join([thief, route])).unwrap();
    wait_until("the conflict to be reported", SOON, || {
        let status = agent.cli(&["status", "-o", "json"]).ok()?.json().ok()?;
        let gateways = status["gateways"].as_array()?.clone();
        let thief = gateways.into_iter().find(|gateway| gateway["name"] == "gw/thief")?;
        thief.to_string().contains("\"isGood\":false").then_some(())
    })
    .unwrap();
    for _ in 0..10 {
        assert!(get(&lab.internet, &public(), SHOP, "/").unwrap().backend().unwrap().starts_with("shop"));
    }
}

#[test]
fn a_pool_that_overlaps_another_domains_takes_no_address_from_it() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    lab.write(
        "zz-greedy.yaml",
        &objects::join([
            objects::domain("zz-greedy", "lan0", &["203.0.113.0/24"], &[]),
            objects::class("zz-greedy"),
            objects::gateway("gw", "zz-greedy", "zz-greedy", &[PUBLIC], &[&objects::http_listener("http", 80)]),
        ]),
    )
    .unwrap();
    let agent = Agent::start(&lab).unwrap();
    assert!(get(&lab.internet, &public(), SHOP, "/").unwrap().backend().unwrap().starts_with("shop"));
    let status = agent.cli(&["status", "-o", "json"]).unwrap().out;
    assert!(status.to_lowercase().contains("overlap"), "{status}");
}

#[test]
fn deleting_everything_of_a_domain_ends_it_and_the_other_stays() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let agent = Agent::start(&lab).unwrap();
    assert_eq!(get(&lab.datacentre, &private(), CONSOLE, "/").unwrap().status, 200);
    let only_public = objects::join([
        objects::domain("public", "wan0", &[tidegate_lab::lab::PUBLIC_POOL, tidegate_lab::lab::PUBLIC_POOL6], &[]),
        objects::class("public"),
    ]);
    lab.write("domains.yaml", &only_public).unwrap();
    wait_until("the worker to end", SOON, || agent.worker_pid("private").is_none().then_some(())).unwrap();
    assert_eq!(get(&lab.internet, &public(), SHOP, "/").unwrap().status, 200);
    lab.write("domains.yaml", &crate::world::domains()).unwrap();
    wait_status(&lab.datacentre, &private(), CONSOLE, "/", 200);
}

#[test]
fn check_judges_the_example_good_and_tells_file_and_line_of_a_mistake() {
    let folder = std::env::temp_dir().join(format!("tidegate-check-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (good, bad) = (folder.join("good.yaml"), folder.join("bad.yaml"));
    let leaf = tidegate_lab::Authority::create().unwrap().issue(&["*.example.com"]).unwrap();
    std::fs::write(&good, format!("{}\n---\n{}", objects::TWO_DOMAINS, leaf.to_secret("gw-external", "example-com")))
        .unwrap();
    std::fs::write(&bad, "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: x, namespace: y}\nspec:\n  listeners: 7\n")
        .unwrap();
    let said = tidegate(&["check", &good.display().to_string()]).unwrap();
    assert_eq!(said.code, Some(0), "{said:?}");
    let said = tidegate(&["check", &good.display().to_string(), &bad.display().to_string()]).unwrap();
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(format!("{}{}", said.out, said.err).contains("bad.yaml:"), "no file and line: {said:?}");
    let lost = objects::TWO_DOMAINS.replace("name: console, port: 8080}", "name: nowhere, port: 8080}");
    std::fs::write(&good, format!("{lost}\n---\n{}", leaf.to_secret("gw-external", "example-com"))).unwrap();
    let said = tidegate(&["check", &good.display().to_string()]).unwrap();
    assert_eq!(said.code, Some(1), "a route to a missing Service passed: {said:?}");
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn the_shared_example_works_as_it_stands() {
    let lab = Lab::create().unwrap();
    let authority = tidegate_lab::Authority::create().unwrap();
    lab.write("two-domains.yaml", objects::TWO_DOMAINS).unwrap();
    lab.write("secret.yaml", &authority.issue(&["*.example.com"]).unwrap().to_secret("gw-external", "example-com"))
        .unwrap();
    let _products = crate::world::backend(&lab, "products", "10.30.0.11:8080");
    let _console = crate::world::backend(&lab, "console", "10.30.0.31:8080");
    let agent = Agent::start(&lab).unwrap();
    let external = agent.gateway_address("gw-external", "external").unwrap().to_string();
    let internal = agent.gateway_address("gw-internal", "internal").unwrap().to_string();
    let shop = Target::https(at(&external, 443), SHOP, &authority);
    wait_status(&lab.internet, &shop, SHOP, "/api/v1/products/7", 200);
    assert_eq!(get(&lab.datacentre, &Target::http(at(&internal, 80)), CONSOLE, "/").unwrap().status, 200);
}
