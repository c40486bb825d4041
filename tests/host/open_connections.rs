//! Limits on open connections, and what is told of connections: real clients, real workers, agents and workers that die.

use nix::sys::signal::Signal;
use tidegate_lab::{Agent, Failure, Lab, Target, lab::INTERNET6, process::signal, wait_until};
use tokio::net::TcpStream;

use crate::world::{CONSOLE, PUBLIC6, SHOP, SOON, World, at, get, knock, private, public, wait_status, wait_verdicts};

const OPEN: &str = "tidegate_kernel_open_connections";

/// Gives the public domain limits.
fn limit(lab: &Lab, limits: &str) {
    let admission = format!("admission: {{openConnections: {limits}}}\n  sources: {{deny:");
    lab.edit("domains.yaml", "sources: {deny:", &admission).unwrap();
}

fn open(lab: &Lab, target: &Target) -> TcpStream {
    let target = target.clone();
    lab.internet.run(async move { target.connect_tcp().await }).unwrap()
}

/// Waits until so many connections of the domain are open.
#[track_caller]
fn wait_open(agent: &Agent<'_>, domain: &str, expected: f64) {
    let mut last = None;
    wait_until("a number of open connections", SOON, || {
        last = agent.metric(OPEN, &[("domain", domain)]).ok();
        last.filter(|open| *open == expected)
    })
    .unwrap_or_else(|error| panic!("{error}: {last:?} of {domain} are open, not {expected}"));
}

#[track_caller]
fn assert_refused(lab: &Lab, agent: &Agent<'_>, target: &Target, reason: &str) {
    let before = agent.verdicts("public", reason).unwrap();
    assert_eq!(knock(&lab.internet, target), Err(Failure::Silent));
    wait_verdicts(agent, "public", reason, before);
}

#[test]
fn a_source_and_a_domain_have_as_many_open_connections_as_they_may() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    limit(&lab, "{perSource: 3, total: 5}");
    let agent = Agent::start(&lab).unwrap();
    let public6 = Target::http(at(PUBLIC6, 80)).from(INTERNET6);
    let mut held: Vec<TcpStream> = (0..3).map(|_| open(&lab, &public())).collect();
    wait_open(&agent, "public", 3.0);
    assert_refused(&lab, &agent, &public(), "open_source");
    // Others are let in: another source, another domain.
    held.extend((0..2).map(|_| open(&lab, &public6)));
    assert_eq!(get(&lab.datacentre, &private(), CONSOLE, "/").unwrap().status, 200);
    assert_refused(&lab, &agent, &public6, "open_domain");
    // One that ends lets another in.
    drop(held.swap_remove(0));
    wait_open(&agent, "public", 4.0);
    assert_eq!(get(&lab.internet, &public(), SHOP, "/").unwrap().status, 200);
    drop(held);
    wait_open(&agent, "public", 0.0);
    // A limit that changes holds for the next connection, without a new worker.
    let worker = agent.worker_pid("public");
    let kept = open(&lab, &public());
    lab.edit("domains.yaml", "{perSource: 3, total: 5}", "{perSource: 1}").unwrap();
    wait_until("the new limit", SOON, || knock(&lab.internet, &public()).err()).unwrap();
    drop(kept);
    wait_status(&lab.internet, &public(), SHOP, "/", 200);
    assert_eq!(agent.worker_pid("public"), worker);
}

#[test]
fn counts_are_exact_across_killed_agents_and_workers() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    limit(&lab, "{perSource: 3}");
    let mut agent = Agent::start(&lab).unwrap();
    let mut held: Vec<TcpStream> = (0..3).map(|_| open(&lab, &public())).collect();
    wait_open(&agent, "public", 3.0);
    for round in 0..3 {
        let old = agent.agent_pid().unwrap();
        assert!(signal(old, Signal::SIGKILL));
        // While there is no agent, or a new one starts: one ends, another begins, and the limit holds.
        drop(held.pop());
        held.push(
            wait_until("a free place", SOON, || {
                let target = public().within(tidegate_lab::island::SILENCE);
                lab.internet.run(async move { target.connect_tcp().await }).ok()
            })
            .unwrap(),
        );
        assert_eq!(knock(&lab.internet, &public()), Err(Failure::Silent), "round {round}");
        wait_until("the next agent", SOON, || agent.agent_pid().filter(|pid| *pid != old)).unwrap();
        agent.wait_ready().unwrap();
        wait_open(&agent, "public", 3.0);
    }
    // A worker that dies closes its connections.
    let worker = agent.worker_pid("public").unwrap();
    assert!(signal(worker, Signal::SIGKILL));
    wait_open(&agent, "public", 0.0);
    agent.wait_new_worker("public", worker, SOON).unwrap();
    wait_status(&lab.internet, &public(), SHOP, "/", 200);
    drop(held);
    wait_open(&agent, "public", 0.0);
    wait_open(&agent, "private", 0.0);
}

#[test]
fn round_trips_durations_and_bytes_of_connections_are_told_by_domain() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let agent = Agent::start(&lab).unwrap();
    for _ in 0..5 {
        assert_eq!(get(&lab.internet, &public(), SHOP, "/").unwrap().status, 200);
    }
    wait_open(&agent, "public", 0.0);
    let metrics = agent.metrics().unwrap();
    let sum = |name: &str, labels: &[(&str, &str)]| {
        let labels: Vec<(&str, &str)> = labels.iter().copied().chain([("domain", "public")]).collect();
        metrics.sum(name, &labels)
    };
    assert_eq!(sum("tidegate_kernel_connections_opened_total", &[]), 5.0);
    for name in ["tidegate_kernel_connection_duration_seconds", "tidegate_kernel_tcp_rtt_seconds"] {
        assert_eq!(sum(&format!("{name}_count"), &[]), 5.0, "{name}");
        assert_eq!(sum(&format!("{name}_bucket"), &[("le", "+Inf")]), 5.0, "{name}");
        let total = sum(&format!("{name}_sum"), &[]);
        assert!(total > 0.0 && total < 60.0, "{name}: {total}");
        // Buckets are cumulative.
        let mut last = 0.0;
        for sample in metrics.select(&format!("{name}_bucket"), &[("domain", "public")]) {
            assert!(sample.value >= last, "{name}: {sample:?}");
            last = sample.value;
        }
    }
    for direction in ["received", "sent"] {
        assert!(sum("tidegate_kernel_tcp_bytes_total", &[("direction", direction)]) > 100.0, "{direction}");
    }
    let labels = [("domain", "public"), ("traffic_domain", "public")];
    assert!(metrics.select(OPEN, &labels).next().is_some(), "the domain's own labels");
    assert_eq!(agent.metric("tidegate_kernel_connections_opened_total", &[("domain", "private")]).unwrap(), 0.0);
}
