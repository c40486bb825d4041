//! Sockets that clients reach. The agent makes them, so that they outlive any worker, and no worker needs a right to.
//!
//! With the kernel tier a domain has one reuseport group for each address family on a loopback port that nobody is told;
//! `steer` gives it the TCP connections of every frontend. Without it each frontend has a group of its own. UDP frontends
//! have theirs in either case: a socket answers from the address that it is bound to.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};
use tidegate_model::{FrontendKey, Transport};

/// Connections that wait to be accepted, for each socket. The kernel caps it at `net.core.somaxconn` (4096 since 5.4).
const BACKLOG: i32 = 4096;

/// Bytes that wait for a worker in each socket of a UDP frontend, with the kernel's own (about 800 a small datagram): what a
/// busy shard gets in some milliseconds, or a quiet one while its worker is started again.
const RECEIVE_BUFFER: usize = 1 << 20;

/// Why a frontend has no sockets.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody else listens there.
    #[error("{frontend} is in use by another program on this node; stop it, or give the listener another port")]
    InUse {
        /// The frontend.
        frontend: FrontendKey,
    },
    /// The address is not this host's.
    #[error("{frontend}: the address is not one of this node's; without CAP_NET_ADMIN it must be added by hand: ip address add {}/{} dev lo", .frontend.addr, if .frontend.addr.is_ipv4() { 32 } else { 128 })]
    NotLocal {
        /// The frontend.
        frontend: FrontendKey,
    },
    /// A port below 1024 without the right to it.
    #[error(
        "{frontend}: no right to listen on this port; run as root, give CAP_NET_BIND_SERVICE, or use a port from 1024 up"
    )]
    Denied {
        /// The frontend.
        frontend: FrontendKey,
    },
    /// Anything else.
    #[error("cannot listen on {address}: {error}")]
    Other {
        /// Where.
        address: SocketAddr,
        /// Why.
        error: io::Error,
    },
}

/// Opens `count` sockets on a loopback port: the target of `steer` for one family. `port` is that of the group to join; 0
/// lets the kernel choose one for a new group.
///
/// # Errors
/// [`ListenError::Other`], e.g. when the host has no IPv6 or `lo` is down.
pub fn open_steered(count: usize, is_v6: bool, port: u16) -> Result<Vec<OwnedFd>, ListenError> {
    let loopback: IpAddr = if is_v6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };
    let mut address = SocketAddr::new(loopback, port);
    let mut sockets = Vec::with_capacity(count);
    for _ in 0..count {
        let opened = open(address, true, false).and_then(|socket| Ok((socket.local_addr()?.as_socket(), socket)));
        let (bound, socket) = opened.map_err(|error| ListenError::Other { address, error })?;
        address = bound.unwrap_or(address);
        sockets.push(socket.into());
    }
    Ok(sockets)
}

/// Port of a socket of [`open_steered`].
///
/// # Errors
/// As `getsockname(2)`.
pub fn port_of(socket: &OwnedFd) -> io::Result<u16> {
    Ok(socket2::SockRef::from(socket).local_addr()?.as_socket().map_or(0, |address| address.port()))
}

/// How sockets come to be on a frontend's own address.
#[derive(Clone, Copy, Debug, Default)]
pub struct Binding {
    /// Whether this program has others there already.
    pub is_joining: bool,
    /// Whether the address is made local by a route, which comes after its sockets; so the kernel must be told not to look.
    /// IPv6 takes no notice of such a route in any case (`ipv6_chk_addr`).
    pub is_routed: bool,
}

/// Opens `count` sockets on a frontend's own address.
///
/// # Errors
/// See [`ListenError`]; nothing is left open.
pub fn open_bound(frontend: FrontendKey, count: usize, binding: Binding) -> Result<Vec<OwnedFd>, ListenError> {
    let open = |is_shared| match frontend.transport {
        Transport::Tcp => open(SocketAddr::new(frontend.addr, frontend.port), is_shared, binding.is_routed),
        Transport::Udp => open_datagram(SocketAddr::new(frontend.addr, frontend.port), is_shared, binding.is_routed),
    };
    let address = SocketAddr::new(frontend.addr, frontend.port);
    let explain = |error: io::Error| match error.raw_os_error() {
        Some(libc::EADDRINUSE) => ListenError::InUse { frontend },
        Some(libc::EADDRNOTAVAIL) => ListenError::NotLocal { frontend },
        Some(libc::EACCES) => ListenError::Denied { frontend },
        _ => ListenError::Other { address, error },
    };
    // SO_REUSEPORT would share the port with another program of the same user without a word: ask for it alone first.
    if !binding.is_joining {
        open(false).map_err(explain)?;
    }
    (0..count).map(|_| open(true).map(OwnedFd::from).map_err(explain)).collect()
}

fn open_datagram(address: SocketAddr, is_shared: bool, is_routed: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    // The kernel's limit for everybody holds where there is no right to go beyond it.
    if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    }
    // No SO_REUSEADDR: for UDP it would let another program that has it take the port over.
    bind(&socket, address, is_shared, is_routed)?;
    Ok(socket)
}

fn open(address: SocketAddr, is_shared: bool, is_routed: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    // Connections of a predecessor in TIME-WAIT do not keep the port.
    socket.set_reuse_address(true)?;
    bind(&socket, address, is_shared, is_routed)?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

fn bind(socket: &Socket, address: SocketAddr, is_shared: bool, is_routed: bool) -> io::Result<()> {
    if is_shared {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
        socket.set_freebind_v6(is_routed)?;
    } else {
        socket.set_freebind_v4(is_routed)?;
    }
    socket.bind(&address.into())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    #[test]
    fn the_shards_of_a_group_share_one_port() {
        let mut sockets = open_steered(3, false, 0).unwrap();
        sockets.extend(open_steered(1, false, port_of(&sockets[0]).unwrap()).unwrap());
        let ports: Vec<u16> =
            sockets.into_iter().map(|socket| TcpListener::from(socket).local_addr().unwrap().port()).collect();
        assert_eq!(ports.len(), 4);
        assert!(ports.iter().all(|port| *port == ports[0] && *port != 0));
    }

    #[test]
    fn a_port_of_another_program_is_refused_even_when_it_would_share() {
        let other = open(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0), true, false).unwrap();
        let port = other.local_addr().unwrap().as_socket().unwrap().port();
        let frontend = FrontendKey { addr: Ipv4Addr::LOCALHOST.into(), port, transport: Transport::Tcp };
        assert!(matches!(open_bound(frontend, 2, Binding::default()), Err(ListenError::InUse { .. })));
        drop(other);
        let sockets = open_bound(frontend, 2, Binding::default()).unwrap();
        assert_eq!(sockets.len(), 2);
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    }

    #[test]
    fn the_datagrams_of_one_client_reach_one_socket_of_a_frontend_and_are_answered_from_its_address() {
        let free = UdpSocket::bind((Ipv4Addr::new(127, 0, 0, 77), 0)).unwrap();
        let addr = free.local_addr().unwrap();
        let frontend = FrontendKey { addr: addr.ip(), port: addr.port(), transport: Transport::Udp };
        assert!(matches!(open_bound(frontend, 2, Binding::default()), Err(ListenError::InUse { .. })));
        drop(free);
        let sockets = open_bound(frontend, 3, Binding::default()).unwrap();
        let more = open_bound(frontend, 1, Binding { is_joining: true, ..Binding::default() }).unwrap();
        let sockets: Vec<UdpSocket> = sockets.into_iter().chain(more).map(UdpSocket::from).collect();
        for _ in 0..8 {
            let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            client.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
            for number in 0..5u8 {
                client.send_to(&[number], addr).unwrap();
            }
            // On loopback a datagram is in its socket when sending it returns.
            let mut byte = [0];
            let received: Vec<(usize, u8, SocketAddr)> = (0..sockets.len())
                .flat_map(|at| std::iter::repeat_n(at, 5))
                .filter_map(|at| sockets[at].recv_from(&mut byte).ok().map(|(_, peer)| (at, byte[0], peer)))
                .collect();
            assert_eq!(received.iter().map(|(_, number, _)| *number).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
            assert!(received.iter().all(|(at, ..)| *at == received[0].0), "{received:?}");
            sockets[received[0].0].send_to(b"answer", received[0].2).unwrap();
            assert_eq!(client.recv_from(&mut [0; 16]).unwrap(), (6, addr));
        }
    }

    #[test]
    fn an_address_that_a_route_is_to_make_local_is_bound_before() {
        for addr in ["192.0.2.77", "2001:db8:77::1"] {
            for transport in [Transport::Tcp, Transport::Udp] {
                let frontend = FrontendKey { addr: addr.parse().unwrap(), port: 8077, transport };
                let outcome = open_bound(frontend, 1, Binding::default());
                assert!(matches!(outcome, Err(ListenError::NotLocal { .. })), "{outcome:?}");
                open_bound(frontend, 1, Binding { is_routed: true, ..Binding::default() }).unwrap();
            }
        }
    }

    #[test]
    fn an_address_of_another_host_is_named_as_such() {
        let frontend = FrontendKey { addr: Ipv4Addr::new(192, 0, 2, 1).into(), port: 8080, transport: Transport::Tcp };
        let error = open_bound(frontend, 1, Binding::default()).unwrap_err().to_string();
        assert!(error.contains("192.0.2.1:8080/TCP") && error.contains("ip address add 192.0.2.1/32"), "{error}");
    }
}
