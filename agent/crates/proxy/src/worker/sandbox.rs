//! What a worker gives up before it reads a byte of a client: capabilities (it has none), privileges to come
//! (`no_new_privs`) and all system calls but those that serving needs.
//!
//! The filter answers EPERM rather than killing: a call that a library tries once at an odd moment must not end a domain's
//! traffic, and an attacker gains as little. Which addresses may be dialled is not judged here but in the kernel's guard.

use std::{collections::BTreeMap, io};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// Open files wanted when the hard limit allows more than can be used: each costs kernel memory only when open.
const MAX_FILES: u64 = 1 << 20;

/// How tightly a worker is closed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sandbox {
    /// No capability may be left, privileges and system calls are taken.
    Strict,
    /// The same, but capabilities are not looked at: `--kernel=off`, started by whatever user.
    Unprivileged,
    /// Nothing is taken: for tests that run a worker inside their own process.
    Open,
}

/// Why the sandbox cannot be closed.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The process still has capabilities.
    #[error("worker has capabilities {0}: it must be started with a user id of its own and an empty capability set")]
    Capabilities(String),
    /// The process's own status cannot be read.
    #[error("cannot read /proc/self/status: {0}")]
    Status(io::Error),
    /// The filter was refused.
    #[error("system-call filter: {0}")]
    Filter(#[from] seccompiler::Error),
    /// The filter cannot be built for this machine.
    #[error("system-call filter: {0}")]
    Backend(#[from] seccompiler::BackendError),
    /// The processor is not known to the filter.
    #[error("system-call filter: no support for {0}")]
    Architecture(&'static str),
}

impl Sandbox {
    /// Closes it for this thread and those it will start. Once; cannot be undone.
    ///
    /// # Errors
    /// See [`SandboxError`]; the worker must then not serve.
    pub fn close(self) -> Result<(), SandboxError> {
        if self == Self::Open {
            return Ok(());
        }
        if self == Self::Strict {
            check_capabilities(&std::fs::read_to_string("/proc/self/status").map_err(SandboxError::Status)?)?;
        }
        // Sets no_new_privs too.
        seccompiler::apply_filter_all_threads(&filter()?)?;
        Ok(())
    }
}

/// Raises the soft limit of open files to the hard one; returns the limit in force.
pub fn raise_file_limit() -> usize {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 1024 };
    let wanted = hard.min(MAX_FILES).max(soft);
    match setrlimit(Resource::RLIMIT_NOFILE, wanted, hard) {
        Ok(()) => wanted as usize,
        Err(error) => {
            tracing::warn!(%error, soft, hard, "open-file limit is not raised");
            soft as usize
        }
    }
}

fn check_capabilities(status: &str) -> Result<(), SandboxError> {
    for set in ["CapEff:", "CapPrm:", "CapInh:", "CapAmb:"] {
        let held = status.lines().find_map(|line| line.strip_prefix(set)).map(str::trim);
        if held.is_none_or(|held| held.bytes().any(|digit| digit != b'0')) {
            return Err(SandboxError::Capabilities(format!("{set} {}", held.unwrap_or("unknown"))));
        }
    }
    Ok(())
}

/// System calls that serving needs, whatever their arguments: of the standard library, tokio, rustls with aws-lc-rs, and
/// glibc's allocator and threads. Not among them: execve, ptrace, mount, bpf, open for writing, bind, listen; and sendmsg, whose
/// control messages name source addresses and routes.
const ALLOWED: &[i64] = &[
    // Sockets that exist, and the event loop.
    libc::SYS_accept4,
    libc::SYS_close,
    libc::SYS_connect,
    libc::SYS_dup,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_fcntl,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_ppoll,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_write,
    libc::SYS_writev,
    // Memory.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    // Threads of the worker itself.
    libc::SYS_clone3,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_membarrier,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    // Time, random numbers, signals, the end.
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_getrandom,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    // A panic prints where it happened; an abort is a signal to the process itself.
    libc::SYS_fstat,
    libc::SYS_getcwd,
    libc::SYS_lseek,
    libc::SYS_newfstatat,
    libc::SYS_prlimit64,
    libc::SYS_statx,
    libc::SYS_uname,
];

fn filter() -> Result<BpfProgram, SandboxError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = ALLOWED.iter().map(|&call| (call, Vec::new())).collect();
    #[cfg(target_arch = "x86_64")]
    rules.extend([libc::SYS_epoll_wait, libc::SYS_poll, libc::SYS_arch_prctl].map(|call| (call, Vec::new())));
    // New sockets: streams and datagrams of the internet families only (towards an endpoint); no raw, packet or netlink socket.
    let mut sockets = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM] {
            sockets.push(internet_socket(family, kind)?);
        }
    }
    rules.insert(libc::SYS_socket, sockets);
    // Options of sockets and of TCP. Those of IP and UDP route packets around what the guard judges (source routes, segment
    // routing), or add source addresses, groups and encapsulations; serving needs none of them.
    let level = |level: i32| SeccompRule::new(vec![condition(1, SeccompCmpOp::Eq, level as u64)?]);
    let levels = [libc::SOL_SOCKET, libc::IPPROTO_TCP].map(level);
    rules.insert(libc::SYS_setsockopt, levels.into_iter().collect::<Result<_, _>>()?);
    // A pair connected to nobody else: tokio's signal driver makes one where that feature is on (the agent's half needs it).
    let pair = SeccompRule::new(vec![condition(0, SeccompCmpOp::Eq, libc::AF_UNIX as u64)?])?;
    rules.insert(libc::SYS_socketpair, vec![pair]);
    // How the standard library makes a socket that it was given non-blocking.
    rules.insert(libc::SYS_ioctl, vec![SeccompRule::new(vec![condition(1, SeccompCmpOp::Eq, libc::FIONBIO)?])?]);
    // Files are read (glibc reads cgroup and locale facts, a panic its own program), never written.
    let writing = (libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC) as u64;
    rules.insert(libc::SYS_openat, vec![masked(2, writing, libc::O_RDONLY as u64)?]);
    // Threads only: a new process would need CLONE_THREAD unset. (clone3 hides its flags in memory; it gains no privilege.)
    let thread = libc::CLONE_THREAD as u64;
    rules.insert(libc::SYS_clone, vec![masked(0, thread, thread)?]);
    // Names of threads and what glibc asks about memory tagging.
    let prctl = |option: i32| SeccompRule::new(vec![condition(0, SeccompCmpOp::Eq, option as u64)?]);
    let options = [libc::PR_SET_NAME, libc::PR_SET_VMA].map(prctl);
    rules.insert(libc::SYS_prctl, options.into_iter().collect::<Result<_, _>>()?);
    // Signals only to threads of this process, which is what an abort does.
    let own = u64::from(std::process::id());
    rules.insert(libc::SYS_tgkill, vec![SeccompRule::new(vec![condition(0, SeccompCmpOp::Eq, own)?])?]);
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    let arch = std::env::consts::ARCH.try_into().map_err(|_| SandboxError::Architecture(std::env::consts::ARCH))?;
    Ok(SeccompFilter::new(rules, refuse, SeccompAction::Allow, arch)?.try_into()?)
}

fn internet_socket(family: i32, kind: i32) -> Result<SeccompRule, seccompiler::BackendError> {
    let flags = (libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) as u32;
    SeccompRule::new(vec![
        condition(0, SeccompCmpOp::Eq, family as u64)?,
        condition(1, SeccompCmpOp::MaskedEq(u64::from(!flags)), kind as u64)?,
    ])
}

fn masked(argument: u8, mask: u64, value: u64) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(vec![condition(argument, SeccompCmpOp::MaskedEq(mask), value)?])
}

fn condition(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_left_are_named() {
        let status = |effective: &str| {
            format!(
                "Name:\tx\nCapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t{effective}\nCapAmb:\t0\n"
            )
        };
        assert!(check_capabilities(&status("0000000000000000")).is_ok());
        let error = check_capabilities(&status("0000000000000400")).unwrap_err();
        assert!(error.to_string().contains("CapEff: 0000000000000400"), "{error}");
        assert!(check_capabilities("Name:\tx\n").is_err());
    }

    #[test]
    fn the_filter_can_be_built_here() {
        assert!(!filter().unwrap().is_empty());
    }
}
