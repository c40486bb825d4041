//! Endpoints, workers and agents that die, and ports that are taken.

use std::{
    net::UdpSocket,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use nix::sys::signal::Signal;
use tidegate_lab::{
    Agent,
    process::{self, signal},
    wait_until,
};

use super::{DNS, PORT, SESSIONS, SESSIONS_ENDED, Scene, gateway, metric, service, wait_metric};
use crate::world::SOON;

/// Longest wait for what an agent does when it starts, as for it to become ready.
const START: Duration = Duration::from_secs(30);

#[test]
fn an_endpoint_that_is_not_there_is_counted_and_left_with_the_next_datagram() {
    let scene = Scene::with_endpoints(&["10.30.0.11", "10.30.0.12"]);
    let _b = scene.backend("b", "10.30.0.12");
    let agent = Agent::start(&scene.lab).unwrap();
    // Nobody listens at the first one; its host answers with ICMP port unreachable.
    let clients: Vec<_> = (0..8).map(|_| scene.client()).collect();
    for client in &clients {
        assert_eq!(client.ask_until_answered("?"), "b");
    }
    wait_metric(&agent, "tidegate_upstream_failures_total", &[("reason", "port_unreachable")], 1.0);
    assert_eq!(metric(&agent, SESSIONS, &[]), 8.0);
}

#[test]
fn datagrams_that_come_while_a_worker_is_away_are_answered_by_the_next() {
    let scene = Scene::with_endpoints(&["10.30.0.11"]);
    let _a = scene.backend("a", "10.30.0.11");
    let agent = Agent::start(&scene.lab).unwrap();
    let client = scene.client();
    assert_eq!(client.ask_until_answered("?"), "a");
    for _ in 0..2 {
        let worker = agent.worker_pid("public").unwrap();
        process::stop(worker).unwrap();
        // They wait in the socket, which is the agent's as well.
        let waiting: Vec<_> = (0..20).map(|_| scene.client()).collect();
        waiting.iter().for_each(|client| client.send(b"queued"));
        client.send(b"queued");
        signal(worker, Signal::SIGKILL);
        for client in waiting.iter().chain([&client]) {
            assert_eq!(client.receive(SOON).as_deref(), Some(&b"a:queued"[..]));
        }
        agent.wait_new_worker("public", worker, SOON).unwrap();
    }
}

#[test]
fn a_killed_agent_costs_no_session_and_the_next_one_goes_on_with_the_sockets() {
    let scene = Scene::with_endpoints(&["10.30.0.11"]);
    let (_a, _b) = (scene.backend("a", "10.30.0.11"), scene.backend("b", "10.30.0.12"));
    let mut agent = Agent::start(&scene.lab).unwrap();
    let worker = agent.worker_pid("public");
    let client = scene.client();
    assert_eq!(client.ask_until_answered("?"), "a");
    for round in 0..2 {
        let old = agent.agent_pid().unwrap();
        assert!(signal(old, Signal::SIGKILL));
        for _ in 0..20 {
            assert_eq!(client.ask("?").as_deref(), Some("a"), "without an agent");
        }
        wait_until("the next agent", SOON, || agent.agent_pid().filter(|pid| *pid != old)).unwrap();
        agent.wait_ready().unwrap();
        assert_eq!(client.ask("?").as_deref(), Some("a"), "round {round}");
    }
    assert_eq!(agent.worker_pid("public"), worker);
    assert_eq!(metric(&agent, SESSIONS, &[]), 1.0);
    // What changes goes through the new agent: endpoints that may be dialled, and a listener that goes.
    scene.lab.write("zone.yaml", &service("zone", &["10.30.0.12"])).unwrap();
    wait_until("the other endpoint", SOON, || client.ask("?").filter(|name| name == "b")).unwrap();
    scene.lab.delete("gateway.yaml").unwrap();
    wait_until("the sockets to be closed", SOON, || bound(&scene).is_empty().then_some(())).unwrap();
    assert_eq!(client.ask("?"), None);
    wait_metric(&agent, SESSIONS_ENDED, &[("reason", "listener_removed")], 1.0);
    scene.lab.write("gateway.yaml", &gateway()).unwrap();
    assert_eq!(scene.client().ask_until_answered("?"), "b");
}

#[test]
fn a_port_that_another_program_has_is_named_and_taken_when_it_is_free() {
    let scene = Scene::with_endpoints(&["10.30.0.11"]);
    let _a = scene.backend("a", "10.30.0.11");
    // As a name server of the node's own does.
    let other = scene.lab.gateway.call(|| UdpSocket::bind(("0.0.0.0", PORT))).unwrap();
    other.set_nonblocking(true).unwrap();
    let client = scene.client();
    let is_over = AtomicBool::new(false);
    let watch = || {
        let agent = Agent::launch(&scene.lab, tidegate_lab::AgentOptions::default())?;
        wait_until("the failure to be named", START, || {
            agent.log().contains(&format!("{DNS}:{PORT}/UDP is in use by another program")).then_some(())
        })?;
        wait_until("the port to be refused", START, || {
            agent.verdicts("public", "no_frontend").ok().filter(|count| *count > 100.0)
        })?;
        anyhow::Ok(agent)
    };
    let watched = thread::scope(|scope| {
        // From before the address is the node's: there is no moment at which it is and nobody judges what comes for it.
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                let _ = client.0.send(b"early");
                thread::sleep(Duration::from_millis(1));
            }
        });
        let watched = watch();
        is_over.store(true, Ordering::Relaxed);
        watched
    });
    let _agent = watched.unwrap();
    assert_eq!(client.ask("?"), None);
    assert!(other.recv(&mut [0; 16]).is_err(), "a frontend's datagram reached another program");
    drop(other);
    assert_eq!(client.ask_until_answered("?"), "a");
}

/// UDP sockets of the node that are bound to the Gateway's address.
fn bound(scene: &Scene) -> Vec<String> {
    let mut ss = std::process::Command::new("ss");
    let output = scene.lab.gateway.call(|| ss.args(["-Hlnu"]).output()).unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().filter(|line| line.contains(DNS)).map(str::to_owned).collect()
}
