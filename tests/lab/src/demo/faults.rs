//! Steps that kill processes under load.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;

use super::{
    stage::{EXAMPLE, PRODUCTS, SHOP, Stage, warm_up},
    story::Story,
};
use crate::{Load, Request, Session, client, lab::DENIED, process::signal, wait_until};

/// A killed worker is back within this time.
const BACK: Duration = Duration::from_secs(1);

pub(super) fn kills_a_worker(stage: &mut Stage<'_>, story: &mut Story) -> anyhow::Result<String> {
    let mut public = Load::start(&stage.lab.internet, &stage.shop_load());
    warm_up(&mut public)?;
    let worker = stage.agent.worker_pid("private").context("no worker private")?;
    let killed = Instant::now();
    signal(worker, Signal::SIGKILL);
    // Sent while nobody is there to accept: it waits in the queue that the agent keeps.
    let (target, request) = (stage.console(), Request::get("console.internal", "/"));
    let reply = stage.lab.datacentre.run(async move { client::send(&target, request).await })?;
    let back = killed.elapsed();
    let new = stage.agent.wait_new_worker("private", worker, Duration::from_secs(5))?;
    story.line(format!(
        "worker private (process {worker}) killed; a request sent at once: {} after {} ms",
        reply.status,
        back.as_millis()
    ));
    story.line(format!("worker private is process {new} now"));
    ensure!(reply.status == 200, "the queued request: {}", reply.status);
    ensure!(back < BACK, "back after {back:?}");
    let seen = public.total().requests();
    wait_until("more requests of the other domain", Duration::from_secs(10), || {
        (public.total().requests() >= seen + 100).then_some(())
    })?;
    let report = public.stop()?;
    story.line(format!("meanwhile in domain public: {report}"));
    ensure!(report.errors() == 0, "the other domain noticed: {report}");
    Ok(format!(
        "back and serving after {} ms; the other domain: {} requests, 0 errors",
        back.as_millis(),
        report.requests()
    ))
}

pub(super) fn kills_the_agent(stage: &mut Stage<'_>, story: &mut Story) -> anyhow::Result<String> {
    let mut public = Load::start(&stage.lab.internet, &stage.shop_load());
    let mut private = Load::start(&stage.lab.datacentre, &stage.console_load());
    warm_up(&mut public)?;
    warm_up(&mut private)?;
    let target = stage.shop();
    let mut session = stage.lab.internet.run(async move { Session::connect(&target).await })?;
    let workers = ["public", "private"].map(|domain| stage.agent.worker_pid(domain));
    let agent = stage.agent.agent_pid().context("no agent")?;
    signal(agent, Signal::SIGKILL);
    stage.expect_silence(&stage.lab.internet, stage.shop().from(DENIED)).context("the kernel stopped judging")?;
    story.line(format!("agent (process {agent}) killed; the kernel goes on denying {DENIED}"));
    let next =
        wait_until("the next agent", Duration::from_secs(10), || stage.agent.agent_pid().filter(|pid| *pid != agent))?;
    stage.agent.wait_ready()?;
    let kept = ["public", "private"].map(|domain| stage.agent.worker_pid(domain));
    ensure!(kept == workers, "workers were replaced: {workers:?} -> {kept:?}");
    story.line(format!(
        "init started agent {next}; it took over workers {} and {}",
        kept[0].unwrap_or(0),
        kept[1].unwrap_or(0)
    ));
    let reply = stage.lab.internet.run(async move { session.send(Request::get(SHOP, PRODUCTS)).await })?;
    ensure!(reply.status == 200, "the connection from before: {}", reply.status);

    stage.lab.edit(EXAMPLE, "value: \"v1:90,v2:10\"", "value: \"after-takeover\"")?;
    wait_until("a change through the next agent", Duration::from_secs(10), || {
        let reply = stage.send(&stage.lab.internet, stage.shop(), Request::get(SHOP, PRODUCTS)).ok()?;
        (reply.json()["headers"]["x-canary-weight"][0] == "after-takeover").then_some(())
    })?;
    story.line("a TLS connection from before the kill was used again; a change made afterwards is served");
    let (public, private) = (public.stop()?, private.stop()?);
    story.line(format!("meanwhile: public {public}; private {private}"));
    ensure!(public.errors() + private.errors() == 0, "public {public}; private {private}");
    Ok(format!(
        "taken over; {} requests in both domains, 0 errors, no connection lost",
        public.requests() + private.requests()
    ))
}
