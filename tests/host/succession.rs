//! A second `tidegate run` of the same instance takes over from the first, as the new pod of a rolling update does: sockets,
//! workers, kernel programs. No request is lost, and a new one that dies leaves the first in charge.

use nix::sys::signal::Signal;
use tidegate_lab::{
    Agent, AgentOptions, Failure, Lab, Load, LoadPlan, Request, lab::DENIED, process::signal, wait_until,
};

use crate::world::{SHOP, SOON, World, get, knock, private, public, wait_status};

fn options(lab: &Lab, socket: &'static str) -> AgentOptions {
    let door = lab.folder().join("run/node/door.sock");
    let arguments = vec!["--handover".to_owned(), door.display().to_string()];
    AgentOptions { arguments, socket, ..AgentOptions::default() }
}

/// Waits until this agent, and no other, has everything in force.
fn wait_in_charge(agent: &Agent<'_>) {
    wait_until("the agent to be in charge", SOON * 3, || {
        agent.cli(&["status"]).is_ok_and(|said| said.code == Some(0)).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", agent.log_tail()));
}

/// Whether an agent answers at its own socket.
fn answers(agent: &Agent<'_>) -> bool {
    agent.cli(&["status", "--alive"]).is_ok_and(|said| said.code == Some(0))
}

#[test]
fn a_new_pod_takes_over_without_a_failed_request() {
    let lab = Lab::create().unwrap();
    let world = World::build(&lab);
    let first = Agent::start_with(&lab, options(&lab, "first.sock")).unwrap();
    let old_workers = ["public", "private"].map(|domain| first.worker_pid(domain).unwrap());
    let load = Load::start(&lab.internet, &LoadPlan::new(world.https(), Request::get(SHOP, "/")));
    let plan = LoadPlan::new(public(), Request::get(SHOP, "/")).with_new_connections().at_rate(100);
    let fresh = Load::start(&lab.internet, &plan);
    let inside = Load::start(&lab.datacentre, &LoadPlan::new(private(), Request::get("console.internal", "/")));

    let mut second = Agent::launch(&lab, options(&lab, "second.sock")).unwrap();
    wait_in_charge(&second);
    assert!(!answers(&first), "both are in charge");
    assert_eq!(knock(&lab.internet, &public().from(DENIED)), Err(Failure::Silent), "the kernel stopped judging");
    for (domain, old) in ["public", "private"].into_iter().zip(old_workers) {
        let new = second.wait_new_worker(domain, old, SOON).unwrap();
        wait_until("the old worker to end", SOON * 4, || (!lab.gateway.pids().contains(&old)).then_some(())).unwrap();
        assert!(lab.gateway.pids().contains(&new));
    }
    // The old pod is deleted. Nothing that the new one serves with goes with it.
    assert!(first.stop().unwrap().success());
    assert_eq!(knock(&lab.internet, &public().from(DENIED)), Err(Failure::Silent), "the kernel stopped judging");
    lab.edit("shop.yaml", SHOP, "moved.example.com").unwrap();
    wait_status(&lab.internet, &public(), "moved.example.com", "/", 200);
    lab.edit("shop.yaml", "moved.example.com", SHOP).unwrap();
    for report in [load.stop().unwrap(), fresh.stop().unwrap(), inside.stop().unwrap()] {
        let lost: u64 = report.failures.values().sum();
        // While the host name is another one, 404 is the right answer.
        let wrong: u64 =
            report.statuses.iter().filter(|(status, _)| ![200, 404].contains(*status)).map(|(_, n)| n).sum();
        assert_eq!((lost, wrong), (0, 0), "{report}");
        assert!(report.statuses[&200] > 50, "{report}");
    }
    second.wait_ready().unwrap();
    // A third one takes over from the second, now that the first is gone.
    let third = Agent::launch(&lab, options(&lab, "third.sock")).unwrap();
    wait_in_charge(&third);
    assert!(second.stop().unwrap().success());
    assert_eq!(get(&lab.internet, &public(), SHOP, "/").unwrap().status, 200);
    assert!(third.stop().unwrap().success());
    assert!(lab.gateway.pids().is_empty(), "processes stayed");
}

#[test]
fn a_new_pod_that_dies_leaves_the_old_one_in_charge() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let first = Agent::start_with(&lab, options(&lab, "first.sock")).unwrap();
    for round in 0..2 {
        let second = Agent::launch(&lab, options(&lab, "second.sock")).unwrap();
        if round == 0 {
            // Before it has taken over, or while it does: whichever comes first.
            wait_until("the first to end its agent", SOON, || (!answers(&first)).then_some(())).unwrap();
        } else {
            wait_in_charge(&second);
        }
        assert!(signal(second.init_pid(), Signal::SIGKILL));
        drop(second);
        wait_in_charge(&first);
        assert_eq!(get(&lab.internet, &public(), SHOP, "/").unwrap().status, 200);
        assert_eq!(knock(&lab.internet, &public().from(DENIED)), Err(Failure::Silent), "the kernel stopped judging");
    }
    // What the first takes over again it also changes again.
    lab.edit("shop.yaml", SHOP, "moved.example.com").unwrap();
    wait_status(&lab.internet, &public(), "moved.example.com", "/", 200);
    assert!(first.stop().unwrap().success());
    assert!(lab.gateway.pids().is_empty(), "processes stayed");
}
