//! A thousand routes at once: counted right, and each status written about once.

use anyhow::ensure;
use tidegate_lab::{objects, wait_for};

use crate::kit::{Cluster, LATER, Stage};

/// Routes of the burst.
const ROUTES: u64 = 1000;
/// Status writes for each route: one for its creation; a second where it was seen before the Gateway's other changes.
const MORE_WRITES: u64 = ROUTES / 20;
/// Writes of the Gateway's status while routes come or go: at most two a second, and they come within this time.
const GATEWAY_WRITES: u64 = 240;

#[test]
fn a_thousand_routes_come_and_go_with_a_status_write_each() {
    let cluster = Cluster::find().unwrap();
    let stage = Stage::set(&cluster, "burst");
    let before = ["httproutes", "gateways"].map(|resource| cluster.status_writes(resource).unwrap());
    let routes = (0..ROUTES).map(|index| stage.route_text(&format!("r{index}"), &format!("r{index}.example.com")));
    cluster.kubectl_with(&["create", "-f", "-"], &objects::join(routes)).unwrap();
    stage.wait_attached(ROUTES, LATER);
    stage.wait_status("r0.example.com", 200);
    stage.wait_status(&format!("r{}.example.com", ROUTES - 1), 200);
    wait_for("every route to be accepted", LATER, || {
        let list = cluster.kubectl(&["get", "httproutes", "-n", &stage.name, "-o", "json"])?;
        let list: serde_json::Value = serde_json::from_str(&list)?;
        let items = list["items"].as_array().cloned().unwrap_or_default();
        let accepted = items.iter().filter(|route| {
            let conditions = &route["status"]["parents"][0]["conditions"];
            conditions.as_array().into_iter().flatten().any(|one| one["type"] == "Accepted" && one["status"] == "True")
        });
        ensure!(accepted.count() as u64 == ROUTES);
        Ok(())
    })
    .unwrap();
    // A route that is written twice is written again soon: nothing comes any more.
    let settled = cluster.settled_status_writes("httproutes").unwrap();
    let routes = settled - before[0];
    let gateways = cluster.status_writes("gateways").unwrap() - before[1];
    println!("{routes} status writes for {ROUTES} routes, {gateways} for Gateways");
    assert!((ROUTES..=ROUTES + MORE_WRITES).contains(&routes), "{routes} status writes for {ROUTES} routes");
    assert!(gateways <= GATEWAY_WRITES, "{gateways} status writes for Gateways");

    cluster.kubectl(&["delete", "httproutes", "--all", "-n", &stage.name, "--wait=false"]).unwrap();
    stage.wait_attached(0, LATER);
    stage.wait_status("r0.example.com", 404);
    assert!(cluster.status_writes("httproutes").unwrap() - settled <= MORE_WRITES, "routes were written that are gone");
}
