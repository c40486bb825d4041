//! One fixture for each branch and reason of `admit`.

use tidegate_kernel::Reason;
use tidegate_model::DomainId;

use crate::{
    bed::{
        ALLOWED_V4, ALLOWED_V6, Bed, CLOSED, CLOSED_V4, DENIED_V4, DENIED_V6, NODE_V4, PRIVATE, PRIVATE_V4, PRIVATE_V6,
        PUBLIC, PUBLIC_V4, PUBLIC_V6, SHARED, STRANGER_V4, STRANGER_V6, on_bed, v6,
    },
    frame::{
        ICMP, ICMP_V6, Link, MORE_FRAGMENTS, TCP, UDP, V4, V6, authentication, extension, fragment, icmp, tcp, udp,
    },
    sys,
};

const NOBODY: DomainId = DomainId(0);

fn to_public(protocol: u8, payload: Vec<u8>) -> V4 {
    V4::new(STRANGER_V4, PUBLIC_V4, protocol, payload)
}

fn to_public_v6(protocol: u8, payload: Vec<u8>) -> V6 {
    V6::new(v6(STRANGER_V6), v6(PUBLIC_V6), protocol, payload)
}

fn untagged(packet: &V4) -> Vec<u8> {
    packet.on(Link::untagged())
}

fn untagged_v6(packet: &V6) -> Vec<u8> {
    packet.on(Link::untagged())
}

fn expect_wan(bed: &Bed, domain: DomainId, cases: &[(&str, Vec<u8>, Reason)]) {
    for (name, frame, reason) in cases {
        bed.assert_admit(name, frame, bed.wan, domain, *reason);
    }
}

#[test]
fn passes_what_is_not_for_a_frontend_untouched() {
    on_bed(|bed| {
        let elsewhere = V4::new(STRANGER_V4, [198, 51, 100, 99], TCP, tcp(443));
        let elsewhere_v6 = V6::new(v6(STRANGER_V6), v6("2001:db8:1::2"), TCP, tcp(443));
        let arp = Link::untagged().carry(0x0806, &[0; 28]);
        let lldp = Link::untagged().carry(0x88cc, &[1; 40]);
        let mut old_ethernet = untagged(&to_public(TCP, tcp(443)));
        old_ethernet[12..14].copy_from_slice(&100u16.to_be_bytes());
        let three_tags = Link::untagged().tag(0x88a8, 1).tag(0x8100, 2).tag(0x8100, 3);
        let neighbours = V6::new(v6(DENIED_V6), v6("ff02::1:ff00:1"), ICMP_V6, icmp(135, 0));
        let truncated_v4 = &untagged(&to_public(TCP, tcp(443)))[..14 + 19];
        let truncated_v6 = &untagged_v6(&to_public_v6(TCP, tcp(443)))[..14 + 39];
        let cases = [
            ("another IPv4 address", untagged(&elsewhere)),
            ("another IPv6 address", untagged_v6(&elsewhere_v6)),
            ("ARP", arp),
            ("another protocol", lldp),
            ("an 802.3 length in place of a type", old_ethernet),
            ("three VLAN tags", to_public(TCP, tcp(443)).on(three_tags)),
            ("neighbour solicitation to its multicast group", untagged_v6(&neighbours)),
            ("IPv4 header cut off before its end", truncated_v4.to_vec()),
            ("IPv6 header cut off before its end", truncated_v6.to_vec()),
        ];
        for (name, frame) in &cases {
            bed.assert_admit(name, frame, bed.wan, NOBODY, Reason::NotFrontend);
            bed.assert_admit(name, frame, bed.lan, NOBODY, Reason::NotFrontend);
        }
    });
}

#[test]
fn admits_frontends_over_every_header_in_front() {
    on_bed(|bed| {
        let mut with_options = to_public(TCP, tcp(443));
        with_options.options = vec![1; 40];
        let mut long_tcp = tcp(443);
        long_tcp[12] = 0xf0;
        long_tcp.extend([1; 40]);
        let mut padded = untagged(&to_public(TCP, tcp(443)));
        padded.extend([0xff; 6]);
        let chain = to_public_v6(TCP, tcp(443))
            .extend(0, extension(1))
            .extend(60, extension(3))
            .extend(43, extension(2))
            .extend(51, authentication())
            .extend(135, extension(1))
            .extend(139, extension(1))
            .extend(140, extension(1));
        let mut longest = to_public_v6(TCP, tcp(443));
        for _ in 0..7 {
            longest = longest.extend(60, extension(1));
        }
        let atomic = to_public_v6(TCP, tcp(443)).extend(44, fragment(0, false));
        let cases = [
            ("TCP 443 over IPv4", untagged(&to_public(TCP, tcp(443))), Reason::Admitted),
            ("TCP 80 over IPv4", untagged(&to_public(TCP, tcp(80))), Reason::Admitted),
            ("UDP 53 over IPv4", untagged(&to_public(UDP, udp(53))), Reason::Admitted),
            ("IPv4 with 40 bytes of options", untagged(&with_options), Reason::Admitted),
            ("TCP with 40 bytes of options", untagged(&to_public(TCP, long_tcp)), Reason::Admitted),
            ("Ethernet padding behind the datagram", padded, Reason::Admitted),
            ("TCP 443 over IPv6", untagged_v6(&to_public_v6(TCP, tcp(443))), Reason::Admitted),
            ("UDP 53 over IPv6", untagged_v6(&to_public_v6(UDP, udp(53))), Reason::Admitted),
            ("every extension header", untagged_v6(&chain), Reason::Admitted),
            ("seven extension headers", untagged_v6(&longest), Reason::Admitted),
            ("an atomic fragment (RFC 6946)", untagged_v6(&atomic), Reason::Admitted),
        ];
        expect_wan(bed, PUBLIC, &cases);
    });
}

#[test]
fn drops_packets_of_another_domains_nic() {
    on_bed(|bed| {
        let public = untagged(&to_public(TCP, tcp(443)));
        let private = untagged(&V4::new(ALLOWED_V4, PRIVATE_V4, TCP, tcp(80)));
        let public_v6 = untagged_v6(&to_public_v6(TCP, tcp(443)));
        let private_v6 = untagged_v6(&V6::new(v6(ALLOWED_V6), v6(PRIVATE_V6), TCP, tcp(80)));
        for (name, frame, right, wrong, domain) in [
            ("public", public, bed.wan, bed.lan, PUBLIC),
            ("private", private, bed.lan, bed.wan, PRIVATE),
            ("public IPv6", public_v6, bed.wan, bed.lan, PUBLIC),
            ("private IPv6", private_v6, bed.lan, bed.wan, PRIVATE),
        ] {
            bed.assert_admit(name, &frame, right, domain, Reason::Admitted);
            bed.assert_admit(name, &frame, wrong, domain, Reason::WrongInterface);
        }
        let shared = untagged(&V4::new(STRANGER_V4, NODE_V4, TCP, tcp(8080)));
        bed.assert_admit("shared address", &shared, bed.lan, SHARED, Reason::WrongInterface);
    });
}

#[test]
fn tells_vlans_of_one_nic_apart() {
    on_bed(|bed| {
        let packet = to_public(TCP, tcp(443));
        let qinq = |outer, inner| packet.on(Link::untagged().tag(0x88a8, outer).tag(0x8100, inner));
        let cases = [
            ("VLAN 100", packet.on(Link::untagged().tag(0x8100, 100)), Reason::Admitted),
            ("VLAN 100 with a priority", packet.on(Link::untagged().tag(0x8100, 0xe000 | 100)), Reason::Admitted),
            ("VLAN 101", packet.on(Link::untagged().tag(0x8100, 101)), Reason::WrongInterface),
            ("a priority tag only", packet.on(Link::untagged().tag(0x8100, 0xe000)), Reason::Admitted),
            ("VLAN 300 in 200", qinq(200, 300), Reason::Admitted),
            ("VLAN 200 in 300", qinq(300, 200), Reason::WrongInterface),
            ("VLAN 100 in 100", qinq(100, 100), Reason::WrongInterface),
            ("VLAN 200 alone", packet.on(Link::untagged().tag(0x88a8, 200)), Reason::WrongInterface),
            ("QinQ of before 802.1ad", packet.on(Link::untagged().tag(0x9100, 200).tag(0x8100, 300)), Reason::Admitted),
            ("VLAN 100 in a priority tag", qinq(0, 100), Reason::Admitted),
        ];
        expect_wan(bed, PUBLIC, &cases);
        let private = V4::new(ALLOWED_V4, PRIVATE_V4, TCP, tcp(80)).on(Link::untagged().tag(0x8100, 100));
        bed.assert_admit("VLAN on a NIC without VLANs", &private, bed.lan, PRIVATE, Reason::WrongInterface);
    });
}

#[test]
fn judges_sources_by_deny_and_allow_lists() {
    on_bed(|bed| {
        let public = |source| untagged(&V4::new(source, PUBLIC_V4, TCP, tcp(443)));
        let public_v6 = |source| untagged_v6(&V6::new(v6(source), v6(PUBLIC_V6), TCP, tcp(443)));
        let cases = [
            ("first of a denied prefix", public([192, 0, 2, 0]), Reason::SourceDenied),
            ("inside a denied prefix", public(DENIED_V4), Reason::SourceDenied),
            ("last of a denied prefix", public([192, 0, 2, 255]), Reason::SourceDenied),
            ("before a denied prefix", public([192, 0, 1, 255]), Reason::Admitted),
            ("behind a denied prefix", public([192, 0, 3, 0]), Reason::Admitted),
            ("inside a denied IPv6 prefix", public_v6(DENIED_V6), Reason::SourceDenied),
            ("outside a denied IPv6 prefix", public_v6("2001:db8:bae::7"), Reason::Admitted),
        ];
        expect_wan(bed, PUBLIC, &cases);
        let private = |source| untagged(&V4::new(source, PRIVATE_V4, TCP, tcp(80)));
        let private_v6 = |source| untagged_v6(&V6::new(v6(source), v6(PRIVATE_V6), TCP, tcp(80)));
        for (name, frame, reason) in [
            ("allowed", private(ALLOWED_V4), Reason::Admitted),
            ("not allowed", private(STRANGER_V4), Reason::SourceNotAllowed),
            ("denied within allowed", private([10, 20, 66, 1]), Reason::SourceDenied),
            ("allowed IPv6", private_v6(ALLOWED_V6), Reason::Admitted),
            ("IPv6 not allowed", private_v6(STRANGER_V6), Reason::SourceNotAllowed),
        ] {
            bed.assert_admit(name, &frame, bed.lan, PRIVATE, reason);
        }
        let closed = untagged(&V4::new(ALLOWED_V4, CLOSED_V4, TCP, tcp(80)));
        bed.assert_admit("an empty allow list", &closed, bed.wan, CLOSED, Reason::SourceNotAllowed);
    });
}

#[test]
fn refuses_ports_without_a_frontend_at_a_domains_own_address() {
    on_bed(|bed| {
        let cases = [
            ("TCP 22", untagged(&to_public(TCP, tcp(22))), Reason::NoFrontend),
            ("TCP 53, where UDP is served", untagged(&to_public(TCP, tcp(53))), Reason::NoFrontend),
            ("UDP 443, where TCP is served", untagged(&to_public(UDP, udp(443))), Reason::NoFrontend),
            ("TCP 22 over IPv6", untagged_v6(&to_public_v6(TCP, tcp(22))), Reason::NoFrontend),
        ];
        expect_wan(bed, PUBLIC, &cases);
    });
}

#[test]
fn leaves_everything_else_at_a_shared_address_alone() {
    on_bed(|bed| {
        let to_node = |protocol, payload| V4::new(DENIED_V4, NODE_V4, protocol, payload);
        let mut later_fragment = to_node(TCP, vec![0; 64]);
        later_fragment.fragment = 10;
        let mut broken = untagged(&to_node(TCP, tcp(22)));
        broken[14] = 0x44;
        expect_wan(bed, SHARED, &[("its frontend", untagged(&to_node(TCP, tcp(8080))), Reason::Admitted)]);
        let cases = [
            ("ssh", untagged(&to_node(TCP, tcp(22))), Reason::NotFrontend),
            ("UDP", untagged(&to_node(UDP, udp(8080))), Reason::NotFrontend),
            ("ping", untagged(&to_node(ICMP, icmp(8, 0))), Reason::NotFrontend),
            ("GRE", untagged(&to_node(47, vec![0; 8])), Reason::NotFrontend),
            ("a later fragment", untagged(&later_fragment), Reason::NotFrontend),
            ("a broken header", broken, Reason::NotFrontend),
        ];
        expect_wan(bed, NOBODY, &cases);
        for (name, frame, reason) in &cases {
            bed.assert_admit(name, frame, bed.lan, NOBODY, *reason);
        }
    });
}

#[test]
fn judges_fragments() {
    on_bed(|bed| {
        let fragment_v4 = |field: u16, protocol, payload| {
            let mut packet = to_public(protocol, payload);
            packet.fragment = field;
            untagged(&packet)
        };
        let first_v6 = |payload| untagged_v6(&to_public_v6(TCP, payload).extend(44, fragment(0, true)));
        let later_v6 = |source: &str| {
            let packet = V6::new(v6(source), v6(PUBLIC_V6), TCP, vec![0; 32]).extend(44, fragment(9, false));
            untagged_v6(&packet)
        };
        let mut first_udp = udp(53);
        first_udp[4..6].copy_from_slice(&4000u16.to_be_bytes());
        let mut long_first = tcp(443);
        long_first.extend([0; 4]);
        let mut denied_later = V4::new(DENIED_V4, PUBLIC_V4, UDP, vec![0; 16]);
        denied_later.fragment = 4;
        let cases = [
            ("first with a whole header", fragment_v4(MORE_FRAGMENTS, TCP, long_first.clone()), Reason::Admitted),
            ("first of a long UDP datagram", fragment_v4(MORE_FRAGMENTS, UDP, first_udp), Reason::Admitted),
            ("first without a frontend", fragment_v4(MORE_FRAGMENTS, TCP, tcp(22)), Reason::NoFrontend),
            (
                "first with half a TCP header",
                fragment_v4(MORE_FRAGMENTS, TCP, tcp(443)[..16].into()),
                Reason::Malformed,
            ),
            ("a later one", fragment_v4(3, TCP, vec![0; 16]), Reason::Admitted),
            ("a later one in the middle", fragment_v4(MORE_FRAGMENTS | 3, UDP, vec![0; 16]), Reason::Admitted),
            ("one over the TCP flags (RFC 1858)", fragment_v4(1, TCP, vec![0; 16]), Reason::Malformed),
            ("a second one of UDP", fragment_v4(1, UDP, vec![0; 16]), Reason::Admitted),
            ("a later one from a denied source", untagged(&denied_later), Reason::SourceDenied),
            ("first of IPv6 with a whole header", first_v6(long_first), Reason::Admitted),
            ("first of IPv6 with half a header", first_v6(tcp(443)[..8].into()), Reason::Malformed),
            ("first of IPv6 without a frontend", first_v6(tcp(22)), Reason::NoFrontend),
            ("a later one of IPv6", later_v6(STRANGER_V6), Reason::Admitted),
            ("a later one of IPv6 from a denied source", later_v6(DENIED_V6), Reason::SourceDenied),
        ];
        expect_wan(bed, PUBLIC, &cases);
        let later = fragment_v4(3, TCP, vec![0; 16]);
        bed.assert_admit("a later one on the wrong NIC", &later, bed.lan, PUBLIC, Reason::WrongInterface);
    });
}

#[test]
fn judges_icmp_by_type() {
    on_bed(|bed| {
        for kind in 0..=u8::MAX {
            let reason = match kind {
                0 | 3 | 8 | 11 | 12 => Reason::Admitted,
                _ => Reason::IcmpDenied,
            };
            let frame = untagged(&to_public(ICMP, icmp(kind, 0)));
            bed.assert_admit(&format!("ICMP type {kind}"), &frame, bed.wan, PUBLIC, reason);
            let reason = match kind {
                1..=4 | 128 | 129 => Reason::Admitted,
                _ => Reason::IcmpDenied,
            };
            let frame = untagged_v6(&to_public_v6(ICMP_V6, icmp(kind, 0)));
            bed.assert_admit(&format!("ICMPv6 type {kind}"), &frame, bed.wan, PUBLIC, reason);
        }
        let echo = |source| untagged(&V4::new(source, PRIVATE_V4, ICMP, icmp(8, 0)));
        let error = |source| untagged(&V4::new(source, PRIVATE_V4, ICMP, icmp(3, 4)));
        for (name, frame, reason) in [
            ("ping from an allowed source", echo(ALLOWED_V4), Reason::Admitted),
            ("ping from another source", echo(STRANGER_V4), Reason::SourceNotAllowed),
            ("fragmentation needed, from a router", error(STRANGER_V4), Reason::Admitted),
            ("fragmentation needed, from a denied source", error([10, 20, 66, 1]), Reason::SourceDenied),
            ("a message cut off", untagged(&V4::new(ALLOWED_V4, PRIVATE_V4, ICMP, vec![8; 7])), Reason::Malformed),
        ] {
            bed.assert_admit(name, &frame, bed.lan, PRIVATE, reason);
        }
        bed.assert_admit("error on the wrong NIC", &error(ALLOWED_V4), bed.wan, PRIVATE, Reason::WrongInterface);
    });
}

#[test]
fn lets_neighbours_ask_for_frontend_addresses() {
    on_bed(|bed| {
        for kind in [135, 136] {
            let mut packet = V6::new(v6("fe80::1"), v6(PRIVATE_V6), ICMP_V6, icmp(kind, 0));
            packet.hop_limit = 255;
            bed.assert_admit("from a neighbour", &untagged_v6(&packet), bed.lan, PRIVATE, Reason::Admitted);
            packet.hop_limit = 254;
            bed.assert_admit("through a router", &untagged_v6(&packet), bed.lan, PRIVATE, Reason::Martian);
            packet.source = v6(STRANGER_V6);
            bed.assert_admit(
                "of a stranger, routed",
                &untagged_v6(&packet),
                bed.lan,
                PRIVATE,
                Reason::SourceNotAllowed,
            );
            packet.source = v6(ALLOWED_V6);
            bed.assert_admit("of an allowed one, routed", &untagged_v6(&packet), bed.lan, PRIVATE, Reason::IcmpDenied);
        }
    });
}

#[test]
fn refuses_other_protocols() {
    on_bed(|bed| {
        for protocol in [0, 2, 4, 41, 43, 47, 50, 59, 89, 132, 255] {
            let frame = untagged(&to_public(protocol, vec![0; 32]));
            bed.assert_admit(&format!("protocol {protocol}"), &frame, bed.wan, PUBLIC, Reason::ProtocolDenied);
        }
        for protocol in [4, 41, 47, 50, 59, 89, 132] {
            let frame = untagged_v6(&to_public_v6(protocol, vec![0; 32]));
            bed.assert_admit(&format!("IPv6 protocol {protocol}"), &frame, bed.wan, PUBLIC, Reason::ProtocolDenied);
        }
        // ICMP of one family in packets of the other: the stack takes neither.
        let crossed = untagged(&to_public(ICMP_V6, icmp(128, 0)));
        bed.assert_admit("ICMPv6 in IPv4", &crossed, bed.wan, PUBLIC, Reason::ProtocolDenied);
        let crossed = untagged_v6(&to_public_v6(ICMP, icmp(8, 0)));
        bed.assert_admit("ICMP in IPv6", &crossed, bed.wan, PUBLIC, Reason::ProtocolDenied);
    });
}

#[test]
fn refuses_what_contradicts_itself() {
    on_bed(|bed| {
        let spoil = |at: usize, value: u8| {
            let mut frame = untagged(&to_public(TCP, tcp(443)));
            frame[at] = value;
            frame
        };
        let spoil_v6 = |at: usize, value: u8| {
            let mut frame = untagged_v6(&to_public_v6(TCP, tcp(443)));
            frame[at] = value;
            frame
        };
        let mut short_udp = udp(53);
        short_udp[5] = 7;
        let mut long_udp = udp(53);
        long_udp[5] = 13;
        let mut endless = to_public_v6(TCP, tcp(443));
        for _ in 0..8 {
            endless = endless.extend(60, extension(1));
        }
        let mut too_long_extension = extension(1);
        too_long_extension[1] = 255;
        let mapped =
            |source: &str, destination: &str| untagged_v6(&V6::new(v6(source), v6(destination), TCP, tcp(443)));
        let cases = [
            ("IPv4 header shorter than 20 bytes", spoil(14, 0x44), Reason::Malformed),
            ("IPv4 header longer than the datagram", spoil(14, 0x4f), Reason::Malformed),
            ("version 5 in an IPv4 frame", spoil(14, 0x55), Reason::Malformed),
            ("total length of 0", spoil(17, 0), Reason::Malformed),
            ("total length beyond the frame", spoil(17, 41), Reason::Malformed),
            ("TCP header shorter than 20 bytes", spoil(14 + 20 + 12, 0x40), Reason::Malformed),
            ("TCP header longer than the datagram", spoil(14 + 20 + 12, 0x60), Reason::Malformed),
            ("UDP length below its header", untagged(&to_public(UDP, short_udp)), Reason::Malformed),
            ("UDP length beyond the datagram", untagged(&to_public(UDP, long_udp)), Reason::Malformed),
            ("version 4 in an IPv6 frame", spoil_v6(14, 0x40), Reason::Malformed),
            ("payload length beyond the frame", spoil_v6(19, 21), Reason::Malformed),
            ("payload length of 0", spoil_v6(19, 0), Reason::Malformed),
            ("eight extension headers", untagged_v6(&endless), Reason::Malformed),
            (
                "extension header beyond the datagram",
                untagged_v6(&to_public_v6(TCP, tcp(443)).extend(60, too_long_extension)),
                Reason::Malformed,
            ),
            ("IPv4-mapped source on the wire", mapped("::ffff:198.51.100.10", PUBLIC_V6), Reason::Malformed),
            ("IPv4-mapped destination on the wire", mapped(STRANGER_V6, "::ffff:203.0.113.1"), Reason::Malformed),
        ];
        expect_wan(bed, PUBLIC, &cases);
        let mut wrong_nic = untagged(&to_public(TCP, tcp(443)));
        wrong_nic[14] = 0x44;
        bed.assert_admit("malformed on the wrong NIC", &wrong_nic, bed.lan, PUBLIC, Reason::WrongInterface);
    });
}

#[test]
fn refuses_a_domain_without_a_policy() {
    on_bed(|bed| {
        sys::delete_element(&bed.config, "DOMAINS", &PUBLIC.0.to_ne_bytes());
        let frame = untagged(&to_public(TCP, tcp(443)));
        bed.assert_admit("without a policy", &frame, bed.wan, PUBLIC, Reason::DomainUnknown);
        bed.assert_admit("on the wrong NIC", &frame, bed.lan, PUBLIC, Reason::WrongInterface);
    });
}
