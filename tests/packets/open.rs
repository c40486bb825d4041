//! Open connections: real ones over loopback, counted when they begin and when they end, in whatever way they do.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use socket2::{Domain, SockRef, Socket, Type};
use tidegate_abi::connections::MAX_OPEN_SOURCES;
use tidegate_kernel::{ConnectionRow, Hook, Interface, Kernel, Reason, probe};
use tidegate_model::DomainId;

use crate::{
    bed::{
        Bed, NODE_V4, PUBLIC, PUBLIC_V4, PUBLIC_V6, SHARED, STRANGER_V4, STRANGER_V6, desired, index_of, ip, on_bed, v6,
    },
    frame::{Link, TCP, V4, V6, tcp},
    sys,
};

/// Longest wait for a count: closing goes through both ends, and the machine may be busy.
const SOON: Duration = Duration::from_secs(10);

/// Connections that wait to be accepted: all that a test makes. The 128 that a socket has by default are full when a busy machine
/// lets clients go on and not who accepts; the kernel then drops SYNs without a word, and a client asks again after one second,
/// after three, after seven: longer than tests wait.
const QUEUE: i32 = 4096;

/// Addresses of clients, which are this host's as well: all IPv6 ones but the last in one /64.
const CLIENTS: [Ipv4Addr; 3] =
    [Ipv4Addr::new(198, 51, 100, 1), Ipv4Addr::new(198, 51, 100, 2), Ipv4Addr::new(198, 51, 100, 3)];
const CLIENTS6: [&str; 5] =
    ["2001:db8:c::1", "2001:db8:c::2", "2001:db8:c:0:1::", "2001:db8:c:0:ffff::", "2001:db8:c:1::1"];

fn public() -> SocketAddr {
    SocketAddr::new(PUBLIC_V4.into(), 443)
}

fn public6() -> SocketAddr {
    SocketAddr::new(IpAddr::from(v6(PUBLIC_V6)), 443)
}

fn cgroup(bed: &Bed) -> PathBuf {
    probe(&bed.config.bpffs).expect("a host that can do it").cgroup2
}

/// What serves a domain in a test: its listening sockets, of both families.
struct Served {
    v4: TcpListener,
    v6: TcpListener,
}

/// Makes frontend and client addresses local, loopback a NIC of both domains, and gives them sockets.
fn open_loopback(bed: &mut Bed) -> [Served; 2] {
    for prefix in ["203.0.113.0/28", "198.51.100.0/24", "10.0.0.0/24"] {
        ip(&format!("route add local {prefix} dev lo"));
    }
    ip("-6 route add local 2001:db8:1::/64 dev lo");
    for client in CLIENTS6 {
        ip(&format!("-6 address add {client}/128 dev lo nodad"));
    }
    let mut state = desired(bed.wan, bed.lan);
    for domain in [PUBLIC, SHARED] {
        let wanted = state.domains.get_mut(&domain).expect("in every bed");
        wanted.interfaces.push(Interface::untagged(index_of("lo")));
    }
    let report = bed.kernel.apply(&state).expect("applying");
    assert!(report.failures.is_empty(), "{:?}", report.failures);
    bed.kernel.attach_observe(&cgroup(bed)).expect("attaching");
    bed.kernel.attach_steer().expect("attaching");
    [PUBLIC, SHARED].map(|domain| {
        let v4 = TcpListener::bind("127.0.0.1:0").expect("binding");
        let v6 = TcpListener::bind("[::1]:0").expect("binding");
        for listener in [&v4, &v6] {
            SockRef::from(listener).listen(QUEUE).expect("a longer queue");
        }
        bed.kernel.set_sockets(domain, Some(v4.as_fd()), Some(v6.as_fd())).expect("giving sockets");
        Served { v4, v6 }
    })
}

pub(crate) fn try_connect(source: IpAddr, destination: SocketAddr) -> std::io::Result<TcpStream> {
    let family = if source.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(family, Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(source, 0).into())?;
    socket.connect_timeout(&destination.into(), SOON)?;
    Ok(socket.into())
}

/// A connection, both ends.
fn connect(source: impl Into<IpAddr>, destination: SocketAddr, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let client = try_connect(source.into(), destination).expect("connecting");
    let (server, _) = listener.accept().expect("accepting");
    (client, server)
}

fn row(kernel: &Kernel, domain: DomainId) -> ConnectionRow {
    let rows = kernel.connections().expect("reading connections");
    rows.into_iter().find(|row| row.domain == domain).expect("every domain has a row")
}

fn open_of(kernel: &Kernel, source: impl Into<IpAddr>) -> u64 {
    kernel.open_connections(PUBLIC, source.into()).expect("reading a count").0
}

#[track_caller]
fn wait_open(kernel: &Kernel, domain: DomainId, open: u64) {
    let deadline = Instant::now() + SOON;
    while row(kernel, domain).open != open {
        assert!(Instant::now() < deadline, "{} are open, not {open}", row(kernel, domain).open);
        thread::sleep(Duration::from_millis(5));
    }
}

/// Sources with open connections, as the fill of their map says.
fn sources(kernel: &Kernel) -> u64 {
    kernel.map_fill().iter().find(|fill| fill.map == "OPEN_SOURCES").expect("its fill is told").entries
}

#[test]
fn connections_are_counted_by_source_and_domain_until_both_ends_are_closed() {
    on_bed(|bed| {
        let [served, shared] = open_loopback(bed);
        let node = SocketAddr::new(NODE_V4.into(), 8080);
        let first = connect(CLIENTS[0], public(), &served.v4);
        let second = connect(CLIENTS[0], public(), &served.v4);
        let other = connect(CLIENTS[1], public(), &served.v4);
        let elsewhere = connect(CLIENTS[0], node, &shared.v4);
        assert_eq!((open_of(&bed.kernel, CLIENTS[0]), open_of(&bed.kernel, CLIENTS[1])), (2, 1));
        assert_eq!((row(&bed.kernel, PUBLIC).open, row(&bed.kernel, SHARED).open), (3, 1));
        assert_eq!(sources(&bed.kernel), 3, "one source of two domains is two");
        // A connection to what is no frontend is nobody's.
        let bystander = TcpListener::bind("127.0.0.1:0").expect("binding");
        let unrelated = connect(Ipv4Addr::LOCALHOST, bystander.local_addr().expect("bound"), &bystander);
        assert_eq!(row(&bed.kernel, PUBLIC).opened + row(&bed.kernel, SHARED).opened, 4);
        drop((first, unrelated));
        wait_open(&bed.kernel, PUBLIC, 2);
        assert_eq!((open_of(&bed.kernel, CLIENTS[0]), open_of(&bed.kernel, CLIENTS[1])), (1, 1));
        drop((second, other, elsewhere));
        wait_open(&bed.kernel, PUBLIC, 0);
        wait_open(&bed.kernel, SHARED, 0);
        assert_eq!(sources(&bed.kernel), 0, "sources without connections take no room");
        assert_eq!((row(&bed.kernel, PUBLIC).opened, row(&bed.kernel, PUBLIC).uncounted), (3, 0));
    });
}

#[test]
fn a_connection_ends_once_in_whatever_way_it_ends() {
    on_bed(|bed| {
        let [served, _shared] = open_loopback(bed);
        let open = || connect(CLIENTS[0], public(), &served.v4);
        let reset = |stream: TcpStream| {
            SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("setting an option");
            drop(stream);
        };
        // The client's half-close leaves the server's half open.
        let (client, mut server) = open();
        client.shutdown(Shutdown::Write).expect("shutting down");
        assert_eq!(server.read(&mut [0; 8]).expect("reading the end"), 0);
        assert_eq!(row(&bed.kernel, PUBLIC).open, 1, "half-closed is open");
        server.write_all(b"still here").expect("writing");
        drop(server);
        drop(client);
        wait_open(&bed.kernel, PUBLIC, 0);
        // A reset of the client's.
        let (client, server) = open();
        reset(client);
        wait_open(&bed.kernel, PUBLIC, 0);
        drop(server);
        // A reset of the server's.
        let (client, server) = open();
        reset(server);
        wait_open(&bed.kernel, PUBLIC, 0);
        drop(client);
        // A client that vanishes: the server's side gives up by its own time limit.
        let (client, mut server) = open();
        SockRef::from(&server).set_tcp_user_timeout(Some(Duration::from_millis(300))).expect("setting an option");
        ip("route del local 198.51.100.0/24 dev lo");
        ip("route add blackhole 198.51.100.0/24");
        server.write_all(b"anybody there?").expect("writing");
        wait_open(&bed.kernel, PUBLIC, 0);
        drop((client, server));
        ip("route del blackhole 198.51.100.0/24");
        ip("route add local 198.51.100.0/24 dev lo");
        // Nobody accepts it, and the listener goes.
        let lone = TcpListener::bind("127.0.0.1:0").expect("binding");
        bed.kernel.set_sockets(PUBLIC, Some(lone.as_fd()), None).expect("giving a socket");
        let client = try_connect(CLIENTS[0].into(), public()).expect("connecting");
        wait_open(&bed.kernel, PUBLIC, 1);
        drop(lone);
        wait_open(&bed.kernel, PUBLIC, 0);
        drop(client);
        assert_eq!((sources(&bed.kernel), row(&bed.kernel, PUBLIC).opened), (0, 5));
    });
}

#[test]
fn many_at_once_leave_nothing_behind() {
    on_bed(|bed| {
        let [served, _shared] = open_loopback(bed);
        const EACH: usize = 400;
        let kernel = &bed.kernel;
        thread::scope(|scope| {
            for client in CLIENTS {
                scope.spawn(move || {
                    for round in 0..EACH {
                        let stream = try_connect(client.into(), public()).expect("connecting");
                        if round % 3 == 0 {
                            SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("setting an option");
                        }
                    }
                });
            }
            let listener = &served.v4;
            scope.spawn(move || {
                listener.set_nonblocking(true).expect("setting a mode");
                let deadline = Instant::now() + SOON * 3;
                while row(kernel, PUBLIC).opened < (EACH * CLIENTS.len()) as u64 || row(kernel, PUBLIC).open > 0 {
                    assert!(Instant::now() < deadline, "{:?}", row(kernel, PUBLIC));
                    while listener.accept().is_ok() {}
                    thread::sleep(Duration::from_millis(1));
                }
            });
        });
        let row = row(kernel, PUBLIC);
        assert_eq!((row.open, row.opened, row.uncounted), (0, (EACH * CLIENTS.len()) as u64, 0));
        assert_eq!(row.duration.count(), row.opened, "each has a duration");
        assert_eq!(sources(kernel), 0);
    });
}

#[test]
fn a_full_queue_delays_a_connection_which_is_counted_once() {
    on_bed(|bed| {
        let [served, _shared] = open_loopback(bed);
        // The kernel takes one more than it is told, and drops what comes then.
        SockRef::from(&served.v4).listen(1).expect("a shorter queue");
        let waiting = [0, 1].map(|_| try_connect(CLIENTS[0].into(), public()).expect("there is room"));
        let kernel = &bed.kernel;
        thread::scope(|scope| {
            let late = scope.spawn(|| try_connect(CLIENTS[1].into(), public()).expect("there is room in the end"));
            let deadline = Instant::now() + SOON;
            while listen_overflows() == 0 {
                assert!(Instant::now() < deadline && !late.is_finished(), "the queue is not full");
                thread::sleep(Duration::from_millis(1));
            }
            assert_eq!((row(kernel, PUBLIC).opened, open_of(kernel, CLIENTS[1])), (2, 0), "it is not open");
            let accepted = [0, 1].map(|_| served.v4.accept().expect("accepting"));
            let late = late.join().expect("it connects");
            let last = served.v4.accept().expect("accepting");
            assert_eq!((row(kernel, PUBLIC).opened, open_of(kernel, CLIENTS[1])), (3, 1));
            drop((waiting, accepted, late, last));
        });
        wait_open(kernel, PUBLIC, 0);
        let row = row(kernel, PUBLIC);
        assert_eq!((row.opened, row.uncounted, row.duration.count()), (3, 0, 3));
        assert_eq!(sources(kernel), 0);
    });
}

/// SYNs that this namespace has dropped because a queue was full.
fn listen_overflows() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/netstat").expect("proc(5)");
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let found = names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == "ListenOverflows");
    found.expect("it is counted").1.parse().expect("a number")
}

#[test]
fn counts_outlive_the_agent_and_are_exact_when_the_next_one_comes() {
    on_bed(|bed| {
        let [served, _shared] = open_loopback(bed);
        let closed_meanwhile = connect(CLIENTS[0], public(), &served.v4);
        let kept = connect(CLIENTS[0], public(), &served.v4);
        // An agent that dies closes its descriptors and nothing else.
        let config = bed.config.clone();
        let dead = std::mem::replace(&mut bed.kernel, Kernel::open(&config).expect("opening again").0);
        drop(dead);
        drop(closed_meanwhile);
        let opened_meanwhile = connect(CLIENTS[1], public(), &served.v4);
        bed.kernel.attach_observe(&cgroup(bed)).expect("attaching");
        wait_open(&bed.kernel, PUBLIC, 2);
        assert_eq!((open_of(&bed.kernel, CLIENTS[0]), open_of(&bed.kernel, CLIENTS[1])), (1, 1));
        drop((kept, opened_meanwhile));
        wait_open(&bed.kernel, PUBLIC, 0);
        assert_eq!(sources(&bed.kernel), 0);
    });
}

#[test]
fn without_its_link_counting_begins_anew_and_never_goes_below_zero() {
    on_bed(|bed| {
        let [served, _shared] = open_loopback(bed);
        let before = connect(CLIENTS[0], public(), &served.v4);
        assert_eq!(open_of(&bed.kernel, CLIENTS[0]), 1);
        let links = bed.config.bpffs.join("tidegate").join(&bed.config.instance).join("links");
        let pin = std::fs::read_dir(&links)
            .expect("the folder of links")
            .map(|entry| entry.expect("an entry").path())
            .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("observe-")))
            .expect("the link is pinned");
        std::fs::remove_file(pin).expect("removing the pin");
        // The agent that holds it too is replaced.
        let config = bed.config.clone();
        bed.kernel = Kernel::open(&config).expect("opening again").0;
        // The kernel ends a link some milliseconds after its last reference is gone.
        thread::sleep(Duration::from_millis(300));
        let unseen = connect(CLIENTS[0], public(), &served.v4);
        bed.kernel.attach_observe(&cgroup(bed)).expect("attaching again");
        assert_eq!((row(&bed.kernel, PUBLIC).open, sources(&bed.kernel)), (0, 0), "what was counted is not known");
        let after = connect(CLIENTS[0], public(), &served.v4);
        assert_eq!(open_of(&bed.kernel, CLIENTS[0]), 1);
        drop((before, unseen));
        thread::sleep(Duration::from_millis(300));
        assert_eq!((row(&bed.kernel, PUBLIC).open, open_of(&bed.kernel, CLIENTS[0])), (1, 1), "of another epoch");
        drop(after);
        wait_open(&bed.kernel, PUBLIC, 0);
        assert_eq!(sources(&bed.kernel), 0);
    });
}

#[test]
fn what_connections_were_like_is_told_when_they_end() {
    on_bed(|bed| {
        let [served, _shared] = open_loopback(bed);
        let (mut client, mut server) = connect(CLIENTS[0], public(), &served.v4);
        client.write_all(&[1; 3000]).expect("writing");
        server.read_exact(&mut [0; 3000]).expect("reading");
        server.write_all(&[2; 70_000]).expect("writing");
        client.read_exact(&mut [0; 70_000]).expect("reading");
        thread::sleep(Duration::from_millis(20));
        assert_eq!(row(&bed.kernel, PUBLIC).duration.count(), 0, "it has not ended");
        drop(client);
        assert_eq!(server.read(&mut [0; 8]).expect("reading the end"), 0);
        drop(server);
        wait_open(&bed.kernel, PUBLIC, 0);
        let row = row(&bed.kernel, PUBLIC);
        // One more where the FIN was counted too.
        assert!((3000..=3001).contains(&row.bytes_received), "{row:?}");
        assert!((70_000..=70_001).contains(&row.bytes_acked), "{row:?}");
        assert_eq!((row.rtt.count(), row.duration.count(), row.retransmits), (1, 1, 0), "{row:?}");
        assert!((0.02..10.0).contains(&row.duration.sum), "{row:?}");
        assert!(row.rtt.sum > 0.0 && row.rtt.sum < 1.0, "{row:?}");
        let bucket = |histogram: &tidegate_kernel::Histogram| {
            histogram.buckets.iter().position(|(_, count)| *count == 1).expect("one value")
        };
        for histogram in [&row.rtt, &row.duration] {
            let at = bucket(histogram);
            assert!(histogram.sum <= histogram.buckets[at].0 + 2e-6, "{histogram:?}");
            assert!(at == 0 || histogram.sum + 2e-6 > histogram.buckets[at - 1].0, "{histogram:?}");
            assert!(histogram.buckets.last().expect("not empty").0.is_infinite());
        }
    });
}

/// Puts limits on the public domain.
fn limit(bed: &mut Bed, per_source: Option<u32>, total: Option<u32>) {
    let mut state = desired(bed.wan, bed.lan);
    for domain in [PUBLIC, SHARED] {
        let wanted = state.domains.get_mut(&domain).expect("in every bed");
        wanted.interfaces.push(Interface::untagged(index_of("lo")));
    }
    let admission = &mut state.domains.get_mut(&PUBLIC).expect("in every bed").admission;
    (admission.open_per_source, admission.open_total) = (per_source, total);
    let report = bed.kernel.apply(&state).expect("applying");
    assert!(report.failures.is_empty(), "{:?}", report.failures);
}

#[track_caller]
fn assert_refused(bed: &Bed, source: impl Into<IpAddr>, destination: SocketAddr, reason: Reason) {
    let before = bed.count(PUBLIC, Hook::Steer, reason);
    let refused = try_connect(source.into(), destination).expect_err("the limit is reached");
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    assert_eq!(bed.count(PUBLIC, Hook::Steer, reason), before + 1, "not counted as {}", reason.name());
}

#[test]
fn a_source_at_its_limit_is_refused_until_one_of_its_connections_ends() {
    on_bed(|bed| {
        let [served, shared] = open_loopback(bed);
        limit(bed, Some(2), None);
        let first = connect(CLIENTS[0], public(), &served.v4);
        let _second = connect(CLIENTS[0], public(), &served.v4);
        assert_refused(bed, CLIENTS[0], public(), Reason::OpenSource);
        // Neither another source nor another domain has anything to do with it.
        let _other = connect(CLIENTS[1], public(), &served.v4);
        let _elsewhere = connect(CLIENTS[0], SocketAddr::new(NODE_V4.into(), 8080), &shared.v4);
        drop(first);
        wait_open(&bed.kernel, PUBLIC, 2);
        let _third = connect(CLIENTS[0], public(), &served.v4);
        assert_refused(bed, CLIENTS[0], public(), Reason::OpenSource);
        // `admit` refuses the first packet, lets those of a connection through, and answers questions alike.
        let syn = |source: Ipv4Addr| V4::new(source.octets(), PUBLIC_V4, TCP, tcp(443)).on(Link::untagged());
        bed.assert_admit("at the limit", &syn(CLIENTS[0]), bed.wan, PUBLIC, Reason::OpenSource);
        bed.assert_admit("another source", &syn(CLIENTS[1]), bed.wan, PUBLIC, Reason::Admitted);
        let mut data = tcp(443);
        data[13] = 0x10;
        let data = V4::new(CLIENTS[0].octets(), PUBLIC_V4, TCP, data).on(Link::untagged());
        bed.assert_admit("a packet of a connection", &data, bed.wan, PUBLIC, Reason::Admitted);
        // A limit that is lowered closes nothing, one that is gone refuses nobody.
        limit(bed, Some(1), None);
        assert_eq!(open_of(&bed.kernel, CLIENTS[0]), 2);
        bed.assert_admit("above a lowered limit", &syn(CLIENTS[0]), bed.wan, PUBLIC, Reason::OpenSource);
        limit(bed, None, None);
        let _fourth = connect(CLIENTS[0], public(), &served.v4);
    });
}

#[test]
fn an_ipv6_source_is_a_64_and_a_domain_has_a_limit_of_its_own() {
    on_bed(|bed| {
        let [served, _shared] = open_loopback(bed);
        limit(bed, Some(3), Some(5));
        let [one, two, three, four, other_link] = CLIENTS6.map(|text| IpAddr::from(v6(text)));
        let first = [one, two, three].map(|source| connect(source, public6(), &served.v6));
        assert_eq!(open_of(&bed.kernel, one), 3);
        assert_refused(bed, one, public6(), Reason::OpenSource);
        assert_refused(bed, four, public6(), Reason::OpenSource);
        let _other = connect(other_link, public6(), &served.v6);
        let _v4 = connect(CLIENTS[0], public(), &served.v4);
        assert_refused(bed, CLIENTS[1], public(), Reason::OpenDomain);
        assert_refused(bed, other_link, public6(), Reason::OpenDomain);
        let syn = V6::new(v6(STRANGER_V6), v6(PUBLIC_V6), TCP, tcp(443)).on(Link::untagged());
        bed.assert_admit("the domain is full", &syn, bed.wan, PUBLIC, Reason::OpenDomain);
        let syn = V4::new(STRANGER_V4, NODE_V4, TCP, tcp(8080)).on(Link::untagged());
        bed.assert_admit("another domain", &syn, bed.wan, SHARED, Reason::Admitted);
        drop(first);
        wait_open(&bed.kernel, PUBLIC, 2);
        let _again = connect(one, public6(), &served.v6);
    });
}

#[test]
fn a_limit_may_be_passed_by_handshakes_that_are_under_way_and_by_no_more() {
    on_bed(|bed| {
        let [served, _shared] = open_loopback(bed);
        limit(bed, Some(10), None);
        const AT_ONCE: usize = 8;
        let opened: Vec<TcpStream> = thread::scope(|scope| {
            let threads: Vec<_> = (0..AT_ONCE)
                .map(|_| {
                    scope.spawn(|| (0..20).filter_map(|_| try_connect(CLIENTS[0].into(), public()).ok()).collect())
                })
                .collect();
            threads
                .into_iter()
                .flat_map(|thread: thread::ScopedJoinHandle<'_, Vec<_>>| thread.join().expect("no panic"))
                .collect()
        });
        // Each thread has at most one handshake under way when the tenth connection is counted.
        assert!((10..10 + AT_ONCE).contains(&opened.len()), "{}", opened.len());
        assert_eq!(open_of(&bed.kernel, CLIENTS[0]), opened.len() as u64);
        assert_refused(bed, CLIENTS[0], public(), Reason::OpenSource);
        drop((opened, served));
        wait_open(&bed.kernel, PUBLIC, 0);
        assert_eq!(sources(&bed.kernel), 0);
    });
}

#[test]
fn when_no_more_sources_can_be_counted_their_connections_still_count_for_the_domain() {
    on_bed(|bed| {
        let [served, _shared] = open_loopback(bed);
        limit(bed, Some(1), Some(3));
        let strangers = 0..MAX_OPEN_SOURCES;
        let keys = strangers.flat_map(|number| {
            let [a, b, c, d] = number.to_be_bytes();
            // The address of a source, and the number of a domain that is none here.
            [0x20, 0x01, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d, 200, 0, 0, 0]
        });
        sys::fill_map(&bed.config, "OPEN_SOURCES", &keys.collect::<Vec<u8>>(), &1u64.to_ne_bytes(), MAX_OPEN_SOURCES);
        let first = connect(CLIENTS[0], public(), &served.v4);
        let second = connect(CLIENTS[0], public(), &served.v4);
        assert_eq!(open_of(&bed.kernel, CLIENTS[0]), 0, "there is no room for it");
        let counted = row(&bed.kernel, PUBLIC);
        assert_eq!((counted.open, counted.opened, counted.uncounted), (2, 2, 2), "and that is told");
        let third = connect(CLIENTS[1], public(), &served.v4);
        assert_refused(bed, CLIENTS[2], public(), Reason::OpenDomain);
        drop((first, second, third));
        wait_open(&bed.kernel, PUBLIC, 0);
        assert_eq!(row(&bed.kernel, PUBLIC).duration.count(), 3);
    });
}
