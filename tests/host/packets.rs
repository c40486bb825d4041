//! Packets that no ordinary client sends: by hand and in floods.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket};
use tidegate_lab::island::Island;

/// Sends one IPv4 packet with a header of its own; `fragment` is the field of flags and offset.
pub(crate) fn send_raw(from: &Island, source: &str, to: Ipv4Addr, protocol: u8, fragment: u16, payload: &[u8]) {
    let source: Ipv4Addr = source.parse().unwrap();
    // The kernel fills in length, identification and checksum (raw(7)).
    let mut packet = vec![0x45, 0, 0, 0, 0, 0];
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend(source.octets());
    packet.extend(to.octets());
    packet.extend(payload);
    from.call(|| {
        let socket =
            socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw).expect("root may");
        let to = SockaddrIn::from(SocketAddrV4::new(to, 0));
        sendto(socket.as_raw_fd(), &packet, &to, MsgFlags::empty()).expect("there is a route");
    });
}

/// Sends SYNs from each of some sources, so many of each, as fast as one thread can. Nobody waits for the answers.
pub(crate) fn send_syns(
    from: &Island,
    sources: impl IntoIterator<Item = Ipv4Addr> + Send,
    each: usize,
    to: SocketAddrV4,
) {
    from.call(|| {
        let socket =
            socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw).expect("root may");
        let target = SockaddrIn::from(SocketAddrV4::new(*to.ip(), 0));
        for source in sources {
            let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0];
            packet.extend(source.octets());
            packet.extend(to.ip().octets());
            packet.extend(40_000u16.to_be_bytes());
            packet.extend(to.port().to_be_bytes());
            packet.extend([0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
            for _ in 0..each {
                // A full queue of the NIC loses some, as in any flood.
                let _ = sendto(socket.as_raw_fd(), &packet, &target, MsgFlags::empty());
            }
        }
    });
}

/// Sends datagrams as fast as one thread can; returns how many.
pub(crate) fn flood(from: &Island, source: IpAddr, to: SocketAddr, length: Duration) -> u64 {
    from.call(|| {
        let socket = UdpSocket::bind(SocketAddr::new(source, 0)).unwrap();
        socket.connect(to).unwrap();
        let (begun, mut sent) = (Instant::now(), 0);
        while begun.elapsed() < length {
            // An error is an ICMP message about an earlier one.
            sent += (0..100).filter(|_| socket.send(b"flood").is_ok()).count() as u64;
        }
        sent
    })
}
