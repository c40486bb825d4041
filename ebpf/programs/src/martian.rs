//! Sources that cannot be: addresses that no host has, and those of frontends themselves.
//!
//! Only what is impossible on every network is a martian. Address space that is merely unassigned, private or reserved for
//! documentation is for deny lists: whoever runs a node knows better what is behind it. Must not know domains or lists.

use tidegate_abi::{Address, address::to_v4};

use crate::decide::{Ingress, Tables};

/// The loopback interface of every network namespace (`LOOPBACK_IFINDEX` of net/flow.h, since Linux 3.7).
pub(crate) const LOOPBACK_IFINDEX: u32 = 1;

/// What an address says about itself as a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Scope {
    /// A host may have it.
    Host,
    /// A host may have it on one link: no router passes it on (RFC 3927 section 2.7, RFC 4291 section 2.5.6).
    Link,
    /// The node itself has it (RFC 1122 section 3.2.1.3, RFC 4291 section 2.5.3).
    Node,
    /// None has it: unspecified and "this network", multicast, broadcast, IPv4 class E (RFC 1112 section 4),
    /// IPv4-compatible IPv6 (RFC 4291 section 2.5.5.1).
    Nobody,
}

/// Whether a packet lies about where it comes from. Without `ingress` it may be from this node.
///
/// Errors (`is_error`) may come from routers that have link-local addresses only; without them path MTU discovery fails.
/// What the node says to itself over loopback carries loopback addresses, and, as the kernel prefers the destination's own,
/// addresses of frontends.
#[inline(always)]
pub(crate) fn is_martian(tables: &impl Tables, saddr: &Address, ingress: Option<&Ingress>, is_error: bool) -> bool {
    let is_from_outside = match ingress {
        Some(ingress) => ingress.ifindex != LOOPBACK_IFINDEX,
        None => false,
    };
    match scope_of(saddr) {
        Scope::Nobody => true,
        Scope::Node => is_from_outside,
        Scope::Link => !is_error,
        Scope::Host => is_from_outside && tables.find_owner(saddr).is_some(),
    }
}

#[inline(always)]
fn scope_of(addr: &Address) -> Scope {
    if let Some(v4) = to_v4(addr) {
        return match v4 {
            [127, ..] => Scope::Node,
            [169, 254, ..] => Scope::Link,
            [0 | 224.., ..] => Scope::Nobody,
            _ => Scope::Host,
        };
    }
    if addr[0] == 0xff {
        return Scope::Nobody;
    }
    if addr[0] == 0xfe && addr[1] & 0xc0 == 0x80 {
        return Scope::Link;
    }
    let mut index = 0;
    while index < 12 {
        if addr[index] != 0 {
            return Scope::Host;
        }
        index += 1;
    }
    if u32::from_be_bytes([addr[12], addr[13], addr[14], addr[15]]) == 1 { Scope::Node } else { Scope::Nobody }
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use tidegate_abi::address::from_ip;

    use super::*;

    fn scope(text: &str) -> Scope {
        scope_of(&from_ip(text.parse::<IpAddr>().unwrap()))
    }

    #[test]
    fn the_edges_of_every_range_are_told_apart() {
        for (texts, expected) in [
            (
                &["1.0.0.0", "126.255.255.255", "128.0.0.0", "169.253.255.255", "169.255.0.0", "223.255.255.255"][..],
                Scope::Host,
            ),
            (
                &["10.0.0.1", "100.64.0.1", "192.0.2.1", "::1:0:0", "2001:db8::1", "fd00::1", "fec0::1", "fe7f::1"],
                Scope::Host,
            ),
            (&["169.254.0.0", "169.254.255.255", "fe80::", "febf:ffff::1"], Scope::Link),
            (&["127.0.0.0", "127.255.255.255", "::1"], Scope::Node),
            (
                &["0.0.0.0", "0.255.255.255", "224.0.0.0", "239.255.255.255", "240.0.0.0", "255.255.255.255"],
                Scope::Nobody,
            ),
            (&["::", "::2", "::192.0.2.1", "::ffff:ffff", "ff00::", "ff02::1"], Scope::Nobody),
        ] {
            for text in texts {
                assert_eq!(scope(text), expected, "{text}");
            }
        }
    }
}
