//! `TrafficDomain`: the unit of isolation. Cluster-scoped; a GatewayClass names one by `parametersRef`.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::node_report::InterfaceReport;

/// NICs, addresses, sources and limits of a traffic domain.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(group = "tidegate.dev", version = "v1alpha1", kind = "TrafficDomain", status = "TrafficDomainStatus")]
#[kube(derive = "PartialEq", derive = "Default", shortname = "td", category = "tidegate")]
#[kube(doc = "A traffic domain: the NICs, addresses, sources and limits of the Gateways of one GatewayClass.")]
#[kube(printcolumn = r#"{"name": "Interfaces", "type": "string", "jsonPath": ".spec.interfaces"}"#)]
#[kube(printcolumn = r#"{"name": "Pool", "type": "string", "jsonPath": ".spec.addresses.pool"}"#)]
#[kube(
    printcolumn = r#"{"name": "Accepted", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Accepted\")].status"}"#
)]
#[kube(printcolumn = r#"{"name": "Nodes", "type": "string", "jsonPath": ".status.nodes[*].name", "priority": 1}"#)]
#[kube(printcolumn = r#"{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}"#)]
#[serde(rename_all = "camelCase")]
pub struct TrafficDomainSpec {
    /// NICs that the domain's frontends are reachable through.
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 15)))]
    pub interfaces: Vec<String>,
    /// Where its Gateways get their addresses.
    pub addresses: AddressesSpec,
    /// Labels of the nodes that serve the domain. Default: every node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<BTreeMap<String, String>>,
    /// Who may send packets to its frontends. Default: everybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sources: Option<SourcesSpec>,
    /// Limits on connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admission: Option<AdmissionSpec>,
    /// What its workers may dial beside their own endpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<EgressSpec>,
    /// Threads of its worker. Default: one for each core that `resources.cpu` gives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1024))]
    pub shards: Option<u16>,
    /// Limits of its worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourcesSpec>,
    /// Labels on each of its metrics and log lines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
}

/// What is in force of a domain.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TrafficDomainStatus {
    /// Conditions, by type.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The nodes that serve the domain, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub nodes: Vec<DomainNode>,
}

/// A domain on one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DomainNode {
    /// Name of the node.
    pub name: String,
    /// `metadata.generation` of the TrafficDomain that the node has applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The domain's NICs there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<InterfaceReport>,
    /// Limits and walls that the node does not enforce, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_enforced: Vec<String>,
    /// What the node could not apply, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

/// Where Gateways get their addresses: exactly one of the fields.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "has(self.pool) != has(self.node)", "message": "set exactly one of pool and node"}
]))]
pub struct AddressesSpec {
    /// Prefixes to give each Gateway an address of its own from, one of each family.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub pool: Option<Vec<String>>,
    /// All Gateways share the node's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeAddress>,
}

/// Which of a node's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum NodeAddress {
    /// Those of type `InternalIP` in the Node's status.
    InternalIP,
}

/// Sources of packets. Denied wins over allowed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SourcesSpec {
    /// Prefixes let in; when this or `allowFrom` is present, nobody else is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow: Option<Vec<String>>,
    /// Prefixes refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deny: Option<Vec<String>>,
    /// ConfigMaps with further prefixes to let in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_from: Option<Vec<ConfigMapReference>>,
    /// ConfigMaps with further prefixes to refuse.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deny_from: Option<Vec<ConfigMapReference>>,
}

/// A ConfigMap whose values are lists of prefixes: one a line, `#` starts a comment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ConfigMapReference {
    /// Namespace. Default: `default`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Name.
    pub name: String,
    /// Key of the list. Default: every key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

/// Limits on connections.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AdmissionSpec {
    /// Rates of new connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_connections: Option<NewConnections>,
    /// Numbers of open connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_connections: Option<OpenConnections>,
    /// What its own addresses take of ICMP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp: Option<IcmpSpec>,
    /// Who answers SYNs with cookies when a listener's queue is full. Default: the kernel's TCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub syn_cookies: Option<SynCookiesSpec>,
    /// What counts as one source for the limits of each source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_prefix_length: Option<SourcePrefixLength>,
}

/// What a domain's own addresses take of ICMP: echo up to a rate, the errors that path MTU discovery needs, and nothing else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct IcmpSpec {
    /// Echo messages. Default: 1000 a second, 1000 at once. A rate of 0 takes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub echo: Option<RateSpec>,
}

/// Who answers SYNs with cookies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SynCookiesSpec {
    /// The kernel's TCP, as `net.ipv4.tcp_syncookies` says.
    Kernel,
    /// XDP in the driver, for what the kernel would answer with a cookie.
    #[serde(rename = "XDP")]
    Xdp,
}

/// How long a prefix counts as one source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SourcePrefixLength {
    /// Of IPv4 addresses, 1 to 32. Default: 32, each address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v4: Option<u8>,
    /// Of IPv6 addresses, 1 to 128. Default: 64, each link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v6: Option<u8>,
}

/// Rates of new connections.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NewConnections {
    /// For each source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_source: Option<RateSpec>,
    /// For the domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<RateSpec>,
}

/// A token bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RateSpec {
    /// How many a second, 1 to 1000000.
    pub rate: u32,
    /// How many at once, at least 1. Default: `rate`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
}

/// Numbers of open connections.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OpenConnections {
    /// For each source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_source: Option<u64>,
    /// For the domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
}

/// What workers may dial beside their own endpoints.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EgressSpec {
    /// Prefixes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow: Option<Vec<String>>,
}

/// Limits of a worker, as Kubernetes writes quantities.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ResourcesSpec {
    /// Cores: `"2"`, `500m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Quantity>,
    /// Bytes: `512Mi`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Quantity>,
}

/// A quantity: a whole number, or text with a suffix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Quantity {
    /// `cpu: 2`.
    Whole(u64),
    /// `cpu: 500m`.
    Text(String),
}

impl JsonSchema for Quantity {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Quantity".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "x-kubernetes-int-or-string": true })
    }
}
