//! Definitions of kinds that go, come back, or know more than the agent.

use anyhow::ensure;
use serde_json::{Value, json};
use tidegate_lab::{Load, LoadPlan, Request, objects, wait_for};

use crate::kit::{AGENTS, Cluster, LATER, Stage};

/// A GRPCRoute to a Service that is not there: a port that a GRPCRoute refers to speaks HTTP/2 for everybody.
fn grpc_route(stage: &Stage<'_>) -> String {
    objects::route(
        &stage.name,
        "calls",
        &format!("{}/gw", stage.name),
        &["calls.example.com"],
        &[&objects::to_service("calls")],
    )
    .replace("kind: HTTPRoute", "kind: GRPCRoute")
}

#[test]
fn a_kind_that_is_deleted_and_made_again_is_served_again_and_the_others_all_along() {
    const CRD: &str = "grpcroutes.gateway.networking.k8s.io";
    let cluster = Cluster::find().unwrap();
    let stage = Stage::set(&cluster, "kinds");
    stage.route("shop", "shop.example.com");
    cluster.apply(&grpc_route(&stage)).unwrap();
    stage.wait_attached(2, LATER);
    stage.wait_status("shop.example.com", 200);
    let load = Load::start(
        &cluster.internet,
        &LoadPlan::new(stage.http(), Request::get("shop.example.com", "/")).at_rate(100),
    );
    let mut crd: Value = serde_json::from_str(&cluster.kubectl(&["get", "crd", CRD, "-o", "json"]).unwrap()).unwrap();
    cluster.kubectl(&["delete", "crd", CRD, "--wait"]).unwrap();
    stage.wait_attached(1, LATER);
    crd["metadata"] = json!({"name": CRD, "annotations": crd["metadata"]["annotations"]});
    crd["status"] = Value::Null;
    cluster.kubectl_with(&["create", "-f", "-"], &crd.to_string()).unwrap();
    cluster.kubectl(&["wait", "--for=condition=Established", "crd", CRD, "--timeout=60s"]).unwrap();
    // The name is known to the API server a moment before the kind is served.
    wait_for("the kind to be served", LATER, || {
        cluster.kubectl_with(&["apply", "-f", "-"], &grpc_route(&stage)).map(drop)
    })
    .unwrap();
    stage.wait_attached(2, LATER);
    let report = load.stop().unwrap();
    assert_eq!(report.errors(), 0, "{report}");
}

/// A definition that keeps fields which it does not have, as that of a newer release has them. Undone when dropped.
struct Newer<'a>(&'a Cluster);

impl<'a> Newer<'a> {
    const CRD: &'static str = "httproutes.gateway.networking.k8s.io";

    fn make(cluster: &'a Cluster) -> Self {
        let newer = Self(cluster);
        newer.patch("add").unwrap();
        newer
    }

    fn patch(&self, operation: &str) -> anyhow::Result<String> {
        let spec = "schema/openAPIV3Schema/properties/spec/x-kubernetes-preserve-unknown-fields";
        let versions = (0..2).map(|version| format!("/spec/versions/{version}/{spec}"));
        let operations: Vec<Value> =
            versions.map(|path| json!({"op": operation, "path": path, "value": true})).collect();
        self.0.kubectl(&["patch", "crd", Self::CRD, "--type=json", "-p", &json!(operations).to_string()])
    }
}

impl Drop for Newer<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.patch("remove") {
            eprintln!("the definition stays as the test has made it: {error}");
        }
    }
}

#[test]
fn a_field_of_a_newer_version_is_named_and_the_rest_of_the_object_served() {
    let cluster = Cluster::find().unwrap();
    let stage = Stage::set(&cluster, "newer");
    let _newer = Newer::make(&cluster);
    let mut round = 0;
    // The API server serves watches that are open by the old definition for a while, without the field. So it changes.
    wait_for("the field to be named", LATER * 2, || {
        round += 1;
        let text = format!("{}  fromTheFuture: {{round: {round}}}\n", stage.route_text("newer", "newer.example.com"));
        cluster.kubectl_with(&["apply", "--validate=false", "-f", "-"], &text)?;
        let log = cluster.kubectl(&["logs", "-n", AGENTS, &cluster.agent_pod().unwrap(), "--tail=400"])?;
        ensure!(log.contains("spec.fromTheFuture is unknown"), "the log does not name it");
        Ok(())
    })
    .unwrap();
    stage.wait_status("newer.example.com", 200);
    assert_eq!(stage.route_condition("httproute/newer", "Accepted").unwrap().0, "True");
}
