//! A worker dies: its own domain is back in less than a second, the others do not notice.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tidegate_lab::{
    Agent, Lab, Load, LoadPlan, Request, client,
    process::{self, signal},
    wait_until,
};

use crate::world::{CONSOLE, SHOP, SOON, World, get, private, public};

/// The promise of D4.
const BACK: Duration = Duration::from_secs(1);

#[test]
fn a_killed_worker_is_back_within_a_second_and_the_other_domain_loses_nothing() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let agent = Agent::start(&lab).unwrap();
    let mut other = Load::start(&lab.internet, &LoadPlan::new(public(), Request::get(SHOP, "/")));
    wait_until("load", SOON, || (other.total().ok() >= 50).then_some(())).unwrap();
    for _ in 0..3 {
        let worker = agent.worker_pid("private").unwrap();
        assert!(signal(worker, Signal::SIGKILL));
        let killed = Instant::now();
        // Connects while nobody accepts: the agent's duplicate of the listening socket keeps the queue.
        let reply = get(&lab.datacentre, &private(), CONSOLE, "/").unwrap();
        let elapsed = killed.elapsed();
        assert_eq!(reply.status, 200);
        assert!(elapsed < BACK, "back after {elapsed:?}");
        agent.wait_new_worker("private", worker, SOON).unwrap();
    }
    let seen = other.total().requests();
    wait_until("more load", SOON, || (other.total().requests() >= seen + 100).then_some(())).unwrap();
    let report = other.stop().unwrap();
    assert_eq!(report.errors(), 0, "{report}");
}

#[test]
fn connections_queued_while_a_worker_is_away_are_all_served() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let agent = Agent::start(&lab).unwrap();
    let worker = agent.worker_pid("private").unwrap();
    // Stopped, not dead: it accepts nothing, so that the queue fills for certain before it is killed.
    process::stop(worker).unwrap();
    let waiting: Vec<_> = (0..50)
        .map(|_| lab.datacentre.spawn(async { client::send(&private(), Request::get(CONSOLE, "/")).await }))
        .collect();
    wait_until("connections in the queue", SOON, || (queued(&lab) >= 50).then_some(())).unwrap();
    signal(worker, Signal::SIGKILL);
    wait_until("answers", SOON, || waiting.iter().all(tokio::task::JoinHandle::is_finished).then_some(())).unwrap();
    for task in waiting {
        let reply = lab.datacentre.run(task).unwrap().unwrap();
        assert_eq!(reply.status, 200);
    }
}

/// Connections that are established and not accepted, over all listening sockets of the node.
fn queued(lab: &Lab) -> u32 {
    let mut ss = std::process::Command::new("ss");
    let output = lab.gateway.call(|| ss.args(["-Hltn"]).output()).unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().filter_map(|line| line.split_whitespace().nth(1)?.parse::<u32>().ok()).sum()
}

#[test]
fn a_worker_that_dies_again_and_again_does_not_keep_the_agent_from_its_work() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let mut agent = Agent::start(&lab).unwrap();
    for _ in 0..5 {
        let worker = wait_until("a worker", SOON, || agent.worker_pid("private")).unwrap();
        signal(worker, Signal::SIGKILL);
        agent.wait_new_worker("private", worker, SOON).unwrap();
    }
    lab.edit("shop.yaml", SHOP, "moved.example.com").unwrap();
    crate::world::wait_status(&lab.internet, &public(), "moved.example.com", "/", 200);
    crate::world::wait_status(&lab.datacentre, &private(), CONSOLE, "/", 200);
    agent.wait_ready().unwrap();
}

#[test]
fn a_worker_that_hangs_is_replaced_though_nobody_asks_anything_of_it() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let agent = Agent::start(&lab).unwrap();
    let other = agent.worker_pid("public").unwrap();
    let worker = agent.worker_pid("private").unwrap();
    process::stop(worker).unwrap();
    // The agent asks for a sign of life every 10 s and waits 20 s for it.
    agent.wait_new_worker("private", worker, 3 * SOON).unwrap();
    crate::world::wait_status(&lab.datacentre, &private(), CONSOLE, "/", 200);
    assert_eq!(agent.worker_pid("public"), Some(other), "the other domain's worker is replaced too");
}

#[test]
fn a_worker_that_hangs_does_not_delay_the_other_domain() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let agent = Agent::start(&lab).unwrap();
    let worker = agent.worker_pid("private").unwrap();
    process::stop(worker).unwrap();
    lab.edit(
        "console.yaml",
        "kind: HTTPRoute\nmetadata: {name: console,",
        "kind: HTTPRoute\nmetadata: {name: renamed,",
    )
    .unwrap();
    lab.edit("shop.yaml", SHOP, "moved.example.com").unwrap();
    crate::world::wait_status(&lab.internet, &public(), "moved.example.com", "/", 200);
    // What could not be applied must not be called ready.
    wait_until("/readyz to say no", SOON, || agent.ask("/readyz").ok().filter(|reply| reply.status == 503)).unwrap();
    signal(worker, Signal::SIGCONT);
    crate::world::wait_status(&lab.datacentre, &private(), CONSOLE, "/", 200);
    wait_until("/readyz to say yes", SOON, || agent.ask("/readyz").ok().filter(|reply| reply.status == 200)).unwrap();
}
