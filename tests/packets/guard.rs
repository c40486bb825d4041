//! `guard`: what a process in a worker's cgroup can dial, tried by a real process put into one.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{self, Write},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use tidegate_kernel::{Hook, Reason, probe};
use tidegate_model::DomainId;

use crate::bed::{Bed, PRIVATE, PUBLIC, desired, ip, on_bed};

/// Tells the child which cgroup to enter.
const CGROUP: &str = "TIDEGATE_PACKETS_CGROUP";
/// Tells the child what to dial: kinds and addresses.
const DIALS: &str = "TIDEGATE_PACKETS_DIALS";

/// A cgroup of the test's own.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(bed: &Bed, name: &str) -> Self {
        let features = probe(&bed.config.bpffs).expect("this host can run the kernel tier");
        let path = features.cgroup2.join(format!("{}-{name}", bed.config.instance));
        fs::create_dir(&path).expect("making a cgroup");
        Self(path)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// What came of each dial: "ok" or the number of the error.
fn dial_from(cgroup: &Cgroup, dials: &[(&str, SocketAddr)]) -> BTreeMap<String, String> {
    let text: Vec<String> = dials.iter().map(|(kind, addr)| format!("{kind} {addr}")).collect();
    let output = Command::new(env::current_exe().expect("this program"))
        .args(["--exact", "guard::a_process_that_nobody_guards_dials_anything", "--nocapture"])
        .env(CGROUP, cgroup.0.join("cgroup.procs"))
        .env(DIALS, text.join(","))
        .stderr(Stdio::inherit())
        .output()
        .expect("starting the child");
    assert!(output.status.success(), "the child failed: {}", String::from_utf8_lossy(&output.stdout));
    let stdout = String::from_utf8(output.stdout).expect("text");
    let results =
        stdout.lines().filter_map(|line| line.rsplit_once("DIALLED ")).filter_map(|(_, line)| line.split_once('='));
    results.map(|(dial, result)| (dial.to_owned(), result.to_owned())).collect()
}

/// Dials once; the number of the error, if any.
fn dial(kind: &str, addr: SocketAddr) -> String {
    let any: SocketAddr = if addr.is_ipv4() { ([0; 4], 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let result = match kind {
        "tcp" => TcpStream::connect_timeout(&addr, Duration::from_secs(5)).map(drop),
        "udp" => UdpSocket::bind(any).expect("binding").connect(addr),
        "sendto" => UdpSocket::bind(any).expect("binding").send_to(b"x", addr).map(drop),
        _ => panic!("{kind}?"),
    };
    result.map_or_else(|error| error.raw_os_error().unwrap_or(-1).to_string(), |()| "ok".to_owned())
}

/// Also the process that `dial_from` starts in a guarded cgroup: there it tells its parent how each dial went.
#[test]
fn a_process_that_nobody_guards_dials_anything() {
    let Ok(procs) = env::var(CGROUP) else {
        let (_listener, addr) = listen("127.0.0.1:0");
        for kind in ["tcp", "udp", "sendto"] {
            assert_eq!(dial(kind, addr), "ok", "{kind}");
        }
        return;
    };
    fs::write(procs, std::process::id().to_string()).expect("entering the cgroup");
    for told in env::var(DIALS).expect("set by the parent").split(',') {
        let (kind, addr) = told.split_once(' ').expect("kind and address");
        let result = dial(kind, addr.parse().expect("an address"));
        // Straight to the descriptor: what the harness prints around it stays on lines of its own.
        writeln!(io::stdout(), "\nDIALLED {told}={result}").expect("writing");
    }
}

fn assert_dials(cgroup: &Cgroup, cases: &[(&str, SocketAddr, bool)]) {
    let dials: Vec<_> = cases.iter().map(|(kind, addr, _)| (*kind, *addr)).collect();
    let results = dial_from(cgroup, &dials);
    for (kind, addr, is_allowed) in cases {
        let expected = if *is_allowed { "ok".to_owned() } else { libc::EPERM.to_string() };
        assert_eq!(results.get(&format!("{kind} {addr}")), Some(&expected), "{kind} {addr}");
    }
}

fn mapped(addr: SocketAddr) -> SocketAddr {
    match addr {
        SocketAddr::V4(v4) => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
        SocketAddr::V6(_) => panic!("{addr} is not IPv4"),
    }
}

fn listen(addr: &str) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind(addr).expect("binding");
    let addr = listener.local_addr().expect("an address");
    (listener, addr)
}

#[test]
fn a_worker_dials_its_endpoints_and_nothing_else() {
    on_bed(|bed| {
        ip("addr add 192.168.7.1/32 dev lo");
        let (_own_v4, own_v4) = listen("127.0.0.1:0");
        let (_own_v6, own_v6) = listen("[::1]:0");
        let (_other, other) = listen("192.168.7.1:0");
        let mut state = desired(bed.wan, bed.lan);
        state.domains.get_mut(&PUBLIC).expect("in every bed").dialled = [own_v4, own_v6].into();
        bed.kernel.apply(&state).expect("applying");
        let cgroup = Cgroup::new(bed, "public");
        bed.kernel.watch_cgroup(PUBLIC, &cgroup.0).expect("guarding");
        let same_port = SocketAddr::new(other.ip(), own_v4.port());
        let same_host = SocketAddr::new(own_v4.ip(), other.port());
        assert_dials(
            &cgroup,
            &[
                ("tcp", own_v4, true),
                ("tcp", mapped(own_v4), true),
                ("tcp", own_v6, true),
                ("tcp", other, false),
                ("tcp", mapped(other), false),
                ("tcp", same_port, false),
                ("tcp", same_host, false),
                ("tcp", SocketAddr::new([0; 4].into(), own_v4.port()), false),
                ("udp", own_v4, false),
                ("udp", own_v6, false),
                ("sendto", own_v4, false),
                ("sendto", mapped(own_v4), false),
                ("sendto", own_v6, false),
            ],
        );
        assert_eq!(bed.count(PUBLIC, Hook::Guard, Reason::DialAllowed), 3);
        assert_eq!(bed.count(PUBLIC, Hook::Guard, Reason::DialDenied), 10);
    });
}

#[test]
fn an_endpoint_is_added_and_removed_alone() {
    on_bed(|bed| {
        let (_first, first) = listen("127.0.0.1:0");
        let (_second, second) = listen("127.0.0.1:0");
        let cgroup = Cgroup::new(bed, "public");
        bed.kernel.watch_cgroup(PUBLIC, &cgroup.0).expect("guarding");
        assert_dials(&cgroup, &[("tcp", first, false), ("tcp", second, false)]);
        assert!(bed.kernel.set_dialled(PUBLIC, &[first], &[]).is_empty());
        assert_dials(&cgroup, &[("tcp", first, true), ("tcp", second, false)]);
        assert!(bed.kernel.set_dialled(PUBLIC, &[second], &[first]).is_empty());
        assert_dials(&cgroup, &[("tcp", first, false), ("tcp", second, true)]);
    });
}

#[test]
fn domains_do_not_share_endpoints() {
    on_bed(|bed| {
        let (_public, public) = listen("127.0.0.1:0");
        let (_private, private) = listen("127.0.0.1:0");
        assert!(bed.kernel.set_dialled(PUBLIC, &[public], &[]).is_empty());
        assert!(bed.kernel.set_dialled(PRIVATE, &[private], &[]).is_empty());
        for (domain, name, own, other) in [(PUBLIC, "public", public, private), (PRIVATE, "private", private, public)] {
            let cgroup = Cgroup::new(bed, name);
            bed.kernel.watch_cgroup(domain, &cgroup.0).expect("guarding");
            assert_dials(&cgroup, &[("tcp", own, true), ("tcp", other, false)]);
            assert_eq!(bed.count(domain, Hook::Guard, Reason::DialDenied), 1);
        }
    });
}

#[test]
fn an_unwatched_cgroup_is_free_and_an_unknown_one_is_refused() {
    on_bed(|bed| {
        let (_listener, addr) = listen("127.0.0.1:0");
        let cgroup = Cgroup::new(bed, "free");
        assert_dials(&cgroup, &[("tcp", addr, true)]);
        bed.kernel.watch_cgroup(PUBLIC, &cgroup.0).expect("guarding");
        assert_dials(&cgroup, &[("tcp", addr, false)]);
        // A process one level deeper has another cgroup id, which no domain knows: refused, not let through.
        let inner = Cgroup(cgroup.0.join("inner"));
        fs::create_dir(&inner.0).expect("making a cgroup");
        assert!(bed.kernel.set_dialled(PUBLIC, &[addr], &[]).is_empty());
        assert_dials(&inner, &[("tcp", addr, false)]);
        assert_dials(&cgroup, &[("tcp", addr, true)]);
        // Counted under no domain; steer and admit saw nothing.
        assert_eq!(bed.count(DomainId(0), Hook::Guard, Reason::DialDenied), 1);
        bed.kernel.unwatch_cgroup(&cgroup.0).expect("ending the guard");
        assert!(bed.kernel.watched().expect("reading").is_empty());
        assert!(bed.kernel.set_dialled(PUBLIC, &[], &[addr]).is_empty());
        assert_dials(&inner, &[("tcp", addr, true)]);
    });
}

#[test]
fn what_is_left_of_a_removed_cgroup_is_swept() {
    on_bed(|bed| {
        let cgroup = Cgroup::new(bed, "gone");
        bed.kernel.watch_cgroup(PUBLIC, &cgroup.0).expect("guarding");
        let path = cgroup.0.clone();
        drop(cgroup);
        assert!(!path.exists());
        // The kernel lets go of the links when the cgroup's last reference goes, a moment later.
        let deadline = std::time::Instant::now() + Duration::from_secs(5);
        while !bed.kernel.watched().expect("reading").is_empty() {
            assert!(std::time::Instant::now() < deadline, "the guard of a removed cgroup stays");
            bed.kernel.unwatch_cgroup(&path).expect("sweeping");
            std::thread::yield_now();
        }
    });
}
