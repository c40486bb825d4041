//! System calls of UDP sockets that neither the standard library nor nix has.
#![expect(unsafe_code, reason = "getsockopt(2) writes into memory that it is given")]

use std::os::fd::{AsRawFd, BorrowedFd};

/// `SK_MEMINFO_DROPS` of linux/sock_diag.h: index of the number of drops in what `SO_MEMINFO` returns.
const DROPS: usize = 8;

/// Datagrams for a socket that found no room in its queue, or were broken, since it was made; 0 where it cannot be told.
pub(super) fn count_drops(socket: BorrowedFd<'_>) -> u64 {
    let mut info = [0u32; DROPS + 1];
    let mut length = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to the array, and the length that it wrote to `length`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result == 0 && length as usize == size_of_val(&info) { info[DROPS].into() } else { 0 }
}

#[cfg(test)]
mod tests {
    use std::{net::UdpSocket, os::fd::AsFd};

    use super::*;

    #[test]
    fn what_a_full_queue_drops_is_counted() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(count_drops(receiver.as_fd()), 0);
        let sent = 2000;
        for _ in 0..sent {
            sender.send_to(&[0; 1000], receiver.local_addr().unwrap()).unwrap();
        }
        receiver.set_nonblocking(true).unwrap();
        let received = std::iter::from_fn(|| receiver.recv(&mut [0; 1000]).ok()).count() as u64;
        assert!(received < sent);
        assert_eq!(count_drops(receiver.as_fd()), sent - received);
    }
}
