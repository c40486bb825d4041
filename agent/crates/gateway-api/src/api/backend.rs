//! `Backend`: endpoints by address or name, for what no Service stands for. Field names are Envoy Gateway's.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Status of the kinds of group `tidegate.dev`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OwnStatus {
    /// Conditions, by type.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// Endpoints that routes send requests to.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(group = "tidegate.dev", version = "v1alpha1", kind = "Backend", namespaced, status = "OwnStatus")]
#[kube(derive = "PartialEq", derive = "Default", shortname = "tgb", category = "tidegate")]
#[kube(doc = "Endpoints by address or name that Routes send requests to, for what no Service stands for.")]
#[kube(
    printcolumn = r#"{"name": "Accepted", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Accepted\")].status"}"#
)]
#[kube(printcolumn = r#"{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}"#)]
#[serde(rename_all = "camelCase")]
pub struct BackendSpec {
    /// `Endpoints` (the default); Envoy Gateway's other types are not served.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub type_: Option<String>,
    /// Where the backend is. Names are resolved by the agent.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub endpoints: Vec<BackendEndpoint>,
    /// Protocols that the endpoints speak, best first: `gateway.envoyproxy.io/h2c`, `gateway.envoyproxy.io/ws`
    /// or the same under `kubernetes.io/`. Default: HTTP/1.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_protocols: Option<Vec<String>>,
    /// Use as a fallback only; not served yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<bool>,
    /// TLS to the endpoints; not served yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any_object")]
    pub tls: Option<serde_json::Value>,
}

/// One endpoint: exactly one of `ip`, `fqdn` and `unix`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "(has(self.ip) ? 1 : 0) + (has(self.fqdn) ? 1 : 0) + (has(self.unix) ? 1 : 0) == 1",
    "message": "set exactly one of ip, fqdn and unix"
}]))]
pub struct BackendEndpoint {
    /// By address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<IpEndpoint>,
    /// By name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fqdn: Option<FqdnEndpoint>,
    /// By path of a Unix socket; not served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any_object")]
    pub unix: Option<serde_json::Value>,
    /// Zone; not used for balancing yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
}

/// An address and port.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct IpEndpoint {
    /// IPv4 or IPv6 address.
    #[schemars(length(min = 2, max = 45))]
    pub address: String,
    /// Port, 1 to 65535.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
}

/// A name and port.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FqdnEndpoint {
    /// DNS name.
    #[schemars(length(min = 1, max = 253))]
    pub hostname: String,
    /// Port, 1 to 65535.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
}

fn any_object(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true })
}
