//! Load by wrk and h2load on core 0, and what the proxy on core 1 spent for it.

use std::{
    fs,
    net::SocketAddr,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, ensure};
use tidegate_lab::{island::Island, process};

use crate::rounds::Run;

/// Connections of the load.
pub(crate) const CONNECTIONS: usize = 64;
/// Core of the load generator and the backend.
pub(crate) const LOAD_CORE: &str = "0";
/// Core of the proxy under test.
pub(crate) const PROXY_CORE: &str = "1";

/// How the load speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// HTTP/1.1 in clear text, by wrk.
    Http1,
    /// HTTP/1.1 over TLS 1.3, by h2load.
    TlsHttp1,
    /// HTTP/2 over TLS 1.3, 4 connections with 32 streams, by h2load.
    TlsHttp2,
}

impl Protocol {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Http1 => "HTTP/1.1",
            Self::TlsHttp1 => "TLS 1.3, HTTP/1.1",
            Self::TlsHttp2 => "TLS 1.3, HTTP/2 (4 x 32 streams)",
        }
    }
}

/// Where the load goes.
#[derive(Clone, Debug)]
pub(crate) struct Aim {
    /// Frontend.
    pub(crate) addr: SocketAddr,
    /// Host name.
    pub(crate) host: String,
    /// Path.
    pub(crate) path: String,
    /// Protocol.
    pub(crate) protocol: Protocol,
}

/// Runs load for some seconds and returns the number of answers; every one must be a success.
pub(crate) fn run(from: &Island, aim: &Aim, seconds: u64) -> anyhow::Result<u64> {
    let mut command = Command::new("taskset");
    command.args(["-c", LOAD_CORE]);
    match aim.protocol {
        Protocol::Http1 => {
            command.args(["wrk", "-t1", &format!("-c{CONNECTIONS}"), &format!("-d{seconds}s")]);
            command.args(["-H", &format!("Host: {}", aim.host)]).arg(format!("http://{}{}", aim.addr, aim.path));
        }
        Protocol::TlsHttp1 | Protocol::TlsHttp2 => {
            command.args(["h2load", "-t1", "-D", &seconds.to_string(), "--warm-up-time", "0"]);
            command.arg(format!("--connect-to={}", aim.addr));
            if aim.protocol == Protocol::TlsHttp1 {
                command.args(["--h1", "-c", &CONNECTIONS.to_string()]);
            } else {
                command.args(["-c", "4", "-m", "32"]);
            }
            command.arg(format!("https://{}{}", aim.host, aim.path));
        }
    }
    let output = from.call(|| command.stdin(Stdio::null()).output()).with_context(|| format!("start {command:?}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let answers = if aim.protocol == Protocol::Http1 { read_wrk(&text) } else { read_h2load(&text) };
    answers.with_context(|| format!("{command:?}:\n{text}{}", String::from_utf8_lossy(&output.stderr)))
}

/// Runs load and measures the proxy's process meanwhile.
pub(crate) fn measure(from: &Island, aim: &Aim, seconds: u64, proxy: u32) -> anyhow::Result<Run> {
    let (cpu, switches) = (process::cpu_time(proxy)?, context_switches(proxy)?);
    let requests = run(from, aim, seconds)?;
    Ok(Run { requests, cpu: process::cpu_time(proxy)? - cpu, switches: context_switches(proxy)? - switches })
}

/// System calls for each request, counted by strace: slower, and the same number.
pub(crate) fn system_calls(from: &Island, aim: &Aim, seconds: u64, proxy: u32) -> anyhow::Result<(f64, String)> {
    let table = std::env::temp_dir().join(format!("tidegate-bench-strace-{}", std::process::id()));
    let mut strace: Child = Command::new("strace")
        .args(["-c", "-f", "-p", &proxy.to_string(), "-o"])
        .arg(&table)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("start strace")?;
    tidegate_lab::wait_until("strace to attach", Duration::from_secs(10), || {
        process::status_field(proxy, "TracerPid").filter(|pid| pid != "0")
    })?;
    let requests = run(from, aim, seconds)?;
    process::signal(strace.id(), nix::sys::signal::Signal::SIGINT);
    strace.wait()?;
    let text = fs::read_to_string(&table)?;
    let _ = fs::remove_file(&table);
    let total = text.lines().rev().find(|line| line.ends_with("total")).context("strace wrote no total")?;
    let calls: u64 = total.split_whitespace().nth(3).and_then(|field| field.parse().ok()).context("strace's table")?;
    let busiest: Vec<String> = text
        .lines()
        .skip(2)
        .take(6)
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            let calls: f64 = fields.nth(3)?.parse().ok()?;
            Some(format!("{} {:.2}", fields.next_back()?, calls / requests as f64))
        })
        .collect();
    Ok((calls as f64 / requests as f64, busiest.join(", ")))
}

/// Pins every thread of a process to the proxy's core.
pub(crate) fn pin(pid: u32) -> anyhow::Result<()> {
    process::run(Command::new("taskset").args(["-a", "-p", "-c", PROXY_CORE, &pid.to_string()])).map(drop)
}

fn context_switches(pid: u32) -> anyhow::Result<u64> {
    let mut total = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = fs::read_to_string(task?.path().join("status"))?;
        total += status
            .lines()
            .filter(|line| line.contains("ctxt_switches:"))
            .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
            .sum::<u64>();
    }
    Ok(total)
}

fn read_wrk(text: &str) -> anyhow::Result<u64> {
    ensure!(!text.contains("Non-2xx") && !text.contains("Socket errors"), "not every request was answered");
    let line = text.lines().find(|line| line.contains("requests in")).context("wrk says nothing")?;
    Ok(line.split_whitespace().next().context("a count")?.parse()?)
}

fn read_h2load(text: &str) -> anyhow::Result<u64> {
    // requests: 12 total, 12 started, 12 done, 12 succeeded, 0 failed, 0 errored, 0 timeout
    let line = text.lines().find(|line| line.starts_with("requests:")).context("h2load says nothing")?;
    let count = |name: &str| {
        let part = line.trim_start_matches("requests:").split(',').find(|part| part.trim().ends_with(name));
        part.and_then(|part| part.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0)
    };
    ensure!(count("failed") + count("errored") + count("timeout") == 0 && count("succeeded") > 0, "{line}");
    Ok(count("succeeded"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_generators_say_and_refuses_failures() {
        assert_eq!(read_wrk("  82114 requests in 4.00s, 101.2MB read\n").unwrap(), 82114);
        assert!(read_wrk("  82114 requests in 4.00s\n  Non-2xx or 3xx responses: 3\n").is_err());
        let good = "requests: 50 total, 60 started, 50 done, 50 succeeded, 0 failed, 0 errored, 0 timeout\n";
        assert_eq!(read_h2load(good).unwrap(), 50);
        assert!(read_h2load(&good.replace("0 errored", "2 errored")).is_err());
    }
}
