//! What is kept of an object. Whatever the translation does not read is dropped before anything else looks at the object,
//! so that it takes no memory and a change of it is no change.

use serde_json::{Map, Value};
use tidegate_gateway_api::Kind;

/// Label of an EndpointSlice that names its Service.
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// Drops from an object everything that is not read; gives back its status, which is not part of it.
pub(super) fn trim(kind: Kind, value: &mut Value) -> Value {
    let Value::Object(fields) = value else { return Value::Null };
    let status = fields.remove("status").unwrap_or_default();
    match kind {
        Kind::Namespace => fields.retain(|name, _| matches!(name.as_str(), "apiVersion" | "kind" | "metadata")),
        Kind::Service => {
            keep(fields.get_mut("spec"), &["type", "clusterIP", "clusterIPs", "externalName", "ports"]);
        }
        Kind::EndpointSlice => {
            for endpoint in fields.get_mut("endpoints").and_then(Value::as_array_mut).into_iter().flatten() {
                keep(Some(endpoint), &["addresses", "conditions"]);
            }
        }
        _ => {}
    }
    trim_metadata(kind, fields);
    status
}

fn trim_metadata(kind: Kind, fields: &mut Map<String, Value>) {
    let Some(Value::Object(metadata)) = fields.get_mut("metadata") else { return };
    // Only generations of kinds that are judged are reported; those of the others tell of changes that were dropped here.
    let has_generation = kind.has_status();
    metadata.retain(|name, _| match name.as_str() {
        "name" | "namespace" | "creationTimestamp" => true,
        "generation" => has_generation,
        // What is made for a Gateway belongs to it by this; what sessions of a route are sealed with.
        "uid" => matches!(kind, Kind::Gateway | Kind::HTTPRoute | Kind::GRPCRoute),
        "labels" => matches!(kind, Kind::Namespace | Kind::EndpointSlice),
        _ => false,
    });
    if kind == Kind::EndpointSlice {
        keep(metadata.get_mut("labels"), &[SERVICE_NAME_LABEL]);
    }
}

fn keep(value: Option<&mut Value>, names: &[&str]) {
    if let Some(Value::Object(fields)) = value {
        fields.retain(|name, _| names.contains(&name.as_str()));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_read_makes_no_difference() {
        let slice = |trigger: &str, node: &str, generation: i64| {
            json!({
                "metadata": {
                    "name": "a", "namespace": "b", "generation": generation, "resourceVersion": trigger,
                    "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": trigger},
                    "labels": {"kubernetes.io/service-name": "s", "x": trigger},
                },
                "addressType": "IPv4",
                "endpoints": [{"addresses": ["10.0.0.1"], "nodeName": node, "targetRef": {"uid": node}}],
                "ports": [{"port": 80}],
            })
        };
        let (mut one, mut other) = (slice("1", "x", 1), slice("2", "y", 2));
        trim(Kind::EndpointSlice, &mut one);
        trim(Kind::EndpointSlice, &mut other);
        assert_eq!(one, other);
        assert_eq!(one["metadata"]["labels"]["kubernetes.io/service-name"], "s");
    }

    #[test]
    fn a_status_is_taken_off_and_the_generation_of_a_judged_kind_stays() {
        let mut route = json!({"metadata": {"name": "a", "generation": 3, "labels": {"a": "b"}}, "spec": {}, "status": {"parents": []}});
        assert_eq!(trim(Kind::HTTPRoute, &mut route), json!({"parents": []}));
        assert_eq!(route, json!({"metadata": {"name": "a", "generation": 3}, "spec": {}}));
    }
}
