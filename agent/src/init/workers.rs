//! The worker processes: started as the agent asks, each with its own ids, cgroups and nothing of init's.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{File, OpenOptions},
    io::{self, ErrorKind},
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
};

use caps::Capability;
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Gid, Pid, Uid},
};
use tidegate_model::control::Spawn;
use tracing::{info, warn};

use crate::{options::RunOptions, privileges, sys};

/// The workers that run, by name.
pub(super) struct Workers {
    program: PathBuf,
    log: [OsString; 4],
    running: BTreeMap<String, Pid>,
}

impl Workers {
    /// No worker yet.
    pub(super) fn new(program: PathBuf, options: &RunOptions) -> Self {
        let format = options.log_format.as_text().into();
        let log = ["--log".into(), options.log.clone().into(), "--log-format".into(), format];
        Self { program, log, running: BTreeMap::new() }
    }

    /// Starts a worker and returns its process id.
    pub(super) fn start(&mut self, spawn: Spawn, control: OwnedFd) -> Result<u32, String> {
        if self.running.contains_key(&spawn.name) {
            return Err("a worker of that name runs".into());
        }
        let mut cgroups = Vec::with_capacity(spawn.cgroups.len());
        for path in &spawn.cgroups {
            let procs = OpenOptions::new().write(true).open(path);
            cgroups.push(procs.map_err(|error| format!("cgroup {}: {error}", path.display()))?);
        }
        let mut arguments = vec!["tidegate".into(), "worker".into(), spawn.domain.into()];
        arguments.extend(["--shards".into(), spawn.shards.to_string().into()]);
        arguments.extend(self.log.iter().cloned());
        if !spawn.cores.is_empty() {
            let cores: Vec<String> = spawn.cores.iter().map(u16::to_string).collect();
            arguments.extend(["--cores".into(), cores.join(",").into()]);
        }
        let credentials = match (spawn.uid, spawn.gid) {
            // A worker that runs as root would be no wall at all.
            (Some(0), _) | (_, Some(0)) => return Err("a worker never runs as root".into()),
            (Some(uid), Some(gid)) if may_change_ids() => Some((Uid::from_raw(uid), Gid::from_raw(gid))),
            _ => None,
        };
        if credentials.is_none() {
            warn!(
                worker = spawn.name,
                "no right to change ids: the worker runs as init's user, ids are no wall between domains"
            );
            arguments.push("--unprivileged".into());
        }
        let pid = sys::spawn(sys::Child {
            program: open_program(&self.program)
                .map_err(|error| format!("cannot open {}: {error}", self.program.display()))?,
            arguments,
            control,
            cgroups,
            bounding: credentials.map(|_| Vec::new()),
            credentials,
            no_new_privileges: true,
        })
        .map_err(|error| match credentials {
            Some((uid, _)) if error.kind() == ErrorKind::PermissionDenied => {
                format!("user {uid} may not run {}: chmod o+x it", self.program.display())
            }
            _ => format!("cannot start the process: {error}"),
        })?;
        info!(worker = spawn.name, pid, uid = spawn.uid, "worker started");
        self.running.insert(spawn.name, Pid::from_raw(pid as i32));
        Ok(pid)
    }

    /// Sends a signal to a worker; one that has ended is no error.
    pub(super) fn kill(&self, name: &str, signal: i32) {
        if let (Some(pid), Ok(signal)) = (self.running.get(name), Signal::try_from(signal)) {
            let _ = kill(*pid, signal);
        }
    }

    /// Kills every worker.
    pub(super) fn kill_all(&self) {
        for (name, pid) in &self.running {
            warn!(worker = name, "killing a worker that is left");
            let _ = kill(*pid, Signal::SIGKILL);
        }
    }

    /// Forgets the worker with this process id and returns its name.
    pub(super) fn remove(&mut self, pid: Pid) -> Option<String> {
        let name = self.running.iter().find(|(_, running)| **running == pid).map(|(name, _)| name.clone())?;
        self.running.remove(&name);
        Some(name)
    }

    /// The workers that run.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, Pid)> {
        self.running.iter().map(|(name, pid)| (name.as_str(), *pid))
    }

    /// Whether none runs.
    pub(super) fn is_empty(&self) -> bool {
        self.running.is_empty()
    }
}

/// Opens the file to start children from: the one at the path of this program, so that a replaced file takes effect with
/// the next agent; the running file itself when there is none. A child gets it open, because its own user may be kept out
/// of a folder on the way to it (`/root`, say).
pub(super) fn open_program(path: &Path) -> io::Result<File> {
    let open = |path: &Path| OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path);
    if path.is_file() { open(path) } else { open(Path::new("/proc/self/exe")) }
}

/// Whether this process may give workers ids of their own (and take all capabilities from them).
fn may_change_ids() -> bool {
    [Capability::CAP_SETUID, Capability::CAP_SETGID, Capability::CAP_SETPCAP].into_iter().all(privileges::has)
}
