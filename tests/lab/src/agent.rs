//! A hand on the agent: starts `tidegate run` on the gateway node, asks it what a user would ask, kills its parts.
//!
//! Everything goes through the command line, the admin server and /proc. A test that panics gets the end of the log.

use std::{
    fs::{self, File},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use nix::sys::signal::Signal;

use crate::{
    client::{Reply, Request, Target, send},
    lab::Lab,
    metrics::{Metrics, names},
    process::{arguments, end, program, signal},
    wait::wait_until,
};

/// Longest time from start to ready, far above what was seen, so that it means "never".
const READY: Duration = Duration::from_secs(30);
/// Time for the agent and its workers to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(15);
/// Standard error of init, agent and workers.
const LOG: &str = "tidegate.log";
/// Standard output: the workers' access log.
const ACCESS_LOG: &str = "access.log";
/// Lines of the log shown with a failure.
const TAIL: usize = 60;

/// How to start the agent.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// `--kernel`.
    pub kernel: &'static str,
    /// Further arguments.
    pub arguments: Vec<String>,
    /// Soft and hard limit of open files for the agent and its workers.
    pub open_files: Option<u64>,
    /// `--log`.
    pub log: &'static str,
    /// Program file, where it is not the one just built.
    pub program: Option<PathBuf>,
    /// File name of the socket of the command line: another one for each agent that runs beside another.
    pub socket: &'static str,
}

impl Default for AgentOptions {
    fn default() -> Self {
        let (kernel, log, socket) = ("require", "info", "tidegate.sock");
        Self { kernel, arguments: Vec::new(), open_files: None, log, program: None, socket }
    }
}

/// What a command said.
#[derive(Clone, Debug)]
pub struct Said {
    /// Exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Said {
    /// Standard output as JSON.
    ///
    /// # Errors
    /// Shows the output when it is none.
    pub fn json(&self) -> anyhow::Result<serde_json::Value> {
        serde_json::from_str(&self.out).with_context(|| format!("not JSON: {self:?}"))
    }
}

/// A running agent with its workers. Ended on drop.
#[derive(Debug)]
pub struct Agent<'a> {
    lab: &'a Lab,
    init: Child,
    options: AgentOptions,
    is_ended: bool,
}

impl<'a> Agent<'a> {
    /// Starts the agent with the kernel tier required, and waits until it is ready.
    ///
    /// # Errors
    /// Shows the end of the log when it does not become ready.
    pub fn start(lab: &'a Lab) -> anyhow::Result<Self> {
        Self::start_with(lab, AgentOptions::default())
    }

    /// Starts the agent and waits until it is ready.
    ///
    /// # Errors
    /// As [`Agent::start`].
    pub fn start_with(lab: &'a Lab, options: AgentOptions) -> anyhow::Result<Self> {
        let mut agent = Self::launch(lab, options)?;
        agent.wait_ready()?;
        Ok(agent)
    }

    /// Starts the agent without waiting.
    ///
    /// # Errors
    /// When the program is not built.
    pub fn launch(lab: &'a Lab, options: AgentOptions) -> anyhow::Result<Self> {
        let tidegate = options.program.clone().map_or_else(|| program("tidegate"), Ok)?;
        let mut command = match options.open_files {
            None => Command::new(&tidegate),
            Some(limit) => {
                let mut command = Command::new("prlimit");
                command.arg(format!("--nofile={limit}:{limit}")).arg(&tidegate);
                command
            }
        };
        let open = |name| File::options().create(true).append(true).open(lab.folder().join("logs").join(name));
        let (access, log) = (open(ACCESS_LOG)?, open(LOG)?);
        command
            .arg("run")
            .arg("--source")
            .arg(format!("directory={}", lab.config().display()))
            .args(["--instance", &lab.name, "--admin", &admin().to_string(), "--kernel", options.kernel])
            .args(["--log", options.log])
            .arg("--socket")
            .arg(lab.folder().join("run").join(options.socket))
            .arg("--bpffs")
            .arg(lab.folder().join("bpf"))
            .args(&options.arguments)
            .stdin(Stdio::null())
            .stdout(access)
            .stderr(log);
        let init = lab.gateway.start(&mut command).with_context(|| format!("start {command:?}"))?;
        Ok(Self { lab, init, options, is_ended: false })
    }

    /// Waits until `/readyz` says so: everything is in force in the kernel and in the workers.
    ///
    /// # Errors
    /// Shows the end of the log when the agent ends or does not become ready.
    pub fn wait_ready(&mut self) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.init.try_wait()? {
                bail!("tidegate ended with {status}:\n{}", self.log_tail());
            }
            let answer = self.ask("/readyz");
            if answer.as_ref().is_ok_and(|reply| reply.status == 200) {
                return Ok(());
            }
            if start.elapsed() > READY {
                let last =
                    answer.map_or_else(|error| error.to_string(), |reply| format!("{} {}", reply.status, reply.text()));
                bail!("not ready after {READY:?} ({last}):\n{}", self.log_tail());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for the program to end by itself.
    ///
    /// # Errors
    /// When it runs on.
    pub fn wait_end(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        let init = &mut self.init;
        wait_until("tidegate to end", limit, || init.try_wait().ok().flatten())
    }

    /// Asks the admin server.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn ask(&self, path: &str) -> anyhow::Result<Reply> {
        let target = Target::http(admin()).within(Duration::from_secs(2));
        let request = Request::get("localhost", path);
        Ok(self.lab.gateway.run(async move { send(&target, request).await })?)
    }

    /// Scrapes the metrics.
    ///
    /// # Errors
    /// When they cannot be had, or Prometheus would not take them.
    pub fn metrics(&self) -> anyhow::Result<Metrics> {
        let reply = self.ask("/metrics")?;
        anyhow::ensure!(reply.status == 200, "/metrics: {} {}", reply.status, reply.text());
        Metrics::parse(&reply.text())
    }

    /// Sum over the series of a metric that have these labels, at this moment.
    ///
    /// # Errors
    /// As [`Agent::metrics`].
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> anyhow::Result<f64> {
        Ok(self.metrics()?.sum(name, labels))
    }

    /// Runs `tidegate VERB …` against this agent.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn cli(&self, words: &[&str]) -> anyhow::Result<Said> {
        let mut command = Command::new(program("tidegate")?);
        command.args(words).env("TIDEGATE_SOCKET", self.socket()).stdin(Stdio::null());
        said(self.lab.gateway.call(|| command.output()))
    }

    /// Starts `tidegate VERB …` with its output in a pipe, for verbs that go on.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn cli_start(&self, words: &[&str]) -> anyhow::Result<Child> {
        let mut command = Command::new(program("tidegate")?);
        command.args(words).env("TIDEGATE_SOCKET", self.socket()).stdin(Stdio::null()).stdout(Stdio::piped());
        Ok(self.lab.gateway.start(&mut command)?)
    }

    /// Process id of init.
    pub fn init_pid(&self) -> u32 {
        self.init.id()
    }

    /// Process id of the agent proper.
    pub fn agent_pid(&self) -> Option<u32> {
        self.find(|words| words.get(1).is_some_and(|word| word == "agent"))
    }

    /// Process id of a domain's worker; the newest when one is being replaced.
    pub fn worker_pid(&self, domain: &str) -> Option<u32> {
        self.find(|words| {
            words.get(1).is_some_and(|word| word == "worker") && words.get(2).is_some_and(|word| word == domain)
        })
    }

    /// Waits for a worker other than the one given.
    ///
    /// # Errors
    /// When none comes.
    pub fn wait_new_worker(&self, domain: &str, old: u32, limit: Duration) -> anyhow::Result<u32> {
        wait_until(&format!("a new worker {domain}"), limit, || self.worker_pid(domain).filter(|pid| *pid != old))
    }

    /// Everything logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.lab.folder().join("logs").join(LOG)).unwrap_or_default()
    }

    /// The access log so far.
    pub fn access_log(&self) -> String {
        fs::read_to_string(self.lab.folder().join("logs").join(ACCESS_LOG)).unwrap_or_default()
    }

    /// The end of the log.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(TAIL)..].join("\n")
    }

    /// The options that it was started with.
    pub fn options(&self) -> &AgentOptions {
        &self.options
    }

    /// Ends the agent and its workers as a service manager would, and waits.
    ///
    /// # Errors
    /// When it does not end on SIGTERM.
    pub fn stop(mut self) -> anyhow::Result<ExitStatus> {
        signal(self.init.id(), Signal::SIGTERM);
        let status = self.wait_end(GRACE).with_context(|| self.log_tail())?;
        self.is_ended = true;
        Ok(status)
    }

    /// Packets and connections judged so far in a domain with a reason, over all hooks.
    ///
    /// # Errors
    /// As [`Agent::metrics`].
    pub fn verdicts(&self, domain: &str, reason: &str) -> anyhow::Result<f64> {
        self.metric(names::VERDICTS, &[("domain", domain), ("reason", reason)])
    }

    /// First address of a Gateway, as `tidegate status` reports it.
    ///
    /// # Errors
    /// When the Gateway has none.
    pub fn gateway_address(&self, namespace: &str, name: &str) -> anyhow::Result<IpAddr> {
        let status = self.cli(&["status", "-o", "json"])?.json()?;
        let gateways = status["gateways"].as_array().into_iter().flatten();
        gateways
            .filter(|gateway| gateway["name"] == format!("{namespace}/{name}"))
            .find_map(|gateway| gateway["addresses"][0].as_str()?.parse().ok())
            .with_context(|| format!("Gateway {namespace}/{name} has no address: {status}"))
    }

    fn socket(&self) -> PathBuf {
        self.lab.folder().join("run").join(self.options.socket)
    }

    fn find(&self, is_wanted: impl Fn(&[String]) -> bool) -> Option<u32> {
        self.lab.gateway.pids().into_iter().filter(|pid| is_wanted(&arguments(*pid))).max()
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- end of the log of {} ---\n{}\n---", self.lab.name, self.log_tail());
        }
        if !self.is_ended {
            signal(self.init.id(), Signal::SIGTERM);
            if wait_until("tidegate to end", GRACE, || self.init.try_wait().ok().flatten()).is_err() {
                eprintln!("tidegate of {} did not end on SIGTERM:\n{}", self.lab.name, self.log_tail());
                let workers: Vec<u32> = self.lab.gateway.pids();
                let _ = self.init.kill();
                let _ = self.init.wait();
                workers.into_iter().for_each(|pid| end(pid, Duration::ZERO));
            }
        }
    }
}

/// Runs `tidegate WORD…` without an agent: `check`, `version`, or `run` that must refuse.
///
/// # Errors
/// When the program cannot be started.
pub fn tidegate(words: &[&str]) -> anyhow::Result<Said> {
    said(Command::new(program("tidegate")?).args(words).stdin(Stdio::null()).output())
}

/// Admin address in the gateway's namespace.
pub fn admin() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 9590))
}

/// Socket of the command line.
pub fn socket_path(lab: &Lab) -> PathBuf {
    lab.folder().join("run/tidegate.sock")
}

fn said(output: std::io::Result<std::process::Output>) -> anyhow::Result<Said> {
    let output = output.context("start tidegate")?;
    Ok(Said {
        code: output.status.code(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
