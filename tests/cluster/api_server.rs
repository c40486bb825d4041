//! The API server goes away, comes back, or forgets: what is served stays, and changes are taken up again.

use tidegate_lab::{Load, LoadPlan, Request, wait_until};

use crate::kit::{Cluster, LATER, Stage};

#[test]
fn nothing_fails_while_the_api_server_is_away_and_changes_are_taken_up_when_it_is_back() {
    let cluster = Cluster::find().unwrap();
    let stage = Stage::set(&cluster, "away");
    stage.route("shop", "shop.example.com");
    stage.wait_status("shop.example.com", 200);
    let mut load = Load::start(
        &cluster.internet,
        &LoadPlan::new(stage.http(), Request::get("shop.example.com", "/")).at_rate(100),
    );
    cluster.xtask(&["stop", "--kill", "kube-apiserver"]).unwrap();
    let seen = load.total().ok();
    // A minute's worth of what the agent does meanwhile: watches that break, tries that fail.
    wait_until("load without an API server", LATER * 2, || (load.total().ok() > seen + 6000).then_some(())).unwrap();
    cluster.xtask(&["up"]).unwrap();
    stage.route("late", "late.example.com");
    stage.wait_status_within("late.example.com", 200, LATER);
    let report = load.stop().unwrap();
    assert_eq!(report.errors(), 0, "{report}");
}

#[test]
fn watches_that_are_answered_410_go_on_and_disturb_nothing() {
    let cluster = Cluster::find().unwrap();
    let stage = Stage::set(&cluster, "compacted");
    stage.route("shop", "shop.example.com");
    stage.route("gone", "gone.example.com");
    stage.wait_status("shop.example.com", 200);
    stage.wait_status("gone.example.com", 200);
    let load = Load::start(
        &cluster.internet,
        &LoadPlan::new(stage.http(), Request::get("shop.example.com", "/")).at_rate(100),
    );
    cluster.xtask(&["compact"]).unwrap();
    cluster.kubectl(&["delete", "httproute", "gone", "-n", &stage.name]).unwrap();
    stage.route("late", "late.example.com");
    stage.wait_status_within("late.example.com", 200, LATER);
    stage.wait_status_within("gone.example.com", 404, LATER);
    let report = load.stop().unwrap();
    assert_eq!(report.errors(), 0, "{report}");
}
