//! Floods on the wire: what is refused is counted by its reason, who is a client is served, and the other domain sees nothing.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use tidegate_kernel::{Kernel, KernelConfig};
use tidegate_lab::{
    Agent, Flood, FloodPlan, Lab, Load, LoadPlan, Pattern, Request,
    flood::{FOREIGN, FOREIGN_COUNT, FOREIGN_FIRST, FOREIGN6, FOREIGN6_FIRST},
    lab::{DENIED, DENIED6, INTERNET, INTERNET6},
    wait_until,
};

use crate::world::{CONSOLE, PUBLIC, PUBLIC6, SHOP, SOON, World, at, domains, private, public};

/// Packets a second: several times what the clients send, and little enough that a busy machine keeps up.
const RATE: u32 = 3000;
/// Packets of a flood that a test waits for: more than every queue on the way holds.
const ENOUGH: u64 = 6000;
/// Requests of clients, each on a connection of its own, that must succeed while a flood lasts.
const REQUESTS: u64 = 40;
const PATIENCE: Duration = Duration::from_secs(60);

fn plan(pattern: Pattern, source: impl Into<IpAddr>, sources: u32, port: u16) -> FloodPlan {
    let source = source.into();
    let destination = at(if source.is_ipv4() { PUBLIC } else { PUBLIC6 }, port);
    FloodPlan { pattern, destination, source, sources, rate: RATE }
}

/// A lab whose gateway answers sources that nobody has: their SYNs begin connections that never come to be.
fn lab() -> Lab {
    let lab = Lab::create().unwrap();
    lab.gateway.ip(&format!("route add {FOREIGN} via {INTERNET}\nroute add {FOREIGN6} via {INTERNET6}\n")).unwrap();
    lab
}

fn set(lab: &Lab, name: &str, value: &str) {
    lab.gateway.call(|| fs::write(format!("/proc/sys/net/{name}"), value)).unwrap();
}

/// A counter of the gateway's TCP (`TcpExt` of /proc/net/netstat).
fn tcp_counter(lab: &Lab, name: &str) -> u64 {
    let text = lab.gateway.call(|| fs::read_to_string("/proc/thread-self/net/netstat")).unwrap();
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let (_, value) = names.split(' ').zip(values.split(' ')).find(|(each, _)| *each == name).unwrap();
    value.parse().unwrap()
}

/// Clients of both domains, each request on a connection of its own.
fn clients(lab: &Lab) -> [Load; 2] {
    let plan = |target, host| LoadPlan::new(target, Request::get(host, "/")).with_new_connections().at_rate(40);
    [Load::start(&lab.internet, &plan(public(), SHOP)), Load::start(&lab.datacentre, &plan(private(), CONSOLE))]
}

fn wait_answers(loads: &mut [Load], answers: u64) {
    for load in loads {
        let before = load.total().ok();
        wait_until("clients to be served", PATIENCE, || (load.total().ok() >= before + answers).then_some(())).unwrap();
    }
}

#[track_caller]
fn assert_unharmed(loads: [Load; 2]) {
    for (load, domain) in loads.into_iter().zip(["public", "private"]) {
        let report = load.stop().unwrap();
        assert_eq!(report.errors(), 0, "{domain}: {report}");
    }
}

#[test]
fn clients_of_a_flooded_domain_are_served_and_the_other_domain_sees_nothing() {
    let lab = lab();
    let _world = World::build(&lab);
    let agent = Agent::start(&lab).unwrap();
    let worker = agent.worker_pid("public");
    let mut loads = clients(&lab);
    wait_answers(&mut loads, REQUESTS);
    let (one, many) = ((FOREIGN_FIRST.into(), 1), (FOREIGN_FIRST.into(), FOREIGN_COUNT));
    let (one6, many6) = ((FOREIGN6_FIRST.into(), 1), (FOREIGN6_FIRST.into(), FOREIGN_COUNT));
    for (name, pattern, (source, sources), port, reason) in [
        ("SYNs from everywhere", Pattern::Syn, many, 80, "admitted"),
        ("SYNs from one source", Pattern::Syn, one, 80, "admitted"),
        ("SYNs from a denied source", Pattern::Syn, (DENIED, 1), 80, "source_denied"),
        ("SYNs from loopback", Pattern::Syn, (Ipv4Addr::LOCALHOST.into(), 250), 80, "martian"),
        ("SYNs to a port that nobody serves", Pattern::Syn, many, 81, "no_frontend"),
        ("ACKs", Pattern::Ack, many, 80, "admitted"),
        ("RSTs", Pattern::Rst, many, 80, "admitted"),
        ("datagrams", Pattern::Udp, many, 53, "no_frontend"),
        ("fragments", Pattern::Fragment, many, 0, "admitted"),
        ("broken headers", Pattern::Malformed, many, 80, "malformed"),
        ("echo requests", Pattern::Echo, many, 0, "echo_rate"),
        ("SYNs from everywhere over IPv6", Pattern::Syn, many6, 80, "admitted"),
        ("SYNs from one source over IPv6", Pattern::Syn, one6, 80, "admitted"),
        ("SYNs from a denied IPv6 source", Pattern::Syn, (DENIED6, 1), 80, "source_denied"),
        (
            "SYNs from multicast over IPv6",
            Pattern::Syn,
            (Ipv6Addr::new(0xff0e, 0, 0, 0, 0, 0, 0, 1).into(), 1),
            80,
            "martian",
        ),
        ("SYNs to an IPv6 port that nobody serves", Pattern::Syn, many6, 81, "no_frontend"),
        ("ACKs over IPv6", Pattern::Ack, many6, 80, "admitted"),
        ("RSTs over IPv6", Pattern::Rst, many6, 80, "admitted"),
        ("datagrams over IPv6", Pattern::Udp, many6, 53, "no_frontend"),
        ("fragments over IPv6", Pattern::Fragment, many6, 0, "admitted"),
        ("broken headers over IPv6", Pattern::Malformed, many6, 80, "malformed"),
        ("echo requests over IPv6", Pattern::Echo, many6, 0, "echo_rate"),
    ] {
        let before = agent.verdicts("public", reason).unwrap();
        let flood = Flood::start(&lab.internet, plan(pattern, source, sources, port)).unwrap();
        wait_answers(&mut loads, REQUESTS);
        wait_until(&format!("enough {name}"), PATIENCE, || (flood.sent() >= ENOUGH).then_some(())).unwrap();
        drop(flood);
        let counted = wait_until(&format!("{name} to be counted as {reason}"), SOON, || {
            // Echo beyond what the domain takes in the time that the flood lasted.
            let share = if pattern == Pattern::Echo { 0.2 } else { 0.9 };
            agent.verdicts("public", reason).ok().filter(|count| count - before > share * ENOUGH as f64)
        });
        counted.unwrap_or_else(|error| panic!("{error}\n{}", agent.log_tail()));
    }
    assert_unharmed(loads);
    assert_eq!(agent.worker_pid("public"), worker);
    assert_eq!(agent.verdicts("private", "source_denied").unwrap(), 0.0);
    assert!(tcp_counter(&lab, "SyncookiesSent") > 0, "the kernel's own cookies");
}

/// Makes the internet's end take what the driver sends back: a veth does so only while an XDP program runs there. An instance
/// without domains passes everything.
fn answerable(lab: &Lab) -> Kernel {
    let config = KernelConfig::new(lab.folder().join("bpf"), format!("{}-inet", lab.name));
    lab.internet.call(|| {
        let (mut kernel, _) = Kernel::open(&config).unwrap();
        kernel.attach_interface(nix::net::if_::if_nametoindex("eth0").unwrap()).unwrap();
        kernel
    })
}

#[test]
fn a_domain_that_answers_in_the_driver_serves_its_clients_through_a_flood() {
    let lab = lab();
    // A short queue is full soon.
    set(&lab, "core/somaxconn", "64");
    let _world = World::build(&lab);
    lab.write("domains.yaml", &domains().replacen("  labels:", "  admission: {synCookies: XDP}\n  labels:", 1))
        .unwrap();
    let _other_end = answerable(&lab);
    let agent = Agent::start(&lab).unwrap();
    let mut loads = clients(&lab);
    wait_answers(&mut loads, REQUESTS);
    assert_eq!(agent.verdicts("public", "cookie_sent").unwrap(), 0.0, "as long as the queue is not full");
    let flood = Flood::start(&lab.internet, plan(Pattern::Syn, FOREIGN_FIRST, FOREIGN_COUNT, 80)).unwrap();
    wait_until("SYNs to be answered in the driver", SOON, || {
        agent.verdicts("public", "cookie_sent").ok().filter(|count| *count > 500.0)
    })
    .unwrap();
    let received = tcp_counter(&lab, "SyncookiesRecv");
    wait_answers(&mut loads, REQUESTS);
    wait_until("enough SYNs", PATIENCE, || (flood.sent() >= ENOUGH).then_some(())).unwrap();
    drop(flood);
    assert_unharmed(loads);
    assert!(tcp_counter(&lab, "SyncookiesRecv") >= received + REQUESTS / 2, "clients came in by cookies");
    let sent_by_driver = agent.verdicts("public", "cookie_sent").unwrap();
    assert!(sent_by_driver > 0.5 * ENOUGH as f64, "{sent_by_driver}");
    let reply = crate::world::get(&lab.internet, &tidegate_lab::Target::http(at(PUBLIC, 80)), SHOP, "/").unwrap();
    assert_eq!(reply.status, 200);
}
