//! Whether routes cost those who do not use them: the last of 10,000 against the only one, in two workers of one agent.

use std::net::SocketAddr;

use anyhow::Context;
use serde_json::json;
use tidegate_lab::{Lab, objects};

use crate::{
    Effort,
    load::{self, Aim, Protocol},
    report::Report,
    rounds::{Run, alternate, median, ratio, show},
    scene::{self, HOST, PRIVATE, PUBLIC, Scene},
};

/// Routes of the large domain.
const ROUTES: usize = 10_000;
/// Rules of one route object: the most that Gateway API allows.
const RULES: usize = 16;

pub(crate) fn measure(effort: Effort) -> anyhow::Result<Report> {
    let lab = Lab::create()?;
    let _scene = Scene::build(&lab)?;
    write(&lab, "public", ROUTES)?;
    write(&lab, "private", 1)?;
    let agent = scene::start(&lab)?;
    let pid = |domain: &str| agent.worker_pid(domain).with_context(|| format!("no worker {domain}"));
    let workers = [pid("public")?, pid("private")?];
    workers.iter().try_for_each(|pid| load::pin(*pid))?;
    let aim = |address: &str, route: usize| -> anyhow::Result<Aim> {
        let addr = SocketAddr::new(address.parse()?, 80);
        Ok(Aim { addr, host: HOST.into(), path: format!("{}/item", path_of(route)), protocol: Protocol::Http1 })
    };
    let sides = [aim(PUBLIC, ROUTES - 1)?, aim(PRIVATE, 0)?];
    let runs = alternate(2, effort.rounds, |side| {
        let island = [&lab.internet, &lab.datacentre][side];
        let run = load::measure(island, &sides[side], effort.seconds, workers[side])?;
        eprintln!("{}: {:.2} µs", ["last of many", "only one"][side], run.cpu_us());
        Ok(run)
    })?;
    let cpu: Vec<Vec<f64>> = runs.iter().map(|runs| runs.iter().map(Run::cpu_us).collect()).collect();
    let mut report = Report::new(
        "routes",
        "The last of 10,000 routes against the only one",
        format!(
            "one agent, two domains: `public` with {ROUTES} rules ({RULES} in each HTTPRoute, path prefixes of one host), `private` with \
             one; one shard each, both pinned to core 1; load by wrk as in proxy.md; {} rounds of A B B A, {} s each.",
            effort.rounds, effort.seconds
        ),
    );
    report.columns(&["", "CPU µs for each request"]);
    report.push(vec![format!("last of {ROUTES}"), format!("{:.2}", median(cpu[0].iter().copied()))]);
    report.push(vec!["only one".into(), format!("{:.2}", median(cpu[1].iter().copied()))]);
    report.push(vec!["ratio".into(), show(ratio(&cpu[0], &cpu[1]))]);
    report.raw(json!({"last": cpu[0], "only": cpu[1]}));
    Ok(report)
}

/// Writes rules 0 to `count` of a Gateway, several in each object.
pub(crate) fn write(lab: &Lab, gateway: &str, count: usize) -> anyhow::Result<()> {
    let mut text = String::new();
    for first in (0..count).step_by(RULES) {
        let rules: Vec<String> =
            (first..count.min(first + RULES)).map(|route| objects::prefix_to(&path_of(route), "shop")).collect();
        let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
        text.push_str(objects::NEXT);
        text.push_str(&objects::route(
            "shop",
            &format!("{gateway}-{first}"),
            &format!("gw/{gateway}"),
            &[HOST],
            &rules,
        ));
    }
    lab.write(&format!("routes-{gateway}.yaml"), &text)
}

fn path_of(route: usize) -> String {
    format!("/service-{route:05}")
}
