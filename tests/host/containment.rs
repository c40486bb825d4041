//! What a worker is and what it can reach, were it taken over: no rights, no foreign key, no address but its endpoints.

use std::{
    fs::{self, File},
    net::SocketAddr,
    os::unix::fs::FileExt,
    path::PathBuf,
};

use tidegate_lab::{Agent, Backend, Lab, process};

use crate::world::{CONSOLE, SHOP, SOON, World, at, get, private, public, wait_verdicts};

const DOMAINS: [&str; 2] = ["public", "private"];

#[test]
fn a_worker_runs_as_its_own_user_without_rights_in_its_own_cgroup() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let agent = Agent::start(&lab).unwrap();
    let mut users = Vec::new();
    for domain in DOMAINS {
        let pid = agent.worker_pid(domain).unwrap();
        let field = |name| process::status_field(pid, name).unwrap();
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(u64::from_str_radix(&field(set), 16).unwrap(), 0, "{domain} {set}");
        }
        assert_eq!(field("NoNewPrivs"), "1");
        assert_eq!(field("Seccomp"), "2", "no seccomp filter");
        assert_eq!(field("Groups"), "", "supplementary groups");
        for ids in ["Uid", "Gid"] {
            let ids: Vec<u32> = field(ids).split_whitespace().map(|id| id.parse().unwrap()).collect();
            assert!(ids.iter().all(|id| *id != 0 && *id == ids[0]), "{domain}: {ids:?}");
            users.push(ids[0]);
        }
        let group = cgroup(pid);
        assert!(group.ends_with(format!("tidegate/{}/{domain}", lab.name)), "{group:?}");
        for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
            let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
            assert!(status.lines().any(|line| line == "Seccomp:\t2"), "a thread of {domain} without seccomp");
        }
    }
    assert_ne!(users[0], users[2], "both domains run as one user");
}

#[test]
fn a_worker_holds_no_key_of_another_domain() {
    let lab = Lab::create().unwrap();
    let world = World::build(&lab);
    let agent = Agent::start(&lab).unwrap();
    assert_eq!(get(&lab.internet, &world.https(), SHOP, "/").unwrap().status, 200);
    assert_eq!(get(&lab.datacentre, &private(), CONSOLE, "/").unwrap().status, 200);
    // The private scalar of a P-256 key in PKCS#8: 32 bytes behind the header of the inner ECPrivateKey.
    let scalar = &world.leaf.key_der[36..68];
    assert_eq!(world.leaf.key_der[34..36], [0x04, 0x20], "not the PKCS#8 layout that this test knows");
    let holders = DOMAINS.map(|domain| memory_contains(agent.worker_pid(domain).unwrap(), scalar));
    assert_eq!(holders, [true, false], "public must hold the key (else the search proves nothing), private must not");
}

#[test]
fn a_process_in_a_workers_cgroup_reaches_that_domains_endpoints_and_nothing_else() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let agent = Agent::start(&lab).unwrap();
    let _elsewhere = Backend::start(&lab.backends, "elsewhere", at("10.30.0.40", 8080)).unwrap();
    for (domain, own, foreign) in [("public", "10.30.0.11", "10.30.0.31"), ("private", "10.30.0.31", "10.30.0.11")] {
        let group = cgroup(agent.worker_pid(domain).unwrap());
        assert!(dial_in(&lab, &group, at(own, 8080)), "{domain} cannot reach its own endpoint");
        let before = agent.verdicts(domain, "dial_denied").unwrap();
        for address in
            [at(foreign, 8080), at("10.30.0.40", 8080), at(own, 8081), at("127.0.0.1", 9590), at("fd00:30::11", 8080)]
        {
            assert!(!dial_in(&lab, &group, address), "{domain} reached {address}");
        }
        assert_eq!(wait_verdicts(&agent, domain, "dial_denied", before + 4.0), before + 5.0);
    }
}

#[test]
fn an_endpoint_that_goes_can_no_longer_be_dialled() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let agent = Agent::start(&lab).unwrap();
    let group = cgroup(agent.worker_pid("private").unwrap());
    assert!(dial_in(&lab, &group, at("10.30.0.31", 8080)));
    lab.edit("console.yaml", "10.30.0.31", "10.30.0.32").unwrap();
    tidegate_lab::wait_until("the guard to follow", SOON, || {
        (!dial_in(&lab, &group, at("10.30.0.31", 8080))).then_some(())
    })
    .unwrap();
    let _moved = Backend::start(&lab.backends, "moved", at("10.30.0.32", 8080)).unwrap();
    assert!(dial_in(&lab, &group, at("10.30.0.32", 8080)));
    assert_eq!(get(&lab.internet, &public(), SHOP, "/").unwrap().status, 200);
}

/// The cgroup v2 folder of a process.
pub(crate) fn cgroup(pid: u32) -> PathBuf {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let path = text.lines().find_map(|line| line.strip_prefix("0::/")).unwrap();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2")).unwrap();
    PathBuf::from(mount.split(' ').nth(1).unwrap()).join(path)
}

/// Whether a process that joins a cgroup on the node can connect. Anything but success or EPERM fails the test.
pub(crate) fn dial_in(lab: &Lab, group: &std::path::Path, addr: SocketAddr) -> bool {
    let mut command = std::process::Command::new(process::program("tidegate-lab").unwrap());
    command.args(["dial", &group.display().to_string(), &addr.to_string()]);
    let output = lab.gateway.call(|| command.output()).unwrap();
    match String::from_utf8_lossy(&output.stdout).trim() {
        "connected" => true,
        "EPERM" => false,
        other => panic!("dial {addr}: {other} {}", String::from_utf8_lossy(&output.stderr)),
    }
}

/// Whether bytes, or the same number in little-endian limbs, are anywhere in the writable memory of a process.
fn memory_contains(pid: u32, wanted: &[u8]) -> bool {
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|rights| rights.starts_with("rw"))).any(|line| {
        let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let [start, end] = [start, end].map(|text| u64::from_str_radix(text, 16).unwrap());
        let mut bytes = vec![0; usize::try_from(end - start).unwrap()];
        // A guard page or a region that went meanwhile cannot be read; nothing is kept there.
        memory.read_exact_at(&mut bytes, start).is_ok()
            && bytes.windows(wanted.len()).any(|window| window == wanted || window.iter().eq(wanted.iter().rev()))
    })
}
