//! Init: the process that `tidegate run` is. It starts the agent again when it dies, keeps file descriptors for the next
//! one, starts workers for it, reaps everything and passes signals on.
//!
//! It has one thread, reads no configuration and never touches an object or a packet, so that nothing in it fails. When
//! it dies nevertheless, agent and workers see their control sockets close and end too. The init of a new pod may take
//! over from it ([`succession`]).

mod bpffs;
mod restart;
mod succession;
mod workers;

use std::{
    collections::BTreeMap,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixListener,
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

use self::{
    restart::Restart,
    succession::{Claim, Door, Predecessor, Successor, ToPredecessor, Wish, claim},
    workers::Workers,
};

pub use succession::lock_name;

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
    let (lock, kept, predecessor) = match claim(&options.instance, options.handover.as_deref(), &signal_fd)? {
        Claim::First(lock) => (lock, BTreeMap::new(), None),
        Claim::After(estate) => (estate.lock, estate.kept, Some(estate.predecessor)),
        Claim::Refused(reason) => {
            let instance = &options.instance;
            error!(
                "instance {instance:?} runs already, and {reason}; stop it, or give this one another name with --instance"
            );
            return Ok(ExitCode::from(EXIT_REFUSED));
        }
        Claim::Stopped => return Ok(ExitCode::SUCCESS),
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
    if options.kernel != KernelOption::Off && predecessor.is_none() {
        // What a run before this one has left without stopping in order serves nobody: its sockets and the numbers of its
        // domains have died with it. Judging by it while domains get other numbers would mix them up.
        if let Err(error) = tidegate_kernel::detach_all(&options.bpffs, &options.instance) {
            warn!("cannot remove what an earlier run has left in {}: {error}", options.bpffs.display());
        }
    }
    let program = std::env::current_exe().context("cannot find the program's own file")?;
    let mut init = Init {
        workers: Workers::new(program.clone(), &options),
        options,
        program,
        signal_fd,
        lock,
        agent: None,
        restart: Restart::default(),
        kept,
        end_by: None,
        stop: None,
        door: None,
        predecessor,
        successor: None,
    };
    init.open_door();
    init.run()
}

struct Init {
    options: RunOptions,
    program: PathBuf,
    signal_fd: SignalFd,
    agent: Option<Agent>,
    restart: Restart,
    kept: BTreeMap<String, OwnedFd>,
    workers: Workers,
    /// Says that this instance runs; a successor gets it too.
    lock: UnixListener,
    /// When the agent is to have ended for its successor.
    end_by: Option<Instant>,
    /// Since when everything is stopping.
    stop: Option<Instant>,
    /// Where a successor knocks.
    door: Option<Door>,
    /// The init before this one, as long as it is there: it may have workers, and goes on when this one dies.
    predecessor: Option<Predecessor>,
    /// The init after this one. While there is one, this one starts no agent.
    successor: Option<Successor>,
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
            self.read_predecessor();
            self.answer_door();
            self.read_successor();
            if let Some(code) = self.reap().or_else(|| self.find_end()) {
                self.kill_workers();
                if self.stop.is_some() {
                    Cgroups::discover(&self.options.instance).remove_instance();
                }
                return Ok(code);
            }
            if self.agent.is_none() {
                self.serve_successor();
            }
            let is_alone = self.stop.is_none() && self.successor.is_none();
            if self.agent.is_none() && is_alone && self.restart.is_due(Instant::now()) {
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
                self.workers.kill_all();
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
        descriptors.extend(self.door.as_ref().map(Door::poll_fd));
        descriptors.extend(self.predecessor.as_ref().map(Predecessor::poll_fd));
        descriptors.extend(self.successor.as_ref().map(Successor::poll_fd));
        let starts_agent = self.agent.is_none() && self.stop.is_none() && self.successor.is_none();
        let restart = starts_agent.then(|| self.restart.remaining(Instant::now()));
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
                    if self.predecessor.is_some() || self.successor.is_some() {
                        // Another init goes on: nothing of what it serves with may be removed.
                        self.kill_agent(Signal::SIGHUP);
                        self.end_by = self.agent.as_ref().map(|_| Instant::now() + RESTART_DEADLINE);
                    } else {
                        // The agent counts too: its first is orderly, its second at once.
                        self.kill_agent(Signal::SIGTERM);
                    }
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
                Some(descriptor) => {
                    if let (Some(predecessor), Ok(duplicate)) = (&mut self.predecessor, descriptor.try_clone()) {
                        predecessor.tell(&ToPredecessor::Keep { name: name.clone() }, vec![duplicate]);
                    }
                    drop(self.kept.insert(name, descriptor));
                }
                None => warn!("the agent asked to keep {name:?} without a descriptor"),
            },
            ToInit::Drop { name } => {
                drop(self.kept.remove(&name));
                // A listening socket that the predecessor kept open would take connections that nobody accepts.
                if let Some(predecessor) = &mut self.predecessor {
                    predecessor.tell(&ToPredecessor::Drop { name }, Vec::new());
                }
            }
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
            ToInit::Kill { name, signal } => match &mut self.predecessor {
                Some(predecessor) if predecessor.workers.contains_key(&name) => {
                    predecessor.tell(&ToPredecessor::Kill { name, signal }, Vec::new());
                }
                _ => self.workers.kill(&name, signal),
            },
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
                if let Some(successor) = self.successor.as_mut().filter(|successor| successor.is_served) {
                    successor.tell_exit(&name, status);
                }
                self.tell(FromInit::Exited { name, status });
            }
        }
    }

    fn agent_exited(&mut self, status: i32) -> Option<ExitCode> {
        if self.successor.is_some() {
            return None;
        }
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
        for (name, pid) in self.predecessor.iter().flat_map(|predecessor| &predecessor.workers) {
            push(FromInit::Leaving { name: name.clone(), pid: *pid }, Vec::new());
        }
        push(FromInit::Ready, Vec::new());
    }

    /// Lets successors knock from now on.
    fn open_door(&mut self) {
        self.door = self.options.handover.as_ref().and_then(|path| {
            let opened = Door::open(path);
            opened.inspect_err(|error| warn!("no new pod can take over, --handover {}: {error}", path.display())).ok()
        });
    }

    /// Lets a successor in, if one knocks: the agent ends for it as for a restart.
    fn answer_door(&mut self) {
        while let Some(channel) = self.door.as_ref().and_then(Door::accept) {
            let refusal = match self {
                Self { stop: Some(_), .. } => Some("it is stopping"),
                Self { successor: Some(_), .. } => Some("another one has taken over"),
                // That one goes on when this one ends.
                Self { predecessor: Some(_), .. } => Some("the one before it has not ended yet"),
                _ => None,
            };
            if let Some(successor) = Successor::greet(channel, refusal) {
                info!("a new init takes over: the agent ends for it, workers serve on");
                self.successor = Some(successor);
                self.kill_agent(Signal::SIGHUP);
                self.end_by = self.agent.as_ref().map(|_| Instant::now() + RESTART_DEADLINE);
            }
        }
    }

    /// Gives a successor everything, once no agent changes it any more.
    fn serve_successor(&mut self) {
        let Some(successor) = self.successor.as_mut().filter(|successor| !successor.is_served) else { return };
        let workers = self.workers.iter().map(|(name, pid)| (name, pid.as_raw() as u32));
        match successor.serve(&self.lock, &self.kept, workers) {
            Ok(()) => info!("handed over"),
            Err(error) => {
                error!("cannot hand over: {error}");
                self.go_on();
            }
        }
    }

    fn read_successor(&mut self) {
        while let Some(successor) = self.successor.as_mut() {
            match successor.next() {
                Wish::Nothing => return,
                Wish::Keep(name, descriptor) => drop(self.kept.insert(name, descriptor)),
                Wish::Drop(name) => drop(self.kept.remove(&name)),
                Wish::Kill(name, signal) => self.workers.kill(&name, signal),
                Wish::Gone => self.go_on(),
            }
        }
    }

    /// The successor is gone: this init goes on, with what it was told of meanwhile.
    fn go_on(&mut self) {
        self.successor = None;
        if self.stop.is_none() {
            warn!("the new init is gone: this one goes on");
            self.restart.forget();
            self.open_door();
        }
    }

    fn read_predecessor(&mut self) {
        while let Some(predecessor) = self.predecessor.as_mut() {
            match predecessor.next() {
                Ok(None) => return,
                Ok(Some((name, status))) => self.tell(FromInit::Exited { name, status }),
                Err(()) => {
                    // Its workers died with it, unless they had ended before.
                    let workers = std::mem::take(&mut predecessor.workers);
                    self.predecessor = None;
                    info!(workers = workers.len(), "the init before this one has ended");
                    for name in workers.into_keys() {
                        self.tell(FromInit::Exited { name, status: -libc::SIGKILL });
                    }
                }
            }
        }
    }

    /// The end of an init that stops without an agent to stop: another init goes on with what it had, or the agent is dead.
    fn find_end(&self) -> Option<ExitCode> {
        let is_over = self.stop.is_some() && self.agent.is_none();
        // Workers that a successor has not replaced yet may finish.
        let has_duties = self.successor.is_some() && !self.workers.is_empty();
        (is_over && !has_duties).then_some(ExitCode::SUCCESS)
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

/// Raises the soft limit of open files to the hard one: each connection of a worker takes a descriptor or two.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        warn!("cannot raise the limit of open files: {error}");
    }
}
