//! Kinds of group `tidegate.dev`, written by hand: they are this project's own, and their CRDs are made from them.

mod backend;
mod traffic_domain;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

pub use backend::{Backend, BackendEndpoint, BackendSpec, FqdnEndpoint, IpEndpoint, OwnStatus};
pub use traffic_domain::{
    AddressesSpec, AdmissionSpec, ConfigMapReference, EgressSpec, NewConnections, NodeAddress, OpenConnections,
    Quantity, RateSpec, ResourcesSpec, SourcePrefixLength, SourcesSpec, SynCookiesSpec, TrafficDomain,
    TrafficDomainSpec,
};

/// The CustomResourceDefinitions of the group, made from the types.
pub fn crds() -> Vec<CustomResourceDefinition> {
    vec![TrafficDomain::crd(), Backend::crd()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_stand_for_themselves_and_have_a_status() {
        for crd in crds() {
            let version = &crd.spec.versions[0];
            assert_eq!((crd.spec.group.as_str(), version.name.as_str()), (crate::OWN_GROUP, "v1alpha1"));
            assert!(version.subresources.as_ref().is_some_and(|resources| resources.status.is_some()));
            let schema = serde_json::to_string(&version.schema).unwrap();
            assert!(!schema.contains("$ref"), "an API server takes no references: {schema}");
        }
        assert_eq!(crds()[0].spec.scope, "Cluster");
    }
}
