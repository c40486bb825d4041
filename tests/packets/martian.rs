//! Sources that cannot be, one fixture for each kind, at `admit` and at `steer`.

use std::net::{IpAddr, SocketAddr};

use tidegate_kernel::{Connection, Hook, Interface, Reason};
use tidegate_model::{DomainId, Transport};

use crate::{
    bed::{
        Bed, DENIED_V4, NODE_V4, PRIVATE, PRIVATE_V4, PRIVATE_V6, PUBLIC, PUBLIC_V4, PUBLIC_V6, SHARED, STRANGER_V4,
        desired, on_bed, v6,
    },
    frame::{ICMP, ICMP_V6, Link, TCP, UDP, V4, V6, icmp, tcp, udp},
};

/// What no packet may come from, with why.
const IMPOSSIBLE: [(&str, &str); 17] = [
    ("unspecified", "0.0.0.0"),
    ("this network", "0.1.2.3"),
    ("loopback", "127.0.0.1"),
    ("multicast", "224.0.0.1"),
    ("class E", "240.0.0.1"),
    ("broadcast", "255.255.255.255"),
    ("link-local", "169.254.1.1"),
    ("a domain's own address", "203.0.113.1"),
    ("another domain's own address", "10.20.1.1"),
    ("the node's own address", "10.0.0.5"),
    ("unspecified", "::"),
    ("loopback", "::1"),
    ("IPv4-compatible", "::198.51.100.10"),
    ("multicast", "ff02::1"),
    ("link-local", "fe80::1"),
    ("a domain's own address", "2001:db8:1::1"),
    ("another domain's own address", "fd00:20::1"),
];

fn to_public(source: IpAddr, port: u16) -> Vec<u8> {
    match source {
        IpAddr::V4(source) => V4::new(source.octets(), PUBLIC_V4, TCP, tcp(port)).on(Link::untagged()),
        IpAddr::V6(source) => V6::new(source.octets(), v6(PUBLIC_V6), TCP, tcp(port)).on(Link::untagged()),
    }
}

fn parse(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[test]
fn refuses_sources_that_cannot_be() {
    on_bed(|bed| {
        for (name, source) in IMPOSSIBLE {
            let name = format!("{name} {source}");
            bed.assert_admit(&name, &to_public(parse(source), 443), bed.wan, PUBLIC, Reason::Martian);
            // Before the question which ports are served, and behind the one whose NIC this is.
            bed.assert_admit(&name, &to_public(parse(source), 22), bed.wan, PUBLIC, Reason::Martian);
            bed.assert_admit(&name, &to_public(parse(source), 443), bed.lan, PUBLIC, Reason::WrongInterface);
        }
        let datagram = V4::new(PUBLIC_V4, PUBLIC_V4, UDP, udp(53)).on(Link::untagged());
        bed.assert_admit("a resolver that asks itself", &datagram, bed.wan, PUBLIC, Reason::Martian);
        let mut later = V4::new([127, 0, 0, 1], PUBLIC_V4, UDP, vec![0; 16]);
        later.fragment = 4;
        bed.assert_admit("a later fragment", &later.on(Link::untagged()), bed.wan, PUBLIC, Reason::Martian);
        let echo = V4::new(PRIVATE_V4, PUBLIC_V4, ICMP, icmp(8, 0)).on(Link::untagged());
        bed.assert_admit("an echo request", &echo, bed.wan, PUBLIC, Reason::Martian);
        let shared = V4::new([127, 0, 0, 1], NODE_V4, TCP, tcp(8080)).on(Link::untagged());
        bed.assert_admit("to a shared address", &shared, bed.wan, SHARED, Reason::Martian);
    });
}

#[test]
fn refuses_a_martian_before_it_asks_the_lists() {
    on_bed(|bed| {
        let state = {
            let mut state = desired(bed.wan, bed.lan);
            let public = state.domains.get_mut(&PUBLIC).expect("in every bed");
            public.admission.allow = Some(vec!["0.0.0.0/0".parse().expect("a prefix")].into());
            state
        };
        bed.kernel.apply(&state).expect("applying");
        bed.assert_admit("allowed", &to_public(STRANGER_V4.into(), 443), bed.wan, PUBLIC, Reason::Admitted);
        bed.assert_admit("denied", &to_public(DENIED_V4.into(), 443), bed.wan, PUBLIC, Reason::SourceDenied);
        bed.assert_admit("allowed by /0", &to_public(parse("127.0.0.1"), 443), bed.wan, PUBLIC, Reason::Martian);
    });
}

#[test]
fn lets_link_local_routers_report_errors_and_neighbours_ask() {
    on_bed(|bed| {
        let too_big = V6::new(v6("fe80::1"), v6(PUBLIC_V6), ICMP_V6, icmp(2, 0)).on(Link::untagged());
        bed.assert_admit("packet too big", &too_big, bed.wan, PUBLIC, Reason::Admitted);
        let needs_fragments = V4::new([169, 254, 0, 1], PUBLIC_V4, ICMP, icmp(3, 4)).on(Link::untagged());
        bed.assert_admit("fragmentation needed", &needs_fragments, bed.wan, PUBLIC, Reason::Admitted);
        let forged = V4::new([127, 0, 0, 1], PUBLIC_V4, ICMP, icmp(3, 4)).on(Link::untagged());
        bed.assert_admit("an error from nowhere", &forged, bed.wan, PUBLIC, Reason::Martian);
        let echo = V6::new(v6("fe80::1"), v6(PUBLIC_V6), ICMP_V6, icmp(128, 0)).on(Link::untagged());
        bed.assert_admit("an echo request", &echo, bed.wan, PUBLIC, Reason::Martian);
        let mut neighbour = V6::new(v6("fe80::1"), v6(PUBLIC_V6), ICMP_V6, icmp(135, 0));
        neighbour.hop_limit = 255;
        bed.assert_admit("a neighbour", &neighbour.on(Link::untagged()), bed.wan, PUBLIC, Reason::Admitted);
    });
}

#[test]
fn leaves_martians_alone_that_are_for_nobody_here() {
    on_bed(|bed| {
        for (name, source) in IMPOSSIBLE {
            let frame = match parse(source) {
                IpAddr::V4(source) => V4::new(source.octets(), [198, 51, 100, 99], TCP, tcp(443)).on(Link::untagged()),
                IpAddr::V6(source) => V6::new(source.octets(), v6("2001:db8:9::9"), TCP, tcp(443)).on(Link::untagged()),
            };
            bed.assert_admit(name, &frame, bed.wan, DomainId(0), Reason::NotFrontend);
        }
        let to_ssh = V4::new([127, 0, 0, 1], NODE_V4, TCP, tcp(22)).on(Link::untagged());
        bed.assert_admit("another port of a shared address", &to_ssh, bed.wan, DomainId(0), Reason::NotFrontend);
    });
}

/// A domain may name the loopback interface: then processes of the node reach its frontends, from any address of the node.
#[test]
fn lets_the_node_talk_to_itself_over_loopback() {
    on_bed(|bed| {
        const LOOPBACK: u32 = 1;
        let mut state = desired(bed.wan, bed.lan);
        let public = state.domains.get_mut(&PUBLIC).expect("in every bed");
        public.interfaces.push(Interface::untagged(LOOPBACK));
        bed.kernel.apply(&state).expect("applying");
        for source in ["127.0.0.1", "203.0.113.1", "10.0.0.5", "::1", "2001:db8:1::1"] {
            let frame = to_public(parse(source), 443);
            bed.assert_admit(source, &frame, LOOPBACK, PUBLIC, Reason::Admitted);
            bed.assert_admit(source, &frame, bed.wan, PUBLIC, Reason::Martian);
        }
        for source in ["0.0.0.0", "255.255.255.255", "ff02::1", "::"] {
            bed.assert_admit(source, &to_public(parse(source), 443), LOOPBACK, PUBLIC, Reason::Martian);
        }
    });
}

/// `steer` runs at interface 0 here, which the domain is given.
fn steer(bed: &Bed, source: &str, destination: IpAddr, transport: Transport, port: u16) -> u32 {
    let connection = Connection {
        source: SocketAddr::new(parse(source), 40_000),
        destination: SocketAddr::new(destination, port),
        transport,
    };
    bed.kernel.run_steer(&connection).expect("running steer").returned
}

#[test]
fn refuses_martians_that_came_around_the_driver() {
    const SK_DROP: u32 = 0;
    on_bed(|bed| {
        let mut state = desired(bed.wan, bed.lan);
        for id in [PUBLIC, PRIVATE] {
            let domain = state.domains.get_mut(&id).expect("in every bed");
            domain.interfaces.push(Interface::untagged(0));
        }
        bed.kernel.apply(&state).expect("applying");
        let mut refused = 0;
        for (name, source) in IMPOSSIBLE {
            let destination = if parse(source).is_ipv4() { IpAddr::from(PUBLIC_V4) } else { v6(PUBLIC_V6).into() };
            assert_eq!(steer(bed, source, destination, Transport::Tcp, 443), SK_DROP, "{name}");
            refused += 1;
            assert_eq!(bed.count(PUBLIC, Hook::Steer, Reason::Martian), refused, "{name}");
        }
        assert_eq!(steer(bed, "127.0.0.1", PUBLIC_V4.into(), Transport::Udp, 53), SK_DROP);
        assert_eq!(bed.count(PUBLIC, Hook::Steer, Reason::Martian), refused + 1);
        assert_eq!(steer(bed, "fe80::9", v6(PRIVATE_V6).into(), Transport::Tcp, 80), SK_DROP);
        assert_eq!(bed.count(PRIVATE, Hook::Steer, Reason::Martian), 1);
        // Others get as far as the socket, which this bed has only for UDP.
        assert_ne!(steer(bed, "198.51.100.10", PUBLIC_V4.into(), Transport::Udp, 53), SK_DROP);
    });
}
