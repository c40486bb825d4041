//! Clients beside a flood of SYNs ten times as many as their connections, with and without admission.
//!
//! Every side has the same clients; floods differ in their sources only, which decide what becomes of them.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::Context;
use serde_json::json;
use tidegate_lab::{
    Flood, FloodPlan, Lab, Load, LoadPlan, LoadReport, Pattern, Request, Target,
    flood::{FOREIGN, FOREIGN_COUNT, FOREIGN_FIRST},
    lab::INTERNET,
    process,
};

use crate::{
    Effort, kernel,
    report::Report,
    rounds::{median, ratio, show},
    scene::{self, HOST, PUBLIC, Scene},
};

/// Clients, each in a closed loop with an address of its own: ports do not run out.
const CLIENTS: u8 = 8;
/// SYNs of a flood for each connection of the clients.
const FACTOR: u32 = 10;
/// Half of the foreign addresses.
const HALF: u32 = FOREIGN_COUNT / 2;
/// What outlives a run: half-open connections end after a second (`tcp_synack_retries` 0).
const SETTLING: Duration = Duration::from_millis(1500);

/// What stands beside the clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Calm,
    Denied,
    Driver,
    Kernel,
}

const SIDES: [Side; 4] = [Side::Calm, Side::Denied, Side::Driver, Side::Kernel];

impl Side {
    fn name(self) -> &'static str {
        match self {
            Self::Calm => "no flood",
            Self::Denied => "SYNs from 65,536 denied sources",
            Self::Driver => "SYNs from 65,536 strangers, cookies from the driver",
            Self::Kernel => "SYNs from 65,536 strangers, cookies from the kernel",
        }
    }

    /// First of the flood's sources: the lower half is on the deny list.
    fn source(self) -> Option<Ipv4Addr> {
        match self {
            Self::Calm => None,
            Self::Denied => Some(FOREIGN_FIRST),
            Self::Driver | Self::Kernel => Some(Ipv4Addr::from(u32::from(FOREIGN_FIRST) + HALF)),
        }
    }
}

/// One run of a side.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// Connections with an answer, a second.
    goodput: f64,
    failures: u64,
    /// CPU microseconds of the worker for each of them.
    worker_us: f64,
    /// Packets of the flood, a second.
    flood: f64,
}

pub(crate) fn measure(effort: Effort) -> anyhow::Result<Report> {
    let lab = Lab::create()?;
    let _scene = Scene::build(&lab)?;
    Scene::write_catch_all(&lab, "public")?;
    prepare(&lab)?;
    let agent = scene::start(&lab)?;
    make_answerable(&lab)?;
    let worker = agent.worker_pid("public").context("no worker public")?;
    // Warm, and the measure of the flood.
    let calm = run(&lab, worker, Side::Calm, 0, effort.seconds)?;
    let rate = FACTOR * calm.goodput as u32;
    let mut runs = vec![Vec::new(); SIDES.len()];
    for round in 0..effort.rounds {
        for index in (0..SIDES.len()).chain((0..SIDES.len()).rev()) {
            let side = SIDES[index];
            let run = run(&lab, worker, side, rate, effort.seconds)?;
            eprintln!("round {round}, {}: {run:?}", side.name());
            runs[index].push(run);
        }
    }
    let mut report = Report::new(
        "flood",
        "Clients beside a flood of SYNs",
        format!(
            "Client, gateway and backend in network namespaces joined by veth, two cores that everything shares: {CLIENTS} clients in \
             closed loops, each request (GET, 1 KiB) on a connection of its own; the flood's sender in the clients' namespace, so its own \
             cost and the softirq of the gateway's side (a veth's receiver works for its sender) are taken from the clients, too; the \
             worker (one shard), nginx as the backend. The flood is {FACTOR} SYNs for each connection that the clients made without one \
             ({rate} a second), to the clients' own frontend, from random addresses. 'Denied' are on a deny list of one /16; strangers \
             are on none, and their half-open connections are given up after a second. {} rounds of {} s, each side forwards and backwards in \
             each; medians, ratios to the same round's runs without a flood with smallest and largest single pair. CPU of the worker \
             is that of its process (schedstat).",
            effort.rounds, effort.seconds
        ),
    );
    report.columns(&["", "flood, packets/s", "connections/s", "ratio", "failed", "worker, µs each", "ratio"]);
    let column = |index: usize, of: fn(&Run) -> f64| runs[index].iter().map(of).collect::<Vec<f64>>();
    for (index, side) in SIDES.into_iter().enumerate() {
        let (goodput, worker_us) = (column(index, |run| run.goodput), column(index, |run| run.worker_us));
        report.push(vec![
            side.name().into(),
            format!("{:.0}", median(column(index, |run| run.flood))),
            format!("{:.0}", median(goodput.iter().copied())),
            show(ratio(&goodput, &column(0, |run| run.goodput))),
            runs[index].iter().map(|run| run.failures).sum::<u64>().to_string(),
            format!("{:.1}", median(worker_us.iter().copied())),
            show(ratio(&worker_us, &column(0, |run| run.worker_us))),
        ]);
    }
    let verdicts: Vec<String> = ["source_denied", "cookie_sent", "admitted"]
        .into_iter()
        .map(|reason| Ok(format!("{reason} {:.0}", agent.verdicts("public", reason)?)))
        .collect::<anyhow::Result<_>>()?;
    report.note(format!("Verdicts of `admit` and `steer` over all runs: {}.", verdicts.join(", ")));
    let raw = |run: &Run| json!({"goodput": run.goodput, "failures": run.failures, "worker_us": run.worker_us, "flood": run.flood});
    let sides = SIDES
        .iter()
        .zip(&runs)
        .map(|(side, runs)| json!({"side": side.name(), "runs": runs.iter().map(raw).collect::<Vec<_>>()}));
    report.raw(json!(sides.collect::<Vec<_>>()));
    Ok(report)
}

fn prepare(lab: &Lab) -> anyhow::Result<()> {
    lab.gateway.ip(&format!("route add {FOREIGN} via {INTERNET}\n"))?;
    lab.gateway.call(|| fs::write("/proc/sys/net/ipv4/tcp_synack_retries", "0"))?;
    lab.internet.call(|| fs::write("/proc/sys/net/ipv4/ip_local_port_range", "1024 65535"))?;
    set_cookies(lab, "Kernel")
}

/// Writes the domain anew, with a deny list and who sends cookies.
fn set_cookies(lab: &Lab, who: &str) -> anyhow::Result<()> {
    let base = fs::read_to_string(lab.config().join("base.yaml"))?;
    let fields = format!("shards: 1\n  sources: {{deny: [{FOREIGN_FIRST}/16]}}\n  admission: {{synCookies: {who}}}\n");
    let text = match base.split_once("  sources: {deny") {
        None => base.replacen("shards: 1\n", &fields, 1),
        Some(_) => base
            .replace("synCookies: Kernel", &format!("synCookies: {who}"))
            .replace("synCookies: XDP", &format!("synCookies: {who}")),
    };
    lab.write("base.yaml", &text)
}

/// What the driver sends back, the other end of a veth takes only while an XDP program runs there: `admit`, which passes
/// everything that is for none of its frontends.
fn make_answerable(lab: &Lab) -> anyhow::Result<()> {
    let program = kernel::find_admit(lab)?;
    lab.internet
        .call(|| process::run(Command::new("bpftool").args(["net", "attach", "xdp", "id", &program, "dev", "eth0"])))
        .map(drop)
}

fn run(lab: &Lab, worker: u32, side: Side, rate: u32, seconds: u64) -> anyhow::Result<Run> {
    set_cookies(lab, if side == Side::Driver { "XDP" } else { "Kernel" })?;
    thread::sleep(SETTLING);
    let destination = SocketAddr::new(PUBLIC.parse()?, 80);
    let flood = side
        .source()
        .map(|source| {
            let plan = FloodPlan { pattern: Pattern::Syn, destination, source: source.into(), sources: HALF, rate };
            Flood::start(&lab.internet, plan)
        })
        .transpose()?;
    let loads: Vec<Load> = (0..CLIENTS)
        .map(|index| {
            let source = IpAddr::from([198, 51, 100, 10 + index]);
            let target = Target::http(destination).from(source);
            let mut plan = LoadPlan::new(target, Request::get(HOST, "/")).with_new_connections().at_rate(1_000_000);
            plan.connections = 1;
            Load::start(&lab.internet, &plan)
        })
        .collect();
    let cpu = process::cpu_time(worker)?;
    thread::sleep(Duration::from_secs(seconds));
    let mut total = LoadReport::default();
    for load in loads {
        total.merge(&load.stop()?);
    }
    let cpu = process::cpu_time(worker)? - cpu;
    let sent = flood.as_ref().map_or(0, Flood::sent);
    drop(flood);
    Ok(Run {
        goodput: total.ok() as f64 / seconds as f64,
        failures: total.errors(),
        worker_us: cpu.as_secs_f64() * 1e6 / total.ok().max(1) as f64,
        flood: sent as f64 / seconds as f64,
    })
}
