//! CPU for each request beside nginx: the same NIC, the same backend, the same core, in turns.

use std::net::SocketAddr;

use anyhow::Context;
use serde_json::json;
use tidegate_lab::Lab;

use crate::{
    Effort,
    load::{self, Aim, CONNECTIONS, Protocol},
    nginx::Nginx,
    report::Report,
    rounds::{Run, alternate, median, ratio, show},
    scene::{self, HOST, PUBLIC, Scene},
};

/// Address of the node itself: what comes for it passes `admit` and is nginx's.
const NODE: [u8; 4] = [198, 51, 100, 1];

pub(crate) fn measure(effort: Effort) -> anyhow::Result<Report> {
    let lab = Lab::create()?;
    let scene = Scene::build(&lab)?;
    Scene::write_catch_all(&lab, "public")?;
    let agent = scene::start(&lab)?;
    let worker = agent.worker_pid("public").context("no worker public")?;
    load::pin(worker)?;
    let peer = |name: &str, port: u16| {
        let addr = SocketAddr::from((NODE, port));
        Nginx::proxy(&lab.gateway, lab.folder(), name, addr, scene.backend, &scene.leaf)
    };
    let peers = [peer("nginx-a", 7000)?, peer("nginx-b", 7100)?];

    let mut report = Report::new(
        "proxy",
        "CPU for each request, beside nginx 1.22 (Debian)",
        format!(
            "client, gateway and backend in network namespaces joined by veth; one worker each, pinned to core 1; load generator \
             (wrk for HTTP/1.1, h2load for TLS) and backend (nginx, 1 KiB) on core 0; {CONNECTIONS} keep-alive connections \
             (HTTP/2: 4 with 32 streams); keep-alive upstream; access logs off; both set X-Forwarded-For, -Proto and -Host. CPU is \
             the sum of /proc/PID/task/*/schedstat of the proxy's process, context switches from /proc/PID/task/*/status. {} rounds, \
             in each every side runs {} s forwards and backwards (A B C C B A). Medians; ratios with smallest and largest single pair. \
             A and C are the same nginx twice: a row whose control is further than 10 % from 1 is not readable. System calls are \
             counted by `strace -c -f` in a run of their own. Tidegate runs with the kernel tier (admit and steer) on; packets for \
             nginx pass `admit` untouched.",
            effort.rounds, effort.seconds
        ),
    );
    report.columns(&[
        "",
        "Tidegate µs",
        "nginx µs",
        "ratio",
        "control",
        "syscalls: Tidegate",
        "nginx",
        "switches: Tidegate",
        "nginx",
    ]);
    let mut raw = Vec::new();
    for protocol in [Protocol::Http1, Protocol::TlsHttp1, Protocol::TlsHttp2] {
        let is_tls = protocol != Protocol::Http1;
        let aim = |address: SocketAddr| Aim { addr: address, host: HOST.into(), path: "/".into(), protocol };
        let node = |port: u16| SocketAddr::from((NODE, port + u16::from(is_tls)));
        let own = SocketAddr::new(PUBLIC.parse()?, if is_tls { 443 } else { 80 });
        let sides = [(aim(node(7000)), peers[0].worker), (aim(own), worker), (aim(node(7100)), peers[1].worker)];
        let runs = alternate(sides.len(), effort.rounds, |side| {
            let (aim, pid) = &sides[side];
            let run = load::measure(&lab.internet, aim, effort.seconds, *pid)?;
            let who = ["nginx-a", "tidegate", "nginx-b"][side];
            eprintln!("{} {who}: {:.1} µs, {} requests", protocol.name(), run.cpu_us(), run.requests);
            Ok(run)
        })?;
        let cpu: Vec<Vec<f64>> = runs.iter().map(|runs| runs.iter().map(Run::cpu_us).collect()).collect();
        let switches = |side: usize| median(runs[side].iter().map(Run::switches_each));
        let calls = |side: usize| load::system_calls(&lab.internet, &sides[side].0, effort.seconds, sides[side].1);
        let (own_calls, busiest) = calls(1)?;
        let (peer_calls, _) = calls(0)?;
        report.push(vec![
            protocol.name().into(),
            format!("{:.1}", median(cpu[1].iter().copied())),
            format!("{:.1}", median(cpu[0].iter().copied())),
            show(ratio(&cpu[1], &cpu[0])),
            show(ratio(&cpu[2], &cpu[0])),
            format!("{own_calls:.2}"),
            format!("{peer_calls:.2}"),
            format!("{:.3}", switches(1)),
            format!("{:.3}", switches(0)),
        ]);
        report.note(format!("System calls of Tidegate for each request, {}: {busiest}.", protocol.name()));
        raw.push(json!({"protocol": protocol.name(), "cpu_us": {"nginx_a": cpu[0], "tidegate": cpu[1], "nginx_b": cpu[2]},
            "requests": runs.iter().map(|runs| runs.iter().map(|run| run.requests).collect::<Vec<_>>()).collect::<Vec<_>>()}));
    }
    report.raw(json!(raw));
    Ok(report)
}
