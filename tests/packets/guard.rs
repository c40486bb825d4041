//! `guard`: what a process in a worker's cgroup can dial, tried by a real process put into one.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{self, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use nix::sys::socket::{self, SockaddrStorage};
use tidegate_kernel::{Hook, Reason, probe};
use tidegate_model::DomainId;

use crate::{
    bed::{Bed, PRIVATE, PUBLIC, desired, ip, on_bed},
    sys::{disconnect, open_socket},
};

/// Tells the child which cgroup to enter.
const CGROUP: &str = "TIDEGATE_PACKETS_CGROUP";
/// Tells the child what to dial: kinds and addresses.
const DIALS: &str = "TIDEGATE_PACKETS_DIALS";

/// A cgroup of the test's own.
pub(crate) struct Cgroup(pub(crate) PathBuf);

impl Cgroup {
    pub(crate) fn new(bed: &Bed, name: &str) -> Self {
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

/// Does one thing with an address; the number of the error, if any. `borrowed` are sockets from before the process entered
/// the cgroup, as a worker has them from the agent.
fn dial(kind: &str, addr: SocketAddr, borrowed: &mut Borrowed) -> String {
    let family = if addr.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let open = |kind, protocol| open_socket(family, kind, protocol);
    let connect =
        |socket: OwnedFd| socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(addr)).map_err(Into::into);
    let bind = |socket: OwnedFd| socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(addr)).map_err(Into::into);
    let result: io::Result<()> = match kind {
        "tcp" => TcpStream::connect_timeout(&addr, Duration::from_secs(5)).map(drop),
        "udp" => open(libc::SOCK_DGRAM, 0).and_then(connect),
        "sendto" => open(libc::SOCK_DGRAM, 0).and_then(|socket| UdpSocket::from(socket).send_to(b"x", addr).map(drop)),
        "bind" => open(libc::SOCK_STREAM, 0).and_then(bind),
        "bind-udp" => open(libc::SOCK_DGRAM, 0).and_then(bind),
        "raw" => open(libc::SOCK_RAW, libc::IPPROTO_RAW).map(drop),
        "raw-tcp" => open(libc::SOCK_RAW, libc::IPPROTO_TCP).map(drop),
        "mptcp" => open(libc::SOCK_STREAM, libc::IPPROTO_MPTCP).map(drop),
        "listener" => {
            let listener = OwnedFd::from(borrowed.listeners.pop().expect("two were made"));
            disconnect(listener.as_fd()).and_then(|()| connect(listener))
        }
        "accepted" => {
            let accepted = OwnedFd::from(borrowed.accepted.pop().expect("two were made"));
            disconnect(accepted.as_fd()).and_then(|()| connect(accepted))
        }
        "rebind" => {
            let accepted = OwnedFd::from(borrowed.accepted.pop().expect("two were made"));
            disconnect(accepted.as_fd()).and_then(|()| bind(accepted))
        }
        _ => panic!("{kind}?"),
    };
    result.map_or_else(|error| error.raw_os_error().unwrap_or(-1).to_string(), |()| "ok".to_owned())
}

/// Sockets that were made elsewhere and passed on.
#[derive(Default)]
struct Borrowed {
    listeners: Vec<TcpListener>,
    accepted: Vec<TcpStream>,
}

impl Borrowed {
    fn new() -> Self {
        let mut borrowed = Self::default();
        for _ in 0..4 {
            let (listener, addr) = listen("127.0.0.1:0");
            let _client = TcpStream::connect(addr).expect("connecting");
            borrowed.accepted.push(listener.accept().expect("accepting").0);
            borrowed.listeners.push(listener);
        }
        borrowed
    }
}

/// Also the process that `dial_from` starts in a guarded cgroup: there it tells its parent how each dial went.
#[test]
fn a_process_that_nobody_guards_dials_anything() {
    let Ok(procs) = env::var(CGROUP) else {
        let (_listener, addr) = listen("127.0.0.1:0");
        let mut borrowed = Borrowed::new();
        for kind in ["tcp", "udp", "sendto", "raw", "raw-tcp", "listener", "accepted"] {
            assert_eq!(dial(kind, addr, &mut borrowed), "ok", "{kind}");
        }
        return;
    };
    let mut borrowed = Borrowed::new();
    fs::write(procs, std::process::id().to_string()).expect("entering the cgroup");
    for told in env::var(DIALS).expect("set by the parent").split(',') {
        let (kind, addr) = told.split_once(' ').expect("kind and address");
        let result = dial(kind, addr.parse().expect("an address"), &mut borrowed);
        // Straight to the descriptor: what the harness prints around it stays on lines of its own.
        writeln!(io::stdout(), "\nDIALLED {told}={result}").expect("writing");
    }
}

pub(crate) fn assert_dials(cgroup: &Cgroup, cases: &[(&str, SocketAddr, bool)]) {
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
        assert_eq!(bed.count(DomainId(0), Hook::Guard, Reason::SocketDenied), 1);
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

#[test]
fn a_worker_binds_nothing_and_opens_no_raw_socket() {
    on_bed(|bed| {
        let (_listener, own) = listen("127.0.0.1:0");
        assert!(bed.kernel.set_dialled(PUBLIC, &[own], &[]).is_empty());
        let cgroup = Cgroup::new(bed, "public");
        bed.kernel.watch_cgroup(PUBLIC, &cgroup.0).expect("guarding");
        let any: SocketAddr = "0.0.0.0:0".parse().expect("an address");
        let any6: SocketAddr = "[::]:8080".parse().expect("an address");
        let binds = [("bind", any), ("bind", any6), ("bind", own), ("bind-udp", any), ("bind-udp", any6)];
        assert_dials(&cgroup, &binds.map(|(kind, addr)| (kind, addr, false)));
        assert_eq!(bed.count(PUBLIC, Hook::Guard, Reason::BindDenied), 5);
        let sockets = [("raw", any), ("raw", any6), ("raw-tcp", any), ("raw-tcp", any6), ("mptcp", any)];
        assert_dials(&cgroup, &sockets.map(|(kind, addr)| (kind, addr, false)));
        assert_eq!(bed.count(PUBLIC, Hook::Guard, Reason::SocketDenied), 5);
        let mut samples = bed.kernel.take_samples().expect("nobody reads them yet");
        let mut seen = Vec::new();
        samples.drain(100, |sample| {
            let source = SocketAddr::new(sample.source, sample.source_port);
            seen.push((sample.reason, source, sample.protocol));
        });
        assert!(seen.contains(&(Reason::BindDenied, any6, 6)), "{seen:?}");
        assert!(seen.contains(&(Reason::BindDenied, any, 17)), "{seen:?}");
        assert_eq!(seen.iter().filter(|(reason, ..)| *reason == Reason::SocketDenied).count(), 5);
        // What serving needs goes on.
        assert_dials(&cgroup, &[("tcp", own, true)]);
    });
}

#[test]
fn a_socket_from_the_agent_takes_a_worker_nowhere_else() {
    on_bed(|bed| {
        let (_own, own) = listen("127.0.0.1:0");
        let (_other, other) = listen("127.0.0.1:0");
        assert!(bed.kernel.set_dialled(PUBLIC, &[own], &[]).is_empty());
        let cgroup = Cgroup::new(bed, "public");
        bed.kernel.watch_cgroup(PUBLIC, &cgroup.0).expect("guarding");
        let free = SocketAddr::new(other.ip(), 0);
        // The kernel asks the programs of the cgroup that a socket was made in: those on the worker's do not see it.
        assert_dials(&cgroup, &[("listener", other, true), ("accepted", other, true)]);
        assert_eq!(bed.count(PUBLIC, Hook::Guard, Reason::DialDenied), 0);
        let agents = own_cgroup(bed);
        bed.kernel.watch_borrowed(&agents).expect("guarding");
        bed.kernel.watch_borrowed(&agents).expect("as it is");
        assert_dials(&cgroup, &[("listener", other, false), ("accepted", other, false), ("rebind", free, false)]);
        assert_dials(&cgroup, &[("listener", own, true), ("accepted", own, true)]);
        assert_eq!(bed.count(PUBLIC, Hook::Guard, Reason::DialDenied), 2);
        assert_eq!(bed.count(PUBLIC, Hook::Guard, Reason::BindDenied), 1);
        assert_eq!(bed.count(PUBLIC, Hook::Guard, Reason::DialAllowed), 2);
        // Its own sockets are judged once, not by both.
        assert_dials(&cgroup, &[("tcp", own, true), ("tcp", other, false), ("bind", free, false)]);
        assert_eq!(bed.count(PUBLIC, Hook::Guard, Reason::DialAllowed), 3);
        assert_eq!(bed.count(PUBLIC, Hook::Guard, Reason::DialDenied), 3);
        assert_eq!(bed.count(PUBLIC, Hook::Guard, Reason::BindDenied), 2);
        // Whoever is no worker, the agent among them, dials and binds on.
        let (_listener, addr) = listen("127.0.0.1:0");
        TcpStream::connect(addr).expect("connecting");
    });
}

/// The cgroup of this process.
pub(crate) fn own_cgroup(bed: &Bed) -> PathBuf {
    let features = probe(&bed.config.bpffs).expect("this host can run the kernel tier");
    let text = fs::read_to_string("/proc/self/cgroup").expect("proc(5)");
    let own = text.lines().find_map(|line| line.strip_prefix("0::/")).expect("a group of version 2");
    features.cgroup2.join(Path::new(own))
}
