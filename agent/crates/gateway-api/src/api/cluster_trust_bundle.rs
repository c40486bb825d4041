//! `ClusterTrustBundle` of Kubernetes' group `certificates.k8s.io`, as far as it is read. The same in all its versions, of
//! which the Kubernetes library here knows only those of its own release.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};

/// Certificate authorities for the whole cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClusterTrustBundle {
    /// Metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What it holds.
    pub spec: ClusterTrustBundleSpec,
}

/// What a [`ClusterTrustBundle`] holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterTrustBundleSpec {
    /// The signer whose authorities they are; decides about nothing here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signer_name: Option<String>,
    /// The authorities' certificates in PEM.
    pub trust_bundle: String,
}
