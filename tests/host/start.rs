//! Starting where something is missing: a clear refusal, or service without what is missing.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    process::Command,
    time::Duration,
};

use tidegate_lab::{Agent, AgentOptions, Backend, Lab, Target, agent::tidegate, objects, process, wait_until};

use crate::{
    agent_faults::find_pins,
    world::{CONSOLE, SHOP, SOON, World, at, backend, domains, get, private, public, wait_status},
};

/// An unprivileged user of every Debian.
const NOBODY: &str = "65534";

#[test]
fn require_refuses_without_rights_and_says_what_is_missing() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    // Where this user can run it: the folder of the build may be root's alone.
    let program = std::env::temp_dir().join(&lab.name);
    fs::copy(process::program("tidegate").unwrap(), &program).unwrap();
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"])
        .arg(&program)
        .args(["run", "--kernel", "require", "--instance", &lab.name, "--admin", "127.0.0.1:0"])
        .arg("--source")
        .arg(format!("directory={}", lab.config().display()))
        .arg("--socket")
        .arg(std::env::temp_dir().join(format!("{}.sock", lab.name)))
        .arg("--bpffs")
        .arg(lab.folder().join("bpf"));
    let output = lab.gateway.call(|| command.output()).unwrap();
    fs::remove_file(&program).unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("CAP_") || said.to_lowercase().contains("root"), "{said}");
}

#[test]
fn domains_that_come_together_to_a_running_agent_are_served_and_guarded() {
    let lab = Lab::create().unwrap();
    let mut agent = Agent::start(&lab).unwrap();
    // With nothing to dial yet: what one domain asks of the kernel first must not take the other for one that is gone.
    lab.write("domains.yaml", &domains()).unwrap();
    for domain in ["public", "private"] {
        wait_until("a worker", SOON, || agent.worker_pid(domain)).unwrap();
    }
    agent.wait_ready().unwrap();
    // Before the first frontend: the first IPv6 one makes the agent prepare the domain anew.
    for domain in [1, 2] {
        let guards = find_pins(&lab.folder().join("bpf"), &format!("guard-{domain}-"));
        assert!(!guards.is_empty(), "no guard on the worker of domain {domain}");
    }
    let _world = World::build(&lab);
    wait_status(&lab.internet, &public(), SHOP, "/", 200);
    wait_status(&lab.datacentre, &private(), CONSOLE, "/", 200);
}

#[test]
fn workers_start_from_a_folder_that_only_root_may_enter() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let folder = lab.folder().join("closed");
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, Permissions::from_mode(0o700)).unwrap();
    let program = folder.join("tidegate");
    fs::copy(process::program("tidegate").unwrap(), &program).unwrap();
    let _agent = Agent::start_with(&lab, AgentOptions { program: Some(program), ..AgentOptions::default() }).unwrap();
    assert_eq!(get(&lab.internet, &public(), SHOP, "/").unwrap().status, 200);
}

#[test]
fn bpffs_that_is_not_mounted_is_mounted() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let bpffs = lab.folder().join("bpf");
    nix::mount::umount2(&bpffs, nix::mount::MntFlags::empty()).unwrap();
    let _agent = Agent::start(&lab).unwrap();
    assert_eq!(get(&lab.internet, &public(), SHOP, "/").unwrap().status, 200);
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(mounts.lines().any(|line| line.contains(&bpffs.display().to_string()) && line.contains(" bpf ")));
}

/// A Gateway at an address of the node, for `--kernel=off`.
fn plain(port: u16) -> String {
    objects::join([
        objects::domain("public", "wan0", &["198.51.100.1/32"], &[]),
        objects::class("public"),
        objects::gateway(
            "gw",
            "plain",
            "public",
            &["198.51.100.1"],
            &[&objects::http_listener("one", port), &objects::http_listener("two", port + 1)],
        ),
        objects::namespace("shop", "team: shop"),
        objects::route("shop", "shop", "gw/plain", &[], &[&objects::to_service("shop")]),
        objects::service_at("shop", "shop", &["10.30.0.11"]),
    ])
}

#[test]
fn without_the_kernel_tier_the_same_objects_are_served_on_bound_sockets() {
    let lab = Lab::create().unwrap();
    lab.write("plain.yaml", &plain(8000)).unwrap();
    let _shop = backend(&lab, "shop", "10.30.0.11:8080");
    let agent = Agent::start_with(&lab, AgentOptions { kernel: "off", ..AgentOptions::default() }).unwrap();
    assert_eq!(get(&lab.internet, &Target::http(at("198.51.100.1", 8000)), SHOP, "/").unwrap().status, 200);
    assert!(agent.log().contains("kernel"), "no warning that admission is off:\n{}", agent.log_tail());
}

#[test]
fn a_port_in_use_costs_one_listener_and_is_taken_when_it_is_free() {
    let lab = Lab::create().unwrap();
    lab.write("plain.yaml", &plain(8000)).unwrap();
    let _shop = backend(&lab, "shop", "10.30.0.11:8080");
    let squatter = Backend::start(&lab.gateway, "squatter", at("198.51.100.1", 8000)).unwrap();
    let agent = Agent::launch(&lab, AgentOptions { kernel: "off", ..AgentOptions::default() }).unwrap();
    wait_status(&lab.internet, &Target::http(at("198.51.100.1", 8001)), SHOP, "/", 200);
    tidegate_lab::wait_until("the port to be named", SOON, || agent.log().contains("198.51.100.1:8000").then_some(()))
        .unwrap();
    drop(squatter);
    tidegate_lab::wait_until("the freed port to be served", Duration::from_secs(20), || {
        let reply = get(&lab.internet, &Target::http(at("198.51.100.1", 8000)), SHOP, "/").ok()?;
        (reply.backend() == Some("shop")).then_some(())
    })
    .unwrap();
}

#[test]
fn a_second_agent_of_the_same_instance_is_refused() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let _agent = Agent::start(&lab).unwrap();
    let mut second = Agent::launch(&lab, AgentOptions::default()).unwrap();
    let status = second.wait_end(Duration::from_secs(20)).unwrap();
    assert!(!status.success());
    assert_eq!(get(&lab.internet, &public(), SHOP, "/").unwrap().status, 200);
}

#[test]
fn wrong_options_are_refused_with_the_way_to_mend_them() {
    for (words, hint) in [
        (vec!["run", "--source", "nonsense"], "directory="),
        (
            vec!["run", "--source", "directory=/does/not/exist", "--kernel", "off", "--admin", "127.0.0.1:0"],
            "/does/not/exist",
        ),
        (vec!["check", "/does/not/exist.yaml"], "/does/not/exist.yaml"),
        (vec!["status", "--socket", "/does/not/exist.sock"], "/does/not/exist.sock"),
    ] {
        let said = tidegate(&words).unwrap();
        assert!(said.code.is_some_and(|code| code != 0), "{words:?}: {said:?}");
        assert!(format!("{}{}", said.err, said.out).contains(hint), "{words:?}: {said:?}");
    }
}
