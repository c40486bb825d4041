//! The agent dies: workers serve on, the kernel goes on judging, the next agent takes everything over.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use nix::sys::signal::Signal;
use serde_json::Value;
use tidegate_lab::{
    Agent, Failure, Lab, Load, LoadPlan, Request, Session,
    lab::{DENIED, INTERNET},
    process::{self, signal},
    wait_until,
};

use crate::{
    packets::send_syns,
    world::{CONSOLE, SHOP, SOON, World, get, knock, private, public, wait_status, wait_verdicts},
};

#[test]
fn a_killed_agent_costs_no_request_and_no_connection() {
    let lab = Lab::create().unwrap();
    let world = World::build(&lab);
    let mut agent = Agent::start(&lab).unwrap();
    let workers = ["public", "private"].map(|domain| agent.worker_pid(domain).unwrap());
    let mut load = Load::start(&lab.internet, &LoadPlan::new(world.https(), Request::get(SHOP, "/")));
    let mut fresh = Load::start(
        &lab.internet,
        &LoadPlan::new(public(), Request::get(SHOP, "/")).with_new_connections().at_rate(100),
    );
    let mut session = lab.datacentre.run(async { Session::connect(&private()).await }).unwrap();
    for round in 0..3 {
        let (seen, opened) = (load.total().ok(), fresh.total().ok());
        wait_until("load", SOON, || (load.total().ok() > seen + 50 && fresh.total().ok() > opened + 20).then_some(()))
            .unwrap();
        let old = agent.agent_pid().unwrap();
        assert!(signal(old, Signal::SIGKILL));
        assert_eq!(knock(&lab.internet, &public().from(DENIED)), Err(Failure::Silent), "the kernel stopped judging");
        wait_until("the next agent", SOON, || agent.agent_pid().filter(|pid| *pid != old)).unwrap();
        agent.wait_ready().unwrap();
        // The next agent owns maps and workers: a change goes through it.
        lab.write("round.yaml", &round_objects(round)).unwrap();
        wait_status(&lab.internet, &public(), &format!("round-{round}.example.com"), "/", 200);
    }
    assert_eq!(["public", "private"].map(|domain| agent.worker_pid(domain).unwrap()), workers, "workers were replaced");
    let (reply, _session) = lab.datacentre.run(async move {
        let reply = session.send(Request::get(CONSOLE, "/")).await;
        (reply, session)
    });
    assert_eq!(reply.unwrap().status, 200, "a connection from before the first kill");
    for report in [load.stop().unwrap(), fresh.stop().unwrap()] {
        assert_eq!(report.errors(), 0, "{report}");
    }
}

fn round_objects(round: u32) -> String {
    let host = format!("round-{round}.example.com");
    tidegate_lab::objects::route("shop", "round", "gw/public", &[&host], &[&tidegate_lab::objects::to_service("shop")])
}

/// The kernel opens maps within maps by id for `CAP_SYS_ADMIN` alone, which no agent has: its tables are taken over by pins.
#[test]
fn buckets_of_sources_are_kept_by_the_next_agent_and_by_one_that_finds_no_pin_replaced() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let rates = "admission: {newConnections: {perSource: {rate: 1, burst: 100000}}}";
    lab.edit("domains.yaml", "  sources: {deny", &format!("  {rates}\n  sources: {{deny")).unwrap();
    let mut agent = Agent::start(&lab).unwrap();
    let left = |agent: &Agent<'_>| {
        let words = ["explain", "--src", &INTERNET.to_string(), "--dst", &public().addr.to_string(), "-o", "json"];
        let said: Value = serde_json::from_str(&agent.cli(&words).unwrap().out).unwrap();
        let steps = said["steps"].as_array().unwrap();
        let step = steps.iter().find(|step| step["field"] == "spec.admission.newConnections.perSource").unwrap();
        let outcome = step["outcome"].as_str().unwrap().to_owned();
        outcome.split(' ').find_map(|word| word.parse::<u64>().ok()).unwrap_or_else(|| panic!("{said}"))
    };
    let (IpAddr::V4(source), SocketAddr::V4(to)) = (INTERNET, public().addr) else { unreachable!("both are IPv4") };
    send_syns(&lab.internet, [source], 5000, to);
    // One token a second comes back: what is gone now is not back within any deadline of these tests.
    let spent = |agent: &Agent<'_>| left(agent) < 100_000 - 2000;
    assert!(spent(&agent), "{} are left", left(&agent));
    let next = |agent: &mut Agent<'_>, between: &dyn Fn(u32)| {
        let old = agent.agent_pid().unwrap();
        between(old);
        assert!(signal(old, Signal::SIGKILL));
        wait_until("the next agent", SOON, || agent.agent_pid().filter(|pid| *pid != old)).unwrap();
        agent.wait_ready().unwrap();
    };
    next(&mut agent, &|_| {});
    assert!(spent(&agent), "the next agent has filled the buckets: {} are left", left(&agent));
    // Somebody removes the pin while the agent cannot put it back.
    next(&mut agent, &|old| {
        assert!(signal(old, Signal::SIGSTOP));
        let pins = find_pins(&lab.folder().join("bpf"), "RATE_TABLES-");
        assert_eq!(pins.len(), 1, "{pins:?}");
        std::fs::remove_file(&pins[0]).unwrap();
    });
    assert!(!spent(&agent), "there is no table but a new one");
    lab.write("round.yaml", &round_objects(7)).unwrap();
    wait_status(&lab.internet, &public(), "round-7.example.com", "/", 200);
}

/// Files of which the name begins so, below a folder.
pub(crate) fn find_pins(folder: &Path, start: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            found.extend(find_pins(&entry.path(), start));
        } else if entry.file_name().to_string_lossy().starts_with(start) {
            found.push(entry.path());
        }
    }
    found
}

#[test]
fn what_changed_while_no_agent_was_there_is_applied_by_the_next() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let mut agent = Agent::start(&lab).unwrap();
    let init = agent.init_pid();
    let old = agent.agent_pid().unwrap();
    // Init must not restart it before the files have changed.
    process::stop(init).unwrap();
    signal(old, Signal::SIGKILL);
    lab.delete("console.yaml").unwrap();
    lab.edit("shop.yaml", SHOP, "moved.example.com").unwrap();
    lab.edit("domains.yaml", "192.0.2.0/24", "198.51.100.10/32").unwrap();
    assert_eq!(get(&lab.internet, &public(), SHOP, "/").unwrap().status, 200, "workers serve on");
    signal(init, Signal::SIGCONT);
    wait_until("the next agent", SOON, || agent.agent_pid().filter(|pid| *pid != old)).unwrap();
    agent.wait_ready().unwrap();
    wait_status(&lab.internet, &public().from(DENIED), "moved.example.com", "/", 200);
    wait_status(&lab.datacentre, &private(), CONSOLE, "/", 404);
    let before = agent.verdicts("public", "source_denied").unwrap();
    assert_eq!(knock(&lab.internet, &public()), Err(Failure::Silent));
    wait_verdicts(&agent, "public", "source_denied", before);
}

#[test]
fn a_stopped_agent_leaves_no_process_and_can_be_started_again() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let agent = Agent::start(&lab).unwrap();
    assert_eq!(get(&lab.internet, &public(), SHOP, "/").unwrap().status, 200);
    assert!(agent.stop().unwrap().success());
    assert!(lab.gateway.pids().is_empty(), "processes stayed");
    let again = Agent::start(&lab).unwrap();
    assert_eq!(get(&lab.internet, &public(), SHOP, "/").unwrap().status, 200);
    drop(again);
}
