//! NICs that come and go, and very many frontends.

use tidegate_lab::{Agent, Failure, Lab, Target, objects, wait_until};

use crate::world::{
    CONSOLE, PRIVATE, SHOP, SOON, World, at, domains, get, knock, private, public, wait_status, wait_verdicts,
};

#[test]
fn an_interface_that_appears_later_is_admitted_from_then_on() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    lab.write("domains.yaml", &domains().replace("[wan0]", "[wan0, wan1]")).unwrap();
    let agent = Agent::start(&lab).unwrap();
    assert_eq!(get(&lab.internet, &public(), SHOP, "/").unwrap().status, 200, "a missing NIC must not stop the others");
    let status = agent.cli(&["status", "-o", "json"]).unwrap().out;
    assert!(status.contains("wan1"), "the missing NIC is not reported: {status}");

    // A second way to the gateway from the pod's namespace.
    let pod = lab.pod.name();
    lab.gateway
        .ip(&format!(
            "link add wan1 type veth peer name eth1 netns {pod}\nlink set wan1 up\naddr add 198.18.0.1/24 dev wan1\n"
        ))
        .unwrap();
    lab.pod
        .ip("link set eth1 up\naddr add 198.18.0.10/24 dev eth1\nroute replace 203.0.113.0/28 via 198.18.0.1\n")
        .unwrap();
    wait_status(&lab.pod, &public(), SHOP, "/", 200);
    assert!(knock(&lab.pod, &Target::http(at(PRIVATE, 80))).is_err());
}

#[test]
fn a_removed_interface_takes_nothing_else_with_it_and_may_come_back() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let agent = Agent::start(&lab).unwrap();
    assert_eq!(get(&lab.datacentre, &private(), CONSOLE, "/").unwrap().status, 200);
    lab.gateway.ip("link del lan0\n").unwrap();
    wait_until("the loss to be reported", SOON, || {
        agent.cli(&["status", "-o", "json"]).ok().filter(|said| said.out.contains("lan0"))
    })
    .unwrap();
    assert_eq!(get(&lab.internet, &public(), SHOP, "/").unwrap().status, 200);
    let peer = lab.datacentre.name();
    lab.gateway
        .ip(&format!(
            "link add lan0 type veth peer name eth0 netns {peer}\nlink set lan0 up\naddr add 10.20.0.1/24 dev lan0\n"
        ))
        .unwrap();
    lab.datacentre
        .ip("link set eth0 up\naddr add 10.20.0.10/24 dev eth0\nroute add 10.20.1.0/28 via 10.20.0.1\nroute add 203.0.113.0/28 via 10.20.0.1\n")
        .unwrap();
    wait_status(&lab.datacentre, &private(), CONSOLE, "/", 200);
    let before = agent.verdicts("public", "wrong_interface").unwrap();
    assert_eq!(knock(&lab.datacentre, &public()), Err(Failure::Silent));
    wait_verdicts(&agent, "public", "wrong_interface", before);
}

#[test]
fn two_thousand_frontends_are_served_by_one_socket() {
    const GATEWAYS: usize = 10;
    const PORTS: u16 = 200;
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let mut text = String::new();
    for index in 0..GATEWAYS {
        let listeners: Vec<String> =
            (0..PORTS).map(|port| objects::http_listener(&format!("p{port}"), 10_000 + port)).collect();
        let listeners: Vec<&str> = listeners.iter().map(String::as_str).collect();
        let name = format!("many-{index}");
        // Gateway API allows 64 listeners a Gateway; several Gateways may share an address.
        for (part, listeners) in listeners.chunks(64).enumerate() {
            let address = format!("203.0.113.{}", 3 + index);
            let name = format!("{name}-{part}");
            text.push_str(objects::NEXT);
            text.push_str(&objects::gateway("gw", &name, "public", &[&address], listeners));
            text.push_str(objects::NEXT);
            text.push_str(&objects::route("shop", &name, &format!("gw/{name}"), &[], &[&objects::to_service("shop")]));
        }
    }
    lab.write("many.yaml", &text).unwrap();
    let agent = Agent::start(&lab).unwrap();
    for (index, port) in [(0, 0), (0, 199), (4, 100), (9, 63), (9, 64), (9, 199)] {
        let target = Target::http(at(&format!("203.0.113.{}", 3 + index), 10_000 + port));
        assert_eq!(get(&lab.internet, &target, "any.example.com", "/").unwrap().status, 200, "{target:?}");
    }
    let outside = Target::http(at("203.0.113.3", 10_000 + PORTS));
    assert_eq!(knock(&lab.internet, &outside), Err(Failure::Silent));
    let listening = std::fs::read_dir(format!("/proc/{}/fd", agent.worker_pid("public").unwrap())).unwrap().count();
    assert!(listening < 100, "{listening} descriptors for {} frontends", GATEWAYS * usize::from(PORTS));
}
