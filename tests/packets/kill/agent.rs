//! An agent in a process of its own, stopped before its n-th system call that changes what outlives it.

use std::{fmt, net::TcpListener, os::fd::AsFd, path::Path};

use nix::{
    sys::{
        ptrace,
        signal::{Signal, kill, raise},
        wait::{WaitStatus, waitpid},
    },
    unistd::Pid,
};
use tidegate_kernel::{Desired, Kernel, KernelConfig};

use crate::{
    bed::PUBLIC,
    sys::{complain, fork, next_call, stop_at},
};

/// What an agent needs to start.
pub(super) struct Agent<'a> {
    pub(super) config: KernelConfig,
    pub(super) state: &'a Desired,
    pub(super) listener: &'a TcpListener,
    pub(super) cgroup: &'a Path,
    pub(super) base: &'a Path,
    pub(super) wan: u32,
}

/// A system call, and for bpf(2) its command.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    call: i64,
    command: Option<u32>,
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = COMMANDS.iter().find(|(command, _)| Some(*command) == self.command);
        match named {
            Some((_, name)) => write!(f, "bpf({name})"),
            None => match CALLS.iter().find(|(call, _)| *call == self.call) {
                Some((_, name)) => f.write_str(name),
                None => write!(f, "call {}", self.call),
            },
        }
    }
}

/// Commands of bpf(2) that change what outlives the process.
const COMMANDS: [(u32, &str); 8] = [
    (2, "MAP_UPDATE_ELEM"),
    (3, "MAP_DELETE_ELEM"),
    (26, "MAP_UPDATE_BATCH"),
    (27, "MAP_DELETE_BATCH"),
    (6, "OBJ_PIN"),
    (28, "LINK_CREATE"),
    (29, "LINK_UPDATE"),
    (34, "LINK_DETACH"),
];

/// Other system calls that do.
const CALLS: &[(libc::c_long, &str)] = &[
    (libc::SYS_renameat, "renameat"),
    (libc::SYS_renameat2, "renameat2"),
    (libc::SYS_unlinkat, "unlinkat"),
    (libc::SYS_mkdirat, "mkdirat"),
    (libc::SYS_fchmodat, "fchmodat"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_rename, "rename"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_unlink, "unlink"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_mkdir, "mkdir"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_rmdir, "rmdir"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_chmod, "chmod"),
];

impl Agent<'_> {
    /// What the agent does when it starts.
    fn start(&self) -> Result<(), Box<dyn std::error::Error>> {
        let (mut kernel, _) = Kernel::open(&self.config)?;
        kernel.attach_steer()?;
        kernel.watch_borrowed(self.base)?;
        kernel.watch_cgroup(PUBLIC, self.cgroup)?;
        kernel.set_sockets(PUBLIC, Some(self.listener.as_fd()), None)?;
        let report = kernel.apply(self.state)?;
        if let Some(failure) = report.failures.first() {
            return Err(failure.to_string().into());
        }
        kernel.attach_interface(self.wan)?;
        Ok(())
    }

    fn fork(&self, is_traced: bool) -> Pid {
        fork(|| {
            if is_traced {
                ptrace::traceme().expect("being traced");
                raise(Signal::SIGSTOP).expect("waiting for the tracer");
                let calls: Vec<libc::c_long> = CALLS.iter().map(|(call, _)| *call).collect();
                stop_at(&calls, &COMMANDS.map(|(command, _)| command));
            }
            match self.start() {
                Ok(()) => 0,
                Err(error) => {
                    complain(&format!("the agent failed: {error}\n"));
                    1
                }
            }
        })
    }

    /// Runs it to its end.
    pub(super) fn run(&self) {
        let ended = waitpid(self.fork(false), None).expect("it is a child");
        assert!(matches!(ended, WaitStatus::Exited(_, 0)), "an agent failed: {ended:?}");
    }

    /// Runs it to its end; returns its steps.
    pub(super) fn list_steps(&self) -> Vec<Step> {
        let (_, steps, is_dead) = self.trace(usize::MAX);
        assert!(!is_dead && steps.len() > 10, "an agent that did hardly anything: {steps:?}");
        steps
    }

    /// Runs it until it is about to make its `count`-th step, and kills it; returns the steps up to that one, which is not made.
    /// `None` when it had fewer and lived to its end.
    pub(super) fn run_to(&self, count: usize) -> Option<Vec<Step>> {
        let (process, steps, is_stopped) = self.trace(count);
        if !is_stopped {
            return None;
        }
        kill(process, Signal::SIGKILL).expect("it is stopped");
        let ended = waitpid(process, None).expect("it is a child");
        assert!(matches!(ended, WaitStatus::Signaled(..)), "{ended:?}");
        Some(steps)
    }

    /// Runs it until it is about to make its `count`-th step; whether it came to that.
    fn trace(&self, count: usize) -> (Pid, Vec<Step>, bool) {
        let process = self.fork(true);
        waitpid(process, None).expect("it stops itself");
        ptrace::setoptions(process, ptrace::Options::PTRACE_O_TRACESECCOMP | ptrace::Options::PTRACE_O_EXITKILL)
            .expect("tracing");
        let mut steps = Vec::new();
        while steps.len() < count {
            ptrace::cont(process, None).expect("it is stopped");
            match waitpid(process, None).expect("it is a child") {
                WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_SECCOMP) => {
                    let (call, argument) = next_call(process);
                    let command = (call == libc::SYS_bpf).then_some(argument as u32);
                    steps.push(Step { call, command });
                }
                WaitStatus::Exited(_, 0) => return (process, steps, false),
                other => panic!("an agent failed: {other:?}"),
            }
        }
        (process, steps, true)
    }
}
