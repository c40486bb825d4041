//! Frames for [`crate::Kernel::explain`]: what the first packet of a connection looks like.

use std::net::{IpAddr, SocketAddr};

/// A packet that somebody asks about. Both addresses are of one family; when they are not, both are written as IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketSpec {
    /// Source.
    pub source: SocketAddr,
    /// Destination.
    pub destination: SocketAddr,
    /// What it carries. Without ports, those of the addresses are not used.
    pub payload: Payload,
    /// VLAN id of a tag, for a frame on a NIC that carries VLANs.
    pub vlan: Option<u16>,
}

/// What a packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// The SYN of a TCP connection.
    Tcp,
    /// An empty UDP datagram.
    Udp,
    /// An ICMP message of the addresses' family.
    Icmp {
        /// Its type.
        kind: u8,
        /// Its code.
        code: u8,
    },
}

/// The packet in an Ethernet frame, forwarded by a router (TTL 64). Checksums are zero: verdicts do not depend on them.
pub fn craft(spec: &PacketSpec) -> Vec<u8> {
    let mut frame = vec![0; 12];
    if let Some(vlan) = spec.vlan {
        frame.extend([0x81, 0x00]);
        frame.extend(vlan.to_be_bytes());
    }
    let payload = craft_payload(spec);
    let protocol = match spec.payload {
        Payload::Tcp => 6,
        Payload::Udp => 17,
        Payload::Icmp { .. } if spec.source.is_ipv4() && spec.destination.is_ipv4() => 1,
        Payload::Icmp { .. } => 58,
    };
    match (spec.source.ip(), spec.destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            frame.extend([0x08, 0x00, 0x45, 0]);
            frame.extend((20 + payload.len() as u16).to_be_bytes());
            // Identification 0, "don't fragment", TTL 64, no checksum.
            frame.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
            frame.extend(source.octets());
            frame.extend(destination.octets());
        }
        (source, destination) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend((payload.len() as u16).to_be_bytes());
            frame.extend([protocol, 64]);
            frame.extend(to_v6(source));
            frame.extend(to_v6(destination));
        }
    }
    frame.extend(payload);
    frame
}

fn craft_payload(spec: &PacketSpec) -> Vec<u8> {
    let mut header = Vec::with_capacity(20);
    if !matches!(spec.payload, Payload::Icmp { .. }) {
        header.extend(spec.source.port().to_be_bytes());
        header.extend(spec.destination.port().to_be_bytes());
    }
    match spec.payload {
        // Sequence and acknowledgement 0, five words of header, SYN, a window, no checksum, no urgent data.
        Payload::Tcp => header.extend([0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]),
        Payload::Udp => header.extend([0, 8, 0, 0]),
        Payload::Icmp { kind, code } => header.extend([kind, code, 0, 0, 0, 0, 0, 0]),
    }
    header
}

fn to_v6(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}
