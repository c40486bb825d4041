//! Who is let in: each domain by its own NIC, by its own sources, over both address families, and around XDP.

use tidegate_lab::{
    Agent, Failure, Lab, Target,
    island::Island,
    lab::{DATACENTRE, DATACENTRE6, DENIED, DENIED6, INTERNET, INTERNET6, OUTSIDER, OUTSIDER6, POD},
};

use crate::world::{
    CONSOLE, PRIVATE, PRIVATE6, PUBLIC, PUBLIC6, SHOP, SOON, World, at, get, knock, private, public, wait_verdicts,
};

/// Nothing comes back, and the domain counts it under the reason.
#[track_caller]
fn assert_dropped(agent: &Agent<'_>, from: &Island, target: &Target, domain: &str, reason: &str) {
    let before = agent.verdicts(domain, reason).unwrap();
    assert_eq!(knock(from, target), Err(Failure::Silent), "{target:?}");
    wait_verdicts(agent, domain, reason, before);
}

#[test]
fn two_domains_serve_their_own_gateways_over_both_families() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let agent = Agent::start(&lab).unwrap();
    for (island, source, address, host, name) in [
        (&lab.internet, INTERNET, PUBLIC, SHOP, "shop"),
        (&lab.internet, INTERNET6, PUBLIC6, SHOP, "shop"),
        (&lab.datacentre, DATACENTRE, PRIVATE, CONSOLE, "console"),
        (&lab.datacentre, DATACENTRE6, PRIVATE6, CONSOLE, "console"),
    ] {
        let reply = get(island, &Target::http(at(address, 80)).from(source), host, "/").unwrap();
        assert_eq!(reply.status, 200, "{address}: {}", reply.text());
        assert!(reply.backend().unwrap().starts_with(name), "{address}");
        assert_eq!(reply.json()["headers"]["x-forwarded-for"][0], source.to_string());
    }
    for domain in ["public", "private"] {
        assert!(agent.verdicts(domain, "admitted").unwrap() > 0.0);
        assert_eq!(agent.verdicts(domain, "wrong_interface").unwrap(), 0.0);
    }
}

#[test]
fn drops_packets_that_come_through_another_domains_nic() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let agent = Agent::start(&lab).unwrap();
    for (island, source, address, domain) in [
        (&lab.internet, INTERNET, PRIVATE, "private"),
        (&lab.internet, INTERNET6, PRIVATE6, "private"),
        (&lab.datacentre, DATACENTRE, PUBLIC, "public"),
        (&lab.datacentre, DATACENTRE6, PUBLIC6, "public"),
    ] {
        assert_dropped(&agent, island, &Target::http(at(address, 80)).from(source), domain, "wrong_interface");
    }
}

#[test]
fn drops_sources_that_are_denied_or_not_allowed() {
    let lab = Lab::create().unwrap();
    let world = World::build(&lab);
    let agent = Agent::start(&lab).unwrap();
    for (island, source, address, domain, reason) in [
        (&lab.internet, DENIED, PUBLIC, "public", "source_denied"),
        (&lab.internet, DENIED6, PUBLIC6, "public", "source_denied"),
        (&lab.datacentre, OUTSIDER, PRIVATE, "private", "source_not_allowed"),
        (&lab.datacentre, OUTSIDER6, PRIVATE6, "private", "source_not_allowed"),
    ] {
        assert_dropped(&agent, island, &Target::http(at(address, 80)).from(source), domain, reason);
    }
    assert_eq!(world.shop[0].requests() + world.shop[1].requests() + world.console.requests(), 0);
}

#[test]
fn a_source_list_that_changes_is_in_force_for_new_connections_without_a_restart() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let agent = Agent::start(&lab).unwrap();
    let worker = agent.worker_pid("public");
    let denied = public().from(DENIED);
    assert_dropped(&agent, &lab.internet, &denied, "public", "source_denied");
    lab.edit("domains.yaml", "192.0.2.0/24", "192.0.2.128/25").unwrap();
    tidegate_lab::wait_until("the source to be let in", SOON, || get(&lab.internet, &denied, SHOP, "/").ok()).unwrap();
    lab.edit("domains.yaml", "192.0.2.128/25", "198.51.100.0/24").unwrap();
    tidegate_lab::wait_until("the client to be denied", SOON, || knock(&lab.internet, &public()).err()).unwrap();
    assert_eq!(agent.worker_pid("public"), worker);
}

#[test]
fn a_port_of_an_exclusive_address_without_a_frontend_is_refused() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let agent = Agent::start(&lab).unwrap();
    assert_dropped(&agent, &lab.internet, &Target::http(at(PUBLIC, 22)), "public", "no_frontend");
}

#[test]
fn traffic_that_is_for_no_frontend_passes_untouched() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let _agent = Agent::start(&lab).unwrap();
    let node = tidegate_lab::Backend::start(&lab.gateway, "node", at("0.0.0.0", 22)).unwrap();
    // Even a source that a domain denies may reach the node itself: it is not the domain's to judge.
    for (island, source, address) in [
        (&lab.internet, INTERNET, "198.51.100.1"),
        (&lab.internet, DENIED, "198.51.100.1"),
        (&lab.datacentre, OUTSIDER, "10.20.0.1"),
        (&lab.pod, POD, "10.40.0.1"),
    ] {
        let reply = get(island, &Target::http(at(address, 22)).from(source), "node", "/").unwrap();
        assert_eq!(reply.backend(), Some("node"));
    }
    assert_eq!(node.requests(), 4);
}

#[test]
fn traffic_around_xdp_is_judged_by_the_same_rules() {
    let lab = Lab::create().unwrap();
    let world = World::build(&lab);
    let agent = Agent::start(&lab).unwrap();
    // A pod of this node behind a bridge, and the node itself over loopback: neither is a NIC of a domain.
    for island in [&lab.pod, &lab.gateway] {
        for (target, domain) in [(public(), "public"), (private(), "private")] {
            let before = agent
                .metric(VERDICTS, &[("domain", domain), ("hook", "steer"), ("reason", "wrong_interface")])
                .unwrap();
            let outcome = knock(island, &target);
            assert!(matches!(outcome, Err(Failure::Silent | Failure::Refused)), "{domain}: {outcome:?}");
            let after = agent
                .metric(VERDICTS, &[("domain", domain), ("hook", "steer"), ("reason", "wrong_interface")])
                .unwrap();
            assert!(after > before, "{domain}: {before} -> {after}");
        }
    }
    assert_eq!(world.shop[0].requests() + world.console.requests(), 0);
}

const VERDICTS: &str = tidegate_lab::metrics::names::VERDICTS;
