//! System calls of the worker that the standard library lacks.
#![expect(unsafe_code, reason = "descriptors that arrive with a message are raw numbers until somebody owns them")]

use std::{
    io::{self, IoSliceMut},
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use nix::{
    sched::{CpuSet, sched_setaffinity},
    sys::socket::{ControlMessageOwned, MsgFlags, recvmsg},
    unistd::Pid,
};

/// Descriptors that can come with one packet: the kernel's own limit (`SCM_MAX_FD`).
const MAX_DESCRIPTORS: usize = 253;

/// Receives one packet into `packet`; length 0 is the end of the channel. Blocks.
///
/// # Errors
/// The system's; a packet longer than `packet` is an error too.
pub(super) fn receive(socket: BorrowedFd<'_>, packet: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut slices = [IoSliceMut::new(packet)];
    let mut space = nix::cmsg_space!([i32; MAX_DESCRIPTORS]);
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            // SAFETY: the kernel has just made these descriptors for this process and nobody else knows them.
            descriptors.extend(raw.into_iter().map(|raw| unsafe { OwnedFd::from_raw_fd(raw) }));
        }
    }
    if message.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "packet or its descriptors are too many"));
    }
    Ok((message.bytes, descriptors))
}

/// Sends one packet. Blocks.
///
/// # Errors
/// The system's.
pub(super) fn send(socket: BorrowedFd<'_>, packet: &[u8]) -> io::Result<()> {
    // Not sendmsg: the sandbox refuses it.
    nix::sys::socket::send(socket.as_raw_fd(), packet, MsgFlags::MSG_NOSIGNAL)?;
    Ok(())
}

/// Pins the calling thread to a core.
///
/// # Errors
/// The system's, e.g. a core that the process may not use.
pub(super) fn pin_thread(core: u16) -> io::Result<()> {
    let mut cores = CpuSet::new();
    cores.set(usize::from(core))?;
    Ok(sched_setaffinity(Pid::from_raw(0), &cores)?)
}
