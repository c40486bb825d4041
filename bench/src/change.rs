//! From the moment a file is replaced to the first request answered by the new rules, a thousand times.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::ensure;
use serde_json::json;
use tidegate_lab::{Lab, Load, LoadPlan, Request, Session, Target, objects};

use crate::{
    report::Report,
    scene::{self, PUBLIC, Scene},
};

/// Routes, each in a file of its own.
const ROUTES: usize = 1_000;
/// Changes measured.
const CHANGES: usize = 1_000;
/// Between two changes, so that the bystander asks many times under changes that are apart as an operator's are.
const PAUSE: Duration = Duration::from_millis(20);
/// Requests a second of the bystander.
const BYSTANDER_RATE: u32 = 1_000;
/// A change that is not served after this has been lost.
const LOST: Duration = Duration::from_secs(10);

pub(crate) fn measure() -> anyhow::Result<Report> {
    let lab = Lab::create()?;
    let _scene = Scene::build(&lab)?;
    for route in 0..ROUTES {
        write(&lab, route, 0)?;
    }
    let agent = scene::start(&lab)?;
    let target = Target::http(SocketAddr::new(PUBLIC.parse()?, 80));
    let bystander = Request::get(&host_of(ROUTES - 1, 0), "/");
    let mut load = Load::start(&lab.internet, &LoadPlan::new(target.clone(), bystander).at_rate(BYSTANDER_RATE));
    tidegate_lab::wait_until("load", LOST, || (load.total().ok() >= 20).then_some(()))?;

    let mut latencies = Vec::with_capacity(CHANGES);
    let mut probes = 0u64;
    for change in 1..=CHANGES {
        std::thread::sleep(PAUSE);
        // Every file but the bystander's is changed in turn: its host name gets a new number.
        let route = change % (ROUTES - 1);
        let wanted = Request::get(&host_of(route, change), "/");
        let target = target.clone();
        let mut session = lab.internet.run(async move { Session::connect(&target).await })?;
        let start = Instant::now();
        write(&lab, route, change)?;
        let (latency, asked) = lab.internet.run(async move {
            let mut asked = 0;
            loop {
                asked += 1;
                let reply = session.send(wanted.clone()).await?;
                if reply.status == 200 || start.elapsed() > LOST {
                    return Ok::<_, tidegate_lab::Failure>((start.elapsed(), asked));
                }
                ensure_404(reply.status)?;
                tokio::time::sleep(Duration::from_micros(200)).await;
            }
        })?;
        ensure!(latency < LOST, "change {change} was not served within {LOST:?}");
        latencies.push(latency);
        probes += asked;
    }
    let failed = load.stop()?;
    drop(agent);
    latencies.sort_unstable();
    let at =
        |part: f64| latencies[((latencies.len() as f64 * part).ceil() as usize).saturating_sub(1)].as_secs_f64() * 1e3;
    let mut report = Report::new(
        "change",
        "Change to served",
        format!(
            "{ROUTES} HTTPRoutes in {ROUTES} files watched by the directory source, two domains; {CHANGES} changes, one file replaced \
             (rename) each; latency from before the write to the first answer of the changed route on an open connection, asked for \
             without pause (about every 0.4 ms); {} ms between two changes. Meanwhile another route is asked {BYSTANDER_RATE} times a \
             second on four keep-alive connections, counting every answer but 200 as failed. Two cores for everything: agent, workers, prober, load, backend.",
            PAUSE.as_millis()
        ),
    );
    report.columns(&["p50 ms", "p90 ms", "p99 ms", "max ms", "failed requests of the bystander", "its requests"]);
    report.push(vec![
        format!("{:.2}", at(0.5)),
        format!("{:.2}", at(0.9)),
        format!("{:.2}", at(0.99)),
        format!("{:.2}", at(1.0)),
        failed.errors().to_string(),
        failed.requests().to_string(),
    ]);
    report.note(format!("The prober asked {probes} times."));
    report.raw(json!({
        "latency_us": latencies.iter().map(|latency| latency.as_micros() as u64).collect::<Vec<_>>(),
        "bystander": {"requests": failed.requests(), "errors": failed.errors()},
    }));
    Ok(report)
}

/// Until the change is in force there is no rule for the new name.
fn ensure_404(status: u16) -> Result<(), tidegate_lab::Failure> {
    if status == 404 { Ok(()) } else { Err(tidegate_lab::Failure::Protocol(format!("status {status}"))) }
}

fn host_of(route: usize, version: usize) -> String {
    format!("v{version}.route-{route:04}.example.com")
}

fn write(lab: &Lab, route: usize, version: usize) -> anyhow::Result<()> {
    let name = format!("route-{route:04}");
    let text = objects::route("shop", &name, "gw/public", &[&host_of(route, version)], &[&objects::to_service("shop")]);
    lab.write(&format!("{name}.yaml"), &text)
}
