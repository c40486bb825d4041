//! Who writes status: one agent at a time, whoever else wants to, and another one when it dies.

use std::{
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;
use tidegate_lab::{process::signal, wait_for};

use crate::kit::{AGENTS, Cluster, LATER, Stage};

const LEASE: &str = "lease/tidegate-status";
/// A second node, which the second agent of the test pretends to run on.
const NODE: &str = "second";

/// An agent of another node: the same program, in the data-centre client's network namespace, without the kernel tier.
struct Second<'a> {
    cluster: &'a Cluster,
    init: Child,
}

impl<'a> Second<'a> {
    fn start(cluster: &'a Cluster) -> Self {
        cluster.apply(&format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {NODE}}}\n")).unwrap();
        let program = std::env::var("TIDEGATE_BIN").expect("`cargo xtask test cluster` names the agent");
        // The namespace of a client of the API server is that of its context.
        let script = format!(
            "cp \"$KUBECONFIG\" \"$1\" && export KUBECONFIG=\"$1\" && \
             kubectl config set-context --current --namespace={AGENTS} >/dev/null && \
             exec nsenter --net=/run/netns/datacentre -- \"$2\" run --source kube --node {NODE} --kernel off \
             --socket /run/tidegate-second.sock --access-log false"
        );
        let mut command = cluster.command(&["sh", "-c", &script, "sh", "/run/tidegate-second.kubeconfig", &program]);
        let init = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        Self { cluster, init }
    }
}

impl Drop for Second<'_> {
    fn drop(&mut self) {
        signal(self.init.id(), Signal::SIGTERM);
        let _ = self.init.wait();
        let _ = self.cluster.kubectl(&["delete", "node", NODE, "--ignore-not-found"]);
        let _ = self.cluster.kubectl(&["delete", "nodereport", NODE, "--ignore-not-found"]);
    }
}

fn holder(cluster: &Cluster) -> anyhow::Result<(String, u64)> {
    let lease = cluster.object(AGENTS, LEASE)?;
    let holder = lease["spec"]["holderIdentity"].as_str().filter(|holder| !holder.is_empty());
    let transitions = lease["spec"]["leaseTransitions"].as_u64().unwrap_or_default();
    Ok((holder.context("nobody holds the Lease")?.to_owned(), transitions))
}

/// Waits until an agent of a node holds the Lease.
fn wait_holder(cluster: &Cluster, node: &str) -> String {
    wait_for(&format!("an agent of {node} to hold the Lease"), LATER, || {
        let (holder, _) = holder(cluster)?;
        ensure!(holder.starts_with(&format!("{node}_")), "{holder} holds it");
        Ok(holder)
    })
    .unwrap()
}

#[test]
fn of_two_agents_one_writes_status_and_the_other_takes_over_when_it_dies() {
    let cluster = Cluster::find().unwrap();
    let stage = Stage::set(&cluster, "lease");
    let first = wait_holder(&cluster, "node1");
    let second = Second::start(&cluster);
    wait_for("the second agent's report", LATER, || cluster.object("", &format!("nodereport/{NODE}"))).unwrap();
    assert_eq!(holder(&cluster).unwrap().0, first, "a newcomer has taken the Lease from one that lives");
    // Both race for a Lease that nobody has, again and again: one wins, and keeps it.
    for _ in 0..3 {
        cluster.kubectl(&["delete", LEASE, "-n", AGENTS]).unwrap();
        let winner = wait_for("a holder", LATER, || holder(&cluster)).unwrap();
        for _ in 0..10 {
            std::thread::sleep(Duration::from_millis(300));
            assert_eq!(holder(&cluster).unwrap(), winner, "two agents take the Lease from each other");
        }
    }
    // Whoever has it stands still, as dead as an agent can be without somebody noticing at once.
    let (held, transitions) = holder(&cluster).unwrap();
    let is_first = held.starts_with("node1_");
    let frozen = if is_first { cluster.agent_pid(&["agent"]).unwrap() } else { child_of(second.init.id()) };
    assert!(signal(frozen, Signal::SIGSTOP));
    let other = wait_holder(&cluster, if is_first { NODE } else { "node1" });
    assert!(holder(&cluster).unwrap().1 > transitions);
    // Objects get their status from the new one: this route's can be judged without the node that stands still.
    stage.route("late", "late.example.com");
    wait_for("the status of a new route", LATER, || {
        let condition = stage.route_condition("httproute/late", "Accepted")?;
        ensure!(condition.0 == "True", "{condition:?}");
        Ok(())
    })
    .unwrap();
    // The one that stood still learns that it is no holder any more.
    assert!(signal(frozen, Signal::SIGCONT));
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(holder(&cluster).unwrap().0, other, "it took the Lease back");
    }
    drop(second);
    wait_holder(&cluster, "node1");
    stage.wait_status("late.example.com", 200);
}

/// The agent proper of an init of this machine, by the script that started it.
fn child_of(init: u32) -> u32 {
    let text = std::fs::read_to_string(format!("/proc/{init}/task/{init}/children")).unwrap();
    text.split_whitespace().next().and_then(|pid| pid.parse().ok()).expect("init has an agent")
}
