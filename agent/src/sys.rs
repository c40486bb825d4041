#![expect(unsafe_code, reason = "descriptors that arrive as numbers and what a child does between fork and exec")]
//! The few calls that the compiler cannot check: descriptors received as numbers, and the steps of a child between fork
//! and exec. Nothing is decided here.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, IoSliceMut, Write},
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    process::Command,
};

use caps::{CapSet, Capability};
use nix::{
    sys::{
        signal::SigSet,
        socket::{ControlMessageOwned, MsgFlags, recvmsg},
    },
    unistd::{Gid, Uid},
};
use tokio::io::{Interest, unix::AsyncFd};

/// Number of the control socket in every child of init.
pub const CONTROL_FD: RawFd = 3;

/// Most descriptors in one packet (`SCM_MAX_FD` of Linux, include/net/scm.h).
pub const MAX_PACKET_FDS: usize = 253;

/// Takes the control socket that init has put at [`CONTROL_FD`].
///
/// # Errors
/// When there is no socket: the process was not started by init.
pub fn take_control_fd() -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD reads a flag of whatever has this number and fails with EBADF when nothing has it.
    if unsafe { libc::fcntl(CONTROL_FD, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open (checked above) and nothing in this process closes it meanwhile.
    let borrowed = unsafe { BorrowedFd::borrow_raw(CONTROL_FD) };
    if nix::sys::socket::getsockopt(&borrowed, nix::sys::socket::sockopt::SockType)?
        != nix::sys::socket::SockType::SeqPacket
    {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    nix::fcntl::fcntl(borrowed, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
    // SAFETY: nothing else in this process owns it: it was inherited, and this is called once, before anything is opened.
    Ok(unsafe { OwnedFd::from_raw_fd(CONTROL_FD) })
}

/// Receives one packet with its descriptors without waiting. Zero bytes are the end.
///
/// # Errors
/// As `recvmsg(2)`; `InvalidData` when the packet was cut off.
pub fn receive_packet(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut slices = [IoSliceMut::new(buffer)];
    let mut space = nix::cmsg_space!([RawFd; MAX_PACKET_FDS]);
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut space), flags)?;
    let mut descriptors = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = control {
            for number in numbers {
                // SAFETY: the kernel has just installed this descriptor for us; nothing else owns it.
                descriptors.push(unsafe { OwnedFd::from_raw_fd(number) });
            }
        }
    }
    if message.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "packet was cut off"));
    }
    Ok((message.bytes, descriptors))
}

/// Registers a descriptor with the runtime of the caller, for reading and writing.
///
/// # Errors
/// As `epoll_ctl(2)`.
pub fn watch(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` names the same open descriptor until it is dropped, which `AsyncFd` does after deregistering.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE | Interest::WRITABLE) }?)
}

/// A child process of init, before it runs.
pub struct Child {
    /// Program file, opened (`O_PATH` is enough).
    pub program: File,
    /// Name in `ps`, then the arguments.
    pub arguments: Vec<OsString>,
    /// Becomes [`CONTROL_FD`].
    pub control: OwnedFd,
    /// Open `cgroup.procs` files to enter.
    pub cgroups: Vec<File>,
    /// User and group to become; supplementary groups and capabilities go with it.
    pub credentials: Option<(Uid, Gid)>,
    /// Capabilities that are left; `None` changes nothing.
    pub bounding: Option<Vec<Capability>>,
    /// Whether no program it runs may gain privileges (`PR_SET_NO_NEW_PRIVS`).
    pub no_new_privileges: bool,
}

/// Starts a child. The caller must be single-threaded, must reap it, and must have something open at [`CONTROL_FD`], so
/// that the standard library's pipe for a failed exec is not there.
///
/// # Errors
/// When a step between fork and exec fails.
pub fn spawn(child: Child) -> io::Result<u32> {
    // Resolved in the child, after it has changed its user: a process may always follow its own descriptors.
    let mut command = Command::new(format!("/proc/self/fd/{}", child.program.as_raw_fd()));
    let mut arguments = child.arguments.into_iter();
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    command.args(arguments);
    // A Ctrl-C in the terminal goes to the whole foreground group: it is init's to pass on, in order.
    command.process_group(0);
    let (control, mut cgroups, credentials, bounding) =
        (child.control, child.cgroups, child.credentials, child.bounding);
    let no_new_privileges = child.no_new_privileges;
    let prepare = move || -> io::Result<()> {
        for procs in &mut cgroups {
            procs.write_all(b"0")?;
        }
        if let Some(kept) = &bounding {
            for capability in caps::all() {
                // An older kernel does not know the newest capabilities: they are not there either.
                let is_there = caps::has_cap(None, CapSet::Bounding, capability).unwrap_or(false);
                if is_there && !kept.contains(&capability) {
                    caps::drop(None, CapSet::Bounding, capability).map_err(io::Error::other)?;
                }
            }
        }
        if let Some((uid, gid)) = credentials {
            nix::unistd::setgroups(&[])?;
            nix::unistd::setresgid(gid, gid, gid)?;
            nix::unistd::setresuid(uid, uid, uid)?;
        }
        if no_new_privileges {
            nix::sys::prctl::set_no_new_privs()?;
        }
        // Init blocks the signals that it reads from a signalfd, and the mask survives exec.
        SigSet::empty().thread_set_mask()?;
        // SAFETY: both numbers are valid; what is open at CONTROL_FD belongs to init and is not needed in the child.
        if unsafe { libc::dup2(control.as_raw_fd(), CONTROL_FD) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: only marks descriptors close-on-exec, so that nothing init keeps reaches the child.
        if unsafe { libc::close_range(CONTROL_FD as u32 + 1, u32::MAX, libc::CLOSE_RANGE_CLOEXEC as i32) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    };
    // SAFETY: init has one thread, so no lock (the allocator's, say) can be held by a thread that fork did not copy.
    unsafe { command.pre_exec(prepare) };
    Ok(command.spawn()?.id())
}
