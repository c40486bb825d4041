//! `steer`: verdicts on new connections, and real ones over loopback.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    time::Duration,
};

use tidegate_kernel::{Connection, Desired, Hook, Interface, Reason};
use tidegate_model::{DomainId, Transport};

use crate::bed::{
    ALLOWED_V4, Bed, DENIED_V4, DENIED_V6, NODE_V4, PRIVATE, PRIVATE_V4, PUBLIC, PUBLIC_V4, PUBLIC_V6, SHARED,
    STRANGER_V4, STRANGER_V6, desired, index_of, ip, on_bed, v6,
};

const SK_DROP: u32 = 0;
const SK_PASS: u32 = 1;

/// How long a socket waits that shall get nothing.
const SILENCE: Duration = Duration::from_millis(300);

/// BPF_PROG_TEST_RUN has every connection come in at interface 0, so that is what domains get as their NIC here.
const TEST_NIC: u32 = 0;

fn connection(source: impl Into<IpAddr>, destination: impl Into<IpAddr>, port: u16) -> Connection {
    Connection {
        source: SocketAddr::new(source.into(), 40_000),
        destination: SocketAddr::new(destination.into(), port),
        transport: Transport::Tcp,
    }
}

/// Listens on loopback of both families and gives the sockets to a domain.
fn serve(bed: &mut Bed, domain: DomainId) -> (TcpListener, TcpListener) {
    let v4 = TcpListener::bind("127.0.0.1:0").expect("binding");
    let v6 = TcpListener::bind("[::1]:0").expect("binding");
    bed.kernel.set_sockets(domain, Some(v4.as_fd()), Some(v6.as_fd())).expect("giving sockets");
    (v4, v6)
}

fn apply(bed: &mut Bed, state: Desired) {
    let report = bed.kernel.apply(&state).expect("applying");
    assert!(report.failures.is_empty(), "{:?}", report.failures);
}

fn assert_steer(bed: &Bed, name: &str, connection: &Connection, domain: DomainId, reason: Reason) {
    let before = bed.count(domain, Hook::Steer, reason);
    let run = bed.kernel.run_steer(connection).unwrap_or_else(|error| panic!("{name}: {error}"));
    let expected = if reason.is_denial() { SK_DROP } else { SK_PASS };
    assert_eq!(run.returned, expected, "{name}");
    assert_eq!(bed.count(domain, Hook::Steer, reason), before + 1, "{name}: not counted as {}", reason.name());
}

#[test]
fn judges_connections_that_came_around_admit_by_the_same_rules() {
    on_bed(|bed| {
        let _public = serve(bed, PUBLIC);
        let _private = serve(bed, PRIVATE);
        let _shared = serve(bed, SHARED);
        apply(bed, desired(TEST_NIC, bed.lan));
        for (name, connection, domain, reason) in [
            ("public", connection(STRANGER_V4, PUBLIC_V4, 443), PUBLIC, Reason::Admitted),
            ("public IPv6", connection(v6(STRANGER_V6), v6(PUBLIC_V6), 443), PUBLIC, Reason::Admitted),
            ("denied", connection(DENIED_V4, PUBLIC_V4, 443), PUBLIC, Reason::SourceDenied),
            ("denied IPv6", connection(v6(DENIED_V6), v6(PUBLIC_V6), 443), PUBLIC, Reason::SourceDenied),
            ("no frontend", connection(STRANGER_V4, PUBLIC_V4, 22), PUBLIC, Reason::NoFrontend),
            ("shared", connection(STRANGER_V4, NODE_V4, 8080), SHARED, Reason::Admitted),
            ("wrong NIC", connection(ALLOWED_V4, PRIVATE_V4, 80), PRIVATE, Reason::WrongInterface),
        ] {
            assert_steer(bed, name, &connection, domain, reason);
        }
        apply(bed, desired(bed.wan, TEST_NIC));
        for (name, connection, domain, reason) in [
            ("allowed", connection(ALLOWED_V4, PRIVATE_V4, 80), PRIVATE, Reason::Admitted),
            ("not allowed", connection(STRANGER_V4, PRIVATE_V4, 80), PRIVATE, Reason::SourceNotAllowed),
            ("wrong NIC", connection(STRANGER_V4, PUBLIC_V4, 443), PUBLIC, Reason::WrongInterface),
            ("wrong NIC, shared", connection(STRANGER_V4, NODE_V4, 8080), SHARED, Reason::WrongInterface),
        ] {
            assert_steer(bed, name, &connection, domain, reason);
        }
    });
}

#[test]
fn judges_datagrams_by_the_same_rules_and_needs_no_socket_of_its_own_for_them() {
    on_bed(|bed| {
        let datagram = |source: IpAddr, destination: IpAddr, port| Connection {
            transport: Transport::Udp,
            ..connection(source, destination, port)
        };
        let (public, public6) = (PUBLIC_V4.into(), v6(PUBLIC_V6).into());
        let (stranger, stranger6) = (STRANGER_V4.into(), v6(STRANGER_V6).into());
        apply(bed, desired(TEST_NIC, bed.lan));
        for (name, connection, domain, reason) in [
            ("public", datagram(stranger, public, 53), PUBLIC, Reason::Admitted),
            ("public IPv6", datagram(stranger6, public6, 53), PUBLIC, Reason::Admitted),
            ("denied", datagram(DENIED_V4.into(), public, 53), PUBLIC, Reason::SourceDenied),
            ("denied IPv6", datagram(v6(DENIED_V6).into(), public6, 53), PUBLIC, Reason::SourceDenied),
            ("a TCP frontend's port", datagram(stranger, public, 443), PUBLIC, Reason::NoFrontend),
            ("wrong NIC", datagram(ALLOWED_V4.into(), PRIVATE_V4.into(), 80), PRIVATE, Reason::WrongInterface),
        ] {
            assert_steer(bed, name, &connection, domain, reason);
        }
        let node = datagram(stranger, NODE_V4.into(), 8080);
        assert_eq!(bed.kernel.run_steer(&node).expect("running").returned, SK_PASS, "the node's own port");
        apply(bed, desired(bed.wan, TEST_NIC));
        assert_steer(bed, "wrong NIC", &datagram(stranger, public, 53), PUBLIC, Reason::WrongInterface);
    });
}

#[test]
fn passes_connections_that_are_for_no_frontend_uncounted() {
    on_bed(|bed| {
        let rows = bed.kernel.counters().expect("reading counters");
        for connection in [
            connection(STRANGER_V4, [198, 51, 100, 99], 443),
            connection(STRANGER_V4, NODE_V4, 22),
            connection(v6(STRANGER_V6), v6("2001:db8:1::2"), 443),
        ] {
            assert_eq!(bed.kernel.run_steer(&connection).expect("running").returned, SK_PASS);
        }
        assert_eq!(bed.kernel.counters().expect("reading counters"), rows);
    });
}

#[test]
fn does_not_judge_twice_where_admit_runs() {
    on_bed(|bed| {
        let _public = serve(bed, PUBLIC);
        let wrong_nic = connection(STRANGER_V4, PUBLIC_V4, 443);
        let mut state = desired(bed.wan, bed.lan);
        // As if interface 0 were a VLAN device on a NIC of the private domain.
        let tagged = Interface::tagged(bed.lan, 7, TEST_NIC);
        state.domains.get_mut(&PRIVATE).expect("in every bed").interfaces.push(tagged);
        apply(bed, state);
        let lan = bed.lan;
        assert_steer(bed, "without admit", &wrong_nic, PUBLIC, Reason::WrongInterface);
        bed.kernel.attach_interface(lan).expect("attaching");
        assert_steer(bed, "admit has let it in", &wrong_nic, PUBLIC, Reason::Admitted);
        bed.kernel.detach_interface(lan).expect("detaching");
        assert_steer(bed, "without admit again", &wrong_nic, PUBLIC, Reason::WrongInterface);
    });
}

#[test]
fn drops_connections_of_a_domain_without_sockets() {
    on_bed(|bed| {
        apply(bed, desired(TEST_NIC, bed.lan));
        let (v4, v6_listener) = serve(bed, PUBLIC);
        bed.kernel.set_sockets(PUBLIC, Some(v4.as_fd()), None).expect("taking one out");
        let to_v4 = connection(STRANGER_V4, PUBLIC_V4, 443);
        let to_v6 = connection(v6(STRANGER_V6), v6(PUBLIC_V6), 443);
        assert_steer(bed, "one family left", &to_v4, PUBLIC, Reason::Admitted);
        assert_steer(bed, "one family without", &to_v6, PUBLIC, Reason::NoWorker);
        drop((v4, v6_listener));
        assert_steer(bed, "its last descriptor closed", &to_v4, PUBLIC, Reason::NoWorker);
    });
}

/// Makes every frontend address local and loopback a NIC of the public domain.
fn open_loopback(bed: &mut Bed) {
    ip("route add local 203.0.113.0/28 dev lo");
    ip("route add local 10.20.1.0/28 dev lo");
    ip("-6 route add local 2001:db8:1::/64 dev lo");
    let mut state = desired(bed.wan, bed.lan);
    let public = state.domains.get_mut(&PUBLIC).expect("in every bed");
    public.interfaces.push(Interface::untagged(index_of("lo")));
    apply(bed, state);
    bed.kernel.attach_steer().expect("attaching");
}

fn assert_served(destination: SocketAddr, listener: &TcpListener) {
    let mut client = TcpStream::connect_timeout(&destination, Duration::from_secs(5)).expect("connecting");
    client.write_all(b"ping").expect("writing");
    let (mut server, _) = listener.accept().expect("accepting");
    assert_eq!(server.local_addr().expect("an address"), destination);
    let mut received = [0; 4];
    server.read_exact(&mut received).expect("reading");
    assert_eq!(&received, b"ping");
}

/// What `steer` drops, TCP answers as if nobody listened.
fn assert_refused(destination: SocketAddr) {
    let error = TcpStream::connect_timeout(&destination, Duration::from_secs(5)).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{destination}: {error}");
}

#[test]
fn hands_real_connections_to_the_domains_socket_whatever_the_port() {
    on_bed(|bed| {
        open_loopback(bed);
        let (v4, v6_listener) = serve(bed, PUBLIC);
        for port in [80, 443] {
            assert_served(SocketAddr::new(PUBLIC_V4.into(), port), &v4);
            assert_served(SocketAddr::new(v6(PUBLIC_V6).into(), port), &v6_listener);
        }
        // Nothing else that listens on a frontend's port gets its connections.
        let _squatter = TcpListener::bind("0.0.0.0:443").expect("binding");
        assert_served(SocketAddr::new(PUBLIC_V4.into(), 443), &v4);
        assert_refused(SocketAddr::new(PUBLIC_V4.into(), 22));
        assert_refused(SocketAddr::new(PRIVATE_V4.into(), 80));
        assert_eq!(bed.count(PRIVATE, Hook::Steer, Reason::WrongInterface), 1);
        assert_eq!(bed.count(PUBLIC, Hook::Steer, Reason::NoFrontend), 1);
    });
}

#[test]
fn a_new_socket_takes_the_old_ones_place_and_the_old_queue_is_served() {
    on_bed(|bed| {
        open_loopback(bed);
        let (old, _old_v6) = serve(bed, PUBLIC);
        let destination = SocketAddr::new(PUBLIC_V4.into(), 443);
        let queued = TcpStream::connect_timeout(&destination, Duration::from_secs(5)).expect("connecting");
        let (new, _new_v6) = serve(bed, PUBLIC);
        assert_served(destination, &new);
        let (accepted, peer) = old.accept().expect("the queued connection");
        assert_eq!(peer, queued.local_addr().expect("an address"));
        drop(accepted);
    });
}

#[test]
fn leaves_other_listeners_of_the_node_alone() {
    on_bed(|bed| {
        open_loopback(bed);
        let ssh = TcpListener::bind("127.0.0.1:0").expect("binding");
        assert_served(ssh.local_addr().expect("an address"), &ssh);
        let dns = UdpSocket::bind("127.0.0.1:0").expect("binding");
        dns.set_read_timeout(Some(Duration::from_secs(5))).expect("setting a timeout");
        let client = UdpSocket::bind("127.0.0.1:0").expect("binding");
        client.send_to(b"q", dns.local_addr().expect("an address")).expect("sending");
        assert_eq!(dns.recv_from(&mut [0; 8]).expect("receiving").0, 1);
    });
}

#[test]
fn judges_datagrams_and_leaves_them_to_the_bound_socket() {
    on_bed(|bed| {
        open_loopback(bed);
        let frontend = SocketAddr::new(PUBLIC_V4.into(), 53);
        let other = SocketAddr::new(PUBLIC_V4.into(), 54);
        let [served, refused] = [frontend, other].map(|addr| UdpSocket::bind(addr).expect("binding"));
        let client = UdpSocket::bind("127.0.0.1:0").expect("binding");
        served.set_read_timeout(Some(Duration::from_secs(5))).expect("setting a timeout");
        refused.set_read_timeout(Some(SILENCE)).expect("setting a timeout");
        client.send_to(b"q", frontend).expect("sending");
        assert_eq!(served.recv_from(&mut [0; 8]).expect("receiving").0, 1);
        client.send_to(b"q", other).expect("sending");
        refused.recv_from(&mut [0; 8]).expect_err("a port without a frontend");
        assert_eq!(bed.count(PUBLIC, Hook::Steer, Reason::Admitted), 1);
        assert_eq!(bed.count(PUBLIC, Hook::Steer, Reason::NoFrontend), 1);
    });
}
