//! Definitions of kinds that go, come back, or know more than the agent.

use anyhow::ensure;
use serde_json::{Value, json};
use tidegate_lab::{Load, LoadPlan, Request, objects, wait_for};

use crate::kit::{AGENTS, Cluster, LATER, Stage};

/// A GRPCRoute to the stage's backend.
fn grpc_route(stage: &Stage<'_>) -> String {
    objects::route(
        &stage.name,
        "calls",
        &format!("{}/gw", stage.name),
        &["calls.example.com"],
        &[&objects::to_service("echo")],
    )
    .replace("kind: HTTPRoute", "kind: GRPCRoute")
}

#[test]
fn a_kind_that_is_deleted_and_made_again_is_served_again_and_the_others_all_along() {
    const CRD: &str = "grpcroutes.gateway.networking.k8s.io";
    let cluster = Cluster::find();
    let stage = Stage::set(&cluster, "kinds");
    stage.route("shop", "shop.example.com");
    cluster.apply(&grpc_route(&stage));
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

#[test]
fn a_field_of_a_newer_version_is_named_and_the_rest_of_the_object_served() {
    const CRD: &str = "httproutes.gateway.networking.k8s.io";
    let path = |version: usize| {
        format!("/spec/versions/{version}/schema/openAPIV3Schema/properties/spec/x-kubernetes-preserve-unknown-fields")
    };
    let cluster = Cluster::find();
    let stage = Stage::set(&cluster, "newer");
    // The API server of a newer release keeps fields that this one would take away.
    let patch = |operation: &str| {
        let operations: Vec<Value> =
            (0..2).map(|version| json!({"op": operation, "path": path(version), "value": true})).collect();
        cluster.kubectl(&["patch", "crd", CRD, "--type=json", "-p", &json!(operations).to_string()]).unwrap();
    };
    patch("add");
    let text = format!("{}  fromTheFuture: {{whatever: 1}}\n", stage.route_text("newer", "newer.example.com"));
    wait_for("the field to be kept", LATER, || {
        cluster.kubectl_with(&["apply", "--validate=false", "-f", "-"], &text)?;
        let route = cluster.object(&stage.name, "httproute/newer")?;
        ensure!(!route["spec"]["fromTheFuture"].is_null(), "the API server has dropped it");
        Ok(())
    })
    .unwrap();
    stage.wait_status("newer.example.com", 200);
    wait_for("the field to be named", LATER, || {
        let status = cluster.tidegate(&["status"]).or_else(|error| {
            // Not ready is exit code 3, and the answer is there all the same.
            let text = error.to_string();
            if text.contains("fromTheFuture") { Ok(text) } else { Err(error) }
        })?;
        let log = cluster.kubectl(&["logs", "-n", AGENTS, &cluster.agent_pod(), "--tail=400"])?;
        ensure!(status.contains("fromTheFuture") || log.contains("fromTheFuture"), "neither status nor log names it");
        Ok(())
    })
    .unwrap();
    cluster.kubectl(&["delete", "httproute", "newer", "-n", &stage.name]).unwrap();
    patch("remove");
}
