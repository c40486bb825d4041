//! What the agent owns in the kernel: shown, ended, kept up against others, and said where it cannot be had.

use std::{path::PathBuf, process::Command};

use serde_json::Value;
use tidegate_lab::{Agent, Failure, Lab, wait_until};

use crate::world::{CONSOLE, SHOP, SOON, World, domains, get, knock, private, public, wait_status};

/// Where the lab's agent has its pins.
fn pins(lab: &Lab) -> PathBuf {
    lab.folder().join("bpf/tidegate").join(&lab.name)
}

/// `tidegate bpf VERB` on the lab's BPF file system: the exit code and what was said.
fn bpf(lab: &Lab, words: &[&str]) -> (i32, String) {
    let mut command = Command::new(tidegate_lab::process::program("tidegate").unwrap());
    command.arg("bpf").args(words).arg("--bpffs").arg(lab.folder().join("bpf"));
    let output = lab.gateway.call(|| command.output()).unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.code().unwrap(), text)
}

fn bpf_status(lab: &Lab) -> Value {
    let (code, text) = bpf(lab, &["status", "-o", "json"]);
    assert_eq!(code, 0, "{text}");
    serde_json::from_str(&text).unwrap()
}

/// Runs a program of the system on the node; whether it succeeded.
fn run(lab: &Lab, words: &str) -> bool {
    let mut words = words.split_whitespace();
    let mut command = Command::new(words.next().unwrap());
    command.args(words);
    lab.gateway.call(|| command.output()).unwrap().status.success()
}

fn index_of(lab: &Lab, name: &str) -> u32 {
    lab.gateway.call(|| nix::net::if_::if_nametoindex(name)).unwrap()
}

/// The condition `InterfacesNative` of a domain: whether it holds, reason and message.
fn native(agent: &Agent<'_>, domain: &str) -> Option<(bool, String, String)> {
    let status: Value = agent.cli(&["status", "-o", "json"]).ok()?.json().ok()?;
    let objects = status["objects"].as_array()?;
    let object = objects.iter().find(|object| object["kind"] == "TrafficDomain" && object["name"] == domain)?;
    let conditions = object["conditions"].as_array()?;
    let condition = conditions.iter().find(|condition| condition["type"] == "InterfacesNative")?;
    let text = |name: &str| condition[name].as_str().unwrap_or_default().to_owned();
    Some((condition["status"].as_bool()?, text("reason"), text("message")))
}

fn wait_native(agent: &Agent<'_>, domain: &str, reason: &str) -> String {
    wait_until(&format!("{domain} to be {reason}"), SOON, || {
        native(agent, domain).filter(|(is_native, found, _)| found == reason && *is_native == (reason == "Native"))
    })
    .unwrap_or_else(|error| panic!("{error}; now {:?}", native(agent, domain)))
    .2
}

#[test]
fn what_an_instance_has_in_the_kernel_is_shown_and_ended() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let agent = Agent::start(&lab).unwrap();
    let status = bpf_status(&lab);
    let instance = &status["instances"][0];
    assert_eq!((&instance["instance"], &instance["isRunning"]), (&lab.name.as_str().into(), &true.into()));
    let links: Vec<String> = instance["links"].as_array().unwrap().iter().map(|link| link["pin"].to_string()).collect();
    for part in ["xdp-", "steer", "guard-1", "guard-2", "guard_socket", "guard_bind6", "borrowed_connect4"] {
        assert!(links.iter().any(|link| link.contains(part)), "no {part} in {links:?}");
    }
    assert_eq!(status["nics"].as_array().unwrap().len(), 2, "{status}");
    let (code, text) = bpf(&lab, &["status"]);
    assert!(code == 0 && text.contains("interface wan0 (native)") && text.contains("its agent runs"), "{text}");
    // Not under a running agent.
    let (code, text) = bpf(&lab, &["detach", "--instance", &lab.name]);
    assert_eq!(code, 3, "{text}");
    assert_eq!(bpf_status(&lab)["instances"][0]["links"].as_array().unwrap().len(), links.len());
    // Unless it is meant; the agent puts it back.
    let (code, text) = bpf(&lab, &["detach", "--force", "--instance", &lab.name]);
    assert_eq!(code, 0, "{text}");
    wait_until("the agent to put everything back", SOON, || {
        let status = bpf_status(&lab);
        let back = status["instances"][0]["links"].as_array().map_or(0, Vec::len);
        (back == links.len() && status["nics"].as_array()?.len() == 2).then_some(())
    })
    .unwrap();
    assert_eq!(get(&lab.internet, &public(), SHOP, "/").unwrap().status, 200);
    // What an agent leaves that dies with its init.
    let init = agent.init_pid();
    tidegate_lab::process::signal(init, nix::sys::signal::Signal::SIGKILL);
    wait_until("the end of all", SOON, || lab.gateway.pids().is_empty().then_some(())).unwrap();
    let left = bpf_status(&lab);
    assert_eq!(left["instances"][0]["isRunning"], false);
    assert_eq!(left["nics"].as_array().unwrap().len(), 2, "packets are judged on");
    let (code, text) = bpf(&lab, &["detach", "--instance", &lab.name]);
    assert_eq!(code, 0, "{text}");
    let left = bpf_status(&lab);
    assert_eq!(left["instances"].as_array().unwrap().len() + left["nics"].as_array().unwrap().len(), 0, "{left}");
    drop(agent);
}

#[test]
fn a_nic_that_somebody_else_takes_is_named_and_taken_back_when_it_is_free() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let agent = Agent::start(&lab).unwrap();
    wait_native(&agent, "private", "Native");
    let lan = index_of(&lab, "lan0");
    let link = pins(&lab).join(format!("links/xdp-{lan}-native"));
    let program = pins(&lab).join("programs/explain");
    // The agent may be the quicker one; then it is tried again.
    wait_until("somebody else to take the NIC", SOON, || {
        run(&lab, &format!("bpftool link detach pinned {}", link.display()));
        run(&lab, &format!("ip link set dev lan0 xdp pinned {}", program.display())).then_some(())
    })
    .unwrap();
    let message = wait_native(&agent, "private", "Refused");
    for part in ["lan0", "another XDP program", "\"explain\" (program id ", "is not replaced"] {
        assert!(message.contains(part), "{part} is not in: {message}");
    }
    let status = bpf_status(&lab).to_string();
    assert!(status.contains("\"explain\\\" (program id "), "{status}");
    assert_eq!(get(&lab.internet, &public(), SHOP, "/").unwrap().status, 200, "the other NIC is no matter of it");
    assert!(run(&lab, "ip link set dev lan0 xdp off"));
    wait_native(&agent, "private", "Native");
    wait_status(&lab.datacentre, &private(), CONSOLE, "/", 200);
    assert_eq!(knock(&lab.datacentre, &public()), Err(Failure::Silent), "it is judged again");
}

#[test]
fn a_nic_without_native_mode_is_a_condition_of_its_domain() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let agent = Agent::start(&lab).unwrap();
    wait_native(&agent, "public", "Native");
    lab.gateway.ip("link add bridge0 type bridge\nlink set bridge0 up\n").unwrap();
    lab.write("domains.yaml", &domains().replace("[wan0]", "[wan0, bridge0]")).unwrap();
    assert!(wait_native(&agent, "public", "Generic").starts_with("bridge0: "));
    assert!(agent.cli(&["status"]).unwrap().out.contains("bridge0 (generic)"));
    lab.gateway.ip("link del bridge0\n").unwrap();
    assert!(wait_native(&agent, "public", "Missing").starts_with("bridge0: "));
}

#[test]
fn a_nic_that_changes_name_size_or_queues_is_judged_as_before() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let agent = Agent::start(&lab).unwrap();
    wait_native(&agent, "public", "Native");
    let serves = || get(&lab.internet, &public(), SHOP, "/").is_ok_and(|reply| reply.status == 200);
    let refuses = || knock(&lab.internet, &private()) == Err(Failure::Silent);
    assert!(serves() && refuses());
    lab.gateway.ip("link set wan0 mtu 1400\n").unwrap();
    assert!(serves() && refuses(), "another MTU");
    // Frames larger than a page holds beside what XDP needs: veth refuses to send them to an end with `admit` on it.
    assert!(lab.internet.ip("link set eth0 mtu 9000\n").is_err(), "veth took jumbo frames under XDP");
    lab.gateway.ip("link set wan0 mtu 9000\n").unwrap();
    assert!(serves() && refuses(), "another MTU");
    for (rx, tx) in [(1, 1), (2, 2), (2, 1)] {
        assert!(run(&lab, &format!("ethtool -L wan0 rx {rx} tx {tx}")), "ethtool -L rx {rx} tx {tx}");
        assert!(serves() && refuses(), "{rx} and {tx} queues");
    }
    wait_native(&agent, "public", "Native");
    // A name is what a domain knows a NIC by.
    lab.gateway.ip("link set wan0 down\nlink set wan0 name wan9\nlink set wan9 up\n").unwrap();
    wait_native(&agent, "public", "Missing");
    assert!(!serves(), "a NIC that no domain names serves a domain");
    lab.gateway.ip("link set wan9 down\nlink set wan9 name wan0\nlink set wan0 up\n").unwrap();
    wait_native(&agent, "public", "Native");
    wait_until("routes to be used again", SOON, || (serves() && refuses()).then_some(())).unwrap();
}
