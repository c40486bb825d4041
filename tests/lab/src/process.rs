//! Processes: commands with readable failures, what /proc tells of a process, where built programs are.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::wait::wait_until;

/// Runs a command and returns its standard output.
///
/// # Errors
/// The command line with its standard error when it fails.
pub fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("start {command:?}"))?;
    if !output.status.success() {
        let end = output
            .status
            .code()
            .map_or_else(|| format!("signal {:?}", output.status.signal()), |code| format!("exit code {code}"));
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        bail!("{command:?}: {end}\n{}\n{}", out.trim(), err.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Path of a program of this workspace: `TIDEGATE_BIN` for the agent, else in the folder that the running program was
/// built into.
///
/// # Errors
/// Names what to build when it is not there.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    if let Some(agent) = std::env::var_os("TIDEGATE_BIN").filter(|_| name == "tidegate") {
        return Ok(agent.into());
    }
    let own = std::env::current_exe()?;
    // target/debug/tidegate-lab, or target/debug/deps/host-0123 for a test.
    let places: Vec<&Path> = own.ancestors().skip(1).take(2).collect();
    places
        .iter()
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("program {name} is not in {places:?}: build it first (cargo xtask build)"))
}

/// Sends a signal; whether the process was there.
pub fn signal(pid: u32, signal: Signal) -> bool {
    i32::try_from(pid).is_ok_and(|pid| kill(Pid::from_raw(pid), signal).is_ok())
}

/// Whether a process exists and is no zombie.
pub fn is_alive(pid: u32) -> bool {
    state_of(pid).is_some_and(|state| state != 'Z')
}

/// Stops every thread of a process and waits until they have stopped: SIGSTOP alone returns before.
///
/// # Errors
/// When the process is gone.
pub fn stop(pid: u32) -> anyhow::Result<()> {
    signal(pid, Signal::SIGSTOP);
    wait_until("the process to stop", Duration::from_secs(5), || {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
        let mut states = tasks.flatten().map(|task| {
            let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            stat.rsplit_once(')').map(|(_, rest)| rest.trim_start().starts_with('T'))
        });
        states.all(|is_stopped| is_stopped == Some(true)).then_some(())
    })
}

/// Arguments of a process; empty when it is gone.
pub fn arguments(pid: u32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    bytes
        .split(|&byte| byte == 0)
        .filter(|part| !part.is_empty())
        .map(|part| String::from_utf8_lossy(part).into())
        .collect()
}

/// A field of `/proc/PID/status`, e.g. `CapEff`.
pub fn status_field(pid: u32, name: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    text.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim().to_owned()))
}

/// Time that a process was started at, in clock ticks since boot: tells it from a later one with the same id.
pub fn start_time(pid: u32) -> Option<u64> {
    // Field 22; the name in field 2 may hold spaces and ends with the last ')'.
    stat_after_name(pid)?.split_whitespace().nth(19)?.parse().ok()
}

/// CPU time that all threads of a process have used.
pub fn cpu_time(pid: u32) -> anyhow::Result<Duration> {
    let mut total = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("process {pid}"))? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        total += text.split_whitespace().next().and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(Duration::from_nanos(total))
}

/// Waits until a process is gone, kills it when it stays.
pub fn end(pid: u32, limit: Duration) {
    let start = Instant::now();
    while is_alive(pid) {
        if start.elapsed() > limit {
            signal(pid, Signal::SIGKILL);
        }
        if start.elapsed() > limit + Duration::from_secs(5) {
            return;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn state_of(pid: u32) -> Option<char> {
    stat_after_name(pid)?.trim_start().chars().next()
}

fn stat_after_name(pid: u32) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    text.rsplit_once(')').map(|(_, rest)| rest.to_owned())
}
