//! What the Node object of this node says: its labels and its addresses.

use std::{collections::BTreeMap, net::IpAddr};

use serde_json::Value;

/// Facts of a node that the translation needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// `metadata.uid`.
    pub uid: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Addresses of type `InternalIP`, in their order.
    pub addresses: Vec<IpAddr>,
}

impl NodeFacts {
    /// Reads a Node.
    pub(super) fn of(node: &Value) -> Self {
        let labels = node["metadata"]["labels"].as_object().into_iter().flatten();
        let addresses = node["status"]["addresses"].as_array().into_iter().flatten();
        Self {
            uid: node["metadata"]["uid"].as_str().unwrap_or_default().to_owned(),
            labels: labels.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect(),
            addresses: addresses
                .filter(|address| address["type"] == "InternalIP")
                .filter_map(|address| address["address"].as_str()?.parse().ok())
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_internal_addresses_count() {
        let facts = NodeFacts::of(&json!({
            "metadata": {"labels": {"role": "gateway"}},
            "status": {"addresses": [
                {"type": "Hostname", "address": "n1"}, {"type": "InternalIP", "address": "10.0.0.1"},
                {"type": "ExternalIP", "address": "203.0.113.1"}, {"type": "InternalIP", "address": "2001:db8::1"},
            ]},
        }));
        let addresses: Vec<_> = facts.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["10.0.0.1", "2001:db8::1"]);
        assert_eq!(facts.labels["role"], "gateway");
    }
}
