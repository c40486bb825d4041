//! A hand in the pinned maps, to make states that the kernel tier never makes, and sockets as only an attacker uses them.
#![expect(unsafe_code, reason = "bpf(2) takes untyped memory; sockets of kinds and in states that std does not know")]

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
};

use tidegate_kernel::KernelConfig;

const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_OBJ_GET: libc::c_long = 7;

fn bpf(command: libc::c_long, attr: &mut [u64; 4]) -> libc::c_long {
    // SAFETY: the kernel reads at most the 32 bytes and the path or key that they point at, which the callers keep alive.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), size_of_val(attr)) };
    assert!(result >= 0, "bpf({command}): {}", io::Error::last_os_error());
    result
}

/// Removes an element of a pinned map, behind the kernel tier's back.
pub(crate) fn delete_element(config: &KernelConfig, map: &str, key: &[u8]) {
    let folder = config.bpffs.join("tidegate").join(&config.instance);
    let path = folder.join(format!("maps-v{}", tidegate_abi::ABI_VERSION)).join(map);
    let path = CString::new(path.as_os_str().as_bytes()).expect("no zero byte in a path");
    let fd = bpf(BPF_OBJ_GET, &mut [path.as_ptr() as u64, 0, 0, 0]);
    bpf(BPF_MAP_DELETE_ELEM, &mut [fd as u64, key.as_ptr() as u64, 0, 0]);
    // SAFETY: the descriptor was just made and has no other owner.
    unsafe { libc::close(fd as i32) };
}

/// Opens a socket of any kind.
pub(crate) fn open_socket(family: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes no memory.
    let fd = unsafe { libc::socket(family, kind, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes a connected or listening socket back to where it was after it was made (connect(2) with `AF_UNSPEC`).
pub(crate) fn disconnect(socket: BorrowedFd<'_>) -> io::Result<()> {
    let nowhere = libc::sockaddr { sa_family: libc::AF_UNSPEC as libc::sa_family_t, sa_data: [0; 14] };
    // SAFETY: the kernel reads as many bytes as the address has.
    let result = unsafe { libc::connect(socket.as_raw_fd(), &nowhere, size_of_val(&nowhere) as libc::socklen_t) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
