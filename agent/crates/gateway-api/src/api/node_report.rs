//! `NodeReport`: what one node has really applied. Each agent writes the one of its node; the agent that writes status
//! reads them all. Nobody else needs them, and none of them is configuration.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a node has applied.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(group = "tidegate.dev", version = "v1alpha1", kind = "NodeReport", shortname = "tgnode", category = "tidegate")]
#[kube(derive = "PartialEq", derive = "Default")]
#[kube(doc = "What the agent of one node has applied. Written by agents alone.")]
#[kube(printcolumn = r#"{"name": "Domains", "type": "string", "jsonPath": ".spec.domains[*].name"}"#)]
#[kube(printcolumn = r#"{"name": "Addresses", "type": "string", "jsonPath": ".spec.addresses"}"#)]
#[kube(printcolumn = r#"{"name": "Version", "type": "string", "jsonPath": ".spec.version"}"#)]
#[kube(printcolumn = r#"{"name": "Seen", "type": "date", "jsonPath": ".spec.renewTime"}"#)]
#[serde(rename_all = "camelCase")]
pub struct NodeReportSpec {
    /// When the agent last said that it lives. Only that it changes counts: clocks may differ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renew_time: Option<MicroTime>,
    /// Version of the agent.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// Addresses of the node, for domains with `addresses: {node: InternalIP}`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// The domains that the node serves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub domains: Vec<DomainReport>,
    /// The Gateways (`namespace/name`) that the node has applied, with the `metadata.generation` of each.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub gateways: BTreeMap<String, i64>,
    /// The ListenerSets (`namespace/name`) that the node has applied, with the `metadata.generation` of each.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub listener_sets: BTreeMap<String, i64>,
    /// Listeners of these Gateways and ListenerSets that are not reachable on the node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_programmed: Vec<NotProgrammed>,
}

/// A domain that the node serves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DomainReport {
    /// Name of the TrafficDomain.
    pub name: String,
    /// Its `metadata.generation` that is applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Its NICs on the node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<InterfaceReport>,
    /// Limits and walls that the node does not enforce, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_enforced: Vec<String>,
    /// What could not be applied, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

/// A NIC of a domain on a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InterfaceReport {
    /// Name of the NIC.
    pub name: String,
    /// `native`, `generic`, `missing`, `off`, or `failed: …`.
    pub attach: String,
}

/// A listener that a node cannot be reached by.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NotProgrammed {
    /// The Gateway, `namespace/name`.
    pub gateway: String,
    /// The ListenerSet that the listener stands in, `namespace/name`; absent when it stands in the Gateway.
    #[serde(default, rename = "listenerSet", skip_serializing_if = "Option::is_none")]
    pub listener_set: Option<String>,
    /// Name of the listener.
    pub listener: String,
    /// Why.
    pub message: String,
}
