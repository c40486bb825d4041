//! Init: the process that `tidegate run` is. It starts the agent again when it dies, keeps file descriptors for the next
//! one, starts workers for it, reaps everything and passes signals on.
//!
//! It has one thread, reads no configuration and never touches an object or a packet, so that nothing in it fails. When
//! it dies nevertheless, agent and workers see their control sockets close and end too.

mod bpffs;
mod restart;
mod workers;

use std::{
    collections::BTreeMap,
    os::{
        fd::{AsFd, OwnedFd},
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener},
    },
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Context;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal, kill},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use tidegate_model::control::{FromInit, ToInit};
use tracing::{error, info, warn};

use crate::{
    cgroup::Cgroups,
    control::{self, Channel, Incoming},
    options::{KernelOption, RunOptions},
    privileges, sys,
};

use self::{restart::Restart, workers::Workers};

/// Exit code of an agent that cannot run with the options it has (`EX_CONFIG` of sysexits.h): starting it again is no use.
pub const EXIT_REFUSED: u8 = 78;

/// How long an orderly stop may take before everything is killed: the agent's own limit for draining
/// ([`crate::supervise::DRAIN_DEADLINE`], 30 s) and a little for the rest.
const STOP_DEADLINE: Duration = Duration::from_secs(35);

/// How long the agent may take to end for its successor; it has nothing to finish.
const RESTART_DEADLINE: Duration = Duration::from_secs(2);

/// Runs init until it is told to stop.
///
/// # Errors
/// When it cannot start.
pub fn run_init(options: RunOptions) -> anyhow::Result<ExitCode> {
    // First of all, so that CONTROL_FD is taken in this process (see `sys::spawn`).
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block().context("cannot block signals")?;
    let signal_fd = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .context("cannot make a signal descriptor")?;

    raise_file_limit();
    let Some(_lock) = lock_instance(&options.instance)? else {
        error!("instance {:?} runs already; stop it, or give this one another name with --instance", options.instance);
        return Ok(ExitCode::from(EXIT_REFUSED));
    };
    if options.kernel != KernelOption::Off
        && let Err(error) = bpffs::mount_if_missing(&options.bpffs)
    {
        if options.kernel == KernelOption::Require {
            error!("{error}");
            return Ok(ExitCode::from(EXIT_REFUSED));
        }
        warn!("{error}");
    }
    if options.kernel != KernelOption::Off {
        // What a run before this one has left without stopping in order serves nobody: its sockets and the numbers of its
        // domains have died with it. Judging by it while domains get other numbers would mix them up.
        if let Err(error) = tidegate_kernel::detach_all(&options.bpffs, &options.instance) {
            warn!("cannot remove what an earlier run has left in {}: {error}", options.bpffs.display());
        }
    }
    let program = std::env::current_exe().context("cannot find the program's own file")?;
    Init {
        workers: Workers::new(program.clone(), &options),
        options,
        program,
        signal_fd,
        agent: None,
        restart: Restart::default(),
        kept: BTreeMap::new(),
        end_by: None,
        stop: None,
    }
    .run()
}

struct Init {
    options: RunOptions,
    program: PathBuf,
    signal_fd: SignalFd,
    agent: Option<Agent>,
    restart: Restart,
    kept: BTreeMap<String, OwnedFd>,
    workers: Workers,
    /// When the agent is to have ended for its successor.
    end_by: Option<Instant>,
    /// Since when everything is stopping.
    stop: Option<Instant>,
}

struct Agent {
    pid: Pid,
    channel: Channel,
    is_channel_open: bool,
}

impl Init {
    fn run(mut self) -> anyhow::Result<ExitCode> {
        self.start_agent();
        loop {
            self.wait()?;
            self.read_signals()?;
            self.read_agent();
            if let Some(code) = self.reap() {
                self.kill_workers();
                if self.stop.is_some() {
                    Cgroups::discover(&self.options.instance).remove_instance();
                }
                return Ok(code);
            }
            if self.agent.is_none() && self.stop.is_none() && self.restart.is_due(Instant::now()) {
                self.start_agent();
            }
            if self.end_by.is_some_and(|at| at <= Instant::now()) {
                warn!("the agent does not end: killing it");
                self.end_by = None;
                self.kill_agent(Signal::SIGKILL);
            }
            if self.stop.is_some_and(|at| at.elapsed() > STOP_DEADLINE) {
                warn!("not stopped after {} s: killing everything", STOP_DEADLINE.as_secs());
                self.kill_agent(Signal::SIGKILL);
                self.stop = Some(Instant::now());
            }
        }
    }

    /// Waits for a signal, the agent, or the time to start it again.
    fn wait(&self) -> anyhow::Result<()> {
        let mut descriptors = vec![PollFd::new(self.signal_fd.as_fd(), PollFlags::POLLIN)];
        if let Some(agent) = self.agent.as_ref().filter(|agent| agent.is_channel_open) {
            let mut flags = PollFlags::POLLIN;
            flags.set(PollFlags::POLLOUT, agent.channel.has_unsent());
            descriptors.push(PollFd::new(agent.channel.as_fd(), flags));
        }
        let restart = self.agent.is_none().then(|| self.restart.remaining(Instant::now()));
        let stop = self.stop.map(|at| (STOP_DEADLINE + Duration::from_millis(1)).saturating_sub(at.elapsed()));
        let end = self.end_by.map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = match [restart, stop, end].into_iter().flatten().min() {
            // Rounded up, so that the time has come when poll returns.
            Some(wait) => PollTimeout::try_from(wait + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX),
            None => PollTimeout::NONE,
        };
        match poll(&mut descriptors, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error).context("poll"),
        }
    }

    fn read_signals(&mut self) -> anyhow::Result<()> {
        while let Some(info) = self.signal_fd.read_signal().context("signal descriptor")? {
            match Signal::try_from(info.ssi_signo as i32) {
                Ok(Signal::SIGHUP) => {
                    info!("SIGHUP: restarting the agent, workers serve on");
                    self.restart.forget();
                    self.kill_agent(Signal::SIGHUP);
                    self.end_by = self.agent.as_ref().map(|_| Instant::now() + RESTART_DEADLINE);
                }
                Ok(signal @ (Signal::SIGTERM | Signal::SIGINT)) => {
                    info!("{signal}: {}", if self.stop.is_none() { "stopping" } else { "stopping at once" });
                    self.stop.get_or_insert_with(Instant::now);
                    // The agent counts too: its first is orderly, its second at once.
                    self.kill_agent(Signal::SIGTERM);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn kill_agent(&self, signal: Signal) {
        if let Some(agent) = &self.agent {
            // It may have ended already; then `reap` sees it.
            let _ = kill(agent.pid, signal);
        }
    }

    fn read_agent(&mut self) {
        loop {
            let Some(agent) = self.agent.as_mut().filter(|agent| agent.is_channel_open) else { return };
            let incoming = agent.channel.flush().and_then(|_| agent.channel.receive::<ToInit>());
            match incoming {
                Ok(Incoming::Nothing) => return,
                Ok(Incoming::Closed) => agent.is_channel_open = false,
                Ok(Incoming::Message(message, descriptors)) => self.take_message(message, descriptors),
                Err(error) => {
                    // Without the channel the agent can do nothing: the next one begins anew.
                    error!("agent's control channel: {error}; restarting the agent");
                    agent.is_channel_open = false;
                    self.kill_agent(Signal::SIGKILL);
                }
            }
        }
    }

    fn take_message(&mut self, message: ToInit, descriptors: Vec<OwnedFd>) {
        let mut descriptors = descriptors.into_iter();
        match message {
            ToInit::Keep { name } => match descriptors.next() {
                Some(descriptor) => drop(self.kept.insert(name, descriptor)),
                None => warn!("the agent asked to keep {name:?} without a descriptor"),
            },
            ToInit::Drop { name } => drop(self.kept.remove(&name)),
            ToInit::Spawn(spawn) => {
                let name = spawn.name.clone();
                let started = match descriptors.next() {
                    Some(control) => self.workers.start(spawn, control),
                    None => Err("without a control socket".into()),
                };
                self.tell(match started {
                    Ok(pid) => FromInit::Started { name, pid },
                    Err(error) => FromInit::Failed { name, error },
                });
            }
            ToInit::Kill { name, signal } => self.workers.kill(&name, signal),
        }
    }

    fn tell(&mut self, message: FromInit) {
        if let Some(agent) = self.agent.as_mut().filter(|agent| agent.is_channel_open)
            && let Err(error) = agent.channel.push(&message, Vec::new()).and_then(|()| agent.channel.flush())
        {
            // A dead agent shows as a closed channel and by its exit.
            warn!("cannot tell the agent {message:?}: {error}");
        }
    }

    /// Reaps every child that has ended. Returns init's own exit code when the agent has ended for good.
    fn reap(&mut self) -> Option<ExitCode> {
        loop {
            let (pid, status) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, code),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, -(signal as i32)),
                Ok(WaitStatus::StillAlive) | Err(_) => return None,
                Ok(_) => continue,
            };
            if self.agent.as_ref().is_some_and(|agent| agent.pid == pid) {
                // What it sent before it died still counts.
                self.read_agent();
                self.agent = None;
                self.end_by = None;
                if let Some(code) = self.agent_exited(status) {
                    return Some(code);
                }
            } else if let Some(name) = self.workers.remove(pid) {
                self.tell(FromInit::Exited { name, status });
            }
        }
    }

    fn agent_exited(&mut self, status: i32) -> Option<ExitCode> {
        if self.stop.is_some() {
            return Some(u8::try_from(status).map_or(ExitCode::FAILURE, ExitCode::from));
        }
        if status == i32::from(EXIT_REFUSED) && self.workers.is_empty() {
            return Some(ExitCode::from(EXIT_REFUSED));
        }
        let wait = self.restart.plan(Instant::now());
        warn!(status, wait_ms = wait.as_millis() as u64, "the agent has ended; workers serve on; starting it again");
        None
    }

    fn start_agent(&mut self) {
        Cgroups::discover(&self.options.instance).prepare_instance();
        match self.spawn_agent() {
            Ok(agent) => {
                self.restart.started(Instant::now());
                self.agent = Some(agent);
                self.hand_over();
            }
            Err(error) => {
                let wait = self.restart.plan(Instant::now());
                error!(wait_ms = wait.as_millis() as u64, "cannot start the agent: {error}; trying again");
            }
        }
    }

    fn spawn_agent(&self) -> std::io::Result<Agent> {
        let (ours, theirs) = control::pair()?;
        let mut arguments = vec!["tidegate".into(), "agent".into()];
        arguments.extend(self.options.to_arguments());
        let pid = sys::spawn(sys::Child {
            program: workers::open_program(&self.program)?,
            arguments,
            control: theirs,
            cgroups: Vec::new(),
            credentials: None,
            bounding: privileges::has(caps::Capability::CAP_SETPCAP)
                .then(|| privileges::agent_capabilities(self.options.kernel)),
            no_new_privileges: false,
        })?;
        info!(pid, "agent started");
        Ok(Agent { pid: Pid::from_raw(pid as i32), channel: Channel::new(ours), is_channel_open: true })
    }

    /// Gives a new agent what the last one left: descriptors and running workers.
    fn hand_over(&mut self) {
        let Some(agent) = self.agent.as_mut() else { return };
        let mut push = |message: FromInit, descriptors| {
            if let Err(error) = agent.channel.push(&message, descriptors) {
                error!("cannot hand over {message:?}: {error}");
            }
        };
        for (name, descriptor) in &self.kept {
            match descriptor.try_clone() {
                Ok(duplicate) => push(FromInit::Kept { name: name.clone() }, vec![duplicate]),
                Err(error) => error!("cannot hand over {name:?}: {error}"),
            }
        }
        for (name, pid) in self.workers.iter() {
            push(FromInit::Running { name: name.to_owned(), pid: pid.as_raw() as u32 }, Vec::new());
        }
        push(FromInit::Ready, Vec::new());
    }

    /// Ends what an agent that stopped in order has left (nothing), or what one that was killed has.
    fn kill_workers(&mut self) {
        self.workers.kill_all();
        while !self.workers.is_empty() {
            match waitpid(None, None) {
                Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..)) => drop(self.workers.remove(pid)),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    }
}

/// Abstract name of the socket that an instance's init holds as its lock.
pub fn lock_name(instance: &str) -> String {
    format!("tidegate/{instance}")
}

/// Makes sure that this network namespace has no other init of this instance: it would take away what the other one judges
/// by. An abstract socket leaves no file behind and is gone with its process, however that ends.
fn lock_instance(instance: &str) -> anyhow::Result<Option<UnixListener>> {
    let name = SocketAddr::from_abstract_name(lock_name(instance)).context("name of the instance's lock")?;
    match UnixListener::bind_addr(&name) {
        Ok(lock) => Ok(Some(lock)),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Ok(None),
        Err(error) => Err(error).context("cannot make the instance's lock"),
    }
}

/// Raises the soft limit of open files to the hard one: each connection of a worker takes a descriptor or two.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        warn!("cannot raise the limit of open files: {error}");
    }
}
