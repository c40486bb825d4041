//! TLS by server name, and certificates that change while connections are open.

use tidegate_lab::{Agent, Failure, Lab, Load, LoadPlan, Request, Session, Target, objects, wait_until};

use crate::world::{PUBLIC, PUBLIC6, SHOP, SOON, World, at, gateways, get, wait_status};

/// DER of the certificate shown for a server name.
fn shown(lab: &Lab, world: &World, name: &str) -> Result<Vec<u8>, Failure> {
    let target = Target::https(at(PUBLIC, 443), name, &world.authority);
    lab.internet.run(async move { Ok(Session::connect(&target).await?.certificate().unwrap_or_default().to_vec()) })
}

#[test]
fn the_certificate_is_chosen_by_server_name() {
    let lab = Lab::create().unwrap();
    let world = World::build(&lab);
    let exact = world.authority.issue(&["pay.example.com"]).unwrap();
    lab.write("pay-secret.yaml", &exact.to_secret("gw", "pay")).unwrap();
    let https = objects::https_listener("https", 443, "*.example.com", "example-com");
    let pay = objects::https_listener("pay", 443, "pay.example.com", "pay");
    let both = gateways().replace(&https, &format!("{https}\n  - {pay}"));
    lab.write("gateways.yaml", &both).unwrap();
    let _agent = Agent::start(&lab).unwrap();
    assert_eq!(shown(&lab, &world, "shop.example.com").unwrap(), world.leaf.der);
    assert_eq!(shown(&lab, &world, "pay.example.com").unwrap(), exact.der);
    assert!(matches!(shown(&lab, &world, "other.test"), Err(Failure::Tls(_) | Failure::Reset | Failure::Closed)));
}

#[test]
fn a_certificate_is_replaced_without_a_failed_handshake_and_old_connections_go_on() {
    let lab = Lab::create().unwrap();
    let world = World::build(&lab);
    let agent = Agent::start(&lab).unwrap();
    let worker = agent.worker_pid("public");
    let plan = LoadPlan::new(world.https(), Request::get(SHOP, "/")).with_new_connections().at_rate(80);
    let mut load = Load::start(&lab.internet, &plan);
    wait_until("load", SOON, || (load.total().ok() >= 20).then_some(())).unwrap();
    let target = world.https();
    let mut old = lab.internet.run(async move { Session::connect(&target).await }).unwrap();
    for _ in 0..3 {
        let next = world.authority.issue(&["*.example.com"]).unwrap();
        lab.write("secret.yaml", &next.to_secret("gw", "example-com")).unwrap();
        wait_until("the new certificate", SOON, || (shown(&lab, &world, SHOP).ok()? == next.der).then_some(()))
            .unwrap();
    }
    let reply = lab.internet.run(async move { old.send(Request::get(SHOP, "/")).await }).unwrap();
    assert_eq!(reply.status, 200, "the connection from before");
    let report = load.stop().unwrap();
    assert_eq!(report.errors(), 0, "{report}");
    assert_eq!(agent.worker_pid("public"), worker);
}

#[test]
fn a_listener_with_an_invalid_certificate_leaves_its_neighbours_alone() {
    let lab = Lab::create().unwrap();
    let world = World::build(&lab);
    let bad = objects::https_listener("bad", 8443, "bad.example.com", "bad");
    let missing = objects::https_listener("missing", 9443, "missing.example.com", "missing");
    let broken = objects::gateway("gw", "broken", "public", &[PUBLIC, PUBLIC6], &[&bad, &missing]);
    lab.write("broken.yaml", &broken).unwrap();
    lab.write(
        "bad-secret.yaml",
        "apiVersion: v1\nkind: Secret\nmetadata: {name: bad, namespace: gw}\ntype: kubernetes.io/tls\n\
         data: {tls.crt: bm90IGEgY2VydGlmaWNhdGU=, tls.key: bm90IGEga2V5}\n",
    )
    .unwrap();
    let agent = Agent::start(&lab).unwrap();
    assert_eq!(get(&lab.internet, &world.https(), SHOP, "/").unwrap().status, 200);
    let status = agent.cli(&["status", "-o", "json"]).unwrap().out;
    assert!(status.contains("InvalidCertificateRef"), "{status}");
    // Mended by writing the Secret: nothing else has to change.
    let leaf = world.authority.issue(&["bad.example.com"]).unwrap();
    lab.write("bad-secret.yaml", &leaf.to_secret("gw", "bad")).unwrap();
    let route = objects::route("shop", "bad", "gw/broken", &[], &[&objects::to_service("shop")]);
    lab.write("bad-route.yaml", &route).unwrap();
    wait_status(
        &lab.internet,
        &Target::https(at(PUBLIC, 8443), "bad.example.com", &world.authority),
        "bad.example.com",
        "/",
        200,
    );
}

#[test]
fn an_https_request_for_another_listeners_host_is_misdirected() {
    let lab = Lab::create().unwrap();
    let world = World::build(&lab);
    let leaf = world.authority.issue(&["*.example.org"]).unwrap();
    lab.write("org-secret.yaml", &leaf.to_secret("gw", "org")).unwrap();
    let https = objects::https_listener("https", 443, "*.example.com", "example-com");
    let org = objects::https_listener("org", 443, "*.example.org", "org");
    lab.write("gateways.yaml", &gateways().replace(&https, &format!("{https}\n  - {org}"))).unwrap();
    let _agent = Agent::start(&lab).unwrap();
    assert_eq!(get(&lab.internet, &world.https(), SHOP, "/").unwrap().status, 200);
    assert_eq!(get(&lab.internet, &world.https(), "shop.example.org", "/").unwrap().status, 421);
}
