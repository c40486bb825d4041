//! What is written, and what is asked for before.

use tidegate_model::ObjectName;

use super::*;
use crate::kube::fake::{Answer, Log, fake};

fn controllers() -> Vec<String> {
    vec!["tidegate.dev/gateway-controller".to_owned()]
}

#[test]
fn entries_of_others_stay_and_times_change_with_the_status_only() {
    let current = json!({"parents": [
        {"parentRef": {"name": "gw"}, "controllerName": "other.example/c", "conditions": [{"type": "Accepted", "status": "False", "lastTransitionTime": "o"}]},
        {"parentRef": {"name": "gw", "group": "gateway.networking.k8s.io", "kind": "Gateway"}, "controllerName": "tidegate.dev/gateway-controller", "conditions": [
            {"type": "Accepted", "status": "True", "lastTransitionTime": "old"},
            {"type": "ResolvedRefs", "status": "True", "lastTransitionTime": "old"},
        ]},
        {"parentRef": {"name": "gone"}, "controllerName": "tidegate.dev/gateway-controller", "conditions": []},
    ]});
    let desired = json!({"parents": [{"parentRef": {"name": "gw", "port": null}, "controllerName": "tidegate.dev/gateway-controller", "conditions": [
        {"type": "Accepted", "status": "True", "observedGeneration": 2},
        {"type": "ResolvedRefs", "status": "False", "observedGeneration": null},
    ]}]});
    let merged = merge(Kind::HTTPRoute, &controllers(), &current, desired, "now");
    assert_eq!(
        merged,
        json!({"parents": [
            {"parentRef": {"name": "gw"}, "controllerName": "other.example/c", "conditions": [{"type": "Accepted", "status": "False", "lastTransitionTime": "o"}]},
            {"parentRef": {"name": "gw"}, "controllerName": "tidegate.dev/gateway-controller", "conditions": [
                {"type": "Accepted", "status": "True", "observedGeneration": 2, "lastTransitionTime": "old"},
                {"type": "ResolvedRefs", "status": "False", "lastTransitionTime": "now"},
            ]},
        ]})
    );
}

#[test]
fn listeners_keep_their_own_times() {
    let listener = |name: &str, time: Option<&str>| {
        let mut condition = json!({"type": "Accepted", "status": "True"});
        if let Some(time) = time {
            condition["lastTransitionTime"] = time.into();
        }
        json!({"name": name, "conditions": [condition]})
    };
    let current = json!({"listeners": [listener("b", Some("b")), listener("a", Some("a"))]});
    let desired = json!({"conditions": [], "listeners": [listener("a", None), listener("c", None)]});
    let merged = merge(Kind::Gateway, &controllers(), &current, desired, "now");
    assert_eq!(merged["listeners"], json!([listener("a", Some("a")), listener("c", Some("now"))]));
}

/// Writes a status to an API server that shows `current` and answers the write with `code`.
fn write_to(current: Value, code: u16, kind: Kind, desired: Value, base: Option<&str>) -> (Outcome, Log) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // The client has a task of its own.
    let _guard = runtime.enter();
    let (client, log) = fake(move |asked| match asked.line.starts_with("GET") {
        true => Answer::Json(200, current.clone()),
        false if code == 200 => {
            Answer::Json(200, json!({"metadata": {"resourceVersion": "9"}, "status": asked.body["status"]}))
        }
        false => Answer::error(code, "no"),
    });
    let writing = Writing {
        object: ObjectRef::new(kind, ObjectName::new("shop", "one")),
        version: "v1",
        base: base.map(str::to_owned),
        controllers: controllers(),
        desired: Desired { status: desired, generation: Some(2), is_pending: false },
    };
    let outcome = runtime.block_on(async move { write(&client, writing).await });
    (outcome, log)
}

fn parents(generation: i64) -> Value {
    json!({"parents": [{
        "parentRef": {"name": "gw"},
        "controllerName": "tidegate.dev/gateway-controller",
        "conditions": [{"type": "Accepted", "status": "True", "reason": "Accepted", "message": "", "observedGeneration": generation}],
    }]})
}

#[test]
fn a_route_without_status_is_written_at_once_and_bound_to_its_version() {
    let (outcome, log) = write_to(Value::Null, 200, Kind::HTTPRoute, parents(2), Some("7"));
    assert!(matches!(outcome, Outcome::Stands(_)), "{outcome:?}");
    let asked = log.all();
    assert_eq!(asked.len(), 1, "{asked:?}");
    let path = "PATCH /apis/gateway.networking.k8s.io/v1/namespaces/shop/httproutes/one/status";
    assert!(asked[0].line.starts_with(path), "{asked:?}");
    assert_eq!(asked[0].body["metadata"], json!({"resourceVersion": "7"}));
}

#[test]
fn a_route_is_read_before_its_entry_is_changed() {
    let other = json!({"parentRef": {"name": "gw"}, "controllerName": "other.example/c", "conditions": []});
    let mut current = json!({"metadata": {"resourceVersion": "8", "generation": 2}, "status": parents(1)});
    current["status"]["parents"].as_array_mut().unwrap().push(other.clone());
    let (outcome, log) = write_to(current, 200, Kind::HTTPRoute, parents(2), None);
    assert!(matches!(outcome, Outcome::Stands(_)), "{outcome:?}");
    let asked = log.all();
    assert_eq!(asked.len(), 2);
    assert_eq!(asked[1].body["metadata"]["resourceVersion"], "8");
    assert_eq!(asked[1].body["status"]["parents"][0], other);
    assert_eq!(asked[1].body["status"]["parents"].as_array().map(Vec::len), Some(2));
}

#[test]
fn a_gateway_is_applied_under_an_own_name() {
    let current = json!({"metadata": {"resourceVersion": "8", "generation": 2}});
    let desired = json!({"conditions": [{"type": "Accepted", "status": "True", "reason": "Accepted"}]});
    let (outcome, log) = write_to(current, 200, Kind::Gateway, desired, None);
    assert!(matches!(outcome, Outcome::Stands(_)), "{outcome:?}");
    let write = &log.all()[1];
    assert!(write.line.contains("fieldManager=tidegate-status") && write.line.contains("force=true"), "{write:?}");
    assert_eq!(write.body["metadata"], json!({"name": "one", "namespace": "shop"}));
}

#[test]
fn what_stands_there_or_is_outdated_is_not_written() {
    let shown =
        |generation: i64| json!({"metadata": {"resourceVersion": "8", "generation": generation}, "status": parents(2)});
    let (outcome, log) = write_to(shown(2), 200, Kind::HTTPRoute, parents(2), None);
    assert!(matches!(outcome, Outcome::Stands(_)) && log.all().len() == 1, "{outcome:?}");
    let (outcome, log) = write_to(shown(3), 200, Kind::HTTPRoute, parents(2), None);
    assert!(matches!(outcome, Outcome::Outdated) && log.all().len() == 1, "{outcome:?}");
}

#[test]
fn a_conflict_is_told_from_an_object_that_is_gone() {
    let current = json!({"metadata": {"resourceVersion": "8", "generation": 2}});
    let (outcome, _) = write_to(current.clone(), 409, Kind::HTTPRoute, parents(2), None);
    assert!(matches!(outcome, Outcome::Failed(Failure::Conflict(_))), "{outcome:?}");
    let (outcome, _) = write_to(current, 404, Kind::HTTPRoute, parents(2), None);
    assert!(matches!(outcome, Outcome::Gone), "{outcome:?}");
}
