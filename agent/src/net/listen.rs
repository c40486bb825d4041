//! Listening sockets of workers. The agent makes them, so that they outlive any worker, and no worker needs a right to.
//!
//! With the kernel tier a domain has one reuseport group for each address family on a loopback port that nobody is told;
//! `steer` gives it the connections of every frontend. Without it each frontend has a group of its own.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
};

use socket2::{Domain, Protocol, Socket, Type};
use tidegate_model::{FrontendKey, Transport};

/// Connections that wait to be accepted, for each socket. The kernel caps it at `net.core.somaxconn` (4096 since 5.4).
const BACKLOG: i32 = 4096;

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
    /// Not served by this version.
    #[error("{frontend}: only TCP is served by this version")]
    Transport {
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
        let opened = open(address, true).and_then(|socket| Ok((socket.local_addr()?.as_socket(), socket)));
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

/// Opens `count` sockets on a frontend's own address. `is_joining` when this program has others there already.
///
/// # Errors
/// See [`ListenError`]; nothing is left open.
pub fn open_bound(frontend: FrontendKey, count: usize, is_joining: bool) -> Result<Vec<OwnedFd>, ListenError> {
    if frontend.transport != Transport::Tcp {
        return Err(ListenError::Transport { frontend });
    }
    let address = SocketAddr::new(frontend.addr, frontend.port);
    let explain = |error: io::Error| match error.raw_os_error() {
        Some(libc::EADDRINUSE) => ListenError::InUse { frontend },
        Some(libc::EADDRNOTAVAIL) => ListenError::NotLocal { frontend },
        Some(libc::EACCES) => ListenError::Denied { frontend },
        _ => ListenError::Other { address, error },
    };
    // SO_REUSEPORT would share the port with another program of the same user without a word: ask for it alone first.
    if !is_joining {
        open(address, false).map_err(explain)?;
    }
    (0..count).map(|_| open(address, true).map(OwnedFd::from).map_err(explain)).collect()
}

fn open(address: SocketAddr, is_shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    // Connections of a predecessor in TIME-WAIT do not keep the port.
    socket.set_reuse_address(true)?;
    if is_shared {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

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
        let other = open(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0), true).unwrap();
        let port = other.local_addr().unwrap().as_socket().unwrap().port();
        let frontend = FrontendKey { addr: Ipv4Addr::LOCALHOST.into(), port, transport: Transport::Tcp };
        assert!(matches!(open_bound(frontend, 2, false), Err(ListenError::InUse { .. })));
        drop(other);
        let sockets = open_bound(frontend, 2, false).unwrap();
        assert_eq!(sockets.len(), 2);
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    }

    #[test]
    fn an_address_of_another_host_is_named_as_such() {
        let frontend = FrontendKey { addr: Ipv4Addr::new(192, 0, 2, 1).into(), port: 8080, transport: Transport::Tcp };
        let error = open_bound(frontend, 1, false).unwrap_err().to_string();
        assert!(error.contains("192.0.2.1:8080/TCP") && error.contains("ip address add 192.0.2.1/32"), "{error}");
    }
}
