//! What is to stand in the status of an object: the translation's conditions, with `Programmed` and addresses as all nodes
//! have reported them. Untyped, as it is written, less the times of transitions.

use serde_json::{Value, json};
use tidegate_gateway_api::{
    Condition, GATEWAY_GROUP, Kind, ListenerStatus, ObjectRef, ObjectStatus, Place, SUPPORTED_FEATURES, condition,
    generated::common::ParentReference,
};
use tidegate_model::DomainName;

use super::nodes::{Nodes, Verdict};
use crate::state::State;

/// Most addresses that a Gateway's status may hold (its CRD's limit).
const MAX_ADDRESSES: usize = 16;

/// Most characters of a condition's message (the CRDs' limit).
const MAX_MESSAGE: usize = 32_768;

/// What is to be said of an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Desired {
    /// The status.
    pub status: Value,
    /// `metadata.generation` that it judges.
    pub generation: Option<i64>,
    /// Whether only nodes that are still applying keep it from being better.
    pub is_pending: bool,
}

/// Finds what is to be said of an object; `None` when it is not this controller's to say anything.
pub fn find_desired(state: &State, nodes: &Nodes, object: &ObjectRef) -> Option<Desired> {
    let translator = state.translator.borrow();
    let status = translator.find_status(object);
    let generation = status.and_then(generation_of);
    let plain = |status| Desired { status, generation, is_pending: false };
    match object.kind {
        Kind::Gateway | Kind::ListenerSet => {
            Some(describe_gateway(object, status?, translator.find_place(object).as_ref(), nodes))
        }
        Kind::GatewayClass => Some(plain(json!({
            "conditions": conditions(&status?.conditions),
            "supportedFeatures": SUPPORTED_FEATURES.iter().map(|name| json!({"name": name})).collect::<Vec<_>>(),
        }))),
        Kind::TrafficDomain => Some(plain(json!({
            "conditions": conditions(&status?.conditions),
            "nodes": nodes.domain(&DomainName::new(&object.name.name)),
        }))),
        Kind::Backend => Some(plain(json!({"conditions": conditions(&status?.conditions)}))),
        // Without anything to say, what was said earlier is taken back.
        Kind::HTTPRoute | Kind::GRPCRoute | Kind::TLSRoute | Kind::TCPRoute | Kind::UDPRoute => {
            Some(plain(json!({"parents": parents(status, "parentRef")})))
        }
        Kind::BackendTLSPolicy => Some(plain(json!({"ancestors": parents(status, "ancestorRef")}))),
        _ => None,
    }
}

fn generation_of(status: &ObjectStatus) -> Option<i64> {
    let of_parents = status.parents.iter().flat_map(|parent| &parent.conditions);
    status.conditions.iter().chain(of_parents).find_map(|condition| condition.observed_generation)
}

/// Describes a Gateway or a ListenerSet.
fn describe_gateway(object: &ObjectRef, status: &ObjectStatus, place: Option<&Place>, nodes: &Nodes) -> Desired {
    let generation = generation_of(status);
    let verdict = place.map(|place| nodes.judge(&place.domain, object, generation.unwrap_or_default()));
    let pending = place.zip(verdict.as_ref()).and_then(|(place, verdict)| verdict.pending(&place.domain));
    let judge = |found: &Condition, reason: Option<&String>| {
        // The translation speaks for this node alone, and `Pending` is how it says that another one may serve it.
        let is_servable = found.type_ == condition::PROGRAMMED && (found.status || found.reason == "Pending");
        match reason {
            _ if !is_servable || place.is_none() => describe(found),
            Some(reason) => programmed(found, false, "Pending", reason),
            None => programmed(found, true, "Programmed", ""),
        }
    };
    let describe_listener = |listener: &ListenerStatus| {
        let unreachable = verdict.as_ref().and_then(|verdict: &Verdict| verdict.listeners.get(&*listener.name));
        let reason = pending.as_ref().or(unreachable);
        let conditions: Vec<_> = listener.conditions.iter().map(|found| judge(found, reason)).collect();
        listener_json(listener, Value::Array(conditions))
    };
    let addresses = match place {
        Some(place) if place.shares_node_addresses && !status.addresses.is_empty() => nodes.addresses(&place.domain),
        _ => status.addresses.clone(),
    };
    let conditions: Vec<_> = status.conditions.iter().map(|found| judge(found, pending.as_ref())).collect();
    let is_servable =
        |found: &Condition| found.type_ == condition::PROGRAMMED && (found.status || found.reason == "Pending");
    let mut described = json!({
        "conditions": conditions,
        "listeners": status.listeners.iter().map(describe_listener).collect::<Vec<_>>(),
    });
    if object.kind == Kind::Gateway {
        let shown = addresses.iter().take(MAX_ADDRESSES);
        described["addresses"] = shown.map(|address| json!({"type": "IPAddress", "value": address})).collect();
        described["attachedListenerSets"] = json!(status.attached_listener_sets.unwrap_or_default());
    }
    Desired {
        generation,
        is_pending: pending.is_some() && status.conditions.iter().any(is_servable),
        status: described,
    }
}

fn listener_json(listener: &ListenerStatus, conditions: Value) -> Value {
    let kinds = listener.supported_kinds.iter().map(|kind| json!({"group": GATEWAY_GROUP, "kind": kind}));
    json!({
        "name": listener.name,
        "attachedRoutes": listener.attached_routes,
        "supportedKinds": kinds.collect::<Vec<_>>(),
        "conditions": conditions,
    })
}

fn parents(status: Option<&ObjectStatus>, field: &str) -> Vec<Value> {
    let parents = status.into_iter().flat_map(|status| &status.parents);
    parents
        .map(|parent| {
            json!({
                field: parent_reference(&parent.parent),
                "controllerName": parent.controller,
                "conditions": conditions(&parent.conditions),
            })
        })
        .collect()
}

/// The reference as written: who wrote it must find it again.
fn parent_reference(reference: &ParentReference) -> Value {
    serde_json::to_value(reference).unwrap_or_default()
}

fn conditions(conditions: &[Condition]) -> Value {
    conditions.iter().map(describe).collect()
}

fn describe(condition: &Condition) -> Value {
    let status = if condition.status { "True" } else { "False" };
    let message: String = condition.message.chars().take(MAX_MESSAGE).collect();
    json!({
        "type": condition.type_,
        "status": status,
        "reason": condition.reason,
        "message": message,
        "observedGeneration": condition.observed_generation,
    })
}

fn programmed(found: &Condition, status: bool, reason: &'static str, message: &str) -> Value {
    describe(&Condition {
        type_: found.type_,
        status,
        reason: reason.into(),
        message: message.to_owned(),
        observed_generation: found.observed_generation,
    })
}

#[cfg(test)]
mod tests {
    use tidegate_gateway_api::api::{DomainReport, NodeReportSpec};
    use tidegate_model::ObjectName;

    use super::*;
    use crate::kube::Update;

    fn condition(type_: &'static str, status: bool, reason: &'static str) -> Condition {
        Condition { type_, status, reason: reason.into(), message: String::new(), observed_generation: Some(3) }
    }

    fn programmed_of(desired: &Desired) -> (String, String) {
        let conditions = desired.status["conditions"].as_array().unwrap();
        let found = conditions.iter().find(|condition| condition["type"] == "Programmed").unwrap();
        (found["status"].as_str().unwrap().to_owned(), found["message"].as_str().unwrap().to_owned())
    }

    fn gateway(reason: &'static str, status: bool) -> ObjectStatus {
        ObjectStatus {
            conditions: vec![condition("Accepted", true, "Accepted"), condition("Programmed", status, reason)],
            addresses: vec!["192.0.2.9".parse().unwrap()],
            ..ObjectStatus::default()
        }
    }

    #[test]
    fn programmed_is_what_the_nodes_say_and_faults_stay() {
        let object = ObjectRef::new(Kind::Gateway, ObjectName::new("shop", "gw"));
        let place = Place { domain: DomainName::new("public"), shares_node_addresses: true };
        let mut nodes = Nodes::default();
        let desired = describe_gateway(&object, &gateway("Programmed", true), Some(&place), &nodes);
        assert!(desired.is_pending && programmed_of(&desired).0 == "False");
        let report = NodeReportSpec {
            addresses: vec!["10.0.0.1".to_owned()],
            domains: vec![DomainReport { name: "public".to_owned(), ..DomainReport::default() }],
            gateways: [("shop/gw".to_owned(), 3)].into(),
            ..NodeReportSpec::default()
        };
        nodes.take(Update::Put(("a".to_owned(), String::new(), report)));
        for (reason, status) in [("Programmed", true), ("Pending", false)] {
            let desired = describe_gateway(&object, &gateway(reason, status), Some(&place), &nodes);
            assert_eq!(programmed_of(&desired).0, "True", "this node need not serve it itself");
            assert_eq!(desired.status["addresses"], json!([{"type": "IPAddress", "value": "10.0.0.1"}]));
            assert_eq!(desired.generation, Some(3));
        }
        let desired = describe_gateway(&object, &gateway("Invalid", false), Some(&place), &nodes);
        assert!(!desired.is_pending && programmed_of(&desired).0 == "False", "a fault is no node's to mend");
    }

    #[test]
    fn a_set_waits_for_the_nodes_by_its_own_generation_and_has_no_addresses() {
        let place = Place { domain: DomainName::new("public"), shares_node_addresses: true };
        let of = |kind| ObjectRef::new(kind, ObjectName::new("shop", "gw"));
        let mut report = NodeReportSpec {
            addresses: vec!["10.0.0.1".to_owned()],
            domains: vec![DomainReport { name: "public".to_owned(), ..DomainReport::default() }],
            gateways: [("shop/gw".to_owned(), 3)].into(),
            ..NodeReportSpec::default()
        };
        let mut nodes = Nodes::default();
        nodes.take(Update::Put(("a".to_owned(), String::new(), report.clone())));
        let status = ObjectStatus { attached_listener_sets: Some(2), ..gateway("Programmed", true) };
        let desired = describe_gateway(&of(Kind::Gateway), &status, Some(&place), &nodes);
        assert_eq!((programmed_of(&desired).0.as_str(), &desired.status["attachedListenerSets"]), ("True", &json!(2)));
        let desired = describe_gateway(&of(Kind::ListenerSet), &gateway("Programmed", true), Some(&place), &nodes);
        assert!(desired.is_pending && programmed_of(&desired).1.contains("not applied yet"));
        report.listener_sets = [("shop/gw".to_owned(), 3)].into();
        nodes.take(Update::Put(("a".to_owned(), String::new(), report)));
        let desired = describe_gateway(&of(Kind::ListenerSet), &gateway("Programmed", true), Some(&place), &nodes);
        assert_eq!(programmed_of(&desired).0, "True");
        let fields: Vec<_> = desired.status.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(fields, ["conditions", "listeners"], "what a ListenerSet's status has");
    }
}
