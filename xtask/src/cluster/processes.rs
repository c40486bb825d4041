//! Processes that outlive the command that started them: started with a log, found again, waited for.
//!
//! A process is known by its id and the moment of its start, so that a later process with the same id is not taken for it.

use std::{
    ffi::OsStr,
    fmt, fs,
    fs::File,
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::state::State;
use crate::{place, run};

/// How often it is looked whether a program is ready.
const POLL: Duration = Duration::from_millis(50);
/// How long a program may take to end when it is asked to: the API server finishes what it is at.
const END: Duration = Duration::from_secs(90);

/// A process, dead or alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) id: u32,
    /// Ticks between the start of the machine and its own.
    start: u64,
}

impl Process {
    /// The process that has an id now.
    fn of(id: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        start_of_living(&stat).map(|start| Self { id, start })
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let (id, start) = text.trim().split_once(' ')?;
        Some(Self { id: id.parse().ok()?, start: start.parse().ok()? })
    }

    pub(super) fn is_alive(self) -> bool {
        Self::of(self.id) == Some(self)
    }

    /// Asks it to end, or kills it, and waits for it.
    pub(super) fn end(self, signal: &str) -> Result<()> {
        run::read(Command::new("sh").args(["-c", &format!("kill -{signal} {}", self.id)]))?;
        let deadline = Instant::now() + END;
        while self.is_alive() {
            if Instant::now() > deadline {
                bail!("process {} does not end", self.id);
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    /// Its resident memory in MiB.
    pub(super) fn memory(self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? / 1024)
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.id, self.start)
    }
}

/// Start of a process that lives, by its `/proc/PID/stat` (proc_pid_stat(5), fields 3, 20 and 22: state, threads, start); the name
/// before them may hold anything. Of a process that is killed the first thread may be a zombie while others still hold its
/// sockets: it is dead when no other is left.
fn start_of_living(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?;
    let threads: u64 = fields.nth(16)?.parse().ok()?;
    let start = fields.nth(1)?.parse().ok()?;
    (!matches!(state, "Z" | "X") || threads > 1).then_some(start)
}

/// Starts a process in a process group of its own, so that neither Ctrl-C nor a closed terminal ends it.
pub(super) fn start(command: &mut Command, log: &Path) -> Result<Process> {
    // What an earlier process said may be why it is started again.
    let output = File::options().create(true).append(true).open(log);
    let output = output.with_context(|| format!("cannot write {}", log.display()))?;
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).process_group(0);
    let child = command.spawn().with_context(|| format!("cannot start {}", run::shown(command)))?;
    Process::of(child.id()).with_context(|| format!("{} ended at once; see {}", run::shown(command), log.display()))
}

impl State {
    /// A program of the cluster by its name, when it runs.
    pub(super) fn find(&self, name: &str) -> Option<Process> {
        let process = Process::parse(&fs::read_to_string(self.run.join("pids").join(name)).ok()?)?;
        process.is_alive().then_some(process)
    }

    /// Starts a program of the cluster in its namespaces and groups, unless it runs.
    pub(super) fn start(&self, name: &str, program: &Path, args: &[impl AsRef<OsStr>]) -> Result<()> {
        if self.find(name).is_some() {
            return Ok(());
        }
        let mut command = self.inside(program)?;
        command.args(args).current_dir(&self.run);
        let process = start(&mut command, &self.log(name))?;
        place::write(&self.run.join("pids").join(name), process.to_string())
    }

    /// Where a program writes.
    pub(super) fn log(&self, name: &str) -> std::path::PathBuf {
        self.logs.join(format!("{name}.log"))
    }

    /// Waits until a program is ready, or has ended, or the time is over.
    pub(super) fn wait(&self, name: &str, limit: Duration, is_ready: impl Fn() -> Result<bool>) -> Result<()> {
        run::judge(&format!("wait for {name}"), || {
            let deadline = Instant::now() + limit;
            loop {
                let problem = match is_ready() {
                    Ok(true) => return Ok(()),
                    Ok(false) => String::new(),
                    Err(error) => format!("\n{error:#}"),
                };
                let log = self.log(name);
                if self.find(name).is_none() {
                    bail!("{name} ended. {}", run::end_of(&log));
                }
                if Instant::now() > deadline {
                    bail!("{name} is not ready after {}.{problem}\n{}", run::human(limit), run::end_of(&log));
                }
                thread::sleep(POLL);
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let numbers: Vec<_> = (4..=22).map(|field| (field * 10).to_string()).collect();
        let stat = format!("17 (a ) S 1) S {} 0 0", numbers.join(" "));
        assert_eq!(start_of_living(&stat), Some(220));
        assert_eq!(start_of_living("17 (cut"), None);
    }

    #[test]
    fn a_process_is_dead_when_its_last_thread_is() {
        let stat = |state: &str, threads: u32| {
            format!("7 (a) {state} 1 7 7 0 -1 4194304 0 0 0 0 0 0 0 0 20 0 {threads} 0 4711 0 0")
        };
        for (state, threads, start) in
            [("S", 12, Some(4711)), ("R", 1, Some(4711)), ("Z", 3, Some(4711)), ("Z", 1, None), ("X", 0, None)]
        {
            assert_eq!(start_of_living(&stat(state, threads)), start, "{state} with {threads} threads");
        }
    }

    #[test]
    fn a_process_is_found_again_and_another_with_its_id_is_not_it() {
        let me = Process::of(std::process::id()).unwrap();
        assert!(me.is_alive());
        assert_eq!(Process::parse(&me.to_string()), Some(me));
        assert!(!Process { start: me.start + 1, ..me }.is_alive());
    }

    #[test]
    fn an_ended_child_that_nobody_waited_for_is_not_alive() {
        let mut child = Command::new("true").spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while Process::of(child.id()).is_some() {
            assert!(Instant::now() < deadline, "`true` does not end");
            thread::sleep(POLL);
        }
        child.wait().unwrap();
    }
}
