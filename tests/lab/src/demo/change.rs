//! Steps that change objects under load.

use std::time::{Duration, Instant};

use anyhow::ensure;

use super::{
    stage::{EXAMPLE, PRODUCTS, SECRET, SHOP, Stage, warm_up},
    story::Story,
};
use crate::{Load, Request, Session, wait_until};

/// Answers counted for each share: a share of 10 % is then met within 4 % with a probability above 99.9 %.
const SAMPLE: u64 = 600;
/// How far an observed share may lie from the weight.
const TOLERANCE: f64 = 0.05;

pub(super) fn shifts_a_canary(stage: &mut Stage<'_>, story: &mut Story) -> anyhow::Result<String> {
    let mut load = Load::start(&stage.lab.internet, &stage.shop_load());
    warm_up(&mut load)?;
    story.line("weights v1/v2   share of v2 seen   requests  errors");
    let mut weights = (90, 10);
    for next in [(90, 10), (70, 30), (50, 50), (20, 80), (0, 100)] {
        if next != weights {
            let line = |name: &str, weight: u32| format!("name: {name}, port: 8080, weight: {weight}}}");
            stage.lab.edit(EXAMPLE, &line("products-v1", weights.0), &line("products-v1", next.0))?;
            stage.lab.edit(EXAMPLE, &line("products-v2", weights.1), &line("products-v2", next.1))?;
            weights = next;
        }
        let wanted = f64::from(next.1) / 100.0;
        // Two writes are two changes: both must be in force before counting begins.
        let seen = wait_until("the new weights to be seen", Duration::from_secs(20), || {
            load.take();
            let window = collect(&mut load)?;
            ((window.share("products-v2") - wanted).abs() <= TOLERANCE).then_some(window)
        })?;
        story.line(format!(
            "{:>3} / {:<3}       {:>5.1} %            {:>5}      {:>3}",
            next.0,
            next.1,
            seen.share("products-v2") * 100.0,
            seen.requests(),
            seen.errors()
        ));
    }
    let report = load.stop()?;
    ensure!(report.errors() == 0, "{report}");
    Ok(format!("{} requests during the shift, 0 errors", report.requests()))
}

/// What the load sees over the next [`SAMPLE`] answers.
fn collect(load: &mut Load) -> Option<crate::LoadReport> {
    let mut window = crate::LoadReport::default();
    wait_until("answers", Duration::from_secs(10), || {
        window.merge(&load.take());
        (window.requests() >= SAMPLE).then_some(())
    })
    .ok()?;
    Some(window)
}

pub(super) fn rotates_a_certificate(stage: &mut Stage<'_>, story: &mut Story) -> anyhow::Result<String> {
    let mut load = Load::start(&stage.lab.internet, &stage.shop_load().with_new_connections().at_rate(100));
    warm_up(&mut load)?;
    let target = stage.shop();
    let mut before = stage.lab.internet.run({
        let target = target.clone();
        async move { Session::connect(&target).await }
    })?;
    ensure!(before.certificate() == Some(&stage.leaf.der), "the first certificate is not the Secret's");

    let next = stage.authority.issue(&["*.example.com"])?;
    let start = Instant::now();
    stage.lab.write(SECRET, &next.to_secret("gw-external", "example-com"))?;
    wait_until("the new certificate", Duration::from_secs(10), || {
        let target = target.clone();
        let session = stage.lab.internet.run(async move { Session::connect(&target).await }).ok()?;
        (session.certificate() == Some(&next.der)).then_some(())
    })?;
    let elapsed = start.elapsed();
    story.line(format!("Secret replaced; a new connection shows the new certificate after {} ms", elapsed.as_millis()));
    let old = stage.lab.internet.run(async move { before.send(Request::get(SHOP, PRODUCTS)).await })?;
    story.line(format!("a connection from before goes on: {}", old.status));
    ensure!(old.status == 200, "the old connection: {}", old.status);
    stage.leaf = next;
    let report = load.stop()?;
    ensure!(report.errors() == 0, "{report}");
    Ok(format!("{} TLS handshakes meanwhile, 0 errors; served after {} ms", report.requests(), elapsed.as_millis()))
}
