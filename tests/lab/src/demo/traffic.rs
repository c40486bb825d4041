//! Steps that show who is served and who is not, and why.

use std::net::SocketAddr;

use anyhow::ensure;

use super::{
    stage::{PRODUCTS, SHOP, Stage},
    story::Story,
};
use crate::{
    Request, Target,
    lab::{DATACENTRE, DENIED, INTERNET},
};

pub(super) fn serves_https_by_name(stage: &mut Stage<'_>, story: &mut Story) -> anyhow::Result<String> {
    let request = || Request::get(SHOP, PRODUCTS);
    let reply = stage.send(&stage.lab.internet, stage.shop().from(INTERNET), request())?;
    story.line(format!(
        "GET https://{SHOP}{PRODUCTS} from {INTERNET}: {} from {}",
        reply.status,
        reply.backend().unwrap_or("?")
    ));
    ensure!(reply.status == 200, "status {}: {}", reply.status, reply.text());
    let seen = reply.json();
    let headers = &seen["headers"];
    story.line(format!(
        "the backend saw x-canary-weight {}, x-forwarded-for {}, x-forwarded-proto {}",
        headers["x-canary-weight"][0], headers["x-forwarded-for"][0], headers["x-forwarded-proto"][0]
    ));
    ensure!(headers["x-canary-weight"][0] == "v1:90,v2:10", "the route's filter did not act: {headers}");
    ensure!(headers["x-forwarded-for"][0] == INTERNET.to_string(), "the client's address was not forwarded: {headers}");
    let http2 = stage.send(&stage.lab.internet, stage.shop().http2(), request())?;
    ensure!(
        http2.status == 200 && http2.version == http::Version::HTTP_2,
        "HTTP/2: {} {:?}",
        http2.status,
        http2.version
    );
    let missing = stage.send(&stage.lab.internet, stage.shop(), Request::get(SHOP, "/elsewhere"))?;
    story.line(format!("the same over HTTP/2: {}; a path without a rule: {}", http2.status, missing.status));
    ensure!(missing.status == 404, "a path without a rule: {}", missing.status);
    Ok(format!("200 over TLS with HTTP/1.1 and HTTP/2 at {}:443", stage.public))
}

pub(super) fn serves_the_data_centre(stage: &mut Stage<'_>, story: &mut Story) -> anyhow::Result<String> {
    let reply = stage.send(&stage.lab.datacentre, stage.console(), Request::get("console.internal", "/"))?;
    story.line(format!(
        "GET http://{}/ from {DATACENTRE}: {} from {}",
        stage.private,
        reply.status,
        reply.backend().unwrap_or("?")
    ));
    ensure!(reply.status == 200 && reply.backend() == Some("console"), "{} {}", reply.status, reply.text());
    let pids = ["public", "private"].map(|domain| stage.agent.worker_pid(domain));
    let [Some(public), Some(private)] = pids else { anyhow::bail!("a worker is missing: {pids:?}") };
    let uids = [public, private].map(|pid| crate::process::status_field(pid, "Uid").unwrap_or_default());
    story.line(format!(
        "workers: public is process {public} (uids {}), private is {private} (uids {})",
        uids[0], uids[1]
    ));
    ensure!(uids[0] != uids[1], "both workers run as the same user");
    Ok(format!("200 from the console at {}:80, by a process of its own", stage.private))
}

pub(super) fn denies_a_source(stage: &mut Stage<'_>, story: &mut Story) -> anyhow::Result<String> {
    let before = stage.verdicts("public", "source_denied")?;
    stage.expect_silence(&stage.lab.internet, stage.shop().from(DENIED))?;
    let after = stage.verdicts("public", "source_denied")?;
    story.line(format!(
        "SYN from {DENIED} to {}:443: no answer; packets denied (source_denied): {before} -> {after}",
        stage.public
    ));
    ensure!(after > before, "the counter did not move");
    let (source, destination) = (DENIED.to_string(), format!("{}:443", stage.public));
    let words = ["explain", "--src", &source, "--dst", &destination];
    let said = stage.agent.cli(&words)?;
    story.line(format!("$ tidegate {}", words.join(" ")));
    story.quote(&said.out);
    ensure!(
        said.out.contains("TrafficDomain") && said.out.contains("sources.deny"),
        "explain does not name the object and field: {said:?}"
    );
    Ok(format!("{} packets dropped, explained by TrafficDomain public, spec.sources.deny", after - before))
}

pub(super) fn refuses_the_wrong_interface(stage: &mut Stage<'_>, story: &mut Story) -> anyhow::Result<String> {
    let mut dropped = 0;
    for (island, from, domain, addr, nic) in [
        (&stage.lab.internet, INTERNET, "private", SocketAddr::new(stage.private, 80), "wan0"),
        (&stage.lab.datacentre, DATACENTRE, "public", SocketAddr::new(stage.public, 80), "lan0"),
    ] {
        let before = stage.verdicts(domain, "wrong_interface")?;
        stage.expect_silence(island, Target::http(addr).from(from))?;
        let after = stage.verdicts(domain, "wrong_interface")?;
        story.line(format!("{domain} at {addr} through {nic}: no answer; wrong_interface: {before} -> {after}"));
        ensure!(after > before, "the counter of {domain} did not move");
        dropped += after - before;
    }
    Ok(format!("{dropped} packets dropped as wrong_interface, both ways"))
}
