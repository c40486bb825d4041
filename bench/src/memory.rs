//! Memory: idle, for each 1,000 routes, for each idle connection.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
};

use anyhow::{Context, ensure};
use serde_json::json;
use tidegate_lab::{Agent, Lab, process};

use crate::{
    report::Report,
    routes,
    scene::{self, PUBLIC, Scene},
};

/// Routes of the large model.
const ROUTES: usize = 10_000;
/// Connections held.
const CONNECTIONS: usize = 10_000;

/// Memory of a process in KiB.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    /// Its pages, those that it shares by its share.
    pub(crate) pss: u64,
    /// All its pages.
    pub(crate) rss: u64,
    /// Pages that no file backs: heap and stacks.
    pub(crate) anonymous: u64,
}

pub(crate) fn measure() -> anyhow::Result<Report> {
    let mut report = Report::new(
        "memory",
        "Memory",
        format!(
            "Pss and Rss of /proc/PID/smaps_rollup; one shard each domain; idle: two domains with a Gateway and one route each, after the \
             first request; routes: the difference that {ROUTES} rules make to a new agent and worker, for each 1,000; connections: the \
             slope from 0 to {CONNECTIONS} idle HTTP/1.1 keep-alive connections that have had one answer each, kernel memory not counted."
        ),
    );
    report.columns(&["", "Pss", "Rss"]);
    let lab = Lab::create()?;
    let _scene = Scene::build(&lab)?;
    Scene::write_catch_all(&lab, "public")?;
    Scene::write_catch_all(&lab, "private")?;
    let agent = scene::start(&lab)?;
    let idle = all(&agent)?;
    for (name, memory) in &idle {
        report.push(vec![format!("idle: {name}"), mib(memory.pss), mib(memory.rss)]);
    }
    let total = |field: fn(&Memory) -> u64| idle.iter().map(|(_, memory)| field(memory)).sum::<u64>();
    report.push(vec!["idle: all".into(), mib(total(|memory| memory.pss)), mib(total(|memory| memory.rss))]);

    let held = hold(&lab, &agent)?;
    report.push(vec![
        "one idle connection, worker".into(),
        format!("{:.2} KiB", held.pss as f64 / CONNECTIONS as f64),
        format!("{:.2} KiB", held.rss as f64 / CONNECTIONS as f64),
    ]);
    agent.stop()?;

    routes::write(&lab, "public", ROUTES)?;
    let agent = scene::start(&lab)?;
    let large = all(&agent)?;
    for ((name, before), (_, after)) in idle.iter().zip(&large) {
        let thousand = |before: u64, after: u64| {
            format!("{:.2} MiB", (after as f64 - before as f64) / 1024.0 / (ROUTES as f64 / 1000.0))
        };
        report.push(vec![
            format!("1,000 routes: {name}"),
            thousand(before.pss, after.pss),
            thousand(before.rss, after.rss),
        ]);
    }
    let list = |all: &[(String, Memory)]| {
        all.iter()
            .map(|(name, memory)| json!({"name": name, "pss_kib": memory.pss, "rss_kib": memory.rss}))
            .collect::<Vec<_>>()
    };
    report.raw(
        json!({"idle": list(&idle), "routes": list(&large), "connections_kib": {"pss": held.pss, "rss": held.rss}}),
    );
    Ok(report)
}

/// Growth of the public worker by idle connections.
fn hold(lab: &Lab, agent: &Agent<'_>) -> anyhow::Result<Memory> {
    let worker = agent.worker_pid("public").context("no worker public")?;
    let before = of(worker)?;
    let mut command = Command::new(process::program("tidegate-lab")?);
    command.args(["hold", &format!("{PUBLIC}:80"), &CONNECTIONS.to_string(), "--seconds", "120"]);
    let mut holder = lab.internet.start(command.stdin(Stdio::piped()).stdout(Stdio::piped()))?;
    let mut lines = BufReader::new(holder.stdout.take().context("stdout is piped")?).lines();
    let line = lines.next().context("the holder ended")??;
    ensure!(line == format!("holding {CONNECTIONS}"), "{line}");
    let after = of(worker)?;
    let mut input = holder.stdin.take().context("stdin is piped")?;
    input.write_all(b"check\n")?;
    let line = lines.next().context("the holder ended")??;
    ensure!(line == format!("open {CONNECTIONS}"), "{line}");
    drop(input);
    holder.wait()?;
    let grown = |of: fn(&Memory) -> u64| of(&after) - of(&before);
    Ok(Memory { pss: grown(|m| m.pss), rss: grown(|m| m.rss), anonymous: grown(|m| m.anonymous) })
}

fn all(agent: &Agent<'_>) -> anyhow::Result<Vec<(String, Memory)>> {
    let pids = [
        ("init", Some(agent.init_pid())),
        ("agent", agent.agent_pid()),
        ("worker public", agent.worker_pid("public")),
        ("worker private", agent.worker_pid("private")),
    ];
    pids.into_iter().map(|(name, pid)| Ok((name.to_owned(), of(pid.with_context(|| format!("no {name}"))?)?))).collect()
}

/// What a process takes now.
///
/// # Errors
/// It is gone.
pub(crate) fn of(pid: u32) -> anyhow::Result<Memory> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
            .with_context(|| format!("no {name} of {pid}"))
    };
    Ok(Memory { pss: field("Pss:")?, rss: field("Rss:")?, anonymous: field("Anonymous:")? })
}

/// KiB as people read them.
pub(crate) fn mib(kib: u64) -> String {
    format!("{:.1} MiB", kib as f64 / 1024.0)
}
