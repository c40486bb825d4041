//! `guard`: what a process in a worker's cgroup can dial, tried by a real process put into one.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{self, IoSlice, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use nix::sys::socket::{self, ControlMessage, MsgFlags, SockaddrStorage};
use tidegate_kernel::{Hook, Interface, Reason, probe};
use tidegate_model::{Dial, DomainId};

use crate::{
    bed::{
        Bed, DENIED_V4, DENIED_V6, PRIVATE, PRIVATE_V4, PRIVATE_V6, PUBLIC, PUBLIC_V4, PUBLIC_V6, STRANGER_V4,
        STRANGER_V6, desired, index_of, ip, on_bed, v6,
    },
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
        "sendto-as" => open(libc::SOCK_DGRAM, 0).and_then(|socket| send_as(&socket, addr)),
        "answer" => borrowed.frontend(addr, 53).send_to(b"x", addr).map(drop),
        "answer-as" => send_as(&borrowed.frontend(addr, 53), addr),
        "answer-from-54" => borrowed.frontend(addr, 54).send_to(b"x", addr).map(drop),
        "answer-connected" => connect(borrowed.frontend(addr, 53).into()),
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
    /// Bound to ports 53 and 54 of the public domain's addresses, where the bed has those.
    datagrams: Vec<UdpSocket>,
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
        let addresses = [IpAddr::from(PUBLIC_V4), v6(PUBLIC_V6).into()];
        let bind = |port| addresses.into_iter().filter_map(move |addr| UdpSocket::bind((addr, port)).ok());
        borrowed.datagrams = bind(53).chain(bind(54)).collect();
        borrowed
    }

    /// A socket of the address's family that is bound to a port of the public domain.
    fn frontend(&self, addr: SocketAddr, port: u16) -> UdpSocket {
        let is_meant = |socket: &&UdpSocket| {
            socket.local_addr().is_ok_and(|bound| bound.port() == port && bound.is_ipv4() == addr.is_ipv4())
        };
        let found = self.datagrams.iter().find(is_meant).expect("the bed has the addresses");
        found.try_clone().expect("duplicating")
    }
}

/// Sends a datagram in the name of another address of the node: one of another domain, or of nobody.
fn send_as(socket: &impl AsRawFd, addr: SocketAddr) -> io::Result<()> {
    let v4 = libc::in_pktinfo {
        ipi_ifindex: 0,
        ipi_spec_dst: libc::in_addr { s_addr: u32::from_ne_bytes(PRIVATE_V4) },
        ipi_addr: libc::in_addr { s_addr: 0 },
    };
    let v6 = libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: v6(PRIVATE_V6) }, ipi6_ifindex: 0 };
    let source = match addr {
        SocketAddr::V4(_) => ControlMessage::Ipv4PacketInfo(&v4),
        SocketAddr::V6(_) => ControlMessage::Ipv6PacketInfo(&v6),
    };
    let to = SockaddrStorage::from(addr);
    socket::sendmsg(socket.as_raw_fd(), &[IoSlice::new(b"x")], &[source], MsgFlags::empty(), Some(&to))?;
    Ok(())
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
        state.domains.get_mut(&PUBLIC).expect("in every bed").dialled = [own_v4, own_v6].map(Dial::tcp).into();
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
        assert!(bed.kernel.set_dialled(PUBLIC, &[Dial::tcp(first)], &[]).is_empty());
        assert_dials(&cgroup, &[("tcp", first, true), ("tcp", second, false)]);
        assert!(bed.kernel.set_dialled(PUBLIC, &[Dial::tcp(second)], &[Dial::tcp(first)]).is_empty());
        assert_dials(&cgroup, &[("tcp", first, false), ("tcp", second, true)]);
    });
}

#[test]
fn domains_do_not_share_endpoints() {
    on_bed(|bed| {
        let (_public, public) = listen("127.0.0.1:0");
        let (_private, private) = listen("127.0.0.1:0");
        assert!(bed.kernel.set_dialled(PUBLIC, &[Dial::tcp(public)], &[]).is_empty());
        assert!(bed.kernel.set_dialled(PRIVATE, &[Dial::tcp(private)], &[]).is_empty());
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
        assert!(bed.kernel.set_dialled(PUBLIC, &[Dial::tcp(addr)], &[]).is_empty());
        assert_dials(&inner, &[("tcp", addr, false)]);
        assert_dials(&cgroup, &[("tcp", addr, true)]);
        // Counted under no domain; steer and admit saw nothing.
        assert_eq!(bed.count(DomainId(0), Hook::Guard, Reason::SocketDenied), 1);
        bed.kernel.unwatch_cgroup(&cgroup.0).expect("ending the guard");
        assert!(bed.kernel.watched().expect("reading").is_empty());
        assert!(bed.kernel.set_dialled(PUBLIC, &[], &[Dial::tcp(addr)]).is_empty());
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
        assert!(bed.kernel.set_dialled(PUBLIC, &[Dial::tcp(own)], &[]).is_empty());
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
        assert!(bed.kernel.set_dialled(PUBLIC, &[Dial::tcp(own)], &[]).is_empty());
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

/// Gives the node the addresses of both domains, and ways to strangers and to those that are denied.
pub(crate) fn own_addresses() {
    for addr in ["203.0.113.1/32", "10.20.1.1/32", "2001:db8:1::1/128 nodad", "fd00:20::1/128 nodad"] {
        let family = if addr.contains(':') { "-6" } else { "-4" };
        ip(&format!("{family} addr add {addr} dev lo"));
    }
    ip("route add default dev wan0");
    ip("-6 route add default dev wan0");
}

#[test]
fn a_frontends_socket_answers_clients_from_its_own_address_and_sends_nothing_else() {
    on_bed(|bed| {
        own_addresses();
        let at = |addr: IpAddr| SocketAddr::new(addr, 4000);
        let [stranger, denied, private] = [STRANGER_V4, DENIED_V4, PRIVATE_V4].map(|addr| at(addr.into()));
        let [stranger6, denied6, private6] = [STRANGER_V6, DENIED_V6, PRIVATE_V6].map(|addr| at(v6(addr).into()));
        let loopback = at([127, 0, 0, 1].into());
        let group = at([224, 0, 0, 251].into());
        let cgroup = Cgroup::new(bed, "public");
        bed.kernel.watch_cgroup(PUBLIC, &cgroup.0).expect("guarding");
        // Nothing but `borrowed` sees what goes through a socket of the agent's.
        let open = [("answer", denied), ("answer", loopback), ("answer-as", stranger), ("answer-from-54", stranger6)];
        assert_dials(&cgroup, &open.map(|(kind, addr)| (kind, addr, true)));
        bed.kernel.watch_borrowed(&own_cgroup(bed)).expect("guarding");
        assert_dials(
            &cgroup,
            &[
                ("answer", stranger, true),
                ("answer", stranger6, true),
                // Whoever may not be a client gets nothing.
                ("answer", denied, false),
                ("answer", denied6, false),
                ("answer", private, false),
                ("answer", private6, false),
                ("answer", loopback, false),
                ("answer", group, false),
                // Another source address, another socket, and a connection in place of an answer.
                ("answer-as", stranger, false),
                ("answer-as", stranger6, false),
                ("answer-from-54", stranger, false),
                ("answer-from-54", stranger6, false),
                ("answer-connected", stranger, false),
                ("answer-connected", stranger6, false),
            ],
        );
        let count = |reason| bed.count(PUBLIC, Hook::Guard, reason);
        assert_eq!([count(Reason::AnswerDenied), count(Reason::DialDenied)], [8, 4]);
        assert_eq!(count(Reason::DialAllowed), 0, "answers are the traffic itself");
        // The same socket in the hands of another domain's worker answers nobody.
        let foreign = Cgroup::new(bed, "private");
        bed.kernel.watch_cgroup(PRIVATE, &foreign.0).expect("guarding");
        assert_dials(&foreign, &[("answer", stranger, false), ("answer", stranger6, false)]);
        assert_eq!(bed.count(PRIVATE, Hook::Guard, Reason::DialDenied), 2);
        // Without the frontend its socket is like any other.
        let mut state = desired(bed.wan, bed.lan);
        let frontends = &mut state.domains.get_mut(&PUBLIC).expect("in every bed").frontends;
        frontends.keys.retain(|key| key.port != 53);
        bed.kernel.apply(&state).expect("applying");
        assert_dials(&cgroup, &[("answer", stranger, false)]);
        // A refusal is sampled with both ends.
        let mut seen = Vec::new();
        bed.kernel.take_samples().expect("nobody reads them yet").drain(100, |sample| {
            seen.push((sample.reason, SocketAddr::new(sample.source, sample.source_port)));
        });
        for source in [PUBLIC_V4, PRIVATE_V4] {
            assert!(seen.contains(&(Reason::AnswerDenied, SocketAddr::new(source.into(), 53))), "{seen:?}");
        }
    });
}

#[test]
fn clients_on_the_node_are_answered_where_the_domain_names_loopback() {
    on_bed(|bed| {
        own_addresses();
        let cgroup = Cgroup::new(bed, "public");
        bed.kernel.watch_cgroup(PUBLIC, &cgroup.0).expect("guarding");
        bed.kernel.watch_borrowed(&own_cgroup(bed)).expect("guarding");
        let local = [[127, 0, 0, 1], PUBLIC_V4].map(|addr| ("answer", SocketAddr::new(addr.into(), 4000)));
        assert_dials(&cgroup, &local.map(|(kind, addr)| (kind, addr, false)));
        let mut state = desired(bed.wan, bed.lan);
        let public = state.domains.get_mut(&PUBLIC).expect("in every bed");
        public.interfaces.push(Interface::untagged(index_of("lo")));
        bed.kernel.apply(&state).expect("applying");
        assert_dials(&cgroup, &local.map(|(kind, addr)| (kind, addr, true)));
    });
}

#[test]
fn datagrams_go_to_udp_endpoints_and_under_no_borrowed_name() {
    on_bed(|bed| {
        own_addresses();
        let endpoints = ["127.0.0.1:0", "[::1]:0"].map(|addr| UdpSocket::bind(addr).expect("binding"));
        let [v4, v6] = endpoints.each_ref().map(|socket| socket.local_addr().expect("an address"));
        assert!(bed.kernel.set_dialled(PUBLIC, &[Dial::udp(v4), Dial::udp(v6)], &[]).is_empty());
        let cgroup = Cgroup::new(bed, "public");
        bed.kernel.watch_cgroup(PUBLIC, &cgroup.0).expect("guarding");
        bed.kernel.watch_borrowed(&own_cgroup(bed)).expect("guarding");
        let next = |addr: SocketAddr| SocketAddr::new(addr.ip(), addr.port() ^ 1);
        assert_dials(
            &cgroup,
            &[
                ("udp", v4, true),
                ("udp", v6, true),
                ("sendto", v4, true),
                ("sendto", v6, true),
                ("udp", next(v4), false),
                ("sendto", next(v6), false),
                // One transport does not stand for the other.
                ("tcp", v4, false),
                ("sendto-as", v4, false),
                ("sendto-as", v6, false),
            ],
        );
        assert_eq!(bed.count(PUBLIC, Hook::Guard, Reason::DialAllowed), 4);
        assert_eq!(bed.count(PUBLIC, Hook::Guard, Reason::DialDenied), 5);
    });
}

/// The cgroup of this process.
pub(crate) fn own_cgroup(bed: &Bed) -> PathBuf {
    let features = probe(&bed.config.bpffs).expect("this host can run the kernel tier");
    let text = fs::read_to_string("/proc/self/cgroup").expect("proc(5)");
    let own = text.lines().find_map(|line| line.strip_prefix("0::/")).expect("a group of version 2");
    features.cgroup2.join(Path::new(own))
}
