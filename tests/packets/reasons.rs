//! Every reason that a hook can give, provoked on the wire: frames that arrive on a NIC, connections, a worker's calls.
//!
//! The table below is all that there is: a reason that nobody gives, and one that a hook gives without being listed, fail here.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    os::fd::AsFd,
    thread,
    time::{Duration, Instant},
};

use tidegate_kernel::{Desired, Hook, Interface, Reason, probe};
use tidegate_model::{Admission, Dial, DomainId, RateLimit, SynCookies};

use crate::{
    bed::{
        Bed, CLOSED, CLOSED_V4, DENIED_V4, NODE_V4, PRIVATE, PRIVATE_V4, PUBLIC, PUBLIC_V4, STRANGER_V4, desired,
        index_of, ip, on_bed,
    },
    frame::{ICMP, Link, TCP, V4, icmp, tcp},
    guard::{Cgroup, assert_dials, own_addresses, own_cgroup},
    open::try_connect,
    sys::{delete_element, send_frame},
    wire::{make_internet, on_the_internet},
};

/// What each hook can say. `steer` counts nothing that is for no frontend: every connection of the node would be.
const GIVEN: [(Hook, &[Reason]); 3] = [
    (
        Hook::Admit,
        &[
            Reason::NotFrontend,
            Reason::Admitted,
            Reason::WrongInterface,
            Reason::SourceDenied,
            Reason::SourceNotAllowed,
            Reason::NoFrontend,
            Reason::Malformed,
            Reason::IcmpDenied,
            Reason::ProtocolDenied,
            Reason::DomainUnknown,
            Reason::Martian,
            Reason::RateSource,
            Reason::RateDomain,
            Reason::OpenSource,
            Reason::OpenDomain,
            Reason::EchoRate,
            Reason::CookieSent,
        ],
    ),
    (
        Hook::Steer,
        &[
            Reason::Admitted,
            Reason::WrongInterface,
            Reason::SourceDenied,
            Reason::SourceNotAllowed,
            Reason::NoFrontend,
            Reason::DomainUnknown,
            Reason::NoWorker,
            Reason::Martian,
            Reason::RateSource,
            Reason::RateDomain,
            Reason::OpenSource,
            Reason::OpenDomain,
        ],
    ),
    (
        Hook::Guard,
        &[Reason::DialAllowed, Reason::DialDenied, Reason::BindDenied, Reason::SocketDenied, Reason::AnswerDenied],
    ),
];
const SOON: Duration = Duration::from_secs(10);
const NOBODY: DomainId = DomainId(0);
/// Another source than `STRANGER_V4`.
const OTHER_V4: [u8; 4] = [198, 51, 100, 77];
const ONE: RateLimit = RateLimit { rate: 1, burst: 1 };
/// Strangers have three quarters of it.
const FOUR: RateLimit = RateLimit { rate: 1, burst: 4 };

/// What was provoked of one hook.
struct Provoked {
    hook: Hook,
    seen: BTreeSet<Reason>,
}

impl Provoked {
    fn of(hook: Hook) -> Self {
        Self { hook, seen: BTreeSet::new() }
    }

    /// Does something until a reason is counted for it, at most `times`.
    fn expect(&mut self, bed: &Bed, domain: DomainId, reason: Reason, times: usize, mut provoke: impl FnMut(usize)) {
        let before = bed.count(domain, self.hook, reason);
        let deadline = Instant::now() + SOON;
        let mut done = 0;
        while bed.count(domain, self.hook, reason) == before {
            assert!(Instant::now() < deadline, "{} of {:?} was not counted", reason.name(), self.hook);
            if done < times {
                provoke(done);
                done += 1;
            } else {
                thread::sleep(Duration::from_millis(1));
            }
        }
        self.seen.insert(reason);
    }

    /// Nothing that the table has is missing, and nothing else was counted.
    fn assert_complete(&self, bed: &Bed) {
        let given: BTreeSet<Reason> =
            GIVEN.iter().filter(|(hook, _)| *hook == self.hook).flat_map(|(_, reasons)| *reasons).copied().collect();
        assert_eq!(self.seen, given);
        let rows = bed.kernel.counters().expect("reading counters");
        let counted = rows.iter().filter(|row| row.hook == self.hook && row.packets > 0).map(|row| row.reason);
        assert_eq!(counted.collect::<BTreeSet<_>>(), given);
    }
}

#[test]
fn every_reason_is_given_by_some_hook() {
    let given: BTreeSet<Reason> = GIVEN.iter().flat_map(|(_, reasons)| *reasons).copied().collect();
    assert_eq!(given, Reason::ALL.into_iter().collect());
}

/// Applies the bed's state with another admission of `PUBLIC`.
fn apply(bed: &mut Bed, change: impl FnOnce(&mut Desired)) {
    let mut state = desired(bed.wan, bed.lan);
    change(&mut state);
    let report = bed.kernel.apply(&state).expect("applying");
    assert!(report.failures.is_empty(), "{:?}", report.failures);
}

fn limit(bed: &mut Bed, nic: Option<u32>, admission: Admission) {
    apply(bed, |state| {
        for domain in [PUBLIC, CLOSED] {
            let wanted = state.domains.get_mut(&domain).expect("in every bed");
            wanted.interfaces.extend(nic.map(Interface::untagged));
        }
        let public = state.domains.get_mut(&PUBLIC).expect("in every bed");
        public.admission = Admission { deny: public.admission.deny.clone(), ..admission };
    });
}

fn serve(bed: &mut Bed) -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binding");
    bed.kernel.set_sockets(PUBLIC, Some(listener.as_fd()), None).expect("giving a socket");
    bed.kernel.attach_steer().expect("attaching");
    let cgroup = probe(&bed.config.bpffs).expect("a host that can do it").cgroup2;
    bed.kernel.attach_observe(&cgroup).expect("attaching");
    listener
}

#[test]
fn every_reason_of_admit_is_provoked_by_a_frame_on_the_nic() {
    on_bed(|bed| {
        let internet = make_internet();
        bed.kernel.attach_interface(bed.wan).expect("attaching");
        let listener = serve(bed);
        let frame = |source, destination, protocol, payload| {
            V4::new(source, destination, protocol, payload).on(Link::untagged())
        };
        let syn = |source, port| frame(source, PUBLIC_V4, TCP, tcp(port));
        let send = |frame: &[u8]| on_the_internet(&internet, || send_frame(index_of("wan1"), frame));
        let mut admit = Provoked::of(Hook::Admit);
        let mut cut = tcp(443);
        cut.truncate(7);
        let echo = frame(STRANGER_V4, PUBLIC_V4, ICMP, icmp(8, 0));
        for (domain, reason, bytes) in [
            (NOBODY, Reason::NotFrontend, frame(STRANGER_V4, NODE_V4, TCP, tcp(22))),
            (PUBLIC, Reason::Admitted, syn(STRANGER_V4, 443)),
            (PRIVATE, Reason::WrongInterface, frame(STRANGER_V4, PRIVATE_V4, TCP, tcp(80))),
            (PUBLIC, Reason::SourceDenied, syn(DENIED_V4, 443)),
            (CLOSED, Reason::SourceNotAllowed, frame(STRANGER_V4, CLOSED_V4, TCP, tcp(80))),
            (PUBLIC, Reason::NoFrontend, syn(STRANGER_V4, 22)),
            (PUBLIC, Reason::Malformed, frame(STRANGER_V4, PUBLIC_V4, TCP, cut)),
            (PUBLIC, Reason::IcmpDenied, frame(STRANGER_V4, PUBLIC_V4, ICMP, icmp(13, 0))),
            (PUBLIC, Reason::ProtocolDenied, frame(STRANGER_V4, PUBLIC_V4, 47, vec![0; 8])),
            (PUBLIC, Reason::Martian, syn([240, 0, 0, 1], 443)),
        ] {
            admit.expect(bed, domain, reason, 1, |_| send(&bytes));
        }
        limit(bed, None, Admission { per_source: Some(ONE), ..Admission::default() });
        admit.expect(bed, PUBLIC, Reason::RateSource, 40, |_| send(&syn(STRANGER_V4, 443)));
        limit(bed, None, Admission { total: Some(FOUR), ..Admission::default() });
        admit.expect(bed, PUBLIC, Reason::RateDomain, 40, |count| send(&syn([198, 51, 100, 100 + count as u8], 443)));
        limit(bed, None, Admission { echo: Some(RateLimit { rate: 0, burst: 1 }), ..Admission::default() });
        admit.expect(bed, PUBLIC, Reason::EchoRate, 1, |_| send(&echo));
        // One connection is open from here on.
        limit(bed, None, Admission { open_per_source: Some(1), ..Admission::default() });
        let mut open = None;
        on_the_internet(&internet, || {
            open = Some(try_connect(STRANGER_V4.into(), SocketAddr::new(PUBLIC_V4.into(), 443)).expect("connecting"));
        });
        let accepted = listener.accept().expect("accepting");
        admit.expect(bed, PUBLIC, Reason::OpenSource, 1, |_| send(&syn(STRANGER_V4, 443)));
        limit(bed, None, Admission { open_total: Some(1), ..Admission::default() });
        admit.expect(bed, PUBLIC, Reason::OpenDomain, 1, |_| send(&syn(OTHER_V4, 443)));
        drop((open, accepted));
        fs::write("/proc/sys/net/ipv4/tcp_syncookies", "2").expect("a namespace of the test's own");
        limit(bed, None, Admission { syn_cookies: SynCookies::Xdp, ..Admission::default() });
        admit.expect(bed, PUBLIC, Reason::CookieSent, 1, |_| send(&syn(OTHER_V4, 443)));
        delete_element(&bed.config, "DOMAINS", &PUBLIC.0.to_ne_bytes());
        admit.expect(bed, PUBLIC, Reason::DomainUnknown, 1, |_| send(&syn(STRANGER_V4, 443)));
        admit.assert_complete(bed);
    });
}

#[test]
fn every_reason_of_steer_is_provoked_by_a_connection() {
    on_bed(|bed| {
        for prefix in ["203.0.113.0/28", "198.51.100.0/24", "192.0.2.0/24", "10.20.1.0/28", "240.0.0.0/8"] {
            ip(&format!("route add local {prefix} dev lo"));
        }
        let lo = Some(index_of("lo"));
        let listener = serve(bed);
        let to = |addr: [u8; 4], port| SocketAddr::new(addr.into(), port);
        // Who is refused gets a reset, who is let in a connection.
        let connect = |source: [u8; 4], destination| try_connect(IpAddr::from(source), destination);
        let refused = |source, destination| {
            let error = connect(source, destination).expect_err("it is refused");
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{error}");
        };
        let frontend = to(PUBLIC_V4, 443);
        let mut steer = Provoked::of(Hook::Steer);
        limit(bed, lo, Admission::default());
        steer.expect(bed, PUBLIC, Reason::Admitted, 1, |_| drop(connect(STRANGER_V4, frontend).expect("it is let in")));
        for (domain, reason, source, destination) in [
            (PRIVATE, Reason::WrongInterface, STRANGER_V4, to(PRIVATE_V4, 80)),
            (PUBLIC, Reason::SourceDenied, DENIED_V4, frontend),
            (CLOSED, Reason::SourceNotAllowed, STRANGER_V4, to(CLOSED_V4, 80)),
            (PUBLIC, Reason::NoFrontend, STRANGER_V4, to(PUBLIC_V4, 22)),
            (PUBLIC, Reason::Martian, [240, 0, 0, 1], frontend),
        ] {
            steer.expect(bed, domain, reason, 1, |_| refused(source, destination));
        }
        limit(bed, lo, Admission { per_source: Some(ONE), ..Admission::default() });
        steer.expect(bed, PUBLIC, Reason::RateSource, 40, |_| drop(connect(STRANGER_V4, frontend)));
        limit(bed, lo, Admission { total: Some(FOUR), ..Admission::default() });
        let source = |count: usize| Ipv4Addr::new(198, 51, 100, 100 + count as u8).octets();
        steer.expect(bed, PUBLIC, Reason::RateDomain, 40, |count| drop(connect(source(count), frontend)));
        while listener.set_nonblocking(true).is_ok() && listener.accept().is_ok() {}
        let deadline = Instant::now() + SOON;
        while bed.kernel.connections().expect("reading").iter().any(|row| row.open > 0) {
            assert!(Instant::now() < deadline, "closed connections stay open");
            thread::sleep(Duration::from_millis(1));
        }
        limit(bed, lo, Admission { open_per_source: Some(1), ..Admission::default() });
        let open = connect(STRANGER_V4, frontend).expect("it is let in");
        steer.expect(bed, PUBLIC, Reason::OpenSource, 1, |_| refused(STRANGER_V4, frontend));
        limit(bed, lo, Admission { open_total: Some(1), ..Admission::default() });
        steer.expect(bed, PUBLIC, Reason::OpenDomain, 1, |_| refused(OTHER_V4, frontend));
        drop(open);
        limit(bed, lo, Admission::default());
        bed.kernel.set_sockets(PUBLIC, None, None).expect("taking the socket");
        steer.expect(bed, PUBLIC, Reason::NoWorker, 1, |_| refused(OTHER_V4, frontend));
        delete_element(&bed.config, "DOMAINS", &PUBLIC.0.to_ne_bytes());
        steer.expect(bed, PUBLIC, Reason::DomainUnknown, 1, |_| refused(OTHER_V4, frontend));
        steer.assert_complete(bed);
    });
}

#[test]
fn every_reason_of_guard_is_provoked_by_a_call_of_a_worker() {
    on_bed(|bed| {
        let own = TcpListener::bind("127.0.0.1:0").expect("binding");
        let addr = own.local_addr().expect("an address");
        assert!(bed.kernel.set_dialled(PUBLIC, &[Dial::tcp(addr)], &[]).is_empty());
        own_addresses();
        let cgroup = Cgroup::new(bed, "public");
        bed.kernel.watch_cgroup(PUBLIC, &cgroup.0).expect("guarding");
        bed.kernel.watch_borrowed(&own_cgroup(bed)).expect("guarding");
        let elsewhere = SocketAddr::new(addr.ip(), addr.port() ^ 1);
        let mut guard = Provoked::of(Hook::Guard);
        for (reason, kind, addr) in [
            (Reason::DialAllowed, "tcp", addr),
            (Reason::DialDenied, "tcp", elsewhere),
            (Reason::BindDenied, "bind", elsewhere),
            (Reason::SocketDenied, "raw", elsewhere),
            (Reason::AnswerDenied, "answer", SocketAddr::new(DENIED_V4.into(), 4000)),
        ] {
            let dial = || assert_dials(&cgroup, &[(kind, addr, reason == Reason::DialAllowed)]);
            guard.expect(bed, PUBLIC, reason, 1, |_| dial());
        }
        guard.assert_complete(bed);
    });
}
