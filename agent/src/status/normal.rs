//! The part of a status that is this controller's, in a form that can be compared: what stands in an object against what
//! is to stand there. Times are left out, and so is everything that others say.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
};

use serde_json::{Map, Value, json};
use tidegate_gateway_api::{GATEWAY_GROUP, Kind, condition};

/// Types of conditions that this controller sets. Others set other types on the same objects.
const OWN_CONDITIONS: [&str; 8] = [
    condition::ACCEPTED,
    condition::PROGRAMMED,
    condition::RESOLVED_REFS,
    condition::CONFLICTED,
    condition::SUPPORTED_VERSION,
    condition::PARTIALLY_INVALID,
    condition::ENFORCED,
    condition::INSECURE_FRONTEND_VALIDATION_MODE,
];

/// How the status of a kind is shared with other controllers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Lists are merged by key: each controller applies its own part.
    ByKey,
    /// One list of entries, each of one controller, that is replaced as a whole: the field of that name.
    WholeList(&'static str),
}

impl Sharing {
    /// How the status of a kind is shared.
    pub fn of(kind: Kind) -> Self {
        match kind {
            Kind::HTTPRoute | Kind::GRPCRoute | Kind::TLSRoute | Kind::TCPRoute | Kind::UDPRoute => {
                Self::WholeList("parents")
            }
            Kind::BackendTLSPolicy => Self::WholeList("ancestors"),
            _ => Self::ByKey,
        }
    }
}

/// The own part of a status, without times and in one order.
pub fn normalize(kind: Kind, controllers: &[String], status: &Value) -> Value {
    if let Sharing::WholeList(list) = Sharing::of(kind) {
        let entries = status[list].as_array().into_iter().flatten().filter(|entry| is_own(entry, controllers));
        return sorted(entries.map(|entry| {
            json!({
                "ref": reference(entry),
                "controller": entry["controllerName"],
                "conditions": conditions(entry, false),
            })
        }));
    }
    let mut normal = Map::new();
    normal.insert("conditions".to_owned(), conditions(status, true));
    match kind {
        Kind::Gateway | Kind::ListenerSet => {
            let addresses = status["addresses"].as_array().into_iter().flatten();
            normal.insert(
                "addresses".to_owned(),
                addresses
                    .map(|address| json!([address["type"].as_str().unwrap_or("IPAddress"), address["value"]]))
                    .collect(),
            );
            let listeners = status["listeners"].as_array().into_iter().flatten();
            let listeners: BTreeMap<_, _> = listeners
                .map(|listener| {
                    let kinds = listener["supportedKinds"].as_array().into_iter().flatten();
                    let kinds = kinds.map(|kind| json!([group_of(kind), kind["kind"]]));
                    let normal = json!({
                        "attachedRoutes": listener["attachedRoutes"].as_i64().unwrap_or_default(),
                        "kinds": sorted(kinds),
                        "conditions": conditions(listener, true),
                    });
                    (listener["name"].as_str().unwrap_or_default().to_owned(), normal)
                })
                .collect();
            normal.insert("listeners".to_owned(), json!(listeners));
            normal.insert("sets".to_owned(), json!(status["attachedListenerSets"].as_i64().unwrap_or_default()));
        }
        Kind::GatewayClass => {
            let features = status["supportedFeatures"].as_array().into_iter().flatten();
            let features: BTreeSet<_> = features.filter_map(|feature| feature["name"].as_str()).collect();
            normal.insert("features".to_owned(), json!(features));
        }
        Kind::TrafficDomain => {
            let nodes = status["nodes"].as_array().into_iter().flatten();
            let nodes: BTreeMap<_, _> = nodes.map(|node| (node["name"].as_str().unwrap_or_default(), node)).collect();
            normal.insert("nodes".to_owned(), json!(nodes));
        }
        _ => {}
    }
    Value::Object(normal)
}

/// Hash of a status in its normal form; within one process.
pub fn digest(normal: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    // `serde_json` keeps fields sorted, so equal values have equal text.
    normal.to_string().hash(&mut hasher);
    hasher.finish()
}

/// Whether an entry of a list that controllers share is this controller's.
pub fn is_own(entry: &Value, controllers: &[String]) -> bool {
    entry["controllerName"].as_str().is_some_and(|name| controllers.iter().any(|own| own == name))
}

/// The reference that an entry of a shared list is about, with what is left out filled in as the API server does.
pub fn reference(entry: &Value) -> Value {
    let reference = if entry["parentRef"].is_object() { &entry["parentRef"] } else { &entry["ancestorRef"] };
    json!({
        "group": group_of(reference),
        "kind": reference["kind"].as_str().unwrap_or("Gateway"),
        "namespace": reference["namespace"],
        "name": reference["name"],
        "sectionName": reference["sectionName"],
        "port": reference["port"],
    })
}

fn group_of(value: &Value) -> &str {
    value["group"].as_str().unwrap_or(GATEWAY_GROUP)
}

/// Conditions by type; of a status that others write to as well, only those of [`OWN_CONDITIONS`].
fn conditions(holder: &Value, is_shared: bool) -> Value {
    let conditions = holder["conditions"].as_array().into_iter().flatten();
    let by_type: BTreeMap<_, _> = conditions
        .filter_map(|condition| Some((condition["type"].as_str()?, condition)))
        .filter(|(type_, _)| !is_shared || OWN_CONDITIONS.contains(type_))
        .map(|(type_, condition)| {
            let fields = ["status", "reason", "message", "observedGeneration"].map(|field| match &condition[field] {
                Value::Null if field == "message" => Value::from(""),
                value => value.clone(),
            });
            (type_, fields)
        })
        .collect();
    json!(by_type)
}

fn sorted(values: impl Iterator<Item = Value>) -> Value {
    let mut values: Vec<_> = values.collect();
    values.sort_by_cached_key(ToString::to_string);
    Value::Array(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn controllers() -> Vec<String> {
        vec!["tidegate.dev/gateway-controller".to_owned()]
    }

    #[test]
    fn times_order_and_others_make_no_difference() {
        let one = json!({"conditions": [
            {"type": "Accepted", "status": "True", "reason": "Accepted", "message": "", "observedGeneration": 2, "lastTransitionTime": "a"},
            {"type": "Programmed", "status": "True", "reason": "Programmed", "message": "", "observedGeneration": 2, "lastTransitionTime": "b"},
        ], "addresses": [{"type": "IPAddress", "value": "10.0.0.1"}]});
        let other = json!({"conditions": [
            {"type": "example.org/Checked", "status": "True", "reason": "x", "message": ""},
            {"type": "Programmed", "status": "True", "reason": "Programmed", "observedGeneration": 2, "lastTransitionTime": "c"},
            {"type": "Accepted", "status": "True", "reason": "Accepted", "message": "", "observedGeneration": 2},
        ], "addresses": [{"value": "10.0.0.1"}], "listeners": []});
        let normal = |status: &Value| normalize(Kind::Gateway, &controllers(), status);
        assert_eq!(digest(&normal(&one)), digest(&normal(&other)));
        let mut stale = one.clone();
        stale["conditions"][0]["observedGeneration"] = json!(1);
        assert_ne!(normal(&one), normal(&stale));
    }

    #[test]
    fn of_a_shared_list_only_own_entries_count() {
        let status = json!({"parents": [
            {"parentRef": {"name": "gw"}, "controllerName": "other.example/controller", "conditions": []},
            {"parentRef": {"name": "gw", "kind": "Gateway", "group": "gateway.networking.k8s.io"}, "controllerName": "tidegate.dev/gateway-controller", "conditions": []},
        ]});
        let same =
            json!({"parents": [{"parentRef": {"name": "gw"}, "controllerName": "tidegate.dev/gateway-controller"}]});
        let normal = |status: &Value| normalize(Kind::HTTPRoute, &controllers(), status);
        assert_eq!(normal(&status), normal(&same));
        assert_eq!(normal(&json!(null)), json!([]));
    }
}
