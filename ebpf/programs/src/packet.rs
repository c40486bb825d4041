//! What a frame is, read step by step: link, network, transport.
//!
//! Each step reads only what the verdict needs and fails by name. Reading ends at the length that the IP header gives:
//! padding behind it is never taken for a header. The verifier's needs shape the code: every loop has a constant bound,
//! every offset a constant maximum. Must not know any table.

use tidegate_abi::{
    Address,
    address::{V4_MAPPED_PREFIX, from_v4},
};

/// Bytes of a frame, from the Ethernet header on.
pub trait Bytes {
    /// `N` bytes at an offset, or `None` when the frame ends before.
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// Length of the frame.
    fn len(&self) -> usize;

    /// Whether there is nothing at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Bytes for &[u8] {
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.get(offset..offset.checked_add(N)?)?.first_chunk().copied()
    }

    fn len(&self) -> usize {
        <[u8]>::len(self)
    }
}

/// VLAN tags read at most (802.1ad); a third one is another protocol's business.
const MAX_TAGS: usize = 2;
/// IPv6 extension headers followed at most. Real chains have one or two; RFC 9288 counts more than a few as an attack.
const MAX_EXTENSIONS: usize = 8;

const ETHERNET: usize = 14;
const TAG: usize = 4;
const IPV4: usize = 20;
const IPV6: usize = 40;
const TCP: usize = 20;
const UDP: usize = 8;
const ICMP: usize = 8;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_CTAG: u16 = 0x8100;
const ETHERTYPE_STAG: u16 = 0x88a8;
/// Outer tag of QinQ before 802.1ad.
const ETHERTYPE_QINQ: u16 = 0x9100;
const VLAN_ID: u16 = 0x0fff;

/// IP protocol numbers that are read further than their number.
pub mod protocol {
    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 routing header.
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// Authentication header (RFC 4302).
    pub const AUTHENTICATION: u8 = 51;
    /// ICMPv6.
    pub const ICMP_V6: u8 = 58;
    /// IPv6 destination options.
    pub const DESTINATION: u8 = 60;
    /// Mobility header (RFC 6275), with the format of an options header.
    pub const MOBILITY: u8 = 135;
    /// Host Identity Protocol (RFC 7401), as above.
    pub const HIP: u8 = 139;
    /// Shim6 (RFC 5533), as above.
    pub const SHIM6: u8 = 140;
}

/// What stands before the network header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// VLAN id of the outer tag; 0 is untagged.
    pub vlan: u16,
    /// VLAN id of the inner tag; 0 is none.
    pub inner_vlan: u16,
    ethertype: u16,
    offset: usize,
}

/// What the fixed part of an IP header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// Source.
    pub saddr: Address,
    /// Destination.
    pub daddr: Address,
    /// Protocol of the first header behind the fixed one; 0 for IPv6 may be hop-by-hop options.
    pub next: u8,
    /// TTL or hop limit.
    pub hops: u8,
    is_v6: bool,
    /// Where the next header begins.
    offset: usize,
    /// Where the datagram ends.
    end: usize,
    is_sound: bool,
    /// In units of eight bytes.
    fragment_offset: u16,
    has_more_fragments: bool,
}

/// What stands behind the IP headers.
///
/// Plain fields and no enum with data: what such an enum leaves undefined in its other variants, the compiler may leave
/// in registers that the verifier knows as pointers or as unwritten, and it refuses programs that touch them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport {
    /// What it is.
    pub kind: Kind,
    /// IP protocol; 0 when malformed.
    pub protocol: u8,
    /// Source port, or type of an ICMP message; else 0.
    pub sport: u16,
    /// Destination port, or code of an ICMP message; else 0.
    pub dport: u16,
    /// Flags of the TCP header; else 0.
    pub tcp_flags: u8,
}

/// Kind of what stands behind the IP headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// TCP or UDP.
    Ports,
    /// ICMP or ICMPv6.
    Icmp,
    /// A fragment that is not the first: it has no transport header.
    Fragment,
    /// Another protocol.
    Other,
    /// The datagram contradicts itself, is cut off, or hides its transport header.
    Malformed,
}

/// A frame, read whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Link.
    pub link: Link,
    /// Network.
    pub network: Network,
    /// Transport.
    pub transport: Transport,
}

/// Reads a frame; `None` when it is not IP or ends before its addresses do.
#[inline(always)]
pub fn parse(bytes: &impl Bytes) -> Option<Packet> {
    let link = Link::parse(bytes)?;
    let network = Network::parse(bytes, &link)?;
    Some(Packet { link, network, transport: Transport::parse(bytes, &network) })
}

impl Link {
    /// Reads the Ethernet header with its VLAN tags.
    #[inline(always)]
    pub fn parse(bytes: &impl Bytes) -> Option<Self> {
        let mut ethertype = u16::from_be_bytes(bytes.load(ETHERNET - 2)?);
        let mut offset = ETHERNET;
        let (mut vlan, mut inner_vlan) = (0, 0);
        for _ in 0..MAX_TAGS {
            if !matches!(ethertype, ETHERTYPE_CTAG | ETHERTYPE_STAG | ETHERTYPE_QINQ) {
                break;
            }
            let tag: [u8; TAG] = bytes.load(offset)?;
            let id = u16::from_be_bytes([tag[0], tag[1]]) & VLAN_ID;
            // VLAN id 0 carries a priority only (802.1Q): the frame counts as untagged at that level.
            if vlan == 0 {
                vlan = id;
            } else {
                inner_vlan = id;
            }
            ethertype = u16::from_be_bytes([tag[2], tag[3]]);
            offset += TAG;
        }
        Some(Self { vlan, inner_vlan, ethertype, offset })
    }

    /// Where the network header begins.
    #[inline(always)]
    pub fn offset(&self) -> usize {
        self.offset
    }
}

impl Network {
    /// Whether it is IPv6.
    #[inline(always)]
    pub fn is_v6(&self) -> bool {
        self.is_v6
    }

    /// Reads the fixed part of an IP header.
    #[inline(always)]
    pub fn parse(bytes: &impl Bytes, link: &Link) -> Option<Self> {
        match link.ethertype {
            ETHERTYPE_IPV4 => Self::parse_v4(bytes, link.offset),
            ETHERTYPE_IPV6 => Self::parse_v6(bytes, link.offset),
            _ => None,
        }
    }

    #[inline(always)]
    fn parse_v4(bytes: &impl Bytes, start: usize) -> Option<Self> {
        let header: [u8; IPV4] = bytes.load(start)?;
        let header_len = usize::from(header[0] & 0x0f) * 4;
        let total_len = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let fragment = u16::from_be_bytes([header[6], header[7]]);
        let end = start + total_len;
        Some(Self {
            saddr: from_v4([header[12], header[13], header[14], header[15]]),
            daddr: from_v4([header[16], header[17], header[18], header[19]]),
            next: header[9],
            hops: header[8],
            is_v6: false,
            offset: start + header_len,
            end,
            is_sound: header[0] >> 4 == 4 && header_len >= IPV4 && total_len >= header_len && end <= bytes.len(),
            fragment_offset: fragment & 0x1fff,
            has_more_fragments: fragment & 0x2000 != 0,
        })
    }

    #[inline(always)]
    fn parse_v6(bytes: &impl Bytes, start: usize) -> Option<Self> {
        let header: [u8; IPV6] = bytes.load(start)?;
        let payload_len = usize::from(u16::from_be_bytes([header[4], header[5]]));
        let end = start + IPV6 + payload_len;
        let mut saddr = [0; 16];
        let mut daddr = [0; 16];
        saddr.copy_from_slice(&header[8..24]);
        daddr.copy_from_slice(&header[24..40]);
        // An IPv4-mapped address never stands in a real IPv6 header (RFC 4038 section 4.2); here it would be taken for the
        // IPv4 address.
        let is_mapped = saddr.starts_with(&V4_MAPPED_PREFIX) || daddr.starts_with(&V4_MAPPED_PREFIX);
        Some(Self {
            saddr,
            daddr,
            next: header[6],
            hops: header[7],
            is_v6: true,
            offset: start + IPV6,
            end,
            is_sound: header[0] >> 4 == 6 && end <= bytes.len() && !is_mapped,
            fragment_offset: 0,
            has_more_fragments: false,
        })
    }
}

impl Transport {
    const MALFORMED: Self = Self::portless(Kind::Malformed, 0);

    #[inline(always)]
    const fn portless(kind: Kind, protocol: u8) -> Self {
        Self { kind, protocol, sport: 0, dport: 0, tcp_flags: 0 }
    }

    /// Reads what stands behind the fixed IP header: options or extension headers, then the transport header.
    #[inline(always)]
    pub fn parse(bytes: &impl Bytes, network: &Network) -> Self {
        if !network.is_sound {
            return Self::MALFORMED;
        }
        let icmp = if network.is_v6 { protocol::ICMP_V6 } else { protocol::ICMP };
        let window = Window { bytes, end: network.end, icmp };
        if network.is_v6 {
            return Self::parse_v6(&window, network);
        }
        if network.fragment_offset > 0 {
            // A fragment at offset 1 can rewrite the flags of a TCP header that came before it (RFC 1858 section 3).
            let rewrites_flags = network.fragment_offset == 1 && network.next == protocol::TCP;
            return if rewrites_flags { Self::MALFORMED } else { Self::portless(Kind::Fragment, network.next) };
        }
        Self::parse_header(&window, network.next, network.offset, network.has_more_fragments)
    }

    #[inline(always)]
    fn parse_v6(window: &Window<'_, impl Bytes>, network: &Network) -> Self {
        let mut next = network.next;
        let mut offset = network.offset;
        let mut is_first_fragment = false;
        for _ in 0..MAX_EXTENSIONS {
            // Lengths count units of eight bytes less one (RFC 8200 section 4), of the authentication header units of four
            // bytes less two (RFC 4302 section 2.2).
            let unit = match next {
                protocol::HOP_BY_HOP
                | protocol::ROUTING
                | protocol::DESTINATION
                | protocol::MOBILITY
                | protocol::HIP
                | protocol::SHIM6 => 8,
                protocol::AUTHENTICATION => 4,
                protocol::FRAGMENT => 0,
                _ => return Self::parse_header(window, next, offset, is_first_fragment),
            };
            let Some(header) = window.load::<8>(offset) else { return Self::MALFORMED };
            next = header[0];
            if unit == 0 {
                let field = u16::from_be_bytes([header[2], header[3]]);
                if field >> 3 != 0 {
                    return Self::portless(Kind::Fragment, next);
                }
                is_first_fragment = field & 1 != 0;
            }
            offset += 8 + usize::from(header[1]) * unit;
        }
        Self::MALFORMED
    }

    /// `is_first_fragment`: the rest of the datagram comes later, so its length is not known here; the header must be
    /// whole all the same (RFC 1858, RFC 7112).
    #[inline(always)]
    fn parse_header(window: &Window<'_, impl Bytes>, next: u8, offset: usize, is_first_fragment: bool) -> Self {
        match next {
            protocol::TCP => {
                let Some(header) = window.load::<TCP>(offset) else { return Self::MALFORMED };
                let header_len = usize::from(header[12] >> 4) * 4;
                if header_len < TCP || offset + header_len > window.end {
                    return Self::MALFORMED;
                }
                Self {
                    kind: Kind::Ports,
                    protocol: next,
                    sport: u16::from_be_bytes([header[0], header[1]]),
                    dport: u16::from_be_bytes([header[2], header[3]]),
                    tcp_flags: header[13],
                }
            }
            protocol::UDP => {
                let Some(header) = window.load::<UDP>(offset) else { return Self::MALFORMED };
                let len = usize::from(u16::from_be_bytes([header[4], header[5]]));
                if len < UDP || (offset + len > window.end && !is_first_fragment) {
                    return Self::MALFORMED;
                }
                Self {
                    kind: Kind::Ports,
                    protocol: next,
                    sport: u16::from_be_bytes([header[0], header[1]]),
                    dport: u16::from_be_bytes([header[2], header[3]]),
                    tcp_flags: 0,
                }
            }
            // The stack takes each only in packets of its own family.
            _ if next == window.icmp => {
                let Some(header) = window.load::<ICMP>(offset) else { return Self::MALFORMED };
                let (kind, code) = (header[0].into(), header[1].into());
                Self { kind: Kind::Icmp, protocol: next, sport: kind, dport: code, tcp_flags: 0 }
            }
            other => Self::portless(Kind::Other, other),
        }
    }
}

/// Bytes up to the end of the datagram, and what its family's ICMP is.
struct Window<'a, B> {
    bytes: &'a B,
    end: usize,
    icmp: u8,
}

impl<B: Bytes> Window<'_, B> {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        if offset + N > self.end {
            return None;
        }
        self.bytes.load(offset)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Ethernet, IPv6, hop-by-hop options, fragment header, TCP.
    fn longest() -> [u8; 14 + 40 + 8 + 8 + 20] {
        let mut frame = [0; 90];
        frame[12..14].copy_from_slice(&ETHERTYPE_IPV6.to_be_bytes());
        frame[14] = 0x60;
        frame[19] = 36;
        frame[20] = protocol::HOP_BY_HOP;
        frame[54] = protocol::FRAGMENT;
        frame[62] = protocol::TCP;
        frame[70..74].copy_from_slice(&[0x9c, 0x40, 0x01, 0xbb]);
        frame[82] = 0x50;
        frame[83] = 0x02;
        frame
    }

    #[test]
    fn reads_through_every_layer() {
        let packet = parse(&&longest()[..]).expect("it is IP");
        let expected = Transport { kind: Kind::Ports, protocol: 6, sport: 40_000, dport: 443, tcp_flags: 2 };
        assert_eq!(packet.transport, expected);
    }

    #[test]
    fn a_frame_cut_off_anywhere_is_no_ip_or_malformed() {
        let frame = longest();
        for len in 0..frame.len() {
            match parse(&&frame[..len]) {
                None => assert!(len < 14 + 40, "{len}"),
                Some(packet) => assert_eq!(packet.transport, Transport::MALFORMED, "{len}"),
            }
        }
    }

    proptest! {
        #[test]
        fn random_bytes_are_read_without_a_panic(frame in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&&frame[..]);
        }

        #[test]
        fn spoiled_headers_are_read_without_a_panic(at in 12..90usize, value: u8) {
            let mut frame = longest();
            frame[at] = value;
            let _ = parse(&&frame[..]);
        }
    }
}
