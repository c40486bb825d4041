//! What a UDPRoute promises: both families, any size, weights, precedence, sessions; and who is let in.

use std::collections::BTreeMap;

use tidegate_lab::{
    Agent, AgentOptions,
    backend::LONGEST_DATAGRAM,
    island::SILENCE,
    lab::{DENIED, DENIED6, INTERNET6},
    wait_until,
};

use super::{Caller, DATAGRAMS, DNS, DNS6, DROPPED, PORT, SESSIONS, Scene, metric, route, service, wait_metric};
use crate::world::{SOON, at, wait_verdicts};

fn assert_echoes(caller: &Caller, name: &str) {
    for length in [0, 1, 1_400, 9_000, LONGEST_DATAGRAM] {
        let payload: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
        caller.send(&payload);
        let answer = caller.receive(SOON).unwrap_or_else(|| panic!("no answer to {length} bytes"));
        let echoed = if length == LONGEST_DATAGRAM { &answer[..] } else { &answer[name.len() + 1..] };
        assert!(echoed == payload, "{} bytes came back for {length}", answer.len());
    }
}

#[test]
fn datagrams_of_any_size_go_both_ways_over_both_families() {
    let scene = Scene::with_endpoints(&["10.30.0.11"]);
    let a = scene.backend("a", "10.30.0.11");
    let agent = Agent::start(&scene.lab).unwrap();
    assert_echoes(&scene.client(), "a");
    assert_echoes(&Caller::new(&scene.lab.internet, Some(INTERNET6), at(DNS6, PORT)), "a");
    assert_eq!(a.received(), 10);
    let route = [("route", "dns/zone"), ("kind", "UDPRoute"), ("gateway", "gw/dns")];
    wait_metric(&agent, SESSIONS, &route, 2.0);
    for (direction, datagrams) in [("received", 10.0), ("sent", 10.0)] {
        let labels = [&route[..], &[("direction", direction)]].concat();
        wait_metric(&agent, DATAGRAMS, &labels, datagrams);
        assert_eq!(metric(&agent, DATAGRAMS, &labels), datagrams);
    }
    let bytes = 2.0 * (1 + 1_400 + 9_000 + LONGEST_DATAGRAM) as f64;
    assert_eq!(metric(&agent, "tidegate_forward_received_bytes_total", &route), bytes);
    assert_eq!(metric(&agent, DROPPED, &[]), 0.0);
    // Endpoints of the other family.
    scene.lab.write("zone.yaml", &service("zone", &["fd00:30::12"])).unwrap();
    let _b = scene.backend("b", "fd00:30::12");
    wait_until("the IPv6 endpoint", SOON, || scene.client().ask("x").filter(|name| name == "b")).unwrap();
    assert_echoes(&scene.client(), "b");
}

#[test]
fn without_the_kernel_tier_the_same_is_served() {
    let scene = Scene::with_endpoints(&["10.30.0.11"]);
    let _a = scene.backend("a", "10.30.0.11");
    let _agent = Agent::start_with(&scene.lab, AgentOptions { kernel: "off", ..AgentOptions::default() }).unwrap();
    assert_echoes(&scene.client(), "a");
    assert_echoes(&Caller::new(&scene.lab.internet, Some(INTERNET6), at(DNS6, PORT)), "a");
}

#[test]
fn sessions_follow_the_weights_and_a_weight_of_zero_gets_none() {
    let scene = Scene::build(&["shards: 1"]);
    let backends = [("a", 3), ("b", 1), ("c", 0)];
    scene.lab.write("route.yaml", &route("zone", "2026-01-01T00:00:00Z", &backends)).unwrap();
    let running = [("a", "10.30.0.11"), ("b", "10.30.0.12"), ("c", "10.30.0.13")].map(|(name, address)| {
        scene.lab.write(&format!("{name}.yaml"), &service(name, &[address])).unwrap();
        scene.backend(name, address)
    });
    let agent = Agent::start(&scene.lab).unwrap();
    let count = |sessions: usize| {
        let mut counts = BTreeMap::<String, usize>::new();
        for _ in 0..sessions {
            *counts.entry(scene.client().ask_until_answered("?")).or_default() += 1;
        }
        counts
    };
    assert_eq!(count(40), [("a".to_owned(), 30), ("b".to_owned(), 10)].into());
    drop(agent);
    // With a shard for each core each chooses by itself.
    scene.lab.edit("domains.yaml", "  shards: 1\n", "").unwrap();
    let _agent = Agent::start(&scene.lab).unwrap();
    let counts = count(500);
    assert!((350..=400).contains(&counts["a"]), "{counts:?}");
    assert_eq!(running[2].received(), 0);
}

#[test]
fn the_oldest_route_gets_everything_until_it_goes() {
    let scene = Scene::build(&[]);
    scene.lab.write("young.yaml", &route("a-young", "2026-02-01T00:00:00Z", &[("a", 1)])).unwrap();
    scene.lab.write("old.yaml", &route("b-old", "2026-01-01T00:00:00Z", &[("b", 1)])).unwrap();
    for (name, address) in [("a", "10.30.0.11"), ("b", "10.30.0.12")] {
        scene.lab.write(&format!("{name}.yaml"), &service(name, &[address])).unwrap();
    }
    let (_a, _b) = (scene.backend("a", "10.30.0.11"), scene.backend("b", "10.30.0.12"));
    let agent = Agent::start(&scene.lab).unwrap();
    let staying = scene.client();
    for _ in 0..10 {
        assert_eq!(scene.client().ask_until_answered("?"), "b");
    }
    assert_eq!(staying.ask_until_answered("?"), "b");
    scene.lab.delete("old.yaml").unwrap();
    wait_until("the younger route", SOON, || scene.client().ask("?").filter(|name| name == "a")).unwrap();
    assert_eq!(staying.ask_until_answered("?"), "a", "an open session follows with its next datagram");
    scene.lab.delete("young.yaml").unwrap();
    wait_until("no route", SOON, || staying.ask("?").is_none().then_some(())).unwrap();
    wait_metric(&agent, DROPPED, &[("reason", "no_route")], 1.0);
}

#[test]
fn a_session_stays_on_its_endpoint_and_leaves_it_when_it_is_gone() {
    let addresses = ["10.30.0.11", "10.30.0.12", "10.30.0.13"];
    let scene = Scene::with_endpoints(&addresses);
    let _running = ["a", "b", "c"].iter().zip(addresses).map(|(name, address)| scene.backend(name, address));
    let _running: Vec<_> = _running.collect();
    let agent = Agent::start(&scene.lab).unwrap();
    let clients: Vec<Caller> = (0..12).map(|_| scene.client()).collect();
    let homes: Vec<String> = clients.iter().map(|client| client.ask_until_answered("first")).collect();
    assert_eq!(homes.iter().collect::<std::collections::BTreeSet<_>>().len(), 3, "{homes:?}");
    let ask_all =
        |text: &str| -> Vec<String> { clients.iter().map(|client| client.ask_until_answered(text)).collect() };
    for _ in 0..5 {
        assert_eq!(ask_all("again"), homes);
    }
    scene.lab.write("zone.yaml", &service("zone", &addresses[1..])).unwrap();
    let moved = wait_until("nobody at the endpoint that is gone", SOON, || {
        Some(ask_all("moved")).filter(|names| names.iter().all(|name| name != "a"))
    })
    .unwrap();
    for (before, after) in homes.iter().zip(&moved) {
        assert!(before == after || before == "a", "{before} -> {after}: an endpoint that stayed lost a session");
    }
    assert_eq!(metric(&agent, SESSIONS, &[]), 12.0, "they are the same sessions");
}

#[test]
fn who_may_not_send_is_dropped_and_counted() {
    let scene = Scene::with_endpoints(&["10.30.0.11"]);
    let a = scene.backend("a", "10.30.0.11");
    let agent = Agent::start(&scene.lab).unwrap();
    assert_eq!(scene.client().ask_until_answered("?"), "a");
    let received = a.received();
    let lab = &scene.lab;
    for (island, source, to, reason) in [
        (&lab.internet, Some(DENIED), at(DNS, PORT), "source_denied"),
        (&lab.internet, Some(DENIED6), at(DNS6, PORT), "source_denied"),
        (&lab.datacentre, None, at(DNS, PORT), "wrong_interface"),
        // Around XDP: a pod of the node.
        (&lab.pod, None, at(DNS, PORT), "wrong_interface"),
        (&lab.internet, None, at(DNS, PORT + 1), "no_frontend"),
        (&lab.internet, Some(INTERNET6), at(DNS6, PORT + 1), "no_frontend"),
    ] {
        let before = agent.verdicts("public", reason).unwrap();
        let caller = Caller::new(island, source, to);
        caller.send(b"?");
        assert_eq!(caller.receive(SILENCE), None, "{source:?} to {to}");
        wait_verdicts(&agent, "public", reason, before);
    }
    assert_eq!(a.received(), received);
    // A source that is denied while it has a session gets no answer any more, either: its datagrams do not come in.
    let client = scene.client();
    assert_eq!(client.ask_until_answered("?"), "a");
    scene.lab.edit("domains.yaml", "192.0.2.0/24", "198.51.100.0/24").unwrap();
    wait_until("the client to be denied", SOON, || client.ask("?").is_none().then_some(())).unwrap();
}

#[test]
fn a_share_that_leads_nowhere_is_dropped_under_its_reason() {
    let scene = Scene::build(&["shards: 1"]);
    scene.lab.write("route.yaml", &route("zone", "2026-01-01T00:00:00Z", &[("zone", 1), ("missing", 1)])).unwrap();
    scene.lab.write("zone.yaml", &service("zone", &["10.30.0.11"])).unwrap();
    let _a = scene.backend("a", "10.30.0.11");
    let agent = Agent::start(&scene.lab).unwrap();
    let clients: Vec<Caller> = (0..10).map(|_| scene.client()).collect();
    clients.iter().for_each(|client| client.send(b"?"));
    let answered = clients.iter().filter(|client| client.receive(SILENCE).is_some()).count();
    assert_eq!(answered, 5);
    assert_eq!(metric(&agent, DROPPED, &[("reason", "invalid_backend")]), 5.0);
    // Mended, everybody is served; emptied, nobody.
    scene.lab.write("route.yaml", &route("zone", "2026-01-01T00:00:00Z", &[("zone", 1)])).unwrap();
    for client in &clients {
        while client.receive(std::time::Duration::from_millis(1)).is_some() {}
        assert_eq!(client.ask_until_answered("mended"), "a");
    }
    scene.lab.write("zone.yaml", &service("zone", &[])).unwrap();
    wait_until("no endpoint", SOON, || clients[0].ask("?").is_none().then_some(())).unwrap();
    wait_metric(&agent, DROPPED, &[("reason", "no_endpoint")], 1.0);
}
