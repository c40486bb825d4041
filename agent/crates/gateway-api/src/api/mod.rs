//! Kinds of group `tidegate.dev`, written by hand: they are this project's own, and their CRDs are made from them. And one
//! of Kubernetes that its library has only as old versions of.

mod backend;
mod cluster_trust_bundle;
mod node_report;
mod traffic_domain;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

pub use backend::{Backend, BackendEndpoint, BackendSpec, FqdnEndpoint, IpEndpoint, OwnStatus};
pub use cluster_trust_bundle::{ClusterTrustBundle, ClusterTrustBundleSpec};
pub use node_report::{DomainReport, InterfaceReport, NodeReport, NodeReportSpec, NotProgrammed};
pub use traffic_domain::{
    AddressesSpec, AdmissionSpec, ConfigMapReference, DomainNode, EgressSpec, IcmpSpec, NewConnections, NodeAddress,
    OpenConnections, Quantity, RateSpec, ResourcesSpec, SourcePrefixLength, SourcesSpec, SynCookiesSpec, TrafficDomain,
    TrafficDomainSpec, TrafficDomainStatus,
};

/// The CustomResourceDefinitions of the group, made from the types.
pub fn crds() -> Vec<CustomResourceDefinition> {
    vec![TrafficDomain::crd(), Backend::crd(), NodeReport::crd()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_stand_for_themselves() {
        for crd in crds() {
            let version = &crd.spec.versions[0];
            assert_eq!((crd.spec.group.as_str(), version.name.as_str()), (crate::OWN_GROUP, "v1alpha1"));
            let has_status = version.subresources.as_ref().is_some_and(|resources| resources.status.is_some());
            // A report is a status as a whole: its writer is the agent of its node and nobody else.
            assert_eq!(has_status, crd.spec.names.kind != "NodeReport");
            let schema = serde_json::to_string(&version.schema).unwrap();
            assert!(!schema.contains("$ref"), "an API server takes no references: {schema}");
            assert!(crd.spec.names.short_names.is_some_and(|names| !names.is_empty()));
        }
        assert_eq!(crds()[0].spec.scope, "Cluster");
    }

    #[test]
    fn lists_that_several_write_are_merged_by_key() {
        let schema = |crd: &CustomResourceDefinition| serde_json::to_value(&crd.spec.versions[0].schema).unwrap();
        let crds = crds();
        for (crd, list, key) in [(0, "conditions", "type"), (0, "nodes", "name"), (1, "conditions", "type")] {
            let schema = schema(&crds[crd]);
            let list = &schema["openAPIV3Schema"]["properties"]["status"]["properties"][list];
            assert_eq!(list["x-kubernetes-list-type"], "map", "{list}");
            assert_eq!(list["x-kubernetes-list-map-keys"][0], key);
        }
    }

    #[test]
    fn one_of_several_fields_is_demanded_by_the_definition() {
        let schema = |crd: &CustomResourceDefinition| serde_json::to_value(&crd.spec.versions[0].schema).unwrap();
        let domain = schema(&crds()[0]);
        let addresses = &domain["openAPIV3Schema"]["properties"]["spec"]["properties"]["addresses"];
        assert_eq!(addresses["x-kubernetes-validations"][0]["rule"], "has(self.pool) != has(self.node)");
        let backend = schema(&crds()[1]);
        let endpoint = &backend["openAPIV3Schema"]["properties"]["spec"]["properties"]["endpoints"]["items"];
        assert!(endpoint["x-kubernetes-validations"][0]["rule"].is_string(), "{endpoint}");
    }
}
